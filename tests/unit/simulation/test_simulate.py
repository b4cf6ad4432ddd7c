"""A simulated NSD on disk, read back: who saw what when, honest z-scores, and the same seed the same bytes."""

import dataclasses
import shutil

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kills import names
from safetensors.numpy import load_file
from worlds import TINY

from mindtuner.cli import main
from mindtuner.cli.simulate import FORMATS as CHOICES
from mindtuner.config import SimulateConfig
from mindtuner.data import Subject, Trials
from mindtuner.data.nsd import VOXELS
from mindtuner.data.surface import GROUPS, load_atlas, on_surface
from mindtuner.errors import UserError
from mindtuner.files import read_json
from mindtuner.formats import FORMATS, format_of, load, write
from mindtuner.formats.mosaic.convert import convert_mosaic
from mindtuner.formats.mosaic.read import load_mosaic
from mindtuner.formats.mosaic.write import place
from mindtuner.simulation import brains
from mindtuner.simulation import simulate as module
from mindtuner.simulation.cutouts import drawn_cutouts
from mindtuner.simulation.scenes import SceneStream
from mindtuner.simulation.simulate import Plan, check_inputs, check_knobs, simulate, zscore

KNOBS = st.builds(
    SimulateConfig,
    subjects=st.integers(1, 8),
    sessions=st.integers(1, 6),
    trials_per_session=st.integers(24, 120),
    shared_images=st.integers(2, 30),
    repeats=st.integers(1, 3),
    seed=st.integers(0, 100),
)


def betas_of(root, number=1):
    with h5py.File(root / f"betas_all_subj0{number}_fp32_renorm.hdf5") as file:
        return file["betas"][()]


@pytest.fixture(scope="module")
def dataset(simulated):
    return load(simulated)


def test_it_reads_back(dataset):
    assert sorted(dataset.subjects) == [1, 2]
    assert dataset.card["simulated"] is True and dataset.card["simulated_scenes"] is True
    assert dataset.card["zscore"] == "train_trials" and dataset.card["stimuli"] == "drawn scenes"
    assert dataset.card["simulate"] == dataclasses.asdict(TINY)
    for number, subject in dataset.subjects.items():
        assert subject.n_voxels == round(VOXELS[number - 1] * TINY.voxel_scale)
        assert len(subject.trials) == 96 and len(subject.train) == 80 and len(subject.test) == 16
        assert subject.rois["nsd_general"].all() and subject.rois["V1"].any()
    assert all(dataset.stimuli.captions)


def test_every_subject_sees_the_shared_images_repeats_times_and_no_other_image_in_common(dataset):
    shared = np.flatnonzero(dataset.stimuli.is_shared)
    assert len(shared) == TINY.shared_images
    own = []
    for subject in dataset.subjects.values():
        seen, times = np.unique(subject.test.stimulus, return_counts=True)
        np.testing.assert_array_equal(seen, shared)
        assert (times == TINY.repeats).all()
        assert not np.isin(subject.train.stimulus, shared).any()
        seen, times = np.unique(subject.train.stimulus, return_counts=True)
        assert (times == TINY.repeats).all()
        own.append(set(seen.tolist()))
    assert not own[0] & own[1]


def test_sessions_hold_equal_numbers_of_shared_trials(dataset):
    for subject in dataset.subjects.values():
        for session in (1, 2):
            assert (subject.test.session == session).sum() == 8
            assert (subject.train.session == session).sum() == 40


@given(KNOBS)
@settings(max_examples=60, deadline=None)
def test_plans_of_any_size_keep_the_rules(knobs):
    try:
        check_knobs(knobs)
    except UserError:
        return
    plan = Plan(knobs)
    assert plan.is_shared.sum() == knobs.shared_images
    assert len(np.unique(np.concatenate([plan.own.ravel(), plan.shared]))) == plan.count == len(plan.is_shared)
    for number in range(1, knobs.subjects + 1):
        table = plan.trials(number)
        assert len(table) == knobs.sessions * knobs.trials_per_session
        np.testing.assert_array_equal(table.is_shared, plan.is_shared[table.stimulus])
        in_session = [table.is_shared[table.session == s] for s in range(1, knobs.sessions + 1)]
        assert {len(mask) for mask in in_session} == {knobs.trials_per_session}
        assert np.ptp([mask.sum() for mask in in_session]) <= 1
        seen, times = np.unique(table.stimulus[table.is_shared], return_counts=True)
        assert set(seen) == set(plan.shared) and (times == knobs.repeats).all()
        seen, times = np.unique(table.stimulus[~table.is_shared], return_counts=True)
        assert set(seen) <= set(plan.own[number - 1]) and times.max() <= knobs.repeats
        assert (table.run <= 12).all() and (np.diff(table.session) >= 0).all()


