"""How large is the report of 1,000 test images, and does it scroll smoothly? A run of that size is made, its page opened.

    python benchmarks/report_page.py OUT [--images 1000] [--methods 5]

OUT gets a run folder without a brain: photographs that scikit-image ships, cut, turned and tinted at random, stand for the
seen images, and others, blurred, for what METHODS methods made of them in four stages, 256 pixels a side. Written down are
the page's bytes (at most 40 MB, or the script fails), what writing it took, and, of headless Chromium: seconds until the page
stands, the most elements that it held, and the longest frame while the gallery was scrolled, to its end or for a minute, at
two speeds.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import shutil
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

SIDE, THUMBNAIL = 256, 64
PAINTERS = ("mindtuner", "ridge_only", "full_finetune", "from_scratch", "shuffled_brain", "prior_only")
STAGES = {"lowlevel": 12, "reconstructed": 2.5, "blended": 2.0, "corrected": 1.5}  # pixels of blur
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
SPEEDS = (60, 600)  # pixels a frame: reading, and looking for something
WORDS = "a red bus by the sea in the snow with two dogs under an old tree near some houses".split()


def photographs() -> list[Image.Image]:
    import skimage.data

    return [Image.fromarray(getattr(skimage.data, name)()) for name in PHOTOGRAPHS]


def picture(sources: list[Image.Image], seed: int) -> Image.Image:
    """A cut out of one of the photographs, turned and tinted: another one for every seed."""
    rng = np.random.default_rng(seed)
    source = sources[seed % len(sources)]
    side = int(rng.uniform(0.4, 0.95) * min(source.size))
    left, top = (int(rng.uniform(0, length - side)) for length in source.size)
    cut = source.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return Image.fromarray((np.asarray(cut) * rng.uniform(0.6, 1.0, 3)).astype(np.uint8))


def blocks(images: int, methods: int) -> Iterator[tuple[str, tuple[int, ...], Iterator[np.ndarray]]]:
    """Name, shape and rows of each array of pictures.safetensors, in its order."""
    sources = photographs()

    def rows(first: int, blur: float) -> Iterator[np.ndarray]:
        for k in range(images):
            made = picture(sources, first + k)
            made = made.filter(ImageFilter.GaussianBlur(blur)) if blur else made
            yield np.asarray(made).transpose(2, 0, 1)

    shape = (images, 3, SIDE, SIDE)
    for number, method in enumerate(PAINTERS[:methods], 1):
        for stage, blur in STAGES.items():
            yield f"{method}/{stage}", shape, rows(number * 10_000, blur)
    yield "nearest_training_image/reconstructed", shape, rows(900_000, 0)
    yield "seen", shape, rows(0, 0)
    small = (np.asarray(picture(sources, k).resize((THUMBNAIL, THUMBNAIL))).transpose(2, 0, 1) for k in range(images))
    yield "thumbnails", (images, 3, THUMBNAIL, THUMBNAIL), small


def write_pictures(path: Path, images: int, methods: int) -> None:
    """pictures.safetensors, array by array: together they would not fit into a small machine's memory."""
    header, at, arrays = {}, 0, list(blocks(images, methods))
    for name, shape, _ in arrays:
        header[name] = {"dtype": "U8", "shape": shape, "data_offsets": [at, at := at + math.prod(shape)]}
    head = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for _, _, rows in arrays:
            for row in rows:
                file.write(np.ascontiguousarray(row).tobytes())


