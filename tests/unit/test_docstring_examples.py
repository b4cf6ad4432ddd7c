"""Examples in docstrings run, and show what they say."""

import doctest
import importlib

import numpy as np
import pytest

MODULES = (
    "evaluation.scores.brain",
    "evaluation.scores.captions",
    "evaluation.scores.pictures",
    "evaluation.scores.retrieval",
    "evaluation.statistics",
    "training.objectives",
)


@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module):
    with np.printoptions(legacy=False):
        failed, tried = doctest.testmod(importlib.import_module(f"mindtuner.{module}"))
    assert failed == 0 and tried > 0
