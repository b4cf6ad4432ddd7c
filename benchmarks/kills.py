"""Does a run that is killed at any moment go on to the same files, and leave nothing behind?

    python benchmarks/kills.py OUT [--kills 500] [--verbs tune evaluate] [--seed 0]

Each verb runs once unharmed on a tiny simulated dataset. Then it runs again and again. Each time it is killed (SIGKILL, with
its workers): four times of five right before a change of the disk, chosen by the seed, else at a moment that the clock gives.
The same command comes again, to be killed up to five times, and once more to end. Compared with the unharmed run: which files
there are, and the contents of each, but for clocks. `force` must find nothing that the run did not write.

The table counts: changes of the disk in an unharmed run; kills; runs; runs that did not go on; that ended with other
contents; that left other files; that `force` would not replace. OUT/failures.jsonl has what went wrong. Linux and macOS.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib
import json
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
import torch
import yaml

import mindtuner
from mindtuner import config as config_module
from mindtuner.claims import LIST, goes_on
from mindtuner.cli import main as call
from mindtuner.config import Config, as_dict, load_config
from mindtuner.errors import UserError
from mindtuner.simulation import cutouts
from mindtuner.towers.compact import CompactImageEncoder, CompactTextEncoder

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.link", "os.truncate"}
WORLD = ("--sessions", 2, "--trials-per-session", 48, "--shared-images", 8, "--repeats", 2, "--voxel-scale", 0.01)
CLOCKS = {"seconds", "timing_s", "peak_memory_mb"}
IN_PAGES = re.compile(rb"(?<=[>\s(])[0-9][0-9,.]* ?(?:s|min|h|MB|GB)\b")


@dataclass(frozen=True)
class Verb:
    """A command into the folder ``out``, which is also what is compared; ``share`` of the kills, relative to others."""

    name: str
    words: Callable[[Path], list[object]]
    share: float = 1.0
    listed: bool = True  # whether the folder is a run's, with a list of its own


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
    data, base, tuned, config = inputs / "data", inputs / "base", inputs / "tuned", inputs / "tiny.yaml"
    knobs = ("--subjects", 1, *WORLD)
    study = ("--data", data, "--base", base, "--subject", 1, "--config", config, "--seeds", 2)
    few = ("--scenes", 300, "--autoencoder-steps", 1, "--prior-steps", 1, "--painter-steps", 1, "--words-steps", 1)
    return [
        Verb("simulate", lambda out: ["simulate", out, *knobs], share=2.0),
        Verb("simulate bdata", lambda out: ["simulate", out, *knobs, "--format", "bdata"], share=0.5),
        Verb("convert nsd", lambda out: ["convert", "nsd", inputs / "raw", out], share=0.5),
        Verb("convert bdata", lambda out: ["convert", "bdata", inputs / "bdata", out], share=0.5),
        Verb("embed", lambda out: ["embed", data, out], listed=False),
        Verb("pretrain", lambda out: ["pretrain", data, out, "--without", 1, "--config", config], share=1.5),
        Verb("tune", lambda out: ["tune", base, data, out, "--subject", 1], share=1.5),
        Verb("fit", lambda out: ["fit", data, out, "--subject", 1, "--config", config]),
        Verb("evaluate", lambda out: ["evaluate", tuned, data, out], share=1.5),
        Verb("decode", lambda out: ["decode", tuned, data, out, "--pictures", 2], share=1.5),
        Verb("fingerprint", lambda out: ["fingerprint", tuned, data, out]),
        Verb("demo", lambda out: ["demo", "--quick", "--out", out]),
        Verb("ablate", lambda out: ["ablate", out, *study], share=0.3),
        Verb("train-generator", lambda out: ["train-generator", out / "w.safetensors", *few], share=0.5, listed=False),
    ]


def prepare(inputs: Path, names: list[str]) -> None:
    """Write what these verbs read: a dataset in up to three forms, its features, a base, a tuned subject, and settings."""
    inputs.mkdir(parents=True, exist_ok=True)
    (inputs / "tiny.yaml").write_text(yaml.safe_dump(as_dict(tiny())))
    two, one = ("--subjects", 2, *WORLD), ("--subjects", 1, *WORLD)
    data, base, config = inputs / "data", inputs / "base", ("--config", inputs / "tiny.yaml")
    commands: dict[str, tuple] = {
        "data": ("simulate", data, *two),
        "base": ("pretrain", data, base, "--without", 1, *config),
        "tuned": ("tune", base, data, inputs / "tuned", "--subject", 1),
    }
    if "convert nsd" in names:
        commands["raw"] = ("simulate", inputs / "raw", *one, "--format", "nsd_raw")
    if "convert bdata" in names:
        commands["bdata"] = ("simulate", inputs / "bdata", *one, "--format", "bdata")
    for name, words in commands.items():
        if (inputs / f"{name}.whole").exists():
            continue
        shutil.rmtree(inputs / name, ignore_errors=True)
        code, said, _ = run(list(words), inputs.parent / "log")
        if code != 0:
            raise SystemExit(f"{words}: {said}")
        (inputs / f"{name}.whole").touch()


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
            path, changes = (words or ("",))[0], event in CHANGES
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
        for _ in range(rng.integers(1, 6)):
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
        over = code == 2 and "holds another run" in said and found == wanted  # killed while it said so
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
    chosen = [verb for verb in verbs(out / "inputs") if options.verbs is None or verb.name in options.verbs]
    prepare(out / "inputs", [verb.name for verb in chosen])
    total = sum(verb.share for verb in chosen)
    print("| verb | changes of the disk | kills | runs | did not go on | other contents | other files | not replaced |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    sums = np.zeros(6, int)
    for verb in chosen:
        found = campaign(verb, out, round(options.kills * verb.share / total), options.seed)
        row = (found.kills, found.runs, found.refused, found.changed, found.litter, found.foreign)
        sums += row
        print(f"| {verb.name} | {found.writes} | " + " | ".join(map(str, row)) + " |", flush=True)
        with (out / "failures.jsonl").open("a") as file:
            file.writelines(json.dumps(problem) + "\n" for problem in found.problems)
    print("| all | | " + " | ".join(map(str, sums)) + " |")


if __name__ == "__main__":
    main()
