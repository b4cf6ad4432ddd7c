"""Refinement by SDXL, on a tiny random SDXL in the same file format, and the prompts that the Pivot gives it."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from hypothesis import given
from hypothesis import strategies as st
from release import write_sdxl

from mindtuner.config import DecodeConfig, load_config
from mindtuner.decoding.words import TextBank, Words
from mindtuner.errors import UserError
from mindtuner.generators.prompts import COCO_CATEGORIES, build_prompts, category_bank, prompts_of
from mindtuner.generators.sdxl import SdxlRefiner, blend

PAPER = DecodeConfig(
    pictures=2, prior_steps=20, generator_steps=38, refine_steps=12, refine_start=0.48, guidance=5.0, neighbours=0
)
SHORT = replace(PAPER, refine_steps=2, refine_start=0.5)
PROMPTS = ["a dog", "a cat on a mat", "two boats"]
IMAGES = np.array([7, 3, 11])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny random SDXL base, in the files of the real one."""
    root = tmp_path_factory.mktemp("sdxl")
    write_sdxl(root)
    return root


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    """A copy of the folder that a test may spoil."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.random.default_rng(1).random((3, 3, 16, 16), dtype=np.float32)


def refined(folder, pictures, config=SHORT, rows=slice(None), **options) -> np.ndarray:
    refiner = SdxlRefiner(folder, config, seed=4, where="cpu", **options)
    return refiner.correct(pictures[rows], PROMPTS[rows], IMAGES[rows])


def test_the_last_12_of_25_steps_run(folder, pictures, monkeypatch):
    refiner = SdxlRefiner(folder, PAPER, seed=4, where="cpu")
    seen = []
    plain = refiner.pipeline.unet.forward
    monkeypatch.setattr(
        refiner.pipeline.unet, "forward", lambda x, t, **rest: seen.append((t, x, rest)) or plain(x, t, **rest)
    )
    refiner.correct(pictures[:1], PROMPTS[:1], IMAGES[:1])
    # The grid of SDXL's own code: 25 times from 999 down, equally spaced without the end, cut to whole numbers.
    grid = np.linspace(999, 0, 25, endpoint=False).astype(int)
    assert [int(time) for time, _, _ in seen] == list(grid[-12:])
    # Noise levels from the betas alone.
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    kept = np.cumprod(1 - betas)
    sigma = np.sqrt((1 - kept) / kept)[grid[-12:]]
    assert sigma[0] == pytest.approx(1.51, abs=0.01)
    assert refiner.pipeline.scheduler.sigmas[-13:].numpy() == pytest.approx([*sigma, 0], rel=1e-4)
    times = seen[0][2]["added_cond_kwargs"]["time_ids"]
    assert times.tolist() == [[16, 16, 0, 0, 1024, 1024]] * 2


def test_one_step_by_hand(folder, pictures):
    """One step of Euler from sigma to 0 is the guided clean latent; towers, VAE and UNet are called one by one here."""
    config = replace(PAPER, refine_steps=1, refine_start=0.5, guidance=3.0)
    refiner = SdxlRefiner(folder, config, seed=4, where="cpu", negative="ugly")
    result = refiner.correct(pictures[:1], ["a dog"], IMAGES[:1])

    from mindtuner.runtime import derive_seed

    pipeline, time = refiner.pipeline, 499
    source = torch.Generator().manual_seed(derive_seed(4, "refine", 7))
    with torch.no_grad():
        spread = pipeline.vae.encode(torch.from_numpy(pictures[:1]) * 2 - 1).latent_dist
        clean = 0.13025 * (spread.mean + spread.std * torch.randn(spread.mean.shape, generator=source))
        kept = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)[time]
        sigma = float(np.sqrt((1 - kept) / kept))
        noisy = clean + sigma * torch.randn(clean.shape, generator=source)
        said = []
        for phrase in ("ugly", "a dog"):
            first, second = (
                tower(
                    tokenizer(phrase, padding="max_length", max_length=77, return_tensors="pt").input_ids,
                    output_hidden_states=True,
                )
                for tokenizer, tower in (
                    (pipeline.tokenizer, pipeline.text_encoder),
                    (pipeline.tokenizer_2, pipeline.text_encoder_2),
                )
            )
            first = first.hidden_states[-2]
            said.append(
                pipeline.unet(
                    noisy / (sigma**2 + 1) ** 0.5,
                    time,
                    torch.cat([first, second.hidden_states[-2]], 2),
                    added_cond_kwargs={
                        "text_embeds": second.text_embeds,
                        "time_ids": torch.tensor([[16.0, 16, 0, 0, 1024, 1024]]),
                    },
                ).sample
            )
        noise = said[0] + 3 * (said[1] - said[0])
        expected = pipeline.vae.decode((noisy - sigma * noise) / 0.13025).sample
    np.testing.assert_allclose(result, (expected / 2 + 0.5).clamp(0, 1).numpy(), atol=1e-4)


@given(steps=st.integers(1, 100), more=st.integers(0, 100))
def test_as_many_steps_as_asked_for_whatever_the_rounding(steps, more):
    """diffusers runs int(grid x strength) steps, which in floats may be one less than the product."""
    calls = []
    refiner = object.__new__(SdxlRefiner)
    refiner.config = replace(PAPER, refine_steps=steps, refine_start=steps / (steps + more))
    refiner.seed, refiner.negative = 0, ""

    def pipeline(image, **options):
        calls.append(options)
        return type("Output", (), {"images": image})

    refiner.pipeline = pipeline
    refiner._refine(np.zeros((1, 3, 16, 16), np.float32), ["x"], np.array([0]))
    assert calls[0]["num_inference_steps"] == steps + more
    assert min(int((steps + more) * calls[0]["strength"]), steps + more) == steps


def test_any_subset_reproduces(folder, pictures):
    together = refined(folder, pictures, batch=3)
    alone = np.concatenate([refined(folder, pictures, rows=slice(k, k + 1)) for k in range(3)])
    assert together.shape == pictures.shape and together.dtype == np.float32
    assert together.min() >= 0 and together.max() <= 1
    np.testing.assert_allclose(together, alone, atol=1e-5)
    other = SdxlRefiner(folder, SHORT, seed=5, where="cpu").correct(pictures[:1], PROMPTS[:1], IMAGES[:1])
    assert np.abs(other - together[:1]).max() > 1e-3
    assert SdxlRefiner(folder, SHORT, seed=4, where="cpu").correct(pictures[:0], [], IMAGES[:0]).shape == (0, 3, 16, 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_that_come_one_by_one_paint_the_same(folder, pictures, dtype):
    """What diffusers does for sequential offload, which it refuses without a GPU; here from the CPU to the CPU."""
    whole, offloaded = (SdxlRefiner(folder, SHORT, seed=4, where="cpu", dtype=dtype) for _ in range(2))
    for part in offloaded.pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            cpu_offload(part, torch.device("cpu"), offload_buffers=len(part._parameters) > 0)
            assert {parameter.device.type for parameter in part.parameters()} == {"meta"}
    np.testing.assert_array_equal(
        offloaded.correct(pictures[:2], PROMPTS[:2], IMAGES[:2]), whole.correct(pictures[:2], PROMPTS[:2], IMAGES[:2])
    )


def test_guidance_pushes_away_from_the_negative_prompt(folder, pictures):
    def paint(guidance, prompt, negative):
        config = replace(SHORT, guidance=guidance)
        refiner = SdxlRefiner(folder, config, seed=4, where="cpu", negative=negative)
        return refiner.correct(pictures[:1], [prompt], IMAGES[:1])

    # Guidance 1 is the prompt alone; where prompt and negative prompt agree, guidance changes nothing.
    np.testing.assert_allclose(paint(1, "a dog", "ugly"), paint(1, "a dog", "painting"), atol=1e-6)
    np.testing.assert_allclose(paint(5, "ugly", "ugly"), paint(1, "ugly", "ugly"), atol=1e-5)
    assert np.abs(paint(5, "a dog", "ugly") - paint(5, "a dog", "painting")).max() > 1e-5
    assert np.abs(paint(5, "a dog", "ugly") - paint(5, "a cat", "ugly")).max() > 1e-5


def test_the_papers_config_is_12_of_25():
    decode = load_config("paper").decode
    assert (decode.refine_steps, round(decode.refine_steps / decode.refine_start), decode.guidance) == (12, 25, 5.0)


def test_half_precision_files_are_read_where_there_are_no_others(copy, pictures):
    for part in ("unet", "vae"):
        (copy / part / "diffusion_pytorch_model.safetensors").rename(copy / part / "diffusion_pytorch_model.fp16.safetensors")
    assert np.isfinite(refined(copy, pictures, rows=slice(1))).all()


def test_overflow_is_not_a_black_picture(folder, pictures):
    refiner = SdxlRefiner(folder, SHORT, seed=4, where="cpu")
    refiner.pipeline.unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite in float32; expected dtype bfloat16 or float32"):
        refiner.correct(pictures[:1], PROMPTS[:1], IMAGES[:1])


def test_blend():
    rng = np.random.default_rng(0)
    sharp, rough = rng.random((2, 3, 8, 8)), rng.random((2, 3, 8, 8))
    np.testing.assert_allclose(blend(sharp, rough, 0), sharp, atol=1e-6)
    np.testing.assert_allclose(blend(sharp, rough, 1), rough, atol=1e-6)
    np.testing.assert_allclose(blend(sharp, rough), 0.75 * sharp + 0.25 * rough, atol=1e-6)
    # Halving without antialiasing samples between the middle two of four pixels: with weights 1/2 each way.
    small = blend(np.zeros((2, 3, 4, 4)), rough, 1)
    np.testing.assert_allclose(small, rough.reshape(2, 3, 4, 2, 4, 2).mean((3, 5)), atol=1e-6)
    for arguments in ((sharp, rough[:1]), (sharp, rough, 1.5), (sharp, rough, -0.1)):
        with pytest.raises(ValueError, match="lowlevel, share"):
            blend(*arguments)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda p, t, i: (p[:, :1], t, i), "pictures: has shape"),
        (lambda p, t, i: (p[..., :15], t, i), "a multiple of 2"),
        (lambda p, t, i: (p, t[:2], i), "prompts, images: are 2 and 3"),
        (lambda p, t, i: (p, t, i[:1]), "prompts, images: are 3 and 1"),
        (lambda p, t, i: (p * 2 - 1, t, i), "expected 0 to 1"),
        (lambda p, t, i: (p * np.nan, t, i), "expected 0 to 1"),
    ],
)
def test_wrong_calls(folder, pictures, change, message):
    with pytest.raises(ValueError, match=message):
        SdxlRefiner(folder, SHORT, seed=0, where="cpu").correct(*change(pictures, PROMPTS, IMAGES))


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def cut(path: Path, to: int = 1000) -> None:
    path.write_bytes(path.read_bytes()[:to])


def lack_a_tensor(path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(path)
    weights.pop(sorted(weights)[0])
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda f: shutil.rmtree(f), "not found; expected an SDXL base .*released one, sdxl"),
        (lambda f: (f / "model_index.json").unlink(), "model_index.json: not found"),
        (lambda f: edit(f / "model_index.json", _class_name="StableDiffusionPipeline"), "_class_name is 'StableDiffusionP"),
        (lambda f: shutil.rmtree(f / "text_encoder_2"), "text_encoder_2: not found"),
        (lambda f: edit(f / "unet" / "config.json", cross_attention_dim=1664), "cross_attention_dim is 1664; expected 16"),
        (lambda f: edit(f / "unet" / "config.json", projection_class_embeddings_input_dim=24), "is 24; expected 32"),
        (lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").unlink(), "vae: not a whole AutoencoderKL"),
        (lambda f: cut(f / "unet" / "diffusion_pytorch_model.safetensors"), "unet: not a whole UNet2DConditionModel"),
        (lambda f: cut(f / "text_encoder" / "model.safetensors"), "text_encoder: not a whole CLIPTextModel"),
        (lambda f: lack_a_tensor(f / "text_encoder_2" / "model.safetensors"), "text_encoder_2: lacks 1 tensors such as"),
        (lambda f: lack_a_tensor(f / "unet" / "diffusion_pytorch_model.safetensors"), "unet: "),
        (lambda f: shutil.copy(f / "vae" / "diffusion_pytorch_model.safetensors", f / "unet"), "unet: "),
        (lambda f: (f / "tokenizer" / "tokenizer_config.json").unlink(), "tokenizer_config.json: not found"),
        (lambda f: (f / "tokenizer" / "vocab.json").unlink(), "tokenizer: not a whole tokenizer"),
        (
            lambda f: [(f / "tokenizer" / name).unlink() for name in ("vocab.json", "merges.txt")],
            "has 2 words; expected the 54",
        ),
        (lambda f: cut(f / "tokenizer" / "vocab.json", 100), "tokenizer: not a whole tokenizer"),
        (lambda f: (f / "scheduler" / "scheduler_config.json").unlink(), "scheduler_config.json: not found"),
        (lambda f: edit(f / "scheduler" / "scheduler_config.json", beta_schedule="none"), "do not fit together"),
    ],
)
def test_a_damaged_or_swapped_folder(copy, spoil, message):
    spoil(copy)
    with pytest.raises(UserError, match=message) as caught:
        SdxlRefiner(copy, SHORT, seed=0, where="cpu")
    assert str(copy) in str(caught.value) and "expected" in str(caught.value) and "\n" not in str(caught.value)


def test_what_this_machine_lacks(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for options, message in [
        ({"where": "cuda"}, "torch finds no CUDA here"),
        ({"where": "abacus"}, "device: is 'abacus'"),
        ({"where": "cpu", "dtype": torch.float16}, "float16 on a CPU"),
        ({"offload": True}, "offload: is on"),
    ]:
        with pytest.raises(UserError, match=message):
            SdxlRefiner(folder, SHORT, seed=0, **options)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: is a file; expected an SDXL base"):
        SdxlRefiner(tmp_path / "file", SHORT, seed=0)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="owner/no-such-model: no such folder, and not to be had from the hub"):
        SdxlRefiner("owner/no-such-model", SHORT, seed=0)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="package transformers: cannot be imported .* pip install transformers"):
        SdxlRefiner(folder, SHORT, seed=0)


def test_of_the_hub_only_what_is_needed_is_asked_for(folder, pictures, monkeypatch):
    from fnmatch import fnmatchcase

    asked = {}
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, **options: asked.update(options, name=name) or str(folder)
    )
    SdxlRefiner("owner/sdxl", SHORT, seed=0, where="cpu")
    files = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    assert asked["name"] == "owner/sdxl"
    assert all(any(fnmatchcase(name, pattern) for pattern in asked["allow_patterns"]) for name in files)
    for name in ("sd_xl_base_1.0.safetensors", "vae_1_0/config.json", "vae_decoder/model.onnx"):
        assert not any(fnmatchcase(name, pattern) for pattern in asked["allow_patterns"])


# Prompts


class Letters:
    """A text tower of the 26 letters: how often each occurs, at unit length."""

    def embed(self, sentences):
        counts = np.array([[s.lower().count(chr(code)) for code in range(97, 123)] for s in sentences], np.float64)
        return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)


def bank(*pairs) -> TextBank:
    return TextBank([text for text, _ in pairs], np.array([vector for _, vector in pairs], float), 0)


KINDS = bank(("a photo of a dog", (1, 0)), ("a photo of a boat", (0, 1)), ("a photo of a cat", (0.8, 0.6)))
SEEN = bank(("A dog runs.", (0.96, 0.28)), ("Two boats at sea.", (0.28, 0.96)), ("a photo of a dog", (1, 0)), ("  ", (1, 0)))


@pytest.mark.parametrize(
    "text, options, expected",
    [
        ((1, 0), {}, "a photo of a dog, a photo of a cat, A dog runs"),
        ((0, 1), {}, "a photo of a boat, a photo of a cat, Two boats at sea"),
        ((1, 0), {"top_categories": 0}, "a photo of a dog"),
        ((1, 0), {"top_categories": 0, "top_captions": 2}, "a photo of a dog, A dog runs"),
        ((1, 0), {"top_captions": 0, "top_categories": 1}, "a photo of a dog"),
        (
            (0, 1),
            {"top_captions": 9, "top_categories": 9},
            "a photo of a boat, a photo of a cat, a photo of a dog, Two boats at sea, A dog runs",
        ),
    ],
)
def test_worked_prompts(text, options, expected):
    assert build_prompts(np.array([text], float), KINDS, SEEN, **options) == [expected]


@pytest.mark.parametrize(
    "text, said, expected",
    [  # what a brain is sure of comes first, then kinds of things that this does not name
        ((1, 0), ["a boat", "at sea"], "a boat at sea, a photo of a dog, a photo of a cat"),
        ((1, 0), ["a red dog", "a cat"], "a red dog and a cat"),
        ((0, 1), ["a sailboat"], "a sailboat, a photo of a boat, a photo of a cat"),
        ((0, 1), [], "a photo of a boat, a photo of a cat"),
        ((1, 0), None, "a photo of a dog, a photo of a cat, A dog runs"),  # not composed: whole captions
    ],
)
def test_what_prompt_a_brain_gives(text, said, expected):
    reader = SimpleNamespace(bank=SimpleNamespace(phrases=said))
    words = Words(np.array([text], float), SEEN, None if said is None else np.full((1, len(said)), 0.9), reader)
    assert prompts_of(words, KINDS) == [expected]


vectors = st.tuples(st.integers(-3, 3), st.integers(-3, 3))
phrases = st.text("ab .", max_size=4)
banks = st.lists(st.tuples(phrases, vectors), min_size=1, max_size=6).map(lambda pairs: bank(*pairs))


@given(st.lists(vectors, max_size=4), banks, banks, st.integers(0, 3), st.integers(1, 3))
def test_properties_of_prompts(texts, kinds, seen, top_kinds, top_seen):
    text = np.array(texts, float).reshape(-1, 2)
    prompts = build_prompts(text, kinds, seen, top_kinds, top_seen)
    assert len(prompts) == len(text)
    known = {" ".join(phrase.split()).rstrip(" .") for phrase in kinds.captions + seen.captions}
    for one, prompt in zip(text, prompts, strict=True):
        parts = prompt.split(", ") if prompt else []
        assert len(parts) <= top_kinds + top_seen and set(parts) <= known
        assert len({part.lower() for part in parts}) == len(parts)
        assert build_prompts(one[None], kinds, seen, top_kinds, top_seen) == [prompt]  # no brain sees another's
        assert build_prompts(2 * one[None], kinds, seen, top_kinds, top_seen) == [prompt]


@pytest.mark.parametrize("numbers", [(0, 0), (-1, 2), (2, -1)])
def test_no_prompt_of_nothing(numbers):
    with pytest.raises(ValueError, match="expected at least 1"):
        build_prompts(np.ones((1, 2)), KINDS, SEEN, *numbers)


def test_category_prompts():
    kinds = category_bank(Letters())
    assert len(kinds.captions) == len(set(kinds.captions)) == len(COCO_CATEGORIES) == 80
    assert kinds.embeddings.shape == (80, 26)
    for prompt in (
        "a photo of a dog",
        "a photo of an apple",
        "a photo of scissors",
        "a photo of skis",
        "a photo of a bus",
        "a photo of a wine glass",
    ):
        assert prompt in kinds.captions
    # A text finds itself first, up to words of the same letters.
    found = build_prompts(kinds.embeddings, kinds, kinds, 1, 0)
    assert sum(one == other for one, other in zip(found, kinds.captions, strict=True)) >= 78
    assert category_bank(Letters(), ("owl",)).captions == ["a photo of an owl"]
