"""Do LoRA and Skip-LoRA learn what they can represent, from how much data on, and is it found where it was planted?

    python benchmarks/controls.py OUT [--seeds 0 1 2] [--part scale|where|hours|strength|noise-free|simulator]
    python benchmarks/controls.py OUT --table [--write benchmarks/results/controls.md] [--picture docs/controls.png]

OUT holds world 0 (``data`` and ``base``, made where they are missing). In a control, brains are the simulator's without a
fingerprint, of subject 1 and all images of the world, so that many hours can be measured; and what an image is, its tokens,
is what a teacher says of the noise-free brain. The teacher is the base with a ridge and one thing that it plants:

    lora   the token head is W + P Q (rank 4): Q reads the own signals of a patch of voxels, P lies outside of what W reaches
    skip   x0 is ridge + GELU(B A V) (rank 2): A reads the own signals of a patch of voxels that the ridge does not use, and
           B gives each hidden feature one of them, with such signs that the linear half of the GELU about cancels out

A patch is where a smooth random field over the sheet is highest (15 % of the voxels, in at least three areas). Its own
signals are those that x0 tells least of. The planted strength is the share of the tokens' variance that the path carries.
At strength 0 the same teacher plants nothing: the ridge reads the same voxels. In ``simulator`` nothing is taught: tokens are
the images', and brains have the simulator's fingerprint of 0.5.

For maps (``where``) a patch is four whole parcels of 24, drawn at random: by a permutation of the sheet's five areas no p
would be below 1/10 with one or two of them planted. A voxel's ``lora_gain`` and ``skip_weights`` (``maps.gains_of``), and the
part of the fingerprint's routes in its share of the decoded variance, are held against the patch. They were chosen on patch 0
and tuning seed 0, and are reported on patches 1 to 3. At strength 0 a patch is still special to its teacher, which reads its
own signals (lora) or nothing of it (skip). So there is a third world, ``none``: its teacher reads all voxels alike, and its
maps are held against many patches (``NO_PATCHES``).

What is learned starts at a ridge in closed form that stays frozen. In a control it is regressed on the teacher's x0, before
anything is added to it; in the simulator on what the base expects, and it is stretched as in tuning. Scores of test images
are of tokens decoded from the mean of three trials: R2, and log(1 + place) of the right image among all training images,
both less the mean answer. In a control there is no retrieval projector, so that C is B.

LoRA has rank 64 (``LORA``), which tuning had when this was measured; Skip-LoRA needs a larger scale, alpha over rank
(``SKIP``): ``scale`` compares alphas on training images of seed 0 that are held out. Runs are lines of
OUT/controls-SEED.jsonl, OUT/where-SEED.jsonl and OUT/scale-0.jsonl.
"""

from __future__ import annotations

import argparse
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from pages import markdown, spread, write_between
from planted import (
    ClosedForm,
    Measured,
    Planted,
    Teacher,
    brain_of,
    nothing_planted,
    parcel_patch,
    parcels_of,
    simulator,
    smooth_patch,
)
from world import Done, config_of, open_world

from mindtuner.config import FingerprintConfig, FitConfig
from mindtuner.data import Trials
from mindtuner.evaluation.statistics import bootstrap_ci, over_seeds
from mindtuner.model import BrainNetwork
from mindtuner.model.lora import SkipLoRA, add_lora
from mindtuner.runtime import derive_seed, progress, seed_everything
from mindtuner.simulation.brains import Brain
from mindtuner.studies import maps
from mindtuner.studies.routes import ROUTES, shares
from mindtuner.training.batches import Feed
from mindtuner.training.closed_form import HiddenRidge
from mindtuner.training.fingerprint import share_weights
from mindtuner.training.loop import fit
from mindtuner.training.targets import Targets

