"""Raw NSD to the NSD release: a small NSD written by hand, converted, read back, and compared with plain loops."""

import dataclasses
import gzip
import json
import math
import os
import shutil
import time

import nibabel
import numpy as np
import pytest
import scipy.io
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kills import torn
from nsd_raw_files import (
    DESIGN,
    IMAGES,
    ROI,
    SESSION,
    SESSIONS,
    SHAPE,
    STIMULI,
    TABLE,
    betas_of,
    cut,
    edit,
    flip,
    hdf5,
    make_raw_nsd,
    nifti,
    redesign,
    write_design,
    write_session,
)
from PIL import Image

from mindtuner import files as files_module
from mindtuner.claims import LIST, LOCK
from mindtuner.cli import main
from mindtuner.data import nsd
from mindtuner.data.zscore import mean_and_sd, pool, zscore
from mindtuner.errors import UserError
from mindtuner.formats import load
from mindtuner.formats.nsd_raw import convert as nsd_raw_convert
from mindtuner.formats.nsd_raw import read as raw
from mindtuner.formats.nsd_raw import write as nsd_raw_write
from mindtuner.formats.nsd_raw.convert import convert_nsd, resize, trial_table
from mindtuner.formats.nsd_raw.volumes import read_session


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_raw_nsd(tmp_path_factory.mktemp("nsd"))


