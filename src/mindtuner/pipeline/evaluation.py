"""From a tuned subject to scores: decode the test images, paint them, score both beside chance and controls."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mindtuner import runtime
from mindtuner.claims import finish, releasing
from mindtuner.config import Config, changed
from mindtuner.data import Dataset, Stimuli, Subject
from mindtuner.data.identity import FIELD, Inputs, inputs_of, short_hash
from mindtuner.data.splits import refuse_other_split
from mindtuner.decoding.words import TextBank
from mindtuner.errors import UserError
from mindtuner.evaluation.results import build_results, per_image_scores, rounded
from mindtuner.evaluation.scores.categories import category_block
from mindtuner.evaluation.scores.features import KeptFeatures
from mindtuner.evaluation.scoring import MethodScores
from mindtuner.files import file_digest, write_text
from mindtuner.generators.compact import CompactGenerator
from mindtuner.generators.painter import Painter
from mindtuner.model import BrainNetwork
from mindtuner.pipeline.base import held_out
from mindtuner.pipeline.captions_and_brain import caption_scorer, score_brain, score_captions
from mindtuner.pipeline.decoded_table import decoded_table
from mindtuner.pipeline.features import Features, TextEncoder, refuse_pictures_trained_on
from mindtuner.pipeline.generators import AT_HOME, painter_fidelity
from mindtuner.pipeline.known import refuse_other_trials, to_leave_out, without_tests
from mindtuner.pipeline.objects import Shown
from mindtuner.pipeline.results import Results
from mindtuner.pipeline.run_folder import SETTINGS, claim, command_in, log_entries, refuse_overlap, settings_text
from mindtuner.pipeline.setting import (
    captions_note,
    describe_setting,
    generator_note,
    hold_out_note,
    labels_note,
    left_out_note,
    scores_apart,
)
from mindtuner.pipeline.stages import (
    Scoring,
    TestSet,
    categorised,
    decode_all,
    paint_all,
    pictures_of,
    read_all,
    said_by,
    score_all,
    score_words,
    words_of,
)
from mindtuner.pipeline.stopwatch import Stopwatch
from mindtuner.pipeline.subject import TunedSubject
from mindtuner.pipeline.tuned_files import base_field
from mindtuner.pipeline.tuning import alone
from mindtuner.pipeline.words import phrase_reader

PARTS = "painted"  # folder of the pictures of a run that goes on
NO_PIXELS = np.empty((0, 3, 0, 0), np.uint8)  # of stimuli without pictures


@releasing()
def evaluate(
    subject: TunedSubject,
    dataset: Dataset,
    features: Features | None = None,
    *,
    pictures: int | None = None,
    scoring: Scoring | None = None,
    generator: Painter | None = None,
    text_encoder: TextEncoder | None = None,
    leave_out_known: bool = False,
    out: str | Path | None = None,
    force: bool = False,
    command: str | None = None,
    watch: Stopwatch | None = None,
) -> Results:
    """Decode, paint and score the test images of a tuned subject, with every method that was tuned and two controls.

    Parameters
    ----------
    subject : TunedSubject
        From ``tune``, or read by ``TunedSubject.load``.
    dataset : Dataset
        Which holds the subject, with its test trials.
    features : Features, optional
        Of the dataset's stimuli; by default those that the subject was tuned with.
    pictures : int, optional
        Test images to paint, evenly spaced, 0 for none; by default the config's ``decode.pictures``. Painting takes most of
        the time.
    scoring : Scoring, optional
        By which networks pictures are scored, by default the package's own alone.
    generator, text_encoder : optional
        At full size, where they have to be given.
    leave_out_known : bool
        Score on a split that is not that of tuning, without the test images that the base or the subject was trained on; else
        such images are refused, and so are other training trials than those of tuning.
    out : path, optional
        Run folder to write: results, pictures, words, scores of single images, and ``report.html``. Where the run is stopped,
        the same call goes on.
    force : bool
        Replace an earlier run in ``out``.
    command : str, optional
        How the run was called, for the report.
    watch : Stopwatch, optional
        Measures the stages.

    Returns
    -------
    Results
        Retrieval in three directions, picture scores, captions and brain correlation, each beside chance, with 95 % intervals
        over images; ``nearest_training_image`` and ``prior_only`` stand beside the methods.

    Raises
    ------
    UserError
        Where the subject has no test trial, or subject, dataset, features and generator do not fit together; where its
        training trials in the dataset are not those that it was tuned on, or it was trained on test images.

    Examples
    --------
    >>> results = mindtuner.evaluate(subject, dataset, features, pictures=4)
    >>> list(results.methods)  # what was tuned, and controls
    ['mindtuner', 'ridge_only', 'ridge', 'nearest_training_image', 'prior_only', 'shuffled_brain']
    """
    features = features or subject.features
    if features is None:
        raise UserError("features: are missing; expected those of the dataset's stimuli, from mindtuner.embed")
    config, base = painting(subject.config, pictures, dataset.stimuli), subject.base
    dataset, left_out = checked(subject, dataset, features, config, leave_out_known)
    if features.full_size and generator is None and config.decode.pictures:
        raise UserError("generator: is missing; expected the one of full size, as the features are of full size")
    packaged = features.weights is None and (generator is None or isinstance(generator, CompactGenerator))
    generator = generator or CompactGenerator(config.decode, config.seed, features.weights)
    if isinstance(generator, CompactGenerator):
        refuse_pictures_trained_on(generator.path, dataset.stimuli)
    command = command or "mindtuner.evaluate"
    log = [*log_entries(*(path.parent for path in _files(subject))), *base.log, *subject.log]
    parts = None
    own = alone(dataset.subject(subject.number), features)
    inputs = inputs_of(own, features.folder, features.pictures, test=True) | weights_of(subject, generator)
    if out is not None:
        out = Path(out)
        refuse_overlap(out, dataset=dataset.root, features=features.folder, **_named_files(subject))
        claim(out, settings_text(config, command), force, inputs)
        write_text(out / "log.jsonl", "".join(json.dumps(entry) + "\n" for entry in log))
        parts = out / PARTS
    before = [command_in(path.parent / SETTINGS) for path in _files(subject)]
    results = scored(
        subject,
        dataset,
        features,
        config,
        scoring=scoring,
        generator=generator,
        packaged=packaged,
        text_encoder=text_encoder or features.text_encoder,
        inputs=inputs,
        left_out=left_out,
        command=" && ".join(filter(None, [*before, command])),
        log=log,
        parts=parts,
        watch=watch,
    ).results
    if out is not None and parts is not None:
        results = results.save(out)
        shutil.rmtree(parts, ignore_errors=True)
        finish(out)
    return results


def checked(
    subject: TunedSubject, dataset: Dataset, features: Features, config: Config, leave_out_known: bool = False
) -> tuple[Dataset, int]:
    """The dataset, without the category that ``subject`` never saw, once all fit together: before a folder is claimed.

    Also how many test images it is without, that training saw, where that is asked for. Raises UserError where they do not
    fit, or there is no test trial.
    """
    base = subject.base
    features.check_model(base.network.config, base.where)
    features.check_same(base.card, base.where)
    dataset = held_out(dataset, config.hold_out_category)
    features.check_stimuli(dataset.stimuli)
    refuse_other_split(subject.card, dataset.card, f"subject {subject.number}")
    if config.decode.pictures:
        features.refuse_without_pictures("painting")
    hour, whole = subject.hour(dataset), dataset.subject(subject.number)
    known = to_leave_out(subject, dataset.stimuli, np.unique(hour.test.stimulus), features.pictures, leave_out_known)
    if not leave_out_known:  # who asks for that knows that the split is another one
        refuse_other_trials(subject, inputs_of(alone(hour, features), features.folder, features.pictures))
    dataset = dataclasses.replace(dataset, subjects={**dataset.subjects, subject.number: without_tests(whole, known)})
    TestSet.of(subject.hour(dataset), dataset.stimuli, features.caches, config.decode.pictures)
    return dataset, len(known)


def scored(
    subject: TunedSubject,
    dataset: Dataset,
    features: Features,
    config: Config,
    *,
    generator: Painter,
    packaged: bool,
    text_encoder: TextEncoder,
    inputs: Inputs,
    command: str,
    left_out: int = 0,
    log: Sequence[dict] = (),
    scoring: Scoring | None = None,
    parts: Path | None = None,
    watch: Stopwatch | None = None,
) -> Measured:
    """``measure`` of the test images that a ``checked`` dataset has of a tuned subject.

    ``packaged``: by the package's generator · ``left_out``: how many test images the dataset is without
    """
    note = labels_note(dataset.stimuli) or (generator_note(dataset.card) if packaged else "")
    return measure(
        dataset=dataset,
        hour=subject.hour(dataset),
        base=subject.base.network,
        tuned=subject.networks,
        features=features,
        config=config,
        generator=generator,
        text_encoder=text_encoder,
        note=" ".join(filter(None, [note, left_out_note(left_out)])),
        facts={FIELD: dict(inputs.hashes), "left_out_known": left_out},
        command=command,
        log=list(log),
        scoring=scoring,
        parts=parts,
        watch=watch,
    )


def painting(config: Config, pictures: int | None, stimuli: Stimuli | None = None) -> Config:
    """``config``, to paint that many test images where a number is given, and none of labels without pictures.

    Raises UserError where the number is below 0.
    """
    if pictures is None and (stimuli is None or stimuli.pictured):
        return config
    pictures = pictures or 0
    if pictures < 0:
        raise UserError(f"pictures is {pictures}; expected 0 or more")
    return changed(config, decode=changed(config.decode, pictures=pictures))


def weights_of(subject: TunedSubject, generator: Painter | None) -> Inputs:
    """The weights that decode and paint, as inputs of a run."""
    hashes = {"base": base_field(subject.base)} | {f"weights of {m}": file_digest(path) for m, path in subject.files.items()}
    files = {"base": str(subject.base.where)} | {f"weights of {m}": str(path) for m, path in subject.files.items()}
    if generator is not None:
        hashes["generator"] = short_hash([json.dumps(generator.identity, sort_keys=True).encode()])
        files["generator"] = "generator"
    return Inputs(hashes, files)


def _files(subject: TunedSubject) -> list[Path]:
    """Where its base and its first method lie, as far as they have a file."""
    return [path for path in (subject.base.path, next(iter(subject.files.values()), None)) if path is not None]


def _named_files(subject: TunedSubject) -> dict[str, Path]:
    """Those of its methods and of its base, as far as they have one."""
    return {**subject.files, **({} if subject.base.path is None else {"base": subject.base.path})}


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was measured of one set of test images: the results, and what they were told by.

    scores : of each method · said : by method and way, of each test image · decoded : by method the category decoded of each,
    {} where captions are no categories · captions : of each test image
    """

    results: Results
    scores: Mapping[str, MethodScores]
    said: Mapping[str, Mapping[str, list[list[str]]]]
    decoded: Mapping[str, list[str]]
    captions: Sequence[Sequence[str]]


