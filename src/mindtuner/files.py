"""Files that are either whole or absent: atomic writes, and run folders that never mix two runs."""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mindtuner.errors import UserError


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; move it there only if the block succeeds.

    What is written has the permissions that the umask gives, whoever wrote it: safetensors would leave files to their owner
    alone. Raises UserError where the disk is full or the folder cannot be written to.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        usual = stat.S_IMODE(temporary.stat().st_mode)
        temporary.unlink()
        yield temporary
        for file in temporary.rglob("*.safetensors") if temporary.is_dir() else [temporary]:
            if file.stat().st_nlink == 1:  # a link shares its permissions with another file, which is not ours
                file.chmod(usual)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); expected free space and write permission"
        ) from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        elif temporary.exists():
            temporary.unlink()


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically, with the line ends that it has, on Windows too."""
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | Path, value: object) -> None:
    """Write JSON atomically; NaN and infinities are refused (they are not JSON)."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: str | Path) -> dict:
    """Read a JSON object. Raises UserError where the file is missing or is not one."""
    path = Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found; expected a JSON file") from error
    except OSError as error:  # a part of the path is a file, or it may not be read
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); expected a JSON file") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); expected a JSON object") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a {type(value).__name__}; expected a JSON object")
    return value


def refuse_full_folder(path: str | Path, force: bool = False) -> None:
    """Raise UserError where ``path`` is a file, or holds anything and ``force`` is not given, or more than runs write."""
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file; expected a folder for the output")
    if path.is_dir() and any(path.iterdir()):
        if not force:
            raise UserError(f"{path}: holds another run; expected an empty folder (or `force` to replace it)")
        refuse_foreign(path)


def claim_folder(path: str | Path, force: bool = False) -> Path:
    """Return ``path`` as an empty folder that a run may fill.

    Raises UserError where it is a file, or holds anything and ``force`` is not given.
    """
    path = Path(path)
    refuse_full_folder(path, force)
    if path.is_dir() and any(path.iterdir()):
        shutil.rmtree(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); expected a writable folder") from error
    return path


def file_digest(path: str | Path) -> str:
    """16 hex digits over a file's bytes, which are not held in memory together."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while some := file.read(2**22):
            digest.update(some)
    return digest.hexdigest()[:16]


RUN_FILES = (
    "config.yaml",
    "log.jsonl",
    "results.json",
    "words.json",
    "report.html",
    "demo.png",
    "pictures.safetensors",
    "results.csv",
    "runs",
    "bases",
    "voxels.csv",
    "regions.csv",
    "fingerprint.png",
    "fingerprint.nii.gz",
    "fingerprint.*.func.gii",
    "per_image.safetensors",
    "painted",
    "base.safetensors",
    "fingerprint.safetensors",
    "base.checkpoint*",
    "data",
    *(
        f"{method}.{end}"
        for method in ("mindtuner", "ridge_only", "ridge", "full_finetune", "from_scratch", "shuffled_brain")
        for end in ("safetensors", "checkpoint*")
    ),
    "predictions.safetensors",
    "decoded.csv",
    "decoded_trials.csv",
    "scores.csv",
    "pictures",
    "recon_images",
    "dataset.json",
    "shared1000.npy",
    "coco_images_224_float16.hdf5",
    "COCO_73k_annots_curated.npy",
    "COCO_73k_subj_indices.hdf5",
    "brain_region_masks.hdf5",
    "betas_all_subj0?_fp32_renorm.hdf5",
    "wds",
    "truth",
    "cache",
    ".*.part",
)


def refuse_foreign(path: Path) -> None:
    """Refuse to delete a folder that holds anything but what our runs write, whatever ``--force`` says."""
    for entry in sorted(path.iterdir()):
        if not any(fnmatch.fnmatchcase(entry.name, name) for name in RUN_FILES):
            raise UserError(
                f"{path}: holds {entry.name}, which no run of mindtuner wrote; expected an earlier run, "
                "so `force` will not delete it"
            )


@contextlib.contextmanager
def filled(out: str | Path, first: str) -> Iterator[Path]:
    """Yield an empty folder within ``out``; what the block wrote there moves up into ``out`` if the block succeeds.

    ``first`` names the file that moves first: a dataset's card, so that nothing simulated ever lies there without it.
    Raises UserError where ``out`` cannot be written to.
    """
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".", suffix=".part", ignore_cleanup_errors=True) as part:
            yield Path(part)
            for path in sorted(Path(part).iterdir(), key=lambda path: (path.name != first, path.name)):
                path.replace(out / path.name)
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written ({error.strerror or error}); expected free space and write permission"
        ) from error
