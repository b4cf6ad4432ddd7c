"""What the verbs from data to report share: options, time, run folders, what a base is fitted to, and the base itself."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mindtuner.cli import towers
from mindtuner.errors import UserError

if TYPE_CHECKING:  # what is heavy is imported only where it is used
    import numpy as np

    from mindtuner.config import Config, ModelConfig
    from mindtuner.data import Dataset, Stimuli
    from mindtuner.generators.compact import CompactGenerator
    from mindtuner.generators.painter import Painter
    from mindtuner.model import BrainNetwork
    from mindtuner.model.prior import DiffusionPrior
    from mindtuner.towers.compact import CompactTextEncoder
    from mindtuner.towers.openclip import OpenClipTextEncoder
    from mindtuner.training import Targets
    from mindtuner.training.monitor import Log

BASE = "base.safetensors"
SETTINGS = "config.yaml"
_CHECKPOINT = "pretrain.checkpoint"
_TOWERS = {
    "tokens": 16,
    "width": 128,
    "text_width": 384,
    "latent_channels": 8,
    "latent_side": 16,
    "feature_positions": 16,
    "feature_width": 112,
}  # what the towers that this package carries give


def add_config(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--config", metavar="NAME", help=f"demo, quick, paper or a YAML file (default {default})")
    parser.add_argument("--seed", type=int, metavar="N", help="seed of weights and order (default: the config's)")


def add_towers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cache", type=Path, metavar="DIR", help="what the towers say about the images (default DATA/cache)")
    parser.add_argument(
        "--generator",
        type=Path,
        metavar="FILE",
        help="weights of mindtuner train-generator (default: those that the package ships)",
    )


def add_hold_out(parser: argparse.ArgumentParser, also: str = "") -> None:
    parser.add_argument(
        "--hold-out-category", metavar="NAME", help=f"train on no image whose captions name it{also} (docs/hold-out.md)"
    )


def category_of(name: str) -> str:
    """A category as configs and cards have it: its words in lower case. Raises UserError where there are none."""
    from mindtuner.data.hold_out import category_words

    return " ".join(category_words(name))


def held_out(dataset: Dataset, category: str) -> Dataset:
    """The dataset without the category's training images, or as it is where none is held out."""
    return dataset.without_category(category) if category else dataset


class Stopwatch:
    """Seconds of each stage, said aloud as they end."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        print(f"{name} ...", end="" if sys.stderr.isatty() else "\n", flush=True)
        yield
        self.seconds[name] = time.perf_counter() - start
        print(f"\r{name:<12} {self.seconds[name]:6.1f} s", flush=True)

    def total(self) -> dict[str, float]:
        return self.seconds | {"total": time.perf_counter() - self._start}


# ---- run folders


def command_of(*words: object) -> str:
    """A call of mindtuner as one would type it."""
    return "mindtuner " + shlex.join(str(word) for word in words)


def settings_text(config: Config, command: str) -> str:
    """The contents of a run's config.yaml: the command in the first line, then the whole config."""
    import yaml

    from mindtuner.config import as_dict

    return f"# {command}\n{yaml.safe_dump(as_dict(config), sort_keys=False)}"


def command_in(settings: Path) -> str | None:
    """The command in the first line of a run's config.yaml, None where the file has none."""
    first = settings.read_text(encoding="utf-8").partition("\n")[0] if settings.is_file() else ""
    return first.removeprefix("# ") if first.startswith("# mindtuner ") else None


def claim(run: Path, settings: str, force: bool, finished: str | None = None) -> bool:
    """Make ``run`` this run's: True where it holds what a run of the same settings left, else it is empty but for them.

    ``finished``: a file with which a run is over, and the folder refused. Raises UserError where the folder holds
    something else and ``force`` is not given.
    """
    from mindtuner.files import claim_folder, write_text
    from mindtuner.processes import processes

    if processes().index > 0:  # the first claims for all
        processes().wait()
        return True
    path = run / SETTINGS
    same = path.is_file() and path.read_bytes() == settings.encode()
    if same and not force and not (finished and (run / finished).exists()):
        print(f"{run}: going on with this run", flush=True)
    else:
        same = False
        claim_folder(run, force)
        write_text(path, settings)
    processes().wait()
    return same


def log_of(run: Path) -> Log:
    """The log of a run, which the first process alone writes."""
    from mindtuner.evaluation.results import log_to
    from mindtuner.processes import processes

    return log_to(run) if processes().index == 0 else lambda entry: None


