"""A folder of released weights: fill it from the hub or from what a machine already has, and say what is in it.

``weights.json`` in the folder says which files are whole: their checksum was right when they came. A file whose size still
is the one noted there is not read again, unless ``check`` is told to. Files grow in a hidden folder, see ``download``.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, hf_hub_url
from safetensors import SafetensorError, safe_open

from mindtuner import download
from mindtuner.claims import alone
from mindtuner.download import RemoteFile, checksum_of, size_of
from mindtuner.errors import UserError
from mindtuner.files import atomic_path, read_json, write_json
from mindtuner.published_weights.manifest import MANIFEST, WeightFile, Weights
from mindtuner.runtime import progress

RECORD, WORK = "weights.json", ".fetch-weights.part"
ROUNDED = 0.01  # how far a size can be from a rounded one


@dataclass(frozen=True)
class FileState:
    """What is here of one file.

    ``state``: whole (its checksum was right), converted, unverified (only its size is known to be right), missing, cut or
    wrong · ``here``: bytes that need not travel any more
    """

    file: WeightFile
    state: str
    here: int

    @property
    def to_come(self) -> int:
        """Bytes that still have to travel where the file is missing, else 0."""
        return max(0, self.file.about - self.here) if self.state == "missing" else 0


def choose(only: Iterable[str] | None) -> list[Weights]:
    """The weights of these names, all for None. Raises UserError for a name that there is not."""
    if only is None:
        return list(MANIFEST)
    names, known = list(only), [weights.name for weights in MANIFEST]
    for name in names:
        if name not in known:
            raise UserError(f"only: is {name!r}; expected some of {', '.join(known)}")
    return [weights for weights in MANIFEST if weights.name in names]


def look(out: str | Path, chosen: Iterable[Weights], hashes: bool = False) -> list[tuple[Weights, list[FileState]]]:
    """The state of each file. Without ``hashes`` only sizes are looked at, with them every byte is read.

    Raises UserError where ``out`` is a file or its record is damaged.
    """
    out = Path(out)
    noted = _Folder.open(out).files
    return [
        (weights, [_state(out, weights, file, noted.get(file.path), hashes) for file in weights.files]) for weights in chosen
    ]


def fetch(out: str | Path, chosen: Iterable[Weights], source: str | Path | None = None, say=print) -> None:
    """Bring all files of these weights into ``out``, from the folder ``source`` where it has them, else from the hub.

    From ``source``, name, size and checksum must fit; a file becomes a hard link where the disk allows it, else a copy. The
    hub is the one of the environment variable HF_ENDPOINT, or huggingface.co. Stopped at any moment, a fetch goes on where it
    was. Converted weights are not fetched again; room for a conversion that is still to come is asked for too.

    Raises UserError without room, network or permission, for a file with another checksum (one that was downloaded is
    removed, one that was there before is left alone), where the hub states another checksum than the manifest, and where
    another process fetches into the same folder.
    """
    folder, chosen = _Folder.open(Path(out)), list(chosen)
    found = _index(source) if source is not None else {}
    for weights, file in _wanted(folder.path, chosen):
        checksum = file.sha256 or _cached_checksum(weights, file, found)
        if not folder.verified(weights, file) and checksum:
            folder.adopt(weights, file, checksum, found, say)
    described = []
    for weights, file in _wanted(folder.path, chosen):
        if (folder.path / file.path).exists():
            continue
        at = _describe(weights, file)
        if file.sha256 or not folder.adopt(weights, file, at.checksum, found, say):
            described.append((weights, file, at))
    work = folder.path / WORK
    here = sum(min(size_of(work / at.checksum), at.size) for _, _, at in described)
    to_convert = sum(weights.converted[1] for weights in chosen if weights.converted and not is_converted(out, weights))
    download.check_space(folder.path, sum(at.size for _, _, at in described) - here + to_convert)
    try:
        with (
            alone(folder.path),
            progress((), "fetch", total=sum(at.size for _, _, at in described), unit="B") as bar,
        ):
            work.mkdir(parents=True, exist_ok=True)
            bar.unit_scale = True
            for weights, file, at in described:
                bar.set_postfix_str(file.path)
                download.bring(_url(weights, file), folder.path / file.path, work / at.checksum, at, bar)
                folder.note(weights, file, at)
            if not any(work.iterdir()):  # parts of other weights stay
                work.rmdir()
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written ({error.strerror or error}); expected free space and write permission"
        ) from error


def is_converted(out: str | Path, weights: Weights) -> bool:
    """Whether the converted folder is there and whole."""
    if weights.converted is None:
        return False
    folder = Path(out) / weights.converted[0]
    tensors = sorted(folder.glob("*/*.safetensors"))
    if not (folder / "mindtuner.json").is_file() or not tensors:
        return False
    try:
        for path in tensors:
            with safe_open(path, "pt"):  # reads the header and compares it with the size
                pass
    except (SafetensorError, OSError):
        return False
    return True


def _state(out: Path, weights: Weights, file: WeightFile, noted: dict | None, hashes: bool) -> FileState:
    path = out / file.path
    if not path.exists():
        if is_converted(out, weights):
            return FileState(file, "converted", file.about)
        return FileState(file, "missing", size_of(out / WORK / file.sha256) if file.sha256 else 0)
    size = size_of(path)
    wrong = _size_differs(size, file, noted)
    if wrong:
        return FileState(file, "cut" if size < wrong else "wrong", size)
    checksum = noted["checksum"] if noted else file.sha256
    if hashes and checksum:
        return FileState(file, "whole" if checksum_of(path, checksum) == checksum else "wrong", size)
    return FileState(file, "whole" if noted else "unverified", size)


def _size_differs(size: int, file: WeightFile, noted: dict | None) -> int:
    """0 where a file of ``size`` bytes can be the right one, else the bytes that it should have."""
    right = noted["size"] if noted else file.size
    if right is not None:
        return 0 if size == right else right
    return 0 if abs(size - file.about) <= 1 + ROUNDED * file.about else file.about


def _wanted(out: Path, chosen: Iterable[Weights]) -> Iterator[tuple[Weights, WeightFile]]:
    for weights in chosen:
        if not is_converted(out, weights):
            yield from ((weights, file) for file in weights.files)


def _describe(weights: Weights, file: WeightFile) -> RemoteFile:
    """Size and checksum of the file: the manifest's where it has both, else as the hub states them."""
    if file.size is not None and file.sha256:
        return RemoteFile(file.path, file.size, file.sha256)
    url = _url(weights, file)
    stated = download.describe(url, file.path)
    if file.sha256 and stated.checksum != file.sha256:
        raise UserError(f"{url}: the hub states checksum {stated.checksum}; expected {file.sha256}, the released file")
    return stated


