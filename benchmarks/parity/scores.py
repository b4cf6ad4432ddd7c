"""Are the image scores those of the public MindEye2 evaluation, on the same pictures and the same network weights?

    python benchmarks/parity/scores.py                 compare with the stored fixture
    python benchmarks/parity/scores.py --peer CLONE    run the notebook's own cells and write the fixture anew

CLONE is a checkout of MedARC-AI/MindEyeV2. The cells of src/final_evaluations.ipynb that score pictures are run as they
stand, found by their headings. What they would download is made here: weights are random, drawn from each tensor's name,
with batch norms that have seen the pictures (else deep random networks say the same of every picture); a small CLIP of
open_clip's stands for OpenAI's package. Its environment is torchvision 0.16, which resized tensors without
antialiasing; "published" runs under that default, "today" under the one of later versions.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import subprocess
import sys
import tempfile
import types
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

FIXTURE = Path(__file__).parents[2] / "tests" / "fixtures" / "scores" / "mindeye2.safetensors"
PAIRS, CELLS, CELL = 6, 25, 12  # pictures are mosaics of 25 x 25 cells of 12 x 12 pixels: edges that aliasing shows at
HEADINGS = (
    "## 2-way identification",
    "## PixCorr",
    "## SSIM",
    "## AlexNet",
    "## InceptionV3",
    "## CLIP",
    "## Efficient Net",
    "## SwAV",
)
THEIRS = {
    "pixcorr": "pixcorr",
    "ssim": "ssim",
    "alexnet2": "alexnet2",
    "alexnet5": "alexnet5",
    "inception": "inception",
    "clip": "clip_",
    "efficientnet_b1": "effnet",
    "swav": "swav",
}  # our score -> the notebook's variable
SMALL_CLIP = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 256,
    "patch_size": 32,
    "image_size": 224,
    "projection_dim": 48,
}
UNUSED = ("classifier.", "fc.", "AuxLogits.")  # layers after those that are read
WEAK, SHARE = 0.1, 0.4  # spread of gains and biases; how much of its original a painted picture holds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, metavar="CLONE")
    options = parser.parse_args()
    if options.peer:
        write_fixture(options.peer)
    seen, painted, about = read_fixture()
    with tempfile.TemporaryDirectory() as folder:
        write_networks(Path(folder))
        found = {way: ours(Path(folder), seen, painted, way) for way in ("published", "today")}
    print(f"{about['peer']} {about['commit'][:7]}\n\n| score | published | ours | today | ours |\n|---|---:|---:|---:|---:|")
    for score in THEIRS:
        cells = (f"{about[way][score]:.6f} | {found[way][score]:.6f}" for way in found)
        print(f"| {score} | {' | '.join(cells)} |")
    print(f"\nlargest difference {max(abs(about[way][score] - found[way][score]) for way in found for score in THEIRS):.1e}")


# ours


def ours(folder: Path, seen: np.ndarray, painted: np.ndarray, way: str, only: tuple[str, ...] = ()) -> dict[str, float]:
    """Mean scores by the networks in ``folder``, or by some; "today" is the published way but antialiased."""
    import dataclasses

    from mindtuner.evaluation.scores import networks
    from mindtuner.evaluation.scores.images import score_images
    from mindtuner.evaluation.scores.preparation import PUBLISHED

    networks.CLIP_L14 = SMALL_CLIP
    found, missing = networks.find_networks(folder)
    assert not missing
    choices = dataclasses.replace(PUBLISHED, antialias=way == "today")
    scores, _ = score_images(seen, {0: painted}, [one for one in found if not only or one.name in only], choices)
    return {score: float(values.mean()) for score, values in scores[0].items()}


def read_fixture() -> tuple[np.ndarray, np.ndarray, dict]:
    """Seen and painted pictures, uint8 (PAIRS, 3, 300, 300), and what the notebook makes of them."""
    with safe_open(FIXTURE, "np") as file:
        small = {key: file.get_tensor(key) for key in ("seen", "painted")}
        about = {key: value if key in ("peer", "commit") else json.loads(value) for key, value in file.metadata().items()}
    return (*(mosaic(small[key]) for key in ("seen", "painted")), about)


def mosaic(cells: np.ndarray) -> np.ndarray:
    return np.kron(cells, np.ones((1, 1, CELL, CELL), np.uint8))


# random networks, of the published forms and under the published names


def random_weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights drawn from each tensor's name, so that activations keep their size and norms and biases matter."""
    state = {}
    for name, tensor in module.state_dict().items():
        rng, shape = np.random.default_rng(zlib.crc32(name.encode())), tuple(tensor.shape)
        if name.startswith(UNUSED) or not tensor.is_floating_point():
            state[name] = torch.zeros((), dtype=tensor.dtype).expand(shape)
            continue
        draw = torch.from_numpy(rng.standard_normal(shape, np.float32))
        if name.endswith("running_var"):
            draw = 1 + WEAK * draw.abs()
        elif tensor.ndim == 1 and name.endswith("weight"):
            draw = 1 + WEAK * draw
        elif tensor.ndim > 1 and "embedding" not in name:
            draw *= (2 / np.prod(shape[1:])) ** 0.5
        else:
            draw *= WEAK
        state[name] = draw
    return state


