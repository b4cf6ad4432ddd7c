"""Pools of cut-outs: drawn by the package, or read from a folder of transparent PNGs with captions beside them.

Cut-outs come in pools that share no picture: what generators are trained on (``generator``) never stands in a scene that
a simulated subject sees (``train`` and ``test``).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mindtuner.errors import UserError
from mindtuner.inputs import open_picture
from mindtuner.runtime import derive_seed, progress
from mindtuner.simulation.drawing import KINDS, draw

POOLS = ("train", "test", "generator")
_VARIANTS = {"train": 16, "test": 8, "generator": 24}  # drawings per kind
_LARGEST = 320  # pixels; larger cut-outs are reduced when read
_SMALLEST = 24


@dataclass(frozen=True)
class Cutout:
    """One transparent picture of one thing. ``phrase`` is how a caption names it ("a red car")."""

    name: str
    group: str
    colour: str
    phrase: str
    image: Image.Image

    @property
    def digest(self) -> str:
        """SHA-256 of the pixels, so that pools can be compared by content."""
        return hashlib.sha256(np.ascontiguousarray(np.asarray(self.image)).tobytes()).hexdigest()


def with_article(words: str) -> str:
    """``a`` or ``an`` in front."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def drawn_cutouts(pool: str, variants: int | None = None) -> list[Cutout]:
    """The package's own drawings of one pool: for each kind some variants in its colours, from fixed seeds."""
    cutouts = []
    for kind, (group, colours, _) in KINDS.items():
        for variant in range(variants or _VARIANTS[pool]):
            colour = colours[variant % len(colours)]
            image = draw(kind, colour, derive_seed(0, "cut-out", pool, kind, variant))
            cutouts.append(Cutout(kind, group, colour, with_article(f"{colour} {kind}"), image))
    return cutouts


def folder_cutouts(folder: str | Path, pool: str) -> list[Cutout]:
    """Cut-outs of a folder (nested): each a transparent PNG with a ``.txt`` beside it whose first line names it.

    A third of the files, chosen by a hash of the picture's content, is the ``generator`` pool; the rest serves ``train``
    and ``test`` scenes alike. Files without a caption, without transparency or smaller than 24 pixels are passed
    over. Raises UserError where no usable pair is left, or a PNG cannot be read as a picture.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: not a folder; expected transparent PNGs with a .txt caption beside each")
    cutouts = []
    seen: set[str] = set()
    for path in progress(sorted(folder.rglob("*.png")), "cut-outs"):
        words = _first_line(path.with_suffix(".txt"))
        if not words:
            continue
        image = _read_transparent(path)
        if image is None:
            continue
        name = words.lower()
        for article in ("a ", "an ", "the "):
            name = name.removeprefix(article)
        phrase = words[0].lower() + words[1:]
        cutout = Cutout(name, path.relative_to(folder).parts[0], "", phrase, image)
        digest = cutout.digest
        if digest in seen:  # the same picture under two names would stand in two pools' captions
            continue
        seen.add(digest)
        if (int(digest[:8], 16) % 3 == 0) == (pool == "generator"):
            cutouts.append(cutout)
    if not cutouts:
        raise UserError(
            f"{folder}: no usable cut-out; expected transparent PNGs (at least {_SMALLEST} px) with a .txt "
            "caption beside each"
        )
    return cutouts


def _first_line(path: Path) -> str:
    if not path.is_file():
        return ""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[0].strip().rstrip(".!").strip() if lines else ""


def _read_transparent(path: Path) -> Image.Image | None:
    """The picture cropped to what is opaque, or None where it is no cut-out."""
    with open_picture(path) as raw:
        image = raw.convert("RGBA")
    alpha = image.getchannel("A")
    box = alpha.point(lambda a: 255 if a > 16 else 0).getbbox()
    if box is None or alpha.getextrema()[0] > 16:
        return None
    image = image.crop(box)
    if min(image.size) < _SMALLEST:
        return None
    if max(image.size) > _LARGEST:
        image.thumbnail((_LARGEST, _LARGEST), Image.Resampling.LANCZOS)
    return image
