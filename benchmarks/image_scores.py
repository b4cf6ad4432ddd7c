"""What do the eight image scores of a run cost beside a loop that takes them one by one?

    python benchmarks/image_scores.py [--pairs 1000] [--side 256] [--seed 0] [--write benchmarks/results/image_scores.md]

"One pass" is ``score_images`` as ``mindtuner evaluate --as-published`` calls it, without chance. "One by one" goes about it
as the published notebook does: for each score all pictures are resized and normalised again, as float32 and for the networks
of two-way identification picture by picture; correlations are numpy's corrcoef over all features of both sets, SSIM is
scikit-image's, pair by pair; a network of which two layers are wanted runs twice. Each runs in a process of its own, after
one on four pairs that loads the libraries.

Both begin twice: with the pictures in memory, as that notebook does, and with two folders of PNG files, which one pass reads
once, as ``mindtuner score`` does, and one by one each score for itself.

The networks are stand-ins of one pooling and one convolution, with as many features as the real ones, since their own time is
left out: it is taken within them and subtracted. Seconds are those that the process itself worked. ``--write`` puts the
tables between the file's ``image_scores:begin`` and ``image_scores:end`` comments.
"""

from __future__ import annotations

import argparse
import datetime
import multiprocessing
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pages import write_between
from PIL import Image
from torch import nn

from mindtuner import runtime
from mindtuner.evaluation.scores.networks import FORMS, Network

SHAPES = {
    "alexnet2": (192, 31),
    "alexnet5": (256, 15),
    "inception": (2048, 0),
    "clip": (768, 0),
    "efficientnet_b1": (1280, 0),
    "swav": (2048, 0),
}  # channels, and places along a side; 0: averaged over places
DISTANCES = ("efficientnet_b1", "swav")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("pairs", 1000), ("side", 256), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"default {default}")
    parser.add_argument("--files-alone", action="store_true", help="leave out what begins with pictures in memory")
    parser.add_argument("--write", type=Path, metavar="FILE")
    options = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for from_files in (True, False)[: 1 if options.files_alone else 2]:
            for way in (one_pass, one_by_one):
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    found[way.__name__, from_files] = pool.apply(
                        measure, (way, options.pairs, options.side, options.seed, Path(folder) if from_files else None)
                    )
                print(
                    way.__name__,
                    "from files" if from_files else "from memory",
                    *found[way.__name__, from_files][1:],
                    file=sys.stderr,
                    flush=True,
                )
    text = text_of(found, options)
    print(text)
    if options.write:
        write_between(options.write, "image_scores", text)


def text_of(found: dict[tuple, tuple], options: argparse.Namespace) -> str:
    lines = [
        f"`python benchmarks/image_scores.py --pairs {options.pairs} --side {options.side} --seed {options.seed}"
        f"{' --files-alone' if options.files_alone else ''}`, "
        f"{datetime.date.today():%Y-%m-%d}, {torch.get_num_threads()} threads, {runtime.device()}",
        "",
        "| | one pass | one by one | ratio |",
        "|---|---:|---:|---:|",
    ]
    sources = [from_files for from_files in (True, False) if ("one_pass", from_files) in found]
    for from_files in sources:
        source = "PNG files" if from_files else "pictures in memory"
        ours, loop = found["one_pass", from_files], found["one_by_one", from_files]
        lines += [
            f"| {source}: seconds without the networks | {ours[1]:.1f} | {loop[1]:.1f} | **{loop[1] / ours[1]:.1f}** |",
            f"| seconds in the stand-in networks | {ours[2]:.1f} | {loop[2]:.1f} | {loop[2] / ours[2]:.1f} |",
            f"| peak memory, MB (one pass: {ours[3]:.0f} before) | {ours[4]:.0f} | {loop[4]:.0f} | {loop[4] / ours[4]:.1f} |",
        ]
    scores = [found[way, from_files][0] for from_files in sources for way in ("one_pass", "one_by_one")]
    lines += ["", "| score | one pass | one by one | largest difference |", "|---|---:|---:|---:|"]
    for score, value in scores[0].items():
        values = [own[score] for own in scores]
        lines.append(f"| {score} | {value:.6f} | {values[1]:.6f} | {max(values) - min(values):.0e} |")
    return "\n".join(lines)


def measure(way, pairs: int, side: int, seed: int, folder: Path | None) -> tuple:
    """Mean scores; CPU seconds without the networks, and in them; peak memory in MB before and after."""
    way(Source(pictures(4, side, seed)), [0.0])
    sets = pictures(pairs, side, seed)
    source = Source(sets, folder)
    del sets
    before, start, spent = runtime.peak_memory_mb(), time.process_time(), [0.0]
    scores = way(source, spent)
    return scores, time.process_time() - start - spent[0], spent[0], before, runtime.peak_memory_mb()


