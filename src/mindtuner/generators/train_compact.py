"""Train what the compact decoder starts from: autoencoder, prior, the painter of image tokens, and the prior with words.

Everything comes from the reserved generator stream (scenes that no simulated subject sees, of cut-outs that no such
scene uses), or from pictures of a folder, whose hashes the weights keep so that no test image can be among them. Each stage
saves as it goes: a run that is cut short starts again where it was.
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

from mindtuner.claims import alone
from mindtuner.config import load_config
from mindtuner.data.stimuli import picture_hashes
from mindtuner.decoding.phrases import split, without_colour
from mindtuner.errors import UserError
from mindtuner.files import atomic_path, read_json, write_text
from mindtuner.model.prior import DiffusionPrior
from mindtuner.model.token_painter import TokenPainter
from mindtuner.model.word_prior import WordPrior, noise_schedule
from mindtuner.runtime import autocast, derive_seed, device, progress, seed_everything
from mindtuner.simulation.scenes import ReservedPictures, SceneStream, generator_scenes, render
from mindtuner.towers.compact import TRAINED_ON, CompactImageEncoder, CompactTextEncoder, joined_cells
from mindtuner.towers.efficientnet import prepare
from mindtuner.towers.patch_autoencoder import PatchAutoencoder
from mindtuner.training.checkpoint import write_state
from mindtuner.training.optimiser import update_average

PHRASES = 6  # of a caption that are read
PHRASE_DROP, WORDS_DROP, KNOWN_DROP = 0.1, 0.15, 0.4  # of one phrase, of all of them, of what a brain knows
PLAIN = 0.15  # of phrases go without their colour, as where a brain is not sure of it
WHOLE = 0.1  # of captions stand as they are: some brains are read by whole ones (``decoding.words.Words``)
KNOWN = {"prior": (0.05, 0.5), "words": (0.03, 0.6)}  # share of the tokens' variance in what each is conditioned on
ROUGH = 0.4  # most noise in the tokens that the painter learns from: imagined ones are never exact
EMA = {"prior": 0.999, "painter": 0.998, "words": 0.999}
BATCH = {"autoencoder": 8, "prior": 128, "painter": 8, "words": 128}
LR = {"autoencoder": 1.5e-3, "prior": 1e-3, "painter": 4e-4, "words": 1e-3}
PAINTER_WEIGHTS = {"pixels": 2.0, "edges": 2.0, "features": 0.5, "tokens": 0.3}
STAGE_WEIGHTS = (0.5, 1.0, 1.0, 1.0, 1.0)  # of the tower's five stages in ``features``: the first tells texture
SAVE_EVERY = 100  # steps


def train_generator(
    out: Path,
    work: Path,
    scenes: int = 40_000,
    autoencoder_steps: int = 2_500,
    prior_steps: int = 3_000,
    painter_steps: int = 3_000,
    words_steps: int = 8_000,
    cutouts: Path | None = None,
    stimuli: Path | None = None,
    seed: int = 0,
    log: Callable[[dict], None] = lambda record: None,
) -> None:
    """Write weights to ``out``.

    A safetensors file: ``autoencoder.*`` and ``prior.*`` in float32, ``painter.*`` and ``words.*`` in bfloat16; and
    ``trained_on``, hashes of the pictures of a folder ``stimuli``, where one takes the place of scenes.
    ``work`` keeps rendered scenes and checkpoints; the same call continues from them. A
    continued run ends with the weights of an unbroken one.
    Raises UserError where ``work`` belongs to other settings, another process works there, or ``cutouts`` or ``stimuli``
    cannot serve.
    """
    stream = generator_scenes(cutouts, stimuli)  # before anything is written: the folder may not serve
    with alone(work):
        _check_settings(work, {"scenes": scenes, "cutouts": str(cutouts or ""), "stimuli": str(stimuli or ""), "seed": seed})
        trained_on = _trained_on(stream)
        pixels, captions = _rendered(work, scenes, stream)
        autoencoder = _fit_autoencoder(work, pixels, autoencoder_steps, seed, log)
        tokens, phrases = _tokens(work, pixels), Phrases(captions, CompactTextEncoder())
        prior = _fit_prior(work, tokens, prior_steps, seed, log)
        painter = _fit_painter(work, pixels, tokens, autoencoder, painter_steps, seed, log)
        _fit_words(work, out, tokens, phrases, (autoencoder, prior, painter, trained_on), words_steps, seed, log)


def _check_settings(work: Path, settings: dict) -> None:
    path = work / "settings.json"
    if path.exists() and (found := read_json(path)) != settings:
        raise UserError(f"{path}: holds {json.dumps(found)}; expected {json.dumps(settings)} (or another folder)")
    write_text(path, json.dumps(settings))


def _trained_on(stream: SceneStream | ReservedPictures) -> np.ndarray:
    """Hashes of the pictures of a folder, int64 (n,); of scenes none, since no subject sees them."""
    if isinstance(stream, SceneStream):
        return np.zeros(0, np.int64)
    numbers = progress(range(len(stream.paths)), "hashes")
    return np.concatenate([picture_hashes(stream(number).pixels[None]) for number in numbers])


def _rendered(work: Path, count: int, stream: SceneStream | ReservedPictures) -> tuple[np.ndarray, list[tuple[str, ...]]]:
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
        write_text(caption_path, json.dumps(captions))
    return np.load(image_path, mmap_mode="r"), [tuple(c) for c in json.loads(caption_path.read_text(encoding="utf-8"))]


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
        write_state(
            path,
            {
                "network": network.state_dict(),
                "optimiser": optimiser.state_dict(),
                "step": step,
                "seconds": time.perf_counter() - start,
                "average": average,
            },
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


def _tokens(work: Path, pixels: np.ndarray) -> np.ndarray:
    """Image tokens (n, 16, 128), float16."""
    path = work / "tokens.npy"
    if not path.exists():
        encoder, starts = CompactImageEncoder(), range(0, len(pixels), 64)
        tokens = [encoder.tokens(pixels[k : k + 64]).astype(np.float16) for k in progress(starts, "tokens")]
        with atomic_path(path) as part, part.open("wb") as file:
            np.save(file, np.concatenate(tokens))
    return np.load(path)


class Phrases:
    """The phrases of scenes' captions, drawn as a brain might name them: without a colour, or a whole caption, now and then.

    Parameters
    ----------
    captions : of each scene, one or more
    encoder : text tower
    """

    def __init__(self, captions: list[tuple[str, ...]], encoder: CompactTextEncoder):
        row: dict[str, int] = {}
        index = lambda text: row.setdefault(text, len(row))
        self.captions = [[index(caption) for caption in group] for group in captions]
        self.phrases = [
            [
                [(index(phrase), index(without_colour(phrase) or phrase)) for phrase in split(caption)[:PHRASES]]
                for caption in group
            ]
            for group in captions
        ]
        self.embeddings = torch.from_numpy(encoder.embed(list(row)))

    def draw(self, scenes: np.ndarray, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each scene one caption's phrases, some of them left out: embeddings (n, P, d), and which places hold one."""
        rows, said = np.zeros((len(scenes), PHRASES), np.int64), np.zeros((len(scenes), PHRASES), bool)
        for k, scene in enumerate(scenes):
            caption = rng.integers(len(self.captions[scene]))
            some = [self.captions[scene][caption]]
            if rng.random() >= WHOLE:
                some = [two[int(rng.random() < PLAIN)] for two in self.phrases[scene][caption]]
            rows[k, : len(some)], said[k, : len(some)] = some, True
        said &= (rng.random(said.shape) >= PHRASE_DROP) & (rng.random((len(said), 1)) >= WORDS_DROP)
        return self.embeddings[torch.from_numpy(rows)], torch.from_numpy(said)


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


