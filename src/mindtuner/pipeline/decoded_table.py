"""What a person takes home: a table of what was decoded, and one of how good it was, by the file names of stimuli."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mindtuner.data import Stimuli
from mindtuner.decoding.decoder import Predictions
from mindtuner.decoding.training_images import TrainingTokens, similarity
from mindtuner.decoding.words import Words
from mindtuner.evaluation.held_out import positions
from mindtuner.evaluation.results import Run, names_of
from mindtuner.evaluation.scores.retrieval import score
from mindtuner.files import write_text
from mindtuner.model import BrainNetwork

NEAREST = 5  # images that are named
TEXT = (
    "stimulus",
    "category",
    "fold",
    "seen",
    "words",
    "words_confidence",
    "caption",
    *(f"nearest_{k + 1}" for k in range(NEAREST)),
)
DECODED, DECODED_TRIALS, SCORES = "decoded.csv", "decoded_trials.csv", "scores.csv"
CONFUSION = "confusion.csv"
_logger = logging.getLogger(__name__)


def decoded_table(
    found: Predictions,
    shown: np.ndarray,
    words: Words,
    stimuli: Stimuli,
    tokens: np.ndarray | None,
    candidates: np.ndarray,
    network: BrainNetwork,
    facts: Mapping[str, Sequence | np.ndarray] | None = None,
) -> pd.DataFrame:
    """A row for each of n brains: what was shown, what it says in words, and what is found among m images.

    Parameters
    ----------
    found : Predictions
        Of n images or trials.
    shown : array of int (n,)
        Id of the stimulus that each of them saw, which is among the candidates.
    words : Words
        Of the same.
    stimuli : Stimuli
    tokens : array (N, T, D), rows of a file, or None
        Of all stimuli. Without them nothing is looked up, and the columns from ``rank`` on are not there.
    candidates : array of int (m,)
        Ids, ascending.
    network : BrainNetwork
        That predicted. Where it does not know how sure it may be, ``confidence`` is left empty.
    facts : mapping of str to sequence of n, optional
        Further columns, after the image.

    Returns
    -------
    DataFrame
        ``stimulus`` (file name) and ``image`` (id); ``facts``; ``seen``, its first caption; ``words``, phrases parted by
        semicolons, and ``words_confidence``; ``caption``, the nearest of training captions; ``rank`` of the image seen among
        ``candidates``, equal ones sharing the middle; ``nearest_1`` to ``nearest_5``, file names; and ``confidence``, how
        likely it is that ``nearest_1`` was seen, given that one of the candidates was.
    """
    said = words.said or [[]] * len(shown)
    columns: dict[str, Sequence | np.ndarray] = {
        "stimulus": [stimuli.names[k] for k in shown],
        "image": shown,
        **(facts or {}),
        "seen": [next(iter(stimuli.captions[int(k)]), "") for k in shown],
        "words": ["; ".join(phrase for phrase, _ in some) for some in said],
        "words_confidence": ["; ".join(f"{sure:.3f}" for _, sure in some) for some in said],
        "caption": words.captions if words.bank.captions else [""] * len(shown),
    }
    if tokens is None:
        _say("rank, nearest and confidence: are left out, since no features of the stimuli are there to look images up by")
        return pd.DataFrame(columns)
    close = similarity(found.retrieval_tokens, TrainingTokens(tokens, candidates), found.mean_token).astype(np.float64)
    columns["rank"] = score(close, np.searchsorted(candidates, shown)).ranks
    columns["candidates"] = np.full(len(shown), len(candidates))
    order = np.argsort(-close, axis=1, kind="stable")[:, :NEAREST]
    columns |= {f"nearest_{k + 1}": [stimuli.names[candidates[at]] for at in order[:, k]] for k in range(order.shape[1])}
    if network.confidence is None:
        _say("confidence: is left empty, since the network does not know how sure it may be; tune with start: closed_form")
        return pd.DataFrame(columns).assign(confidence=np.nan)
    sure = network.confidence(torch.from_numpy(close)).max(1).values
    return pd.DataFrame(columns).assign(confidence=sure.numpy().round(4))


@functools.cache
def _say(what: str) -> None:
    """Said once."""
    _logger.warning(what)


def scores_table(run: Run) -> pd.DataFrame:
    """A row for each method and test image: its file name, its id, and every score that the run keeps of single images.

    A score that an image does not have, such as that of a picture that was not painted, is empty.
    """
    images = run.per_image["images"]
    methods = dict.fromkeys(key.partition("/")[0] for key in run.per_image if "/" in key)
    rows = []
    for method in run.results["methods"]:
        if method not in methods:
            continue
        table = pd.DataFrame({"method": method, "stimulus": names_of(run), "image": images})
        for key, values in run.per_image.items():
            own, _, rest = key.partition("/")
            if own == method:
                part, _, kind = rest.partition("/")
                table[f"{part}_{kind}"] = np.nan
                table.loc[positions(run.per_image, part, kind), f"{part}_{kind}"] = np.asarray(values, np.float64).round(6)
        rows.append(table)
    return pd.concat(rows, ignore_index=True)


def confusion_table(categories: Mapping[str, dict]) -> pd.DataFrame:
    """A row for each method, category seen and category decoded: how many images. Of the block ``categories``."""
    return pd.DataFrame(
        [
            (method, seen, decoded, count)
            for method, found in categories.items()
            for seen, row in zip(found["names"], found["confusion"], strict=True)
            for decoded, count in zip(found["names"], row, strict=True)
        ],
        columns=["method", "seen", "decoded", "images"],
    )


def write_table(path: Path, table: pd.DataFrame) -> None:
    """As CSV, UTF-8."""
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


def read_table(path: Path) -> pd.DataFrame:
    """The table that ``decoded_table`` made: text is text where it is empty too, or looks like a number."""
    return pd.read_csv(path, dtype=dict.fromkeys(TEXT, str), keep_default_na=False, na_values={"confidence": [""]})