def test_repeats_lie_in_different_sessions_where_there_are_enough():
    table = Plan(SimulateConfig(subjects=1, sessions=3, trials_per_session=60, shared_images=20, repeats=3)).trials(1)
    for image in np.unique(table.stimulus[table.is_shared]):
        assert len(set(table.session[table.stimulus == image])) == 3


def test_zscore_uses_training_trials_alone():
    """Against a plain loop over sessions and voxels; test trials are offset, so they would show."""
    rng = np.random.default_rng(0)
    session = np.repeat([1, 2], 30)
    training = rng.random(60) < 0.7
    betas = rng.normal(3, 2, (60, 5)).astype(np.float32)
    betas[~training] += 50
    betas[session == 2] *= 3
    got = zscore(betas, session, training)
    for row in range(60):
        for voxel in range(5):
            reference = [float(betas[k, voxel]) for k in range(60) if session[k] == session[row] and training[k]]
            mean = sum(reference) / len(reference)
            sd = (sum((x - mean) ** 2 for x in reference) / len(reference)) ** 0.5
            assert got[row, voxel] == pytest.approx((betas[row, voxel] - mean) / sd, rel=1e-3, abs=1e-3)


def test_the_written_betas_are_zscored_over_training_trials_of_each_session(dataset):
    for subject in dataset.subjects.values():
        for session in (1, 2):
            rows = subject.train.row[subject.train.session == session]
            betas = subject.betas(rows).astype(np.float64)
            np.testing.assert_allclose(betas.mean(0), 0, atol=1e-4)
            np.testing.assert_allclose(betas.std(0), 1, atol=1e-3)
        tests = subject.betas(subject.test.row)
        assert np.abs(tests.mean(0)).max() > 1e-3  # theirs did not go into the mean


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(simulated, tmp_path, few_cutouts):
    for name, seed in (("again", 0), ("other", 1)):
        simulate(tmp_path / name, dataclasses.replace(TINY, seed=seed))
    for number in (1, 2):
        path = f"betas_all_subj0{number}_fp32_renorm.hdf5"
        assert (simulated / path).read_bytes() == (tmp_path / "again" / path).read_bytes()
        assert not np.isclose(betas_of(simulated, number), betas_of(tmp_path / "other", number)).all(1).any()
    again, other = load(tmp_path / "again").stimuli, load(tmp_path / "other").stimuli
    assert load(simulated).stimuli.hash == again.hash != other.hash


def test_the_images_are_the_scenes_of_two_streams(dataset, few_cutouts):
    """Shared images from the test pool, others from the training pool, by content."""
    stimuli = dataset.stimuli
    streams = {pool: SceneStream(drawn_cutouts(pool), pool, TINY.seed) for pool in ("train", "test")}
    for index in range(0, len(stimuli), 5):
        scene = streams["test" if stimuli.is_shared[index] else "train"](index)
        np.testing.assert_allclose(stimuli.images([index])[0], scene.pixels / 255, atol=1e-3)
        assert stimuli.captions[index] == scene.captions


def test_the_known_truth_stands_beside(simulated, dataset):
    scenes = read_json(simulated / "truth" / "scenes.json")["scenes"]
    assert len(scenes) == len(dataset.stimuli)
    for scene, captions in zip(scenes, dataset.stimuli.captions, strict=True):
        assert all(thing["name"] in captions[0] for thing in scene["objects"])
    for number, subject in dataset.subjects.items():
        truth = load_file(simulated / "truth" / f"subj0{number}.safetensors")
        assert truth["noise_ceiling"].shape == truth["ncsnr"].shape == (subject.n_voxels,)
        np.testing.assert_allclose(truth["noise_ceiling"], truth["ncsnr"] ** 2 / (truth["ncsnr"] ** 2 + 1 / 3), atol=1e-4)


