"""What a reader of results must know to judge the numbers."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np

from mindtuner import runtime
from mindtuner.config import Config
from mindtuner.data import Dataset, Stimuli, Subject
from mindtuner.decoding.words import TextBank
from mindtuner.evaluation.held_out import held_out_scores
from mindtuner.evaluation.scores.retrieval import text_retrieval
from mindtuner.model import BrainNetwork
from mindtuner.pipeline.stages import TestSet
from mindtuner.training import subject_name

FOREIGN_STIMULI = "The generator was trained on the package's own drawn scenes, not on these stimuli"


def describe_setting(
    config: Config, dataset: Dataset, hour: Subject, base: BrainNetwork, test: TestSet, bank: TextBank, command: str
) -> dict:
    """What a reader of results.json must know to judge the numbers; None where it is unknown of measured data."""
    card, own = dataset.card, subject_name(test.subject.number) in base.ridges
    without = "none, as the base itself decodes" if own else "" if base.ridges else "none, as there is no base"
    return {
        "simulated_brains": card["simulated"],
        "simulated_scenes": card.get("simulated_scenes", False),
        "stimuli": card.get("stimuli"),
        "stimuli_hash": dataset.stimuli.hash,
        "dataset": card.get("dataset"),
        "split": card.get("split"),
        "subject": test.subject.number,
        "sessions": config.tuning_sessions,
        "voxels": test.subject.n_voxels,
        "n_training_trials": len(hour.train),
        "n_test_images": len(test.images),
        "n_test_trials": len(test.trials),
        "n_pictures": len(test.shown),
        "n_pretraining_subjects": len(base.ridges),
        "subject_of_base": own,
        "fingerprint_strength": _planted_fingerprint(card),
        "adapters": without or adapters_in_words(config),
        "prior_steps": config.decode.prior_steps,
        "generator_steps": config.decode.generator_steps,
        "refine_steps": config.decode.refine_steps,
        "refine_start": config.decode.refine_start,
        "corrections": config.decode.corrections,
        "guidance": config.decode.guidance,
        "neighbours": config.decode.neighbours,
        "retrieval_tokens": config.decode.retrieval_tokens,
        "text_bank": len(bank.captions),
        "text_retrieval_at_most": round(text_ceiling(test), 6),
        "bank_captions_equal_to_a_test_caption": bank.equal_to_test,
        "zscore": card["zscore"],
        "hold_out_category": config.hold_out_category or None,
        "seed": config.seed,
        "dtype": str(runtime.fast_dtype()).removeprefix("torch."),
        "command": command,
        "versions": {name: version(name) for name in ("mindtuner", "torch", "diffusers", "timm")},
    }


def adapters_in_words(config: Config) -> str:
    """What ``mindtuner`` learns of a subject, by the config."""
    own, places = config.fingerprint, "token head and retrieval projector"
    lora = f"LoRA of rank {own.rank} on {'blocks, ' if own.lora_blocks else ''}{places}" if own.lora else "no LoRA"
    skip = f"Skip-LoRA of rank {own.skip_rank or own.rank}" if own.skip else "no Skip-LoRA"
    return f"{lora}; {skip}; the ridge {'trains' if config.tune.train_ridge else 'stays at its closed form'}"


def _planted_fingerprint(card: dict) -> float | None:
    return card["simulate"]["fingerprint"] if card["simulated"] and "simulate" in card else None


def generator_note(card: dict) -> str:
    """A warning where the package's generator has to paint other stimuli than it was trained on; else nothing."""
    if not card.get("simulated_scenes"):
        return f"{FOREIGN_STIMULI}."
    if card.get("stimuli") == "drawn scenes":
        return ""
    return f"{FOREIGN_STIMULI}; mindtuner train-generator --cutouts makes one for them."


def labels_note(stimuli: Stimuli) -> str:
    """What is decoded where there are labels alone; nothing where there are pictures."""
    if stimuli.pictured:
        return ""
    return "The stimuli are labels without pictures: images stand for the text of their labels, and equal labels tie."


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
    if without < n and (most := text_ceiling(test)) < 1:
        notes.append(f"Test images of equal captions tie: text retrieval is {most:.1%} at most.")
    return " ".join(notes)


def text_ceiling(test: TestSet) -> float:
    """Top-1 of text retrieval where each image's own text is asked for: below 1 where captions are equal."""
    texts = np.asarray(test.caches["text"][test.images[test.texts]], np.float32)
    return float(text_retrieval(texts, texts).top1.mean())


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


def left_out_note(count: int) -> str:
    """What is left out of the scores; nothing where nothing is."""
    return (
        f"{count} test image{'s' if count > 1 else ''} that training saw {'are' if count > 1 else 'is'} left out."
        if count
        else ""
    )


def scores_apart(per_image: dict[str, np.ndarray], stimuli: Stimuli, seed: int) -> dict:
    """The test images that show the category held out, and the others, each scored by themselves."""
    left_out = int((stimuli.of_category & ~stimuli.is_shared).sum())
    return held_out_scores(per_image, stimuli.category, stimuli.of_category[per_image["images"]], left_out, seed)
