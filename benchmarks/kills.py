"""Does a run that is killed at any moment go on to the same files, and leave nothing behind?

    python benchmarks/kills.py OUT [--kills 500] [--verbs tune evaluate] [--seed 0]

Each verb runs once unharmed on a tiny simulated dataset. Then it runs again and again. Each time it is killed (SIGKILL, with
its workers): four times of five right before a change of the disk, chosen by the seed, else at a moment that the clock gives.
The same command comes again, to be killed up to twelve times, and once more to end. Compared with the unharmed run: which
files there are, and the contents of each, but for clocks. `force` must find nothing that the run did not write. `fetch laion`
gets its files from a server on this machine (moto's). `check`, `check weights` and `info` write nothing; `fetch`,
`fetch weights` and `fetch networks` are left out.

The table counts: changes of the disk in an unharmed run; kills; runs; runs that did not go on; that ended with other
contents; that left other files; that `force` would not replace. OUT/failures.jsonl has what went wrong. Linux and macOS.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import importlib
import json
import logging
import os
import pkgutil
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # before torch comes

import numpy as np
import pandas as pd
import torch
import yaml
from PIL import Image
from safetensors import safe_open

import mindtuner
from mindtuner import config as config_module
from mindtuner.claims import LIST, goes_on
from mindtuner.cli import main as call
from mindtuner.config import Config, as_dict, load_config
from mindtuner.errors import UserError
from mindtuner.formats import FORMATS
from mindtuner.live.session import STATE
from mindtuner.pipeline.decoded_table import DECODED
from mindtuner.simulation import cutouts
from mindtuner.towers.compact import CompactImageEncoder, CompactTextEncoder

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.link", "os.truncate"}
WORLD = ("--sessions", 2, "--trials-per-session", 48, "--shared-images", 8, "--repeats", 2, "--voxel-scale", 0.01)
CLOCKS = {"time", "seconds", "timing_s", "peak_memory_mb"}
FILE, OWN, TWO = "it.safetensors", ("--split", "own"), ("--subjects", "1,2", "--text-width", 8)
TRIALS, BUCKET = 6, "laion-fmri"
LIVE = ("--port", 0, "--stop-after", TRIALS)
KILLS_A_RUN = 12
OVER = ("holds another run", "is there already")
IN_PAGES = re.compile(rb"(?<=[>\s(])[0-9][0-9,.]* ?(?:s|min|h|MB|GB)\b")


@dataclass(frozen=True)
class Verb:
    """A command into the folder ``out``, which is also what is compared.

    needs : names of what ``prepare`` writes · share : of the kills, relative to others · listed : whether the folder is a
    run's, with a list of its own
    """

    name: str
    words: Callable[[Path], list[object]]
    needs: str = ""
    share: float = 1.0
    listed: bool = True


@dataclass
class Counted:
    """What was seen of a verb."""

    writes: int = 0
    kills: int = 0
    runs: int = 0
    refused: int = 0
    changed: int = 0
    litter: int = 0
    foreign: int = 0
    problems: list[dict] = field(default_factory=list)


def tiny() -> Config:
    """Every part, as small as it can be."""
    quick = load_config("quick")
    few = {"epochs": 1, "batch_per_subject": 8, "head_trials": 8, "dtype": "float32", "checkpoint_steps": 4}
    knobs = {"subjects": 2, "sessions": 2, "trials_per_session": 48, "shared_images": 8, "repeats": 2, "voxel_scale": 0.01}
    return dataclasses.replace(
        quick,
        simulate=dataclasses.replace(quick.simulate, **knobs),
        model=dataclasses.replace(quick.model, hidden=16, blocks=1, lowlevel_channels=(8, 4)),
        pretrain=dataclasses.replace(quick.pretrain, **few),
        tune=dataclasses.replace(quick.tune, **few),
        pivot=dataclasses.replace(quick.pivot, epochs=1, batch=16),
        decode=dataclasses.replace(quick.decode, pictures=2, prior_steps=2, generator_steps=1, refine_steps=1),
    )


def verbs(inputs: Path) -> list[Verb]:
    """All of them, on what ``prepare`` wrote."""
    data, base, tuned, lab = inputs / "data", inputs / "base", inputs / "tuned", inputs / "lab" / "own"
    folds, scored, config = inputs / "folds", inputs / "scored", inputs / "tiny.yaml"
    knobs, one = ("--subjects", 1, *WORLD), ("--subject", 1, "--config", config)
    study = ("--data", data, "--base", base, *one)
    few = ("--scenes", 300, "--autoencoder-steps", 1, "--prior-steps", 1, "--painter-steps", 1, "--words-steps", 1)
    agreed = ("--yes", "--stimuli", "--accept-stimulus-terms")
    served = lambda: ("--endpoint", (inputs / BUCKET).read_text())
    forms = [form.name for form in FORMATS if form.write is not None]
    simulated = lambda form: lambda out: ["simulate", out, *knobs, "--format", form]
    return [
        Verb("simulate", lambda out: ["simulate", out, *knobs]),
        *(Verb(f"simulate {form}", simulated(form), share=0.5) for form in forms if form != "nsd_release"),
        Verb("convert nsd", lambda out: ["convert", "nsd", inputs / "raw", out], "raw"),
        Verb("convert bdata", lambda out: ["convert", "bdata", inputs / "bdata", out], "bdata"),
        Verb("convert mosaic", lambda out: ["convert", "mosaic", inputs / "mosaic", out], "mosaic"),
        Verb("convert laion", lambda out: ["convert", "laion", inputs / "laion", out, *OWN], "laion", listed=False),
        Verb(
            "convert mindeye2", lambda out: ["convert", "mindeye2", inputs / "me2.pth", out / FILE, *TWO], "me2", 0.5, False
        ),
        Verb("convert unclip", lambda out: ["convert", "unclip", inputs / "unclip.ckpt", out / "it"], "unclip", 0.5, False),
        Verb("fetch laion", lambda out: ["fetch", "laion", out, *agreed, *served()], f"laion {BUCKET}", listed=False),
        Verb("embed", lambda out: ["embed", data, out], "data", listed=False),
        Verb("pretrain", lambda out: ["pretrain", data, out, "--without", 1, "--config", config], "data base"),
        Verb("tune", lambda out: ["tune", base, data, out, "--subject", 1], "data base"),
        Verb("fit", lambda out: ["fit", data, out, *one], "data base"),
        Verb("fit folds", lambda out: ["fit", data, out, *one, "--folds", 2], "data base"),
        Verb("evaluate", lambda out: ["evaluate", tuned, data, out], "data base tuned"),
        Verb("evaluate folds", lambda out: ["evaluate", folds, data, out], "data base folds"),
        Verb("decode", lambda out: ["decode", tuned, data, out, "--pictures", 2], "data base tuned"),
        Verb("live", lambda out: ["live", inputs / "own", lab, inputs / "arrived", out, *LIVE], "laion lab own arrived"),
        Verb("fingerprint", lambda out: ["fingerprint", tuned, data, out], "data base tuned"),
        Verb("demo", lambda out: ["demo", "--quick", "--out", out], share=0.3),
        Verb("ablate", lambda out: ["ablate", out, *study, "--seeds", 2], "data base", 0.2),
        Verb("curve", lambda out: ["curve", out, *study, "--seeds", 2], "data base", 0.2),
        Verb("compare", lambda out: ["compare", scored, "--out", out / "it.json"], "data base tuned scored", 0.3, False),
        Verb("report", lambda out: ["report", scored, "--out", out / "it.html"], "data base tuned scored", 0.3, False),
        Verb(
            "score", lambda out: ["score", inputs / "seen", inputs / "painted", "--out", out / "it.json"], "seen", 0.3, False
        ),
        Verb("train-generator", lambda out: ["train-generator", out / FILE, *few], share=0.5, listed=False),
    ]


def prepare(inputs: Path, needs: set[str]) -> None:
    """Write what these verbs read: datasets in several forms, features, a base, tuned subjects, scores, and settings."""
    inputs.mkdir(parents=True, exist_ok=True)
    (inputs / "tiny.yaml").write_text(yaml.safe_dump(as_dict(tiny())))
    data, base, tuned, config = inputs / "data", inputs / "base", inputs / "tuned", ("--config", inputs / "tiny.yaml")
    simulated = lambda place, form: ("simulate", inputs / place, "--subjects", 1, *WORLD, "--format", form)
    steps: dict[str, tuple | Callable[[Path], None]] = {
        "data": ("simulate", data, "--subjects", 2, *WORLD),
        "base": ("pretrain", data, base, "--without", 1, *config),
        "tuned": ("tune", base, data, tuned, "--subject", 1),
        "folds": ("fit", data, inputs / "folds", "--subject", 1, *config, "--folds", 2),
        "scored": ("evaluate", tuned, data, inputs / "scored"),
        "raw": simulated("raw", "nsd_raw"),
        "bdata": simulated("bdata", "bdata"),
        "mosaic": simulated("mosaic", "mosaic"),
        "laion": simulated("laion", "laion"),
        "lab": ("convert", "laion", inputs / "laion", inputs / "lab", *OWN),
        "own": ("fit", inputs / "lab" / "own", inputs / "own", *config, "--method", "ridge"),
        "arrived": _write_trials,
        "seen": _write_pictures,
        "me2": _write_mindeye2,
        "unclip": _write_unclip,
    }
    for name, step in steps.items():
        if name not in needs or (inputs / f"{name}.whole").exists():
            continue
        shutil.rmtree(inputs / name, ignore_errors=True)
        if callable(step):
            step(inputs)
        else:
            code, said, _ = run(list(step), inputs.parent / "log")
            if code != 0:
                raise SystemExit(f"{step}: {said}")
        (inputs / f"{name}.whole").touch()


def _write_trials(inputs: Path) -> None:
    """As measured, for ``live``."""
    (inputs / "arrived").mkdir()
    for number, betas in enumerate(np.load(inputs / "lab" / "own" / "sub-01" / "betas.npy")[:TRIALS]):
        np.save(inputs / "arrived" / f"trial-{number}.npy", betas)


def _write_pictures(inputs: Path) -> None:
    rng = np.random.default_rng(0)
    for folder in (inputs / "seen", inputs / "painted"):
        folder.mkdir(exist_ok=True)
        for number in range(3):
            Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(folder / f"{number}.png")


def _write_mindeye2(inputs: Path) -> None:
    parity = importlib.import_module("parity.mindeye2")
    weights, _, _ = parity.read_fixture(parity.FIXTURES / "long_sequence.safetensors")
    torch.save({"epoch": 149, "model_state_dict": weights}, inputs / "me2.pth")


def _write_unclip(inputs: Path) -> None:
    parity = importlib.import_module("parity.unclip")
    weights, _, _ = parity.read_fixture(parity.FIXTURES / "attention_everywhere.safetensors")
    torch.save({"state_dict": weights, "epoch": 0, "global_step": 110000, "callbacks": {}}, inputs / "unclip.ckpt")


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a server of S3, in a process of its own, whose bucket holds a folder's files."""
    import boto3
    from moto.server import ThreadedMotoServer

    told, tell = os.pipe()
    parent, child = os.getpid(), os.fork()
    if child == 0:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it would say every request
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        url = "http://{}:{}".format(*server.get_host_and_port())
        login = {"aws_access_key_id": "owner", "aws_secret_access_key": "secret", "region_name": "us-west-2"}
        client = boto3.client("s3", endpoint_url=url, **login)
        client.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
        for path in (path for path in folder.rglob("*") if path.is_file()):
            name = path.relative_to(folder).as_posix()
            client.put_object(Bucket=BUCKET, Key=name, Body=path.read_bytes(), ACL="public-read")
        os.write(tell, url.encode())
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(0)
    try:
        yield os.read(told, 100).decode()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


