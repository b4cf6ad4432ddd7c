"""The report: opened in a real browser, and refused with one line where the run folder is broken."""

import base64
import colorsys
import io
import json
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from mindtuner.errors import UserError
from mindtuner.evaluation.report import plots, tables, write_report
from mindtuner.evaluation.report.figure import contact_sheet
from mindtuner.evaluation.results import load_run

PICTURES, TESTS = 6, 23  # more thumbnails than one row of the sheet holds
SEEN = [3, 0, 21, 7, 22, 11]  # where the pictures stand in the test list
# Rank of the seen image in each card's strip, by construction; 0 where it is not among the five.
RANKS = {"mindtuner": [1, 2, 0, 1, 5, 1], "ridge_only": [0, 1, 1, 0, 3, 0]}
STAGES = ("lowlevel", "reconstructed", "corrected")
EVIL = '<script>window.broken = true</script> & a "quoted" </script> dog'


def scene(number, side=64, blur=0.0):
    """A coloured disc on a coloured ground: (3, side, side) uint8, different for every number."""
    y, x = np.mgrid[:side, :side] / side
    hue = number * 0.381966 % 1
    disc = (x - 0.3 - 0.4 * (number * 0.23 % 1)) ** 2 + (y - 0.5) ** 2 < 0.06
    ground, ink = (np.array(colorsys.hsv_to_rgb(h % 1, 0.55, v)) for h, v in ((hue, 0.9), (hue + 0.5, 0.6)))
    image = np.where(disc[None], ink[:, None, None], (ground[:, None, None] * (0.7 + 0.3 * y)))
    image = (1 - blur) * image + blur * image.mean((1, 2), keepdims=True)
    return (255 * image).round().astype(np.uint8)


def strip(truth, rank):
    """Five positions with ``truth`` at ``rank``."""
    others = [position for position in range(TESTS) if position != truth][:5]
    return others if rank == 0 else [*others[: rank - 1], truth, *others[rank - 1:4]]


