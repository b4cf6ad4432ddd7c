"""A lab's folder, read back against betas, pictures and tables that were made by hand."""

import ast
import gzip
import json
import os
import re
import shutil
import tracemalloc

import h5py
import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lab_files import CAPTIONS, MASK_SHAPE, NAMES, TRIALS, VOXELS, make_lab, save_nifti, write_betas, write_table, zscored
from nsd_release_files import make_nsd
from paths import ROOT
from PIL import Image

from mindtuner.data import build_cache
from mindtuner.errors import UserError
from mindtuner.formats import check, load
from mindtuner.formats.lab_folder import write as lab_writer

FORMS = ("npy", "hdf5", "packed", "nii", "nii.gz")


@pytest.fixture
def lab(tmp_path):
    return make_lab(tmp_path / "data")


@pytest.fixture(scope="module")
def labs(tmp_path_factory):
    """The same scans in each form."""
    return {form: make_lab(tmp_path_factory.mktemp(form.replace(".", "")), form) for form in FORMS}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_trials_and_betas(labs, form):
    lab = labs[form]
    dataset = load(lab.root)
    assert list(dataset.subjects) == [1]
    assert dataset.card["zscore"] == "train_trials" and dataset.card["zscored_on_read"] is True
    assert dataset.card["simulated"] is False
    subject = dataset.subject(1)
    trials = subject.trials
    np.testing.assert_array_equal(trials.row, np.arange(TRIALS))
    assert [NAMES[i] for i in trials.stimulus] == lab.stimulus
    np.testing.assert_array_equal(trials.session, lab.session)
    np.testing.assert_array_equal(trials.is_test, np.array(lab.split) == "test")
    np.testing.assert_array_equal(trials.repeat, [lab.stimulus[:i].count(name) for i, name in enumerate(lab.stimulus)])
    assert subject.n_voxels == VOXELS and subject.betas([3]).dtype == np.float32
    np.testing.assert_allclose(subject.betas(trials.row), zscored(lab), atol=2e-5)
    np.testing.assert_array_equal(subject.rois["V1"], lab.v1)
    np.testing.assert_array_equal(subject.betas(trials.row), load(labs["npy"].root).subject(1).betas(trials.row))
    np.testing.assert_allclose(subject.within("V1").betas([5, 2]), zscored(lab)[[5, 2]][:, lab.v1], atol=2e-5)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, TRIALS - 1), max_size=20))
def test_betas_of_any_rows_in_any_order(opened, rows):
    for subject, betas in opened:
        np.testing.assert_allclose(subject.betas(rows), betas[np.array(rows, int)], atol=2e-5)


@pytest.fixture(scope="module")
def opened(labs):
    return [(load(lab.root).subject(1), zscored(lab)) for lab in labs.values()]


def write_card(lab, **card):
    (lab.root / "dataset.json").write_text(json.dumps(card))


@pytest.mark.parametrize("said", ["publisher", "train_trials", "session_all"])
def test_betas_that_are_zscored_already_are_taken_as_they_are(lab, said):
    write_card(lab, zscore=said, simulated=True, scanner="ours")
    dataset = load(lab.root)
    assert dataset.card == {"simulated": True, "zscore": said, "subject_offset": 0, "scanner": "ours"}
    np.testing.assert_array_equal(dataset.subject(1).betas(range(TRIALS)), lab.betas)


def test_a_session_without_training_trials_takes_those_of_all_others(lab):
    """Three sessions; the third shows the test image only."""
    lab.stimulus[20:], lab.split[20:] = ["d.png"] * 4, ["test"] * 4
    lab.session = np.repeat([1, 2, 3], (12, 8, 4))
    write_table(lab.root, lab)
    train = np.array(lab.split) == "train"
    mean, sd = (f(lab.betas[train].astype(float), axis=0) for f in (np.mean, np.std))
    got = load(lab.root).subject(1).betas(range(20, 24))
    np.testing.assert_allclose(got, (lab.betas[20:] - mean) / sd, rtol=1e-4, atol=1e-5)
    lab.stimulus, lab.split = ["d.png"] * TRIALS, ["test"] * TRIALS
    write_table(lab.root, lab)
    with pytest.raises(UserError, match="betas.npy: no session has 2 training trials"):
        load(lab.root).subject(1).betas([0])


