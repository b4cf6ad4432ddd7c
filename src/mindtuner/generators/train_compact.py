"""Train what the compact decoder starts from: autoencoder, prior, and the denoiser over the autoencoder's latents.

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

from mindtuner.config import load_config
from mindtuner.errors import UserError
from mindtuner.files import atomic_path, read_json
from mindtuner.model.denoiser import CompactDenoiser, noise_schedule
from mindtuner.model.prior import DiffusionPrior
from mindtuner.runtime import autocast, derive_seed, device, progress, seed_everything
from mindtuner.simulation.scenes import SceneStream, generator_scenes, render
from mindtuner.towers.compact import CompactImageEncoder, CompactTextEncoder
from mindtuner.towers.patch_autoencoder import PatchAutoencoder
from mindtuner.training.optimiser import update_average

TOKEN_DROP, TEXT_DROP = 0.12, 0.4
KNOWN = {"prior": (0.05, 0.5), "denoiser": (0.1, 1.0)}  # share of the tokens' variance in what each is conditioned on
EMA = {"prior": 0.999, "denoiser": 0.998}
BATCH = {"autoencoder": 8, "prior": 128, "denoiser": 16}
LOOKED_AT, LOOK_WEIGHT = 4, 0.6  # how many pictures of a batch the tower looks at, and what that loss counts
LR = {"autoencoder": 1.5e-3, "prior": 1e-3, "denoiser": 6e-4}
SAVE_EVERY = 100  # steps


def train_generator(
    out: Path,
    work: Path,
    scenes: int = 12_000,
    autoencoder_steps: int = 2_500,
    prior_steps: int = 3_000,
    denoiser_steps: int = 14_000,
    cutouts: Path | None = None,
    seed: int = 0,
    log: Callable[[dict], None] = lambda record: None,
) -> None:
    """Write weights to ``out`` (safetensors: ``autoencoder.*`` and ``prior.*`` in float32, ``denoiser.*`` in bfloat16).

    ``work`` keeps rendered scenes and checkpoints; the same call continues from them. A
    continued run ends with the weights of an unbroken one.
    Raises UserError where ``work`` belongs to other settings or ``cutouts`` holds no usable cut-out.
    """
    stream = generator_scenes(cutouts)  # before anything is written: the folder may not serve
    _check_settings(work, {"scenes": scenes, "cutouts": str(cutouts or ""), "seed": seed})
    pixels, captions = _rendered(work, scenes, stream)
    autoencoder = _fit_autoencoder(work, pixels, autoencoder_steps, seed, log)
    tokens, texts, latents = _conditions(work, pixels, captions, autoencoder)
    prior = _fit_prior(work, tokens, prior_steps, seed, log)
    _fit_denoiser(work, out, tokens, texts, latents, (autoencoder, prior), denoiser_steps, seed, log)


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
            np.lib.format.write_array_header_1_0(
                file, {"descr": "|u1", "fortran_order": False, "shape": (count, 3, 128, 128)}
            )
            captions = []
            for scene in progress(render(stream, range(count)), "scenes", count):
                small = F.interpolate(
                    torch.from_numpy(scene.pixels)[None].float(), (128, 128), mode="bilinear", antialias=True
                )
                file.write(small[0].round().clamp(0, 255).to(torch.uint8).numpy().tobytes())
                captions.append(scene.captions)
        with atomic_path(caption_path) as part:
            part.write_text(json.dumps(captions))
    return np.load(image_path, mmap_mode="r"), [tuple(c) for c in json.loads(caption_path.read_text())]


def _randomness(seed: int, stage: str, step: int) -> tuple[np.random.Generator, torch.Generator]:
    """Each step's own random streams, so that a continued run draws what an unbroken one would."""
    return (
        np.random.default_rng(derive_seed(seed, stage, "batch", step)),
        torch.Generator().manual_seed(derive_seed(seed, stage, "noise", step)),
    )


