"""The whole story: run once with the shipped weights, and twice alike at the smallest size."""

import copy
import dataclasses
import json

import numpy as np
import pytest
from commands import call
from kills import names
from safetensors.numpy import load_file
from worlds import draw_few

from mindtuner import config
from mindtuner.claims import claim_folder, releasing
from mindtuner.config import load_config
from mindtuner.evaluation.results import load_run
from mindtuner.simulation.drawing import KINDS
from mindtuner.training import METHODS as TRAINED
from mindtuner.training import load_network, read_card

pytestmark = pytest.mark.slow

READS_NO_BRAIN = ("nearest_training_image", "prior_only")
OWN = (*TRAINED, *READS_NO_BRAIN)  # what the demo shows


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """``mindtuner demo --quick``, as a newcomer would run it."""
    out = tmp_path_factory.mktemp("demo") / "out"
    assert call("demo", "--quick", "--out", out) == 0
    return out


@pytest.fixture(scope="module")
def results(quick):
    return json.loads((quick / "results.json").read_text())


def test_it_leaves_a_whole_run_folder(quick):
    assert names(quick) == {
        "config.yaml",
        "inputs.json",
        "log.jsonl",
        "results.json",
        "words.json",
        "decoded.csv",
        "scores.csv",
        "report.html",
        "demo.png",
        "pictures.safetensors",
        "per_image.safetensors",
        "base.safetensors",
        "fingerprint.safetensors",
    }  # the data are gone
    run = load_run(quick)
    assert (quick / "report.html").stat().st_size > 50_000
    assert {entry["stage"].split()[0].split("/")[0] for entry in run.log}  # an epoch or more was logged
    assert load_config(quick / "config.yaml") == load_config("quick")


def test_results_have_the_fields_of_the_schema(results):
    assert set(results) >= {"setting", "methods", "chance", "timing_s", "peak_memory_mb"}
    assert set(results["methods"]) == set(OWN) and len(OWN) == 8
    for method in results["methods"].values():
        assert set(method) >= {"retrieval", "reconstruction", "ci95"}
        for direction in ("image", "brain", "text"):
            low, high = method["ci95"]["retrieval"][direction]
            assert 0 <= low <= method["retrieval"][direction] <= high <= 1
        for score in ("pixcorr", "ssim", "two_way"):
            low, high = method["ci95"]["reconstruction"][score]
            assert low <= method["reconstruction"][score] <= high
    for name, method in results["methods"].items():
        assert set(method["brain"]) == set(results["brain"]["regions"]) and "nsd_general" in method["brain"]
        assert set(method["captions"]) == set(method["ci95"]["captions"]) == set(results["chance"]["captions"])
        assert all(name in levels for levels in results["chance"]["captions"].values())
        assert "written" not in method  # the compact generator writes nothing
    n = load_config("quick").simulate.shared_images
    assert results["chance"]["retrieval"] == {d: pytest.approx(1 / n, abs=1e-6) for d in ("image", "brain", "text")}
    assert results["chance"]["two_way"] == 0.5
    recognised = {"objects", "objects_f1", "colours", "places"}
    assert set(results["chance"]["reconstruction"]) == {"pixcorr", "ssim", *recognised}
    assert {*results["objects"]["words"]["objects"]} <= {*KINDS} and set(results["objects"]["seen"]) == recognised
    assert results["setting"]["scores"]["not_scored"]["objects_clip"] == "needs mindtuner evaluate --networks DIR"
    for kind in ("colours", "places"):  # what a picture is scored by, the seen picture reaches
        assert results["objects"]["seen"][kind]["mean"] > 2 * results["chance"]["reconstruction"][kind]["mindtuner"]
    assert results["timing_s"]["total"] >= sum(v for k, v in results["timing_s"].items() if k != "total") - 0.01
    assert 100 < results["peak_memory_mb"] < 8192


def test_the_setting_says_what_was_done(results):
    chosen, setting = load_config("quick"), results["setting"]
    assert setting["simulated_brains"] is True and setting["simulated_scenes"] is True
    assert setting["n_test_images"] == chosen.simulate.shared_images
    assert setting["n_test_trials"] == chosen.simulate.shared_images * chosen.simulate.repeats
    assert setting["n_pictures"] == chosen.decode.pictures and setting["stimuli_note"] == ""
    assert setting["n_pretraining_subjects"] == chosen.simulate.subjects - 1
    assert (setting["generator_steps"], setting["refine_steps"]) == (
        chosen.decode.generator_steps,
        chosen.decode.refine_steps,
    )
    assert setting["sessions"] == 1 and setting["subject"] == chosen.target_subject and setting["seed"] == 0
    one_session = chosen.simulate.trials_per_session - setting["n_test_trials"] // chosen.simulate.sessions
    assert setting["n_training_trials"] == one_session


