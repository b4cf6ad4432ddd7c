"""Raw NSD to the NSD release: one subject and one session at a time, and on again where it was cut short.

Each file appears whole or not at all, the masks last, so a folder without them is no dataset yet. Which command began a
folder stands in its card, and any other is refused there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mindtuner.claims import claim_folder, releasing, remove_lock_of_the_dead
from mindtuner.data import nsd
from mindtuner.data.dataset import CARD
from mindtuner.data.lazy import open_rows
from mindtuner.data.stimuli import IMAGE_SHAPE
from mindtuner.data.zscore import FEWEST, Statistics, mean_and_sd, pool, standardise
from mindtuner.errors import UserError
from mindtuner.files import read_json
from mindtuner.formats.nsd_raw import read as raw
from mindtuner.formats.nsd_raw.volumes import read_mask, read_rois, read_session, session_trials
from mindtuner.formats.nsd_release import write as release_writer
from mindtuner.formats.nsd_release.read import IMAGES, MASKS, betas_path
from mindtuner.formats.nsd_release.write import TrialTable
from mindtuner.runtime import progress

IMAGES_AT_ONCE = 32  # 17 MB of pixels as they come, 70 MB as floats


@dataclass(frozen=True, eq=False)
class Scans:
    """What is there of one subject: a file per session, the mask (X, Y, Z), regions (V,), and its trials."""

    number: int
    sessions: list[Path]
    mask: np.ndarray
    rois: dict[str, np.ndarray]
    assumed: str | None
    table: TrialTable

    @property
    def shape(self) -> tuple[int, int]:
        """Trials, voxels."""
        return len(self.table), len(self.rois["nsd_general"])


@releasing()
def convert_nsd(
    root: str | Path,
    out: str | Path,
    subjects: Iterable[int] | None = None,
    captions: Sequence[str | Path] = (),
    force: bool = False,
    mask_values: Sequence[float] | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> dict:
    """Write raw NSD as the NSD release, one subject and one session at a time.

    Betas are z-scored per session with the statistics of training trials (``zscore``). Training is every trial of an image
    that is not one of the shared 1,000. Images are resized to 224 x 224, bilinear and antialiased. It takes about 1 GB of
    memory at NSD's size.

    The same call goes on where an earlier one was cut short, and ends with the same bytes. Subjects and images that are whole
    are not made again.

    Parameters
    ----------
    root : str or Path
        Folder with NSD's ``nsddata``, ``nsddata_betas`` and ``nsddata_stimuli``.
    out : str or Path
        Folder to write: new, empty, or one that the same call began.
    subjects : iterable of int, optional
        Subjects, 1 to 8. By default all that have betas. Of each, sessions 1, 2, ... as far as there are files.
    captions : sequence of str or Path
        COCO's caption files, or folders of them.
    force : bool
        Start over: replace what is in ``out``.
    mask_values : sequence of float, optional
        Values of ``nsdgeneral.nii.gz`` at the voxels to take. By default all above 0.
    say : callable
        Gets a line of text for each thing that was found, assumed or done.

    Returns
    -------
    dict
        The card.

    Raises
    ------
    UserError
        Before anything is written: for a file that is missing or does not fit, and where ``out`` was begun from other files
        or with other arguments.
    """
    root, out = Path(root).resolve(), Path(out)
    if not root.is_dir():
        raise UserError(f"{root}: not found; expected a folder with NSD's nsddata, nsddata_betas and nsddata_stimuli")
    files = raw.caption_files(map(Path, captions))
    count = raw.count_stimuli(root)
    design = raw.read_design(root, count)
    coco = raw.read_coco_ids(root, design.is_shared)
    scans = find_scans(root, design, raw.find_subjects(root) if subjects is None else sorted(set(subjects)), mask_values)
    texts = raw.read_captions(files, coco)
    card = _card(root, scans, files)
    if mask_values is not None:
        card["converted"]["mask_values"] = list(mask_values)
    for line in _found(scans, texts):
        say(line)
    if not force and (out / CARD).exists():
        _compare(out / CARD, read_json(out / CARD), card)
        if (out / MASKS).exists():
            remove_lock_of_the_dead(out)
            say(f"{out}: whole already")
            return card
    claim_folder(out, kind="convert nsd", force=force)
    release_writer.write_card(out, card)
    release_writer.write_shared(out, design.is_shared)
    release_writer.write_captions(out, texts)
    if _is_whole(out / IMAGES, "images", (count, *IMAGE_SHAPE)):
        say("images: there already")
    else:
        release_writer.write_images(out, _resized(root, count), count)
    for subject in scans:
        _convert_subject(out, subject, say)
    release_writer.write_indices(out, {subject.number: subject.table.stimulus for subject in scans})
    release_writer.write_masks(out, {subject.number: subject.rois for subject in scans})
    return card


def find_scans(
    root: Path, design: raw.Design, subjects: Sequence[int], mask_values: Sequence[float] | None = None
) -> list[Scans]:
    """What is there of each subject, checked as far as masks, headers and the design tell.

    Raises UserError where a file is missing or damaged, is of another shape, or holds another number of trials.
    """
    if not subjects:
        raise UserError(f"{root / raw.BETAS}: no subject; expected folders subj01/{raw.BETAS_VERSION} and so on")
    per_session, scans = None, []
    for number in subjects:
        if not 1 <= number <= min(nsd.SUBJECTS, len(design.images)):
            raise UserError(
                f"subjects: {number} is not in NSD's design; expected 1 to {min(nsd.SUBJECTS, len(design.images))}"
            )
        sessions, mask = raw.find_sessions(root, number), read_mask(root, number, mask_values)
        for path in sessions:
            trials = session_trials(path, mask)
            if per_session is None and len(design.order) % trials == 0:
                per_session = trials
            if trials != per_session:
                expected = per_session or f"a number that divides the design's {len(design.order)} trials"
                raise UserError(f"{path}: holds {trials} trials; expected {expected}, in every session of every subject")
        if len(sessions) * per_session > len(design.order):
            raise UserError(
                f"{sessions[-1]}: is beyond the design; expected at most {len(design.order) // per_session} "
                f"sessions ({raw.DESIGN.name}: masterordering)"
            )
        table = trial_table(design, number, len(sessions), per_session)
        if np.bincount(table.session[~table.is_shared], minlength=1).max() < FEWEST:
            raise UserError(
                f"{raw.betas_folder(root, number)}: all {len(table)} trials show shared images, or all "
                f"but one in a session; expected {FEWEST} others in a session, to train and to z-score with"
            )
        scans.append(Scans(number, sessions, mask, *read_rois(root, number, mask), table))
    return scans


def trial_table(design: raw.Design, subject: int, sessions: int, per_session: int) -> TrialTable:
    """All trials of a subject's first ``sessions`` sessions.

    Runs are NSD's, 63 and 62 of 750 trials in turn; when in the session a trial came the design does not say, so that is
    missing, -1.
    """
    stimulus = design.stimulus(subject, sessions * per_session)
    starts = -(-np.arange(nsd.RUNS) * per_session // nsd.RUNS)
    within = np.arange(per_session)
    run = np.searchsorted(starts, within, "right")
    return TrialTable(
        stimulus=stimulus,
        session=np.repeat(np.arange(1, sessions + 1), per_session),
        run=np.tile(run, sessions),
        trial=np.tile(within - starts[run - 1] + 1, sessions),
        time=np.full(len(stimulus), -1.0),
        is_shared=design.is_shared[stimulus],
    )


def zscored_sessions(scans: Scans) -> Iterator[np.ndarray]:
    """Betas of one session after the other, float64 (trials, V), z-scored with its own training trials.

    A session with fewer than two uses the statistics of all training trials of the subject's others.
    """
    training = np.split(~scans.table.is_shared, len(scans.sessions))
    pooled = None if all(rows.sum() >= FEWEST for rows in training) else _pooled(scans, training)
    for path, rows in zip(progress(scans.sessions, f"subj{scans.number:02d}", unit="session"), training, strict=True):
        betas = read_session(path, scans.mask)
        yield standardise(betas, *(mean_and_sd(betas[rows]) if rows.sum() >= FEWEST else pooled))


def _pooled(scans: Scans, training: list[np.ndarray]) -> Statistics:
    enough = [(path, rows) for path, rows in zip(scans.sessions, training, strict=True) if rows.sum() >= FEWEST]
    return pool(
        [int(rows.sum()) for _, rows in enough], [mean_and_sd(read_session(path, scans.mask)[rows]) for path, rows in enough]
    )


def _convert_subject(out: Path, scans: Scans, say: Callable[[str], None]) -> None:
    if _is_whole(betas_path(out, scans.number), "betas", scans.shape):
        say(f"subj{scans.number:02d}: there already")
        return
    unknown = 0

    def blocks() -> Iterator[np.ndarray]:
        nonlocal unknown
        for block in zscored_sessions(scans):
            unknown += int((block == 0).all(0).sum())
            yield block

    # Betas come last: where they are, the subject is whole.
    release_writer.write_behaviour(out, scans.number, scans.table)
    release_writer.write_betas(out, scans.number, blocks(), scans.shape)
    if unknown:
        say(f"subj{scans.number:02d}: in {unknown} cases a voxel does not vary in a session; its betas there are 0")


def _is_whole(path: Path, field: str, shape: tuple[int, ...]) -> bool:
    """Whether an earlier run finished this file. Raises UserError where something else has taken its place."""
    if not path.exists():
        return False
    dtypes = ("float16", "float32")
    if (found := open_rows(path, field, len(shape), dtypes).shape) != shape:
        raise UserError(
            f"{path}: {field} has shape {found}; expected {shape}, as in {CARD} (delete the file to make it again)"
        )
    return True


def _resized(root: Path, count: int) -> Iterator[np.ndarray]:
    total = -(-count // IMAGES_AT_ONCE)
    for block in progress(raw.read_stimuli(root, IMAGES_AT_ONCE), "images", total, "batch"):
        yield resize(block)


def resize(images: np.ndarray) -> np.ndarray:
    """uint8 (n, height, width, 3) to float32 (n, 3, 224, 224) in 0..1, bilinear and antialiased."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return torch.nn.functional.interpolate(pixels, IMAGE_SHAPE[1:], mode="bilinear", antialias=True).clamp(0, 1).numpy()


