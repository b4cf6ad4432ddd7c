"""The NSD release: what the writer puts on disk, seen raw and through the reader, against a truth built by hand."""

import json
import tarfile

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nsd_release_files import CAPTIONS, IMAGES, ROIS, TRIALS, VOXELS, make_nsd, put, raw_samples, rewrite

from mindtuner.data import FileRows
from mindtuner.data.lazy import ChunkedRows
from mindtuner.errors import UserError
from mindtuner.formats import check, load
from mindtuner.formats.nsd_release import write as release_writer


@pytest.fixture
def truth(tmp_path):
    return make_nsd(tmp_path / "data")


@pytest.fixture(scope="module")
def shared_truth(tmp_path_factory):
    return make_nsd(tmp_path_factory.mktemp("whole"))


def test_reader_returns_what_was_written(shared_truth):
    truth = shared_truth
    dataset = load(truth.root)
    assert list(dataset.subjects) == [1, 3] and list(load(truth.root, subjects=[3]).subjects) == [3]
    assert dataset.card == {"simulated": True, "zscore": "train_trials", "seed": 0}
    for number, subject in dataset.subjects.items():
        table = truth.tables[number]
        trials = subject.trials
        np.testing.assert_array_equal(trials.row, np.arange(TRIALS))
        np.testing.assert_array_equal(trials.stimulus, table.stimulus)
        np.testing.assert_array_equal(trials.session, table.session)
        np.testing.assert_array_equal(trials.is_test, truth.shared[table.stimulus])
        seen = [list(table.stimulus[:i]).count(image) for i, image in enumerate(table.stimulus)]
        np.testing.assert_array_equal(trials.repeat, seen)
        assert subject.n_voxels == VOXELS
        np.testing.assert_array_equal(subject.betas(trials.row), truth.betas[number])
        assert set(subject.rois) == set(ROIS)
        for name in ROIS:
            np.testing.assert_array_equal(subject.rois[name], truth.masks[number][name])
    stimuli = dataset.stimuli
    assert len(stimuli) == IMAGES and stimuli.captions == CAPTIONS
    np.testing.assert_array_equal(stimuli.is_shared, truth.shared)
    images = stimuli.images([5, 0, 5])
    assert images.dtype == np.float16
    np.testing.assert_allclose(images, truth.pixels[[5, 0, 5]] / 255.0, atol=2.5e-4)  # half an ulp of 0.5..1


def test_sessions_keep_all_test_trials_and_without_drops_one_subject(shared_truth):
    dataset = load(shared_truth.root)
    subject = dataset.subject(1)
    hour = subject.sessions(1)
    assert set(hour.train.session) == {1} and set(subject.train.session) == {1, 2}
    np.testing.assert_array_equal(hour.train.row, [row for row in subject.train.row if row < 20])
    np.testing.assert_array_equal(hour.test.row, subject.test.row)
    assert not shared_truth.shared[subject.train.stimulus].any() and shared_truth.shared[subject.test.stimulus].all()
    assert len(subject.train) + len(subject.test) == TRIALS
    assert list(dataset.without(subject=1).subjects) == [3] and list(dataset.subjects) == [1, 3]
    for refused in (
        lambda: subject.sessions(0),
        lambda: subject.sessions(3),
        lambda: dataset.subject(2),
        lambda: dataset.without(subject=8),
    ):
        with pytest.raises(UserError, match="expected"):
            refused()


