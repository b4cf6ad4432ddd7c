"""All image scores in one pass: the same numbers as one by one, each network loaded once and shown each picture once."""

import dataclasses

import numpy as np
import pytest
import torch

from mindtuner.errors import UserError
from mindtuner.evaluation.scores import catalogue, images
from mindtuner.evaluation.scores.images import score_images
from mindtuner.evaluation.scores.networks import Network
from mindtuner.evaluation.scores.pictures import distance, pixcorr, ssim, two_way
from mindtuner.evaluation.scores.preparation import OURS, PUBLISHED, prepare
from mindtuner.evaluation.statistics import random_pairs

N, SIDE = 11, 20


class Patches(torch.nn.Module):
    """Means of small patches: features that can be computed by hand."""

    def __init__(self, scores, calls):
        super().__init__()
        self.scores, self.calls = scores, calls
        calls.append("loaded")

    def forward(self, pixels):
        self.calls.append(len(pixels))
        wide = torch.nn.functional.avg_pool2d(pixels, 2)
        return {score: wide[:, :, k:] for k, score in enumerate(self.scores)}


def network(name, side, scores, calls):
    return Network(
        name,
        name,
        side,
        (0.4, 0.5, 0.6),
        (0.2, 0.3, 0.25),
        dict.fromkeys(scores, "patches"),
        lambda: Patches(scores, calls),
        "none",
    )


def by_hand(pictures, side, start, choices):
    shown = (prepare(pictures, side, choices) - torch.tensor([0.4, 0.5, 0.6])[:, None, None]) / torch.tensor(
        [0.2, 0.3, 0.25]
    )[:, None, None]
    return shown.reshape(len(pictures), 3, side // 2, 2, side // 2, 2).mean((3, 5))[:, :, start:].flatten(1).numpy()


@pytest.fixture
def pictures():
    rng = np.random.default_rng(0)
    seen = rng.integers(0, 256, (N, 3, SIDE, SIDE), dtype=np.uint8)
    return seen, {key: np.round(0.4 * seen + 0.6 * rng.integers(0, 256, seen.shape)).astype(np.uint8) for key in "ab"}


@pytest.mark.parametrize("choices", [OURS, dataclasses.replace(PUBLISHED, first_side=24, pixel_side=30)])
def test_one_pass_gives_what_each_score_gives_by_itself(pictures, choices, monkeypatch):
    monkeypatch.setattr(images, "BATCH", 2)
    monkeypatch.setattr(images, "GROUP", 4)  # so that neither divides the other's images
    seen, sets = pictures
    calls = {"alexnet": [], "swav": []}
    nets = [network("alexnet", 16, ("alexnet2", "alexnet5"), calls["alexnet"]), network("swav", 16, ("swav",), calls["swav"])]
    scores, chance = score_images(seen, sets, nets, choices, chance_of=["b"], seed=3)
    starts = {"alexnet2": 0, "alexnet5": 1, "swav": 0}
    for key, painted in sets.items():
        true, mine = ({name: by_hand(some, 16, start, choices) for name, start in starts.items()} for some in (seen, painted))
        sized = [prepare(some, choices.pixel_side, choices).numpy() for some in (painted, seen)]
        expected = {
            "pixcorr": pixcorr(*sized),
            "ssim": ssim(*sized),
            **{name: two_way(mine[name], true[name], choices.ties) for name in ("alexnet2", "alexnet5")},
            "swav": distance(mine["swav"], true["swav"]),
        }
        assert list(scores[key]) == list(expected)
        for name, values in expected.items():
            np.testing.assert_allclose(scores[key][name], values, atol=2e-6)
    assert list(chance) == ["b"] and list(chance["b"]) == ["pixcorr", "ssim", "swav"]  # the others' is 0.5
    i, j = random_pairs(N, 3)
    assert chance["b"]["swav"] == pytest.approx(distance(mine["swav"][i], true["swav"][j]).mean(), abs=2e-6)
    for made in calls.values():
        assert made.count("loaded") == 1 and sum(call for call in made if call != "loaded") == 3 * N


def test_bytes_and_floats_are_the_same_pictures(pictures):
    seen, sets = pictures
    as_bytes = score_images(seen, {"a": sets["a"]}, [])[0]["a"]
    as_floats = score_images(seen / 255, {"a": (sets["a"] / 255).astype(np.float32)}, [])[0]["a"]
    for name, values in as_bytes.items():
        np.testing.assert_allclose(as_floats[name], values, atol=1e-6)


def test_the_callers_pictures_are_left_as_they_were(pictures):
    seen = pictures[0] / 255
    before = seen.copy()
    score_images(seen, {"a": seen}, [network("swav", SIDE, ("swav",), [])])
    np.testing.assert_array_equal(seen, before)


def test_bad_sets_are_refused(pictures):
    seen, sets = pictures
    with pytest.raises(UserError, match="predicted images: 10 of them; expected one for each of the 11 seen"):
        score_images(seen, {"a": sets["a"][:10]}, [])
    with pytest.raises(UserError, match=r"shape \(11, 3, 10, 10\); expected that of the seen"):
        score_images(seen, {"a": sets["a"][..., ::2, ::2]}, [])
    with pytest.raises(UserError, match="seen pictures: 1 image; expected at least 2"):
        score_images(seen[:1], {"a": sets["a"][:1]}, [])
    nan = np.full((N, 3, SIDE, SIDE), np.nan)
    with pytest.raises(UserError, match="predicted images: holds NaN"):
        score_images(seen, {"a": nan}, [])
    with pytest.raises(UserError, match=r"expected \(n, 3, H, W\)"):
        score_images(seen, {"a": np.zeros((N, 4, SIDE, SIDE), np.uint8)}, [])


def test_every_score_stands_once_in_the_catalogue_and_an_unknown_one_is_refused():
    for part in ("retrieval", "reconstruction"):
        table = catalogue.of_part(part)
        assert len(table) == sum(score.part == part for score in catalogue.SCORES)
        assert set(catalogue.ALWAYS[part]) <= set(table)
        assert all(score.low < score.high and (score.chance != "half" or score.share) for score in table.values())
    assert not catalogue.find("reconstruction", "swav").higher_is_better
    with pytest.raises(UserError, match="--score: lpips is an unknown reconstruction score; expected one of pixcorr, ssim"):
        catalogue.find("reconstruction", "lpips", "--score")
