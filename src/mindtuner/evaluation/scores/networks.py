"""The networks that look at pictures for the scores: which file each comes from, what it is shown, what is read from it.

Each is the model class of torchvision, transformers or timm, with weights from a local folder; none is downloaded here.
Nothing else of the project may use them, so that no method is scored by what it was trained to please.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from mindtuner.errors import UserError
from mindtuner.evaluation.scores import catalogue
from mindtuner.files import file_digest
from mindtuner.thirdparty import check_fit, load_part, read_state_dict

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
CLIP_L14 = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "patch_size": 14,
    "image_size": 224,
    "projection_dim": 768,
}
ENDINGS = (".safetensors", ".pth", ".pt", ".pth.tar")
PROJECTOR = ("projection_head.", "prototypes.")  # of SwAV's training, beside its ResNet


@dataclass(frozen=True)
class Network:
    """A network, ready to be loaded.

    ``side``, ``mean``, ``std``: what it is shown, (x - mean) / std of pictures side x side in 0..1 · ``load``: gives the
    module, which maps such a batch to {score: features (n, ...)} · ``layers``: of which layer, by score · ``identity``: its
    weights, for the setting of a run
    """

    name: str
    label: str
    side: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    layers: dict[str, str]
    load: Callable[[], nn.Module]
    identity: str

    def described(self) -> dict:
        """In words, for the setting of a run."""
        return {"network": self.label, "weights": self.identity, "side": self.side, "layers": self.layers}


@dataclass(frozen=True)
class _Form:
    """A network that the published evaluation uses, and how its file is known in a folder: by how its name begins."""

    label: str
    begins: str
    what: str
    side: int
    normalisation: tuple
    layers: dict[str, str]
    build: Callable[[Path, dict[str, str]], nn.Module]


def find_networks(folder: Path | None) -> tuple[list[Network], dict[str, str]]:
    """The published evaluation's networks that a folder has, and for each score that it cannot have, why: {score: reason}.

    A network is found by how its file's name begins: alexnet, inception_v3, efficientnet_b1, swav (torchvision's and SwAV's
    own names do), or the folder clip-vit-large-patch14. Files are not opened yet. Raises UserError where there is no such
    folder, or two files could be one network's.
    """
    if folder is not None and not folder.is_dir():
        raise UserError(
            f"{folder}: is no folder; expected one with some of {', '.join(form.what for form in FORMS.values())}"
        )
    found, missing = [], {}
    for name, form in FORMS.items():
        path = None if folder is None else _path(folder, form)
        if path is None:
            reason = "needs mindtuner evaluate --networks DIR" if folder is None else f"no {form.begins} file in {folder}"
            missing |= dict.fromkeys(form.layers, reason)
            continue
        weights = path / "model.safetensors" if path.is_dir() else path
        if not weights.is_file():
            raise UserError(f"{weights}: not found; expected {form.what}")
        found.append(
            Network(
                name,
                form.label,
                form.side,
                *form.normalisation,
                form.layers,
                lambda form=form, path=path: form.build(path, form.layers).eval().requires_grad_(False),
                f"{path.name} {file_digest(weights)[:16]}",
            )
        )
    return found, missing


def not_scored(missing: dict[str, str]) -> str:
    """One line that names what is left out, and why; nothing where nothing is."""
    reasons: dict[str, list[str]] = {}
    for score, reason in missing.items():
        reasons.setdefault(reason, []).append(score)
    return "; ".join(f"not scored: {', '.join(scores)} ({reason})" for reason, scores in reasons.items())


def _path(folder: Path, form: _Form) -> Path | None:
    if form.build is _clip:
        return folder / form.begins if (folder / form.begins).is_dir() else None
    found = sorted(path for path in folder.glob(f"{form.begins}*") if path.name.endswith(ENDINGS))
    if len(found) > 1:
        raise UserError(f"{folder}: {' and '.join(path.name for path in found)} could both be {form.label}; expected one")
    return found[0] if found else None


def _layers_of(module: nn.Module, layers: dict[str, str]) -> nn.Module:
    from torchvision.models.feature_extraction import create_feature_extractor

    with warnings.catch_warnings():  # that training would take other branches
        warnings.simplefilter("ignore")
        return create_feature_extractor(module.eval(), {layer: score for score, layer in layers.items()})


def _filled(module: nn.Module, state: dict[str, torch.Tensor], path: Path, expected: str) -> nn.Module:
    """``module`` with exactly these weights; counters of batches, which older files lack, do nothing in evaluation."""
    counter = "num_batches_tracked"
    state = {key: tensor for key, tensor in state.items() if not key.endswith(counter)}
    wanted = {key: tensor for key, tensor in module.state_dict().items() if not key.endswith(counter)}
    check_fit(state, wanted, path, expected)
    module.load_state_dict(state, strict=False)
    return module


def _alexnet(path: Path, layers: dict[str, str]) -> nn.Module:
    from torchvision.models import alexnet

    expected = "torchvision's AlexNet"
    return _layers_of(_filled(alexnet(), read_state_dict(path, expected), path, expected), layers)


def _inception_v3(path: Path, layers: dict[str, str]) -> nn.Module:
    from torchvision.models import inception_v3

    # transform_input: the weights came from elsewhere, and want images scaled otherwise; torchvision sets it with them
    expected, module = "torchvision's Inception-v3", inception_v3(transform_input=True, aux_logits=True, init_weights=False)
    return _layers_of(_filled(module, read_state_dict(path, expected), path, expected), layers)


def _efficientnet_b1(path: Path, layers: dict[str, str]) -> nn.Module:
    from torchvision.models import efficientnet_b1

    expected = "torchvision's EfficientNet-B1"
    return _layers_of(_filled(efficientnet_b1(), read_state_dict(path, expected), path, expected), layers)


def _swav(path: Path, layers: dict[str, str]) -> nn.Module:
    from torchvision.models import resnet50

    expected = "SwAV's ResNet-50"
    state = {key.removeprefix("module."): tensor for key, tensor in read_state_dict(path, expected).items()}
    module = resnet50()
    module.fc = nn.Identity()  # SwAV trains none
    state = {key: tensor for key, tensor in state.items() if not key.startswith((*PROJECTOR, "fc."))}
    return _layers_of(_filled(module, state, path, expected), layers)


def _clip(path: Path, layers: dict[str, str]) -> nn.Module:
    from transformers import CLIPVisionModelWithProjection

    module = load_part(CLIPVisionModelWithProjection, path, torch.float32)
    for field, wanted in CLIP_L14.items():
        if (found := getattr(module.config, field)) != wanted:
            raise UserError(f"{path / 'config.json'}: vision_config.{field} is {found}; expected {wanted}, CLIP ViT-L/14")
    return _Clip(module)


class _Clip(nn.Module):
    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"clip": self.module(pixel_values=pixels).image_embeds}


FORMS = {
    "alexnet": _Form(
        "AlexNet",
        "alexnet",
        "torchvision's alexnet-owt-7be5be79.pth",
        256,
        IMAGENET,
        {"alexnet2": "features.4", "alexnet5": "features.11"},
        _alexnet,
    ),
    "inception_v3": _Form(
        "Inception-v3",
        "inception_v3",
        "torchvision's inception_v3_google-0cc3c7bd.pth",
        342,
        IMAGENET,
        {"inception": "avgpool"},
        _inception_v3,
    ),
    "clip_vit_l14": _Form(
        "CLIP ViT-L/14",
        "clip-vit-large-patch14",
        "the folder clip-vit-large-patch14 with config.json and model.safetensors",
        224,
        CLIP,
        {"clip": "image_embeds"},
        _clip,
    ),
    "efficientnet_b1": _Form(
        "EfficientNet-B1",
        "efficientnet_b1",
        "torchvision's efficientnet_b1-c27df63c.pth",
        255,
        IMAGENET,
        {"efficientnet_b1": "avgpool"},
        _efficientnet_b1,
    ),
    "swav_resnet50": _Form(
        "SwAV-ResNet50", "swav", "SwAV's swav_800ep_pretrain.pth.tar", 224, IMAGENET, {"swav": "avgpool"}, _swav
    ),
}
assert {score.name: score.network for score in catalogue.SCORES if score.network} == {
    score: name for name, form in FORMS.items() for score in form.layers
}