def refuse_overlap(out: Path, **inputs: Path) -> None:
    """Raise UserError where writing into ``out`` could replace one of the inputs."""
    for name, path in inputs.items():
        if out.resolve() == path.resolve() or out.resolve() in path.resolve().parents:
            raise UserError(f"{out}: holds {name} ({path}); expected another folder for the output")


# ---- data and towers


def check_towers(config: ModelConfig, where: object, cache: Path | None = None) -> None:
    """Raise UserError where a model is not made for the outputs of the towers in use: those of full size whose caches are in
    ``cache``, else those that this package carries."""
    if cache is not None and towers.is_full_size(cache):
        towers.check_sizes(config, where, towers.sizes(cache), f"the towers of {cache}")
    else:
        towers.check_sizes(config, where, _TOWERS, "the towers of this package (as in demo.yaml)")


@dataclass(frozen=True)
class Materials:
    """A dataset with what the frozen towers say about its stimuli.

    caches : rows by stimulus id, of all that training needs; and ``pixels``, uint8 (N, 3, s, s), at the side s that pictures
        are scored at
    """

    dataset: Dataset
    texts: CompactTextEncoder | OpenClipTextEncoder
    generator: Painter
    caches: dict[str, np.ndarray]

    @property
    def targets(self) -> Targets:
        from mindtuner.training import Targets

        return Targets(**{field.name: self.caches[field.name] for field in dataclasses.fields(Targets)})


def gather(dataset: Dataset, cache: Path | None, generator: CompactGenerator) -> Materials:
    """Run the towers over all stimuli, where ``cache`` (default: the dataset's own) does not hold it all yet.

    Raises UserError where the cache is of other stimuli or towers, or cannot be written.
    """
    from mindtuner.towers.compact import CompactImageEncoder, CompactTextEncoder
    from mindtuner.towers.embed import embed

    texts = CompactTextEncoder()
    caches = embed(dataset, cache or dataset.root / "cache", CompactImageEncoder(), texts, generator.autoencoder)
    return Materials(dataset, texts, generator, caches)


def gather_full_size(dataset: Dataset, cache: Path, texts: OpenClipTextEncoder, generator: Painter) -> Materials:
    """What ``embed --towers paper`` left in ``cache``. Raises UserError where it is of other stimuli, or not whole."""
    stored = towers.stored_targets(cache, dataset.stimuli)
    caches = {field.name: getattr(stored, field.name) for field in dataclasses.fields(stored)}
    return Materials(dataset, texts, generator, caches | {"pixels": _Pixels(dataset.stimuli)})


class _Pixels:
    """Stimuli as they are stored, uint8 (n, 3, 224, 224) by their ids (n,)."""

    def __init__(self, stimuli: Stimuli) -> None:
        self._stimuli = stimuli

    def __getitem__(self, ids: np.ndarray) -> np.ndarray:
        import numpy as np

        return np.round(self._stimuli.images(ids) * 255).astype(np.uint8)


def compact_generator(cache: Path, config: Config, weights: Path | None) -> CompactGenerator | None:
    """The package's generator, whose autoencoder is one of its towers; None where ``cache`` is of towers of full size."""
    from mindtuner.generators.compact import CompactGenerator

    return None if towers.is_full_size(cache) else CompactGenerator(config.decode, config.seed, weights)


def gather_targets(dataset: Dataset, cache: Path, generator: CompactGenerator | None) -> tuple[Targets, dict]:
    """The targets in ``cache``, and what a card says of them: those of full size that are there, or, with a ``generator``,
    those of the package's own towers, which run where they have not run yet.

    Raises UserError where the cache is of other stimuli or towers, not whole, or cannot be written.
    """
    if generator is None:
        targets = towers.stored_targets(cache, dataset.stimuli)
    else:
        targets = gather(dataset, cache, generator).targets
    return targets, towers.facts(cache)


# ---- the base


def pretrained(
    run: Path, dataset: Dataset, targets: Targets, config: Config, log: Log, prior: DiffusionPrior, card: dict
) -> BrainNetwork:
    """The base of ``run``: trained on all of ``dataset``, going on from a checkpoint, or as it lies there already."""
    from mindtuner.processes import processes
    from mindtuner.training import load_network, pretrain, remove_checkpoint, save_network

    if not (run / BASE).exists():
        base = pretrain(dataset, targets, config, config.seed, log, prior=prior, checkpoint=run / _CHECKPOINT)
        if processes().index == 0:
            save_network(run / BASE, base, card)
    processes().wait()
    if processes().index == 0:
        remove_checkpoint(run / _CHECKPOINT)
    return load_network(run / BASE)
