"""LAION-fMRI from its public bucket: only what is asked for, resumed where it broke off, every byte verified.

Files get the places that they have in the bucket, which are those that the data set's own package gives them: what either has
brought, the other need not bring again. While a fetch is under way, files grow in a hidden folder, each named by its ETag.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mindtuner.claims import alone
from mindtuner.download import FetchPlan, RemoteFile
from mindtuner.errors import UserError
from mindtuner.formats.laion.bucket import Bucket
from mindtuner.formats.laion.read import ATLASES, BETAS, STATMAP, TRIALS
from mindtuner.runtime import progress

ENDPOINT, BUCKET = "https://s3.us-west-2.amazonaws.com", "laion-fmri"
TERMS_AT = "https://laion-fmri.hebartlab.com/terms"
HELD_OUT = (31, 32, 33, 34)  # sessions that the authors keep closed, for evaluation
DESCRIPTIONS = ("dataset_description.json", "participants.tsv", "participants.json", "README")


@dataclass(frozen=True)
class Plan(FetchPlan):
    """What a fetch gets of a bucket."""

    bucket: Bucket


def plan_fetch(
    bucket: Bucket,
    out: str | Path,
    subjects: Iterable[int] | None = None,
    sessions: Iterable[int] | None = None,
    stimuli: bool = False,
) -> Plan:
    """Ask the bucket what it holds, choose the files of some subjects and sessions, and look at what is in ``out`` already.

    By default all, without the sessions that the authors hold out. Masks, noise ceilings and regions of a subject always come
    along. Nothing is written.

    Raises UserError for a subject or session that the bucket lacks, and for an ``out`` that holds another file in a place
    that is wanted.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; expected a folder for the dataset")
    parts = {"descriptions": [file for name in DESCRIPTIONS for file in bucket.list(name) if file.path == name]}
    people = _people(bucket)
    for number in sorted(people) if subjects is None else sorted(set(subjects)):
        if number not in people:
            known = ", ".join(map(str, sorted(people))) or "none"
            raise UserError(f"subjects: {number}; {bucket.url()} has {known}")
        parts |= _parts_of(bucket, people[number], sessions)
    if stimuli:
        parts["stimuli"] = [file for file in bucket.list("stimuli/") if not file.path.endswith("/")]
        if not parts["stimuli"]:
            raise UserError(
                f"{bucket.url('stimuli')}: holds no picture yet; expected some (the package of LAION-fMRI says how to get "
                "them: laion-fmri download --include-stimuli)"
            )
    plan = Plan(out, {label: files for label, files in parts.items() if files}, bucket)
    plan.check_sizes("the bucket")
    return plan


def _people(bucket: Bucket) -> dict[int, str]:
    """Number -> name of everybody who has betas."""
    matches = (re.fullmatch(r"sub-(\d{1,6})", name) for name in bucket.folders(f"{BETAS.as_posix()}/"))
    return {int(match[1]): match[0] for match in matches if match}


def _parts_of(bucket: Bucket, person: str, sessions: Iterable[int] | None) -> dict[str, list[RemoteFile]]:
    """The files of one person: what all sessions share, then each session."""
    folder, start = f"{BETAS.as_posix()}/{person}/", f"{person}_task-images_space-T1w_desc-"
    shared, by_session = [], {}
    for file in bucket.list(folder):
        name = file.path.removeprefix(folder)
        if re.fullmatch(rf"{start}(meanR2gt15mask_mask|Noiseceiling\w*_statmap)\.nii\.gz", name):
            shared.append(file)
        elif match := re.fullmatch(
            rf"(ses-(\d{{1,6}}))/func/{person}_\1_task-images_(space-T1w_{re.escape(STATMAP)}|{TRIALS})", name
        ):
            by_session.setdefault(int(match[2]), []).append(file)
    if not any(file.path.endswith("_mask.nii.gz") for file in shared):
        raise UserError(f"{bucket.url(folder)}: has no {start}meanR2gt15mask_mask.nii.gz; expected the mask of {person}")
    open_to_all = [number for number in sorted(by_session) if number not in HELD_OUT]
    rois = f"{ATLASES.as_posix()}/{person}/rois/"
    shared += [file for file in bucket.list(rois) if re.fullmatch(r"[^/]+\.nii\.gz", file.path.removeprefix(rois))]
    parts = {person: shared}
    for number in open_to_all if sessions is None else sorted(set(sessions)):
        if number not in open_to_all:
            reason = "its authors hold it out" if number in HELD_OUT else f"{person} has {_list(open_to_all)}"
            raise UserError(f"sessions: {number}; {reason}")
        if len(by_session[number]) != 2:
            raise UserError(
                f"{bucket.url(folder)}ses-{number:02d}: has {len(by_session[number])} file; expected betas and trials"
            )
        parts[f"{person}, session {number}"] = by_session[number]
    return parts


def _list(numbers: list[int]) -> str:
    if numbers and numbers == list(range(numbers[0], numbers[-1] + 1)) and len(numbers) > 2:
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers)) or "none"


def fetch(plan: Plan) -> None:
    """Bring all files of a plan to their places.

    Interrupted at any moment, it goes on where it was when it is called again. Files that are in their places with the right
    size count as whole: none gets there before it is verified.

    Raises UserError without room, permission or network, for a file with other bytes than the bucket says, and where another
    process fetches into the same folder.
    """
    plan.check_space()
    try:
        with alone(plan.out), progress((), "fetch", total=sum(file.size for file in plan.files), unit="B") as bar:
            plan.working_folder.mkdir(parents=True, exist_ok=True)
            bar.unit_scale = True
            for file in plan.files:
                bar.set_postfix_str(file.path)
                if plan.target(file).exists():
                    bar.update(file.size)
                else:
                    plan.bucket.bring(file, plan.target(file), plan.part_path(file), bar)
            shutil.rmtree(plan.working_folder)
    except OSError as error:
        raise UserError(
            f"{plan.out}: cannot be written ({error.strerror or error}); expected free space and write permission"
        ) from error
