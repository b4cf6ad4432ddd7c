"""From a lab's files to a report by verbs: pretrain, tune, decode, evaluate."""

import dataclasses
import json
import os
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from commands import call, refused
from kills import names
from PIL import Image
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file as save_tensors
from scoring_clip import VISION, cosines, write_clip
from torchvision.models import alexnet

from mindtuner.claims import LOCK, goes_on
from mindtuner.config import as_dict, load_config
from mindtuner.data.stimuli import picture_hashes
from mindtuner.decoding.decoder import Decoder
from mindtuner.decoding.phrases import PhraseBank
from mindtuner.decoding.reading import PhraseReader, compose
from mindtuner.decoding.training_images import draw_to_neighbours
from mindtuner.evaluation.results import load_log, load_run
from mindtuner.evaluation.schema import METHODS
from mindtuner.evaluation.scores import networks
from mindtuner.evaluation.vocabulary import Vocabulary
from mindtuner.files import read_json, write_json
from mindtuner.formats import load, write
from mindtuner.generators.compact import CompactGenerator
from mindtuner.pipeline import Results, features
from mindtuner.pipeline.decoded_table import read_table
from mindtuner.towers.compact import TRAINED_ON, CompactTextEncoder
from mindtuner.training import Targets, load_fingerprint, load_network, loop, read_card, tune

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lab(tmp_path_factory, simulated, untrained_generator):
    """Simulated brains in a lab's files, subjects 101 and 102; a base of 102, and 101 tuned with every method."""
    folder = tmp_path_factory.mktemp("lab")
    data, base, tuned = folder / "study", folder / "base", folder / "tuned"
    write(data, load(simulated), "lab_folder")
    write_json(data / "dataset.json", {**read_json(data / "dataset.json"), "subject_offset": 100})
    quick = load_config("quick")
    few = {"epochs": 2, "batch_per_subject": 8, "head_trials": 8, "dtype": "float32"}
    tiny = dataclasses.replace(
        quick,
        pretrain=dataclasses.replace(quick.pretrain, **few),
        tune=dataclasses.replace(quick.tune, **few),
        ridge_only=dataclasses.replace(quick.ridge_only, **few),
        pivot=dataclasses.replace(quick.pivot, epochs=1, batch=16),
        model=dataclasses.replace(quick.model, hidden=32, blocks=1, lowlevel_channels=(8, 4)),
        decode=dataclasses.replace(quick.decode, pictures=3, prior_steps=2, generator_steps=1, refine_steps=1),
    )
    config = folder / "tiny.yaml"
    config.write_text(yaml.safe_dump(as_dict(tiny)))
    paints = ("--generator", untrained_generator)
    assert call("pretrain", data, base, "--without", 101, "--config", config, "--seed", 3, *paints) == 0
    assert call("tune", base, data, tuned, "--subject", 101, "--sessions", 1, "--all", *paints) == 0
    return SimpleNamespace(folder=folder, data=data, base=base, tuned=tuned, config=config, paints=paints)


@pytest.fixture(scope="module")
def report(lab):
    out = lab.folder / "report"
    assert call("evaluate", lab.tuned, lab.data, out, *lab.paints) == 0
    return out


@pytest.fixture(scope="module")
def decoded(lab):
    out = lab.folder / "decoded"
    assert call("decode", lab.tuned, lab.data, out, "--pictures", 3, *lab.paints) == 0
    return out


def stop_at_step(monkeypatch, number):
    """Ctrl-C when that many steps were taken."""
    taken, real = [], loop.take_step

    def step(*arguments):
        taken.append(1)
        if len(taken) > number:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(loop, "take_step", step)


def entries(run):
    return [{key: value for key, value in entry.items() if key != "seconds"} for entry in load_log(run)]


# ---- the chain


