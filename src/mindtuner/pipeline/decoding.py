"""A subject's trials decoded into a folder: tokens, words, and pictures, each as it comes to be."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from mindtuner.claims import releasing
from mindtuner.config import as_dict
from mindtuner.data import Dataset, Stimuli, Trials
from mindtuner.data.identity import inputs_of
from mindtuner.data.splits import refuse_other_split
from mindtuner.decoding.decoder import Predictions
from mindtuner.decoding.words import TextBank, Words
from mindtuner.errors import UserError
from mindtuner.evaluation.results import rounded
from mindtuner.files import atomic_path, write_arrays, write_json, write_text
from mindtuner.generators.compact import CompactGenerator
from mindtuner.generators.full_size import batch_for
from mindtuner.generators.painter import Painter
from mindtuner.pipeline.base import held_out
from mindtuner.pipeline.decoded_table import DECODED, DECODED_TRIALS, decoded_table, write_table
from mindtuner.pipeline.decoder import SubjectDecoder
from mindtuner.pipeline.evaluation import weights_of
from mindtuner.pipeline.features import Features, TextEncoder, refuse_pictures_trained_on
from mindtuner.pipeline.known import to_leave_out, without_tests
from mindtuner.pipeline.run_folder import claim, refuse_overlap
from mindtuner.pipeline.stages import evenly
from mindtuner.pipeline.stopwatch import Stopwatch
from mindtuner.pipeline.subject import TunedSubject
from mindtuner.report.contact_sheet import to_image
from mindtuner.runtime import device, progress

TRIALS = ("test", "train", "all")
TRIALS_TOGETHER = 256  # single trials decoded at a time
PREDICTIONS, WORDS, PICTURES = "predictions.safetensors", "words.json", "pictures"


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Which trials are decoded, and which of their images are painted.

    trials : n of them
    images : ids of the m images that they show, ascending
    shown : positions in ``images``
    """

    trials: Trials
    images: np.ndarray
    shown: np.ndarray


def choose(
    subject: TunedSubject,
    dataset: Dataset,
    trials: str = "test",
    pictures: int = 0,
    only: Sequence[int | str] | None = None,
    leave_out_known: bool = False,
) -> Chosen:
    """Choose trials, and images to paint.

    Parameters
    ----------
    subject : TunedSubject
    dataset : Dataset
    trials : str
        ``test``, ``train`` or ``all``.
    pictures : int
        Images to paint, evenly spaced.
    only : sequence of int or str, optional
        Ids or file names of stimuli to paint instead.
    leave_out_known : bool
        Of ``test`` trials, choose those alone whose images neither the base nor the subject was trained on; else such images
        are refused.

    Raises
    ------
    UserError
        Where there is no such trial, test trials show images that were trained on, or an image is not among those that the
        trials show.
    """
    if pictures < 0:
        raise UserError(f"pictures is {pictures}; expected 0 or more")
    whole = dataset.subject(subject.number)
    found = {"test": whole.test, "train": whole.train, "all": whole.trials}[trials]
    if len(found) == 0:
        raise UserError(f"{whole.where}: subject {subject.number} has no {trials} trial; expected at least one")
    if (pictures or only) and not dataset.stimuli.pictured:
        raise UserError(f"pictures: are asked for, and {dataset.root} has labels alone; expected none")
    if trials == "test":
        for card in subject.cards.values():  # says more than what follows
            refuse_other_split(card, dataset.card, f"subject {subject.number}")
        known = to_leave_out(subject, dataset.stimuli, np.unique(found.stimulus), None, leave_out_known)
        found = without_tests(whole, known).test
    images = np.unique(found.stimulus)
    if only is None:
        return Chosen(found, images, evenly(len(images), pictures))
    names = {name: k for k, name in enumerate(dataset.stimuli.names)}
    wanted = {names.get(image, -1) if isinstance(image, str) else image: image for image in only}
    for image, said in wanted.items():
        if image not in images:
            first, last = (dataset.stimuli.names[k] if isinstance(said, str) else k for k in (images[0], images[-1]))
            raise UserError(
                f"only: image {said} is not among the {len(images)} that the {trials} trials show; expected "
                f"some of {first} ... {last}"
            )
    return Chosen(found, images, np.searchsorted(images, sorted(wanted)))


