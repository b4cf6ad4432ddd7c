"""Does ConvNextMaps compute what the public class that trained MindEye2's bases computes?

    python benchmarks/parity/convnext.py                 compare with the stored fixture
    python benchmarks/parity/convnext.py --peer CLONE    run the public class and write the fixture anew

CLONE is a checkout of MedARC-AI/MindEyeV2. Its src/autoencoder/convnext.py holds VICRegL's trunk and the class around it,
which has its sizes written in, so trunk and projector are made small through the module's own functions. All weights are
random, norms and biases too; some layers in front of a norm are so weak that its eps counts. The class reads them from a
checkpoint of the released form, and sees images standardised by the numbers in src/Train.ipynb.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

FIXTURES = Path(__file__).parents[2] / "tests" / "fixtures" / "convnext"
SMALL, SHAPES = FIXTURES / "small.safetensors", FIXTURES / "paper_shapes.json"
DEPTHS, DIMS, PROJECTOR, SIDE, IMAGES = (1, 2, 3, 1), (8, 12, 20, 28), "18-14-10", 96, 3
WEAK = {  # the spread of what a norm sees is then about the root of its eps
    "backbone.downsample_layers.0.0.weight": 1e-3,
    "backbone.downsample_layers.0.0.bias": 1e-3,
    "backbone.stages.1.0.dwconv.weight": 1e-3,
    "backbone.stages.1.0.dwconv.bias": 1e-3,
    "maps_projector.0.weight": 3e-3,
    "maps_projector.0.bias": 3e-3,
    "maps_projector.3.weight": 3e-3,
    "maps_projector.3.bias": 3e-3,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, metavar="CLONE")
    options = parser.parse_args()
    if options.peer:
        write_fixtures(options.peer)
        return
    weights, images, features, about = read_fixture()
    with tempfile.TemporaryDirectory() as folder:
        found = torch.from_numpy(ours(write_checkpoint(Path(folder) / "small.pth", weights), images))
    print(
        f"{about['peer']} {about['commit'][:7]}: largest difference {(found - features).abs().max():.1e} "
        f"of features with standard deviation {features.std():.2f}"
    )


# ours


def ours(checkpoint: Path, images: torch.Tensor):
    from mindtuner.towers.convnext_maps import ConvNextMaps

    return ConvNextMaps(checkpoint, side=SIDE).maps(images)


def read_fixture() -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor, dict[str, str]]:
    """Weights by released key, images float (n, 3, 96, 96) in 0..1, their features (n, 9, 10), and the metadata."""
    with safe_open(SMALL, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = file.metadata()
    weights = {name.removeprefix("weights/"): t for name, t in tensors.items() if name.startswith("weights/")}
    return weights, tensors["images"].float() / 255, tensors["features"], about


def write_checkpoint(path: Path, weights: dict[str, torch.Tensor]) -> Path:
    """As VICRegL saves one: names behind ``module.``, beside what an optimiser needs, with parts for the global loss."""
    others = {"projector.0.weight": torch.zeros(4, 28), "classifier.weight": torch.zeros(5, 28)}
    model = {f"module.{name}": tensor for name, tensor in {**weights, **others}.items()}
    torch.save({"epoch": 300, "model": model, "optimizer": {"state": {}, "param_groups": []}}, path)
    return path


# theirs


def write_fixtures(clone: Path) -> None:
    sys.path.insert(0, str(clone / "src"))
    from autoencoder import convnext as peer

    commit = subprocess.run(["git", "-C", clone, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    about = {
        "peer": "https://github.com/MedARC-AI/MindEyeV2",
        "commit": commit.stdout.strip(),
        "made_with": f"torch {torch.__version__}",
    }
    FIXTURES.mkdir(parents=True, exist_ok=True)
    shapes = {name: list(tensor.shape) for name, tensor in at_paper_size(peer).state_dict().items()}
    SHAPES.write_text(json.dumps({**about, "shapes": shapes}, indent=0) + "\n", encoding="utf-8")

    class_mlp = peer.MLP
    peer.convnext_xlarge = lambda: (peer.ConvNeXt(depths=list(DEPTHS), dims=list(DIMS)), DIMS[-1])
    peer.MLP = lambda spec, width, norm: class_mlp(PROJECTOR, DIMS[-1], norm)
    source = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.pth"
        torch.save({"model": {}}, path)
        weights = {name: random_like(name, tensor, source) for name, tensor in peer.ConvnextXL(path).state_dict().items()}
        network = peer.ConvnextXL(write_checkpoint(path, weights)).eval()
    images = torch.randint(0, 256, (IMAGES, 3, SIDE, SIDE), generator=source, dtype=torch.uint8)
    images[0] //= 32  # nearly black
    mean, std = standardisation(clone)
    with torch.no_grad():
        _, features = network((images.float() / 255 - mean) / std)
    tensors = {f"weights/{name}": tensor for name, tensor in weights.items()}
    save_file({**tensors, "images": images, "features": features}, SMALL, metadata=about)
    for path in (SMALL, SHAPES):
        print(path, path.stat().st_size)


def at_paper_size(peer) -> torch.nn.Module:
    """The public class without values; only the depths of its stochastic layers are real numbers, read as such."""
    linspace, torch.linspace = torch.linspace, functools.partial(torch.linspace, device="cpu")
    load, torch.load = torch.load, lambda *_, **__: {"model": {}}
    try:
        with torch.device("meta"):
            return peer.ConvnextXL("")
    finally:
        torch.linspace, torch.load = linspace, load


def random_like(name: str, tensor: torch.Tensor, source: torch.Generator) -> torch.Tensor:
    draw = torch.randn(tensor.shape, generator=source)
    if tensor.dim() == 1:
        value = name.endswith("weight") + 0.3 * draw
    else:
        value = draw * math.prod(tensor.shape[1:]) ** -0.5
    return value * WEAK.get(name, 1)


def standardisation(clone: Path) -> list[torch.Tensor]:
    """Mean and spread (3, 1, 1) as the training notebook writes them down."""
    cells = json.loads((clone / "src" / "Train.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "".join(line for cell in cells for line in cell["source"])
    found = [re.search(rf"\b{name} = torch\.tensor\((\[[\d., ]+\])\)", text)[1] for name in ("mean", "std")]
    return [torch.tensor(json.loads(numbers)).view(3, 1, 1) for numbers in found]


if __name__ == "__main__":
    main()