def _fit_painter(work, pixels, tokens, autoencoder, steps, seed, log) -> TokenPainter:
    """Paint scenes from their tokens: in pixels, in edges, and in what all stages of the tower see of the picture.

    The last two losses are perceptual ones (Johnson et al. 2016; the stages' features of unit length, as in LPIPS, Zhang
    et al. 2018). The scoring network is another.
    """
    seed_everything(derive_seed(seed, "painter"))
    network = TokenPainter(*tokens.shape[1:])
    network.decoder.load_state_dict(autoencoder.state_dict())
    network.to(device(), memory_format=torch.channels_last)  # its convolutions are faster so on a CPU
    optimiser = torch.optim.AdamW(network.parameters(), betas=(0.9, 0.98), weight_decay=1e-3)
    tower = CompactImageEncoder()

    def losses(rng, source, step):
        rows = np.sort(rng.integers(0, len(tokens), BATCH["painter"]))
        wanted = torch.from_numpy(tokens[rows]).float()
        rough = ROUGH * torch.rand(len(rows), 1, 1, generator=source) * torch.randn(wanted.shape, generator=source)
        scenes = torch.from_numpy(pixels[rows]).to(device()).float() / 255
        found = painter_losses(network, tower, (wanted + rough).to(device()), wanted.to(device()), scenes)
        return {name: PAINTER_WEIGHTS[name] * loss for name, loss in found.items()}

    average = _train("painter", work, network, optimiser, steps, seed, log, losses)
    network.load_state_dict(dict(network.state_dict()) | average)
    return network.eval()


