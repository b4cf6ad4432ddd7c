"""Bases and fingerprints that travel: saved, pushed to a local hub, fetched into a fresh cache, and refused."""

import copy
import dataclasses
import doctest
import json
import os
import re
import stat
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import call, refused
from hub import serving
from huggingface_hub import ModelCard, constants
from paths import ROOT

import mindtuner
from mindtuner.config import load_config
from mindtuner.errors import UserError
from mindtuner.pipeline import Base, TunedSubject, hub, model_card
from mindtuner.training import read_card

pytestmark = pytest.mark.slow
BRIEF = {"epochs": 0.1, "batch_per_subject": 8, "head_trials": 8}
SETTINGS = {
    "base": "quick",
    "model": {"hidden": 32},
    "pretrain": BRIEF,
    "tune": BRIEF,
    "pivot": {"epochs": 0.1},
    "decode": {"pictures": 2},
}


@pytest.fixture(scope="module")
def world(simulated, tmp_path_factory):
    """A base of subject 2 and subject 1 tuned on it, in memory and as runs; read only."""
    root = tmp_path_factory.mktemp("world")
    dataset = mindtuner.load(simulated)
    features = mindtuner.embed(dataset, root / "cache")
    base = mindtuner.pretrain(dataset.without(subject=1), features, load_config(SETTINGS))
    subject = mindtuner.tune(base, dataset.subject(1).sessions(1), features)
    network = copy.deepcopy(base.network)
    with torch.no_grad():
        next(network.blocks.parameters()).add_(1.0)
    other = dataclasses.replace(base, network=network)
    voxels = dataset.subject(1).betas(np.arange(4))
    return SimpleNamespace(dataset=dataset, features=features, base=base, subject=subject, other=other, voxels=voxels)


@pytest.fixture
def remote(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with serving({}) as found:
        yield found


def same(a, b):
    assert a.state_dict().keys() == b.state_dict().keys()
    assert all(torch.equal(tensor, b.state_dict()[name]) for name, tensor in a.state_dict().items())


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- folders


def test_a_saved_base_is_that_base(world, tmp_path):
    saved = world.base.save(tmp_path / "base")
    found = Base.load(tmp_path / "base")
    same(found.network, world.base.network)
    assert found.card == world.base.card and found.config == world.base.config == Base.load(saved.path).config
    assert saved.path == found.path and found.hub_id is None and saved.network is world.base.network
    assert load_config(tmp_path / "base" / "config.json") == world.base.config


def test_a_saved_fingerprint_finds_its_base_from_where_it_lies(world, tmp_path):
    base = world.base.save(tmp_path / "shared" / "base")
    subject = dataclasses.replace(world.subject, base=base)
    saved = subject.save(tmp_path / "shared" / "people" / "one")
    assert list(saved.networks) == list(saved.files) == ["mindtuner"]
    (tmp_path / "shared").rename(tmp_path / "elsewhere")
    folder = tmp_path / "elsewhere" / "people" / "one"
    assert sorted(contents(folder)) == ["README.md", "config.json", "model.safetensors"]
    found = TunedSubject.load(folder, world.dataset, features=world.features)
    same(found.networks["mindtuner"], world.subject.networks["mindtuner"])
    same(found.base.network, world.base.network)
    assert found.config == world.subject.config and found.base.path == tmp_path / "elsewhere" / "base" / "model.safetensors"
    expected = world.subject.decoder().predict(world.voxels)
    assert np.array_equal(found.decoder().predict(world.voxels).retrieval_tokens, expected.retrieval_tokens)


def test_all_methods_travel_when_asked_for(world, tmp_path):
    base = world.base.save(tmp_path / "base")
    world.subject.save(tmp_path / "all", methods="all", base=tmp_path / "base")
    found = TunedSubject.load(tmp_path / "all", world.dataset)
    assert list(found.networks)[0] == "mindtuner" and set(found.networks) == set(world.subject.networks)
    for method, network in world.subject.networks.items():
        same(found.networks[method], network)
    some = world.subject.save(tmp_path / "some", methods=["ridge_only"], base=base.path)
    assert (
        read_card(some.files["ridge_only"])["method"] == "ridge_only" and some.files["ridge_only"].name == "model.safetensors"
    )
    again = world.subject.save(tmp_path / "all", base=tmp_path / "base")  # fewer methods take the place of more
    assert sorted(contents(tmp_path / "all")) == ["README.md", "config.json", "model.safetensors"]
    assert TunedSubject.load(tmp_path / "all").files == again.files


def test_all_weights_travel_of_a_method_that_changes_them_all(world, tmp_path):
    hour = world.dataset.subject(1).sessions(1)
    tuned = mindtuner.tune(world.base, hour, world.features, methods=["full_finetune"])
    tuned.save(tmp_path / "full", base=world.base.save(tmp_path / "base").path)
    same(TunedSubject.load(tmp_path / "full", world.dataset).networks["full_finetune"], tuned.networks["full_finetune"])


def test_a_run_and_what_is_saved_of_it_hold_the_same(world, tmp_path):
    hour = world.dataset.subject(1).sessions(1)
    base = world.base.save(tmp_path / "base")
    run = mindtuner.tune(base, hour, world.features, methods=["mindtuner"], out=tmp_path / "run")
    loaded = TunedSubject.load(tmp_path / "run")
    assert run.cards == loaded.cards == {"mindtuner": read_card(tmp_path / "run" / "fingerprint.safetensors")}
    from_run, from_memory = loaded.save(tmp_path / "a").card, world.subject.save(tmp_path / "b", base=base.path).card
    assert from_run.pop("scores") == {}
    assert from_run == from_memory and from_run["base_path"] == "../base/model.safetensors"
    same(TunedSubject.load(tmp_path / "a").networks["mindtuner"], loaded.networks["mindtuner"])


def test_the_same_gives_the_same_bytes(world, tmp_path):
    for save, more in ((world.base.save, {}), (world.subject.save, {"methods": "all"})):
        kind = save.__self__.__class__.__name__
        save(tmp_path / kind / "a", **more)
        first = contents(tmp_path / kind / "a")
        save(tmp_path / kind / "a", **more)
        save(tmp_path / kind / "b", **more)
        assert first == contents(tmp_path / kind / "a") == contents(tmp_path / kind / "b")
    again = TunedSubject.load(tmp_path / "TunedSubject" / "a", base=world.base).save(tmp_path / "again", methods="all")
    assert contents(again.files["mindtuner"].parent) == contents(tmp_path / "TunedSubject" / "a")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_permissions_are_those_of_the_umask(world, tmp_path):
    before = os.umask(0o027)
    try:
        world.base.save(tmp_path / "base")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "base").iterdir()} == {0o640}
    assert stat.S_IMODE((tmp_path / "base").stat().st_mode) == 0o750


