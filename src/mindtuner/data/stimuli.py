"""The images that subjects saw and their captions, read when they are asked for.

Captions too: those of the 73,000 images of NSD take 50 MB as strings.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from mindtuner.data.lazy import FileRows, LazyArray, as_rows, read_ahead
from mindtuner.errors import UserError

IMAGE_SHAPE = (3, 224, 224)
HASH_ALL_BYTES = 4 * 2**30  # above this many bytes of pixels the hash samples images
HASH_SAMPLE = 2048
CAPTIONS_AT_ONCE = 4096  # images at a time; each caption is stored as wide as the longest of all, 4 bytes a character


def non_empty(captions: Iterable[str]) -> tuple[str, ...]:
    """The captions of an image that say something."""
    return tuple(text for text in captions if text.strip())


def picture_hashes(images: np.ndarray) -> np.ndarray:
    """What tells pictures apart by content: the first 8 bytes of the SHA-256 of their pixels at 8 bits.

    Parameters
    ----------
    images : array (n, 3, H, W)
        uint8, or floats in 0..1.

    Returns
    -------
    array, int64 (n,)

    Examples
    --------
    >>> black, white = np.zeros((1, 3, 2, 2), np.uint8), np.ones((1, 3, 2, 2), np.float16)
    >>> bool(picture_hashes(black) == picture_hashes(black / 255)), bool(picture_hashes(black) == picture_hashes(white))
    (True, False)
    """
    pixels = images if images.dtype == np.uint8 else np.rint(np.asarray(images, np.float32) * 255).astype(np.uint8)
    digests = [hashlib.sha256(np.ascontiguousarray(picture).tobytes()).digest()[:8] for picture in pixels]
    return np.frombuffer(b"".join(digests), np.int64)


class StoredCaptions(Sequence):
    """The non-empty captions of each image, a tuple of strings, from a table (N, k) of fixed-width unicode."""

    def __init__(self, table: np.ndarray | FileRows):
        self._table = table

    def __len__(self) -> int:
        return self._table.shape[0]

    @overload
    def __getitem__(self, index: int) -> tuple[str, ...]: ...

    @overload
    def __getitem__(self, index: slice) -> list[tuple[str, ...]]: ...

    def __getitem__(self, index: int | slice) -> tuple[str, ...] | list[tuple[str, ...]]:
        found = self._table[index].tolist()
        return [non_empty(texts) for texts in found] if isinstance(index, slice) else non_empty(found)

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        for start in range(0, len(self), CAPTIONS_AT_ONCE):
            yield from map(non_empty, self._table[start : start + CAPTIONS_AT_ONCE].tolist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(tuple.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]


class NoPictures:
    """Stands for the images of N stimuli of which labels alone are known; whoever asks for one is told.

    where : the file of the labels, for messages · expected : what would hold pictures
    """

    def __init__(self, count: int, where: str, expected: str):
        self.shape, self.dtype = (count, *IMAGE_SHAPE), np.dtype(np.float16)
        self._where, self._expected = where, expected

    def __getitem__(self, ids: np.ndarray) -> np.ndarray:
        """Raises UserError."""
        raise UserError(f"{self._where}: has labels and no pictures; expected {self._expected}")

    def file_hashes(self) -> Iterator[bytes]:
        """Nothing, so that the labels alone tell the stimuli."""
        return iter(())


class Stimuli:
    """The images that subjects saw, read when they are asked for, with their captions.

    Parameters
    ----------
    source : LazyArray (N, 3, 224, 224)
        Images, float16 or float32 in 0..1, usually in a file.
    captions : sequence of sequences of str
        The captions of each image: a list, or read as they are asked for. Empty ones are dropped.
    is_shared : bool (N,)
        The images that all subjects see and that only test uses.
    where : str
        The file of the images, for messages.
    names : sequence of str, optional
        File name of each image. By default images have numbers alone, and image 17 is called ``image 17``.
    files : sequence of Path
        All that images are read from: as long as none changes, nor do they. Empty where they are in memory.

    Attributes
    ----------
    where : str
        As above.
    files : tuple of Path
        As above.
    captions : sequence of tuples of str
        For each image its captions that are not empty, possibly none.
    names : sequence of str
        What tables and pages call each image.
    named : bool
        Whether these are file names.
    pictured : bool
        Whether there are pictures, and not captions alone.
    is_shared : bool (N,)
        As above.
    category : str
        The category that no training sees, "" where there is none.
    of_category : bool (N,)
        The images that show it.

    Raises
    ------
    UserError
        Where these differ in length, or images have another shape.

    Examples
    --------
    >>> import numpy as np
    >>> from mindtuner.data import Stimuli
    >>> grey = np.full((2, 3, 224, 224), 0.5, np.float16)
    >>> stimuli = Stimuli(grey, [["a grey wall"], []], np.array([False, True]), "memory")
    >>> stimuli
    Stimuli: 2 images, float16, 1 shared (test), 1 for training
    >>> stimuli.captions[0], stimuli.images([1]).shape, stimuli.names[1]
    (('a grey wall',), (1, 3, 224, 224), 'image 1')
    """

    def __init__(
        self,
        source: LazyArray,
        captions: Sequence[Sequence[str]],
        is_shared: np.ndarray,
        where: str,
        names: Sequence[str] | None = None,
        files: Sequence[Path] = (),
    ):
        count = source.shape[0]
        if source.shape[1:] != IMAGE_SHAPE:
            raise UserError(f"{where}: images have shape {source.shape}; expected (N, 3, 224, 224)")
        if len(captions) != count:
            raise UserError(f"{where}: {count} images but {len(captions)} lists of captions; expected as many")
        if np.shape(is_shared) != (count,):
            raise UserError(f"{where}: {count} images but is_shared has shape {np.shape(is_shared)}; expected ({count},)")
        if names is not None and len(names) != count:
            raise UserError(f"{where}: {count} images but {len(names)} names; expected as many")
        self._source = source
        self.where, self.files = where, tuple(files)
        self.named, self.pictured = names is not None, not isinstance(source, NoPictures)
        self.names: Sequence[str] = [f"image {i}" for i in range(count)] if names is None else list(names)
        self.captions = captions if isinstance(captions, StoredCaptions) else [non_empty(texts) for texts in captions]
        self.is_shared = np.asarray(is_shared, bool)
        self.category, self.of_category = "", np.zeros(count, bool)

    def __len__(self) -> int:
        return len(self.captions)

    def __repr__(self) -> str:
        count, shared, training = len(self), int(self.is_shared.sum()), len(self.training_images)
        held_out = f", {self.category!r} held out" if self.category else ""
        return (
            f"Stimuli: {count} image{'' if count == 1 else 's'}, {np.dtype(self._source.dtype).name}, "
            f"{shared} shared (test), {training} for training{held_out}"
        )

    @property
    def training_images(self) -> np.ndarray:
        """Ids of all images that training may show, ascending: neither shared nor of a category held out."""
        return np.flatnonzero(~(self.is_shared | self.of_category))

    def tested_on(self, is_shared: np.ndarray) -> Stimuli:
        """The same stimuli with other test images: ``is_shared``, bool (N,)."""
        other = copy.copy(self)
        other.is_shared = np.asarray(is_shared, bool)
        return other

    def images(self, ids) -> np.ndarray:
        """Read images.

        Parameters
        ----------
        ids : int array (n,)
            Which images, in any order. An id may come twice.

        Returns
        -------
        float16 or float32 (n, 3, 224, 224)
            RGB in 0..1, of the dtype they are stored in, in the order asked for.

        Raises
        ------
        UserError
            Where an id or a pixel is out of range.
        """
        ids = as_rows(ids, len(self), self.where, "image")
        images = np.asarray(self._source[ids])
        if not _in_unit_range(images):
            at = next(i for i, image in enumerate(images) if not _in_unit_range(image))
            raise UserError(
                f"{self.where}: image {ids[at]} has pixels in {images[at].min()}..{images[at].max()}; expected 0..1"
            )
        return images

    @functools.cached_property
    def hash(self) -> str:
        """sha256 (hex) of shape, dtype, captions and pixels: the same stimuli, the same hash, whatever they are called.

        Up to 4 GiB all pixels count. Above that (the 73,000 images of NSD are 22 GB) only the pixels of
        2,048 evenly spaced images do, so a change confined to other pixels goes unseen.

        Of picture files, whose pixels would all have to be unpacked, the bytes count instead, every one of them: the same
        pictures stored otherwise are other stimuli.
        """
        digest = hashlib.sha256()
        count, dtype = len(self), self._source.dtype
        digest.update(f"[{json.dumps(list(self._source.shape))}, {json.dumps(dtype.name)}, [".encode())
        for start in range(0, count, CAPTIONS_AT_ONCE):
            block = json.dumps(self.captions[start : start + CAPTIONS_AT_ONCE])[1:-1]  # without its brackets
            digest.update((", " if start else "").encode() + block.encode())
        digest.update(b"]]")
        if hasattr(self._source, "file_hashes"):
            for file in self._source.file_hashes():
                digest.update(file)
            return digest.hexdigest()
        size = int(np.prod(self._source.shape)) * dtype.itemsize
        ids = np.arange(count) if size <= HASH_ALL_BYTES else np.linspace(0, count - 1, HASH_SAMPLE).astype(np.int64)
        for images in read_ahead(self._source.__getitem__, _blocks(ids, 32)):
            digest.update(np.ascontiguousarray(images, dtype.newbyteorder("<")).data)
        return digest.hexdigest()


def _in_unit_range(images: np.ndarray) -> bool:
    # Half precision compares slowly, but its bit patterns of 0..1 are the integers 0..0x3C00: look there first.
    if images.size == 0 or images.dtype == np.float16 and images.view(np.uint16).max() <= 0x3C00:
        return True
    return bool(images.min() >= 0 and images.max() <= 1)  # a NaN fails both comparisons


def _blocks(ids: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (ids[start : start + size] for start in range(0, len(ids), size))
