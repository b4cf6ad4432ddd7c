"""Sizes of networks: the smallest, and the paper's."""

import torch

from mindtuner.config import FingerprintConfig, ModelConfig
from mindtuner.model import BrainNetwork

PAPER = ModelConfig(
    hidden=4096,
    blocks=4,
    tokens=256,
    width=1664,
    text_width=1280,
    backbone_dropout=0.15,
    prior_depth=6,
    prior_heads=32,
    prior_head_dim=52,
    latent_channels=4,
    latent_side=28,
    lowlevel_channels=(128, 64, 32),
    lowlevel_side=7,
    feature_positions=49,
    feature_width=512,
)
TINY = ModelConfig(
    hidden=12,
    blocks=2,
    tokens=3,
    width=8,
    text_width=5,
    backbone_dropout=0.15,
    prior_depth=1,
    prior_heads=2,
    prior_head_dim=4,
    latent_channels=4,
    latent_side=8,
    lowlevel_channels=(8, 4),
    lowlevel_side=2,
    feature_positions=4,
    feature_width=6,
)
V = 30  # voxels of subject 1


def network_with(lora=True, skip=True, blocks_seed=0, size=0.5, **options):
    """A network with a fingerprint that is not silent."""
    torch.manual_seed(blocks_seed)
    network = BrainNetwork(TINY, {"2": 9}).eval()
    network.add_fingerprint("1", V, FingerprintConfig(lora=lora, skip=skip, rank=4, alpha=4.0, **options))
    for name, parameter in network.named_parameters():
        if name.endswith(".B"):
            parameter.data.normal_(0, size)
    return network.eval()