def _schedule(step: int, steps: int) -> float:
    """Learning rate factor: 50 steps of warm-up, then a cosine down to 0.03."""
    return min(1.0, step / 50) * (0.03 + 0.97 * (0.5 + 0.5 * math.cos(math.pi * step / steps)))


def _edges(images: torch.Tensor) -> torch.Tensor:
    return torch.cat(
        [(images[..., 1:, :] - images[..., :-1, :]).flatten(1), (images[..., 1:] - images[..., :-1]).flatten(1)], 1
    )


def _train(
    stage: str,
    work: Path,
    network,
    optimiser,
    steps: int,
    seed: int,
    log,
    losses_at,
    save_weights: Callable[[dict, int], None] = lambda average, step: None,
) -> dict:
    """Train one stage up to ``steps``, saving as it goes, and return the running average of its weights.

    The average is empty where the stage keeps none.

    ``losses_at(rng, source, step)`` draws a batch and gives its losses by name, already weighted; they are summed.
    ``save_weights(average, step)`` is called whenever the state is saved.
    """
    path = work / f"{stage}.pt"
    average = {name: value.detach().clone() for name, value in network.named_parameters()} if stage in EMA else {}
    state = _load_state(path, network, optimiser)
    average, done = state.get("average", average), state["step"]
    start, recent = time.perf_counter() - state["seconds"], []

    def save(step: int) -> None:
        with atomic_path(path) as part:
            torch.save(
                {
                    "network": network.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "step": step,
                    "seconds": time.perf_counter() - start,
                    "average": average,
                },
                part,
            )
        save_weights(average, step)

    for done in progress(range(done + 1, steps + 1), stage, unit="step"):
        for group in optimiser.param_groups:
            group["lr"] = LR[stage] * _schedule(done, steps)
        losses = losses_at(*_randomness(seed, stage, done), done)
        optimiser.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        if average:
            update_average(average, list(network.parameters()), EMA[stage], done)
        recent.append({name: loss.item() for name, loss in losses.items()})
        if done % SAVE_EVERY == 0:
            means = {name: float(np.mean([losses[name] for losses in recent])) for name in recent[0]}
            log({"stage": stage, "step": done, "losses": means, "seconds": time.perf_counter() - start})
            recent = []
            save(done)
    save(done)
    return average


def _fit_autoencoder(work, pixels, steps, seed, log) -> PatchAutoencoder:
    seed_everything(derive_seed(seed, "autoencoder"))
    network = PatchAutoencoder()
    network.fit_linear(_images(pixels[:1000]))
    network.to(device())
    optimiser = torch.optim.AdamW(network.parameters(), betas=(0.9, 0.95), weight_decay=1e-3)

    def losses(rng, source, step):
        batch = _images(pixels[np.sort(rng.integers(0, len(pixels), BATCH["autoencoder"]))]).to(device())
        latents = network.encode(batch)
        with autocast():  # a little noise, since painted latents are never exact
            rebuilt = network.decode(latents + 0.05 * torch.randn(latents.shape, generator=source).to(device())).float()
        return {"reconstruction": F.l1_loss(rebuilt, batch) + F.l1_loss(_edges(rebuilt), _edges(batch))}

    _train("autoencoder", work, network, optimiser, steps, seed, log, losses)
    return network.eval().requires_grad_(False)


def _images(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(pixels)).float() / 127.5 - 1


def _load_state(path: Path, network, optimiser) -> dict:
    """Put a saved state into network and optimiser; step 0 where nothing was saved yet."""
    if not path.exists():
        return {"step": 0, "seconds": 0.0}
    state = torch.load(path, map_location=device(), weights_only=True)
    network.load_state_dict(state["network"])
    optimiser.load_state_dict(state["optimiser"])
    return state


