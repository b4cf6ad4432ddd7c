"""BData: expressions, labels and splits give what was put into the files, and what does not fit is named."""

import json
import re

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mindtuner.cli import main
from mindtuner.errors import UserError
from mindtuner.formats import check, load, write
from mindtuner.formats.bdata import expression
from mindtuner.formats.bdata.read import load_bdata

VOXELS = 9
V1, V2 = np.arange(VOXELS) < 4, (np.arange(VOXELS) > 2) & (np.arange(VOXELS) < 7)
PICTURES = ("n01443537_22563.JPEG", "n01621127_19020.JPEG", "cat.png", "dog.png")


class Sheet:
    """A file of BData, made column by column; written without the package."""

    def __init__(self, samples, seed=0, old=False):
        self.betas = np.random.default_rng(seed).standard_normal((samples, VOXELS))
        self.columns = {}
        self.vmap, self.regions = {}, {"ROI_V1": V1, "ROI_V2": V2}
        self.places = {"voxel_i": np.arange(VOXELS, dtype=float)}
        self.names = ("dataSet", "metaData") if old else ("dataset", "metadata")

    def write(self, path):
        keys = ["VoxelData", *self.regions, *self.places, *self.columns]
        value = np.full((len(keys), VOXELS + len(self.columns)), np.nan)
        value[0, :VOXELS] = 1
        for row, mask in enumerate([*self.regions.values(), *self.places.values()], 1):
            value[row, :VOXELS] = mask
        first = 1 + len(self.regions) + len(self.places)
        for i in range(len(self.columns)):
            value[first + i, VOXELS + i] = 1
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            file[self.names[0]] = np.column_stack([self.betas, *self.columns.values()])
            file[f"{self.names[1]}/key"] = [key.encode() for key in keys]
            file[f"{self.names[1]}/description"] = [b""] * len(keys)
            file[f"{self.names[1]}/value"] = value
            for key, known in self.vmap.items():
                for number, label in known.items():
                    file[f"vmap/{key}/{number}"] = label.encode()


def pictures(root):
    (root / "stimuli").mkdir(parents=True)
    for i, name in enumerate(PICTURES):
        Image.new("RGB", (30, 30), (i * 60, 0, 255)).save(root / "stimuli" / name)


def labelled(samples, shown, seed=0, old=False):
    sheet = Sheet(samples, seed, old)
    sheet.columns["Session"] = np.repeat([1.0, 2.0], samples // 2)
    sheet.columns["stimulus_name"] = np.array([(1.0, 2.0, 3.0)[i % len(shown)] for i in range(samples)])
    sheet.vmap["stimulus_name"] = {float(i + 1): name for i, name in enumerate(shown)}
    return sheet


@pytest.fixture
def deeprecon(tmp_path):
    """Training and test files apart, labels without their ending, as DeepRecon's are."""
    root = tmp_path / "data"
    pictures(root)
    train = labelled(12, ["n01443537_22563", "n01621127_19020"])
    train.columns["stimulus_name"][7] = np.nan  # rest
    train.write(root / "sub-01_ImageNetTraining_fmriprep.h5")
    test = labelled(4, ["cat"], seed=1)
    test.write(root / "sub-01_ImageNetTest_fmriprep.h5")
    return root, train, test


@pytest.fixture
def god(tmp_path):
    """One file, a column of the split, numbers as labels and a table of them, as Generic Object Decoding's are."""
    root = tmp_path / "data"
    pictures(root)
    sheet = Sheet(12, old=True)
    sheet.columns["Session"] = np.repeat([1.0, 2.0], 6)
    sheet.columns["DataType"] = np.array([1, 1, 2, 3] * 3, float)
    sheet.columns["Label"] = np.array([1443537.022563, 1621127.01902, 5.000001, 5.000001] * 3)
    sheet.write(root / "Subject1.h5")
    lines = ["id\tfile", "1443537.022563\tn01443537_22563.JPEG", "1621127.019020\tn01621127_19020.JPEG", "5.000001\tcat.png"]
    (root / "stimuli.tsv").write_text("\n".join(lines) + "\n")
    return root, sheet


def card(root, **fields):
    (root / "dataset.json").write_text(json.dumps(fields))


def names_of(dataset, trials):
    return [dataset.stimuli.names[i] for i in trials.stimulus]


def refused(root, capsys, *words):
    with pytest.raises(UserError) as caught:
        load(root)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value) and "expected" in str(caught.value)
    assert main(["check", str(root)]) == 2
    capsys.readouterr()


# ---- datasets