def test_nothing_else_is_replaced_and_a_failed_save_leaves_what_was_there(world, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(UserError, match="holds notes.txt; expected an empty folder"):
        world.base.save(tmp_path / "mine")
    (tmp_path / "mine" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="expected an empty folder"):
        world.base.save(tmp_path / "mine")
    assert sorted(contents(tmp_path / "mine")) == ["config.json", "notes.txt"]
    with pytest.raises(UserError, match="is a file"):
        world.base.save(tmp_path / "mine" / "notes.txt")
    world.base.save(tmp_path / "base")
    before = contents(tmp_path / "base")
    monkeypatch.setattr(model_card, "PAPERS", None)
    monkeypatch.setattr("mindtuner.pipeline.base.write_text", _full_disk)
    with pytest.raises(UserError, match="No space left"):
        world.base.save(tmp_path / "base")
    assert contents(tmp_path / "base") == before


def _full_disk(path, text):
    raise OSError(28, "No space left on device")


def test_a_folder_that_is_not_one_is_refused(world, tmp_path):
    world.base.save(tmp_path / "base")
    world.subject.save(tmp_path / "subject")
    with pytest.raises(UserError, match="kind is 'fingerprint'; expected 'network'"):
        Base.load(tmp_path / "subject")
    with pytest.raises(UserError, match="kind is 'base'; expected 'fingerprint'"):
        TunedSubject.load(tmp_path / "base")
    with pytest.raises(UserError, match="card names no base; expected `base`"):
        TunedSubject.load(tmp_path / "subject")
    with pytest.raises(UserError, match="belongs to another base; expected the one"):
        TunedSubject.load(tmp_path / "subject", base=world.other)
    with pytest.raises(
        UserError, match="'nearest' was not tuned; expected some of mindtuner, ridge_only, ridge, shuffled_brain"
    ):
        world.subject.save(tmp_path / "new", methods=["nearest"])
    settings = json.loads((tmp_path / "base" / "config.json").read_text())
    for config, said in ((None, "config holds a NoneType"), ({"sed": 1}, "unknown field sed")):
        (tmp_path / "base" / "config.json").write_text(json.dumps({**settings, "config": config}))
        with pytest.raises(UserError, match=f"config.json: {said}"):
            Base.load(tmp_path / "base")
    for files in (None, [], ["../model.safetensors"], ["model.safetensors", "setup.py"]):
        with pytest.raises(UserError, match="files is"):
            (tmp_path / "subject" / "config.json").write_text(
                json.dumps({"library_name": "mindtuner", "kind": "fingerprint", "files": files})
            )
            TunedSubject.load(tmp_path / "subject")


# ---- model cards


def test_the_card_says_what_a_stranger_must_know(world, tmp_path):
    world.base.save(tmp_path / "base", datasets=["your-lab/scans"])
    card = ModelCard.load(tmp_path / "base" / "README.md")
    assert card.data.library_name == "mindtuner" and card.data.license == "mit" and card.data.datasets == ["your-lab/scans"]
    assert {"fmri", "simulated-brains"} <= set(card.data.tags) and card.data.base_model is None
    for part in (model_card.SIMULATED, "| subj02 | 143 | 2 |", "Betas z-scored by: train_trials", "arxiv.org/abs/2404.12630"):
        assert part in card.text
    assert all(name in card.text for name in world.features.described["towers"])
    measured = dataclasses.replace(world.base, card={**world.base.card, "simulated": False})
    unknown = dataclasses.replace(world.base, card={})
    assert "imulated" not in model_card.base_card(measured, "a/b") and model_card.MEASURED in model_card.base_card(
        measured, "a/b"
    )
    assert model_card.UNKNOWN in model_card.base_card(unknown, "a/b")
    conventions = {"token_norm": "after", "image_range": "clip"}
    full = dataclasses.replace(world.base, card={**world.base.card, "conventions": conventions})
    assert "token_norm: after, image_range: clip" in model_card.base_card(full, "a/b")


def test_scores_stand_beside_chance(world, tmp_path):
    results = mindtuner.evaluate(world.subject, world.dataset, world.features)
    for save in (world.base.save, world.subject.save):
        save(tmp_path / "one", results=results)
        text = (tmp_path / "one" / "README.md").read_text()
        assert repr(results) in text and "\nchance " in text and "8 test images" in text
    other = dataclasses.replace(world.subject, number=2)
    with pytest.raises(UserError, match="results: are of subject 1; expected 2"):
        other.save(tmp_path / "two", results=results)


def test_the_card_shows_how_to_use_it(world, remote):
    base = world.base.push_to_hub("our-lab/base")
    dataclasses.replace(world.subject, base=base).push_to_hub("our-lab/one")
    for repo, expected in (("our-lab/base", "TunedSubject"), ("our-lab/one", "TunedSubject")):
        text = remote.files[f"/{repo}/resolve/main/README.md"].decode()
        code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
        assert len(code.splitlines()) == 5
        found = {}
        code = code.replace("data/nsd", str(world.dataset.root))
        exec(code.replace("embed(dataset)", f"embed(dataset, {str(world.features.folder)!r})"), found)
        assert type(found["subject"]).__name__ == expected and found["subject"].base.hub_id == base.hub_id


def test_the_page_on_sharing_runs(world, remote):
    code = "".join(re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "sharing.md").read_text(encoding="utf-8"), re.DOTALL))
    found = {"mindtuner": mindtuner, **vars(world)}
    exec(code, found)
    assert len(found["captions"]) == len(world.voxels)
    assert "## Scores" in remote.files["/your-lab/subject/resolve/main/README.md"].decode()