@torch.no_grad()
def _conditions(work, pixels, captions, autoencoder):
    """Image tokens (n, 16, 128), text embeddings of every caption, and latents (n, 8, 16, 16), all float16."""
    tokens_path, text_path = work / "tokens.npy", work / "texts.npy"
    if not tokens_path.exists():
        encoder = CompactImageEncoder()
        tokens = np.concatenate(
            [encoder.tokens(pixels[k : k + 64]).astype(np.float16) for k in progress(range(0, len(pixels), 64), "tokens")]
        )
        with atomic_path(tokens_path) as part, part.open("wb") as file:
            np.save(file, tokens)
    if not text_path.exists():
        embed = CompactTextEncoder().embed
        texts = np.stack([embed([group[k % len(group)] for group in captions]) for k in range(2)], 1)
        with atomic_path(text_path) as part, part.open("wb") as file:
            np.save(file, texts.astype(np.float16))
    latents = [
        autoencoder.encode(_images(pixels[k : k + 64]).to(device())).half().cpu()
        for k in progress(range(0, len(pixels), 64), "latents")
    ]
    return np.load(tokens_path), np.load(text_path), torch.cat(latents).numpy()


def _fit_prior(work, data, steps, seed, log) -> DiffusionPrior:
    """The demo's prior, on what a brain might say of the reserved scenes: brains are then learned from there.

    A prior has to know what tokens there are before it can choose among those that a brain leaves open, and a
    demo has no time to learn that.
    """
    seed_everything(derive_seed(seed, "prior"))
    network = DiffusionPrior(load_config("demo").model).to(device()).train()
    optimiser = torch.optim.AdamW(network.parameters(), betas=(0.9, 0.98), weight_decay=1e-2)
    uncertain = UncertainTokens(torch.from_numpy(data), *KNOWN["prior"])

    def losses(rng, source, step):
        clean = torch.from_numpy(data[rng.integers(0, len(data), BATCH["prior"])]).float()
        draws = torch.Generator(device()).manual_seed(derive_seed(seed, "prior", "draws", step))
        with autocast():
            return {"tokens": network.loss(uncertain(clean, source).to(device()), clean.to(device()), draws)}

    average = _train("prior", work, network, optimiser, steps, seed, log, losses)
    network.load_state_dict(dict(network.state_dict()) | average)
    return network.eval()


def _fit_denoiser(work, out, tokens, texts, latents, others, steps, seed, log):
    """Denoise latents, and let the tower look at the cleaned pictures: it must see the tokens of the scene.

    The second loss (a perceptual one, Johnson et al. 2016, on the diffusion's own estimate of the clean latents, as Lin and
    Yang 2024 do) is what makes a picture say what its tokens say, where these leave much open.
    """
    seed_everything(derive_seed(seed, "denoiser"))
    network = CompactDenoiser(tokens.shape[1], tokens.shape[2], texts.shape[2])
    network.to(device(), memory_format=torch.channels_last)  # its convolutions are faster so on a CPU
    optimiser = torch.optim.AdamW(network.parameters(), betas=(0.9, 0.98), weight_decay=1e-3)
    alphas = noise_schedule().alphas_cumprod.to(device())
    uncertain = UncertainTokens(torch.from_numpy(tokens), *KNOWN["denoiser"])

    tower, autoencoder = CompactImageEncoder(), others[0]

    def losses(rng, source, step):
        rows = rng.integers(0, len(tokens), BATCH["denoiser"])
        known = uncertain(torch.from_numpy(tokens[rows]), source)
        loss, clean = _velocity_loss(
            network, alphas, known, texts[rows, rng.integers(0, texts.shape[1], len(rows))], latents[rows], source
        )
        seen = tower.look((autoencoder.decode(clean[:LOOKED_AT]) + 1) / 2)
        wanted = torch.from_numpy(tokens[rows[:LOOKED_AT]]).to(seen)
        return {"velocity": loss, "look": LOOK_WEIGHT * F.mse_loss(seen, wanted)}

    _train(
        "denoiser",
        work,
        network,
        optimiser,
        steps,
        seed,
        log,
        losses,
        lambda average, step: save_generator(out, *others, average, network, step),
    )