def test_each_verb_leaves_its_files(lab, report, decoded):
    assert names(lab.base) == {"config.yaml", "inputs.json", "log.jsonl", "base.safetensors"}
    assert names(lab.tuned) == {
        "config.yaml",
        "inputs.json",
        "log.jsonl",
        "fingerprint.safetensors",
        "ridge_only.safetensors",
        "ridge.safetensors",
        "full_finetune.safetensors",
        "from_scratch.safetensors",
        "shuffled_brain.safetensors",
    }
    assert names(report) == {
        "config.yaml",
        "inputs.json",
        "log.jsonl",
        "results.json",
        "words.json",
        "pictures.safetensors",
        "per_image.safetensors",
        "decoded.csv",
        "scores.csv",
        "report.html",
    }
    tables = {"decoded.csv", "decoded_trials.csv"}
    assert names(decoded) == {"config.yaml", "inputs.json", "predictions.safetensors", "words.json", "pictures", *tables}
    for run in (lab.base, lab.tuned, report, decoded):
        assert not goes_on(run, force=True)  # it may be replaced
    assert (lab.data / "cache" / "tokens.json").is_file()
    card = read_card(lab.base / "base.safetensors")
    assert card["subjects"] == [102] and card["seed"] == 3 and card["simulated"] is True
    used = load_config(lab.tuned / "config.yaml")
    assert (used.target_subject, used.tuning_sessions, used.seed) == (101, 1, 3)  # the config of the base's run, by itself
    assert {entry["stage"] for entry in load_run(report).log} >= {"pivot", "pretrain", "mindtuner", "shuffled_brain"}


def test_the_report_says_what_was_done(lab, report):
    run, hour = load_run(report), load(lab.data).subject(101).sessions(1)
    setting = run.results["setting"]
    assert set(run.results["methods"]) == set(METHODS) - {"pretrained"}  # of a base's own subjects alone
    assert (setting["subject"], setting["sessions"], setting["n_training_trials"]) == (101, 1, len(hour.train))
    assert setting["n_pretraining_subjects"] == 1 and setting["simulated_brains"] is True and setting["n_pictures"] == 3
    assert [word for word in setting["command"].split() if word in ("pretrain", "tune", "evaluate")] == [
        "pretrain",
        "tune",
        "evaluate",
    ]
    assert "subject 101" in (report / "report.html").read_text()


def test_evaluate_paints_nothing_where_none_is_asked_for(lab, report, tmp_path, capsys):
    out = tmp_path / "out"
    assert call("evaluate", lab.tuned, lab.data, out, "--pictures", 0, *lab.paints) == 0
    run, before = load_run(out), load_run(report)
    assert len(run.pictures["seen"]) == 0 and "--pictures 0" in run.results["setting"]["command"]
    for method, own in run.results["methods"].items():
        assert own["retrieval"] == before.results["methods"][method]["retrieval"] and "reconstruction" not in own
    refused(capsys, ["evaluate", lab.tuned, lab.data, tmp_path / "no", "--pictures", -1, *lab.paints], "--pictures is -1")


def test_scores_by_the_networks_that_are_there_and_among_few_candidates(lab, report, tmp_path, capsys, monkeypatch):
    """An AlexNet without weights sees no difference anywhere, and is at chance, exactly. A CLIP looks for things."""
    folder = tmp_path / "networks"
    folder.mkdir()
    state = {name: torch.zeros(()).expand(tensor.shape) for name, tensor in alexnet().state_dict().items()}
    torch.save(state, folder / "alexnet-owt-7be5be79.pth")
    monkeypatch.setattr(networks, "CLIP_L14", VISION)
    write_clip(folder / "clip-vit-large-patch14")
    of = Vocabulary.of
    monkeypatch.setattr(Vocabulary, "of", staticmethod(lambda captions: of(captions, fewest=2)))  # of a world this small
    words = ["--networks", folder, "--pool", 3]
    assert call("evaluate", lab.tuned, lab.data, tmp_path / "out", *words, *lab.paints) == 0
    said, run, before = capsys.readouterr().out, load_run(tmp_path / "out"), load_run(report).results["methods"]
    assert f"not scored: swav (no swav file in {folder})" in said
    assert "alexnet2, alexnet5 by AlexNet" in said
    for method, own in run.results["methods"].items():
        assert own["reconstruction"]["alexnet2"] == own["reconstruction"]["alexnet5"] == 0.5
        assert "swav" not in own["reconstruction"]
        assert 0 <= own["reconstruction"]["clip"] <= 1
        assert own["reconstruction"]["two_way"] == before[method]["reconstruction"]["two_way"]
        np.testing.assert_array_equal(run.per_image[f"{method}/reconstruction/alexnet5"], 0.5)
        assert [entry["pool"] for entry in own["retrieval_pools"]["image"]] == [len(run.per_image["images"]), 3]
        assert own["retrieval_pools"]["image"][0]["top1"] == own["retrieval"]["image"] == before[method]["retrieval"]["image"]
        assert run.results["chance"]["reconstruction"]["objects_clip"][method] >= 0
    things_as_transformers_has_them(lab, run, folder / "clip-vit-large-patch14")
    setting = run.results["setting"]
    assert shlex.join(map(str, words)) in setting["command"] and setting["scores"]["not_scored"]["swav"]
    assert setting["scores"]["networks"]["alexnet"]["weights"].startswith("alexnet-owt-7be5be79.pth ")
    for bad, message in ((["--pool", 0], "--pool is 0; expected 1 or more"), (["--networks", folder / "no"], "is no folder")):
        refused(capsys, ["evaluate", lab.tuned, lab.data, tmp_path / "no", *bad, *lab.paints], message)