def make_run(folder, side=64):
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {"seen": np.stack([scene(n, side) for n in SEEN]),
              "thumbnails": np.stack([scene(n, 16) for n in range(TESTS)])}
    for shift, method in enumerate(RANKS, start=1):
        for stage, blur in zip(STAGES, (0.8, 0.4, 0.1), strict=True):
            arrays[f"{method}/{stage}"] = np.stack([scene(n + 40 * shift, side, blur) for n in SEEN])
    arrays["nearest_training_image/corrected"] = np.stack([scene(n + 500, side) for n in SEEN])
    save_file(arrays, folder / "pictures.safetensors")
    captions = [f"a disc number {n} on a bright ground" for n in range(TESTS)]
    captions[SEEN[0]] = EVIL
    words = {"picture_index": SEEN, "all_captions": captions, "seen_captions": [captions[n] for n in SEEN],
             "methods": {m: {"retrieved_caption": [f"{m} reads {n}" for n in SEEN],
                             "top5": [strip(t, r) for t, r in zip(SEEN, ranks, strict=True)]}
                         for m, ranks in RANKS.items()}}
    (folder / "words.json").write_text(json.dumps(words))
    save_file({"images": np.arange(TESTS), "shown": np.array(SEEN), "texts": np.arange(TESTS),
               "mindtuner/reconstruction/two_way": np.array([0.5, 0.1, 0.9, 0.3, 0.7, 0.2], np.float32)},
              folder / "per_image.safetensors")

    def method(level):
        retrieval = {"image": level, "brain": 0.9 * level, "text": level / 3}
        scores = {"pixcorr": level / 2, "ssim": level / 3, "two_way": 0.5 + level / 2}
        return {"retrieval": retrieval, "reconstruction": scores, "picture": "corrected",
                "stages": {"corrected": scores},
                "single_trial_retrieval": {direction: value / 2 for direction, value in retrieval.items()},
                "ci95": {part: {key: [value - 0.05, value + 0.05] for key, value in values.items()}
                         for part, values in (("retrieval", retrieval), ("reconstruction", scores))}}

    def difference(mean, p):
        return {"mean": mean, "ci": [mean - 0.04, mean + 0.04], "p": p}

    methods = {"mindtuner": method(0.62), "ridge_only": method(0.55), "shuffled_brain": method(0.06),
               "nearest_training_image": method(0.3)}
    results = {
        "setting": {"simulated_brains": True, "simulated_scenes": True, "stimuli_note": "", "subject": 1,
                    "sessions": 1, "n_training_trials": 675, "n_test_images": TESTS, "n_pictures": PICTURES,
                    "prior_steps": 20, "generator_steps": 12, "refine_steps": 6, "seed": 0,
                    "dtype": "float32", "versions": {"torch": "2.14.0"},
                    "command": "mindtuner demo <out> --seed 0"},
        "methods": methods,
        "chance": {"retrieval": {direction: 1 / TESTS for direction in ("image", "brain", "text")},
                   "two_way": 0.5,
                   "reconstruction": {score: {name: 0.02 + 0.01 * n for n, name in enumerate(methods)}
                                      for score in ("pixcorr", "ssim")}},
        "paired": {"mindtuner_minus_ridge_only": {
            "retrieval": {"image": difference(0.07, 0.02), "brain": difference(-0.05, 0.0004),
                          "text": difference(0.02, 0.41)},
            "reconstruction": {score: difference(0.001, 0.9) for score in ("pixcorr", "ssim", "two_way")}}},
        "timing_s": {"pretrain": 83.4, "total": 401.0}, "peak_memory_mb": 3120.5,
    }
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "config.yaml").write_text("simulate:\n  subjects: 8\nseed: 0\n")
    log = [{"stage": stage, "epoch": e, "step": 9 * e, "seconds": 1.0,
            "losses": {"prior": 20 * np.exp(-e / 4), "clip": 5 - e / 10}}
           for stage in ("pretrain", "tune:mindtuner", "tune:ridge_only") for e in range(12)]
    (folder / "log.jsonl").write_text("\n".join(json.dumps(entry) for entry in log))
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write_report(make_run(tmp_path_factory.mktemp("report") / "run"))


