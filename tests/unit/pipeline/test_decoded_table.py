"""Tables of what was decoded: each column against a loop that knows nothing of them, and scores by file name."""

import dataclasses
import logging
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from mindtuner.data import Stimuli
from mindtuner.decoding.decoder import Predictions
from mindtuner.decoding.words import TextBank, Words
from mindtuner.evaluation.results import Run
from mindtuner.model.backbone import Confidence
from mindtuner.pipeline import decoded_table as tables
from mindtuner.pipeline.decoded_table import decoded_table, read_table, scores_table, write_table

NAMES = ["a.png", "cats/b, c.png", "d.png", "ü.png", "e.png", "f.png", "g.png"]
CAPTIONS = [["a cat", "it sits"], [], ['a "dog"'], [], [], [], []]


@dataclasses.dataclass
class Network:
    confidence: Confidence | None


@pytest.fixture
def stimuli():
    images = np.broadcast_to(np.zeros(1, np.float16), (7, 3, 224, 224))
    return Stimuli(images, CAPTIONS, np.arange(7) > 0, "memory", NAMES)


@pytest.fixture
def world():
    """Tokens of seven stimuli, and three brains that saw 2, 5 and 6 of the candidates 1 to 6."""
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(7, 2, 5)).astype(np.float32)
    shown, candidates = np.array([2, 5, 6]), np.arange(1, 7)
    said = tokens[shown] + rng.normal(size=(3, 2, 5)).astype(np.float32)
    text = np.eye(3, 4, dtype=np.float32)
    found = Predictions(np.arange(3), said, said, None, text)
    reader = SimpleNamespace(bank=SimpleNamespace(phrases=["a dog", "on the beach"]))
    bank, sure = TextBank(["a bird", "a car", "a hat"], np.eye(3, 4), 0), np.array([[0.75, 0.5], [0, 0], [0, 0]])
    words = Words(text, bank, sure, reader)
    return found, shown, words, tokens, candidates


def test_each_row_is_what_a_loop_finds(world, stimuli, tmp_path):
    found, shown, words, tokens, candidates = world
    table = decoded_table(found, shown, words, stimuli, tokens, candidates, Network(Confidence(3.0)), {"row": [4, 9, 1]})
    write_table(tmp_path / "decoded.csv", table)
    read = read_table(tmp_path / "decoded.csv")
    pd.testing.assert_frame_equal(read, table, check_dtype=False)
    for k, row in enumerate(read.itertuples()):
        close = {}
        for image in candidates:
            a, b = found.retrieval_tokens[k].ravel(), tokens[image].ravel()
            close[image] = float(a @ b / np.sqrt((a @ a) * (b @ b)))
        ranked = sorted(close, key=lambda image: -close[image])
        assert (row.stimulus, row.image, row.candidates) == (NAMES[shown[k]], shown[k], 6)
        assert row.rank == ranked.index(shown[k]) + 1
        assert [getattr(row, f"nearest_{n}") for n in range(1, 6)] == [NAMES[image] for image in ranked[:5]]
        weight = np.exp(3 * np.array(list(close.values())))
        assert row.confidence == pytest.approx(weight.max() / weight.sum(), abs=1e-4)
    assert read["row"].tolist() == [4, 9, 1] and read["seen"].tolist() == ['a "dog"', "", ""]
    assert read["words"].tolist() == ["a dog; on the beach", "", ""] and read["words_confidence"][0] == "0.750; 0.500"
    assert read["caption"].tolist() == ["a bird", "a car", "a hat"]


def test_text_that_looks_like_numbers_is_read_as_text(world, tmp_path):
    """Captions of a study of digits, and one phrase an image, of which the confidence is all that stands there."""
    found, shown, words, tokens, candidates = world
    source = np.broadcast_to(np.zeros(1, np.float16), (7, 3, 224, 224))
    digits = Stimuli(source, [["06"]] * 7, np.arange(7) > 0, "memory", [f"{k:02d}" for k in range(7)])
    sure = dataclasses.replace(words, probabilities=np.tile([0.75, 0.0], (3, 1)))
    table = decoded_table(found, shown, sure, digits, tokens, candidates, Network(Confidence(3.0)))
    write_table(tmp_path / "decoded.csv", table)
    read = read_table(tmp_path / "decoded.csv")
    pd.testing.assert_frame_equal(read, table, check_dtype=False)
    assert read["seen"].tolist() == ["06"] * 3 and read["words_confidence"].tolist() == ["0.750"] * 3


