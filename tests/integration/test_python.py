"""A researcher's day in Python: the same numbers as the command line, and the examples of the docstrings."""

import copy
import dataclasses
import doctest
import importlib
import json
import logging
import re
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from commands import call
from paths import ROOT
from PIL import Image
from worlds import brief

import mindtuner
from mindtuner.data.hold_out import shows
from mindtuner.errors import UserError
from mindtuner.evaluation.results import load_run
from mindtuner.runtime import derive_seed

pytestmark = pytest.mark.slow
SETTINGS = brief(pictures=3)


@pytest.fixture(scope="module")
def day(simulated, tmp_path_factory):
    """The ten lines, in a folder where the dataset is data/nsd; read only."""
    root = tmp_path_factory.mktemp("day")
    (root / "data").mkdir()
    (root / "data" / "nsd").symlink_to(simulated, target_is_directory=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        dataset = mindtuner.load("data/nsd")
        features = mindtuner.embed(dataset, root / "cache")
        base = mindtuner.pretrain(dataset.without(subject=1), features, config=SETTINGS)
        subject = mindtuner.tune(base, dataset.subject(1).sessions(1), features)
        results = mindtuner.evaluate(subject, dataset, features)
    test = dataset.subject(1).test
    voxels = dataset.subject(1).betas(test.row)
    return SimpleNamespace(
        root=root, dataset=dataset, features=features, base=base, subject=subject, results=results, test=test, voxels=voxels
    )


def test_the_command_line_gives_the_same_scores(day, simulated, tmp_path):
    """Each verb of the same settings, from files to files, and the scores image by image."""
    config = tmp_path / "brief.yaml"
    config.write_text(yaml.safe_dump(SETTINGS))
    data, base, tuned, out = simulated, tmp_path / "base", tmp_path / "tuned", tmp_path / "out"
    cache = ("--cache", day.root / "cache")
    assert call("pretrain", data, base, "--without", 1, "--config", config, *cache) == 0
    assert call("tune", base, data, tuned, "--subject", 1, "--sessions", 1, *cache) == 0
    assert call("evaluate", tuned, data, out, *cache) == 0
    run = load_run(out)
    assert json.dumps(run.results["methods"]) == json.dumps(day.results.methods)
    assert json.dumps(run.results["chance"]) == json.dumps(day.results.chance)
    for name, values in day.results.run.per_image.items():
        np.testing.assert_array_equal(run.per_image[name], values)
    again = mindtuner.TunedSubject.load(tuned, day.dataset)
    assert list(again.networks) == list(day.subject.networks)
    np.testing.assert_array_equal(
        again.decoder().predict(day.voxels).backbone_tokens, day.subject.decoder().predict(day.voxels).backbone_tokens
    )


def test_candidates_are_ids_pictures_or_files(day, tmp_path):
    """A stimulus is the same candidate by its id, by its pixels and by its file; and the best is by a loop over cosines."""
    images = np.unique(day.test.stimulus)
    decoder = day.subject.decoder()
    found = decoder.retrieve(day.voxels, images)
    pixels = day.dataset.stimuli.images(images)
    np.testing.assert_allclose(found.similarity, decoder.retrieve(day.voxels, pixels).similarity, atol=1e-6)
    files = []
    for image, picture in zip(images, pixels, strict=True):
        files.append(tmp_path / f"{image}.png")
        Image.fromarray(np.round(picture.astype(np.float32) * 255).astype(np.uint8).transpose(1, 2, 0)).save(files[-1])
    by_file = decoder.retrieve(day.voxels, files)
    np.testing.assert_allclose(found.similarity, by_file.similarity, atol=5e-3)
    np.testing.assert_array_equal(by_file.similarity, decoder.retrieve(day.voxels, [Image.open(f) for f in files]).similarity)
    said = decoder.predict(day.voxels).retrieval_tokens.reshape(len(day.voxels), -1)
    true = np.asarray(day.features.caches["tokens"][images]).reshape(len(images), -1)
    for k, one in enumerate(said):
        cosines = [float(one @ other / np.linalg.norm(one) / np.linalg.norm(other)) for other in true]
        np.testing.assert_allclose(found.similarity[k], cosines, atol=1e-5)
        assert found.best[k] == found.order[k, 0] == int(np.argmax(cosines))


def test_words_are_captions_of_training_images_and_pictures_are_those_of_an_evaluation(day):
    stimuli = day.dataset.stimuli
    known = {caption for image in stimuli.training_images for caption in stimuli.captions[image]}
    decoder = day.subject.decoder()
    described = decoder.describe(day.voxels)
    assert len(described) == len(day.voxels) and set(described) <= known
    found = decoder.predict(day.voxels, day.test.stimulus)
    rows = day.results.run.per_image["shown"]
    painted = decoder.paint(found, rows)
    np.testing.assert_array_equal(painted.pictures, day.results.run.pictures["mindtuner/corrected"])
    stages = decoder.reconstruct(day.voxels[:2], stages=True)
    assert list(stages) == ["lowlevel", "reconstructed", "corrected"]
    np.testing.assert_array_equal(decoder.reconstruct(day.voxels[:2]), stages["corrected"])


def test_each_subject_is_decoded_by_its_own_ridge(day):
    """A decoder holds its subject: nothing names it again, and another's voxels do not pass."""
    decoder = day.subject.decoder()
    assert decoder.subject == "subj01"
    with pytest.raises(UserError, match=r"voxels has shape \(3, 7\); expected \(trials, \d+\)"):
        decoder.predict(np.zeros((3, 7), np.float32))
    with pytest.raises(UserError, match="knows subject 2 already"):
        mindtuner.tune(day.base, day.dataset.subject(2).sessions(1), day.features)
    with pytest.raises(UserError, match="method: 'nearest' was not tuned; expected one of mindtuner, ridge_only"):
        day.subject.decoder("nearest")
    for bad in (np.array([-1]), np.array([10**6]), np.zeros((2, 5, 5)), []):
        with pytest.raises(UserError, match="images: "):
            decoder.retrieve(day.voxels, bad)


def test_results_are_a_page_a_table_and_a_comparison(day, tmp_path):
    page = day.results.report(tmp_path / "report.html")
    assert "<html" in page.read_text(encoding="utf-8")
    frame, methods = day.results.to_frame(), day.results.methods
    assert list(frame.index) == [*methods, "chance"]
    for method, own in methods.items():
        assert frame.loc[method, ("retrieval", "brain")] == own["retrieval"]["brain"]
        assert frame.loc[method, ("reconstruction", "ssim")] == own["reconstruction"]["ssim"]
    assert frame.loc["chance", ("retrieval", "image")] == day.results.chance["retrieval"]["image"]
    saved = day.results.save(tmp_path / "run")
    assert mindtuner.Results.load(tmp_path / "run").methods == saved.methods == methods
    assert {entry["stage"] for entry in saved.run.log} >= {"pivot", "pretrain", "mindtuner"}
    compared = day.results.compare(other_method="shuffled_brain").to_frame()
    per_image = day.results.run.per_image
    for score in ("image", "brain"):
        own, other = (per_image[f"{method}/retrieval/{score}"].mean() for method in ("mindtuner", "shuffled_brain"))
        assert compared.loc[("retrieval", score), "difference"] == pytest.approx(own - other, abs=1e-6)
    with pytest.raises(UserError, match="other: is this run"):
        day.results.compare()


def test_a_run_folder_has_the_training_that_was_in_memory(day, tmp_path):
    out = tmp_path / "run"
    results = mindtuner.evaluate(day.subject, day.dataset, day.features, pictures=0, out=out)
    assert results.run.log == day.results.run.log and "Training" in (out / "report.html").read_text(encoding="utf-8")
    assert "reconstruction" not in results.methods["mindtuner"]
    assert results.methods["mindtuner"]["retrieval"] == day.results.methods["mindtuner"]["retrieval"]
    with pytest.raises(UserError, match="holds another run"):  # it is over
        mindtuner.evaluate(day.subject, day.dataset, day.features, pictures=0, out=out)


def test_what_does_not_belong_together_is_refused(day, tmp_path):
    """Features of other stimuli, a folder that holds another base or the data, and a category that is two."""
    dataset, others = day.dataset, day.dataset.without(subject=1)
    stimuli = copy.copy(dataset.stimuli)
    stimuli.__dict__["hash"] = "of other pixels"
    foreign = dataclasses.replace(day.features, stimuli=stimuli)
    with pytest.raises(UserError, match="features: are of other stimuli"):
        mindtuner.pretrain(others, foreign, SETTINGS)
    with pytest.raises(UserError, match="features: are of other stimuli"):
        mindtuner.evaluate(day.subject, dataset, foreign)
    stimuli.is_shared = ~dataset.stimuli.is_shared
    with pytest.raises(UserError, match="features: are of other stimuli"):
        mindtuner.tune(day.base, dataset.subject(1).sessions(1), foreign)
    with pytest.raises(UserError, match="holds dataset"):
        mindtuner.pretrain(others, day.features, SETTINGS, out=dataset.root, force=True)
    word = next(word for word in ("red", "blue", "green") if shows_some_of_both(dataset, word))
    with pytest.raises(UserError, match="hold_out_category: is 'other'"):
        mindtuner.pretrain(others.without_category(word), day.features, SETTINGS, hold_out_category="other")
    shorter = {**SETTINGS, "pretrain": {**SETTINGS["pretrain"], "epochs": 0.1}, "pivot": {"epochs": 0.1}}
    base = mindtuner.pretrain(others.without_category(word), day.features, shorter, out=tmp_path / "base")
    assert base.category == word  # what a dataset is without, its base never saw
    with pytest.raises(UserError, match="holds another run"):
        mindtuner.pretrain(dataset.without(subject=2), day.features, shorter, out=tmp_path / "base")


def shows_some_of_both(dataset, word):
    """Of test images, and of training images at least one."""
    shown = np.array([shows(captions, word) for captions in dataset.stimuli.captions])
    tested = dataset.stimuli.is_shared
    return 0 < (shown & tested).sum() < tested.sum() and (shown & ~tested).any()


def test_objects_print_themselves_in_a_few_lines(day):
    texts = [repr(one) for one in (day.dataset, day.dataset.subject(1), day.features, day.base, day.subject)]
    texts += [repr(day.subject.decoder()), repr(day.results)]
    for text in texts:
        assert 1 <= len(text.splitlines()) <= 12 and " object at 0x" not in text
    voxels = f"{day.dataset.subject(1).n_voxels:,} voxels"
    assert voxels in texts[1] and voxels in texts[4] and voxels in texts[5] and "subj02" in texts[3]


def with_examples():
    """Modules with an example in a docstring."""
    for path in sorted((ROOT / "src").rglob("*.py")):
        if re.search(r"^\s*>>> ", path.read_text(encoding="utf-8"), re.M):
            yield ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("name", list(with_examples()))
def test_examples_in_docstrings_run(name, day, tmp_path, monkeypatch, caplog):
    """In a folder where data/nsd is a dataset, with the objects of the day by the names that the docs use.

    Of a few trials there are few steps, which is said, on stdout where the command line ran before.
    """
    caplog.set_level(logging.ERROR, "mindtuner")
    module = importlib.import_module(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(day.root / "data", target_is_directory=True)
    for folder in ("seen", "painted"):
        (tmp_path / folder).mkdir()
        for k in range(3):
            pixels = np.random.default_rng(derive_seed(k, folder)).integers(0, 255, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{k}.png")
    names = {
        "mindtuner": mindtuner,
        "np": np,
        "dataset": day.dataset,
        "features": day.features,
        "base": day.base,
        "subject": day.subject,
        "decoder": day.subject.decoder(),
        "results": day.results,
        "voxels": day.voxels,
    }
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    runner, said = doctest.DocTestRunner(optionflags=options), []
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, name, extraglobs=names):
        runner.run(test, out=said.append)
    assert runner.failures == 0 and runner.tries > 0, "".join(said)


def test_everything_of_the_front_door_says_what_it_takes_and_shows_it():
    """Functions and methods: parameters, what is returned or raised, and an example."""
    for name in mindtuner.__all__:
        found = getattr(mindtuner, name)
        if not callable(found) or isinstance(found, type):
            continue
        doc = found.__doc__
        assert "Parameters\n" in doc and "Examples\n" in doc and ">>> " in doc, name
        assert "Returns\n" in doc or "Raises\n" in doc, name


def test_the_day_in_the_readme_is_this_one():
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    for call_ in (
        "load(",
        "embed(",
        "pretrain(",
        "tune(",
        ".decoder()",
        ".retrieve(",
        ".describe(",
        ".reconstruct(",
        "evaluate(",
    ):
        assert call_ in page
