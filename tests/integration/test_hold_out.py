"""A category that no training sees: which images show it, what they are left out of, and how the test images are scored."""

import copy
import dataclasses
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from commands import call, refused
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from mindtuner.cli import painters, story
from mindtuner.config import as_dict, load_config
from mindtuner.data.hold_out import mask, shows
from mindtuner.errors import UserError
from mindtuner.evaluation.held_out import held_out_scores, held_out_text
from mindtuner.evaluation.results import load_run
from mindtuner.files import read_json, write_json
from mindtuner.formats import load
from mindtuner.generators.prompts import COCO_CATEGORIES
from mindtuner.simulation.drawing import KINDS
from mindtuner.training import batches, pivot, read_card


@pytest.fixture(scope="module")
def dataset(simulated):
    return load(simulated)


def truly(simulated, kind):
    """Which images show the kind, by the labels that the simulator composed them of."""
    scenes = read_json(simulated / "truth" / "scenes.json")["scenes"]
    return np.array([any(thing["name"] == kind for thing in scene["objects"]) for scene in scenes])


@pytest.fixture(scope="module")
def category(simulated, dataset):
    """A kind that stands in some test images, and often enough in training."""
    shared = dataset.stimuli.is_shared
    counts = {kind: truly(simulated, kind) for kind in KINDS}
    return max(
        (kind for kind in KINDS if 2 <= counts[kind][shared].sum() < shared.sum()),
        key=lambda kind: counts[kind][~shared].sum(),
    )


# ---- which images


def test_the_rule_finds_what_the_simulator_drew_and_nothing_else(simulated, dataset):
    for kind in KINDS:
        np.testing.assert_array_equal(mask(dataset.stimuli.captions, kind), truly(simulated, kind), err_msg=kind)


@pytest.mark.parametrize(
    ("caption", "category", "expected"),
    [
        ("A dog.", "dog", True),
        ("Two DOGS run", "Dog", True),
        ("a hotdog", "dog", False),
        ("a hot dog", "dog", True),
        ("the dogma of cats", "dog", False),
        ("two buses", "bus", True),
        ("ponies", "pony", True),
        ("boys", "boy", True),
        ("an ice cream", "ice cream", True),
        ("cream on ice", "ice cream", False),
        ("a balloon", "ball", False),
        ("", "dog", False),
        ("a puppy", "dog", False),
        ("a dog's bowl", "dog", True),
        ("the naïve café", "café", True),
        ("fire-trucks", "fire truck", True),
    ],
)
def test_words_and_plurals(caption, category, expected):
    assert shows([caption], category) is expected
    assert shows(["nothing here", caption], category) is expected


@given(
    st.lists(st.sampled_from(["dog", "dogs", "hot", "a", "ice", "cream", "creams"]), max_size=6),
    st.sampled_from(["dog", "ice cream", "hot dog"]),
)
def test_it_is_a_search_for_the_words_in_order(words, category):
    padded = f" {' '.join(words)} "
    assert shows([" ".join(words)], category) == (f" {category} " in padded or f" {category}s " in padded)


# ---- what they are left out of


def test_training_loses_them_and_testing_does_not(dataset, simulated, category):
    without, shown = dataset.without_category(category.upper()), truly(simulated, category)
    assert without.stimuli.category == category and without.stimuli.hash == dataset.stimuli.hash
    shared = dataset.stimuli.is_shared
    np.testing.assert_array_equal(without.stimuli.training_images, np.flatnonzero(~shared & ~shown))
    np.testing.assert_array_equal(dataset.stimuli.training_images, np.flatnonzero(~shared))  # the whole one is as it was
    for number, subject in without.subjects.items():
        before = dataset.subject(number)
        assert not shown[subject.train.stimulus].any() and shown[before.train.stimulus].any()
        assert len(before.train) - len(subject.train) == shown[before.train.stimulus].sum()
        np.testing.assert_array_equal(subject.test.row, before.test.row)
        kept = before.train.select(~shown[before.train.stimulus])
        np.testing.assert_array_equal(subject.betas(subject.train.row), before.betas(kept.row))