def empty_networks() -> dict[str, torch.nn.Module]:
    from torchvision import models
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    with torch.device("meta"):
        return {
            "AlexNet": models.alexnet(),
            "swav": models.resnet50(),
            "EfficientNet_B1": models.efficientnet_b1(),
            "Inception_V3": models.inception_v3(init_weights=False, transform_input=True),
            "clip": CLIPVisionModelWithProjection(CLIPVisionConfig(**SMALL_CLIP)),
        }


@functools.cache
def networks() -> dict[str, dict[str, torch.Tensor]]:
    """Weights of all of them, their batch norms' statistics from the fixture."""
    with safe_open(FIXTURE, "pt") as file:

        def statistics(name: str) -> dict[str, torch.Tensor]:
            start = f"{name}/"
            return {key.removeprefix(start): file.get_tensor(key).float() for key in file.keys() if key.startswith(start)}

        return {name: random_weights(module) | statistics(name) for name, module in empty_networks().items()}


def seen_by_norms(pictures: np.ndarray) -> dict[str, torch.Tensor]:
    """Means and variances of what each batch norm is shown of these pictures, float16, by network and name."""
    found = {}
    for name, module in empty_networks().items():
        norms = {at: part for at, part in module.named_modules() if isinstance(part, torch.nn.BatchNorm2d)}
        if not norms:
            continue
        module.load_state_dict(random_weights(module), assign=True)
        module.eval()
        for norm in norms.values():
            norm.running_mean, norm.running_var = norm.running_mean.clone(), norm.running_var.clone()
            norm.momentum = 1.0
            norm.train()
        with torch.no_grad():
            module((torch.from_numpy(pictures).float() / 255 - 0.45) / 0.225)
        found |= {
            f"{name}/{at}.running_{kind}": getattr(norm, f"running_{kind}").half()
            for at, norm in norms.items()
            if not at.startswith(UNUSED)
            for kind in ("mean", "var")
        }
    return found


def write_networks(folder: Path) -> None:
    """The files that ``mindtuner evaluate --networks`` looks for, SwAV's with the prefix and the extra tensors of its own."""
    made = networks()
    torch.save(made["AlexNet"], folder / "alexnet-owt-7be5be79.pth")
    torch.save(made["Inception_V3"], folder / "inception_v3_google-0cc3c7bd.pth")
    torch.save(made["EfficientNet_B1"], folder / "efficientnet_b1-c27df63c.pth")
    swav = {f"module.{key}": tensor for key, tensor in made["swav"].items() if not key.startswith("fc.")}
    torch.save(
        swav | {"module.prototypes.weight": torch.ones(3, 3), "module.projection_head.0.weight": torch.ones(3, 3)},
        folder / "swav_800ep_pretrain.pth.tar",
    )
    clip = folder / "clip-vit-large-patch14"
    clip.mkdir()
    save_file(made["clip"], clip / "model.safetensors", {"format": "pt"})
    config = {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "vision_config": SMALL_CLIP,
        "text_config": {},
        "projection_dim": SMALL_CLIP["projection_dim"],
    }
    (clip / "config.json").write_text(json.dumps(config))


# theirs


