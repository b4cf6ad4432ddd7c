"""Folds of one subject on the command line and in Python: fits without the images that they are tested on, scores of all."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import yaml
from commands import call, refused
from worlds import brief

import mindtuner
from mindtuner.data.folds import folds_of
from mindtuner.errors import UserError
from mindtuner.evaluation.results import load_run
from mindtuner.training.ridge import ridge_regression

pytestmark = pytest.mark.slow
FOLDS = 3


@pytest.fixture(scope="module")
def run(simulated, tmp_path_factory):
    """A folder with the run of ``fit`` and of ``evaluate``, and the words of the first."""
    folder = tmp_path_factory.mktemp("folds")
    config = folder / "brief.yaml"
    config.write_text(yaml.safe_dump(brief(pictures=0)))
    words = ("--subject", 1, "--config", config, "--cache", folder / "cache", "--method", "ridge", "shuffled_brain")
    assert call("fit", simulated, folder / "fit", *words, "--folds", FOLDS) == 0
    assert call("evaluate", folder / "fit", simulated, folder / "report", "--cache", folder / "cache", "--pictures", 6) == 0
    return folder, words


def test_every_image_is_tested_once_by_a_fit_of_its_own(run, simulated):
    folder, _ = run
    seen = set(mindtuner.load(simulated).subject(1).trials.stimulus.tolist())
    found = load_run(folder / "report")
    assert sorted(found.per_image["images"].tolist()) == sorted(seen)
    setting = found.results["setting"]
    assert setting["n_test_images"] == len(seen) == sum(setting["folds"]["test_images"])
    assert sorted(path.name for path in (folder / "fit").iterdir() if path.name[0] != ".") == [
        "config.yaml",
        *(f"fold-{k + 1}" for k in range(FOLDS)),
        "folds.json",
    ]
    table = pd.read_csv(folder / "report" / "decoded.csv")
    assert table["fold"].value_counts().tolist() == sorted(setting["folds"]["test_images"], reverse=True)
    assert table["candidates"].nunique() <= 2 and table["candidates"].max() < len(seen)
    assert len(found.pictures["seen"]) == 6 == setting["n_pictures"]
    assert found.words["picture_index"] == found.per_image["shown"].tolist()
    page = (folder / "report" / "report.html").read_text(encoding="utf-8")
    assert f"Cross-validated over {FOLDS} folds: each image was tested once" in page and "retrieval over the" in page


def test_scores_are_those_of_regressions_without_the_tested_images(run, simulated):
    """A second way: betas z-scored by hand, one ridge a fold, ranks among the fold's images."""
    folder, _ = run
    found, dataset = load_run(folder / "report"), mindtuner.load(simulated)
    tokens = np.asarray(mindtuner.embed(dataset, folder / "cache").caches["tokens"][np.arange(len(dataset.stimuli))])
    tokens = tokens.reshape(len(tokens), -1).astype(np.float64)
    seed = yaml.safe_load((folder / "fit" / "config.yaml").read_text())["seed"]
    hits, two_way = {}, []
    for part in folds_of(dataset, 1, FOLDS, seed):
        trials, raw = part.subject(1).trials, dataset.subject(1).betas(part.subject(1).trials.row).astype(np.float64)
        train, betas = ~trials.is_test, np.empty_like(raw)
        for session in np.unique(trials.session):
            own = trials.session == session
            betas[own] = (raw[own] - raw[own & train].mean(0)) / raw[own & train].std(0)
        fit = ridge_regression(betas[train], tokens[trials.stimulus[train]], trials.stimulus[train], seed)
        images, which = np.unique(trials.stimulus[~train], return_inverse=True)
        said = betas[~train] @ fit.weight + fit.intercept
        said = np.stack([said[which == k].mean(0) for k in range(len(images))])
        unique = np.unique(trials.stimulus[train])
        said, wanted = said - said_of(fit, betas[train], trials.stimulus[train]), tokens[images] - tokens[unique].mean(0)
        close = said @ wanted.T / np.linalg.norm(said, axis=1)[:, None] / np.linalg.norm(wanted, axis=1)
        ahead = (close > np.diag(close)[:, None]).sum(1)
        two_way += (1 - ahead / (len(images) - 1)).tolist()
        hits |= dict(zip(images.tolist(), ahead == 0, strict=True))
    own = found.per_image["ridge/retrieval/image"]
    agree = [bool(hits[image]) == bool(value) for image, value in zip(found.per_image["images"].tolist(), own, strict=True)]
    assert np.mean(agree) > 0.97  # where two candidates are all but equal, rounding may tell
    pooled = found.results["methods"]["ridge"]["retrieval_pools"]["image"][0]
    assert pooled["two_way"] == pytest.approx(np.mean(two_way), abs=0.02)
    assert found.results["chance"]["retrieval"]["image"] == pytest.approx(FOLDS / len(own))


def said_of(fit, betas, stimulus):
    """Mean answer to training images, each the mean over its trials."""
    said = betas @ fit.weight + fit.intercept
    return np.mean([said[stimulus == image].mean(0) for image in np.unique(stimulus)], axis=0)


