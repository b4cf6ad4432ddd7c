"""Files over HTTP: resumed where they broke off, tried again when the line drops, every byte verified.

``describe`` and ``bring`` speak to a Hugging Face hub, ``receive`` and ``persist`` to any server.

A file grows as a part, named by the checksum that it must end with, and moves to its place only when its checksum is
right. (`hf_hub_download` throws a part away when it is interrupted, and the largest files here have 20 GB, so bytes are
streamed here, over the library's own session.)
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled, RevisionNotFoundError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from mindtuner.errors import UserError

WAIT_S = 1.0  # before the first retry, then twice as long each time
CHECKSUM = r"[0-9a-f]{40}([0-9a-f]{24})?"
_READ = 2**20
# HTTPError is the base of all that a connection raises, in whichever HTTP library this version of huggingface_hub uses.
_DROPPED = (HTTPError, ConnectionError)


@dataclass(frozen=True)
class RemoteFile:
    """A file as its server describes it.

    ``checksum``: of a hub the sha256, or for a file outside LFS its git blob id (sha1); of a bucket the ETag.
    """

    path: str
    size: int
    checksum: str


@dataclass(frozen=True)
class FetchPlan:
    """What a fetch gets into the folder ``out``: ``parts``, label -> files, in the order in which they arrive."""

    out: Path
    parts: dict[str, list[RemoteFile]]

    @property
    def files(self) -> list[RemoteFile]:
        """The files of all parts, in the order in which they arrive."""
        return [file for part in self.parts.values() for file in part]

    @property
    def working_folder(self) -> Path:
        """Where files grow. It exists as long as this fetch is unfinished."""
        return self.out / ".fetch.part"

    def part_path(self, file: RemoteFile) -> Path:
        """Where the file lies while it grows, named by its checksum."""
        return self.working_folder / file.checksum

    def target(self, file: RemoteFile) -> Path:
        """The file's place."""
        return self.out / file.path

    def bytes_here(self, files: Iterable[RemoteFile]) -> int:
        """How many bytes of ``files`` need not travel any more."""
        return sum(
            file.size if self.target(file).exists() else min(size_of(self.part_path(file)), file.size) for file in files
        )

    def check_space(self) -> None:
        """Raise UserError where the disk has no room for what is still to come."""
        check_space(self.out, sum(file.size for file in self.files) - self.bytes_here(self.files))

    def check_sizes(self, source: str) -> None:
        """Raise UserError where a place holds a file of another size than ``source``, such as "the release", says."""
        for file in self.files:
            target = self.target(file)
            if target.exists() and size_of(target) != file.size:
                raise UserError(
                    f"{target}: has {size_of(target):,} bytes; expected {file.size:,} as in {source} (remove it to fetch it)"
                )


def describe(url: str, path: str) -> RemoteFile:
    """What the hub states about the file at ``url``, in the headers of its answer; ``path`` is handed on.

    Raises UserError without a network or permission, where there is no such file, and where size or checksum are not
    stated.
    """
    headers = persist(lambda: _head(url), url, retries=2)
    checksum = headers.get("X-Linked-Etag", headers.get("ETag", "")).removeprefix("W/").strip('"')
    size = headers.get("X-Linked-Size", headers.get("Content-Length", ""))
    if not size.isdecimal() or not re.fullmatch(CHECKSUM, checksum):
        raise UserError(f"{url}: no size or checksum is stated; expected a hub that gives both")
    return RemoteFile(path, int(size), checksum)


