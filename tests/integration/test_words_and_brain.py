"""The scores of words and of the brain, as a run gets them: the numbers of the functions behind, and what is left out."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from scoring_clip import VISION, cosines, write_clip

from mindtuner.evaluation.scores import networks
from mindtuner.evaluation.scores.captions import CaptionScorer, caption_scores
from mindtuner.evaluation.scores.catalogue import RECOGNISED
from mindtuner.evaluation.scores.features import LITE2, EncodingFeatures, KeptFeatures, Lite2
from mindtuner.evaluation.scores.images import score_images
from mindtuner.evaluation.vocabulary import Vocabulary
from mindtuner.formats import load
from mindtuner.pipeline.captions_and_brain import caption_scorer, score_brain, score_captions
from mindtuner.pipeline.objects import Shown
from mindtuner.pipeline.painting import Painted
from mindtuner.pipeline.stages import Scoring

REFERENCES = [("a red dog", "a dog"), (), ("two cars at night",), ("a house",)]


def empty(*methods):
    return {
        "setting": {"scores": {}},
        "chance": {},
        "methods": {name: {"ci95": {}, "picture": "corrected"} for name in methods},
    }


def test_captions_are_scored_method_by_method_beside_chance():
    painted = {
        "mindtuner": Painted({}, [], ["a dog", "a tree", "a car at night", "a house"]),
        "shuffled_brain": Painted({}, [], ["a boat"] * 4),
        "nearest_training_image": Painted({}, []),
    }
    results, per_image, scorer = empty(*painted), {}, CaptionScorer({})
    score_captions(results, per_image, painted, REFERENCES, scorer, seed=0)
    kept = [0, 2, 3]
    for method in ("mindtuner", "shuffled_brain"):
        own = results["methods"][method]
        expected = caption_scores([painted[method].retrieved[k] for k in kept], [REFERENCES[k] for k in kept], scorer)
        for score, values in expected.items():
            low, high = own["ci95"]["captions"][score]
            assert own["captions"][score] == pytest.approx(values.mean(), abs=1e-6) and low <= own["captions"][score] <= high
            array = per_image[f"{method}/captions/{score}"]
            np.testing.assert_allclose(array[kept], values, atol=1e-6)
            assert np.isnan(array[1])
    assert set(results["chance"]["captions"]["rouge_1"]) == {"mindtuner", "shuffled_brain"}
    assert "captions" not in results["methods"]["nearest_training_image"]
    assert set(results["setting"]["scores"]["captions_not_scored"]) == {"meteor", "sentence_bert", "clip_b", "clip_l"}
    ours, theirs = (results["methods"][method]["captions"]["rouge_1"] for method in ("mindtuner", "shuffled_brain"))
    assert ours > theirs


def test_written_captions_are_scored_beside_those_that_were_read():
    """A caption that a network wrote has scores, intervals and chance of its own, also where it wrote nothing."""
    read, wrote = ["a dog", "a tree", "a car at night", "a house"], ["a red dog", "", "", "a house"]
    painted = {
        "mindtuner": Painted({}, wrote, read),
        "ridge_only": Painted({}, [], read),
        "prior_only": Painted({}, ["a boat"] * 4),
    }
    results, per_image, scorer = empty(*painted), {}, CaptionScorer({})
    score_captions(results, per_image, painted, REFERENCES, scorer, seed=0)
    own, kept = results["methods"]["mindtuner"], [0, 2, 3]
    for part, captions in (("captions", read), ("written", wrote)):
        expected = caption_scores([captions[k] for k in kept], [REFERENCES[k] for k in kept], scorer)
        for score, values in expected.items():
            assert own[part][score] == pytest.approx(values.mean(), abs=1e-6)
            np.testing.assert_allclose(per_image[f"mindtuner/{part}/{score}"][kept], values, atol=1e-6)
    assert own["written"]["rouge_1"] == pytest.approx((1 + 0 + 1) / 3)
    assert set(results["chance"]["written"]["rouge_1"]) == {"mindtuner", "prior_only"}
    assert set(results["chance"]["captions"]["rouge_1"]) == {"mindtuner", "ridge_only"}
    assert "written" not in results["methods"]["ridge_only"] and set(own["ci95"]) == {"captions", "written"}


def test_where_images_have_no_captions_nothing_is_scored():
    results, per_image = empty("mindtuner"), {}
    score_captions(results, per_image, {"mindtuner": Painted({}, [], ["a", "b"])}, [("a",), ()], CaptionScorer({}), 0)
    assert per_image == {} and "captions" not in results["chance"] and "captions" not in results["methods"]["mindtuner"]


def test_a_clip_folder_for_pictures_alone_leaves_its_captions_out(tmp_path, text_encoder):
    folder = tmp_path / "clip-vit-large-patch14"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):  # what the score of pictures needs
        (folder / name).write_bytes(b"{}")
    scorer = caption_scorer(tmp_path, text_encoder)
    assert "sentence_bert" in scorer.scores and {"clip_b", "clip_l"} <= set(scorer.missing)


def test_the_brain_of_the_seen_picture_is_the_reference(simulated):
    """A method that paints what was seen reaches what the block calls "seen"; all regions of the subject are there."""
    dataset = load(simulated)
    subject = dataset.subject(1)
    shown = np.unique(subject.test.stimulus)
    images = np.asarray(dataset.stimuli.images(np.arange(len(dataset.stimuli))), np.float32)
    pixels = np.round(images[:, :, ::4, ::4] * 255).astype(np.uint8)
    sets = {
        ("mindtuner", "corrected"): pixels[shown],
        ("prior_only", "corrected"): pixels[shown[::-1]],
        ("mindtuner", "lowlevel"): pixels[shown] // 2,
    }
    kept, looked = KeptFeatures(), Counter()
    with pytest.MonkeyPatch.context() as patch:
        forward = Lite2.forward
        patch.setattr(Lite2, "forward", lambda self, x: looked.update(n=len(x)) or forward(self, x))
        score_images(pixels[shown], sets, [LITE2], chance_of=list(sets)[:2], keep=kept.keep)
        assert looked["n"] == 4 * len(shown)  # each picture once
        assert set(kept.parts) == {None, *list(sets)[:2]}  # the stages that are not the method's picture are let go
        np.testing.assert_allclose(kept["prior_only", "corrected"], EncodingFeatures()(pixels[shown[::-1]]), atol=1e-5)
        looked.clear()
        results, per_image = empty("mindtuner", "prior_only"), {}
        score_brain(results, per_image, kept, subject, shown, pixels, seed=0)
        assert looked["n"] == len(np.unique(subject.train.stimulus))  # the training images, and no picture again
    own = results["methods"]["mindtuner"]["brain"]
    assert set(own) == set(results["brain"]["regions"]) and "nsd_general" in own
    for region, found in own.items():
        low, high = found["ci"]
        assert found["correlation"] == pytest.approx(found["seen"]) and low <= found["correlation"] <= high
        assert per_image[f"mindtuner/brain/{region}"].mean() == pytest.approx(found["correlation"], abs=1e-5)
        assert found["seen"] == results["methods"]["prior_only"]["brain"][region]["seen"]
    assert own["nsd_general"]["correlation"] != results["methods"]["prior_only"]["brain"]["nsd_general"]["correlation"]
    assert results["brain"]["features"] == EncodingFeatures.width


@pytest.fixture
def patterns():
    """80 pictures of stripes or squares, red or blue, by day or at night, and captions that say so; the last 20 are test."""
    rng = np.random.default_rng(0)
    pixels, captions = np.empty((80, 3, 64, 64), np.uint8), []
    y, x = np.mgrid[:64, :64]
    for picture in pixels:
        square, blue, night = rng.integers(2, size=3)
        ink = ((x // 8 + (y // 8 if square else 0)) % 2)[None] * np.array([60, 60, 230] if blue else [230, 60, 60])[
            :, None, None
        ]
        picture[:] = (ink + rng.integers(20, 25)) * (0.2 if night else 1)
        captions.append(
            (f"a {'blue' if blue else 'red'} {'square' if square else 'stripe'} {'at night' if night else 'in a room'}",)
        )
    return SimpleNamespace(captions=captions, is_shared=np.arange(80) >= 60), pixels


def test_a_probe_recognises_what_the_captions_of_unseen_pictures_name(patterns):
    """It looks at training images alone, without those that a control shows."""
    stimuli, pixels = patterns
    shown, hidden = np.arange(60, 80), pixels.copy()
    hidden[[0, 1, *shown]] = 0
    found = Shown.of(stimuli, shown, hidden, without=[0, 1])
    assert found.training == 58 and found.recognition is not None
    assert found.missing == {"objects_clip": "needs mindtuner evaluate --networks DIR"}
    np.testing.assert_array_equal(found.recognition.probe.mean, EncodingFeatures()(pixels[2:60]).astype(np.float64).mean(0))
    block = found.reference_block(EncodingFeatures()(pixels[shown]), seed=0)
    assert block["words"] == {"objects": ["square", "stripe"], "colours": ["blue", "red"], "places": ["night", "room"]}
    assert set(block["seen"]) == set(RECOGNISED) - {"objects_clip"} and "clip" not in block
    assert all(about["mean"] > 0.9 for about in block["seen"].values())
    wrong = found.recognition.scores(found.recognition.probe(EncodingFeatures()(pixels[shown[::-1]])))
    assert all(values.mean() < 0.8 for values in wrong.values())


def test_clip_looks_for_things_by_words_and_by_what_training_images_are_usually_like(patterns, tmp_path, monkeypatch):
    """All is as transformers' own model of both towers has it, and no test image, nor one that a control shows, is asked."""
    monkeypatch.setattr(networks, "CLIP_L14", VISION)
    stimuli, pixels = patterns
    shown, folder = np.arange(60, 80), tmp_path / "clip-vit-large-patch14"
    write_clip(folder)
    hidden = pixels.copy()
    hidden[[0, 1, *shown]] = 0
    found = Shown.of(stimuli, shown, hidden, without=[0, 1], scoring=Scoring(tmp_path))
    assert found.missing == {} and found.recognition.clip.images == 58
    theirs = cosines(folder, pixels, ["a photo of a square.", "a photo of a stripe."])
    expected = theirs[60:] - theirs[2:60].mean(0)
    kept, both = KeptFeatures(), Scoring(tmp_path).networks
    same = {"same": pixels[shown]}
    scores, _ = score_images(pixels[shown], same, both, keep=kept.keep, recognition=found.recognition)
    np.testing.assert_allclose(found.recognition.clip(kept.seen_by_clip), expected, atol=1e-5)
    square = ["square" in stimuli.captions[k][0] for k in shown]  # each picture shows the one or the other
    right = (expected[:, 0] > expected[:, 1]) == square
    np.testing.assert_array_equal(scores["same"]["objects_clip"], right)
    assert 0 < np.mean(right) < 1
    block = found.reference_block(kept[None], 0, kept.seen_by_clip)
    assert block["seen"]["objects_clip"]["mean"] == pytest.approx(np.mean(right), abs=1e-6)
    assert block["clip"] == {"prompt": "a photo of a {}.", "training_images": 58} and set(block["seen"]) == set(RECOGNISED)
    (folder / "tokenizer_config.json").unlink()
    without = Shown.of(stimuli, shown, pixels, scoring=Scoring(tmp_path))
    assert without.recognition.clip is None and without.missing == {"objects_clip": f"no tokenizer in {folder}"}


