"""LAION-fMRI: files written by hand in its layout are read by mask and become a lab's folder for each split."""

import dataclasses
import gzip
import json
import os
import shutil
import subprocess
import sys

import nibabel
import numpy as np
import pytest
from commands import call, refused
from hypothesis import given, settings
from hypothesis import strategies as st
from kills import torn
from lab_files import make_lab
from laion_files import (
    OOD,
    SESSIONS,
    SHARED,
    SPLITS,
    TRIALS,
    betas_of,
    ceiling_of,
    edit,
    make_laion,
    mask_of,
    nifti,
    table_of,
    unique,
    write_split,
    write_splits,
)

from mindtuner.errors import UserError
from mindtuner.formats import check, format_of, load, write
from mindtuner.formats.laion import convert as module
from mindtuner.formats.laion.convert import convert_laion
from mindtuner.formats.laion.splits import NAMES, read_split
from mindtuner.formats.laion.write import noise_ceiling


@pytest.fixture
def truth(tmp_path):
    truth = make_laion(tmp_path / "laion")
    write_splits(truth.root / "splits")
    return truth


def converted(truth, split="tau", **options):
    out = truth.root.parent / "out"
    convert_laion(truth.root, out, split, **options)
    return load(out / split)


def rows(truth, person):
    """Betas (trials, voxels) and labels of a person, sessions one after the other, in the order of ``volume[mask]``."""
    volumes = np.concatenate([truth.betas[person, number] for number in SESSIONS[person]], axis=3)
    labels = [label for number in SESSIONS[person] for label in truth.labels[person, number]]
    return volumes[truth.mask[person]].T, labels


def names_of(dataset, trials):
    return [dataset.stimuli.names[i] for i in trials.stimulus]


def stored(truth, person, split="tau"):
    return np.load(truth.root.parent / "out" / split / f"sub-{person:02d}" / "betas.npy")


# ---- what is read


def test_betas_trials_and_splits_are_those_of_the_files(truth):
    dataset = converted(truth)
    assert list(dataset.subjects) == [1, 3]
    for person in SESSIONS:
        betas, labels = rows(truth, person)
        np.testing.assert_array_equal(stored(truth, person), betas)
        train, test = SPLITS[f"sub-{person:02d}", "tau"]
        other = SPLITS[f"sub-{4 - person:02d}", "tau"][1]  # what tests the other trains nobody
        side = ["test" if x in test else "train" if x in train and x not in other else "" for x in labels]
        subject = dataset.subject(person)
        for trials, name in ((subject.train, "train"), (subject.test, "test")):
            wanted = [i for i, found in enumerate(side) if found == name]
            assert trials.row.tolist() == wanted and len(wanted) > 2
            assert names_of(dataset, trials) == [labels[i] for i in wanted]
            numbers = np.repeat(SESSIONS[person], TRIALS)
            assert trials.session.tolist() == numbers[wanted].tolist()
            assert trials.repeat.tolist() == [labels[:i].count(labels[i]) for i in wanted]
        for name, region in truth.rois[person].items():
            np.testing.assert_array_equal(subject.rois[name], region[truth.mask[person]])
    assert dataset.card["dataset"] == "LAION-fMRI" and dataset.card["split"] == "tau"
    assert dataset.card["simulated"] is False and dataset.card["zscore"] == "train_trials"


def test_betas_are_z_scored_by_the_training_trials_of_the_split(truth):
    dataset = converted(truth, "ood")
    betas, labels = rows(truth, 3)
    train = SPLITS["sub-03", "ood"][0]
    subject = dataset.subject(3)
    found = subject.betas(subject.trials.row)
    for session in (0, 1):
        own = slice(session * TRIALS, (session + 1) * TRIALS)
        rule = betas[own][[label in train for label in labels[own]]].astype(np.float64)
        here = subject.trials.session == SESSIONS[3][session]
        wanted = (betas[subject.trials.row[here]] - rule.mean(0)) / rule.std(0)
        np.testing.assert_allclose(found[here], wanted, atol=1e-5)