def test_subjects_recode_with_the_group_that_their_number_falls_into(tmp_path, few_cutouts):
    for groups in (0, 1, 2):
        simulate(tmp_path / str(groups), dataclasses.replace(TINY, fingerprint_groups=groups, noise=0.0))
    first, second = ([betas_of(tmp_path / str(groups), number) for groups in (0, 1, 2)] for number in (1, 2))
    assert np.array_equal(second[1], second[2])  # 2 is in group 0, of one or of two
    assert not np.array_equal(first[1], first[2])  # 1 is in group 0 of one, in group 1 of two
    assert not any(np.array_equal(own[0], own[2]) for own in (first, second))


def test_no_noise_makes_repeats_of_an_image_alike(tmp_path, few_cutouts):
    simulate(tmp_path, dataclasses.replace(TINY, subjects=1, noise=0.0))
    subject = load(tmp_path).subject(1)
    first = subject.train.session == 1
    betas, stimulus = subject.betas(subject.train.row), subject.train.stimulus
    compared = 0
    for image in np.unique(stimulus[first]):
        rows = np.flatnonzero((stimulus == image) & first)
        for row in rows[1:]:
            np.testing.assert_allclose(betas[row], betas[rows[0]], atol=1e-4)
            compared += 1
    # and across sessions up to their z-scores, so patterns still agree
    one, two = (
        betas[[np.flatnonzero((stimulus == k) & (subject.train.session == s))[0] for k in both(subject)]] for s in (1, 2)
    )
    correlations = [np.corrcoef(a, b)[0, 1] for a, b in zip(one.T, two.T, strict=True)]
    assert compared + len(one) > 10 and np.min(correlations) > 0.99


def both(subject):
    seen = [set(subject.train.stimulus[subject.train.session == s].tolist()) for s in (1, 2)]
    return sorted(seen[0] & seen[1])


@pytest.mark.parametrize(
    "field, value",
    [
        ("subjects", 0),
        ("subjects", 9),
        ("sessions", 0),
        ("sessions", 41),
        ("trials_per_session", 23),
        ("trials_per_session", 751),
        ("shared_images", 1),
        ("shared_images", 1001),
        ("repeats", 0),
        ("repeats", 4),
        ("voxel_scale", 0.0),
        ("voxel_scale", 1.01),
        ("voxel_scale", float("nan")),
        ("fingerprint", -0.1),
        ("fingerprint", float("inf")),
        ("fingerprint_groups", -1),
        ("fingerprint_groups", 9),
        ("noise", -1.0),
        ("noise", float("nan")),
        ("seed", -1),
        ("seed", 20_240_412),
    ],
)
def test_a_knob_out_of_range_is_named_and_nothing_is_written(tmp_path, field, value):
    with pytest.raises(UserError, match=rf"simulate: {field} is .*; expected ") as error:
        simulate(tmp_path / "out", dataclasses.replace(TINY, **{field: value}))
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("shared, repeats", [(25, 2), (17, 3), (49, 1)])
def test_shared_images_may_take_at_most_half_of_the_trials(shared, repeats):
    with pytest.raises(UserError, match=f"shared_images x repeats is {shared} x {repeats}"):
        check_knobs(dataclasses.replace(TINY, shared_images=shared, repeats=repeats))
    check_knobs(dataclasses.replace(TINY, shared_images=shared - 1, repeats=repeats))


def test_folders_are_checked_before_anything_is_written(tmp_path):
    for folders in ({"cutouts": tmp_path / "a"}, {"stimuli": tmp_path / "b"}):
        with pytest.raises(UserError, match="not a folder"):
            check_inputs(TINY, **folders)
        with pytest.raises(UserError, match="not a folder"):
            simulate(tmp_path / "out", TINY, **folders)
    assert not (tmp_path / "out").exists()


class Stop(Exception):
    pass


@pytest.mark.parametrize(
    "step", ["write_images", "write_captions", "write_betas", "write_behaviour", "write_indices", "write_masks"]
)
def test_a_folder_that_was_cut_short_is_refused(tmp_path, monkeypatch, few_cutouts, step):
    def stop(*_):
        raise Stop

    monkeypatch.setattr(module.release_writer, step, stop)
    monkeypatch.setattr(module.nsd, "VOXELS", (5000,) * 8)
    with pytest.raises(Stop):
        simulate(tmp_path, dataclasses.replace(TINY, subjects=1, trials_per_session=24, shared_images=2))
    with pytest.raises(UserError):
        load(tmp_path)
    assert not list(tmp_path.rglob("*.part"))