def test_categories_that_cannot_be_held_out(dataset, category):
    with pytest.raises(UserError, match=r"'unicorn' is in no caption of a training image of .*; expected a word .* such as"):
        dataset.without_category("unicorn")
    with pytest.raises(UserError, match="is '7 !'; expected a word"):
        dataset.without_category("7 !")
    stimuli, shared = copy.copy(dataset.stimuli), dataset.stimuli.is_shared
    edited = dataclasses.replace(dataset, stimuli=stimuli)
    stimuli.captions = [("a cat",) if test else own for own, test in zip(dataset.stimuli.captions, shared, strict=True)]
    with pytest.raises(UserError, match=f"'{category}' is shown by 0 of the 8 test images"):
        edited.without_category(category)
    said = f"a {category}"
    stimuli.captions = [(said,) if test else own for own, test in zip(dataset.stimuli.captions, shared, strict=True)]
    with pytest.raises(UserError, match=f"'{category}' is shown by 8 of the 8 test images"):
        edited.without_category(category)
    first = np.flatnonzero(shared)[0]
    own = set(dataset.subject(1).train.stimulus.tolist()) | {first}
    stimuli.captions = [("a gnu",) if image in own else ("a cat",) for image in range(len(stimuli))]
    with pytest.raises(UserError, match="'gnu' is shown by all training images of subject 1"):
        edited.without_category("gnu")


def test_a_subject_who_saw_none_of_it_in_testing_is_refused(dataset, category):
    held = dataset.without_category(category)
    subject = held.subject(1)
    seen = subject.trials.select(~(subject.trials.is_test & held.stimuli.of_category[subject.trials.stimulus]))
    with pytest.raises(UserError, match=f"subject 1 saw 0 test images of '{category}'; expected one at least"):
        story.TestSet.of(dataclasses.replace(subject, trials=seen), held.stimuli, {}, 4)


def test_prompts_of_the_full_size_do_not_name_it():
    assert painters.categories("") == COCO_CATEGORIES
    left = set(COCO_CATEGORIES) - set(painters.categories("dog"))
    assert left == {"dog", "hot dog"}  # the word decides, here too


# ---- scored apart


def test_scores_apart_are_means_over_the_images_of_each_side():
    rng = np.random.default_rng(0)
    per_image = {
        "images": np.arange(10) * 2,
        "shown": np.array([0, 2, 4, 6]),
        "texts": np.array([0, 1, 2, 3, 5]),
        **{f"mindtuner/retrieval/{d}": rng.random(10).astype(np.float32) for d in ("image", "brain")},
        "mindtuner/retrieval/text": rng.random(5).astype(np.float32),
        "mindtuner/reconstruction/ssim": np.array([0.1, 0.2, 0.4, np.nan], np.float32),
    }
    of_category = np.isin(np.arange(10), [2, 3, 4, 9])
    found = held_out_scores(per_image, "dog", of_category, 7, seed=0)
    assert (found["category"], found["left_out"], found["images"]) == ("dog", 7, [4, 6, 8, 18])
    image = per_image["mindtuner/retrieval/image"]
    of, others = (found[side]["mindtuner"] for side in ("of_category", "others"))
    assert of["retrieval"]["image"]["mean"] == pytest.approx(image[[2, 3, 4, 9]].mean(), abs=1e-6)
    assert others["retrieval"]["image"]["mean"] == pytest.approx(image[[0, 1, 5, 6, 7, 8]].mean(), abs=1e-6)
    texts = per_image["mindtuner/retrieval/text"]
    assert of["retrieval"]["text"] == {
        "mean": pytest.approx(texts[[2, 3]].mean(), abs=1e-6),
        "n": 2,
        "ci": [pytest.approx(texts[[2, 3]].min()), pytest.approx(texts[[2, 3]].max())],
    }
    assert of["reconstruction"]["ssim"]["mean"] == pytest.approx(0.3, abs=1e-6) and of["reconstruction"]["ssim"]["n"] == 2
    assert "reconstruction" not in others  # one picture is left that has a score
    said = held_out_text(found, "mindtuner").splitlines()
    assert "'dog' held out of training (7 images)" in said[0] and "4 test images that show it" in said[1]
    line = next(line for line in said if line.startswith("Image retrieval"))
    assert f"{image[[2, 3, 4, 9]].mean():.3f} [" in line and line.endswith("(6)") and len(set(map(len, said[1:]))) == 1


