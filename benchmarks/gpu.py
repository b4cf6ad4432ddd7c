"""One run on a machine with a GPU: are its numbers the CPU's, and how long do steps, decoding and painting take?

    python benchmarks/gpu.py [--peer CLONE] [--write benchmarks/results/gpu.md]

Needs a GPU with 40 GB or more, PyTorch and this package; no data and no weights of anybody. Weights and rows are random.
About eight minutes. Parts, each of which can be asked for alone (``--part``):

    parity    three steps of pretraining and of tuning, decoding and painting, on the CPU and on the device, in float32
              without TF32, from the same random numbers: by how much weights, losses, tokens and pictures differ, in parts
              of their largest value
    steps     a step at paper size in bf16, by batch until the memory is full, beside the public classes (--peer, as
              train_step.py wants it)
    decode    tokens of 1,000 images at paper size, 20 DDIM steps
    pictures  a picture of unCLIP and a refinement by SDXL at 768 x 768, by the UNets and the autoencoder of those sizes, with
              weights on the GPU, and with layers that come one by one
    fsdp      a step in shards, on one process, beside one that is whole

``--device cpu --small`` runs all of it at tiny sizes, to see that the script is in order; its times mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import datetime
import os
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import diffusers
import numpy as np
import torch
from full_size_memory import networks
from pages import machine, markdown, write_between
from sides import SIZES
from train_step import fit_config, our_network, public_step, random_world

from mindtuner import runtime
from mindtuner.config import DecodeConfig, ModelConfig, load_config
from mindtuner.data.nsd import VOXELS
from mindtuner.decoding.decoder import Decoder
from mindtuner.decoding.words import TextBank, Words
from mindtuner.generators.compact import CompactGenerator
from mindtuner.model import BrainNetwork
from mindtuner.model.backbone import Dropout
from mindtuner.training import distributed, loop

BATCHES = (24, 48, 96, 192, 384)
STEPS = 6  # of which the first two do not count
IMAGES = 1000
UNCLIP_STEPS, SDXL_STEPS = 38, 12  # as in configs/paper.yaml
SIDE = 768
PARITY = (3, 8)  # steps and batch


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is measured: the paper's, or tiny."""

    model: ModelConfig
    voxels: int
    small: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--part", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--peer", type=Path, metavar="CLONE")
    parser.add_argument("--write", type=Path, metavar="FILE")
    options = parser.parse_args()
    runtime.use_device(options.device)
    quick = load_config("quick").model
    sizes = Sizes(quick, 40, True) if options.small else Sizes(load_config("paper").model, VOXELS[0], False)
    where = torch.cuda.get_device_name() if on_gpu() else machine()
    texts, failed = (
        [f"{datetime.date.today()}, {where}, torch {torch.__version__}{', tiny sizes' if options.small else ''}"],
        [],
    )
    for name in options.part:
        start = time.monotonic()
        try:
            texts.append(f"## {name}\n\n{PARTS[name](sizes, options.peer)}\n\n{time.monotonic() - start:.0f} s in all.")
        except Exception:  # the other parts are worth having
            traceback.print_exc()
            failed.append(name)
            texts.append(f"## {name}\n\nfailed")
        finally:
            if on_gpu():
                torch.cuda.empty_cache()
    text = "\n\n".join(texts)
    print(text)
    if options.write:
        write_between(options.write, "gpu", text)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


# ---- the numbers


def parity(_: Sizes, __: Path | None) -> str:
    where = runtime.device()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    rows = []
    for stage in ("pretraining", "tuning"):
        found = {}
        for device in ("cpu", where):
            runtime.use_device(device)
            found[str(device)] = trained(stage)
        rows += [[stage, name, *differences(found, name)] for name in found["cpu"]]
    found = {}
    for device in ("cpu", where):
        runtime.use_device(device)
        found[str(device)] = decoded()
    rows += [["decoding", name, *differences(found, name)] for name in found["cpu"]]
    runtime.use_device(where)
    return markdown(["", "part", "largest value", "largest difference", "in parts of it"], rows, left=2)