NAME = "subj01"  # the subject to tune
HOURS = (0.25, 0.5, 1, 3, 10, 40)
STRENGTHS = (0.02, 0.05, 0.1, 0.2, 0.4)
STRENGTH = 0.2  # where hours vary
NOISE_FREE = (1, 10)  # hours
WHERE_HOURS = 10
PATCHES = (1, 2, 3)  # which maps are made of; the maps' values were chosen on patch 0
NO_PATCHES = range(1, 21)  # which the maps of a world without any are held against
SCALES, FOLDS = (0.0, 160.0, 640.0, 2560.0, 10240.0), 5  # Skip-LoRA's alphas, 0 is the ridge alone
METHODS = {"ridge": (), "lora": ("lora",), "skip": ("skip",), "both": ("lora", "skip")}
LORA = {"rank": 64, "alpha": 128.0}
SKIP = {"rank": 32, "alpha": 2560.0}  # at x0 alone
FIT = {"lr": 3e-4, "batch_per_subject": 64, "weight_decay": 1e-2, "warmup": 0.05, "mixco_share": 0.0}  # as in tuning
EPOCHS, MOST_STEPS = 32, 400
USUAL = 1000  # training trials whose mean answer is taken
WEIGHTS = {"regression_weight": 10.0, "clip_weight": 1.0, "skip_weight": 0.0}


# ---- what is learned


class InMemory:
    """As much of a Subject as a Feed reads."""

    number = 1

    def __init__(self, betas: np.ndarray):
        self._betas, self.n_voxels = betas, betas.shape[1]

    def betas(self, rows: np.ndarray) -> np.ndarray:
        return self._betas[rows]


def tune(
    planted: Planted, measured: Measured, ridge: HiddenRidge, paths: tuple[str, ...], seed: int, skip: dict = SKIP
) -> BrainNetwork:
    """The base with that ridge, frozen, and the adapters ``paths`` trained around it."""
    seed_everything(derive_seed(seed, "tune"))
    config, voxels = planted.base.config, measured.betas.shape[1]
    network = share_weights(planted.base)
    network.add_fingerprint(NAME, voxels, FingerprintConfig(lora=False, skip=False))
    ridge.put_into(network.ridges[NAME])
    network.ridges[NAME].requires_grad_(False)
    if "lora" in paths:
        for part in (network.head, network.retrieval):
            add_lora(part, **LORA)
    if "skip" in paths:
        network.skips.append(SkipLoRA(voxels, config.hidden, **skip))
    if not paths:
        return network.eval()
    images, nothing = len(planted.tokens), np.zeros((len(planted.tokens), 0), np.float32)
    targets = Targets(planted.tokens.reshape(images, config.tokens, config.width), nothing, nothing, nothing, nothing)
    count = len(measured.images)
    none = np.zeros(count, int)
    feed = Feed(InMemory(measured.betas), Trials(np.arange(count), measured.images, none + 1, none, none > 0), seed, True)
    epochs = min(EPOCHS, MOST_STEPS * FIT["batch_per_subject"] / count)
    fitting = FitConfig(epochs=epochs, ridge_weight_decay=0.0, head_trials=1, dtype="float32", **FIT, **WEIGHTS)
    fit(network, [feed], targets, fitting, seed, "tune")
    return network.eval()


def scores(network: BrainNetwork, planted: Planted, measured: Measured, training: np.ndarray) -> dict[str, list[float]]:
    """Of each test image its R2, and log(1 + place) of its tokens among those of the ``training`` images and its own.

    Tokens are less their mean over training trials, and less their mean over training images: an answer that is the same for
    all brains neither helps nor harms.
    """
    with torch.no_grad():
        said, usual = (network(torch.from_numpy(betas), NAME) for betas in (measured.test, measured.betas[:USUAL]))
    tokens, retrieval = (
        (getattr(said, name) - getattr(usual, name).mean(0)).flatten(1).numpy()
        for name in ("backbone_tokens", "retrieval_tokens")
    )
    right, others = (planted.tokens[images] - planted.tokens[training].mean(0) for images in (measured.test_images, training))
    error = np.square(tokens - right).sum(1) / np.square(right).sum(1).mean()
    query, right, others = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (retrieval, right, others))
    place = 1 + (query @ others.T > (query * right).sum(1)[:, None]).sum(1)
    return {"r2": np.round(1 - error, 4).tolist(), "rank": np.round(np.log1p(place), 4).tolist()}


# ---- runs