class UncertainTokens:
    """Image tokens as a decoder knows them: the tokens to expect from a noisy look at the true ones.

    Decoded tokens are not the true ones plus noise. They are close to a conditional mean: what the brain says little
    about is drawn to the average. So the denoiser paints from such means of all qualities (conditioning
    augmentation, Ho et al. 2022, with shrinkage). With tokens t ~ N(m, C) seen as t + s e, e ~ N(0, I), the mean is
    m + C (C + s^2 I)^-1 (t + s e - m). For each picture the share of the variance that the mean keeps,
    tr(C^2 (C + s^2 I)^-1) / tr C, is uniform in ``least``..``most``.

    Parameters
    ----------
    tokens : (n, T, D), to estimate m and C from
    least, most : in 0..1
    """

    def __init__(self, tokens: torch.Tensor, least: float, most: float):
        self.least, self.most = least, most
        rows = tokens.flatten(1).double()
        values, vectors = torch.linalg.eigh(torch.cov(rows.T))
        self.values, self.vectors, self.mean = values.clamp_min(0).float(), vectors.float(), rows.mean(0).float()
        self.noise = torch.logspace(4, -4, 400)  # s^2, from much to little
        kept = (self.values**2 / (self.values + self.noise[:, None])).sum(1)
        self.share = (kept / self.values.sum()).numpy()

    def __call__(self, tokens: torch.Tensor, source: torch.Generator) -> torch.Tensor:
        """(n, T, D) -> (n, T, D) float32, each with a quality of its own."""
        share = self.least + (self.most - self.least) * torch.rand(len(tokens), 1, generator=source)
        noise = torch.from_numpy(np.interp(share.numpy(), self.share, self.noise.numpy())).float()
        scores = (tokens.flatten(1).float() - self.mean) @ self.vectors
        seen = scores + noise.sqrt() * torch.randn(scores.shape, generator=source)
        mean = seen * self.values / (self.values + noise)
        return (mean @ self.vectors.T + self.mean).view(tokens.shape)


def _velocity_loss(network, alphas, tokens, texts, latents, source: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared error of the velocity at random times, and the clean latents (n, 8, 16, 16) that it implies."""
    where = device()
    n = len(tokens)
    clean = torch.from_numpy(latents).to(where, torch.float32)
    texts = torch.from_numpy(texts).to(where, torch.float32)
    draw = lambda *shape: torch.rand(shape, generator=source).to(where)
    times = torch.randint(0, len(alphas), (n,), generator=source).to(where)
    noise = torch.randn(clean.shape, generator=source).to(where)
    signal, sigma = alphas[times].sqrt()[:, None, None, None], (1 - alphas[times]).sqrt()[:, None, None, None]
    noisy = signal * clean + sigma * noise
    with autocast():
        velocity = network(noisy, times, tokens.to(where), texts, draw(n) >= TOKEN_DROP, draw(n) >= TEXT_DROP)
    velocity = velocity.float()
    return F.mse_loss(velocity, signal * noise - sigma * clean), signal * noisy - sigma * velocity


def save_generator(out: Path, autoencoder, prior, average: dict, network, steps: int) -> None:
    """Write the weights that ``decoding.compact.CompactGenerator`` reads: autoencoder, prior and averaged denoiser."""
    tensors = {
        f"{name}.{k}": v.detach().cpu().contiguous()
        for name, part in (("autoencoder", autoencoder), ("prior", prior))
        for k, v in part.state_dict().items()
    }
    denoiser = dict(network.state_dict()) | average
    tensors |= {f"denoiser.{k}": v.detach().bfloat16().cpu().contiguous() for k, v in denoiser.items()}
    card = {
        "denoiser_steps": str(steps),
        "tokens": str(network.position.shape[0]),
        "width": str(network.position.shape[1]),
        "text_width": str(network.embed_text.in_features),
    }
    with atomic_path(out) as part:
        save_file(tensors, part, metadata=card)
