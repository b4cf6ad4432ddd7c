"""A folder of the public release's files, of any number of sessions up to NSD's, and caches of its stimuli: for
``full_size.py``, ``scale.py`` and ``data_wait.py``.

Trials, captions, masks and lists are all there. Betas and images are declared at their full size; rows that nobody asked for
are holes that take no room on the disk. Rows that are written tell which they are (``betas_of``, ``images_of``).
"""

from __future__ import annotations

import os
import sys
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from mindtuner.files import atomic_path

TRIALS = 750  # of a session
IMAGE = (3, 224, 224)


@dataclass(frozen=True)
class Plan:
    """How large a release is: sessions of each subject, and images that all see and that each alone sees, three times each.

    betas, images : how many rows a file has -> the runs of neighbouring rows that are written, each an array (n,)
    """

    sessions: tuple[int, ...]
    shared: int
    own: int
    betas: Callable[[int], Iterable[np.ndarray]]
    images: Callable[[int], Iterable[np.ndarray]]
    width: float = 1.0  # voxels as a share of NSD's

    @property
    def n_images(self) -> int:
        return self.shared + self.own * len(self.sessions)


def betas_of(subject: int, rows: np.ndarray, voxels: int) -> np.ndarray:
    """What is written, float32 (n, V): each row tells subject, row and voxel."""
    return np.sin(np.arange(voxels) * (subject + 0.5)).astype(np.float32) + (rows * 1e-3).astype(np.float32)[:, None]


def images_of(ids: np.ndarray) -> np.ndarray:
    """What is written, float16 (n, 3, 224, 224): each image tells its id."""
    ramp = np.linspace(0, 0.5, int(np.prod(IMAGE)), dtype=np.float32).reshape(IMAGE)
    return (ramp + (ids / 150_000).astype(np.float32)[:, None, None, None]).astype(np.float16)


def make(root: Path, plan: Plan) -> dict[int, object]:
    """Write the folder; returns the table of trials of each subject by number."""
    from mindtuner.data.nsd import voxel_count
    from mindtuner.formats.nsd_release import write as writer
    from mindtuner.formats.nsd_release.read import IMAGES, ROIS, betas_path

    rng = np.random.default_rng(0)
    ids = rng.permutation(plan.n_images)
    shared, own = ids[: plan.shared], ids[plan.shared :].reshape(-1, plan.own)
    is_shared = np.isin(np.arange(plan.n_images), shared)
    words = np.array("a man dog red bus on the green street near two large old trees in front of it".split())
    writer.write_captions(
        root,
        [[" ".join(line) for line in words[rng.integers(0, len(words), (5, 11))]] for _ in range(plan.n_images - 1)]
        + [["w" * 250]],
    )  # one long caption widens them all
    writer.write_shared(root, is_shared)
    tables, masks = {}, {}
    for subject, sessions in enumerate(plan.sessions, 1):
        voxels = voxel_count(subject, plan.width)
        stimulus = rng.permutation(np.repeat(np.concatenate([shared, own[subject - 1]]), 3))[: sessions * TRIALS]
        trial = np.arange(len(stimulus))
        tables[subject] = writer.TrialTable(
            stimulus, trial // TRIALS + 1, trial % TRIALS // 63 + 1, trial % 63 + 1, trial * 4.0, is_shared[stimulus]
        )
        writer.write_behaviour(root, subject, tables[subject])
        parts = rng.integers(0, 5, voxels)
        masks[subject] = dict(zip(ROIS, [parts >= 0, *(parts == part for part in range(5))], strict=True))
        write_betas(betas_path(root, subject), subject, (len(stimulus), voxels), plan)
        print(f"subject {subject}: {len(stimulus)} trials, {voxels} voxels", file=sys.stderr)
    writer.write_indices(root, {subject: table.stimulus for subject, table in tables.items()})
    writer.write_masks(root, masks)
    write_images(root / IMAGES, plan)
    return tables


def write_betas(path: Path, subject: int, shape: tuple[int, int], plan: Plan, chunks: tuple | None = None) -> None:
    _write_runs(
        path, "betas", shape, np.float32, chunks, plan.betas(shape[0]), lambda rows: betas_of(subject, rows, shape[1])
    )


def write_images(path: Path, plan: Plan, chunks: tuple | None = None) -> None:
    _write_runs(path, "images", (plan.n_images, *IMAGE), np.float16, chunks, plan.images(plan.n_images), images_of)


def _write_runs(
    path: Path, field: str, shape: tuple, dtype, chunks: tuple | None, runs: Iterable[np.ndarray], rows_of: Callable
) -> None:
    """A dataset of full size of which only ``runs`` of rows are on disk."""
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    if chunks:
        plan.set_chunk(chunks)
    else:
        plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)  # else a contiguous dataset would be filled when first written to
        plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    with h5py.File(path, "w") as file:
        space, kind = h5py.h5s.create_simple(shape), h5py.h5t.py_create(np.dtype(dtype))
        data = h5py.Dataset(h5py.h5d.create(file.id, field.encode(), kind, space, plan))
        for rows in runs:
            data[rows[0] : rows[-1] + 1] = rows_of(rows)


def as_webdataset_writes(tar: Path) -> None:
    """Put the extended header in front of each member that the release's own tars have, for fractions of a second."""
    with tarfile.open(tar) as old, atomic_path(tar) as part, open(part, "wb") as new:
        for number, member in enumerate(old):
            member.mtime = 1.69e9 + number / 7
            data = old.extractfile(member).read()
            new.write(member.tobuf(tarfile.PAX_FORMAT) + data + bytes(-len(data) % tarfile.BLOCKSIZE))
        new.write(bytes(2 * tarfile.BLOCKSIZE))


def forget(root: Path) -> None:
    """Let the system drop the pages of the files below ``root`` (Linux), so that they are read from the disk."""
    if hasattr(os, "posix_fadvise"):
        os.sync()
        for path in root.rglob("*"):
            if path.is_file() and not path.is_symlink():
                descriptor = os.open(path, os.O_RDONLY)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)


def make_targets(folder: Path, model, stimuli):
    """Caches of random numbers in the shapes that ``model``'s config wants, image tokens in bfloat16; the Targets in them."""
    from mindtuner.data import build_cache
    from mindtuner.training import Targets

    low = (model.feature_positions, model.feature_width)
    shapes = {
        "tokens": (model.tokens, model.width),
        "text": (model.text_width,),
        "latents": (model.latent_channels, model.latent_side, model.latent_side),
        "features": low,
        "features_augmented": low,
    }

    def draw(shape):
        return lambda ids: np.random.default_rng(int(ids[0])).standard_normal((len(ids), *shape), np.float32)

    return Targets(
        **{
            name: build_cache(
                folder,
                name,
                shape,
                "bfloat16" if name == "tokens" else np.float32,
                {},
                stimuli,
                draw(shape),
                64,
                name,
                inputs=lambda ids: ids,
            )
            for name, shape in shapes.items()
        }
    )
