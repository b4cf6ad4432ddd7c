"""What do the eight image scores of a run cost beside a loop that takes them one by one?

    python benchmarks/image_scores.py [--pairs 1000] [--side 256] [--seed 0] [--write docs/performance.md]

"One pass" is ``score_images`` as ``mindtuner evaluate --as-published`` calls it, without chance. "One by one" goes about it
as the published notebook does: for each score all pictures are resized and normalised again, as float32 and for the networks
of two-way identification picture by picture; correlations are numpy's corrcoef over all features of both sets, SSIM is
scikit-image's, pair by pair; a network of which two layers are wanted runs twice. Each runs in a process of its own, after
one on four pairs that loads the libraries.

The networks are stand-ins of one convolution, with as many features as the real ones, since their own time is left out: it is
taken within them and subtracted. Seconds are those that the process itself worked. ``--write`` puts the tables between the
file's ``image_scores:begin`` and ``image_scores:end`` comments.
"""

from __future__ import annotations

import argparse
import datetime
import multiprocessing
import re
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mindtuner import runtime
from mindtuner.evaluation.scores.networks import FORMS, Network
from mindtuner.files import write_text

SHAPES = {"alexnet2": (192, 31), "alexnet5": (256, 15), "inception": (2048, 0), "clip": (768, 0),
          "efficientnet_b1": (1280, 0), "swav": (2048, 0)}  # channels, and places along a side; 0: averaged over places
DISTANCES = ("efficientnet_b1", "swav")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("pairs", 1000), ("side", 256), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"default {default}")
    parser.add_argument("--write", type=Path, metavar="FILE")
    options = parser.parse_args()
    found = {}
    for way in (one_pass, one_by_one):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found[way.__name__.replace("_", " ")] = pool.apply(measure, (way, options.pairs, options.side, options.seed))
    text = tables(found, options)
    print(text)
    if options.write:
        new, count = re.subn(r"(<!-- image_scores:begin -->\n).*?(<!-- image_scores:end -->)",
                             lambda m: m[1] + text + "\n" + m[2], options.write.read_text(), flags=re.DOTALL)
        if count != 1:
            raise SystemExit(f"{options.write}: expected one pair of image_scores:begin and image_scores:end comments")
        write_text(options.write, new)


def tables(found: dict[str, tuple], options: argparse.Namespace) -> str:
    ours, loop = found["one pass"], found["one by one"]
    lines = [f"`python benchmarks/image_scores.py --pairs {options.pairs} --side {options.side} --seed {options.seed}`, "
             f"{datetime.date.today():%Y-%m-%d}, {torch.get_num_threads()} threads, {runtime.device()}", "",
             "| | one pass | one by one | ratio |", "|---|---:|---:|---:|",
             f"| seconds without the networks | {ours[1]:.1f} | {loop[1]:.1f} | **{loop[1] / ours[1]:.1f}** |",
             f"| seconds in the stand-in networks | {ours[2]:.1f} | {loop[2]:.1f} | {loop[2] / ours[2]:.1f} |",
             f"| peak memory, MB (of it {ours[3]:.0f} before) | {ours[4]:.0f} | {loop[4]:.0f} | {loop[4] / ours[4]:.1f} |",
             "", "| score | one pass | one by one | difference |", "|---|---:|---:|---:|"]
    lines += [f"| {score} | {value:.6f} | {loop[0][score]:.6f} | {abs(value - loop[0][score]):.0e} |"
              for score, value in ours[0].items()]
    return "\n".join(lines)


def measure(way, pairs: int, side: int, seed: int) -> tuple[dict[str, float], float, float, float, float]:
    """Mean scores; CPU seconds without the networks, and in them; peak memory in MB before and after."""
    way(*pictures(4, side, seed), [0.0])
    seen, painted = pictures(pairs, side, seed)
    before, start, spent = runtime.peak_memory_mb(), time.process_time(), [0.0]
    scores = way(seen, painted, spent)
    return scores, time.process_time() - start - spent[0], spent[0], before, runtime.peak_memory_mb()


