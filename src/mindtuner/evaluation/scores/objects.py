"""Which things, colours and places are recognised in a picture, or named in a caption, of those that the image shows.

What an image shows is what people's captions of it name (``evaluation/vocabulary.py``). In a picture a linear probe looks for
it: a ridge regression from features of EfficientNet-lite2, which nothing decodes with, to words,

    W, b = argmin  |X W + b - Y|^2 + alpha |W|^2

over n training images, whose standardised features are X and whose captions name the words Y, 0 or 1. No test image is among
them. alpha is the one of ALPHAS whose predictions of an image by all the others, known in closed form, are the best.

Things are looked for a second time, by CLIP ViT-L/14, which learned words from other pictures than those of the run:

    s(x, w) = cos(f(x), g(w)) - mean over training images t of cos(f(t), g(w))

f is CLIP's embedding of a picture, g that of PROMPT with the word w. Some words are rather like every picture, and would be
found everywhere: the mean takes that off (centring, Suzuki et al. 2013). It asks no caption what the training images show.

p images, K words of a kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mindtuner.errors import UserError
from mindtuner.evaluation.scores.inputs import as_array
from mindtuner.evaluation.statistics import bootstrap_ci, random_pairs
from mindtuner.evaluation.vocabulary import KINDS, Vocabulary

ALPHAS = np.logspace(-2, 2, 9)
THRESHOLDS = np.linspace(0, 1, 101)
FEWEST = 2  # words to tell apart, and images that show some, for a score
PROMPT = "a photo of a {}."  # the one of Radford et al. (2021), where nothing is known of the pictures


def top(likely: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The ``counts[i]`` likeliest words of picture i; of words as likely the first.

    Parameters
    ----------
    likely : array (p, K)
    counts : array, int (p,)

    Returns
    -------
    array, bool (p, K)

    Examples
    --------
    >>> top(np.array([[0.1, 0.9, 0.5]]), np.array([2]))
    array([[False,  True,  True]])
    """
    order = np.argsort(-likely, axis=1, kind="stable")
    found = np.zeros(likely.shape, bool)
    np.put_along_axis(found, order, np.arange(likely.shape[1]) < np.asarray(counts)[:, None], axis=1)
    return found


