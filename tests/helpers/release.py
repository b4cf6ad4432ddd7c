"""The released weights in small: random models of the same classes, in files of the same names and formats.

``write`` makes every file of ``released.manifest.MANIFEST``, so that what the verbs read is what ``fetch weights`` brings, no
more and no less.
"""

import dataclasses
import importlib.util
import json

import open_clip
import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from hub import blob_id, sha256
from paths import ROOT
from transformers import (
    BertTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    GitConfig,
    GitForCausalLM,
)

from mindtuner.published_weights.manifest import MANIFEST

CLIP = "ViT-small-of-the-tests"
TOKENS, WIDTH, TEXT_WIDTH, FEATURES = 16, 40, 24, 10  # of these models
LETTERS = [chr(code) for code in range(97, 123)]
WORDS = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]


def script(name):
    """A module of benchmarks/, which is no package."""
    spec = importlib.util.spec_from_file_location(name.replace("/", "_"), ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(root):
    """Every file of the manifest, in small."""
    unclip, convnext = script("parity/unclip"), script("parity/convnext")
    write_clip(root / "openclip")
    write_vae(root / "sd-image-variations" / "vae")
    convnext.write_checkpoint(root / "convnext_xlarge_alpha0.75_fullckpt.pth", convnext.read_fixture()[0])
    weights = unclip.read_fixture(unclip.FIXTURES / "attention_everywhere.safetensors")[0]
    torch.save(
        {"state_dict": weights, "epoch": 0, "global_step": 110000, "callbacks": {}}, root / "unclip6_epoch0_step110000.ckpt"
    )
    write_sdxl(root / "sdxl")
    write_git(root / "git-large-coco")
    write_converter(root / "bigG_to_L_epoch8.pth", (TOKENS, WIDTH), (5, 8))


def write_clip(root):
    """A state dict, and its form, which ``name_clip`` gives a name."""
    root.mkdir()
    config = {
        "embed_dim": TEXT_WIDTH,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": WIDTH, "head_width": 20, "patch_size": 8},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    path = root.parent / "forms" / f"{CLIP}.json"
    path.parent.mkdir()
    path.write_text(json.dumps(config))
    name_clip(root.parent)
    torch.manual_seed(0)
    torch.save(open_clip.create_model(CLIP, load_weights=False).state_dict(), root / "open_clip_pytorch_model.bin")


def name_clip(root):
    """In this process, open_clip's own list knows the form of the CLIP in a folder that ``write`` filled."""
    open_clip.add_model_config(root / "forms" / f"{CLIP}.json")


def write_vae(root):
    """Torch's format, and a config of the time before scaling_factor."""
    torch.manual_seed(1)
    form = {
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "norm_num_groups": 2,
        "block_out_channels": [4, 4, 8, 8],
        "layers_per_block": 1,
    }
    network = AutoencoderKL(**form)
    root.mkdir(parents=True)
    torch.save(network.state_dict(), root / "diffusion_pytorch_model.bin")
    (root / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL", "_diffusers_version": "0.3.0", **form}))


def write_sdxl(root):
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer(vocab={word: k for k, word in enumerate(WORDS)}, merges=[], model_max_length=77)
    text = dict(
        vocab_size=len(WORDS),
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=8,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=6 * 4 + 8,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        scaling_factor=0.13025,
    )
    schedule = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"
    )
    StableDiffusionXLPipeline(
        vae=vae,
        unet=unet,
        scheduler=schedule,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        text_encoder=CLIPTextModel(CLIPTextConfig(**text)),
        add_watermarker=False,
        text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(**text)),
    ).save_pretrained(root)
    for part, pad in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "a")):
        write_older_tokenizer(root / part, pad)