@pytest.fixture(scope="module")
def browser(page, tmp_path_factory):
    """Headless Chromium with the page open. Absent Chromium fails in CI and skips elsewhere."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        message = "needs Chromium and its driver (Debian: chromium chromium-driver)"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking", "disable-quic",
                 "no-first-run", "disable-component-update", "disable-sync", "disable-dev-shm-usage",
                 "window-size=1280,900", f"user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        chrome.get(page.as_uri())
        yield chrome
    finally:
        chrome.quit()


def cards(browser):
    """What each visible card shows, in the order of the page."""
    return browser.execute_script("""
        return [...document.querySelectorAll('.card')].filter(c => !c.parentElement.hidden).map(c => ({
            index: Number(c.dataset.index),
            seen: c.querySelector('.seen').textContent, read: c.querySelector('.read').textContent,
            sources: [...c.querySelectorAll('.pictures img')].map(i => i.src),
            alts: [...c.querySelectorAll('.pictures img')].map(i => i.alt),
            strip: !c.querySelector('.retrieval').hidden,
            hits: [...c.querySelectorAll('.mark')].map(m => getComputedStyle(m).visibility === 'visible'),
            labels: [...c.querySelectorAll('.thumb')].map(t => t.getAttribute('aria-label')),
        }))""")


def choose(browser, **choice):
    for name, value in {"method": "mindtuner", "show": "all", "order": "index", **choice}.items():
        browser.execute_script("""
            const control = document.querySelector('form.controls').elements.namedItem(arguments[0]);
            control.value = arguments[1];
            (control.length && control[0].type === 'radio' ? [...control].find(r => r.checked) : control)
                .dispatchEvent(new Event('change', {bubbles: true}));""", name, value)
    return cards(browser)


def check_hits(shown, ranks):
    for card in shown:
        rank = ranks[card["index"]]
        assert card["hits"] == [place == rank for place in range(1, 6)]
        assert ["the image seen" in label for label in card["labels"]] == card["hits"]


def check_images(browser):
    widths = browser.execute_async_script("""
        const done = arguments[0], images = [...document.images];
        Promise.all(images.map(i => i.decode().catch(() => 0)))
            .then(() => done(images.map(i => i.naturalWidth)));""")
    assert widths and min(widths) > 0


def test_every_image_loads_and_nothing_logs_an_error(browser):
    assert len(cards(browser)) == PICTURES
    for method in ("ridge_only", "nearest_training_image", "mindtuner"):
        choose(browser, method=method)
        check_images(browser)
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_nothing_is_loaded_from_a_network(browser, page):
    html = page.read_text(encoding="utf-8")
    assert not re.search(
        r"""(src|href|action)\s*=\s*["']?\s*(https?:)?//|url\(\s*["']?[^"'d]|@import""", html)
    browser.get_log("performance")
    browser.refresh()
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [event["params"]["request"]["url"] for event in events
            if event["method"] == "Network.requestWillBeSent"]
    assert page.as_uri() in urls
    assert [url for url in urls if not url.startswith(("file:", "data:"))] == []


def test_it_says_that_brains_are_simulated(browser, tmp_path):
    header = browser.find_element("tag name", "header").text
    assert "The brains and the scenes on this page are simulated." in header
    run = make_run(tmp_path / "run")
    edit(run / "results.json", "setting", "simulated_scenes", value=False)
    edit(run / "results.json", "setting", "stimuli_note", value="The generator was <not> made for these.")
    html = write_report(run).read_text(encoding="utf-8")
    assert "The brains on this page are simulated." in html
    assert "scenes on this page are simulated" not in html
    assert "was &lt;not&gt; made" in html


def test_hits_are_marked(browser):
    for method, ranks in RANKS.items():
        shown = choose(browser, method=method)
        assert [card["index"] for card in shown] == list(range(PICTURES))
        check_hits(shown, ranks)


def test_thumbnails_show_the_right_image(browser):
    """Pixels on the screen against the fixture: the position on the sheet is easily off by a row."""
    choose(browser, method="mindtuner")
    for index in (2, 4):
        browser.execute_script(
            "document.querySelectorAll('.card')[arguments[0]].scrollIntoView({behavior: 'instant'})", index)
        shot = Image.open(io.BytesIO(base64.b64decode(
            browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"]))).convert("RGB")
        boxes = browser.execute_script("""
            return [...document.querySelectorAll('.card')[arguments[0]].querySelectorAll('.thumb')].map(t => {
                const r = t.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; })""", index)
        for box, position in zip(boxes, strip(SEEN[index], RANKS["mindtuner"][index]), strict=True):
            thumb = np.asarray(shot.crop([round(side) for side in box]).resize((16, 16)), float)
            errors = [np.abs(thumb - scene(n, 16).transpose(1, 2, 0)).mean() for n in range(TESTS)]
            assert int(np.argmin(errors)) == position


def test_the_switcher_changes_the_pictures_and_back(browser):
    first = choose(browser, method="mindtuner")
    other = choose(browser, method="ridge_only")
    nearest = choose(browser, method="nearest_training_image")
    for a, b, c in zip(first, other, nearest, strict=True):
        assert len(a["sources"]) == len(b["sources"]) == 4 and a["sources"][0] == b["sources"][0]
        assert not set(a["sources"][1:]) & set(b["sources"][1:])
        assert len(c["sources"]) == 2 and not c["strip"]
        assert b["read"] == f"ridge_only reads {SEEN[b['index']]}"
    assert choose(browser, method="mindtuner") == first


def test_keyboard_reaches_the_switcher(browser):
    from selenium.webdriver.common.keys import Keys
    choose(browser)
    browser.find_element("css selector", "input[value=mindtuner]").send_keys(Keys.ARROW_RIGHT)
    assert cards(browser)[0]["read"].startswith("ridge_only")


def test_filter_and_order(browser):
    assert [c["index"] for c in choose(browser, show="first")] == [0, 3, 5]
    assert [c["index"] for c in choose(browser, show="five")] == [0, 1, 3, 4, 5]
    assert [c["index"] for c in choose(browser, show="missed")] == [2]
    assert [c["index"] for c in choose(browser, order="best")] == [2, 4, 0, 3, 5, 1]
    assert [c["index"] for c in choose(browser, order="worst")] == [1, 5, 3, 0, 4, 2]
    # Scores .5 .1 .9 .3 .7 .2, so the median is .4.
    assert {c["index"] for c in choose(browser, order="median")[:2]} == {0, 3}
    assert [c["index"] for c in choose(browser, method="ridge_only", order="best")] == list(range(PICTURES))


def test_captions_are_text_never_markup(browser):
    first = choose(browser)[0]
    assert first["seen"] == EVIL and EVIL in first["alts"][0]
    assert browser.execute_script("return window.broken === undefined")


def test_each_picture_is_embedded_once(page):
    uris = re.findall(r"data:image/webp;base64,[A-Za-z0-9+/=]+", page.read_text(encoding="utf-8"))
    assert len(uris) == len(set(uris)) == PICTURES * (1 + 3 + 3 + 1) + 1


def test_without_script_the_main_gallery_stands_in_the_html(page):
    body = page.read_text(encoding="utf-8").split('<script type="application/json"')[0]
    assert body.count("<img ") == PICTURES * 4
    assert body.count('class="hit"') == sum(rank > 0 for rank in RANKS["mindtuner"])
    places = [(int(x), int(y)) for x, y in re.findall(r"--x:(\d+);--y:(\d+)", body)]
    strips = [strip(truth, rank) for truth, rank in zip(SEEN, RANKS["mindtuner"], strict=True)]
    assert [20 * y + x for x, y in places] == list(np.ravel(strips))  # the sheet has 20 thumbnails a row


def test_differences_in_words(page):
    (pair,) = tables.paired(load_run(page.parent).results["paired"])
    image, brain, text = pair["lines"][:3]
    assert image["words"] == "MindTuner is ahead of Ridge only" and "+7.0 points" in image["numbers"]
    assert brain["words"] == "Ridge only is ahead of MindTuner" and "p < 0.001" in brain["numbers"]
    assert page.read_text(encoding="utf-8").count('<div class="clear">') == 2
    assert text["words"] == "no clear difference" and "\N{MINUS SIGN}2.0 to +6.0" in text["numbers"]


def test_table_shows_scores_beside_chance(page):
    results = load_run(page.parent).results
    retrieval, pictures = (tables.table(results, group) for group in tables.GROUPS)
    labels = [row["label"] for row in retrieval["rows"]]
    assert labels == ["MindTuner", "Ridge only", "Nearest training image", "Shuffled brain"]
    cell = retrieval["rows"][0]["cells"][0]
    assert (cell["value"], cell["ci"]) == ("62.0", "57.0 to 67.0")
    assert retrieval["columns"][0]["chance"] == "4.3"  # 1 of 23
    chances = [column["chance"] for column in pictures["columns"]]
    assert chances == ["50.0", "0.020 to 0.050", "0.020 to 0.050"]
    assert [figure["value"] for figure in tables.headline(results)] == ["62.0", "20.7", "81.0"]
    assert tables.single_trials(results)[0]["cells"][0] == "31.0\N{NO-BREAK SPACE}%"


def test_table_leaves_out_what_was_not_measured():
    results = {"setting": {}, "methods": {"prior_only": {"retrieval": {"image": None}}}, "chance": {}}
    assert tables.table(results, "retrieval")["rows"] == []
    assert tables.headline(results) == []


def test_plots_put_numbers_in_their_place():
    assert plots.axis([0.31, 0.62]) == (0.0, pytest.approx(0.65))
    low, high = plots.axis([-0.02, 0.4])
    assert low <= -0.02 and high >= 0.4
    svg = plots.interval(0.5, (0.25, 0.75), 0.0, (0.0, 1.0))
    assert 'cx="50.00%"' in svg and 'x1="26.00%" x2="74.00%"' in svg and 'class="chance" x1="2.00%"' in svg
    svg, logarithmic = plots.curve([0, 1, 2], [100.0, 10.0, 1.0])
    # On a logarithmic axis two equal ratios are two equal steps.
    heights = [float(point.split(",")[1]) for point in re.search(r'points="([^"]*)"', svg)[1].split()]
    assert logarithmic and heights[1] - heights[0] == pytest.approx(heights[2] - heights[1])
    assert not plots.curve([0, 1], [2.0, 1.0])[1]
    plots.curve([3], [0.0])


def test_contact_sheet(page):
    sheet = contact_sheet(page.parent, 3)
    cells = [np.asarray(sheet)[y * 166 + 60:y * 166 + 100, -160 + 60:-60].mean((0, 1)) for y in range(4)]
    pictures = load_run(page.parent).pictures
    for cell, name in zip(cells, ["seen", *(f"mindtuner/{stage}" for stage in STAGES)], strict=True):
        truth = pictures[name][5][:, 24:40, 24:40].mean((1, 2))  # the last of three evenly spaced out of six
        assert np.abs(cell - truth).max() < 12
    with pytest.raises(UserError, match="n is 9"):
        contact_sheet(page.parent, 9)
    with pytest.raises(UserError, match="prior_only"):
        contact_sheet(page.parent, 2, method="prior_only")


@pytest.mark.parametrize(
    "name", ["config.yaml", "results.json", "pictures.safetensors", "words.json", "log.jsonl"])
def test_a_missing_file_is_named(tmp_path, name):
    run = make_run(tmp_path / "run")
    (run / name).unlink()
    with pytest.raises(UserError, match=name):
        write_report(run)
    assert not (run / "report.html").exists()


def edit(path, *keys, value):
    """Set one field of a JSON file."""
    tree = target = json.loads(path.read_text())
    for key in keys[:-1]:
        target = target[key]
    target[keys[-1]] = value
    path.write_text(json.dumps(tree))


@pytest.mark.parametrize(("name", "keys", "value", "named"), [
    ("words.json", ["methods", "mindtuner", "top5"], [[0, 1, 2, 3, TESTS]] * PICTURES, "top5"),
    ("results.json", ["setting"], {"subject": 1}, "setting.simulated_brains"),
])
def test_a_broken_field_is_named(tmp_path, name, keys, value, named):
    run = make_run(tmp_path / "run")
    edit(run / name, *keys, value=value)
    with pytest.raises(UserError, match=rf"{re.escape(name)}.*{re.escape(named)}.*expected") as error:
        write_report(run)
    assert "\n" not in str(error.value)


def test_other_broken_files_are_named(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "log.jsonl").write_text('{"stage": "pretrain", "losses": {}}\n')
    with pytest.raises(UserError, match=r"log\.jsonl: entry 1 has no epoch"):
        write_report(run)
    make_run(run)
    (run / "config.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"config\.yaml: not UTF-8"):
        write_report(run)
    make_run(run)
    arrays = load_run(run).pictures
    save_file({name: arrays[name] for name in ("seen", "thumbnails")}, run / "pictures.safetensors")
    with pytest.raises(UserError, match="no method has pictures"):
        write_report(run)
    with pytest.raises(UserError, match="nowhere"):
        write_report(tmp_path / "nowhere")
