"""A generator is not asked for test images that it was trained on, and is judged by training images alone."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mindtuner.config import DecodeConfig
from mindtuner.data import Stimuli
from mindtuner.data.stimuli import picture_hashes
from mindtuner.errors import UserError
from mindtuner.generators.compact import CompactGenerator
from mindtuner.pipeline.features import refuse_pictures_trained_on
from mindtuner.pipeline.generators import LOOKED_AT, painter_fidelity
from mindtuner.towers.compact import TRAINED_ON

CONFIG = DecodeConfig(
    pictures=4, prior_steps=1, generator_steps=2, refine_steps=2, refine_start=0.5, guidance=2.0, neighbours=0
)


@pytest.fixture
def stimuli():
    """Six pictures of noise, of which the last three are shared."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3, 224, 224)) / np.float16(255)
    return Stimuli(pixels.astype(np.float16), [["a thing"]] * 6, np.arange(6) >= 3, "memory")


def test_test_images_that_were_trained_on_are_refused(stimuli, untrained_generator, tmp_path):
    """By content, wherever in a data set they stand; training images may be known."""
    path = tmp_path / "weights.safetensors"
    known = torch.from_numpy(picture_hashes(stimuli.images(np.array([0, 1, 4]))).copy())
    save_file(load_file(untrained_generator) | {TRAINED_ON: known}, path)
    with pytest.raises(UserError, match=r"weights\.safetensors: was trained on 1 of 3 test images; expected none of them"):
        refuse_pictures_trained_on(path, stimuli)
    others = Stimuli(stimuli.images(np.array([0, 1, 3, 5])), [["a thing"]] * 4, np.arange(4) >= 2, "memory")
    assert refuse_pictures_trained_on(path, others) is None
    assert refuse_pictures_trained_on(untrained_generator, stimuli) is None


def test_a_painter_is_judged_by_training_images(stimuli, untrained_generator):
    """No test image's tokens are among those that it paints; another generator, or one image alone, says nothing."""
    generator, asked = CompactGenerator(CONFIG, 0, untrained_generator), []
    generator.fidelity = lambda tokens: asked.append(tokens) or 0.4
    tokens = np.arange(6 * 16 * 128, dtype=np.float32).reshape(6, 16, 128)
    assert painter_fidelity(generator, stimuli, tokens) == 0.4 and LOOKED_AT > 3
    np.testing.assert_array_equal(asked[0], tokens[:3])
    alone = Stimuli(stimuli.images(np.arange(2)), [["a thing"]] * 2, np.array([False, True]), "memory")
    assert painter_fidelity(generator, alone, tokens) is None
    assert painter_fidelity(object(), stimuli, tokens) is None
