"""A public bucket of an object store that speaks S3: listed and read over plain HTTP, without an account.

An object's ETag is the MD5 of its bytes or, where it was sent in parts, the MD5 of the parts' MD5s and their number; the size
of a part is asked for. So every byte is verified either way.
"""

from __future__ import annotations

import hashlib
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import get_session, hf_raise_for_status

from mindtuner.download import RemoteFile, move_verified, persist, receive, size_of
from mindtuner.errors import UserError

HEADERS = {"User-Agent": "mindtuner"}  # and no login: a hub's is none of this server's business
_ETAG = r"[0-9a-f]{32}(-[1-9]\d{0,4})?"
_LIST_AT_MOST = 16 * 2**20  # bytes of one page of a list, which has 1,000 objects
_READ = 2**20


@dataclass(frozen=True)
class Bucket:
    """A bucket ``name`` at the address ``endpoint``, such as https://s3.us-west-2.amazonaws.com."""

    endpoint: str
    name: str

    def __post_init__(self):
        if urlsplit(self.endpoint).scheme not in ("http", "https") or not urlsplit(self.endpoint).hostname:
            raise UserError(f"endpoint: is {self.endpoint!r}; expected an address such as https://s3.us-west-2.amazonaws.com")
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{2,62}", self.name):
            raise UserError(f"bucket: is {self.name!r}; expected the name of a bucket, such as laion-fmri")

    def url(self, path: str = "") -> str:
        """Where an object, or the bucket, is."""
        return f"{self.endpoint.rstrip('/')}/{self.name}" + (f"/{quote(path)}" if path else "")

    def list(self, prefix: str) -> Iterator[RemoteFile]:
        """All objects whose key begins so. Raises UserError without a network, or where the bucket is not open."""
        for page in self._pages(prefix=prefix):
            for item in page.iter("Contents"):
                yield _stored(item, self.url(prefix))

    def folders(self, prefix: str) -> list[str]:
        """What keys that begin with ``prefix`` go on with, up to the next slash. Raises UserError as ``list`` does."""
        found = [
            item.findtext("Prefix", "")
            for page in self._pages(prefix=prefix, delimiter="/")
            for item in page.iter("CommonPrefixes")
        ]
        return [key.removeprefix(prefix).rstrip("/") for key in found]

    def _pages(self, **query: str) -> Iterator[ElementTree.Element]:
        token: dict[str, str] = {}
        while True:
            url, where = f"{self.url()}?{urlencode({'list-type': '2', **query, **token})}", self.url(query["prefix"])
            page = _parsed(persist(lambda url=url: _page(url), where, retries=2, refusal=_refusal), where)
            yield page
            if page.findtext("IsTruncated") != "true":
                return
            token = {"continuation-token": page.findtext("NextContinuationToken", "")}
            if not token["continuation-token"]:  # the server would begin again, for ever
                raise UserError(f"{where}: the list goes on without saying where; expected a server of S3's lists, version 2")

    def bring(self, file: RemoteFile, target: Path, part: Path, bar) -> None:
        """Put an object into its place, verified; what ``part`` has of it need not travel again. ``bar`` counts bytes.

        Raises UserError without network or permission, where the object was replaced meanwhile, and for other bytes than
        its ETag says, which are removed.
        """
        url = self.url(file.path)
        bar.update(min(size_of(part), file.size))
        headers = HEADERS | {"If-Match": f'"{file.checksum}"'}
        persist(lambda: receive(url, part, file.size, bar, headers), str(target), lambda: size_of(part), refusal=_refusal)
        found = etag_of(part, self._part_size(file) if "-" in file.checksum else None)
        move_verified(part, target, found, file.checksum, "ETag")

    def _part_size(self, file: RemoteFile) -> int:
        """Bytes of each part, the last one aside, in which an object was sent."""
        url = f"{self.url(file.path)}?partNumber=1"

        def ask() -> str:
            headers = HEADERS | {"Accept-Encoding": "identity"}
            response = get_session().head(url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
            hf_raise_for_status(response)
            return response.headers.get("Content-Length", "")

        size, parts = persist(ask, url, retries=2, refusal=_refusal), int(file.checksum.partition("-")[2])
        if not size.isdecimal() or not int(size) or -(-file.size // int(size)) != parts:
            raise UserError(f"{url}: states a part of {size or 'no'} bytes; expected {parts} parts of {file.size} in all")
        return int(size)


def etag_of(path: Path, part_size: int | None = None) -> str:
    """The ETag of a file that was sent whole, or in parts of so many bytes."""
    digests = []
    with path.open("rb") as stream:
        while True:
            digest, left = hashlib.md5(usedforsecurity=False), part_size or size_of(path)
            while left and (data := stream.read(min(left, _READ))):
                digest.update(data)
                left -= len(data)
            digests.append(digest)
            if stream.tell() >= size_of(path):
                break
    if part_size is None:
        return digests[0].hexdigest()
    joined = b"".join(digest.digest() for digest in digests)
    return f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(digests)}"


def _page(url: str) -> bytes:
    with get_session().stream("GET", url, headers=HEADERS, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
        hf_raise_for_status(response)
        page = b""
        for data in response.iter_bytes():
            page += data
            if len(page) > _LIST_AT_MOST:
                raise UserError(f"{url}: answers with more than {_LIST_AT_MOST} bytes; expected a list of objects")
    return page


def _parsed(page: bytes, where: str) -> ElementTree.Element:
    """A page of a list, without its namespace."""
    try:
        if b"<!" in page:  # a document type could name entities, which grow or point elsewhere; a list has none
            raise ValueError("it declares a document type")
        root = ElementTree.fromstring(page)
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f"{where}: the answer is no list of objects ({error}); expected a bucket that speaks S3") from error
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    if root.tag != "ListBucketResult":
        raise UserError(f"{where}: the answer is no list of objects ({root.tag}); expected a bucket that speaks S3")
    return root


def _stored(item: ElementTree.Element, where: str) -> RemoteFile:
    key, size, etag = (item.findtext(name, "") for name in ("Key", "Size", "ETag"))
    if any(step in ("", ".", "..") or "\\" in step for step in key.removesuffix("/").split("/")):
        raise UserError(f"{where}: has a key {key!r}; expected the path of a file")
    if not size.isdecimal() or not re.fullmatch(_ETAG, etag.strip('"')):
        raise UserError(f"{where}: {key} has size {size!r} and ETag {etag!r}; expected a number and an MD5")
    return RemoteFile(key, int(size), etag.strip('"'))


def _refusal(where: str, status: int, error: HfHubHTTPError) -> str:
    meaning = {
        403: "not open to the public; expected an object that its owner lets everybody read",
        404: "no such bucket or object; expected one that is there",
        412: "was replaced while it was fetched; expected the one that was listed (the same command begins it again)",
    }
    return f"{where}: HTTP {status}, {meaning.get(status, 'refused; expected a server that speaks S3')}"
