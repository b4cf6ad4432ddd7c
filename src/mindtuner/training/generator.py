"""Train the compact generator: autoencoder first, then the denoiser over its latents.

Everything comes from the reserved generator stream (scenes that no simulated subject sees, of cut-outs that no such
scene uses). Each stage saves as it goes: a run that is cut short leaves usable weights, and starts again where it was.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from mindtuner.data.simulation.generator_stream import generator_scenes
from mindtuner.data.simulation.scenes import SceneStream, render
from mindtuner.encoders.compact import CompactImageEncoder, CompactTextEncoder
from mindtuner.encoders.patch_autoencoder import PatchAutoencoder
from mindtuner.errors import UserError
from mindtuner.files import atomic_path, read_json
from mindtuner.model.generator import CompactDenoiser, noise_schedule
from mindtuner.runtime import autocast, derive_seed, device, progress, seed_everything

TOKEN_DROP, TEXT_DROP = 0.12, 0.4
TOKEN_NOISE = 0.6  # up to this much of the tokens' own spread: decoded tokens are never exact
EMA = 0.998
BATCH = 16
SAVE_EVERY = 100  # steps


def train_generator(out: Path, work: Path, scenes: int = 12_000, autoencoder_steps: int = 1_500,
                    denoiser_steps: int = 6_000, cutouts: Path | None = None, seed: int = 0,
                    log: Callable[[dict], None] = lambda record: None) -> None:
    """Write generator weights to ``out`` (safetensors: ``autoencoder.*`` in float32, ``denoiser.*`` in bfloat16).

    ``work`` keeps rendered scenes and checkpoints; the same call continues from them. A
    continued run ends with the weights of an unbroken one.
    Raises UserError where ``work`` belongs to other settings or ``cutouts`` holds no usable cut-out.
    """
    stream = generator_scenes(cutouts)  # before anything is written: the folder may not serve
    _check_settings(work, {"scenes": scenes, "cutouts": str(cutouts or ""), "seed": seed})
    pixels, captions = _rendered(work, scenes, stream)
    autoencoder = _fit_autoencoder(work, pixels, autoencoder_steps, seed, log)
    tokens, texts, latents = _conditions(work, pixels, captions, autoencoder)
    _fit_denoiser(work, out, tokens, texts, latents, autoencoder, denoiser_steps, seed, log)


def _check_settings(work: Path, settings: dict) -> None:
    path = work / "settings.json"
    if path.exists() and (found := read_json(path)) != settings:
        raise UserError(f"{path}: holds {json.dumps(found)}; expected {json.dumps(settings)} (or another folder)")
    with atomic_path(path) as part:
        part.write_text(json.dumps(settings))


def _rendered(work: Path, count: int, stream: SceneStream) -> tuple[np.ndarray, list[tuple[str, ...]]]:
    """Scenes at 128 x 128, uint8 (n, 3, 128, 128), and their captions."""
    image_path, caption_path = work / "pixels.npy", work / "captions.json"
    if not caption_path.exists():
        # Plain writes rather than a memory map: on a full disk they fail with an error, not with a bus error.
        with atomic_path(image_path) as part, part.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False,
                                                        "shape": (count, 3, 128, 128)})
            captions = []
            for scene in progress(render(stream, range(count)), "scenes", count):
                small = F.interpolate(torch.from_numpy(scene.pixels)[None].float(), (128, 128), mode="bilinear",
                                      antialias=True)
                file.write(small[0].round().clamp(0, 255).to(torch.uint8).numpy().tobytes())
                captions.append(scene.captions)
        with atomic_path(caption_path) as part:
            part.write_text(json.dumps(captions))
    return np.load(image_path, mmap_mode="r"), [tuple(c) for c in json.loads(caption_path.read_text())]


def _randomness(seed: int, stage: str, step: int) -> tuple[np.random.Generator, torch.Generator]:
    """Each step's own random streams, so that a continued run draws what an unbroken one would."""
    return (np.random.default_rng(derive_seed(seed, stage, "batch", step)),
            torch.Generator().manual_seed(derive_seed(seed, stage, "noise", step)))