def things_as_transformers_has_them(lab, run, clip):
    """The score ``objects_clip`` of the seen and of mindtuner's pictures, from transformers' own model of both towers."""
    stimuli, cache = load(lab.data).stimuli, lab.data / "cache"
    pixels = np.memmap(cache / "pixels.bin", np.uint8, "r").reshape(read_json(cache / "pixels.json")["shape"])
    control = run.pictures["nearest_training_image/reconstructed"]
    training = [k for k in stimuli.training_images if not (pixels[k] == control).all((1, 2, 3)).any()]
    assert len(training) == run.results["objects"]["clip"]["training_images"]
    vocabulary = Vocabulary.of([stimuli.captions[k] for k in training])
    prompts = [f"a photo of a {thing}." for thing in vocabulary.words["objects"]]
    usual = cosines(clip, np.asarray(pixels[training]), prompts).mean(0)
    shown = vocabulary.named([stimuli.captions[k] for k in run.per_image["images"][run.per_image["shown"]]])["objects"]
    painted = f"mindtuner/{run.results['methods']['mindtuner']['picture']}"
    found = {}
    for which in ("seen", painted):
        alike = cosines(clip, run.pictures[which], prompts) - usual
        best = [set(np.argsort(-row)[: true.sum()]) for row, true in zip(alike, shown, strict=True)]
        found[which] = [len(own & {*np.flatnonzero(true)}) / true.sum() for own, true in zip(best, shown, strict=True)]
    np.testing.assert_allclose(run.per_image["mindtuner/reconstruction/objects_clip"], found[painted], atol=1e-6)
    assert run.results["objects"]["seen"]["objects_clip"]["mean"] == pytest.approx(np.mean(found["seen"]), abs=1e-6)


def test_scores_and_predictions_are_those_of_the_library(lab, report, decoded):
    """The networks on disk are what ``tune`` returns, and the retrieval scores those of a loop over their tokens."""
    dataset = load(lab.data)
    hour, config = dataset.subject(101).sessions(1), load_config(lab.tuned / "config.yaml")
    caches = {
        name: np.memmap(lab.data / "cache" / f"{name}.bin", np.float32, "r").reshape(
            read_json(lab.data / "cache" / f"{name}.json")["shape"]
        )
        for name in ("tokens", "text", "latents", "features", "features_augmented")
    }
    base = load_network(lab.base / "base.safetensors")
    test, stored = hour.test, load_run(report).results["methods"]
    images = np.unique(test.stimulus)
    truth = caches["tokens"][images].reshape(len(images), -1)
    truth = truth / np.linalg.norm(truth, axis=1, keepdims=True)
    for method in ("mindtuner", "full_finetune"):
        network = tune(base, hour, Targets(**caches), config, 3, method)
        found = Decoder(network, "subj101", config.decode, 3).predict(hour.betas(test.row), test.stimulus)
        tokens = found.retrieval_tokens.reshape(len(images), -1)
        hits = [int(np.argmax(truth @ tokens[k])) == k for k in range(len(images))]
        assert stored[method]["retrieval"]["image"] == pytest.approx(np.mean(hits), abs=1e-6)
        if method == "mindtuner":
            kept = load_file(decoded / "predictions.safetensors")
            for name in ("images", "backbone_tokens", "retrieval_tokens", "latents", "text"):
                np.testing.assert_array_equal(kept[name], getattr(found, name))


