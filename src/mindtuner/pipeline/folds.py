"""Cross-validation of one subject: a fit for each fold, and scores in which each image is a test image once."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mindtuner import runtime
from mindtuner.claims import finish, releasing
from mindtuner.config import Config
from mindtuner.data import Dataset
from mindtuner.data.folds import folds_of
from mindtuner.data.identity import Inputs, inputs_of
from mindtuner.data.splits import FOLD
from mindtuner.errors import UserError
from mindtuner.evaluation.pooled import pool
from mindtuner.evaluation.results import rounded
from mindtuner.files import read_json, write_json, write_text
from mindtuner.generators.compact import CompactGenerator
from mindtuner.generators.painter import Painter
from mindtuner.pipeline.base import settled
from mindtuner.pipeline.evaluation import PARTS, Measured, categories_block, checked, painting, scored, weights_of
from mindtuner.pipeline.features import Features, TextEncoder, refuse_pictures_trained_on
from mindtuner.pipeline.fitting import fit
from mindtuner.pipeline.results import Results
from mindtuner.pipeline.run_folder import SETTINGS, claim, command_in, log_entries, refuse_overlap, settings_text
from mindtuner.pipeline.stages import Scoring, score_words
from mindtuner.pipeline.stopwatch import Stopwatch
from mindtuner.pipeline.subject import TunedSubject
from mindtuner.pipeline.tuned_files import FOLDS
from mindtuner.pipeline.tuning import alone
from mindtuner.processes import processes

_FEWEST = 2  # pictures of a fold, where any are painted


@dataclasses.dataclass(frozen=True, eq=False)
class FittedFolds:
    """One subject fitted once for each fold; made by ``fit_folds``, or read by ``load``.

    Attributes
    ----------
    number : int
        Of the subject.
    by : int, "run" or "session"
        How many folds of images, or what was left out.
    config : Config
    fits : list of TunedSubject
        In the order of the folds.
    tested : list of list of int
        Ids of the stimuli that each fold tests.
    stimuli : str
        Hash of the dataset's stimuli.
    folder : Path or None
        Where they lie.
    """

    number: int
    by: int | str
    config: Config
    fits: list[TunedSubject]
    tested: list[list[int]]
    stimuli: str
    folder: Path | None = None

    def __repr__(self) -> str:
        left = f"{self.by}s left out" if isinstance(self.by, str) else "folds of images"
        return f"Subject {self.number}, fitted for {len(self.fits)} {left}: {', '.join(self.fits[0].networks)}"

    @classmethod
    def load(cls, folder: str | Path, dataset: Dataset) -> FittedFolds:
        """Read what ``fit_folds`` wrote.

        Raises
        ------
        UserError
            Where a file is missing or damaged, or does not fit the dataset.
        """
        folder = Path(folder)
        found = _read(folder)
        dataset.subject(found["subject"])
        config = settled(folder / SETTINGS)
        fits = [TunedSubject.load(path, dataset) for path in _folders(folder, len(found["tested"]))]
        return cls(found["subject"], found["by"], config, fits, found["tested"], found["stimuli"], folder)

    def refuse_others(self, parts: Sequence[Dataset]) -> None:
        """Raise UserError where the folds of a dataset are not those that were fitted: a test image may be known then."""
        same = all(part.stimuli.hash == self.stimuli for part in parts)
        if not same or [_tested(part) for part in parts] != self.tested:
            raise UserError(
                f"{self.folder or 'folds'}: test other images than the {len(parts)} folds of {parts[0].root} do; expected "
                "the data that they were fitted to (fit again)"
            )


def is_folds(folder: str | Path) -> bool:
    """Whether a folder is one of ``fit_folds``."""
    return (Path(folder) / FOLDS).is_file()


def subject_of(folder: str | Path) -> int:
    """Whose folds lie in a folder."""
    return _read(Path(folder))["subject"]


def _read(folder: Path) -> dict:
    found = read_json(folder / FOLDS)
    for field, kinds, wanted in (
        ("subject", int, "a number"),
        ("by", int | str, "a number, run or session"),
        ("tested", list, "a list of stimulus ids for each fold"),
        ("stimuli", str, "a hash"),
    ):
        if not isinstance(found.get(field), kinds):
            raise UserError(f"{folder / FOLDS}: {field} is {found.get(field)!r}; expected {wanted}")
    return found


def _tested(fold: Dataset) -> list[int]:
    return np.flatnonzero(fold.stimuli.is_shared).tolist()


def _folders(folder: Path, count: int) -> list[Path]:
    width = len(str(count))
    return [folder / f"fold-{k + 1:0{width}d}" for k in range(count)]


@releasing()
def fit_folds(
    dataset: Dataset,
    number: int,
    features: Features,
    by: int | str = 5,
    config: str | Path | Mapping | Config = "demo",
    *,
    methods: Sequence[str] | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    force: bool = False,
    command: str | None = None,
    watch: Stopwatch | None = None,
) -> FittedFolds:
    """Fit one subject's own models once for each fold, so that every image it saw can be tested by a fit without it.

    What the dataset itself says of training and test does not count. In each fold test images are in no training, no
    z-score, no word to choose from, and nothing that is looked up (``data.folds.folds_of``).

    Parameters
    ----------
    dataset : Dataset
    number : int
        Of the subject.
    features : Features
        Of the dataset's stimuli, from ``embed``.
    by : int, "run" or "session"
        So many folds of images at random; or each run or session is left out in turn.
    config, methods, seed, force, command, watch : optional
        As in ``fit``.
    out : path, optional
        Folder to write: ``fold-1``, ``fold-2``, ..., each as ``fit`` writes it, ``folds.json``, and ``config.yaml``.

    Returns
    -------
    FittedFolds
        For ``evaluate_folds``.

    Raises
    ------
    UserError
        As ``fit`` and ``folds_of``.

    Examples
    --------
    >>> folds = mindtuner.fit_folds(dataset, 1, features, 3, base.config, methods=["ridge"])
    >>> folds
    Subject 1, fitted for 3 folds of images: ridge
    """
    watch = watch or Stopwatch()
    features.check_stimuli(dataset.stimuli)
    config = settled(config, seed=seed)
    folds = folds_of(dataset, number, by, config.seed)
    tested = [_tested(fold) for fold in folds]
    said = command or f"mindtuner.fit_folds(subject {number}, by {by!r})"
    places: list[Path | None] = [None] * len(folds)
    if out is not None:
        out = Path(out)
        refuse_overlap(out, dataset=dataset.root, features=features.folder)
        claim(out, settings_text(config, said), force)
        places = list(_folders(out, len(folds)))
    fits = []
    for fold, place in zip(folds, places, strict=True):
        own = dataclasses.replace(features, stimuli=fold.stimuli, card=fold.card)
        with watch.stage(f"fold {fold.card[FOLD]}"):
            fits.append(
                fit(
                    fold.subject(number),
                    own,
                    config,
                    methods=methods,
                    out=place,
                    force=force,
                    command=f"{said} # {fold.card[FOLD]}",
                )
            )
    if out is not None and processes().index == 0:
        write_json(out / FOLDS, {"subject": number, "by": by, "stimuli": dataset.stimuli.hash, "tested": tested})
    return FittedFolds(number, by, config, fits, tested, dataset.stimuli.hash, out)


@releasing()
def evaluate_folds(
    folds: FittedFolds,
    dataset: Dataset,
    features: Features,
    *,
    pictures: int | None = None,
    scoring: Scoring | None = None,
    generator: Painter | None = None,
    text_encoder: TextEncoder | None = None,
    out: str | Path | None = None,
    force: bool = False,
    command: str | None = None,
    watch: Stopwatch | None = None,
) -> Results:
    """Score every image that a subject saw, each by the fit of the fold that tests it, and all of them together.

    Candidates of retrieval are the test images of the same fold. Intervals resample folds and images in them; p against
    chance pairs images within folds.

    Parameters
    ----------
    folds : FittedFolds
    dataset : Dataset
        That they were fitted to.
    features : Features
        Of its stimuli.
    pictures, scoring, generator, text_encoder, out, force, command, watch : optional
        As in ``evaluate``. Pictures to paint are shared out over the folds, two in each at least.

    Returns
    -------
    Results
        With the fields of any other. ``setting`` says of ``folds`` what each tested.

    Raises
    ------
    UserError
        Where the folds are of another dataset, and as ``evaluate``.

    Examples
    --------
    >>> folds = mindtuner.fit_folds(dataset, 1, features, 3, base.config, methods=["ridge"])
    >>> results = mindtuner.evaluate_folds(folds, dataset, features, pictures=0)
    >>> len(results.decoded) == len(set(dataset.subject(1).trials.stimulus))
    True
    """
    watch = watch or Stopwatch()
    features.check_stimuli(dataset.stimuli)
    parts = folds_of(dataset, folds.number, folds.by, folds.config.seed)
    folds.refuse_others(parts)
    config = painting(folds.config, pictures, dataset.stimuli)
    each = max(_FEWEST, math.ceil(config.decode.pictures / len(parts))) if config.decode.pictures else 0
    if features.full_size and generator is None and each:
        raise UserError("generator: is missing; expected the one of full size, as the features are of full size")
    packaged = generator is None and features.weights is None
    generator = generator or CompactGenerator(config.decode, config.seed, features.weights)
    if isinstance(generator, CompactGenerator):
        for part in parts:
            refuse_pictures_trained_on(generator.path, part.stimuli)
    before = None if folds.folder is None else command_in(folds.folder / SETTINGS)
    command = " && ".join(filter(None, [before, command or "mindtuner.evaluate_folds"]))
    log = [entry for path in _logs(folds) for entry in log_entries(path)]
    painted = None
    inputs = _inputs(folds, dataset, features, generator)
    if out is not None:
        out = Path(out)
        refuse_overlap(out, dataset=dataset.root, features=features.folder, **_where(folds))
        claim(out, settings_text(config, command), force, inputs)
        write_text(out / "log.jsonl", "".join(json.dumps(entry) + "\n" for entry in log))
        painted = out / PARTS
    found = []
    for k, (part, one) in enumerate(zip(parts, folds.fits, strict=True)):
        own, settings = (
            dataclasses.replace(features, stimuli=part.stimuli, card=part.card),
            painting(one.config, each, part.stimuli),
        )
        found.append(
            scored(
                one,
                checked(one, part, own, settings)[0],
                own,
                settings,
                scoring=scoring,
                generator=generator,
                packaged=packaged,
                text_encoder=text_encoder or features.text_encoder,
                inputs=inputs,
                command=command,
                parts=None if painted is None else painted / f"fold-{k + 1}",
                watch=watch,
            )
        )
    results = _together(found, parts, config, log, watch)
    if out is not None and painted is not None:
        results = results.save(out)
        shutil.rmtree(painted, ignore_errors=True)
        finish(out)
    return results


def _inputs(folds: FittedFolds, dataset: Dataset, features: Features, generator: Painter) -> Inputs:
    """What an evaluation of folds is made of: all of the subject's trials, and the weights of each fold."""
    own = alone(dataset.subject(folds.number), features)
    found = inputs_of(own, features.folder, features.pictures, test=True)
    for k, one in enumerate(folds.fits, 1):
        weights = weights_of(one, generator)
        named = lambda values, k=k: {f"{field} of fold {k}": value for field, value in values.items()}
        found |= Inputs(named(weights.hashes), named(weights.files))
    return found


