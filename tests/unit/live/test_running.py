"""z-scores of a session that goes on, against NumPy on all trials so far."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindtuner.live import RunningZScore


@given(st.integers(1, 12), st.integers(1, 30), st.integers(0, 10**6))
def test_earlier_sessions_count_as_so_many_trials(weight, count, seed):
    """As if ``weight`` trials of just that mean and sd had come before."""
    rng = np.random.default_rng(seed)
    mean, sd = rng.normal(size=3) * 50, rng.uniform(0.5, 5, 3)
    earlier = np.concatenate([np.tile(mean - sd, (weight, 1)), np.tile(mean + sd, (weight, 1))])
    betas = mean + rng.normal(size=(count, 3)) * 3
    scaling = RunningZScore((mean, sd), weight=2 * weight)
    for k, row in enumerate(betas):
        so_far = np.concatenate([earlier, betas[: k + 1]])
        np.testing.assert_allclose(scaling(row), (row - so_far.mean(0)) / so_far.std(0), atol=1e-4)


def test_after_many_trials_it_is_the_sessions_own():
    rng = np.random.default_rng(0)
    betas = rng.normal(5, 2, (3000, 4))
    scaling = RunningZScore((np.full(4, 4.0), np.full(4, 3.0)))
    found = np.array([scaling(row) for row in betas])
    np.testing.assert_allclose(found[-1], (betas[-1] - betas.mean(0)) / betas.std(0), atol=0.1)


def test_a_voxel_that_has_not_varied_is_0():
    scaling = RunningZScore((np.array([0.0, 1.0]), np.array([0.0, 1.0])))
    found = [scaling(np.array([0.0, value])) for value in (1.0, 2.0)]
    assert found[0][0] == found[1][0] == 0 and found[1][1] == pytest.approx(1, abs=0.1)