def test_decode_paints_what_the_library_paints_image_by_image(lab, decoded, tmp_path):
    """Noise depends on the image alone, so any of the pictures can be had by itself, to the byte."""
    dataset, config = load(lab.data), load_config(lab.tuned / "config.yaml")
    test, kept = dataset.subject(101).test, load_file(decoded / "predictions.safetensors")
    network = load_fingerprint(lab.tuned / "fingerprint.safetensors", load_network(lab.base / "base.safetensors"))
    decoder, generator = Decoder(network, "subj101", config.decode, 3), CompactGenerator(config.decode, 3, lab.paints[1])
    training = np.flatnonzero(~dataset.stimuli.is_shared)
    every = np.memmap(lab.data / "cache" / "tokens.bin", np.float32, "r").reshape(
        read_json(lab.data / "cache" / "tokens.json")["shape"]
    )
    seen, encoder = every[training], CompactTextEncoder()
    bank = PhraseBank.of(dataset.stimuli, training, encoder)
    reader = PhraseReader(bank, every[bank.images])
    pictures = sorted((decoded / "pictures").iterdir())
    assert len(pictures) == 3
    for path in pictures:
        image = np.array([int(path.stem.removeprefix("image-"))])
        row = np.searchsorted(kept["images"], image)
        assert kept["images"][row] == image and image in test.stimulus
        tokens = draw_to_neighbours(decoder.image_tokens(kept["backbone_tokens"][row], image), seen, config.decode.neighbours)
        sure = reader.probabilities(kept["text"][row], network.projector, network.sureness)
        [said] = compose(sure, bank.phrases)
        phrases = np.stack([encoder.embed([bank.phrases[k]])[0] for k in said])[None], np.ones((1, len(said)), bool)
        both = generator.imagine(tokens, image), kept["backbone_tokens"][row]
        start, beside = (reader.recogniser.told(one, sure) for one in both)
        painted = generator.pictures(generator.correct(start, beside, phrases, image))
        np.testing.assert_allclose(np.asarray(Image.open(path)).transpose(2, 0, 1), painted[0] * 255, atol=0.51)
    again = ("decode", lab.tuned, lab.data, tmp_path / "out", *lab.paints)
    assert call(*again) == 0 and not (tmp_path / "out" / "pictures").exists()
    assert call(*again, "--only", pictures[1].name) == 0  # it adds to what is there
    assert [path.name for path in (tmp_path / "out" / "pictures").iterdir()] == [pictures[1].name]
    assert (tmp_path / "out" / "pictures" / pictures[1].name).read_bytes() == pictures[1].read_bytes()


def test_decode_says_words_and_paints(lab, decoded, tmp_path):
    dataset, words = load(lab.data), read_json(decoded / "words.json")
    tested, every = dataset.stimuli.is_shared, dataset.stimuli.captions
    training = {caption for image in np.flatnonzero(~tested) for caption in every[image]}
    assert [entry["image"] for entry in words["images"]] == np.flatnonzero(tested).tolist()
    assert all(entry["retrieved"] in training and tuple(entry["seen"]) == every[entry["image"]] for entry in words["images"])
    pictures = sorted((decoded / "pictures").iterdir())
    assert [path.name for path in pictures] == [words["images"][k]["name"] for k in (0, 4, -1)]
    assert np.asarray(Image.open(pictures[0])).shape == (128, 128, 3)
    assert call("decode", lab.tuned / "from_scratch.safetensors", lab.data, tmp_path / "out", "--trials", "train") == 0
    kept = load_file(tmp_path / "out" / "predictions.safetensors")
    np.testing.assert_array_equal(kept["images"], np.unique(dataset.subject(101).train.stimulus))
    assert not (tmp_path / "out" / "pictures").exists()


def test_what_was_decoded_is_a_table_by_file_name(lab, report, decoded, tmp_path, capsys):
    """Of images and of single trials, the same from ``decode`` and ``evaluate``; ranks are those of the scores."""
    dataset, run = load(lab.data), load_run(report)
    subject, names = dataset.subject(101), dataset.stimuli.names
    table = read_table(decoded / "decoded.csv")
    pd.testing.assert_frame_equal(table, read_table(report / "decoded.csv"))
    pd.testing.assert_frame_equal(table, Results.load(report).decoded)
    images = np.unique(subject.test.stimulus)
    assert table["stimulus"].tolist() == [names[k] for k in images] and table["image"].tolist() == images.tolist()
    assert table["trials"].tolist() == [int((subject.test.stimulus == k).sum()) for k in images]
    first = run.per_image["mindtuner/retrieval/image"] == 1
    assert ((table["rank"] == 1) == first).all() and ((table["nearest_1"] == table["stimulus"]) == first).all()
    assert (table["candidates"] == len(images)).all()
    chance = 1 / len(images)
    assert table["confidence"].between(chance, 1).all()
    said = [entry["phrases"] for entry in read_json(decoded / "words.json")["images"]]
    assert table["words"].tolist() == ["; ".join(phrase for phrase, _ in one) for one in said]
    single = read_table(decoded / "decoded_trials.csv")
    for column, values in (("row", subject.test.row), ("session", subject.test.session), ("repeat", subject.test.repeat)):
        assert single[column].tolist() == values.tolist()
    assert single["stimulus"].tolist() == [names[k] for k in subject.test.stimulus]
    scores = pd.read_csv(report / "scores.csv")
    assert scores.groupby("method")["retrieval_image"].mean().to_dict() == pytest.approx(
        {method: own["retrieval"]["image"] for method, own in run.results["methods"].items()}, abs=1e-5
    )
    wrong = ["decode", lab.tuned, lab.data, tmp_path / "no", *lab.paints]
    refused(
        capsys, [*wrong, "--only", "cat.png"], "--only: image cat.png is not among the", f"some of {names[images[0]]} ..."
    )
    refused(capsys, [*wrong, "--only", "3,,4"], "--only: is '3,,4'; expected names or numbers")