def test_reading_the_brain_beats_chance_and_shuffled_brains_do_not(results):
    """The quick run is too small to rank methods, so those that read a true brain are taken together."""

    def scores(*methods):
        return [
            results["methods"][m]["retrieval"][d] / results["chance"]["retrieval"][d]
            for m in methods
            for d in ("image", "brain")
        ]

    assert np.mean(scores("mindtuner", "ridge_only", "full_finetune", "from_scratch")) > 2
    assert max(scores("shuffled_brain", "prior_only")) < 6
    assert np.mean(scores("shuffled_brain", "prior_only")) < 2.5


def test_pictures_and_words_belong_together(quick):
    pictures, run = load_file(quick / "pictures.safetensors"), load_run(quick)
    seen, chosen = pictures["seen"], load_config("quick")
    assert seen.shape == (chosen.decode.pictures, 3, 128, 128) and seen.dtype == np.uint8
    assert pictures["thumbnails"].shape == (chosen.simulate.shared_images, 3, 64, 64)
    for method in OWN:
        stages = {name.partition("/")[2] for name in pictures if name.startswith(f"{method}/")}
        no_lowlevel = {"reconstructed", "corrected"}
        expected = {"nearest_training_image": {"reconstructed"}, "prior_only": no_lowlevel, "ridge": no_lowlevel}
        assert stages == expected.get(method, {"lowlevel", "reconstructed", "corrected"})
        assert len(run.words["methods"][method]["retrieved_caption"]) == len(seen)
    for position, caption in zip(run.words["picture_index"], run.words["seen_captions"], strict=True):
        assert run.words["all_captions"][position] == caption
    # a thumbnail is the seen picture, halved
    small = seen.reshape(len(seen), 3, 64, 2, 64, 2).mean((3, 5))
    np.testing.assert_allclose(pictures["thumbnails"][run.words["picture_index"]], small, atol=0.51)


def test_every_method_that_trains_by_epochs_was_trained(quick):
    """The plain regression has none; that it was fitted, its scores say."""
    stages = {entry["stage"] for entry in load_run(quick).log}
    assert stages == {"pivot", "pretrain", *TRAINED} - {"ridge"}


def test_the_networks_are_kept(quick):
    assert read_card(quick / "base.safetensors")["simulated"] is True
    card = read_card(quick / "fingerprint.safetensors")
    assert card["subject"] == load_config("quick").target_subject and card["sessions"] == 1
    assert load_network(quick / "base.safetensors")


def test_the_folder_can_be_replaced_by_force_only(quick, tmp_path):
    import shutil

    copied = shutil.copytree(quick, tmp_path / "copy")
    assert call("demo", "--quick", "--out", copied) == 2
    with releasing():
        assert not claim_folder(copied, force=True)
    assert not list(copied.iterdir())


def test_report_again_gives_the_same_page(quick):
    before = (quick / "report.html").read_bytes()
    assert call("report", quick) == 0
    assert (quick / "report.html").read_bytes() == before


# ---- the smallest demo


