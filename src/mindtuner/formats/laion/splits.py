"""The named splits of LAION-fMRI, which images train and which test, from the files of its own package.

There they are ``laion_fmri/splits/data/POOL/NAME.json``, where the pool is ``shared``, the images that everybody saw, or one
person's. A file holds ``variants``, of which each split has one: ``train_ids`` and ``test_ids`` are labels of trials.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mindtuner.errors import UserError
from mindtuner.inputs import read_json

NAMES = ("tau", *(f"cluster_k5_{k}" for k in range(5)), "ood", *(f"random_{k}" for k in range(5)))
IN_CLONE = Path("laion_fmri/splits/data")


@dataclass(frozen=True)
class Split:
    """Labels of the images that train and of those that test, and the file that says so."""

    name: str
    path: Path
    train: frozenset[str]
    test: frozenset[str]

    def __getitem__(self, label: str) -> str:
        """``train``, ``test`` or, for an image of neither, nothing."""
        return "train" if label in self.train else "test" if label in self.test else ""


def find_split(given: Path, name: str, person: str) -> Path:
    """The file of a split for one person.

    ``given`` is that file itself, its folder (the split is then the same for all), a folder with one of the person's name
    that holds it, or a clone of the package. Raises UserError where there is no such file.
    """
    if given.is_file():
        return given
    places = [given, given / person, given / IN_CLONE / person]
    for folder in places:
        if (path := folder / f"{name}.json").is_file():
            return path
    known = sorted({path.stem for folder in places for path in folder.glob("*.json")})
    raise UserError(
        f"{given}: no {name}.json for {person}, here or in a folder {person}; expected "
        + (f"one of {', '.join(known)}" if known else f"the package's {IN_CLONE.as_posix()}, with {', '.join(NAMES)}")
    )


def read_split(path: Path) -> Split:
    """One split. Raises UserError where the file is none, names an image twice, or other numbers than it holds."""
    value = read_json(path, "a split, JSON with name and variants")
    try:
        name, variant = str(value["name"]), value["variants"][0]
        sides = {side: variant[f"{side}_ids"] for side in ("train", "test")}
    except (LookupError, TypeError) as error:
        raise UserError(
            f"{path}: is no split ({type(error).__name__}: {' '.join(str(error).split())}); expected JSON with name and "
            "variants, whose first has train_ids and test_ids"
        ) from error
    for side, labels in sides.items():
        if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
            raise UserError(f"{path}: {side}_ids of variants[0] is no list of labels; expected one, not empty")
        if len(set(labels)) != len(labels) or len(labels) != value.get(f"n_{side}", len(labels)):
            raise UserError(
                f"{path}: {side}_ids holds {len(set(labels))} labels; expected {value.get(f'n_{side}', len(labels))}, "
                f"each once (n_{side})"
            )
    train, test = (frozenset(labels) for labels in sides.values())
    if both := sorted(train & test):
        raise UserError(f"{path}: has {both[0]!r} in train_ids and test_ids; expected each image in one of them")
    return Split(name, path, train, test)