# ---- the hub


def test_what_is_pushed_comes_back(world, remote):
    pushed = world.base.push_to_hub("our-lab/base")
    assert pushed.hub_id == f"our-lab/base@{remote.commits['our-lab/base']}" and pushed.network is world.base.network
    found = Base.from_pretrained("our-lab/base")
    same(found.network, world.base.network)
    assert found.card == world.base.card and found.config == world.base.config and found.hub_id == pushed.hub_id

    subject = mindtuner.tune(found, world.dataset.subject(1).sessions(1), world.features)
    assert subject.push_to_hub("our-lab/one", methods="all") == f"our-lab/one@{remote.commits['our-lab/one']}"
    back = TunedSubject.from_pretrained("our-lab/one", world.dataset, features=world.features)
    assert back.base.hub_id == pushed.hub_id and list(back.networks)[0] == "mindtuner" and len(back.networks) == 4
    for method, network in subject.networks.items():
        same(back.networks[method], network)
    expected = subject.decoder().predict(world.voxels)
    assert np.array_equal(back.decoder().predict(world.voxels).retrieval_tokens, expected.retrieval_tokens)
    assert ModelCard(remote.files["/our-lab/one/resolve/main/README.md"].decode()).data.base_model == "our-lab/base"


def test_the_base_of_a_revision_stays_the_base(world, remote):
    first = world.base.push_to_hub("our-lab/base")
    dataclasses.replace(world.subject, base=first).push_to_hub("our-lab/one")
    world.subject.push_to_hub("our-lab/two", base="our-lab/base")  # of no revision
    second = world.other.push_to_hub("our-lab/base")
    assert first.hub_id != second.hub_id == Base.from_pretrained("our-lab/base").hub_id
    same(Base.from_pretrained(first.hub_id).network, world.base.network)
    same(TunedSubject.from_pretrained("our-lab/one").base.network, world.base.network)
    with pytest.raises(UserError, match="our-lab/two: .*belongs to another base; expected the one that subj01 was tuned on"):
        TunedSubject.from_pretrained("our-lab/two")
    given = TunedSubject.from_pretrained("our-lab/two", base=world.base)
    assert given.base is world.base
    same(given.networks["mindtuner"], world.subject.networks["mindtuner"])


