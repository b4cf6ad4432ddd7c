"""Do imported MindEye2 checkpoints compute what the public classes compute?

    python benchmarks/parity/mindeye2.py                 compare our bases with the stored fixtures
    python benchmarks/parity/mindeye2.py --peer CLONE    run the public classes and write the fixtures anew

CLONE is a checkout of MedARC-AI/MindEyeV2. Its models.py needs dalle2_pytorch, rotary_embedding_torch,
einops, beartype and diffusers (0.23 with its `diffusers.models.vae`; fixtures are written with it); they may stand
in a folder of their own on PYTHONPATH. What it imports but does not run here (image libraries, CLIP, trainers) is
replaced by empty modules. With --peer only the public side runs, because our package needs a newer diffusers than theirs.

All weights are random, the dead ones, norms and biases too. A fixture holds weights by the released keys,
inputs and outputs; a large tensor of the low-level case has weights of one size and random sign, one bit
each.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import importlib.machinery
import json
import math
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

FIXTURES = Path(__file__).parents[2] / "tests" / "fixtures" / "mindeye2"
# h, voxels of each subject, T, D, blocks, prior (depth, heads, head width) or None, low level, trials
CASES = {
    "one_subject": (32, (50,), 3, 52, 4, (2, 1, 52), False, 3),
    "long_sequence": (
        16,
        (30, 41),
        80,
        24,
        3,
        (2, 3, 40),
        False,
        2,
    ),  # 161 positions reach every bucket of the bias
    "lowlevel": (12, (21, 34), 3, 16, 4, (1, 2, 12), True, 2),
    "without_prior": (24, (40, 33, 57), 5, 20, 2, None, False, 3),
}
PAPER = (4096, (15724,), 256, 1664, 4, (6, 32, 52), True, 0)
NEVER_RUN = (
    "clip",
    "utils",
    "kornia",
    "kornia.filters",
    "kornia.augmentation",
    "resize_right",
    "x_clip",
    "coca_pytorch",
    "vector_quantize_pytorch",
    "open_clip",
    "dalle2_pytorch.tokenizer",
    "dalle2_pytorch.trainer",
    "dalle2_pytorch.trackers",
    "dalle2_pytorch.vqgan_vae",
    "dalle2_pytorch.train_configs",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, metavar="CLONE")
    options = parser.parse_args()
    if options.peer:
        write_fixtures(options.peer)
        return
    print("| case | " + " | ".join(("backbone", "retrieval", "prior", "prior, null", "latents", "features")) + " |")
    for path in sorted(FIXTURES.glob("*.safetensors")):
        with tempfile.TemporaryDirectory() as folder:
            errors = compare(path, Path(folder))
        print(
            f"| {path.stem} | "
            + " | ".join(
                f"{errors[name]:.1e}" if name in errors else "-"
                for name in ("backbone", "retrieval", "prior", "prior_null", "latents", "features")
            )
            + " |"
        )


# ours


def read_fixture(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, str]]:
    """Weights by released key, inputs and outputs by name, and the metadata."""
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, (shape, scale) in json.loads(about["packed"]).items():
        bits = np.unpackbits(tensors[name].numpy())[: math.prod(shape)]
        tensors[name] = torch.from_numpy(bits).float().mul(2).sub(1).mul(scale).view(shape)
    weights = {name.removeprefix("weights/"): t for name, t in tensors.items() if name.startswith("weights/")}
    return weights, {name: t for name, t in tensors.items() if not name.startswith("weights/")}, about


def subject_numbers(weights: dict) -> list[int]:
    """Any numbers: the fixtures' brains are nobody's."""
    return list(range(1, 1 + sum(key.startswith("ridge.") and key.endswith("weight") for key in weights)))


def compare(fixture: Path, folder: Path) -> dict[str, float]:
    """Convert the fixture's weights as a .pth; each output's largest relative error over all subjects."""
    from mindtuner.interop.mindeye2 import convert_mindeye2

    weights, _, _ = read_fixture(fixture)
    torch.save({"epoch": 1, "model_state_dict": weights}, folder / "last.pth")
    convert_mindeye2(folder / "last.pth", folder / "base.safetensors", subject_numbers(weights), text_width=8)
    return output_errors(folder / "base.safetensors", fixture)


@torch.no_grad()
def output_errors(base: Path, fixture: Path) -> dict[str, float]:
    """Largest absolute difference of each output over the largest absolute value of the public one."""
    from mindtuner.training import load_network

    weights, data, _ = read_fixture(fixture)
    network, errors = load_network(base), {}

    def note(name: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        error = ((ours - theirs).abs().max() / theirs.abs().max()).item()
        errors[name] = max(error, errors.get(name, 0.0)) if ours.shape == theirs.shape else math.inf

    for i, number in enumerate(subject_numbers(weights)):
        out = network(data[f"voxels/{i}"], f"subj{number:02d}")
        note("backbone", out.backbone_tokens, data[f"backbone/{i}"])
        note("retrieval", out.retrieval_tokens, data[f"retrieval/{i}"])
        if f"latents/{i}" in data:
            note("latents", out.latents, data[f"latents/{i}"])
            note("features", out.features, data[f"features/{i}"])
        if "noisy" in data:
            always = torch.ones(len(data["time"]), dtype=torch.bool)
            note("prior", network.prior(data["noisy"], data["time"], out.backbone_tokens), data[f"prior/{i}"])
            note(
                "prior_null",
                network.prior(data["noisy"], data["time"], out.backbone_tokens, always, always),
                data[f"prior_null/{i}"],
            )
    return errors


# theirs


def write_fixtures(clone: Path) -> None:
    peer = import_peer(clone)
    commit = subprocess.run(["git", "-C", clone, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    about = {
        "peer": "https://github.com/MedARC-AI/MindEyeV2",
        "commit": commit.stdout.strip(),
        "made_with": f"torch {torch.__version__}, diffusers {sys.modules['diffusers'].__version__}",
    }
    FIXTURES.mkdir(parents=True, exist_ok=True)
    for number, (name, case) in enumerate(CASES.items()):
        tensors, packed = run_case(peer, case, seed=number)
        path = FIXTURES / f"{name}.safetensors"
        save_file(tensors, path, metadata={**about, "packed": json.dumps(packed)})
        print(path, path.stat().st_size)
    with torch.device("meta"):
        shapes = {key: list(tensor.shape) for key, tensor in build(peer, PAPER).state_dict().items()}
    (FIXTURES / "paper_shapes.json").write_text(json.dumps({**about, "shapes": shapes}, indent=0) + "\n")


class Empty(types.ModuleType):
    """Imports from it succeed; nothing of it is used."""

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def import_peer(clone: Path) -> types.SimpleNamespace:
    """The public networks of models.py, and RidgeRegression, which stands in a notebook."""
    for name in ("transformers", "accelerate", "xformers"):  # diffusers 0.23 must not find today's versions
        sys.modules[name] = None
    for name in NEVER_RUN:
        module = Empty(name)
        module.__path__, module.__spec__ = [], importlib.machinery.ModuleSpec(name, None)
        sys.modules[name] = module
    with contextlib.suppress(ImportError):  # where diffusers keeps it today
        sys.modules.setdefault("diffusers.models.vae", importlib.import_module("diffusers.models.autoencoders.vae"))
    sys.path.insert(0, str(clone / "src"))
    import models

    cells = json.loads((clone / "src" / "Train.ipynb").read_text(encoding="utf-8"))["cells"]
    source = next(text for cell in cells if "class RidgeRegression" in (text := "".join(cell["source"])))
    tree = ast.parse(source)
    tree.body = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    found = {"torch": torch}
    exec(compile(tree, "Train.ipynb", "exec"), found)  # the class alone, from the clone that the user names
    return types.SimpleNamespace(models=models, ridge=found["RidgeRegression"])


def build(peer: types.SimpleNamespace, case: tuple) -> torch.nn.Module:
    """The model as the public notebooks put it together."""
    hidden, voxels, tokens, width, blocks, prior, lowlevel, _ = case
    model = torch.nn.Module()
    model.ridge = peer.ridge(list(voxels), out_features=hidden)
    model.backbone = peer.models.BrainNetwork(
        h=hidden,
        in_dim=hidden,
        seq_len=1,
        n_blocks=blocks,
        clip_size=width,
        out_dim=tokens * width,
        blurry_recon=lowlevel,
        clip_scale=1,
    )
    if prior:
        depth, heads, head_dim = prior
        net = peer.models.PriorNetwork(
            dim=width,
            depth=depth,
            dim_head=head_dim,
            heads=heads,
            causal=False,
            num_tokens=tokens,
            learned_query_mode="pos_emb",
        )
        model.diffusion_prior = peer.models.BrainDiffusionPrior(
            net=net,
            image_embed_dim=width,
            condition_on_text_encodings=False,
            timesteps=100,
            cond_drop_prob=0.2,
            image_embed_scale=None,
        )
    return model.eval()


@torch.no_grad()
def run_case(peer: types.SimpleNamespace, case: tuple, seed: int) -> tuple[dict[str, torch.Tensor], dict]:
    hidden, voxels, tokens, width, blocks, prior, lowlevel, n = case
    generator = torch.Generator().manual_seed(seed)
    model = build(peer, case)
    tensors, packed = {}, {}
    for name, parameter in model.named_parameters():
        if name.endswith("rotary_emb.freqs"):
            continue
        draw = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 1:
            gain = name.endswith((".g", "weight"))
            parameter.copy_(gain + 0.3 * draw)
        else:
            scale = math.prod(parameter.shape[1:]) ** -0.5
            if lowlevel and parameter.numel() > 4096:
                bits = (draw > 0).numpy()
                packed[f"weights/{name}"] = (list(parameter.shape), scale)
                tensors[f"weights/{name}"] = torch.from_numpy(np.packbits(bits))
                draw = torch.from_numpy(bits).float() * 2 - 1
            parameter.copy_(scale * draw)
    for name, tensor in model.state_dict().items():
        tensors.setdefault(f"weights/{name}", tensor.clone())
    if prior:
        tensors["noisy"] = torch.randn(n, tokens, width, generator=generator)
        tensors["time"] = torch.randint(0, 100, (n,), generator=generator)
    for i, count in enumerate(voxels):
        tensors[f"voxels/{i}"] = torch.randn(n, count, generator=generator)
        backbone, retrieval, blurry = model.backbone(model.ridge(tensors[f"voxels/{i}"].unsqueeze(1), i))
        tensors[f"backbone/{i}"], tensors[f"retrieval/{i}"] = backbone.clone(), retrieval
        if lowlevel:
            tensors[f"latents/{i}"], tensors[f"features/{i}"] = (t.contiguous() for t in blurry)
        if prior:
            net, noisy, time = model.diffusion_prior.net, tensors["noisy"], tensors["time"]
            tensors[f"prior/{i}"] = net(noisy, time, text_embed=backbone).clone()
            tensors[f"prior_null/{i}"] = net(
                noisy, time, text_embed=backbone, text_cond_drop_prob=1.0, image_cond_drop_prob=1.0
            ).clone()
    return tensors, packed


if __name__ == "__main__":
    main()
