"""One subject's own models: fitted without a base, from files to a report, in Python and on the command line."""

import numpy as np
import pytest
import torch
import yaml
from commands import call, refused
from kills import names
from worlds import brief

import mindtuner
from mindtuner.errors import UserError
from mindtuner.evaluation.results import load_run
from mindtuner.training import read_card
from mindtuner.training.ridge import ridge_regression

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def alone(simulated, tmp_path_factory):
    """A subject's run folder, its config and features; read only."""
    folder = tmp_path_factory.mktemp("alone")
    config = folder / "brief.yaml"
    config.write_text(yaml.safe_dump(brief(pictures=0)))
    words = (simulated, folder / "run", "--subject", 1, "--config", config, "--cache", folder / "cache")
    assert call("fit", *words) == 0
    return folder, words


def test_a_run_folder_of_fit_is_evaluated_and_decoded_like_one_of_tune(alone, simulated):
    folder, words = alone
    networks = ("base", "ridge", "from_scratch", "shuffled_brain")
    assert names(words[1]) == {
        "config.yaml",
        "inputs.json",
        "log.jsonl",
        *(f"{name}.safetensors" for name in networks),
    }
    assert read_card(words[1] / "base.safetensors")["subjects"] == []
    cache = ("--cache", folder / "cache")
    assert call("evaluate", words[1], simulated, folder / "report", *cache) == 0
    run = load_run(folder / "report")
    assert list(run.results["methods"]) == [
        "ridge",
        "from_scratch",
        "nearest_training_image",
        "prior_only",
        "shuffled_brain",
    ]
    assert run.results["setting"]["n_pretraining_subjects"] == 0 and "no base" in run.results["setting"]["adapters"]
    page = (folder / "report" / "report.html").read_text(encoding="utf-8")
    assert "A decoder was fitted to one person alone, subject 1, with" in page and "pretrained on other people" not in page
    assert call("decode", words[1], simulated, folder / "decoded", *cache) == 0
    assert (folder / "decoded" / "words.json").is_file()


def test_its_ridge_is_the_regression_on_all_sessions(alone, simulated):
    folder, words = alone
    dataset = mindtuner.load(simulated)
    features = mindtuner.embed(dataset, folder / "cache")
    subject, found = dataset.subject(1), mindtuner.TunedSubject.load(words[1], dataset, features=features)
    train, test = subject.train, subject.betas(subject.test.row)
    tokens = np.asarray(features.caches["tokens"][train.stimulus]).reshape(len(train), -1)
    fit = ridge_regression(subject.betas(train.row), tokens, train.stimulus, found.config.seed)
    said = found.decoder().predict(test).backbone_tokens
    np.testing.assert_allclose(said.reshape(len(test), -1), test @ fit.weight + fit.intercept, atol=2e-3)
    again = mindtuner.fit(subject, features, found.config, methods=["ridge"])
    np.testing.assert_array_equal(again.decoder().predict(test).backbone_tokens, said)
    saved = again.save(folder / "saved")
    read = mindtuner.TunedSubject.load(folder / "saved", dataset, base=again.base, features=features)
    np.testing.assert_array_equal(read.decoder().predict(test).backbone_tokens, said)
    assert list(saved.networks) == ["ridge"]


def test_the_same_call_goes_on_and_a_missing_method_is_added(alone):
    folder, words = alone
    (words[1] / "from_scratch.safetensors").rename(folder / "kept")
    before = (words[1] / "ridge.safetensors").stat().st_mtime_ns
    assert call("fit", *words) == 0
    assert (words[1] / "from_scratch.safetensors").read_bytes() == (folder / "kept").read_bytes()
    assert (words[1] / "ridge.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ((), "--subject: is missing, and"),
        (("--subject", 9), "betas_all_subj09_fp32_renorm.hdf5: not found"),
        (
            ("--subject", 1, "--method", "mindtuner"),
            "--method: 'mindtuner' is not fitted without a base; expected some of ridge",
        ),
        (("--subject", 1, "--sessions", 9), "--sessions: is 9 for subject 1; expected 1 to"),
        (("--subject", 1, "--sessions", "most"), "is 'most'; expected a whole number, or all"),
    ],
)
def test_bad_input_is_one_line(alone, simulated, tmp_path, capsys, change, says):
    folder, words = alone
    code = call("fit", simulated, tmp_path / "run", "--config", words[5], "--cache", folder / "cache", *change)
    said = capsys.readouterr().err
    assert code == 2 and says in said, said


def test_a_base_of_nobody_tunes_nobody_by_another_method(alone, simulated):
    folder, words = alone
    dataset = mindtuner.load(simulated)
    features = mindtuner.embed(dataset, folder / "cache")
    with pytest.raises(UserError, match="method: ridge_only needs a base, which this one of nobody is not; expected ridge"):
        mindtuner.tune(words[1] / "base.safetensors", dataset.subject(1).sessions(1), features, methods=["ridge_only"])


@pytest.fixture(scope="module")
def base(alone, simulated):
    """A base of subjects 1 and 2."""
    folder, words = alone
    out = folder / "base"
    assert call("pretrain", simulated, out, "--subjects", 1, 2, "--config", words[5], "--cache", folder / "cache") == 0
    return out


def test_a_bases_own_subject_is_decoded_and_evaluated(alone, base, simulated):
    folder, words = alone
    cache = ("--cache", folder / "cache")
    assert call("evaluate", base, simulated, folder / "own", "--subject", 2, *cache) == 0
    run = load_run(folder / "own")
    assert list(run.results["methods"]) == ["pretrained", "nearest_training_image", "prior_only"]
    assert run.results["setting"]["subject"] == 2
    assert run.results["setting"]["adapters"] == "none, as the base itself decodes"
    page = (folder / "own" / "report.html").read_text(encoding="utf-8")
    assert "A decoder was trained on several people, subject 2 among them, with" in page
    assert call("decode", base, simulated, folder / "own-decoded", "--subject", 2, *cache) == 0
    dataset = mindtuner.load(simulated)
    features = mindtuner.embed(dataset, folder / "cache")
    subject = dataset.subject(2)
    own = mindtuner.TunedSubject.of(base, subject, features)
    network = mindtuner.Base.load(base).network
    betas = torch.from_numpy(subject.betas(subject.test.row))
    with torch.no_grad():
        expected = network(betas, "subj02").backbone_tokens
    np.testing.assert_allclose(own.decoder().predict(betas.numpy()).backbone_tokens, expected, atol=1e-5)


def test_who_is_not_the_bases_own_and_who_already_is_are_told(alone, base, simulated, tmp_path, capsys):
    folder, words = alone
    cache = ("--cache", folder / "cache")
    for verb in ("evaluate", "decode"):
        refused(
            capsys,
            [verb, base, simulated, tmp_path / "out", "--subject", 7, *cache],
            "--subject: is 7; expected one that",
            "1, 2",
        )
    refused(capsys, ["evaluate", base, simulated, tmp_path / "out", *cache], "fingerprint.safetensors", "expected")
    refused(
        capsys,
        ["tune", base, simulated, tmp_path / "out", "--subject", 1, *cache],
        "knows subject 1 already",
        "subject_offset",
    )