def test_test_trials_do_not_change_the_statistics(lab):
    before = load(lab.root).subject(1).betas(range(TRIALS))
    test = np.array(lab.split) == "test"
    lab.betas[test] *= 100
    write_betas(lab.root, lab, "npy")
    after = load(lab.root).subject(1).betas(range(TRIALS))
    np.testing.assert_array_equal(after[~test], before[~test])
    assert np.abs(after[test] - before[test]).max() > 10


def test_a_voxel_that_is_constant_in_a_session_is_zero_there(lab):
    lab.betas[:12, 4] = 0.1
    write_betas(lab.root, lab, "npy")
    betas = load(lab.root).subject(1).betas(range(TRIALS))
    assert (betas[:12, 4] == 0).all() and (betas[12:, 4] != 0).all()


def test_pictures_are_the_central_square_at_224(lab):
    stimuli = load(lab.root).stimuli
    images = stimuli.images([1, 0, 2, 1])
    assert images.shape == (4, 3, 224, 224) and images.dtype == np.float16
    exact = np.asarray(Image.open(lab.root / "stimuli/a/one.png"))
    np.testing.assert_array_equal(np.rint(images[1].astype(float) * 255), exact.transpose(2, 0, 1))
    wide = Image.open(lab.root / "stimuli/a/two.png").resize((448, 224), Image.Resampling.BICUBIC)
    centre = np.asarray(wide)[:, 112:336].transpose(2, 0, 1)
    assert np.abs(images[0].astype(float) * 255 - centre).max() < 1.01
    tall = Image.open(lab.root / "stimuli/b.jpg").resize((224, 336), Image.Resampling.BICUBIC)
    centre = np.asarray(tall)[56:280].transpose(2, 0, 1)
    assert np.abs(images[2].astype(float) * 255 - centre).max() < 1.01
    np.testing.assert_array_equal(images[0], images[3])


def test_captions_one_several_or_none(lab):
    stimuli = load(lab.root).stimuli
    expected = [[line for line in CAPTIONS.get(name, "").split("\n") if line] for name in NAMES]
    assert [list(texts) for texts in stimuli.captions] == expected and len(stimuli.captions[0]) == 2
    np.testing.assert_array_equal(stimuli.is_shared, [name == "d.png" for name in NAMES])


def test_the_hash_is_that_of_the_picture_files_in_their_order(lab):
    """Known without unpacking any: a file that is no picture, or one that shows the same, is another stimulus."""
    folder = lab.root / "stimuli"

    def found():
        return load(lab.root).stimuli.hash

    before, seen = found(), set()
    assert found() == before
    for name in NAMES:  # any byte of any file, also where it is no picture any more
        whole = (folder / name).read_bytes()
        for place in (10, len(whole) // 2, len(whole) - 1):
            (folder / name).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            seen.add(found())
        (folder / name).write_bytes(whole[:-1])
        seen.add(found())
        (folder / name).write_bytes(whole)
    first, second = (folder / NAMES[0]).read_bytes(), (folder / NAMES[1]).read_bytes()
    (folder / NAMES[0]).write_bytes(second)
    (folder / NAMES[1]).write_bytes(first)
    seen.add(found())
    (folder / NAMES[0]).write_bytes(first)
    (folder / NAMES[1]).write_bytes(second)
    (folder / "c.txt").write_text("now it has words")
    seen.add(found())
    (folder / "c.txt").write_text(CAPTIONS["c.png"])
    (folder / "f.png").write_bytes(first)
    seen.add(found())
    (folder / "f.png").unlink()
    assert found() == before and before not in seen and len(seen) == 4 * len(NAMES) + 3


@pytest.mark.parametrize("kind", ["last", "first", "float"])
def test_images_in_one_hdf5_file_are_named_by_number(lab, kind):
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (6, 224, 224, 3), dtype=np.uint8)
    stored = {
        "last": pixels,
        "first": pixels.transpose(0, 3, 1, 2),
        "float": (pixels.transpose(0, 3, 1, 2) / 255).astype(np.float32),
    }[kind]
    shutil.rmtree(lab.root / "stimuli")
    with h5py.File(lab.root / "stimuli.hdf5", "w") as file:
        file["images"] = stored
        if kind == "last":
            file.create_dataset("captions", data=[["a dog", ""]] * 5 + [["", ""]], dtype=h5py.string_dtype())
    lab.stimulus = [str(NAMES.index(name)) for name in lab.stimulus]
    write_table(lab.root, lab)
    stimuli = load(lab.root).stimuli
    np.testing.assert_array_equal(np.rint(stimuli.images([4, 1]).astype(float) * 255), pixels[[4, 1]].transpose(0, 3, 1, 2))
    assert stimuli.captions == ([("a dog",)] * 5 + [()] if kind == "last" else [()] * 6)
    assert not stimuli.named and stimuli.names[4] == "image 4"


