"""Raw NSD, which is NSD as its authors publish it: the design, the stimuli and their captions, and where each file lies.

Volumes, that is masks and betas, are read in ``volumes``. NSD counts trials, images and subjects from 1; every
array that leaves this module counts images from 0, as the rows of ``imgBrick`` do.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from mindtuner.data.lazy import get_dataset, open_hdf5
from mindtuner.errors import UserError
from mindtuner.files import read_json
from mindtuner.formats.matlab5 import read_tables
from mindtuner.formats.nsd_release.read import CAPTIONS_PER_IMAGE
from mindtuner.inputs import one_line, read_text, reading

DESIGN = Path("nsddata/experiments/nsd/nsd_expdesign.mat")
STIMULUS_TABLE = Path("nsddata/experiments/nsd/nsd_stim_info_merged.csv")
STIMULI = Path("nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5")
BETAS = Path("nsddata_betas/ppdata")
BETAS_VERSION = Path("func1pt8mm/betas_fithrf_GLMdenoise_RR")
CAPTION_FILES = ("captions_train2017.json", "captions_val2017.json")


def sniff(root: Path) -> bool:
    """Whether a folder looks like raw NSD: any one of its three folders will do."""
    return any((root / name).exists() for name in ("nsddata", "nsddata_betas", "nsddata_stimuli"))


def betas_folder(root: Path, subject: int) -> Path:
    """Where the sessions of one subject lie."""
    return root / BETAS / f"subj{subject:02d}" / BETAS_VERSION


def roi_folder(root: Path, subject: int) -> Path:
    """Where the masks of one subject lie."""
    return root / "nsddata/ppdata" / f"subj{subject:02d}" / "func1pt8mm/roi"


def find_subjects(root: Path) -> list[int]:
    """Numbers of the subjects that have a folder of betas."""
    matches = (re.fullmatch(r"subj(\d\d)", path.name) for path in (root / BETAS).glob("subj??"))
    return sorted(number for match in matches if match and betas_folder(root, number := int(match[1])).is_dir())


def find_sessions(root: Path, subject: int) -> list[Path]:
    """The file of each session 1, 2, ... that is there, HDF5 rather than NIfTI where both are.

    Raises UserError where there is none, or where one before the last is missing.
    """
    folder, found = betas_folder(root, subject), {}
    for path in sorted(folder.glob("betas_session*")):  # .hdf5 comes before .nii.gz
        if match := re.fullmatch(r"betas_session(\d\d)\.(hdf5|nii\.gz|nii)", path.name):
            found.setdefault(int(match[1]), path)
    if not found:
        raise UserError(f"{folder}: no session; expected betas_session01.hdf5 or betas_session01.nii.gz and so on")
    for number in range(1, max(found) + 1):
        if number not in found:
            raise UserError(
                f"{folder / f'betas_session{number:02d}'}.hdf5 (or .nii.gz): not found; expected it, "
                f"since there is a session {max(found)}"
            )
    return [found[number] for number in range(1, max(found) + 1)]


@dataclass(frozen=True, eq=False)
class Design:
    """Who saw what when. All subjects went through their images in the same order.

    order      (trials,) the place, in the subject's own list of images, of each trial's image
    images     (subjects, places) that list, as stimulus ids
    is_shared  bool (N,) the shared images, which all subjects saw
    """

    order: np.ndarray
    images: np.ndarray
    is_shared: np.ndarray

    def stimulus(self, subject: int, trials: int) -> np.ndarray:
        """The stimulus of each of the first ``trials`` trials of a subject (1-based), int64 (trials,)."""
        return self.images[subject - 1, self.order[:trials]]


def read_design(root: Path, count: int) -> Design:
    """The design, for ``count`` stimuli. Raises UserError where it is missing, damaged or out of range."""
    path = root / DESIGN
    names = ("masterordering", "subjectim", "sharedix")
    with reading(path, "NSD's experimental design, MATLAB 5 format"):
        fields = read_tables(path, names)
    if missing := [name for name in names if name not in fields]:
        raise UserError(f"{path}: no field {missing[0]}; expected {', '.join(names)}")
    images = _ids(path, "subjectim", fields["subjectim"], count)
    order = _ids(path, "masterordering", fields["masterordering"], images.shape[1])
    is_shared = np.zeros(count, bool)
    is_shared[_ids(path, "sharedix", fields["sharedix"], count)] = True
    return Design(order.ravel(), images, is_shared)


def _ids(path: Path, name: str, array: np.ndarray, high: int) -> np.ndarray:
    """Whole numbers 1..high of a 2-D array, as int64 from 0."""
    if array.size == 0:
        raise UserError(f"{path}: {name} has shape {array.shape}; expected a table of numbers")
    wrong = ~((array >= 1) & (array <= high) & (array == np.floor(array)))
    if wrong.any():
        place = tuple(int(i) + 1 for i in np.argwhere(wrong)[0])
        raise UserError(f"{path}: {name}{place} is {array[wrong][0]}; expected a whole number from 1 to {high}")
    return array.astype(np.int64) - 1


def count_stimuli(root: Path) -> int:
    """How many stimuli there are. Raises UserError where their file is missing, damaged or something else."""
    with open_hdf5(root / STIMULI) as file:
        return len(_img_brick(file))


def read_stimuli(root: Path, block: int) -> Iterator[np.ndarray]:
    """All stimuli in blocks, uint8 (``block``, height, width, 3). Raises UserError as ``count_stimuli`` does."""
    with open_hdf5(root / STIMULI) as file:
        bricks = _img_brick(file)
        for start in range(0, len(bricks), block):
            with reading(root / STIMULI, f"a whole file, with images from {start} on"):
                some = bricks[start : start + block]
            yield some


def _img_brick(file: h5py.File) -> h5py.Dataset:
    data = get_dataset(file, "imgBrick")
    if data is None:
        raise UserError(f"{file.filename}: no dataset 'imgBrick'; expected (images, 425, 425, 3) uint8")
    if len(data.shape or ()) != 4 or data.shape[3] != 3 or 0 in data.shape or data.dtype != np.uint8:
        raise UserError(
            f"{file.filename}: imgBrick has shape {data.shape} and dtype {data.dtype}; expected (images, 425, 425, 3) uint8"
        )
    return data


def read_coco_ids(root: Path, is_shared: np.ndarray) -> np.ndarray:
    """COCO's number of each stimulus, int64 (N,), from ``nsd_stim_info_merged.csv``.

    Raises UserError where a stimulus of ``is_shared`` (N,) has no line, or the table calls others shared.
    """
    path = root / STIMULUS_TABLE
    text = read_text(path, "NSD's table of stimuli")
    coco = np.full(len(is_shared), -1, np.int64)
    try:
        lines = list(csv.DictReader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise UserError(f"{path}: not a CSV file ({one_line(error)}); expected NSD's table of stimuli") from error
    for number, line in enumerate(lines, 2):
        stimulus, image = (_whole_number(path, number, line, name) for name in ("nsdId", "cocoId"))
        if stimulus >= len(coco) or coco[stimulus] >= 0:
            raise UserError(f"{path}: line {number}: nsdId is {stimulus}; expected each of 0 to {len(coco) - 1} once")
        coco[stimulus] = image
        shared = line.get("shared1000")
        if shared is not None and (shared.strip().lower() in ("true", "1")) != is_shared[stimulus]:
            raise UserError(
                f"{path}: line {number}: shared1000 is {shared!r}; expected '{is_shared[stimulus]}', as {DESIGN.name} has it"
            )
    if (coco < 0).any():
        raise UserError(f"{path}: no line with nsdId {np.argmax(coco < 0)}; expected one for each of {len(coco)} stimuli")
    return coco


def _whole_number(path: Path, number: int, line: dict, name: str) -> int:
    text = line.get(name)
    if text is None or not text.strip().isdecimal():
        raise UserError(f"{path}: line {number}: {name} is {text!r}; expected a whole number")
    return int(text)


def caption_files(given: Iterable[Path]) -> list[Path]:
    """COCO's caption files: those given, and those in the folders given. Raises UserError where one has none."""
    files = []
    for path in given:
        found = [path / name for name in CAPTION_FILES if (path / name).is_file()] if path.is_dir() else [path]
        if not found:
            raise UserError(f"{path}: no captions; expected {' or '.join(CAPTION_FILES)}")
        files += [file.resolve() for file in found]
    return list(dict.fromkeys(files))