# ---- one run


def run(
    words: list[object], log: Path, watched: Path | None = None, at: int = -1, after: float = 0.0
) -> tuple[int, str, int]:
    """Run a command in a process of its own; return its exit code, or minus a signal, what it said, and changes of the disk.

    watched : folder whose changes count · at : the change before which it is killed · after : seconds after which it is
    """
    told = log.with_suffix(".changes")
    told.write_bytes(b"")
    child = os.fork()
    if child == 0:
        _in_child(words, log, told, watched, at)
    ended = time.monotonic() + after
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        if after and time.monotonic() > ended:
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.005)
    return os.waitstatus_to_exitcode(status), log.read_text(errors="replace"), told.stat().st_size


def _in_child(words: list[object], log: Path, told: Path, watched: Path | None, at: int) -> None:
    """Never returns. With its workers it is a group of its own, killed together."""
    code = 70
    try:
        os.setsid()
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        for stream in (1, 2):
            os.dup2(file, stream)
        cutouts._VARIANTS = {"train": 1, "test": 1, "generator": 1}  # a drawing a kind: to compose is the same
        load = config_module.load_config
        config_module.load_config = lambda name: tiny() if name == "quick" and words[0] == "demo" else load(name)
        if watched is not None:
            marks = os.open(told, os.O_WRONLY | os.O_APPEND)
            sys.addaudithook(_Counter(str(watched), marks, at))
        code = call([str(word) for word in words])
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


