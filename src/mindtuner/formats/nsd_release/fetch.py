"""The NSD release from the Hugging Face hub: only what is asked for, resumed where it broke off, every byte verified.

While a fetch is under way, files grow in a hidden folder inside the dataset's, each named by the checksum that it must
end with. A file moves to its place only when its checksum is right, and the card is written last: a folder
with this module's card is whole.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import HfApi, constants, hf_hub_url

from mindtuner import download
from mindtuner.claims import alone
from mindtuner.data.dataset import CARD
from mindtuner.download import CHECKSUM, FetchPlan, RemoteFile, checksum_of, persist
from mindtuner.errors import UserError
from mindtuner.files import read_json, write_json
from mindtuner.formats.nsd_release.read import (
    CAPTIONS,
    IMAGES,
    INDICES,
    MASKS,
    SHARED,
    behaviour_folder,
    betas_path,
    check_card,
)
from mindtuner.runtime import progress

REPO = "pscotti/mindeyev2"
SHARED_FILES = (SHARED, MASKS, INDICES, CAPTIONS, IMAGES)
PUBLISHED_CARD = {"simulated": False, "zscore": "publisher"}


@dataclass(frozen=True)
class Release:
    """What a dataset repository holds at one commit."""

    repo: str
    revision: str
    endpoint: str
    files: dict[str, RemoteFile]

    @property
    def subjects(self) -> list[int]:
        """Subjects with a betas file."""
        return _numbers_in(self.files, r"betas_all_subj0(\d+)_fp32_renorm\.hdf5")

    def sessions(self, subject: int) -> list[int]:
        """Sessions of a subject with a tar of training trials, 1-based."""
        return [index + 1 for index in _numbers_in(self.files, rf"wds/subj0{subject}/train/(\d+)\.tar")]


@dataclass(frozen=True)
class Plan(FetchPlan):
    """What a fetch gets of a release."""

    release: Release

    @property
    def working_folder(self) -> Path:
        """Where files grow. It exists as long as this fetch is unfinished."""
        return self.out / f".fetch-{self.release.revision}.part"

    def target(self, file: RemoteFile) -> Path:
        """The file's place. A card that the release has of its own is only read: ours, which extends it, is in its place."""
        return self.working_folder / CARD if file.path == CARD else super().target(file)


def read_release(repo: str = REPO, revision: str = "main", endpoint: str | None = None) -> Release:
    """Ask a hub what a dataset repository holds. ``endpoint`` None is HF_ENDPOINT, or huggingface.co.

    Raises UserError without a network, without permission, or where there is no such repository or revision.
    """
    endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
    if urlsplit(endpoint).scheme not in ("http", "https") or not urlsplit(endpoint).hostname:
        raise UserError(f"endpoint: is {endpoint!r}; expected an address such as https://huggingface.co")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise UserError(f"repo: is {repo!r}; expected OWNER/NAME")
    where = f"{endpoint}/datasets/{repo}, revision {revision}"
    try:
        info = persist(
            lambda: HfApi(endpoint=endpoint, library_name="mindtuner").dataset_info(
                repo, revision=revision, files_metadata=True, timeout=3 * constants.HF_HUB_DOWNLOAD_TIMEOUT
            ),
            where,
            retries=2,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{where}: the answer is no description of a dataset repository "
            f"({type(error).__name__}); expected a Hugging Face hub"
        ) from error
    if not re.fullmatch(r"[0-9a-f]{40}", info.sha or ""):  # it becomes the name of a folder
        raise UserError(f"{where}: is at commit {info.sha!r}; expected 40 hexadecimal digits")
    files = {}
    for item in info.siblings or ():
        checksum = item.lfs.sha256 if item.lfs else item.blob_id
        if item.size is None or not re.fullmatch(CHECKSUM, checksum or ""):
            raise UserError(f"{where}: no size or checksum of {item.rfilename}; expected a hub that gives both")
        files[item.rfilename] = RemoteFile(item.rfilename, item.size, checksum)
    return Release(repo, info.sha, endpoint, files)


