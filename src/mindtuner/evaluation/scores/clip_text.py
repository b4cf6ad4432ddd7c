"""CLIP's text tower in transformers' format, for the caption scores CLIP-B and CLIP-L."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from mindtuner.errors import UserError
from mindtuner.files import read_json
from mindtuner.runtime import device
from mindtuner.thirdparty import load_part, load_tokenizer, model_folder, package

FILES = ["*.json", "merges.txt", "model.safetensors"]


class ClipTextEncoder:
    """Sentences -> unit vectors, CLIP's projected text embedding (``CLIPModel.get_text_features``, normalised).

    Parameters
    ----------
    source : folder of a CLIP in transformers' format, whose image tower is left on disk, or its id on the hub; the MindEye2
        evaluation's are openai/clip-vit-base-patch32 for CLIP-B and openai/clip-vit-large-patch14 for CLIP-L
    batch : sentences embedded at a time

    ``width`` is the vectors' width d. Raises UserError where the folder is missing, damaged, or another model's.
    """

    def __init__(self, source: str | Path, batch: int = 128):
        transformers, folder = package("transformers"), model_folder(source, FILES, "the folder of a CLIP")
        kind = read_json(folder / "config.json").get("model_type")
        if kind not in ("clip", "clip_text_model"):
            raise UserError(f"{folder / 'config.json'}: model_type is {kind!r}; expected 'clip'")
        self.network = load_part(transformers.CLIPTextModelWithProjection, folder, torch.float32).to(device())
        self.tokenizer = load_tokenizer(transformers.AutoTokenizer, folder, self.network)
        self.width, self.batch = self.network.config.projection_dim, batch

    @torch.no_grad()
    def embed(self, sentences: list[str]) -> np.ndarray:
        """Sentences (n) -> float32 (n, d), each of unit length; what is longer than the tower's context is cut."""
        vectors = np.empty((len(sentences), self.width), np.float32)
        longest = self.network.config.max_position_embeddings
        for start in range(0, len(sentences), self.batch):
            words = self.tokenizer(
                sentences[start : start + self.batch], return_tensors="pt", padding=True, truncation=True, max_length=longest
            ).to(device())
            found = self.network(**words).text_embeds
            vectors[start : start + self.batch] = torch.nn.functional.normalize(found, dim=-1).cpu().numpy()
        return vectors
