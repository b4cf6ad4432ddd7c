"""Captions that stay on disk until they are asked for: those of the 73,000 images of NSD take 50 MB as strings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from mindtuner.data.rows import FileRows

BLOCK = 4096  # images at a time; each caption is stored as wide as the longest of all, 4 bytes a character


def non_empty(captions: Iterable[str]) -> tuple[str, ...]:
    """The captions of an image that say something."""
    return tuple(text for text in captions if text.strip())


class StoredCaptions(Sequence):
    """The non-empty captions of each image, a tuple of strings, from a table (N, k) of fixed-width unicode."""

    def __init__(self, table: np.ndarray | FileRows):
        self._table = table

    def __len__(self) -> int:
        return self._table.shape[0]

    def __getitem__(self, index: int | slice) -> tuple[str, ...] | list[tuple[str, ...]]:
        found = self._table[index].tolist()
        return [non_empty(texts) for texts in found] if isinstance(index, slice) else non_empty(found)

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        for start in range(0, len(self), BLOCK):
            yield from self[start : start + BLOCK]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(tuple.__eq__, self, other))

    __hash__ = None