def test_a_link_has_its_own_number(tmp_path):
    """Not that of the folder it leads to: a link says who the subject is here."""
    make_lab(tmp_path / "sub-07")
    (tmp_path / "sub-01").symlink_to("sub-07")
    assert list(load(tmp_path / "sub-07").subjects) == [7]
    assert list(load(tmp_path / "sub-01").subjects) == [1]


def test_several_subjects_share_stimuli_and_test_images(tmp_path):
    first = make_lab(tmp_path, "npy", "sub-01")
    second = make_lab(tmp_path, "nii.gz", "sub-12", seed=1, stimuli=False, rois=False)
    write_card(first, subject_offset=100)
    dataset = load(tmp_path)
    assert list(dataset.subjects) == [101, 112] and list(load(tmp_path, [112]).subjects) == [112]
    for lab, number in ((first, 101), (second, 112)):
        subject = dataset.subject(number)
        np.testing.assert_allclose(subject.betas(range(TRIALS)), zscored(lab), atol=2e-5)
        assert len(subject.train) == lab.split.count("train")
    assert dataset.subject(112).rois == {}
    with pytest.raises(UserError, match="no subject 3; expected some of 101, 112"):
        load(tmp_path, [3])
    second.split = ["train"] * TRIALS
    write_table(tmp_path / "sub-12", second)
    with pytest.raises(UserError, match=r"sub-12.trials.tsv: line \d+, split has 'd.png' in train, subject 101 in test"):
        load(tmp_path, [112])


def test_trials_without_stimulus_are_left_out_and_rows_stay(lab):
    for row in (0, 7):
        lab.stimulus[row] = "n/a"
    lab.split[20] = "n/a"
    write_table(lab.root, lab)
    subject = load(lab.root).subject(1)
    kept = [row for row in range(TRIALS) if row not in (0, 7, 20)]
    np.testing.assert_array_equal(subject.trials.row, kept)
    train = np.array([split == "train" and name != "n/a" for split, name in zip(lab.split, lab.stimulus, strict=True)])
    base = lab.betas[train & (lab.session == 1)].astype(float)
    np.testing.assert_allclose(subject.betas([0, 5]), (lab.betas[[0, 5]] - base.mean(0)) / base.std(0), atol=2e-5)


def test_regions_as_npz_and_as_table(lab):
    (lab.root / "rois" / "V1.nii.gz").unlink()
    (lab.root / "rois").rmdir()
    np.savez(lab.root / "rois.npz", V1=lab.v1, V2=~lab.v1)
    rois = load(lab.root).subject(1).rois
    np.testing.assert_array_equal(rois["V2"], ~lab.v1)
    (lab.root / "rois.npz").unlink()
    lines = ["V1\tall"] + [f"{int(inside)}\t1" for inside in lab.v1]
    (lab.root / "rois.tsv").write_text("\n".join(lines))
    rois = load(lab.root).subject(1).rois
    np.testing.assert_array_equal(rois["V1"], lab.v1)
    assert rois["all"].all()
    (lab.root / "rois.tsv").unlink()
    assert load(lab.root).subject(1).rois == {}


def test_vertices_of_the_surface(lab):
    assert load(lab.root).subject(1).vertices is None
    vertices = np.arange(VOXELS) * 7 + 32_000
    np.save(lab.root / "vertices.npy", vertices)
    np.testing.assert_array_equal(load(lab.root).subject(1).vertices, vertices)
    for wrong in (vertices[1:], vertices.astype(float), vertices * 0, vertices - 32_001, vertices + 40_000):
        np.save(lab.root / "vertices.npy", wrong)
        with pytest.raises(UserError, match=r"vertices\.npy: .*; expected"):
            load(lab.root)
    (lab.root / "vertices.npy").write_bytes(b"no array")
    with pytest.raises(UserError, match=r"vertices\.npy: cannot be read"):
        load(lab.root)


