"""Does the fingerprint win? Paired comparison of tuning methods over tuning seeds, on one simulated dataset.

    python benchmarks/tuning_seeds.py OUT [--fingerprint 0.5] [--seed 0] [--tuning-seeds 10] [--split test]

Simulates, embeds and pretrains once (kept in OUT), then tunes every method with every tuning seed and scores
retrieval of the subject's images: the shared test images (``--split test``), or, to choose settings, a fifth of its
training images that is held out of tuning (``--split validation``; another fifth for each tuning seed). One line per
run goes to OUT/{split}.jsonl, so a run that was stopped continues; a summary with paired differences is printed at
the end.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np

from mindtuner.config import load_config
from mindtuner.decoding.decoder import Decoder
from mindtuner.evaluation.scores.retrieval import brain_retrieval, image_retrieval, text_retrieval
from mindtuner.evaluation.statistics import over_seeds, paired_over_seeds
from mindtuner.formats import load
from mindtuner.generators.compact import WEIGHTS, starting_prior
from mindtuner.runtime import progress
from mindtuner.simulation.simulate import simulate
from mindtuner.towers.compact import Autoencoder, CompactImageEncoder, CompactTextEncoder, packaged
from mindtuner.towers.embed import embed
from mindtuner.training import Targets, load_network, pretrain, save_network, subject_name, tune
from mindtuner.training.batches import split_holdout, training_trials

HOLDOUT = 0.2
METHODS = ("mindtuner", "ridge_only", "full_finetune", "lora_only", "skip_only")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--config", default="demo")
    parser.add_argument("--fingerprint", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0, help="seed of simulation and pretraining")
    parser.add_argument("--tuning-seeds", type=int, default=10)
    parser.add_argument("--split", choices=("test", "validation"), default="test")
    parser.add_argument("--methods", nargs="+", default=METHODS[:3], choices=METHODS)
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="FIELD=VALUE", help="settings to try, such as tune.lr=5e-4 fingerprint.rank=4"
    )
    options = parser.parse_args()
    config = load_config(options.config)
    config = dataclasses.replace(
        config,
        seed=options.seed,
        simulate=dataclasses.replace(config.simulate, seed=options.seed, fingerprint=options.fingerprint),
    )
    dataset, caches, targets, base = prepare(options.out, config)
    for setting in options.set:
        config = changed(config, setting, parser)
    subject = dataset.subject(config.target_subject)
    label = " ".join(sorted(options.set))
    results = options.out / f"{options.split}.jsonl"
    done = {}
    if results.exists():
        for line in results.read_text().splitlines():
            entry = json.loads(line)
            done[entry["settings"], entry["method"], entry["seed"]] = entry
    for seed in progress(range(options.tuning_seeds), "tuning seeds"):
        for method in options.methods:
            if (label, method, seed) not in done:
                hour = subject.sessions(config.tuning_sessions)
                holdout = HOLDOUT if options.split == "validation" else 0.0
                network = tuned(base, hour, targets, config, seed, method, holdout)
                trials = held_out(subject, hour, seed) if holdout else subject.test
                entry = {
                    "settings": label,
                    "method": method,
                    "seed": seed,
                    "scores": retrieval(network, subject, trials, caches, config),
                }
                done[label, method, seed] = entry
                with results.open("a") as file:
                    file.write(json.dumps(entry) + "\n")
    summarise(done, label, options)


def of_world(seed: int, fingerprint: float):
    """The demo's config with the seed of a world, simulation and pretraining, and the strength of what is planted."""
    config = load_config("demo")
    return dataclasses.replace(
        config, seed=seed, simulate=dataclasses.replace(config.simulate, seed=seed, fingerprint=fingerprint)
    )


