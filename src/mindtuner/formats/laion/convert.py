"""LAION-fMRI to a lab's folder for each split: betas once, one session at a time, and on again where it was cut short.

``OUT/betas/sub-01`` holds a person's betas, mask and regions. ``OUT/tau``, ``OUT/ood`` and so on are lab folders whose betas
and pictures are hard links, so that another split costs a table and no second copy.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np

from mindtuner import temporary
from mindtuner.claims import LOCK, alone
from mindtuner.data.dataset import CARD, count_repeats
from mindtuner.download import check_space, size_of
from mindtuner.errors import UserError
from mindtuner.files import atomic_path, read_json, write_json, write_text
from mindtuner.formats.checks.findings import some
from mindtuner.formats.lab_folder.betas import MASK
from mindtuner.formats.lab_folder.trial_table import MISSING, TABLES
from mindtuner.formats.laion import read as laion
from mindtuner.formats.laion.splits import Split, find_split, read_split
from mindtuner.formats.nifti import NiftiSession, save_nifti
from mindtuner.runtime import progress

DATASET = "LAION-fMRI"
SPLITS = "splits"  # in the dataset's folder, where no other place is named
DONE, MADE_OF = "betas", "made_of.json"
DROPPED_AT_MOST = 0.05  # of the voxels: more do not lie near the mask's edge
_BLOCK_BYTES = 32 * 2**20


@dataclass(frozen=True, eq=False)
class Scans:
    """What is there of one person.

    mask     bool (X, Y, Z), the voxels that are wanted; ``image`` has their grid
    rois     name -> bool (X, Y, Z)
    trials   (run, label) of each trial of each session
    """

    number: int
    person: str
    sessions: list[laion.Session]
    mask: np.ndarray
    image: nibabel.Nifti1Image
    rois: dict[str, np.ndarray]
    trials: list[list[tuple[str, str]]]

    @property
    def shape(self) -> tuple[int, int]:
        """Trials, voxels."""
        return sum(map(len, self.trials)), int(self.mask.sum())

    @property
    def labels(self) -> list[str]:
        """The label of each trial."""
        return [label for trials in self.trials for _, label in trials]

    def open(self, session: laion.Session) -> NiftiSession:
        """The betas of one session."""
        return laion.open_session(session, self.mask, self.image)


def convert_laion(
    root: str | Path,
    out: str | Path,
    split: str | Sequence[str] = (),
    split_files: str | Path | None = None,
    subjects: Iterable[int] | None = None,
    regions: Sequence[str] = (),
    noise_ceiling: float = 0.0,
    stimuli: str | Path | None = None,
    mask_values: Sequence[float] | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> dict:
    """Write LAION-fMRI as a lab's folder for each of some splits.

    Betas are kept as they are stored, float32; they are z-scored per session with the statistics of the split's training
    trials when they are read. Left out are voxels that lack a value in some trial or do not vary in some session (NaN stands
    near the mask's edges), and trials of images that a split does not name. Where people have splits of their own, an image
    that tests one of them trains nobody. One masked session is in memory at a time, and no volume but one.

    The same call goes on where an earlier one was cut short, and adds splits to those that are there.

    Parameters
    ----------
    root : str or Path
        Folder with ``derivatives/glmsingle-tedana`` and ``stimuli/images``.
    out : str or Path
        Folder to write: new, empty, or one that this function began. Each split becomes a folder in it.
    split : str or sequence of str
        Names of splits, such as ``"tau"`` or ``["ood", "cluster_k5_0"]``. Not needed where ``split_files`` is one file.
    split_files : str or Path, optional
        A clone of LAION-fMRI's package, its folder of splits, which has a folder for each person (each person's own split)
        and ``shared`` (name that folder for one split of the images that everybody saw), or a single file.
        By default ``root/splits``.
    subjects : iterable of int, optional
        By default everybody there: 1, 3, 5, 6, 7. Who shall be compared is converted together, so that nobody trains on
        another's test images.
    regions : sequence of str
        Keep the voxels of these regions alone. By default the whole mask.
    noise_ceiling : float
        Keep voxels of at least this noise ceiling, in percent, by ``NoiseceilingAllrep``. It is made with test trials too.
    stimuli : str or Path, optional
        Folder of the pictures. By default ``root/stimuli/images``. A ``.txt`` beside a picture holds its captions.
    mask_values : sequence of float, optional
        Values of each person's mask at the voxels to take. By default all above 0.
    say : callable
        Gets a line of text for each thing that was found, left out or done.

    Returns
    -------
    dict
        The card of each split, by name.

    Raises
    ------
    UserError
        Before betas are read: for a file that is missing or does not fit, a split that leaves no training or no test image,
        a picture that is missing, and where ``out`` holds something else. Later for betas that are damaged.
    """
    root, out = Path(root).resolve(), Path(out)
    if not root.is_dir():
        raise UserError(f"{root}: not found; expected a folder with {laion.BETAS.as_posix()}")
    files = root / SPLITS if split_files is None else Path(split_files)
    pictures = root / laion.STIMULI if stimuli is None else Path(stimuli)
    scans = find_scans(root, subjects, regions, noise_ceiling, mask_values)
    chosen = {name: _sides(files, name, scans) for name in _names(files, split)}
    for line in _found(root, scans):
        say(line)
    notes = {name: [] for name in chosen}
    used = {name: _used(name, sides, scans, notes[name]) for name, sides in chosen.items()}
    _check_pictures(pictures, {label for by_trial in used.values() for labels in by_trial.values() for label in labels})
    _refuse_other(out)
    with alone(out):
        (out / DONE).mkdir(exist_ok=True)
        check_space(out, _to_come(out, scans))
        for one in scans:
            _write_betas(out, one, _made_of(root, one, regions, noise_ceiling, mask_values), say)
        cards = {name: _card(root, files, name, scans, regions, noise_ceiling, mask_values, notes[name]) for name in chosen}
        for name, card in cards.items():
            for line in notes[name]:
                say(f"{name}: {line}")
            _write_split(out, name, card, scans, used[name], pictures, say)
    return cards


def find_scans(
    root: Path,
    subjects: Iterable[int] | None = None,
    regions: Sequence[str] = (),
    noise_ceiling: float = 0.0,
    mask_values: Sequence[float] | None = None,
) -> list[Scans]:
    """What is there of each person, checked as far as masks, headers and tables tell.

    Raises UserError where a file is missing, damaged, of another grid or at odds with another, and for a person or region
    that is not there.
    """
    people = laion.find_people(root)
    if not people:
        raise UserError(f"{root / laion.BETAS}: no subject; expected folders sub-01 and so on")
    scans = []
    for number in sorted(people) if subjects is None else sorted(set(subjects)):
        if number not in people:
            raise UserError(f"subjects: {number} is not in {root}; expected some of {', '.join(map(str, sorted(people)))}")
        person = people[number]
        mask, image = laion.read_mask(root, person, mask_values)
        rois = laion.read_rois(root, person, image)
        wanted = _wanted(root, person, mask, image, rois, regions, noise_ceiling)
        sessions = laion.find_sessions(root, person)
        trials = [
            laion.read_trials(session, laion.open_session(session, wanted, image).shape[0])
            for session in progress(sessions, f"{person}, headers and tables", unit="session")
        ]
        scans.append(Scans(number, person, sessions, wanted, image, rois, trials))
    return scans


def _wanted(
    root: Path,
    person: str,
    mask: np.ndarray,
    image: nibabel.Nifti1Image,
    rois: dict[str, np.ndarray],
    regions: Sequence[str],
    noise_ceiling: float,
) -> np.ndarray:
    wanted = mask.copy()
    for name in regions:
        if name not in rois:
            known = ", ".join(rois) or "none there"
            raise UserError(f"regions: {name!r} is no region of {person}; expected some of {known}")
    if regions:
        wanted &= np.any([rois[name] for name in regions], axis=0)
    if noise_ceiling:
        if not laion.PERCENT[0] <= noise_ceiling <= laion.PERCENT[1]:
            raise UserError(f"noise_ceiling: is {noise_ceiling:g}; expected percent, 0 to 100")
        paths = laion.find_ceilings(root, person)
        if laion.ALL_REPEATS not in paths:
            raise UserError(f"{root / laion.BETAS / person}: no {laion.ALL_REPEATS} file; expected it, or no `noise_ceiling`")
        wanted[mask] &= laion.read_ceiling(paths[laion.ALL_REPEATS], mask, image) >= noise_ceiling
    if not wanted.any():
        raise UserError(f"{laion.mask_path(root, person)}: no voxel of the mask is wanted; expected some (other `regions`?)")
    return wanted


def _names(files: Path, split: str | Sequence[str]) -> list[str]:
    names = list(dict.fromkeys([split] if isinstance(split, str) else split))
    if files.is_file():
        name = read_split(files).name
        if names not in ([], [name]):
            raise UserError(f"split: is {', '.join(names)}, but {files} holds {name}; expected that, or a folder of splits")
        names = [name]
    if not names:
        raise UserError(f"split: not given; expected names such as tau, ood or cluster_k5_0 (files in {files})")
    if bad := [name for name in names if name == DONE or not name.replace("-", "_").isidentifier()]:
        raise UserError(f"split: is {bad[0]!r}; expected the name of a split, such as tau or ood")
    return names


def _sides(files: Path, name: str, scans: list[Scans]) -> dict[int, Split]:
    """The split of each person. Raises UserError where a file is missing, is damaged or calls itself otherwise."""
    found = {one.number: read_split(find_split(files, name, one.person)) for one in scans}
    for split in found.values():
        if split.name != name:
            raise UserError(f"{split.path}: name is {split.name!r}; expected {name!r}, as the file is called")
    return found


def _used(name: str, sides: dict[int, Split], scans: list[Scans], notes: list[str]) -> dict[int, dict[str, str]]:
    """For each person the side of each label that counts, and in ``notes`` what does not.

    An image that tests anybody trains nobody. Raises UserError where somebody trains or tests on nothing.
    """
    shown = {one.number: dict.fromkeys(one.labels) for one in scans}
    tests = {label for number, labels in shown.items() for label in labels if sides[number][label] == "test"}
    used = {}
    for one in scans:
        split = sides[one.number]
        kept = {label: split[label] for label in shown[one.number] if split[label]}
        neither = len(shown[one.number]) - len(kept)
        foreign = {label for label, side in kept.items() if side == "train" and label in tests}
        used[one.number] = kept = {label: side for label, side in kept.items() if label not in foreign}
        count = {side: sum(found == side for found in kept.values()) for side in ("train", "test")}
        for side, images in count.items():
            if not images:
                raise UserError(f"{split.path}: none of its {side} images was shown to {one.person}; expected some")
        line = f"{one.person}: {count['train']} training and {count['test']} test images"
        unseen = len(split.test) - count["test"]
        line += f", {unseen} of the split's test images were not shown" if unseen else ""
        line += f"; left out {neither} images that are in neither list" if neither else ""
        line += f"; left out {len(foreign)} training images that test somebody else" if foreign else ""
        notes.append(line)
    return used


def _check_pictures(folder: Path, labels: set[str]) -> None:
    missing = sorted(label for label in labels if not (folder / label).is_file())
    if missing:
        raise UserError(
            f"{folder}: lacks {len(missing)} of {len(labels)} pictures: {some(missing)}; expected all that trials show (they "
            "have terms of their own: mindtuner fetch laion --stimuli)"
        )


def _refuse_other(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; expected a folder for the output")
    if out.is_dir() and any(path.name != LOCK for path in out.iterdir()) and not (out / DONE).is_dir():
        raise UserError(f"{out}: holds other files; expected an empty folder, or one that convert laion began")


def _made_of(
    root: Path, one: Scans, regions: Sequence[str], noise_ceiling: float, mask_values: Sequence[float] | None
) -> dict:
    return {
        "root": str(root),
        "sessions": {session.name: session.betas.stat().st_size for session in one.sessions},
        "regions": list(regions),
        "noise_ceiling": noise_ceiling,
        "mask_values": None if mask_values is None else list(mask_values),
    }


def _work(out: Path, one: Scans) -> Path:
    """Where a person's betas grow, session by session."""
    return out / DONE / f".{one.person}.part"


