"""LAION-fMRI is read as its own package reads it: betas, labels, regions, noise ceilings and splits (fixtures)."""

import re

import pytest
from release import script

parity = script("parity/laion")
STORED = parity.read_answers()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("laion")
    return parity.ours(parity.write_small(folder / "laion"), folder / "out")


def test_the_package_was_asked_about_everything(found):
    assert re.fullmatch("[0-9a-f]{40}", STORED["commit"]) and set(found) == set(STORED["answers"]) and len(found) == 20


@pytest.mark.parametrize("question", sorted(STORED["answers"]))
def test_our_answer_is_that_of_the_package(found, question):
    assert found[question] == STORED["answers"][question]
