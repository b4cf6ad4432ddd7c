"""The compact generator: image tokens -> latents -> pictures, and their correction by a text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler

from mindtuner.config import DecodeConfig, ModelConfig
from mindtuner.decoding.training_images import unit_rows
from mindtuner.decoding.words import Words
from mindtuner.files import file_digest
from mindtuner.generators.painter import CORRECTED, LOWLEVEL, RECONSTRUCTED
from mindtuner.model.denoiser import LATENT_SIDE, CompactDenoiser, noise_schedule
from mindtuner.model.prior import DiffusionPrior
from mindtuner.runtime import autocast, derive_seed, device, progress
from mindtuner.towers.compact import Autoencoder, CompactImageEncoder, load_part, packaged
from mindtuner.towers.patch_autoencoder import CHANNELS

WEIGHTS = "generator.safetensors"


def starting_prior(config: ModelConfig, path: Path | None = None) -> DiffusionPrior:
    """A prior that knows the compact tokens already, to start brains from; of the package's weights when no path is given.

    Raises UserError where the file holds none, or one of other sizes than ``config``'s.
    """
    prior = DiffusionPrior(config)
    load_part(prior, path or packaged(WEIGHTS), "prior")
    return prior


class CompactGenerator:
    """Paints pictures of 128 x 128 from image tokens, and corrects them with a text.

    Parameters
    ----------
    path : weights of ``mindtuner train-generator``; those that the package ships when not given
    config : steps, guidance, where the correction starts and how often it is tried
    seed : of the noise. A picture's noise depends on the seed and its image's id, so all methods start alike.
    """

    def __init__(self, config: DecodeConfig, seed: int, path: Path | None = None):
        path = path or packaged(WEIGHTS)
        self.autoencoder = Autoencoder(path)
        self.denoiser = CompactDenoiser()
        load_part(self.denoiser, path, "denoiser")
        self.denoiser.eval().requires_grad_(False).to(device(), memory_format=torch.channels_last)
        self.config, self.seed = config, seed
        self.tower = CompactImageEncoder() if config.corrections > 1 else None
        self.identity = {"generator": "compact", "weights": file_digest(path)}

    def stages(
        self, tokens: np.ndarray, words: Words, lowlevel: np.ndarray | None, images: np.ndarray, title: str = ""
    ) -> dict[str, np.ndarray]:
        """As ``painter.Painter`` says: pictures float32 (n, 3, 128, 128) by stage, from latents (n, 8, 16, 16).

        Without a caption in the bank nothing is corrected.
        """
        tokens = torch.as_tensor(tokens, dtype=torch.float32, device=device())
        latents = self.generate(tokens, images, f"paint {title}")
        found = {} if lowlevel is None else {LOWLEVEL: self.pictures(lowlevel)}
        found[RECONSTRUCTED] = self.pictures(latents)
        if words.bank.captions:
            found[CORRECTED] = self.best_correction(latents, tokens, words.embeddings, images, f"correct {title}")
        return found

    def captions(self, tokens: np.ndarray) -> None:
        """It writes none."""

    def generate(self, tokens: np.ndarray | torch.Tensor, images: np.ndarray, title: str = "paint") -> torch.Tensor:
        """Image tokens (n, T, D) of images ``images`` (n,) -> latents (n, 8, 16, 16) on the device, from pure noise."""
        schedule = noise_schedule()
        schedule.set_timesteps(self.config.generator_steps)
        return self._denoise(self._noise(images, "paint"), schedule, schedule.timesteps, tokens, None, title)

    def best_correction(
        self,
        latents: np.ndarray | torch.Tensor,
        tokens: np.ndarray | torch.Tensor,
        text: np.ndarray,
        images: np.ndarray,
        title: str = "correct",
    ) -> np.ndarray:
        """``correct``, ``config.corrections`` times; of each image the picture in which the tower sees most of its tokens.

        latents (n, 8, 16, 16), tokens (n, T, D), text (n, d) -> pictures float32 (n, 3, 128, 128) in 0..1. MindEye (Scotti
        et al. 2023) chooses among 16 paintings in this way.
        """
        candidates = torch.stack(
            [
                self.autoencoder.decode_on_device(self.correct(latents, tokens, text, images, f"{title} {number}", number))
                for number in range(self.config.corrections)
            ]
        )
        if self.tower is None:
            return candidates[0].cpu().numpy()
        seen = np.stack([self.tower.tokens(pictures) for pictures in candidates])
        best = most_faithful(seen, torch.as_tensor(tokens).cpu().numpy())
        return candidates[torch.from_numpy(best), torch.arange(len(best))].cpu().numpy()

    def correct(
        self,
        latents: np.ndarray | torch.Tensor,
        tokens: np.ndarray | torch.Tensor,
        text: np.ndarray,
        images: np.ndarray,
        title: str = "correct",
        candidate: int = 0,
    ) -> torch.Tensor:
        """Semantic correction (MindTuner paper): noise the latents part of the way and paint them again with the text.

        latents (n, 8, 16, 16), tokens (n, T, D), text (n, d) -> latents (n, 8, 16, 16) on the device. Each
        ``candidate`` has its own noise.
        """
        schedule = noise_schedule()
        schedule.set_timesteps(round(self.config.refine_steps / self.config.refine_start))
        times = schedule.timesteps[-self.config.refine_steps :]
        clean = torch.as_tensor(latents, dtype=torch.float32, device="cpu")  # as the noise, which is the same everywhere
        noisy = schedule.add_noise(clean, self._noise(images, f"correct {candidate}"), times[:1].expand(len(clean)))
        return self._denoise(noisy, schedule, times, tokens, text, title)

    def pictures(self, latents: np.ndarray | torch.Tensor) -> np.ndarray:
        """Latents (n, 8, 16, 16) -> pictures float32 (n, 3, 128, 128) in 0..1."""
        return self.autoencoder.decode(latents)

    def _noise(self, images: np.ndarray, purpose: str) -> torch.Tensor:
        sources = [torch.Generator().manual_seed(derive_seed(self.seed, purpose, int(k))) for k in images]
        return torch.stack([torch.randn(CHANNELS, LATENT_SIDE, LATENT_SIDE, generator=source) for source in sources])

    @torch.no_grad()
    def _denoise(self, noisy, schedule: DDIMScheduler, times, tokens, text, title: str) -> torch.Tensor:
        """DDIM with classifier-free guidance: unconditional + guidance x (conditional - unconditional)."""
        n, where = len(noisy), device()
        x = noisy.to(where)
        tokens = torch.as_tensor(tokens, dtype=torch.float32, device=where)
        words = torch.zeros(n, self.denoiser.embed_text.in_features, device=where)
        if text is not None:
            words = torch.as_tensor(text, dtype=torch.float32, device=where)
        keep = torch.arange(2 * n, device=where) < n
        keep_text = keep & (text is not None)
        for time in progress(times, title, len(times), "step"):
            with autocast():
                both = self.denoiser(
                    torch.cat([x, x]),
                    time.to(where).expand(2 * n),
                    torch.cat([tokens, tokens]),
                    torch.cat([words, words]),
                    keep,
                    keep_text,
                ).float()
            conditional, unconditional = both.chunk(2)
            velocity = unconditional + self.config.guidance * (conditional - unconditional)
            x = schedule.step(velocity, time, x, eta=0.0).prev_sample
        return x


def most_faithful(seen: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Of each image the candidate picture in which the tower sees most of what was decoded: int64 (n,).

    seen (candidates, n, T, D), what the image tower sees in each candidate picture · wanted (n, T, D), the decoded tokens
    that all of them were painted from. By the cosine of the flattened tokens, as in retrieval; the first of equal ones.
    """
    target = unit_rows(wanted)
    return np.stack([(unit_rows(candidate) * target).sum(1) for candidate in seen]).argmax(0)
