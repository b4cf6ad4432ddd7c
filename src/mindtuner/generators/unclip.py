"""The unCLIP generator of the MindEye2 paper: image tokens -> pictures of 768 x 768."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from diffusers.models.embeddings import get_timestep_embedding

from mindtuner.config import DecodeConfig
from mindtuner.errors import UserError
from mindtuner.files import read_json
from mindtuner.runtime import derive_seed, device, progress
from mindtuner.thirdparty import DAMAGED, load_part, one_line, package, released

CARD, KIND = "mindtuner.json", "unCLIP generator"  # of the folder, which mindtuner.interop.unclip writes
TRAINED_SIDE = 768  # pixels of the published pictures
OFFSET_NOISE = 0.04
IMAGE_RANGES = ("mindeye2", "clip")


class UnclipGenerator:
    """Paints pictures from image tokens with a folder that ``mindtuner convert unclip`` wrote.

    Parameters
    ----------
    config : steps and guidance (the published pipeline: 38 and 5)
    seed : of the noise. A picture's noise depends on the seed and its image's id alone, so all methods start alike and
        any subset of the images gets the same pictures
    folder : with ``unet``, ``vae``, ``scheduler`` and ``mindtuner.json``
    image_range : the convention of the base that the tokens come from, ``mindeye2`` or ``clip``, see ``pictures``
    side : of the pictures, in pixels, a multiple of the autoencoder's factor (8)
    batch : images that pass through the networks together
    dtype : of the UNet's weights; the autoencoder stays in float32, for it overflows in float16
    offload : keep weights on the CPU and bring each layer to the device for its turn, slow, for small cards

    Raises UserError where the folder is not a whole one, or the image range is unknown.
    """

    def __init__(
        self,
        config: DecodeConfig,
        seed: int,
        folder: str | Path,
        image_range: str,
        side: int = TRAINED_SIDE,
        batch: int = 1,
        dtype: torch.dtype = torch.float32,
        offload: bool = False,
    ):
        folder = Path(folder)
        if image_range not in IMAGE_RANGES:
            raise UserError(f"{folder}: image_range is {image_range!r}; expected one of {', '.join(IMAGE_RANGES)}")
        accelerate = package("accelerate") if offload else None
        read_card(folder)
        with released("unclip"):
            self.unet = load_part(UNet2DConditionModel, folder / "unet", dtype, exact=True)
            self.vae = load_part(AutoencoderKL, folder / "vae", torch.float32, exact=True)
            self.scheduler = _scheduler(folder / "scheduler" / "scheduler_config.json")
        for network in (self.unet, self.vae):
            if accelerate is None:
                network.to(device())
            else:
                accelerate.cpu_offload(network, device())
        self.vae.enable_slicing()  # pictures pass it one by one: for each it needs more than the UNet does
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        if side < factor or side % factor:
            raise ValueError(f"side is {side}; expected a multiple of {factor}")
        self.config, self.seed, self.folder, self.image_range, self.batch = config, seed, folder, image_range, batch
        self.side, self.latent_side = side, side // factor

    @torch.no_grad()
    def generate(self, tokens: np.ndarray, images: np.ndarray, title: str = "paint") -> torch.Tensor:
        """Image tokens (n, T, D) of images ``images`` (n,) -> latents, from noise.

        Latents are float32 (n, 4, side / 8, side / 8) on the device.

        Raises UserError where D is not the width that the UNet reads.
        """
        tokens = torch.as_tensor(tokens, dtype=torch.float32)
        width = self.unet.config.cross_attention_dim
        if tokens.dim() != 3 or tokens.shape[2] != width:
            raise UserError(
                f"{self.folder}: tokens have shape {tuple(tokens.shape)}; expected (n, T, {width}), the width "
                "that this generator was trained on"
            )
        first = first_sigma(self.scheduler, self.config.generator_steps)
        channels = self.unet.config.in_channels
        painted = [torch.empty(0, channels, self.latent_side, self.latent_side, device=device())]
        for start in progress(range(0, len(tokens), self.batch), title, unit="batch"):
            some = tokens[start : start + self.batch]
            drawn = [self._draw(int(k), some.shape[1:], first) for k in images[start : start + self.batch]]
            noisy, null = (torch.stack(part).to(device()) for part in zip(*drawn, strict=True))
            latents = sample(
                self.unet,
                self.scheduler,
                noisy,
                some.to(device()),
                null,
                size_and_crop(self.side, len(some)).to(device()),
                self.config.generator_steps,
                self.config.guidance,
            )
            if not latents.isfinite().all():
                raise UserError(
                    f"{self.folder}: painted numbers that are not finite in "
                    f"{str(self.unet.dtype).removeprefix('torch.')}; expected dtype bfloat16 or float32"
                )
            painted.append(latents)
        return torch.cat(painted)

    @torch.no_grad()
    def pictures(self, latents: np.ndarray | torch.Tensor) -> np.ndarray:
        """Latents (n, 4, side / 8, side / 8) -> pictures float32 (n, 3, side, side) in 0..1.

        The decoder's range is -1..1, so a base of the range ``clip`` means (x + 1) / 2. Tokens of a ``mindeye2`` base are
        those of washed-out images (u + 1) / 2, which the generator paints as such: there x itself is the picture u.
        """
        pictures = [np.empty((0, self.vae.config.out_channels, self.side, self.side), np.float32)]
        for some in torch.as_tensor(latents, dtype=torch.float32).split(self.batch):
            if not len(some):
                continue
            x = self.vae.decode(some.to(device()) / self.vae.config.scaling_factor).sample
            pictures.append((x if self.image_range == "mindeye2" else (x + 1) / 2).clamp(0, 1).cpu().numpy())
        return np.concatenate(pictures)

    def _draw(self, image: int, token_shape: tuple[int, int], sigma: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Start of the latents, with offset noise, and the tokens of the unconditional branch, which are noise too."""
        source = torch.Generator().manual_seed(derive_seed(self.seed, "unclip", image))
        noise = torch.randn(self.unet.config.in_channels, self.latent_side, self.latent_side, generator=source)
        offset = torch.randn((), generator=source)
        null = torch.randn(token_shape, generator=source)
        return (1 + sigma**2) ** 0.5 * noise + sigma * OFFSET_NOISE * offset, null