def test_the_mask_of_what_is_kept_puts_voxels_back_in_their_places(truth):
    converted(truth)
    image = nibabel.load(truth.root.parent / "out/tau/sub-01/mask.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj) > 0, truth.mask[1])
    np.testing.assert_allclose(image.affine, nibabel.load(mask_of(truth.root, 1)).affine)


def test_pictures_and_captions_come_with_their_names(truth):
    (truth.root / "stimuli/images" / SHARED[0]).with_suffix(".txt").write_text("a grey cat\n")
    dataset = converted(truth)
    wanted = {label for pool in ("sub-01", "sub-03") for side in SPLITS[pool, "tau"] for label in side}
    assert set(dataset.stimuli.names) == wanted
    captions = dict(zip(dataset.stimuli.names, dataset.stimuli.captions, strict=True))
    assert captions.pop(SHARED[0]) == ("a grey cat",) and not any(captions.values())


def test_two_pictures_of_one_name_share_their_captions(truth):
    pictures, other = truth.root / "stimuli/images", SHARED[0].replace(".jpg", ".png")
    (pictures / SHARED[1]).rename(pictures / other)
    for path in [*truth.root.rglob("*.tsv"), *truth.root.rglob("*.json")]:
        path.write_text(path.read_text().replace(SHARED[1], other))
    (pictures / SHARED[0]).with_suffix(".txt").write_text("a grey cat\n")
    dataset = converted(truth)
    captions = dict(zip(dataset.stimuli.names, dataset.stimuli.captions, strict=True))
    assert captions.pop(SHARED[0]) == captions.pop(other) == ("a grey cat",) and not any(captions.values())


# ---- splits


def test_images_of_neither_list_and_images_that_test_others_are_said_and_left_out(truth):
    said = []
    converted(truth, say=said.append)
    # Of the ten images of each: two OOD, the last shared and the last unique one are in neither list of tau.
    left_out = "left out 4 images that are in neither list; left out 1 training images that test somebody else"
    for person in ("sub-01", "sub-03"):
        assert f"tau: {person}: 3 training and 2 test images; {left_out}" in said
    assert sum("sub-01: 2 sessions, 32 trials of 10 images" in line for line in said) == 1
    alone = []
    convert_laion(truth.root, truth.root.parent / "alone", "tau", subjects=[1], say=alone.append)
    assert "tau: sub-01: 4 training and 2 test images; left out 4 images that are in neither list" in alone


@pytest.mark.parametrize("place", [".", "laion_fmri/splits/data"])
def test_splits_are_found_in_a_folder_or_a_clone(truth, tmp_path, place):
    shutil.rmtree(truth.root / "splits")
    write_splits(tmp_path / "elsewhere" / place)
    dataset = converted(truth, "ood", split_files=tmp_path / "elsewhere")
    assert sorted({dataset.stimuli.names[i] for i in dataset.subject(1).test.stimulus}) == OOD
    assert {dataset.stimuli.names[i] for i in np.flatnonzero(dataset.stimuli.is_shared)} == set(OOD)


@pytest.mark.parametrize("given", ["splits/shared", "splits/shared/tau.json"])
def test_one_split_for_all_from_a_pool_or_a_file(truth, given):
    names, said = ([] if given.endswith("json") else ["tau"]), []
    cards = convert_laion(truth.root, truth.root.parent / "out", names, truth.root / given, say=said.append)
    assert list(cards) == ["tau"]
    dataset = load(truth.root.parent / "out/tau")
    assert sorted(dataset.stimuli.names) == sorted(SHARED[:3])
    for subject in dataset.subjects.values():
        assert set(names_of(dataset, subject.test)) == {SHARED[2]} and set(names_of(dataset, subject.train)) == set(
            SHARED[:2]
        )
    unseen = "1 of the split's test images were not shown; left out 7 images that are in neither list"
    assert f"tau: sub-01: 2 training and 1 test images, {unseen}" in said


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_no_image_trains_anybody_that_tests_somebody(data):
    """The rule alone, over any splits: sides are kept, or images are left out, and nothing else happens to them."""
    labels = [f"{k}.png" for k in range(6)]
    scans, sides = [], {}
    for number in (1, 3, 5):
        side = {label: data.draw(st.sampled_from(("train", "test", ""))) for label in labels}
        split = {"train": {x for x in labels if side[x] == "train"}, "test": {x for x in labels if side[x] == "test"}}
        sides[number] = module.Split("any", None, frozenset(split["train"]), frozenset(split["test"]))
        scans.append(
            module.Scans(number, f"sub-{number:02d}", [], np.ones((1, 1, 1), bool), None, {}, [[("1", x) for x in labels]])
        )
    try:
        used = module._used("any", sides, scans, [])
    except UserError as refused_for:
        assert "images was shown" in str(refused_for)
        return
    tests = {label for own in used.values() for label, side in own.items() if side == "test"}
    for number, own in used.items():
        assert tests.isdisjoint(label for label, side in own.items() if side == "train")
        assert set(own) == {x for x in labels if sides[number][x] == "test" or sides[number][x] == "train" and x not in tests}
        assert all(sides[number][label] == side for label, side in own.items())


def test_another_split_is_added_without_reading_betas_again(truth, monkeypatch):
    converted(truth)
    first = truth.root.parent / "out/tau/sub-01/betas.npy"
    monkeypatch.setattr(module, "blocks_of", None)  # betas are not asked for again
    said = []
    convert_laion(truth.root, truth.root.parent / "out", ["tau", "ood"], say=said.append)
    second = truth.root.parent / "out/ood/sub-01/betas.npy"
    assert os.path.samefile(first, second)
    assert f"{truth.root.parent / 'out/tau'}: there already" in said and f"{truth.root.parent / 'out/ood'}: written" in said


def test_where_the_disk_has_no_hard_links_betas_are_copied(truth, monkeypatch):
    monkeypatch.setattr(module.os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links")))
    dataset = converted(truth)
    np.testing.assert_array_equal(stored(truth, 1), rows(truth, 1)[0])
    assert set(dataset.stimuli.names) > {SHARED[0]}


def test_the_names_of_splits_are_those_of_the_package():
    assert NAMES == ("tau", *(f"cluster_k5_{k}" for k in range(5)), "ood", *(f"random_{k}" for k in range(5)))


# ---- voxels


def test_voxels_without_a_value_or_without_variance_are_left_out_and_named(truth):
    places = np.argwhere(truth.mask[1])
    nan, infinite, flat = (tuple(map(int, places[i])) for i in (1, 4, 6))
    path = betas_of(truth.root, 1, 1)
    betas = truth.betas[1, 1].copy()
    betas[(*nan, 5)], betas[(*infinite, 2)], betas[flat] = np.nan, np.inf, 3.5  # flat in this session alone
    nifti(path, betas)
    said = []
    converted(truth, say=said.append)
    whole, _ = rows(truth, 1)
    kept = np.delete(np.arange(len(places)), [1, 4, 6])
    np.testing.assert_array_equal(stored(truth, 1), whole[:, kept])
    line = next(line for line in said if "left out, which lack a value" in line)
    assert f"sub-01: 3 of {len(places)} voxels left out" in line and f"{nan}, {infinite}, {flat} (X, Y, Z from 0)" in line
    mask = np.asarray(nibabel.load(truth.root.parent / "out/tau/sub-01/mask.nii.gz").dataobj) > 0
    assert mask.sum() == len(kept) and not mask[nan] and not mask[infinite] and not mask[flat]
    np.testing.assert_array_equal(load(truth.root.parent / "out/tau").subject(1).rois["V1"], truth.rois[1]["V1"][mask])
    findings = check(truth.root)
    assert findings.count("error") == 0
    assert any(f"3 of {len(places)} voxels lack a value" in item.message for item in findings.items)


def test_a_session_without_any_value_is_named(truth):
    nifti(betas_of(truth.root, 3, 4), np.full_like(truth.betas[3, 4], np.nan))
    with pytest.raises(UserError, match=r"no voxel has a value .* \(most lack one in ses-04: (\d+) of \1\)"):
        converted(truth)


def test_voxels_of_regions_and_above_a_noise_ceiling(truth):
    converted(truth, regions=["V1"], noise_ceiling=30, subjects=[1])
    wanted = truth.rois[1]["V1"][truth.mask[1]] & (truth.ceiling[1][truth.mask[1]] >= 30)
    assert 3 < wanted.sum() < wanted.size / 2
    np.testing.assert_array_equal(stored(truth, 1), rows(truth, 1)[0][:, wanted])


def test_a_mask_by_values(truth, capsys):
    held = {}
    for person, mask in truth.mask.items():
        held[person] = mask * np.random.default_rng(person).integers(-1, 3, mask.shape, np.int8)
        nifti(mask_of(truth.root, person), held[person])
    argv = ["convert", "laion", truth.root, truth.root.parent / "out", "--split", "tau"]
    assert call(*argv, "--mask-values=-1,2") == 0
    dataset = load(truth.root.parent / "out/tau")
    for person in SESSIONS:
        kept = np.isin(held[person], (-1, 2))
        assert 0 < kept.sum() == dataset.subject(person).n_voxels
        np.testing.assert_array_equal(stored(truth, person), rows(truth, person)[0][:, kept[truth.mask[person]]])
    assert dataset.card["converted"]["mask_values"] == [-1, 2]
    for other in ([], ["--mask-values", "2"]):
        refused(capsys, [*argv, *other], "made_of.json: mask_values is [-1.0, 2.0]; expected")
    refused(capsys, [*argv, "--mask-values", "7"], "--mask-values: are 7, and ", "holds -1, 0, 1, 2; expected one of these")
    for values, voxels, said in (
        ((), (held[1] > 0).sum(), "taken: 1, 2 (all above 0); to choose, --mask-values"),
        (("--mask-values=-1",), (held[1] == -1).sum(), "taken: -1"),
    ):
        call("check", truth.root, *values)
        found = capsys.readouterr().out
        assert f"{voxels} of 120 voxels" in found and f"holds -1, 0, 1, 2; {said}" in found


def test_noise_ceilings_follow_the_formula():
    """Signal s, noise n - of variance 1 in all - and k repeats: the ceiling is s / (s + n / k), by definition."""
    rng = np.random.default_rng(0)
    images, repeats = 4000, 4
    signal = np.array([0.0, 0.2, 0.7])
    of_image = rng.normal(0, np.sqrt(signal), (images, 3))
    betas = np.repeat(of_image, repeats, 0) + rng.normal(0, np.sqrt(1 - signal), (images * repeats, 3))
    found = noise_ceiling(betas, np.repeat(np.arange(images), repeats))
    np.testing.assert_allclose(found, 100 * signal / (signal + (1 - signal) / repeats), atol=4)
    assert not noise_ceiling(betas, np.arange(len(betas))).any()


# ---- stopped, and gone on


def test_a_conversion_that_was_stopped_goes_on_where_it_was(truth, monkeypatch):
    real, read = module.blocks_of, []

    def stops(betas):
        if len(read) == 3:
            raise KeyboardInterrupt
        read.append(betas.path)
        return real(betas)

    needed = []
    monkeypatch.setattr(module, "check_space", lambda folder, count: needed.append(count))
    monkeypatch.setattr(module, "blocks_of", stops)
    with pytest.raises(KeyboardInterrupt):
        converted(truth)
    out = truth.root.parent / "out"
    assert sorted(path.name for path in out.iterdir()) == ["betas"]
    torn(out / "betas/.sub-03.part/ses-04.npy")
    again = []
    monkeypatch.setattr(module, "blocks_of", lambda betas: again.append(betas.path) or real(betas))
    dataset = converted(truth)
    assert again == [betas_of(truth.root.resolve(), 3, 4)]
    for person in SESSIONS:
        np.testing.assert_array_equal(stored(truth, person), rows(truth, person)[0])
    assert len(dataset.subjects) == 2 and not list(out.glob("**/*.part"))
    sizes = {
        person: 4 * len(labels) * int(truth.mask[person].sum()) for person in SESSIONS for labels in [rows(truth, person)[1]]
    }
    assert needed[0] == sum(sizes.values()) + max(sizes.values())  # a person's sessions stay until they are joined
    assert needed[1] == pytest.approx(1.5 * sizes[3], abs=200)  # one of two sessions is there, with the header of its file


def test_other_options_do_not_go_on_from_it(truth):
    converted(truth)
    with pytest.raises(UserError, match=r"made_of.json: regions is \[\]; expected \['V1'\] \(another conversion began here"):
        converted(truth, regions=["V1"])
    with pytest.raises(UserError, match="tau/dataset.json: is of another conversion"):
        convert_laion(truth.root, truth.root.parent / "out", "tau", subjects=[1])
    (truth.root.parent / "full").mkdir()
    (truth.root.parent / "full/thesis.tex").touch()
    with pytest.raises(UserError, match="full: holds other files; expected an empty folder"):
        convert_laion(truth.root, truth.root.parent / "full", "tau")


# ---- what is refused, in one line, with exit code 2


def session_cell(truth):
    edit(table_of(truth.root, 1, 1), "ses-01", "ses-02")


def cut(truth):
    path = betas_of(truth.root, 1, 2)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(truth):
    path = betas_of(truth.root, 1, 1)
    packed = bytearray(gzip.compress(gzip.decompress(path.read_bytes()), 0))
    packed[-400] ^= 4  # stored, so only the checksum can tell
    path.write_bytes(packed)


def other_grid(path):
    image = nibabel.load(path)
    nifti(path, np.asarray(image.dataobj)[:, :, :3], affine=image.affine)


def drop_line(truth):
    path = table_of(truth.root, 1, 1)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if "\t7\t" not in line) + "\n")


