"""From tuned networks to a report, as ``evaluate`` and the second half of the demo do it: ``tell``, in steps that each return
plain arrays."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from mindtuner import runtime
from mindtuner.cli.score_table import print_table
from mindtuner.cli.steps import Materials, Stopwatch
from mindtuner.cli.words_and_brain import caption_scorer, score_brain, score_captions
from mindtuner.config import Config
from mindtuner.data import Dataset, Stimuli, Subject, Trials
from mindtuner.decoding.decoder import Decoder, Predictions
from mindtuner.decoding.training_images import TrainingTokens, draw_to_neighbours, mean_token, nearest_training_image
from mindtuner.decoding.words import TextBank, Words
from mindtuner.errors import UserError
from mindtuner.evaluation.held_out import held_out_scores, held_out_text
from mindtuner.evaluation.results import build_results, per_image_scores, rounded, save_run, to_uint8
from mindtuner.evaluation.scores.features import LITE2, KeptFeatures
from mindtuner.evaluation.scores.networks import find_networks
from mindtuner.evaluation.scores.preparation import OURS, PUBLISHED, resize
from mindtuner.evaluation.scores.retrieval import POOL, top5_ids
from mindtuner.evaluation.scoring import MethodScores, Truth, score_methods
from mindtuner.files import atomic_path, read_json, write_json
from mindtuner.generators.painter import Painter
from mindtuner.model import BrainNetwork
from mindtuner.report import write_report
from mindtuner.towers.compact import CompactTextEncoder
from mindtuner.training import subject_name

THUMBNAIL = 64
TOGETHER = 64  # pictures painted before they are kept
PARTS = "painted"
PICTURES, WRITTEN = ".safetensors", ".json"  # of a part
FOREIGN_STIMULI = "The generator was trained on the package's own drawn scenes, not on these stimuli"


def tell(
    out: Path,
    config: Config,
    materials: Materials,
    hour: Subject,
    base: BrainNetwork,
    tuned: dict[str, BrainNetwork],
    watch: Stopwatch,
    command: str,
    generator_note: str,
    keep: bool = False,
    scoring: Scoring | None = None,
) -> Path:
    """Decode, paint and score the test images of ``hour``, the subject as it was tuned on, and write all of it into ``out``,
    which holds config.yaml and log.jsonl; returns the report's path.

    tuned: method -> network; the first says what the nearest training images are. With ``keep`` a run that is stopped while
    it paints leaves the pictures in ``out``, and the next takes them from there. ``scoring``: by which networks and choices,
    by default by the package's own network. Raises UserError where the subject has no
    test trial, or networks, voxels and images do not fit together.
    """
    scoring = scoring or Scoring()
    with watch.stage("decode"):
        test = TestSet.of(hour, materials.dataset.stimuli, materials.caches, config.decode.pictures)
        predictions = decode_all(tuned, base, test, materials.caches, config)
    with watch.stage("paint"):
        bank = training_bank(materials.dataset, materials.texts)
        painted = paint_all(predictions, materials.generator, bank, test, out / PARTS if keep else None)
    with watch.stage("score"):
        kept = KeptFeatures()
        scores = score_all(predictions, painted, test, config.seed, scoring, kept)
    setting = describe_setting(config, materials.dataset, hour, base, test, bank, command)
    setting["scores"] = scoring.described()
    setting["stimuli_note"] = " ".join(
        filter(None, [generator_note, captions_note(bank, test), hold_out_note(config.hold_out_category)])
    )
    with watch.stage("words and brain"):
        # How long it took, and how much memory, is known at the end.
        results = build_results(setting, scores, {}, 0, config.seed, test.images[test.shown])
        per_image = per_image_scores(scores, test.images, test.shown, test.texts)
        shown = test.images[test.shown]
        score_captions(
            results,
            per_image,
            painted,
            [test.captions[k] for k in test.shown],
            caption_scorer(scoring.folder, materials.texts),
            config.seed,
        )
        score_brain(
            results,
            per_image,
            kept,
            materials.dataset.subject(hour.number),
            shown,
            test.caches["pixels"],
            config.seed,
            scoring.choices,
        )
        if config.hold_out_category:
            results["held_out"] = scores_apart(per_image, materials.dataset.stimuli, config.seed)
    with watch.stage("report"):
        results |= rounded({"timing_s": watch.total(), "peak_memory_mb": runtime.peak_memory_mb()})
        save_run(out, results, pictures_of(painted, test), words_of(predictions, painted, test), per_image)
        page = write_report(out)
    shutil.rmtree(out / PARTS, ignore_errors=True)
    print_table(results)
    if "held_out" in results:
        print(f"\n{held_out_text(results['held_out'], next(iter(results['methods'])))}")
    return page


class Scoring:
    """By which networks and choices pictures are scored, and among how many candidates retrieval is, beside all of them.

    networks : folder with weights, see ``find_networks``; scores of those that are not there are left out, by name
    Raises UserError where there is no such folder, or ``pool`` is below 1.
    """

    def __init__(self, networks: Path | None = None, as_published: bool = False, pool: int = POOL):
        if pool < 1:
            raise UserError(f"--pool is {pool}; expected 1 or more candidates")
        self.folder = networks
        found, self.missing = find_networks(networks)
        self.networks = [*found, LITE2]
        self.choices, self.pool = PUBLISHED if as_published else OURS, pool

    def described(self) -> dict:
        """For the setting of a run."""
        return {
            **self.choices.described(),
            "networks": {network.name: network.described() for network in self.networks},
            "not_scored": self.missing,
            "retrieval_pool": self.pool,
        }


@dataclass(frozen=True)
class TestSet:
    """The shared images that the subject saw, and which of them are painted.

    images (n,) stimulus ids, ascending · shown (p,) positions in ``images`` · training (m,) ids of training images
    """

    __test__ = False  # not a test, whatever its name says to pytest

    subject: Subject
    trials: Trials
    images: np.ndarray
    shown: np.ndarray
    training: np.ndarray
    captions: list[tuple[str, ...]]
    caches: dict[str, np.ndarray]

    @classmethod
    def of(cls, subject: Subject, stimuli: Stimuli, caches: dict[str, np.ndarray], pictures: int) -> TestSet:
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
            [stimuli.captions[k] for k in images],
            caches,
        )

    @property
    def texts(self) -> np.ndarray:
        """Positions of the test images that have a caption (t,), or of all where none has one."""
        with_caption = np.flatnonzero([bool(group) for group in self.captions])
        return with_caption if len(with_caption) else np.arange(len(self.images))


def evenly(count: int, n: int) -> np.ndarray:
    """``n`` evenly spaced positions of ``count``, or all of them where there are fewer."""
    return np.unique(np.linspace(0, count - 1, min(n, count)).round().astype(int))


def decode_all(
    tuned: dict[str, BrainNetwork], base: BrainNetwork, test: TestSet, caches: dict[str, np.ndarray], config: Config
) -> dict[str, dict]:
    """For each method: ``predictions`` of all test images, ``image_tokens`` of those to be painted, and
    ``single_trials`` of methods that read a brain."""
    name = subject_name(test.subject.number)
    voxels = test.subject.betas(test.trials.row)
    tokens, text = caches["tokens"], caches["text"]
    training = TrainingTokens(tokens, test.training)
    every: dict[str, dict] = {}
    for method, network in runtime.progress(tuned.items(), "decode", len(tuned), "method"):
        decoder = Decoder(network, name, config.decode, config.seed)
        rows = first_trials(test.trials)
        single = decoder.predict(voxels[rows], test.trials.stimulus[rows])
        every[method] = {
            "predictions": decoder.predict(voxels, test.trials.stimulus),
            "single_trials": [{"retrieval_tokens": single.retrieval_tokens, "text": single.text}],
        }
        shown = test.images[test.shown]
        expected = decoder.image_tokens(every[method]["predictions"].backbone_tokens[test.shown], shown)
        every[method]["image_tokens"] = draw_to_neighbours(expected, training, config.decode.neighbours)
        network.cpu()  # a GPU holds one network of full size
    first = next(iter(tuned))  # mindtuner, where it was tuned
    found = test.training[nearest_training_image(every[first]["predictions"].backbone_tokens, training)]
    nearest, latents = np.asarray(tokens[found]), np.asarray(caches["latents"][found])
    every["nearest_training_image"] = {
        "predictions": Predictions(test.images, nearest, nearest, latents, np.asarray(text[found])),
        "found": found,
    }
    mean = mean_token(training, len(test.images))
    projected = Decoder(base, name, config.decode, config.seed).text_of(torch.from_numpy(mean))
    base.cpu()  # generators want the room
    every["prior_only"] = {
        "predictions": Predictions(test.images, mean, mean, np.zeros_like(latents), projected),
        "image_tokens": draw_to_neighbours(mean[test.shown], training, config.decode.neighbours),
    }
    return every


def first_trials(trials: Trials) -> np.ndarray:
    """Position of the first trial of every image, images ascending: (n,)."""
    order = np.lexsort((trials.row, trials.stimulus))
    return order[np.unique(trials.stimulus[order], return_index=True)[1]]


def training_bank(dataset: Dataset, encoder: CompactTextEncoder) -> TextBank:
    """Captions of all training images; none of a category held out."""
    return TextBank.of(dataset.stimuli, dataset.stimuli.training_images, encoder)


def paint_all(
    decoded: dict[str, dict], generator: Painter, bank: TextBank, test: TestSet, parts: Path | None = None
) -> dict[str, dict]:
    """For each method: ``stages`` (uint8 pictures (p, 3, s, s), of the side s of the seen), the ``caption`` retrieved for
    each, and what the generator has ``written`` of it, where it writes. What is made is kept in the folder ``parts``, and
    taken from there, until the caller removes it."""
    images = test.images[test.shown]
    side = test.caches["pixels"][images[:1]].shape[-1]
    painted: dict[str, dict] = {}
    total = len(images) * sum("found" not in entry for entry in decoded.values())
    bar = runtime.progress((), "paint", total, "picture", lines=True)
    for method, entry in decoded.items():
        p = entry["predictions"]
        said = {"caption": Words(p.text[test.shown], bank).captions if bank.captions else []}
        if "found" in entry:
            found = {"reconstructed": np.asarray(test.caches["pixels"][entry["found"][test.shown]])}
            said["written"] = generator.captions(p.backbone_tokens[test.shown]) or []
        else:
            groups = []
            for start in range(0, len(images), TOGETHER):
                rows = slice(start, start + TOGETHER)
                some = test.shown[rows]
                part = None if parts is None else parts / f"{method}-{start}"
                if part is None or not part.with_suffix(PICTURES).exists():
                    tokens, words = entry["image_tokens"][rows], Words(p.text[some], bank)
                    latents = None if method == "prior_only" or p.latents is None else p.latents[some]
                    stages = generator.stages(tokens, words, latents, images[rows], method)
                    groups.append(
                        (
                            {stage: to_uint8(resize(pictures, side)) for stage, pictures in stages.items()},
                            generator.captions(tokens) or [],
                        )
                    )
                    _keep(part, *groups[-1])
                else:
                    groups.append((load_file(part.with_suffix(PICTURES)), read_json(part.with_suffix(WRITTEN))["written"]))
                bar.update(len(some))
            found = {stage: np.concatenate([pictures[stage] for pictures, _ in groups]) for stage in groups[0][0]}
            said["written"] = [caption for _, written in groups for caption in written]
        painted[method] = {"stages": found, **{key: captions for key, captions in said.items() if captions}}
    bar.close()
    return painted


def _keep(part: Path | None, pictures: dict[str, np.ndarray], written: list[str]) -> None:
    if part is not None:
        part.parent.mkdir(exist_ok=True)
        write_json(part.with_suffix(WRITTEN), {"written": written})
        with atomic_path(part.with_suffix(PICTURES)) as path:  # last: a part that has it is whole
            save_file({stage: np.ascontiguousarray(array) for stage, array in pictures.items()}, path)


def score_all(
    decoded: dict[str, dict],
    painted: dict[str, dict],
    test: TestSet,
    seed: int,
    scoring: Scoring,
    kept: KeptFeatures | None = None,
) -> dict[str, MethodScores]:
    """Scores of every method against the test images; ``kept`` takes what the brain's encoding model needs of the pictures,
    where one is asked for.

    Images without a caption are left out of text retrieval; where none has one, all texts are the same, and the score is
    chance.
    """
    seen, texts = np.asarray(test.caches["pixels"][test.images[test.shown]]), test.texts
    truth = Truth(
        np.asarray(test.caches["tokens"][test.images]),
        np.asarray(test.caches["text"][test.images[texts]]),
        seen,
        scoring.networks,
        scoring.choices,
        scoring.pool,
    )
    predicted = {}
    for method, entry in decoded.items():
        p = entry["predictions"]
        single = [{**draw, "text": draw["text"][texts]} for draw in entry.get("single_trials", ())]
        predicted[method] = {
            "retrieval_tokens": p.retrieval_tokens,
            "text": p.text[texts],
            "single_trials": single,
            "stages": painted[method]["stages"],
        }
    return score_methods(predicted, truth, seed, None if kept is None else kept.keep)


def describe_setting(
    config: Config, dataset: Dataset, hour: Subject, base: BrainNetwork, test: TestSet, bank: TextBank, command: str
) -> dict:
    """What a reader of results.json must know to judge the numbers; None where it is unknown of measured data."""
    card = dataset.card
    return {
        "simulated_brains": card["simulated"],
        "simulated_scenes": card.get("simulated_scenes", False),
        "stimuli": card.get("stimuli"),
        "stimuli_hash": dataset.stimuli.hash,
        "subject": test.subject.number,
        "sessions": config.tuning_sessions,
        "voxels": test.subject.n_voxels,
        "n_training_trials": len(hour.train),
        "n_test_images": len(test.images),
        "n_test_trials": len(test.trials),
        "n_pictures": len(test.shown),
        "n_pretraining_subjects": len(base.ridges),
        "fingerprint_strength": _planted_fingerprint(card),
        "prior_steps": config.decode.prior_steps,
        "generator_steps": config.decode.generator_steps,
        "refine_steps": config.decode.refine_steps,
        "refine_start": config.decode.refine_start,
        "corrections": config.decode.corrections,
        "guidance": config.decode.guidance,
        "neighbours": config.decode.neighbours,
        "retrieval_tokens": config.decode.retrieval_tokens,
        "text_bank": len(bank.captions),
        "bank_captions_equal_to_a_test_caption": bank.equal_to_test,
        "zscore": card["zscore"],
        "hold_out_category": config.hold_out_category or None,
        "seed": config.seed,
        "dtype": str(runtime.fast_dtype()).removeprefix("torch."),
        "command": command,
        "versions": {name: version(name) for name in ("mindtuner", "torch", "diffusers", "timm")},
    }


def _planted_fingerprint(card: dict) -> float | None:
    return card["simulate"]["fingerprint"] if card["simulated"] and "simulate" in card else None


def generator_note(card: dict) -> str:
    """A warning where the package's generator has to paint other stimuli than it was trained on; else nothing."""
    if not card.get("simulated_scenes"):
        return f"{FOREIGN_STIMULI}."
    if card.get("stimuli") == "drawn scenes":
        return ""
    return f"{FOREIGN_STIMULI}; mindtuner train-generator --cutouts makes one for them."