def test_scaled_whole_numbers_of_a_nifti_file(lab):
    """int16 with a slope and an intercept, as scanners' software writes them."""
    raw = np.random.default_rng(3).integers(-3000, 3000, (*MASK_SHAPE, 12)).astype(np.int16)
    (lab.root / "betas.npy").unlink()
    for number in (1, 2):
        for name in ("nii", "nii.gz"):
            if (name == "nii") == (number == 1):
                image = nibabel.Nifti1Image(raw + number, lab_affine(lab))
                image.header.set_slope_inter(0.25, -3)
                path = lab.root / f"betas_session-{number}.{name}"
                nibabel.save(image, path)
    write_card(lab, zscore="publisher")
    got = load(lab.root).subject(1).betas(range(TRIALS))
    for number in (1, 2):  # nibabel rescales when it saves: what counts is what it reads back
        path = next(lab.root.glob(f"betas_session-{number}.nii*"))
        expected = nibabel.load(path).get_fdata()[lab.mask].T
        np.testing.assert_allclose(got[12 * (number - 1) : 12 * number], expected, rtol=1e-6)


def lab_affine(lab):
    return nibabel.load(lab.root / "mask.nii.gz").affine


@pytest.mark.parametrize("form", lab_writer.FORMS)
def test_the_writer_writes_what_the_reader_reads(labs, tmp_path, form):
    dataset = load(labs["npy"].root)
    lab_writer.write(tmp_path, dataset, form)
    again = load(tmp_path)
    assert again.card["zscore"] == "train_trials"
    one, two = dataset.subject(1), again.subject(1)
    np.testing.assert_array_equal(two.betas(range(TRIALS)), one.betas(range(TRIALS)))
    for field in ("row", "stimulus", "session", "repeat", "is_test"):
        np.testing.assert_array_equal(getattr(two.trials, field), getattr(one.trials, field))
    np.testing.assert_array_equal(again.stimuli.images(range(6)), dataset.stimuli.images(range(6)))
    assert again.stimuli.captions == dataset.stimuli.captions
    np.testing.assert_array_equal(two.rois["V1"], one.rois["V1"])
    assert not [path for path in tmp_path.rglob("*") if ".part" in path.name]
    with pytest.raises(UserError, match="form: is 'mat'"):
        lab_writer.write(tmp_path, dataset, "mat")


@pytest.mark.parametrize("form", lab_writer.FORMS)
def test_the_release_written_as_a_labs_own_scans_is_the_same_dataset(release, tmp_path, form):
    """The NSD release -> a lab's folder: to the bit."""
    lab_writer.write(tmp_path, release, form)
    again = load(tmp_path)
    assert list(again.subjects) == list(release.subjects) == [1, 3]
    for number, subject in release.subjects.items():
        other = again.subject(number)
        for one, two in ((subject.train, other.train), (subject.test, other.test)):
            np.testing.assert_array_equal(two.stimulus, one.stimulus)
            np.testing.assert_array_equal(other.betas(two.row), subject.betas(one.row))
        assert other.rois.keys() == subject.rois.keys()
        for name, mask in subject.rois.items():
            np.testing.assert_array_equal(other.rois[name], mask)
    everything = range(len(release.stimuli))
    np.testing.assert_array_equal(again.stimuli.images(everything), release.stimuli.images(everything))
    assert again.stimuli.captions == release.stimuli.captions


def test_file_names_are_kept_and_written(lab, tmp_path):
    """Also where they would sort otherwise than their images do; images in one HDF5 file have none."""
    dataset = load(lab.root)
    assert dataset.stimuli.named and tuple(dataset.stimuli.names) == NAMES
    lab_writer.write(tmp_path / "again", dataset)
    again = load(tmp_path / "again")
    assert again.stimuli.names == [re.sub("jpe?g", "png", name) for name in NAMES]
    assert again.stimuli.captions == dataset.stimuli.captions
    dataset.stimuli.names = list(reversed(NAMES))
    lab_writer.write(tmp_path / "turned", dataset)
    turned = load(tmp_path / "turned")
    assert turned.stimuli.names == [
        "000000-e.png",
        "000001-d.png",
        "000002-c.png",
        "000003-b.png",
        "000004-two.png",
        "000005-one.png",
    ]
    for one in (again, turned):
        np.testing.assert_array_equal(one.subject(1).trials.stimulus, dataset.subject(1).trials.stimulus)