class Runs:
    """What one process does: worlds, measurements and ridges are made once."""

    def __init__(self, out: Path):
        torch.set_num_threads(1)
        self.out, self.world = out, open_world(out, config_of(0))
        self.training = self.world.dataset.stimuli.training_images
        self.brain, self.teacher = lru_cache(2)(self._brain), lru_cache(12)(self._teacher)
        self.planted, self.measured = lru_cache(24)(self._planted), lru_cache(1)(self._measured)

    def _brain(self, kind: str) -> Brain:
        return brain_of(self.world, 0.5 if kind == "simulator" else 0.0)

    def _teacher(self, kind: str, patch: int, parcels: bool) -> Teacher:
        brain = self.brain("control")
        where = parcel_patch(brain.sheet, patch) if parcels else smooth_patch(brain, patch)
        return Teacher(self.world, brain, kind, where, patch)

    def _planted(self, kind: str, strength: float, patch: int, parcels: bool = False) -> Planted:
        return simulator(self.world) if kind == "simulator" else self.teacher(kind, patch, parcels).planted(strength)

    def _measured(self, kind: str, hours: float, noise: float, seed: int) -> tuple[Measured, ClosedForm]:
        measured = Measured.of(self.brain(kind), self.training, hours, noise, seed)
        return measured, ClosedForm(measured)

    def scored(self, wanted: list[tuple], seed: int) -> None:
        """``wanted``: kind, strength, hours, noise, method."""
        done = known(self.out, seed)
        for kind, strength, hours, noise, method in progress(done.left(wanted), "runs"):
            planted = self.planted(kind, strength, seed)
            measured, closed = self.measured("simulator" if kind == "simulator" else "control", hours, noise, seed)
            network = tune(planted, measured, ridge_of(planted, measured, closed), METHODS[method], seed)
            done.add(
                kind=kind,
                strength=strength,
                hours=hours,
                noise=noise,
                method=method,
                share=planted.share,
                curved=planted.curved,
                **scores(network, planted, measured, self.training),
            )

    def scaled(self, seed: int) -> None:
        """R2 of training images that are held out, by Skip-LoRA's alpha."""
        done = Done(self.out / f"scale-{seed}.jsonl", "alpha")
        for alpha in progress(done.left(SCALES), "scales"):
            planted = self.planted("skip", STRENGTH, seed)
            r2 = []
            for part in self.measured("control", 1, 1, seed)[0].folds(FOLDS):
                ridge = ridge_of(planted, part, ClosedForm(part))
                network = tune(planted, part, ridge, METHODS["skip"] if alpha else (), seed, {**SKIP, "alpha": alpha})
                r2 += scores(network, planted, part, self.training)["r2"]
            done.add(alpha=alpha, r2=r2)

    def located(self, seed: int, patches: tuple[int, ...]) -> None:
        """Maps of what the adapters carry, of both kinds, with the patch planted and not, against the patch."""
        done = known_maps(self.out, seed)
        wanted = [(kind, strength, patch) for patch in patches for kind in ("lora", "skip") for strength in (STRENGTH, 0.0)]
        for kind, strength, patch in progress(done.left(wanted), "maps"):
            drawn, facts = self._maps(self.planted(kind, strength, patch, True), seed)
            done.add(kind=kind, strength=strength, patch=patch, **facts, maps=self._recovered(drawn, patch, seed))
        if without := done.left([("none", 0.0, patch) for patch in NO_PATCHES]):
            drawn, facts = self._maps(nothing_planted(self.world, self.brain("control")), seed)
            for _, _, patch in progress(without, "patches"):
                done.add(kind="none", strength=0.0, patch=patch, **facts, maps=self._recovered(drawn, patch, seed))

    def _maps(self, planted: Planted, seed: int) -> tuple[dict[str, np.ndarray], dict]:
        """Maps (V,) of a tuning, and what it says of all voxels."""
        measured, closed = self.measured("control", WHERE_HOURS, 1, seed)
        network = tune(planted, measured, ridge_of(planted, measured, closed), METHODS["both"], seed)
        rois = self.brain("control").sheet.rois()
        found = shares(network, NAME, measured.test, measured.test_images, measured.betas.mean(0), rois, nodes=8)
        drawn = maps.gains_of(network, NAME, measured.test, seed)
        drawn["fingerprint"] = maps.maps_of(found)["fingerprint"]
        return drawn, {
            "shares": dict(zip(ROUTES, found.voxel.sum(1).tolist(), strict=True)),
            "residual": found.residual,
        }

    def _recovered(self, drawn: dict[str, np.ndarray], patch: int, seed: int) -> dict[str, dict]:
        sheet = self.brain("control").sheet
        truth, parcel = parcel_patch(sheet, patch).astype(float), parcels_of(sheet)
        return {name: maps.recovery(values, truth, parcel, seed, sheet.position) for name, values in drawn.items()}