def _to_come(out: Path, scans: list[Scans]) -> int:
    """Bytes that are still to be written: a person's sessions stay until they are joined."""
    left = [one for one in scans if not (out / DONE / one.person).exists()]
    sizes = [4 * one.shape[0] * one.shape[1] for one in left]
    here = sum(size_of(_work(out, one) / f"{session.name}.npy") for one in left for session in one.sessions)
    return max(0, sum(sizes) + max(sizes, default=0) - here)


def _write_betas(out: Path, one: Scans, made_of: dict, say: Callable[[str], object]) -> None:
    """``OUT/betas/sub-01``, from a folder beside it that keeps the sessions that were read."""
    folder = out / DONE / one.person
    work = _work(out, one)
    for begun in (folder, work):
        if (begun / MADE_OF).exists():
            _compare(begun / MADE_OF, made_of)
    if folder.exists():
        say(f"{one.person}: betas are there already")
        return
    temporary.sweep(work)  # of a run that was killed: the folder becomes the dataset's
    write_json(work / MADE_OF, made_of)
    parts = [work / f"{session.name}.npy" for session in one.sessions]
    for session, part in zip(one.sessions, parts, strict=True):
        if not part.exists():
            betas = one.open(session)
            _write_npy(part, betas.shape, blocks_of(betas))
    usable = _usable(parts, one)
    _write_npy(work / "betas.npy", (one.shape[0], int(usable.sum())), (block[:, usable] for block in _blocks(parts)))
    kept = one.mask.copy()
    kept[one.mask] = usable
    save_nifti(work / MASK, kept.astype(np.uint8), one.image.affine)
    with atomic_path(work / "rois.npz") as part, open(part, "wb") as file:
        np.savez(file, **{name: region[kept] for name, region in one.rois.items()})
    for path in parts:
        path.unlink()
    os.replace(work, folder)
    if not usable.all():
        where = some([tuple(map(int, place)) for place in np.argwhere(one.mask & ~kept)])
        say(
            f"{one.person}: {(~usable).sum()} of {len(usable)} voxels left out, which lack a value in some trial or do not "
            f"vary in some session: {where} (X, Y, Z from 0); mask.nii.gz has the others"
        )
        if (~usable).mean() > DROPPED_AT_MOST:
            say(f"{one.person}: more than {DROPPED_AT_MOST:.0%} of the voxels; expected a few near the mask's edge")