def write_fixture(clone: Path) -> None:
    rng = np.random.default_rng(0)
    seen, other = drawn(rng), drawn(rng)
    painted = np.round(SHARE * seen + (1 - SHARE) * other).astype(np.uint8)
    small = {"seen": torch.from_numpy(seen), "painted": torch.from_numpy(painted)}
    FIXTURE.parent.mkdir(parents=True, exist_ok=True)
    save_file(small | seen_by_norms(mosaic(np.concatenate([seen, painted]))), FIXTURE)
    commit = subprocess.run(["git", "-C", str(clone), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    said = {
        way: json.dumps(theirs(clone, mosaic(seen), mosaic(painted), antialias=way == "today"))
        for way in ("published", "today")
    }
    save_file(
        load_file(FIXTURE),
        FIXTURE,
        {"peer": "MedARC-AI/MindEyeV2 src/final_evaluations.ipynb", "commit": commit.stdout.strip(), **said},
    )
    print(f"{FIXTURE}: {FIXTURE.stat().st_size:,} bytes")


def drawn(rng: np.random.Generator) -> np.ndarray:
    """Cells of pictures unlike one another: a colour, a slope and grain of each, uint8 (PAIRS, 3, CELLS, CELLS)."""
    place = np.stack(np.meshgrid(*[np.linspace(-1, 1, CELLS)] * 2))
    slope = np.einsum("ncd,dhw->nchw", rng.normal(0, 60, (PAIRS, 3, 2)), place)
    grain = rng.uniform(5, 60, (PAIRS, 1, 1, 1)) * rng.standard_normal((PAIRS, 3, CELLS, CELLS))
    return np.clip(rng.uniform(40, 215, (PAIRS, 3, 1, 1)) + slope + grain, 0, 255).round().astype(np.uint8)


def theirs(clone: Path, seen: np.ndarray, painted: np.ndarray, antialias: bool) -> dict[str, float]:
    """The notebook's numbers, by its own cells."""
    from torchvision import transforms
    from tqdm import tqdm

    images = [torch.from_numpy(pictures).float() / 255 for pictures in (seen, painted)]
    old = types.SimpleNamespace(
        Resize=functools.partial(transforms.Resize, antialias=antialias),
        Compose=transforms.Compose,
        Normalize=transforms.Normalize,
        InterpolationMode=transforms.InterpolationMode,
    )
    names = {
        "np": np,
        "torch": torch,
        "transforms": old,
        "tqdm": tqdm,
        "device": "cpu",
        "model_name_plus_suffix": "plain",
        "all_images": images[0],
        "all_recons": images[1],
        "all_blurryrecons": images[1],
    }
    with downloads_replaced():
        for source in cells_of(clone / "src" / "final_evaluations.ipynb"):
            exec(compile(source, "final_evaluations.ipynb", "exec"), names)  # noqa: S102 (a checkout that the caller chose)
    return {score: float(names[variable]) for score, variable in THEIRS.items()}


def cells_of(notebook: Path) -> list[str]:
    """The cell that brings pictures to one size, and the code under each of HEADINGS where it stands first."""
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(notebook.read_text())["cells"]]
    sized = next(source for kind, source in cells if kind == "code" and source.startswith("imsize"))
    found = [sized]
    for heading in HEADINGS:
        at = next(k for k, (kind, source) in enumerate(cells) if kind == "markdown" and source.strip() == heading)
        found.append(cells[at + 1][1])
    return found


@contextlib.contextmanager
def downloads_replaced():
    """Random weights where the notebook would download: torchvision's, SwAV's by torch.hub, OpenAI's package ``clip``."""
    from torchvision.models import resnet50
    from torchvision.models._api import WeightsEnum

    before, hub, package = WeightsEnum.get_state_dict, torch.hub.load, sys.modules.get("clip")
    made = networks()

    def swav(*_):
        module = resnet50()
        module.load_state_dict(made["swav"])
        return module

    WeightsEnum.get_state_dict = lambda self, *_, **__: made[type(self).__name__.removesuffix("_Weights")]
    torch.hub.load = swav
    sys.modules["clip"] = types.SimpleNamespace(load=lambda name, device: (their_clip(made["clip"]), None))
    try:
        yield
    finally:
        WeightsEnum.get_state_dict, torch.hub.load = before, hub
        sys.modules.pop("clip")
        if package is not None:
            sys.modules["clip"] = package


def their_clip(state: dict[str, torch.Tensor]) -> torch.nn.Module:
    """open_clip's form of OpenAI's CLIP, with the weights that transformers' has under other names."""
    from open_clip.model import CLIP

    config = SMALL_CLIP
    module = CLIP(
        config["projection_dim"],
        {
            "image_size": 224,
            "layers": config["num_hidden_layers"],
            "width": config["hidden_size"],
            "patch_size": config["patch_size"],
            "head_width": config["hidden_size"] // config["num_attention_heads"],
        },
        {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1},
        quick_gelu=True,
    )
    at = "vision_model."
    visual = {
        "class_embedding": state[f"{at}embeddings.class_embedding"],
        "positional_embedding": state[f"{at}embeddings.position_embedding.weight"],
        "conv1.weight": state[f"{at}embeddings.patch_embedding.weight"],
        "proj": state["visual_projection.weight"].T,
    }
    for end in ("weight", "bias"):
        visual |= {f"ln_pre.{end}": state[f"{at}pre_layrnorm.{end}"], f"ln_post.{end}": state[f"{at}post_layernorm.{end}"]}
        for k in range(config["num_hidden_layers"]):
            here, there = f"{at}encoder.layers.{k}.", f"transformer.resblocks.{k}."
            visual[f"{there}attn.in_proj_{end}"] = torch.cat([state[f"{here}self_attn.{part}_proj.{end}"] for part in "qkv"])
            for theirs_, ours_ in (
                ("attn.out_proj", "self_attn.out_proj"),
                ("ln_1", "layer_norm1"),
                ("ln_2", "layer_norm2"),
                ("mlp.c_fc", "mlp.fc1"),
                ("mlp.c_proj", "mlp.fc2"),
            ):
                visual[f"{there}{theirs_}.{end}"] = state[f"{here}{ours_}.{end}"]
    module.visual.load_state_dict(visual)
    return module.eval()


if __name__ == "__main__":
    main()
