"""What labs do otherwise in a lab's folder: tables as BIDS and pandas write them, names, masks and pictures of all kinds."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lab_files import MASK_SHAPE, NAMES, TRIALS, make_lab, save_nifti, write_table
from PIL import Image

from mindtuner.cli import main
from mindtuner.errors import UserError
from mindtuner.formats import check, load, write


@pytest.fixture
def lab(tmp_path):
    return make_lab(tmp_path / "data")


def rows_of(path):
    return [line.split("\t") for line in path.read_text().strip().split("\n")]


def save_rows(path, rows, separator="\t"):
    path.write_text("\n".join(separator.join(row) for row in rows) + "\n")


def rewrite(lab, change):
    path = lab.root / "trials.tsv"
    rows = rows_of(path)
    change(rows)
    save_rows(path, rows)


def card(lab, **fields):
    (lab.root / "dataset.json").write_text(json.dumps(fields))


def same_trials(found, expected):
    for field in ("row", "stimulus", "session", "repeat", "is_test"):
        np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))


def said(root):
    return " | ".join(f"{item.severity} {item.file} {item.field}: {item.message}" for item in check(root).items)


def refused(root, capsys, *words):
    """The reader and both verbs' one line."""
    with pytest.raises(UserError) as caught:
        load(root)
    assert main(["check", str(root)]) == 2
    capsys.readouterr()
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value) and "expected" in str(caught.value)


# ---- the table of trials


@pytest.mark.parametrize("column", ["stim_file", "label"])
def test_bids_names_of_the_stimulus(lab, column):
    expected = load(lab.root).subject(1).trials
    rewrite(lab, lambda rows: rows[0].__setitem__(1, column))
    same_trials(load(lab.root).subject(1).trials, expected)
    assert f"no such column: {column} is taken for it" in said(lab.root)
    rewrite(lab, lambda rows: rows[3].__setitem__(1, "nowhere.png"))
    with pytest.raises(UserError, match=f"line 4, {column} is 'nowhere.png', which no image"):
        load(lab.root)


def test_the_stimulus_column_counts_before_the_others_and_a_file_before_a_label(lab):
    expected = load(lab.root).subject(1).trials

    def categories(rows):
        for i, row in enumerate(rows):
            row.append("label" if i == 0 else "house")

    rewrite(lab, categories)
    same_trials(load(lab.root).subject(1).trials, expected)
    rewrite(lab, lambda rows: rows[0].__setitem__(1, "stim_file"))
    same_trials(load(lab.root).subject(1).trials, expected)


def test_whole_numbers_that_pandas_wrote_with_a_point(lab):
    """A column that holds n/a is one of floats to pandas; a trial that nothing uses needs no session."""
    lab.stimulus[2], lab.split[5] = "n/a", "n/a"
    write_table(lab.root, lab)
    expected = load(lab.root).subject(1).trials
    repeat = dict(zip(expected.row.tolist(), expected.repeat.tolist(), strict=True))

    def with_points(rows):
        rows[0].append("repeat")
        for i, row in enumerate(rows[1:]):
            row[2] = f"{row[2]}.0" if i in repeat else ""
            row.append(f"{repeat[i]}.00" if i in repeat else "nan")

    rewrite(lab, with_points)
    dataset = load(lab.root)
    same_trials(dataset.subject(1).trials, expected)
    assert np.isfinite(dataset.subject(1).betas(range(TRIALS))).all()
    assert check(lab.root).count("error") == 0
    rewrite(lab, lambda rows: rows[1].__setitem__(2, "1.5"))
    with pytest.raises(UserError, match=r"line 2, session is '1\.5'; expected 1, 2"):
        load(lab.root)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["n/a", "N/A", "nan", "NaN", ""]), min_size=3, max_size=3))
def test_every_way_to_say_missing(tmp_path_factory, words):
    lab = make_lab(tmp_path_factory.mktemp("missing"))
    lab.stimulus[0], lab.stimulus[9], lab.split[4] = words
    write_table(lab.root, lab)
    rows = load(lab.root).subject(1).trials.row
    assert sorted(set(range(TRIALS)) - set(rows.tolist())) == [0, 4, 9]


def test_a_table_with_commas(lab):
    expected = load(lab.root).subject(1).trials
    (lab.root / "stimuli/b, in the sun.jpg").write_bytes((lab.root / "stimuli/b.jpg").read_bytes())
    rows = rows_of(lab.root / "trials.tsv")
    row = next(i for i, row in enumerate(rows) if row[1] == "b.jpg")
    rows[row][1] = '"b, in the sun.jpg"'
    save_rows(lab.root / "trials.csv", rows, ",")
    with pytest.raises(UserError, match=r"holds both trials.tsv and trials.csv; expected one table"):
        load(lab.root)
    (lab.root / "trials.tsv").unlink()
    dataset = load(lab.root)
    found = dataset.subject(1).trials
    np.testing.assert_array_equal(found.session, expected.session)
    names = dataset.stimuli.names
    assert names[found.stimulus[row - 1]] == "b, in the sun.jpg"
    assert check(lab.root).count("error") == 0