def test_training_and_test_files_of_one_subject(deeprecon):
    root, train, test = deeprecon
    card(root, zscore="publisher")
    dataset = load(root)
    subject = dataset.subject(1)
    kept = [i for i in range(12) if i != 7]
    np.testing.assert_array_equal(subject.train.row, sorted(set(subject.train.row)))
    # The test file comes first by name: its rows are 0 to 3.
    np.testing.assert_array_equal(subject.betas(subject.test.row), test.betas.astype(np.float32))
    np.testing.assert_array_equal(subject.betas(subject.train.row), train.betas[kept].astype(np.float32))
    assert names_of(dataset, subject.test) == ["cat.png"] * 4
    assert names_of(dataset, subject.train) == [PICTURES[i % 2] for i in kept]
    assert subject.test.session.tolist() == [1, 1, 2, 2]
    np.testing.assert_array_equal(subject.train.session, [3 if i < 6 else 4 for i in kept])
    np.testing.assert_array_equal(subject.rois["V1"], V1)
    assert dataset.card["subjects"] == {"1": "sub-01"}
    assert dataset.card["bdata"] == {"voxels": "VoxelData", "label": "stimulus_name"}
    np.testing.assert_array_equal(dataset.stimuli.is_shared, [name == "cat.png" for name in dataset.stimuli.names])


def test_betas_are_zscored_by_training_trials_unless_the_card_says_that_they_are(deeprecon):
    root, train, test = deeprecon
    kept = np.array([i for i in range(12) if i != 7])
    subject = load(root).subject(1)
    expected = np.empty((11, VOXELS))
    for session in (np.arange(6), np.arange(6, 12)):
        own = np.isin(kept, session)
        expected[own] = (train.betas[kept[own]] - train.betas[kept[own]].mean(0)) / train.betas[kept[own]].std(0)
    np.testing.assert_allclose(subject.betas(subject.train.row), expected, atol=1e-5)
    assert np.isfinite(subject.betas(subject.test.row)).all()


def test_older_files_a_column_of_the_split_and_ids_by_a_table(god):
    root, sheet = god
    card(root, zscore="publisher")
    dataset = load(root)
    subject = dataset.subject(1)
    np.testing.assert_array_equal(subject.trials.row, [i for i in range(12) if i % 4 != 3])
    assert names_of(dataset, subject.train) == [PICTURES[0], PICTURES[1]] * 3
    assert names_of(dataset, subject.test) == ["cat.png"] * 3
    np.testing.assert_array_equal(subject.betas(range(12)), sheet.betas.astype(np.float32))
    findings = check(root)
    assert findings.count("error") == 0
    said = [what for _, what in findings.facts] + [item.message for item in findings.items]
    assert "format bdata: bdpy's BData" in said
    assert "12 samples, 6 training, 3 test; 9 voxels (VoxelData)" in said and "regions: V1 4, V2 4" in said
    assert "3 samples have no label, or are neither training nor test: unused" in said


def test_voxels_by_an_expression(god):
    root, sheet = god
    card(root, zscore="publisher", bdata={"voxels": "ROI_V1 + ROI_V2"})
    subject = load(root).subject(1)
    np.testing.assert_array_equal(subject.betas([4]), sheet.betas[[4]][:, V1 | V2].astype(np.float32))
    np.testing.assert_array_equal(subject.rois["V2"], V2[V1 | V2])
    assert list(load_bdata(root, voxels="ROI_V1 - ROI_V2").subject(1).rois) == ["V1"]
    assert load_bdata(root, voxels="ROI_V1 - ROI_V2").subject(1).n_voxels == 3
    assert load_bdata(root, voxels="ROI_V1 & ROI_V2").subject(1).n_voxels == 1


def test_what_the_card_says_of_columns_and_files(god):
    root, sheet = god
    sheet.columns["shown"] = sheet.columns.pop("Label")
    sheet.columns["Block"] = sheet.columns.pop("Session") + 1
    del sheet.columns["DataType"]
    sheet.columns["shown"][[2, 3, 6, 7, 10, 11]] = 5.000001
    (root / "Subject1.h5").unlink()
    both = {name: Sheet(12, old=True) for name in ("Subject1_a", "Subject1_b", "Subject1_c")}
    for name, part in both.items():
        part.columns = {key: column.copy() for key, column in sheet.columns.items()}
        part.columns["shown"][:] = {"a": 5.000001, "b": 1443537.022563, "c": 7}[name[-1]]
        part.write(root / f"{name}.h5")
    card(root, bdata={"label": "shown", "session": "Block", "train": ["*_b.h5"], "test": ["*_a*"]})
    subject = load(root).subject(1)
    np.testing.assert_array_equal(subject.test.row, range(12))
    np.testing.assert_array_equal(subject.train.row, range(12, 24))
    assert subject.trials.session[0] == 2 and subject.betas([0, 23]).shape == (2, VOXELS)
    assert check(root).count("error") == 0


