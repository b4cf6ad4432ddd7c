"""Refinement with corrected semantics: SDXL paints a picture again, from part of the way, with the brain's text."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F

from mindtuner.config import DecodeConfig
from mindtuner.errors import UserError
from mindtuner.files import read_json
from mindtuner.generators.painter import usable_device
from mindtuner.runtime import derive_seed, progress
from mindtuner.thirdparty import load_part, load_tokenizer, model_folder, one_line, package, quiet, released

NEGATIVE_PROMPT = (  # of MindEye2's public refinement, so that pictures can be compared with theirs
    "painting, extra fingers, mutated hands, poorly drawn hands, poorly drawn face, deformed, ugly, blurry, bad anatomy, "
    "bad proportions, extra limbs, cloned face, skinny, glitchy, double torso, extra arms, extra hands, mangled fingers, "
    "missing lips, ugly face, distorted face, extra legs, anime"
)
TARGET_SIZE = (1024, 1024)  # what SDXL is told that it paints for, whatever the picture's size; also theirs
PARTS = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
}
TOKENIZERS = {"tokenizer": "text_encoder", "tokenizer_2": "text_encoder_2"}
FILES = [
    "model_index.json",
    "scheduler/*.json",
    *(f"{part}/*.{end}" for part in (*PARTS, *TOKENIZERS) for end in ("json", "txt", "safetensors")),
]


class SdxlRefiner:
    """SDXL image-to-image (diffusers' StableDiffusionXLImg2ImgPipeline) on pictures that were decoded already.

    The MindTuner paper's semantic correction, in the form of MindEye2's refinement: ``refine_steps`` steps of Euler's
    method, the last of a grid of ``refine_steps / refine_start`` (12 of 25), without churn. The grid is the one that
    SDXL's own code walks, 999, 959, ..., 39, and so starts at time 479, sigma 1.51.

    Parameters
    ----------
    source : folder of any SDXL base in diffusers' format, or its id on the hub
    config : refine_steps, refine_start and guidance
    seed : of the noise. A picture's noise depends on the seed and its image's id alone, so any subset reproduces.
    negative : what the unconditional branch is told
    dtype, where : of the models. The noise is drawn on the CPU, so it is the same on every device.
    offload : keep weights on the CPU and bring each layer to the GPU for its turn, slow, for small cards
    batch : pictures painted together

    Raises UserError where the folder is missing, damaged or another model's, a package is missing, or the device or
    number format cannot be had.
    """

    def __init__(
        self,
        source: str | Path,
        config: DecodeConfig,
        seed: int,
        *,
        negative: str = NEGATIVE_PROMPT,
        dtype: torch.dtype = torch.float32,
        where: torch.device | str | None = None,
        offload: bool = False,
        batch: int = 1,
    ):
        where = usable_device(where, dtype)
        if offload and where.type == "cpu":
            raise UserError("offload: is on, but the device is the CPU; expected device cuda, or no offload")
        self.source, self.config, self.seed, self.negative, self.batch = source, config, seed, negative, batch
        libraries = {name: package(name) for name in ("diffusers", "transformers")}
        with released("sdxl"):
            self.pipeline = _pipeline(model_folder(source, FILES, "an SDXL base in diffusers' format"), dtype, libraries)
        self.pipeline.set_progress_bar_config(disable=True)
        self.pipeline.vae.enable_slicing()  # pictures pass the VAE one by one: it needs the most memory
        if offload:
            package("accelerate")
            self.pipeline.enable_sequential_cpu_offload(device=where)
        else:
            self.pipeline.to(where)

    def correct(self, pictures: np.ndarray, prompts: list[str], images: np.ndarray, title: str = "refine") -> np.ndarray:
        """Pictures (n, 3, H, W) in 0..1 of images ``images`` (n,) and a prompt each -> refined float32 (n, 3, H, W) in 0..1.

        H and W are multiples of the VAE's step, 8 in SDXL, which was trained at 768 and more.

        Raises ValueError where the shapes do not fit or values lie outside 0..1, UserError where the models overflow.
        """
        self._check(pictures, prompts, images)
        refined = np.empty(pictures.shape, np.float32)
        for start in progress(range(0, len(pictures), self.batch), title, unit="batch"):
            rows = slice(start, start + self.batch)
            refined[rows] = self._refine(pictures[rows], list(prompts[rows]), images[rows])
            if not np.isfinite(refined[rows]).all():
                raise UserError(
                    f"{self.source}: painted numbers that are not finite in "
                    f"{str(self.pipeline.dtype).removeprefix('torch.')}; expected dtype bfloat16 or float32"
                )
        return refined

    def _refine(self, pictures: np.ndarray, prompts: list[str], images: np.ndarray) -> np.ndarray:
        grid = round(self.config.refine_steps / self.config.refine_start)
        with torch.no_grad(), quiet():  # they tell of prompts that are cut, which is known, and of formats, which is meant
            painted = self.pipeline(
                prompt=prompts,
                negative_prompt=[self.negative] * len(prompts),
                image=torch.as_tensor(pictures, dtype=torch.float32),
                num_inference_steps=grid,
                strength=min(1.0, (self.config.refine_steps + 0.5) / grid),  # the pipeline rounds steps down: stay clear
                guidance_scale=self.config.guidance,
                generator=[torch.Generator().manual_seed(derive_seed(self.seed, "refine", int(k))) for k in images],
                original_size=tuple(pictures.shape[-2:]),
                target_size=TARGET_SIZE,
                output_type="pt",
            ).images
        return painted.float().cpu().numpy()

    def _check(self, pictures: np.ndarray, prompts: list[str], images: np.ndarray) -> None:
        step = self.pipeline.vae_scale_factor
        if pictures.ndim != 4 or pictures.shape[1] != 3 or pictures.shape[2] % step or pictures.shape[3] % step:
            raise ValueError(f"pictures: has shape {pictures.shape}; expected (n, 3, H, W) with sides a multiple of {step}")
        if not len(pictures) == len(prompts) == len(images):
            raise ValueError(f"prompts, images: are {len(prompts)} and {len(images)}; expected {len(pictures)} each")
        if pictures.size and not (pictures.min() >= 0 and pictures.max() <= 1):
            raise ValueError(f"pictures: reach from {pictures.min()} to {pictures.max()}; expected 0 to 1")


def blend(pictures: np.ndarray, lowlevel: np.ndarray, share: float = 0.25) -> np.ndarray:
    """(1 - share) x pictures + share x low-level pictures: what MindEye2's published scores are computed on.

    pictures (n, 3, H, W) · lowlevel (n, 3, h, w), brought to H x W bilinearly without antialiasing · share in 0..1 ->
    float32 (n, 3, H, W). Raises ValueError where the numbers of pictures differ or share lies outside 0..1.
    """
    if len(pictures) != len(lowlevel) or not 0 <= share <= 1:
        raise ValueError(f"lowlevel, share: are {len(lowlevel)} pictures and {share}; expected {len(pictures)} and 0 to 1")
    resized = F.interpolate(
        torch.as_tensor(lowlevel, dtype=torch.float32),
        size=tuple(pictures.shape[-2:]),
        mode="bilinear",
        align_corners=False,
        antialias=False,
    )
    return (1 - share) * pictures.astype(np.float32) + share * resized.numpy()


def _pipeline(folder: Path, dtype: torch.dtype, libraries: dict[str, ModuleType]):
    """The pipeline in a folder, each part checked to be whole before the next is read."""
    index = folder / "model_index.json"
    kind = read_json(index).get("_class_name")
    if not isinstance(kind, str) or not kind.startswith("StableDiffusionXL"):
        raise UserError(f"{index}: _class_name is {kind!r}; expected StableDiffusionXLPipeline, an SDXL base")
    for part in (*PARTS, *TOKENIZERS, "scheduler"):
        if not (folder / part).is_dir():
            raise UserError(f"{folder / part}: not found; expected {', '.join((*PARTS, *TOKENIZERS, 'scheduler'))}")
    _check_widths(folder)
    parts = {
        part: load_part(getattr(libraries[library], name), folder / part, dtype) for part, (library, name) in PARTS.items()
    }
    for part, owner in TOKENIZERS.items():
        parts[part] = load_tokenizer(libraries["transformers"].CLIPTokenizer, folder / part, parts[owner])
    try:  # from the folder come the noise levels; "trailing" is the grid that SDXL's own code walks
        parts["scheduler"] = libraries["diffusers"].EulerDiscreteScheduler.from_config(
            read_json(folder / "scheduler" / "scheduler_config.json"),
            timestep_spacing="trailing",
            use_karras_sigmas=False,
            final_sigmas_type="zero",
        )
        return libraries["diffusers"].StableDiffusionXLImg2ImgPipeline(**parts, add_watermarker=False)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise UserError(f"{folder}: its parts do not fit together ({one_line(error)}); expected an SDXL base") from error


def _check_widths(folder: Path) -> None:
    """The UNet reads what the text towers write; the unCLIP UNet, which reads image tokens, has the same class."""
    unet = read_json(folder / "unet" / "config.json")
    towers = [read_json(folder / part / "config.json") for part in ("text_encoder", "text_encoder_2")]
    widths = [tower.get("hidden_size", 0) for tower in towers]
    context = unet.get("cross_attention_dim")
    if context != sum(widths):
        raise UserError(
            f"{folder / 'unet' / 'config.json'}: cross_attention_dim is {context}; expected {sum(widths)}, what "
            "the two text encoders give"
        )
    joined = 6 * (unet.get("addition_time_embed_dim") or 0) + towers[1].get("projection_dim", 0)
    if unet.get("projection_class_embeddings_input_dim") != joined:
        raise UserError(
            f"{folder / 'unet' / 'config.json'}: projection_class_embeddings_input_dim is "
            f"{unet.get('projection_class_embeddings_input_dim')}; expected {joined}, six sizes and a text"
        )