@pytest.mark.parametrize(
    "text, words",
    [
        ("stimulus;session;split\nb.jpg;1;train\n", ("trials.csv", "0 columns 'stimulus'", "comma separated")),
        ('stimulus,session,split\n"b.jpg,1,train\n', ("trials.csv", "not a table", "comma separated")),
        ("stimulus,session,split\n", ("trials.csv", "holds no trial")),
        ("", ("trials.csv", "0 columns 'stimulus'")),
        ("stimulus,session,split\nb.jpg,1\n", ("trials.csv", "line 2 has 2 cells; expected 3")),
    ],
)
def test_a_bad_table_with_commas_is_refused_in_one_line(lab, capsys, text, words):
    (lab.root / "trials.tsv").unlink()
    (lab.root / "trials.csv").write_text(text)
    refused(lab.root, capsys, *words)


@pytest.mark.parametrize("word", ["val", "valid", "validation", "dev"])
def test_trials_of_a_validation_split_are_used_by_nothing_and_that_is_said(lab, word):
    shown = [i for i, name in enumerate(lab.stimulus) if name == "c.png"]
    for i in shown:
        lab.split[i] = word
    write_table(lab.root, lab)
    dataset = load(lab.root)
    assert set(shown).isdisjoint(dataset.subject(1).trials.row.tolist())
    assert len(dataset.subject(1).trials) == TRIALS - len(shown)
    assert f"note trials.tsv split: {len(shown)} trials of a validation split: nothing uses them" in said(lab.root)
    lab.split[shown[0]] = "Val"
    write_table(lab.root, lab)
    with pytest.raises(UserError, match="split is 'Val'; expected train, test or n/a"):
        load(lab.root)


# ---- subjects with names


def two(root, *names):
    return [make_lab(root, "npy", name, seed=i, stimuli=i == 0, rois=False) for i, name in enumerate(names)]


def test_subjects_with_names_are_counted_in_their_order(tmp_path):
    second, first = two(tmp_path, "sub-KM", "sub-BE")
    dataset = load(tmp_path)
    assert list(dataset.subjects) == [1, 2] and dataset.card["subjects"] == {"1": "sub-BE", "2": "sub-KM"}
    for number, lab in ((1, first), (2, second)):
        assert [NAMES[i] for i in dataset.subject(number).trials.stimulus] == lab.stimulus
    findings = check(tmp_path)
    assert (".", "subjects 1 (sub-BE), 2 (sub-KM)") in findings.facts
    assert 'subject_numbers of dataset.json: {"sub-BE": 1, "sub-KM": 2}' in said(tmp_path)
    card(second, subject_numbers={"sub-KM": 4, "sub-BE": 9}, subject_offset=100)
    dataset = load(tmp_path)
    assert sorted(dataset.subjects) == [104, 109] and dataset.card["subjects"] == {"104": "sub-KM", "109": "sub-BE"}
    assert [NAMES[i] for i in dataset.subject(109).trials.stimulus] == first.stimulus
    write(tmp_path / "again", dataset)
    assert sorted(load(tmp_path / "again").subjects) == [104, 109]


def test_a_number_for_nobody_is_a_warning(tmp_path):
    lab, _ = two(tmp_path, "sub-KM", "sub-BE")
    card(lab, subject_numbers={"sub-KN": 4, "sub-BE": 9})
    warned = [item for item in check(tmp_path).items if item.field == "subject_numbers"]
    assert [(item.severity, item.file) for item in warned] == [("warning", "dataset.json")]
    assert warned[0].message == "names 'sub-KN', which no subject is called; expected some of sub-BE, sub-KM"
    card(lab, subject_numbers={"sub-KM": 4, "sub-BE": 9})
    assert not [item for item in check(tmp_path).items if item.field == "subject_numbers"]


def test_one_subject_alone_may_be_called_anything(tmp_path):
    make_lab(tmp_path / "sub-BE", rois=False)
    dataset = load(tmp_path / "sub-BE")
    assert list(dataset.subjects) == [1] and "subjects" not in dataset.card


