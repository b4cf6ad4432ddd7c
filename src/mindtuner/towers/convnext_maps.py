"""Contrastive low-level targets: what a ConvNeXt says of each cell of an image (MindEye2 paper, low-level submodule).

The papers' network is VICRegL's ConvNeXt-XL (Bardes, Ponce and LeCun 2022): a trunk, a LayerNorm over the channels of each
cell of its last map, and the projector that its local loss was trained on. timm runs the trunk.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import timm
import torch
from timm.models.convnext import ConvNeXt
from torch import nn

from mindtuner.errors import UserError
from mindtuner.runtime import device
from mindtuner.thirdparty import check_fit, one_line, read_state_dict, released
from mindtuner.towers.tower import unit_images, weights_hash

SIDE, STRIDE = 224, 32
MEAN = (0.485, 0.456, 0.406)
STD = (0.228, 0.224, 0.225)  # of red: 0.228 in MindEye2's training code, where ImageNet's is 0.229
_RELEASE = "VICRegL's full ConvNeXt checkpoint (convnext_xlarge_alpha0.75_fullckpt.pth)"
_UNUSED = ("projector.", "classifier.")  # the global loss's projector and the online classifier: not asked for cells
_RENAMED = (  # timm's key -> the release's
    (r"trunk\.stem\.", "backbone.downsample_layers.0."),
    (r"trunk\.stages\.(\d+)\.downsample\.", r"backbone.downsample_layers.\1."),
    (r"trunk\.stages\.(\d+)\.blocks\.(\d+)\.conv_dw\.", r"backbone.stages.\1.\2.dwconv."),
    (r"trunk\.stages\.(\d+)\.blocks\.(\d+)\.norm\.", r"backbone.stages.\1.\2.norm."),
    (r"trunk\.stages\.(\d+)\.blocks\.(\d+)\.mlp\.fc(\d)\.", r"backbone.stages.\1.\2.pwconv\3."),
    (r"trunk\.norm_pre\.", "backbone.norm."),
    (r"projector\.", "maps_projector."),
)


class MapsNetwork(nn.Module):
    """Trunk, LayerNorm per cell, and (Linear, LayerNorm, ReLU) twice and a Linear without bias.

    ``depths`` and ``dims`` of the trunk's four stages; ``widths`` of the projector's three layers
    (released: 3 3 27 3, 256 512 1024 2048, 512 512 512).
    """

    def __init__(self, depths: tuple[int, ...], dims: tuple[int, ...], widths: tuple[int, ...]) -> None:
        super().__init__()
        self.depths, self.dims, self.widths = depths, dims, widths
        # With head_norm_first the norm stands before the pooling, so each cell is normalised by itself.
        self.trunk = ConvNeXt(depths=depths, dims=dims, ls_init_value=None, head_norm_first=True, num_classes=0)
        first, second, third = widths
        self.projector = nn.Sequential(
            nn.Linear(dims[-1], first),
            nn.LayerNorm(first),
            nn.ReLU(),
            nn.Linear(first, second),
            nn.LayerNorm(second),
            nn.ReLU(),
            nn.Linear(second, third, bias=False),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Standardised images (n, 3, s, s) -> (n, (s / 32) ** 2, widths[-1]), cells row by row."""
        return self.projector(self.trunk.forward_features(images).flatten(2).transpose(1, 2))

    @staticmethod
    def like(tensors: Mapping[str, torch.Tensor]) -> MapsNetwork:
        """A network without values (on the meta device), of the sizes that tensors by released key have.

        Raises ValueError naming the key from which a size cannot be read.
        """

        def width(key: str, axes: int) -> int:
            if key not in tensors or tensors[key].dim() != axes:
                has = f"has shape {tuple(tensors[key].shape)}" if key in tensors else "is missing"
                raise ValueError(f"key {key} {has}; expected {axes} axes")
            return tensors[key].shape[0]

        dims = tuple(width(f"backbone.downsample_layers.{stage}.{int(stage > 0)}.weight", 4) for stage in range(4))
        depths = []
        for stage in range(4):
            pattern = re.compile(rf"backbone\.stages\.{stage}\.(\d+)\.")
            blocks = [int(found[1]) for found in map(pattern.match, tensors) if found]
            if not blocks:
                raise ValueError(f"key backbone.stages.{stage}.0.dwconv.weight is missing; expected a block in each stage")
            if max(blocks) >= len(blocks):  # a number out of the row would ask for blocks without end
                raise ValueError(f"key backbone.stages.{stage}.{max(blocks)} is unknown; expected blocks without gaps")
            depths.append(max(blocks) + 1)
        widths = tuple(width(f"maps_projector.{layer}.weight", 2) for layer in (0, 3, 6))
        with torch.device("meta"):
            return MapsNetwork(tuple(depths), dims, widths)

    def by_released_key(self) -> dict[str, str]:
        """{key in the released file: key in this network}."""
        return {_released(key): key for key in self.state_dict()}