def ridge_of(planted: Planted, measured: Measured, closed: ClosedForm) -> HiddenRidge:
    return closed(planted.expected[measured.images], planted.spread)


def known_maps(out: Path, seed: int) -> Done:
    return Done(out / f"where-{seed}.jsonl", "kind", "strength", "patch")


def known(out: Path, seed: int) -> Done:
    return Done(out / f"controls-{seed}.jsonl", "kind", "strength", "hours", "noise", "method")


def wanted(part: str) -> list[tuple]:
    """kind, strength, hours, noise, method of all runs of a part."""
    kinds, runs = ("lora", "skip"), []
    if part == "hours":
        for hours in HOURS:
            for kind in kinds:
                runs += [(kind, STRENGTH, hours, 1, method) for method in METHODS]
                runs += [(kind, 0.0, hours, 1, method) for method in ("ridge", kind)]
    elif part == "strength":
        for hours in (1, 10):
            for strength in STRENGTHS:
                runs += [(kind, strength, hours, 1, method) for kind in kinds for method in ("ridge", kind)]
    elif part == "noise-free":
        for hours in NOISE_FREE:
            for strength in (0.0, STRENGTH):
                runs += [(kind, strength, hours, 0, method) for kind in kinds for method in ("ridge", kind)]
    elif part == "simulator":
        runs += [("simulator", 0.5, hours, 1, method) for hours in HOURS for method in METHODS]
    return runs


PARTS = ("scale", "where", "hours", "strength", "noise-free", "simulator")


# ---- tables and the picture


class Found:
    """All runs, as arrays (seeds, images) of the seeds that have all of what is compared."""

    def __init__(self, out: Path):
        self.runs = {
            int(file.stem.split("-")[1]): known(out, int(file.stem.split("-")[1])) for file in out.glob("controls-*")
        }
        seeds = [int(file.stem.split("-")[1]) for file in sorted(out.glob("where-*"))]
        self.where = {
            (*key, seed): run
            for seed in seeds
            for key, run in known_maps(out, seed).runs.items()
            if run["patch"] in (NO_PATCHES if run["kind"] == "none" else PATCHES)
        }

    def values(self, score: str, *settings: tuple) -> list[np.ndarray] | None:
        """An array for each of the ``settings`` (kind, strength, hours, noise, method); None where no seed has them all."""
        seeds = [seed for seed in sorted(self.runs) if not self.runs[seed].left(settings)]
        if not seeds:
            return None
        return [np.array([self.runs[seed][setting][score] for seed in seeds]) for setting in settings]

    def gain(self, score: str, kind: str, strength: float, hours: float, noise: float, method: str, beyond: bool = False):
        """The method's score less the ridge's (seeds, images); ``beyond``: less the same where nothing is planted."""
        world = (kind, strength, hours, noise)
        wanted = [(*world, method), (*world, "ridge")]
        if beyond:
            wanted += [(kind, 0.0, hours, noise, "ridge"), (kind, 0.0, hours, noise, method)]
        found = self.values(score, *wanted)
        return None if found is None else sum(sign * one for sign, one in zip((1, -1, 1, -1), found, strict=False))

    def facts(self, name: str, kind: str, strength: float) -> str:
        """Mean over seeds of what a run says of its world."""
        seen = {
            seed: run[name]
            for seed, done in self.runs.items()
            for run in done.runs.values()
            if (run["kind"], run["strength"]) == (kind, strength)
        }
        return f"{np.mean(list(seen.values())):.2f}"


def interval(gain: np.ndarray) -> tuple[float, float, float]:
    """Mean, and 95 % interval over images, and over seeds where there are several."""
    if len(gain) > 1:
        found = over_seeds(gain, 0)
        return (found["mean"], *found["ci"])
    return (float(gain.mean()), *bootstrap_ci(gain[0], 0))