@pytest.mark.parametrize(
    "names, fields, words",
    [
        (("sub-01", "sub-BE"), {}, ("sub-BE: has no number, as sub-01 has", "subject_numbers in dataset.json")),
        (("sub-KM", "sub-BE"), {"subject_numbers": {"sub-KM": 1}}, ("sub-KM: is subject 1, as sub-BE",)),
        (("sub-KM", "sub-BE"), {"subject_numbers": {"sub-KM": 0}}, ("dataset.json: subject_numbers is {'sub-KM': 0}",)),
        (("sub-KM", "sub-BE"), {"subject_numbers": [1, 2]}, ("dataset.json: subject_numbers is [1, 2]",)),
    ],
)
def test_numbers_that_cannot_be_told_are_refused(tmp_path, capsys, names, fields, words):
    lab, _ = two(tmp_path, *names)
    card(lab, **fields)
    refused(tmp_path, capsys, *words)


# ---- masks


def test_masks_of_other_values_say_what_is_taken(lab):
    """NSD's region files hold -1 outside, 0 and 1, 2, ...: all above 0 are taken, or those that the card names."""
    area = np.full(MASK_SHAPE, -1, np.int16)
    where = np.flatnonzero(lab.mask)
    area.flat[where] = [0, 1, 2, 3, 7, 0, 1, 2, 3, 7, 1]
    save_nifti(lab.root / "rois/visual.nii.gz", area)
    inside = area[lab.mask]
    np.testing.assert_array_equal(load(lab.root).subject(1).rois["visual"], inside > 0)
    assert "rois/visual.nii.gz values: holds -1, 0, 1, 2, 3, 7; taken: 1, 2, 3, 7 (all above 0)" in said(lab.root)
    assert "mask.nii.gz values" not in said(lab.root) and "V1.nii.gz values" not in said(lab.root)
    card(lab, mask_values={"visual": [1, 2], "V9": [1]})
    np.testing.assert_array_equal(load(lab.root).subject(1).rois["visual"], (inside == 1) | (inside == 2))
    assert "holds -1, 0, 1, 2, 3, 7; taken: 1, 2" in said(lab.root)
    assert "mask_values: names 'V9', which no mask is called; expected mask, V1, visual" in said(lab.root)


@pytest.mark.parametrize("form", ["npy", "nii.gz"])
def test_the_subjects_own_mask_by_values(tmp_path, capsys, form):
    lab = make_lab(tmp_path, form, rois=False)
    expected = load(tmp_path).subject(1).betas(range(TRIALS))
    labels = np.where(lab.mask, 5, 2).astype(np.float32)
    save_nifti(tmp_path / "mask.nii.gz", labels)
    card(lab, mask_values={"mask": [5]})
    np.testing.assert_array_equal(load(tmp_path).subject(1).betas(range(TRIALS)), expected)
    card(lab, mask_values={"mask": [4]})
    refused(tmp_path, capsys, "mask.nii.gz: no voxel is taken", "expected one of [4], as mask_values of dataset.json says")
    for wrong in ([1], {"mask": 1}, {"mask": []}, {"mask": ["1"]}, {"mask": [True]}):
        card(lab, mask_values=wrong)
        refused(tmp_path, capsys, f"dataset.json: mask_values is {wrong!r}", '{"mask": [1, 2]}')


def test_check_looks_at_the_voxels_of_given_values_and_changes_nothing(tmp_path, capsys):
    lab = make_lab(tmp_path, "nii.gz", rois=False)
    labels = np.where(lab.mask, 5, 0).astype(np.float32)
    labels.flat[np.flatnonzero(~lab.mask)[:3]] = 2
    save_nifti(tmp_path / "mask.nii.gz", labels)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for values, voxels in (("5", 11), ("2,5", 14), ("2", 3)):
        main(["check", str(tmp_path), "--mask-values", values])
        found = capsys.readouterr().out
        assert f"betas: {TRIALS} trials x {voxels} voxels" in found and '"mask_values": {"mask": [' in found
    assert load(tmp_path).subject(1).n_voxels == 14  # all above 0, as before
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main(["check", str(tmp_path), "--mask-values", "9"]) == 2
    assert "no voxel is taken; expected one of [9.0]" in capsys.readouterr().out
    assert main(["check", str(tmp_path), "--mask-values", "V1"]) == 2
    assert "--mask-values: is 'V1'; expected numbers such as 1,2" in capsys.readouterr().err


def test_many_values_are_said_by_their_range(lab):
    region = np.zeros(MASK_SHAPE, np.float32)
    region[lab.mask] = np.linspace(0.05, 0.95, 11, dtype=np.float32)
    save_nifti(lab.root / "rois/likely.nii.gz", region)
    assert "holds 12 values from 0 to 0.95; taken: 11 values from 0.05 to 0.95 (all above 0)" in said(lab.root)


