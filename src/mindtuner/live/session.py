"""One session that is going on: each trial decoded as it comes, its picture painted meanwhile, and all of it kept."""

from __future__ import annotations

import datetime
import json
import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mindtuner.data import Stimuli
from mindtuner.decoding.decoder import Predictions
from mindtuner.decoding.training_images import unit_rows
from mindtuner.files import atomic_path, write_arrays
from mindtuner.inputs import open_tensors, read_array
from mindtuner.live.arrivals import Arrival, Broken
from mindtuner.live.running import RunningZScore
from mindtuner.pipeline.decoded_table import DECODED, NEAREST, write_table
from mindtuner.pipeline.decoder import SubjectDecoder
from mindtuner.pipeline.decoding import PICTURES, write_picture

STATE, BETAS = "live.safetensors", "betas"
PAINTERS_NICENESS = 10


@dataclass(frozen=True, eq=False)
class LookUp:
    """What a trial is looked up among.

    stimuli : Stimuli
    tokens : array (N, T, D), of all stimuli
    candidates : int64 (m,), ids of stimuli, ascending
    """

    stimuli: Stimuli
    tokens: np.ndarray
    candidates: np.ndarray


class LiveSession:
    """Decodes trials one by one into a folder.

    The folder gets ``decoded.csv`` (a row a trial), ``betas/NAME.npy`` (z-scored, as they were decoded),
    ``pictures/NAME.png`` and ``live.safetensors``, from which a session that was killed goes on.

    Parameters
    ----------
    decoder : SubjectDecoder
    among : LookUp
    out : path
        Empty, or of the same session.
    zscore : RunningZScore or None
        None where trials come z-scored.
    pictures : bool
        Whether to paint.

    Attributes
    ----------
    trials : list of dict
        What each trial said, in the order in which they came.
    broken : dict of str to str
        Files that are no trial, and why.
    """

    def __init__(
        self, decoder: SubjectDecoder, among: LookUp, out: Path, zscore: RunningZScore | None, pictures: bool = True
    ):
        self._decoder, self._among, self._out, self._zscore = decoder, among, out, zscore
        self._units: np.ndarray | None = None  # of the candidates, which are looked through for every trial
        self._changed, self._over, self._last, self._paints = threading.Condition(), False, False, pictures
        self.broken: dict[str, str] = {}
        self.trials: list[dict] = _load_state(out / STATE, zscore)
        if self.trials:
            self._write_table()  # a kill may have come between the state and the table

    def warm_up(self) -> None:
        """Open what the first trial would have to wait for."""
        said = self._decoder.predict(np.zeros((1, self._decoder.n_voxels), np.float32))
        _ = self._decoder.words(said).said, self._nearest(said)
        if self._paints:
            _ = self._decoder.generator, self._decoder.training_tokens

    def take(self, found: Arrival | Broken) -> None:
        """Decode what arrived, and keep what it said; or keep that it is broken."""
        if isinstance(found, Broken):
            self.broken[found.name] = found.why
            return
        self.broken.pop(found.name, None)
        begun = time.monotonic()
        betas = found.betas if self._zscore is None else self._zscore(found.betas)
        number = len(self.trials)
        said = self._decoder.predict(betas[None], np.array([number]))
        decoded = time.monotonic()
        words = self._decoder.words(said)
        phrases = words.said[0] if words.said is not None else []
        caption = words.captions[0] if words.bank.captions else ""
        read = time.monotonic()
        nearest = self._nearest(said)
        looked_up = time.monotonic()
        seconds = {"waited": begun - found.seen, "decode": decoded - begun, "words": read - decoded}
        entry = {
            "trial": found.name,
            "number": number + 1,
            "time": datetime.datetime.now().astimezone().isoformat(timespec="milliseconds"),
            "words": [[phrase, round(sure, 4)] for phrase, sure in phrases],
            "caption": caption,
            "nearest": nearest,
            "seconds": {name: round(value, 4) for name, value in {**seconds, "look up": looked_up - read}.items()},
        }
        with atomic_path(self._betas_of(entry)) as part, part.open("wb") as file:
            np.save(file, betas)
        with self._changed:
            self.trials.append(entry)
            self._save_state()
            self._changed.notify_all()
        self._write_table()

    def paint_until_over(self) -> None:
        """Paint trials that have no picture, the newest first, until ``end``: for a thread of its own, of low priority."""
        if sys.platform == "linux":  # where a thread has one; a trial that comes meanwhile is not to wait
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), PAINTERS_NICENESS)
        while (entry := self._next_to_paint()) is not None:
            betas = np.array(read_array(self._betas_of(entry), "a trial that was decoded"))
            found = self._decoder.predict(betas[None], np.array([entry["number"] - 1]))
            painted = self._decoder.paint(found, np.array([0]))
            write_picture(self.picture_of(entry), painted.pictures[0])

    def end(self, paint_all: bool = False) -> None:
        """No more trials come. The picture that is being painted is finished, or, if asked, those of all trials."""
        with self._changed:
            self._last, self._over = True, not paint_all
            self._changed.notify_all()

    def picture_of(self, entry: dict) -> Path:
        """Where a trial's picture is, or will be."""
        return self._out / PICTURES / f"{_stem(entry)}.png"

    def state(self) -> dict:
        """What a page shows: trials, with whether each is painted, and broken files."""
        with self._changed:
            trials = list(self.trials)
        return {
            "trials": [{**entry, "painted": self.picture_of(entry).exists()} for entry in trials],
            "broken": [{"name": name, "why": why} for name, why in self.broken.items()],
            "paints": self._paints,
        }

    def _nearest(self, said: Predictions) -> list[dict]:
        """The candidates that are most like a trial, with how likely each is to be what was seen."""
        if self._units is None:
            self._units = unit_rows(said.compared(np.asarray(self._among.tokens[self._among.candidates], np.float32)))
        close = (unit_rows(said.retrieval_tokens) @ self._units.T).astype(np.float64)
        order = np.argsort(-close[0], kind="stable")[:NEAREST]
        sure = (
            None
            if self._decoder.network.confidence is None
            else self._decoder.network.confidence(torch.from_numpy(close))[0].numpy()
        )
        images = self._among.candidates[order]
        return [
            {
                "image": int(image),
                "name": self._among.stimuli.names[image],
                "confidence": None if sure is None else round(float(sure[at]), 4),
            }
            for at, image in zip(order, images, strict=True)
        ]

    def _next_to_paint(self) -> dict | None:
        with self._changed:
            while not self._over:
                for entry in reversed(self.trials):
                    if not self.picture_of(entry).exists():
                        return entry
                if self._last:
                    break
                self._changed.wait()
        return None

    def _betas_of(self, entry: dict) -> Path:
        return self._out / BETAS / f"{_stem(entry)}.npy"

    def _save_state(self) -> None:
        arrays = {"none": np.zeros(0)}
        if self._zscore is not None:
            arrays = {"sums": self._zscore.sums, "squares": self._zscore.squares}
        write_arrays(self._out / STATE, arrays, {"trials": json.dumps(self.trials)})

    def _write_table(self) -> None:
        write_table(self._out / DECODED, live_table(self.trials))


