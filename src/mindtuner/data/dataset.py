"""The one shape that every reader returns: trials of subjects, their betas, and the stimuli they saw."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mindtuner.data.captions import BLOCK, StoredCaptions, non_empty
from mindtuner.data.hold_out import without_category
from mindtuner.data.leaks import check_no_leak
from mindtuner.data.read_ahead import ahead
from mindtuner.data.rows import ChunkedRows, FileRows, as_rows
from mindtuner.data.views import Columns, RowMeans
from mindtuner.errors import UserError

Rows = np.ndarray | FileRows | ChunkedRows | Columns | RowMeans  # shape, dtype and [int64 rows]
IMAGE_SHAPE = (3, 224, 224)
HASH_ALL_BYTES = 4 * 2**30  # above this many bytes of pixels the hash samples images
HASH_SAMPLE = 2048


@dataclass(frozen=True, eq=False)
class Trials:
    """Trials of one subject, one per entry of five arrays of equal length n.

    row       int64, row of the subject's betas
    stimulus  int64, index into the image file
    session   int64, 1-based
    repeat    int64, 0-based: how often this subject had seen the image before
    is_test   bool, a trial of a shared image
    """

    row: np.ndarray
    stimulus: np.ndarray
    session: np.ndarray
    repeat: np.ndarray
    is_test: np.ndarray

    def __post_init__(self):
        for field in dataclasses.fields(self):
            wanted = bool if field.name == "is_test" else np.int64
            array = np.asarray(getattr(self, field.name), wanted)
            if array.shape != (np.size(self.row),):
                raise UserError(f"trials: {field.name} has shape {array.shape}; expected ({np.size(self.row)},)")
            object.__setattr__(self, field.name, array)

    def __len__(self) -> int:
        return len(self.row)

    def select(self, mask: np.ndarray) -> Trials:
        """The trials where ``mask`` (bool (n,), or an array of positions) says so, in its order."""
        return Trials(*(getattr(self, field.name)[mask] for field in dataclasses.fields(self)))


@dataclass(frozen=True, eq=False)
class Subject:
    """One person: trials, regions of interest, and betas that stay on disk until they are asked for.

    rois       name -> bool (V,)
    source     (rows, V) numbers, usually in a file
    is_shared  bool (N,) over the stimuli, for the leak check
    where      the betas file, for messages
    vertices   int64 (V,), where each voxel lies on the fsLR-32k surface (0..32491 left, 32492..64983 right), for data that
               live there; ``parcels.on_surface`` makes maps of them
    """

    number: int
    trials: Trials
    rois: dict[str, np.ndarray]
    source: Rows
    is_shared: np.ndarray
    where: str
    vertices: np.ndarray | None = None

    @property
    def n_voxels(self) -> int:
        return self.source.shape[1]

    def betas(self, rows) -> np.ndarray:
        """Betas of these rows, float32 (n, V), in the order asked for; a row may come twice.

        Raises UserError where a row is out of range or holds a beta that is not finite.
        """
        rows = as_rows(rows, self.source.shape[0], self.where, "betas row")
        betas = np.asarray(self.source[rows], np.float32)
        whole = np.isfinite(betas).all(axis=1)
        if not whole.all():
            at = int(np.argmin(whole))
            voxel = int(np.flatnonzero(~np.isfinite(betas[at]))[0])
            raise UserError(
                f"{self.where}: betas row {rows[at]}, voxel {voxel} is {betas[at, voxel]}; expected a finite number"
            )
        return betas

    @property
    def train(self) -> Trials:
        """All trials of images that are not shared. Raises UserError on a leak."""
        check_no_leak(self.trials, self.is_shared, f"subject {self.number}")
        return self.trials.select(~self.trials.is_test)

    @property
    def test(self) -> Trials:
        """All trials of shared images. Raises UserError on a leak."""
        check_no_leak(self.trials, self.is_shared, f"subject {self.number}")
        return self.trials.select(self.trials.is_test)

    def sessions(self, k: int) -> Subject:
        """This subject with the training trials of sessions 1..k only; the test trials stay whole.

        Raises UserError where there are no k sessions.
        """
        training = self.trials.session[~self.trials.is_test]
        last = int(training.max(initial=0))
        if not 1 <= k <= last or not (training <= k).any():
            raise UserError(f"subject {self.number}: sessions is {k}; expected 1..{last}")
        keep = self.trials.is_test | (self.trials.session <= k)
        return dataclasses.replace(self, trials=self.trials.select(keep))

    def within(self, *rois: str) -> Subject:
        """This subject with the voxels of these regions only, their union, in the order that they had.

        Raises UserError where a region is unknown, or all are empty.
        """
        known = ", ".join(sorted(self.rois))
        for name in rois:
            if name not in self.rois:
                raise UserError(f"subject {self.number}: no region {name!r}; expected some of {known}")
        columns = np.flatnonzero(np.any([self.rois[name] for name in rois], axis=0)) if rois else np.empty(0, int)
        if len(columns) == 0:
            raise UserError(
                f"subject {self.number}: no voxel in {' or '.join(rois) or 'no region'}; expected some of {known}"
            )
        return dataclasses.replace(
            self,
            source=Columns(self.source, columns),
            rois={name: mask[columns] for name, mask in self.rois.items()},
            vertices=None if self.vertices is None else self.vertices[columns],
        )

    def averaged(self) -> Subject:
        """This subject with one trial an image, whose betas are the mean over the trials that are there of it.

        Its session is that of the image's first trial, its repeat 0. After ``sessions(1)`` only repeats within that
        session's training trials are averaged.
        """
        order = np.argsort(self.trials.stimulus, kind="stable")
        _, starts = np.unique(self.trials.stimulus[order], return_index=True)
        groups = np.split(self.trials.row[order], starts[1:])[: len(starts)]
        trials = self.trials.select(np.lexsort((self.trials.repeat, self.trials.stimulus))[starts])
        trials = dataclasses.replace(trials, row=np.arange(len(groups)), repeat=np.zeros(len(groups)))
        return dataclasses.replace(self, trials=trials, source=RowMeans(self.source, groups))


class Stimuli:
    """The images that subjects saw, lazily read, with their captions.

    source     (N, 3, 224, 224) float16 or float32 in 0..1, usually in a file
    captions   for each image its non-empty captions, a tuple, possibly none; a list, or read as they are asked for
    is_shared  bool (N,), the images that all subjects see and that only test uses
    category   the category that no training sees, "" where there is none
    of_category  bool (N,), the images that show it
    """

    def __init__(self, source: Rows, captions: Sequence[Sequence[str]], is_shared: np.ndarray, where: str):
        count = source.shape[0]
        if source.shape[1:] != IMAGE_SHAPE:
            raise UserError(f"{where}: images have shape {source.shape}; expected (N, 3, 224, 224)")
        if len(captions) != count:
            raise UserError(f"{where}: {count} images but {len(captions)} lists of captions; expected as many")
        if np.shape(is_shared) != (count,):
            raise UserError(f"{where}: {count} images but is_shared has shape {np.shape(is_shared)}; expected ({count},)")
        self._source = source
        self._where = where
        self.captions = captions if isinstance(captions, StoredCaptions) else [non_empty(texts) for texts in captions]
        self.is_shared = np.asarray(is_shared, bool)
        self.category, self.of_category = "", np.zeros(count, bool)

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def training_images(self) -> np.ndarray:
        """Ids of all images that training may show, ascending: neither shared nor of a category held out."""
        return np.flatnonzero(~(self.is_shared | self.of_category))

    def images(self, ids) -> np.ndarray:
        """Images (n, 3, 224, 224) in 0..1, of the dtype they are stored in, in the order asked for.

        An id may come twice. Raises UserError where an id or a pixel is out of range.
        """
        ids = as_rows(ids, len(self), self._where, "image")
        images = np.asarray(self._source[ids])
        if not _in_unit_range(images):
            at = next(i for i, image in enumerate(images) if not _in_unit_range(image))
            raise UserError(
                f"{self._where}: image {ids[at]} has pixels in {images[at].min()}..{images[at].max()}; expected 0..1"
            )
        return images

    @functools.cached_property
    def hash(self) -> str:
        """sha256 (hex) of shape, dtype, captions and pixels: the same stimuli, the same hash.

        Up to 4 GiB all pixels count. Above that (the 73,000 images of NSD are 22 GB) only the pixels of
        2,048 evenly spaced images do, so a change confined to other pixels goes unseen.

        Of picture files, whose pixels would all have to be unpacked, the bytes count instead, every one of them: the same
        pictures stored otherwise are other stimuli.
        """
        digest = hashlib.sha256()
        count, dtype = len(self), self._source.dtype
        digest.update(f"[{json.dumps(list(self._source.shape))}, {json.dumps(dtype.name)}, [".encode())
        for start in range(0, count, BLOCK):
            block = json.dumps(self.captions[start : start + BLOCK])[1:-1]  # without its brackets
            digest.update((", " if start else "").encode() + block.encode())
        digest.update(b"]]")
        if hasattr(self._source, "file_hashes"):
            for file in self._source.file_hashes():
                digest.update(file)
            return digest.hexdigest()
        size = int(np.prod(self._source.shape)) * dtype.itemsize
        ids = np.arange(count) if size <= HASH_ALL_BYTES else np.linspace(0, count - 1, HASH_SAMPLE).astype(np.int64)
        for images in ahead(self._source.__getitem__, _blocks(ids, 32)):
            digest.update(np.ascontiguousarray(images, dtype.newbyteorder("<")).data)
        return digest.hexdigest()


def _in_unit_range(images: np.ndarray) -> bool:
    # Half precision compares slowly, but its bit patterns of 0..1 are the integers 0..0x3C00: look there first.
    if images.size == 0 or images.dtype == np.float16 and images.view(np.uint16).max() <= 0x3C00:
        return True
    return bool(images.min() >= 0 and images.max() <= 1)  # a NaN fails both comparisons


def _blocks(ids: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (ids[start : start + size] for start in range(0, len(ids), size))


@dataclass(frozen=True, eq=False)
class Dataset:
    """Subjects and stimuli of one folder, with its card (``simulated``, ``zscore`` and whatever else it says)."""

    root: Path
    subjects: dict[int, Subject]
    stimuli: Stimuli
    card: dict

    def subject(self, number: int) -> Subject:
        """One subject by number. Raises UserError where this dataset has none of that number."""
        if number not in self.subjects:
            known = ", ".join(str(known) for known in self.subjects)
            raise UserError(f"{self.root}: no subject {number}; expected one of {known}")
        return self.subjects[number]

    def without(self, subject: int) -> Dataset:
        """This dataset without one subject. Raises UserError where that subject is not in it."""
        self.subject(subject)
        others = {number: other for number, other in self.subjects.items() if number != subject}
        return dataclasses.replace(self, subjects=others)

    def without_category(self, category: str) -> Dataset:
        """This dataset without the training trials of images whose captions name the category (``hold_out.shows`` has the
        rule); test trials stay whole. Raises UserError as ``hold_out.without_category``."""
        return without_category(self, category)