def test_the_mask_of_all_voxels_is_known(lab):
    subject = load(lab.root).subject(1)
    assert subject.mask == lab.root / "mask.nii.gz"
    assert subject.within("V1").mask is None
    shutil.rmtree(lab.root / "rois")
    (lab.root / "mask.nii.gz").unlink()
    assert load(lab.root).subject(1).mask is None


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return load(make_nsd(tmp_path_factory.mktemp("release")).root)


def test_irregular_scans_of_two_subjects(tmp_path):
    """Two sessions and one; images seen once, twice and thrice; several captions and none; regions of one subject only."""
    make_lab(tmp_path, "npy", "sub-01")
    lab = make_lab(tmp_path, "npy", "sub-02", seed=1, stimuli=False, rois=False)
    shown = [NAMES[i] for i in (0, 1, 0, 2, 3, 0, 1, 4, 5)]
    lab.stimulus, lab.session, lab.betas = shown, np.ones(9, int), lab.betas[:9]
    lab.split = ["test" if name == "d.png" else "train" for name in shown]
    write_table(tmp_path / "sub-02", lab)
    write_betas(tmp_path / "sub-02", lab, "npy")
    dataset = load(tmp_path)
    one, two = dataset.subject(1), dataset.subject(2)
    assert set(one.trials.session) == {1, 2} and set(two.trials.session) == {1}
    assert two.trials.repeat.tolist() == [0, 0, 1, 0, 0, 2, 1, 0, 0]
    assert sorted(map(len, dataset.stimuli.captions)) == [0, 0, 0, 0, 1, 2]
    assert list(one.rois) == ["V1"] and two.rois == {}
    with pytest.raises(UserError, match="sessions: is 2 for subject 2; expected 1 to 1"):
        two.sessions(2)
    with pytest.raises(UserError, match="subject 2: no region 'V1'"):
        two.within("V1")
    train = np.array(lab.split) == "train"
    base = lab.betas[train].astype(float)
    betas = (lab.betas - base.mean(0)) / base.std(0)
    mean = two.averaged()
    assert mean.trials.stimulus.tolist() == [0, 1, 2, 3, 4, 5] and mean.trials.is_test.tolist() == [False] * 4 + [True, False]
    for place, rows in enumerate(([0, 2, 5], [1, 6], [3], [4], [7], [8])):
        np.testing.assert_allclose(mean.betas([place])[0], betas[rows].mean(0), atol=2e-5)
    findings = check(tmp_path)
    assert findings.count("error") == 0
    said = " | ".join(f"{item.file} {item.field}: {item.message}" for item in findings.items)
    for words in (
        "sub-02 rois: no regions of interest: all voxels are used together",
        "subjects have different numbers of sessions (1: 2, 2: 1)",
        "4 of 6 images have no caption",
        "training images were seen unequally often (3 images 1 times; 1 images 2 times; 1 images 3 times)",
    ):
        assert words in said, said