def live_table(trials: list[dict]) -> pd.DataFrame:
    """A row a trial, with the columns of ``decoded_table`` as far as they are known of an image that nobody named.

    Examples
    --------
    >>> trial = {"trial": "a.npy", "time": "12:00", "words": [["a cat", 0.8]], "caption": "", "seconds": {"waited": 0.1},
    ...          "nearest": [{"image": 3, "name": "cat.png", "confidence": 0.5}]}
    >>> live_table([trial]).iloc[0].to_dict()["nearest_1"]
    'cat.png'
    """
    rows = []
    for entry in trials:
        near = entry["nearest"]
        rows.append(
            {
                "trial": entry["trial"],
                "time": entry["time"],
                "words": "; ".join(phrase for phrase, _ in entry["words"]),
                "words_confidence": "; ".join(f"{sure:.3f}" for _, sure in entry["words"]),
                "caption": entry["caption"],
                **{f"nearest_{k + 1}": one["name"] for k, one in enumerate(near)},
                "confidence": near[0]["confidence"],
                "seconds": round(sum(entry["seconds"].values()), 3),
            }
        )
    return pd.DataFrame(rows)


def _load_state(path: Path, zscore: RunningZScore | None) -> list[dict]:
    """The trials of a session that was stopped, and what was counted for z-scores. Raises UserError where it is damaged."""
    if not path.exists():
        return []
    with open_tensors(path, "what mindtuner live wrote", "numpy") as file:
        trials = json.loads(file.metadata()["trials"])
        if zscore is not None:
            zscore.sums[:], zscore.squares[:] = file.get_tensor("sums"), file.get_tensor("squares")
            zscore.count = len(trials)
    return trials


def _stem(entry: dict) -> str:
    """A trial's name without its kind, after its number, since trial-1.npy and trial-1.nii would be one."""
    name = entry["trial"]
    for kind in (".npy", ".nii.gz", ".nii"):
        name = name.removesuffix(kind)
    return f"{entry['number']:04d}-{name}"