def test_regions_and_averages_are_views_of_the_same_betas(shared_truth):
    truth = shared_truth
    subject = load(truth.root).subject(1)
    betas, table, masks = truth.betas[1], truth.tables[1], truth.masks[1]
    early = subject.within("V1", "V2")
    columns = [voxel for voxel in range(VOXELS) if masks["V1"][voxel] or masks["V2"][voxel]]
    np.testing.assert_array_equal(early.betas([3, 0, 3]), betas[[3, 0, 3]][:, columns])
    assert early.n_voxels == len(columns)
    np.testing.assert_array_equal(early.rois["V2"], masks["V2"][columns])
    for whole, rows in ((subject, range(TRIALS)), (subject.sessions(1), None)):
        mean = whole.averaged()
        rows = whole.trials.row if rows is None else rows
        assert sorted(mean.trials.stimulus) == sorted({table.stimulus[row] for row in rows})
        read = mean.betas(mean.trials.row[::-1])[::-1]
        for place, image in enumerate(mean.trials.stimulus):
            shown = [row for row in rows if table.stimulus[row] == image]
            np.testing.assert_allclose(read[place], sum(betas[row].astype(float) for row in shown) / len(shown), rtol=1e-6)
            assert mean.trials.session[place] == table.session[shown[0]]
        assert set(mean.train.stimulus) == set(whole.train.stimulus)
    both = subject.averaged().within("V1")
    np.testing.assert_array_equal(both.betas([2]), subject.within("V1").averaged().betas([2]))
    for refused, message in ((("V9",), "no region 'V9'; expected some of V1"), ((), "no voxel in no region")):
        with pytest.raises(UserError, match=message):
            subject.within(*refused)


def test_columns_and_windows_of_the_behaviour_files(shared_truth):
    """The 17 columns, the 15 + 15 neighbours and the 3 olds, by their definition, trial by trial."""
    for number, table in shared_truth.tables.items():
        folder = shared_truth.root / "wds" / f"subj0{number}"
        tars = [folder / "train" / "0.tar", folder / "train" / "1.tar", folder / "new_test" / "0.tar"]
        raw = {}
        for tar in tars:
            for sample, arrays in raw_samples(tar).items():
                assert set(arrays) == {"behav.npy", "past_behav.npy", "future_behav.npy", "olds_behav.npy"}
                row = int(arrays["behav.npy"][0, 5])
                assert sample == f"sample{row:09d}" and row not in raw
                assert table.is_shared[row] == (tar.parent.name == "new_test")
                assert table.is_shared[row] or table.session[row] == int(tar.stem) + 1
                raw[row] = arrays
        assert sorted(raw) == list(range(TRIALS))
        lines = {}
        for row in range(TRIALS):
            before = list(table.stimulus[:row])
            today = [table.stimulus[i] for i in range(row) if table.session[i] == table.session[row]]
            image = table.stimulus[row]
            lines[row] = [
                image,
                number,
                table.session[row],
                table.run[row],
                table.trial[row],
                row,
                table.time[row],
                image in before,
                -1,
                -1,
                -1,
                image in today,
                -1,
                -1,
                -1,
                -1,
                table.is_shared[row],
            ]
        missing = [-1] * 17
        for row, arrays in raw.items():
            session_rows = np.flatnonzero(table.session == table.session[row])
            past = [lines[i] for i in session_rows if row - 15 <= i < row]
            future = [lines[i] for i in session_rows if row < i <= row + 15]
            olds = [lines[i] for i in range(row) if table.stimulus[i] == table.stimulus[row]][-3:]
            expected = {
                "behav.npy": [lines[row]],
                "past_behav.npy": [missing] * (15 - len(past)) + past,
                "future_behav.npy": future + [missing] * (15 - len(future)),
                "olds_behav.npy": olds + [missing] * (3 - len(olds)),
            }
            for name, array in expected.items():
                assert arrays[name].dtype == np.float64
                np.testing.assert_array_equal(arrays[name], np.array(array, float), err_msg=f"{name} of {row}")


def test_raw_files_have_the_dtypes_of_the_release(shared_truth):
    root = shared_truth.root
    with h5py.File(root / "betas_all_subj03_fp32_renorm.hdf5") as file:
        assert file["betas"].dtype == np.float32 and file["betas"].chunks is None
        np.testing.assert_array_equal(file["betas"][()], shared_truth.betas[3])
    with h5py.File(root / "coco_images_224_float16.hdf5") as file:
        assert file["images"].dtype == np.float16 and file["images"].shape == (IMAGES, 3, 224, 224)
    captions = np.load(root / "COCO_73k_annots_curated.npy", allow_pickle=False)
    assert captions.shape == (IMAGES, 5) and captions[0, 1] == "a house, red" and captions[1, 0] == ""
    shared = np.load(root / "shared1000.npy", allow_pickle=False)
    assert shared.dtype == bool and shared.tolist() == shared_truth.shared.tolist()
    with h5py.File(root / "COCO_73k_subj_indices.hdf5") as file:
        np.testing.assert_array_equal(file["subj01"], shared_truth.tables[1].stimulus)
    with h5py.File(root / "brain_region_masks.hdf5") as file:
        assert file["subj01/V4"].dtype == bool and set(file["subj01"]) == set(ROIS)
    leftovers = [path for path in root.rglob("*") if path.name.endswith(".part")]
    assert leftovers == []


