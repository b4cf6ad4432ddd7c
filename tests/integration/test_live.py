"""A session that is decoded while it goes on: each trial as decoding it later would, kills, and the page in a browser."""

import json
import shutil
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pandas as pd
import pytest
import yaml
from browser import serious_faults
from commands import call, refused
from PIL import Image
from worlds import brief

import mindtuner
from mindtuner.data.zscore import SessionZScored
from mindtuner.formats import load, write
from mindtuner.live import Arrival, LivePage, LiveSession, RunningZScore, follow
from mindtuner.live.following import candidates_of
from mindtuner.live.session import LookUp

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lab(simulated, untrained_generator, tmp_path_factory):
    """A lab's folder of betas as measured, a run of subject 1, and trials to come; read only."""
    folder = tmp_path_factory.mktemp("lab")
    data, config = folder / "data", folder / "brief.yaml"
    write(data, load(simulated), "lab_folder")
    card = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps({**card, "zscore": "none"}))
    config.write_text(yaml.safe_dump(brief(pictures=1)))
    paints = ("--generator", untrained_generator)
    assert call("pretrain", data, folder / "base", "--without", 1, "--config", config, *paints) == 0
    assert (
        call("tune", folder / "base", data, folder / "run", "--subject", 1, "--sessions", 1, "--method", "mindtuner", *paints)
        == 0
    )
    return folder


@pytest.fixture(scope="module")
def world(lab, untrained_generator):
    dataset = mindtuner.load(lab / "data")
    features = mindtuner.embed(dataset, weights=untrained_generator)
    subject = mindtuner.TunedSubject.load(lab / "run", dataset, features=features)
    source = dataset.subject(1).source
    assert isinstance(source, SessionZScored)
    rows = dataset.subject(1).test.row[:5]
    return dataset, features, subject, np.asarray(source._source[rows], np.float32)


def session_in(out, world, pictures=False):
    dataset, features, subject, _ = world
    decoder = subject.decoder()
    among = LookUp(dataset.stimuli, features.caches["tokens"], candidates_of(dataset, decoder.training_images, "all"))
    return LiveSession(decoder, among, out, RunningZScore(dataset.subject(1).source.pooled()), pictures)


def arrivals(world):
    return [Arrival(f"trial-{k}.npy", betas, time.monotonic()) for k, betas in enumerate(world[3])]


def without_times(trials):
    return [{name: value for name, value in entry.items() if name not in ("time", "seconds")} for entry in trials]


def test_a_trial_says_what_decoding_it_later_says(world, tmp_path):
    dataset, _, subject, betas = world
    session = session_in(tmp_path, world)
    for found in arrivals(world):
        session.take(found)
    scaling, decoder = RunningZScore(dataset.subject(1).source.pooled()), subject.decoder()
    scaled = np.stack([scaling(row) for row in betas])
    close = decoder.retrieve(scaled, np.arange(len(dataset.stimuli))).similarity
    words = decoder.words(decoder.predict(scaled))
    for k, entry in enumerate(session.trials):
        assert [one["image"] for one in entry["nearest"]] == np.argsort(-close[k], kind="stable")[:5].tolist()
        sure = subject.networks["mindtuner"].confidence
        if sure is not None:
            weights = np.exp(float(sure.sharpness) * (close[k] - close[k].max()))
            assert entry["nearest"][0]["confidence"] == pytest.approx(weights.max() / weights.sum(), abs=1e-3)
        assert entry["caption"] == words.captions[k]
        assert [phrase for phrase, _ in entry["words"]] == (
            [] if words.said is None else [phrase for phrase, _ in words.said[k]]
        )
        np.testing.assert_array_equal(np.load(tmp_path / "betas" / f"{k + 1:04d}-trial-{k}.npy"), scaled[k])
    table = pd.read_csv(tmp_path / "decoded.csv")
    assert table["trial"].tolist() == [f"trial-{k}.npy" for k in range(5)]
    assert table["nearest_1"].tolist() == [entry["nearest"][0]["name"] for entry in session.trials]


@pytest.mark.parametrize("killed_at", ["betas", "live.safetensors", "decoded.csv"])
def test_a_session_that_was_killed_goes_on_as_if_it_had_not_been(world, tmp_path, monkeypatch, killed_at):
    from mindtuner import files

    whole = session_in(tmp_path / "whole", world)
    for found in arrivals(world):
        whole.take(found)
    broken, real = session_in(tmp_path / "broken", world), files.os.replace
    broken.take(arrivals(world)[0])
    broken.take(arrivals(world)[1])

    def dies(source, target):
        if killed_at in str(target):
            raise KeyboardInterrupt  # before the file is there
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", dies)
        with pytest.raises(KeyboardInterrupt):
            broken.take(arrivals(world)[2])
    again = session_in(tmp_path / "broken", world)
    assert len(again.trials) == (3 if killed_at == "decoded.csv" else 2)
    for found in arrivals(world)[len(again.trials) :]:
        again.take(found)
    assert without_times(again.trials) == without_times(whole.trials)
    assert len(pd.read_csv(tmp_path / "broken" / "decoded.csv")) == 5


def get(url, host=None):
    request = urllib.request.Request(url, headers={} if host is None else {"Host": host})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, b""