def plan_fetch(
    release: Release, out: str | Path, subjects: Iterable[int] | None = None, sessions: Iterable[int] | None = None
) -> Plan:
    """Choose the files of some subjects and sessions (all by default) and look at what is in ``out`` already.

    Nothing is written. A subject's test trials always come along, all of them. Betas are one file a subject, whatever
    the sessions.

    Raises UserError for a subject, session or file that the release lacks, and for an ``out`` that holds anything else
    than a part or the whole of this release.
    """
    out, where = Path(out), f"{release.repo}@{release.revision[:12]}"
    subjects = release.subjects if subjects is None else sorted(set(subjects))
    wanted = {name: [name] for name in (CARD, *SHARED_FILES) if name != CARD or name in release.files}
    for subject in subjects:
        if subject not in release.subjects:
            raise UserError(f"subjects: {subject}; {where} has {_list(release.subjects)}")
        there = release.sessions(subject)
        chosen = there if sessions is None else sorted(set(sessions))
        for session in chosen:
            if session not in there:
                raise UserError(f"sessions: {session}; subject {subject} in {where} has {_list(there)}")
        folder = behaviour_folder("", subject).as_posix()
        wanted[folder] = [f"{folder}/train/{session - 1}.tar" for session in chosen] + [f"{folder}/new_test/0.tar"]
        if f"{folder}/test/0.tar" in release.files:
            wanted[folder].append(f"{folder}/test/0.tar")  # the older split of the test trials
    for subject in subjects:  # last: the reader takes a subject for there as soon as its betas are
        name = betas_path("", subject).as_posix()
        wanted[name] = [name]
    for name in (name for names in wanted.values() for name in names):
        if name not in release.files:
            raise UserError(f"{where}: has no {name}; expected the files of the NSD release")
    if not subjects:
        raise UserError(f"{where}: has no subject; expected files betas_all_subj0N_fp32_renorm.hdf5")
    plan = Plan(out, {label: [release.files[name] for name in names] for label, names in wanted.items()}, release)
    _check_folder(plan)
    return plan


def fetch(plan: Plan) -> dict:
    """Bring all files of a plan to their places, then write the card, and return it.

    Interrupted at any moment, it goes on where it was when it is called again. Files that are there already are read
    and verified too.

    Raises UserError without room, permission or network, where another process fetches into the same folder, and for a file
    with another checksum than the hub's. One that was downloaded is removed then, one that was there before is left alone.
    """
    plan.check_space()
    try:
        with alone(plan.out), progress((), "fetch", total=sum(file.size for file in plan.files), unit="B") as bar:
            plan.working_folder.mkdir(parents=True, exist_ok=True)
            bar.unit_scale = True
            for file in plan.files:
                bar.set_postfix_str(file.path)
                _bring(plan, file, bar)
            card = _make_card(plan)
            write_json(plan.out / CARD, card)
            shutil.rmtree(plan.working_folder)
    except OSError as error:
        raise UserError(
            f"{plan.out}: cannot be written ({error.strerror or error}); expected free space and write permission"
        ) from error
    return card


def _check_folder(plan: Plan) -> None:
    out, card_path = plan.out, plan.out / CARD
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; expected a folder for the dataset")
    for other in out.glob(".fetch-*.part"):
        if other != plan.working_folder:
            revision = other.name.removeprefix(".fetch-").removesuffix(".part")
            raise UserError(
                f"{out}: half-fetched from revision {revision}; expected that one (revision={revision!r}) "
                f"or another folder than {plan.release.revision}'s"
            )
    if card_path.exists() and read_json(card_path).get("source") != _source(plan.release):
        raise UserError(
            f"{card_path}: describes another dataset; expected {plan.release.repo} at revision "
            f"{plan.release.revision}, or an empty folder"
        )
    plan.check_sizes("the release")


def _bring(plan: Plan, file: RemoteFile, bar) -> None:
    """Put one file into its place, verified."""
    target, part = plan.target(file), plan.part_path(file)
    if target.exists():
        if checksum_of(target, file.checksum, bar.update) != file.checksum:
            raise UserError(
                f"{target}: is not what the release holds; expected checksum {file.checksum} (remove it to fetch it)"
            )
        return
    release = plan.release
    url = hf_hub_url(release.repo, file.path, repo_type="dataset", revision=release.revision, endpoint=release.endpoint)
    download.bring(url, target, part, file, bar)


def _make_card(plan: Plan) -> dict:
    """The card of what is in the folder now, which may be more than this plan's part of the release.

    The public release has no card: then it is not simulated, and z-scored by its publisher. ``sessions`` names the
    training sessions of subjects of which only some are there.
    """
    card = dict(PUBLISHED_CARD)
    if CARD in plan.release.files:
        published = plan.working_folder / CARD
        card = read_json(published)
        check_card(card, str(published))
        if not isinstance(card.get("sessions", {}), dict):
            raise UserError(f"{published}: sessions is no table; expected subject: [session, ...]")
    card["source"] = _source(plan.release)
    some = dict(card.get("sessions", {}))
    for subject in plan.release.subjects:
        all_sessions, folder = plan.release.sessions(subject), behaviour_folder(plan.out, subject) / "train"
        here = [session for session in all_sessions if (folder / f"{session - 1}.tar").exists()]
        if betas_path(plan.out, subject).exists() and here != all_sessions:
            some[str(subject)] = here
    return card | ({"sessions": some} if some else {})


def _source(release: Release) -> dict:
    return {"repo": release.repo, "revision": release.revision}


def _numbers_in(names: Iterable[str], pattern: str) -> list[int]:
    return sorted(int(match[1]) for name in names if (match := re.fullmatch(pattern, name)))


def _list(numbers: list[int]) -> str:
    if numbers == list(range(1, len(numbers) + 1)) and len(numbers) > 2:
        return f"1 to {len(numbers)}"
    return ", ".join(map(str, numbers)) or "none"
