"""What MOSAIC publishes beside the betas: a stimulus table for each dataset, and a split across datasets."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path, PurePath

from mindtuner.errors import UserError
from mindtuner.inputs import read_json, read_text

COLUMNS = ("filename", "alias", "source", "test_train")
SPLIT = {"train_naturalistic.json": False, "test_naturalistic.json": True}  # file -> are its trials test trials


@dataclass(frozen=True)
class Source:
    """One of MOSAIC's datasets.

    Subject ``n`` gets the number ``base + n``. ``stiminfo``: its table. ``normalised``: over which of its own trials the
    authors normalised the betas.
    """

    base: int
    stiminfo: str
    normalised: str


DATASETS = {
    "NSD": Source(0, "nsd_stiminfo.tsv", "each session by its training trials"),
    "BOLD5000": Source(100, "b5000_stiminfo.tsv", "each group of four or five sessions by its training trials"),
    "GOD": Source(200, "god_stiminfo.tsv", "all sessions together by their training trials"),
    "deeprecon": Source(300, "deeprecon_stiminfo.tsv", "training and test sessions each by all their own trials"),
    "THINGS": Source(400, "things_stiminfo.tsv", "each group of six sessions by its training trials"),
    "NOD": Source(500, "nod_stiminfo.tsv", "all sessions together by their training trials"),
    "HAD": Source(600, "had_stiminfo.tsv", "the session by its training trials"),
    "BMD": Source(700, "bmd_stiminfo.tsv", "each session by its training trials"),
}


def read_tables(paths: list[Path], wanted: set[str]) -> dict[str, dict[str, list[dict]]]:
    """For each dataset wanted: name of a stimulus without its ending -> its rows in the table."""
    named = {source.stiminfo: dataset for dataset, source in DATASETS.items()}
    given = {}
    for path in paths:
        if path.name not in named:
            raise UserError(f"{path}: is no stimulus table of MOSAIC; expected one called {', '.join(named)}")
        given[named[path.name]] = path
    for dataset in sorted(wanted - set(given)):
        raise UserError(f"stiminfo: no table of {dataset}; expected {DATASETS[dataset].stiminfo} among the tables")
    return {dataset: _read_table(given[dataset]) for dataset in sorted(wanted)}


def _read_table(path: Path) -> dict[str, list[dict]]:
    rows: dict[str, list[dict]] = {}
    try:
        with io.StringIO(read_text(path, "a stimulus table of MOSAIC"), newline="") as file:
            reader = csv.DictReader(file, delimiter="\t")
            for column in COLUMNS:
                if column not in (reader.fieldnames or []):
                    raise UserError(f"{path}: no column {column}; expected {', '.join(COLUMNS)} and sub-01_reps and so on")
            for row in reader:
                if not row["filename"] or row["test_train"] not in ("train", "test"):
                    raise UserError(
                        f"{path}: line {reader.line_num} has filename {row['filename']!r} and test_train "
                        f"{row['test_train']!r}; expected a file name, and train or test"
                    )
                rows.setdefault(PurePath(row["filename"]).stem, []).append(row)
    except csv.Error as error:
        raise UserError(f"{path}: cannot be read ({error}); expected a table with tabs") from error
    return rows


def read_split(folder: Path, people: set[str]) -> dict[str, bool]:
    """Key -> is it a test trial, for all trials of these people that MOSAIC's split lists."""
    listed: dict[str, bool] = {}
    for name, is_test in SPLIT.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path}: not found; expected MOSAIC's split across datasets")
        try:
            entries = [pair for entry in read_json(path, "MOSAIC's split") for pair in entry.items()]
            for person, keys in ((index.split("_stimulus-")[0], keys) for index, keys in entries):
                for key in (key.removesuffix(".npz") for key in keys if person in people):
                    if listed.setdefault(key, is_test) != is_test:
                        raise UserError(f"{path}: lists {key}, which is a training trial too; expected it in one list")
        except (ValueError, AttributeError, TypeError) as error:
            raise UserError(f"{path}: is no list of {{stimulus: [trials]}} ({error}); expected MOSAIC's split") from error
    for person in sorted(people):
        if not any(key.startswith(f"{person}_stimulus-") for key in listed):
            raise UserError(f"{folder}: lists no trial of {person}; expected MOSAIC's split of all its subjects")
    return listed