@pytest.fixture(scope="module")
def smallest(untrained_generator):
    """Runs the demo at a size that only shows whether it runs, with an untrained generator."""
    base = load_config("quick")
    few = {"epochs": 1, "batch_per_subject": 8, "head_trials": 8}
    tiny = dataclasses.replace(
        base,
        simulate=dataclasses.replace(base.simulate, subjects=2, trials_per_session=48, shared_images=8, voxel_scale=0.01),
        model=dataclasses.replace(base.model, hidden=32, blocks=1, lowlevel_channels=(8, 4)),
        pretrain=dataclasses.replace(base.pretrain, **few),
        tune=dataclasses.replace(base.tune, **few),
        pivot=dataclasses.replace(base.pivot, epochs=1, batch=16),
        decode=dataclasses.replace(base.decode, pictures=2, prior_steps=2, generator_steps=1, refine_steps=1),
    )

    def run(out, *words, generator=("--generator", untrained_generator)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(config, "load_config", lambda name: tiny)
            draw_few(patch)
            return call("demo", *generator, "--out", out, *words)

    return run


@pytest.fixture(scope="module")
def whole(smallest, tmp_path_factory):
    """A run that nothing stopped; read only."""
    out = tmp_path_factory.mktemp("smallest") / "whole"
    assert smallest(out) == 0
    return out


def comparable(folder):
    results = copy.deepcopy(load_run(folder).results)
    del results["timing_s"], results["peak_memory_mb"]
    return results


def test_the_same_seed_gives_the_same_results(smallest, whole, tmp_path):
    again = tmp_path / "again"
    assert smallest(again, "--keep-data") == 0
    assert json.dumps(comparable(whole)) == json.dumps(comparable(again))
    pictures = [load_file(run / "pictures.safetensors") for run in (whole, again)]
    for name, array in pictures[0].items():
        np.testing.assert_array_equal(array, pictures[1][name])
    assert (again / "data" / "dataset.json").exists() and not (whole / "data").exists()
    # what reads no brain still has scores and pictures, and says so by having no low-level stage
    for method in READS_NO_BRAIN:
        assert f"{method}/lowlevel" not in pictures[0] and f"{method}/reconstructed" in pictures[0]


@pytest.mark.parametrize("stopped_in", ["pretrain", "tune", "embed"])
def test_a_stopped_run_goes_on_with_what_is_whole(smallest, whole, tmp_path, monkeypatch, capsys, stopped_in):
    """Ctrl-C in a stage; the same command then gives what an unbroken run gives, and --force is not needed."""
    from mindtuner.pipeline import base, demo, tuning

    def stop(*_, **__):
        raise KeyboardInterrupt

    module, name = {"embed": (demo, "embed"), "pretrain": (base, "train"), "tune": (tuning, "train")}[stopped_in]
    with monkeypatch.context() as patch:
        patch.setattr(module, name, stop)
        assert smallest(tmp_path / "stopped") == 130
    assert smallest(tmp_path / "stopped", "--seed", "1") == 2  # another run: its settings differ
    monkeypatch.setattr(demo, "write_simulation", stop)  # the dataset is whole, so it is not made again
    if stopped_in == "tune":
        monkeypatch.setattr(base, "train", stop)
    capsys.readouterr()
    assert smallest(tmp_path / "stopped") == 0
    assert "going on" in capsys.readouterr().out
    assert json.dumps(comparable(tmp_path / "stopped")) == json.dumps(comparable(whole))

    def entries(run):
        return [{k: v for k, v in e.items() if k != "seconds"} for e in load_run(run).log]

    assert entries(tmp_path / "stopped") == entries(whole)
    assert smallest(tmp_path / "stopped") == 2  # a finished run is not touched


def test_stimuli_that_the_shipped_generator_never_saw_are_noted(smallest, tmp_path, untrained_generator, monkeypatch):
    """The note stands where the package's own weights paint other cut-outs than its drawn ones."""
    from PIL import Image

    from mindtuner.generators import compact

    for k in range(24):
        rng = np.random.default_rng(k)
        pixels = rng.integers(0, 255, (40, 40, 4)).astype(np.uint8)
        pixels[..., 3] = 0
        pixels[4:36, 4:36, 3] = 255
        Image.fromarray(pixels, "RGBA").save(tmp_path / f"{k}.png")
        (tmp_path / f"{k}.txt").write_text(f"A thing{k}.")
    monkeypatch.setattr(compact, "packaged", lambda name: untrained_generator)
    out = tmp_path / "out"
    assert smallest(out, "--cutouts", tmp_path, "--seed", 1, generator=()) == 0
    setting = load_run(out).results["setting"]
    assert setting["seed"] == 1
    assert "not on these stimuli" in setting["stimuli_note"] and str(tmp_path) in setting["stimuli"]
    assert setting["off_domain"] is True
    page = (out / "report.html").read_text()
    assert "not on these stimuli" in page and "The painter cannot paint such images." in page


def test_a_run_that_paints_nothing_is_whole(smallest, whole, tmp_path, capsys):
    """Retrieval is that of the run that paints; captions are scored over all test images."""
    out = tmp_path / "out"
    assert smallest(out, "--pictures", 0) == 0
    run, painted = load_run(out), load_run(whole)
    assert len(run.pictures["seen"]) == 0 and not (out / "demo.png").exists()
    for method, own in run.results["methods"].items():
        assert own["retrieval"] == painted.results["methods"][method]["retrieval"] and "reconstruction" not in own
        assert len(run.words["methods"][method]["retrieved_caption"]) == len(run.per_image["images"])
    assert run.results["setting"]["off_domain"] is False and "objects" not in run.results
    assert "no picture was painted" in (out / "report.html").read_text()
    capsys.readouterr()
    assert smallest(tmp_path / "none", "--pictures", -1) == 2
    assert "--pictures is -1; expected 0 or more" in capsys.readouterr().err
