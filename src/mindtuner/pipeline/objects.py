"""What the test images show, by their captions, and a probe and CLIP that look for it in pictures."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from mindtuner.data import Stimuli
from mindtuner.evaluation.results import rounded
from mindtuner.evaluation.scores.captions import ClipTextEncoder
from mindtuner.evaluation.scores.catalogue import RECOGNISED
from mindtuner.evaluation.scores.features import EncodingFeatures, features_of
from mindtuner.evaluation.scores.objects import PROMPT, ClipWords, Recognition, enough
from mindtuner.evaluation.statistics import bootstrap_ci
from mindtuner.evaluation.vocabulary import FEWEST, Vocabulary
from mindtuner.pipeline.captions_and_brain import CLIP_FOLDERS, reads_texts
from mindtuner.pipeline.stages import Scoring, evenly

MOST = 1500  # training images that the probe learns from: 10 seconds of one core
CLIP = CLIP_FOLDERS["clip_l"]
USUAL = 200  # of these CLIP looks at, to know what is usual: it is many times as large a network


@dataclass(frozen=True)
class Shown:
    """What p test images show, and who looks for it.

    vocabulary : the words that count · recognition : None where nothing is looked for · training : how many images the probe
    learned from · missing : {score: why it is not there}
    """

    vocabulary: Vocabulary
    recognition: Recognition | None
    training: int
    missing: dict[str, str]

    @classmethod
    def of(
        cls,
        stimuli: Stimuli,
        shown: np.ndarray,
        pixels: np.ndarray,
        without: Collection[int] = (),
        scoring: Scoring | None = None,
    ) -> Shown:
        """Read captions of MOST training images, spread evenly over their ids, and fit the probe on them.

        CLIP looks for things too, where ``scoring`` has it and its tokenizer.

        A category held out is among them: who judges whether a dog was painted has to know dogs.

        shown : (p,) stimulus ids · pixels : (N, 3, H, W) of all stimuli, uint8 · without : ids of images not to learn from,
        such as those that a control shows · scoring : by which networks and choices, by default the package's own network
        """
        scoring = scoring or Scoring()
        training = np.setdiff1d(np.flatnonzero(~stimuli.is_shared), np.asarray(list(without), np.int64))
        training = training[evenly(len(training), MOST)]
        training = training[[bool(stimuli.captions[int(k)]) for k in training]]
        captions = [stimuli.captions[int(k)] for k in training]
        vocabulary = Vocabulary.of(captions)
        named = enough(vocabulary.named([stimuli.captions[int(k)] for k in shown])) if len(shown) > 1 else {}
        lacking = f"needs words that captions of {FEWEST} training images name, and of two pictures"
        missing = {score: lacking for score, kind in RECOGNISED.items() if kind not in named} if len(shown) else {}
        recognition = clip = None
        if "objects" in named:
            if why := _clip_lacks(scoring):
                missing["objects_clip"] = why
            else:
                looked_at = training[evenly(len(training), USUAL)]
                clip = _clip_words(vocabulary.words["objects"], pixels[looked_at], scoring)
        if named:
            learned = {kind: words for kind, words in vocabulary.named(captions).items() if kind in named}
            features = EncodingFeatures(scoring.choices)
            recognition = Recognition.of(features(pixels[training]), learned, named, features.groups, clip)
        return cls(vocabulary, recognition, len(training), missing)

    def reference_block(self, features: np.ndarray, seed: int, by_clip: np.ndarray | None = None) -> dict:
        """What every method's numbers are read against: what is recognised in the seen pictures.

        features : (p, 1664), of the probe's network · by_clip : (p, d), CLIP's embeddings, where it is asked

        {"training_images", "words": {kind: [...]}, "left_out": {kind: words that too few images name}, "threshold": {kind:
        of F1}, "seen": {score: {"mean", "ci95"}}}, and "clip": {"prompt", "training_images"} where it is asked
        """
        assert self.recognition is not None
        clip = self.recognition.clip
        alike = None if clip is None or by_clip is None else clip(by_clip)
        found = self.recognition.scores(self.recognition.probe(features), alike)
        known = {score: values[~np.isnan(values)] for score, values in found.items()}
        return rounded(
            {
                "training_images": self.training,
                **({} if clip is None else {"clip": {"prompt": PROMPT, "training_images": clip.images}}),
                "words": self.vocabulary.words,
                "left_out": self.vocabulary.left_out,
                "threshold": self.recognition.thresholds["objects"] if "objects" in self.recognition.thresholds else None,
                "seen": {
                    score: {"mean": values.mean(), "ci95": bootstrap_ci(values, seed)} for score, values in known.items()
                },
            }
        )


def _clip_lacks(scoring: Scoring) -> str:
    """Why CLIP cannot be asked for words; "" where it can."""
    if scoring.folder is None or "clip" in scoring.missing:
        return scoring.missing["clip"]
    return "" if reads_texts(scoring.folder / CLIP) else f"no tokenizer in {scoring.folder / CLIP}"


def _clip_words(words: Sequence[str], pictures: np.ndarray, scoring: Scoring) -> ClipWords:
    """CLIP's embeddings of words, and what is usual of them in ``pictures`` (n, 3, H, W) of training images."""
    assert scoring.folder is not None
    network = next(network for network in scoring.networks if "clip" in network.layers)
    texts = ClipTextEncoder(scoring.folder / CLIP).embed([PROMPT.format(word) for word in words])
    return ClipWords.of(
        texts, features_of(network, pictures, scoring.choices, title=f"{network.label}, of training images")["clip"]
    )