def pictures(pairs: int, side: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Blurred noise of many colours, uint8 (pairs, 3, side, side); a painted picture holds an eighth of its original."""
    generator = torch.Generator().manual_seed(seed)

    def draw(cells: int) -> np.ndarray:
        made = np.empty((pairs, 3, side, side), np.uint8)
        for k in range(pairs):
            small = torch.randint(0, 256, (1, 3, cells, cells), generator=generator, dtype=torch.uint8).float()
            made[k] = nn.functional.interpolate(small, (side, side), mode="bicubic").clamp(0, 255).byte()[0]
        return made

    seen, other = draw(16), draw(24)
    return seen, seen // 8 + 7 * (other // 8)


class StandIn(nn.Module):
    """One convolution and ReLU for each of the scores, with the number of features that the real layer has."""

    def __init__(self, scores: tuple[str, ...], side: int, spent: list[float]):
        super().__init__()
        start = time.process_time()
        self.spent, self.layers = spent, nn.ModuleDict()
        for score in scores:
            channels, places = SHAPES[score]
            torch.manual_seed(len(score))
            cell = side // (places or 4)
            self.layers[score] = nn.Conv2d(3, channels, cell, cell)
        spent[0] += time.process_time() - start

    @torch.inference_mode()
    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        start, found = time.process_time(), {}
        for score, layer in self.layers.items():
            maps, places = layer(pixels).relu_(), SHAPES[score][1]
            found[score] = maps[..., :places, :places] if places else maps.mean((2, 3))
        self.spent[0] += time.process_time() - start
        return found


def one_pass(seen: np.ndarray, painted: np.ndarray, spent: list[float]) -> dict[str, float]:
    from mindtuner.evaluation.scores.images import score_images
    from mindtuner.evaluation.scores.preparation import PUBLISHED

    networks = [Network(name, form.label, form.side, *form.normalisation, form.layers,
                        partial(StandIn, tuple(form.layers), form.side, spent), "stand-in") for name, form in FORMS.items()]
    scores, _ = score_images(seen, {"painted": painted}, networks, PUBLISHED)
    return {score: float(values.mean()) for score, values in scores["painted"].items()}


def one_by_one(seen: np.ndarray, painted: np.ndarray, spent: list[float]) -> dict[str, float]:
    from scipy.spatial.distance import correlation
    from skimage.color import rgb2gray
    from skimage.metrics import structural_similarity
    from torchvision import transforms

    true, made = (torch.from_numpy(images).float() / 255 for images in (seen, painted))
    resize = partial(transforms.Resize, antialias=False)

    def pixcorr() -> float:
        flat_true, flat_made = (resize(425)(images).reshape(len(images), -1) for images in (true, made))
        return float(np.mean([np.corrcoef(a, b)[0][1] for a, b in zip(flat_true, flat_made, strict=True)]))

    def ssim() -> float:
        grey_true, grey_made = (rgb2gray(resize(425)(images).permute(0, 2, 3, 1)) for images in (true, made))
        return float(np.mean([structural_similarity(b, a, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
                                                    data_range=1.0) for a, b in zip(grey_true, grey_made, strict=True)]))

    def features(images: torch.Tensor, form, score: str, singly: bool) -> np.ndarray:
        prepare = transforms.Compose([resize(form.side), transforms.Normalize(*form.normalisation)])
        pixels = torch.stack([prepare(image) for image in images]) if singly else prepare(images)
        network = StandIn(tuple(form.layers), form.side, spent)
        return torch.cat([network(part)[score].flatten(1) for part in pixels.split(32)]).numpy()

    def two_way(score: str, form) -> float:
        of_made, of_true = (features(images, form, score, True) for images in (made, true))
        r = np.corrcoef(of_true, of_made)[:len(true), len(true):]
        return float(np.mean(np.sum(r < np.diag(r), 0)) / (len(true) - 1))

    def distance(score: str, form) -> float:
        of_true, of_made = (features(images, form, score, False) for images in (true, made))
        return float(np.mean([correlation(a, b) for a, b in zip(of_true, of_made, strict=True)]))

    found = {"pixcorr": pixcorr(), "ssim": ssim()}
    for form in FORMS.values():
        found |= {score: (distance if score in DISTANCES else two_way)(score, form) for score in form.layers}
    return found


if __name__ == "__main__":
    main()
