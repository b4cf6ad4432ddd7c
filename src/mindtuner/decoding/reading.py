"""What a brain says in phrases: the evidence for each, how sure it is of them, and which are said.

The evidence is a linear readout of text. It is fitted to what the Adaptive Projector makes of training images, whose captions
tell which of them show a phrase, and applied to what it makes of a brain. How sure a brain may be of the evidence is learnt
from trials that its ridge had not seen.

Another readout, of image tokens, tells what is in a picture that was painted, and so whether it shows what a brain says.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array

from mindtuner.data.splits import image_folds
from mindtuner.decoding.phrases import PhraseBank, is_place, without_colour
from mindtuner.decoding.training_images import TrainingTokens, in_blocks
from mindtuner.model.backbone import AdaptiveProjector, Sureness
from mindtuner.training.ridge import PENALTIES, FoldSums, fold_count

MOST_SAID = 5  # phrases of an image
COLOUR_SHARE = 0.2  # of a thing's probability that its colour must have, to be said
TOLD = 200  # things at most, the most common, whose say is taken out of tokens: the more, the less else stays in them
SMALLEST = 1e-6  # share of the largest singular value below which things cannot be told apart
ROWS = 4096  # images at a time, with all of their phrases
RECOGNISER_PENALTY = (
    0.5  # of the readout of tokens, in units of the mean square of an image's tokens: flat from a third to three
)


@dataclass(frozen=True)
class Recogniser:
    """Recognises things and places in image tokens, by a ridge regression on training images.

    Attributes
    ----------
    weight, intercept : arrays (T · D, g), (g,)
        From tokens to whether an image shows each of g things and places, things first.
    groups : list of g lists of int
        The phrases that name it.
    moves : array (h, T · D)
        Of each of the h most common things: what to add to tokens so that its readout rises by 1, and that of no other of
        them changes.

    Examples
    --------
    >>> named = Recogniser(np.eye(2), np.zeros(2), [[0, 1], [2]], np.eye(2))  # two phrases name the first thing
    >>> sure = np.array([[0.1, 0.8, 0.0]])
    >>> [round(float(named.agreement(np.array([[tokens]]), sure)[0]), 2) for tokens in ([1.0, 0.0], [0.0, 1.0])]
    [0.89, 0.0]
    >>> named.told(np.array([[[0.0, 1.0]]]), sure).tolist()
    [[[0.800000011920929, 0.0]]]
    """

    weight: np.ndarray
    intercept: np.ndarray
    groups: list[list[int]]
    moves: np.ndarray

    def agreement(self, tokens: np.ndarray, probability: np.ndarray) -> np.ndarray:
        """How well pictures show what brains say: the F1 to expect between the two, about 2 sum(s p) / (sum(s) + sum(p)).

        Parameters
        ----------
        tokens : array (n, T, D)
            Of n pictures, from which s is read, in 0..1.
        probability : array (n, m)
            Of all phrases; p is that of the likeliest that names a thing or a place.

        Returns
        -------
        array, float64 (n,)
        """
        seen, said = self._seen(tokens).clip(0, 1), self._said(probability)
        return 2 * (seen * said).sum(1) / np.maximum(seen.sum(1) + said.sum(1), 1e-9)

    def told(self, tokens: np.ndarray, probability: np.ndarray) -> np.ndarray:
        """Tokens whose readout of things is what words say.

        What the tokens themselves tell of things is taken out, so that over training images no linear readout finds it any
        more (concept erasure, Belrose et al. 2023), and what words say is put in its place. The rest stays.

        Parameters
        ----------
        tokens : array (n, T, D)
            Of n brains.
        probability : array (n, m)
            Of all phrases.

        Returns
        -------
        array, float32 (n, T, D)
        """
        things = len(self.moves)
        change = (self._said(probability) - self._seen(tokens))[:, :things] @ self.moves
        return (tokens + change.reshape(tokens.shape)).astype(np.float32)

    def without_things(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens (n, T, D), less a mean, without what the readout of things reads in them: float32 (n, T, D)."""
        things = len(self.moves)
        read = tokens.reshape(len(tokens), -1) @ self.weight[:, :things]
        return (tokens - (read @ self.moves).reshape(tokens.shape)).astype(np.float32)

    def _seen(self, tokens: np.ndarray) -> np.ndarray:
        return tokens.reshape(len(tokens), -1) @ self.weight + self.intercept

    def _said(self, probability: np.ndarray) -> np.ndarray:
        return np.stack([probability[:, own].max(1) for own in self.groups], 1)


