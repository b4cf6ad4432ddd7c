"""Captions by GIT, on a tiny random GIT in the same file format."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from release import write_git
from transformers import BertTokenizer, GitForCausalLM

from mindtuner.errors import UserError
from mindtuner.generators.git_captioner import MAX_LENGTH, GitCaptioner, TokenConverter

SIZES = {"linear1.weight": (5, 4), "linear1.bias": (5,), "linear2.weight": (8, 6), "linear2.bias": (8,)}  # (4, 6) -> (5, 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny random GIT: 5 image tokens of width 8, 30 words."""
    root = tmp_path_factory.mktemp("git")
    write_git(root)
    return root


@pytest.fixture(scope="module")
def weights() -> dict:
    source = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=source) for name, shape in SIZES.items()}


@pytest.fixture
def converter(tmp_path, weights) -> Path:
    """In the form of the released file, which holds its optimiser too."""
    path = tmp_path / "bigG_to_L_epoch8.pth"
    torch.save({"epoch": 8, "model_state_dict": weights, "optimizer_state_dict": {"state": {}}}, path)
    return path


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(5, 4, 6)).astype(np.float32)


def by_einsum(weights: dict, tokens: np.ndarray) -> np.ndarray:
    w = {name: tensor.double().numpy() for name, tensor in weights.items()}
    mixed = np.einsum("ts,nsd->ntd", w["linear1.weight"], tokens.astype(float)) + w["linear1.bias"][:, None]
    return np.einsum("ed,ntd->nte", w["linear2.weight"], mixed) + w["linear2.bias"]


def test_the_converter_is_linear_over_tokens_then_width(converter, weights, tokens):
    result = TokenConverter.read(converter)(torch.from_numpy(tokens))
    assert result.shape == (5, 5, 8)
    np.testing.assert_allclose(result.numpy(), by_einsum(weights, tokens), atol=1e-4)


def test_the_released_sizes():
    sizes = {name: tuple(p.shape) for name, p in TokenConverter(256, 1664, 257, 1024).state_dict().items()}
    assert sizes == {
        "linear1.weight": (257, 256),
        "linear1.bias": (257,),
        "linear2.weight": (1024, 1664),
        "linear2.bias": (1024,),
    }


def test_captions_are_gits_own_when_its_image_tower_gives_these_tokens(folder, converter, weights, tokens, monkeypatch):
    """The untouched model, whose image tower is made to end in the converted tokens for any picture."""
    model = GitForCausalLM.from_pretrained(folder).eval()
    whole = BertTokenizer.from_pretrained(folder)
    expected = []
    for features in by_einsum(weights, tokens):
        ending = torch.tensor(features, dtype=torch.float32)[None]
        monkeypatch.setattr(model.git.image_encoder.vision_model.post_layernorm, "forward", lambda x, ending=ending: ending)
        ids = model.generate(pixel_values=torch.zeros(1, 3, 4, 4), max_length=MAX_LENGTH, do_sample=False)
        expected.append(whole.decode(ids[0], skip_special_tokens=True))
    assert len(set(expected)) > 1  # the tokens matter
    written = GitCaptioner(folder, converter, where="cpu", batch=2).captions(tokens)
    assert written == expected
    assert GitCaptioner(folder, converter, where="cpu", batch=8).captions(tokens[3:]) == expected[3:]
    assert GitCaptioner(folder, converter, where="cpu").captions(tokens[:0]) == []


def test_each_word_is_the_likeliest_next(folder, converter, weights, tokens):
    """Greedy by hand, without a cache: image tokens first, projected, and the words so far behind them."""
    captioner = GitCaptioner(folder, converter, where="cpu")
    model = GitForCausalLM.from_pretrained(folder).eval().git
    head = GitForCausalLM.from_pretrained(folder).output
    image = model.visual_projection(torch.tensor(by_einsum(weights, tokens[:1]), dtype=torch.float32))
    words = [2]
    with torch.no_grad():
        while len(words) < MAX_LENGTH and words[-1] != 3:
            x = torch.cat([image, model.embeddings(torch.tensor([words]))], 1)
            n, m = image.shape[1], x.shape[1]
            sees = torch.ones(m, m).tril().bool()
            sees[:n, :n] = True
            mask = torch.zeros(m, m).masked_fill(~sees, torch.finfo(torch.float32).min)[None, None]
            words.append(int(head(model.encoder(x, attention_mask=mask).last_hidden_state)[0, -1].argmax()))
    said = captioner.tokenizer.decode(words, skip_special_tokens=True)
    assert captioner.captions(tokens[:1]) == [said]