# ---- going on


def test_a_killed_pretraining_goes_on_to_the_same_bits(lab, tmp_path, monkeypatch, capsys):
    again = ("pretrain", lab.data, tmp_path / "run", "--without", 101, "--config", lab.config, "--seed", 3, *lab.paints)
    with monkeypatch.context() as patch:
        stop_at_step(patch, 13)  # in the second of two epochs of ten
        assert call(*again) == 130
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert "base.checkpoint" in left and "base.safetensors" not in left
    with monkeypatch.context() as patch:
        stop_at_step(patch, 10)
        assert call(*again) == 0  # the second epoch is all that is left
    assert "going on" in capsys.readouterr().out
    assert (tmp_path / "run" / "base.safetensors").read_bytes() == (lab.base / "base.safetensors").read_bytes()
    assert entries(tmp_path / "run") == entries(lab.base)
    assert names(tmp_path / "run") == {"config.yaml", "inputs.json", "log.jsonl", "base.safetensors"}


def test_an_evaluation_that_was_killed_while_it_cleared_up_goes_on(lab, report, tmp_path, monkeypatch):
    out, real = tmp_path / "out", shutil.rmtree

    def dies(folder, **options):
        if Path(folder).name != "painted":
            return real(folder, **options)
        next(Path(folder).glob("*.json")).unlink()
        raise KeyboardInterrupt

    words = ("evaluate", lab.tuned, lab.data, out, *lab.paints)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", dies)
        assert call(*words) == 130
    assert len(list((out / "painted").iterdir())) % 2 == 1
    assert call(*words) == 0 and names(out) == names(report)
    pictures = [load_file(run / "pictures.safetensors") for run in (out, report)]
    assert pictures[0].keys() == pictures[1].keys()
    for name, array in pictures[0].items():
        np.testing.assert_array_equal(array, pictures[1][name])


def test_a_killed_tuning_goes_on_and_other_methods_are_added(lab, tmp_path, monkeypatch):
    again = ("tune", lab.base, lab.data, tmp_path / "run", "--subject", 101, "--sessions", 1, *lab.paints)
    with monkeypatch.context() as patch:
        stop_at_step(patch, 17)  # two epochs of five steps each
        assert call(*again, "--method", "mindtuner", "ridge_only") == 130
    assert names(tmp_path / "run") == {
        "config.yaml",
        "inputs.json",
        "log.jsonl",
        "fingerprint.safetensors",
        "ridge_only.checkpoint",
    }
    with monkeypatch.context() as patch:
        stop_at_step(patch, 15)
        assert call(*again) == 0
    assert names(tmp_path / "run") == {
        "config.yaml",
        "inputs.json",
        "log.jsonl",
        "fingerprint.safetensors",
        "ridge_only.safetensors",
        "ridge.safetensors",
        "shuffled_brain.safetensors",
    }
    for path in (tmp_path / "run").glob("*.safetensors"):
        whole = load_file(lab.tuned / path.name)
        for name, tensor in load_file(path).items():
            np.testing.assert_array_equal(tensor, whole[name])
    stages = ("mindtuner", "ridge_only", "shuffled_brain")
    assert entries(tmp_path / "run") == [entry for entry in entries(lab.tuned) if entry["stage"] in stages]


# ---- captions


def test_nothing_is_made_with_weights_that_saw_a_test_image(lab, tmp_path, capsys):
    """Weights that know the last test image: refused before anything is written, whatever is asked for."""
    stimuli = load(lab.data).stimuli
    tested = np.flatnonzero(stimuli.is_shared)
    seen = torch.from_numpy(picture_hashes(stimuli.images(tested[-1:])).copy())
    knows = tmp_path / "knows.safetensors"
    save_tensors(load_tensors(lab.paints[1]) | {TRAINED_ON: seen}, knows)
    out, cache = tmp_path / "out", ("--cache", tmp_path / "cache")
    for words in (
        ("embed", lab.data, tmp_path / "cache"),
        ("pretrain", lab.data, out, *cache),
        ("tune", lab.base, lab.data, out, "--subject", 101, *cache),
        ("decode", lab.tuned, lab.data, out, "--pictures", 1),
        ("evaluate", lab.tuned, lab.data, out),
    ):
        capsys.readouterr()
        assert call(*words, "--generator", knows) == 2, words
        assert f"was trained on 1 of {len(tested)} test images" in capsys.readouterr().err
        assert not out.exists() and not list(tmp_path.glob("cache/*"))


