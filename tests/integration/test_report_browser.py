"""The report in headless Chromium: pictures load, choices work, the keyboard reaches everything, axe-core finds no serious
fault. Absent Chromium fails in CI and skips elsewhere."""

import base64
import io
import json
import re

import numpy as np
import pytest
import report_run
from browser import SIZES, open_page, serious_faults
from PIL import Image
from report_run import EVIL, PICTURES, RANKS, SEEN, TESTS, make_run, name_of, scene, strip, write_per_image
from safetensors.numpy import save_file

from mindtuner.evaluation.results import load_run
from mindtuner.report import write_report

pytestmark = pytest.mark.slow

MANY = 1000


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("report") / "run")
    write_per_image(run, mindtuner__reconstruction__ssim=[0.1, 0.2, np.nan, 0.4, 0.5, 0.6])
    return write_report(run)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    root = tmp_path_factory.mktemp("several")
    return write_report(*report_run.several(root), out=root / "all.html")


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A run of many small pictures, in which image i has the score i / MANY and the caption "number i"."""
    run = make_run(tmp_path_factory.mktemp("large") / "run")
    shades = np.random.default_rng(0).integers(0, 256, (MANY, 3, 1, 1), np.uint8).repeat(8, 2).repeat(8, 3)
    save_file({"seen": shades, "thumbnails": shades, "mindtuner/corrected": 255 - shades}, run / "pictures.safetensors")
    captions = [f"number {i}" for i in range(MANY)]
    (run / "words.json").write_text(
        json.dumps(
            {
                "picture_index": list(range(MANY)),
                "seen_captions": captions,
                "all_captions": captions,
                "methods": {"mindtuner": {"top5": [[(i + k) % MANY for k in range(5)] for i in range(MANY)]}},
            }
        )
    )
    every = np.arange(MANY)
    save_file(
        {
            "images": every,
            "shown": every,
            "texts": every,
            "mindtuner/reconstruction/two_way": (every / MANY).astype(np.float32),
        },
        run / "per_image.safetensors",
    )
    return write_report(run)


def show(chrome, page, size=(1280, 900), dark=False):
    """Open a page, with the gallery in the window."""
    open_page(chrome, page, size, dark)
    chrome.execute_script("document.getElementById('cards').scrollIntoView({behavior: 'instant'})")
    settle(chrome)


def settle(chrome):
    """Wait until the cards near the window are made."""
    chrome.execute_async_script(
        "const done = arguments[0]; let n = 0;const wait = () => (n++ < 4 ? requestAnimationFrame(wait) : done()); wait();"
    )


@pytest.fixture
def browser(chrome, page):
    show(chrome, page, (1280, 3000))
    return chrome


def cards(chrome):
    """What each card shows, in the order of the page."""
    settle(chrome)
    return chrome.execute_script("""
        return [...document.querySelectorAll('#cards .card')].map(c => ({
            index: Number(c.parentElement.dataset.index), score: c.querySelector('.score').textContent,
            seen: c.querySelector('.seen').textContent, read: c.querySelector('.read').textContent,
            sources: [...c.querySelectorAll('.pictures img')].map(i => i.src),
            alts: [...c.querySelectorAll('.pictures img')].map(i => i.alt),
            strip: !c.querySelector('.retrieval').hidden,
            hits: [...c.querySelectorAll('.mark')].map(m => getComputedStyle(m).visibility === 'visible'),
            labels: [...c.querySelectorAll('.thumb')].map(t => t.getAttribute('aria-label')),
        }))""")


def choose(chrome, **choice):
    for name, value in {
        "method": "mindtuner",
        "show": "all",
        "order": "index",
        "score": "reconstruction/two_way",
        "words": "",
        **choice,
    }.items():
        chrome.execute_script(
            """
            const control = document.querySelector('form.controls').elements.namedItem(arguments[0]);
            control.value = arguments[1];
            (control.length && control[0].type === 'radio' ? [...control].find(r => r.checked) : control)
                .dispatchEvent(new Event('change', {bubbles: true}));""",
            name,
            value,
        )
    return cards(chrome)


def press(chrome, *keys):
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(chrome).send_keys(*keys).perform()
    settle(chrome)


def focused(chrome):
    return chrome.execute_script("return document.activeElement.textContent")


def test_every_image_loads(browser):
    assert len(cards(browser)) == PICTURES
    for method in ("ridge_only", "nearest_training_image", "mindtuner"):
        choose(browser, method=method)
        widths = browser.execute_async_script("""
            const done = arguments[0], images = [...document.querySelectorAll('#cards img')];
            Promise.all(images.map(i => i.decode().catch(() => 0)))
                .then(() => done(images.map(i => i.naturalWidth)));""")
        assert widths and set(widths) == {64}


def test_nothing_is_loaded_from_a_network(chrome, page, several):
    for one in (page, several):
        html = one.read_text(encoding="utf-8")
        assert not re.search(r"""(src|href|action)\s*=\s*["']?\s*(https?:)?//|url\(\s*["']?[^"'d]|@import""", html)
        chrome.get_log("performance")
        show(chrome, one)
        events = [json.loads(entry["message"])["message"] for entry in chrome.get_log("performance")]
        urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
        assert one.as_uri() in urls
        assert [url for url in urls if not url.startswith(("file:", "data:"))] == []


def test_hits_are_marked(browser):
    for method, ranks in RANKS.items():
        shown = choose(browser, method=method)
        assert [card["index"] for card in shown] == list(range(PICTURES))
        for card in shown:
            rank = ranks[card["index"]]
            assert card["hits"] == [place == rank for place in range(1, 6)]
            assert ["the image seen" in label for label in card["labels"]] == card["hits"]


def test_thumbnails_show_the_right_image(browser):
    """Pixels on the screen against the fixture: the position on the sheet is easily off by a row."""
    choose(browser, method="mindtuner")
    browser.execute_script("scrollTo({top: document.getElementById('cards').offsetTop - 200, behavior: 'instant'})")
    settle(browser)
    shot = Image.open(
        io.BytesIO(base64.b64decode(browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"]))
    ).convert("RGB")
    for index in (2, 4):
        boxes = browser.execute_script(
            """
            return [...document.querySelectorAll('#cards .card')[arguments[0]].querySelectorAll('.thumb')].map(t => {
                const r = t.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; })""",
            index,
        )
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
    def shown(**choice):
        return [card["index"] for card in choose(browser, **choice)]

    assert shown(show="first") == [0, 3, 5]
    assert shown(show="five") == [0, 1, 3, 4, 5]
    assert shown(show="missed") == [2]
    assert shown(order="best") == [2, 4, 0, 3, 5, 1]
    assert shown(order="worst") == [1, 5, 3, 0, 4, 2]
    assert set(shown(order="median")[:2]) == {0, 3}  # the scores are .5 .1 .9 .3 .7 .2, so the median is .4
    assert shown(order="best", score="reconstruction/ssim") == [5, 4, 3, 1, 0, 2]  # image 2 has none
    assert [card["score"] for card in cards(browser)][:2] == ["SSIM 0.600", "SSIM 0.500"]
    assert shown(method="ridge_only", order="best") == list(range(PICTURES))  # it has no scores of single images
    assert shown(words="READS 22") == shown(words="number 22") == [4]
    assert shown(words=name_of(SEEN[4]).upper()) == shown(words=str(SEEN[4])) == [4]
    assert shown(words=name_of(SEEN[0]), show="first") == [0] and shown(words="discs") == list(range(PICTURES))
    assert shown(words="number 22", show="missed") == []
    assert browser.find_element("id", "none").is_displayed()


def test_captions_are_text_never_markup(browser):
    first = choose(browser)[0]
    assert first["seen"] == EVIL and EVIL in first["alts"][0]
    assert browser.execute_script("return window.broken === undefined")


def test_the_keyboard_steps_through_the_images(browser):
    from selenium.webdriver.common.keys import Keys

    choose(browser, order="best")  # images 3, 5, 1, 4, 6, 2
    browser.execute_script("document.activeElement.blur()")
    press(browser, "j")
    assert focused(browser) == name_of(SEEN[2])
    assert browser.execute_script("return document.activeElement.matches(':focus-visible')")
    press(browser, "j", Keys.ARROW_RIGHT)
    assert focused(browser) == name_of(SEEN[0])
    press(browser, "k", Keys.ARROW_LEFT, "k")  # stays at the first
    assert focused(browser) == name_of(SEEN[2])
    press(browser, Keys.ENTER)
    title = browser.find_element("id", "viewer-title")
    assert title.is_displayed() and title.text == name_of(SEEN[2])
    press(browser, Keys.ARROW_RIGHT, "j")
    assert title.text == name_of(SEEN[0])
    press(browser, Keys.ESCAPE)
    assert not title.is_displayed() and focused(browser) == name_of(SEEN[0])
    browser.find_element("name", "words").send_keys("jk")  # in a field they are letters
    assert browser.find_element("name", "words").get_attribute("value") == "jk"
    assert cards(browser) == []


def test_an_image_by_itself_shows_every_method(browser):
    choose(browser, method="ridge_only")
    browser.execute_script("document.querySelectorAll('#cards .pictures')[1].click()")
    rows = browser.execute_script("""return [...document.querySelectorAll('#viewer .row')].map(r => [
        r.querySelector('h3').textContent, r.querySelector('.read').textContent,
        ...[...r.querySelectorAll('figcaption')].map(c => c.textContent)])""")
    stages = ["Low level", "Reconstructed", "Corrected"]
    assert rows == [
        ["Ridge only", "Found 1st. Read: ridge_only reads 0", *stages],
        ["MindTuner", "Found 2nd. Read: mindtuner reads 0", *stages],
        ["Nearest training image", "", "Corrected"],
    ]


def test_several_runs(chrome, several):
    show(chrome, several, (1280, 3000))
    seen = [card["sources"][0] for card in choose(chrome)]
    pictures = {tuple(card["sources"]) for card in cards(chrome)}
    for number in range(1, 4):
        shown = choose(chrome, run=str(number))
        assert [card["sources"][0] for card in shown] == seen  # the same images
        found = {tuple(card["sources"]) for card in shown}
        assert not found & pictures
        pictures |= found
    chrome.execute_script("document.querySelector('#cards .pictures').click()")
    titles = chrome.execute_script("return [...document.querySelectorAll('#viewer h3')].map(h => h.textContent)")
    assert titles[0] == "MindTuner" and titles[-3:] == [
        "MindTuner, Subject 1, 1 session, seed 0",
        "MindTuner, Subject 1, 1 session, seed 1",
        "MindTuner, Subject 1, 2 sessions, seed 0",
    ]


def test_of_many_images_few_are_made_at_once(chrome, large):
    show(chrome, large)
    assert chrome.execute_script("return document.querySelectorAll('#cards > li').length") == MANY

    def made():
        settle(chrome)
        return chrome.execute_script("return [...document.querySelectorAll('#cards .seen')].map(s => s.textContent)")

    def elements():
        return chrome.execute_script("return document.querySelectorAll('*').length")

    assert made()[0] == "number 0" and len(made()) < 60 and elements() < 4000
    chrome.execute_script("document.querySelectorAll('#cards > li')[700].scrollIntoView({behavior: 'instant'})")
    assert "number 700" in made() and "number 0" not in made() and len(made()) < 60 and elements() < 4000
    assert choose(chrome, order="worst", words="9")[0]["seen"] == "number 9"  # image 9, which has no file name
    assert [card["seen"] for card in choose(chrome, order="best")][:2] == ["number 999", "number 998"]
    truth = load_run(large.parent).pictures["seen"][999, :, 0, 0].astype(int)
    pixel = chrome.execute_async_script("""
        const img = document.querySelector('#cards img'), done = arguments[0];
        img.decode().then(() => {
            const canvas = Object.assign(document.createElement('canvas'), {width: 8, height: 8}).getContext('2d');
            canvas.drawImage(img, 0, 0);
            done([...canvas.getImageData(4, 4, 1, 1).data].slice(0, 3));
        })""")
    assert np.abs(np.array(pixel) - truth).max() < 12


def test_without_scripts_the_first_gallery_is_there(chrome, several):
    chrome.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        chrome.get(several.as_uri())
        found = chrome.execute_cdp_cmd("DOM.getDocument", {"depth": -1, "pierce": False})
    finally:
        chrome.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    names = re.findall(r'"nodeName": "([A-Z0-9]+)"', json.dumps(found))
    assert names.count("ARTICLE") == PICTURES and names.count("IMG") == PICTURES * 4 + 1  # one waits in the dialog


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_axe_finds_no_serious_fault_and_nothing_is_cut_off(chrome, page, several, size, dark):
    for one in (page, several):
        show(chrome, one, SIZES[size], dark)
        chrome.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        for opened in (False, True)[: 1 if one == page else 2]:
            if opened:
                chrome.execute_script("document.querySelector('#cards .open').click()")
            assert serious_faults(chrome) == []
            width = "return [document.documentElement.scrollWidth, document.getElementById('viewer').scrollWidth]"
            assert max(chrome.execute_script(width)) <= SIZES[size][0]
            alts = "return [...document.querySelectorAll('img')].filter(i => i.src && !i.alt).length"
            assert chrome.execute_script(alts) == 0