def differences(found: dict[str, dict[str, np.ndarray]], name: str) -> tuple[str, str, str]:
    ours, theirs = (np.asarray(one[name], np.float64) for one in (list(found.values())[0], list(found.values())[-1]))
    largest, apart = np.abs(ours).max(), np.abs(ours - theirs).max()
    return f"{largest:.3g}", f"{apart:.1e}", f"{apart / max(largest, 1e-30):.1e}"


def trained(stage: str) -> dict[str, np.ndarray]:
    """Weights by part, and losses, after a few steps; what is random is drawn on the CPU."""
    model = dataclasses.replace(load_config("quick").model, backbone_dropout=0.0)
    steps, batch = PARITY
    runtime.seed_everything(0)
    network, (feeds, targets) = our_network(stage, model, 40), random_world(model, 40)
    for part in network.modules():
        if isinstance(part, (torch.nn.Dropout, Dropout)):
            part.p = 0.0
    records: list[dict] = []
    with drawn_on_the_cpu():
        loop.fit(network, feeds, targets, fit_config(steps, "float32", True, batch), 0, stage, log=records.append)
    parts: dict[str, list[np.ndarray]] = {}
    for name, weights in network.named_parameters():
        if weights.requires_grad:
            parts.setdefault(f"weights of {name.split('.')[0]}", []).append(weights.detach().cpu().numpy().ravel())
    losses = {f"loss {name}": np.array([record["losses"][name] for record in records]) for name in records[-1]["losses"]}
    return {**{name: np.concatenate(some) for name, some in parts.items()}, **losses}


@contextlib.contextmanager
def drawn_on_the_cpu() -> Iterator[None]:
    """Random tensors are drawn on the CPU and moved: the device has another stream."""
    kept = {name: getattr(torch, name) for name in ("randn", "rand", "randint")}

    def on_the_cpu(draw: Callable) -> Callable:
        def drawn(*arguments, device=None, **more):
            return draw(*arguments, **more).to(device or "cpu")

        return drawn

    for name, draw in kept.items():
        setattr(torch, name, on_the_cpu(draw))
    try:
        yield
    finally:
        for name, draw in kept.items():
            setattr(torch, name, draw)


def decoded() -> dict[str, np.ndarray]:
    """Tokens of random betas, and pictures of them by the packaged generator."""
    model = load_config("demo").model
    runtime.seed_everything(0)
    config = dataclasses.replace(decode_config(4), refine_steps=2)
    decoder = Decoder(our_network("tuning", model, 40), "subj01", config, 0)
    betas, images = np.random.default_rng(0).standard_normal((4, 40), np.float32), np.arange(4)
    found = decoder.predict(betas, images)
    tokens = decoder.image_tokens(found.backbone_tokens, images)
    generator = CompactGenerator(dataclasses.replace(config, generator_steps=4), 0)
    silent = Words(found.text, TextBank([], np.zeros((0, found.text.shape[1])), 0))
    pictures = generator.stages(tokens, found, silent, lowlevel=False)
    return {
        "backbone tokens": found.backbone_tokens,
        "retrieval tokens": found.retrieval_tokens,
        "text": found.text,
        "image tokens": tokens,
        **pictures,
    }


def decode_config(steps: int) -> DecodeConfig:
    return DecodeConfig(
        pictures=1,
        prior_steps=steps,
        generator_steps=1,
        refine_steps=1,
        refine_start=0.5,
        guidance=1.0,
        retrieval_tokens="projected",
    )


# ---- time