def test_masks_come_last(simulated, tmp_path):
    """Whatever else is there: without the masks it is no dataset."""
    for path in simulated.iterdir():
        if path.name != "brain_region_masks.hdf5":
            (tmp_path / path.name).symlink_to(path)
    with pytest.raises(UserError, match="brain_region_masks.hdf5: not found"):
        load(tmp_path)


def test_too_few_images_for_a_brain_are_refused_at_once():
    few = SimulateConfig(subjects=1, sessions=1, trials_per_session=24, shared_images=2, repeats=3)
    with pytest.raises(UserError, match="trials_per_session x sessions / repeats lets each subject see 8 images"):
        check_knobs(few)
    check_knobs(dataclasses.replace(few, repeats=1))  # 24 images


@given(KNOBS)
@settings(max_examples=60, deadline=None)
def test_what_passes_the_checks_shows_every_subject_enough_images(knobs):
    try:
        check_knobs(knobs)
    except UserError:
        return
    for number in range(1, knobs.subjects + 1):
        assert len(np.unique(Plan(knobs).trials(number).stimulus)) >= brains.MIN_IMAGES


# ---- the other formats; that all hold the same is in test_all_formats.py


@pytest.fixture
def made_before(simulated, monkeypatch):
    """The NSD release is copied instead of made."""
    monkeypatch.setattr(module, "_simulate_release", lambda out, *_: shutil.copytree(simulated, out))


WRITTEN = {
    "nsd_raw": {"annotations", "nsddata", "nsddata_betas", "nsddata_stimuli"},
    "lab_folder": {"stimuli", "sub-01", "sub-02"},
    "laion": {"derivatives", "splits", "stimuli"},
    "bdata": {"stimuli", "sub-01.h5", "sub-02.h5"},
    "mosaic": {"nsd_stiminfo.tsv", "stimuli", "sub-01_NSD.hdf5", "sub-02_NSD.hdf5"},
}


@pytest.mark.slow
def test_the_verb_writes_each_format_with_its_truth_and_force_replaces_it(made_before, simulated, tmp_path, capsys):
    assert {known.name for known in FORMATS if known.write} == set(CHOICES) == {"nsd_release", *WRITTEN}
    out = tmp_path / "out"
    for name, files in WRITTEN.items():
        assert main(["simulate", str(out), "--subjects", "2", "--format", name, "--force"]) == 0
        assert format_of(out).name == name
        assert names(out) == files | {"dataset.json", "truth"}
        for path in (simulated / "truth").iterdir():
            assert (out / "truth" / path.name).read_bytes() == path.read_bytes()
        said = capsys.readouterr().out
        assert ("convert nsd" in said, "convert mosaic" in said) == (name == "nsd_raw", name == "mosaic")
        assert main(["simulate", str(out), "--format", name]) == 2
    (out / ".mindtuner-run").unlink()  # names that real data have are not deleted for the asking
    assert main(["simulate", str(out), "--force"]) == 2 and (out / "sub-01_NSD.hdf5").exists()


@pytest.mark.slow
@pytest.mark.parametrize("format", WRITTEN)
def test_another_format_is_whole_or_not_there(made_before, tmp_path, monkeypatch, format):
    def write_and_stop(root, dataset, format):
        write(root, dataset, format)
        assert (root / "dataset.json").exists()
        raise Stop

    monkeypatch.setattr(module, "write", write_and_stop)
    with pytest.raises(Stop):
        simulate(tmp_path / "out", TINY, format=format)
    assert not list((tmp_path / "out").iterdir())


