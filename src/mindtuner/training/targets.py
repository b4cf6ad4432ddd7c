"""What the decoder should say for each stimulus, computed once and indexed by stimulus id."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch

from mindtuner.config import ModelConfig
from mindtuner.data import FileRows, HalfRows
from mindtuner.errors import UserError


@dataclass(frozen=True)
class Targets:
    """What the decoder should say for each of the N stimuli of a dataset: arrays in memory or in files; row = stimulus id.

    Parameters
    ----------
    tokens : array (N, T, D)
        Of the image tower.
    text : array (N, d)
        Mean caption embedding, 0 where there is no caption.
    latents : array (N, 8, 16, 16), optional
        Of the autoencoder. This and the next are None where there are no pictures: a plain regression needs none of them.
    features, features_augmented : array (N, P, F), optional
        Of the image and of an augmented view of it.

    Examples
    --------
    >>> zeros = lambda *shape: np.zeros((5, *shape), np.float32)
    >>> targets = Targets(zeros(16, 128), zeros(384), zeros(8, 16, 16), zeros(16, 112), zeros(16, 112))
    >>> len(targets), targets.rows("tokens", np.array([3, 1])).shape
    (5, torch.Size([2, 16, 128]))
    """

    tokens: np.ndarray | FileRows | HalfRows
    text: np.ndarray | FileRows | HalfRows
    latents: np.ndarray | FileRows | HalfRows | None = None
    features: np.ndarray | FileRows | HalfRows | None = None
    features_augmented: np.ndarray | FileRows | HalfRows | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, name: str, ids: np.ndarray) -> torch.Tensor:
        """float32 (n, ...) of the array ``name`` for stimulus ids (n,); only these rows are read."""
        array = getattr(self, name)
        if array is None:
            raise ValueError(f"{name}: there are no pictures; expected a method that learns from tokens alone")
        if isinstance(array, HalfRows):
            return array.rows(ids).float()
        return torch.from_numpy(np.asarray(array[ids], dtype=np.float32))

    def check(self, config: ModelConfig) -> None:
        """Raise UserError where an array's shape is not what the model's config expects."""
        side = config.latent_side
        features = (config.feature_positions, config.feature_width)
        expected = {
            "tokens": (config.tokens, config.width),
            "text": (config.text_width,),
            "latents": (config.latent_channels, side, side),
            "features": features,
            "features_augmented": features,
        }
        for field in fields(self):
            if getattr(self, field.name) is None:
                continue
            shape = getattr(self, field.name).shape
            if shape != (len(self), *expected[field.name]):
                raise UserError(
                    f"targets: {field.name} has shape {tuple(shape)}; expected "
                    f"{(len(self), *expected[field.name])} by the config's model section"
                )