@releasing()
def decode(
    subject: TunedSubject,
    dataset: Dataset,
    chosen: Chosen,
    out: str | Path,
    *,
    trials: str = "test",
    stages: bool = False,
    features: Features | None = None,
    generator: Painter | None = None,
    text_encoder: TextEncoder | None = None,
    batch: int | None = None,
    force: bool = False,
    command: str | None = None,
    watch: Stopwatch | None = None,
) -> int:
    """Decode a subject's trials into a folder.

    Trials that show the same image are averaged. Writes ``predictions.safetensors`` (images, backbone_tokens,
    retrieval_tokens, latents, text; a row an image), ``words.json`` (the caption of a training image that is nearest to
    each, and, where features are given, the phrases composed, with their probabilities), ``decoded.csv``
    (``decoded_table``: a row an image), ``decoded_trials.csv`` (a row a trial, by itself) and ``pictures/NAME.png``, called
    as the stimulus is. The same call goes on where an earlier one was stopped.

    Parameters
    ----------
    subject : TunedSubject
    dataset : Dataset
        Which holds the subject.
    chosen : Chosen
        From ``choose``.
    out : path
    trials : str
        What was chosen, for ``words.json``.
    stages : bool
        Keep each stage of the pictures, in ``pictures/STAGE/NAME.png``.
    features : Features, optional
        Where decoding draws on training images.
    generator, text_encoder : optional
        At full size, where they have to be given.
    batch : int, optional
        Images painted together, by default by the free memory of a GPU, 1 on a CPU.
    force, command, watch
        As in ``evaluate``.

    Returns
    -------
    int
        How many pictures were painted now.

    Raises
    ------
    UserError
        Where subject, dataset, features and generator do not fit together, or ``out`` holds another run.
    """
    out, watch = Path(out), watch or Stopwatch()
    refuse_other_split(subject.card, dataset.card, f"subject {subject.number}")
    config, seed = subject.config.decode, subject.config.seed
    if len(chosen.shown) and generator is None:
        generator = CompactGenerator(config, seed, None if features is None else features.weights)
    if isinstance(generator, CompactGenerator):
        refuse_pictures_trained_on(generator.path, dataset.stimuli)
    if features is not None:
        features.check_stimuli(dataset.stimuli)
        features.check_model(subject.base.network.config, subject.base.where)
        features.check_same(subject.base.card, subject.base.where)
    if text_encoder is None:
        if features is None:
            raise UserError("text_encoder: is missing, as features are; expected one of them, for words")
        text_encoder = features.text_encoder
    pictures, cache = (None, dataset.root / "cache") if features is None else (features.pictures, features.folder)
    own = dataclasses.replace(dataset, subjects={subject.number: dataset.subject(subject.number)})
    inputs = inputs_of(own, cache, pictures, test=True) | weights_of(subject, generator)
    refuse_overlap(out, dataset=dataset.root, **subject.files)
    claim(out, settings_of(subject, command or "mindtuner.decode", stages), force, inputs=inputs)
    # What is looked up never shows a category held out; the subject's own trials of it are decoded like any.
    dataset = held_out(dataset, subject.config.hold_out_category)
    with watch.stage("words"):  # before the network takes its room on a GPU
        bank = TextBank.of(dataset.stimuli, dataset.stimuli.training_images, text_encoder)
        text_encoder.network.cpu()
    with watch.stage("decode"):
        decoder = subject.decoder(features=features, text_encoder=text_encoder, generator=generator, bank=bank)
        voxels = dataset.subject(subject.number).betas(chosen.trials.row)
        found = decoder.predict(voxels, chosen.trials.stimulus)
        nearest = bank.nearest(found.text) if bank.captions else None
        words = decoder.words(found)
        tokens = None if features is None else features.caches["tokens"]
        _write_tables(out, found, words, voxels, chosen, dataset, decoder, tokens, subject)
        text_encoder.network.cpu()  # it came back to embed phrases
    _save(out / PREDICTIONS, found)
    entries = [
        {
            "image": int(image),
            "name": dataset.stimuli.names[image],
            "seen": list(dataset.stimuli.captions[image]),
            "retrieved": None if nearest is None else bank.captions[nearest[k]],
            **({} if words.said is None else {"phrases": rounded(words.said[k])}),
        }
        for k, image in enumerate(found.images)
    ]
    write_json(out / WORDS, {"subject": subject.number, "trials": trials, "images": entries})
    if len(chosen.shown) == 0:
        return 0
    with watch.stage("paint"):
        names = picture_names(dataset.stimuli)
        return paint_missing(out / PICTURES, names, found, chosen.shown, decoder, batch or batch_for(device()), stages)


