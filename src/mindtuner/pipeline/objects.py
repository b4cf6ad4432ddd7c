"""What the test images show, by their captions, and a probe that looks for it in pictures."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from mindtuner.data import Stimuli
from mindtuner.evaluation.results import rounded
from mindtuner.evaluation.scores.catalogue import RECOGNISED
from mindtuner.evaluation.scores.features import EncodingFeatures
from mindtuner.evaluation.scores.objects import Recognition, enough
from mindtuner.evaluation.scores.preparation import OURS, Choices
from mindtuner.evaluation.statistics import bootstrap_ci
from mindtuner.evaluation.vocabulary import FEWEST, Vocabulary

MOST = 1500  # training images that the probe learns from: 10 seconds of one core


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
        choices: Choices = OURS,
    ) -> Shown:
        """Read captions of MOST training images, spread evenly over their ids, and fit the probe on them.

        A category held out is among them: who judges whether a dog was painted has to know dogs.

        shown : (p,) stimulus ids · pixels : (N, 3, H, W) of all stimuli, uint8 · without : ids of images not to learn from,
        such as those that a control shows · choices : how the pictures are prepared
        """
        training = np.setdiff1d(np.flatnonzero(~stimuli.is_shared), np.asarray(list(without), np.int64))
        if len(training) > MOST:
            training = training[np.linspace(0, len(training) - 1, MOST).round().astype(int)]
        training = training[[bool(stimuli.captions[int(k)]) for k in training]]
        captions = [stimuli.captions[int(k)] for k in training]
        vocabulary = Vocabulary.of(captions)
        named = enough(vocabulary.named([stimuli.captions[int(k)] for k in shown])) if len(shown) > 1 else {}
        recognition = None
        if named:
            learned = {kind: words for kind, words in vocabulary.named(captions).items() if kind in named}
            features = EncodingFeatures(choices)
            recognition = Recognition.of(features(pixels[training]), learned, named, features.groups)
        lacking = f"needs words that captions of {FEWEST} training images name, and of two pictures"
        missing = {score: lacking for score in RECOGNISED if score.removesuffix("_f1") not in named} if len(shown) else {}
        return cls(vocabulary, recognition, len(training), missing)

    def reference_block(self, features: np.ndarray, seed: int) -> dict:
        """What every method's numbers are read against: the probe on the seen pictures, whose features (p, 1664) these are.

        {"training_images", "words": {kind: [...]}, "left_out": {kind: words that too few images name}, "threshold": {kind:
        of F1}, "seen": {score: {"mean", "ci95"}}}
        """
        assert self.recognition is not None
        found = self.recognition.scores(self.recognition.probe(features))
        known = {score: values[~np.isnan(values)] for score, values in found.items()}
        return rounded(
            {
                "training_images": self.training,
                "words": self.vocabulary.words,
                "left_out": self.vocabulary.left_out,
                "threshold": self.recognition.thresholds["objects"] if "objects" in self.recognition.thresholds else None,
                "seen": {
                    score: {"mean": values.mean(), "ci95": bootstrap_ci(values, seed)} for score, values in known.items()
                },
            }
        )
