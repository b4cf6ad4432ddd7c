"""LAION-fMRI's named splits from convert to the report: a row for each, and no base of one split on another."""

import json

import pytest
import yaml
from commands import call, refused
from worlds import brief

from mindtuner.data.splits import refuse_other_split, split_of
from mindtuner.errors import UserError
from mindtuner.formats import load, write


def test_only_another_split_of_the_same_data_is_refused():
    trained = split_of({"dataset": "LAION-fMRI", "split": "tau", "zscore": "none"})
    assert trained == {"dataset": "LAION-fMRI", "split": "tau"}
    refuse_other_split(trained, {**trained, "simulated": False}, "base")
    refuse_other_split(trained, {"zscore": "publisher"}, "base")  # another dataset: its images are others
    refuse_other_split({}, trained, "base")
    refuse_other_split({"split": "tau"}, {"split": "MOSAIC's across datasets"}, "base")
    with pytest.raises(
        UserError, match="base: was trained on split tau of LAION-fMRI; expected ood, the split of these data"
    ):
        refuse_other_split(trained, {**trained, "split": "ood"}, "base")


@pytest.mark.slow
def test_each_split_is_a_row_of_the_report(simulated, tmp_path, capsys):
    write(tmp_path / "laion", load(simulated), "laion")
    own = json.loads((tmp_path / "laion/splits/own.json").read_text())["variants"][0]
    half = {"train_ids": own["train_ids"] + own["test_ids"][4:], "test_ids": own["test_ids"][:4]}
    (tmp_path / "laion/splits/half.json").write_text(json.dumps({"name": "half", "variants": [half]}))
    assert call("convert", "laion", tmp_path / "laion", tmp_path / "data", "--split", "own,half") == 0
    config = tmp_path / "brief.yaml"
    config.write_text(yaml.safe_dump(brief(pictures=0)))
    scores, tests = [], {"own": 8, "half": 4}
    for split, images in tests.items():
        data, base, tuned, out = (tmp_path / name / split for name in ("data", "base", "tuned", "scores"))
        cache = ("--cache", tmp_path / "cache" / split)
        assert call("embed", data, tmp_path / "cache" / split) == 0
        assert call("pretrain", data, base, "--without", 1, "--config", config, *cache) == 0
        assert call("tune", base, data, tuned, "--subject", 1, "--sessions", 1, *cache) == 0
        assert call("evaluate", tuned, data, out, "--pictures", 0, *cache) == 0
        setting = json.loads((out / "results.json").read_text())["setting"]
        assert (setting["dataset"], setting["split"], setting["n_test_images"]) == ("LAION-fMRI", split, images)
        scores.append(out)
    assert call("report", *scores, "--out", tmp_path / "report.html") == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "split own" in page and "split half" in page
    message = "was trained on split own of LAION-fMRI; expected half, the split of these data"
    half_data, half_cache = tmp_path / "data/half", ("--cache", tmp_path / "cache/half")
    refused(capsys, ["tune", tmp_path / "base/own", half_data, tmp_path / "x", "--subject", 1, *half_cache], message)
    refused(capsys, ["evaluate", tmp_path / "tuned/own", half_data, tmp_path / "x", *half_cache], message)
