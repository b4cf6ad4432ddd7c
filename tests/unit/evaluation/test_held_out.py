"""A category held out: the scores of each side."""

import numpy as np
import pytest

from mindtuner.evaluation.held_out import held_out_scores, held_out_text


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
