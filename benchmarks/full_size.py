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
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

IMAGES, SHARED, OWN, TRIALS = 73_000, 1_000, 9_000, 750
LATER = 3  # sessions that came out after the older test split was made
ROWS, CHUNK = 16, (16, 1)  # rows of betas and of images in a chunk, and at a time that are real
PLACES = {"betas": 60, "images": 300}  # of such real rows, spread over a file
BATCH = 64


def real_rows(field: str, count: int) -> np.ndarray:
    """The rows that are written, spread evenly over all, in whole chunks."""
    size = CHUNK[field == "images"]
    starts = np.linspace(0, count // size - 1, PLACES[field]).astype(np.int64) * size
    return (starts[:, None] + np.arange(size)).ravel()


def betas_of(subject: int, rows: np.ndarray, voxels: int) -> np.ndarray:
    """What is written, (n, V): each row tells subject, row and voxel."""
    return (np.sin(np.arange(voxels) * (subject + 0.5))[None] + rows[:, None] * 1e-3).astype(np.float32)


def images_of(ids: np.ndarray) -> np.ndarray:
    """What is written, (n, 3, 224, 224): each image tells its id."""
    ramp = np.linspace(0, 0.5, 3 * 224 * 224).reshape(3, 224, 224)
    return (ramp[None] + (ids / (2 * IMAGES))[:, None, None, None]).astype(np.float16)


def make(root: Path) -> None:
    """Write the folder; its twin beside it differs in that betas of subject 1 and images come in chunks."""
    from mindtuner.data.layouts import layout_a
    from mindtuner.data.layouts import layout_a_writer as writer
    from mindtuner.data.nsd import SESSIONS, VOXELS
    from mindtuner.files import claim_folder

    claim_folder(root)
    rng = np.random.default_rng(0)
    ids = rng.permutation(IMAGES)
    shared, own = ids[:SHARED], ids[SHARED:].reshape(-1, OWN)
    is_shared = np.isin(np.arange(IMAGES), shared)
    words = np.array("a man dog red bus on the green street near two large old trees in front of it".split())
    writer.write_captions(root, [[" ".join(line) for line in words[rng.integers(0, len(words), (5, 11))]]
                                 for _ in range(IMAGES - 1)] + [["w" * 250]])  # one long caption widens them all
    writer.write_shared(root, is_shared)
    shown, masks = {}, {}
    for subject, (voxels, sessions) in enumerate(zip(VOXELS, SESSIONS, strict=True), 1):
        stimulus = rng.permutation(np.repeat(np.concatenate([shared, own[subject - 1]]), 3))[:sessions * TRIALS]
        trial = np.arange(len(stimulus))
        table = writer.TrialTable(stimulus, trial // TRIALS + 1, trial % TRIALS // 63 + 1, trial % 63 + 1, trial * 4.0,
                                  is_shared[stimulus])
        writer.write_behaviour(root, subject, table)
        older_split(layout_a.behaviour_folder(root, subject), table, sessions - LATER)
        parts = rng.integers(0, 5, voxels)
        masks[subject] = dict(zip(layout_a.ROIS, [parts >= 0, *(parts == part for part in range(5))], strict=True))
        shown[subject] = stimulus
        path = layout_a.betas_path(root, subject)
        write_holes(path, "betas", (len(stimulus), voxels), np.float32, None,
                    lambda rows, s=subject, v=voxels: betas_of(s, rows, v))
        print(f"subject {subject}: {len(stimulus)} trials, {voxels} voxels", file=sys.stderr)
    writer.write_indices(root, shown)
    writer.write_masks(root, masks)
    shape = (IMAGES, 3, 224, 224)
    write_holes(root / layout_a.IMAGES, "images", shape, np.float16, None, images_of)
    chunked = root / "chunked"
    chunked.mkdir()
    for path in root.iterdir():
        if path != chunked:
            (chunked / path.name).symlink_to(path.resolve())
    for path in (layout_a.betas_path(chunked, 1), chunked / layout_a.IMAGES):
        path.unlink()
    write_holes(layout_a.betas_path(chunked, 1), "betas", (len(shown[1]), VOXELS[0]), np.float32, (CHUNK[0], VOXELS[0]),
                lambda rows: betas_of(1, rows, VOXELS[0]))
    write_holes(chunked / layout_a.IMAGES, "images", shape, np.float16, (CHUNK[1], *shape[1:]), images_of)


def older_split(folder: Path, table, last: int) -> None:
    """``test/0.tar``: the test trials up to session ``last``, which are the first of those in ``new_test/0.tar``."""
    whole = folder / "new_test" / "0.tar"
    count = int((table.is_shared & (table.session <= last)).sum())
    with tarfile.open(whole) as tar:
        end = next(member.offset for i, member in enumerate(tar) if i == 4 * count)
    (folder / "test").mkdir()
    with open(whole, "rb") as file:
        (folder / "test" / "0.tar").write_bytes(file.read(end) + bytes(2 * tarfile.BLOCKSIZE))


def write_holes(path: Path, field: str, shape: tuple, dtype, chunks: tuple | None, rows_of: Callable) -> None:
    """A dataset of full size of which only ``real_rows`` are on disk."""
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    if chunks:
        plan.set_chunk(chunks)
    else:
        plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)  # else a contiguous dataset would be filled when first written to
        plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    with h5py.File(path, "w") as file:
        space, kind = h5py.h5s.create_simple(shape), h5py.h5t.py_create(np.dtype(dtype))
        data = h5py.Dataset(h5py.h5d.create(file.id, field.encode(), kind, space, plan))
        size = CHUNK[field == "images"]
        for rows in real_rows(field, shape[0]).reshape(-1, size):
            data[rows[0]:rows[-1] + 1] = rows_of(rows)