def test_an_unknown_format_is_named_before_anything_is_written(tmp_path):
    with pytest.raises(
        UserError, match="format: is 'matlab'; expected one of nsd_release, nsd_raw, laion, mosaic, bdata, lab_folder"
    ):
        simulate(tmp_path / "out", TINY, format="matlab")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_mosaic_is_converted_with_its_vertices(made_before, tmp_path, capsys):
    simulate(tmp_path / "mosaic", TINY, format="mosaic")
    placed = load_file(tmp_path / "mosaic" / "truth" / "placement.safetensors")
    assert main(["convert", "mosaic", str(tmp_path / "mosaic"), str(tmp_path / "out"), "--regions", "early, FFC"]) == 0
    assert "subject 2 (sub-02_NSD): 96 trials, 16 of them test" in capsys.readouterr().out
    dataset = load(tmp_path / "out")
    mosaic = load_mosaic(
        [tmp_path / "mosaic" / f"sub-0{n}_NSD.hdf5" for n in (1, 2)],
        tmp_path / "mosaic" / "nsd_stiminfo.tsv",
        tmp_path / "mosaic" / "stimuli",
        ["early", "FFC"],
    )
    assert dataset.card["simulated"] is True and dataset.card["zscore"] == "publisher"
    for number, subject in dataset.subjects.items():
        vertices = np.load(tmp_path / "out" / f"sub-0{number}" / "vertices.npy")
        np.testing.assert_array_equal(vertices, mosaic.subject(number).vertices)
        assert np.isin(vertices, load_atlas().surface[placed[f"subj0{number}"]]).all()
        np.testing.assert_array_equal(subject.betas(subject.trials.row), mosaic.subject(number).betas(subject.trials.row))
        assert np.isfinite(np.concatenate(on_surface(vertices, subject.betas([0])[0]))).sum() == subject.n_voxels
        np.testing.assert_array_equal(subject.vertices, vertices)
        assert set(subject.rois) == {"early", "V1", "V2", "V3", "V4", "FFC"}
    with pytest.raises(UserError, match="out: holds another run; expected an empty folder"):
        convert_mosaic(tmp_path / "mosaic", tmp_path / "out")
    for root, message in ((tmp_path / "none", "not found; expected a folder"), (tmp_path, "no subject; expected")):
        with pytest.raises(UserError, match=message):
            convert_mosaic(root, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def lying_nowhere(trials, voxels, rois=None, number=1, scale=1.0):
    betas = np.full((len(trials), voxels), scale, np.float32)
    return Subject(number, trials, rois or {}, betas, np.zeros(1, bool), "memory")


def test_where_vertices_are_scarce_voxels_are_sampled_evenly():
    trials, atlas = Trials([0], [0], [1], [0], [False]), load_atlas()
    v1 = np.arange(9000) < 3000
    placed = place(lying_nowhere(trials, 9000, {"V1": v1}))
    for voxels, parcels in (
        (v1, ("V1",)),
        (~v1, (*GROUPS["ventral"], *GROUPS["lateral"], *GROUPS["dorsal"])),
    ):
        vertices = np.flatnonzero(np.isin(atlas.parcel, parcels))
        kept = np.flatnonzero(voxels & (placed >= 0))
        np.testing.assert_array_equal(placed[kept], vertices)  # each vertex once
        gaps = np.diff(kept)
        assert voxels.sum() > len(vertices) and gaps.max() - gaps.min() <= 1 and kept[-1] == np.flatnonzero(voxels)[-1]


def test_what_nsd_cannot_hold_is_refused(dataset, tmp_path):
    one, uneven = Trials([0], [0], [1], [0], [False]), Trials([0, 1, 2], [0, 0, 0], [1, 1, 2], [0, 1, 2], [False] * 3)
    for subject, message in (
        (lying_nowhere(one, 5, number=9), "subject 9; expected 1 to 8"),
        (lying_nowhere(uneven, 5), r"subject 1 have \[2, 1\] trials; expected sessions"),
        (lying_nowhere(one, 5, scale=60.0), "memory: a beta is 60.0; expected z-scores"),
    ):
        with pytest.raises(UserError, match=message):
            write(tmp_path, dataclasses.replace(dataset, subjects={subject.number: subject}), "nsd_raw")
    with pytest.raises(UserError, match="form: is 'npy'; expected one of hdf5, nifti"):
        write(tmp_path, dataset, "nsd_raw", form="npy")
    with pytest.raises(UserError, match="subject 100; expected 1 to 99"):
        write(tmp_path, dataclasses.replace(dataset, subjects={100: lying_nowhere(one, 5, number=100)}), "mosaic")