def _compare(path: Path, made_of: dict) -> None:
    found = read_json(path)
    for key, wanted in made_of.items():
        if found.get(key) != wanted:
            raise UserError(
                f"{path}: {key} is {found.get(key)!r}; expected {wanted!r} (another conversion began here: choose another "
                "folder)"
            )


def blocks_of(betas: NiftiSession) -> Iterator[np.ndarray]:
    """A session's betas, float32 (rows, V), some rows at a time."""
    for rows in np.array_split(np.arange(betas.shape[0]), 1 + betas.shape[0] * betas.shape[1] * 4 // _BLOCK_BYTES):
        yield betas[rows]


def _write_npy(path: Path, shape: tuple[int, ...], blocks: Iterator[np.ndarray]) -> None:
    with atomic_path(path) as part, open(part, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for block in blocks:
            file.write(block.astype("<f4", order="C").tobytes())


def _blocks(paths: list[Path]) -> Iterator[np.ndarray]:
    for path in paths:
        rows = np.load(path, mmap_mode="r")
        yield from np.array_split(rows, 1 + rows.nbytes // _BLOCK_BYTES)


def _usable(parts: list[Path], one: Scans) -> np.ndarray:
    """Which voxels are finite in all trials and vary in every session, bool (V,). Raises UserError where none is."""
    usable, worst = np.ones(one.shape[1], bool), (0, parts[0])
    for path in progress(parts, f"{one.person}, voxels without a value", unit="session"):
        own = finite_and_varying(_blocks([path]))
        worst = max(worst, (int((~own).sum()), path))
        usable &= own
    if not usable.any():
        raise UserError(
            f"{laion.mask_path(Path(), one.person).name}: no voxel has a value in all trials and varies in every session "
            f"(most lack one in {worst[1].stem}: {worst[0]} of {len(usable)}); expected some"
        )
    return usable


def finite_and_varying(blocks: Iterator[np.ndarray]) -> np.ndarray:
    """Which voxels are finite in all rows and not the same in all of them, bool (V,); ``blocks`` are (rows, V)."""
    first, finite, varies = None, np.True_, np.False_
    for block in blocks:
        first = block[0].copy() if first is None else first
        finite = finite & np.isfinite(block).all(0)
        varies = varies | (block != first).any(0)
    return finite & varies


def _card(
    root: Path,
    files: Path,
    name: str,
    scans: list[Scans],
    regions: Sequence[str],
    noise_ceiling: float,
    mask_values: Sequence[float] | None,
    notes: list[str],
) -> dict:
    # Simulated files carry a card, which says that they are; those of LAION-fMRI's authors have none.
    said = read_json(root / CARD) if (root / CARD).exists() else {}
    return {
        "simulated": False,
        **said,
        "zscore": "none",
        "dataset": DATASET,
        "split": name,
        "converted": {
            "from": "laion",
            "root": str(root),
            "split_files": str(files),
            "sessions": {str(one.number): [session.number for session in one.sessions] for one in scans},
            "regions": list(regions),
            "noise_ceiling": noise_ceiling,
            **({} if mask_values is None else {"mask_values": list(mask_values)}),
        },
        "notes": notes,
    }


def _write_split(
    out: Path,
    name: str,
    card: dict,
    scans: list[Scans],
    used: dict[int, dict[str, str]],
    pictures: Path,
    say: Callable[[str], object],
) -> None:
    folder = out / name
    if folder.exists():
        if read_json(folder / CARD) != card:
            raise UserError(f"{folder / CARD}: is of another conversion; expected another OUT, or none of that split in it")
        say(f"{folder}: there already")
        return
    with atomic_path(folder) as part:
        write_json(part / CARD, card)
        (part / "stimuli").mkdir()
        shown = {pictures / label for labels in used.values() for label in labels}
        captions = {text for path in shown if (text := path.with_suffix(".txt")).exists()}  # cat.jpg and cat.png share one
        for path in progress(sorted(shown | captions), f"{name}, pictures"):
            _link(path, part / "stimuli" / path.name)
        for one in scans:
            own = part / f"sub-{one.number:02d}"
            write_text(own / TABLES[0], _table(one, used[one.number]))
            for path in sorted((out / DONE / one.person).iterdir()):
                if path.name != MADE_OF:
                    _link(path, own / path.name)
    say(f"{folder}: written")


def _table(one: Scans, used: dict[str, str]) -> str:
    """The text of ``trials.tsv``. A trial whose image is in neither list stays, without a stimulus."""
    labels = one.labels
    number = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    repeats = count_repeats(np.array([number[label] for label in labels]))
    lines, row = ["stimulus\tsession\trun\tbeta_index\trepeat\tsplit\tlabel"], 0
    for session, trials in zip(one.sessions, one.trials, strict=True):
        for index, (run, label) in enumerate(trials):
            side = used.get(label, MISSING)
            stimulus = label if label in used else MISSING
            lines.append(f"{stimulus}\t{session.number}\t{run}\t{index}\t{repeats[row]}\t{side}\t{label}")
            row += 1
    return "\n".join(lines) + "\n"


def _link(source: Path, target: Path) -> None:
    """The same file at another place: a hard link, or a copy where the disk has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _found(root: Path, scans: list[Scans]) -> Iterator[str]:
    for one in scans:
        (trials, voxels), images = one.shape, len(set(one.labels))
        yield f"{one.person}: {len(one.sessions)} sessions, {trials} trials of {images} images, {voxels} voxels"
        if absent := without_betas(root, one.person):
            yield f"{one.person}: {some(absent)} passed over, without betas"


def without_betas(root: Path, person: str) -> list[str]:
    """Folders of sessions that hold no betas."""
    there = {session.name for session in laion.find_sessions(root, person)}
    return sorted(path.name for path in (root / laion.BETAS / person).glob("ses-*") if path.name not in there)