def share_found(found: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """The share of the words shown that are among those found.

    Parameters
    ----------
    found, shown : array, bool (p, K)

    Returns
    -------
    array, float64 (p,)
        NaN for an image that shows none.

    Examples
    --------
    >>> share_found(np.array([[True, False]]), np.array([[True, True]]))
    array([0.5])
    """
    return _divided((found & shown).sum(1), shown.sum(1))


def f1(found: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Harmonic mean of the share of the shown that is found, and of the found that is shown.

    Parameters
    ----------
    found, shown : array, bool (p, K)

    Returns
    -------
    array, float64 (p,)
        0 where nothing is found, NaN for an image that shows none.

    Examples
    --------
    >>> f1(np.array([[True, True, False]]), np.array([[True, False, False]])).round(3)
    array([0.667])
    """
    some = shown.any(1)
    return _divided(2 * (found & shown).sum(1) * some, (found.sum(1) + shown.sum(1)) * some)


@dataclass(frozen=True)
class Probe:
    """Says of a picture, by its features, how likely it shows each word; made by ``fit``.

    mean, scale (F,) standardise · weights (F, K) · intercept (K,) · alpha, the penalty · left_out (n, K): what is said of
    each training image by a probe that all the others made
    """

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    intercept: np.ndarray
    alpha: float
    left_out: np.ndarray

    @classmethod
    def fit(cls, features, named: np.ndarray, groups: tuple[int, ...] | None = None) -> Probe:
        """Fit on n training images.

        Parameters
        ----------
        features : array (n, F)
        named : array, bool (n, K)
            Which words captions of the image name.
        groups : tuple of int, optional
            Widths of groups of features, F in all, which count alike; by default one.

        Raises
        ------
        UserError
            For NaN, unequal numbers of images, or fewer than 2.
        """
        x = as_array(features, "features", 2).astype(np.float64)
        n, widths = len(x), groups or (x.shape[1],)
        if n < 2 or len(named) != n:
            raise UserError(f"features: {n} training images, {len(named)} with words; expected as many, 2 at least")
        mean, sd = x.mean(0), x.std(0)
        roots = np.repeat(np.sqrt(np.multiply(widths, len(widths))), widths)
        scale = np.divide(1, sd * roots, out=np.zeros_like(sd), where=sd > 1e-6 * np.abs(mean))
        x, y = (x - mean) * scale, named.astype(np.float64)
        intercept = y.mean(0)
        # In the basis u of the images' inner products a ridge shrinks each direction by itself.
        values, u = np.linalg.eigh(x @ x.T)
        values = np.maximum(values, 0)
        along = u.T @ (y - intercept)
        best = np.inf
        for candidate in ALPHAS:
            kept = values / (values + candidate)
            own = 1 / n + u**2 @ kept  # how much of what is said of an image its own words are
            without = (intercept + u @ (kept[:, None] * along) - own[:, None] * y) / (1 - own[:, None])
            error = ((without - y) ** 2).sum()
            if error < best:
                best, alpha, left_out = error, float(candidate), without
        weights = x.T @ (u @ (along / (values + alpha)[:, None]))
        return cls(mean, scale, weights, intercept, alpha, left_out)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Features (p, F) -> about 0 for a word that the picture does not show, 1 for one that it does: float64 (p, K)."""
        return (features - self.mean) * self.scale @ self.weights + self.intercept


@dataclass(frozen=True)
class ClipWords:
    """Says of a picture, by CLIP's embedding of it, how much more like each word it is than other pictures are.

    words (K, d): unit vectors, CLIP's of PROMPT with each word · usual (K,): the mean cosine of each with training images, of
    which there are ``images``
    """

    words: np.ndarray
    usual: np.ndarray
    images: int

    @classmethod
    def of(cls, words: np.ndarray, pictures: np.ndarray) -> ClipWords:
        """Centre on n training images.

        Parameters
        ----------
        words : array (K, d)
            CLIP's embeddings of PROMPT with each word.
        pictures : array (n, d)
            And of training images.

        Examples
        --------
        >>> reader = ClipWords.of(np.eye(2), np.array([[1, 0], [0.8, 0.6]]))  # pictures are rather like the first word
        >>> reader(np.array([[0.8, 0.6]])).round(1)  # so this one is more like the second
        array([[-0.1,  0.3]])
        """
        words = _of_unit_length(words)
        return cls(words, (_of_unit_length(pictures) @ words.T).mean(0), len(pictures))

    def __call__(self, pictures: np.ndarray) -> np.ndarray:
        """Embeddings (p, d) of pictures -> above 0 for a word that is more like the picture than usual: float64 (p, K)."""
        return _of_unit_length(pictures) @ self.words.T - self.usual


def best_threshold(likely: np.ndarray, shown: np.ndarray) -> float:
    """The one of THRESHOLDS above which words count as found for the highest mean F1.

    Parameters
    ----------
    likely : array (n, K)
    shown : array, bool (n, K)
        Of some image at least one word.

    Examples
    --------
    >>> round(best_threshold(np.array([[0.2, 0.6]]), np.array([[False, True]])), 2)
    0.2
    """
    return float(max(THRESHOLDS, key=lambda level: np.nanmean(f1(likely > level, shown))))


@dataclass(frozen=True)
class Recognition:
    """What p images show, and who looks for it in pictures of them.

    probe : of all words of all kinds, side by side · shown : by kind bool (p, K) · thresholds : by kind, above which a word
    counts as found for F1 · clip : of things, None where CLIP is not asked
    """

    probe: Probe
    shown: dict[str, np.ndarray]
    thresholds: dict[str, float]
    clip: ClipWords | None = None

    @classmethod
    def of(
        cls,
        features,
        training: dict[str, np.ndarray],
        shown: dict[str, np.ndarray],
        groups: tuple[int, ...] | None = None,
        clip: ClipWords | None = None,
    ) -> Recognition:
        """Fit the probe on training images.

        Parameters
        ----------
        features : array (n, F)
            Of training images.
        training, shown : dict of str to array, bool (n, K) and (p, K)
            By kind, which words captions name: of the training images, and of those whose pictures are looked at.
        groups : tuple of int, optional
            As in ``Probe.fit``.
        clip : ClipWords, optional
            Of the things, in the order of their columns.

        Raises
        ------
        UserError
            As ``Probe.fit`` does.
        """
        probe = Probe.fit(features, np.concatenate(list(training.values()), 1), groups)
        left_out = _by_kind(probe.left_out, training)
        thresholds = {kind: best_threshold(left_out[kind], named) for kind, named in training.items()}
        return cls(probe, shown, thresholds, clip)

    def scores(self, likely: np.ndarray, alike: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Of pictures of the p images: {score: float64 (p,)}.

        likely : (p, all words), what the probe says of them · alike : (p, things), what ``clip`` says, where it does
        """
        return self._scores(likely, alike, np.arange(len(likely)), np.arange(len(likely)))

    def chance(
        self, likely: np.ndarray, pairs: tuple[np.ndarray, np.ndarray], alike: np.ndarray | None = None
    ) -> dict[str, float]:
        """The means over pairs (i, j) of picture i held against what image j shows."""
        return {score: float(np.nanmean(values)) for score, values in self._scores(likely, alike, *pairs).items()}

    def _scores(self, likely: np.ndarray, alike: np.ndarray | None, i: np.ndarray, j: np.ndarray) -> dict[str, np.ndarray]:
        scores = {}
        for kind, own in _by_kind(likely, self.shown).items():
            shown = self.shown[kind][j]
            scores[kind] = share_found(top(own[i], shown.sum(1)), shown)
            if kind == "objects":
                scores["objects_f1"] = f1(own[i] > self.thresholds[kind], shown)
                if alike is not None:
                    scores["objects_clip"] = share_found(top(alike[i], shown.sum(1)), shown)
        return scores


def enough(shown: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The kinds with words to tell apart, of which several images show some; see FEWEST."""
    return {kind: named for kind, named in shown.items() if named.shape[1] >= FEWEST and named.any(1).sum() >= FEWEST}


def named_block(
    captions: Sequence[str], references: Sequence[Sequence[str]], vocabulary: Vocabulary, seed: int
) -> tuple[dict, dict[str, np.ndarray]]:
    """What one method's captions of p images name of what the images show, as people's captions do.

    Returns the block ``{"scores": {score: {"mean", "ci95": [low, high], "chance"}}, "missing": {score: why}}`` and float32
    (p,) by score, NaN where an image shows nothing of the kind. Chance is the mean over random pairs of a caption and another
    image.
    """
    said, shown = vocabulary.named([[text] for text in captions]), vocabulary.named(references)
    kinds = enough(shown)
    everything = [(kind, kind, share_found) for kind in KINDS] + [("objects_f1", "objects", f1)]
    i, j = random_pairs(len(captions), seed)
    scores, arrays = {}, {}
    for score, kind, measure in everything:
        if kind in kinds:
            values, drawn = measure(said[kind], shown[kind]), measure(said[kind][i], shown[kind][j])
            known = values[~np.isnan(values)]
            scores[score] = {
                "mean": float(known.mean()),
                "ci95": list(bootstrap_ci(known, seed)),
                "chance": float(np.nanmean(drawn)),
            }
            arrays[score] = values.astype(np.float32)
    missing = {score: "captions that name such words" for score, kind, _ in everything if kind not in kinds}
    return {"scores": scores, "missing": missing}, arrays


def _by_kind(likely: np.ndarray, named: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Columns of all words, side by side, as those of each kind."""
    ends = np.cumsum([one.shape[1] for one in named.values()])[:-1]
    return dict(zip(named, np.split(likely, ends, axis=1), strict=True))


def _of_unit_length(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.astype(np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _divided(count: np.ndarray, of: np.ndarray) -> np.ndarray:
    return np.divide(count, of, out=np.full(len(count), np.nan), where=of > 0)
