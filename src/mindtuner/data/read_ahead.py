"""What comes next is read while what is there is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item, Found = TypeVar("Item"), TypeVar("Found")


def ahead(read: Callable[[Item], Found], items: Iterable[Item], threads: int = 1) -> Iterator[Found]:
    """``read(item)`` of all items, in their order. While one is used the next ``threads`` of them are read, each by a thread,
    which is worth it where reading waits for a disk or works outside Python's lock. An error comes up where its item would.
    """
    with ThreadPoolExecutor(threads, "ahead") as pool:
        coming: deque = deque()
        try:
            for item in items:
                coming.append(pool.submit(read, item))
                if len(coming) > threads:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        finally:  # who stops early waits for what is being read, no longer
            for future in coming:
                future.cancel()