def captions_note(bank: TextBank, test: TestSet) -> str:
    """What missing captions mean for the scores; nothing where none are missing."""
    without, n = sum(not group for group in test.captions), len(test.captions)
    notes = []
    if not bank.captions:
        notes.append("No training image has a caption: no words are read, and pictures are not corrected.")
    if without == n:
        notes.append("No test image has a caption: text retrieval is at chance.")
    elif without:
        notes.append(f"{without} of {n} test images have no caption: text retrieval is among the others.")
    return " ".join(notes)


def hold_out_note(category: str) -> str:
    """What holding a category out does not reach; nothing where none is."""
    return (
        ""
        if not category
        else (
            f"No training on brains, no text of the bank and no training image looked up shows "
            f"{category!r}; the towers, the generator and what the prior starts from may know it."
        )
    )


def scores_apart(per_image: dict[str, np.ndarray], stimuli: Stimuli, seed: int) -> dict:
    """The test images that show the category held out, and the others, each scored by themselves."""
    left_out = int((stimuli.of_category & ~stimuli.is_shared).sum())
    return held_out_scores(per_image, stimuli.category, stimuli.of_category[per_image["images"]], left_out, seed)


def pictures_of(painted: dict[str, dict], test: TestSet) -> dict[str, np.ndarray]:
    """The arrays of pictures.safetensors."""
    pixels = np.asarray(test.caches["pixels"][test.images])
    small = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(pixels).float(), THUMBNAIL)
    thumbnails = small.round().to(torch.uint8).numpy()
    pictures = {"seen": pixels[test.shown], "thumbnails": thumbnails}
    return pictures | {
        f"{method}/{stage}": array for method, entry in painted.items() for stage, array in entry["stages"].items()
    }


def words_of(decoded: dict[str, dict], painted: dict[str, dict], test: TestSet) -> dict:
    """The contents of words.json: captions and retrieved lists."""
    tokens = np.asarray(test.caches["tokens"][test.images])
    methods = {}
    for method, entry in decoded.items():
        top5 = top5_ids(entry["predictions"].retrieval_tokens[test.shown], tokens, min(5, len(tokens)))
        methods[method] = {"top5": top5.tolist()}
        for key, name in (("caption", "retrieved_caption"), ("written", "written_caption")):
            if key in painted[method]:
                methods[method][name] = painted[method][key]
    captions = [group[0] if group else "" for group in test.captions]
    return {
        "picture_index": test.shown.tolist(),
        "seen_captions": [captions[k] for k in test.shown],
        "all_captions": captions,
        "methods": methods,
    }
