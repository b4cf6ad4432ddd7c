"""From data to pictures at full size, through the command line, on tiny random models in the published ones' formats."""

import dataclasses
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from commands import call, refused
from paths import ROOT
from PIL import Image
from release import CLIP, FEATURES, TEXT_WIDTH, TOKENS, WIDTH
from safetensors.numpy import load_file

from mindtuner.config import load_config
from mindtuner.decoding.decoder import Decoder
from mindtuner.decoding.words import TextBank
from mindtuner.errors import UserError
from mindtuner.evaluation.results import load_run
from mindtuner.files import read_json, write_json
from mindtuner.formats import load
from mindtuner.generators.full_size import FullSizeGenerator, Sources, batch_for
from mindtuner.generators.git_captioner import GitCaptioner
from mindtuner.generators.prompts import category_bank, prompts_of
from mindtuner.generators.sdxl import SdxlRefiner, blend
from mindtuner.generators.unclip import UnclipGenerator
from mindtuner.pipeline.features import stored_targets
from mindtuner.pipeline.words import phrase_reader, read_words
from mindtuner.towers.openclip import OpenClipTextEncoder
from mindtuner.towers.sd_vae import StableAutoencoder
from mindtuner.training import load_fingerprint, load_network, read_card

pytestmark = pytest.mark.slow

SIDE = 16


@pytest.fixture(scope="module")
def command(lab, models):
    """decode as a user types it, but for OUT and which images."""

    def words(out, *others):
        return [
            "decode",
            lab.tuned,
            lab.data,
            out,
            "--device",
            "cpu",
            "--generator",
            "sdxl",
            "--unclip",
            models.unclip,
            "--sdxl",
            models.sdxl,
            "--vae",
            models.vae,
            *models.clip,
            "--captions",
            models.git,
            "--converter",
            models.converter,
            "--side",
            SIDE,
            "--cache",
            lab.cache,
            "--stages",
            *others,
        ]

    return words


@pytest.fixture(scope="module")
def decoded(command, tmp_path_factory):
    out = tmp_path_factory.mktemp("full size") / "decoded"
    assert call(*command(out, "--pictures", 4)) == 0
    return out


@pytest.fixture(scope="module")
def evaluated(lab, models, tmp_path_factory):
    """The run of ``evaluate``, stopped between two methods and then going on."""
    out, real = tmp_path_factory.mktemp("full size") / "evaluated", FullSizeGenerator.stages
    evaluate = [
        "evaluate",
        lab.tuned,
        lab.data,
        out,
        "--cache",
        lab.cache,
        "--device",
        "cpu",
        "--generator",
        "sdxl",
        "--unclip",
        models.unclip,
        "--sdxl",
        models.sdxl,
        "--vae",
        models.vae,
        *models.clip,
        "--captions",
        models.git,
        "--converter",
        models.converter,
        "--side",
        SIDE,
    ]
    asked = []

    def stages(self, tokens, found, words, lowlevel, title):
        asked.append(title)
        if asked == ["mindtuner", "prior_only"]:
            raise KeyboardInterrupt
        return real(self, tokens, found, words, lowlevel, title)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FullSizeGenerator, "stages", stages)
        assert call(*evaluate) == 130
        assert call(*evaluate) == 0
    assert asked == ["mindtuner", "prior_only", "prior_only"] and not (out / "painted").exists()
    return out


def contents(out):
    return {path.relative_to(out): path.read_bytes() for path in (out / "pictures").rglob("*") if path.is_file()}


# ---- the chain


def test_every_verb_from_fetch_to_report(models, decoded, evaluated, tmp_path):
    """``fetch weights`` brought everything from a hub and converted it, ``embed``, ``pretrain``, ``tune``, ``decode`` and
    ``evaluate`` ran on that (the fixtures). ``convert`` makes the same generator again, and ``report`` the same page."""
    assert call("convert", "unclip", models.checkpoint, tmp_path / "unclip") == 0
    for path in (models.unclip / "unet", models.unclip / "vae", models.unclip / "scheduler"):
        for file in path.iterdir():
            assert file.read_bytes() == (tmp_path / "unclip" / path.name / file.name).read_bytes()
    assert len(list((decoded / "pictures").glob("*.png"))) == len(list((decoded / "pictures").glob("*.txt"))) == 4
    assert all(entry["retrieved"] for entry in read_json(decoded / "words.json")["images"])
    page = (evaluated / "report.html").read_text()
    out = shutil.copytree(evaluated, tmp_path / "out")
    (out / "report.html").unlink()
    assert call("report", out) == 0 and (out / "report.html").read_text() == page
    assert "Blended" in page and "drawn scenes, not on these" not in page