BROKEN = {
    "past the end": (lambda t: edit(table_of(t.root, 1, 1), "\t7\t", "\t16\t"), "beta_index is '16'; expected 0 to 15"),
    "negative": (lambda t: edit(table_of(t.root, 1, 1), "\t7\t", "\t-7\t"), "beta_index is '-7'; expected 0 to 15"),
    "twice": (lambda t: edit(table_of(t.root, 1, 1), "\t7\t", "\t8\t"), "beta_index is 8, as on line"),
    "missing line": (drop_line, "15 trials, but sub-01_ses-01_task-images_space-T1w_stat"),
    "no label": (
        lambda t: edit(table_of(t.root, 1, 1), t.labels[1, 1][7] + "\n", "n/a\n"),
        "label is 'n/a'; expected the file name",
    ),
    "label of a folder": (
        lambda t: edit(table_of(t.root, 1, 1), t.labels[1, 1][7] + "\n", "../x.png\n"),
        "label is '../x.png'; expected a file name alone",
    ),
    "other session": (session_cell, "session is 'ses-02'; expected ses-01"),
    "short line": (lambda t: edit(table_of(t.root, 1, 1), "\t7\t", "\t"), "has not as many cells as the header"),
    "no column": (
        lambda t: edit(table_of(t.root, 1, 1), "beta_index", "index"),
        "no column beta_index; expected session, run",
    ),
    "no table": (lambda t: table_of(t.root, 1, 1).unlink(), "trials.tsv: not found"),
    "mask of another shape": (lambda t: other_grid(mask_of(t.root, 1)), "volumes of (6, 5, 4); expected (6, 5, 3) as in"),
    "region of another shape": (
        lambda t: other_grid(t.root / "derivatives/atlases/sub-01/rois/V1.nii.gz"),
        "V1.nii.gz: volumes of (6, 5, 3); expected (6, 5, 4)",
    ),
    "empty mask": (lambda t: nifti(mask_of(t.root, 1), np.zeros((6, 5, 4), np.uint8)), "is 0 everywhere"),
    "no mask": (lambda t: mask_of(t.root, 1).unlink(), "mask.nii.gz: not found"),
    "cut betas": (cut, "cannot be read"),
    "a wrong bit": (flip, "cannot be read (CRC check failed"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_with_scans_is_one_line_of_convert_and_an_error_of_check(truth, capsys, name):
    spoil, message = BROKEN[name]
    spoil(truth)
    refused(capsys, ["convert", "laion", truth.root, truth.root.parent / "out", "--split", "tau"], message, "sub-01")
    findings = check(truth.root)
    errors = [f"{item.file}: {item.message}" for item in findings.items if item.severity == "error"]
    assert any(message in error for error in errors)
    assert len(errors) == (4 if name == "mask of another shape" else 1)  # regions, ceiling and two sessions do not fit it


def split_json(truth):
    return truth.root / "splits/sub-01/tau.json"


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda path: path.write_text("{"), "tau.json: not valid JSON"),
        (lambda path: path.write_text('{"name": "tau", "variants": []}'), "tau.json: is no split (IndexError"),
        (lambda path: write_split(path, SHARED[:2], [3]), "test_ids of variants[0] is no list of labels"),
        (
            lambda path: write_split(path, SHARED[:2], []),
            "test_ids of variants[0] is no list of labels; expected one, not empty",
        ),
        (lambda path: write_split(path, SHARED[:2], SHARED[1:3]), f"has {SHARED[1]!r} in train_ids and test_ids"),
        (lambda path: write_split(path, SHARED[:2], OOD, n_train=3), "train_ids holds 2 labels; expected 3"),
        (lambda path: write_split(path, SHARED[:2], OOD, name="ood"), "tau.json: name is 'ood'; expected 'tau'"),
        (lambda path: write_split(path, SHARED[:2], ["x.png"]), "none of its test images was shown to sub-01"),
        (lambda path: write_split(path, ["x.png"], OOD), "none of its train images was shown to sub-01"),
        (lambda path: path.unlink(), "splits: no tau.json for sub-01, here or in a folder sub-01; expected one of ood"),
    ],
)
def test_what_is_wrong_with_a_split_is_one_line(truth, capsys, spoil, message):
    spoil(split_json(truth))
    refused(capsys, ["convert", "laion", truth.root, truth.root.parent / "out", "--split", "tau"], message)
    assert not (truth.root.parent / "out").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        ([], "--split: not given; expected names such as tau"),
        (["--split", "betas"], "--split: is 'betas'; expected the name of a split"),
        (["--split", "a/b"], "--split: is 'a/b'; expected the name of a split"),
        (["--split", "tau", "--split-files", "nowhere"], "nowhere: no tau.json for sub-01"),
        (["--split", "tau", "--subjects", "1,2"], "--subjects: 2 is not in"),
        (["--split", "tau", "--subjects", "one"], "--subjects: is 'one'"),
        (["--split", "tau", "--regions", "V9"], "--regions: 'V9' is no region of sub-01; expected some of FFA-1, V1"),
        (["--split", "tau", "--noise-ceiling", "101"], "--noise-ceiling: is 101; expected percent, 0 to 100"),
        (["--split", "tau", "--noise-ceiling", "100"], "no voxel of the mask is wanted"),
        (["--split", "tau", "--stimuli", "nowhere"], "nowhere: lacks 9 of 9 pictures"),
    ],
)
def test_what_is_wrong_with_the_options_is_one_line(truth, capsys, options, message):
    refused(capsys, ["convert", "laion", truth.root, truth.root.parent / "out", *options], message)
    assert not (truth.root.parent / "out").exists()