def _head(url: str):
    """Headers of the answer that describes the file: of a large one the hub's, not those of the store that it refers to."""
    for _ in range(5):
        headers = build_hf_headers(library_name="mindtuner") | {"Accept-Encoding": "identity"}
        response = get_session().head(url, headers=headers, follow_redirects=False, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
        hf_raise_for_status(response)
        target = urljoin(url, response.headers.get("Location", url))
        if target == url or "X-Linked-Etag" in response.headers or urlsplit(target).netloc != urlsplit(url).netloc:
            break
        url = target  # a repository that was renamed
    return response.headers


def bring(url: str, target: Path, part: Path, file: RemoteFile, bar) -> None:
    """Put a file into its place, verified; what ``part`` has of it need not travel again. ``bar`` counts bytes.

    Raises UserError without network or permission, and for a file with another checksum, which is removed.
    """
    bar.update(min(size_of(part), file.size))
    persist(lambda: receive(url, part, file.size, bar), str(target), lambda: size_of(part))
    move_verified(part, target, checksum_of(part, file.checksum), file.checksum)


def move_verified(part: Path, target: Path, found: str, expected: str, name: str = "checksum") -> None:
    """Put a part that is whole into its place. Raises UserError where it has another checksum; then it is removed."""
    if found != expected:
        part.unlink()
        raise UserError(
            f"{target}: arrived with {name} {found}; expected {expected} (it was removed: the same command fetches it again)"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(part, target)


def receive(url: str, part: Path, size: int, bar, headers: Mapping[str, str] | None = None) -> None:
    """Append to ``part`` what it lacks of ``size`` bytes. ``headers``: by default a hub's, with its login.

    Raises UserError where the server sends more; then the part is removed.
    """
    with part.open("ab") as out:
        have = out.tell()
        if have > size:
            out.truncate(0)
            have = 0
        if have == size:
            return
        headers = dict(build_hf_headers(library_name="mindtuner") if headers is None else headers)
        headers["Accept-Encoding"] = "identity"  # ranges count plain bytes
        if have:
            headers["Range"] = f"bytes={have}-"
        with get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
            hf_raise_for_status(response)
            if have and response.status_code != 206:  # the server does not do ranges: it begins again
                out.truncate(0)
                bar.update(-have)
                have = 0
            for chunk in response.iter_bytes():
                have += len(chunk)
                if have > size:  # another file, or a body without an end
                    break
                out.write(chunk)
                out.flush()  # what a kill finds in the buffer would be lost
                bar.update(len(chunk))
    if have > size:
        part.unlink()
        raise UserError(f"{url}: sends more than the {size:,} bytes that were announced; expected no more (nothing is kept)")
    if size_of(part) < size:
        raise ConnectionError("the connection was closed early")


def persist(
    action: Callable,
    where: str,
    arrived: Callable[[], int] = lambda: 0,
    retries: int = 5,
    refusal: Callable[[str, int, HfHubHTTPError], str] | None = None,
):
    """Do ``action``, again after a dropped connection or a busy server, up to ``retries`` times without a new byte.

    ``refusal(where, status, error)`` says what a server's refusal means, by default a hub's.
    """
    failures = 0
    cause: Exception
    while True:
        before = arrived()
        try:
            return action()
        except OfflineModeIsEnabled as error:
            raise UserError(f"{where}: HF_HUB_OFFLINE is set; expected it unset to fetch anything") from error
        except HfHubHTTPError as error:
            status, cause = error.response.status_code, error
            if status < 500 and status not in (408, 429):
                raise UserError((refusal or _refusal)(where, status, error)) from error
            problem = f"HTTP {status}"
        except _DROPPED as error:
            problem, cause = " ".join(str(error).split()) or type(error).__name__, error
        failures = 1 if arrived() > before else failures + 1
        if failures > retries:
            raise UserError(
                f"{where}: no connection ({problem}), tried {failures} times; expected a network and a "
                "server that answers (the same command goes on from here)"
            ) from cause
        time.sleep(WAIT_S * 2 ** (failures - 1))


def check_space(folder: Path, needed: int) -> None:
    """Raise UserError where the disk of ``folder``, which need not exist yet, has no room for ``needed`` bytes."""
    existing = folder
    while not existing.exists():
        existing = existing.absolute().parent
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise UserError(
            f"{folder}: {free / 1e9:.2f} GB free on its disk; expected {needed / 1e9:.2f} GB, which are still to come"
        )


def checksum_of(path: Path, like: str, tick: Callable[[int], object] = lambda n: None) -> str:
    """SHA-256; or where ``like`` is a SHA-1, git's blob id: the SHA-1 of a header with the size, and the bytes."""
    if len(like) == 64:
        digest = hashlib.sha256()
    else:
        digest = hashlib.sha1(f"blob {size_of(path)}\0".encode(), usedforsecurity=False)
    with path.open("rb") as stream:
        while data := stream.read(_READ):
            digest.update(data)
            tick(len(data))
    return digest.hexdigest()


def size_of(path: Path) -> int:
    """Bytes of a file, 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


def in_words(number: int) -> str:
    """Bytes for people: 22.1 GB."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if number >= unit:
            return f"{number / unit:.1f} {name}"
    return f"{number} B"


def _refusal(where: str, status: int, error: HfHubHTTPError) -> str:
    if status in (401, 403):
        return (
            f"{where}: not open to you, or not there (HTTP {status}); expected a public repository, or a login that "
            "may read it (hf auth login, or HF_TOKEN)"
        )
    if status == 404:
        what = "revision" if isinstance(error, RevisionNotFoundError) else "repository, revision or file"
        return f"{where}: no such {what} (HTTP 404); expected one that the hub has"
    return f"{where}: refused (HTTP {status}); expected a hub that answers"