def test_the_base_says_what_its_tokens_are(lab, models):
    seals = {name: read_json(lab.cache / f"{name}.json") for name in ("tokens", "text", "latents", "features")}
    assert {name: tuple(seal["shape"][1:]) for name, seal in seals.items()} == {
        "tokens": (TOKENS, WIDTH),
        "text": (TEXT_WIDTH,),
        "latents": (4, 28, 28),
        "features": (49, FEATURES),
    }
    for card in (read_card(lab.base / "base.safetensors"), read_card(lab.tuned / "fingerprint.safetensors")):
        assert card["conventions"] == {"token_norm": "after", "image_range": "clip"}
        assert all(card["towers"][name] == seal["identity"] for name, seal in seals.items())


def test_pictures_are_those_of_the_parts_called_by_hand(lab, models, decoded):
    dataset = load(lab.data, [1])
    subject = dataset.subject(1)
    network = load_fingerprint(lab.tuned / "fingerprint.safetensors", load_network(lab.base / "base.safetensors"), subject)
    decoder, test = Decoder(network, "subj01", lab.decode, 0), subject.test
    found = decoder.predict(subject.betas(test.row), test.stimulus)
    images = sorted(int(path.stem) for path in (decoded / "pictures").glob("*.png"))
    assert len(images) == 4
    rows = np.searchsorted(found.images, images)
    texts = OpenClipTextEncoder(CLIP, models.clip_weights)
    training = np.flatnonzero(~dataset.stimuli.is_shared)
    bank = TextBank.of(dataset.stimuli, training, texts)
    caches = {"tokens": stored_targets(lab.cache, dataset.stimuli).tokens}
    words = read_words(found.rows(rows), network, bank, phrase_reader(dataset.stimuli, caches, training, texts))
    assert all(words.said)  # phrases, not whole captions
    prompts = prompts_of(words, category_bank(texts))
    tokens = decoder.image_tokens(found.backbone_tokens[rows], np.array(images))
    painter = UnclipGenerator(lab.decode, 0, models.unclip, "clip", SIDE)
    raw = painter.pictures(painter.generate(tokens, np.array(images)))
    corrected = SdxlRefiner(models.sdxl, lab.decode, 0, where="cpu").correct(raw, prompts, np.array(images))
    low = StableAutoencoder(models.vae).decode(found.latents[rows])
    expected = {"lowlevel": low, "reconstructed": raw, "corrected": corrected, "blended": blend(corrected, low)}
    for stage, pictures in expected.items():
        for image, picture in zip(images, pictures, strict=True):
            shown = np.asarray(Image.open(decoded / "pictures" / stage / f"{image:06d}.png")).transpose(2, 0, 1)
            np.testing.assert_allclose(shown, picture * 255, atol=0.51)
    for image in images:
        folder = decoded / "pictures"
        assert (folder / f"{image:06d}.png").read_bytes() == (folder / "corrected" / f"{image:06d}.png").read_bytes()
        assert (folder / f"{image:06d}.txt").read_text().endswith("\n")
    assert np.ptp(corrected) > 0.02 and np.abs(corrected[0] - corrected[1]).max() > 0.02  # not one grey for all


def test_evaluate_scores_the_same_pictures(lab, decoded, evaluated):
    """Pictures are those of decode, at the stimuli's size."""
    run = load_run(evaluated)
    assert set(run.results["methods"]) == {"mindtuner", "nearest_training_image", "prior_only"}
    assert set(run.results["methods"]["mindtuner"]["stages"]) == {"lowlevel", "reconstructed", "blended", "corrected"}
    assert run.results["methods"]["mindtuner"]["picture"] == "corrected"
    assert "--generator sdxl" in run.results["setting"]["command"]
    shown = run.pictures["mindtuner/corrected"]
    assert shown.shape == run.pictures["seen"].shape == (len(shown), 3, 224, 224)
    images = np.unique(load(lab.data, [1]).subject(1).test.stimulus)[run.words["picture_index"]]
    for image, picture in zip(images, shown, strict=True):
        path = decoded / "pictures" / f"{image:06d}.png"
        if path.exists():
            small = torch.from_numpy(np.asarray(Image.open(path)).transpose(2, 0, 1) / 255)[None].float()
            large = torch.nn.functional.interpolate(small, (224, 224), mode="bilinear", antialias=True)[0].numpy()
            np.testing.assert_allclose(picture, large * 255, atol=2)
    pixels = load(lab.data, [1]).stimuli.images(images)
    np.testing.assert_allclose(run.pictures["seen"], pixels * 255, atol=0.51)