def test_opening_reads_no_betas_and_a_row_only_its_session(tmp_path):
    """A file of 1.2 GB, all holes but for a few rows: what is read is what memory must hold."""
    rows, voxels = 20_000, 15_000
    make_lab(tmp_path)
    (tmp_path / "mask.nii.gz").unlink()
    shutil.rmtree(tmp_path / "rois")
    lines = [f"{NAMES[i % 3]}\t{i // 500 + 1}\ttrain" for i in range(rows)]
    (tmp_path / "trials.tsv").write_text("\n".join(["stimulus\tsession\tsplit", *lines]))
    with open(tmp_path / "betas.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (rows, voxels)})
        start = file.tell()
        file.truncate(start + rows * voxels * 4)
        file.seek(start + 501 * voxels * 4)
        file.write(np.arange(voxels, dtype="<f4").tobytes())
    tracemalloc.start()
    subject = load(tmp_path).subject(1)
    opened = tracemalloc.get_traced_memory()[1]
    row = subject.betas([501])[0]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert opened < 60e6 and peak < 250e6
    # One of 500 values is v, the others 0: its z-score does not depend on v.
    assert row[0] == 0
    np.testing.assert_allclose(row[1:], np.sqrt(499), rtol=1e-5)


def edit(path, line, column, value):
    lines = [row.split("\t") for row in path.read_text().split("\n")]
    lines[line - 1][column] = value
    path.write_text("\n".join("\t".join(row) for row in lines))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: edit(p, 3, 1, "nowhere.png"), r"line 3, stimulus is 'nowhere.png', which no image"),
        (lambda p: edit(p, 3, 1, "../mask.nii.gz"), r"line 3, stimulus is '../mask.nii.gz'"),
        (lambda p: edit(p, 4, 2, "0"), r"line 4, session is '0'; expected 1, 2"),
        (lambda p: edit(p, 4, 2, "n/a"), r"line 4, session is 'n/a'"),
        (lambda p: edit(p, 5, 3, "Test"), r"line 5, split is 'Test'; expected train, test or n/a"),
        (lambda p: edit(p, 6, 3, "test\tmore"), r"line 6 has 5 cells; expected 4"),
        (lambda p: edit(p, 1, 1, "image"), r"0 columns 'stimulus'"),
        (lambda p: edit(p, 1, 0, "split"), r"2 columns 'split'"),
        (lambda p: p.write_text("\n".join(p.read_text().split("\n")[:-3])), r"22 trials but 24 betas rows in betas.npy"),
        (lambda p: p.write_text("stimulus\tsession\tsplit\n"), "holds no trial"),
        (lambda p: p.write_bytes(b"stimulus\tsession\tsplit\n\xff\xfe"), "not UTF-8"),
        (lambda p: p.unlink(), "no dataset|trials.tsv: not found"),
    ],
)
def test_a_bad_table_is_refused_by_line_and_column(lab, change, message):
    change(lab.root / "trials.tsv")
    with pytest.raises(UserError, match=message) as caught:
        load(lab.root)
    assert "\n" not in str(caught.value) and "expected" in str(caught.value)


def test_an_image_in_training_and_test_is_refused(lab):
    row = lab.stimulus.index("d.png", lab.stimulus.index("d.png") + 1)
    lab.split[row] = "train"
    write_table(lab.root, lab)
    with pytest.raises(UserError, match=rf"split has 'd.png' in test, line {row + 2} in train"):
        load(lab.root)


def test_repeats_are_taken_from_the_table(lab):
    counted = load(lab.root).subject(1).trials.repeat
    lines = (lab.root / "trials.tsv").read_text().strip().split("\n")
    whole = [lines[0] + "\trepeat"] + [f"{line}\t{k + 1}" for line, k in zip(lines[1:], counted, strict=True)]
    (lab.root / "trials.tsv").write_text("\n".join(whole))  # each was seen once before the scanner
    np.testing.assert_array_equal(load(lab.root).subject(1).trials.repeat, counted + 1)
    for value, message in (("-1", "repeat is '-1'"), (str(counted[10] + 1), "expected each repeat of an image once")):
        other = next(r for r in range(TRIALS) if r != 10 and lab.stimulus[r] == lab.stimulus[10])
        edited = list(whole)
        edited[other + 1] = f"{lines[other + 1]}\t{value}"
        (lab.root / "trials.tsv").write_text("\n".join(edited))
        with pytest.raises(UserError, match=message):
            load(lab.root)


