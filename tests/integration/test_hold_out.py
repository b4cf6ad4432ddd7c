"""A category held out, by the verbs: no training sees it, every file says so, and the test images are scored apart."""

import copy
import dataclasses
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from commands import call, refused
from safetensors.numpy import load_file
from simulated_categories import category_in_both, truly

from mindtuner.config import as_dict, load_config
from mindtuner.errors import UserError
from mindtuner.evaluation.results import load_run
from mindtuner.files import read_json, write_json
from mindtuner.formats import load
from mindtuner.generators.prompts import COCO_CATEGORIES
from mindtuner.pipeline import generators, stages, words
from mindtuner.pipeline.decoded_table import read_table
from mindtuner.training import batches, pivot, read_card

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dataset(simulated):
    return load(simulated)


@pytest.fixture(scope="module")
def category(simulated, dataset):
    return category_in_both(simulated, dataset)


def test_a_subject_who_saw_none_of_it_in_testing_is_refused(dataset, category):
    held = dataset.without_category(category)
    subject = held.subject(1)
    seen = subject.trials.select(~(subject.trials.is_test & held.stimuli.of_category[subject.trials.stimulus]))
    with pytest.raises(UserError, match=f"subject 1 saw 0 test images of '{category}'; expected one at least"):
        stages.TestSet.of(dataclasses.replace(subject, trials=seen), held.stimuli, {}, 4)


def test_prompts_of_the_full_size_do_not_name_it():
    assert generators.categories("") == COCO_CATEGORIES
    left = set(COCO_CATEGORIES) - set(generators.categories("dog"))
    assert left == {"dog", "hot dog"}  # the word decides, here too


# ---- the verbs


@pytest.fixture(scope="module")
def held(tmp_path_factory, simulated, untrained_generator, category):
    """From data to a report without the category, in the smallest sizes, and every stimulus that a training saw."""
    folder = tmp_path_factory.mktemp("held")
    data, seen = folder / "data", {key: set() for key in ("batches", "pivot", "bank", "phrases", "looked up")}
    shutil.copytree(simulated, data)
    quick = load_config("quick")
    few = {"epochs": 1, "batch_per_subject": 8, "head_trials": 8}
    tiny = dataclasses.replace(
        quick,
        pretrain=dataclasses.replace(quick.pretrain, **few),
        tune=dataclasses.replace(quick.tune, **few),
        pivot=dataclasses.replace(quick.pivot, epochs=1, batch=16),
        fingerprint=dataclasses.replace(quick.fingerprint, tune_projector=True),
        model=dataclasses.replace(quick.model, hidden=32, blocks=1, lowlevel_channels=(8, 4)),
        decode=dataclasses.replace(quick.decode, pictures=8, prior_steps=1, generator_steps=1, refine_steps=1, neighbours=2),
    )
    config = folder / "tiny.yaml"
    config.write_text(yaml.safe_dump(as_dict(tiny)))
    paints = ["--generator", untrained_generator]
    with pytest.MonkeyPatch.context() as patch:
        read, bank, text = batches.Feed.read, stages.TextBank.of, pivot.digest
        phrases = words.PhraseBank.of

        def feed(self, picked):
            betas, stimulus = read(self, picked)
            seen["batches"].update(stimulus.tolist())
            return betas, stimulus

        def captions(stimuli, images, encoder):
            seen["bank"].update(images.tolist())
            return bank(stimuli, images, encoder)

        def split_captions(stimuli, images, encoder):
            seen["phrases"].update(images.tolist())
            return phrases(stimuli, images, encoder)

        def digest(values):  # train_pivot digests stimuli and then their texts for its checkpoint
            values = list(values)
            if isinstance(values[0], np.ndarray) and values[0].ndim == 1 and values[0].dtype == np.int64:
                seen["pivot"].update(values[0].tolist())
            return text(values)

        def draw_to_neighbours(tokens, training, neighbours):
            seen["looked up"].update(training.ids.tolist())
            return draw_to_neighbours.before(tokens, training, neighbours)

        draw_to_neighbours.before = stages.draw_to_neighbours
        patch.setattr(batches.Feed, "read", feed)
        patch.setattr(stages.TextBank, "of", captions)
        patch.setattr(words.PhraseBank, "of", split_captions)
        patch.setattr(pivot, "digest", digest)
        patch.setattr(stages, "draw_to_neighbours", draw_to_neighbours)
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


def test_a_bases_own_subject_is_decoded_as_it_is_evaluated(held, tmp_path):
    """From the mean answer to what the base saw: training trials of the category move neither."""
    own = ("--subject", 2, *held.paints)
    for verb, more in (("evaluate", ("--pictures", 0)), ("decode", ())):
        assert call(verb, held.folder / "base", held.data, tmp_path / verb, *own, *more) == 0
    table = read_table(tmp_path / "decode" / "decoded.csv")
    pd.testing.assert_frame_equal(table, read_table(tmp_path / "evaluate" / "decoded.csv"))


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
    bank = stages.TextBank.of
    monkeypatch.setattr(
        stages.TextBank, "of", lambda stimuli, images, encoder: asked.append(images) or bank(stimuli, images, encoder)
    )
    assert call("decode", held.folder / "tuned", held.data, tmp_path / "out", "--trials", "train") == 0
    assert not shown[asked[0]].any()
    images = load_file(tmp_path / "out" / "predictions.safetensors")["images"]
    assert shown[images].any()  # its own trials are decoded all the same, as of images that it never saw