def _schedule(step: int, steps: int) -> float:
    """Learning rate factor: 50 steps of warm-up, then a cosine down to 0.03."""
    return min(1.0, step / 50) * (0.03 + 0.97 * (0.5 + 0.5 * math.cos(math.pi * step / steps)))


def _edges(images: torch.Tensor) -> torch.Tensor:
    return torch.cat([(images[..., 1:, :] - images[..., :-1, :]).flatten(1),
                      (images[..., 1:] - images[..., :-1]).flatten(1)], 1)


def _fit_autoencoder(work, pixels, steps, seed, log) -> PatchAutoencoder:
    path = work / "autoencoder.pt"
    seed_everything(derive_seed(seed, "autoencoder"))
    network = PatchAutoencoder()
    network.fit_linear(_images(pixels[:1000]))
    network.to(device())
    optimiser = torch.optim.AdamW(network.parameters(), 1e-3, betas=(0.9, 0.95), weight_decay=1e-3)
    done, spent = 0, 0.0
    if path.exists():
        state = torch.load(path, map_location=device(), weights_only=True)
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        done, spent = state["step"], state["seconds"]
    start, recent = time.perf_counter() - spent, []
    for done in progress(range(done + 1, steps + 1), "autoencoder", unit="step"):
        rng, source = _randomness(seed, "autoencoder", done)
        for group in optimiser.param_groups:
            group["lr"] = 1.5e-3 * _schedule(done, steps)
        batch = _images(pixels[np.sort(rng.integers(0, len(pixels), 8))]).to(device())
        latents = network.encode(batch)
        with autocast():  # a little noise, since painted latents are never exact
            rebuilt = network.decode(latents + 0.05 * torch.randn(latents.shape, generator=source).to(device())).float()
        loss = F.l1_loss(rebuilt, batch) + F.l1_loss(_edges(rebuilt), _edges(batch))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        recent.append(loss.item())
        if done % SAVE_EVERY == 0:
            log({"stage": "autoencoder", "step": done, "losses": {"reconstruction": float(np.mean(recent))},
                 "seconds": time.perf_counter() - start})
            recent = []
            _save_state(path, network, optimiser, done, time.perf_counter() - start)
    _save_state(path, network, optimiser, done, time.perf_counter() - start)
    return network.eval().requires_grad_(False)


def _images(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(pixels)).float() / 127.5 - 1


def _save_state(path: Path, network, optimiser, step: int, seconds: float, **more) -> None:
    with atomic_path(path) as part:
        torch.save({"network": network.state_dict(), "optimiser": optimiser.state_dict(), "step": step,
                    "seconds": seconds, **more}, part)


@torch.no_grad()
def _conditions(work, pixels, captions, autoencoder):
    """Image tokens (n, 16, 128), text embeddings of every caption, and latents (n, 8, 16, 16), all float16."""
    tokens_path, text_path = work / "tokens.npy", work / "texts.npy"
    if not tokens_path.exists():
        encoder = CompactImageEncoder()
        tokens = np.concatenate([encoder.tokens(pixels[k:k + 64]).astype(np.float16)
                                 for k in progress(range(0, len(pixels), 64), "tokens")])
        with atomic_path(tokens_path) as part, part.open("wb") as file:
            np.save(file, tokens)
    if not text_path.exists():
        embed = CompactTextEncoder().embed
        texts = np.stack([embed([group[k % len(group)] for group in captions]) for k in range(2)], 1)
        with atomic_path(text_path) as part, part.open("wb") as file:
            np.save(file, texts.astype(np.float16))
    latents = [autoencoder.encode(_images(pixels[k:k + 64]).to(device())).half().cpu()
               for k in progress(range(0, len(pixels), 64), "latents")]
    return np.load(tokens_path), np.load(text_path), torch.cat(latents).numpy()