def steps(sizes: Sizes, peer: Path | None) -> str:
    rows = []
    dtype = "float32" if sizes.small else "bfloat16"
    for stage in ("pretraining", "tuning"):
        network = built(sizes, stage)
        for batch in BATCHES[:1] if sizes.small else BATCHES:
            try:
                seconds = our_steps(network, sizes, stage, batch, dtype)
                rows.append([stage, f"ours, {dtype}", str(batch), *timed_steps(seconds)])
            except torch.OutOfMemoryError:
                rows.append([stage, f"ours, {dtype}", str(batch), "memory is full", ""])
                break
            finally:
                emptied()
        del network
        emptied()
    if peer is not None:
        rows.append(["both", "public classes, fp32", "24", *timed_steps(public_steps(sizes, peer, 24))])
    return markdown(["stage", "", "batch", "s a step", "peak GB"], rows, left=2)


def built(sizes: Sizes, stage: str) -> BrainNetwork:
    """On the device, where billions of random numbers take no time."""
    with runtime.device():
        return our_network(stage, sizes.model, sizes.voxels)


def our_steps(network: BrainNetwork, sizes: Sizes, stage: str, batch: int, dtype: str) -> Iterator[float]:
    """Seconds of the steps of ``fit`` itself."""
    feeds, targets = random_world(sizes.model, sizes.voxels, max(96, batch))
    config = fit_config(STEPS, dtype, False, batch)
    config = dataclasses.replace(config, epochs=STEPS * batch / len(feeds[0].trials))
    take, times = loop.take_step, []

    def taken(*arguments):
        result = take(*arguments)
        times.append(now())
        return result

    loop.take_step = taken
    try:
        loop.fit(network, feeds, targets, config, 0, stage)
    finally:
        loop.take_step = take
    yield from np.diff(times)


def public_steps(sizes: Sizes, peer: Path, batch: int) -> Iterator[float]:
    """The step of ``train_step.public_step`` on the device, at the sizes given."""
    wanted = {
        "hidden": sizes.model.hidden,
        "voxels": sizes.voxels,
        "blocks": sizes.model.blocks,
        "tokens": sizes.model.tokens,
        "width": sizes.model.width,
        "depth": sizes.model.prior_depth,
        "heads": sizes.model.prior_heads,
        "head_dim": sizes.model.prior_head_dim,
    }
    SIZES.update(wanted)
    marks = []

    class Marks:
        """Stands for ``sides.Turns``: notes when each step begins, and ends the work after enough."""

        flops = 0.0

        def imported(self) -> None:
            pass

        def count(self, work: Callable) -> object:
            return work()

        def __call__(self) -> None:
            marks.append(now())
            if len(marks) > STEPS:
                raise StopIteration

    with torch.device(runtime.device()), contextlib.suppress(StopIteration):
        public_step(Marks(), peer, False, batch)
    yield from np.diff(marks)


def timed_steps(seconds: Iterator[float]) -> tuple[str, str]:
    if on_gpu():
        torch.cuda.reset_peak_memory_stats()
    kept = list(seconds)[2:]
    return f"{np.median(kept):.3f}", peak()


def decode(sizes: Sizes, _: Path | None) -> str:
    runtime.seed_everything(0)
    count = 16 if sizes.small else IMAGES
    decoder = Decoder(built(sizes, "tuning"), "subj01", decode_config(20), 0)
    betas, images = np.random.default_rng(0).standard_normal((count, sizes.voxels), np.float32), np.arange(count)
    if on_gpu():
        torch.cuda.reset_peak_memory_stats()
    rows = []
    for name, rows_of in (("one trial", slice(0, 1)), (f"{count} images", slice(None))):
        decoder.image_tokens(decoder.predict(betas[:1], images[:1]).backbone_tokens, images[:1])  # warm
        start = now()
        found = decoder.predict(betas[rows_of], images[rows_of])
        looked = now()
        decoder.image_tokens(found.backbone_tokens, images[rows_of])
        rows.append([name, f"{looked - start:.3f}", f"{now() - looked:.3f}", peak()])
    return markdown(["", "tokens B and C, s", "prior, s", "peak GB"], rows)