def cell(gain: np.ndarray | None) -> str:
    return "" if gain is None else "{:+.3f} [{:+.3f}, {:+.3f}]".format(*interval(gain))


def table(out: Path) -> str:
    found = Found(out)
    parts = [f"Seeds: {', '.join(map(str, sorted(found.runs)))}, of which each cell has those that are done."]
    for score, words in (("r2", "R2 of the tokens"), ("rank", "log(1 + place) of the right image, less is better")):
        rows = []
        for kind, strength, noise in (
            ("lora", STRENGTH, 1),
            ("skip", STRENGTH, 1),
            ("simulator", 0.5, 1),
            ("lora", STRENGTH, 0),
            ("skip", STRENGTH, 0),
        ):
            for hours in HOURS:
                ridge = found.values(score, (kind, strength, hours, noise, "ridge"))
                if ridge is None:
                    continue
                gains = [cell(found.gain(score, kind, strength, hours, noise, method)) for method in list(METHODS)[1:]]
                beyond = "" if kind == "simulator" else cell(found.gain(score, kind, strength, hours, noise, kind, True))
                name = f"{kind}{'' if noise else ', no noise'}"
                rows.append([name, f"{hours:g}", str(len(ridge[0])), f"{ridge[0].mean():.3f}", *gains, beyond])
        header = [
            "world",
            "hours",
            "seeds",
            "ridge alone",
            "LoRA adds",
            "Skip-LoRA adds",
            "both add",
            "beyond nothing planted",
        ]
        parts.append(f"## By hours: {words}\n\n{markdown(header, rows)}")
    rows = []
    for kind in ("lora", "skip"):
        for strength in STRENGTHS:
            cells = [cell(found.gain(score, kind, strength, h, 1, kind, True)) for h in (1, 10) for score in ("r2", "rank")]
            if any(cells):
                rows.append([kind, f"{strength:g}", found.facts("curved", kind, strength), *cells])
    header = ["world", "strength", "not linear", "R2, 1 h", "place, 1 h", "R2, 10 h", "place, 10 h"]
    parts.append(f"## By strength: what the planted path adds beyond nothing planted\n\n{markdown(header, rows)}")
    parts.append(f"## Where it is found\n\n{where_table(found)}")
    if (out / "scale-0.jsonl").exists():
        parts.append(f"## Skip-LoRA's scale, by held-out training images\n\n{scale_table(out)}")
    return "\n\n".join(parts)


def where_table(found: Found) -> str:
    rows = []
    for kind in ("lora", "skip", "none"):
        for strength in (0.0,) if kind == "none" else (STRENGTH, 0.0):
            runs = {key: run for key, run in found.where.items() if key[:2] == (kind, strength)}
            for name in next(iter(runs.values()))["maps"] if runs else ():
                scored = {key: run["maps"][name] for key, run in runs.items()}
                p = {null: np.array([one[null]["p"] for one in scored.values()]) for null in ("between", "smooth")}
                count = [f"{(values < 0.05).sum()} of {len(values)}" for values in (*p.values(), np.maximum(*p.values()))]
                rho = {key: one["smooth"]["spearman"] for key, one in scored.items()}
                same = {key: (kind, 0.0, *key[2:]) for key in rho}
                above = [
                    rho[key] > found.where[other]["maps"][name]["smooth"]["spearman"]
                    for key, other in same.items()
                    if strength and other in found.where
                ]
                world = kind if strength or kind == "none" else f"{kind}, at strength 0"
                more = f"{sum(above)} of {len(above)}" if above else ""
                rows.append([world, name, spread(list(rho.values()), "+.2f", ".2f"), more, *count])
    header = ["world", "map", "Spearman", "above nothing planted", "p parcels", "p smooth", "both"]
    return markdown(header, rows, left=2)


def scale_table(out: Path) -> str:
    done = Done(out / "scale-0.jsonl", "alpha").runs
    ridge = np.array(done[0.0]["r2"])
    rows = [
        [f"{alpha:g}", cell(np.array(run["r2"])[None] - ridge), f"{np.mean(run['r2']):.3f}"]
        for alpha, run in done.items()
        if alpha
    ]
    return markdown(["alpha", "R2 less the ridge's", "R2"], rows, left=0)


