"""From voxels to tokens and words: one subject's decoder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mindtuner.config import DecodeConfig
from mindtuner.errors import UserError
from mindtuner.model import BrainNetwork
from mindtuner.runtime import derive_seed, device


@dataclass(frozen=True)
class Predictions:
    """What a brain says of n images; row k belongs to ``images[k]``.

    images (n,) stimulus ids, ascending · backbone_tokens B, retrieval_tokens C and prior_tokens (n, T, D) ·
    latents (n, 8, 16, 16) of the low-level submodule · text (n, d) unit vectors in the text tower's space
    """

    images: np.ndarray
    backbone_tokens: np.ndarray
    retrieval_tokens: np.ndarray
    prior_tokens: np.ndarray
    latents: np.ndarray
    text: np.ndarray


class Decoder:
    """Decodes one subject with a tuned network.

    Parameters
    ----------
    network : a network that knows ``subject``
    subject : its name there, such as ``"subj01"``
    config : sampling steps
    seed : of the prior's noise; the same for every method, so that methods differ by their brains alone

    Raises UserError where the network lacks a part.
    """

    def __init__(self, network: BrainNetwork, subject: str, config: DecodeConfig, seed: int):
        if network.without:
            missing = " and no ".join(network.without)
            raise UserError(f"network: has no {missing}; expected one with every part")
        self.network = network.eval().to(device())
        self.subject, self.config, self.seed = subject, config, seed

    @torch.no_grad()
    def predict(self, voxels: np.ndarray, stimulus: np.ndarray) -> Predictions:
        """Decode trials, averaging the outputs of the trials that show the same image; the prior runs once per image.

        Parameters
        ----------
        voxels : betas (n_trials, V), float32
        stimulus : (n_trials,) the image of each trial; pass distinct numbers to decode single trials
        """
        images, group = np.unique(stimulus, return_inverse=True)
        parts = [self.network(chunk.to(device()), self.subject) for chunk in torch.from_numpy(voxels).split(512)]

        def average(name: str) -> torch.Tensor:
            values = torch.cat([getattr(part, name).float() for part in parts]).cpu()
            total = torch.zeros(len(images), *values.shape[1:]).index_add_(0, torch.from_numpy(group), values)
            return total / torch.from_numpy(np.bincount(group)).view(-1, *[1] * (values.dim() - 1))

        backbone = average("backbone_tokens")
        return Predictions(images, backbone.numpy(), average("retrieval_tokens").numpy(),
                           self.image_tokens(backbone).numpy(), average("latents").numpy(), self.text_of(backbone))

    def image_tokens(self, backbone_tokens: torch.Tensor) -> torch.Tensor:
        """Image tokens (n, T, D) from the prior, seeded."""
        source = torch.Generator(device()).manual_seed(derive_seed(self.seed, "prior"))
        return self.network.prior.sample(backbone_tokens.to(device()), self.config.prior_steps, generator=source,
                                         start=self.config.prior_start).cpu()

    @torch.no_grad()
    def text_of(self, tokens: torch.Tensor) -> np.ndarray:
        """Image tokens (n, T, D) -> unit vectors (n, d) in the text tower's space, by the Adaptive Projector.

        A brain's text comes from its backbone tokens: trained as the mean of image tokens given the brain, they
        lose less than a sample of the prior.
        """
        return self.network.projector(tokens.to(device())).float().cpu().numpy()
