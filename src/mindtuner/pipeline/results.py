"""What an evaluation found: scores, controls, intervals, pictures and words; as a page, as a table, beside other runs."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mindtuner.config import Config
from mindtuner.errors import UserError
from mindtuner.evaluation import compare as comparison
from mindtuner.evaluation import score_table
from mindtuner.evaluation.results import Run, load_run, save_run
from mindtuner.evaluation.scores.catalogue import of_part
from mindtuner.files import write_text
from mindtuner.inputs import read_text
from mindtuner.pipeline.decoded_table import (
    CONFUSION,
    DECODED,
    SCORES,
    confusion_table,
    read_table,
    scores_table,
    write_table,
)
from mindtuner.pipeline.run_folder import SETTINGS, settings_text
from mindtuner.report import write_report


@dataclass(frozen=True, eq=False)
class Comparison:
    """Paired differences of two evaluations, image by image; made by ``Results.compare``.

    Attributes
    ----------
    found : dict
        Plain values, see ``evaluation.compare.compare``.
    """

    found: dict

    def __repr__(self) -> str:
        return comparison.comparison_text(self.found)

    def to_frame(self) -> pd.DataFrame:
        """A row a score, indexed by part and score.

        Columns are ``a``, ``b``, ``difference``, ``low`` and ``high`` of its 95 % interval, ``p``, and ``p_holm`` over all
        scores.
        """
        rows = {
            (row["part"], row["score"]): {
                "a": row["a"]["mean"],
                "b": row["b"]["mean"],
                "difference": row["difference"],
                "low": row["ci"][0],
                "high": row["ci"][1],
                "p": row["p"],
                "p_holm": row["p_holm"],
            }
            for row in self.found["scores"]
        }
        frame = pd.DataFrame.from_dict(rows, orient="index")
        frame.index = pd.MultiIndex.from_tuples(frame.index, names=("part", "score"))
        return frame


@dataclass(frozen=True, eq=False)
class Results:
    """The scores of one subject's test images; made by ``evaluate``, or read by ``load``.

    Attributes
    ----------
    run : Run
        ``results`` (plain values, as in results.json), ``pictures``, ``words``, ``per_image`` and the training ``log``.
    config : str
        The settings, as in config.yaml.
    folder : Path or None
        Where the run lies, if it was saved.
    decoded : DataFrame or None
        What the first method decoded of each test image, see ``decoded_table``; None of a run from before there was one.
    """

    run: Run
    config: str
    folder: Path | None = None
    decoded: pd.DataFrame | None = None

    def __repr__(self) -> str:
        return score_table.text(self.run.results)

    @property
    def methods(self) -> dict[str, dict]:
        """Summary of each method and control, as in results.json."""
        return self.run.results["methods"]

    @property
    def chance(self) -> dict:
        """Chance levels, as in results.json."""
        return self.run.results["chance"]

    @classmethod
    def of(
        cls,
        results: dict,
        pictures: Mapping[str, np.ndarray],
        words: dict,
        per_image: dict[str, np.ndarray],
        config: Config,
        log: list[dict],
        decoded: pd.DataFrame | None = None,
    ) -> Results:
        """Results that have no folder yet."""
        run, settings = Run(results, pictures, words, per_image, log), settings_text(config, results["setting"]["command"])
        return cls(run, settings, None, decoded)

    @classmethod
    def load(cls, folder: str | Path) -> Results:
        """Read a run that ``evaluate`` or ``demo`` finished. Raises UserError naming the file that is missing or broken."""
        folder = Path(folder)
        decoded = read_table(folder / DECODED) if (folder / DECODED).is_file() else None
        return cls(load_run(folder), read_text(folder / SETTINGS, "the settings of the run"), folder, decoded)

    def save(self, folder: str | Path) -> Results:
        """Write results, pictures, words, scores of single images and ``report.html`` into a folder.

        ``decoded.csv`` says what was decoded of each test image, ``scores.csv`` how good each method was on it, and, where
        captions are categories, ``confusion.csv`` how many images of each were taken for which.

        Settings and training log that lie there already are the run's own and stay. Raises UserError where the disk refuses.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / SETTINGS).exists():
            write_text(folder / SETTINGS, self.config)
        if not (folder / "log.jsonl").exists():
            write_text(folder / "log.jsonl", "".join(json.dumps(entry) + "\n" for entry in self.run.log))
        if self.decoded is not None:
            write_table(folder / DECODED, self.decoded)
        write_table(folder / SCORES, scores_table(self.run))
        if "categories" in self.run.results:
            write_table(folder / CONFUSION, confusion_table(self.run.results["categories"]))
        save_run(folder, self.run.results, self.run.pictures, self.run.words, self.run.per_image)
        write_report(folder)
        return Results(load_run(folder), self.config, folder, self.decoded)

    def report(self, path: str | Path | None = None) -> Path:
        """Write the page that shows the run: pictures seen and reconstructed, scores with intervals, training, settings.

        Parameters
        ----------
        path : path, optional
            Of the HTML file, by default ``report.html`` in the run's folder, or here where it has none.

        Returns
        -------
        Path
        """
        if self.folder is not None:
            return write_report(self.folder, out=None if path is None else Path(path))
        with tempfile.TemporaryDirectory() as folder:
            self.save(Path(folder) / "run")
            return write_report(Path(folder) / "run", out=Path(path or "report.html"))

    def to_frame(self) -> pd.DataFrame:
        """The scores as a table: a row a method or control, and ``chance``; columns by part and score.

        Examples
        --------
        >>> results.to_frame()["retrieval"].columns.tolist()
        ['image', 'brain', 'text']
        """
        first = next(iter(self.methods.values()))
        scores = [
            score
            for part in ("retrieval", "reconstruction")
            for score in of_part(part).values()
            if score.name in first.get(part, {})
        ]
        rows = {
            method: {(score.part, score.name): own[score.part][score.name] for score in scores}
            for method, own in self.methods.items()
        }
        rows["chance"] = {(score.part, score.name): score_table.chance_of(self.chance, score) for score in scores}
        frame = pd.DataFrame.from_dict(rows, orient="index")
        frame.columns = pd.MultiIndex.from_tuples(frame.columns, names=("part", "score"))
        return frame

    def compare(
        self, other: Results | None = None, method: str = "mindtuner", other_method: str | None = None, seed: int = 0
    ) -> Comparison:
        """This run minus another on the same test images, paired by image; or one method minus another of this run.

        Parameters
        ----------
        other : Results, optional
            By default this run, whose ``other_method`` is compared.
        method, other_method : str
            Of this run and of the other; by default the same.
        seed : int
            Of resampling.

        Raises
        ------
        UserError
            Where the runs are of different test sets, do not have the method, or nothing else is named.

        Examples
        --------
        >>> results.compare(other_method="ridge_only").to_frame()["difference"].size > 0
        True
        """
        if other in (None, self) and other_method in (None, method):
            raise UserError("other: is this run; expected another, or another method of it as `other_method`")
        names = (str(self.folder or "A"), str((other or self).folder or "B"))
        mine, theirs = {names[0]: self.run}, {names[1]: (other or self).run}
        return Comparison(comparison.compare(mine, theirs, method, other_method, seed=seed))