def test_without_captions_only_pretraining_is_refused(lab, tmp_path, capsys):
    """No training image has a caption, and half of the test images."""
    data = tmp_path / "study"
    shutil.copytree(lab.data, data, ignore=shutil.ignore_patterns("cache"))
    stimuli = load(lab.data).stimuli
    tests = np.flatnonzero(stimuli.is_shared)
    for image in set(range(len(stimuli))) - set(tests[::2].tolist()):
        (data / "stimuli" / f"image-{image:06d}.txt").unlink()
    refused(
        capsys,
        ["pretrain", data, tmp_path / "base", "--subjects", 102, "--config", lab.config, *lab.paints],
        f"{data}: captions of the",
        "expected some",
    )
    assert not (tmp_path / "base").exists()
    assert call("tune", lab.base, data, tmp_path / "tuned", "--subject", 101, "--method", "mindtuner", *lab.paints) == 0
    assert call("evaluate", tmp_path / "tuned", data, tmp_path / "report", *lab.paints) == 0
    run = load_run(tmp_path / "report")
    assert set(run.results["methods"]) == {"mindtuner", "nearest_training_image", "prior_only"}
    assert run.results["chance"]["retrieval"] == {"image": 1 / 8, "brain": 1 / 8, "text": 1 / 4}
    assert run.results["methods"]["mindtuner"]["picture"] == "reconstructed"  # nothing to correct it with
    assert "retrieved_caption" not in run.words["methods"]["mindtuner"] and run.words["all_captions"].count("") == 4
    page = (tmp_path / "report" / "report.html").read_text()
    assert "4 of 8 test images have no caption" in page and ">no caption<" in page
    assert call("decode", tmp_path / "tuned", data, tmp_path / "decoded") == 0
    assert {entry["retrieved"] for entry in read_json(tmp_path / "decoded" / "words.json")["images"]} == {None}


# ---- refused, in one line


def test_data_and_subjects_that_are_not_there(lab, tmp_path, capsys):
    out = tmp_path / "out"
    refused(capsys, ["pretrain", tmp_path / "none", out, "--config", lab.config, *lab.paints], "none: not found")
    pretrain = ["pretrain", lab.data, out, "--config", lab.config, *lab.paints]
    refused(capsys, [*pretrain, "--without", 7], "no subject 7")
    refused(capsys, [*pretrain, "--subjects", 7], "no subject 7")
    refused(capsys, [*pretrain, "--without", 101, 102], "no subject is left")
    refused(capsys, ["pretrain", lab.data, out, "--config", "paper"], "model.tokens is 256; expected 16")
    refused(capsys, ["pretrain", lab.data, out, "--config", tmp_path / "no.yaml"], "no.yaml: not found")
    tune = ["tune", lab.base, lab.data, out, *lab.paints]
    refused(capsys, [*tune, "--subject", 7], "no subject 7; expected some of 101, 102")
    refused(capsys, [*tune, "--subject", 102], "knows subject 102 already")
    refused(
        capsys,
        [*tune, "--subject", 101, "--sessions", 3],
        '--sessions: is 3 for subject 101; expected 1 to 2, or "all": 2 of its 2 sessions hold training trials',
    )
    refused(capsys, [*tune, "--subject", 101, "--method", "lora"], "--method: 'lora' is unknown")
    refused(capsys, ["tune", tmp_path, lab.data, out, "--subject", 101], "base.safetensors: not found")
    refused(capsys, ["tune", lab.tuned / "fingerprint.safetensors", lab.data, out, "--subject", 101], "kind is 'fingerprint'")
    assert not out.exists()


