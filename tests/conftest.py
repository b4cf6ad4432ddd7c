"""What several test files need and is slow to make: a small simulated dataset, the towers, untrained generator weights."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from worlds import TINY

from mindtuner.config import load_config
from mindtuner.generators.train_compact import save_generator
from mindtuner.model.denoiser import CompactDenoiser
from mindtuner.model.prior import DiffusionPrior
from mindtuner.simulation import cutouts
from mindtuner.simulation.simulate import simulate
from mindtuner.towers.compact import CompactImageEncoder, CompactTextEncoder
from mindtuner.towers.patch_autoencoder import PatchAutoencoder


@pytest.fixture
def few_cutouts(monkeypatch):
    """One drawing per kind: composing is the same, drawing takes a tenth of the time."""
    monkeypatch.setattr(cutouts, "_VARIANTS", {"train": 1, "test": 1, "generator": 1})


@pytest.fixture(scope="session")
def simulated(tmp_path_factory) -> Path:
    """The folder of a dataset simulated with TINY; read only."""
    root = tmp_path_factory.mktemp("simulated")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutouts, "_VARIANTS", {"train": 1, "test": 1, "generator": 1})
        simulate(root, TINY)
    return root


@pytest.fixture(scope="session")
def image_encoder() -> CompactImageEncoder:
    return CompactImageEncoder()


@pytest.fixture(scope="session")
def text_encoder() -> CompactTextEncoder:
    return CompactTextEncoder()


@pytest.fixture(scope="session")
def untrained_generator(tmp_path_factory) -> Path:
    """A weights file of the right form. Only its autoencoder's linear part is fitted, to noise."""
    path = tmp_path_factory.mktemp("weights") / "untrained.safetensors"
    torch.manual_seed(0)
    autoencoder, denoiser = PatchAutoencoder(), CompactDenoiser()
    autoencoder.fit_linear(torch.rand(8, 3, 128, 128) * 2 - 1)
    prior = DiffusionPrior(load_config("quick").model)
    save_generator(path, autoencoder, prior, dict(denoiser.named_parameters()), denoiser, 0)
    return path


# ---- pages


@pytest.fixture(scope="module")
def chrome(tmp_path_factory):
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        message = "needs Chromium and its driver (Debian: chromium chromium-driver)"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-background-networking",
        "disable-quic",
        "no-first-run",
        "disable-component-update",
        "disable-sync",
        "disable-dev-shm-usage",
        "window-size=1280,900",
        f"user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield chrome
        assert [entry for entry in chrome.get_log("browser") if entry["level"] == "SEVERE"] == []
    finally:
        chrome.quit()


# ---- full size, in small


@pytest.fixture(scope="session")
def released(tmp_path_factory) -> Path:
    """A folder with every released file in small; read only."""
    import release

    root = tmp_path_factory.mktemp("released") / "files"
    root.mkdir()
    release.write(root)
    return root


@pytest.fixture(scope="session")
def models(released, tmp_path_factory) -> SimpleNamespace:
    """What ``fetch weights`` makes of them, from a hub: the files that a user would have; read only."""
    import release
    from hub import serving

    from mindtuner.cli import main
    from mindtuner.published_weights import store

    root = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch, serving(release.on_the_hub(released)) as hub:
        patch.setattr(store, "MANIFEST", release.manifest(released))
        assert main(["fetch", "weights", str(root)]) == 0
        assert sum(hub.sent.values()) == sum(map(len, hub.files.values()))  # each byte travelled once
        assert main(["check", "weights", str(root), "--hashes"]) == 0
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


@pytest.fixture(scope="session")
def lab(tmp_path_factory, simulated, models) -> SimpleNamespace:
    """A cache of the paper's towers, a base of subject 2 on it, and subject 1 tuned, by the verbs; read only."""
    import dataclasses

    import yaml
    from release import FEATURES, TEXT_WIDTH, TOKENS, WIDTH

    from mindtuner.cli import main
    from mindtuner.config import as_dict

    root = tmp_path_factory.mktemp("lab")
    cache, base, tuned, config = root / "cache", root / "base", root / "tuned", root / "tiny.yaml"
    quick = load_config("quick")
    fit = dataclasses.replace(quick.tune, epochs=1, batch_per_subject=8, head_trials=8, dtype="float32")
    model = dataclasses.replace(
        quick.model,
        hidden=16,
        blocks=1,
        tokens=TOKENS,
        width=WIDTH,
        text_width=TEXT_WIDTH,
        prior_depth=1,
        prior_heads=2,
        prior_head_dim=16,
        latent_channels=4,
        latent_side=28,
        lowlevel_channels=(8, 4),
        lowlevel_side=7,
        feature_positions=49,
        feature_width=FEATURES,
    )
    decode = dataclasses.replace(
        quick.decode, prior_steps=2, generator_steps=2, refine_steps=1, refine_start=0.5, neighbours=0
    )
    tiny = dataclasses.replace(
        quick,
        pretrain=dataclasses.replace(fit, start="random", similar_voxels=0),
        tune=fit,
        pivot=dataclasses.replace(quick.pivot, epochs=1, batch=16),
        model=model,
        decode=decode,
    )
    config.write_text(yaml.safe_dump(as_dict(tiny)))
    paper = ("--towers", "paper", *models.clip, "--vae", models.vae, "--convnext", models.convnext)
    for words in (
        ("embed", simulated, cache, *paper),
        ("pretrain", simulated, base, "--without", 1, "--config", config, "--cache", cache),
        ("tune", base, simulated, tuned, "--subject", 1, "--method", "mindtuner", "--cache", cache),
    ):
        assert main(list(map(str, words))) == 0
    return SimpleNamespace(
        root=root, data=simulated, cache=cache, base=base, tuned=tuned, config=config, paper=paper, decode=decode
    )
