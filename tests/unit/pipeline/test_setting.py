"""What a reader must know of captions: which are missing, and how high text retrieval can get where some are equal."""

from types import SimpleNamespace

import numpy as np
import pytest

from mindtuner.pipeline.setting import captions_note, text_ceiling
from mindtuner.pipeline.stages import captioned

BANK = SimpleNamespace(captions=["a dog"])


def of_captions(captions):
    """Test images 3, 4, ... of these captions, each text with a direction of its own."""
    words = sorted({group[0] for group in captions if group})
    text = np.zeros((3 + len(captions), max(1, len(words))), np.float32)
    for k, group in enumerate(captions):
        if group:
            text[3 + k, words.index(group[0])] = 1
    images = np.arange(len(captions)) + 3
    return SimpleNamespace(captions=captions, images=images, texts=captioned(captions), caches={"text": text})


@pytest.mark.parametrize(
    ("captions", "most", "says"),
    [
        ([("a",), ("b",), ("c",)], 1.0, ""),
        ([("a",), ("a",), ("b",)], 2 / 3, "Test images of equal captions tie: text retrieval is 66.7% at most."),
        ([("a",), ("a",), ("a",), ("a",)], 1 / 4, "Test images of equal captions tie: text retrieval is 25.0% at most."),
        (
            [("a",), ("a",), ()],
            1 / 2,
            "is among the others. Test images of equal captions tie: text retrieval is 50.0% at most.",
        ),
        ([(), ()], 1 / 2, "No test image has a caption: text retrieval is at chance."),
    ],
)
def test_equal_captions_bound_text_retrieval(captions, most, says):
    test = of_captions(captions)
    assert text_ceiling(test) == pytest.approx(most)
    assert captions_note(BANK, test).endswith(says) and (says or not captions_note(BANK, test))