def test_nothing_of_a_test_image_reaches_its_fit(run, simulated):
    """What towers say of a fold's test images is replaced by noise, and their betas too: the fit is the same to the bit."""
    folder, words = run
    dataset, rng = mindtuner.load(simulated), np.random.default_rng(0)
    features = mindtuner.embed(dataset, folder / "cache")
    part = folds_of(dataset, 1, FOLDS, 0)[0]
    subject, rows = part.subject(1), np.arange(len(dataset.stimuli))
    caches = {name: np.array(cache[rows]) for name, cache in features.caches.items()}
    noise = {name: cache.copy() for name, cache in caches.items()}
    for cache in noise.values():
        cache[part.stimuli.is_shared] = rng.permuted(cache[~part.stimuli.is_shared], axis=0)[: part.stimuli.is_shared.sum()]
    betas = np.array(dataset.subject(1).source[np.arange(dataset.subject(1).source.shape[0])])
    betas[subject.test.row] = rng.normal(size=(len(subject.test), betas.shape[1]))
    elsewhere = dataclasses.replace(dataset, subjects={1: dataclasses.replace(dataset.subject(1), source=betas)})
    asked = subject.betas(subject.test.row)
    said = []
    for own, whole in ((caches, dataset), (noise, elsewhere)):
        fold = folds_of(whole, 1, FOLDS, 0)[0]
        seen = dataclasses.replace(features, stimuli=fold.stimuli, card=fold.card, caches=own)
        decoder = mindtuner.fit(fold.subject(1), seen, words[3], methods=["ridge"], seed=0).decoder()
        found = decoder.predict(asked)
        said.append((found.backbone_tokens, found.text, found.mean_token, decoder.describe(asked)))
    for one, other in zip(*said, strict=True):
        np.testing.assert_array_equal(one, other)


def test_captions_come_from_training_images_of_the_fold(run, simulated):
    folder, _ = run
    dataset, table = mindtuner.load(simulated), pd.read_csv(folder / "report" / "decoded.csv")
    seed = yaml.safe_load((folder / "fit" / "config.yaml").read_text())["seed"]
    for part in folds_of(dataset, 1, FOLDS, seed):
        known = {caption for k in part.stimuli.training_images for caption in dataset.stimuli.captions[k]}
        assert set(table["caption"][table["fold"] == part.card["fold"]]) <= known


def test_the_same_call_goes_on_and_python_says_the_same(run, simulated, tmp_path):
    folder, words = run
    before = (folder / "fit" / "fold-2" / "ridge.safetensors").stat().st_mtime_ns
    assert call("fit", simulated, folder / "fit", *words, "--folds", FOLDS) == 0
    assert (folder / "fit" / "fold-2" / "ridge.safetensors").stat().st_mtime_ns == before
    dataset = mindtuner.load(simulated)
    features = mindtuner.embed(dataset, folder / "cache")
    folds = mindtuner.fit_folds(dataset, 1, features, FOLDS, words[3], methods=["ridge"])
    results = mindtuner.evaluate_folds(folds, dataset, features, pictures=0)
    first = load_run(folder / "report").results["methods"]["ridge"]
    assert results.methods["ridge"]["retrieval"] == first["retrieval"]
    assert results.methods["ridge"]["retrieval_pools"] == first["retrieval_pools"]


def test_a_fit_of_one_fold_is_not_tested_on_images_that_it_may_know(run, simulated, tmp_path, capsys):
    folder, words = run
    cache = ("--cache", folder / "cache")
    for tuned, says in (
        ("fit/fold-1", "was trained on fold 1 of 3, and here the fold is none"),
        ("fit", "holds a fit for each"),
    ):
        verb = "decode" if tuned == "fit" else "evaluate"
        refused(capsys, [verb, folder / tuned, simulated, tmp_path / "out", *cache], says, "expected")
    refused(capsys, ["decode", folder / "fit/fold-1", simulated, tmp_path / "out", *cache], "was trained on fold 1 of 3")


def test_bad_input_is_one_line(run, simulated, tmp_path, capsys):
    folder, words = run
    start = ["fit", simulated, tmp_path / "run", *words]
    refused(capsys, [*start, "--folds", 1], "--folds: is 1; expected 2 to")
    refused(capsys, [*start, "--leave", "day"], "--leave: is 'day'; expected one of run, session")
    refused(capsys, [*start, "--folds", 3, "--sessions", 1], "--sessions: is given, and so are folds")
    assert not (tmp_path / "run").exists()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "folds.json").write_text(json.dumps({"subject": 1, "by": 3, "stimuli": "", "tested": [[0], [1]]}))
    refused(capsys, ["evaluate", tmp_path / "broken", simulated, tmp_path / "out"], "config.yaml", "expected")
    (tmp_path / "broken" / "folds.json").write_text(json.dumps({"subject": 1, "by": 3, "tested": []}))
    refused(
        capsys, ["evaluate", tmp_path / "broken", simulated, tmp_path / "out"], "folds.json: stimuli is None; expected a hash"
    )


def test_folds_of_other_data_are_refused(run, simulated):
    folder, _ = run
    dataset = mindtuner.load(simulated)
    features = mindtuner.embed(dataset, folder / "cache")
    folds = mindtuner.FittedFolds.load(folder / "fit", dataset)
    wrong = [part[1:] for part in folds.tested]
    for change in ({"tested": wrong}, {"tested": folds.tested[::-1]}, {"stimuli": "others"}, {"by": 4}):
        with pytest.raises(UserError, match="fit: test other images than the . folds of .* do; expected the data"):
            mindtuner.evaluate_folds(dataclasses.replace(folds, **change), dataset, features)