def read_captions(files: Sequence[Path], coco: np.ndarray) -> list[tuple[str, ...]]:
    """The first five captions of each stimulus, in the order of the files; none where COCO has none.

    ``coco`` (N,) gives COCO's number of each stimulus. Raises UserError where a file is missing, is not COCO's
    captions, or says nothing about any stimulus.
    """
    captions: dict[int, list[str]] = {int(image): [] for image in coco}
    for path in files:
        known = 0
        annotations = read_json(path).get("annotations")
        if not isinstance(annotations, list):
            raise UserError(f"{path}: no list annotations; expected COCO's captions")
        for number, annotation in enumerate(annotations):
            image, text = _caption(path, number, annotation)
            known += image in captions
            if text and len(captions.get(image, "?" * CAPTIONS_PER_IMAGE)) < CAPTIONS_PER_IMAGE:
                captions[image].append(text)
        if not known:
            raise UserError(f"{path}: no caption of any image in {STIMULUS_TABLE.name}; expected COCO 2017 captions")
    return [tuple(captions[int(image)]) for image in coco]


def _caption(path: Path, number: int, annotation) -> tuple[int, str]:
    image, text = (annotation.get(name) for name in ("image_id", "caption")) if isinstance(annotation, dict) else (None,) * 2
    if not isinstance(image, int) or not isinstance(text, str):
        raise UserError(
            f"{path}: annotations[{number}] is {json.dumps(annotation)[:80]}; expected an image_id (number) "
            "and a caption (text)"
        )
    return image, " ".join(text.split())