def test_evaluate_scores_what_git_writes(lab, models, decoded, evaluated):
    """The captions of decode, beside the retrieved ones; those of a control by the captioner called by hand."""
    run, words = load_run(evaluated), load_run(evaluated).words["methods"]
    dataset = load(lab.data, [1])
    images = np.unique(dataset.subject(1).test.stimulus)[run.words["picture_index"]]
    there = {image: decoded / "pictures" / f"{image:06d}.txt" for image in images}
    assert any(path.exists() for path in there.values())  # decode painted fewer
    for image, caption in zip(images, words["mindtuner"]["written_caption"], strict=True):
        assert not there[image].exists() or there[image].read_text() == caption + "\n"
    for method, own in run.results["methods"].items():
        assert set(own["written"]) == set(own["captions"]) == set(run.results["chance"]["written"])
        for score, mean in own["written"].items():
            low, high = own["ci95"]["written"][score]
            assert low <= mean <= high and method in run.results["chance"]["written"][score]
            assert run.per_image[f"{method}/written/{score}"].shape == (len(images),)
    pixels = np.round(dataset.stimuli.images(dataset.stimuli.training_images) * 255)
    nearest = [
        dataset.stimuli.training_images[(pixels == shown).all((1, 2, 3)).argmax()]
        for shown in run.pictures["nearest_training_image/reconstructed"]
    ]
    tokens = stored_targets(lab.cache, dataset.stimuli).tokens[np.array(nearest)]
    captioner = GitCaptioner(models.git, models.converter, where="cpu", batch=1)
    assert captioner.captions(tokens) == words["nearest_training_image"]["written_caption"]
    assert "Captions written" in (evaluated / "report.html").read_text()


def test_a_plain_convnext_has_another_width_and_says_so(lab, tmp_path, capsys):
    network = timm.create_model("test_convnext", num_classes=0)
    torch.save(network.state_dict(), tmp_path / "plain.pth")
    embed = ["embed", lab.data, tmp_path / "cache", "--towers", "paper", "--only", "features", "--convnext"]
    assert call(*embed, "timm:test_convnext", "--convnext-weights", tmp_path / "plain.pth") == 0
    seal = read_json(tmp_path / "cache" / "features.json")
    assert seal["shape"][1:] == [49, network.num_features] and seal["identity"]["projector"].startswith("none")
    refused(capsys, [*embed, "timm:resnet18"], "timm model 'resnet18': unknown")
    refused(capsys, [*embed, lab.root / "none.pth", "--convnext-weights", tmp_path / "plain.pth"], "--convnext timm:NAME")


# ---- the same bytes, whatever the way