def write_older_tokenizer(root, pad):
    """As SDXL was published: by an older transformers, vocabulary and merges apart, special tokens spelled out."""
    (root / "tokenizer.json").unlink()
    (root / "vocab.json").write_text(json.dumps({word: k for k, word in enumerate(WORDS)}))
    (root / "merges.txt").write_text("#version: 0.2\n")
    token = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    special = {
        f"{name}_token": {"content": f"<|{word}oftext|>", **token}
        for name, word in (("bos", "start"), ("eos", "end"), ("unk", "end"))
    }
    (root / "special_tokens_map.json").write_text(json.dumps({**special, "pad_token": pad}))
    special = {name: {"__type": "AddedToken", **said} for name, said in special.items()}
    (root / "tokenizer_config.json").write_text(
        json.dumps(
            {
                **special,
                "add_prefix_space": False,
                "do_lower_case": True,
                "errors": "replace",
                "model_max_length": 77,
                "pad_token": pad,
                "special_tokens_map_file": "./special_tokens_map.json",
                "tokenizer_class": "CLIPTokenizer",
            }
        )
    )


def write_git(root):
    """5 image tokens of width 8, 30 words."""
    torch.manual_seed(3)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{k}" for k in range(25))]
    BertTokenizer(vocab={word: k for k, word in enumerate(words)}).save_pretrained(root)
    GitForCausalLM(
        GitConfig(
            vision_config=dict(
                hidden_size=8,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                image_size=4,
                patch_size=2,
                hidden_act="gelu",
            ),
            vocab_size=30,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=3,
            max_position_embeddings=64,
            initializer_range=0.5,
            hidden_dropout_prob=0.1,
        )
    ).save_pretrained(root)
    (root / "vocab.txt").write_text("\n".join(words) + "\n")
    names = {"cls": "[CLS]", "mask": "[MASK]", "pad": "[PAD]", "sep": "[SEP]", "unk": "[UNK]"}
    (root / "special_tokens_map.json").write_text(json.dumps({f"{name}_token": word for name, word in names.items()}))
    (root / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "CLIPImageProcessor"}))


def write_converter(path, given, wanted, seed=1):
    """From (T, D) image tokens to (T', D'), with the optimiser that the released file holds too."""
    source = torch.Generator().manual_seed(seed)
    shapes = {
        "linear1.weight": (wanted[0], given[0]),
        "linear1.bias": wanted[:1],
        "linear2.weight": (wanted[1], given[1]),
        "linear2.bias": wanted[1:],
    }
    weights = {name: torch.randn(shape, generator=source) for name, shape in shapes.items()}
    torch.save({"epoch": 8, "model_state_dict": weights, "optimizer_state_dict": {"state": {}}}, path)


def manifest(root):
    """The package's own, with sizes and checksums of these files where it has them of the released ones."""

    def small(file):
        data = (root / file.path).read_bytes()
        return dataclasses.replace(file, about=len(data), size=file.size and len(data), sha256=file.sha256 and sha256(data))

    return tuple(
        dataclasses.replace(
            weights, files=tuple(map(small, weights.files)), converted=weights.converted and (weights.converted[0], 10**6)
        )
        for weights in MANIFEST
    )


def on_the_hub(root):
    """{path at a hub: content} of these files."""
    return {
        f"/{weights.source}/resolve/{weights.revision}/{file.name}": (root / file.path).read_bytes()
        for weights in MANIFEST
        for file in weights.files
    }


def as_hub_cache(root, cache):
    """These files as the hub's own library keeps what it got."""
    for weights in MANIFEST:
        repo = cache / f"{weights.kind}s--{weights.repo.replace('/', '--')}"
        (repo / "blobs").mkdir(parents=True, exist_ok=True)
        for file in weights.files:
            data = (root / file.path).read_bytes()
            blob = repo / "blobs" / (sha256(data) if file.sha256 and len(data) > 1000 else blob_id(data))
            blob.write_bytes(data)
            link = repo / "snapshots" / (weights.revision if weights.revision != "main" else "c0ffee" + "0" * 34) / file.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(blob)
