"""Caption scores: a decoded caption against the captions that people wrote of the image that was seen.

    meteor          unigrams that match exactly, by stem or by WordNet's synonyms (Banerjee and Lavie 2005)
    rouge_1         F1 of the words that both have (Lin 2004)
    rouge_l         F1 by the longest common subsequence of words (Lin 2004)
    sentence_bert   cosine of all-MiniLM-L6-v2's sentence embeddings
    clip_b, clip_l  cosine of the text embeddings of CLIP ViT-B/32 and ViT-L/14

An image may have several references. Each score is that of the best of them: what METEOR and ROUGE define for several
references, and RefCLIPScore (Hessel et al. 2021) for similarities of embeddings. The MindEye2 evaluation has one caption an
image; handing over one reference each gives its scores.
"""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from mindtuner.errors import UserError
from mindtuner.evaluation.statistics import PAIRS, bootstrap_ci, random_pairs
from mindtuner.files import read_json
from mindtuner.runtime import device
from mindtuner.thirdparty import load_part, load_tokenizer, model_folder, one_line, package

CLIP_FILES = ["*.json", "merges.txt", "model.safetensors"]
ROUGE = {"rouge_1": "rouge1", "rouge_l": "rougeL"}  # our names -> rouge_score's
EMBEDDED = ("sentence_bert", "clip_b", "clip_l")
CAPTION_SCORES = ("meteor", *ROUGE, *EMBEDDED)
WORDNET_FOLDERS = ("/usr/share/wordnet", "/usr/share/nltk_data/corpora/wordnet")  # Debian's wordnet-base; NLTK's own copy
WORDNET_FILES = tuple(f"{part}.{kind}" for kind in ("noun", "verb", "adj", "adv") for part in ("index", "data")) + tuple(
    f"{kind}.exc" for kind in ("noun", "verb", "adj", "adv")
)


class TextEncoder(Protocol):
    """What embeds sentences for a score of captions."""

    def embed(self, sentences: list[str]) -> np.ndarray:
        """Sentences (n) -> (n, d), each of unit length."""


def find_wordnet() -> Path | None:
    """The first of ``WORDNET_FOLDERS`` that holds WordNet's dictionary, or None."""
    folders = (Path(folder) for folder in WORDNET_FOLDERS)
    return next((folder for folder in folders if all((folder / name).is_file() for name in WORDNET_FILES)), None)


class Meteor:
    """METEOR of a caption against one reference, by NLTK: ``Meteor(folder)(decoded, reference)`` in 0..1.

    Words are those of NLTK's Treebank tokenizer, in lower case; alpha 0.9, beta 3, gamma 0.5 (Lavie and Agarwal 2007).
    Without WordNet it would be another score, so there is none: ``wordnet`` is a folder with its dictionary
    (``index.noun``, ``data.noun``, ...).

    Raises UserError where the folder lacks a file or holds another dictionary.
    """

    def __init__(self, wordnet: str | Path):
        from nltk.stem.porter import PorterStemmer
        from nltk.tokenize import NLTKWordTokenizer

        self._synonyms = _Synonyms(Path(wordnet))
        self._stemmer = _CachedStemmer(PorterStemmer())
        self._words = functools.lru_cache(maxsize=None)(NLTKWordTokenizer().tokenize)

    def __call__(self, decoded: str, reference: str) -> float:
        """METEOR of one caption ``decoded`` against one ``reference``, in 0..1."""
        from nltk.translate.meteor_score import single_meteor_score

        return single_meteor_score(
            self._words(reference),
            self._words(decoded),
            stemmer=self._stemmer,
            wordnet=self._synonyms,
            alpha=0.9,
            beta=3.0,
            gamma=0.5,
        )


