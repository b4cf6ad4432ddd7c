"""What several test files need and is slow to make: a small simulated dataset, the towers, untrained generator weights."""

import ast
import functools
import gc
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

if "PYTEST_XDIST_WORKER" in os.environ:  # a worker for each core, so a worker and its children take one; before torch comes
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

import numpy as np
import pytest
import torch
from once import made_once
from worlds import TINY, draw_few

from mindtuner.config import load_config
from mindtuner.generators.train_compact import save_generator
from mindtuner.model.prior import DiffusionPrior
from mindtuner.model.token_painter import TokenPainter
from mindtuner.model.word_prior import WordPrior
from mindtuner.simulation.simulate import simulate
from mindtuner.towers.compact import CompactImageEncoder, CompactTextEncoder
from mindtuner.towers.patch_autoencoder import PatchAutoencoder

literal_eval = ast.literal_eval


@functools.wraps(literal_eval)
def literal_eval_without_collecting(*words):
    """Hypothesis looks on at garbage collection, in Python. Where that comes while a syntax tree is made, as NumPy does of
    each file's header, Python 3.11 loses count of the tree's depth and raises SystemError (cf. CPython's issue 106905)."""
    gc.disable()
    try:
        return literal_eval(*words)
    finally:
        gc.enable()


ast.literal_eval = literal_eval_without_collecting


def pytest_xdist_auto_num_workers(config):
    """No workers for a file or two, which start sooner without them. None: pytest-xdist counts the cores."""
    return 0 if len(config.args) < 3 and all(".py" in argument for argument in config.args) else None


@pytest.fixture
def few_cutouts(monkeypatch):
    draw_few(monkeypatch)


@pytest.fixture(scope="session")
def simulated(tmp_path_factory) -> Path:
    """The folder of a dataset simulated with TINY; read only."""

    def make(root):
        with pytest.MonkeyPatch.context() as patch:
            draw_few(patch)
            simulate(root, TINY)

    return made_once(tmp_path_factory, "simulated", make)


@pytest.fixture(scope="session")
def image_encoder() -> CompactImageEncoder:
    return CompactImageEncoder()


@pytest.fixture(scope="session")
def text_encoder() -> CompactTextEncoder:
    return CompactTextEncoder()


@pytest.fixture(scope="session")
def untrained_generator(tmp_path_factory) -> Path:
    """A weights file of the right form. Only its autoencoder's linear part is fitted, to noise."""

    def make(folder):
        torch.manual_seed(0)
        autoencoder, painter, words = PatchAutoencoder(), TokenPainter(), WordPrior()
        autoencoder.fit_linear(torch.rand(8, 3, 128, 128) * 2 - 1)
        painter.decoder.load_state_dict(autoencoder.state_dict())
        prior = DiffusionPrior(load_config("quick").model)
        torch.nn.init.normal_(words.out.weight, std=0.1)  # zeros at the start: nothing would depend on anything
        save_generator(
            folder / "untrained.safetensors", autoencoder, prior, painter, np.zeros(0, np.int64), words.state_dict(), 0
        )

    return made_once(tmp_path_factory, "weights", make) / "untrained.safetensors"


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

    root = made_once(tmp_path_factory, "released", release.write)
    release.name_clip(root)
    return root


@pytest.fixture(scope="session")
def models(released, tmp_path_factory) -> SimpleNamespace:
    """What ``fetch weights`` makes of them, from a hub: the files that a user would have; read only."""
    import paper_lab

    return paper_lab.models_in(made_once(tmp_path_factory, "models", lambda root: paper_lab.fetch(root, released)))


@pytest.fixture(scope="session")
def lab(tmp_path_factory, simulated, models) -> SimpleNamespace:
    """A cache of the paper's towers, a base of subject 2 on it, and subject 1 tuned, by the verbs; read only."""
    import paper_lab

    found = lambda root: paper_lab.lab_in(root, simulated, models)
    return found(made_once(tmp_path_factory, "lab", lambda root: paper_lab.work(found(root))))