def test_several_subjects_and_names(god):
    root, sheet = god
    sheet.write(root / "Subject12.h5")
    assert sorted(load(root).subjects) == [1, 12] and list(load(root, [12]).subjects) == [12]
    card(root, subject_offset=100)
    assert sorted(load(root).subjects) == [101, 112]
    for path in root.glob("*.h5"):
        path.unlink()
    for name in ("BE", "AK"):
        sheet.write(root / f"{name}_all.h5")
    assert load(root).card["subjects"] == {"101": "AK", "102": "BE"}
    card(root, subject_numbers={"BE": 7, "AC": 8})
    assert load(root).card["subjects"] == {"1": "AK", "7": "BE"}
    assert [item.message for item in check(root).items if item.field == "subject_numbers"] == [
        "names 'AC', which no subject is called; expected some of AK, BE"
    ]


def test_no_subject_is_a_dataset_without_brains(god):
    dataset = load(god[0], [])
    assert not dataset.subjects and len(dataset.stimuli) == len(PICTURES)


def test_a_written_dataset_is_read_again_and_converted(deeprecon, tmp_path):
    root, _, _ = deeprecon
    dataset = load(root)
    write(tmp_path / "again", dataset, "bdata")
    again = load(tmp_path / "again")
    one, two = dataset.subject(1), again.subject(1)
    np.testing.assert_array_equal(two.betas(two.trials.row), one.betas(one.trials.row))
    for field in ("session", "repeat", "is_test"):
        np.testing.assert_array_equal(getattr(two.trials, field), getattr(one.trials, field))
    assert [name.rpartition(".")[0] for name in names_of(again, two.trials)] == [
        name.rpartition(".")[0] for name in names_of(dataset, one.trials)
    ]
    np.testing.assert_array_equal(two.rois["V2"], one.rois["V2"])
    assert main(["convert", "bdata", str(root), str(tmp_path / "lab"), "--voxels", "ROI_V1 + ROI_V2"]) == 0
    lab = load(tmp_path / "lab").subject(1)
    np.testing.assert_array_equal(lab.betas(lab.trials.row), one.betas(one.trials.row)[:, V1 | V2])
    assert check(tmp_path / "lab").count("error") == check(tmp_path / "again").count("error") == 0


def test_the_verb_takes_labels_and_patterns(god, tmp_path, capsys):
    root, sheet = god
    sheet.columns["other"] = sheet.columns.pop("Label")
    del sheet.columns["DataType"]
    for name, label in (("Subject1_one.h5", 1443537.022563), ("Subject1_two.h5", 5.000001)):
        sheet.columns["other"][:] = label
        sheet.write(root / name)
    (root / "Subject1.h5").unlink()
    verb = ["convert", "bdata", str(root), str(tmp_path / "lab")]
    assert main(verb) == 2 and "no metadata is called stimulus_name or" in capsys.readouterr().err
    assert main([*verb, "--label", "other"]) == 2 and "neither training nor test" in capsys.readouterr().err
    assert main([*verb, "--label", "other", "--train", "*one*", "--test", "*two*,*three*"]) == 0
    assert "subject 1 (Subject1): 24 trials, 12 of them test, 9 voxels" in capsys.readouterr().out
    assert main([*verb[:3], str(tmp_path / "x"), "--label", "other", "--voxels", "ROI_V9"]) == 2
    assert "no metadata is called 'ROI_V9'; expected some of VoxelData, ROI_V1" in capsys.readouterr().err


# ---- expressions


COLUMNS = {name: np.array([bool(i >> bit & 1) for i in range(16)]) for bit, name in enumerate("abcd")}


@st.composite
def expressions(draw, depth=3):
    """(text, Python's own reading of it)."""
    if depth == 0 or draw(st.booleans()):
        name, quote, value = (
            draw(st.sampled_from("abcd")),
            draw(st.sampled_from(["", '"', "'"])),
            draw(st.sampled_from("  01")),
        )
        text = f"{quote}{name}{quote}" + (f" = {value}" if value in "01" else "")
        return text, f"(~{name})" if value == "0" else name
    parts = [draw(expressions(depth=depth - 1)) for _ in range(draw(st.integers(2, 3)))]
    signs = [draw(st.sampled_from("+|&-")) for _ in parts[1:]]
    text, meant = parts[0]
    for sign, (other, other_meant) in zip(signs, parts[1:], strict=True):
        text += f" {sign} {other}"
        meant = f"({meant} {({'+': '|', '|': '|', '&': '&', '-': '& ~'})[sign]} {other_meant})"
    return f"({text})", meant