class PhraseReader:
    """Reads phrases from text.

    Parameters
    ----------
    bank : PhraseBank
    training : TrainingTokens or array (N, T, D)
        Tokens of the bank's images, in their order.

    Examples
    --------
    >>> from scipy.sparse import csr_array
    >>> shown = csr_array(np.array([[1, 0], [1, 0], [0, 1], [0, 1]], np.float32))
    >>> bank = PhraseBank(["a bird", "a car"], np.eye(2, dtype=np.float32), np.arange(4), shown)
    >>> tokens = np.array([[[3.0, 0.0]], [[2.0, 0.0]], [[0.0, 2.0]], [[0.0, 3.0]]], np.float32)
    >>> projector = AdaptiveProjector(2, 2)
    >>> _ = torch.nn.init.eye_(projector.matrix.weight)
    >>> PhraseReader(bank, tokens).evidence(np.eye(2), projector)[:, :, 1].round(1).tolist()  # of two texts
    [[1.0, -1.0], [-1.0, 1.0]]
    """

    def __init__(self, bank: PhraseBank, training: TrainingTokens | np.ndarray):
        self.bank, self.training = bank, training
        self._fits: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}  # by the projector's weights

    def evidence(self, text: np.ndarray, projector: AdaptiveProjector) -> np.ndarray:
        """Evidence that brains say phrases.

        Parameters
        ----------
        text : array (n, d)
            What the projector makes of brains.
        projector : AdaptiveProjector

        Returns
        -------
        array, float32 (n, m, 2)
            The logit of the share of training images that show the phrase; and the readout, in standard deviations of what
            it reads: 0 or 1 for each of these images.
        """
        share = self.bank.counts / len(self.bank.images)
        weight, intercept = self._readout(projector)
        read = (text @ weight + intercept - share) / np.maximum(np.sqrt(share * (1 - share)), 1e-6)
        kept = np.clip(share, 1e-6, 1 - 1e-6)
        return np.stack([np.broadcast_to(np.log(kept / (1 - kept)), read.shape), read], -1).astype(np.float32)

    def learn(self, evidence: np.ndarray, images: np.ndarray) -> Sureness:
        """How sure to be, from evidence (n, m, k) on training images whose ids (n,) the bank has."""
        row = {int(image): k for k, image in enumerate(self.bank.images)}
        shown = self.bank.shown[[row[int(image)] for image in images]].toarray()
        sureness = Sureness(evidence.shape[-1])
        fitted = logistic_regression(evidence.reshape(-1, evidence.shape[-1]), shown.ravel())
        sureness.coefficients.copy_(torch.from_numpy(fitted))
        return sureness

    def probabilities(self, text: np.ndarray, projector: AdaptiveProjector, sureness: Sureness) -> np.ndarray:
        """Of each of n texts (n, d), that its image shows each phrase: float64 (n, m)."""
        return sureness(torch.from_numpy(self.evidence(text, projector)).double()).numpy()

    @functools.cached_property
    def recogniser(self) -> Recogniser:
        """What recognises things and places of the bank in image tokens."""
        things, places = _kinds(self.bank.phrases)
        groups = [thing.named for thing in things] + [[place] for place in places]
        member = csr_array(
            (np.ones(sum(map(len, groups)), np.float32), np.concatenate(groups), np.cumsum([0, *map(len, groups)])),
            shape=(len(groups), len(self.bank.phrases)),
        )
        shown = (self.bank.shown @ member.T).minimum(1)
        sums = FoldSums(1, self.training[:1].size, len(groups))
        for some, tokens in in_blocks(self.training):
            sums.add(np.zeros(len(tokens), int), tokens.reshape(len(tokens), -1), shown[some].toarray())
        weight, intercept = sums.ridge(np.array([RECOGNISER_PENALTY]))
        count, own = sums.count.sum(), slice(0, min(len(things), TOLD))
        covariance = sums.xy.sum(0)[:, own] / count - np.outer(sums.x.sum(0), sums.y.sum(0)[own]) / count**2
        moves = np.linalg.pinv(weight[:, own].T @ covariance, rcond=SMALLEST).T @ covariance.T
        return Recogniser(weight, intercept, groups, moves)

    @torch.no_grad()
    def _readout(self, projector: AdaptiveProjector) -> tuple[np.ndarray, np.ndarray]:
        """Ridge regression from the text of training images to what they show: (d, m) and (m,)."""
        weights = projector.matrix.weight
        key = weights.detach().cpu().numpy().tobytes()
        if key not in self._fits:
            images, count = self.bank.images, fold_count(self.bank.images)
            fold = np.zeros(len(images), np.int64)
            for k, (_, held) in enumerate(image_folds(images, count, 0) if count > 1 else []):
                fold[held] = k
            sums = FoldSums(count, len(weights), len(self.bank.phrases))
            for some, tokens in in_blocks(self.training):
                text = projector(torch.from_numpy(tokens).to(weights.device)).float().cpu().numpy()
                for start in range(0, len(text), ROWS):
                    rows = slice(some.start + start, some.start + min(start + ROWS, len(text)))
                    sums.add(fold[rows], text[start : start + ROWS], self.bank.shown[rows].toarray())
            self._fits[key] = sums.ridge(PENALTIES)
        return self._fits[key]


