"""What all formats have in common: finding the right one, handing on, and writing any dataset."""

import os

import nibabel
import numpy as np
import pytest
from lab_files import make_lab
from nsd_release_files import make_nsd

from mindtuner import temporary
from mindtuner.errors import UserError
from mindtuner.formats import FORMATS, convert, format_of, load, named, write
from mindtuner.formats.lab_folder.write import FORMS
from mindtuner.formats.nifti import save_nifti


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return make_nsd(tmp_path_factory.mktemp("release")).root


@pytest.mark.parametrize(
    "name, file",
    [
        ("nsd_release", "shared1000.npy"),
        ("nsd_release", "wds/subj01"),
        ("nsd_raw", "nsddata_betas/ppdata"),
        ("lab_folder", "trials.tsv"),
        ("lab_folder", "sub-01/trials.tsv"),
        ("lab_folder", "stimuli.hdf5"),
        ("lab_folder", "betas_session-01.nii.gz"),
        ("laion", "derivatives/glmsingle-tedana/sub-01"),
        ("mosaic", "sub-01_NSD.hdf5"),
        ("mosaic", "nsd_stiminfo.tsv"),
        ("bdata", "sub-01_ImageNetTest.h5"),
        ("glmsingle", "TYPED_FITHRF_GLMDENOISE_RR.hdf5"),
        ("glmsingle", "sub-01/ses-01/TYPEB_FITHRF.npy"),
    ],
)
def test_one_file_tells_the_format(tmp_path, name, file):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).touch()
    assert format_of(tmp_path) is format_of(str(tmp_path)) and format_of(tmp_path).name == name
    assert format_of(tmp_path).write is None or named(name) is format_of(tmp_path)
    assert [known.name for known in FORMATS if known.sniff(tmp_path)] == [name]


def test_the_most_telling_files_decide(tmp_path):
    """Formats share the names stimuli/ and dataset.json; a lab's table of trials weighs more than MOSAIC's files."""
    (tmp_path / "stimuli").mkdir()
    assert format_of(tmp_path).name == "lab_folder"
    (tmp_path / "sub-01_NSD.hdf5").touch()
    assert format_of(tmp_path).name == "mosaic"
    (tmp_path / "trials.tsv").touch()
    assert format_of(tmp_path).name == "lab_folder"
    (tmp_path / "stimuli" / "stimuli.tsv").touch()
    assert format_of(tmp_path).name == "laion"
    (tmp_path / "nsddata").mkdir()
    assert format_of(tmp_path).name == "nsd_raw"
    (tmp_path / "shared1000.npy").touch()
    assert format_of(tmp_path).name == "nsd_release"


def test_what_is_of_no_format_is_refused_with_all_that_are_known(tmp_path):
    with pytest.raises(UserError, match="nowhere: not found; expected a folder with a dataset"):
        format_of(tmp_path / "nowhere")
    with pytest.raises(UserError) as refused:
        load(tmp_path)
    assert "\n" not in str(refused.value)
    for known in FORMATS:
        assert f"{known.holds} ({known.title})" in str(refused.value)
    with pytest.raises(
        UserError, match="format: is 'A'; expected one of nsd_release, nsd_raw, laion, mosaic, bdata, lab_folder"
    ):
        named("A")


