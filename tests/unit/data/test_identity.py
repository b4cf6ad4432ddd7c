"""What tells the data of a run from any other: contents, which are read again where a file's size or time changed."""

import dataclasses
import os

import numpy as np
import pytest
from lab_files import make_lab, write_betas, write_table
from PIL import Image

from mindtuner.data import Subject, Trials, identity
from mindtuner.data.identity import Inputs, betas_hash, inputs_of, inputs_on
from mindtuner.data.pictures import Pictures, kept_pictures
from mindtuner.errors import UserError
from mindtuner.formats import load


@pytest.fixture
def lab(tmp_path):
    (tmp_path / "cache").mkdir()
    return make_lab(tmp_path / "lab")


def now(lab, cache="cache", **options):
    dataset = load(lab.root)
    folder = lab.root.parent / cache
    return inputs_of(dataset, folder, kept_pictures(dataset.stimuli, folder), **options).hashes


def touched(lab):
    for path in lab.root.rglob("*"):
        os.utime(path, (1e9, 1e9))


@pytest.mark.parametrize("form", ["npy", "hdf5", "packed", "nii", "nii.gz"])
def test_the_same_contents_are_the_same_in_every_form(tmp_path, form):
    """Betas count as they are read: float32, whatever holds them."""
    (tmp_path / "cache").mkdir()
    lab, plain = make_lab(tmp_path / "lab", form), make_lab(tmp_path / "plain")
    assert now(lab, test=True) == now(plain, test=True)


def test_betas_are_read_again_where_time_or_size_changed_and_only_there(lab, monkeypatch):
    before = now(lab)
    monkeypatch.setattr(Subject, "betas", lambda *arguments: pytest.fail("was read"))
    assert now(lab) == before  # of this process
    identity._known.clear()
    assert now(lab) == before  # of identity.json
    monkeypatch.undo()
    touched(lab)
    identity._known.clear()
    assert now(lab) == before
    lab.betas[lab.split.index("train"), 2] += 1
    write_betas(lab.root, lab, "npy")
    assert now(lab) != before


def test_each_field_changes_by_itself(lab):
    before = now(lab, test=True)
    assert list(before) == [
        "images",
        "captions",
        "split",
        "regions of subject 1",
        "training trials of subject 1",
        "training betas of subject 1",
        "test trials of subject 1",
        "test betas of subject 1",
    ]

    def changed():
        found = now(lab, test=True)
        return [field for field in before if found[field] != before[field]]

    text = lab.root / "stimuli/c.txt"
    text.write_text("another caption\n")
    assert changed() == ["captions"]
    text.write_text("\n")
    region = lab.root / "rois/V1.nii.gz"
    region.rename(region.with_name("V2.nii.gz"))
    assert changed() == ["regions of subject 1"]
    region.with_name("V2.nii.gz").rename(region)
    assert changed() == []
    lab.session[[0, -1]] = lab.session[[-1, 0]]  # z-scores are those of sessions
    write_table(lab.root, lab)
    assert {"training trials of subject 1", "training betas of subject 1"} <= set(changed())
    assert not {"images", "captions", "split"} & set(changed())


def test_other_trials_of_a_cut_subject_do_not_count(lab):
    """Of training alone, a later session's betas are no part of the first one's."""
    dataset = load(lab.root)
    first = dataset.subject(1).sessions(1)
    before = betas_hash(first, first.train)
    lab.betas[lab.session == 2] += np.arange(len(lab.betas[0]))
    write_betas(lab.root, lab, "npy")
    first = load(lab.root).subject(1).sessions(1)
    assert betas_hash(first, first.train) == before
    whole = load(lab.root).subject(1)
    assert betas_hash(whole, whole.train) != betas_hash(first, first.train)


def test_trials_in_memory_count_by_content_alone():
    trials = Trials([0, 1], [0, 1], [1, 1], [0, 0], [False, False])
    betas = np.ones((2, 3), np.float32)
    subject = Subject(1, trials, {}, betas, np.zeros(2, bool), "memory")
    before = betas_hash(subject, trials)
    assert betas_hash(dataclasses.replace(subject, source=betas.copy()), trials) == before
    betas[1, 1] = 2
    assert betas_hash(subject, trials) != before


def test_the_first_field_that_both_have_is_named():
    before = {"images": "a", "split": "b", "base": "c"}
    assert Inputs({"split": "b", "captions": "x"}, {}).changed(before) is None
    assert Inputs({"captions": "x", "split": "z", "base": "d"}, {}).changed(before) == "split"


# ---- pictures


def test_pictures_are_read_once_and_a_folder_of_others_is_refused(lab, monkeypatch):
    stimuli, folder = load(lab.root).stimuli, lab.root.parent / "cache"
    before = kept_pictures(stimuli, folder)
    with monkeypatch.context() as patch:
        patch.setattr(Pictures, "of", lambda *arguments: pytest.fail("was read"))
        again = kept_pictures(load(lab.root).stimuli, folder)
    np.testing.assert_array_equal(again.hashes, before.hashes)
    np.testing.assert_array_equal(again.looks, before.looks)
    touched(lab)
    assert kept_pictures(load(lab.root).stimuli, folder).digest == before.digest
    Image.new("RGB", (30, 30), "red").save(lab.root / "stimuli/d.png")
    with pytest.raises(UserError, match="is of other images than .*stimuli holds now; expected the same"):
        kept_pictures(load(lab.root).stimuli, folder)


def test_pictures_are_known_by_pixels_and_by_looks(lab):
    """From a card and back: the same picture, stored as JPEG or scaled, is known; others are not, nor one of one colour."""
    folder = lab.root / "stimuli"
    path, twin = folder / "a/one.png", folder / "d.png"
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8))
    coarse.resize((240, 240), Image.Resampling.BICUBIC).save(path)
    known = Pictures.of(load(lab.root).stimuli, np.arange(6))
    card = {"trained_on": known.on_card(np.array([0, 1]))}
    assert card["trained_on"]["images"] == [0, 1]
    back = Pictures.from_card(card)
    assert known.among(back).tolist() == [True, True, False, False, False, False]
    picture = Image.open(path)
    for width in (120, 224, 400):
        picture.resize((width, width), Image.Resampling.BICUBIC).save(twin)
        assert Pictures.of(load(lab.root).stimuli, np.arange(6)).among(back)[4], width
        picture.resize((width, width)).save(folder / "e.jpeg", quality=60)
        assert Pictures.of(load(lab.root).stimuli, np.arange(6)).among(back)[5], width
    assert Pictures.of(load(lab.root).stimuli, np.arange(6)).first.tolist() == [0, 1, 2, 3, 0, 0]
    for name in ("a/one.png", "d.png"):
        Image.new("RGB", (50, 50), "grey" if name == "d.png" else "black").save(folder / name)
    plain = Pictures.of(load(lab.root).stimuli, np.arange(6))
    assert plain.select(np.array([4])).among(plain.select(np.array([0]))).tolist() == [False]
    assert Pictures.from_card({}) is None
    for damaged in ({"hashes": "?", "looks": ""}, {"hashes": card["trained_on"]["hashes"], "looks": ""}, []):
        with pytest.raises(UserError, match="trained_on is damaged"):
            Pictures.from_card({"trained_on": damaged})


def test_a_damaged_card_is_told():
    assert inputs_on({}, "x") == {} and inputs_on({"inputs": {"base": "a"}}, "x") == {"base": "a"}
    for damaged in ("text", {"base": 1}, ["base"]):
        with pytest.raises(UserError, match="^x: inputs of its card is damaged; expected a short hash for each field"):
            inputs_on({"inputs": damaged}, "x")