class Source:
    """Where the seen and the painted pictures, uint8 (n, 3, H, W) each, are read from: memory, or a folder of PNG files."""

    def __init__(self, sets: tuple[np.ndarray, np.ndarray], folder: Path | None = None):
        self.sets, self.folders = sets, None
        if folder is not None:
            self.sets, self.folders = None, tuple(folder / name for name in ("seen", "painted"))
            for own, images in zip(self.folders, sets, strict=True):
                own.mkdir(exist_ok=True)
                for k, image in enumerate(images):
                    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(own / f"{k:04d}.png")

    def once(self) -> tuple[np.ndarray, np.ndarray]:
        """As the package reads them."""
        from mindtuner.evaluation.scores.picture_files import read_pairs

        return self.sets or read_pairs(*self.folders)[1:]

    def plainly(self) -> tuple[torch.Tensor, torch.Tensor]:
        """As floats in 0..1: files at each call, those in memory at the first."""
        if self.folders is None:
            if isinstance(self.sets[0], np.ndarray):
                self.sets = tuple(torch.from_numpy(images).float() / 255 for images in self.sets)
            return self.sets
        return tuple(
            torch.stack(
                [
                    torch.from_numpy(np.array(Image.open(path)).transpose(2, 0, 1)).float() / 255
                    for path in sorted(own.iterdir())
                ]
            )
            for own in self.folders
        )


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
    """Pooling, one convolution and ReLU for each of the scores, with the number of features that the real layer has."""

    def __init__(self, scores: tuple[str, ...], side: int, spent: list[float]):
        super().__init__()
        start = time.process_time()
        self.spent, self.layers = spent, nn.ModuleDict()
        for score in scores:
            channels, places = SHAPES[score]
            torch.manual_seed(len(score))
            self.layers[score] = nn.Sequential(nn.AvgPool2d(side // (places or 4)), nn.Conv2d(3, channels, 1), nn.ReLU())
        spent[0] += time.process_time() - start

    @torch.inference_mode()
    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        start, found = time.process_time(), {}
        for score, layer in self.layers.items():
            maps, places = layer(pixels), SHAPES[score][1]
            found[score] = maps[..., :places, :places].contiguous() if places else maps.mean((2, 3))
        self.spent[0] += time.process_time() - start
        return found


def one_pass(source: Source, spent: list[float]) -> dict[str, float]:
    from mindtuner.evaluation.scores.images import score_images
    from mindtuner.evaluation.scores.preparation import PUBLISHED

    seen, painted = source.once()
    networks = [
        Network(
            name,
            form.label,
            form.side,
            *form.normalisation,
            form.layers,
            partial(StandIn, tuple(form.layers), form.side, spent),
            "stand-in",
        )
        for name, form in FORMS.items()
    ]
    scores, _ = score_images(seen, {"painted": painted}, networks, PUBLISHED)
    return {score: float(values.mean()) for score, values in scores["painted"].items()}


def one_by_one(source: Source, spent: list[float]) -> dict[str, float]:
    from scipy.spatial.distance import correlation
    from skimage.color import rgb2gray
    from skimage.metrics import structural_similarity
    from torchvision import transforms

    resize = partial(transforms.Resize, antialias=False)

    def pixcorr(true: torch.Tensor, made: torch.Tensor) -> float:
        flat_true, flat_made = (resize(425)(images).reshape(len(images), -1) for images in (true, made))
        return float(np.mean([np.corrcoef(a, b)[0][1] for a, b in zip(flat_true, flat_made, strict=True)]))

    def ssim(true: torch.Tensor, made: torch.Tensor) -> float:
        grey_true, grey_made = (rgb2gray(resize(425)(images).permute(0, 2, 3, 1)) for images in (true, made))
        return float(
            np.mean(
                [
                    structural_similarity(b, a, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0)
                    for a, b in zip(grey_true, grey_made, strict=True)
                ]
            )
        )

    def features(images: torch.Tensor, form, score: str, singly: bool) -> np.ndarray:
        prepare = transforms.Compose([resize(form.side), transforms.Normalize(*form.normalisation)])
        pixels = torch.stack([prepare(image) for image in images]) if singly else prepare(images)
        network = StandIn(tuple(form.layers), form.side, spent)
        return torch.cat([network(part)[score].flatten(1) for part in pixels.split(32)]).numpy()

    def two_way(true: torch.Tensor, made: torch.Tensor, score: str, form) -> float:
        of_made, of_true = (features(images, form, score, True) for images in (made, true))
        r = np.corrcoef(of_true, of_made)[: len(true), len(true) :]
        return float(np.mean(np.sum(r < np.diag(r), 0)) / (len(true) - 1))

    def distance(true: torch.Tensor, made: torch.Tensor, score: str, form) -> float:
        of_true, of_made = (features(images, form, score, False) for images in (true, made))
        return float(np.mean([correlation(a, b) for a, b in zip(of_true, of_made, strict=True)]))

    scores = {"pixcorr": pixcorr, "ssim": ssim}
    for form in FORMS.values():
        scores |= {name: partial(distance if name in DISTANCES else two_way, score=name, form=form) for name in form.layers}
    return {name: score(*source.plainly()) for name, score in scores.items()}


if __name__ == "__main__":
    main()