def test_noise_ceilings_that_are_no_percentages_are_refused(truth, capsys):
    nifti(ceiling_of(truth.root, 1), np.full((6, 5, 4), 240, np.float32))
    argv = ["convert", "laion", truth.root, truth.root.parent / "out", "--split", "tau", "--noise-ceiling", "5"]
    refused(capsys, argv, "holds 240 within the mask; expected percent, 0 to 100")
    assert any("holds 240" in item.message for item in check(truth.root).items if item.severity == "error")
    ceiling_of(truth.root, 1).unlink()
    refused(capsys, argv, "no NoiseceilingAllrep file; expected it, or no --noise-ceiling")
    nifti(ceiling_of(truth.root, 1), np.full((6, 5, 4), 0.4, np.float32))
    assert any("is at most 0.4; expected percent" in item.message for item in check(truth.root).items)


def test_pictures_that_are_missing_are_named(truth, capsys):
    (truth.root / "stimuli/images" / SHARED[2]).unlink()
    argv = ["convert", "laion", truth.root, truth.root.parent / "out", "--split", "tau"]
    refused(capsys, argv, f"lacks 1 of 9 pictures: {SHARED[2]}; expected all that trials show", "fetch laion --stimuli")
    found = check(truth.root)
    assert found.count("error") == 0 and any(SHARED[2] in item.message for item in found.items if item.severity == "warning")


