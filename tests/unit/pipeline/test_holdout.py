"""Training images kept out of tuning: no trial of theirs trains, files say so, and they are found again."""

import dataclasses

import numpy as np
import pytest
from worlds import tiny_config

import mindtuner
from mindtuner.errors import UserError
from mindtuner.pipeline import TunedSubject
from mindtuner.training import batches

pytestmark = pytest.mark.slow
SHARE = 0.25


@pytest.fixture(scope="module")
def lab(simulated, tmp_path_factory):
    """Dataset, features and a base of subject 2, in the smallest sizes."""
    dataset = mindtuner.load(simulated)
    features = mindtuner.embed(dataset, tmp_path_factory.mktemp("holdout") / "cache")
    return dataset, features, mindtuner.pretrain(dataset.without(subject=1), features, tiny_config())


def tuned(lab, **given):
    dataset, features, base = lab
    return mindtuner.tune(base, dataset.subject(1).sessions(1), features, methods=("mindtuner",), **given)


def test_no_trial_of_theirs_trains(lab, monkeypatch):
    read, seen = batches.Feed.read, set()

    def reading(self, picked):
        betas, stimulus = read(self, picked)
        seen.update(stimulus.tolist())
        return betas, stimulus

    monkeypatch.setattr(batches.Feed, "read", reading)
    subject = lab[0].subject(1)
    held = tuned(lab, holdout=SHARE, seed=1).held_out(lab[0])
    own = np.unique(subject.sessions(1).train.stimulus)
    assert len(set(held.stimulus)) == round(SHARE * len(own)) and set(held.stimulus) < set(own)
    assert seen and not seen & set(held.stimulus.tolist())
    assert set(held.row) == set(subject.train.row[np.isin(subject.train.stimulus, held.stimulus)])  # of any session
    assert set(held.stimulus) != set(tuned(lab, holdout=SHARE, seed=2).held_out(lab[0]).stimulus)


def test_none_are_held_out_unless_asked_for(lab):
    found = tuned(lab)
    assert len(found.held_out(lab[0])) == 0 and "holdout" not in found.card


def test_the_file_says_so(lab, tmp_path):
    dataset, features, base = lab
    base = dataclasses.replace(base, path=None)
    found = tuned(lab, holdout=SHARE, out=tmp_path / "run")
    again = TunedSubject.load(tmp_path / "run", dataset, base=base, features=features)
    assert again.card["holdout"] == SHARE
    assert again.held_out(dataset).row.tolist() == found.held_out(dataset).row.tolist()
    for other in (0.0, 0.5):
        with pytest.raises(UserError, match="holds another run"):  # a run goes on only where it keeps the same
            tuned(lab, holdout=other, out=tmp_path / "run")
    with pytest.raises(UserError, match=r"holdout: is 1.5; expected a share of the training images in \[0, 1\)"):
        tuned(lab, holdout=1.5)


def test_decoding_does_not_draw_on_them(lab):
    dataset = lab[0]
    held, plain = tuned(lab, holdout=SHARE), tuned(lab)
    kept_out = np.unique(held.held_out(dataset).stimulus)
    found = set(held.decoder().training_images.tolist())
    assert found == set(plain.decoder().training_images.tolist()) - set(kept_out.tolist()) and len(kept_out)