def replace_betas(lab, array):
    np.save(lab.root / "betas.npy", array)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lab: replace_betas(lab, lab.betas.T), r"mask.nii.gz: 11 voxels .* expected 24 .* turned round"),
        (lambda lab: replace_betas(lab, lab.betas.astype(complex)), "dtype complex128"),
        (lambda lab: replace_betas(lab, lab.betas[0]), r"shape \(11,\)"),
        (
            lambda lab: np.save(lab.root / "betas.npy", lab.betas.astype(object), allow_pickle=True),
            "is pickled, .* never loaded",
        ),
        (lambda lab: write_betas(lab.root, lab, "hdf5"), "betas are betas.npy, betas.hdf5; expected one of"),
        (lambda lab: (lab.root / "betas.npy").unlink(), "betas are none"),
        (lambda lab: write_card(lab, zscore="maybe"), "dataset.json: zscore is 'maybe'"),
        (lambda lab: write_card(lab, subject_offset=-1), "dataset.json: subject_offset is -1"),
        (lambda lab: write_card(lab, simulated=1), "dataset.json: simulated is 1"),
        (lambda lab: (lab.root / "sub-01").mkdir(), "holds trials.tsv and sub-01"),
        (lambda lab: shutil.rmtree(lab.root / "stimuli"), "holds neither stimuli/ nor stimuli.hdf5; expected one"),
        (
            lambda lab: save_nifti(lab.root / "rois/V2.nii.gz", np.zeros((3, 4, 4), np.uint8)),
            r"V2.nii.gz: volumes of \(3, 4,",
        ),
        (
            lambda lab: save_nifti(lab.root / "rois/V2.nii.gz", lab.mask.astype(np.uint8), np.eye(4)),
            "V2.nii.gz: affine differs",
        ),
        (
            lambda lab: save_nifti(lab.root / "mask.nii.gz", np.ones(MASK_SHAPE, np.uint8)),
            "60 voxels are above 0; expected 11",
        ),
        (lambda lab: np.savez(lab.root / "rois.npz", V1=lab.v1), "regions in rois, rois.npz"),
    ],
)
def test_what_does_not_fit_is_refused(lab, change, message):
    change(lab)
    with pytest.raises(UserError, match=message):
        load(lab.root)


def test_whole_numbers_are_only_taken_where_they_are_zscored_here(lab):
    replace_betas(lab, (lab.betas * 300).astype(np.int16))
    lab.betas = (lab.betas * 300).astype(np.int16)
    np.testing.assert_allclose(load(lab.root).subject(1).betas(range(TRIALS)), zscored(lab), atol=2e-5)
    write_card(lab, zscore="publisher")
    with pytest.raises(UserError, match="betas are int16, but dataset.json says zscore 'publisher'"):
        load(lab.root)


def test_a_broken_session_file_gives_no_row(tmp_path):
    """Cut short, or changed inside: a gzip stream is only known to be whole at its end."""
    lab = make_lab(tmp_path, "nii.gz")
    path = tmp_path / "betas_session-02.nii.gz"
    whole = path.read_bytes()
    content = gzip.decompress(whole)
    flipped = bytearray(whole)
    flipped[-6] ^= 1  # its checksum
    for data in (whole[:-40], bytes(flipped), gzip.compress(content[:-4]), gzip.compress(content + b"\0" * 4)):
        path.write_bytes(data)
        subject = load(tmp_path).subject(1)
        np.testing.assert_allclose(subject.betas([0, 11]), zscored(lab)[[0, 11]], atol=2e-5)
        with pytest.raises(UserError, match="betas_session-02.nii.gz: cannot be read"):
            subject.betas([12])
    path.unlink()
    for data in (content[:-4], content + b"\0" * 4):
        (tmp_path / "betas_session-02.nii").write_bytes(data)
        with pytest.raises(UserError, match="betas_session-02.nii: has .* bytes; expected"):
            load(tmp_path)


def test_session_files_and_table_must_agree(tmp_path):
    lab = make_lab(tmp_path, "nii.gz")
    lab.session = np.repeat([1, 2], (11, 13))
    write_table(tmp_path, lab)
    with pytest.raises(UserError, match="line 13, session is 2; expected 1, since the session files hold 12 trials"):
        load(tmp_path)
    shutil.copy(tmp_path / "betas_session-02.nii.gz", tmp_path / "betas_session-2.nii.gz")
    with pytest.raises(UserError, match="is session 2, as betas_session"):
        load(tmp_path)


def test_betas_that_are_not_finite_are_named_where_they_are(lab):
    lab.betas[2, 6] = np.nan
    row = next(r for r in range(TRIALS) if lab.split[r] == "train" and lab.session[r] == 2)
    lab.betas[row, 3] = np.inf
    replace_betas(lab, lab.betas)
    subject = load(lab.root).subject(1)
    first = next(r for r in range(TRIALS) if lab.session[r] == 2)
    with pytest.raises(UserError, match=f"betas.npy: betas row {row}, voxel 3 is inf"):
        subject.betas([first])
    with pytest.raises(UserError, match="betas.npy: betas row 2, voxel 6 is nan"):
        subject.betas([2])


