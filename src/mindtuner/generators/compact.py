"""The compact generator: what a brain says -> image tokens -> pictures, and their correction by phrases."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler

from mindtuner.config import DecodeConfig, ModelConfig
from mindtuner.decoding.decoder import Predictions
from mindtuner.decoding.training_images import unit_rows
from mindtuner.decoding.words import Words
from mindtuner.files import file_digest
from mindtuner.generators.painter import CORRECTED, LOWLEVEL, RECONSTRUCTED
from mindtuner.model.prior import DiffusionPrior
from mindtuner.model.token_painter import TokenPainter
from mindtuner.model.word_prior import WordPrior, noise_schedule
from mindtuner.runtime import autocast, derive_seed, device, progress
from mindtuner.towers.compact import Autoencoder, CompactImageEncoder, load_part, packaged

WEIGHTS = "generator.safetensors"
TOGETHER = 32  # pictures painted at a time: more do not fit into the caches of a CPU
PAINTED = 6  # corrections of an image that are painted, and looked at
FAITH = 1.0  # weight of tokens beside words where corrections are judged


def starting_prior(config: ModelConfig, path: Path | None = None) -> DiffusionPrior:
    """A prior that knows the compact tokens already, to start brains from; of the package's weights when no path is given.

    Raises UserError where the file holds none, or one of other sizes than ``config``'s.
    """
    prior = DiffusionPrior(config)
    load_part(prior, path or packaged(WEIGHTS), "prior")
    return prior


class CompactGenerator:
    """Imagines image tokens that fit what a brain says, in tokens and in phrases, and paints them, 128 x 128 pixels.

    Parameters
    ----------
    path : weights of ``mindtuner train-generator``; those that the package ships when not given
    config : steps, guidance by the phrases, where the correction starts and how often it is tried
    seed : of the noise. An image's noise depends on the seed and its id, so all methods start alike.
    """

    def __init__(self, config: DecodeConfig, seed: int, path: Path | None = None):
        path = path or packaged(WEIGHTS)
        self.autoencoder = Autoencoder(path)
        self.painter, self.prior = TokenPainter(), WordPrior()
        load_part(self.painter, path, "painter")
        load_part(self.prior, path, "words")
        self.painter.eval().requires_grad_(False).to(device(), memory_format=torch.channels_last)
        self.prior.eval().requires_grad_(False).to(device())
        self.config, self.seed = config, seed
        self.path = path
        self.identity = {"generator": "compact", "weights": file_digest(path)}

    @functools.cached_property
    def tower(self) -> CompactImageEncoder:
        """What looks at pictures, opened when it is first needed."""
        return CompactImageEncoder()

    def fidelity(self, tokens: np.ndarray) -> float:
        """How well it paints pictures of some kind: the share of their tokens' variance that is in what it paints of them.

        tokens : (n, T, D), those of true pictures. They are painted, and the tower looks at what was painted: 1 less the
        squared error over the variance about the mean. It is .7 of the scenes that the package's weights were trained for,
        and below 0 of photographs.
        """
        wanted = np.asarray(tokens, np.float32)
        seen = self.tower.tokens(self.pictures(wanted))
        return float(1 - np.square(seen - wanted).sum() / np.square(wanted - wanted.mean(0)).sum())

    def stages(
        self, tokens: np.ndarray, found: Predictions, words: Words, lowlevel: bool = True, title: str = ""
    ) -> dict[str, np.ndarray]:
        """As ``painter.Painter`` says: pictures float32 (n, 3, 128, 128) by stage, from latents (n, 8, 16, 16).

        ``tokens`` are drawn to training images, and so commit to things where the brain says little. That helps where nothing
        else is said. Words say it better, so the correction goes by the backbone tokens, in which words alone say what things
        there are (docs/demo.md). Without a caption in the bank nothing is corrected.
        """
        made = {LOWLEVEL: self.autoencoder.decode(found.latents)} if lowlevel and found.latents is not None else {}
        imagined = self.imagine(tokens, found.images, title=f"paint {title}")
        made[RECONSTRUCTED] = self.pictures(imagined)
        if words.bank.captions:
            made[CORRECTED] = self.best_correction(imagined, found, words, f"correct {title}")
        return made

    def captions(self, tokens: np.ndarray) -> None:
        """It writes none."""

    def imagine(
        self,
        tokens: np.ndarray | None,
        images: np.ndarray,
        phrases: tuple[np.ndarray, np.ndarray] | None = None,
        title: str = "paint",
    ) -> np.ndarray:
        """Tokens of a picture that fits: a sample of the prior, from pure noise.

        Parameters
        ----------
        tokens : what a brain says of n images, (n, T, D); None where it says nothing
        images : ids (n,), for the noise
        phrases : embeddings (n, P, d) and which places hold one, bool (n, P); None where nothing is said

        Returns float32 (n, T, D).
        """
        schedule = noise_schedule()
        schedule.set_timesteps(self.config.generator_steps)
        return self._denoise(self._noise(images, "paint"), schedule, schedule.timesteps, tokens, phrases, title)

    def best_correction(self, imagined: np.ndarray, found: Predictions, words: Words, title: str = "correct") -> np.ndarray:
        """``correct``, ``config.corrections`` times; of each image the picture that fits best what the brain says.

        imagined (n, T, D) -> pictures float32 (n, 3, 128, 128) in 0..1. MindEye (Scotti et al. 2023) paints 16 and keeps the
        one whose CLIP embedding is nearest to the decoded one. Here words count too (``merit``): the tokens that fit best are
        painted, ``PAINTED`` of each image, and the tower looks at them.

        Words alone say which things there are: where the correction starts and the tokens that it goes by are told them
        (``Words.told``), and tokens judge of all but things.
        """
        phrases, start, tokens = words.phrase_embeddings, words.told(imagined), words.told(found.backbone_tokens)
        candidates = [
            self.correct(start, tokens, phrases, found.images, f"{title} {number}", number)
            for number in range(self.config.corrections)
        ]
        return self.best_of(np.stack(candidates), found, words)

    def best_of(self, candidates: np.ndarray, found: Predictions, words: Words, faith: float = FAITH) -> np.ndarray:
        """Pictures of the candidates (c, n, T, D) that fit what is found of n images and their words best, one of each."""
        if len(candidates) == 1:
            return self.pictures(candidates[0])
        order = np.argsort([-merit(one, found, words, faith) for one in candidates], axis=0, kind="stable")[:PAINTED]
        every = np.arange(len(found.images))
        pictures = np.stack([self.pictures(candidates[best, every]) for best in order])
        best = np.argmax([merit(self.tower.tokens(some), found, words, faith) for some in pictures], axis=0)
        return pictures[best, every]

    def correct(
        self,
        imagined: np.ndarray,
        tokens: np.ndarray | None,
        phrases: tuple[np.ndarray, np.ndarray],
        images: np.ndarray,
        title: str = "correct",
        candidate: int = 0,
    ) -> np.ndarray:
        """Semantic correction (MindTuner paper): noise the imagined tokens part of the way, and go on with the phrases.

        imagined (n, T, D), tokens and phrases as in ``imagine`` -> tokens float32 (n, T, D). Each ``candidate`` has its own
        noise.
        """
        schedule = noise_schedule()
        schedule.set_timesteps(round(self.config.refine_steps / self.config.refine_start))
        times = schedule.timesteps[-self.config.refine_steps :]
        noise = self._noise(images, f"correct {candidate}")
        noisy = schedule.add_noise(torch.as_tensor(imagined, dtype=torch.float32), noise, times[:1].expand(len(noise)))
        return self._denoise(noisy, schedule, times, tokens, phrases, title)

    @torch.no_grad()
    def pictures(self, tokens: np.ndarray) -> np.ndarray:
        """Image tokens (n, T, D) -> pictures float32 (n, 3, 128, 128) in 0..1."""
        parts = torch.as_tensor(tokens, dtype=torch.float32).split(TOGETHER)
        return torch.cat([self.painter(part.to(device())).clamp(0, 1).cpu() for part in parts]).numpy()

    def _noise(self, images: np.ndarray, purpose: str) -> torch.Tensor:
        sources = [torch.Generator().manual_seed(derive_seed(self.seed, purpose, int(k))) for k in images]
        return torch.stack([torch.randn(self.painter.position.shape, generator=source) for source in sources])

    @torch.no_grad()
    def _denoise(self, noisy, schedule: DDIMScheduler, times, tokens, phrases, title: str) -> np.ndarray:
        """DDIM with classifier-free guidance by the phrases: without + guidance x (with - without)."""
        n, where = len(noisy), device()
        x = noisy.to(where)
        known = torch.zeros_like(x) if tokens is None else torch.as_tensor(tokens, dtype=torch.float32, device=where)
        keep = torch.full((n,), tokens is not None, device=where)
        nothing = torch.zeros(n, 0, self.prior.read_phrase.in_features, device=where), torch.zeros(n, 0, device=where).bool()
        said = None if phrases is None else tuple(torch.as_tensor(one, device=where) for one in phrases)
        for time in progress(times, title, len(times), "step"):
            moment = time.to(where).expand(n)
            with autocast():
                velocity = self.prior(x, moment, known, keep, *nothing).float()
                if said is not None:
                    more = self.prior(x, moment, known, keep, *said).float() - velocity
                    velocity = velocity + self.config.guidance * more
            x = schedule.step(velocity, time, x, eta=0.0).prev_sample
        return x.cpu().numpy()


def merit(seen: np.ndarray, found: Predictions, words: Words, faith: float) -> np.ndarray:
    """How well pictures fit what a brain says, in tokens and in words: (n,).

    seen (n, T, D), the tokens of n pictures · found, of n images. ``faith`` times their cosine to the retrieval tokens, which
    are trained to tell an image from others, in all but things; and the agreement with the words (``Words.agreement``).
    """
    shown, wanted = (words.without_things(tokens) for tokens in (found.compared(seen), found.retrieval_tokens))
    return faith * (unit_rows(shown) * unit_rows(wanted)).sum(1) + words.agreement(seen)
