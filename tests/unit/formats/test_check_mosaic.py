"""``mindtuner check`` on MOSAIC's subjects: damage planted in each file is found and named, and never read."""

import dataclasses
import json
import re
import shutil

import h5py
import numpy as np
import pytest
from mosaic_files import EARLY, C, make_world, rename, replace_in, write_picture, write_subject

from mindtuner.cli import main
from mindtuner.errors import UserError
from mindtuner.formats import check, format_of, load
from mindtuner.formats.mosaic.read import load_mosaic

FILE, TABLE, COCO = "sub-01_NSD.hdf5", "nsd_stiminfo.tsv", "stimuli/NSD/coco"
REPEATS = {"a_1.0.png": 1, "b.png": 2, "c.png": 1, "t.png": 3}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The table counts the trials of subject 1, as MOSAIC's do."""
    world = make_world(tmp_path_factory.mktemp("mosaic"))
    lines = world.table.read_text().split("\n")
    world.table.write_text(
        "\n".join(line[:-1] + str(REPEATS[line.split("\t")[0]]) if line.endswith("\t1") else line for line in lines)
    )
    return world


@pytest.fixture
def world(whole, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(whole.root, root)
    return dataclasses.replace(whole, root=root, file=root / FILE, table=root / TABLE, stimuli=root / "stimuli")


def everything(root):
    """All that a training would read: by picture and repeat the vector, and by picture its pixels. No two pictures or vectors
    of the sound data are the same, so numbers and order of rows may differ."""
    dataset = load(root)
    pixels = dataset.stimuli.images(range(len(dataset.stimuli)))
    betas = {}
    for subject in dataset.subjects.values():
        assert len(subject.train) + len(subject.test) == len(subject.trials)
        rows = subject.betas(subject.trials.row)
        for row, image, repeat, test in zip(
            rows, subject.trials.stimulus, subject.trials.repeat, subject.trials.is_test, strict=True
        ):
            betas[pixels[image].tobytes(), int(repeat), bool(test)] = dict(zip(subject.vertices.tolist(), row, strict=True))
    return betas


def test_nothing_is_wrong_with_sound_data(whole, capsys):
    assert format_of(whole.root).name == "mosaic"
    findings = check(whole.root)
    assert findings.count("error") == 0
    assert {(item.file, item.field) for item in findings.items if item.severity == "warning"} == {("stimuli", "captions")}
    facts = " | ".join(f"{name}: {what}" for name, what in findings.facts)
    for said in (
        f"{FILE}: 7 trials x 91282 grayordinates, float64",
        "59412 of 59412 vertices have a value: early 4183",
        f"{TABLE}: 4 stimuli of NSD, 1 of them test",
        "3 test trials of 1 images, each seen 3 times",
    ):
        assert said in facts, facts
    assert any("session a trial was" in item.message for item in findings.items if item.severity == "note")
    assert main(["check", str(whole.root)]) == 0
    assert "format mosaic: MOSAIC" in capsys.readouterr().out


def test_load_opens_the_folder_as_load_mosaic_does(whole):
    found, expected = load(whole.root), whole.load()
    assert list(found.subjects) == [1] and found.card == expected.card and found.stimuli.hash == expected.stimuli.hash
    for field in dataclasses.fields(expected.subject(1).trials):
        np.testing.assert_array_equal(
            getattr(found.subject(1).trials, field.name), getattr(expected.subject(1).trials, field.name)
        )
    np.testing.assert_array_equal(found.subject(1).betas([3, 0]), expected.subject(1).betas([3, 0]))
    assert list(load(whole.root, [1]).subjects) == [1]
    with pytest.raises(UserError, match="no subject 2; expected one of 1"):
        load(whole.root, [2])


def test_a_table_of_trials_makes_it_a_labs_own_folder(world):
    (world.root / "trials.tsv").write_text("")
    assert format_of(world.root).name == "lab_folder"
    for name in ("trials.tsv", FILE, TABLE):
        (world.root / name).unlink()
    assert format_of(world.root).name == "lab_folder"  # by stimuli/ alone, as before
    world.table.write_text("")
    assert format_of(world.root).name == "mosaic"
    with pytest.raises(UserError, match="no subject; expected MOSAIC's files such as sub-01_NSD.hdf5"):
        load(world.root)


def rewrite(change, nan=(), **storage):
    """Write the subject again with ``change`` of a copy of its trials, (name, phase, repetition, vector) each."""

    def damage(world):
        trials = [(*rest, vector.copy()) for *rest, vector in world.trials]
        write_subject(world.file, "sub-01_NSD", change(trials) or trials, nan, **storage)

    return damage


def vector(number, where, value):
    return rewrite(lambda trials: trials[number][3].__setitem__(where, value))


def each(where, value):
    return rewrite(lambda trials: [trial[3].__setitem__(where, value) for trial in trials] and None)


def form(change):
    return rewrite(
        lambda trials: [(*rest, change(values)) if i == 6 else (*rest, values) for i, (*rest, values) in enumerate(trials)]
    )


def attribute(name, value):
    def damage(world):
        with h5py.File(world.file, "r+") as file:
            file["betas"][C].attrs[name] = value

    return damage


def key(old, new):
    return lambda world: rename(world, C, C.replace(old, new))


def lines(change):
    """Change the table's lines, the first of which is the header."""

    def damage(world):
        found = world.table.read_text().strip().split("\n")
        world.table.write_text("\n".join(change(found) or found) + "\n")

    return damage


def truncate(name, keep=0.6):
    def damage(world):
        path = world.root / name
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])

    return damage