def chosen(field: str, count: int) -> np.ndarray:
    """A random batch among the rows that are real."""
    return np.random.default_rng(1).permutation(real_rows(field, count))[:BATCH]


def same(got: np.ndarray, expected: np.ndarray) -> str:
    return f"{len(got)} rows as written" if np.array_equal(got, expected) else "WRONG ROWS"


def read_betas(root: Path) -> Callable:
    subject = load(root, 1)
    rows = chosen("betas", subject.source.shape[0])
    return lambda: same(subject.betas(rows), betas_of(1, rows, subject.n_voxels))


def read_images(root: Path) -> Callable:
    from mindtuner.data import load
    stimuli = load(root, [1]).stimuli
    ids = chosen("images", IMAGES)
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
    from mindtuner.data import load
    return load(root, [number]).subject(number)


def open_dataset(root: Path, subjects: list[int] | None = None, **more) -> Callable:
    def call() -> str:
        from mindtuner.data.layouts import layout_a
        dataset = layout_a.load(root, subjects, **more)
        test = sum(len(subject.test) for subject in dataset.subjects.values())
        return f"{sum(len(s.trials) for s in dataset.subjects.values())} trials, {test} of them test"
    return call


def subset(what: Callable) -> Callable:
    def prepare(root: Path) -> Callable:
        subject = load(root, 1)
        return lambda: f"{len(what(subject))} trials"
    return prepare


def hash_of(root: Path) -> Callable:
    from mindtuner.data import load
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
    "`subject.within(\"V1\")`": (".", subset(lambda s: s.within("V1").trials), False),
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
    "`stimuli.hash` (2,048 images)": (".", hash_of, False),
}


def forget(root: Path) -> None:
    """Let the system drop the files' pages (Linux), so that they are read from the disk."""
    if hasattr(os, "posix_fadvise"):
        os.sync()
        for path in root.rglob("*"):
            if path.is_file() and not path.is_symlink():
                descriptor = os.open(path, os.O_RDONLY)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)


def measure(root: Path, label: str) -> None:
    """Prepare one call, time it, and print what came of it as JSON."""
    from mindtuner.runtime import peak_memory_mb
    folder, prepare, cold = CALLS[label]
    call = prepare(root / folder)
    if cold:
        forget(root)
    start, busy = time.perf_counter(), time.process_time()
    said = call()
    print(json.dumps({"seconds": time.perf_counter() - start, "cpu": time.process_time() - busy, "peak": peak_memory_mb(),
                      "said": said}))


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
        make(options.out)
        done.touch()
    files = [path.stat() for path in options.out.rglob("*") if path.is_file() and not path.is_symlink()]
    print(f"{datetime.date.today():%Y-%m-%d}: {len(files)} files, {sum(s.st_size for s in files) / 1e9:.0f} GB, of which "
          f"{sum(s.st_blocks for s in files) * 512 / 1e9:.1f} GB on disk\n")
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