def test_a_second_time_needs_no_network(world, remote, monkeypatch):
    base = world.base.push_to_hub("our-lab/base")
    dataclasses.replace(world.subject, base=base).push_to_hub("our-lab/one")
    TunedSubject.from_pretrained("our-lab/one")
    travelled = dict(remote.sent)
    again = TunedSubject.from_pretrained("our-lab/one")
    assert remote.sent == travelled  # only asked whether it changed
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    remote.asked.clear()
    offline = TunedSubject.from_pretrained("our-lab/one")
    assert remote.asked == []
    same(offline.networks["mindtuner"], again.networks["mindtuner"])
    refuses(lambda: Base.from_pretrained("our-lab/other"), "our-lab/other: no such folder, no hub that answers")


def refuses(action, *parts):
    with pytest.raises(UserError) as caught:
        action()
    said = str(caught.value)
    assert "\n" not in said and "; expected " in said, said
    for part in parts:
        assert part in said


def test_what_cannot_be_had_is_refused_in_one_line(world, remote):
    refuses(lambda: Base.from_pretrained("our-lab/none"), "our-lab/none", "HTTP 404")
    world.base.push_to_hub("our-lab/base")
    refuses(lambda: Base.from_pretrained("our-lab/base@v9"), "our-lab/base@v9")
    remote.private.add("our-lab/base")
    refuses(lambda: Base.from_pretrained("our-lab/base"), "our-lab/base", "HTTP 401", "hf auth login")
    remote.commit("someone/weights", {"model.safetensors": b"abc"})
    refuses(lambda: Base.from_pretrained("someone/weights"), "someone/weights: holds no config.json")
    for settings, said in (
        (b'{"model_type": "bert"}', "library_name is None; expected 'mindtuner'"),
        (b"\x80\x04N.", "someone/weights: "),
        (b'{"library_name": "mindtuner", "kind": "base", "files": ["a/../../b"]}', "files is"),
    ):
        remote.commit("someone/weights", {"config.json": settings})
        refuses(lambda: Base.from_pretrained("someone/weights"), "someone/weights: ", said)
    assert not any("/someone/" in path and "model.safetensors" in path for _, path in remote.asked)  # what is none of ours
    settings = {**json.loads((world.base.save("here").path.parent / "config.json").read_text()), "kind": "base"}
    remote.commit("someone/weights", {"config.json": json.dumps(settings).encode()})
    refuses(lambda: Base.from_pretrained("someone/weights"), "someone/weights: ", "cannot be read")
    world.subject.push_to_hub("our-lab/one", base="our-lab/base")
    refuses(lambda: Base.from_pretrained("our-lab/one"), "our-lab/one: ", "kind is 'fingerprint'; expected 'base'")
    refuses(lambda: TunedSubject.from_pretrained("our-lab/one"), "our-lab/base", "HTTP 401")


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_damaged_download_is_removed(world, remote, file):
    commit = world.base.push_to_hub("our-lab/base").hub_id.partition("@")[2]
    paths = {f"/our-lab/base/resolve/{revision}/{file}" for revision in ("main", commit)}
    remote.wrong |= paths
    refuses(lambda: Base.from_pretrained("our-lab/base"), f"our-lab/base: {file} arrived damaged", "removed")
    remote.wrong.clear()
    same(Base.from_pretrained("our-lab/base").network, world.base.network)


def test_a_download_that_breaks_off_goes_on(world, remote):
    commit = world.base.push_to_hub("our-lab/base").hub_id.partition("@")[2]
    path = f"/our-lab/base/resolve/{commit}/model.safetensors"
    remote.drop[path] = 1
    same(Base.from_pretrained("our-lab/base").network, world.base.network)
    assert remote.drop[path] == 0