def test_a_killed_run_goes_on_to_the_same_bytes(lab, command, decoded, tmp_path, monkeypatch):
    out, real, calls = tmp_path / "out", FullSizeGenerator.stages, []

    def stages(self, *arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(FullSizeGenerator, "stages", stages)
    assert call(*command(out, "--pictures", 4)) == 130
    there = sorted((out / "pictures").glob("*.png"))
    times = {path: path.stat().st_mtime_ns for path in there}
    assert len(there) == 2
    monkeypatch.setattr("mindtuner.pipeline.decoding.write_picture", stop_at(3))
    assert call(*command(out, "--pictures", 4)) == 130  # between two stages of a picture
    monkeypatch.undo()
    assert call(*command(out, "--pictures", 4)) == 0
    assert {path: path.stat().st_mtime_ns for path in there} == times  # what was there is not painted again
    assert contents(out) == contents(decoded)
    assert not list(out.rglob(".*.part"))


def stop_at(number):
    from mindtuner.pipeline import decoding

    real, calls = decoding.write_picture, []

    def write(*arguments):
        calls.append(1)
        if len(calls) == number:
            raise KeyboardInterrupt
        real(*arguments)

    return write


def test_any_subset_gets_the_same_bytes(command, decoded, tmp_path):
    images = sorted(int(path.stem) for path in (decoded / "pictures").glob("*.png"))
    for image in (images[2], images[0]):  # one after the other into the same folder, in another order
        assert call(*command(tmp_path / "out", "--only", image)) == 0
    assert contents(tmp_path / "out") == {
        path: content for path, content in contents(decoded).items() if int(path.stem) in (images[0], images[2])
    }
    whole, part = (load_file(out / "predictions.safetensors") for out in (decoded, tmp_path / "out"))
    assert all(np.array_equal(whole[name], part[name]) for name in whole)


def test_in_batches_they_look_the_same(command, decoded, tmp_path):
    assert call(*command(tmp_path / "out", "--pictures", 4, "--batch", 3)) == 0
    for path in (decoded / "pictures").rglob("*.png"):
        other = np.asarray(Image.open(tmp_path / "out" / path.relative_to(decoded))).astype(int)
        assert np.abs(other - np.asarray(Image.open(path))).max() <= 1
    assert batch_for(torch.device("cpu")) == 1


@pytest.mark.parametrize("card", [24, 40, 80])
def test_as_many_pictures_as_a_card_holds(card, monkeypatch):
    """By the page's own table, which is computed: weights, a picture's passes, and 2 GiB that are nobody's."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda where: (int((card - 0.5) * 2**30), card * 2**30))
    page = (ROOT / "benchmarks" / "results" / "full_size_memory.md").read_text()
    rows = re.findall(r"\| decode: [^|]*\(a picture\) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", page)
    batch = batch_for(torch.device("cuda"))
    assert len(rows) == 3 and batch > 1
    for weights, one, each in rows:
        assert float(weights) + float(one) + (batch - 1) * float(each) < card - 2


def test_several_corrections_are_refused_before_anything_is_loaded(tmp_path):
    decode = dataclasses.replace(load_config("paper").decode, corrections=3)
    with pytest.raises(UserError, match=r"decode\.corrections: is 3; expected 1 with the generator at full size"):
        FullSizeGenerator(decode, 0, Sources(tmp_path / "none", str(tmp_path / "none")), {}, 8, None)


# ---- refused, in one line


def test_a_folder_of_other_settings_is_refused(command, decoded, capsys):
    before = contents(decoded)
    refused(capsys, [*command(decoded, "--pictures", 4), "--side", 24], "decoded: holds another run", "--force")
    refused(capsys, [*command(decoded, "--pictures", 4), "--trials", "train"], "holds another run")
    assert contents(decoded) == before


def test_options_that_do_not_go_together(lab, command, models, tmp_path, capsys):
    out = tmp_path / "out"
    refused(capsys, command(out, "--only", "9999"), "--only: image 9999 is not among the 8")
    refused(capsys, command(out, "--only", "x.png"), "--only: image x.png is not among the 8")
    refused(capsys, command(out, "--only", "3,"), "--only: is '3,'; expected names or numbers of stimuli")
    refused(capsys, command(out, "--pictures", 1, "--batch", 0), "--batch is 0")
    refused(capsys, command(out, "--pictures", 1, "--offload"), "offload: is on, but the device is the CPU")
    refused(capsys, command(out, "--pictures", 1, "--dtype", "float16"), "float16 on a CPU")
    refused(capsys, command(out, "--pictures", 1, "--side", 20), "--side is 20; expected a multiple of 8")
    short = ["decode", lab.tuned, lab.data, out, "--pictures", 1]
    refused(capsys, [*short, "--unclip", models.unclip], "--unclip: is given; expected it with --generator sdxl")
    refused(capsys, [*short, "--generator", "sdxl"], "--unclip: is missing")
    refused(capsys, short, "base.safetensors: model.width is 40; expected 128")
    refused(capsys, short[:4], "text_width is 384; expected 24", "--clip")
    full = [*short, "--generator", "sdxl", "--unclip", models.unclip, "--sdxl", models.sdxl, *models.clip]
    refused(capsys, [*full, "--captions", models.git], "--captions, --converter: only one is given")
    refused(capsys, [*full, "--sdxl", tmp_path / "none"], "none: not found")
    refused(capsys, [*full, "--cache", tmp_path / "none"], "--cache: ", "none is no folder; expected the features")
    assert not out.exists()


def test_a_generator_of_other_conventions_is_refused_by_field(lab, command, models, tmp_path, capsys):
    unclip = shutil.copytree(models.unclip, tmp_path / "unclip")
    card = read_json(unclip / "mindtuner.json")
    write_json(unclip / "mindtuner.json", {**card, "conventions": {**card["conventions"], "token_norm": "before"}})
    again = [*command(tmp_path / "out", "--pictures", 1), "--unclip", unclip]  # the last one counts
    refused(capsys, again, "conventions.token_norm is 'before'; expected 'after'")
    write_json(unclip / "mindtuner.json", {**card, "token_width": 1664})
    refused(capsys, again, "token_width is 1664; expected 40")
    write_json(unclip / "mindtuner.json", card)
    weights = next((unclip / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(capsys, again, "unet: not a whole UNet2DConditionModel")
    other = {
        key: tensor + 0.01 if tensor.is_floating_point() else tensor
        for key, tensor in torch.load(models.clip_weights, weights_only=True).items()
    }
    torch.save(other, tmp_path / "other.bin")
    refused(
        capsys,
        [*command(tmp_path / "out", "--pictures", 1), "--clip-weights", tmp_path / "other.bin"],
        "weights is",
        "with which",
        "base.safetensors was trained",
    )
    assert not (tmp_path / "out").exists()


def test_a_cache_of_other_tokens_is_refused_by_field(lab, models, tmp_path, capsys):
    cache = shutil.copytree(lab.cache, tmp_path / "cache")
    shown = [path for path in cache.iterdir() if path.stem == "tokens"]
    for path in shown:
        path.unlink()
    assert (
        call("embed", lab.data, cache, "--towers", "paper", "--only", "tokens", *models.clip, "--image-range", "mindeye2")
        == 0
    )
    tune = ["tune", lab.base, lab.data, tmp_path / "out", "--subject", 1, "--method", "mindtuner", "--cache", cache]
    refused(capsys, tune, "tokens.json: image_range is 'mindeye2'; expected 'clip'")
    refused(
        capsys,
        [
            "evaluate",
            lab.tuned,
            lab.data,
            tmp_path / "out",
            "--generator",
            "sdxl",
            "--unclip",
            models.unclip,
            "--sdxl",
            models.sdxl,
            *models.clip,
            "--cache",
            cache,
        ],
        "tokens.json: image_range is 'mindeye2'",
    )
    (cache / "text.json").unlink()
    refused(capsys, tune, "text.json: not found")
    config = yaml.safe_load(lab.config.read_text())
    config["model"]["width"] = 44
    (tmp_path / "wide.yaml").write_text(yaml.safe_dump(config))
    refused(
        capsys,
        ["pretrain", lab.data, tmp_path / "base", "--without", 1, "--config", tmp_path / "wide.yaml", "--cache", lab.cache],
        "model.width is 44; expected 40, which the towers of",
    )
    assert not (tmp_path / "base").exists()


def test_towers_that_are_not_given(lab, models, tmp_path, capsys):
    embed = ["embed", lab.data, tmp_path / "cache"]
    refused(capsys, [*embed, "--towers", "paper", *models.clip], "--convnext: is missing; expected it, for features")
    refused(capsys, [*embed, "--towers", "paper", "--only", "pixels"], "--only: pixels is not of the paper's towers")
    refused(capsys, [*embed, *models.clip], "--clip: is of other towers")
    refused(capsys, [*embed, "--towers", "paper", "--generator", "x"], "--generator: is of other towers")
    refused(capsys, [*embed, "--towers", "paper", "--only", "text", "--clip", "ViT-none"], "ViT-none: open_clip knows")
    assert not (tmp_path / "cache").exists()


def test_a_base_without_conventions_is_not_painted_by_sdxl():
    """A base of the package's own towers says nothing of token norms: there SDXL has no place."""
    from mindtuner.pipeline.generators import TrainedWith

    with pytest.raises(UserError, match="card has no conventions"):
        TrainedWith({}, {"seed": 0}, Path("base.safetensors")).conventions  # noqa: B018
    imported = {"token_norm": "after", "image_range": "mindeye2"}
    assert TrainedWith({}, {"conventions": {**imported, "notes": "-"}}, Path()).conventions == imported