def _write_tables(
    out: Path,
    found: Predictions,
    words: Words,
    voxels: np.ndarray,
    chosen: Chosen,
    dataset: Dataset,
    decoder: SubjectDecoder,
    tokens: np.ndarray | None,
    subject: TunedSubject,
) -> None:
    """``decoded.csv`` of the images, and ``decoded_trials.csv`` of single trials in their order."""
    trials, images, network = chosen.trials, chosen.images, next(iter(subject.networks.values()))
    stimuli, count = dataset.stimuli, np.bincount(np.searchsorted(images, trials.stimulus))
    write_table(out / DECODED, decoded_table(found, images, words, stimuli, tokens, images, network, {"trials": count}))
    parts = []
    for some in np.array_split(np.arange(len(trials)), 1 + len(trials) // TRIALS_TOGETHER):
        own, single = trials.select(some), decoder.predict(voxels[some])
        facts = {"row": own.row, "session": own.session, "repeat": own.repeat}
        parts.append(decoded_table(single, own.stimulus, decoder.words(single), stimuli, tokens, images, network, facts))
    write_table(out / DECODED_TRIALS, pd.concat(parts, ignore_index=True))


def settings_of(subject: TunedSubject, command: str, stages: bool) -> str:
    """What has to be the same for a run to go on. Which images are painted has not: each is what it is by itself."""
    facts, config = {"stages": stages}, as_dict(subject.config)
    return f"# {command}\n# {json.dumps(facts)}\n{json.dumps(config, indent=2)}\n"  # JSON is YAML


def picture_names(stimuli: Stimuli) -> list[str]:
    """The name of each stimulus' painted picture: its own, as PNG; after its number where two would have the same."""
    if not stimuli.named:
        return [f"{image:06d}.png" for image in range(len(stimuli))]
    names = [PurePosixPath(name).with_suffix(".png").as_posix() for name in stimuli.names]
    if len(set(names)) == len(names):
        return names
    return [f"{image:06d}-{PurePosixPath(name).name}" for image, name in enumerate(names)]


def paint_missing(
    folder: Path,
    names: Sequence[str],
    found: Predictions,
    shown: np.ndarray,
    decoder: SubjectDecoder,
    batch: int,
    keep_stages: bool,
) -> int:
    """Paint the images at the positions ``shown`` of ``found`` that ``folder`` lacks, and return how many that were.

    ``names``: of all stimuli's pictures. Each is written when it is there, its stages before it. Batches are cut as if all
    were missing, so that a run that goes on paints them in the same company.
    """
    groups = [shown[start : start + batch] for start in range(0, len(shown), batch)]
    missing = [group for group in groups if not all((folder / names[image]).exists() for image in found.images[group])]
    sampled = [decoder.expected_tokens(found, group) for group in missing]
    decoder.release()
    painted = 0
    for group, expected in zip(progress(missing, "pictures", len(missing), "batch", lines=True), sampled, strict=True):
        tokens = np.concatenate([decoder.draw(row[None]) for row in expected])
        made = decoder.paint(found, group, tokens)
        for k, image in enumerate(found.images[group]):
            if (folder / names[image]).exists():
                continue
            for stage, pictures in made.stages.items() if keep_stages else ():
                write_picture(folder / stage / names[image], pictures[k])
            if made.written:
                write_text((folder / names[image]).with_suffix(".txt"), made.written[k] + "\n")
            write_picture(folder / names[image], made.pictures[k])
            painted += 1
    return painted


def _save(path: Path, found: Predictions) -> None:
    arrays = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    write_arrays(path, {name: array for name, array in arrays.items() if array is not None})


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write a picture uint8 (3, H, W) as a PNG file."""
    with atomic_path(path) as part:
        to_image(picture).save(part, "PNG")