class CaptionScorer:
    """The caption scores for which files and networks are there; each network is loaded by the caller, once.

    Parameters
    ----------
    texts : encoders by score, out of ``EMBEDDED``; a score without its encoder is left out
    wordnet : folder of WordNet's dictionary; without it METEOR is left out

    ``scores`` names those that are computed, in the order of CAPTION_SCORES, ``missing`` the others and what each lacks.
    Raises UserError for an encoder of an unknown score, or where ``Meteor`` does.
    """

    def __init__(self, texts: Mapping[str, TextEncoder], wordnet: str | Path | None = None):
        from rouge_score.rouge_scorer import RougeScorer

        for name in texts:
            if name not in EMBEDDED:
                raise UserError(f"caption scores: {name} has no text encoder; expected some of {', '.join(EMBEDDED)}")
        self._texts = dict(texts)
        self._meteor = None if wordnet is None else Meteor(wordnet)
        self._rouge = RougeScorer(list(ROUGE.values()), use_stemmer=False)
        self._vectors: dict[str, dict[str, np.ndarray]] = {name: {} for name in texts}
        lacking = {"meteor": "WordNet's dictionary"} if wordnet is None else {}
        lacking |= {name: "its text encoder" for name in EMBEDDED if name not in texts}
        self.missing = {name: lacking[name] for name in CAPTION_SCORES if name in lacking}
        self.scores = tuple(name for name in CAPTION_SCORES if name not in lacking)

    def pairs(
        self, decoded: Sequence[str], references: Sequence[Sequence[str]], i: np.ndarray, j: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Scores of ``decoded[i[k]]`` against the best of ``references[j[k]]``, for each k: {score: float64 (k,)}."""
        flat = [text for group in references for text in group]
        starts = np.cumsum([0, *(len(group) for group in references[:-1])])
        found = {}
        for name, encoder in self._texts.items():
            cosines = self._embed(name, encoder, decoded).astype(np.float64) @ self._embed(name, encoder, flat).T
            found[name] = np.maximum.reduceat(cosines, starts, axis=1)[i, j]
        wanted = {(decoded[a], text) for a, b in zip(i, j, strict=True) for text in references[b]}
        words = {pair: self._by_words(*pair) for pair in wanted}  # each pair of sentences once
        for name in set(self.scores) - set(self._texts):
            found[name] = np.array(
                [max(words[decoded[a], text][name] for text in references[b]) for a, b in zip(i, j, strict=True)]
            )
        return {name: found[name] for name in self.scores}

    def _by_words(self, decoded: str, reference: str) -> dict[str, float]:
        rouge = self._rouge.score(reference, decoded)
        found = {name: rouge[key].fmeasure for name, key in ROUGE.items()}
        return found if self._meteor is None else {"meteor": self._meteor(decoded, reference), **found}

    def _embed(self, name: str, encoder: TextEncoder, sentences: Sequence[str]) -> np.ndarray:
        """Methods share references, and often captions, so what was embedded is kept."""
        known = self._vectors[name]
        if new := sorted(set(sentences) - set(known)):
            known.update(zip(new, encoder.embed(new), strict=True))
        return np.stack([known[sentence] for sentence in sentences])


def caption_scores(
    decoded: Sequence[str], references: Sequence[Sequence[str]], scorer: CaptionScorer
) -> dict[str, np.ndarray]:
    """Scores of p decoded captions, each against the references of its image.

    Parameters
    ----------
    decoded : sequence of p str
    references : sequence of p sequences of str
        One or more for each image; the best counts.
    scorer : CaptionScorer

    Returns
    -------
    dict of str to array, float64 (p,)
        METEOR and ROUGE in 0..1, cosines in -1..1.

    Raises
    ------
    UserError
        For unequal counts, an image without references, or anything that is no text.

    Examples
    --------
    >>> scores = caption_scores(["a red car"], [["a red car", "a dog"]], CaptionScorer({}))
    >>> scores["rouge_1"]
    array([1.])
    """
    _check(decoded, references)
    every = np.arange(len(decoded))
    return scorer.pairs(decoded, references, every, every)


def caption_chance(
    decoded: Sequence[str], references: Sequence[Sequence[str]], scorer: CaptionScorer, seed: int, pairs: int = PAIRS
) -> dict[str, float]:
    """Chance levels: the mean scores of random pairs of a caption and another image's references.

    Parameters
    ----------
    decoded : sequence of p str, p > 1
    references : sequence of p sequences of str
    scorer : CaptionScorer
    seed : int
    pairs : int

    Returns
    -------
    dict of str to float

    Raises
    ------
    UserError
        As ``caption_scores`` does, and for fewer than 2 images.

    Examples
    --------
    >>> caption_chance(["a cat", "two dogs"], [["a cat"], ["two dogs"]], CaptionScorer({}), seed=0)["rouge_1"]
    0.0
    """
    _check(decoded, references)
    found = scorer.pairs(decoded, references, *random_pairs(len(decoded), seed, pairs))
    return {name: float(values.mean()) for name, values in found.items()}


def caption_block(
    decoded: Sequence[str], references: Sequence[Sequence[str]], scorer: CaptionScorer, seed: int
) -> tuple[dict, dict[str, np.ndarray]]:
    """One method's captions of p images, of one kind (retrieved, or written).

    Images without a reference, empty in ``references``, are left out and counted. Returns the block ``{"images",
    "without_reference", "scores": {score: {"mean", "ci95": [low, high], "chance"}}, "missing": {score: what it lacks}}`` and
    float32 (p,) by score, NaN for images that were left out. Raises UserError as ``caption_scores`` and ``caption_chance``
    do, and where no two images have a reference.
    """
    if len(decoded) != len(references):
        raise UserError(f"decoded captions: {len(decoded)} for {len(references)} images; expected one for each of them")
    kept = np.flatnonzero([len(group) > 0 for group in references])
    if len(kept) < 2:
        raise UserError(f"reference captions: {len(kept)} of {len(references)} images have one; expected at least 2")
    some, their = [decoded[k] for k in kept], [references[k] for k in kept]
    found, chance = caption_scores(some, their, scorer), caption_chance(some, their, scorer, seed)
    arrays = {}
    for name, values in found.items():
        arrays[name] = np.full(len(decoded), np.nan, np.float32)
        arrays[name][kept] = values
    return {
        "images": len(kept),
        "without_reference": len(decoded) - len(kept),
        "scores": {
            name: {"mean": float(values.mean()), "ci95": list(bootstrap_ci(values, seed)), "chance": chance[name]}
            for name, values in found.items()
        },
        "missing": dict(scorer.missing),
    }, arrays


def _check(decoded: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if len(decoded) != len(references) or not len(decoded):
        raise UserError(f"decoded captions: {len(decoded)} for {len(references)} images; expected one for each of them")
    for k, (text, group) in enumerate(zip(decoded, references, strict=True)):
        if not isinstance(text, str):
            raise UserError(f"decoded captions: number {k} is a {type(text).__name__}; expected text")
        if isinstance(group, str) or not len(group) or not all(isinstance(one, str) for one in group):
            raise UserError(f"reference captions: those of image {k} are {group!r}; expected one text or more")


class _CachedStemmer:
    def __init__(self, stemmer):
        self.stem = functools.lru_cache(maxsize=None)(stemmer.stem)


class _Lemma(str):
    def name(self) -> str:
        return str(self)


class _Synset(tuple):
    def lemmas(self) -> tuple[_Lemma, ...]:
        return self


class _Synonyms:
    """WordNet as METEOR asks for it: the words that share a synset with a word, here as one synset, looked up once."""

    def __init__(self, folder: Path):
        missing = [name for name in WORDNET_FILES if not (folder / name).is_file()]
        if missing:
            raise UserError(
                f"{folder}: {missing[0]} not found; expected WordNet's dictionary (Debian's wordnet-base, or "
                "NLTK's corpora/wordnet)"
            )
        self._reader = _wordnet_reader(folder.resolve())
        self.synsets = functools.lru_cache(maxsize=None)(self._look_up)

    def _look_up(self, word: str) -> list[_Synset]:
        names = {lemma.name() for synset in self._reader.synsets(word) for lemma in synset.lemmas()}
        return [_Synset(_Lemma(name) for name in sorted(names))]


@functools.cache  # to read it takes seconds
def _wordnet_reader(folder: Path):
    import nltk.data
    from nltk.corpus.reader.wordnet import WordNetCorpusReader, WordNetError

    class Reader(WordNetCorpusReader):
        """Two things that NLTK reads at once and METEOR never asks for, Debian's package leaves out or NLTK downloads."""

        def open(self, file):
            if file == "lexnames":  # names of the 45 files that synsets were written in
                return io.StringIO("".join(f"{k:02} file{k} 0\n" for k in range(45)))
            return super().open(file)

        def map_wn(self, version="wordnet"):  # offsets of NLTK's own copy, for other languages
            return None

    if str(folder) not in nltk.data.path:  # NLTK reads from its data folders alone
        nltk.data.path.append(str(folder))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that other languages are not there
            return Reader(str(folder), None)
    except (WordNetError, OSError, ValueError, LookupError, AssertionError, StopIteration) as error:
        raise UserError(
            f"{folder}: not WordNet's dictionary ({one_line(error)}); expected that of Debian's wordnet-base, or "
            "NLTK's corpora/wordnet"
        ) from error


class ClipTextEncoder:
    """Sentences -> unit vectors for CLIP-B and CLIP-L.

    They are CLIP's projected text embedding, ``CLIPModel.get_text_features``, normalised.

    Parameters
    ----------
    source : folder of a CLIP in transformers' format, whose image tower is left on disk, or its id on the hub; the MindEye2
        evaluation's are openai/clip-vit-base-patch32 for CLIP-B and openai/clip-vit-large-patch14 for CLIP-L
    batch : sentences embedded at a time

    ``width`` is the vectors' width d. Raises UserError where the folder is missing, damaged, or another model's.
    """

    def __init__(self, source: str | Path, batch: int = 128):
        transformers, folder = package("transformers"), model_folder(source, CLIP_FILES, "the folder of a CLIP")
        kind = read_json(folder / "config.json").get("model_type")
        if kind not in ("clip", "clip_text_model"):
            raise UserError(f"{folder / 'config.json'}: model_type is {kind!r}; expected 'clip'")
        self.network = load_part(transformers.CLIPTextModelWithProjection, folder, torch.float32).to(device())
        self.tokenizer = load_tokenizer(transformers.AutoTokenizer, folder, self.network)
        self.width, self.batch = self.network.config.projection_dim, batch

    @torch.no_grad()
    def embed(self, sentences: list[str]) -> np.ndarray:
        """Sentences (n) -> float32 (n, d), each of unit length; what is longer than the tower's context is cut."""
        vectors = np.empty((len(sentences), self.width), np.float32)
        longest = self.network.config.max_position_embeddings
        for start in range(0, len(sentences), self.batch):
            words = self.tokenizer(
                sentences[start : start + self.batch], return_tensors="pt", padding=True, truncation=True, max_length=longest
            ).to(device())
            found = self.network(**words).text_embeds
            vectors[start : start + self.batch] = torch.nn.functional.normalize(found, dim=-1).cpu().numpy()
        return vectors
