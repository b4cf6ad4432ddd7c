"""Folders that one run owns: a list of what it wrote there, and a lock while it writes.

The first file in such a folder is its list, ``.mindtuner-run``. The first line says whose the folder is; each further line
names a file, before that file is written. So a file that is not listed is not the run's, and is never deleted. A kill at any
moment leaves at most names of files that are not there.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from filelock import FileLock, Timeout

from mindtuner import temporary
from mindtuner.errors import UserError

LIST, LOCK = ".mindtuner-run", ".mindtuner-lock"
SETTINGS = "config.yaml"  # of a run, which goes on only where they are the same
RUN = "run"  # the kind of all folders but those of datasets, whose kind is the verb that writes them
_logger = logging.getLogger(__name__)


@dataclass
class Claim:
    """What a folder's list says.

    kind : which verbs may replace it · settings : digest of the run's · files : in the order of writing · folders : those
    within it that the run claimed too, and as what · finished : nothing is left to do · emptying : files were being deleted
    """

    kind: str
    settings: str
    files: dict[str, None] = field(default_factory=dict)
    folders: dict[str, str | None] = field(default_factory=dict)
    finished: bool = False
    emptying: bool = False
    lock: FileLock | None = None

    @property
    def whose(self) -> str:
        """What an outer run's list says of it."""
        return f"{self.kind} {self.settings}"


_held: dict[Path, Claim] = {}  # by this process


def goes_on(folder: str | Path, settings: str = "", kind: str = RUN, force: bool = False) -> bool:
    """Whether ``folder`` holds what an unfinished run of the same settings left; False where it is free.

    Raises UserError where it holds something else and ``force`` is not given, or anything that is not on its list.
    """
    folder = Path(folder)
    if (folder.exists() or folder.is_symlink()) and not folder.is_dir():
        what = "file" if folder.exists() else "link to nothing"
        raise UserError(f"{folder}: is a {what}; expected a folder for the output")
    claim = _read(folder)
    if claim is None:
        _refuse_unlisted(folder, force)
        return False
    same = _settings_of(folder, claim) == _digest(settings) and claim.kind == kind
    if same and not (force or claim.finished or claim.emptying):
        return True
    own, foreign = _contents(folder, claim)
    written = [path for path in own if path.name not in (LIST, LOCK) and not temporary.is_torn(path, alone=True)]
    if not (force or claim.emptying) and (foreign or written):
        remove_lock_of_the_dead(folder)
        raise UserError(f"{folder}: holds another run; expected an empty folder (or `force` to replace it)")
    if claim.kind != kind and written:
        raise UserError(
            f"{folder}: holds what mindtuner {claim.kind} wrote; expected an earlier run of the same kind, so `force` will "
            "not delete it (delete it by hand, or choose another folder)"
        )
    if foreign:
        raise UserError(
            f"{folder}: holds {foreign[0]}, which is not on the list of what its run wrote ({LIST}); expected no more, so "
            "`force` will not delete it (move it away, or choose another folder)"
        )
    return False


def claim_folder(folder: str | Path, settings: str = "", kind: str = RUN, force: bool = False) -> bool:
    """Make ``folder`` this run's until ``releasing`` ends: True where it goes on with what was left, else it is empty.

    Raises UserError as ``goes_on`` does, where another process writes there, and where the disk refuses.
    """
    folder = Path(folder)
    goes_on(folder, settings, kind, force)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        place = folder.resolve()
        if place in _held and _held[place].lock is not None:  # by a caller
            return goes_on(folder, settings, kind, force)
        claim = Claim(kind, _digest(settings))
        _put_on_list(place, "folders", claim.whose)
        lock = take_lock(folder / LOCK, f"{folder}: another process writes there")
        try:
            left = goes_on(folder, settings, kind, force)
            found = _read(folder)
            if left and found is not None:
                claim = found
                _end_line(folder)
                for inner in {PurePosixPath(path).parent for path in claim.files if not _is_outside(path)}:
                    temporary.sweep(folder / inner, alone=True)
            else:
                if found is not None:
                    _delete(folder, found)
                temporary.sweep(folder)
                (folder / LIST).unlink(missing_ok=True)  # torn
                _append(folder, {"kind": kind, "settings": claim.settings})
        except BaseException:
            drop_lock(lock)
            raise
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error}); expected a writable folder") from error
    claim.lock = lock
    _hold(place, claim)
    return left


def join(folder: str | Path) -> None:
    """Have this process, a worker of the one that claimed ``folder``, list there what it writes."""
    if (claim := _read(Path(folder))) is not None:
        _hold(Path(folder).resolve(), claim)


