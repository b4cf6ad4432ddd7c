"""The small simulated study that the examples share: three subjects, two sessions each, made once and then read again.

It lies in ``examples/small-study``, or where the environment variable MINDTUNER_EXAMPLES says.
"""

from __future__ import annotations

import os
from pathlib import Path

import mindtuner
from mindtuner.config import load_config

FOLDER = Path(os.environ.get("MINDTUNER_EXAMPLES") or Path(__file__).resolve().parent / "small-study")
# The quick config with less noise than a scanner has and more training, so that the pictures show something.
CONFIG = load_config("quick", simulate={"noise": 0.5}, pretrain={"epochs": 15})


def dataset() -> mindtuner.Dataset:
    return mindtuner.simulate(FOLDER / "data", CONFIG)


def features() -> mindtuner.Features:
    return mindtuner.embed(dataset())


def base() -> mindtuner.Base:
    """Pretrained on subjects 2 and 3."""
    return mindtuner.pretrain(dataset().without(subject=1), features(), CONFIG, out=FOLDER / "base")


def subject() -> mindtuner.TunedSubject:
    """Subject 1, tuned on one session."""
    one_hour = dataset().subject(1).sessions(1)
    return mindtuner.tune(base(), one_hour, features(), out=FOLDER / "tuned")


def results() -> mindtuner.Results:
    return mindtuner.evaluate(subject(), dataset(), out=FOLDER / "scores")