def make_run(folder: Path, images: int, methods: int) -> None:
    """The whole run folder; scores are random."""
    from safetensors.numpy import save_file

    from mindtuner.evaluation.results import build_results, per_image_scores
    from mindtuner.evaluation.scoring import MethodScores

    folder.mkdir(parents=True)
    write_pictures(folder / "pictures.safetensors", images, methods)
    rng = np.random.default_rng(0)
    names = [*PAINTERS[:methods], "nearest_training_image"]
    captions = [" ".join(rng.choice(WORDS, 12)) for _ in range(images)]
    scores = {}
    for name in names:
        retrieval = {direction: (rng.random(images) < 0.3).astype(float) for direction in ("image", "brain", "text")}
        reconstruction = {score: rng.random(images) for score in ("pixcorr", "ssim", "two_way")}
        means = {
            part: {key: float(values.mean()) for key, values in own.items()}
            for part, own in (("retrieval", retrieval), ("reconstruction", reconstruction))
        }
        picture_stage = "reconstructed" if name == "nearest_training_image" else "corrected"
        summary = {
            **means,
            "picture": picture_stage,
            "stages": {picture_stage: means["reconstruction"]},
            "ci95": {
                part: {key: [max(value - 0.03, 0), min(value + 0.03, 1)] for key, value in own.items()}
                for part, own in means.items()
            },
        }
        scores[name] = MethodScores(summary, retrieval, reconstruction, {"pixcorr": 0.05, "ssim": 0.3})
    setting = {
        "simulated_brains": True,
        "simulated_scenes": False,
        "stimuli_note": "",
        "subject": 1,
        "sessions": 1,
        "seed": 0,
        "n_test_images": images,
        "n_pictures": images,
        "command": "benchmarks/report_page.py",
    }
    words = {
        "picture_index": list(range(images)),
        "seen_captions": captions,
        "all_captions": captions,
        "methods": {
            name: {
                "top5": [rng.choice(images, 5, replace=False).tolist() for _ in range(images)],
                "retrieved_caption": [captions[k] for k in rng.integers(0, images, images)],
            }
            for name in names
        },
    }
    every = np.arange(images)
    save_file(per_image_scores(scores, every, every, every), folder / "per_image.safetensors")
    (folder / "words.json").write_text(json.dumps(words))
    (folder / "log.jsonl").write_text("")
    (folder / "config.yaml").write_text("seed: 0\n")
    (folder / "results.json").write_text(json.dumps(build_results(setting, scores, {}, 0.0, 0)))


FRAMES = """
const [speed, done] = [arguments[0], arguments[arguments.length - 1]];
const list = document.getElementById('cards');
window.scrollTo({top: list.getBoundingClientRect().top + scrollY, behavior: 'instant'});
let last = null, longest = 0, frames = 0, most = 0, slow = 0;
const start = performance.now();
function step(now) {
    if (last !== null) { longest = Math.max(longest, now - last); slow += now - last > 50; frames += 1; }
    last = now;
    if (frames % 20 === 0) most = Math.max(most, document.querySelectorAll('*').length);
    if (now - start > 60000 || scrollY + innerHeight >= document.documentElement.scrollHeight - 2) {
        return done({longest, frames, slow, most, at: scrollY});
    }
    window.scrollBy({top: speed, behavior: 'instant'});
    requestAnimationFrame(step);
}
requestAnimationFrame(step);
"""


def look(page: Path) -> dict:
    """What headless Chromium takes to show the page."""
    from selenium import webdriver

    found = {}
    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        for flag in (
            "headless",
            "no-sandbox",
            "disable-gpu",
            "disable-background-networking",
            "disable-dev-shm-usage",
            "window-size=1280,900",
            f"user-data-dir={profile}",
        ):
            options.add_argument(f"--{flag}")
        chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
        try:
            chrome.set_script_timeout(300)
            chrome.get(page.as_uri())
            timing = "const t = performance.getEntriesByType('navigation')[0]; return t.domContentLoadedEventEnd / 1000"
            found["seconds until the page stands"] = round(chrome.execute_script(timing), 2)
            for speed in SPEEDS:
                own = chrome.execute_async_script(FRAMES, speed)
                found[f"scrolled at {speed} px a frame"] = {
                    "frames": own["frames"],
                    "longest, ms": round(own["longest"]),
                    "longer than 50 ms": own["slow"],
                    "most elements": own["most"],
                    "scrolled to": round(own["at"]),
                }
            start = time.perf_counter()
            chrome.execute_script(
                "const r = document.querySelector('[value=ridge_only]');"
                "r.checked = true; r.dispatchEvent(new Event('change', {bubbles: true}))"
            )
            found["seconds to change the method"] = round(time.perf_counter() - start, 2)
        finally:
            chrome.quit()
    return found


def main() -> None:
    from mindtuner.report import write_report
    from mindtuner.report.page import LIMIT

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--methods", type=int, default=5, help=f"that paint, at most {len(PAINTERS)}")
    options = parser.parse_args()
    run = options.out / "run"
    if not (run / "results.json").exists():
        shutil.rmtree(run, ignore_errors=True)
        make_run(run, options.images, options.methods)
    start = time.perf_counter()
    page = write_report(run)
    seconds = time.perf_counter() - start
    size = page.stat().st_size
    assert size <= LIMIT, f"{size:,} bytes; expected at most {LIMIT:,}"
    pictures = options.images * (2 + len(STAGES) * options.methods)
    print(
        json.dumps(
            {
                "pictures": pictures,
                "page, MB": round(size / 1e6, 1),
                "seconds to write": round(seconds, 1),
                "peak memory, MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                **look(page),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