class _Counter:
    """An audit hook: counts changes of files in a folder, a byte each, and kills this process and its workers at one."""

    def __init__(self, folder: str, marks: int, at: int):
        self.folder, self.marks, self.at, self.count = folder, marks, at, 0

    def __call__(self, event: str, words: tuple) -> None:
        if event == "open":
            path, mode, flags = words
            changes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR) or set(str(mode)) & set("wax+")
        else:
            path, changes = (words or ("",))[event == "os.link"], event in CHANGES  # of a link the new name
        if not changes or not isinstance(path, (str, bytes, os.PathLike)):
            return
        inside = os.fsdecode(path)
        # What is removed by way of an open folder is named by its last part alone.
        if inside.startswith(self.folder) or (event in CHANGES and not os.path.isabs(inside)):
            if self.count == self.at:
                os.killpg(os.getpgid(0), signal.SIGKILL)
            self.count += 1
            os.write(self.marks, b".")


# ---- what is compared


def contents(folder: Path) -> dict[str, str]:
    """A digest of each file in a folder, without the clocks in it; of the list of a run that it is there."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_dir():
            found[path.relative_to(folder).as_posix()] = hashlib.sha256(_timeless(path)).hexdigest()[:16]
    return found


def _timeless(path: Path) -> bytes:
    if path.name == LIST:
        return b""
    if path.name == STATE:
        with safe_open(path, "numpy") as file:
            trials = _without_clocks(json.loads(file.metadata()["trials"]))
            return json.dumps(trials).encode() + b"".join(file.get_tensor(name).tobytes() for name in sorted(file.keys()))
    if path.name == DECODED:
        return pd.read_csv(path, dtype=str).drop(columns=[*CLOCKS], errors="ignore").to_csv().encode()
    if path.suffix in (".json", ".jsonl"):
        return b"\n".join(json.dumps(_without_clocks(json.loads(line))).encode() for line in _documents(path))
    if path.suffix == ".pt":
        state = _without_clocks(torch.load(path, map_location="cpu", weights_only=True))
        return repr(_plain(state)).encode()
    data = path.read_bytes()
    return IN_PAGES.sub(b"", data) if path.suffix == ".html" else data


def _documents(path: Path) -> Iterator[str]:
    text = path.read_text()
    yield from text.splitlines() if path.suffix == ".jsonl" else [text]


def _without_clocks(value):
    if isinstance(value, dict):
        return {name: _without_clocks(one) for name, one in value.items() if name not in CLOCKS}
    return [_without_clocks(one) for one in value] if isinstance(value, list) else value


def _plain(value):
    if isinstance(value, torch.Tensor):
        return hashlib.sha256(value.numpy().tobytes()).hexdigest()
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def campaign(verb: Verb, work: Path, kills: int, seed: int) -> Counted:
    """Kill a verb so many times, and count."""
    rng, out, log, counted = np.random.default_rng([seed, *verb.name.encode()]), work / "out", work / "log", Counted()
    words = verb.words(out)
    shutil.rmtree(out, ignore_errors=True)
    begun = time.monotonic()
    code, said, counted.writes = run(words, log, out)
    seconds = time.monotonic() - begun
    if code != 0:
        raise SystemExit(f"{verb.name}: {said}")
    wanted = contents(out)
    while counted.kills < kills:
        shutil.rmtree(out)
        counted.runs += 1
        moments = []
        for _ in range(rng.integers(1, KILLS_A_RUN + 1)):
            by_clock = rng.random() < 0.2
            moment = {"after": float(rng.uniform(0.05, seconds))} if by_clock else {"at": int(rng.integers(counted.writes))}
            code, said, _ = run(words, log, out, **moment)
            moments.append(moment)
            counted.kills += code == -signal.SIGKILL
            if code != -signal.SIGKILL:
                break
        if code == -signal.SIGKILL:
            code, said, _ = run(words, log, out)
        found = contents(out) if out.exists() else {}
        over = code == 2 and found == wanted and any(text in said for text in OVER)  # killed while it said so
        problem = {"verb": verb.name, "killed": moments}
        if code != 0 and not over:
            counted.refused += 1
            counted.problems.append({**problem, "exit": code, "said": said[-1500:]})
            continue
        if names := sorted(set(found) ^ set(wanted)):
            counted.litter += 1
            counted.problems.append({**problem, "files": names})
        if names := sorted(name for name in found if found[name] != wanted.get(name, found[name])):
            counted.changed += 1
            counted.problems.append({**problem, "changed": names})
        if verb.listed and (refusal := refused_by_force(out, verb)):
            counted.foreign += 1
            counted.problems.append({**problem, "force": refusal})
    shutil.rmtree(out)
    return counted


def refused_by_force(out: Path, verb: Verb) -> str:
    """Why `force` would not replace what lies there, "" where it would."""
    kind = verb.name if verb.name.startswith("convert") else "simulate" if verb.name.startswith("simulate") else "run"
    try:
        goes_on(out, "another", kind, force=True)
    except UserError as error:
        return str(error)
    return ""


def import_all() -> None:
    """What verbs import, once, for all processes that are made of this one."""
    for module in pkgutil.walk_packages(mindtuner.__path__, "mindtuner."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in ("sentence_transformers", "transformers.models.bert.modeling_bert", "himalaya.ridge", "timm"):
        importlib.import_module(name)


def share_towers() -> None:
    """Read the two frozen towers once: processes that are made of this one take them as they are."""
    for tower in (CompactImageEncoder, CompactTextEncoder):
        read = vars(tower())
        tower.__init__ = lambda self, read=read: self.__dict__.update(read)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for inputs, runs and failures.jsonl")
    parser.add_argument("--kills", type=int, default=500, metavar="N", help="of all verbs together (default 500)")
    parser.add_argument("--verbs", nargs="+", metavar="VERB", help="those alone")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    options = parser.parse_args()
    torch.set_num_threads(1)
    import_all()
    share_towers()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    inputs = out / "inputs"
    chosen = [verb for verb in verbs(inputs) if options.verbs is None or verb.name in options.verbs]
    needs = {name for verb in chosen for name in verb.needs.split()}
    prepare(inputs, needs)
    with serving(inputs / "laion") if BUCKET in needs else contextlib.nullcontext("") as url:
        (inputs / BUCKET).write_text(url)
        print_table(chosen, out, options.kills, options.seed)


def print_table(chosen: list[Verb], out: Path, kills: int, seed: int) -> None:
    """A row a verb, as soon as it is known, and their sum."""
    total = sum(verb.share for verb in chosen)
    print("| verb | changes of the disk | kills | runs | did not go on | other contents | other files | not replaced |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    sums = np.zeros(6, int)
    for verb in chosen:
        begun = time.monotonic()
        found = campaign(verb, out, round(kills * verb.share / total), seed)
        row = (found.kills, found.runs, found.refused, found.changed, found.litter, found.foreign)
        sums += row
        print(f"| {verb.name} | {found.writes} | " + " | ".join(map(str, row)) + " |", flush=True)
        print(f"{verb.name}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
        with (out / "failures.jsonl").open("a") as file:
            file.writelines(json.dumps(problem) + "\n" for problem in found.problems)
    print("| all | | " + " | ".join(map(str, sums)) + " |")


if __name__ == "__main__":
    main()