# ---- the verbs


@pytest.fixture(scope="module")
def held(tmp_path_factory, simulated, untrained_generator, category):
    """From data to a report without the category, in the smallest sizes, and every stimulus that a training saw."""
    folder = tmp_path_factory.mktemp("held")
    data, seen = folder / "data", {"batches": set(), "pivot": set(), "bank": set(), "looked up": set()}
    shutil.copytree(simulated, data)
    quick = load_config("quick")
    fit = dataclasses.replace(quick.tune, epochs=1, batch_per_subject=8, head_trials=8)
    tiny = dataclasses.replace(
        quick,
        pretrain=dataclasses.replace(fit, start="random", similar_voxels=0),
        tune=fit,
        pivot=dataclasses.replace(quick.pivot, epochs=1, batch=16),
        fingerprint=dataclasses.replace(quick.fingerprint, tune_projector=True),
        model=dataclasses.replace(quick.model, hidden=32, blocks=1, lowlevel_channels=(8, 4)),
        decode=dataclasses.replace(quick.decode, pictures=8, prior_steps=1, generator_steps=1, refine_steps=1, neighbours=2),
    )
    config = folder / "tiny.yaml"
    config.write_text(yaml.safe_dump(as_dict(tiny)))
    paints = ["--generator", untrained_generator]
    with pytest.MonkeyPatch.context() as patch:
        read, bank, text = batches.Feed.read, story.TextBank.of, pivot.digest

        def feed(self, picked):
            betas, stimulus = read(self, picked)
            seen["batches"].update(stimulus.tolist())
            return betas, stimulus

        def captions(stimuli, images, encoder):
            seen["bank"].update(images.tolist())
            return bank(stimuli, images, encoder)

        def digest(values):  # train_pivot digests stimuli and then their texts for its checkpoint
            values = list(values)
            if isinstance(values[0], np.ndarray) and values[0].ndim == 1 and values[0].dtype == np.int64:
                seen["pivot"].update(values[0].tolist())
            return text(values)

        def draw_to_neighbours(tokens, training, neighbours):
            seen["looked up"].update(training.ids.tolist())
            return draw_to_neighbours.before(tokens, training, neighbours)

        draw_to_neighbours.before = story.draw_to_neighbours
        patch.setattr(batches.Feed, "read", feed)
        patch.setattr(story.TextBank, "of", captions)
        patch.setattr(pivot, "digest", digest)
        patch.setattr(story, "draw_to_neighbours", draw_to_neighbours)
        assert (
            call(
                "pretrain",
                data,
                folder / "base",
                "--without",
                1,
                "--config",
                config,
                "--hold-out-category",
                category.capitalize(),
                *paints,
            )
            == 0
        )
        assert call("tune", folder / "base", data, folder / "tuned", "--subject", 1, "--method", "mindtuner", *paints) == 0
        assert call("evaluate", folder / "tuned", data, folder / "report", *paints) == 0
    return SimpleNamespace(folder=folder, data=data, seen=seen, config=config, paints=paints)


def test_no_training_sees_it(held, simulated, dataset, category):
    shown, shared = truly(simulated, category), dataset.stimuli.is_shared
    for where, images in held.seen.items():
        images = np.array(sorted(images))
        assert len(images) and not shown[images].any() and not shared[images].any(), where
    training = {number: dataset.subject(number).train.stimulus for number in (1, 2)}
    assert {image for image in training[2] if not shown[image]} <= held.seen["batches"] | held.seen["pivot"]