@pytest.fixture(scope="module")
def converted(whole, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "out"
    convert_nsd(whole.root, out, captions=[whole.root], say=lambda line: None)
    return out


@pytest.fixture
def copy(whole, tmp_path):
    shutil.copytree(whole.root, tmp_path / "nsd")
    return dataclasses.replace(whole, root=tmp_path / "nsd")


def expected_betas(truth, subject):
    """z-scores by plain loops over voxels, sessions and trials."""
    shared = truth.is_shared(subject)
    columns = []
    for x, y, z in truth.voxels(subject):
        sessions = [[int(value) / 300 for value in truth.raw[subject][s, x, y, z]] for s in range(SESSIONS[subject])]
        training = [[b for t, b in enumerate(betas) if not shared[s * SESSION + t]] for s, betas in enumerate(sessions)]
        everything = [b for betas in training for b in betas]
        column = []
        for betas, mine in zip(sessions, training, strict=True):
            mine = mine or everything
            mean = math.fsum(mine) / len(mine)
            sd = math.sqrt(math.fsum((b - mean) ** 2 for b in mine) / len(mine))
            column += [0.0 if min(mine) == max(mine) else (b - mean) / sd for b in betas]
        columns.append(column)
    return np.array(columns).T


def everything(out):
    """All files but the list of them."""
    paths = [path for path in sorted(out.rglob("*")) if path.is_file() and path.name != LIST]
    return {str(path.relative_to(out)): path.read_bytes() for path in paths}


def test_betas_equal_plain_loops(whole, converted):
    dataset = load(converted)
    assert list(dataset.subjects) == [1, 2]
    assert dataset.card["zscore"] == "train_trials" and dataset.card["simulated"] is False
    for number, subject in dataset.subjects.items():
        expected = expected_betas(whole, number)
        assert subject.n_voxels == len(whole.voxels(number)) and len(subject.trials) == len(expected)
        np.testing.assert_allclose(subject.betas(subject.trials.row), expected, rtol=1e-5, atol=1e-6)
        assert not expected[SESSION : 2 * SESSION, :2].any() and expected[:SESSION, :2].all()


def test_trials_follow_the_design(whole, converted):
    for number, subject in load(converted).subjects.items():
        np.testing.assert_array_equal(subject.trials.stimulus, whole.stimulus(number))
        np.testing.assert_array_equal(subject.trials.is_test, whole.is_shared(number))
        np.testing.assert_array_equal(subject.trials.session, [i // SESSION + 1 for i in range(len(subject.trials))])
        assert subject.trials.is_test.any() and not subject.trials.is_test.all()


def test_runs_of_a_session_of_750_have_63_and_62_trials():
    design = raw.Design(np.zeros(1500, int), np.array([[0]]), np.array([False]))
    table = trial_table(design, 1, 2, 750)
    for session in (1, 2):
        runs = table.run[table.session == session]
        assert [int((runs == run).sum()) for run in range(1, 13)] == [63, 62] * 6
        assert [int(table.trial[(table.session == session) & (table.run == run)].max()) for run in (1, 2)] == [63, 62]
    assert table.trial.min() == 1 and (np.diff(table.trial)[table.run[1:] == table.run[:-1]] == 1).all()


def test_regions_follow_the_files(whole, converted):
    for number, subject in load(converted).subjects.items():
        labels = [int(whole.labels[number][1][voxel]) for voxel in whole.voxels(number)]
        for name, values in {"V1": [1, 2], "V2": [3, 4], "V3": [5, 6], "V4": [7], "higher_vis": [-1, 0]}.items():
            assert subject.rois[name].tolist() == [label in values for label in labels], name
        assert subject.rois["nsd_general"].all()


def test_images_are_resized_as_pillow_does(whole, converted):
    stimuli = load(converted).stimuli
    got = np.asarray(stimuli.images(np.arange(IMAGES)))
    for image, pixels in zip(got, whole.pixels, strict=True):
        expected = np.asarray(Image.fromarray(pixels).resize((224, 224), Image.Resampling.BILINEAR))
        assert np.abs(image.transpose(1, 2, 0) * 255 - expected).max() <= 1.01  # Pillow rounds after each of two passes


def test_images_of_nsds_size_are_antialiased_as_pillow_does():
    stripes = np.zeros((2, 425, 425, 3), np.uint8)
    stripes[0, :, ::2] = 255
    stripes[1] = np.random.default_rng(0).integers(0, 256, (425, 425, 3))
    for image, pixels in zip(resize(stripes), stripes, strict=True):
        expected = np.asarray(Image.fromarray(pixels).resize((224, 224), Image.Resampling.BILINEAR))
        assert np.abs(image.transpose(1, 2, 0) * 255 - expected).max() <= 1.01
    assert resize(np.full((1, 425, 425, 3), 255, np.uint8)).max() <= 1


def test_captions_are_the_first_five_of_each_image(whole, converted):
    stimuli = load(converted).stimuli
    for image, captions in zip(whole.coco, stimuli.captions, strict=True):
        assert list(captions) == whole.captions[int(image)][:5]
    assert {len(captions) for captions in stimuli.captions} == {0, 1, 2, 3, 4, 5}
    np.testing.assert_array_equal(np.flatnonzero(stimuli.is_shared), whole.shared - 1)


def test_what_is_said(copy, tmp_path, capsys):
    (copy.root / ROI.format(2) / "prf-visualrois.nii.gz").unlink()
    given = ["convert", "nsd", str(copy.root), str(tmp_path / "out"), "--captions", str(copy.root)]
    assert main(given) == 0
    said = capsys.readouterr().out
    test = sum(copy.is_shared(1))
    assert f"subj01: 3 of NSD's 40 sessions, 72 trials, {test} of them test, {len(copy.voxels(1))} voxels\n" in said
    without = sum(not texts for texts in copy.captions.values())
    assert f"captions: {IMAGES - without} images have some, {without} have none\n" in said
    assert "subj02: no prf-visualrois.nii.gz, so V1 to V4 are empty and higher_vis is all of nsd_general\n" in said
    assert "subj01: in 2 cases a voxel does not vary in a session; its betas there are 0\n" in said
    subject = load(tmp_path / "out").subject(2)
    assert subject.rois["higher_vis"].all() and not subject.rois["V1"].any()
    assert main(given) == 0
    assert "whole already" in capsys.readouterr().out


def test_hdf5_and_nifti_give_the_same_bytes(whole, converted, tmp_path):
    other = make_raw_nsd(tmp_path / "nsd", kinds=("hdf5", "nii.gz"))
    convert_nsd(other.root, tmp_path / "out", captions=[other.root], say=lambda line: None)
    ours, theirs = everything(tmp_path / "out"), everything(converted)
    assert ours.keys() == theirs.keys()
    assert {name for name in ours if ours[name] != theirs[name]} == {"dataset.json"}  # the root's name


@pytest.mark.parametrize("options", [{"chunks": (4, 2, 3, 5), "compression": "gzip"}, {}])
def test_hdf5_in_other_chunks_reads_alike(whole, tmp_path, options):
    mask = whole.labels[1][0] > 0
    betas = whole.raw[1][0]
    hdf5(tmp_path / "betas_session01.hdf5", "betas", betas.T, **options)
    np.testing.assert_array_equal(read_session(tmp_path / "betas_session01.hdf5", mask), betas[mask].T / 300)


def test_big_endian_nifti_reads_alike(whole, tmp_path):
    mask, betas = whole.labels[1][0] > 0, whole.raw[1][0]
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(np.dtype(">i2"))
    nibabel.Nifti1Image(betas, np.eye(4), header).to_filename(tmp_path / "betas_session01.nii.gz")
    np.testing.assert_array_equal(read_session(tmp_path / "betas_session01.nii.gz", mask), betas[mask].T / 300)


@pytest.mark.parametrize("session", [0, 1])
def test_a_session_without_training_trials_uses_those_of_the_others(tmp_path, session):
    truth = make_raw_nsd(tmp_path / "nsd", without_training=session)
    assert all(truth.is_shared(1)[session * SESSION : (session + 1) * SESSION])
    convert_nsd(truth.root, tmp_path / "out", say=lambda line: None)
    for number, subject in load(tmp_path / "out").subjects.items():
        np.testing.assert_allclose(subject.betas(subject.trials.row), expected_betas(truth, number), rtol=1e-5, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(2, 6), min_size=1, max_size=4), st.integers(0, 1000))
def test_pooled_statistics_are_those_of_all_trials_together(counts, seed):
    rng = np.random.default_rng(seed)
    parts = [rng.integers(-2, 3, (count, 6)) * 0.1 for count in counts]
    for part in parts:
        part[:, 0] = 0.1
    mean, sd = pool(counts, [mean_and_sd(part) for part in parts])
    together = np.concatenate(parts)
    np.testing.assert_allclose(mean, together.mean(0), atol=1e-12)
    np.testing.assert_allclose(sd, together.std(0), atol=1e-9)
    np.testing.assert_array_equal(sd == 0, together.min(0) == together.max(0))
    session = np.repeat(np.arange(len(counts) + 1), [*counts, 3])
    scored = zscore(np.concatenate([together, together[:1], together[:1], together[:1]]), session, session < len(counts))
    assert np.isfinite(scored).all()
    np.testing.assert_allclose(scored[-1], np.where(sd == 0, 0, (together[0] - mean) / np.where(sd == 0, 1, sd)))


def test_zscore_without_training_trials_is_refused():
    with pytest.raises(ValueError, match="no session has training trials"):
        zscore(np.zeros((2, 3)), np.array([1, 1]), np.array([False, False]))


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(whole, converted, tmp_path, monkeypatch):
    """Dies the first time that it would make each file whole, and is called again; leaves what a hard kill would."""

    class Killed(BaseException):
        pass

    reached, out, replace, reference = [], tmp_path / "out", os.replace, everything(converted)

    def dying(source, target):
        if target not in reached:
            reached.append(target)
            raise Killed
        replace(source, target)

    monkeypatch.setattr(files_module.os, "replace", dying)
    for _ in reference:
        with pytest.raises(Killed):
            convert_nsd(whole.root, out, captions=[whole.root], say=lambda line: None)
        found = everything(out)
        assert found == {name: reference[name] for name in found}
        with pytest.raises(UserError):
            load(out)
        torn(out / "betas_all_subj01_fp32_renorm.hdf5")
    convert_nsd(whole.root, out, captions=[whole.root], say=lambda line: None)
    assert everything(out) == reference and reached[-1].name == "brain_region_masks.hdf5"
    (out / LOCK).touch()  # of a process that was killed at its very end
    convert_nsd(whole.root, out, captions=[whole.root], say=lambda line: None)
    assert not (out / LOCK).exists()


def test_what_is_whole_is_not_made_again(whole, converted, tmp_path, monkeypatch):
    out, read = tmp_path / "out", []

    def reading(path, mask):
        read.append((int(path.parent.parent.parent.name[4:]), path.name))
        if len(read) == 5:
            raise KeyboardInterrupt
        return read_session(path, mask)

    def run():
        said = []
        convert_nsd(whole.root, out, captions=[whole.root], say=said.append)
        return said

    monkeypatch.setattr(nsd_raw_convert, "read_session", reading)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert [subject for subject, _ in read] == [1, 1, 1, 2, 2]
    monkeypatch.setattr(nsd_raw_convert, "resize", None)
    said = run()
    assert [subject for subject, _ in read[5:]] == [2, 2]
    assert "images: there already" in said and "subj01: there already" in said and "subj02: there already" not in said
    assert everything(out) == everything(converted)


def test_only_the_same_command_goes_on(copy, tmp_path, capsys):
    out, root = tmp_path / "out", str(copy.root)
    assert main(["convert", "nsd", root, str(out), "--subjects", "1"]) == 0
    (out / "brain_region_masks.hdf5").unlink()
    before = everything(out)
    shutil.copytree(root, tmp_path / "elsewhere")
    for other, message in (
        (["convert", "nsd", root, str(out)], "converted.sessions.2 is None; expected 2"),
        (["convert", "nsd", root, str(out), "--subjects", "1", "--captions", root], "converted.captions"),
        (["convert", "nsd", str(tmp_path / "elsewhere"), str(out), "--subjects", "1"], "converted.root"),
    ):
        assert main(other) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert everything(out) == before
    assert main(["convert", "nsd", root, str(out), "--subjects", "2", "--force"]) == 0
    assert list(load(out).subjects) == [2]


def test_foreign_folders_stay_as_they_are(whole, converted, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    for force, message in ((False, "holds another run"), (True, "no list")):
        with pytest.raises(UserError, match=message):
            convert_nsd(whole.root, tmp_path, force=force, say=lambda line: None)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_the_same_design_is_the_same_bytes_at_any_time(simulated, tmp_path, monkeypatch):
    for clock in ("now", "then"):
        monkeypatch.setattr(time, "asctime", lambda clock=clock: clock)  # which SciPy puts into the file
        nsd_raw_write._write_design(tmp_path / clock, load(simulated))
    assert (tmp_path / "now").read_bytes() == (tmp_path / "then").read_bytes()
    assert scipy.io.loadmat(tmp_path / "now")["subjectim"].min() == 1


def test_a_mask_by_values(whole, converted, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["convert", "nsd", str(whole.root), str(out), "--mask-values=-1,1"]
    assert main(words) == 0
    for number, (general, _) in whole.labels.items():
        mine, usual = load(out).subject(number), load(converted).subject(number)
        assert mine.n_voxels == (general != 0).sum() and usual.n_voxels == (general > 0).sum()
        rows = np.arange(len(usual.trials))
        np.testing.assert_array_equal(mine.betas(rows)[:, general[general != 0] == 1], usual.betas(rows))
    assert json.loads((out / "dataset.json").read_text())["converted"]["mask_values"] == [-1, 1]
    capsys.readouterr()
    assert main([*words[:4], "--mask-values=1"]) == 2  # another command
    assert "mask_values" in capsys.readouterr().err
    assert main([*words[:3], str(tmp_path / "other"), "--mask-values=7"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("mindtuner: --mask-values: are 7, and ") and "holds -1, 0, 1; expected one of these" in said
    assert main(["check", str(whole.root), "--mask-values=-1"]) in (0, 2)
    assert f"{(whole.labels[1][0] == -1).sum()} voxels of" in capsys.readouterr().out


def test_a_finished_file_of_another_shape_is_refused(copy, converted, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(converted, out)
    (out / "brain_region_masks.hdf5").unlink()
    general = copy.labels[1][0].copy()
    general[copy.voxels(1)[0]] = 0
    nifti(copy.root / ROI.format(1) / "nsdgeneral.nii.gz", general)
    card = json.loads((out / "dataset.json").read_text())
    card["converted"] |= {"root": str(copy.root), "captions": []}
    (out / "dataset.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match=r"betas_all_subj01_fp32_renorm.hdf5: betas has shape"):
        convert_nsd(copy.root, out, say=lambda line: None)


DAMAGE = {
    "no design": (lambda t: (t.root / DESIGN).unlink(), r"nsd_expdesign.mat: not found"),
    "design cut": (lambda t: cut(t.root / DESIGN), r"nsd_expdesign.mat: cannot be read"),
    "design not MATLAB": (lambda t: (t.root / DESIGN).write_text("x" * 500), r"nsd_expdesign.mat: cannot be read"),
    "design lacks a field": (lambda t: scipy.io.savemat(t.root / DESIGN, {"subjectim": [[1]]}), r"no field masterordering"),
    "order beyond the list": (
        lambda t: redesign(t, order=11),
        r"masterordering\(1, 96\) is 11.0; expected a whole number "
        r"from 1 to 10",
    ),
    "order from zero": (lambda t: redesign(t, order=0), r"masterordering\(1, 96\) is 0.0"),
    "image beyond the stimuli": (lambda t: redesign(t, images=18), r"subjectim\(8, 10\) is 18.0; .* from 1 to 17"),
    "shared beyond the stimuli": (lambda t: redesign(t, shared=99), r"sharedix\(1, 3\) is 99.0"),
    "no stimuli": (lambda t: (t.root / STIMULI).unlink(), r"nsd_stimuli.hdf5: not found"),
    "stimuli cut": (lambda t: cut(t.root / STIMULI), r"nsd_stimuli.hdf5: not a whole HDF5 file"),
    "stimuli of other shape": (
        lambda t: hdf5(t.root / STIMULI, "imgBrick", np.zeros((17, 3, 40, 40), np.uint8)),
        r"imgBrick has shape \(17, 3, 40, 40\) and dtype uint8; expected",
    ),
    "stimuli as floats": (
        lambda t: hdf5(t.root / STIMULI, "imgBrick", np.zeros((17, 4, 4, 3), np.float32)),
        r"imgBrick .* dtype float32",
    ),
    "stimuli under another name": (lambda t: hdf5(t.root / STIMULI, "images", t.pixels), r"no dataset 'imgBrick'"),
    "no table": (lambda t: (t.root / TABLE).unlink(), r"nsd_stim_info_merged.csv: not found"),
    "table short": (lambda t: cut(t.root / TABLE, 0.5), r"nsd_stim_info_merged.csv: (line|no line)"),
    "table without cocoId": (lambda t: edit(t.root / TABLE, "cocoId", "coco"), r"line 2: cocoId is None"),
    "table says shared": (
        lambda t: edit(t.root / TABLE, "False,False,False", "False,False,True"),
        r"shared1000 is 'True'; expected 'False', as nsd_expdesign.mat has it",
    ),
    "table twice": (lambda t: edit(t.root / TABLE, ",1,False", ",0,False"), r"nsdId is 0; expected each of 0 to 16 once"),
    "captions cut": (lambda t: cut(t.root / "captions_val2017.json"), r"captions_val2017.json: not valid JSON"),
    "captions are instances": (
        lambda t: edit(t.root / "captions_train2017.json", '"caption"', '"bbox"'),
        r"annotations\[0\] is .*; expected an image_id",
    ),
    "captions without annotations": (
        lambda t: edit(t.root / "captions_train2017.json", "annotations", "images"),
        r"captions_train2017.json: no list annotations",
    ),
    "captions of other images": (
        lambda t: (t.root / "captions_train2017.json").write_text('{"annotations": [{"image_id": 5000, "caption": "a"}]}'),
        r"no caption of any image",
    ),
    "no mask": (lambda t: (t.root / ROI.format(1) / "nsdgeneral.nii.gz").unlink(), r"nsdgeneral.nii.gz: not found"),
    "mask cut": (lambda t: cut(t.root / ROI.format(1) / "nsdgeneral.nii.gz"), r"nsdgeneral.nii.gz: cannot be read"),
    "mask empty": (lambda t: nifti(t.root / ROI.format(1) / "nsdgeneral.nii.gz", np.zeros(SHAPE, np.float32)), r"no voxel"),
    "mask of another volume": (
        lambda t: nifti(t.root / ROI.format(1) / "nsdgeneral.nii.gz", np.ones((6, 4, 5), np.float32)),
        r"session01.nii.gz: betas have shape \(6, 5, 4, 24\) .* over \(6, 4, 5\)",
    ),
    "regions of another volume": (
        lambda t: nifti(t.root / ROI.format(2) / "prf-visualrois.nii.gz", np.ones((6, 5, 5), np.float32)),
        r"prf-visualrois.nii.gz: has shape",
    ),
    "regions cut": (
        lambda t: cut(t.root / ROI.format(2) / "prf-visualrois.nii.gz"),
        r"prf-visualrois.nii.gz: cannot be read",
    ),
    "a session missing": (
        lambda t: betas_of(t, 1, 2).unlink(),
        r"betas_session02.hdf5 \(or .nii.gz\): not found; .* session 3",
    ),
    "no session": (lambda t: [betas_of(t, 2, n).unlink() for n in (1, 2)], r"no session; expected betas_session01.hdf5"),
    "a session too short": (
        lambda t: write_session(betas_of(t, 1, 3).parent, 3, t.raw[1][2][..., 1:], "nii.gz"),
        r"betas_session03.nii.gz: holds 23 trials; expected 24",
    ),
    "the first session too short": (
        lambda t: write_session(betas_of(t, 1, 1).parent, 1, t.raw[1][0][..., 1:], "nii.gz"),
        r"betas_session01.nii.gz: holds 23 trials; expected a number that divides .* 96",
    ),
    "more sessions than the design": (
        lambda t: [write_session(betas_of(t, 1, 1).parent, n, t.raw[1][0], "nii.gz") for n in (4, 5)],
        r"session05.nii.gz: is beyond the design; .* 4 sessions",
    ),
    "NIfTI not NIfTI": (
        lambda t: betas_of(t, 1, 1).write_text("hello"),
        r"betas_session01.nii.gz: cannot be read",
    ),
    "NIfTI as floats": (
        lambda t: nifti(betas_of(t, 1, 1), t.raw[1][0].astype(np.float32)),
        r"dtype float32; expected int16",
    ),
    "NIfTI scaled": (lambda t: nifti(betas_of(t, 1, 1), t.raw[1][0], slope=0.5), r"is scaled by 0.5 .* plain int16"),
    "HDF5 cut": (lambda t: cut(betas_of(t, 2, 2)), r"betas_session02.hdf5: not a whole HDF5 file"),
    "HDF5 the other way round": (lambda t: hdf5(betas_of(t, 2, 2), "betas", t.raw[2][1]), r"have shape \(24, 4, 5, 6\)"),
    "HDF5 as floats": (lambda t: hdf5(betas_of(t, 2, 2), "betas", t.raw[2][1].T / 300), r"dtype float64; expected int16"),
    "HDF5 under another name": (lambda t: hdf5(betas_of(t, 2, 2), "b", t.raw[2][1].T), r"no dataset 'betas'"),
    "shared images alone": (lambda t: redesign_all_shared(t), r"all 72 trials show shared images"),
}
LATE = {  # found when the betas are read, hours into a real conversion
    "NIfTI cut": (lambda t: cut(betas_of(t, 1, 2)), r"betas_session02.nii.gz: cannot be read"),
    "NIfTI cut at its last byte": (
        lambda t: cut(betas_of(t, 1, 2), 1 - 1 / betas_of(t, 1, 2).stat().st_size),
        r"betas_session02.nii.gz: cannot be read",
    ),
    "NIfTI with a flipped bit": (lambda t: flip(betas_of(t, 1, 3)), r"betas_session03.nii.gz: cannot be read .*CRC"),
    "NIfTI that was cut before it was packed": (
        lambda t: betas_of(t, 1, 1).write_bytes(gzip.compress(gzip.decompress(betas_of(t, 1, 1).read_bytes())[:-100])),
        r"betas_session01.nii.gz: cannot be read .*\(it breaks off\)",
    ),
}


def redesign_all_shared(truth):
    write_design(dataclasses.replace(truth, order=truth.order % 3 + 1))


@pytest.mark.parametrize("name", [*DAMAGE, *LATE])
def test_damage_is_named_in_one_line(copy, tmp_path, name):
    damage, message = (DAMAGE | LATE)[name]
    damage(copy)
    with pytest.raises(UserError, match=message) as caught:
        convert_nsd(copy.root, tmp_path / "out", captions=[copy.root], say=lambda line: None)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "out").exists() == (name in LATE)
    assert not (tmp_path / "out" / "brain_region_masks.hdf5").exists()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 255))
@example(144, 0)  # SciPy's reader raises UnboundLocalError here,
@example(144, 5)  # and ends the process at these: the class,
@example(145, 9)  # the flags,
@example(192, 0)  # and the kind of numbers
def test_a_damaged_design_never_shows_as_a_traceback(whole, place, value):
    data = bytearray((whole.root / DESIGN).read_bytes())
    data[place % len(data)] = value
    damaged = whole.root.with_name("damaged") / DESIGN
    damaged.parent.mkdir(parents=True, exist_ok=True)
    for content in (data, data[: place % len(data)]):
        damaged.write_bytes(content)
        try:
            raw.read_design(whole.root.with_name("damaged"), IMAGES)
        except UserError as error:
            assert "nsd_expdesign.mat" in str(error) and "\n" not in str(error)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["ROOT/nowhere", "OUT"], "not found; expected a folder with NSD's"),
        (["ROOT", "OUT", "--subjects", "one"], "--subjects: is 'one'"),
        (["ROOT", "OUT", "--subjects", "9"], "subjects: 9 is not in NSD's design; expected 1 to 8"),
        (["ROOT", "OUT", "--subjects", "3"], "subj03/func1pt8mm/betas_fithrf_GLMdenoise_RR: no session"),
        (["ROOT", "OUT", "--captions", "ROOT/nsddata"], "nsddata: no captions; expected captions_train2017.json"),
        (["ROOT", "OUT", "--captions", "ROOT/none.json"], "none.json: not found"),
        (["ROOT/nsddata_stimuli/stimuli", "OUT"], "nsd_stimuli.hdf5: not found"),
    ],
)
def test_bad_arguments_end_in_one_line(whole, tmp_path, capsys, arguments, message):
    given = [text.replace("ROOT", str(whole.root)).replace("OUT", str(tmp_path / "out")) for text in arguments]
    assert main(["convert", "nsd", *given]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_facts_of_nsd_fit_each_other():
    assert len(nsd.VOXELS) == len(nsd.SESSIONS) == nsd.SUBJECTS == 8
    assert sum(nsd.SESSIONS) * 750 == 213_000  # trials in all, as NSD's manual counts them
