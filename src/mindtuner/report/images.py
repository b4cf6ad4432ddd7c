"""Pictures made small enough: every distinct picture of the page once, as WEBP, all of one form."""

from __future__ import annotations

import base64
import hashlib
import io
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image

from mindtuner.errors import UserError
from mindtuner.report.contact_sheet import to_image

SAMPLE, MARGIN = 96, 1.05  # pictures that say how large the others will be, and how far that may be from the truth
SPRITE_COLUMNS, SPRITE_QUALITY, LONGEST_SIDE = 20, 80, 16383  # the last is WEBP's


class Form(NamedTuple):
    """Longest side in pixels, and WEBP's quality. Smaller pictures are not enlarged."""

    side: int
    quality: int


FORMS = (
    Form(LONGEST_SIDE, 88),
    Form(256, 80),
    Form(224, 74),
    Form(192, 68),
    Form(160, 62),
    Form(144, 57),
    Form(128, 52),
    Form(112, 48),
    Form(96, 44),
    Form(80, 40),
    Form(64, 36),
)


class Album:
    """Encoded pictures by id. A picture that comes twice is kept once."""

    def __init__(self, form: Form) -> None:
        self.form = form
        self.encoded: list[str] = []  # base64 of WEBP
        self.bytes = 0
        self._ids: dict[bytes, int] = {}

    def add(self, pictures: np.ndarray) -> list[int]:
        """Ids of pictures (n, 3, H, W) uint8."""
        found, new = [], []
        for picture in pictures:
            key = hashlib.blake2b(picture.tobytes() + repr(picture.shape).encode(), digest_size=16).digest()
            if key not in self._ids:
                self._ids[key] = len(self._ids)
                new.append(picture)
            found.append(self._ids[key])
        with ThreadPoolExecutor() as threads:  # Pillow works outside Python's lock
            self.encoded += threads.map(lambda picture: encode(to_image(picture), self.form), new)
        self.bytes += sum(map(len, self.encoded[len(self.encoded) - len(new) :]))
        return found


def encode(image: Image.Image, form: Form) -> str:
    """Base64 of a picture in this form."""
    if max(image.size) > form.side:
        image.thumbnail((form.side, form.side), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=form.quality, method=2)
    return base64.b64encode(buffer.getvalue()).decode()


def forms_within(budget: int, runs: list[Mapping[str, np.ndarray]]) -> list[Form]:
    """Forms that should bring all pictures of ``runs``, {name: (n, 3, H, W)}, to at most ``budget`` bytes, best first.

    Judged by a sample spread evenly over all. Raises UserError where not even the smallest does.
    """
    names = [(pictures, name) for pictures in runs for name in pictures if name != "thumbnails"]
    count, each = 0, max(1, SAMPLE // len(names))
    sample: list[np.ndarray] = []
    for pictures, name in names:
        array = pictures[name]
        count += len(array)
        sample += list(array[np.unique(np.linspace(0, len(array) - 1, each).round().astype(int))])
    for k, form in enumerate(FORMS):
        if MARGIN * count * np.mean([len(encode(to_image(picture), form)) for picture in sample]) <= budget:
            return list(FORMS[k:])
    raise UserError(
        f"report: {count:,} pictures do not fit on one page of bearable size, not even at {FORMS[-1].side} "
        "pixels; expected fewer runs, or runs of fewer pictures"
    )


def sprite(thumbnails: np.ndarray) -> tuple[str, int]:
    """All thumbnails (n, 3, h, w) on one sheet, as base64, and how many stand in a row."""
    count, _, height, width = thumbnails.shape
    columns = max(SPRITE_COLUMNS, math.ceil(math.sqrt(count)))
    if columns * max(height, width) > LONGEST_SIDE:
        raise UserError(
            f"report: {count:,} thumbnails of {width} x {height} do not fit on one sheet; expected fewer test images"
        )
    sheet = Image.new("RGB", (columns * width, math.ceil(count / columns) * height))
    for number, thumbnail in enumerate(thumbnails):
        row, column = divmod(number, columns)
        sheet.paste(to_image(thumbnail), (column * width, row * height))
    return encode(sheet, Form(LONGEST_SIDE, SPRITE_QUALITY)), columns