def test_cards_configs_and_results_say_so(held, simulated, dataset, category):
    assert read_card(held.folder / "base" / "base.safetensors")["hold_out_category"] == category
    assert read_card(held.folder / "tuned" / "fingerprint.safetensors")["hold_out_category"] == category
    assert load_config(held.folder / "tuned" / "config.yaml").hold_out_category == category
    assert f"--hold-out-category {category}" in (held.folder / "base" / "config.yaml").read_text().replace("'", "")
    run = load_run(held.folder / "report")
    assert run.results["setting"]["hold_out_category"] == category and category in run.results["setting"]["stimuli_note"]
    shown, shared = truly(simulated, category), dataset.stimuli.is_shared
    block = run.results["held_out"]
    assert block["images"] == np.flatnonzero(shown & shared).tolist() and block["left_out"] == (shown & ~shared).sum()
    values = run.per_image["mindtuner/retrieval/image"][shown[run.per_image["images"]]]
    assert block["of_category"]["mindtuner"]["retrieval"]["image"]["mean"] == pytest.approx(values.mean(), abs=1e-6)
    found = run.per_image["nearest_training_image/retrieval/image"]
    assert len(found) == shared.sum()


def test_the_table_shows_both_sides_and_runs_can_be_compared_on_either(held, category, tmp_path, capsys):
    other = tmp_path / "whole"
    run = load_run(held.folder / "report")
    shutil.copytree(held.folder / "report", other)
    results = copy.deepcopy(run.results)
    del results["held_out"]
    results["setting"]["hold_out_category"] = None
    write_json(other / "results.json", results)
    assert call("compare", held.folder / "report", other, "--images", "category") == 0
    said = capsys.readouterr().out
    assert f"setting.hold_out_category is {category} in A and None in B" in said and "of the category held out" in said
    assert call("compare", other, held.folder / "report", "--images", "others", "--out", tmp_path / "found.json") == 0
    tests = len(run.per_image["images"])
    assert read_json(tmp_path / "found.json")["test_set"]["images"] == tests - len(run.results["held_out"]["images"])


def test_a_base_that_saw_it_is_refused(held, category, tmp_path, capsys):
    words = ["tune", held.folder / "base", held.data, tmp_path / "out", "--subject", 1, *held.paints]
    other = "star" if category != "star" else "heart"
    refused(
        capsys,
        [*words, "--hold-out-category", other],
        f"base.safetensors: hold_out_category is '{category}'",
        f"expected '{other}'",
    )
    refused(
        capsys,
        ["pretrain", held.data, tmp_path / "out", "--config", held.config, "--hold-out-category", "unicorn", *held.paints],
        "'unicorn' is in no caption",
    )
    refused(
        capsys,
        ["demo", "--quick", "--out", tmp_path / "out", "--hold-out-category", "unicorn"],
        "'unicorn' is in no scene; expected one of bird,",
    )
    refused(capsys, ["demo", "--quick", "--out", tmp_path / "out", "--hold-out-category", "12"], "expected a word")
    assert not (tmp_path / "out").exists()


def test_decode_looks_nothing_up_that_shows_it(held, simulated, category, tmp_path, monkeypatch):
    shown, asked = truly(simulated, category), []
    bank = story.TextBank.of
    monkeypatch.setattr(
        story.TextBank, "of", lambda stimuli, images, encoder: asked.append(images) or bank(stimuli, images, encoder)
    )
    assert call("decode", held.folder / "tuned", held.data, tmp_path / "out", "--trials", "train") == 0
    assert not shown[asked[0]].any()
    images = load_file(tmp_path / "out" / "predictions.safetensors")["images"]
    assert shown[images].any()  # its own trials are decoded all the same, as of images that it never saw