def _fit_denoiser(work, out, tokens, texts, latents, autoencoder, steps, seed, log):
    path = work / "denoiser.pt"
    seed_everything(derive_seed(seed, "denoiser"))
    network = CompactDenoiser(tokens.shape[1], tokens.shape[2], texts.shape[2]).to(device())
    average = {name: value.detach().clone() for name, value in network.named_parameters()}
    optimiser = torch.optim.AdamW(network.parameters(), 6e-4, betas=(0.9, 0.98), weight_decay=1e-3)
    done, spent = 0, 0.0
    if path.exists():
        state = torch.load(path, map_location=device(), weights_only=True)
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        average, done, spent = state["average"], state["step"], state["seconds"]
    alphas = noise_schedule().alphas_cumprod.to(device())
    start, recent = time.perf_counter() - spent, []
    for done in progress(range(done + 1, steps + 1), "denoiser", unit="step"):
        rng, source = _randomness(seed, "denoiser", done)
        for group in optimiser.param_groups:
            group["lr"] = 6e-4 * _schedule(done, steps)
        rows = rng.integers(0, len(tokens), BATCH)
        loss = _velocity_loss(network, alphas, tokens[rows], texts[rows, rng.integers(0, texts.shape[1], BATCH)],
                              latents[rows], source)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        keep = min(EMA, (1 + done) / (10 + done))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.values()), list(network.parameters()), 1 - keep)
        recent.append(loss.item())
        if done % SAVE_EVERY == 0:
            log({"stage": "denoiser", "step": done, "losses": {"velocity": float(np.mean(recent))},
                 "seconds": time.perf_counter() - start})
            recent = []
            _save_state(path, network, optimiser, done, time.perf_counter() - start, average=average)
            save_generator(out, autoencoder, average, network, done)
    _save_state(path, network, optimiser, done, time.perf_counter() - start, average=average)
    save_generator(out, autoencoder, average, network, done)


def _velocity_loss(network, alphas, tokens, texts, latents, source: torch.Generator) -> torch.Tensor:
    where = device()
    n = len(tokens)
    clean = torch.from_numpy(latents).to(where, torch.float32)
    tokens = torch.from_numpy(tokens).to(where, torch.float32)
    texts = torch.from_numpy(texts).to(where, torch.float32)
    draw = lambda *shape: torch.rand(shape, generator=source).to(where)
    tokens = tokens + TOKEN_NOISE * draw(n, 1, 1) * torch.randn(tokens.shape, generator=source).to(where)
    times = torch.randint(0, len(alphas), (n,), generator=source).to(where)
    noise = torch.randn(clean.shape, generator=source).to(where)
    signal, sigma = alphas[times].sqrt()[:, None, None, None], (1 - alphas[times]).sqrt()[:, None, None, None]
    with autocast():
        velocity = network(signal * clean + sigma * noise, times, tokens, texts,
                           draw(n) >= TOKEN_DROP, draw(n) >= TEXT_DROP)
    return F.mse_loss(velocity.float(), signal * noise - sigma * clean)


def save_generator(out: Path, autoencoder, average: dict, network, steps: int) -> None:
    """Write the weights that ``decoding.compact.CompactGenerator`` reads: autoencoder and averaged denoiser."""
    tensors = {f"autoencoder.{k}": v.detach().cpu().contiguous() for k, v in autoencoder.state_dict().items()}
    denoiser = dict(network.state_dict()) | average
    tensors |= {f"denoiser.{k}": v.detach().bfloat16().cpu().contiguous() for k, v in denoiser.items()}
    card = {"denoiser_steps": str(steps), "tokens": str(network.position.shape[0]),
            "width": str(network.position.shape[1]), "text_width": str(network.embed_text.in_features)}
    with atomic_path(out) as part:
        save_file(tensors, part, metadata=card)
