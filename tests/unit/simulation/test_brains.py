"""The simulated brains against what they claim: closed forms, independent estimators, known truth."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mindtuner.errors import UserError
from mindtuner.simulation import calibration
from mindtuner.simulation.brains import measure, simulate_brain
from mindtuner.simulation.cortex import make_sheet, smooth_fields
from mindtuner.simulation.early import early_features
from mindtuner.simulation.fingerprint import phi_per_voxel
from mindtuner.simulation.labels import PlacedObject, SceneLabels, content_labels
from mindtuner.simulation.noise import session_noise
from mindtuner.simulation.semantic import BLOCKS, semantic_features
from mindtuner.simulation.tuning import prf_responses

IMAGES, VOXELS = 800, 500


@pytest.fixture(scope="module")
def features():
    images, labels = calibration.random_scenes(IMAGES, seed=3)
    return early_features(images), semantic_features(labels), labels


@pytest.fixture(scope="module")
def brain(features):
    return simulate_brain(1, VOXELS, *features[:2], phi=0.5, seed=0)


@pytest.fixture(scope="module")
def other(features):
    return simulate_brain(2, VOXELS, *features[:2], phi=0.5, seed=0)


def columns_correlate(a, b):
    """Largest absolute Pearson r between any column of a and any of b."""
    a, b = ((x - x.mean(0)) / np.maximum(np.linalg.norm(x - x.mean(0), axis=0), 1e-12) for x in (a, b))
    return np.abs(a.T @ b).max()


# --- features ---


def test_gratings_drive_their_own_scale_and_orientation():
    y, x = np.mgrid[:64, :64] + 0.5
    for scale, wavelength in enumerate((4, 8, 16)):
        for orientation, angle in enumerate((0, 45, 90, 135)):
            across = x * np.cos(np.radians(angle)) + y * np.sin(np.radians(angle))
            image = 0.5 + 0.3 * np.sin(2 * np.pi * across / wavelength)
            energy = early_features(np.broadcast_to(image, (1, 3, 64, 64)))[0, :12].mean((1, 2))
            assert energy.argmax() == 4 * scale + orientation


def test_uniform_colours_have_opponent_signals_and_no_contours():
    colours = {
        "grey": (0.5, 0.5, 0.5),
        "red": (0.9, 0.1, 0.1),
        "green": (0.1, 0.9, 0.1),
        "blue": (0.1, 0.1, 0.9),
        "yellow": (0.9, 0.9, 0.1),
    }
    images = np.array(list(colours.values()))[:, :, None, None] * np.ones((1, 1, 70, 90))
    maps = early_features(images)
    assert maps.shape == (5, 18, 16, 16) and maps.dtype == np.float32
    assert maps[:, :12].max() < 1e-5
    sums = dict(zip(colours, maps[:, 12:].mean((2, 3))))
    assert np.abs(sums["grey"]).max() < 1e-6
    assert sums["red"][2] > 0.3 and sums["red"][3] == 0 and sums["green"][3] > 0.3 and sums["green"][2] == 0
    assert sums["blue"][4] > 0.3 and sums["yellow"][5] > 0.3 and sums["yellow"][4] == 0


def test_early_features_do_not_depend_on_batch_or_container():
    images = np.random.default_rng(0).random((70, 3, 40, 40), np.float32)
    whole = early_features(images)
    np.testing.assert_allclose(whole[66:], early_features(images[66:]), atol=1e-5)
    np.testing.assert_allclose(whole, early_features(torch.from_numpy(images)), atol=1e-6)
    np.testing.assert_allclose(whole, early_features(images.astype(np.float16)), atol=2e-3)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 1, 64, 64)),
        np.zeros((3, 64, 64)),
        np.full((1, 3, 64, 64), 2.0),
        np.full((1, 3, 64, 64), np.nan),
    ],
)
def test_early_features_refuse(images):
    with pytest.raises(UserError, match="^images: .*expected"):
        early_features(images)


def placed(name, group="animal", colour="red", x=0.3, y=0.4, size=0.3):
    return PlacedObject(name, group, colour, x, y, size)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.builds(
            placed,
            st.sampled_from(["dog", "cat", "car"]),
            colour=st.sampled_from(["", "red", "blue"]),
            x=st.floats(0, 1),
            y=st.floats(0, 1),
            size=st.floats(0.0, 1),
        ),
        min_size=1,
        max_size=5,
    ),
    st.randoms(),
)
def test_scene_features_are_finite_and_ignore_the_order_of_objects(objects, random):
    shuffled = random.sample(objects, len(objects))
    a, b = semantic_features([SceneLabels("beach", tuple(objects)), SceneLabels("beach", tuple(shuffled))])
    assert np.isfinite(a).all()
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_scene_features_tell_binding_layout_and_category_apart():
    def row(*objects):
        return semantic_features([SceneLabels("", objects)])[0]

    first = row(placed("dog", colour="red"), placed("car", colour="blue"))
    swapped = row(placed("dog", colour="blue"), placed("car", colour="red"))
    changed = {name for name, columns in BLOCKS.items() if not np.allclose(first[columns], swapped[columns])}
    assert changed == {"bindings"}
    left, right = row(placed("dog", x=0.2)), row(placed("dog", x=0.8))
    assert {name for name, c in BLOCKS.items() if not np.allclose(left[c], right[c])} == {"layout"}
    animals = [row(placed(n))[BLOCKS["objects"]] for n in ("dog", "cat", "cow", "hen", "fox", "owl", "bat")]
    tools = [row(placed(n, "tool"))[BLOCKS["objects"]] for n in ("saw", "axe", "pen", "mop", "jug", "pan", "awl")]
    within = np.corrcoef(animals)[np.triu_indices(7, 1)].mean()
    assert within > 0.25 and within > np.corrcoef(animals, tools)[:7, 7:].mean() + 0.25


def test_scene_features_refuse_nothing_to_see():
    with pytest.raises(UserError, match=r"labels\[1\].objects"):
        semantic_features([SceneLabels("", (placed("dog"),)), SceneLabels("beach", ())])
    with pytest.raises(UserError, match="^labels: empty"):
        semantic_features([])


def test_content_labels():
    scene = content_labels("Two Dogs are running beside a RED ball on the beach")
    assert [(o.name, o.colour) for o in scene.objects] == [
        ("dogs", ""),
        ("running", ""),
        ("ball", "red"),
        ("beach", ""),
    ]
    assert scene.place == "" and {(o.group, o.x, o.y, o.size) for o in scene.objects} == {("word", 0.5, 0.5, 0.5)}
    assert [(o.name, o.colour) for o in content_labels("it is blue").objects] == [("blue", "blue")]
    with pytest.raises(UserError, match="no content word"):
        content_labels("this is 12 of the")


# --- the signal ---


def test_without_a_fingerprint_the_signal_is_exactly_the_linear_part(features, brain):
    plain = simulate_brain(1, VOXELS, *features[:2], phi=0.0, seed=0)
    assert np.array_equal(plain.signal, plain.linear)
    assert np.array_equal(plain.linear, brain.linear)  # the knob moves nothing else
    assert np.array_equal(plain.ncsnr, brain.ncsnr)
    assert not plain.fingerprint.any() and not plain.truth()["phi"].any()


@pytest.mark.parametrize("phi", [0.5, 1.2])
def test_fingerprint_has_the_planted_strength(features, phi):
    brain = simulate_brain(1, 200, *features[:2], phi=phi, seed=0)
    part = brain.signal * np.sqrt(1 + brain.phi**2) - brain.linear
    np.testing.assert_allclose(part.std(0) / brain.linear.std(0), brain.phi, rtol=1e-3)
    assert brain.phi.mean() == pytest.approx(phi, rel=1e-5)
    np.testing.assert_allclose(brain.signal.std(0), 1, atol=1e-3)
    np.testing.assert_allclose(brain.signal.mean(0), 0, atol=1e-4)
    share = 1 - np.array([np.corrcoef(brain.signal[:, v], brain.linear[:, v])[0, 1] ** 2 for v in range(200)])
    np.testing.assert_allclose(share, brain.truth()["fingerprint_share"], atol=1e-3)
    by_area = [brain.phi[brain.rois[name]].mean() for name in ("V1", "V2", "V3", "V4", "higher_vis")]
    assert by_area == sorted(by_area) and by_area[-1] / by_area[0] == pytest.approx(1.3 / 0.6, rel=1e-4)


def test_fingerprint_holds_nothing_linear_in_the_shared_responses(brain):
    components = np.linalg.svd(brain.linear - brain.linear.mean(0), full_matrices=False)[0][:, :100]
    assert columns_correlate(components, brain.fingerprint) < 2e-3
    own = [abs(np.corrcoef(n, x)[0, 1]) for n, x in zip(brain.fingerprint.T, brain.linear.T)]
    assert max(own) < 2e-3


def test_no_linear_model_predicts_the_fingerprint_but_a_smooth_one_begins_to(brain):
    train = np.arange(IMAGES) % 5 > 0
    part = brain.fingerprint[:, brain.rois["higher_vis"]]
    assert np.median(calibration.held_out_r2(brain.linear, brain.signal, train)) > 0.5  # the estimator works
    assert calibration.held_out_r2(brain.linear, part, train).mean() < 0.02
    assert calibration.held_out_r2(brain.linear, part, train, smooth=True).mean() > 0.04


def test_each_subject_has_its_own_fingerprint_on_shared_tuning(features, brain, other):
    again = simulate_brain(1, VOXELS, *features[:2], phi=0.5, seed=0)
    assert np.array_equal(again.signal, brain.signal)
    for name, values in brain.truth().items():
        assert np.array_equal(values, again.truth()[name], equal_nan=True), name
    assert not np.array_equal(simulate_brain(1, VOXELS, *features[:2], phi=0.5, seed=1).signal, brain.signal)
    assert calibration.similarity(brain.linear, other.linear) > 0.6
    assert abs(calibration.similarity(brain.fingerprint, other.fingerprint)) < 0.25
    sizes = [[mask.sum() for mask in b.rois.values()] for b in (brain, other)]
    assert sizes[0] != sizes[1] and sizes[0][0] == sum(sizes[0][1:]) == VOXELS


def test_subjects_of_a_group_recode_alike_and_nothing_else_of_theirs_changes(features, brain, other):
    first, second, apart = (
        simulate_brain(number, VOXELS, *features[:2], phi=0.5, seed=0, group=group)
        for number, group in [(1, 0), (2, 0), (2, 1)]
    )
    assert np.array_equal(first.linear, brain.linear) and np.array_equal(second.linear, other.linear)
    assert np.array_equal(first.phi, brain.phi) and np.array_equal(first.ncsnr, brain.ncsnr)
    alike = calibration.similarity(first.fingerprint, second.fingerprint)
    unlike = calibration.similarity(first.fingerprint, apart.fingerprint)
    assert alike > 0.4 and abs(unlike) < 0.25
    own = [abs(np.corrcoef(n, x)[0, 1]) for n, x in zip(second.fingerprint.T, second.linear.T)]
    assert max(own) < 2e-3  # still nothing linear in what all share
    shared = simulate_brain(2, VOXELS, *features[:2], phi=0.0, seed=0, group=0)
    assert np.array_equal(shared.signal, other.linear)


def test_same_category_evokes_more_similar_patterns(features, brain):
    single = [i for i, scene in enumerate(features[2]) if len(scene.objects) == 1]
    group = np.array([features[2][i].objects[0].group for i in single])
    patterns = np.corrcoef(brain.signal[np.ix_(single, brain.rois["higher_vis"])])
    same, pair = group[:, None] == group, np.triu(np.ones((len(single),) * 2, bool), 1)
    assert patterns[same & pair].mean() > patterns[~same & pair].mean() + 0.1


def test_neighbours_respond_alike(brain):
    for name in ("V1", "higher_vis"):
        here = brain.rois[name]
        distance = np.linalg.norm(brain.sheet.map[here][:, None] - brain.sheet.map[here], axis=-1)
        alike = np.corrcoef(brain.signal[:, here].T)
        near, far = (distance > 0) & (distance < 0.13), distance > 0.4
        assert alike[near].mean() > 0.4 and alike[near].mean() > np.abs(alike[far]).mean() + 0.2


def test_early_voxels_see_what_lies_in_their_receptive_field(brain):
    places = (np.arange(8) + 0.5) / 8
    spots = np.full((64, 3, 64, 64), 0.5, np.float32)
    for index in range(64):
        row, column = divmod(index, 8)
        spots[index, :, 8 * row + 2 : 8 * row + 6, 8 * column + 2 : 8 * column + 6] = [
            [[1.0]],
            [[0.2]],
            [[0.9]],
        ]
    response = prf_responses(early_features(spots), brain.prfs)
    best = np.stack([places[response.argmax(0) % 8], places[response.argmax(0) // 8]], 1)
    miss = np.linalg.norm(best - np.clip(brain.prfs.centre, 0.06, 0.94), axis=1)
    assert np.median(miss) < 0.09 and np.percentile(miss, 90) < 0.2  # spots are 0.125 apart


def test_receptive_fields_grow_with_eccentricity_and_area(features):
    brain = simulate_brain(1, 3000, features[0][:20], features[1][:20], phi=0.0, seed=0)
    eccentricity = np.linalg.norm(brain.prfs.centre - 0.5, axis=1)
    medians = []
    for name in ("V1", "V2", "V3", "V4"):
        here = brain.rois[name][brain.sheet.mask("V1", "V2", "V3", "V4")]
        assert np.corrcoef(eccentricity[here], brain.prfs.size[here])[0, 1] > 0.4
        medians.append(np.median(brain.prfs.size[here]))
    assert medians == sorted(medians)


@settings(max_examples=20, deadline=None)
@given(st.integers(50, 3000), st.integers(0, 2**32 - 1), st.floats(0, 3))
def test_any_sheet_is_whole(n_voxels, seed, phi):
    sheet = make_sheet(n_voxels, seed)
    assert sum(sheet.rois()[name] for name in ("V1", "V2", "V3", "V4", "higher_vis")).tolist() == [1] * n_voxels
    assert np.isfinite(sheet.map).all() and np.isfinite(sheet.position).all()
    assert phi_per_voxel(sheet, phi).mean() == pytest.approx(phi, rel=1e-4)


def test_smooth_fields_have_the_covariance_they_claim():
    points = np.array([[0.0, 0.0], [0.1, 0.0], [0.0, 0.3]])
    fields = np.concatenate([smooth_fields(points, 20, 0.2, seed) for seed in range(400)], 1)
    distance = np.linalg.norm(points[:, None] - points, axis=-1)
    np.testing.assert_allclose(fields @ fields.T / fields.shape[1], np.exp(-(distance**2) / (2 * 0.2**2)), atol=0.07)


# --- the measurement ---


def test_planted_noise_ceilings_are_recovered_from_repeats(brain):
    estimate = calibration.estimated_ceiling(calibration.repeats_of(brain))
    assert abs(estimate.mean() - 0.36) < 0.03
    assert brain.noise_ceiling.mean() == pytest.approx(0.36, abs=1e-3)
    assert np.abs(estimate - brain.noise_ceiling).mean() < 0.06
    assert np.corrcoef(estimate, brain.noise_ceiling)[0, 1] > 0.95
    np.testing.assert_allclose(brain.noise_ceiling, brain.ncsnr**2 / (brain.ncsnr**2 + 1 / 3), rtol=1e-4)
    assert 0.02 <= brain.noise_ceiling.min() < 0.08 and 0.70 < brain.noise_ceiling.max() <= 0.80


def test_ceilings_are_higher_in_early_areas_and_smooth(features):
    early, higher, steps = [], [], []
    for number in range(1, 9):
        brain = simulate_brain(number, 600, features[0][:20], features[1][:20], phi=0.0, seed=0)
        early.append(brain.noise_ceiling[brain.sheet.mask("V1", "V2")].mean())
        higher.append(brain.noise_ceiling[brain.rois["higher_vis"]].mean())
        distance = np.linalg.norm(brain.sheet.position[:, None] - brain.sheet.position, axis=-1)
        np.fill_diagonal(distance, np.inf)
        neighbour = brain.noise_ceiling[distance.argmin(1)]
        steps.append(np.corrcoef(neighbour, brain.noise_ceiling)[0, 1])
    assert np.mean(early) > np.mean(higher) + 0.1
    assert np.mean(steps) > 0.6


def test_noise_has_its_three_parts():
    sheet = make_sheet(400, seed=5)
    noise = np.concatenate([session_noise(500, sheet, 7, session) for session in range(1, 9)])
    assert noise.var(0).mean() == pytest.approx(1, abs=0.04)
    values = np.linalg.eigvalsh(np.cov(noise.T))[::-1]
    top = values[:14].sum() - 14 * 0.6  # own noise adds 0.6 to every eigenvalue
    assert top / values.sum() == pytest.approx(0.4, abs=0.05)
    courses = noise.reshape(8, 500, -1)
    lagged = (courses[:, 1:] * courses[:, :-1]).mean((0, 1))
    assert lagged.mean() == pytest.approx(0.1, abs=0.03)
    assert np.abs(courses.mean(1)).max() < 0.35  # drift leaves a session's mean alone


def test_the_noise_knob_and_single_sessions(brain):
    rows, session = np.arange(60) % 20, np.repeat([1, 2, 3], 20)
    assert np.array_equal(measure(brain, rows, session, noise=0), brain.signal[rows])
    whole = measure(brain, rows, session)
    alone = measure(brain, rows[20:40], session[20:40])
    assert np.array_equal(whole[20:40], alone)
    doubled = measure(brain, rows, session, noise=2.0)
    np.testing.assert_allclose(doubled - brain.signal[rows], 2 * (whole - brain.signal[rows]), atol=1e-3)
    assert np.array_equal(whole, measure(brain, rows, session))
    assert np.abs(whole[:20] - whole[20:40]).min() > 0  # sessions differ


def test_subjects_have_their_own_noise(brain, other):
    rows, session = np.zeros(30, int), np.ones(30, int)
    first, second = (measure(b, rows, session) - b.signal[rows] for b in (brain, other))
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.05


def test_bad_input(features, brain):
    early, scenes = features[:2]
    for arguments, field in [
        ((early[:, :4], scenes, 0.5), "features"),
        ((early, scenes[:9], 0.5), "features"),
        ((early[:9], scenes[:9], 0.5), "images"),
        ((early, scenes, -0.1), "fingerprint"),
        ((early, scenes, np.nan), "fingerprint"),
        ((early[[0] * 30], scenes[:30], 0.5), "images"),
        ((early[:30], scenes[[0] * 30], 0.5), "labels"),
    ]:
        with pytest.raises(UserError, match=f"^{field}: [^\n]*$"):
            simulate_brain(1, 100, *arguments, seed=0)
    with pytest.raises(UserError, match="^n_voxels: 10;"):
        simulate_brain(1, 10, early, scenes, 0.5, seed=0)
    for rows, session, noise, field in [
        ([0, 1], [1], 1.0, "rows"),
        ([IMAGES], [1], 1.0, "rows"),
        ([-1], [1], 1.0, "rows"),
        ([0], [1], -1.0, "noise"),
    ]:
        with pytest.raises(UserError, match=f"^{field}"):
            measure(brain, np.array(rows), np.array(session), noise)


def test_calibration_prints_its_table(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["calibration", "--images", "60", "--voxels", "80"])
    calibration.main()
    out = capsys.readouterr().out
    assert "higher_vis" in out and "60 images, subject 1, 80 voxels" in out