def logistic_regression(x: np.ndarray, y: np.ndarray, penalty: float = 1e-3, steps: int = 50) -> np.ndarray:
    """Logistic regression by Newton's method: an intercept, and a coefficient for each column.

    Least -sum log-likelihood + penalty/2 ||coefficients||², the intercept left out, so that they are finite where the classes
    can be told apart.

    Parameters
    ----------
    x : array (n, k)
    y : array (n,)
        0 or 1.
    penalty : float
    steps : int
        At most.

    Returns
    -------
    array, float32 (1 + k,)

    Examples
    --------
    >>> [round(float(one), 3) for one in logistic_regression(np.zeros((4, 1)), np.array([1, 0, 0, 0]))]  # log(1/3)
    [-1.099, 0.0]
    """
    x = np.concatenate([np.ones((len(x), 1)), np.asarray(x, np.float64)], 1)
    penalties = penalty * np.eye(x.shape[1])
    penalties[0, 0] = 1e-9
    found = np.zeros(x.shape[1])
    for _ in range(steps):
        p = 1 / (1 + np.exp(-(x @ found).clip(-30, 30)))
        gradient = x.T @ (y - p) - penalties @ found
        step = np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x + penalties, gradient)
        found += step * min(1, 2 / np.abs(step).max(initial=1e-12))  # from far away a whole step may overshoot
        if np.abs(step).max() < 1e-6:
            break
    return found.astype(np.float32)


def compose(probabilities: np.ndarray, phrases: list[str], most: int = MOST_SAID) -> list[list[int]]:
    """The phrases to say of each image: those that raise the F1 to be expected, by the probability that it shows them.

    A thing is said once: with the likeliest colour, where that is at least ``COLOUR_SHARE`` as likely as the thing, and else
    without. One place at most, last. Of k phrases with probabilities p the F1 to expect is close to

        2 (p_1 + ... + p_k) / (k + number of phrases to expect)

    where each thing and each place counts once. Phrases are taken from the likeliest on, until this falls.

    Parameters
    ----------
    probabilities : array, float (n, m)
        Calibrated.
    phrases : list of m str
    most : int
        To say of an image.

    Returns
    -------
    list of n lists of int
        Positions of phrases, the likeliest thing first, the place last. Empty where nothing is likely at all.

    Examples
    --------
    >>> phrases = ["a bird", "a red bird", "a blue bird", "a car", "a blue car", "on the beach", "in the sea"]
    >>> sure = [0.9, 0.1, 0.1, 0.8, 0.7, 0.6, 0.3]
    >>> [[phrases[k] for k in said] for said in compose(np.array([sure]), phrases)]
    [['a bird', 'a blue car', 'on the beach']]
    """
    things, places = _kinds(phrases)
    return [_said(row, things, places, most) for row in np.asarray(probabilities, float)]


def sentence(phrases: list[str]) -> str:
    """Phrases as a caption would join them.

    Examples
    --------
    >>> sentence(["a red bird", "a car", "on the beach"]), sentence(["a car"]), sentence([])
    ('a red bird and a car on the beach', 'a car', '')
    """
    things = [phrase for phrase in phrases if not is_place(phrase)]
    places = [phrase for phrase in phrases if is_place(phrase)]
    listed = " and ".join(filter(None, [", ".join(things[:-1]), *things[-1:]]))
    return " ".join(filter(None, [listed, *places]))


class _Thing(NamedTuple):
    """Positions of phrases that name one thing: all of them, and those that give its colour."""

    named: list[int]
    coloured: list[int]


def _kinds(phrases: list[str]) -> tuple[list[_Thing], list[int]]:
    """Things, and the positions of all places."""
    things: dict[str, _Thing] = {}
    places = []
    for k, phrase in enumerate(phrases):
        if is_place(phrase):
            places.append(k)
            continue
        plain = without_colour(phrase)
        thing = things.setdefault(plain or phrase, _Thing([], []))
        thing.named.append(k)
        if plain:
            thing.coloured.append(k)
    return list(things.values()), places


def _said(probability: np.ndarray, things: list[_Thing], places: list[int], most: int) -> list[int]:
    likeliest_of = lambda positions: positions[int(probability[positions].argmax())]
    chosen = {}  # position -> probability of its thing or place
    for thing in things:
        best = likeliest_of(thing.named)
        colour = likeliest_of(thing.coloured or thing.named)
        chosen[colour if probability[colour] >= COLOUR_SHARE * probability[best] else best] = probability[best]
    expected = sum(chosen.values()) + probability[places].sum()
    if places:
        place = likeliest_of(places)
        chosen[place] = probability[place]
    likeliest = sorted(chosen, key=lambda k: -chosen[k])[:most]
    if not likeliest or expected <= 0:
        return []
    sums = np.cumsum([chosen[k] for k in likeliest])
    count = int((2 * sums / (np.arange(1, len(sums) + 1) + expected)).argmax()) + 1
    said = likeliest[:count]
    return sorted(said, key=lambda k: k in places)  # the place last, else as they were