def test_a_table_of_regions_as_pandas_writes_it(lab):
    (lab.root / "rois/V1.nii.gz").unlink()
    (lab.root / "rois").rmdir()
    (lab.root / "rois.tsv").write_text("\n".join(["V1"] + [f"{int(inside)}.0" for inside in lab.v1]))
    np.testing.assert_array_equal(load(lab.root).subject(1).rois["V1"], lab.v1)


# ---- pictures


def pixels(lab, name):
    stimuli = load(lab.root).stimuli
    return np.rint(stimuli.images([stimuli.names.index(name)])[0].astype(float) * 255)


def picture(seed=0, side=224):
    """Its four corners tell every way in which it can be turned or mirrored."""
    array = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    array[: side // 2, : side // 2], array[: side // 2, side // 2 :] = 0, 80
    array[side // 2 :, : side // 2], array[side // 2 :, side // 2 :] = 160, 240
    return array


STORED = {  # EXIF's orientation: how pixels (rows, columns) of the upright picture lie in the file
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a.transpose(1, 0, 2), 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", STORED)
def test_a_picture_is_upright(lab, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = picture()
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    stored.save(lab.root / "stimuli/c.png", exif=exif)
    np.testing.assert_array_equal(pixels(lab, "c.png"), upright.transpose(2, 0, 1))
    assert ("1 images are turned upright, as EXIF says: c.png" in said(lab.root)) == (orientation > 1)


def test_the_size_is_that_of_the_upright_picture(lab):
    from mindtuner.formats.image_files import FolderImages

    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 60)).save(lab.root / "stimuli/c.png", exif=exif)
    images = FolderImages(lab.root / "stimuli")
    assert images.size(images.names["c.png"]) == (60, 40)


def converted(name):
    rgb = picture(1)
    if name == "grey.png":
        grey = rgb[..., 0]
        return Image.fromarray(grey), np.dstack([grey] * 3), "grey"
    if name == "cmyk.tiff":
        return Image.fromarray(np.dstack([255 - rgb, np.zeros_like(rgb[..., :1])]), "CMYK"), rgb, "CMYK"
    if name == "palette.png":
        few = rgb // 128 * 128
        image = Image.fromarray(few).quantize(8)
        return image, np.asarray(image.convert("RGB")), "palette"
    if name == "alpha.webp":
        return Image.fromarray(np.dstack([rgb, np.full_like(rgb[..., :1], 255)])), rgb, None
    if name == "bits.bmp":
        bits = rgb[..., 0] > 127
        return Image.fromarray(bits), np.dstack([bits * 255] * 3), "black and white"
    if name == "alpha.png":
        return Image.fromarray(np.dstack([rgb, np.full_like(rgb[..., :1], 255)])), rgb, "RGBA"
    raise KeyError(name)


@pytest.mark.parametrize("name", ["grey.png", "cmyk.tiff", "palette.png", "bits.bmp", "alpha.png", "alpha.webp"])
def test_pictures_of_other_colours_are_converted_and_that_is_said(lab, name):
    image, expected, kind = converted(name)
    image.save(lab.root / "stimuli" / name, lossless=True) if name.endswith("webp") else image.save(
        lab.root / "stimuli" / name
    )
    np.testing.assert_array_equal(pixels(lab, name), expected.transpose(2, 0, 1))
    if kind:
        assert f"1 images are converted from {kind} to RGB: {name}" in said(lab.root)


def test_transparent_pictures_need_their_background(lab, capsys):
    rgb = picture(2)
    alpha = np.zeros((224, 224, 1), np.uint8)
    alpha[:100], alpha[100:150] = 255, 51  # opaque, a fifth, clear
    Image.fromarray(np.dstack([rgb, alpha])).save(lab.root / "stimuli/c.png")
    plain = load(lab.root).stimuli
    with pytest.raises(UserError, match="c.png: is transparent in places; expected .* background in dataset.json"):
        plain.images([3])
    assert main(["check", str(lab.root)]) == 2
    card(lab, background=[100, 150, 200])
    share = alpha / 255.0
    expected = rgb * share + np.array([100, 150, 200]) * (1 - share)
    assert np.abs(pixels(lab, "c.png") - expected.transpose(2, 0, 1)).max() < 1.01
    assert check(lab.root).count("error") == 0
    assert load(lab.root).stimuli.hash != plain.hash
    for wrong in ("white", [1, 2], [0, 0, 256], [0.5, 0, 0]):
        card(lab, background=wrong)
        refused(lab.root, capsys, f"dataset.json: background is {wrong!r}; expected red, green and blue")