def test_the_verb_follows_a_folder_and_paints(lab, world, tmp_path, capsys, untrained_generator):
    watched, out = tmp_path / "watched", tmp_path / "out"
    watched.mkdir()
    for k, betas in enumerate(world[3][:2]):
        np.save(watched / f"trial-{k}.npy", betas)
    words = (lab / "run", lab / "data", watched, out, "--port", 0, "--generator", untrained_generator)
    assert call("live", *words, "--stop-after", 2) == 0
    said = capsys.readouterr().out
    assert "http://127.0.0.1:" in said and "z-scored by the session so far" in said and "trial-1.npy" in said
    assert sorted(path.name for path in (out / "pictures").iterdir()) == ["0001-trial-0.png", "0002-trial-1.png"]
    assert np.asarray(Image.open(out / "pictures" / "0001-trial-0.png")).std() > 0
    before = pd.read_csv(out / "decoded.csv")
    np.save(watched / "trial-2.npy", world[3][2])
    assert call("live", *words, "--stop-after", 3) == 0
    after = pd.read_csv(out / "decoded.csv")
    pd.testing.assert_frame_equal(after[:2], before)
    assert after["trial"].tolist()[2] == "trial-2.npy"
    for other in (("--among", "test"), ("--zscored",)):
        refused(capsys, ("live", *words, *other, "--stop-after", 3), "holds another run")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"watched": "nowhere"}, "nowhere: is no folder"),
        ({"out": "watched/out"}, "watched"),
        ({"more": ("--port", 70000)}, "port: 70000 cannot be served"),
        ({"more": ("--stop-after", 0)}, "--stop-after is 0; expected 1 or more"),
        ({"more": ("--mask", "none.nii.gz")}, "none.nii.gz"),
    ],
)
def test_bad_input_is_one_line(lab, tmp_path, capsys, change, says, untrained_generator):
    (tmp_path / "watched").mkdir()
    watched, out = tmp_path / change.get("watched", "watched"), tmp_path / change.get("out", "out")
    if "out" in change:
        watched, out = watched / "in", watched
        watched.mkdir()
    paints = ("--generator", untrained_generator)
    refused(capsys, ("live", lab / "run", lab / "data", watched, out, *paints, *change.get("more", ())), says)


def test_the_page_shows_each_trial_and_nothing_of_its_markup(world, tmp_path, chrome):
    """In a browser: a page that is open sees trials come, one with a hostile name too, and a file that is broken."""
    evil = "<img src=x onerror=document.title='owned'>.npy"
    dataset, _, subject, _ = world
    session = session_in(tmp_path, world, pictures=True)
    page = LivePage(session, dataset.stimuli, "Subject 1")
    painter = threading.Thread(target=session.paint_until_over)
    painter.start()
    try:
        chrome.get(page.url)
        assert "Waiting for the first trial" in chrome.find_element("id", "status").text
        first, second = arrivals(world)[:2]
        session.take(first)
        session.take(Arrival(evil, second.betas, second.seen))
        session.broken["bad.npy"] = "bad.npy: is no .npy file"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and "Painted" not in chrome.find_element("id", "painting").text:
            time.sleep(0.3)
        assert chrome.find_element("id", "trial").text == evil and chrome.title == "MindTuner live: 2 trials"
        assert [one.text for one in chrome.find_elements("css selector", "#broken li")] == ["bad.npy: is no .npy file"]
        loaded = "return [...document.images].filter(i => i.src).every(i => i.complete && i.naturalWidth > 0)"
        while time.monotonic() < deadline and not chrome.execute_script(loaded):
            time.sleep(0.3)
        assert chrome.execute_script(loaded)
        assert len(chrome.find_elements("css selector", "#nearest li")) == 5
        assert len(chrome.find_elements("css selector", "#earlier li")) == 1
        assert serious_faults(chrome) == []
        chrome.get("about:blank")  # a page that is open would ask on
    finally:
        session.end()
        painter.join()
        page.close()


def test_the_page_answers_this_machine_alone_and_holds_nothing_else(world, tmp_path):
    session = session_in(tmp_path, world)
    session.take(arrivals(world)[0])
    page = LivePage(session, world[0].stimuli, "Subject 1")
    try:
        assert json.loads(get(f"{page.url}state.json")[1])["trials"][0]["trial"] == "trial-0.npy"
        assert get(f"{page.url}state.json", "evil.example:80")[0] == 403
        for path in (
            "../config.yaml",
            "picture/1",
            "picture/2",
            "stimulus/99999",
            "stimulus/-1",
            "live.safetensors",
            "stimulus/",
        ):
            assert get(page.url + path)[0] == 404, path
        assert get(f"{page.url}stimulus/0")[0] == 200
    finally:
        page.close()


def test_ctrl_c_ends_a_session_without_an_error(world, tmp_path):
    dataset, features, subject, betas = world
    watched = tmp_path / "watched"
    watched.mkdir()
    np.save(watched / "a.npy", betas[0])

    def came(found):
        raise KeyboardInterrupt

    session = follow(subject, dataset, features, watched, tmp_path / "out", pictures=False, came=came)
    assert [entry["trial"] for entry in session.trials] == ["a.npy"]
    shutil.rmtree(tmp_path / "out")
