"""How well does a base of three people read a fourth from 72 photographs? Human IT, real brains.

    git clone https://github.com/rsagroup/rsatoolbox CLONE
    python benchmarks/real/human_it.py CLONE OUT [--config demo] [--splits 5] [--people BE KO SN TI] [--methods METHOD ...]
        [--shuffles N]
    python benchmarks/real/human_it.py CLONE OUT --table [--write benchmarks/results/human_it.md]

Kriegeskorte et al. (Neuron 2008) showed 92 photographs of objects to four people, twice; ``demos/92imageData`` of CLONE holds
for each person and session 1 - Pearson's r between the responses of human IT to any two of them, and the photographs.
r is the inner product of responses that are z-scored over voxels, so its eigenvectors, each times the root of its
eigenvalue, are these responses up to a rotation: 92 numbers an image, exact. A random rotation stands in for the voxels, and
both sessions' stand beside each other as one trial of 184. Captions are the six categories of the photographs. Nothing of
theirs is kept but in OUT, where each split is a folder of a lab (docs/your-own-scans.md).

Split k tests 20 photographs and trains on 72; five splits test each at least once. Each person in turn is tuned on a base of
the three others, which saw the 72 alone. Losses of pictures are off. 2AFC of a test image is the share of the 19 others whose
tokens are less like what was decoded than its own; chance is 0.5. ``raw`` is as published. ``centred`` takes the training
images' mean token and the mean answer to training trials off. ``mindtuner and ridge`` is the mean of what both say.

Values of an image are averaged over the splits that test it, so that there is one for each person and image. Differences are
paired; intervals resample people and images, p flips signs of the images' differences, each averaged over people.

All test images of a split are decoded by one network, and the same permutation of the training images serves all four people.
So luck of a control is luck for many images at once, and p by images does not hold for it. ``--shuffles N`` tunes
``shuffled_brain`` on N more permutations of each split, and the plain ridge on 100.

One line per person and split goes to OUT/human-it-CONFIG.jsonl; a benchmark that was stopped goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import stats
from scipy.io import loadmat

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pages import markdown, write_between
from world import Done

import mindtuner
from mindtuner.config import DecodeConfig, load_config
from mindtuner.data import Dataset, Stimuli, Subject, Trials
from mindtuner.decoding.decoder import Decoder, Predictions
from mindtuner.evaluation.scores.retrieval import image_retrieval
from mindtuner.evaluation.statistics import over_subjects, sign_flips
from mindtuner.formats.image_files import square
from mindtuner.formats.lab_folder.write import write
from mindtuner.pipeline.stages import TestSet, decode_all
from mindtuner.runtime import progress
from mindtuner.training import METHODS, subject_name
from mindtuner.training import tune as train

FOLDER = Path("demos/92imageData")
BRAINS, PICTURES = FOLDER / "92_brainRDMs.mat", FOLDER / "Kriegeskorte_Neuron2008_supplementalData.mat"
PEOPLE = ("BE", "KO", "SN", "TI")
TESTED = 20  # photographs of a split
UNPAINTED = {"prior_weight": 0.0, "lowlevel_weight": 0.0}  # losses of pictures, which are not measured
RIDGES = 100  # permutations of each split that the plain ridge is fitted to, where any are
MEASURES = ("raw", "centred")
BOTH = "mindtuner and ridge"


# ---- from their files to folders of a lab


def read(clone: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Correlations of responses (people, sessions, 92, 92), photographs uint8 (92, 3, 224, 224), and their categories."""
    for name in (BRAINS, PICTURES):
        if not (clone / name).is_file():
            raise SystemExit(f"{clone / name}: not found; expected a clone of rsagroup/rsatoolbox")
    found = loadmat(clone / BRAINS)["RDMs"][0]  # people, sessions
    correlations = np.stack([[1 - session["RDM"].astype(float) for session in person] for person in found])
    shown = loadmat(clone / PICTURES, simplify_cells=True)["stimuli_92objs"]
    pictures = np.stack([square(Image.fromarray(one["image"])) for one in shown])
    return correlations, pictures, [str(one["category"]) for one in shown]


