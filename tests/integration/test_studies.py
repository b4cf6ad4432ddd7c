"""mindtuner ablate and curve: the numbers of tune and evaluate, runs that go on, pages, and verdicts on known truths."""

import csv
import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from browser import SIZES, open_page, serious_faults
from commands import call, refused

from mindtuner.config import as_dict, load_config
from mindtuner.evaluation.results import load_run
from mindtuner.files import read_json
from mindtuner.pipeline import Base
from mindtuner.studies import ablate, curve
from mindtuner.studies.bench import RETRIEVAL, open_bench, work

pytestmark = pytest.mark.slow

SEED = 3


def table(out):
    """results.csv: (variant, seed, score) -> value."""
    with (out / "results.csv").open(newline="") as file:
        return {(row["variant"], int(row["seed"]), row["score"]): float(row["value"]) for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def lab(tmp_path_factory, simulated, untrained_generator):
    """A base of subject 2, and subject 1 ablated on it in two processes."""
    folder = tmp_path_factory.mktemp("studies")
    quick = load_config("quick")
    fit = dataclasses.replace(quick.tune, epochs=1, batch_per_subject=8, head_trials=8, dtype="float32")
    tiny = dataclasses.replace(
        quick,
        pretrain=dataclasses.replace(quick.pretrain, epochs=1, batch_per_subject=8, head_trials=8, dtype="float32"),
        tune=fit,
        seed=SEED,
        pivot=dataclasses.replace(quick.pivot, epochs=1, batch=16),
        model=dataclasses.replace(quick.model, hidden=16, blocks=2, lowlevel_channels=(8, 4)),
        decode=dataclasses.replace(quick.decode, pictures=3, prior_steps=2, generator_steps=1, refine_steps=1),
    )
    config, base, out = folder / "tiny.yaml", folder / "base", folder / "ablated"
    config.write_text(yaml.safe_dump(as_dict(tiny)))
    paints, cache = ("--generator", untrained_generator), folder / "cache"
    assert call("pretrain", simulated, base, "--without", 1, "--config", config, "--cache", cache, *paints) == 0
    study = (
        "ablate",
        out,
        "--data",
        simulated,
        "--base",
        base,
        "--cache",
        cache,
        *paints,
        "--seeds",
        2,
        "--variants",
        "ridge_only",
        "no_pivot",
        "--jobs",
    )
    assert call(*study, 2) == 0
    return SimpleNamespace(
        folder=folder, data=simulated, base=base, out=out, config=config, cache=cache, paints=paints, study=study
    )


# ---- the numbers


def test_a_run_is_what_tune_and_evaluate_give(lab):
    tuned, report = lab.folder / "tuned", lab.folder / "report"
    assert (
        call(
            "tune",
            lab.base,
            lab.data,
            tuned,
            "--subject",
            1,
            "--sessions",
            1,
            "--seed",
            SEED + 1,
            "--cache",
            lab.cache,
            *lab.paints,
            "--method",
            "mindtuner",
            "ridge_only",
        )
        == 0
    )
    assert call("evaluate", tuned, lab.data, report, "--cache", lab.cache, *lab.paints) == 0
    found, methods = table(lab.out), load_run(report).results["methods"]
    for variant, method in (("full", "mindtuner"), ("ridge_only", "ridge_only")):
        for score in RETRIEVAL:
            assert found[variant, SEED + 1, score] == pytest.approx(methods[method]["retrieval"][score], abs=2e-5)
    assert found["no_pivot", SEED + 1, "image"] == found["full", SEED + 1, "image"]

    base, config = lab.base / "base.safetensors", load_config(lab.base / "config.yaml")
    bench = open_bench(lab.data, lab.cache, config, lab.folder, base, lab.paints[1], pictures=True)
    rows = [row for row in ablate.variants(config, 1) if row.name in ("full", "no_pivot")]
    whole, plain = (work(bench, run, Base.load(base))[0] for run in ablate.runs_of(rows, config, 2, 1)[2:])
    stages = methods["mindtuner"]["stages"]
    for score in ("two_way", "ssim", "pixcorr"):
        assert whole[score].mean() == pytest.approx(methods["mindtuner"]["reconstruction"][score], abs=2e-5)
        assert plain[score].mean() == pytest.approx(stages["reconstructed"][score], abs=2e-5)
    assert abs(stages["reconstructed"]["ssim"] - stages["corrected"]["ssim"]) > 1e-4


def test_a_stopped_study_goes_on_and_jobs_do_not_matter(lab):
    before = (lab.out / "results.csv").read_bytes()
    files = sorted((lab.out / "runs").iterdir())
    assert len(files) == 6
    kept = files[0], files[0].stat().st_mtime_ns
    for path in (*files[1:], lab.out / "results.csv", lab.out / "report.html"):
        path.unlink()
    assert call(*lab.study, 1) == 0
    assert (lab.out / "results.csv").read_bytes() == before
    assert sorted((lab.out / "runs").iterdir()) == files and kept[0].stat().st_mtime_ns == kept[1]


def test_a_damaged_run_is_named(lab, capsys):
    path = sorted((lab.out / "runs").iterdir())[0]
    content = path.read_text()
    path.write_text('{"scores": 3}')
    refused(capsys, [*lab.study, 1], f"{path}: scores and chance are not what a run writes; expected a whole file")
    path.write_text(content)


@pytest.fixture(scope="module")
def curved(lab):
    out = lab.folder / "curve"
    assert (
        call(
            "curve",
            out,
            "--data",
            lab.data,
            "--cache",
            lab.cache,
            *lab.paints,
            "--config",
            lab.config,
            "--seeds",
            2,
            "--jobs",
            2,
        )
        == 0
    )
    return out


def test_the_curve_has_every_amount_and_its_hour_is_that_of_ablate(lab, curved):
    found, results = table(curved), read_json(curved / "results.json")
    assert results["hours"] == [0.25, 0.5, 1.0, 2.0]
    assert {variant for variant, _, _ in found} == {f"{m}-{h:g}" for m in curve.METHODS for h in results["hours"]}
    for seed in (SEED, SEED + 1):  # on a base that the study made, which is that of pretrain
        for score in ("image", "brain", "text"):
            assert found["mindtuner-1", seed, score] == pytest.approx(table(lab.out)["full", seed, score], abs=2e-5)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_pages_are_sound_and_load_nothing(chrome, lab, curved, dark):
    for page in (lab.out / "report.html", curved / "report.html"):
        for size in SIZES.values():
            chrome.get_log("performance")
            open_page(chrome, page, size, dark)
            sent = [json.loads(entry["message"])["message"] for entry in chrome.get_log("performance")]
            sent = [one["params"]["request"]["url"] for one in sent if one["method"] == "Network.requestWillBeSent"]
            assert page.as_uri() in sent and not [url for url in sent if url.startswith("http")]
            assert serious_faults(chrome) == []
            assert chrome.execute_script("return document.documentElement.scrollWidth") <= size[0]
            assert "Simulated brains." in chrome.page_source
    alts = chrome.execute_script("return [...document.querySelectorAll('figure')].map(f => f.getAttribute('aria-label'))")
    value = table(curved)
    said = f"{np.mean([value['from_scratch-0.5', seed, 'brain'] for seed in (SEED, SEED + 1)]):.3f} from 0.5"
    assert len(alts) == 3 and "Brain retrieval" in alts[1] and said in alts[1]


# ---- bad input


@pytest.mark.parametrize(
    "words, message",
    [
        (("--seeds", 1), "--seeds: is 1; expected at least 2"),
        (("--jobs", 0), "--jobs: is 0; expected at least 1"),
        (("--variants", "skip", "rank9"), "--variants: 'rank9' is unknown; expected some of full, ridge_only, skip"),
        (("--variants", "base7"), "--variants: 'base7' is unknown; expected some of full"),
        (("--subject", 2), "base.safetensors: knows subject 2 already"),
        (("--subject", 9), "no subject 9; expected one of 1, 2"),
        (("--base", "nowhere"), "nowhere: not found"),
    ],
)
def test_bad_input_is_one_line(lab, tmp_path, capsys, words, message):
    given = {"--data": lab.data, "--base": lab.base, "--cache": lab.cache, "--generator": lab.paints[1]}
    given = [word for pair in given.items() if pair[0] not in words for word in pair]
    refused(capsys, ["ablate", tmp_path / "out", *given, *words], message)
    assert not (tmp_path / "out" / "runs").exists()


def test_another_study_is_not_written_over(lab, capsys):
    refused(capsys, [*lab.study, 1, "--seed", 8], f"{lab.out}: holds another run")
