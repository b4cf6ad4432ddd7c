"""Scores of pictures against their originals, whoever painted them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mindtuner.errors import UserError
from mindtuner.evaluation.scores.catalogue import ONE_HALF, RECOGNISED, find, of_part
from mindtuner.evaluation.scores.images import score_images
from mindtuner.evaluation.scores.networks import not_scored
from mindtuner.evaluation.scores.picture_files import read_pairs
from mindtuner.evaluation.scores.pictures import is_flat
from mindtuner.evaluation.scoring import defined
from mindtuner.evaluation.statistics import bootstrap_ci
from mindtuner.pipeline.stages import Scoring


@dataclass(frozen=True)
class PictureScores:
    """Scores of two folders of pictures; made by ``score_pictures``.

    scores : by name ``mean``, ``ci95`` (low, high), ``chance``, and ``pictures``, the value of each picture by its name
    flat : by folder (``seen``, ``painted``), names of pictures that have one value everywhere
    setting : networks and choices
    missing : by name, why a score is not there
    """

    scores: dict[str, dict]
    flat: dict[str, list[str]]
    setting: dict
    missing: dict[str, str]

    def __repr__(self) -> str:
        table = of_part("reconstruction")
        lines = [f"{'score':<16}{'mean':>8}{'95 % interval':>20}{'chance':>9}"]
        for name, found in self.scores.items():
            low, high = found["ci95"]
            interval = f"{low:.3f} to {high:.3f}"
            lines.append(f"{table[name].label:<16}{found['mean']:>8.3f}{interval:>20}{found['chance']:>9.3f}")
        for where, what in (("seen", "leaves out"), ("painted", "counts 0 for")):
            if self.flat[where]:
                names = ", ".join(self.flat[where])
                lines.append(f"PixCorr {what} {len(self.flat[where])} {where} pictures of one value everywhere: {names}")
        if self.missing:
            lines.append(not_scored(self.missing))
        return "\n".join(lines)


def score_pictures(
    seen: str | Path,
    painted: str | Path,
    scores: Sequence[str] | None = None,
    *,
    scoring: Scoring | None = None,
    seed: int = 0,
) -> PictureScores:
    """Score a folder of pictures against a folder of originals.

    Parameters
    ----------
    seen, painted : path
        Folders of pictures in RGB, of the same names and of one size each.
    scores : sequence of str, optional
        Some of the picture scores, by default all whose network is there.
    scoring : Scoring, optional
        By which networks and choices, by default by the package's own network.
    seed : int
        Of intervals, and of the random pairings behind chance.

    Returns
    -------
    PictureScores

    Raises
    ------
    UserError
        Where the folders do not pair up, a picture is damaged, or a score is unknown or has no network.

    Examples
    --------
    >>> list(mindtuner.score_pictures("seen", "painted", ["ssim"]).scores)
    ['ssim']
    """
    scoring = scoring or Scoring()
    missing = scoring.missing | dict.fromkeys(RECOGNISED, "needs captions of training images")
    wanted = list(of_part("reconstruction"))
    if scores is not None:
        wanted = [find("reconstruction", name.strip(), "scores").name for name in scores]
        for name in wanted:
            if name in RECOGNISED:
                raise UserError(f"scores: {name} cannot be had of two folders ({missing[name]}); expected other scores")
            if name in missing:
                raise UserError(f"scores: {name} cannot be had ({missing[name]}); expected its network")
    names, originals, pictures = read_pairs(Path(seen), Path(painted))
    networks = [network for network in scoring.networks if set(network.layers) & set(wanted)]
    values, chance = score_images(originals, {"painted": pictures}, networks, scoring.choices, ["painted"], seed)
    found = {}
    for name, array in values["painted"].items():
        if name in wanted:
            known = defined(array)
            found[name] = {
                "mean": known.mean(),
                "ci95": list(bootstrap_ci(known, seed)),
                "chance": 0.5 if of_part("reconstruction")[name].chance == ONE_HALF else chance["painted"][name],
                "pictures": {key: None if value != value else value for key, value in zip(names, array, strict=True)},
            }
    flat = {
        where: [name for name, is_one in zip(names, is_flat(images), strict=True) if is_one]
        for where, images in (("seen", originals), ("painted", pictures))
    }
    return PictureScores(found, flat, scoring.described(), missing if scores is None else {})