def responses(correlations: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Responses (n, n) of n images with these inner products (n, n), in axes drawn at random.

    >>> wanted = np.array([[1.0, 0.5], [0.5, 1.0]])
    >>> found = responses(wanted, np.random.default_rng(0))
    >>> (found @ found.T).round(6).tolist()
    [[1.0, 0.5], [0.5, 1.0]]
    """
    values, vectors = np.linalg.eigh(correlations)
    axes = np.linalg.qr(rng.standard_normal(correlations.shape))[0]
    return vectors * np.sqrt(np.maximum(values, 0)) @ axes.T


def split(number: int, splits: int, images: int) -> np.ndarray:
    """Which images split ``number`` tests, bool (images,): 20 in a row of a random order, each split further on."""
    order = np.random.default_rng(0).permutation(images)
    tested = np.take(order, number * images // splits + np.arange(TESTED), mode="wrap")
    return np.isin(np.arange(images), tested)


def folder_of(clone: Path, out: Path, number: int, splits: int) -> Dataset:
    """The dataset of a split, written as a lab would have it where it is missing."""
    folder = out / f"split-{number}"
    if not (folder / "dataset.json").is_file():
        correlations, pictures, categories = read(clone)
        tested = split(number, splits, len(pictures))
        every = np.arange(len(pictures))
        trials = Trials(every, every, np.ones_like(every), np.zeros_like(every), tested)
        subjects = {}
        for k, sessions in enumerate(correlations):
            rng = np.random.default_rng(k)
            betas = np.hstack([responses(one, rng) for one in sessions]).astype(np.float32)
            subjects[k + 1] = Subject(k + 1, trials, {}, betas, tested, PEOPLE[k])
        stimuli = Stimuli((pictures / 255).astype(np.float16), [[name] for name in categories], tested, str(clone))
        write(folder, Dataset(folder, subjects, stimuli, {"simulated": False, "zscore": "none"}))
    return mindtuner.load(folder)


# ---- what is measured


def two_way(said: Predictions, tokens: np.ndarray) -> list[float]:
    """2AFC of each test image, of its tokens (n, T, D) against those of the others; ties count half."""
    return image_retrieval(said.retrieval_tokens, said.compared(tokens)).two_way.round(5).tolist()


def together(decoded: dict[str, Predictions]) -> dict[str, Predictions]:
    """With a row more: the mean of what ``mindtuner`` and the subject's own ridge say, each of unit length."""
    if not {"mindtuner", "ridge"} <= set(decoded):
        return decoded
    own = [decoded[method].retrieval_tokens for method in ("mindtuner", "ridge")]
    mean = sum(one / np.linalg.norm(one, axis=(1, 2), keepdims=True) for one in own)
    return {**decoded, BOTH: dataclasses.replace(decoded["mindtuner"], retrieval_tokens=mean)}


def measure(clone: Path, out: Path, options: argparse.Namespace) -> None:
    config = load_config(options.config, **dict.fromkeys(("pretrain", "tune", "ridge_only", "full_finetune"), UNPAINTED))
    done = results(out, options)
    for number in range(options.splits):
        left = [name for name in options.people if (name, number) not in done]
        if not left:
            continue
        dataset = folder_of(clone, out, number, options.splits)
        features = mindtuner.embed(dataset, out / "cache")
        for name in progress(left, f"split {number}", len(left), "person", lines=True):
            person = PEOPLE.index(name) + 1
            base = mindtuner.pretrain(dataset.without(subject=person), features, config)
            subject = dataset.subject(person)
            tuned = mindtuner.tune(base, subject, features, config, methods=options.methods)
            test, tokens = TestSet.of(subject, dataset.stimuli, features.caches, 0), features.caches["tokens"]
            seen, scores = np.asarray(tokens[test.images], np.float32), {}
            for measure, kind in zip(MEASURES, ("projected", "centred"), strict=True):
                decode: DecodeConfig = dataclasses.replace(config.decode, retrieval_tokens=kind)
                decoded = decode_all(tuned.networks, base.network, test, dataclasses.replace(config, decode=decode))
                said = together({method: one.predictions for method, one in decoded.items()})
                scores[measure] = {method: two_way(one, seen) for method, one in said.items()}
            done.add(person=name, split=number, images=test.images.tolist(), scores=scores)
            said = "  ".join(f"{method} {np.mean(values):.3f}" for method, values in scores["centred"].items())
            print(f"{name} split {number}: {said}", flush=True)


def measure_shuffles(clone: Path, out: Path, options: argparse.Namespace) -> None:
    """Mean 2AFC, centred, of ``shuffled_brain`` and of the plain ridge on permuted brains, a line for each permutation."""
    config = load_config(options.config, **dict.fromkeys(("pretrain", "tune", "ridge_only", "full_finetune"), UNPAINTED))
    done = shuffles(out, options)
    for number in range(options.splits):
        for name in progress(options.people, f"shuffles of split {number}", len(options.people), "person", lines=True):
            wanted = [("shuffled_brain", seed + 1) for seed in range(options.shuffles)]
            wanted += [("shuffled_ridge", seed + 1) for seed in range(RIDGES)]
            left = [key for key in wanted if (name, number, *key) not in done]
            if not left:
                continue
            dataset, person = folder_of(clone, out, number, options.splits), PEOPLE.index(name) + 1
            features, subject = mindtuner.embed(dataset, out / "cache"), dataset.subject(person)
            seen = np.asarray(features.caches["tokens"][np.unique(subject.test.stimulus)], np.float32)
            voxels, starts = subject.betas(subject.test.row), {}
            for method, seed in left:
                if method not in starts:
                    alone = method == "shuffled_ridge"
                    start = mindtuner.fit(subject, features, config, methods=()).base if alone else None
                    starts[method] = start or mindtuner.pretrain(dataset.without(subject=person), features, config)
                network = train(starts[method].network, subject, features.targets, config, seed, "shuffled_brain")
                said = Decoder(network, subject_name(person), config.decode, 0).predict(voxels, subject.test.stimulus)
                value = round(float(np.mean(two_way(said, seen))), 5)
                done.add(person=name, split=number, method=method, seed=seed, two_way=value)


def shuffles(out: Path, options: argparse.Namespace) -> Done:
    return Done(out / f"human-it-{Path(options.config).stem}-shuffles.jsonl", "person", "split", "method", "seed")


def results(out: Path, options: argparse.Namespace) -> Done:
    return Done(out / f"human-it-{Path(options.config).stem}.jsonl", "person", "split")


def values_of(done: Done, people: list[str], measure: str, method: str) -> np.ndarray:
    """2AFC by person and image (people, images), the mean over the splits that tested the image."""
    total: dict[tuple[str, int], list[float]] = {}
    for (name, _), entry in done.runs.items():
        for image, value in zip(entry["images"], entry["scores"][measure][method], strict=True):
            total.setdefault((name, image), []).append(value)
    images = sorted({image for _, image in total})
    return np.array([[np.mean(total[name, image]) for image in images] for name in people])


def table(done: Done, options: argparse.Namespace) -> str:
    """A row a method: raw, and for each other measure its 2AFC, p against chance, and what it adds to the own plain ridge."""
    methods = list(next(iter(done.runs.values()))["scores"]["centred"])
    people = [name for name in options.people if any(name == one for one, _ in done.runs)]
    own, rows = values_of(done, people, "centred", "ridge"), []
    for method in methods:
        raw, values = (values_of(done, people, measure, method) for measure in MEASURES)
        cells = [method, f"{raw.mean():.3f}", f"{values.mean():.3f}", *(f"{value:.3f}" for value in values.mean(1))]
        rows.append([*cells, f"{sign_flips(values.mean(0) - 0.5, 0):.4f}", against(values - own)])
    header = ["method", "raw", "centred", *people, "p against chance", "centred, minus own ridge"]
    text = f"{markdown(header, rows)}\n\n{shared(options.out)}"
    return f"{text}\n\n{over_shuffles(done, people, options)}" if shuffles(options.out, options).runs else text


def over_shuffles(done: Done, people: list[str], options: argparse.Namespace) -> str:
    """What permuted brains give, a row each for the method and the plain ridge.

    A permutation is of a split, and the same for all people, who saw the same images in the same order: it counts once.
    """
    found, rows = shuffles(options.out, options), []
    control = values_of(done, people, "centred", "shuffled_brain").mean()
    for method, beside in (("shuffled_brain", "mindtuner"), ("shuffled_ridge", "ridge")):
        each: dict[tuple[int, int], list[float]] = {}
        for (person, split, kind, seed), entry in found.runs.items():
            if person in people and kind == method:
                each.setdefault((split, seed), []).append(entry["two_way"])
        means = np.array([np.mean(values) for values in each.values()])
        low, high = stats.t.interval(0.95, len(means) - 1, means.mean(), stats.sem(means))
        spread = means.std(ddof=1) / np.sqrt(options.splits)
        p = [
            stats.t.sf((one - 0.5) / spread, len(means) - 1)
            for one in (control, values_of(done, people, "centred", beside).mean())
        ]
        rows.append(
            [
                method,
                f"{len(means)}",
                f"{means.mean():.3f} [{low:.3f}, {high:.3f}]",
                f"{spread:.3f}",
                f"{p[0]:.3f}",
                f"{p[1]:.0e}",
            ]
        )
    header = [
        "permuted brains",
        "permutations",
        "2AFC [95 %]",
        f"SD of the mean of {options.splits}",
        "p of shuffled_brain",
        "p of mindtuner, ridge",
    ]
    return markdown(header, rows)


def shared(out: Path) -> str:
    """How much of the photographs' tokens their mean holds."""
    tokens = np.asarray(
        mindtuner.embed(mindtuner.load(out / "split-0"), out / "cache").caches["tokens"][np.arange(92)], float
    )
    share = np.square(tokens.mean(0)).sum() / np.square(tokens).sum((1, 2)).mean()
    return f"The mean token of the 92 photographs holds {share:.1%} of their tokens' mean square."


def against(difference: np.ndarray) -> str:
    """Mean of a difference (people, images), its interval and p; nothing of a method with itself."""
    if not difference.any():
        return ""
    low, high = over_subjects([row[None] for row in difference], 0)["ci"]
    p = sign_flips(difference.mean(0), 0)
    return f"{difference.mean():+.3f} [{low:+.3f}, {high:+.3f}], p {p:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", type=Path, metavar="CLONE", help="of rsagroup/rsatoolbox")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--config", default="demo", help="of the package, or a YAML file")
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--people", nargs="+", default=list(PEOPLE), choices=PEOPLE)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--shuffles", type=int, default=0, metavar="N", help="tunings on permuted brains (default 0)")
    parser.add_argument("--table", action="store_true", help="of what was measured")
    parser.add_argument("--write", type=Path, metavar="FILE", help="a page with marks for the table")
    options = parser.parse_args()
    if "ridge" not in options.methods:
        parser.error("--methods: ridge is not among them; expected it, since the table compares all others to it")
    if options.shuffles == 1:
        parser.error("--shuffles: is 1; expected 0, or 2 and more, of which there is a spread")
    if not options.table:
        measure(options.clone, options.out, options)
        if options.shuffles:
            measure_shuffles(options.clone, options.out, options)
    text = table(results(options.out, options), options)
    print(text)
    if options.write:
        write_between(options.write, "human_it", text)


if __name__ == "__main__":
    main()
