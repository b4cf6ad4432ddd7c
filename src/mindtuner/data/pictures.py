"""What tells pictures apart: their pixels, and, where a picture was stored again or scaled, how it looks.

Every image of a dataset is read for it once. What is found stands beside the feature caches, in ``pictures.safetensors``.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image

from mindtuner.data.lazy import read_ahead
from mindtuner.data.stimuli import Stimuli, picture_hashes
from mindtuner.errors import UserError
from mindtuner.files import write_arrays
from mindtuner.inputs import open_tensors
from mindtuner.processes import processes
from mindtuner.runtime import progress

FILE = "pictures.safetensors"
TRAINED_ON = "trained_on"  # field of a network's card
LOOK_SIDE = 16  # frequencies that count, each way: 256 bits
NEAR = 24  # bits that differ at most where two pictures look alike. Scenes of a simulation differ in 70
SAME = 12  # where they are taken for one, stored again as JPEG or scaled
TOGETHER = 64  # images that are read at a time
_ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1)  # in each byte


@dataclasses.dataclass(frozen=True, eq=False)
class Pictures:
    """What tells n pictures apart.

    Attributes
    ----------
    hashes : int64 (n,)
        Of their pixels, see ``picture_hashes``.
    looks : uint8 (n, 32)
        256 bits of how they look, see ``look``; all 0 of a picture of one colour, which looks like nothing.
    """

    hashes: np.ndarray
    looks: np.ndarray

    def __len__(self) -> int:
        return len(self.hashes)

    @classmethod
    def of(cls, stimuli: Stimuli, ids: np.ndarray) -> Pictures:
        """Those of some stimuli (n,), which are read."""
        parts = [ids[start : start + TOGETHER] for start in range(0, len(ids), TOGETHER)]
        hashes, looks = [np.zeros(0, np.int64)], [np.zeros((0, LOOK_SIDE**2 // 8), np.uint8)]
        for images in progress(read_ahead(stimuli.images, parts), "pictures", len(parts), "batch"):
            hashes.append(picture_hashes(images))
            looks.append(np.stack([_packed(image) for image in images]))
        return cls(np.concatenate(hashes), np.concatenate(looks))

    def select(self, ids: np.ndarray) -> Pictures:
        """Some of them, by position."""
        return Pictures(self.hashes[ids], self.looks[ids])

    @property
    def first(self) -> np.ndarray:
        """Position of the first of them that is the same picture, to the pixel or stored again: int64 (n,)."""
        _, first, which = np.unique(self.hashes, return_index=True, return_inverse=True)
        found = first[which.reshape(-1)]
        for at in np.flatnonzero(self.looks.any(1)):
            near = np.flatnonzero(differing(self.looks[at], self.looks[:at]) <= SAME)
            found[at] = min([found[at], *found[near]])
        return found

    @property
    def digest(self) -> str:
        """16 hex digits over all, in their order."""
        return hashlib.sha256(self.hashes.astype("<i8").tobytes()).hexdigest()[:16]

    def on_card(self, ids: np.ndarray) -> dict:
        """Those of these stimuli as the field ``trained_on`` of a network's card has them, JSON-ready."""
        some = self.select(ids)
        return {
            "images": np.asarray(ids).tolist(),
            "hashes": base64.b64encode(some.hashes.astype("<i8").tobytes()).decode(),
            "looks": base64.b64encode(some.looks.tobytes()).decode(),
        }

    @classmethod
    def from_card(cls, card: Mapping) -> Pictures | None:
        """Those that a network was trained on, None where its card does not say.

        Raises UserError where the card's field is damaged.
        """
        if TRAINED_ON not in card:
            return None
        try:
            found = card[TRAINED_ON]
            hashes = np.frombuffer(base64.b64decode(found["hashes"], validate=True), "<i8")
            looks = np.frombuffer(base64.b64decode(found["looks"], validate=True), np.uint8).reshape(-1, LOOK_SIDE**2 // 8)
            if len(looks) != len(hashes):
                raise ValueError(f"{len(hashes)} hashes and {len(looks)} looks")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"card: {TRAINED_ON} is damaged ({error}); expected hashes of pictures") from error
        return cls(hashes, looks)

    def among(self, known: Pictures) -> np.ndarray:
        """Which of these are among the ``known``, to the pixel or stored again: bool (n,)."""
        found = np.isin(self.hashes, known.hashes)
        theirs = np.unique(known.looks[known.looks.any(1)], axis=0)
        for at in np.flatnonzero(~found & self.looks.any(1)) if len(theirs) else ():
            found[at] = differing(self.looks[at], theirs).min() <= SAME
        return found


def look(image: np.ndarray) -> np.ndarray:
    """How a picture looks: signs of its lowest frequencies, bool (256,).

    ``image`` is (3, H, W) in 0..1, or (H, W, 3) of bytes. The perceptual hash of the package ImageHash.
    """
    if image.dtype != np.uint8:
        image = np.rint(np.asarray(image, np.float32).transpose(1, 2, 0) * 255).clip(0, 255).astype(np.uint8)
    picture = Image.fromarray(np.ascontiguousarray(image))
    return imagehash.phash(picture, hash_size=LOOK_SIDE).hash.ravel()


def differing(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """In how many bits each of ``others``, uint8 (n, 32), differs from ``one``, uint8 (32,): int (n,)."""
    return _ONES[others ^ one].sum(1)


def _packed(image: np.ndarray) -> np.ndarray:
    return np.zeros(LOOK_SIDE**2 // 8, np.uint8) if image.min() == image.max() else np.packbits(look(image))


def stamp_of(files: Iterable[Path]) -> str:
    """16 hex digits over names, sizes and times of change of files; "" where there is no file, or one is not found.

    What is known by it of a file's contents holds as long as nobody changes the contents and leaves both size and time.
    """
    try:
        found = [(path.parent.name, path.name, (stat := path.stat()).st_size, stat.st_mtime_ns) for path in files]
    except OSError:  # a relative path, after a change of folder
        return ""
    if not found:
        return ""
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]


def kept_pictures(stimuli: Stimuli, folder: Path) -> Pictures:
    """Those of all stimuli: as they stand in ``folder``, where sizes and times of the images' files are the same, or read.

    Raises UserError where images are read and are not those that stand in ``folder``, beside features of them.
    """
    path = folder / FILE
    stamp = stamp_of(stimuli.files)
    before = _read(path)
    if before is None or not stamp or before[0] != stamp:
        found = Pictures.of(stimuli, np.arange(len(stimuli)))
        if before is not None and before[1].digest != found.digest:
            raise UserError(
                f"{path}: is of other images than {stimuli.where} holds now; expected the same (a cache of something else: "
                "delete it or choose another folder)"
            )
        if processes().index == 0:
            write_arrays(path, {"hashes": found.hashes, "looks": found.looks}, {"stamp": stamp})
        return found
    return before[1]


def _read(path: Path) -> tuple[str, Pictures] | None:
    """Stamp and pictures of a file; None where there is none."""
    if not os.path.lexists(path):
        return None
    with open_tensors(path, "what is known of the stimuli's pictures (delete it to look at them again)", "numpy") as file:
        return (file.metadata() or {}).get("stamp", ""), Pictures(file.get_tensor("hashes"), file.get_tensor("looks"))