rows = st.lists(st.integers(0, TRIALS - 1), max_size=30)


@settings(max_examples=40, deadline=None)
@given(rows)
def test_betas_of_any_rows_in_any_order(chunked_subject, rows):
    mapped, chunked, betas = chunked_subject
    for subject in (mapped, chunked):
        got = subject.betas(rows)
        assert got.dtype == np.float32 and got.shape == (len(rows), VOXELS)
        np.testing.assert_array_equal(got, betas[np.array(rows, int)])


@pytest.fixture(scope="module")
def chunked_subject(tmp_path_factory):
    """The same subject twice: betas contiguous, and the file compressed in chunks."""
    plain = make_nsd(tmp_path_factory.mktemp("plain"))
    packed = make_nsd(tmp_path_factory.mktemp("packed"))
    path = packed.root / "betas_all_subj01_fp32_renorm.hdf5"
    path.unlink()
    with h5py.File(path, "w") as file:
        file.create_dataset("betas", data=plain.betas[1], chunks=(8, VOXELS), compression="gzip")
    mapped, chunked = load(plain.root, [1]).subject(1), load(packed.root, [1]).subject(1)
    assert isinstance(mapped.source, FileRows) and isinstance(chunked.source, ChunkedRows)
    return mapped, chunked, plain.betas[1]


def test_betas_are_a_copy_and_bad_rows_are_refused(shared_truth):
    subject = load(shared_truth.root).subject(1)
    betas = subject.betas([0])
    betas += 1
    np.testing.assert_array_equal(subject.betas([0])[0], shared_truth.betas[1][0])
    for bad in ([-1], [TRIALS], [0.5], [[0]], [True]):
        with pytest.raises(UserError, match="betas_all_subj01.*betas row"):
            subject.betas(bad)
    with pytest.raises(UserError, match=r"image 6 is out of range; expected 0\.\.5"):
        load(shared_truth.root).stimuli.images([6])


def test_masks_over_the_volume_are_reduced_to_the_voxels(truth):
    """The volume has 12 voxels, 7 of them in nsd_general; a region must follow its voxels."""
    general = np.array([0, 1, 0, 1, 1, 0, 1, 1, 0, 1, 1, 0], bool)
    v1 = np.array([1, 1, 0, 0, 1, 0, 0, 1, 1, 0, 0, 1], bool)
    volume = dict.fromkeys(ROIS, general) | {"V1": v1}
    release_writer.write_masks(truth.root, {1: volume, 3: volume})
    rois = load(truth.root).subject(3).rois
    assert rois["nsd_general"].tolist() == [True] * 7
    assert rois["V1"].tolist() == [True, False, True, False, True, False, False]
    release_writer.write_masks(truth.root, dict.fromkeys((1, 3), volume | {"nsd_general": ~v1}))
    with pytest.raises(UserError, match="brain_region_masks.*nsd_general has 12 entries, 6"):
        load(truth.root)


def test_without_a_card_the_data_are_the_publishers(truth):
    (truth.root / "dataset.json").unlink()
    assert load(truth.root).card == {"simulated": False, "zscore": "publisher", "dataset": "NSD"}
    for card, message in (
        ({"simulated": True}, "zscore is None"),
        ({"simulated": 1, "zscore": "publisher"}, "true"),
        ({"simulated": True, "zscore": "some"}, "publisher, train_trials, session_all"),
    ):
        with pytest.raises(UserError, match=message):
            release_writer.write_card(truth.root, card)
        (truth.root / "dataset.json").write_text(json.dumps(card))
        with pytest.raises(UserError, match=f"dataset.json.*{message}"):
            load(truth.root)


