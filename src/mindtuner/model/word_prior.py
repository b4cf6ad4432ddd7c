"""The compact generator's prior over image tokens: what a picture may be, given what a brain says of it and some phrases."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from diffusers.models.embeddings import get_timestep_embedding
from torch import nn


def noise_schedule() -> DDIMScheduler:
    """1,000 steps, zero signal at the last, velocity prediction."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )


class WordPrior(nn.Module):
    """Predicts the velocity v of noisy image tokens (Salimans and Ho 2022), given uncertain tokens and phrases.

    A transformer reads one position for each token (noisy and uncertain token, their place and the time, added), one for
    the time, one that stands for no phrase, and one for each phrase. Phrases have no order.

    Parameters
    ----------
    tokens, width : int
        Shape of the image tokens (T, D).
    text_width : int
        Of a phrase's embedding.
    hidden, depth, heads : int
        Of the transformer.

    Examples
    --------
    >>> prior = WordPrior().eval()
    >>> noisy, phrases = torch.zeros(2, 16, 128), torch.zeros(2, 3, 384)
    >>> said = torch.tensor([[True, True, False], [False, False, False]])  # of the second image nothing is said
    >>> prior(noisy, torch.tensor([999, 500]), noisy, torch.tensor([True, False]), phrases, said).shape
    torch.Size([2, 16, 128])
    """

    def __init__(
        self, tokens: int = 16, width: int = 128, text_width: int = 384, hidden: int = 320, depth: int = 4, heads: int = 5
    ) -> None:
        super().__init__()
        self.read_noisy = nn.Linear(width, hidden)
        self.read_known = nn.Linear(width, hidden)
        self.read_phrase = nn.Linear(text_width, hidden)
        self.position = nn.Parameter(torch.randn(tokens, hidden) * 0.02)
        self.nothing_known = nn.Parameter(torch.randn(tokens, hidden) * 0.02)
        self.no_phrase = nn.Parameter(torch.randn(1, 1, hidden) * 0.02)
        self.time = nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        layer = nn.TransformerEncoderLayer(hidden, heads, 4 * hidden, 0.0, F.gelu, batch_first=True, norm_first=True)
        self.transformer = nn.TransformerEncoder(layer, depth, norm=nn.LayerNorm(hidden), enable_nested_tensor=False)
        self.out = nn.Linear(hidden, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self,
        noisy: torch.Tensor,
        time: torch.Tensor,
        known: torch.Tensor,
        keep_known: torch.Tensor,
        phrases: torch.Tensor,
        said: torch.Tensor,
    ) -> torch.Tensor:
        """Velocity of the tokens.

        Parameters
        ----------
        noisy : tensor (n, T, D)
        time : tensor, int64 (n,)
            Diffusion times, 0..999.
        known : tensor (n, T, D)
            The tokens as a brain knows them.
        keep_known : tensor, bool (n,)
            False where they are absent.
        phrases : tensor (n, P, d)
            Embeddings.
        said : tensor, bool (n, P)
            False where a place holds no phrase.

        Returns
        -------
        tensor (n, T, D)
        """
        n = len(noisy)
        moment = self.time(get_timestep_embedding(time, self.no_phrase.shape[-1]).to(self.position))[:, None]
        known = torch.where(keep_known[:, None, None], self.read_known(known) + self.position, self.nothing_known)
        image = self.read_noisy(noisy) + known + moment
        sequence = torch.cat([image, moment, self.no_phrase.expand(n, -1, -1), self.read_phrase(phrases)], 1)
        always = torch.ones(n, sequence.shape[1] - phrases.shape[1], dtype=torch.bool, device=noisy.device)
        heard = torch.cat([always, said], 1)[:, None, None] if phrases.shape[1] else None
        for layer in self.transformer.layers:
            sequence = _through(layer, sequence, heard)
        return self.out(self.transformer.norm(sequence[:, : noisy.shape[1]]))


def _through(layer: nn.TransformerEncoderLayer, x: torch.Tensor, heard: torch.Tensor | None) -> torch.Tensor:
    """What the layer itself computes of x (n, S, d), where each position attends to those ``heard``, bool (n, 1, 1, S).

    PyTorch turns batch and sequence about before it asks for queries, keys and values. A product of rows that do not lie one
    after the other takes several times as long on a CPU, a good part of the whole network's time.
    """
    attention = layer.self_attn
    asked = F.linear(layer.norm1(x), attention.in_proj_weight, attention.in_proj_bias)
    q, k, v = asked.unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    answer = F.scaled_dot_product_attention(q, k, v, attn_mask=heard).transpose(1, 2).flatten(2)
    x = x + attention.out_proj(answer)
    return x + layer.linear2(layer.activation(layer.linear1(layer.norm2(x))))
