"""Caption scores. METEOR is tested on a small dictionary made here, and on Debian's wordnet-base where it is installed."""

import functools
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.tokenize import word_tokenize
from nltk.translate.meteor_score import meteor_score
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.scoring import BootstrapAggregator
from scoring_clip import write_clip
from sentence_transformers import util
from transformers import AutoTokenizer, CLIPModel

from mindtuner.errors import UserError
from mindtuner.evaluation.scores.captions import (
    CAPTION_SCORES,
    CaptionScorer,
    ClipTextEncoder,
    Meteor,
    caption_block,
    caption_chance,
    caption_scores,
    find_wordnet,
)
from mindtuner.evaluation.scores.images import score_images
from mindtuner.evaluation.scores.pictures import pixcorr
from mindtuner.evaluation.statistics import random_pairs

DECODED = ["a man rides a wave on a surfboard", "two dogs sleep on a couch", "a plate of food", "a red bus in the city"]
REFERENCES = [
    ("A surfer riding a big wave.", "a person on a surfboard in the ocean", "Man surfing."),
    ("Two hounds are sleeping on the sofa.",),
    ("a bowl of soup beside bread", "food served on a white plate"),
    ("a train at a station", "a double-decker bus drives through town"),
]


class Letters:
    """A text encoder of counted letters: what a sentence is near to can be said by hand."""

    def embed(self, sentences):
        counts = np.array([[sentence.lower().count(chr(97 + k)) + 0.1 for k in range(26)] for sentence in sentences])
        return (counts / np.linalg.norm(counts, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def dictionary(tmp_path_factory):
    """WordNet's format with two nouns: couch and sofa share a synset, wave has one alone."""
    folder = tmp_path_factory.mktemp("wordnet")
    licence = "  1 WordNet 3.0 Copyright by nobody, made for a test\n"
    for kind in ("noun", "verb", "adj", "adv"):
        for name in (f"index.{kind}", f"data.{kind}"):
            (folder / name).write_text(licence)
        (folder / f"{kind}.exc").write_text("")
    line = f"{len(licence):08} 06 n 02 couch 0 sofa 0 000 | a seat  \n"
    second = len(licence) + len(line)
    (folder / "data.noun").write_text(f"{licence}{line}{second:08} 11 n 01 wave 0 000 | of water  \n")
    (folder / "index.noun").write_text(
        licence
        + "".join(
            f"{word} n 1 0 1 0 {offset:08}  \n"
            for word, offset in (("couch", len(licence)), ("sofa", len(licence)), ("wave", second))
        )
    )
    return folder


def plain_rouge_1(decoded, reference):
    """F1 of the words' multisets."""
    a, b = (
        ["".join(c for c in word if c.isalnum()) for word in text.lower().replace("-", " ").split()]
        for text in (decoded, reference)
    )
    shared = sum(min(a.count(word), b.count(word)) for word in set(a))
    return 2 * shared / (len(a) + len(b))


def plain_rouge_l(decoded, reference):
    """F1 by the longest common subsequence, by its recursion."""
    a, b = (
        ["".join(c for c in word if c.isalnum()) for word in text.lower().replace("-", " ").split()]
        for text in (decoded, reference)
    )
    longest = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for x in range(len(a)):
        for y in range(len(b)):
            longest[x + 1][y + 1] = longest[x][y] + 1 if a[x] == b[y] else max(longest[x][y + 1], longest[x + 1][y])
    return 2 * longest[-1][-1] / (len(a) + len(b))


def test_rouge_is_that_of_the_published_evaluation_and_of_its_definition():
    found = caption_scores(DECODED, REFERENCES, CaptionScorer({}))
    peer = RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=False)  # as MindEye2's notebook builds it
    for score, key, plain in (("rouge_1", "rouge1", plain_rouge_1), ("rouge_l", "rougeL", plain_rouge_l)):
        multi = [peer.score_multi(group, text)[key].fmeasure for text, group in zip(DECODED, REFERENCES, strict=True)]
        np.testing.assert_allclose(found[score], multi, atol=1e-12)
        best = [max(plain(text, one) for one in group) for text, group in zip(DECODED, REFERENCES, strict=True)]
        np.testing.assert_allclose(found[score], best, atol=1e-12)
        first = [(group[0],) for group in REFERENCES]
        single = [peer.score(group[0], text)[key].fmeasure for text, group in zip(DECODED, first, strict=True)]
        np.testing.assert_allclose(caption_scores(DECODED, first, CaptionScorer({}))[score], single, atol=1e-12)
    assert list(found) == ["rouge_1", "rouge_l"]


def test_the_published_mean_of_rouge_is_a_random_median_near_ours():
    decoded, references = DECODED * 250, [group[:1] for group in REFERENCES * 250]
    ours = caption_scores(decoded, references, CaptionScorer({}))["rouge_1"].mean()
    peer = RougeScorer(["rouge1"], use_stemmer=False)
    published = []
    for seed in range(2):
        np.random.seed(seed)
        aggregator = BootstrapAggregator()
        for text, group in zip(decoded, references, strict=True):
            aggregator.add_scores(peer.score(group[0], text))
        published.append(aggregator.aggregate()["rouge1"].mid.fmeasure)
    assert published[0] != published[1]
    np.testing.assert_allclose(published, ours, atol=1e-3)


def by_hand(matches, chunks, decoded, reference):
    """METEOR of so many matched words in so many chunks, of captions of so many words."""
    precision, recall = matches / decoded, matches / reference
    mean = precision * recall / (0.9 * precision + 0.1 * recall)
    return mean * (1 - 0.5 * (chunks / matches) ** 3)


def test_meteor_counts_words_stems_and_synonyms(dictionary):
    meteor = Meteor(dictionary)
    assert meteor("a red wave", "the big ocean") == 0
    assert meteor("dogs on a couch", "dogs on a couch") == pytest.approx(by_hand(4, 1, 4, 4))
    assert meteor("dogs on a Couch", "dog on a sofa") == pytest.approx(by_hand(4, 1, 4, 4))  # stem, word, word, synonym
    assert meteor("a sofa and dogs", "dogs and a couch") == pytest.approx(by_hand(4, 3, 4, 4))
    assert meteor("a couch", "a blue bench outside") == pytest.approx(by_hand(1, 1, 2, 4))
    assert meteor("a wave.", "a wave .") == pytest.approx(by_hand(3, 1, 3, 3))  # the stop is a word of its own
    assert meteor("", "a wave") == 0


def test_meteor_by_debian_s_wordnet_gives_nltk_s_documented_example():
    folder = find_wordnet()
    if folder is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no WordNet; expected Debian's wordnet-base")
    meteor = Meteor(folder)
    reference = "It is a guide to action that ensures that the military will forever heed Party commands"
    first = "It is a guide to action which ensures that the military always obeys the commands of the party"
    assert meteor(first, reference) == pytest.approx(0.6944, abs=5e-5)
    assert meteor("two hounds", "two dogs") == meteor("two dogs", "two dogs")  # a plural's synonym: morphology is WordNet's
    # As the published evaluation calls NLTK, which looks every word up anew.
    tokens = functools.partial(word_tokenize, preserve_line=True)
    wordnet = meteor._synonyms._reader
    found = caption_scores(DECODED, REFERENCES, CaptionScorer({}, folder))["meteor"]
    published = [
        meteor_score([tokens(one) for one in group], tokens(text), wordnet=wordnet)
        for text, group in zip(DECODED, REFERENCES, strict=True)
    ]
    np.testing.assert_allclose(found, published, atol=1e-12)
    assert len(set(published)) == 4


def test_similarities_are_those_of_the_published_evaluation(text_encoder):
    found = caption_scores(DECODED, REFERENCES, CaptionScorer({"sentence_bert": text_encoder}))["sentence_bert"]
    network = text_encoder.network
    for k, (text, group) in enumerate(zip(DECODED, REFERENCES, strict=True)):
        cosines = util.pytorch_cos_sim(
            network.encode([text], convert_to_tensor=True), network.encode(list(group), convert_to_tensor=True)
        )
        assert found[k] == pytest.approx(cosines.max().item(), abs=1e-5)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A tiny random CLIP with both towers, as transformers saves it."""
    folder = tmp_path_factory.mktemp("clip")
    write_clip(folder)
    return folder


def test_clip_similarities_are_those_of_the_published_evaluation(clip):
    model, tokenizer = CLIPModel.from_pretrained(clip).eval(), AutoTokenizer.from_pretrained(clip)
    single = [(group[0],) for group in REFERENCES]
    with torch.no_grad():
        both = [
            model.get_text_features(**tokenizer(texts, return_tensors="pt", padding=True))
            for texts in (DECODED, [group[0] for group in single])
        ]
    both = [getattr(features, "pooler_output", features) for features in both]  # transformers 5 returns an output
    published = util.pytorch_cos_sim(*both).diag().numpy()
    scorer = CaptionScorer({"clip_b": ClipTextEncoder(clip, batch=3)})
    np.testing.assert_allclose(caption_scores(DECODED, single, scorer)["clip_b"], published, atol=1e-5)
    assert len(np.unique(published.round(3))) > 1


def test_a_clip_s_long_sentence_is_cut_and_other_models_are_refused(clip, tmp_path):
    encoder = ClipTextEncoder(clip)
    assert np.isfinite(encoder.embed(["a very long sentence " * 40])).all()
    (tmp_path / "config.json").write_text('{"model_type": "git"}')
    with pytest.raises(UserError, match="model_type is 'git'; expected 'clip'"):
        ClipTextEncoder(tmp_path)
    with pytest.raises(UserError, match="not found; expected the folder of a CLIP"):
        ClipTextEncoder(tmp_path / "nowhere")


def test_the_best_reference_counts_and_more_never_harm(dictionary):
    scorer = CaptionScorer({"clip_l": Letters()}, dictionary)
    assert scorer.scores == ("meteor", "rouge_1", "rouge_l", "clip_l")
    assert list(scorer.missing) == ["sentence_bert", "clip_b"]
    found = caption_scores(DECODED, REFERENCES, scorer)
    for k, group in enumerate(REFERENCES):
        alone = [caption_scores(DECODED[k : k + 1], [(one,)], scorer) for one in group]
        for name, values in found.items():
            assert values[k] == pytest.approx(max(scores[name][0] for scores in alone), abs=1e-9)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.text("abc ", min_size=1, max_size=12), min_size=2, max_size=5), st.randoms(use_true_random=False))
def test_scores_are_in_range_move_with_the_images_and_are_best_for_the_reference_itself(texts, chance):
    scorer = CaptionScorer({"sentence_bert": Letters()})
    references = [(text, text[::-1]) for text in texts]
    decoded = chance.sample(texts, len(texts))
    found, perfect = caption_scores(decoded, references, scorer), caption_scores(texts, references, scorer)
    order = np.array(chance.sample(range(len(texts)), len(texts)))
    moved = caption_scores([decoded[k] for k in order], [references[k] for k in order], scorer)
    for name, values in found.items():
        assert (values >= -1e-6).all() and (values <= 1 + 1e-6).all()
        assert (perfect[name] >= values - 1e-6).all()
        np.testing.assert_allclose(values[order], moved[name], atol=1e-12)


def test_chance_is_the_mean_over_wrong_pairs(dictionary):
    scorer = CaptionScorer({"sentence_bert": Letters()}, dictionary)
    found = caption_chance(DECODED, REFERENCES, scorer, seed=0)
    wrong = [(i, j) for i in range(4) for j in range(4) if i != j]
    each = caption_scores([DECODED[i] for i, _ in wrong], [REFERENCES[j] for _, j in wrong], scorer)
    assert list(found) == list(each)
    for name, values in each.items():
        assert abs(found[name] - values.mean()) < 4 * values.std() / np.sqrt(1000)
    assert found == caption_chance(DECODED, REFERENCES, scorer, seed=0) != caption_chance(DECODED, REFERENCES, scorer, seed=1)


def test_random_pairs_are_those_of_the_picture_scores():
    pictures = np.random.default_rng(0).random((2, 7, 3, 16, 16), dtype=np.float32)
    i, j = random_pairs(7, seed=5)
    assert (
        (i != j).all()
        and len(i) == 1000
        and set(zip(i, j, strict=True)) == {(a, b) for a in range(7) for b in range(7) if a != b}
    )
    expected = score_images(pictures[1], {"p": pictures[0]}, [], chance_of=["p"], seed=5)[1]["p"]["pixcorr"]
    assert pixcorr(pictures[0][i], pictures[1][j]).mean() == pytest.approx(expected, abs=1e-9)


def test_the_block_leaves_images_without_a_caption_out_and_counts_them():
    scorer = CaptionScorer({"sentence_bert": Letters()})
    references = [REFERENCES[0], (), REFERENCES[2], REFERENCES[3]]
    block, arrays = caption_block(DECODED, references, scorer, seed=0)
    kept = [0, 2, 3]
    alone = caption_scores([DECODED[k] for k in kept], [REFERENCES[k] for k in kept], scorer)
    assert (block["images"], block["without_reference"]) == (3, 1)
    assert set(block["missing"]) == {"meteor", "clip_b", "clip_l"} and set(block["scores"]) == set(arrays) == set(alone)
    assert set(block["missing"]) | set(block["scores"]) == set(CAPTION_SCORES)
    for name, values in alone.items():
        assert arrays[name].dtype == np.float32 and np.isnan(arrays[name]).tolist() == [False, True, False, False]
        np.testing.assert_allclose(arrays[name][kept], values, atol=1e-6)
        own = block["scores"][name]
        assert own["mean"] == pytest.approx(values.mean()) and own["ci95"][0] <= own["mean"] <= own["ci95"][1]


def test_bad_captions_and_dictionaries_are_refused(dictionary, tmp_path):
    scorer = CaptionScorer({})
    for decoded, references, message in (
        (DECODED, REFERENCES[:2], "4 for 2 images; expected one for each"),
        ([], [], "0 for 0 images"),
        (["a", None], [("a",), ("b",)], "number 1 is a NoneType; expected text"),
        (["a", "b"], [("a",), ()], r"those of image 1 are \(\)"),
        (["a"], ["a caption, not a group"], "expected one text or more"),
    ):
        with pytest.raises(UserError, match=message):
            caption_scores(decoded, references, scorer)
    with pytest.raises(UserError, match="1 to score; expected at least 2"):
        caption_chance(["a"], [("a",)], scorer, 0)
    with pytest.raises(UserError, match="1 of 2 images have one; expected at least 2"):
        caption_block(["a", "b"], [("a",), ()], scorer, 0)
    with pytest.raises(UserError, match="bleu has no text encoder; expected some of sentence_bert"):
        CaptionScorer({"bleu": Letters()})
    with pytest.raises(UserError, match="index.noun not found; expected WordNet's dictionary"):
        CaptionScorer({}, tmp_path)
    for file in dictionary.iterdir():
        (tmp_path / file.name).write_text("  1 WordNet 3.0 Copyright\nno line of a dictionary\n")
    with pytest.raises(UserError, match="not WordNet's dictionary"):
        Meteor(tmp_path)