def drop(name):
    def damage(world):
        path = world.root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def corrupt_chunk(world):
    """A byte inside a compressed vector."""
    rewrite(lambda trials: None, compression="gzip", compression_opts=1)(world)
    with h5py.File(world.file) as file:
        chunk = file["betas"][C].id.get_chunk_info(1)
    content = bytearray(world.file.read_bytes())
    content[chunk.byte_offset + chunk.size // 2] ^= 0xFF
    world.file.write_bytes(bytes(content))


def corrupt_header(world):
    """A byte of what HDF5 keeps about one trial's dataset, and a checksum of."""
    with h5py.File(world.file) as file:
        place = h5py.h5o.get_info(file["betas"][C].id).addr + 12
    content = bytearray(world.file.read_bytes())
    content[place] ^= 0xFF
    world.file.write_bytes(bytes(content))


def copy_test_picture(world):
    shutil.copy(world.root / COCO / "t.png", world.root / COCO / "c.png")


def split(change):
    """MOSAIC's split of the subject's trials, ``change`` of (train, test)."""

    def damage(world):
        keys = {
            phase: [
                f"sub-01_NSD_stimulus-{name[:-4]}_phase-{phase}_rep-{rep}.npz"
                for name, own, rep, _ in world.trials
                if own == phase
            ]
            for phase in ("train", "test")
        }
        (world.root / "testtrain").mkdir()
        for phase, listed in change(keys).items():
            (world.root / f"testtrain/{phase}_naturalistic.json").write_text(json.dumps([{"sub-01_NSD_stimulus-x": listed}]))

    return damage


def subject_twice(world):
    write_subject(world.root / "sub-09_NSD.hdf5", "sub-01_NSD", world.trials, [])


# name -> (damage, severity, file, what the finding says: a regular expression over field and message)
DAMAGE = {
    "file truncated": (truncate(FILE), "error", FILE, "not a whole HDF5"),
    "file is text": (lambda w: w.file.write_text("hello"), "error", FILE, "not a whole HDF5"),
    "no subject": (drop(FILE), "error", ".", "subjects: no subject"),
    "no betas": (lambda w: h5py.File(w.file, "w").close(), "error", FILE, "no group 'betas'"),
    "vector corrupt": (corrupt_chunk, "error", FILE, "betas rows .*cannot be read"),
    "vector's header corrupt": (corrupt_header, "error", FILE, f"key {C}: cannot be read"),
    "one NaN": (
        vector(4, EARLY[7], np.nan),
        "error",
        FILE,
        f"1 of 59412 voxels hold NaN.* first in key .*-b_phase-train_rep-1, grayordinate {EARLY[7]}",
    ),
    "one infinity": (vector(6, EARLY[0], -np.inf), "error", FILE, f"infinite values.*key {C}, grayordinate {EARLY[0]}"),
    "vertices too few": (form(lambda v: v[:59412]), "error", FILE, rf"key {C}: has shape \(59412,\) .* expected \(91282,\)"),
    "vertices too many": (form(lambda v: np.r_[v, v[:9]]), "error", FILE, rf"key {C}: has shape \(91291,\)"),
    "vertices in a table": (form(lambda v: v[None]), "error", FILE, rf"key {C}: has shape \(1, 91282\)"),
    "vector in whole numbers": (form(lambda v: (v * 300).astype(np.int16)), "error", FILE, f"key {C}: has .* dtype int16"),
    "one vector in single precision": (form(lambda v: v.astype(np.float32)), "warning", FILE, "dtype: .*float32 and float64"),
    "half precision": (
        rewrite(lambda t: [(*rest, v.astype(np.float16)) for *rest, v in t]),
        "warning",
        FILE,
        "dtype: .*float16",
    ),
    "trial of zeros": (vector(3, slice(None), 0), "warning", FILE, "one value in all voxels: key .*-b_phase-train_rep-0"),
    "trial copied": (
        rewrite(lambda t: t[6][3].__setitem__(slice(None), t[3][3])),
        "warning",
        FILE,
        f"key {C} = key .*-b_phase-train_rep-0",
    ),
    "nan list out of range": (rewrite(lambda t: None, nan=[91282]), "error", FILE, r"nan_indices_all: .*0\.\.91281"),
    "nan list of fractions": (rewrite(lambda t: None, nan=[2.5]), "error", FILE, "nan_indices_all: .*expected a list"),
    "nan list leaves a region empty": (rewrite(lambda t: None, nan=EARLY), "warning", FILE, "region early: holds no vertex"),
    "key misspelt": (key("_stimulus-", "_stim-"), "error", FILE, "key sub-01_NSD_stim-c.*: does not parse"),
    "key of another subject": (
        key("sub-01", "sub-02"),
        "error",
        FILE,
        "key sub-02_.*: is of another subject than sub-01_NSD",
    ),
    "key of another phase": (key("train", "test"), "error", FILE, "key .*-c_phase-test_rep-0: and the stimulus table.*train"),
    "key without a row": (key("-c_", "-z_"), "error", FILE, "key .*-z_phase.*: has 0 rows in nsd_stiminfo.tsv"),
    "repeat missing": (key("rep-0", "rep-2"), "warning", FILE, "repeat: 1 stimuli lack an earlier repeat: c"),
    "repeat twice": (
        lambda w: rename(
            w, C.replace("-c_", "-b_").replace("rep-0", "rep-1"), C.replace("-c_", "-b_").replace("rep-0", "rep-00")
        ),
        "error",
        FILE,
        "repeat: 1 stimuli have the same repeat twice: b",
    ),
    "a trial lost": (rewrite(lambda t: t[:3] + t[4:]), "warning", TABLE, r"sub-01_reps: .*b.png \(1 of 2\)"),
    "unknown dataset": (
        lambda w: write_subject(w.file, "sub-01_MINE", w.trials, []),
        "error",
        FILE,
        "subject: holds sub-01_MINE",
    ),
    "file misnamed": (
        lambda w: w.file.rename(w.root / "sub-02_NSD.hdf5"),
        "warning",
        "sub-02_NSD.hdf5",
        "subject: holds sub-01_NSD",
    ),
    "subject twice": (subject_twice, "error", "sub-09_NSD.hdf5", "holds sub-01_NSD, and so does sub-01_NSD.hdf5"),
    "attribute differs": (attribute("phase", "test"), "warning", FILE, rf"attributes: .*{C} \(phase test\)"),
    "no table": (drop(TABLE), "error", TABLE, "table: not found"),
    "table misnamed": (lambda w: w.table.rename(w.root / "NSD_stiminfo.tsv"), "warning", "NSD_stiminfo.tsv", "passed over"),
    "table without a column": (lambda w: replace_in(w.table, "test_train", "phase"), "error", TABLE, "no column test_train"),
    "table of another phase": (lambda w: replace_in(w.table, "\ttest\t", "\tboth\t"), "error", TABLE, "line 5 .*'both'"),
    "table is not text": (lambda w: w.table.write_bytes(b"\xff\xfe\x00\x01"), "error", TABLE, "table: not UTF-8 text"),
    "table truncated": (truncate(TABLE, 0.7), "error", TABLE, "table: line 4 has filename 'c.'"),
    "table truncated between lines": (
        lines(lambda found: found[:-1]),
        "error",
        FILE,
        "key .*-t_phase-test_rep-2: has 0 rows",
    ),
    "table breaks off": (
        lambda w: w.table.write_text(w.table.read_text().rstrip()[:-2]),
        "error",
        TABLE,
        "row t.png: has not as many cells",
    ),
    "row twice": (lines(lambda found: [*found, found[3]]), "error", FILE, f"key {C}: has 2 rows"),
    "unused row twice": (
        lines(lambda found: [*found, *["z.png\t1\tCOCO\ttrain\t0"] * 2]),
        "warning",
        TABLE,
        "filename: 1 stimuli have several rows: z.png",
    ),
    "row that no trial names": (
        lines(lambda found: [*found, "z.png\t1\tCOCO\ttrain\t2"]),
        "warning",
        TABLE,
        r"sub-01_reps: .*z.png \(0 of 2\)",
    ),
    "test row called train": (
        lines(lambda found: [line.replace("\ttest\t", "\ttrain\t") for line in found]),
        "error",
        FILE,
        "key .*-t_phase-test.*which says train",
    ),
    "no stimuli": (drop("stimuli"), "error", "stimuli", "stimuli: not found; expected a folder"),
    "picture missing": (drop(f"{COCO}/c.png"), "error", FILE, f"stimulus: {C}: no picture of stimulus c.png"),
    "picture twice": (lambda w: write_picture(w.stimuli / "NSD/c.png", 0), "error", FILE, "stimulus c.png is both"),
    "picture truncated": (truncate(f"{COCO}/c.png"), "error", f"{COCO}/c.png", "images: cannot be read"),
    "picture is text": (lambda w: (w.root / COCO / "t.png").write_text("no"), "error", f"{COCO}/t.png", "cannot be read"),
    "test picture in training": (
        copy_test_picture,
        "error",
        "stimuli",
        "same pixels as a training image: NSD/coco/.* = NSD/coco/",
    ),
    "caption not UTF-8": (
        lambda w: (w.root / COCO / "b.txt").write_bytes(b"\xff\xfe\x00"),
        "error",
        f"{COCO}/b.txt",
        "captions: not UTF-8 text",
    ),
    "captions lost": (drop(f"{COCO}/b.txt"), "note", "stimuli", "captions: no image has a caption"),
    "split truncated": (
        lambda w: (split(lambda k: k)(w), truncate("testtrain/test_naturalistic.json")(w)),
        "error",
        "testtrain/test_naturalistic.json",
        "split: not valid JSON",
    ),
    "half a split": (
        lambda w: (split(lambda k: k)(w), drop("testtrain/test_naturalistic.json")(w)),
        "error",
        "testtrain/test_naturalistic.json",
        "split: not found",
    ),
    "split the other way round": (
        split(lambda k: {"train": k["test"], "test": k["train"]}),
        "error",
        "testtrain",
        "split: 7 trials are in the other list",
    ),
    "split of lost trials": (
        split(lambda k: {**k, "train": [*k["train"], C.replace("rep-0", "rep-1")]}),
        "warning",
        "testtrain",
        "split: lists 1 trials that sub-01_NSD.hdf5 does not hold: .*-c_phase-train_rep-1",
    ),
}
# What the files then say is another thing, and that is what the reader gives.
OTHERWISE = ("half precision", "trial of zeros", "trial copied", "repeat missing", "repeat twice", "test picture in training")


@pytest.fixture(scope="module")
def sound(whole):
    return everything(whole.root)


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_named_and_never_read(world, sound, name):
    damage, severity, file, said = DAMAGE[name]
    damage(world)
    findings = check(world.root)
    found = [
        item
        for item in findings.items
        if item.severity == severity and item.file == file and re.search(said, f"{item.field}: {item.message}")
    ]
    assert found, [dataclasses.astuple(item) for item in findings.items if item.severity != "note"]
    assert all("\n" not in item.message for item in findings.items)
    assert (findings.count("error") > 0) == (severity == "error" or name == "table misnamed")
    try:
        betas = everything(world.root)
    except UserError:
        assert findings.count("error")
        return
    if name not in OTHERWISE:
        assert betas and betas.keys() <= sound.keys()
        for trial, values in betas.items():
            assert values.items() <= sound[trial].items()


def more_trials(world, change):
    """Twelve repeats of one test picture, so that a vertex may be called constant."""
    rng = np.random.default_rng(2)
    trials = [("t.png", "test", rep, rng.standard_normal(91282)) for rep in range(12)]
    trials += [(*rest, vector.copy()) for *rest, vector in world.trials[3:]]
    for number, trial in enumerate(trials):
        change(number, trial[3])
    write_subject(world.file, "sub-01_NSD", trials, [])


def test_a_constant_vertex_and_betas_that_are_not_normalised_are_found(world):
    def change(number, values):
        values *= 30
        values[EARLY[3]] = 5

    more_trials(world, change)
    items = [(item.severity, item.file, f"{item.field}: {item.message}") for item in check(world.root).items]
    assert any(
        severity == "error" and file == FILE and f"same in all 16 rows: grayordinate {EARLY[3]};" in text
        for severity, file, text in items
    ), items
    assert any(
        severity == "warning" and file == FILE and re.search("zscore: .* median sd of [23]", text)
        for severity, file, text in items
    ), items


def test_without_a_nan_list_vertices_without_a_value_are_left_out(world):
    each(EARLY[:3], np.nan)(world)
    findings = check(world.root)
    assert findings.count("error") == 1 and "3 of 59412 voxels hold NaN" in findings.items[0].message
    rewrite(lambda trials: [trial[3].__setitem__(EARLY[:3], np.nan) for trial in trials] and None, nan=None)(world)
    findings = check(world.root)
    assert findings.count("error") == 0
    assert any("find the 3 vertices" in item.message for item in findings.items if item.field == "nan_indices_all")
    assert load(world.root).subject(1).n_voxels == 7894 - 3


def test_several_datasets_are_compared_and_the_reader_says_what_it_leaves_out(world):
    rng = np.random.default_rng(1)
    shutil.copytree(world.root / COCO, world.root / "stimuli/THINGS")
    names = ("t.png", "own.png")
    write_picture(world.root / "stimuli/THINGS/own.png", 50)
    write_subject(
        world.root / "sub-02_THINGS.hdf5",
        "sub-02_THINGS",
        [(name, "train", 0, rng.standard_normal(91282)) for name in names],
        [],
    )
    (world.root / "things_stiminfo.tsv").write_text(
        "\n".join(["filename\talias\tsource\ttest_train\tsub-02_reps", *(f"{name}\tn/a\tTHINGS\ttrain\t1" for name in names)])
        + "\n"
    )
    findings = check(world.root)
    assert findings.count("error") == 0
    notes = " | ".join(f"{item.field}: {item.message}" for item in findings.items if item.severity == "note")
    for said in ("several datasets without MOSAIC's split", "sub-02_THINGS: 1 training trials left out"):
        assert said in notes, notes
    assert not any("same pixels" in item.message for item in findings.items)  # t.png is one stimulus of both
    files = [world.file, world.root / "sub-02_THINGS.hdf5"]
    tables = [world.table, world.root / "things_stiminfo.tsv"]
    expected = load_mosaic(files, tables, world.stimuli)
    assert load(world.root).stimuli.hash == load(world.root, [402]).stimuli.hash == expected.stimuli.hash
    assert list(load(world.root, [402]).subjects) == [402]


def test_all_damage_is_told_at_once(world, capsys):
    for name in ("one NaN", "picture truncated", "caption not UTF-8"):
        DAMAGE[name][0](world)
    replace_in(world.table, "a_1.0.png\t12\tCOCO\ttrain", "a_1.0.png\t12\tCOCO\ttest")
    assert main(["check", str(world.root), "--json"]) == 2
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert {(item["file"], item["field"]) for item in report["findings"] if item["severity"] == "error"} == {
        (FILE, "betas"),
        (FILE, "key sub-01_NSD_stimulus-a_1.0_phase-train_rep-0"),
        (f"{COCO}/c.png", "images"),
        (f"{COCO}/b.txt", "captions"),
    }
    assert "4 errors found; expected none" in printed.err