def _card(root: Path, scans: list[Scans], captions: list[Path]) -> dict:
    # Simulated files carry a card, which says that they are; those of NSD's authors have none.
    said = read_json(root / CARD) if (root / CARD).exists() else {}
    return {
        "simulated": False,
        **said,
        "zscore": "train_trials",
        "converted": {
            "from": "nsd",
            "root": str(root),
            "betas": str(raw.BETAS_VERSION),
            "sessions": {str(subject.number): len(subject.sessions) for subject in scans},
            "trials_per_session": len(scans[0].table) // len(scans[0].sessions),
            "captions": list(map(str, captions)),
            "assumed": [f"subj{subject.number:02d}: {subject.assumed}" for subject in scans if subject.assumed],
        },
    }


def _found(scans: list[Scans], captions: list[tuple[str, ...]]) -> Iterator[str]:
    for subject in scans:
        (trials, voxels), name = subject.shape, f"subj{subject.number:02d}"
        yield (
            f"{name}: {len(subject.sessions)} of NSD's {nsd.SESSIONS[subject.number - 1]} sessions, {trials} trials, "
            f"{subject.table.is_shared.sum()} of them test, {voxels} voxels"
        )
        if voxels != nsd.VOXELS[subject.number - 1]:
            yield f"{name}: NSD's own nsdgeneral has {nsd.VOXELS[subject.number - 1]} voxels; taken as it is"
        if subject.assumed:
            yield f"{name}: {subject.assumed}"
    without = sum(not texts for texts in captions)
    yield f"captions: {len(captions) - without} images have some, {without} have none"


def _compare(path: Path, found: dict, wanted: dict, parent: str = "") -> None:
    for key in dict.fromkeys((*wanted, *found)):
        there, here = found.get(key), wanted.get(key)
        if isinstance(there, dict) and isinstance(here, dict):
            _compare(path, there, here, f"{parent}{key}.")
        elif there != here:
            raise UserError(
                f"{path}: {parent}{key} is {there!r}; expected {here!r} (another conversion began here: choose "
                "another folder, or force to replace it)"
            )
