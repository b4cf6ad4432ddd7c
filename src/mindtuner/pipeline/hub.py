"""Folders that travel: written as the Hugging Face hub expects them, sent there, and fetched from there.

``model.safetensors``   the weights, with the header of ``base.safetensors`` or ``fingerprint.safetensors``
``METHOD.safetensors``  those of a fingerprint's other methods, where they were asked for
``config.json``         ``library_name``, ``version``, ``kind`` (base or fingerprint), ``files``, ``config``, ``card``
``README.md``           the model card

Safetensors, JSON and Markdown are all that is read and written.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

import mindtuner
from mindtuner.config import Config, as_dict
from mindtuner.data.pictures import TRAINED_ON
from mindtuner.download import CHECKSUM, checksum_of, persist
from mindtuner.errors import UserError
from mindtuner.files import filled, read_json, write_json
from mindtuner.training import read_card

LIBRARY = "mindtuner"
CONFIG, MODEL, README = "config.json", "model.safetensors", "README.md"
BASE, FINGERPRINT = "base", "fingerprint"
_WEIGHTS = re.compile(r"\w+\.safetensors")


def is_id(text: str) -> bool:
    """Whether ``text`` has the form of an id on the hub: ``owner/name`` or ``owner/name@revision``."""
    name, at, revision = text.partition("@")
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1 and bool(revision) == bool(at)


def is_elsewhere(given: str | Path) -> bool:
    """Whether ``given`` is an id on the hub, and no path that is here, or that was meant to be: whose parent is here."""
    path = Path(given)
    return not path.exists() and not path.parent.exists() and is_id(_text(given))


def _text(given: str | Path) -> str:
    return given.as_posix() if isinstance(given, Path) else given


def is_saved(folder: Path) -> bool:
    """Whether a folder was written by ``save``, or fetched."""
    return (folder / CONFIG).is_file()


def read_config(folder: Path, kind: str) -> dict:
    """What config.json says. Raises UserError where it is missing, damaged, not of this library, or of another ``kind``."""
    path = folder / CONFIG
    found = read_json(path)
    if found.get("library_name") != LIBRARY:
        raise UserError(f"{path}: library_name is {found.get('library_name')!r}; expected {LIBRARY!r}")
    if found.get("kind") != kind:
        raise UserError(f"{path}: kind is {found.get('kind')!r}; expected {kind!r}")
    files = found.get("files")
    if not isinstance(files, list) or MODEL not in files or not all(_WEIGHTS.fullmatch(str(name)) for name in files):
        raise UserError(f"{path}: files is {files!r}; expected a list of {MODEL} and others of this kind")
    return found


@contextlib.contextmanager
def naming(repo_id: str | Path) -> Iterator[None]:
    """Have errors, which name files in the hub's cache, begin with the id that was asked for."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{_text(repo_id)}: {error}") from error


@contextlib.contextmanager
def written(folder: str | Path, kind: str, config: Config) -> Iterator[Path]:
    """Yield an empty folder for weights and model card, which replace what an earlier ``save`` left in ``folder``.

    ``config.json`` comes with them, and says what the card of the weights says, but for the pictures trained on.

    Raises UserError where ``folder`` holds anything else, or cannot be written to.
    """
    folder = Path(folder)
    earlier = _refuse_foreign(folder)
    with filled(folder, README) as part:
        yield part
        card = read_card(part / MODEL)
        write_json(
            part / CONFIG,
            {
                "library_name": LIBRARY,
                "version": mindtuner.__version__,
                "kind": kind,
                "files": sorted(path.name for path in part.glob("*.safetensors")),
                "config": as_dict(config),
                "card": {key: value for key, value in card.items() if key not in ("config", TRAINED_ON)},
            },
        )
        for name in earlier:
            (folder / name).unlink(missing_ok=True)


def _refuse_foreign(folder: Path) -> list[str]:
    """The files that an earlier ``save`` left there, config.json first: what is half replaced should not be read."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; expected a folder for the output")
    found = sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []
    if not found:
        return []
    if CONFIG not in found or read_json(folder / CONFIG).get("library_name") != LIBRARY:
        raise UserError(f"{folder}: holds {found[0]}; expected an empty folder, or one that an earlier save wrote")
    return [CONFIG, README, *(name for name in found if _WEIGHTS.fullmatch(name))]


def here(given: str | Path, kind: str) -> Path:
    """The folder or file ``given``, or where it was fetched to from the hub. Raises UserError as ``fetch`` does."""
    return fetch(given, kind)[1] if is_elsewhere(given) else Path(given)


def fetch(given: str | Path, kind: str) -> tuple[str, Path]:
    """Bring a base or a fingerprint from the hub into its own cache, where it is not there yet.

    Returns
    -------
    id : str
        ``owner/name@commit``
    folder : Path
        In the cache, of ``HF_HOME``.

    Raises
    ------
    UserError
        Naming the id, where the repository is missing, private or none of ours, a file is missing or damaged, or neither the
        hub nor a copy in the cache is there.
    """
    given = _text(given)
    name, _, revision = given.partition("@")
    folder = _fetched(given, name, CONFIG, revision or None).parent
    commit = folder.name  # the cache keeps a folder for each commit
    with naming(given):
        files = read_config(folder, kind)["files"]
    for file in files:
        _fetched(given, name, file, commit)
    return f"{name}@{commit}", folder


def _fetched(given: str, name: str, file: str, revision: str | None) -> Path:
    def get() -> str:
        try:
            return hf_hub_download(name, file, revision=revision, library_name=LIBRARY, library_version=mindtuner.__version__)
        except RemoteEntryNotFoundError as error:
            raise UserError(f"{given}: holds no {file}; expected what save or push_to_hub of mindtuner wrote") from error
        except LocalEntryNotFoundError as error:
            raise UserError(
                f"{given}: no such folder, no hub that answers, and no {file} of it in the cache; expected a network, and "
                "HF_HUB_OFFLINE unset"
            ) from error
        except (HTTPError, ConnectionError):
            raise
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{given}: {file} cannot be fetched ({reason}); expected a hub, and free space") from error

    path = Path(persist(get, given, retries=1))
    blob = path.resolve()  # the cache names it by the checksum that the hub stated, where its system has links
    if re.fullmatch(CHECKSUM, blob.name) and checksum_of(blob, blob.name) != blob.name:
        blob.unlink()
        path.unlink(missing_ok=True)
        raise UserError(
            f"{given}: {file} arrived damaged; expected one with checksum {blob.name} (it was removed: the same call fetches "
            "it again)"
        )
    return path


def push(folder: Path, repo_id: str, private: bool | None = None) -> str:
    """Create the repository where there is none, and send a folder there as one commit.

    Returns ``owner/name@commit``. Raises UserError where the hub refuses or does not answer.
    """
    api = HfApi(library_name=LIBRARY, library_version=mindtuner.__version__)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload with mindtuner")
    except HfHubHTTPError as error:
        raise UserError(
            f"{repo_id}: refused (HTTP {error.response.status_code}); expected a login that may write there "
            "(hf auth login, or HF_TOKEN)"
        ) from error
    except (HTTPError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{repo_id}: was not sent ({reason}); expected a network and a hub that answers") from error
    return f"{repo_id}@{commit.oid}"
