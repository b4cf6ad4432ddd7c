"""Curves over hours: what they are worth, on curves that are known."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindtuner.formats import load
from mindtuner.studies import curve
from mindtuner.studies.bench import first_part


@given(st.lists(st.floats(0.001, 1), min_size=2, max_size=7), st.floats(0, 1))
def test_hours_to_reach_inverts_a_rising_line(steps, goal):
    hours, scores = np.arange(1, len(steps) + 1) ** 1.5, np.cumsum(steps)
    found = curve.hours_to_reach(goal, scores, hours)
    if goal > scores[-1]:
        assert found == math.inf
    else:
        assert found == pytest.approx(np.interp(goal, scores, hours))


def test_worth_and_share_of_known_curves():
    rng = np.random.default_rng(1)
    images = 0.02 * rng.standard_normal((1, 1, 400))

    def scores(*means):  # (A, 5, 400)
        return np.array(means)[:, None, None] + images + 0.01 * rng.standard_normal((len(means), 5, 400))

    hours = [1.0, 2.0, 4.0]
    found = curve.worth(scores(0.5)[0], scores(0.2, 0.4, 0.6), hours, 0)
    assert found["hours"] == pytest.approx(3, abs=0.05) and found["ci"][0] < found["hours"] < found["ci"][1]
    assert curve.worth(scores(0.7)[0], scores(0.2, 0.4, 0.6), hours, 0) == {"hours": None, "ci": [None, None]}
    assert curve.worth(scores(0.1)[0], scores(0.2, 0.4, 0.6), hours, 0) == {"hours": 1.0, "ci": [1.0, 1.0]}
    low, high = curve.worth(scores(0.6)[0], scores(0.2, 0.4, 0.6), hours, 0)["ci"]
    assert low > 3.9 and high is None  # it may be more
    assert curve.share(scores(0.5)[0], scores(0.52)[0], 0.0, 0)["goal"] == "reached"
    assert curve.share(scores(0.3)[0], scores(0.5)[0], 0.0, 0) == {
        "share": pytest.approx(0.6, abs=0.01),
        "goal": "not reached",
        "ci": [pytest.approx(0.6, abs=0.02)] * 2,
    }
    assert curve.share(scores(0.45)[0], scores(0.5)[0], 0.0, 0)["goal"] == "not decided"
    above = curve.share(scores(0.8)[0], scores(0.9)[0], 0.5, 0)  # 0.3 of 0.4, although 0.8 is 89 % of 0.9
    assert above["share"] == pytest.approx(0.75, abs=0.01) and above["goal"] == "not reached"
    assert curve.share(scores(0.5)[0], scores(0.5)[0], 0.5, 0) == {"share": None, "ci": None, "goal": None}


def test_a_curve_has_every_score_that_a_method_has():
    rng, hours = np.random.default_rng(2), [1.0, 2.0]
    of = {"mindtuner": (0.6, 0.8), "from_scratch": (0.4, 0.7), "full_finetune": (0.5, 0.7), "regression": (0.6, 0.75)}
    scores = ("image", "two_way")
    found = {
        curve.variant(method, amount): {
            score: mean + 0.01 * rng.standard_normal((3, 50))
            for score in scores
            if method != "regression" or score == "image"
        }
        for method, means in of.items()
        for amount, mean in zip(hours, means, strict=True)
    }
    found["full_finetune-2"]["two_way"][1, 7] = np.nan  # undefined in one run: left out of all
    chance = {"image": 0.0, "two_way": 0.5}
    summed = curve.summary(found, chance, hours, 0)
    assert {(row["method"], row["score"]) for row in summed["rows"]} == {
        (method, score) for method in of for score in scores
    } - {("regression", "two_way")}
    assert {row["score"]: row["images"] for row in summed["rows"]} == {"image": 50, "two_way": 49}
    assert summed["worth"]["image"]["from_scratch"]["hours"] == pytest.approx(5 / 3, abs=0.05)
    assert summed["worth"]["image"]["regression"]["hours"] == pytest.approx(1, abs=0.1)
    assert summed["share"]["two_way"]["mindtuner"]["share"] == pytest.approx(1 / 3, abs=0.05)
    lines = curve.text(summed, hours, chance).splitlines()
    assert len([line for line in lines if line.startswith("| ridge regression") and line.endswith("|  |  |")]) == 2
    assert [line for line in lines if "two_way" in line and "goal, 90%, is not reached" in line]


def test_a_part_of_a_session_is_its_first_trials(simulated):
    subject = load(simulated).subject(1)
    first = subject.sessions(1).train
    for part in (0.25, 0.5):
        found = first_part(subject, part)
        assert np.array_equal(found.train.row, np.sort(first.row)[: int(part * len(first))])
        assert np.array_equal(found.test.row, subject.test.row)
    assert len(first_part(subject, 2.0).train) == len(subject.train)
    assert curve.amounts(3) == [0.25, 0.5, 1.0, 2.0, 3.0] and curve.amounts(10)[-1] == 10