def painter_losses(
    network: TokenPainter, tower: CompactImageEncoder, given: torch.Tensor, tokens: torch.Tensor, scenes: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Losses of pictures painted from tokens ``given`` (n, T, D), by name.

    Their scenes (n, 3, 128, 128), in 0..1, have ``tokens`` (n, T, D).
    """
    painted = network(given)
    with torch.no_grad():
        wanted = tower.network(prepare(scenes))
    seen = tower.network(prepare(painted))
    unlike = [
        (F.normalize(a, dim=1, eps=1e-3) - F.normalize(b, dim=1, eps=1e-3)).square().sum(1).mean()
        for a, b in zip(seen, wanted)
    ]
    return {
        "pixels": F.l1_loss(painted, scenes),
        "edges": F.l1_loss(_edges(painted), _edges(scenes)),
        "features": sum(weight * loss for weight, loss in zip(STAGE_WEIGHTS, unlike, strict=True)),
        "tokens": F.mse_loss((joined_cells(seen) - tower.mean) @ tower.matrix, tokens),
    }


def _fit_words(work, out, tokens, phrases, others, steps, seed, log) -> None:
    """The prior that knows words: tokens of scenes, from what a brain might say of them and from phrases of their captions.

    Each is left out often enough that the other alone is enough.
    """
    seed_everything(derive_seed(seed, "words"))
    network = WordPrior(*tokens.shape[1:], phrases.embeddings.shape[1]).to(device()).train()
    optimiser = torch.optim.AdamW(network.parameters(), betas=(0.9, 0.98), weight_decay=1e-2)
    uncertain = UncertainTokens(torch.from_numpy(tokens), *KNOWN["words"])

    def losses(rng, source, step):
        rows = rng.integers(0, len(tokens), BATCH["words"])
        clean = torch.from_numpy(tokens[rows]).float()
        keep = torch.rand(len(rows), generator=source) >= KNOWN_DROP
        return {"velocity": velocity_loss(network, clean, uncertain(clean, source), keep, *phrases.draw(rows, rng), source)}

    _train(
        "words",
        work,
        network,
        optimiser,
        steps,
        seed,
        log,
        losses,
        lambda average, step: save_generator(out, *others, dict(network.state_dict()) | average, step),
    )


def velocity_loss(network: WordPrior, clean, known, keep, phrases, said, source: torch.Generator) -> torch.Tensor:
    """Squared error of the velocity of tokens ``clean`` (n, T, D) at random times; the others as the network reads them."""
    where, alphas = device(), noise_schedule().alphas_cumprod
    times = torch.randint(0, len(alphas), (len(clean),), generator=source)
    noise = torch.randn(clean.shape, generator=source)
    signal, sigma = alphas[times].sqrt()[:, None, None], (1 - alphas[times]).sqrt()[:, None, None]
    given = (signal * clean + sigma * noise, times, known, keep, phrases, said)
    with autocast():
        velocity = network(*(one.to(where) for one in given))
    return F.mse_loss(velocity.float(), (signal * noise - sigma * clean).to(where))


class UncertainTokens:
    """Image tokens as a decoder knows them: the tokens to expect from a noisy look at the true ones.

    Decoded tokens are not the true ones plus noise. They are close to a conditional mean: what the brain says little
    about is drawn to the average. So what is painted starts from such means of all qualities (conditioning
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


def save_generator(
    out: Path,
    autoencoder: PatchAutoencoder,
    prior: DiffusionPrior,
    painter: TokenPainter,
    trained_on: np.ndarray,
    words: dict,
    steps: int,
) -> None:
    """Write the weights that ``CompactGenerator`` reads; ``words`` are the averaged weights of a ``WordPrior``."""
    tensors = {TRAINED_ON: torch.from_numpy(trained_on)} if len(trained_on) else {}
    for name, part in (("autoencoder", autoencoder.state_dict()), ("prior", prior.state_dict())):
        tensors |= {f"{name}.{key}": value.detach().float().cpu().contiguous() for key, value in part.items()}
    for name, part in (("painter", painter.state_dict()), ("words", words)):
        tensors |= {f"{name}.{key}": value.detach().bfloat16().cpu().contiguous() for key, value in part.items()}
    with atomic_path(out) as part:
        save_file(tensors, part, metadata={"words_steps": str(steps)})
