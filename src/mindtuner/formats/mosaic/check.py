"""What ``check`` looks at in a folder of MOSAIC subjects: stimulus tables, pictures and captions, the split.

Subjects are looked at in ``check_subject``.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from pathlib import Path

import numpy as np

from mindtuner.errors import UserError
from mindtuner.formats.checks.findings import Findings, some
from mindtuner.formats.checks.parts import check_captions, check_pictures, check_sizes
from mindtuner.formats.image_files import captions_beside, size_upright
from mindtuner.formats.mosaic.check_subject import Person, check_betas_of, check_keys, check_shown, open_person
from mindtuner.formats.mosaic.read import TABLES, load, mosaic_files
from mindtuner.formats.mosaic.stimuli import ImageFiles, StimulusFolder, number_by_content
from mindtuner.formats.mosaic.tables import DATASETS, SPLIT, read_split, read_tables
from mindtuner.inputs import open_picture, reading

Table = dict[str, list[dict]]


def check(root: Path, findings: Findings) -> None:
    """Report on the tables, each subject's keys and betas, the pictures, and MOSAIC's split where it is there."""
    files, tables, stimuli = mosaic_files(root)
    for path in sorted(set(root.glob(TABLES)) - set(tables)):
        findings.warning(path, "name", f"is passed over; expected one of {', '.join(s.stiminfo for s in DATASETS.values())}")
    if not files:
        findings.error(root, "subjects", "no subject; expected MOSAIC's files such as sub-01_NSD.hdf5")
    people: dict[int, Person] = {}
    for path in files:
        with findings.catching(path, "betas"):
            person = open_person(findings, path)
            if person is None:
                continue
            if person.number in people:
                findings.error(
                    path,
                    "subject",
                    f"holds {person.name}, and so does {people[person.number].path.name}; expected each subject once",
                )
            else:
                people[person.number] = person
    known = {
        dataset: table
        for dataset in sorted({person.dataset for person in people.values()})
        if (table := _check_table(findings, root, tables, dataset)) is not None
    }
    for person in people.values():
        with findings.catching(person.path, "betas"), reading(person.path, "a MOSAIC subject"):
            if person.dataset in known:
                check_keys(findings, person, known[person.dataset])
            check_betas_of(findings, person)
    for dataset, table in known.items():
        _check_rows(
            findings,
            root / DATASETS[dataset].stiminfo,
            table,
            [person for person in people.values() if person.dataset == dataset],
        )
    _check_stimuli(findings, stimuli, list(people.values()))
    _check_split(findings, root, list(people.values()))
    dataset = findings.take_whole(lambda: load(root))
    for note in dataset.card["notes"] if dataset else ():
        findings.note(root, "dataset", note)


def _check_table(findings: Findings, root: Path, tables: list[Path], dataset: str) -> Table | None:
    path = root / DATASETS[dataset].stiminfo
    if path not in tables:
        findings.error(path, "table", f"not found; expected the stimulus table of {dataset}")
        return None
    with findings.catching(path, "table"):
        table = read_tables([path], {dataset})[dataset]
        rows = [row for same_stem in table.values() for row in same_stem]
        test = sum(row["test_train"] == "test" for row in rows)
        findings.fact(path, f"{len(rows)} stimuli of {dataset}, {test} of them test")
        cut = [row["filename"] for row in rows if None in row or None in row.values()]
        findings.errors(
            path, ((f"row {name}", "has not as many cells as the first line; expected a whole line") for name in cut)
        )
        twice = [name for name, times in Counter(row["filename"] for row in rows).items() if times > 1]
        if twice:
            findings.warning(path, "filename", f"{len(twice)} stimuli have several rows: {some(twice)}; expected one each")
        return table
    return None


def _check_rows(findings: Findings, path: Path, table: Table, people: list[Person]) -> None:
    """The other way round: rows without trials, and whether there are as many as the table counts."""
    trials = {person.name: Counter(trial.stem for trial in person.trials) for person in people}
    unseen = [rows[0]["filename"] for stem, rows in table.items() if not any(stem in count for count in trials.values())]
    if unseen:
        findings.note(path, "filename", f"{len(unseen)} stimuli were shown in no trial of the subjects here: {some(unseen)}")
    for person in people:
        column, wrong = f"{person.name.split('_')[0]}_reps", []
        for stem, rows in table.items():
            said = (rows[0].get(column) or "").strip()
            if len(rows) == 1 and said.replace(".0", "", 1).isdecimal() and float(said) != trials[person.name][stem]:
                wrong.append(f"{rows[0]['filename']} ({trials[person.name][stem]} of {float(said):g})")
        if wrong:
            findings.warning(
                path,
                column,
                f"{len(wrong)} stimuli have another number of trials in {person.path.name}: "
                f"{some(wrong)}; expected as many as the table counts",
            )


def _check_stimuli(findings: Findings, folder: Path, people: list[Person]) -> None:
    """Find, read and compare the pictures of all trials that count; report what the trials say about them."""
    shown: dict[Path, set[str]] = {}
    with findings.catching(folder, "stimuli"):
        stimuli = StimulusFolder(folder)
        for person in people:
            _find_pictures(findings, stimuli, person)
            for path in person.pictures.values():
                shown.setdefault(path, set()).add(person.dataset)
    if not shown:
        return
    numbers = {path: i for i, path in enumerate(shown)}
    with contextlib.suppress(UserError):  # a damaged picture, which is reported below
        numbers = number_by_content(shown)
    first: dict[int, Path] = {}
    for path, number in numbers.items():
        first.setdefault(number, path)
    is_shared = np.zeros(len(first), bool)
    for person in people:
        is_shared[[numbers[path] for trial, path in person.pictures.items() if trial.is_test]] = True
    for person in people:
        check_shown(findings, person, numbers, is_shared, lambda number: first[number].name)
    paths = list(first.values())
    names = [path.relative_to(folder).as_posix() for path in paths]
    files = ImageFiles(paths)
    check_pictures(findings, folder, lambda number: files[np.array([number])][0], names, is_shared, np.ones(len(paths), bool))
    captions: list[tuple[str, ...]] = []
    for path in paths:
        captions.append(())
        with findings.catching(path.with_suffix(".txt"), "captions"):
            captions[-1] = captions_beside(path)
    check_captions(findings, folder, captions, names)
    check_sizes(findings, folder, [size for path in paths if (size := _size(path)) is not None])


def _find_pictures(findings: Findings, stimuli: StimulusFolder, person: Person) -> None:
    found: dict[str, Path | None] = {}
    problems = []
    for trial, names in person.names.items():
        if trial.stem not in found:
            try:
                found[trial.stem] = stimuli.find(person.dataset, names, trial.key)
            except UserError as error:
                found[trial.stem] = None
                problems.append(("stimulus", str(error)))
        if found[trial.stem] is not None:
            person.pictures[trial] = found[trial.stem]
    findings.errors(person.path, problems)


def _size(path: Path) -> tuple[int, int] | None:
    try:
        with open_picture(path) as raw:
            return size_upright(raw)
    except UserError:  # reported when it was read
        return None


def _check_split(findings: Findings, root: Path, people: list[Person]) -> None:
    """MOSAIC's split across datasets, which ``load`` does not use, where a folder in ``root`` holds it."""
    folders = sorted({path.parent for name in SPLIT for path in root.glob(f"*/{name}")})
    for folder in folders:
        with findings.catching(folder, "split"):
            listed = read_split(folder, {person.name for person in people})
            findings.note(
                folder,
                "split",
                "MOSAIC's split across datasets is used where load_mosaic gets split= alone; otherwise each dataset's own",
            )
            for person in people:
                other = [trial.key for trial in person.trials if listed.get(trial.key, trial.is_test) != trial.is_test]
                if other:
                    findings.error(
                        folder,
                        "split",
                        f"{len(other)} trials are in the other list than their names say: "
                        f"{some(other)}; expected the same phase",
                    )
                keys = {trial.key for trial in person.trials}
                lost = [key for key in listed if key.startswith(f"{person.name}_stimulus-") and key not in keys]
                if lost:
                    findings.warning(
                        folder, "split", f"lists {len(lost)} trials that {person.path.name} does not hold: {some(lost)}"
                    )
    if not folders and len({person.dataset for person in people}) > 1:
        findings.note(
            root,
            "split",
            "subjects of several datasets without MOSAIC's split across them: crops and other "
            "encodings of a test picture may be in training",
        )
