"""The stages of an evaluation: the test images of a subject decoded by every method, painted, and scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file

from mindtuner import runtime
from mindtuner.config import Config
from mindtuner.data import Stimuli, Subject, Trials
from mindtuner.data.folds import categories
from mindtuner.decoding.decoder import Decoder, Predictions
from mindtuner.decoding.reading import PhraseReader
from mindtuner.decoding.training_images import (
    TrainingTokens,
    draw_to_neighbours,
    mean_token,
    nearest_training_image,
    similarity,
)
from mindtuner.decoding.words import TextBank, Words
from mindtuner.errors import UserError
from mindtuner.evaluation.results import rounded
from mindtuner.evaluation.said import said_scores
from mindtuner.evaluation.scores.features import LITE2, KeptFeatures
from mindtuner.evaluation.scores.networks import find_networks
from mindtuner.evaluation.scores.objects import Recognition
from mindtuner.evaluation.scores.preparation import OURS, PUBLISHED
from mindtuner.evaluation.scores.retrieval import POOL, Retrieval, top5_ids
from mindtuner.evaluation.scoring import MethodScores, Truth, retrieve, score_methods
from mindtuner.files import read_json, write_arrays, write_json
from mindtuner.generators.painter import Painter
from mindtuner.model import BrainNetwork
from mindtuner.pipeline.painting import Painted, paint
from mindtuner.pipeline.words import read_words
from mindtuner.training import subject_name

THUMBNAIL = 64
TOGETHER = 64  # pictures painted before they are kept
PICTURES, WRITTEN = ".safetensors", ".json"  # of a part


class Scoring:
    """By which networks and choices pictures are scored, and among how many candidates retrieval is, beside all of them.

    Parameters
    ----------
    networks : path, optional
        Folder with weights of the published scores' networks, as ``mindtuner fetch networks`` fills it. A score whose network
        is not there is left out, by name. The package's own network scores in any case.
    as_published : bool
        Prepare pictures as the published evaluation did: resized without antialiasing, PixCorr and SSIM at 425 pixels.
    pool : int
        Candidates of a second retrieval, where there are more test images.

    Raises
    ------
    UserError
        Where there is no such folder, or ``pool`` is below 1.

    Examples
    --------
    >>> mindtuner.Scoring(pool=50).described()["retrieval_pool"]
    50
    """

    def __init__(self, networks: str | Path | None = None, as_published: bool = False, pool: int = POOL):
        if pool < 1:
            raise UserError(f"pool is {pool}; expected 1 or more candidates")
        self.folder = None if networks is None else Path(networks)
        found, self.missing = find_networks(self.folder)
        self.networks = [*found, LITE2]
        self.choices, self.pool = PUBLISHED if as_published else OURS, pool

    def described(self) -> dict:
        """For the setting of a run."""
        return {
            **self.choices.described(),
            "networks": {network.name: network.described() for network in self.networks},
            "not_scored": dict(self.missing),
            "retrieval_pool": self.pool,
        }


@dataclass(frozen=True)
class TestSet:
    """The shared images that the subject saw, and which of them are painted.

    images (n,) stimulus ids, ascending · shown (p,) positions in ``images`` · training (m,) ids of training images · names
    (N,) of all stimuli
    """

    __test__ = False  # not a test, whatever its name says to pytest

    subject: Subject
    trials: Trials
    images: np.ndarray
    shown: np.ndarray
    training: np.ndarray
    captions: list[tuple[str, ...]]
    caches: Mapping[str, np.ndarray]
    names: Sequence[str]

    @classmethod
    def of(cls, subject: Subject, stimuli: Stimuli, caches: Mapping[str, np.ndarray], pictures: int) -> TestSet:
        """Raises UserError where the subject has no test trial."""
        trials = subject.test
        if len(trials) == 0:
            raise UserError(f"{subject.where}: subject {subject.number} has no test trial; expected trials of test images")
        images = np.unique(trials.stimulus)
        if stimuli.category and not stimuli.of_category[images].any():
            raise UserError(
                f"{subject.where}: subject {subject.number} saw 0 test images of {stimuli.category!r}; expected one at least"
            )
        return cls(
            subject,
            trials,
            images,
            evenly(len(images), pictures),
            stimuli.training_images,
            [stimuli.captions[int(k)] for k in images],
            caches,
            stimuli.names,
        )

    @property
    def texts(self) -> np.ndarray:
        """Positions of the test images that have a caption (t,), or of all where none has one."""
        return captioned(self.captions)


def captioned(captions: Sequence[Sequence[str]]) -> np.ndarray:
    """Positions of the images that have a caption, or of all where none has one."""
    found = np.flatnonzero([bool(group) for group in captions])
    return found if len(found) else np.arange(len(captions))


def retrieval(
    images: np.ndarray,
    tokens: np.ndarray,
    text: np.ndarray,
    stimuli: Stimuli,
    caches: Mapping[str, np.ndarray],
    mean_token: np.ndarray | None = None,
) -> dict[str, Retrieval]:
    """Retrieval of decoded images in three directions, among each other.

    Parameters
    ----------
    images : array of int (n,)
        Ids of stimuli.
    tokens, text : array, float32 (n, T, D) and (n, d)
        What was decoded: ``retrieval_tokens`` and ``text`` of ``Predictions``.
    stimuli : Stimuli
        Images without a caption are left out of text retrieval.
    caches : mapping of str to array
        ``Features.caches``, with what the towers say of the images.
    mean_token : array, float32 (T, D), optional
        What is taken off these, of ``Predictions``.
    """
    texts = captioned([stimuli.captions[int(k)] for k in images])
    true = np.asarray(caches["tokens"][images], np.float32)
    true = true if mean_token is None else true - mean_token
    return retrieve(tokens, text[texts], true, np.asarray(caches["text"][images[texts]], np.float32))


def evenly(count: int, n: int) -> np.ndarray:
    """``n`` evenly spaced positions of ``count``, or all of them where there are fewer."""
    return np.unique(np.linspace(0, count - 1, min(n, count)).round().astype(int))


@dataclass(frozen=True)
class Decoded:
    """What a method says of the n test images.

    predictions : of all of them, from the mean over their trials
    image_tokens : (p, T, D) to paint the p images from, None where nothing is painted from tokens
    single_trials : the same from each image's first trial alone, None of a control that reads no brain
    found : (n,) ids of training images, where these stand for the pictures
    network : that decoded, None of a control
    """

    predictions: Predictions
    image_tokens: np.ndarray | None = None
    single_trials: Predictions | None = None
    found: np.ndarray | None = None
    network: BrainNetwork | None = None


def decode_all(tuned: Mapping[str, BrainNetwork], base: BrainNetwork, test: TestSet, config: Config) -> dict[str, Decoded]:
    """By method, what was decoded; and of two controls, ``nearest_training_image`` by the first method and ``prior_only``."""
    name, shown = subject_name(test.subject.number), test.images[test.shown]
    voxels = test.subject.betas(test.trials.row)
    tokens, text = test.caches["tokens"], test.caches["text"]
    training = TrainingTokens(tokens, test.training)
    every: dict[str, Decoded] = {}
    for method, network in runtime.progress(tuned.items(), "decode", len(tuned), "method"):
        decoder = Decoder(network, name, config.decode, config.seed)
        rows = first_trials(test.trials)
        single = decoder.predict(voxels[rows], test.trials.stimulus[rows])
        whole, drawn = decoder.predict(voxels, test.trials.stimulus), None
        if len(shown):
            expected = decoder.image_tokens(whole.backbone_tokens[test.shown], shown)
            drawn = draw_to_neighbours(expected, training, config.decode.neighbours)
        every[method] = Decoded(whole, drawn, single, network=network)
        network.cpu()  # a GPU holds one network of full size
    first = next(iter(tuned))  # mindtuner, where it was tuned
    found = test.training[nearest_training_image(every[first].predictions.backbone_tokens, training)]
    nearest = np.asarray(tokens[found])
    latents = np.asarray(test.caches["latents"][found]) if "latents" in test.caches else None
    less = every[first].predictions.mean_token
    looked_up = Predictions(
        test.images, nearest, every[first].predictions.compared(nearest), latents, np.asarray(text[found]), less
    )
    every["nearest_training_image"] = Decoded(looked_up, found=found)
    mean = mean_token(training, len(test.images))
    projected = Decoder(base, name, config.decode, config.seed).text_of(torch.from_numpy(mean))
    base.cpu()  # generators want the room
    drawn = draw_to_neighbours(mean[test.shown], training, config.decode.neighbours) if len(shown) else None
    no_latents = None if latents is None else np.zeros_like(latents)
    every["prior_only"] = Decoded(Predictions(test.images, mean, mean, no_latents, projected, less), drawn)
    return every


def first_trials(trials: Trials) -> np.ndarray:
    """Position of the first trial of every image, images ascending: (n,)."""
    order = np.lexsort((trials.row, trials.stimulus))
    return order[np.unique(trials.stimulus[order], return_index=True)[1]]


def read_all(decoded: Mapping[str, Decoded], bank: TextBank, reader: PhraseReader | None) -> dict[str, Words]:
    """By method, what is said in words of all n test images."""
    return {method: read_words(one.predictions, one.network, bank, reader) for method, one in decoded.items()}


def paint_all(
    decoded: Mapping[str, Decoded],
    generator: Painter,
    words: Mapping[str, Words],
    test: TestSet,
    parts: Path | None = None,
) -> dict[str, Painted]:
    """By method, the pictures of the p images, of the side of the seen, with the words of ``read_all``.

    Where p is 0 there are no stages, and the captions retrieved are those of all n test images.

    What is made is kept in the folder ``parts``, and taken from there, until the caller removes it.
    """
    images = test.images[test.shown]
    if len(images) == 0:
        return {method: Painted({}, [], words[method].captions if words[method].bank.captions else []) for method in decoded}
    side = test.caches["pixels"][images[:1]].shape[-1]
    painted: dict[str, Painted] = {}
    total = len(images) * sum(one.found is None for one in decoded.values())
    bar = runtime.progress((), "paint", total, "picture", lines=True)
    for method, one in decoded.items():
        own = words[method].rows(test.shown)
        retrieved = own.captions if own.bank.captions else []
        if one.found is not None:
            pictures = {"reconstructed": np.asarray(test.caches["pixels"][one.found[test.shown]])}
            written = generator.captions(one.predictions.backbone_tokens[test.shown]) or []
        else:
            assert one.image_tokens is not None  # where images are shown
            groups = []
            for start in range(0, len(images), TOGETHER):
                rows = slice(start, start + TOGETHER)
                some = test.shown[rows]
                part = None if parts is None else parts / f"{method}-{start}"
                if part is None or not all(part.with_suffix(kind).exists() for kind in (WRITTEN, PICTURES)):
                    tokens, brain = one.image_tokens[rows], method != "prior_only"
                    said = own.rows(rows)
                    groups.append(paint(generator, tokens, one.predictions, some, said, method, lowlevel=brain, side=side))
                    _keep(part, groups[-1])
                else:
                    groups.append(
                        Painted(load_file(part.with_suffix(PICTURES)), read_json(part.with_suffix(WRITTEN))["written"])
                    )
                bar.update(len(some))
            pictures = {stage: np.concatenate([group.stages[stage] for group in groups]) for stage in groups[0].stages}
            written = [caption for group in groups for caption in group.written]
        painted[method] = Painted(pictures, written, retrieved)
    bar.close()
    return painted


def _keep(part: Path | None, painted: Painted) -> None:
    if part is not None:
        write_json(part.with_suffix(WRITTEN), {"written": painted.written})
        write_arrays(part.with_suffix(PICTURES), painted.stages)


def score_all(
    decoded: Mapping[str, Decoded],
    painted: Mapping[str, Painted],
    test: TestSet,
    seed: int,
    scoring: Scoring,
    kept: KeptFeatures | None = None,
    recognition: Recognition | None = None,
) -> dict[str, MethodScores]:
    """Scores of every method against the test images.

    ``kept`` takes what the brain's encoding model needs of the pictures, where one is asked for. ``recognition`` looks for
    what the images painted show (``pipeline/objects.py``).

    Images without a caption are left out of text retrieval; where none has one, all texts are the same, and the score is
    chance.
    """
    shown, texts = test.images[test.shown], test.texts
    seen = np.asarray(test.caches["pixels"][shown]) if len(shown) else np.empty((0, 3, 0, 0), np.uint8)
    truth = Truth(
        np.asarray(test.caches["tokens"][test.images]),
        np.asarray(test.caches["text"][test.images[texts]]),
        seen,
        scoring.networks,
        scoring.choices,
        scoring.pool,
        recognition,
    )
    predicted = {}
    for method, one in decoded.items():
        p, single = one.predictions, one.single_trials
        predicted[method] = {
            "retrieval_tokens": p.retrieval_tokens,
            "text": p.text[texts],
            "mean_token": p.mean_token,
            "single_trials": []
            if single is None
            else [
                {
                    "retrieval_tokens": single.retrieval_tokens,
                    "text": single.text[texts],
                    "mean_token": single.mean_token,
                }
            ],
            "stages": painted[method].stages,
        }
    return score_methods(predicted, truth, seed, None if kept is None else kept.keep)


def said_by(words: Mapping[str, Words]) -> dict[str, dict[str, list[list[str]]]]:
    """By method and way, phrases and whole captions, what is said of each test image."""
    return {
        method: ({"phrases": one.phrases} if one.said is not None else {})
        | ({"captions": [[caption] for caption in one.captions]} if one.bank.captions else {})
        for method, one in words.items()
    }


def score_words(
    results: dict, said: Mapping[str, Mapping[str, list[list[str]]]], captions: Sequence[Sequence[str]], seed: int
) -> None:
    """Put into ``results`` how much of what the n test images show is said, by method: ``words``, beside whole captions."""
    for method, ways in said.items():
        results["methods"][method]["words"] = rounded({way: said_scores(own, captions, seed) for way, own in ways.items()})


def categorised(decoded: Mapping[str, Decoded], test: TestSet, stimuli: Stimuli) -> dict[str, list[str]]:
    """By method the category decoded of each test image; {} where captions are no categories (``data.folds.categories``).

    It is the category whose training images' mean token, less what retrieval takes off, is most like what was decoded.
    """
    known = categories([stimuli.captions[int(k)] for k in np.concatenate([test.training, test.images])])
    if known is None:
        return {}
    own = np.array(known[: len(test.training)])
    names = np.unique(own)
    tokens = TrainingTokens(test.caches["tokens"], test.training)
    means = np.stack([mean_token(TrainingTokens(tokens.cache, test.training[own == name]), 1)[0] for name in names])
    said = {method: one.predictions for method, one in decoded.items()}
    nearest = {method: similarity(one.retrieval_tokens, means, one.mean_token).argmax(1) for method, one in said.items()}
    return {method: names[which].tolist() for method, which in nearest.items()}


def pictures_of(painted: Mapping[str, Painted], test: TestSet) -> dict[str, np.ndarray]:
    """The arrays of pictures.safetensors."""
    if "pixels" not in test.caches:  # of labels there are as many thumbnails as test images, of no size
        none = np.empty((len(test.images), 3, 0, 0), np.uint8)
        return {"seen": none[:0], "thumbnails": none}
    pixels = np.asarray(test.caches["pixels"][test.images])
    small = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(pixels).float(), THUMBNAIL)
    thumbnails = small.round().to(torch.uint8).numpy()
    pictures = {"seen": pixels[test.shown], "thumbnails": thumbnails}
    return pictures | {f"{method}/{stage}": array for method, one in painted.items() for stage, array in one.stages.items()}


def words_of(
    decoded: Mapping[str, Decoded], painted: Mapping[str, Painted], words: Mapping[str, Words], test: TestSet
) -> dict:
    """The contents of words.json: captions, phrases and retrieved lists."""
    tokens = np.asarray(test.caches["tokens"][test.images])
    methods: dict[str, dict] = {}
    for method, one in decoded.items():
        queries = one.predictions.retrieval_tokens[test.shown]
        candidates = one.predictions.compared(tokens)
        methods[method] = {"top5": top5_ids(queries, candidates, min(5, len(tokens))).tolist()}
        if painted[method].retrieved:
            methods[method]["retrieved_caption"] = painted[method].retrieved
        if (said := words[method].rows(test.shown).said) is not None:
            methods[method]["phrases"] = rounded(said)
        if painted[method].written:
            methods[method]["written_caption"] = painted[method].written
    captions = [group[0] if group else "" for group in test.captions]
    return {
        "picture_index": test.shown.tolist(),
        "seen_captions": [captions[k] for k in test.shown],
        "all_captions": captions,
        "names": [test.names[k] for k in test.images],
        "methods": methods,
    }