def _where(folds: FittedFolds) -> dict[str, Path]:
    return {} if folds.folder is None else {"folds": folds.folder}


def _logs(folds: FittedFolds) -> Iterator[Path]:
    for one in folds.fits:
        yield from dict.fromkeys(path.parent for path in one.files.values())


def _together(
    found: Sequence[Measured], parts: Sequence[Dataset], config: Config, log: list[dict], watch: Stopwatch
) -> Results:
    """The folds' results as one."""
    runs = [one.results.run for one in found]
    sizes = [len(run.per_image["images"]) for run in runs]
    setting = dict(runs[0].results["setting"])
    settings = [run.results["setting"] for run in runs]
    setting |= {name: sum(one[name] for one in settings) for name in ("n_test_images", "n_test_trials", "n_pictures")}
    setting["n_training_trials"] = round(float(np.mean([one["n_training_trials"] for one in settings])))
    setting["text_retrieval_at_most"] = round(
        float(np.average([one["text_retrieval_at_most"] for one in settings], weights=sizes)), 6
    )
    setting["folds"] = {
        "left_out": [part.card[FOLD] for part in parts],
        "test_images": sizes,
        "training_trials": [one["n_training_trials"] for one in settings],
    }
    note = (
        f"Cross-validated over {len(parts)} folds: each image was tested once, by a fit that never saw it, among the "
        f"{_range(sizes)} test images of its fold."
    )
    setting["stimuli_note"] = " ".join(filter(None, [note, setting["stimuli_note"]]))
    run = pool(runs, [one.scores for one in found], setting, config.seed)
    captions = [group for one in found for group in one.captions]
    ways = {
        name: {way: [own for one in found for own in one.said[name][way]] for way in said}
        for name, said in found[0].said.items()
    }
    score_words(run.results, ways, captions, config.seed)
    if all(one.decoded for one in found):
        named = {name: [said for one in found for said in one.decoded[name]] for name in found[0].decoded}
        run.results["categories"] = categories_block(named, captions, sizes, config.seed)
    run.results.update(rounded({"timing_s": watch.total(), "peak_memory_mb": runtime.peak_memory_mb()}))
    tables = [
        one.results.decoded.assign(fold=part.card[FOLD])
        for one, part in zip(found, parts, strict=True)
        if one.results.decoded is not None
    ]
    return Results.of(run.results, run.pictures, run.words, run.per_image, config, log, pd.concat(tables, ignore_index=True))


def _range(sizes: Sequence[int]) -> str:
    return f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