def test_what_retrieval_takes_off_image_tokens_is_taken_off(world, stimuli):
    found, shown, words, tokens, candidates = world
    less = 5 * tokens.mean(0)
    table = decoded_table(
        dataclasses.replace(found, mean_token=less), shown, words, stimuli, tokens, candidates, Network(Confidence(3.0))
    )
    off = decoded_table(found, shown, words, stimuli, tokens - less, candidates, Network(Confidence(3.0)))
    raw = decoded_table(found, shown, words, stimuli, tokens, candidates, Network(Confidence(3.0)))
    pd.testing.assert_frame_equal(table, off)
    assert not table["confidence"].equals(raw["confidence"])


def test_equal_candidates_share_the_middle_rank_and_fewer_than_five_are_named(world, stimuli):
    found, shown, words, tokens, _ = world
    tokens[5] = tokens[6]
    pair = found.rows(np.array([1, 2]))
    table = decoded_table(
        pair, shown[1:], words.rows(np.array([1, 2])), stimuli, tokens, np.array([5, 6]), Network(Confidence(9.0))
    )
    assert table["rank"].tolist() == [1.5, 1.5] and table["confidence"].tolist() == [0.5, 0.5]
    assert [name for name in table if name.startswith("nearest")] == ["nearest_1", "nearest_2"]


def test_what_is_not_known_is_left_out_and_said(world, stimuli, caplog):
    found, shown, words, tokens, candidates = world
    tables._say.cache_clear()
    with caplog.at_level(logging.WARNING):
        unsure = decoded_table(found, shown, words, stimuli, tokens, candidates, Network(None))
        blind = decoded_table(found, shown, words, stimuli, None, candidates, Network(Confidence(3.0)))
    assert unsure["confidence"].isna().all() and unsure["rank"].notna().all()
    assert "caption" in blind and not {"rank", "nearest_1", "confidence"} & set(blind)
    assert [record.message.partition(":")[0] for record in caplog.records] == ["confidence", "rank, nearest and confidence"]


def test_scores_stand_at_their_images(tmp_path):
    """Text retrieval has the captioned images alone, and pictures those that were painted."""
    per_image = {
        "images": np.array([3, 8, 9]),
        "shown": np.array([2, 0]),
        "texts": np.array([1, 2]),
        "mindtuner/retrieval/image": np.array([1, 0, 0.5], np.float32),
        "mindtuner/retrieval/text": np.array([0.25, 0.75], np.float32),
        "mindtuner/reconstruction/ssim": np.array([0.1, np.nan], np.float32),
        "shuffled_brain/retrieval/image": np.array([0, 0, 1], np.float32),
    }
    words = {"names": ["c.png", "h.png", "i.png"]}
    run = Run({"methods": {"mindtuner": {}, "shuffled_brain": {}}}, {}, words, per_image, [])
    table = scores_table(run)
    assert table["method"].tolist() == ["mindtuner"] * 3 + ["shuffled_brain"] * 3
    assert table["stimulus"].tolist() == words["names"] * 2 and table["image"].tolist() == [3, 8, 9] * 2
    nan = np.nan
    np.testing.assert_allclose(table["retrieval_image"], [1, 0, 0.5, 0, 0, 1])
    np.testing.assert_allclose(table["retrieval_text"], [nan, 0.25, 0.75, nan, nan, nan])
    np.testing.assert_allclose(table["reconstruction_ssim"], [nan, nan, 0.1, nan, nan, nan], atol=1e-6)
    assert scores_table(dataclasses.replace(run, words={}))["stimulus"].tolist()[:3] == ["image 3", "image 8", "image 9"]