@settings(max_examples=200, deadline=None)
@given(expressions())
def test_an_expression_is_read_as_sets(drawn):
    text, meant = drawn
    np.testing.assert_array_equal(expression.select(text, COLUMNS.__getitem__), eval(meant, {}, COLUMNS))


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "ends where a name should stand"),
        ("a +", "ends where a name should stand"),
        ("+ a", "has '+' in place of a name"),
        ("(a + b", "has a parenthesis that is not closed"),
        ("a) + b", "goes on with ')'"),
        ("a b", "goes on with 'b'"),
        ("a = 2", "compares a with '2'"),
        ("a = ", "compares a with ''"),
        ("'a + b", "has a quote that is not closed"),
        ("a top 100 @ b", "goes on with 'top'"),
        ("a @ b", "goes on with '@'"),
    ],
)
def test_what_is_no_expression_is_refused(text, words):
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        expression.select(text, COLUMNS.__getitem__)
    assert "expected names joined by +, & or -" in str(caught.value)


# ---- what does not fit


def change(root, name, what):
    with h5py.File(root / name, "r+") as file:
        what(file)


def replace(file, name, value):
    del file[name]
    file[name] = value


def table(text):
    return lambda root, sheet: (root / "stimuli.tsv").write_text(text)


GOD = {
    "another expression": (lambda r, s: card(r, bdata={"voxels": "ROI_V9"}), "no metadata is called 'ROI_V9'"),
    "no column": (lambda r, s: card(r, bdata={"voxels": "ROI_V1 - ROI_V1"}), "'ROI_V1 - ROI_V1' chooses no column"),
    "no label": (lambda r, s: card(r, bdata={"label": "picture"}), "no metadata is called 'picture'"),
    "several columns": (lambda r, s: card(r, bdata={"label": "VoxelData"}), "VoxelData has 9 columns; expected one"),
    "no expression": (lambda r, s: card(r, bdata={"voxels": 3}), "dataset.json: bdata, voxels is 3; expected texts"),
    "a list": (lambda r, s: card(r, bdata=["ROI_V1"]), "bdata, bdata is ['ROI_V1']; expected texts"),
    "misspelt": (lambda r, s: card(r, bdata={"voxel": "ROI_V1"}), "bdata, voxel is 'ROI_V1'; expected texts voxels"),
    "no table": (lambda r, s: (r / "stimuli.tsv").unlink(), "Label of row 0 is the number 1443537.022563; expected"),
    "table without it": (table("id\tfile\n7\tcat.png\n"), "Label of row 0 is 1443537.022563, which"),
    "table of a missing file": (table("Label\tfile\n1443537.022563\tgone.png\n"), "is 'gone.png', which no pictures in"),
    "table without ids": (table("name\tfile\n7\tcat.png\n"), "stimuli.tsv; expected Label or id beside file"),
    "table without files": (
        table("id\tpicture\n7\tcat.png\n"),
        "stimuli.tsv: has columns ['id', 'picture'] and 1 lines; expected id and file",
    ),
    "table of words": (table("id\tfile\ncat\tcat.png\n"), "is a number, and line 2 of"),
    "ragged table": (table("id\tfile\n7\n"), "stimuli.tsv: line 2 has 1 cells; expected 2"),
    "table twice": (table("id\tfile\n7\tcat.png\n7.0\tdog.png\n"), "is 7 twice in"),
    "session 0": (
        lambda r, s: (s.columns["Session"].__setitem__(3, 0), s.write(r / "Subject1.h5")),
        "Session of row 3 is 0; expected 1, 2, ...",
    ),
    "both splits": (
        lambda r, s: (s.columns["Label"].__setitem__(4, 5.000001), s.write(r / "Subject1.h5")),
        "shows a shared test image in training",
    ),
    "no trial": (
        lambda r, s: (s.columns["DataType"].__setitem__(slice(None), 3), s.write(r / "Subject1.h5")),
        "subject 1 has no trial of training or test",
    ),
    "cut": (lambda r, s: (r / "Subject1.h5").write_bytes((r / "Subject1.h5").read_bytes()[:-900]), "not a whole HDF5 file"),
    "another file": (
        lambda r, s: h5py.File(r / "Subject1.h5", "w").create_dataset("data", data=1).file.close(),
        "holds data; expected bdpy's BData",
    ),
    "value turned": (
        lambda r, s: change(r, "Subject1.h5", lambda f: replace(f, "metaData/value", f["metaData/value"][()].T)),
        "metaData/value has shape (12, 7); expected (7, 12)",
    ),
    "keys of numbers": (
        lambda r, s: change(r, "Subject1.h5", lambda f: replace(f, "metaData/key", np.arange(7))),
        "metaData/key is no list of texts",
    ),
    "no stimuli": (
        lambda r, s: [path.unlink() for path in (r / "stimuli").iterdir()],
        "stimuli: holds no image",
    ),
}