@pytest.mark.parametrize("kind", ["transparent", "deep", "cut", "text"])
def test_pictures_that_cannot_be_shown_are_refused_when_read(lab, kind):
    path = lab.root / "stimuli/c.png"
    if kind == "transparent":
        pixels = np.full((20, 20, 4), 200, np.uint8)
        pixels[0, 0, 3] = 0
        Image.fromarray(pixels).save(path)
    elif kind == "deep":
        Image.fromarray(np.full((20, 20), 40_000, np.uint16)).save(path)
    else:
        path.write_bytes(path.read_bytes()[:200] if kind == "cut" else b"a picture, honestly")
    stimuli = load(lab.root).stimuli
    assert len(stimuli.images([0, 1, 2])) == 3
    with pytest.raises(UserError, match="c.png: .*expected"):
        stimuli.images([0, 3])


def test_grey_pictures_and_opaque_alpha_are_pictures(lab):
    grey = np.random.default_rng(0).integers(0, 256, (224, 224), dtype=np.uint8)
    Image.fromarray(grey).save(lab.root / "stimuli/c.png")
    Image.fromarray(np.dstack([grey, grey, grey, np.full_like(grey, 255)])).save(lab.root / "stimuli/d.png")
    images = np.rint(load(lab.root).stimuli.images([3, 4]).astype(float) * 255)
    np.testing.assert_array_equal(images, np.broadcast_to(grey, images.shape))


def test_the_examples_of_the_docs(tmp_path):
    """The table is one that the reader takes, and what the script imports is there."""
    text = (ROOT / "docs" / "your-own-scans.md").read_text(encoding="utf-8")
    (table,) = (block for block in re.findall(r"```text\n(.*?)```", text, re.S) if block.startswith("stimulus\t"))
    make_lab(tmp_path, rois=False)
    (tmp_path / "trials.tsv").write_text(table)
    for name in ("beach.png", "animals/cat_01.jpg"):
        (tmp_path / "stimuli" / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (9, 9)).save(tmp_path / "stimuli" / name)
    np.save(tmp_path / "betas.npy", np.ones((4, 5), np.float32))
    (tmp_path / "dataset.json").write_text('{"zscore": "publisher"}')
    trials = load(tmp_path).subject(1).trials
    assert trials.is_test.tolist() == [False, True, False, True] and trials.repeat.tolist() == [0, 0, 1, 1]
    (script,) = re.findall(r"```python\n(.*?)```", text, re.S)
    for node in ast.walk(ast.parse(script)):
        if isinstance(node, ast.ImportFrom):
            exec(ast.unparse(node), {})


@pytest.mark.parametrize("change", ["pixels", "caption", "name"])
def test_features_of_pictures_that_changed_are_refused(lab, tmp_path_factory, change):
    """Also where the file has the size and the time that it had."""
    folder = tmp_path_factory.mktemp("cache")
    mean = lambda images: images.mean((2, 3), dtype=np.float64)
    build = lambda: build_cache(
        folder, "tokens", (3,), "float32", {"tower": "mean"}, load(lab.root).stimuli, mean, 2, "tokens"
    )
    first = np.asarray(build()[np.arange(6)])
    np.testing.assert_array_equal(build()[np.arange(6)], first)  # as it lies there
    path = lab.root / "stimuli" / "c.png"
    if change == "pixels":
        before = path.stat()
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
        with path.open("ab") as file:
            file.write(bytes(max(0, before.st_size - path.stat().st_size)))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert path.stat().st_mtime_ns == before.st_mtime_ns
    elif change == "caption":
        path.with_suffix(".txt").write_text("a cat")
    else:  # another picture where c.png was
        path.rename(path.with_name("swap"))
        (lab.root / "stimuli" / "d.png").rename(path)
        path.with_name("swap").rename(path.with_name("d.png"))
    with pytest.raises(UserError, match="tokens.json: stimuli is .* have changed: delete it or choose another") as error:
        build()
    assert "\n" not in str(error.value)