def measure(
    *,
    dataset: Dataset,
    hour: Subject,
    base: BrainNetwork,
    tuned: Mapping[str, BrainNetwork],
    features: Features,
    config: Config,
    generator: Painter,
    text_encoder: TextEncoder,
    note: str,
    facts: Mapping[str, object],
    command: str,
    log: list[dict],
    scoring: Scoring | None = None,
    parts: Path | None = None,
    watch: Stopwatch | None = None,
) -> Measured:
    """Decode, paint and score the test images of ``hour``, the subject as it was tuned on.

    tuned : by method; the first says what the nearest training images are
    note : what a reader must know of the generator and the test images, "" for nothing
    facts : what else the setting says
    log : of training, for the report
    parts : a folder in which pictures are kept while others are painted, and from which a run that was stopped takes them
    scoring : by which networks and choices, by default by the package's own network

    Raises UserError where the subject has no test trial, or networks, voxels and images do not fit together.
    """
    scoring, watch = scoring or Scoring(), watch or Stopwatch()
    with watch.stage("decode"):
        test = TestSet.of(hour, dataset.stimuli, features.caches, config.decode.pictures)
        decoded = decode_all(tuned, base, test, config)
    with watch.stage("paint"):
        bank = TextBank.of(dataset.stimuli, dataset.stimuli.training_images, text_encoder)
        reader = phrase_reader(dataset.stimuli, features.caches, dataset.stimuli.training_images, text_encoder)
        words = read_all(decoded, bank, reader)
        painted = paint_all(decoded, generator, words, test, parts)
    with watch.stage("score"):
        kept, shown, pixels = KeptFeatures(), test.images[test.shown], test.caches.get("pixels", NO_PIXELS)
        nearest = decoded["nearest_training_image"].found
        assert nearest is not None
        # The probe is not to know the very pictures that a control shows.
        objects = Shown.of(dataset.stimuli, shown, pixels, nearest[test.shown], scoring)
        scores = score_all(decoded, painted, test, config.seed, scoring, kept, objects.recognition)
        said, named = said_by(words), categorised(decoded, test, dataset.stimuli)
    setting = describe_setting(config, dataset, hour, base, test, bank, command) | dict(facts)
    setting["scores"] = scoring.described()
    setting["scores"]["not_scored"] |= objects.missing
    fidelity = painter_fidelity(generator, dataset.stimuli, features.caches["tokens"]) if len(shown) else None
    setting["painter_fidelity"] = rounded(fidelity)
    setting["off_domain"] = fidelity is not None and fidelity < AT_HOME
    setting["stimuli_note"] = " ".join(
        filter(None, [note, captions_note(bank, test), hold_out_note(config.hold_out_category)])
    )
    with watch.stage("words and brain"):
        # How long it took, and how much memory, is known at the end.
        results = build_results(setting, scores, {}, 0, config.seed, shown)
        per_image = per_image_scores(scores, test.images, test.shown, test.texts)
        references = [test.captions[k] for k in test.shown] if len(shown) else test.captions
        scorer = caption_scorer(scoring.folder, text_encoder)
        score_captions(results, per_image, painted, references, scorer, config.seed, objects.vocabulary)
        if objects.recognition:
            results["objects"] = objects.reference_block(kept[None], config.seed, kept.seen_by_clip)
        score_words(results, said, test.captions, config.seed)
        if named:
            results["categories"] = categories_block(named, test.captions, [len(test.images)], config.seed)
        whole = dataset.subject(hour.number)
        score_brain(results, per_image, kept, whole, shown, pixels, config.seed, scoring.choices)
        if config.hold_out_category:
            results["held_out"] = scores_apart(per_image, dataset.stimuli, config.seed)
    first = next(iter(tuned))
    one, network = decoded[first], tuned[first]
    trials = {"trials": np.bincount(np.searchsorted(test.images, test.trials.stimulus))}
    table = decoded_table(
        one.predictions, test.images, words[first], dataset.stimuli, test.caches["tokens"], test.images, network, trials
    )
    if named:
        table["category"] = named[first]
    results |= rounded({"timing_s": watch.total(), "peak_memory_mb": runtime.peak_memory_mb()})
    found = Results.of(
        results, pictures_of(painted, test), words_of(decoded, painted, words, test), per_image, config, log, table
    )
    return Measured(found, scores, said, named, test.captions)


def categories_block(
    named: Mapping[str, Sequence[str]], captions: Sequence[Sequence[str]], tested: Sequence[int], seed: int
) -> dict:
    """The block ``categories`` of results.json: by method ``category_block``.

    tested : how many of the images, in their order, each fit decoded
    """
    seen, fold = [group[0] for group in captions], np.repeat(np.arange(len(tested)), tested)
    return rounded({method: category_block(seen, said, fold, seed) for method, said in named.items()})