@pytest.mark.parametrize("kind", GOD)
def test_what_does_not_fit_is_refused_in_one_line(god, capsys, kind):
    root, sheet = god
    damage, words = GOD[kind]
    damage(root, sheet)
    refused(root, capsys, words)


def other_voxels(root, train, test):
    test.places["voxel_i"] = test.places["voxel_i"] + 1
    test.write(root / "sub-01_ImageNetTest_fmriprep.h5")


def other_regions(root, train, test):
    test.regions["ROI_V1"] = V2
    test.write(root / "sub-01_ImageNetTest_fmriprep.h5")


def fewer_voxels(root, train, test):
    test.regions["ROI_V1"] = V1 & V2
    test.write(root / "sub-01_ImageNetTest_fmriprep.h5")
    card(root, bdata={"voxels": "ROI_V1"})


def unlisted(root, train, test):
    test.columns["stimulus_name"][2] = 8
    test.write(root / "sub-01_ImageNetTest_fmriprep.h5")


def two_pictures(root, train, test):
    Image.new("RGB", (9, 9)).save(root / "stimuli/cat.jpg")


@pytest.mark.parametrize(
    "damage, words",
    [
        (other_voxels, "sub-01_ImageNetTraining_fmriprep.h5: voxel_i differs from that in sub-01_ImageNetTest"),
        (other_regions, "regions differ from those in sub-01_ImageNetTest"),
        (fewer_voxels, "4 voxels; expected 1 as in sub-01_ImageNetTest_fmriprep.h5"),
        (unlisted, "stimulus_name of row 2 is 8, which vmap does not list"),
        (two_pictures, "stimulus_name of row 0 is 'cat', which 2 pictures in"),
        (lambda r, a, b: a.write(r / "sub-01_Imagery.h5"), "sub-01_Imagery.h5: neither training nor test; expected a column"),
        (lambda r, a, b: a.write(r / "sub-01_TestAfterTraining.h5"), "both training and test by its name"),
        (lambda r, a, b: a.write(r / "sub-BE_Training.h5"), "sub-BE_Training.h5: has no number, as sub-01 has"),
    ],
)
def test_files_that_do_not_go_together_are_refused(deeprecon, capsys, damage, words):
    root, train, test = deeprecon
    damage(root, train, test)
    refused(root, capsys, words)


def test_check_names_each_label_without_a_picture_once(deeprecon):
    root, train, _ = deeprecon
    train.vmap["stimulus_name"] = {1.0: "n01443537_22563", 2.0: "gone"}
    train.write(root / "sub-01_ImageNetTraining_fmriprep.h5")
    errors = [item for item in check(root).items if item.severity == "error"]
    assert [(item.file, item.field) for item in errors] == [("sub-01_ImageNetTraining_fmriprep.h5", "row 1, stimulus_name")]
    assert "is 'gone', which no pictures in" in errors[0].message


def test_check_names_a_leak_under_the_files_that_show_the_picture(god):
    root, sheet = god
    sheet.columns["DataType"][:] = 1
    sheet.columns["Label"][:] = 5.000001
    sheet.write(root / "Subject2.h5")  # trains on what subject 1 is tested on
    sheet.columns["Label"][:] = 1443537.022563
    sheet.write(root / "Subject3.h5")  # and on what nobody is
    leaks = [item.file for item in check(root).items if item.field == "split" and "are in training and test" in item.message]
    assert leaks == ["Subject2.h5"]


def test_a_single_file_is_recognised(god):
    root, _ = god
    with pytest.raises(UserError, match="Subject1.h5: is a file of bdpy's BData; expected a folder with a dataset"):
        load(root / "Subject1.h5")
    assert main(["check", str(root / "Subject1.h5")]) == 2


def test_voxels_of_bad_values_are_found(god, capsys):
    root, sheet = god
    sheet.betas[5, 2] = np.nan
    sheet.write(root / "Subject1.h5")
    assert main(["check", str(root)]) == 2
    assert "1 of 9 voxels hold NaN values, in 1 of 12 rows, first in row 5, voxel 2" in capsys.readouterr().out