def _url(weights: Weights, file: WeightFile) -> str:
    return hf_hub_url(weights.repo, file.name, repo_type=weights.kind, revision=weights.revision, endpoint=constants.ENDPOINT)


def _index(source: str | Path) -> dict[str, list[Path]]:
    """All files under a folder, by name. The hub's own cache may be such a folder: its names are links."""
    source = Path(source)
    if not source.is_dir():
        raise UserError(f"source: is {source}, which is no folder; expected one that holds released weights")
    found: dict[str, list[Path]] = {}
    for folder, _, names in sorted(os.walk(source)):
        for name in names:
            found.setdefault(name, []).append(Path(folder) / name)
    return found


def _cached_checksum(weights: Weights, file: WeightFile, found: dict[str, list[Path]]) -> str | None:
    """The checksum that the hub stated when it gave the file to its own cache.

    Known where one of those found lies in such a cache: ``models--OWNER--NAME/snapshots/COMMIT/FILE`` is a link there to
    ``blobs/CHECKSUM``. None where none does.
    """
    repo = f"{weights.kind}s--{weights.repo.replace('/', '--')}"
    for path in found.get(Path(file.name).name, ()):
        blob = path.resolve()
        inside = path.absolute().as_posix().rpartition(f"/{repo}/snapshots/")[2].partition("/")
        right = inside[2] == file.name and weights.revision in ("main", inside[0])
        if right and blob.parent.name == "blobs" and re.fullmatch(download.CHECKSUM, blob.name):
            return blob.name
    return None


@dataclass
class _Folder:
    """The weights folder and the entries of its record."""

    path: Path
    files: dict[str, dict]

    @classmethod
    def open(cls, path: Path) -> _Folder:
        if path.exists() and not path.is_dir():
            raise UserError(f"{path}: is a file; expected a folder for the weights")
        record = path / RECORD
        if not record.exists():
            return cls(path, {})
        files = read_json(record).get("files")
        if not isinstance(files, dict) or not all(
            isinstance(entry, dict) and isinstance(entry.get("size"), int) and isinstance(entry.get("checksum"), str)
            for entry in files.values()
        ):
            raise UserError(
                f"{record}: files is no table of size and checksum; expected what 'mindtuner fetch weights' "
                "wrote (remove it to verify all files again)"
            )
        return cls(path, files)

    def note(self, weights: Weights, file: WeightFile, at: RemoteFile) -> None:
        """Write down that the file is whole."""
        self.files[file.path] = {
            "size": at.size,
            "checksum": at.checksum,
            "licence": weights.licence,
            "source": f"{weights.source}@{weights.revision}:{file.name}",
        }
        write_json(self.path / RECORD, {"files": self.files})

    def verified(self, weights: Weights, file: WeightFile) -> bool:
        """Whether the file is there. Raises UserError where it is not the released one."""
        path, noted = self.path / file.path, self.files.get(file.path)
        if not path.exists():
            return False
        wrong = _size_differs(size_of(path), file, noted)
        if wrong:
            raise UserError(f"{path}: has {size_of(path):,} bytes; expected {wrong:,} (remove it to fetch it)")
        if not noted:
            checksum = file.sha256 or _describe(weights, file).checksum
            if checksum_of(path, checksum) != checksum:
                raise UserError(f"{path}: is not the released file; expected checksum {checksum} (remove it to fetch it)")
            self.note(weights, file, RemoteFile(file.path, size_of(path), checksum))
        return True

    def adopt(self, weights: Weights, file: WeightFile, checksum: str, found: dict[str, list[Path]], say) -> bool:
        """Link or copy the file from among those that were found, if one of them is right."""
        candidates = [
            path
            for path in found.get(Path(file.name).name, ())
            if path.is_file() and not _size_differs(size_of(path), file, None)
        ]
        for path in sorted(candidates, key=lambda path: not path.as_posix().endswith(file.name)):
            if checksum_of(path, checksum) != checksum:
                say(f"{path}: not used, it is not {file.path} (another checksum)")
                continue
            target = self.path / file.path
            say(f"{target}: {_link(path, target)} from {path}")
            self.note(weights, file, RemoteFile(file.path, size_of(target), checksum))
            return True
        return False


def _link(path: Path, target: Path) -> str:
    with atomic_path(target) as part:
        try:
            os.link(path.resolve(), part)
            return "linked"
        except OSError:  # another disk, or one without links
            download.check_space(target.parent, size_of(path))
            shutil.copyfile(path, part)
            return "copied"
