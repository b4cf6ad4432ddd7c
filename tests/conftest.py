"""What several test files need and is slow to make: a small simulated dataset, the towers, untrained generator weights."""

from pathlib import Path

import pytest
import torch

from mindtuner.config import SimulateConfig, load_config
from mindtuner.data.simulation import cutouts
from mindtuner.data.simulation.simulate import simulate
from mindtuner.encoders.compact import CompactImageEncoder, CompactTextEncoder
from mindtuner.encoders.patch_autoencoder import PatchAutoencoder
from mindtuner.model.generator import CompactDenoiser
from mindtuner.model.prior import DiffusionPrior
from mindtuner.training.generator import save_generator

TINY = SimulateConfig(subjects=2, sessions=2, trials_per_session=48, shared_images=8, repeats=2, voxel_scale=0.01)


@pytest.fixture
def few_cutouts(monkeypatch):
    """One drawing per kind: composing is the same, drawing takes a tenth of the time."""
    monkeypatch.setattr(cutouts, "_VARIANTS", {"train": 1, "test": 1, "generator": 1})


@pytest.fixture(scope="session")
def simulated(tmp_path_factory) -> Path:
    """The folder of a dataset simulated with TINY; read only."""
    root = tmp_path_factory.mktemp("simulated")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutouts, "_VARIANTS", {"train": 1, "test": 1, "generator": 1})
        simulate(root, TINY)
    return root


@pytest.fixture(scope="session")
def image_encoder() -> CompactImageEncoder:
    return CompactImageEncoder()


@pytest.fixture(scope="session")
def text_encoder() -> CompactTextEncoder:
    return CompactTextEncoder()


@pytest.fixture(scope="session")
def untrained_generator(tmp_path_factory) -> Path:
    """A weights file of the right form. Only its autoencoder's linear part is fitted, to noise."""
    path = tmp_path_factory.mktemp("weights") / "untrained.safetensors"
    torch.manual_seed(0)
    autoencoder, denoiser = PatchAutoencoder(), CompactDenoiser()
    autoencoder.fit_linear(torch.rand(8, 3, 128, 128) * 2 - 1)
    prior = DiffusionPrior(load_config("quick").model)
    save_generator(path, autoencoder, prior, dict(denoiser.named_parameters()), denoiser, 0)
    return path
