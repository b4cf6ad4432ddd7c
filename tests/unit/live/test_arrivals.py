"""Trials that arrive in a folder: order, files that are half there, files that are none."""

import io
import os
import tempfile
import threading
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindtuner.errors import UserError
from mindtuner.live import Arrival, WatchedFolder, trial_reader
from mindtuner.live import arrivals as module

VOXELS = 5


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when the test says so."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def passes(seconds):
        now[0] += seconds

    return passes


def trial(path, value):
    np.save(path, np.full(VOXELS, value, np.float32))


def bytes_of(value):
    file = io.BytesIO()
    np.save(file, np.full(VOXELS, value, np.float32))
    return file.getvalue()


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(8, 14)))
def test_whatever_order_files_are_written_in_they_come_in_that_of_their_numbers(order):
    with tempfile.TemporaryDirectory() as folder:
        for number in order:
            trial(Path(folder) / f"trial-{number}.npy", number)
        watched = WatchedFolder(folder, trial_reader(VOXELS), settled=0)
        assert [float(found.betas[0]) for found in watched.look()] == sorted(order)
        assert list(watched.look()) == [] and watched.waiting == []


def test_a_file_counts_when_it_has_not_changed_for_a_while(tmp_path, clock):
    watched = WatchedFolder(tmp_path, trial_reader(VOXELS), settled=0.1)
    trial(tmp_path / "a.npy", 1)
    assert list(watched.look()) == []
    clock(0.2)
    [found] = watched.look()
    assert isinstance(found, Arrival) and found.seen == 1000.0


def test_one_that_is_half_written_is_waited_for_and_holds_back_those_after_it(tmp_path, clock):
    watched = WatchedFolder(tmp_path, trial_reader(VOXELS), settled=0.1, patience=5)
    whole = bytes_of(1)
    (tmp_path / "trial-1.npy").write_bytes(whole[:-4])
    trial(tmp_path / "trial-2.npy", 2)
    for _ in range(3):
        assert list(watched.look()) == []
        clock(1)
    (tmp_path / "trial-1.npy").write_bytes(whole)
    assert list(watched.look()) == [] and watched.waiting == ["trial-1.npy", "trial-2.npy"]
    clock(0.2)
    assert [found.name for found in watched.look()] == ["trial-1.npy"]  # the second was first seen now
    clock(0.2)
    assert [found.name for found in watched.look()] == ["trial-2.npy"]


def test_one_that_stays_broken_is_named_once_and_let_go_and_read_when_it_is_mended(tmp_path, clock):
    watched = WatchedFolder(tmp_path, trial_reader(VOXELS), settled=0.1, patience=5)
    (tmp_path / "trial-1.npy").write_bytes(b"no trial")
    trial(tmp_path / "trial-2.npy", 2)
    assert list(watched.look()) == []
    clock(6)
    [broken] = watched.look()
    assert broken.name == "trial-1.npy" and broken.why.startswith(f"{tmp_path / 'trial-1.npy'}: cannot be read (")
    clock(0.2)
    assert [found.name for found in watched.look()] == ["trial-2.npy"]
    clock(10)
    assert list(watched.look()) == []
    (tmp_path / "trial-1.npy").write_bytes(bytes_of(7))
    assert list(watched.look()) == []
    clock(0.2)
    assert [float(found.betas[0]) for found in watched.look()] == [7]


def test_hidden_files_folders_and_other_kinds_are_left_alone(tmp_path):
    trial(tmp_path / ".hidden.npy", 1)
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "trial.npy.part").write_text("x")
    assert list(WatchedFolder(tmp_path, trial_reader(VOXELS), settled=0).look()) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a pipe with a name")
def test_a_pipe_is_no_trial_and_hangs_nothing(tmp_path):
    os.mkfifo(tmp_path / "trial.npy")
    found = []
    thread = threading.Thread(target=lambda: found.extend(WatchedFolder(tmp_path, trial_reader(VOXELS), settled=0).look()))
    thread.daemon = True
    thread.start()
    thread.join(5)
    assert not thread.is_alive() and found == []


def test_a_folder_that_goes_away_is_said(tmp_path):
    with pytest.raises(UserError, match="gone: cannot be listed"):
        list(WatchedFolder(tmp_path / "gone", trial_reader(VOXELS)).look())


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.ones(4), r"has shape \(4,\); expected \(5,\)"),
        (np.ones((2, 5)), r"has shape \(2, 5\)"),
        (np.array([1, 2, np.nan, 4, 5]), "voxel 2 is nan"),
        (np.full(5, 1e300), "voxel 0 is inf"),
        (np.array(["a"] * 5), "holds <U1; expected real numbers"),
        (np.array([{}] * 5, object), "is pickled, which is never loaded"),
    ],
)
def test_what_is_no_trial_is_said(tmp_path, array, says):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(UserError, match=says), np.errstate(over="ignore"):
        trial_reader(VOXELS)(tmp_path / "a.npy")


@pytest.fixture
def mask(tmp_path):
    inside = np.zeros((3, 4, 2), np.uint8)
    inside[0, 1, 1] = inside[2, 0, 0] = inside[0, 1, 0] = inside[1, 3, 1] = inside[2, 2, 1] = 1
    path = tmp_path / "mask.nii.gz"
    nibabel.save(nibabel.Nifti1Image(inside, np.eye(4)), path)
    return path, inside.astype(bool)


@pytest.mark.parametrize("end", [".nii", ".nii.gz"])
def test_a_volume_is_read_by_its_mask_in_the_order_of_numpys_indexing(tmp_path, mask, end):
    path, inside = mask
    volume = np.random.default_rng(0).normal(size=inside.shape).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / f"trial{end}")
    np.testing.assert_array_equal(trial_reader(VOXELS, path)(tmp_path / f"trial{end}"), volume[inside])


def test_a_volume_that_breaks_off_or_lies_elsewhere_is_none(tmp_path, mask):
    path, inside = mask
    volume = np.random.default_rng(0).normal(size=inside.shape).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "trial.nii.gz")
    whole = (tmp_path / "trial.nii.gz").read_bytes()
    read = trial_reader(VOXELS, path)
    for size in (0, 5, len(whole) // 2, len(whole) - 4):
        (tmp_path / "trial.nii.gz").write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"trial\.nii\.gz"):
            read(tmp_path / "trial.nii.gz")
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([2, 2, 2, 1.0])), tmp_path / "trial.nii")
    with pytest.raises(UserError, match="affine differs"):
        read(tmp_path / "trial.nii")
    with pytest.raises(UserError, match="there is no mask"):
        trial_reader(VOXELS)(tmp_path / "trial.nii")
    with pytest.raises(UserError, match="holds 5 voxels; expected 6"):
        trial_reader(6, path)
