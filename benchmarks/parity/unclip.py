"""Does the converted unCLIP generator compute what the public classes compute?

    python benchmarks/parity/unclip.py                 compare our conversion with the stored fixtures
    python benchmarks/parity/unclip.py --peer CLONE    run the public classes and write the fixtures anew

CLONE is a checkout of MedARC-AI/MindEyeV2; its src/generative_models holds Stability's sgm, which needs einops and
omegaconf (they may stand in a folder of their own on PYTHONPATH). What it imports but does not run here is
replaced by empty modules.

All weights are random, those that training starts at zero too, and drawn from NumPy's RandomState, whose stream is frozen:
a fixture holds the seed, each key's shape, inputs and outputs.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.machinery
import json
import logging
import math
import subprocess
import sys
import tempfile
import types
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

FIXTURES = Path(__file__).parents[2] / "tests" / "fixtures" / "unclip"
UNET = dict(
    in_channels=4,
    out_channels=4,
    num_head_channels=64,
    use_linear_in_transformer=True,
    use_checkpoint=False,
    num_classes="sequential",
    adm_in_channels=1024,
    spatial_transformer_attn_type="softmax-xformers",
)
VAE = dict(double_z=True, z_channels=4, resolution=32, in_channels=3, out_ch=3, attn_resolutions=[])
CASES = {
    "published_form": (
        dict(
            model_channels=32,
            channel_mult=[1, 2, 4],
            transformer_depth=[1, 2, 3],
            attention_resolutions=[4, 2],
            num_res_blocks=2,
            context_dim=24,
        ),
        dict(ch=32, ch_mult=[1, 2, 2, 2], num_res_blocks=2),
    ),
    "attention_everywhere": (
        dict(
            model_channels=64,
            channel_mult=[1, 2],
            transformer_depth=[1, 2],
            attention_resolutions=[1, 2],
            num_res_blocks=1,
            context_dim=40,
        ),
        dict(ch=32, ch_mult=[1, 3], num_res_blocks=1),
    ),
}
PAPER = (
    dict(
        model_channels=320,
        channel_mult=[1, 2, 4],
        transformer_depth=[1, 2, 10],
        attention_resolutions=[4, 2],
        num_res_blocks=2,
        context_dim=1664,
    ),
    dict(ch=128, ch_mult=[1, 2, 4, 4], num_res_blocks=2),
)
STEPS, GUIDANCE = 6, 5.0
OUTPUTS = ("unet", "moments", "decoded", "vector", "times", "sigmas", "sampled")
NEVER_RUN = ("kornia", "open_clip", "fsspec", "transformers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, metavar="CLONE")
    options = parser.parse_args()
    if options.peer:
        write_fixtures(options.peer)
        return
    print(f"| case | {' | '.join(OUTPUTS)} |")
    for path in sorted(FIXTURES.glob("*.safetensors")):
        with tempfile.TemporaryDirectory() as folder:
            errors = compare(path, Path(folder))
        print(f"| {path.stem} | {' | '.join(f'{errors[name]:.1e}' for name in OUTPUTS)} |")


# ours


def random_weights(shapes: dict[str, list[int]], seed: int) -> dict[str, torch.Tensor]:
    """Matrices of unit gain, norms around 1, biases around 0."""
    weights = {}
    for key, shape in shapes.items():
        draw = np.random.RandomState(zlib.crc32(f"{seed}:{key}".encode())).standard_normal(shape)
        if len(shape) > 1:
            draw *= math.prod(shape[1:]) ** -0.5
        else:
            draw = 0.3 * draw + key.endswith("weight")
        weights[key] = torch.from_numpy(draw).float()
    return weights


def read_fixture(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, str]]:
    """State dict of the checkpoint, inputs and outputs by name, and the metadata."""
    with safe_open(path, framework="pt") as file:
        about, data = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    weights = random_weights(json.loads(about["shapes"]), int(about["seed"]))
    weights["denoiser.sigmas"] = data["denoiser.sigmas"]
    return weights, data, about


def compare(fixture: Path, folder: Path) -> dict[str, float]:
    """Convert the fixture's weights from a .ckpt; each output's largest error over the largest value of theirs."""
    from mindtuner.interop.unclip import convert_unclip

    weights, data, _ = read_fixture(fixture)
    torch.save({"state_dict": weights, "epoch": 0}, folder / "unclip.ckpt")
    convert_unclip(folder / "unclip.ckpt", folder / "unclip")
    return output_errors(folder / "unclip", data)


@torch.no_grad()
def output_errors(folder: Path, data: dict[str, torch.Tensor]) -> dict[str, float]:
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel

    from mindtuner.generators.unclip import sample, size_and_crop, times

    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet").eval()
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae").eval()
    scheduler = EulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler")
    ours = {
        "unet": unet(data["noisy"], data["time"], data["tokens"], class_labels=data["y"]).sample,
        "moments": vae.encode(data["image"]).latent_dist.parameters,
        "decoded": vae.decode(data["latents"]).sample,
        "vector": size_and_crop(768, 2),
        "times": torch.tensor(times(scheduler, 38)),
        "sampled": sample(unet, scheduler, data["start"], data["tokens"], data["null"], data["vector"], STEPS, GUIDANCE),
    }
    scheduler.set_timesteps(timesteps=times(scheduler, 38))
    ours["sigmas"] = scheduler.sigmas
    return {name: ((ours[name] - data[name]).abs().max() / data[name].abs().max()).item() for name in OUTPUTS}


# theirs


def write_fixtures(clone: Path) -> None:
    peer = import_peer(clone)
    commit = subprocess.run(["git", "-C", clone, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    about = {
        "peer": "https://github.com/MedARC-AI/MindEyeV2",
        "commit": commit.stdout.strip(),
        "made_with": f"torch {torch.__version__}",
    }
    FIXTURES.mkdir(parents=True, exist_ok=True)
    for seed, (name, case) in enumerate(CASES.items()):
        data, shapes = run_case(peer, case, seed)
        path = FIXTURES / f"{name}.safetensors"
        save_file(data, path, metadata={**about, "seed": str(seed), "shapes": json.dumps(shapes)})
        print(path, path.stat().st_size)
    with torch.device("meta"):
        shapes = {key: list(t.shape) for key, t in build(peer, PAPER).state_dict().items()}
    (FIXTURES / "paper_shapes.json").write_text(json.dumps({**about, "shapes": shapes}, separators=(",", ":")) + "\n")


def import_peer(clone: Path) -> types.SimpleNamespace:
    """The public networks, denoiser and sampler, past the packages' own __init__, which load the trainers."""
    for name in NEVER_RUN:
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__getattr__ = lambda attribute: type(attribute, (), {})
    logging.disable(logging.WARNING)  # sgm says for each block that xformers is not there
    root = clone / "src" / "generative_models"
    for name in ("sgm", "sgm.modules", "sgm.modules.encoders"):
        package = types.ModuleType(name)
        package.__path__ = [str(root / name.replace(".", "/"))]
        package.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        sys.modules[name] = package
    part = lambda name: importlib.import_module(f"sgm.modules.{name}")
    return types.SimpleNamespace(
        unet=part("diffusionmodules.openaimodel").UNetModel,
        vae=part("diffusionmodules.model"),
        denoiser=part("diffusionmodules.denoiser").DiscreteDenoiser,
        wrapper=part("diffusionmodules.wrappers").OpenAIWrapper,
        sampler=part("diffusionmodules.sampling").EulerEDMSampler,
        fourier=part("encoders.modules").ConcatTimestepEmbedderND,
    )