@contextlib.contextmanager
def releasing() -> Iterator[None]:
    """At the end, let go of the folders that were claimed inside; serves as a decorator too."""
    before = set(_held)
    try:
        yield
    finally:
        for folder in _held.keys() - before:
            claim = _held[folder]
            if not before & set(folder.parents):  # else what the outer run writes there still goes on its own list
                del _held[folder]
            if claim.lock is None:
                continue
            if not any((folder / name).exists() for name in (*claim.files, *claim.folders)):
                (folder / LIST).unlink(missing_ok=True)  # stopped before it wrote anything
            drop_lock(claim.lock)
            claim.lock = None


def listed(folder: str | Path) -> tuple[str, ...]:
    """Names of the files that a run lists in ``folder``, which may not be there; none where there is no list."""
    claim = _read(Path(folder))
    return () if claim is None else tuple(claim.files)


def record(*paths: Path) -> None:
    """List files that are about to be written, where they lie in a folder that this process has claimed."""
    for path in paths if _held else ():
        _put_on_list(path.parent.resolve() / path.name, "files")


def finish(folder: str | Path) -> None:
    """Put down that the run is over: its folder is refused from now on."""
    folder = Path(folder)
    _held[folder.resolve()].finished = True
    _append(folder, {"finished": True})


def empty(folder: str | Path) -> None:
    """Delete what a claimed folder's run wrote there so far, the last file first."""
    folder = Path(folder)
    claim = _held[folder.resolve()]
    own, _ = _contents(folder, claim)
    _remove([path for path in own if path not in (folder / LIST, folder / LOCK)], folder)


def remove(folder: str | Path) -> None:
    """Delete a folder that the run claimed within its own, as far as the run wrote it; nothing, where it claimed none."""
    folder = Path(folder)
    claim = _held.pop(folder.resolve(), None)
    if claim is None:
        return
    own, _ = _contents(folder, claim)
    _append(folder, {"emptying": True})
    _remove(own, folder)
    with contextlib.suppress(OSError):  # it holds something else
        folder.rmdir()


def take_lock(path: Path, problem: str) -> FileLock:
    """Lock a file against other processes; whoever holds it loses it when it ends, however it ends.

    Raises UserError, which begins with ``problem``, where another process has it.
    """
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise UserError(f"{problem}; expected one at a time (wait until it is done, or choose another folder)") from error
    except NotImplementedError as error:
        raise UserError(f"{path}: cannot be locked; expected a disk with locks (flock)") from error
    return lock


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder that keeps an account of its own of what is done.

    Raises UserError where one is there, or the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = take_lock(folder / LOCK, f"{folder}: another process writes there")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error}); expected a writable folder") from error
    try:
        yield
    finally:
        drop_lock(lock)


def drop_lock(lock: FileLock) -> None:
    """Unlock, and remove the file."""
    with contextlib.suppress(OSError):  # Windows deletes no file in use
        os.unlink(lock.lock_file)
    lock.release()
    if os.name == "nt":
        with contextlib.suppress(OSError):
            os.unlink(lock.lock_file)


def remove_lock_of_the_dead(folder: Path) -> None:
    """Of a run that is over, which nobody claims again: it may have been killed at its very end."""
    if (folder / LOCK).exists() and folder.resolve() not in _held:
        with contextlib.suppress(UserError, OSError):
            drop_lock(take_lock(folder / LOCK, f"{folder}: another process writes there"))


def _digest(settings: str) -> str:
    return hashlib.sha256(settings.encode()).hexdigest()[:16]


def _settings_of(folder: Path, claim: Claim) -> str:
    """Digest of the settings that stand in the folder, or with which it was claimed where the file is not there yet."""
    path = folder / SETTINGS
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if claim.kind == RUN and path.is_file() else claim.settings


def _read(folder: Path) -> Claim | None:
    """The list of a folder, None where it has none, or only the torn beginning of one."""
    try:
        lines = (folder / LIST).read_text(encoding="utf-8", errors="replace").split("\n")[:-1]  # the last line may be torn
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{folder / LIST}: cannot be read ({error.strerror or error}); expected a file") from error
    entries = []
    for line in lines:
        with contextlib.suppress(json.JSONDecodeError):  # torn: a file that is not listed is never deleted
            entries.append(json.loads(line))
    entries = [entry for entry in entries if isinstance(entry, dict)]
    if not entries or not {"kind", "settings"} <= set(entries[0]):
        return None
    claim = Claim(str(entries[0]["kind"]), str(entries[0]["settings"]))
    for entry in entries[1:]:
        for name in ("files", "folders"):
            if isinstance(entry.get(name), str):
                getattr(claim, name)[entry[name]] = entry.get("whose")
        claim.finished |= "finished" in entry
        claim.emptying |= "emptying" in entry
    return claim


