"""A user at full size, in small: the weights fetched from a hub, towers like the paper's, a base, and a subject tuned."""

import dataclasses
from types import SimpleNamespace

import pytest
import release
import yaml
from commands import call
from hub import serving

from mindtuner.config import as_dict, load_config
from mindtuner.published_weights import store

QUICK = load_config("quick")
FEW = {"epochs": 1, "batch_per_subject": 8, "head_trials": 8, "dtype": "float32"}
CONFIG = dataclasses.replace(
    QUICK,
    pretrain=dataclasses.replace(QUICK.pretrain, **FEW),
    tune=dataclasses.replace(QUICK.tune, **FEW),
    pivot=dataclasses.replace(QUICK.pivot, epochs=1, batch=16),
    model=dataclasses.replace(
        QUICK.model,
        hidden=16,
        blocks=1,
        tokens=release.TOKENS,
        width=release.WIDTH,
        text_width=release.TEXT_WIDTH,
        prior_depth=1,
        prior_heads=2,
        prior_head_dim=16,
        latent_channels=4,
        latent_side=28,
        lowlevel_channels=(8, 4),
        lowlevel_side=7,
        feature_positions=49,
        feature_width=release.FEATURES,
    ),
    decode=dataclasses.replace(
        QUICK.decode, prior_steps=2, generator_steps=2, refine_steps=1, refine_start=0.5, neighbours=0
    ),
)


def fetch(root, released):
    """Fetch and check every file of the folder ``released``."""
    with pytest.MonkeyPatch.context() as patch, serving(release.on_the_hub(released)) as hub:
        patch.setattr(store, "MANIFEST", release.manifest(released))
        assert call("fetch", "weights", root) == 0
        assert sum(hub.sent.values()) == sum(map(len, hub.files.values()))  # each byte travelled once
        assert call("check", "weights", root, "--hashes") == 0


def models_in(root):
    """The models of a folder that ``fetch`` filled, and the words that name its CLIP."""
    weights = root / "openclip" / "open_clip_pytorch_model.bin"
    return SimpleNamespace(
        root=root,
        clip=("--clip", release.CLIP, "--clip-weights", weights),
        clip_weights=weights,
        vae=root / "sd-image-variations",
        convnext=root / "convnext_xlarge_alpha0.75_fullckpt.pth",
        checkpoint=root / "unclip6_epoch0_step110000.ckpt",
        unclip=root / "unclip",
        sdxl=root / "sdxl",
        git=root / "git-large-coco",
        converter=root / "bigG_to_L_epoch8.pth",
    )


def lab_in(root, data, models):
    """Where ``work`` leaves what."""
    paper = ("--towers", "paper", *models.clip, "--vae", models.vae, "--convnext", models.convnext)
    return SimpleNamespace(
        root=root,
        data=data,
        cache=root / "cache",
        base=root / "base",
        tuned=root / "tuned",
        config=root / "tiny.yaml",
        paper=paper,
        decode=CONFIG.decode,
    )


def work(lab):
    lab.config.write_text(yaml.safe_dump(as_dict(CONFIG)))
    for words in (
        ("embed", lab.data, lab.cache, *lab.paper),
        ("pretrain", lab.data, lab.base, "--without", 1, "--config", lab.config, "--cache", lab.cache),
        ("tune", lab.base, lab.data, lab.tuned, "--subject", 1, "--method", "mindtuner", "--cache", lab.cache),
    ):
        assert call(*words) == 0
