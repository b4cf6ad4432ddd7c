"""What the full-size networks need on a GPU: the tables of benchmarks/results/full_size_memory.md.

    python benchmarks/full_size_memory.py [--write benchmarks/results/full_size_memory.md]

Every network is built, and every pass run, on torch's meta device, where a tensor has a shape and no numbers: parameters
are counted, and activations are the most bytes that one pass holds beside the weights. All of it is computed, nothing
measured. Attention is counted as if written out, which fused kernels do not do. Shapes are those of the published classes:
open_clip's ViT-bigG-14, the unCLIP checkpoint (tests/fixtures/unclip), SDXL base 1.0, GIT-large, VICRegL's ConvNeXt-XL
(timm's convnext_xlarge).

``--write`` puts the tables between the file's ``memory:begin`` and ``memory:end`` comments.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import diffusers
import open_clip
import timm
import torch
import transformers
from pages import write_between

from mindtuner.config import load_config
from mindtuner.data.nsd import VOXELS as NSD_VOXELS
from mindtuner.interop.unclip_keys import read_unet, read_vae
from mindtuner.training.sizes import (
    META,
    PeakMemory,
    build_base,
    build_tuned,
    inference_memory,
    training_memory,
)

SHAPES = Path(__file__).parent.parent / "tests" / "fixtures" / "unclip" / "paper_shapes.json"
CARDS = (24, 40, 80)
RESERVE = 2.0  # GiB of a card that nothing of ours is put into: CUDA's context, cuDNN's workspaces, the allocator's gaps
VOXELS = {f"subj{k + 1:02d}": count for k, count in enumerate(NSD_VOXELS)}
SIDE = 768
GIB = 2**30
TEXT_TOWERS = (  # of SDXL: (width, layers, heads, inner width, projection)
    (768, 12, 12, 3072, 768),
    (1280, 32, 20, 5120, 1280),
)
SDXL_UNET = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


@dataclass(frozen=True)
class Need:
    """One stage: parameters and bytes of its weights, bytes that do not grow with the batch beside them, and bytes of
    activations for one, and for two of a batch."""

    stage: str
    parameters: int
    weights: int
    one: int
    two: int
    what: str

    @property
    def each(self) -> int:
        """Bytes that each further one of a batch adds."""
        return self.two - self.one

    def largest_batch(self, card: int) -> int:
        left = (card - RESERVE) * GIB - self.weights - self.one
        return 0 if left < 0 else 1 + int(left // max(1, self.each))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, metavar="FILE")
    options = parser.parse_args()
    parts = networks()
    text = "\n\n".join([table_of_parameters(parts), table_of_stages(parts)])
    print(text)
    if options.write:
        write_between(options.write, "memory", text)


def networks() -> dict[str, torch.nn.Module]:
    """All networks but the brain's, on the meta device, in the number formats that they are used in on a GPU."""
    shapes = {key: torch.empty(shape, device=META) for key, shape in json.loads(SHAPES.read_text())["shapes"].items()}
    vae = read_vae(shapes, SHAPES)
    with META:
        clip = open_clip.create_model("ViT-bigG-14", pretrained=None, device=META)
        found = {
            "image tower of ViT-bigG/14": clip.visual,
            "convnext": timm.create_model("convnext_xlarge", num_classes=0),
            "autoencoder": diffusers.AutoencoderKL(**vae),
            "unclip": diffusers.UNet2DConditionModel(**read_unet(shapes, SHAPES)).half(),
            "sdxl": diffusers.UNet2DConditionModel(**SDXL_UNET).half(),
            "git": transformers.GitForCausalLM(
                transformers.GitConfig(
                    vision_config={
                        "hidden_size": 1024,
                        "intermediate_size": 4096,
                        "num_hidden_layers": 24,
                        "num_attention_heads": 16,
                        "image_size": 224,
                        "patch_size": 14,
                    }
                )
            ).half(),
        }
        found["git"].git.image_encoder = torch.nn.Identity()  # the predicted tokens stand in its place
        clip.visual = torch.nn.Identity()
        found["autoencoder"].enable_slicing()  # as the generators do it: pictures pass one by one
        found["text tower of ViT-bigG/14"] = clip
        for k, (width, layers, heads, inner, projection) in enumerate(TEXT_TOWERS):
            form = transformers.CLIPTextConfig(
                hidden_size=width,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                intermediate_size=inner,
                projection_dim=projection,
            )
            kind = transformers.CLIPTextModelWithProjection if k else transformers.CLIPTextModel
            found[f"words {k + 1}"] = kind(form).half()
    return {name: network.eval().requires_grad_(False) for name, network in found.items()}


def table_of_parameters(parts: dict[str, torch.nn.Module]) -> str:
    words = parts["words 1"], parts["words 2"]
    rows = [
        ("image tower of ViT-bigG/14, float32", parts["image tower of ViT-bigG/14"]),
        ("text tower of ViT-bigG/14, float32", parts["text tower of ViT-bigG/14"]),
        ("ConvNeXt-XL of the low-level features, float32", parts["convnext"]),
        ("autoencoder of the low level, float32", parts["autoencoder"]),
        ("unCLIP UNet, float16", parts["unclip"]),
        ("unCLIP autoencoder, float32", parts["autoencoder"]),
        ("SDXL UNet, float16", parts["sdxl"]),
        ("SDXL text towers, float16", words),
        ("SDXL autoencoder, float32 while it works", parts["autoencoder"]),
        ("GIT-large without its image tower, float16", parts["git"]),
    ]
    lines = ["| weights | parameters | GiB |", "|---|---:|---:|"]
    lines += [f"| {name} | {count(part):,} | {size(part) / GIB:.2f} |" for name, part in rows]
    return "\n".join(lines)