# ---- recognised, checked, written


def test_load_names_the_form_and_the_way_in(truth, capsys):
    assert format_of(truth.root).name == "laion"
    with pytest.raises(UserError, match="is LAION-fMRI, which is not read as it is; .* 'mindtuner convert laion"):
        load(truth.root)
    refused(capsys, ["embed", truth.root, truth.root.parent / "cache"], "is LAION-fMRI, which is not read as it is")


def test_check_says_what_is_there(truth, capsys):
    shutil.rmtree(truth.root / "derivatives/glmsingle-tedana/sub-03/ses-01")
    (truth.root / "derivatives/glmsingle-tedana/sub-03/ses-31/func").mkdir(parents=True)
    assert call("check", truth.root) == 0
    said = " ".join(capsys.readouterr().out.split())
    voxels = int(truth.mask[1].sum())
    for part in (
        "format laion: LAION-fMRI",
        f"{voxels} of 120 voxels, (6, 5, 4)",
        f"V1 {(truth.rois[1]['V1'] & truth.mask[1]).sum()}",
        f"NoiseceilingAllrep: median {np.median(truth.ceiling[1][truth.mask[1]]):.1f} %",
        "betas: 16 trials, int16",
        "split tau: 4 training and 2 test images",
        "ses-31 hold no betas and are passed over",
        "is converted before use, once for each split: mindtuner convert laion",
        "14 images, 0 with captions",
    ):
        assert part in said, part