def in_worlds(description: str, measure, table, draw=None) -> None:
    """The command line of a benchmark that ``measure(out, seed, fingerprint)`` makes in one world, and whose
    ``table(outs)``, and ``draw(outs, file)`` if there is one, go over several."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="+")
    parser.add_argument("--seed", type=int, default=0, help="seed of simulation and pretraining")
    parser.add_argument("--fingerprint", type=float, default=0.5)
    parser.add_argument("--table", action="store_true")
    if draw:
        parser.add_argument("--picture", type=Path, metavar="PNG", help="with --table: draw it too")
    options = parser.parse_args()
    if not options.table:
        measure(options.out[0], options.seed, options.fingerprint)
    print(table(options.out))
    if draw and options.picture:
        draw(options.out, options.picture)


def changed(config, setting: str, parser: argparse.ArgumentParser):
    """The config with one setting, ``section.field=value``. Only what tuning reads: the base is made before."""
    name, _, value = setting.partition("=")
    section, _, field = name.partition(".")
    part = getattr(config, section) if section in ("tune", "fingerprint") else None
    if not hasattr(part, field):
        parser.error(f"--set {setting}: expected tune.FIELD=VALUE or fingerprint.FIELD=VALUE")
    kind = type(getattr(part, field))
    return dataclasses.replace(
        config, **{section: dataclasses.replace(part, **{field: value if kind is str else kind(float(value))})}
    )


def materials(out: Path, config):
    """The dataset, its caches and the targets in them, made where they are missing."""
    if not (out / "data" / "brain_region_masks.hdf5").exists():
        simulate(out / "data", config.simulate)
    dataset = load(out / "data")
    caches = embed(
        dataset, out / "data" / "cache", CompactImageEncoder(), CompactTextEncoder(), Autoencoder(packaged(WEIGHTS))
    )
    return dataset, caches, Targets(**{field.name: caches[field.name] for field in dataclasses.fields(Targets)})


def prepare(out: Path, config):
    """``materials`` and the pretrained base, made where they are missing."""
    dataset, caches, targets = materials(out, config)
    path = out / "base.safetensors"
    if not path.exists():
        save_network(
            path,
            pretrain(
                dataset.without(subject=config.target_subject),
                targets,
                config,
                config.seed,
                prior=starting_prior(config.model),
            ),
            {},
        )
    return dataset, caches, targets, load_network(path)


def tuned(base, subject, targets, config, seed, method, holdout):
    """A method of ``tune``, or one half of the fingerprint alone."""
    halves = {"lora_only": {"skip": False}, "skip_only": {"lora": False}}
    if method in halves:
        config = dataclasses.replace(config, fingerprint=dataclasses.replace(config.fingerprint, **halves[method]))
        method = "mindtuner"
    return tune(base, subject, targets, config, seed, method, holdout=holdout, prior=starting_prior(config.model))


def held_out(subject, hour, seed):
    """All training trials, of any session, of the images that ``tune`` held out with this seed."""
    trials = training_trials(hour, int(subject.train.stimulus.max()) + 1)
    _, held = split_holdout({subject_name(subject.number): trials}, HOLDOUT, seed)
    images = held[subject_name(subject.number)].stimulus
    return subject.train.select(np.isin(subject.train.stimulus, images))


def retrieval(network, subject, trials, caches, config) -> dict[str, list[float]]:
    """Top-1 hit (ties share) of every image of ``trials``, in three directions."""
    decoder = Decoder(network, subject_name(subject.number), config.decode, config.seed)
    p = decoder.predict(subject.betas(trials.row), trials.stimulus)
    tokens, text = np.asarray(caches["tokens"][p.images]), np.asarray(caches["text"][p.images])
    hits = {
        "image": image_retrieval(p.retrieval_tokens, tokens),
        "brain": brain_retrieval(p.retrieval_tokens, tokens),
        "text": text_retrieval(p.text, text),
    }
    return {name: [round(float(v), 4) for v in hit.top1] for name, hit in hits.items()}


def summarise(done: dict, label: str, options) -> None:
    """A table in Markdown: mean (sd over tuning seeds), and what mindtuner has more, paired, with 95 % intervals."""
    directions, seeds = ("image", "brain", "text"), range(options.tuning_seeds)
    hits = {m: {d: np.array([done[label, m, s]["scores"][d] for s in seeds]) for d in directions} for m in options.methods}
    candidates = hits[options.methods[0]]["image"].shape[1]
    print(
        f"fingerprint {options.fingerprint}, split {options.split}, {candidates} candidates (chance {1 / candidates:.4f}), "
        f"simulator seed {options.seed}, {options.tuning_seeds} tuning seeds, settings: {label or 'as in the config'}\n"
    )
    print("| method | " + " | ".join(directions) + " | " + " | ".join(f"mindtuner minus it, {d}" for d in directions) + " |")
    print("|---|" + 6 * "---:|")
    for method, scores in hits.items():
        cells = []
        for d in directions:
            cells.append(mean_and_sd(scores[d]) if len(seeds) > 1 else f"{scores[d].mean():.3f}")
        for d in directions:
            if method == "mindtuner" or "mindtuner" not in hits or len(seeds) == 1:
                cells.append("")
                continue
            cells.append(difference(hits["mindtuner"][d], scores[d]))
        print(f"| {method} | " + " | ".join(cells) + " |")


def mean_and_sd(values: np.ndarray) -> str:
    """values (seeds, images) -> mean, and sd over seeds."""
    return f"{values.mean():.3f} ({over_seeds(values, 0)['sd']:.3f})"


def difference(a: np.ndarray, b: np.ndarray) -> str:
    """a - b, both (seeds, images), paired, with its 95 % interval."""
    found = paired_over_seeds(a, b, 0)
    return f"{found['mean']:+.3f} [{found['ci'][0]:+.3f}, {found['ci'][1]:+.3f}]"


if __name__ == "__main__":
    main()