def table_of_stages(parts: dict[str, torch.nn.Module]) -> str:
    found = [*brain_stages(), *tower_stages(parts), *painting_stages(parts)]
    lines = [
        "| stage | weights and what trains with them | for one | each further | "
        + " | ".join(f"{card} GB" for card in CARDS)
        + " |",
        "|---|---:|---:|---:|" + "---:|" * len(CARDS),
    ]
    for need in found:
        fits = [need.largest_batch(card) for card in CARDS]
        cells = " | ".join(str(batch) if batch else "no" for batch in fits)
        lines.append(
            f"| {need.stage} ({need.what}) | {need.weights / GIB:.1f} | {need.one / GIB:.2f} | "
            f"{need.each / GIB:.2f} | {cells} |"
        )
    return "\n".join(lines)


def brain_stages() -> list[Need]:
    """Pretraining on subjects 2 to 8, tuning and decoding of subject 1, float32."""
    config = load_config("paper")
    others = {name: voxels for name, voxels in VOXELS.items() if name != "subj01"}

    def training(stage: str, build, voxels: dict[str, int], fit) -> Need:
        sizes = []
        for batch in (1, 2):
            network = build()
            sizes.append(training_memory(network, voxels, dataclasses.replace(fit, batch_per_subject=batch)))
        fixed = sizes[0].total - sizes[0].activations
        subjects = "a trial of each subject" if len(voxels) > 1 else "a trial"
        return Need(stage, count(network), fixed, sizes[0].activations, sizes[1].activations, subjects)

    tuned = build_tuned(config, others, "subj01", VOXELS["subj01"])
    decoding = inference_memory(tuned, "subj01")
    return [
        training("pretrain", lambda: build_base(config, others), others, config.pretrain),
        training(
            "tune", lambda: build_tuned(config, others, "subj01", VOXELS["subj01"]), {"subj01": VOXELS["subj01"]}, config.tune
        ),
        Need("decode: tokens", count(tuned), decoding.weights, decoding.activations, 2 * decoding.activations, "a trial"),
    ]


def tower_stages(parts: dict[str, torch.nn.Module]) -> list[Need]:
    tower, words = parts["image tower of ViT-bigG/14"], parts["text tower of ViT-bigG/14"]
    bank = of_batch(lambda n: words.encode_text(torch.zeros(n, 77, dtype=torch.long, device=META)), words)
    image = of_batch(lambda n: tower(torch.empty(n, 3, 224, 224, device=META)), tower)
    maps = of_batch(lambda n: parts["convnext"].forward_features(torch.empty(n, 3, 224, 224, device=META)), parts["convnext"])
    return [
        Need("embed: image tokens", count(tower), size(tower), *image, "an image"),
        Need("embed: texts", count(words), size(words), *bank, "a caption"),
        Need("embed: low-level features", count(parts["convnext"]), size(parts["convnext"]), *maps, "an image"),
    ]


def painting_stages(parts: dict[str, torch.nn.Module]) -> list[Need]:
    """decode's generators lie on the GPU together."""
    latent = SIDE // 8
    names = ("unclip", "sdxl", "words 1", "words 2", "git")
    weights = sum(size(parts[name]) for name in names) + 3 * size(parts["autoencoder"])
    parameters = sum(count(parts[name]) for name in names) + 3 * count(parts["autoencoder"])

    def unclip(n: int) -> None:  # 2 n: with and without the condition
        parts["unclip"](half(2 * n, 4, latent, latent), 0, half(2 * n, 256, 1664), class_labels=half(2 * n, 1024))

    def sdxl(n: int) -> None:
        parts["sdxl"](
            half(2 * n, 4, latent, latent),
            0,
            half(2 * n, 77, 2048),
            added_cond_kwargs={"text_embeds": half(2 * n, 1280), "time_ids": half(2 * n, 6)},
        )

    def decoded(n: int) -> None:
        parts["autoencoder"].decode(torch.empty(n, 4, latent, latent, device=META))

    stages = [
        Need(f"decode: {stage}", parameters, weights, *of_batch(run, parts[name]), "a picture")
        for stage, run, name in (
            ("unCLIP's UNet", unclip, "unclip"),
            ("SDXL's UNet", sdxl, "sdxl"),
            ("an autoencoder, one picture at a time", decoded, "autoencoder"),
        )
    ]
    return stages


def half(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device=META, dtype=torch.float16)


@torch.no_grad()
def of_batch(run, network: torch.nn.Module) -> tuple[int, int]:
    """Bytes of activations of one pass of one, and of two."""
    peaks = []
    for n in (1, 2):
        with PeakMemory(network) as memory:
            run(n)
        peaks.append(memory.peak)
    return peaks[0], peaks[1]


def count(part: torch.nn.Module | tuple[torch.nn.Module, ...]) -> int:
    modules = part if isinstance(part, tuple) else (part,)
    return sum(p.numel() for module in modules for p in module.parameters())


def size(part: torch.nn.Module | tuple[torch.nn.Module, ...]) -> int:
    modules = part if isinstance(part, tuple) else (part,)
    return sum(t.numel() * t.element_size() for module in modules for t in (*module.parameters(), *module.buffers()))


if __name__ == "__main__":
    main()