def test_a_folder_without_subjects_is_said(tmp_path, capsys):
    (tmp_path / "derivatives/glmsingle-tedana").mkdir(parents=True)
    refused(capsys, ["convert", "laion", tmp_path, tmp_path / "out", "--split", "tau"], "no subject; expected folders sub-01")
    assert check(tmp_path).count("error") == 1
    (tmp_path / "derivatives/glmsingle-tedana/sub-05").mkdir()
    nifti(mask_of(tmp_path, 5), np.ones((3, 3, 3), np.uint8))
    refused(capsys, ["convert", "laion", tmp_path, tmp_path / "out", "--split", "tau"], "sub-05: no session with betas")
    refused(
        capsys, ["convert", "laion", tmp_path / "no", tmp_path / "out"], "no: not found; expected a folder with derivatives"
    )


@pytest.mark.slow
def test_a_dataset_written_in_this_layout_comes_back(simulated, tmp_path):
    """Betas to the bit, before they are z-scored again; trials, split, captions and regions as they were."""
    made = load(simulated)
    write(tmp_path / "laion", made, "laion")
    assert check(tmp_path / "laion").count("error") == 0
    convert_laion(tmp_path / "laion", tmp_path / "out", "own")
    found = load(tmp_path / "out/own")
    assert found.card["simulated"] is True and found.card["split"] == "own"
    assert [len(x.stimuli) for x in (found, made)] == [len(made.stimuli)] * 2
    assert list(found.stimuli.captions) == list(made.stimuli.captions)
    np.testing.assert_array_equal(found.stimuli.is_shared, made.stimuli.is_shared)
    for number, subject in made.subjects.items():
        other = found.subject(number)
        stored = np.load(tmp_path / f"out/own/sub-{number:02d}/betas.npy")
        np.testing.assert_array_equal(stored, subject.betas(subject.trials.row))
        for field in ("stimulus", "session", "repeat", "is_test"):
            np.testing.assert_array_equal(getattr(other.trials, field), getattr(subject.trials, field))
        np.testing.assert_allclose(other.betas(other.trials.row), stored, atol=2e-5)  # z-scored twice, the same way
        for name, region in subject.rois.items():
            np.testing.assert_array_equal(other.rois[name], region)