@torch.no_grad()
def pictures(sizes: Sizes, _: Path | None) -> str:
    """UNets with random weights; a step passes two pictures, with the condition and without."""
    from accelerate import cpu_offload

    parts, side, rows = tiny_networks() if sizes.small else networks(), 64 if sizes.small else SIDE, []
    latent, where = side // 8, runtime.device()
    for name, count in (("unclip", UNCLIP_STEPS), ("sdxl", SDXL_STEPS)):
        for offload in (False, True):
            network = filled(copy.deepcopy(parts[name]), "cpu" if offload else where)
            if offload:
                cpu_offload(network, where)
            if on_gpu():
                torch.cuda.reset_peak_memory_stats()
            given = inputs_of(network, name, latent)
            passes = 2 if offload else count  # layers that come one by one take the same time at each step
            network(**given)
            start = now()
            for _ in range(passes):
                network(**given)
            rows.append(
                [name, "layer by layer" if offload else "on the GPU", f"{(now() - start) / passes * count:.1f}", peak()]
            )
            del network
            emptied()
    autoencoder = filled(parts["autoencoder"], where)
    start = now()
    autoencoder.decode(torch.randn(1, 4, latent, latent, device=where))
    rows.append(["autoencoder", "on the GPU", f"{now() - start:.2f}", peak()])
    return markdown([f"a picture of {side} x {side}", "weights", "s", "peak GB"], rows, left=2)


def inputs_of(network: torch.nn.Module, name: str, latent: int) -> dict:
    """Of one step: random latents, words and what else its UNet reads."""
    config, dtype = network.config, network.dtype

    def of(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=runtime.device(), dtype=dtype)

    read = config.projection_class_embeddings_input_dim
    if name == "unclip":
        more = {"class_labels": of(2, read)}
    else:
        times = 6 * config.addition_time_embed_dim
        more = {"added_cond_kwargs": {"text_embeds": of(2, read - times), "time_ids": of(2, 6)}}
    words = of(2, 256 if name == "unclip" else 77, config.cross_attention_dim)
    return {"sample": of(2, 4, latent, latent), "timestep": 0, "encoder_hidden_states": words, **more}


def tiny_networks() -> dict[str, torch.nn.Module]:
    """The same classes, some thousand numbers each."""
    few = {
        "sample_size": 8,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 4,
    }
    with torch.device("meta"):
        return {
            "unclip": diffusers.UNet2DConditionModel(
                **few, class_embed_type="projection", projection_class_embeddings_input_dim=24
            ),
            "sdxl": diffusers.UNet2DConditionModel(
                **few,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=6 * 8 + 12,
            ),
            "autoencoder": diffusers.AutoencoderKL(
                block_out_channels=(32,) * 4,
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                latent_channels=4,
            ),
        }


def filled(network: torch.nn.Module, where) -> torch.nn.Module:
    """A network of the meta device with small random numbers."""
    network = network.to_empty(device=where)
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.is_floating_point():
            tensor.normal_(std=0.02)
    return network


def fsdp(sizes: Sizes, _: Path | None) -> str:
    import torch.distributed as dist

    dtype, rows = "float32" if sizes.small else "bfloat16", []
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": os.environ.get("MASTER_PORT", "29511")}
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu() else "gloo", rank=0, world_size=1)
    whole, network = distributed.sharded, built(sizes, "tuning")
    try:
        for name, sharded in (("whole", whole), ("in shards", lambda: True)):
            distributed.sharded = sharded
            rows.append([name, *timed_steps(our_steps(network, sizes, "tuning", 24, dtype))])
            emptied()
    finally:
        distributed.sharded = whole
        dist.destroy_process_group()
    return markdown(["tuning, batch 24, one process", "s a step", "peak GB"], rows)


def now() -> float:
    if on_gpu():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak() -> str:
    return f"{torch.cuda.max_memory_allocated() / 2**30:.1f}" if on_gpu() else ""


def emptied() -> None:
    import gc

    gc.collect()
    if on_gpu():
        torch.cuda.empty_cache()


def on_gpu() -> bool:
    return runtime.device().type == "cuda"


PARTS = {"parity": parity, "steps": steps, "decode": decode, "pictures": pictures, "fsdp": fsdp}

if __name__ == "__main__":
    main()