def _append(folder: Path, entry: dict) -> None:
    line = (json.dumps(entry) + "\n").encode()
    try:
        file = os.open(folder / LIST, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            if os.write(file, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(file)
    except OSError as error:
        raise UserError(
            f"{folder / LIST}: cannot be written ({error.strerror or error}); expected free space and write permission"
        ) from error


def _end_line(folder: Path) -> None:
    """End a last line that a kill or a full disk tore."""
    with open(folder / LIST, "rb+") as file:
        if not file.read().endswith(b"\n"):
            file.write(b"\n")


def _hold(place: Path, claim: Claim) -> None:
    """Begin to list what is written there, and in folders within that the run claimed before it was stopped."""
    _held[place] = claim
    for name, whose in claim.folders.items():
        inner = None if _is_outside(name) or place / name in _held else _read(place / name)
        if inner is not None and inner.whose == whose:
            _held[place / name] = inner


def _put_on_list(path: Path, field: str, whose: str | None = None) -> None:
    """List ``path`` as one of ``files`` or ``folders`` in the innermost claimed folder that holds it, if there is one."""
    for folder in path.parents:
        if folder in _held:
            names, name = getattr(_held[folder], field), path.relative_to(folder).as_posix()
            known = name in names and names[name] == whose
            if not known and not any(map(temporary.is_one, path.relative_to(folder).parts)):
                _append(folder, {field: name} if whose is None else {field: name, "whose": whose})
                names[name] = whose
            return


def _refuse_unlisted(folder: Path, force: bool) -> None:
    """Refuse a folder without a list that holds anything."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name in (LIST, LOCK) or temporary.is_torn(path):
            continue
        if force:
            raise UserError(
                f"{folder}: holds {path.name} but no list ({LIST}) of what a run wrote; expected an empty folder, or a "
                "run of this version, so `force` will not delete it (empty it by hand, or choose another folder)"
            )
        raise UserError(f"{folder}: holds another run, or other files ({path.name}); expected an empty folder")


def _contents(folder: Path, claim: Claim) -> tuple[list[Path], list[str]]:
    """What a run wrote in ``folder``, the list and the lock included, the last first; and what it did not write, by name."""
    order = {name: number for number, name in enumerate(claim.files)}
    places = [folder]
    for inner, whose in claim.folders.items():
        found = None if _is_outside(inner) else _read(folder / inner)
        if found is not None and found.whose == whose:
            order |= {f"{inner}/{name}": len(order) + number for number, name in enumerate(found.files)}
        if not _is_outside(inner) and (found is None or found.whose == whose):  # it may have been claimed, and no more
            places.append(folder / inner)
    marks = {place / name for place in places for name in (LIST, LOCK)}
    own, foreign = [], []
    for place, folders, files in os.walk(folder):
        here = Path(place)
        links = [name for name in folders if (here / name).is_symlink()]
        torn = [name for name in folders if name not in links and temporary.is_torn(here / name, alone=True)]
        folders[:] = [name for name in folders if name not in links + torn]
        for path in (here / name for name in (*files, *links, *torn)):
            name = path.relative_to(folder).as_posix()
            if name in order or path in marks or temporary.is_torn(path, alone=True):
                own.append((-1 if path in marks else order.get(name, len(order)), path))
            else:
                foreign.append(name)
    return [path for _, path in sorted(own, reverse=True)], sorted(foreign)


def _is_outside(name: str) -> bool:
    return PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts


def _delete(folder: Path, claim: Claim) -> None:
    """Delete a run, and say so."""
    own, _ = _contents(folder, claim)
    files = [path for path in own if path.name not in (LIST, LOCK)]
    if files:
        names = sorted({path.relative_to(folder).parts[0] for path in files})
        shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
        size = sum(path.lstat().st_size for path in files if path.is_file()) / 1e6
        _logger.info("%s: deleting an earlier run, %d files, %.1f MB: %s", folder, len(files), size, shown)
        _append(folder, {"emptying": True})
    _remove([path for path in own if path != folder / LOCK], folder)


def _remove(files: list[Path], folder: Path) -> None:
    for path in files:
        temporary.end(path)
    for place, _, _ in os.walk(folder, topdown=False):
        if Path(place) != folder:
            with contextlib.suppress(OSError):  # it holds something
                os.rmdir(place)
