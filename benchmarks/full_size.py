"""What does it cost to open and read the whole of NSD? A folder of the real size is made and each call is timed.

    python benchmarks/full_size.py OUT

OUT gets the files of the public release for 8 subjects with NSD's voxels and sessions: 213,000 trials with their behaviour
tars, 73,000 images, captions, masks, both test splits. Trials and captions are all there; betas and pixels are declared at
their full size (34 GB) but only a few thousand rows are written, the rest are holes, so the disk holds about
3 GB. Each call then runs in a process of its own: seconds, peak resident memory, and whether it returned what was written.

Betas and images are stored as one block per file (contiguous), as our writer does, or in HDF5 chunks of whole rows; chunks
that cut rows would cost what they cost in any reader.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from release import IMAGE, TRIALS, Plan, as_webdataset_writes, betas_of, forget, images_of, make, write_betas, write_images

from mindtuner.data.nsd import SESSIONS, VOXELS

LATER = 3  # sessions that came out after the older test split was made
RUN = {"betas": 16, "images": 1}  # neighbouring rows that are real, as many as a chunk has
PLACES = {"betas": 60, "images": 2048}  # of such runs, spread over a file; of images those that are hashed
BATCH = 64


def real_rows(field: str, count: int) -> np.ndarray:
    """The rows that are written, spread evenly over all, (places, run), in whole chunks."""
    size = RUN[field]
    starts = np.linspace(0, count // size - 1, PLACES[field]).astype(np.int64) * size
    return starts[:, None] + np.arange(size)


PLAN = Plan(
    SESSIONS,
    shared=1_000,
    own=9_000,
    betas=lambda count: real_rows("betas", count),
    images=lambda count: real_rows("images", count),
)


def make_folders(root: Path) -> None:
    """Write the folder; its twin beside it differs in that betas of subject 1 and images come in chunks."""
    from mindtuner.claims import goes_on
    from mindtuner.formats.nsd_release.read import IMAGES, behaviour_folder, betas_path

    goes_on(root)  # refuses a folder that holds anything
    root.mkdir(parents=True, exist_ok=True)
    tables = make(root, PLAN)
    for subject, table in tables.items():
        older_split(behaviour_folder(root, subject), table, SESSIONS[subject - 1] - LATER)
    for tar in (root / "wds").rglob("*.tar"):
        as_webdataset_writes(tar)
    chunked = root / "chunked"
    chunked.mkdir()
    for path in root.iterdir():
        if path != chunked:
            (chunked / path.name).symlink_to(path.resolve())
    for path in (betas_path(chunked, 1), chunked / IMAGES):
        path.unlink()
    write_betas(betas_path(chunked, 1), 1, (len(tables[1]), VOXELS[0]), PLAN, (RUN["betas"], VOXELS[0]))
    write_images(chunked / IMAGES, PLAN, (RUN["images"], *IMAGE))


def older_split(folder: Path, table, last: int) -> None:
    """``test/0.tar``: the test trials up to session ``last``, which are the first of those in ``new_test/0.tar``."""
    whole = folder / "new_test" / "0.tar"
    count = int((table.is_shared & (table.session <= last)).sum())
    with tarfile.open(whole) as tar:
        end = next(member.offset for i, member in enumerate(tar) if i == 4 * count)
    (folder / "test").mkdir()
    with open(whole, "rb") as file:
        (folder / "test" / "0.tar").write_bytes(file.read(end) + bytes(2 * tarfile.BLOCKSIZE))


def chosen(field: str, count: int) -> np.ndarray:
    """A random batch among the rows that are real."""
    return np.random.default_rng(1).permutation(real_rows(field, count).ravel())[:BATCH]


def same(got: np.ndarray, expected: np.ndarray) -> str:
    return f"{len(got)} rows as written" if np.array_equal(got, expected) else "WRONG ROWS"


def read_betas(root: Path) -> Callable:
    subject = load(root, 1)
    rows = chosen("betas", subject.source.shape[0])
    return lambda: same(subject.betas(rows), betas_of(1, rows, subject.n_voxels))


def read_images(root: Path) -> Callable:
    from mindtuner.formats import load

    stimuli = load(root, [1]).stimuli
    ids = chosen("images", PLAN.n_images)
    return lambda: same(stimuli.images(ids), images_of(ids))


def read_session(root: Path) -> Callable:
    subject = load(root, 1)
    return lambda: f"{subject.betas(np.arange(TRIALS)).nbytes / 1e6:.0f} MB"


def read_region(root: Path) -> Callable:
    subject = load(root, 1).within("V1")
    rows = chosen("betas", subject.source.shape[0])
    return lambda: f"{subject.betas(rows).shape[1]} voxels"


def read_means(root: Path) -> Callable:
    subject = load(root, 1).averaged()
    rows = np.random.default_rng(1).permutation(len(subject.trials))[:BATCH]
    return lambda: f"{len(subject.betas(rows))} means of 3 rows"


def load(root: Path, number: int):
    from mindtuner.formats import load

    return load(root, [number]).subject(number)


def open_dataset(root: Path, subjects: list[int] | None = None, **more) -> Callable:
    def call() -> str:
        from mindtuner.formats.nsd_release.read import load

        dataset = load(root, subjects, **more)
        test = sum(len(subject.test) for subject in dataset.subjects.values())
        return f"{sum(len(s.trials) for s in dataset.subjects.values())} trials, {test} of them test"

    return call


def subset(what: Callable) -> Callable:
    def prepare(root: Path) -> Callable:
        subject = load(root, 1)
        return lambda: f"{len(what(subject))} trials"

    return prepare


def hash_of(root: Path) -> Callable:
    from mindtuner.formats import load

    stimuli = load(root, [1]).stimuli
    return lambda: stimuli.hash[:8]


def nothing(root: Path) -> Callable:
    import mindtuner.data  # noqa: F401

    return lambda: "what Python, torch, h5py and their friends take"


CALLS = {  # label -> (folder below OUT, what prepares the call, with the files' pages dropped from memory before)
    "(import only)": (".", nothing, False),
    "`load(root)`, files not in memory": (".", open_dataset, True),
    "`load(root)` again": (".", open_dataset, False),
    "`load(root, subjects=[1])`": (".", lambda root: open_dataset(root, [1]), False),
    "`load(root)`, older test split": (".", lambda root: open_dataset(root, test_split="test"), False),
    "`subject.train` with its leak check": (".", subset(lambda s: s.train), False),
    "`subject.sessions(1)`": (".", subset(lambda s: s.sessions(1).trials), False),
    '`subject.within("V1")`': (".", subset(lambda s: s.within("V1").trials), False),
    "`subject.averaged()`": (".", subset(lambda s: s.averaged().trials), False),
    f"betas of {BATCH} random rows": (".", read_betas, True),
    f"betas of {BATCH} random rows, chunked file": ("chunked", read_betas, True),
    f"betas of {BATCH} rows within V1": (".", read_region, True),
    f"betas of {BATCH} averaged images": (".", read_means, True),
    f"betas of {BATCH} averaged images, chunked file": ("chunked", read_means, True),
    "betas of a session, 750 rows": (".", read_session, True),
    "betas of a session, chunked file": ("chunked", read_session, True),
    f"{BATCH} random images": (".", read_images, True),
    f"{BATCH} random images, chunked file": ("chunked", read_images, True),
    "`stimuli.hash` (2,048 images)": (".", hash_of, True),
}


def measure(root: Path, label: str) -> None:
    """Prepare one call, time it, and print what came of it as JSON."""
    from mindtuner.runtime import peak_memory_mb

    folder, prepare, cold = CALLS[label]
    call = prepare(root / folder)
    if cold:
        forget(root)
    start, busy = time.perf_counter(), time.process_time()
    said = call()
    print(
        json.dumps(
            {
                "seconds": time.perf_counter() - start,
                "cpu": time.process_time() - busy,
                "peak": peak_memory_mb(),
                "said": said,
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--measure", choices=CALLS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.out, options.measure)
        return
    done = options.out / "made"
    if not done.exists():
        make_folders(options.out)
        done.touch()
    files = [path.stat() for path in options.out.rglob("*") if path.is_file() and not path.is_symlink()]
    print(
        f"{datetime.date.today():%Y-%m-%d}: {len(files)} files, {sum(s.st_size for s in files) / 1e9:.0f} GB, of which "
        f"{sum(s.st_blocks for s in files) * 512 / 1e9:.1f} GB on disk\n"
    )
    print("| call | seconds | of them CPU | peak resident MB | result |\n|---|---:|---:|---:|---|")
    for label in CALLS:
        command = [sys.executable, __file__, str(options.out), "--measure", label]
        ran = subprocess.run(command, capture_output=True, text=True)
        if ran.returncode:
            print(f"| {label} | | | | failed: {ran.stderr.strip().splitlines()[-1]} |", flush=True)
            continue
        found = json.loads(ran.stdout)
        cells = f"{found['seconds']:.3f} | {found['cpu']:.3f} | {found['peak']:.0f} | {found['said']}"
        print(f"| {label} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