FILES = (
    "betas_all_subj03_fp32_renorm.hdf5",
    "coco_images_224_float16.hdf5",
    "COCO_73k_annots_curated.npy",
    "COCO_73k_subj_indices.hdf5",
    "shared1000.npy",
    "brain_region_masks.hdf5",
    "wds/subj03/train/0.tar",
    "wds/subj03/train/1.tar",
    "wds/subj03/new_test/0.tar",
)


@pytest.mark.parametrize("name", FILES)
def test_every_missing_truncated_or_foreign_file_is_named(truth, name):
    path = truth.root / name
    whole = path.read_bytes()

    def refused():
        with pytest.raises(UserError) as caught:
            load(truth.root, [1, 3])
        assert str(truth.root / "wds/subj03") in str(caught.value) or path.name in str(caught.value)
        assert "\n" not in str(caught.value) and "expected" in str(caught.value)

    path.write_bytes(whole[: len(whole) // 2])
    refused()
    path.write_bytes(b"not what you think" * 100)
    refused()
    path.write_bytes(b"")
    refused()
    path.unlink()
    refused()
    path.write_bytes(whole)
    load(truth.root)


def test_a_tar_cut_between_two_members_is_refused(truth):
    """There tarfile itself sees nothing wrong."""
    path = truth.root / "wds/subj01/train/0.tar"
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    path.write_bytes(path.read_bytes()[: members[8].offset])
    with tarfile.open(path) as tar:
        assert len(tar.getmembers()) == 8
    with pytest.raises(UserError, match=r"subj01/train/0\.tar: not a whole tar \(it breaks off after 2 trials\)"):
        load(truth.root)


@pytest.mark.parametrize(
    ("tar", "change", "message"),
    [
        ("train/0.tar", put(0, IMAGES), r"column 0 \(stimulus\).*is 6; expected 0\.\.5"),
        ("train/0.tar", put(0, -1), r"column 0 \(stimulus\).*is -1"),
        ("train/0.tar", put(1, 2), r"column 1 \(subject\).*is 2; expected 1"),
        ("train/1.tar", put(2, 1), r"column 2 \(session\).*is 1; expected 2"),
        ("new_test/0.tar", put(2, 0), r"column 2 \(session\).*is 0"),
        ("train/0.tar", put(5, TRIALS), r"column 5 \(global trial\).*is 40; expected 0\.\.39"),
        ("train/0.tar", put(5, 3), "row 3 belongs to two trials"),
        ("train/0.tar", put(16, 1), r"column 16 \(is-shared1000\).*is 1; expected 0"),
        ("new_test/0.tar", put(16, 0), r"column 16 \(is-shared1000\).*is 0; expected 1"),
        ("train/0.tar", put(0, 0.5), "fraction"),
        ("train/0.tar", put(9, np.nan), "finite"),
        ("train/0.tar", put(0, 1), "stimulus 1 shows a shared test image in training"),
        ("new_test/0.tar", put(0, 2), "stimulus 2 is a test trial of an image that is not shared"),
        ("train/0.tar", lambda array: array[:, :16], r"shape \(1, 16\)"),
        ("train/0.tar", lambda array: array.astype(str), "dtype <U"),
    ],
)
def test_bad_behaviour_names_tar_and_column(truth, tar, change, message):
    rewrite(truth.root / "wds/subj01" / tar, change)
    with pytest.raises(UserError, match=f"subj01.*{message}"):
        load(truth.root)


def test_a_sample_without_behaviour_and_a_row_without_trial(truth):
    path = truth.root / "wds/subj01/train/1.tar"
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        sample = tar.getmembers()[0].name.split(".")[0]
    rewrite(path, lambda array: array, keep=lambda member: member.name != f"{sample}.behav.npy")
    with pytest.raises(UserError, match=f"1.tar: {sample} has no behav.npy"):
        load(truth.root)
    path.write_bytes(whole)
    rewrite(path, lambda array: array, keep=lambda member: not member.name.startswith(sample))
    with pytest.raises(UserError, match="39 trials but 40 rows"):
        load(truth.root)


def test_files_that_disagree_are_refused(truth):
    def refused(message):
        with pytest.raises(UserError, match=message):
            load(truth.root)

    stimulus = {number: table.stimulus for number, table in truth.tables.items()}
    wrong = stimulus[1].copy()
    wrong[4] = (wrong[4] + 1) % IMAGES
    release_writer.write_indices(truth.root, {**stimulus, 1: wrong})
    refused(rf"COCO_73k_subj_indices.hdf5: subj01\[4\] is {wrong[4]}; expected {stimulus[1][4]}")
    release_writer.write_indices(truth.root, {**stimulus, 1: wrong[:-1]})
    refused("no whole list subj01")
    release_writer.write_indices(truth.root, stimulus)
    release_writer.write_shared(truth.root, truth.shared[:-1])
    refused(r"shared1000.npy: has shape \(5,\)")
    np.save(truth.root / "shared1000.npy", truth.shared.astype(int))
    refused("shared1000.npy.*booleans")
    release_writer.write_shared(truth.root, truth.shared)
    release_writer.write_captions(truth.root, CAPTIONS[:-1])
    refused("annots_curated.npy: has shape")
    np.save(truth.root / "COCO_73k_annots_curated.npy", np.full((IMAGES, 5), "x", object), allow_pickle=True)
    refused("annots_curated.npy: is pickled")
    release_writer.write_captions(truth.root, CAPTIONS)
    release_writer.write_masks(truth.root, {1: truth.masks[1] | {"V2": np.ones(VOXELS + 1, bool)}, 3: truth.masks[3]})
    refused("brain_region_masks.hdf5: subj01/V2 has 8 entries; expected 7")
    release_writer.write_masks(truth.root, truth.masks)
    with h5py.File(truth.root / "brain_region_masks.hdf5", "r+") as file:
        del file["subj01/V2"]
        file["subj01/V2"] = np.ones(VOXELS)
    refused("no boolean list subj01/V2")
    with h5py.File(truth.root / "betas_all_subj01_fp32_renorm.hdf5", "w") as file:
        file["betas"] = truth.betas[1].astype(np.float64)
    refused("betas has shape.*dtype float64")
    for root in (truth.root / "nowhere", truth.root / "shared1000.npy"):
        with pytest.raises(UserError, match="expected a folder"):
            load(root)
    with pytest.raises(UserError, match="betas_all_subj02"):
        load(truth.root, [2])


def test_nan_betas_and_wild_pixels_are_refused_when_read(truth):
    betas = truth.betas[1].copy()
    betas[17, 3] = np.nan
    with pytest.raises(UserError, match="between row 0 and 39 hold a NaN"):
        release_writer.write_betas(truth.root, 1, [betas], betas.shape)
    with h5py.File(truth.root / "betas_all_subj01_fp32_renorm.hdf5", "r+") as file:
        file["betas"][17, 3] = np.nan
    with h5py.File(truth.root / "coco_images_224_float16.hdf5", "r+") as file:
        file["images"][2, 0, 0, 0] = 1.5
        file["images"][3, 1, 9, 9] = np.nan
        file["images"][4, 0, 0, 0] = -0.0
    dataset = load(truth.root)
    subject = dataset.subject(1)
    assert np.isfinite(subject.betas([16, 18])).all()
    with pytest.raises(UserError, match="subj01.*betas row 17, voxel 3 is nan"):
        subject.betas([16, 17])
    assert dataset.stimuli.images([0, 4]).shape == (2, 3, 224, 224)
    for image in (2, 3):
        with pytest.raises(UserError, match=f"image {image} has pixels"):
            dataset.stimuli.images([0, image])


def test_the_writer_refuses_what_does_not_fit_and_leaves_nothing_behind(tmp_path):
    good = np.zeros((2, 3, 224, 224), np.float32)
    for refused in (
        lambda: release_writer.write_images(tmp_path, [good], 3),
        lambda: release_writer.write_images(tmp_path, [good, good], 3),
        lambda: release_writer.write_images(tmp_path, [good[:, :, 1:]], 2),
        lambda: release_writer.write_images(tmp_path, [good + 2], 2),
        lambda: release_writer.write_images(tmp_path, [good * np.nan], 2),
        lambda: release_writer.write_images(tmp_path, [good.astype(int)], 2),
        lambda: release_writer.write_betas(tmp_path, 1, [], (0, 5)),
        lambda: release_writer.write_captions(tmp_path, [["a"] * 6]),
        lambda: release_writer.write_captions(tmp_path, ["a string"]),
        lambda: release_writer.write_masks(tmp_path, {1: {"V1": np.ones(3, bool)}}),
        lambda: release_writer.TrialTable([0, 1], [2, 1], [1, 1], [1, 2], [0, 1], [True, False]),
        lambda: release_writer.TrialTable([0, 1], [0, 1], [1, 1], [1, 2], [0, 1], [True, False]),
        lambda: release_writer.TrialTable([0, 1], [1, 1], [1], [1, 2], [0, 1], [True, False]),
    ):
        with pytest.raises(UserError, match="expected"):
            refused()
    assert list(tmp_path.iterdir()) == []


def test_irregular_data_of_the_release(tmp_path):
    """One subject with two sessions, one with one; images seen once, twice or thrice; no captions; regions missing."""
    truth = make_nsd(tmp_path)
    shown = np.array([0, 2, 1, 0, 3, 2, 0, 4, 5])
    for path in (tmp_path / "wds/subj03/train").iterdir():
        path.unlink()
    session = np.ones(len(shown), int)
    release_writer.write_behaviour(
        tmp_path, 3, release_writer.TrialTable(shown, session, session, np.arange(9) + 1, np.arange(9.0), truth.shared[shown])
    )
    release_writer.write_betas(tmp_path, 3, [truth.betas[3][:9]], (9, VOXELS))
    release_writer.write_indices(tmp_path, {1: truth.tables[1].stimulus, 3: shown})
    release_writer.write_captions(tmp_path, [()] * IMAGES)
    with h5py.File(tmp_path / "brain_region_masks.hdf5", "r+") as file:
        del file["subj01/V4"], file["subj03"]
    dataset = load(tmp_path)
    assert dataset.card["zscore"] == "train_trials" and dataset.card["assumed"] == [
        "subj01: no mask of V4, so nothing can be cut to it; all voxels are used together",
        "subj03: no mask of nsd_general, V1, V2, V3, V4, higher_vis, so nothing can be cut to it; all voxels are used "
        "together",
    ]
    one, three = dataset.subject(1), dataset.subject(3)
    assert set(one.rois) == set(ROIS) - {"V4"} and three.rois == {} and three.n_voxels == VOXELS
    np.testing.assert_array_equal(one.rois["V3"], truth.masks[1]["V3"])
    assert dataset.stimuli.captions == [()] * IMAGES
    assert set(one.trials.session) == {1, 2} and set(three.trials.session) == {1}
    with pytest.raises(UserError, match=r"sessions: is 2 for subject \d+; expected 1 to 1"):
        three.sessions(2)
    with pytest.raises(UserError, match="no region 'V4'; expected some of V1, V2, V3, higher_vis, nsd_general"):
        one.within("V4")
    assert three.trials.repeat.tolist() == [0, 0, 0, 1, 0, 1, 2, 0, 0]
    mean = three.averaged()
    assert mean.trials.stimulus.tolist() == [0, 1, 2, 3, 4, 5]
    for place, rows in enumerate(([0, 3, 6], [2], [1, 5], [4], [7], [8])):
        np.testing.assert_allclose(mean.betas([place])[0], truth.betas[3][rows].mean(0, dtype=np.float64), rtol=1e-6)
    findings = check(tmp_path)
    assert findings.count("error") == 0
    said = " | ".join(item.message for item in findings.items if item.severity == "note")
    for words in (
        "training images were seen unequally often (2 images 1 times; 1 images 2 times; 1 images 3 times)",
        "no image has a caption",
    ):
        assert words in said, said


def test_without_nsd_general_masks_must_cover_the_voxels(truth):
    with h5py.File(truth.root / "brain_region_masks.hdf5", "r+") as file:
        del file["subj01/nsd_general"]
    rois = load(truth.root).subject(1).rois
    assert set(rois) == set(ROIS) - {"nsd_general"}
    with h5py.File(truth.root / "brain_region_masks.hdf5", "r+") as file:
        del file["subj01/V2"]
        file["subj01/V2"] = np.ones(VOXELS + 5, bool)
    with pytest.raises(UserError, match="subj01/V2 has 12 entries; expected 7 as in the betas"):
        load(truth.root)