def test_what_is_read_is_not_converted_and_the_other_way_round(tmp_path, release):
    wanted = "is the NSD release, which is read as it is; expected raw NSD, LAION-fMRI, MOSAIC or bdpy's BData"
    with pytest.raises(UserError, match=wanted):
        convert(release, tmp_path / "out")
    raw = tmp_path / "raw"
    (raw / "nsddata").mkdir(parents=True)
    wanted = r"is raw NSD, which is not read as it is; .*\.convert\(root, out\) or 'mindtuner convert nsd"
    with pytest.raises(UserError, match=wanted):
        load(raw)
    with pytest.raises(UserError, match="nsd_stimuli.hdf5: not found"):  # it is convert_nsd that is asked
        convert(raw, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def same(found, expected):
    assert list(found.subjects) == list(expected.subjects)
    ids = np.arange(len(expected.stimuli))
    np.testing.assert_array_equal(found.stimuli.images(ids), expected.stimuli.images(ids))
    np.testing.assert_array_equal(found.stimuli.is_shared, expected.stimuli.is_shared)
    assert list(found.stimuli.captions) == list(expected.stimuli.captions)
    for number, subject in expected.subjects.items():
        other = found.subject(number)
        for field in ("stimulus", "session", "repeat", "is_test"):
            np.testing.assert_array_equal(getattr(other.trials, field), getattr(subject.trials, field))
        np.testing.assert_array_equal(other.betas(other.trials.row), subject.betas(subject.trials.row))


def test_the_release_writes_itself(tmp_path, release):
    """Every byte but the behaviour, where what a dataset does not hold is missing."""
    dataset = load(release)
    write(tmp_path, dataset, "nsd_release")
    for path in (path for path in release.rglob("*") if path.is_file() and "wds" not in path.parts):
        assert (tmp_path / path.relative_to(release)).read_bytes() == path.read_bytes(), path.name
    found = load(tmp_path)
    same(found, dataset)
    assert found.card == dataset.card
    for number, subject in dataset.subjects.items():
        for name, mask in subject.rois.items():
            np.testing.assert_array_equal(found.subject(number).rois[name], mask)


@pytest.mark.parametrize("form", FORMS)
def test_a_lab_becomes_a_release(tmp_path, form):
    """Betas that are z-scored as they are read; a region that the release has no name for is left out."""
    root = tmp_path / "lab"
    make_lab(root, "npy" if form == "npy" else "hdf5" if form == "hdf5" else "nii.gz")
    dataset = load(root)
    write(tmp_path / "out", dataset, "nsd_release")
    found = load(tmp_path / "out")
    same(found, dataset)
    assert found.card["zscore"] == "train_trials" and found.card["zscored_on_read"] is True
    assert set(found.subject(1).rois) == {"nsd_general", "V1"} and found.subject(1).rois["nsd_general"].all()
    np.testing.assert_array_equal(found.subject(1).rois["V1"], dataset.subject(1).rois["V1"])
    assert "no mask of V2" in found.card["assumed"][0]


def test_a_release_becomes_bdata(tmp_path, release):
    dataset = load(release)
    write(tmp_path, dataset, "bdata")
    found = load(tmp_path)
    same(found, dataset)
    assert found.card["zscore"] == dataset.card["zscore"]
    for number, subject in dataset.subjects.items():
        assert found.subject(number).rois.keys() == {name for name, mask in subject.rois.items() if mask.any()}


def test_part_of_a_release_becomes_a_whole_one(tmp_path, release):
    """Rows that no trial uses go, and so does the card's list of the sessions that are there."""
    dataset = load(release)
    hour = {number: subject.sessions(1) for number, subject in dataset.subjects.items()}
    part = type(dataset)(dataset.root, hour, dataset.stimuli, {**dataset.card, "sessions": {"1": [1]}})
    write(tmp_path, part, "nsd_release")
    found = load(tmp_path)
    assert "sessions" not in found.card
    for number, subject in hour.items():
        other = found.subject(number)
        assert other.source.shape[0] == len(subject.trials) < dataset.subject(number).source.shape[0]
        np.testing.assert_array_equal(other.betas(other.trials.row), subject.betas(subject.trials.row))
        np.testing.assert_array_equal(other.trials.stimulus, subject.trials.stimulus)


def test_a_volume_that_is_being_written_can_be_told_from_others(tmp_path, monkeypatch):
    """So that what a kill leaves of it is removed."""
    volume, names, real = np.arange(24, dtype=np.float32).reshape(2, 3, 4), [], os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: [names.extend(os.listdir(tmp_path)), real(*paths)])
    save_nifti(tmp_path / "a.nii.gz", volume, np.diag([2.0, 2, 2, 1]))
    assert names and all(map(temporary.is_one, names))
    written = nibabel.load(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(written.get_fdata(), volume)
    np.testing.assert_array_equal(written.affine, np.diag([2.0, 2, 2, 1]))
