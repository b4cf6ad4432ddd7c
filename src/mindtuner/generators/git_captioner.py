"""Captions written from predicted image tokens: GIT, which takes them in the place of an image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from mindtuner.errors import UserError
from mindtuner.files import read_json
from mindtuner.generators.painter import usable_device
from mindtuner.runtime import progress
from mindtuner.thirdparty import load_part, load_tokenizer, model_folder, package, read_state_dict, released

MAX_LENGTH = 20  # tokens of a caption with its first, as in MindEye2's public code
FILES = ["*.json", "vocab.txt", "model.safetensors"]


class TokenConverter(nn.Module):
    """One tower's image tokens to another's: linear over the tokens, then over the width.

    ``y[t, e] = sum_d W2[e, d] (sum_s W1[t, s] x[s, d] + b1[t]) + b2[e]``; MindEye2's has (T, D) = (256, 1664), OpenCLIP
    bigG without class token, to (257, 1024), CLIP ViT-L/14 with one.
    """

    def __init__(self, tokens: int, width: int, to_tokens: int, to_width: int):
        super().__init__()
        self.linear1 = nn.Linear(tokens, to_tokens)
        self.linear2 = nn.Linear(width, to_width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(n, T, D) -> (n, T', D')."""
        return self.linear2(self.linear1(tokens.mT).mT)

    @classmethod
    def read(cls, path: str | Path) -> TokenConverter:
        """The converter in a file such as MindEye2's ``bigG_to_L_epoch8.pth``; its sizes are those of the file.

        Raises UserError where the file is missing, damaged, or holds anything else.
        """
        weights = read_state_dict(path, "MindEye2's converter of tokens (bigG_to_L_epoch8.pth)", "model_state_dict")
        shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        matrices = [shapes.get(f"linear{k}.weight", ()) for k in (1, 2)]
        if not all(len(shape) == 2 for shape in matrices) or shapes != {
            **{f"linear{k}.weight": matrices[k - 1] for k in (1, 2)},
            **{f"linear{k}.bias": matrices[k - 1][:1] for k in (1, 2)},
        }:
            raise UserError(
                f"{path}: holds {len(shapes)} tensors such as {next(iter(shapes), None)}; expected linear1 and "
                "linear2, each a weight and a bias, as in bigG_to_L_epoch8.pth"
            )
        converter = cls(matrices[0][1], matrices[1][1], matrices[0][0], matrices[1][0])
        converter.load_state_dict(weights)
        return converter.eval().requires_grad_(False)


class TokensAsImage(nn.Module):
    """Stands where GIT's image tower stood, and hands on the tokens that come in the place of the image."""

    def forward(self, pixel_values: torch.Tensor, **_) -> object:
        """(n, 1, T', D') -> an output with last_hidden_state (n, T', D')."""
        output = package("transformers.modeling_outputs").BaseModelOutput
        return output(last_hidden_state=pixel_values.squeeze(1))


class GitCaptioner:
    """Writes a caption for each image's tokens, with transformers' GitForCausalLM; always the likeliest next word.

    Parameters
    ----------
    source : folder of a GIT in transformers' format, or its id on the hub; the MindEye2 paper's is GIT-large-COCO
    converter : file with the weights of the ``TokenConverter`` from the predicted tokens to GIT's own
    dtype, where : of the model
    batch : captions written together

    Raises UserError where folder or file are missing, damaged, another model's, or do not fit each other, a package is
    missing, or the device or number format cannot be had.
    """

    def __init__(
        self,
        source: str | Path,
        converter: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        where: torch.device | str | None = None,
        batch: int = 8,
    ):
        self.where, self.batch = usable_device(where, dtype), batch
        transformers = package("transformers")
        with released("converter"):
            self.converter = TokenConverter.read(converter)
        with released("git"):
            folder = model_folder(source, FILES, "a GIT in transformers' format")
            kind = read_json(folder / "config.json").get("model_type")
            if kind != "git":
                raise UserError(f"{folder / 'config.json'}: model_type is {kind!r}; expected 'git'")
            self.model = load_part(transformers.GitForCausalLM, folder, dtype)
            self.tokenizer = load_tokenizer(transformers.AutoTokenizer, folder, self.model)
        vision = self.model.config.vision_config
        wanted = ((vision.image_size // vision.patch_size) ** 2 + 1, vision.hidden_size)
        given = (self.converter.linear1.out_features, self.converter.linear2.out_features)
        if given != wanted:
            raise UserError(
                f"{converter}: makes {given[0]} tokens of width {given[1]}; expected {wanted[0]} of {wanted[1]}, "
                f"the image tokens of {source}"
            )
        self.model.git.image_encoder = TokensAsImage()  # its own tower, most of the weights, is not needed
        self.model.to(self.where)
        self.converter.to(self.where)

    @torch.no_grad()
    def captions(self, tokens: np.ndarray, title: str = "caption") -> list[str]:
        """Image tokens (n, T, D), as predicted -> n captions. Raises UserError where T or D are not the converter's."""
        expected = (self.converter.linear1.in_features, self.converter.linear2.in_features)
        if tokens.ndim != 3 or tokens.shape[1:] != expected:
            raise UserError(
                f"tokens: have shape {tokens.shape}; expected (n, {expected[0]}, {expected[1]}), what the "
                "caption converter was made for"
            )
        written = []
        for start in progress(range(0, len(tokens), self.batch), title, unit="batch"):
            part = torch.as_tensor(tokens[start : start + self.batch], dtype=torch.float32, device=self.where)
            features = self.converter(part).to(self.model.dtype)
            words = self.model.generate(
                pixel_values=features.unsqueeze(1), max_length=MAX_LENGTH, do_sample=False, num_beams=1
            )
            written += [text.strip() for text in self.tokenizer.batch_decode(words, skip_special_tokens=True)]
        return written