def test_the_variables_of_the_hub_hold(world, remote, tmp_path):
    """In a process of its own, for which they say where the hub and its cache are."""
    world.base.push_to_hub("our-lab/base")
    code = "import mindtuner; print(mindtuner.Base.from_pretrained('our-lab/base').hub_id)"
    paths = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": remote.url, "HF_HUB_DISABLE_XET": "1"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")} | paths
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == f"our-lab/base@{remote.commits['our-lab/base']}"
    assert (tmp_path / "home" / "hub" / "models--our-lab--base").is_dir()


def test_what_cannot_be_sent_is_refused_in_one_line(world, remote):
    for wrong in ("base", "our-lab/base/x", "our lab/base", "our-lab/base@"):
        refuses(lambda wrong=wrong: world.base.push_to_hub(wrong), f"repo_id is {wrong!r}")
    refuses(lambda: world.subject.push_to_hub("our-lab/one"), "base is None; expected an id on the hub")
    refuses(lambda: world.subject.push_to_hub("our-lab/one", base="./base"), "base is './base'")
    remote.readonly = True
    refuses(lambda: world.base.push_to_hub("our-lab/base"), "our-lab/base: refused (HTTP 403)", "login")
    assert remote.files == {}


def test_what_is_here_comes_before_what_is_there(world, remote):
    world.other.push_to_hub("our-lab/base")
    assert hub.is_elsewhere("our-lab/base")
    world.base.save("our-lab/base")
    same(Base.from_pretrained("our-lab/base").network, world.base.network)
    assert not hub.is_elsewhere("our-lab/other")  # a path of a folder that is here
    refuses(lambda: Base.from_pretrained("our-lab/other"), "our-lab/other: not found")
    assert not any(hub.is_elsewhere(text) for text in ("base", "./a/b", "/a/b", "a/b/c", "a/b@"))
    same(Base.from_hub("our-lab/base").network, world.other.network)


def test_verbs_take_ids_and_saved_folders(world, remote, capsys, tmp_path):
    world.base.push_to_hub("our-lab/base")
    base, data, cache = (
        world.base.save(tmp_path / "saved").path.parent,
        world.dataset.root,
        ("--cache", world.features.folder),
    )
    methods = ("--method", "mindtuner")
    assert call("tune", "our-lab/base", data, tmp_path / "run", "--subject", 1, *methods, *cache) == 0
    assert call("tune", base, data, tmp_path / "run2", "--subject", 1, *methods, *cache) == 0
    one, two = TunedSubject.load(tmp_path / "run"), TunedSubject.load(tmp_path / "run2")
    same(one.networks["mindtuner"], two.networks["mindtuner"])
    assert one.base.hub_id == f"our-lab/base@{remote.commits['our-lab/base']}" and two.base.path == base / "model.safetensors"
    command = (tmp_path / "run2" / "config.yaml").read_text().splitlines()[0]
    assert f"--config {base / 'config.json'}" in command
    one.push_to_hub("our-lab/one")
    two.save(tmp_path / "two")
    for number, tuned in enumerate(("our-lab/one", tmp_path / "two")):
        assert call("decode", tuned, data, tmp_path / f"decoded{number}", *cache) == 0
    decoded = [(tmp_path / f"decoded{number}" / "words.json").read_bytes() for number in range(2)]
    assert decoded[0] == decoded[1]
    assert call("decode", tmp_path / "two", data, tmp_path / "decoded2", "--base", "our-lab/base", *cache) == 0
    assert call("evaluate", "our-lab/one", data, tmp_path / "scored", *cache) == 0
    refused(capsys, ["tune", "our-lab/none", data, tmp_path / "run3", "--subject", 1], "our-lab/none", "expected")


def test_examples(world, remote, tmp_path):
    """Those that need a hub too, which is here."""
    names = {"mindtuner": mindtuner, **vars(world)}
    tried = 0
    for owner, name in [
        (kind, name) for kind in (Base, TunedSubject) for name in ("save", "push_to_hub", "load", "from_pretrained")
    ]:
        text = textwrap.dedent(getattr(owner, name).__doc__).replace("# doctest: +SKIP", "")
        test = doctest.DocTestParser().get_doctest(text, names | {"base": world.base}, f"{owner.__name__}.{name}", None, 0)
        if name == "from_pretrained" and owner is TunedSubject:
            pushed = world.base.push_to_hub("your-lab/base")
            dataclasses.replace(world.subject, base=pushed).push_to_hub("your-lab/subject")
        failed, count = doctest.DocTestRunner().run(test)
        assert failed == 0 and count > 0
        tried += count
    assert tried >= 8
