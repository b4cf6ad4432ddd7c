"""The scores that need more than pictures and tokens: of the words that were read, and of the brain that pictures predict.

Both put their means into results.json and their values for single images into the arrays of per_image.safetensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mindtuner.data import Subject
from mindtuner.evaluation.brain_correlation import BrainTruth, brain_block
from mindtuner.evaluation.encoding import FOLDS
from mindtuner.evaluation.results import rounded
from mindtuner.evaluation.scores.captions import CaptionScorer, ClipTextEncoder, caption_block, find_wordnet
from mindtuner.evaluation.scores.features import EncodingFeatures, KeptFeatures
from mindtuner.evaluation.scores.objects import named_block
from mindtuner.evaluation.scores.preparation import OURS, Choices
from mindtuner.evaluation.vocabulary import Vocabulary
from mindtuner.pipeline.features import TextEncoder
from mindtuner.pipeline.painting import Painted
from mindtuner.runtime import progress
from mindtuner.towers.compact import CompactTextEncoder

CLIP_FOLDERS = {"clip_b": "clip-vit-base-patch32", "clip_l": "clip-vit-large-patch14"}  # in the folder of networks


def caption_scorer(networks: Path | None, texts: TextEncoder) -> CaptionScorer:
    """What scores captions.

    Sentence-BERT is the package's own all-MiniLM-L6-v2, ``texts`` where that is the run's text tower; CLIP's towers come
    from the folder of networks, METEOR's WordNet from where systems keep it.

    A CLIP folder without a tokenizer is there for the score of pictures, and leaves that of captions out, by name. Raises
    UserError for one that is damaged or another model's.
    """
    encoders: dict[str, TextEncoder | ClipTextEncoder] = {
        "sentence_bert": texts if isinstance(texts, CompactTextEncoder) else CompactTextEncoder()
    }
    for score, name in CLIP_FOLDERS.items():
        if networks is not None and reads_texts(networks / name):
            encoders[score] = ClipTextEncoder(networks / name)
    return CaptionScorer(encoders, find_wordnet())


def reads_texts(clip: Path) -> bool:
    """Whether the folder of a CLIP has a tokenizer, which scores of pictures do without."""
    return (clip / "tokenizer_config.json").is_file()


def score_captions(
    results: dict,
    per_image: dict[str, np.ndarray],
    painted: Mapping[str, Painted],
    references: list[tuple[str, ...]],
    scorer: CaptionScorer,
    seed: int,
    vocabulary: Vocabulary | None = None,
) -> None:
    """Score the captions that correct the pictures, and those that a network wrote where one did.

    ``references`` are those of the p images painted. Where fewer than two of these have any, there is nothing to score.
    ``vocabulary``: the words of which those that both name are scored too.
    """
    results["setting"]["scores"]["captions_not_scored"] = dict(scorer.missing)
    if sum(bool(group) for group in references) < 2:
        return
    given = [
        (method, part, captions)
        for method, one in painted.items()
        for part, captions in (("captions", one.retrieved), ("written", one.written))
        if captions
    ]
    for method, part, captions in progress(given, "captions", len(given), "set"):
        block, values = caption_block(captions, references, scorer, seed)
        if vocabulary:
            named, by_words = named_block(captions, references, vocabulary, seed)
            block["scores"] |= named["scores"]
            values |= by_words
            results["setting"]["scores"]["captions_not_scored"] |= named["missing"]
        found = rounded(block["scores"])
        own, chance = results["methods"][method], results["chance"].setdefault(part, {})
        own[part] = {score: about["mean"] for score, about in found.items()}
        own["ci95"][part] = {score: about["ci95"] for score, about in found.items()}
        for score, about in found.items():
            chance.setdefault(score, {})[method] = about["chance"]
        per_image |= {f"{method}/{part}/{score}": array for score, array in values.items()}


def score_brain(
    results: dict,
    per_image: dict[str, np.ndarray],
    kept: KeptFeatures,
    subject: Subject,
    shown: np.ndarray,
    pixels: np.ndarray,
    seed: int,
    choices: Choices = OURS,
) -> None:
    """Correlate the brain that each method's picture predicts with the measured one, by region.

    kept : features of each method's picture and of what was seen, by the keys of ``scoring.score_methods``
    subject : with all its sessions, for the encoding model learns from its training trials
    shown : (p,) stimulus ids · pixels : (N, 3, H, W) of all stimuli, uint8
    choices : how the pictures were prepared, and training images are

    With too few images to fit or to compare, the run says so instead.
    """
    images = len(np.unique(subject.train.stimulus))
    if images < FOLDS or len(shown) < 2:
        results["setting"]["scores"]["brain_not_scored"] = (
            f"needs {FOLDS} training images and 2 pictures; there are {images} and {len(shown)}"
        )
        return
    features = EncodingFeatures(choices)
    truth = BrainTruth.of(subject, shown, lambda images: features(pixels[images]), seed, EncodingFeatures.groups)
    reference = rounded(truth.reference_block(kept[None], seed))
    results["brain"] = reference
    for method, own in progress(results["methods"].items(), "brain", len(results["methods"]), "method"):
        block, values = brain_block(kept[method, own["picture"]], truth, seed)
        own["brain"] = {
            region: {
                "correlation": found["pattern"]["mean"],
                "ci": found["pattern"]["ci95"],
                "chance": found["pattern"]["chance"],
                "voxelwise": found["voxelwise"],
                "seen": reference["seen"][region]["pattern"]["mean"],
                "ceiling": reference["regions"][region]["pattern_ceiling"],
            }
            for region, found in rounded(block).items()
        }
        per_image |= {f"{method}/brain/{region}": array for region, array in values.items()}