def read_card(folder: str | Path) -> dict:
    """What ``mindtuner convert unclip`` noted in its folder. Raises UserError where the folder is none of that kind."""
    folder = Path(folder)
    with released("unclip"):
        if not folder.is_dir():
            raise UserError(
                f"{folder}: {'is a file' if folder.exists() else 'not found'}; expected a folder of 'mindtuner "
                "convert unclip'"
            )
        if not (folder / CARD).is_file():
            raise UserError(f"{folder / CARD}: not found; expected a folder of 'mindtuner convert unclip'")
        card = read_json(folder / CARD)
        if card.get("kind") != KIND:
            raise UserError(
                f"{folder / CARD}: kind is {card.get('kind')!r}; expected {KIND!r}, a folder of 'mindtuner convert unclip'"
            )
    return card


def sample(
    unet: UNet2DConditionModel,
    scheduler: EulerDiscreteScheduler,
    noisy: torch.Tensor,
    tokens: torch.Tensor,
    null: torch.Tensor,
    vector: torch.Tensor,
    steps: int,
    guidance: float,
) -> torch.Tensor:
    """Euler steps with classifier-free guidance, null + guidance x (conditional - null).

    noisy (n, 4, s, s) at the first sigma, tokens and null (n, T, D), vector (n, 1024) -> latents (n, 4, s, s).
    """
    scheduler.set_timesteps(timesteps=times(scheduler, steps), device=noisy.device)
    context, vector = torch.cat([null, tokens]).to(unet.dtype), torch.cat([vector, vector]).to(unet.dtype)
    x = noisy
    for time in scheduler.timesteps:
        given = scheduler.scale_model_input(x, time)
        both = unet(torch.cat([given, given]).to(unet.dtype), time, context, class_labels=vector).sample.float()
        without, conditional = both.chunk(2)
        x = scheduler.step(without + guidance * (conditional - without), time, x).prev_sample
    return x


def times(scheduler: EulerDiscreteScheduler, steps: int) -> list[int]:
    """Evenly spaced from the last training time down, rounded towards 0, without 0: 999, 972, ..., 26 for 38 steps.

    None of diffusers' spacings is this one.
    """
    last = scheduler.config.num_train_timesteps - 1
    if not 1 <= steps <= last + 1:
        raise ValueError(f"steps is {steps}; expected 1 to {last + 1}")
    return [int(time) for time in np.linspace(last, 0, steps, endpoint=False)]


def first_sigma(scheduler: EulerDiscreteScheduler, steps: int) -> float:
    """The noise level that sampling of ``steps`` steps begins with; sets the scheduler's times."""
    scheduler.set_timesteps(timesteps=times(scheduler, steps))
    return float(scheduler.sigmas[0])


def size_and_crop(side: int, n: int) -> torch.Tensor:
    """Original size and crop, (side, side, 0, 0), each number as 256 Fourier features -> (n, 1024)."""
    numbers = torch.tensor([side, side, 0.0, 0.0])
    features = get_timestep_embedding(numbers, 256, flip_sin_to_cos=True, downscale_freq_shift=0)
    return features.flatten().expand(n, -1)


def _scheduler(path: Path) -> EulerDiscreteScheduler:
    settings = read_json(path)
    try:
        return EulerDiscreteScheduler.from_config(settings)
    except DAMAGED as error:
        raise UserError(
            f"{path}: no noise schedule ({one_line(error)}); expected what 'mindtuner convert unclip' writes there"
        ) from error
