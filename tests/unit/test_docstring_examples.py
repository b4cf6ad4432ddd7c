"""Examples in docstrings run, and show what they say."""

import doctest
import importlib

import pytest

MODULES = (
    "decoding.decoder",
    "decoding.training_images",
    "evaluation.scores.brain",
    "evaluation.scores.captions",
    "evaluation.scores.pictures",
    "evaluation.scores.retrieval",
    "evaluation.statistics",
    "model.backbone",
    "model.lora",
    "model.low_level",
    "model.network",
    "model.prior",
    "towers.compact",
    "training.objectives",
    "training.ridge",
    "training.targets",
)


@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module):
    failed, tried = doctest.testmod(importlib.import_module(f"mindtuner.{module}"))
    assert failed == 0 and tried > 0