def draw(out: Path, file: Path) -> None:
    """What adapters add to R2, by hours in three worlds and by strength; needs matplotlib, which the package does not."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = Found(out)
    figure, axes = plt.subplots(2, 2, figsize=(10.5, 7), layout="constrained")
    colours = {"lora": "tab:blue", "skip": "tab:orange", "both": "tab:green"}

    def curve(axis, places, gains, **how) -> None:
        points = [(x, *interval(gain)) for x, gain in zip(places, gains, strict=True) if gain is not None]
        if points:
            x, mean, low, high = np.array(points).T
            axis.errorbar(x, mean, [mean - low, high - mean], marker="o", markersize=4, capsize=2, **how)

    worlds = {"lora": "Planted: LoRA", "skip": "Planted: Skip-LoRA", "simulator": "The simulator's own fingerprint"}
    for axis, (kind, title) in zip((axes[0, 0], axes[0, 1], axes[1, 1]), worlds.items(), strict=True):
        strength = 0.5 if kind == "simulator" else STRENGTH
        for method, label in (("lora", "LoRA"), ("skip", "Skip-LoRA"), ("both", "both")):
            gains = [found.gain("r2", kind, strength, hours, 1, method) for hours in HOURS]
            curve(axis, HOURS, gains, color=colours[method], label=label)
        if kind != "simulator":
            gains = [found.gain("r2", kind, 0.0, hours, 1, kind) for hours in HOURS]
            curve(axis, HOURS, gains, color=colours[kind], linestyle=":", alpha=0.6, label="same, nothing planted")
            gains = [found.gain("r2", kind, strength, hours, 0, kind) for hours in NOISE_FREE]
            label = f"{'LoRA' if kind == 'lora' else 'Skip-LoRA'}, no noise"
            curve(axis, NOISE_FREE, gains, color=colours[kind], linestyle="none", markerfacecolor="white", label=label)
        axis.set(title=title, xscale="log", xlabel="hours of scanning", xticks=HOURS)
        axis.set_xticklabels([f"{hours:g}" for hours in HOURS])
    for kind, label in (("lora", "LoRA"), ("skip", "Skip-LoRA")):
        for hours, line in ((1, "--"), (10, "-")):
            gains = [found.gain("r2", kind, strength, hours, 1, kind, True) for strength in STRENGTHS]
            curve(axes[1, 0], STRENGTHS, gains, color=colours[kind], linestyle=line, label=f"{label}, {hours} h")
    axes[1, 0].set(title="By strength", xscale="log", xlabel="planted share of the tokens' variance", xticks=STRENGTHS)
    axes[1, 0].set_xticklabels([f"{strength:g}" for strength in STRENGTHS])
    for axis in axes.flat:
        axis.axhline(0, color="grey", linewidth=0.8)
        axis.minorticks_off()
        axis.set_ylabel("added R2")
        axis.set_visible(axis.has_data() and len(axis.containers) > 0)
        if axis.get_legend_handles_labels()[0]:
            below, above = axis.get_ylim()
            axis.set_ylim(below, above + 0.4 * (above - below))  # room for the legend above all points
            axis.legend(fontsize=8, ncols=2, loc="upper left")
    figure.savefig(file, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of patches, trials, noise and tuning")
    parser.add_argument("--patches", type=int, nargs="+", default=PATCHES, help="of maps")
    parser.add_argument("--part", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--write", type=Path, metavar="FILE", help="with --table: a page with marks for it")
    parser.add_argument("--picture", type=Path, metavar="PNG", help="with --table: draw the detection curves")
    options = parser.parse_args()
    if not options.table:
        runs = Runs(options.out)
        for part in options.part:
            for seed in options.seeds:
                if part == "where":
                    runs.located(seed, options.patches)
                elif part == "scale" and seed == 0:
                    runs.scaled(seed)
                elif part != "scale":
                    runs.scored(wanted(part), seed)
    if options.table:
        print(text := table(options.out))
        if options.write:
            write_between(options.write, "controls", text)
        if options.picture:
            draw(options.out, options.picture)


if __name__ == "__main__":
    main()