def test_a_folder_with_another_run_is_not_touched(lab, report, capsys):
    before = {path: path.read_bytes() for run in (lab.base, lab.tuned, report) for path in run.iterdir()}
    refused(
        capsys,
        ["pretrain", lab.data, lab.base, "--without", 101, "--config", lab.config, "--seed", 4, *lab.paints],
        "base: holds another run",
        "--force",
    )
    refused(
        capsys, ["tune", lab.base, lab.data, lab.tuned, "--subject", 101, "--sessions", 2, *lab.paints], "holds another run"
    )
    refused(capsys, ["evaluate", lab.tuned, lab.data, report, *lab.paints], "holds another run")
    for out, name in ((lab.base, "BASE"), (lab.tuned, "TUNED"), (lab.data, "DATA"), (lab.folder, "DATA")):
        refused(capsys, ["evaluate", lab.tuned, lab.data, out, "--force", *lab.paints], f"holds {name}")
    assert before == {path: path.read_bytes() for path in before}
    assert (lab.data / "sub-01" / "betas.npy").is_file()


@pytest.mark.parametrize("verb", ["evaluate", "decode"])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(lab, tmp_path, capsys, verb):
    """No file may grow beyond 40 kB, which the libraries that write it say each in its way."""
    resource = pytest.importorskip("resource")
    out, limits = tmp_path / "out", resource.getrlimit(resource.RLIMIT_FSIZE)
    words = [verb, lab.tuned, lab.data, out, "--pictures", 2, *lab.paints]
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
    try:
        refused(capsys, words, f"{out}", "cannot be written", "File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(out.rglob("*.part")) and not (out / LOCK).exists()
    assert all(path.stat().st_size < 40_000 for path in out.rglob("*"))
    assert call(*words) == 0


def test_files_have_the_permissions_that_the_umask_gives(lab, report, decoded):
    mask = os.umask(0)
    os.umask(mask)
    files = [path for run in (lab.base, lab.tuned, report, decoded) for path in run.rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~mask}


def test_a_run_may_be_a_link(lab, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    words = ("tune", lab.base, lab.data, tmp_path / "run", "--subject", 101, "--method", "ridge", *lab.paints)
    assert call(*words) == 0 and call(*words, "--force") == 0
    assert (tmp_path / "run").is_symlink() and (tmp_path / "disk" / "ridge.safetensors").is_file()


def test_force_never_deletes_a_dataset_or_what_was_put_into_a_run(lab, tmp_path, capsys):
    """Measured data, whole or half-fetched, with the names that a run might give its own; and a dataset within a run."""
    data, half, run = tmp_path / "nsd", tmp_path / "half", tmp_path / "run"
    shutil.copytree(lab.tuned, run)
    for folder in (data, run / "data"):
        folder.mkdir()
        for name in ("betas_all_subj01_fp32_renorm.hdf5", "shared1000.npy", "wds", "cache"):
            (folder / name).write_text("measured")
        write_json(folder / "dataset.json", {"simulated": False})
    (half / ".fetch-0123.part").mkdir(parents=True)
    (half / ".fetch-0123.part" / "betas").write_text("half")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for out in (data, half, run):
        for words in (
            ["tune", lab.base, lab.data, out, "--subject", 101, "--method", "ridge", *lab.paints],
            ["pretrain", lab.data, out, "--without", 101, "--config", lab.config, *lab.paints],
            ["decode", lab.tuned, lab.data, out, *lab.paints],
            ["evaluate", lab.tuned, lab.data, out, *lab.paints],
            ["simulate", out, "--subjects", 1],
        ):
            refused(capsys, [*words, "--force"], f"{out}: holds")
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_finished_run_is_left_as_it_is_and_force_makes_it_again(lab, tmp_path, monkeypatch):
    again = ("pretrain", lab.data, tmp_path / "run", "--subjects", 102, "--config", lab.config, "--seed", 3, *lab.paints)
    shutil.copytree(lab.base, tmp_path / "run")
    settings = (tmp_path / "run" / "config.yaml").read_text().replace(str(lab.base), str(tmp_path / "run"))
    (tmp_path / "run" / "config.yaml").write_text(settings)
    stop_at_step(monkeypatch, 0)
    assert call(*again) == 0  # --subjects 102 is --without 101, and nothing is left to do
    assert call(*again, "--force") == 130 and not (tmp_path / "run" / "base.safetensors").exists()


def test_the_base_is_looked_for_and_checked(lab, tmp_path, capsys):
    """A fingerprint that was moved asks for its base; another base, of the same form, is refused."""
    moved, out = tmp_path / "elsewhere" / "tuned", tmp_path / "out"
    shutil.copytree(lab.tuned, moved)
    refused(capsys, ["decode", moved, lab.data, out, *lab.paints], "base_path is", "--base")
    refused(capsys, ["evaluate", moved, lab.data, out, *lab.paints], "base_path is", "--base")
    other = ("pretrain", lab.data, tmp_path / "other", "--without", 101, "--config", lab.config, "--seed", 9)
    assert call(*other, *lab.paints) == 0
    for verb in ("decode", "evaluate"):
        refused(capsys, [verb, moved, lab.data, out, "--base", tmp_path / "other", *lab.paints], "belongs to another base")
    assert not out.exists()
    assert call("decode", moved, lab.data, out, "--base", lab.base, *lab.paints) == 0


def test_files_that_were_not_tuned(lab, tmp_path, capsys):
    out = tmp_path / "out"
    refused(capsys, ["decode", lab.base / "base.safetensors", lab.data, out], "is a base; expected what mindtuner tune wrote")
    refused(
        capsys,
        ["decode", lab.base, lab.data, out],
        "holds no fingerprint.safetensors; expected a run of mindtuner tune or fit",
    )
    refused(capsys, ["decode", lab.tuned, lab.data, out, "--pictures", -1], "--pictures is -1")
    refused(capsys, ["evaluate", lab.base, lab.data, out], "expected a run of mindtuner tune")
    assert not out.exists()


def test_painting_wants_the_tokens_that_the_towers_give(lab, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(features._COMPACT_SIZES, "tokens", 20)
    decode = ("decode", lab.tuned, lab.data, tmp_path / "out", *lab.paints)
    refused(capsys, [*decode, "--pictures", 1], "base.safetensors: model.tokens is 16; expected 20")
    assert not (tmp_path / "out").exists()
    assert call(*decode) == 0  # words alone need no painter, but nothing is looked up
    assert "rank" not in read_table(tmp_path / "out" / "decoded.csv")


def test_a_cache_of_other_images_is_refused(lab, tmp_path, capsys):
    shutil.copytree(lab.data / "cache", tmp_path / "cache")
    seal = tmp_path / "cache" / "tokens.json"
    seal.write_text(json.dumps({**read_json(seal), "stimuli": "others"}))
    refused(
        capsys,
        ["tune", lab.base, lab.data, tmp_path / "out", "--subject", 101, "--cache", tmp_path / "cache", *lab.paints],
        "tokens.json: stimuli is 'others'",
    )


def test_pictures_as_the_kamitani_labs_evaluation_reads_them(lab, decoded, tmp_path, capsys):
    """Its script takes *.tiff of a folder, and the name without ``recon_image-`` and ending as the label of the original."""
    made, seen = tmp_path / "made", tmp_path / "seen"
    decode = ["decode", lab.tuned, lab.data, decoded, *lab.paints, "--recon-images"]
    refused(capsys, decode, "--recon-images: writes painted pictures; expected --pictures or --only")
    assert call(*decode, "--pictures", 3) == 0  # which were painted before
    shutil.move(decoded / "recon_images", made)
    stimuli, files = load(lab.data).stimuli, sorted(made.glob("*.tiff"))
    labels = [path.stem.replace("recon_image-", "") for path in files]
    known = {Path(name).stem: number for number, name in enumerate(stimuli.names)}
    assert len(files) == 3 and set(labels) <= set(known)
    seen.mkdir()
    painted = {read_pixels(path).tobytes() for path in (decoded / "pictures").glob("*.png")}
    assert {read_pixels(path).tobytes() for path in files} == painted
    for label in labels:
        pixels = np.rint(stimuli.images([known[label]])[0].astype(np.float32) * 255).astype(np.uint8)
        Image.fromarray(pixels.transpose(1, 2, 0)).save(seen / f"{label}.png")
    capsys.readouterr()
    refused(capsys, ["score", seen, made], "pictures of 128 x 128 pixels; expected 224 x 224")
    for path in seen.iterdir():
        Image.open(path).resize((128, 128)).save(path)
    assert call("score", seen, made, "--scores", "pixcorr", "--out", tmp_path / "scores.json") == 0
    assert list(read_json(tmp_path / "scores.json")["scores"]["pixcorr"]["pictures"]) == labels


def read_pixels(path):
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return np.asarray(image)


def test_where_the_main_methods_file_is_gone_no_other_decodes_in_its_place(lab, tmp_path, capsys):
    run = shutil.copytree(lab.tuned, tmp_path / "run", symlinks=True)
    (run / "fingerprint.safetensors").unlink()
    refused(capsys, ["decode", run, lab.data, tmp_path / "out", *lab.paints], "fingerprint.safetensors: not found, though")
    assert call("decode", run / "ridge_only.safetensors", lab.data, tmp_path / "out", "--base", lab.base, *lab.paints) == 0