def test_gits_own_image_tower_is_let_go(folder, converter):
    whole = sum(p.numel() for p in GitForCausalLM.from_pretrained(folder).parameters())
    tower = sum(p.numel() for p in GitForCausalLM.from_pretrained(folder).git.image_encoder.parameters())
    assert sum(p.numel() for p in GitCaptioner(folder, converter, where="cpu").model.parameters()) == whole - tower


@pytest.mark.parametrize("shape", [(2, 5, 6), (2, 4, 8), (4, 6)])
def test_tokens_of_another_tower(folder, converter, shape):
    with pytest.raises(UserError, match=r"tokens: have shape .* expected \(n, 4, 6\)"):
        GitCaptioner(folder, converter, where="cpu").captions(np.zeros(shape, np.float32))


def lack_a_tensor(path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(path)
    weights.pop("git.visual_projection.visual_projection.0.weight")
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda f: shutil.rmtree(f), "not found; expected a GIT .*released one, git"),
        (lambda f: (f / "config.json").unlink(), "config.json: not found"),
        (
            lambda f: (f / "config.json").write_text(json.dumps({"model_type": "clip"})),
            "model_type is 'clip'; expected 'git'",
        ),
        (lambda f: (f / "model.safetensors").unlink(), "not a whole GitForCausalLM"),
        (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:999]), "not a whole GitFor"),
        (lambda f: lack_a_tensor(f / "model.safetensors"), "lacks 1 tensors such as git.visual_projection"),
        (lambda f: (f / "tokenizer_config.json").unlink(), "tokenizer_config.json: not found"),
        (lambda f: BertTokenizer(vocab={f"w{k}": k for k in range(40)}).save_pretrained(f), "words; expected the 30"),
    ],
)
def test_a_damaged_or_swapped_folder(folder, converter, tmp_path, spoil, message):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    spoil(copy)
    with pytest.raises(UserError, match=message) as caught:
        GitCaptioner(copy, converter, where="cpu")
    assert str(copy) in str(caught.value) and "expected" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "not found"),
        ({"model_state_dict": {}}, "holds no tensors by name; expected MindEye2's converter"),
        ({"model_state_dict": {"ridge.weight": torch.zeros(2, 2)}}, "holds 1 tensors such as ridge.weight; expected linear1"),
        ({"model_state_dict": {n: torch.zeros(s) for n, s in SIZES.items() if n != "linear2.bias"}}, "holds 3 tensors"),
        (
            {"model_state_dict": {n: torch.zeros(s) for n, s in SIZES.items()} | {"linear1.bias": torch.zeros(4)}},
            "holds 4 tensors such as linear1.weight; expected linear1",
        ),
        ({"state": {}}, "field model_state_dict is missing \\(it holds state\\)"),
        (
            {"model_state_dict": {n: torch.zeros([3] * len(s)) for n, s in SIZES.items()}},
            "makes 3 tokens of width 3; expected 5 of 8",
        ),
    ],
)
def test_a_damaged_or_swapped_converter(folder, tmp_path, content, message):
    path = tmp_path / "converter.pth"
    if content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=message) as caught:
        GitCaptioner(folder, path, where="cpu")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_what_this_machine_lacks(folder, converter, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for options, message in [
        ({"where": "cuda"}, "torch finds no CUDA here"),
        ({"where": "cpu", "dtype": torch.float16}, "float16 on a CPU"),
    ]:
        with pytest.raises(UserError, match=message):
            GitCaptioner(folder, converter, **options)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="package transformers: cannot be imported .* pip install transformers"):
        GitCaptioner(folder, converter)
