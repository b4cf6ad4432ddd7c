"""Damaged files and odd arguments, one at a time: exit code 2, and one line that names what is wrong. The longer campaign is
``benchmarks/bad_inputs.py``."""

import importlib
import itertools

import pytest
from once import made_once
from paths import ROOT

pytestmark = pytest.mark.slow

CASES = 150
LIMIT_S = 30  # of one case; none takes more than a few seconds of a quiet core


@pytest.fixture(scope="module")
def campaign():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("bad_inputs")


@pytest.fixture(scope="module")
def world(campaign, tmp_path_factory, simulated, untrained_generator):
    return made_once(
        tmp_path_factory, campaign.BUILT, lambda root: campaign.build(root, simulated, untrained_generator)
    ).resolve()


def test_bad_input_is_told_in_one_line_that_names_it(campaign, world, tmp_path):
    """Of every verb and kind of damage in turn: only cases that are refused before anything is trained or painted."""
    out = tmp_path / "out"
    cases = [case for case in campaign.all_cases(world, out, seed=1) if case.strict]
    turns = {}
    for case in cases:  # of each verb, first one case of each kind
        turns.setdefault((case.verb, case.kind), []).append(case)
    chosen = list(itertools.chain.from_iterable(itertools.zip_longest(*turns.values())))
    chosen = [case for case in chosen if case is not None][:CASES]
    assert len(chosen) == CASES and len({case.verb for case in chosen}) > 15 and len({case.kind for case in chosen}) > 25
    faults = []
    for case in chosen:
        campaign.remove(out)
        outcome = campaign.run_case(case, LIMIT_S)
        if outcome.fault:
            faults.append(f"{outcome.fault}: {case.title}: {outcome.lines or outcome.trace}")
    assert faults == [], "\n".join(faults)
