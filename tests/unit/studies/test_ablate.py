"""Ablations: what a variant changes, and verdicts on known differences."""

import numpy as np
import pytest

from mindtuner.config import load_config
from mindtuner.studies import ablate

DEMO = load_config("demo")


def test_variants_are_the_config_but_for_one_part():
    rows = {row.name: row for row in ablate.variants(DEMO, 7)}
    assert not rows.keys() & {"rank96", "base7", "lora", "no_l_skip"}  # the full method itself
    assert {f"rank{rank}" for rank in (4, 16, 64, 128)} | {"base1", "base3", "base5", "skip_head", "skip_x0", "both"} <= set(
        rows
    )
    assert {"no_l_skip", "lora"} <= {row.name for row in ablate.variants(load_config("paper"), 7)}
    for row in rows.values():
        changed = row.of(DEMO)
        differing = {
            section
            for section in ("simulate", "model", "fingerprint", "pretrain", "tune", "pivot", "decode")
            if getattr(changed, section) != getattr(DEMO, section)
        }
        assert differing == set(row.changes)
        assert changed.fingerprint.alpha / changed.fingerprint.rank == DEMO.fingerprint.alpha / DEMO.fingerprint.rank
    assert {row.name for row in ablate.variants(DEMO, 3)} >= {"base1"} and "base5" not in {
        row.name for row in ablate.variants(DEMO, 3)
    }


def test_verdicts_on_known_differences():
    rng = np.random.default_rng(0)
    full = rng.random((5, 200))
    found = {
        "full": {"image": full},
        "ridge_only": {"image": full - 0.3 + 0.1 * rng.standard_normal(full.shape)},
        "skip": {"image": full + 0.1 * rng.standard_normal(full.shape)},
    }
    rows = [row for row in ablate.variants(DEMO, 7) if row.name in found]
    none, lower, same = (entry["difference"] for entry in ablate.compared(rows, found, 0))
    assert none is None and lower["verdict"] == "lower" and lower["mean"] == pytest.approx(-0.3, abs=0.01)
    assert same["verdict"] == "no difference shown" and same["ci"][0] < 0 < same["ci"][1]
    found["ridge_only"]["image"][0, 7] = np.nan  # an undefined score of one image, in one run
    entry = ablate.compared(rows, found, 0)[1]
    assert entry["images"] == 199 and entry["mean"] == pytest.approx(np.delete(found["ridge_only"]["image"], 7, 1).mean())