def test_numbers_of_subjects_are_kept(tmp_path):
    make_lab(tmp_path / "lab")
    (tmp_path / "lab/dataset.json").write_text('{"subject_offset": 100}')
    write(tmp_path / "laion", load(tmp_path / "lab"), "laion")
    convert_laion(tmp_path / "laion", tmp_path / "out", "own")
    assert list(load(tmp_path / "out/own").subjects) == [101]


def test_sessions_out_of_order_are_not_written(simulated, tmp_path):
    made = load(simulated)
    subject = made.subject(1)
    turned = dataclasses.replace(subject, trials=subject.trials.select(slice(None, None, -1)))
    with pytest.raises(UserError, match="session falls from one trial to the next"):
        write(tmp_path, dataclasses.replace(made, subjects={1: turned}), "laion")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not say the peak this way")
def test_memory_stays_at_a_masked_session(tmp_path):
    """A session of 157 MB unpacked: what convert adds to the process is a fraction of it."""
    shape, trials, people = (64, 64, 64), 300, 1
    mask = np.zeros(shape, np.uint8)
    mask[20:40, 20:40, 20:25] = 1
    nifti(mask_of(tmp_path, 1), mask)
    volumes = np.zeros((*shape, trials), np.int16)
    volumes[mask > 0] = np.random.default_rng(0).normal(0, 300, (int(mask.sum()), trials))
    nifti(betas_of(tmp_path, 1, 1), volumes)
    labels = [(SHARED + unique(people))[k % 8] for k in range(trials)]
    table = "".join(f"1\t1\t{k}\t{label}\n" for k, label in enumerate(labels))
    table_of(tmp_path, 1, 1).write_text("session\trun\tbeta_index\tlabel\n" + table)
    write_split(tmp_path / "splits/x.json", labels[:6], labels[6:8])
    (tmp_path / "stimuli/images").mkdir(parents=True)
    for label in labels[:8]:
        (tmp_path / "stimuli/images" / label).touch()
    code = (
        "import resource, sys; from mindtuner.formats.laion.convert import convert_laion as c; "
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; before = peak(); "
        "c(sys.argv[1], sys.argv[2], 'x'); print(peak() - before)"
    )
    del volumes
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path, tmp_path / "out"], capture_output=True, text=True, check=True
    )
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout.split()[-1]) * unit < 60e6
    np.testing.assert_array_equal(np.load(tmp_path / "out/x/sub-01/betas.npy").shape, (trials, int(mask.sum())))


def test_a_split_is_read_to_the_last_label(tmp_path):
    write_split(tmp_path / "tau.json", SHARED[:2], OOD)
    split = read_split(tmp_path / "tau.json")
    assert [split[label] for label in (*SHARED[:3], *OOD)] == ["train", "train", "", "test", "test"]
    assert json.loads((tmp_path / "tau.json").read_text())["name"] == split.name