class CellMaps:
    """Features of each cell of an image, row by row, from a frozen ``network`` that gives ``width`` numbers a cell.

    ``identity`` goes into caches; ``shape`` is that of one image's features, (cells, width).
    ``side`` is that of the images that the network sees: ValueError where it is no multiple of 32.
    """

    def __init__(self, network: nn.Module, width: int, side: int, mean, std, identity: dict) -> None:
        if side < STRIDE or side % STRIDE:
            raise ValueError(f"side is {side}; expected a multiple of {STRIDE}")
        self.network = network.eval().requires_grad_(False).to(device())
        self.side, self.shape = side, ((side // STRIDE) ** 2, width)
        self.identity = {
            **identity,
            "weights": weights_hash(network),
            "features": list(self.shape),
            "side": side,
            "mean": list(mean),
            "std": list(std),
        }
        self._mean, self._std = (torch.tensor(values, device=device()).view(3, 1, 1) for values in (mean, std))

    @torch.no_grad()
    def maps(self, images) -> np.ndarray:
        """Images (n, 3, H, W), uint8 or float 0..1 -> features float32 (n, *shape)."""
        return self.network((unit_images(images, self.side) - self._mean) / self._std).cpu().numpy()


class ConvNextMaps(CellMaps):
    """The outputs of the maps projector in VICRegL's released full checkpoint: 49 x 512 for an image at 224 x 224.

    path   ``convnext_xlarge_alpha0.75_fullckpt.pth``, or a checkpoint of the same form and other sizes

    Raises UserError naming file and key where the checkpoint is another one, cut, or not of this form.
    """

    def __init__(self, path: str | Path, side: int = SIDE) -> None:
        with released("convnext"):
            network = _read_release(path)
        identity = {
            "encoder": "VICRegL ConvNeXt",
            "depths": network.depths,
            "dims": network.dims,
            "projector": network.widths,
        }
        super().__init__(network, network.widths[-1], side, MEAN, STD, identity)


def _read_release(path: str | Path) -> MapsNetwork:
    tensors = read_state_dict(path, _RELEASE, "model")
    tensors = {key.removeprefix("module."): tensor for key, tensor in tensors.items()}
    tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(_UNUSED)}
    try:
        network = MapsNetwork.like(tensors)
    except ValueError as error:
        raise UserError(f"{path}: {error}, as in {_RELEASE}") from error
    ours = network.by_released_key()
    state = network.state_dict()
    check_fit(tensors, {key: state[name] for key, name in ours.items()}, Path(path), _RELEASE)
    copies = {ours[key]: tensor.to(torch.float32, copy=True) for key, tensor in tensors.items()}
    network.load_state_dict(copies, assign=True)
    return network


class PlainConvNextMaps(CellMaps):
    """The last maps of a ConvNeXt of timm's, for who has no VICRegL checkpoint. No projector: another width.

    Features are as wide as the trunk (2048 for ``convnext_xlarge``, 1024 for ``convnext_base``), so the model's
    ``feature_width`` has to be set to it, and a base trained on the released features does not fit. ``identity`` says so.

    name      timm's, such as ``convnext_base.fb_in22k``
    weights   a file with timm's keys, safetensors or by torch.save; None takes timm's own from the hub

    Raises UserError where timm knows no such ConvNeXt, or the weights cannot be had or are of another network.
    """

    def __init__(self, name: str, weights: str | Path | None = None, side: int = SIDE) -> None:
        architecture = name.split(".")[0]
        if "convnext" not in name or not timm.is_model(architecture):
            raise UserError(f"timm model {name!r}: unknown; expected a ConvNeXt of timm's, such as convnext_base.fb_in22k")
        try:
            network = timm.create_model(name, pretrained=weights is None, num_classes=0)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"timm model {name!r}: not available ({one_line(error)}); expected a known tag and a connection "
                "to the hub, or a file with timm's keys"
            ) from error
        if weights is not None:
            _fill(network, Path(weights), name)
        network.head = nn.Identity()  # it normalises and pools, and no map passes it
        settings = network.pretrained_cfg
        identity = {"encoder": f"timm {architecture}", "projector": "none: features are as wide as the trunk"}
        super().__init__(_Cells(network), network.num_features, side, settings["mean"], settings["std"], identity)


class _Cells(nn.Module):
    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.trunk.forward_features(images).flatten(2).transpose(1, 2)


def _fill(network: nn.Module, path: Path, name: str) -> None:
    expected = f"the weights of timm's {name}, as safetensors or by torch.save"
    tensors = read_state_dict(path, expected)
    tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith("head.fc.")}  # classes
    check_fit(tensors, network.state_dict(), path, expected)
    network.load_state_dict(tensors)


def _released(key: str) -> str:
    for pattern, name in _RENAMED:
        if re.match(pattern, key):
            return re.sub(pattern, name, key)
    raise ValueError(f"{key} has no counterpart in the release")