def test_without_captions_nothing_is_looked_for_and_the_scores_are_named(patterns):
    stimuli, pixels = patterns
    stimuli.captions = [()] * 80
    found = Shown.of(stimuli, np.arange(60, 80), pixels)
    assert found.recognition is None and found.training == 0 and set(found.missing) == set(RECOGNISED)
    nothing = Shown.of(stimuli, np.arange(0), pixels)
    assert nothing.recognition is None and nothing.missing == {}  # no picture was painted


def test_captions_are_scored_by_the_words_they_name_too():
    painted = {"mindtuner": Painted({}, [], ["a dog", "a tree", "a car at night", "a house"])}
    vocabulary = Vocabulary.of(REFERENCES, fewest=1)
    results, per_image = empty(*painted), {}
    score_captions(results, per_image, painted, REFERENCES, CaptionScorer({}), 0, vocabulary)
    own = results["methods"]["mindtuner"]
    assert own["captions"]["objects"] == own["captions"]["objects_f1"] == pytest.approx(2 / 3, abs=1e-6)  # "cars" is no "car"
    assert own["ci95"]["captions"]["objects"] == [0, 1] and results["chance"]["captions"]["objects"]["mindtuner"] < 0.5
    assert np.isnan(per_image["mindtuner/captions/objects"][1])
    assert {"colours", "places"} <= set(results["setting"]["scores"]["captions_not_scored"])  # a single image has one


def test_too_few_images_are_said_so():
    subject = SimpleNamespace(train=SimpleNamespace(stimulus=np.array([3, 3, 4])))
    results, per_image = empty("mindtuner"), {}
    score_brain(results, per_image, KeptFeatures(), subject, np.array([1, 2]), np.zeros((5, 3, 8, 8), np.uint8), 0)
    assert results["setting"]["scores"]["brain_not_scored"] == "needs 5 training images and 2 pictures; there are 2 and 2"
    assert per_image == {} and "brain" not in results