def build(peer: types.SimpleNamespace, case: tuple[dict, dict]) -> torch.nn.Module:
    """The parts of their DiffusionEngine that hold weights, under its names. Its autoencoder adds two 1 x 1 convolutions
    to encoder and decoder: moments = quant_conv(encoder(x)), picture = decoder(post_quant_conv(z))."""
    engine = torch.nn.Module()
    engine.model = peer.wrapper(peer.unet(**UNET, **case[0]))
    engine.first_stage_model = torch.nn.Module()
    engine.first_stage_model.encoder = peer.vae.Encoder(**VAE, **case[1])
    engine.first_stage_model.decoder = peer.vae.Decoder(**VAE, **case[1])
    engine.first_stage_model.quant_conv = torch.nn.Conv2d(8, 8, 1)
    engine.first_stage_model.post_quant_conv = torch.nn.Conv2d(4, 4, 1)
    return engine.eval()


@torch.no_grad()
def run_case(peer: types.SimpleNamespace, case: tuple[dict, dict], seed: int) -> tuple[dict[str, torch.Tensor], dict]:
    engine, at = build(peer, case), "sgm.modules.diffusionmodules."
    shapes = {key: list(tensor.shape) for key, tensor in engine.state_dict().items()}
    engine.load_state_dict(random_weights(shapes, seed))
    discretization = {"target": at + "discretizer.LegacyDDPMDiscretization"}
    denoiser = peer.denoiser({"target": at + "denoiser_scaling.EpsScaling"}, 1000, discretization)
    sampler = peer.sampler(
        discretization_config=discretization,
        num_steps=STEPS,
        device="cpu",
        guider_config={"target": at + "guiders.VanillaCFG", "params": {"scale": GUIDANCE}},
    )
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)
    width = case[0]["context_dim"]
    fourier = peer.fourier(256)
    data = {
        "noisy": draw(2, 4, 8, 8),
        "time": torch.tensor([17, 903]),
        "tokens": draw(2, 5, width),
        "null": draw(2, 5, width),
        "y": draw(2, 1024),
        "image": draw(1, 3, 32, 32),
        "latents": draw(1, 4, 4, 4),
    }
    data["vector"] = torch.cat([fourier(torch.full((2, 2), 768.0)), fourier(torch.zeros(2, 2))], 1)
    vae = engine.first_stage_model
    data["unet"] = engine.model(data["noisy"], data["time"], {"crossattn": data["tokens"], "vector": data["y"]})
    data["moments"] = vae.quant_conv(vae.encoder(data["image"]))
    data["decoded"] = vae.decoder(vae.post_quant_conv(data["latents"]))
    data["sigmas"] = sampler.discretization(38)
    data["times"] = denoiser.sigma_to_idx(data["sigmas"][:-1])
    start = draw(2, 4, 8, 8)
    data["start"] = start * torch.sqrt(1 + sampler.discretization(STEPS)[0] ** 2)
    data["sampled"] = sampler(
        lambda x, sigma, c: denoiser(engine.model, x, sigma, c),
        start.clone(),
        cond={"crossattn": data["tokens"], "vector": data["vector"]},
        uc={"crossattn": data["null"], "vector": data["vector"]},
    )
    data["denoiser.sigmas"] = denoiser.sigmas
    return {name: tensor.contiguous() for name, tensor in data.items()}, shapes


if __name__ == "__main__":
    main()
