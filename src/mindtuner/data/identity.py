"""What tells the data of a run from any other: short hashes of their contents, field by field.

Images, captions, split and trials count by content. So do betas, as they are read, in any format; but they are not read
again as long as sizes and times of their files are those at which they were hashed. That assumes that nobody changes a file
and leaves both, which copying and editing do not. What was hashed stands beside the feature caches, in ``identity.json``.
A copy with other times is read once, and is the same data where its contents are the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from mindtuner.data.dataset import Dataset, Subject, Trials
from mindtuner.data.pictures import Pictures, stamp_of
from mindtuner.errors import UserError
from mindtuner.files import file_digest, read_json, write_json

FILE = "identity.json"
FIELD = "inputs"  # of a network's card, and of a run's setting
BLOCK_BYTES = 32 * 2**20
_known: dict[str, tuple[str, str]] = {}  # of this process: which betas -> stamp of their files, hash


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a run is made of.

    Attributes
    ----------
    hashes : mapping of str to str
        Field -> short hash of its contents, or a plain word; in the order in which one follows from another.
    files : mapping of str to str
        Field -> the file or folder of it, for messages.
    """

    hashes: Mapping[str, str]
    files: Mapping[str, str]

    def __or__(self, other: Inputs) -> Inputs:
        return Inputs({**self.hashes, **other.hashes}, {**self.files, **other.files})

    def changed(self, before: Mapping[str, str]) -> str | None:
        """The first field that is another one than ``before``, of those that both have."""
        return next((field for field, found in self.hashes.items() if before.get(field, found) != found), None)


def inputs_on(card: Mapping, where: object) -> dict[str, str]:
    """What the card of a network says that it is made of, {} where it does not.

    Raises UserError where the card's field is damaged; ``where`` names the card.
    """
    found = card.get(FIELD, {})
    if not (isinstance(found, dict) and all(isinstance(value, str) for value in found.values())):
        raise UserError(f"{where}: {FIELD} of its card is damaged; expected a short hash for each field")
    return found


def inputs_of(
    dataset: Dataset,
    folder: Path | None,
    pictures: Pictures | None = None,
    *,
    training: bool = True,
    test: bool = False,
) -> Inputs:
    """What tells this dataset, as it is cut, from any other.

    Parameters
    ----------
    dataset : Dataset
    folder : Path, optional
        Of feature caches, where what was hashed is kept.
    pictures : Pictures, optional
        Of all its stimuli. Without them images do not count, and trials count by the numbers of their images, under another
        name.
    training, test : bool
        Which trials count.
    """
    stimuli = dataset.stimuli
    hashes = {} if pictures is None else {"images": pictures.digest}
    hashes |= {
        "captions": short_hash(json.dumps(texts).encode() for texts in stimuli.captions),
        "split": short_hash([stimuli.is_shared]),
    }
    files = dict.fromkeys(hashes, stimuli.where)
    shown, by = (np.arange(len(stimuli)), " by number") if pictures is None else (pictures.hashes, "")
    for number, subject in sorted(dataset.subjects.items()):
        hashes[name := f"regions of subject {number}"] = regions_hash(subject)
        files[name] = subject.where
        for what, wanted, trials in (("training", training, subject.train), ("test", test, subject.test)):
            if wanted:
                hashes[name := f"{what} trials{by} of subject {number}"] = trials_hash(trials, shown)
                files[name] = subject.table or subject.where
                hashes[name := f"{what} betas of subject {number}"] = betas_hash(subject, trials, folder)
                files[name] = subject.where
    return Inputs(hashes, files)


def short_hash(parts: Iterable[bytes | np.ndarray]) -> str:
    """16 hex digits over bytes, or arrays, one after the other."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else np.ascontiguousarray(part).data)
    return digest.hexdigest()[:16]


def folder_hash(folder: Path) -> str:
    """Of the names and contents of all files in a folder and in folders within it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return short_hash(f"{path.relative_to(folder).as_posix()} {file_digest(path)}\n".encode() for path in files)


def regions_hash(subject: Subject) -> str:
    """Of the number of voxels and of each region's mask over them."""
    names = sorted(subject.rois)
    return short_hash([json.dumps([subject.n_voxels, names]).encode(), *(subject.rois[name].astype(bool) for name in names)])


def trials_hash(trials: Trials, shown: np.ndarray) -> str:
    """Of trials in the order of their rows: row, session, run, repeat and what was ``shown``, int64 (N,) by stimulus."""
    order = np.lexsort((trials.stimulus, trials.row))
    columns = (trials.row, trials.session, trials.run, trials.repeat, shown[trials.stimulus])
    return short_hash(np.asarray(column[order], "<i8") for column in columns)


def betas_hash(subject: Subject, trials: Trials, folder: Path | None = None) -> str:
    """Of the betas of some trials, in the order of their rows, as they are read; ``folder`` as in ``inputs_of``.

    Where sizes and times of the subject's files are those of an earlier call for the same rows, they are not read.
    """
    rows = np.unique(trials.row)
    stamp = stamp_of(subject.files)
    which = short_hash([json.dumps([subject.number, regions_hash(subject)]).encode(), rows])
    if stamp and which not in _known and folder is not None and (folder / FILE).is_file():
        _known.update({name: (then, kept) for name, (then, kept) in _kept(folder / FILE).items() if name not in _known})
    if stamp and _known.get(which, ("",))[0] == stamp:
        found = _known[which][1]
    else:
        parts = np.array_split(rows, 1 + len(rows) * subject.n_voxels * 4 // BLOCK_BYTES)
        found = short_hash(np.asarray(subject.betas(part), "<f4") for part in parts)
    if stamp:
        _known[which] = (stamp, found)
        if folder is not None and folder.is_dir():
            _keep(folder / FILE, which, (stamp, found))
    return found


def _kept(path: Path) -> dict[str, list[str]]:
    """What was hashed before. Raises UserError where the file is damaged."""
    found = read_json(path)
    if not all(isinstance(entry, list) and len(entry) == 2 for entry in found.values()):
        raise UserError(f"{path}: is not what mindtuner wrote; expected stamps and hashes (delete it to hash data again)")
    return found


def _keep(path: Path, which: str, entry: tuple[str, str]) -> None:
    """Note an entry, where the folder may be written to: without it, data are hashed again another time."""
    before = _kept(path) if path.is_file() else {}
    if before.get(which) != list(entry):
        with contextlib.suppress(UserError):
            write_json(path, {**before, which: entry})
