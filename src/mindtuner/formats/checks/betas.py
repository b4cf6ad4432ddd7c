"""The check of betas, which is alike in all formats: every row is read once, session by session, in blocks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mindtuner.data.lazy import LazyArray
from mindtuner.data.zscore import LARGEST, MEASURED
from mindtuner.errors import UserError
from mindtuner.formats.checks.findings import Findings, some
from mindtuner.runtime import progress

BLOCK_BYTES = 32 * 2**20
FEW = 8  # trials that say nothing about a voxel that is constant over them
MEAN_LIMIT, SD_LIMITS = 0.5, (0.5, 2.0)  # of a z-scored session, median over voxels
KINDS: tuple[tuple[str, Callable[[np.ndarray], np.ndarray]], ...] = (
    ("NaN", np.isnan),
    ("infinite", np.isinf),
    ("absurdly large", lambda block: np.isfinite(block) & (np.abs(block) > LARGEST)),
)
MANY_ZEROED = 0.05  # of the voxels: more do not leave the imaged volume when a head moves


@dataclass(frozen=True)
class Labels:
    """What messages call a row and a voxel."""

    row: Callable[[int], str] = "row {}".format
    voxel: Callable[[int], str] = "voxel {}".format


def check_betas(
    findings: Findings,
    path: Path,
    betas: LazyArray,
    session: np.ndarray | None,
    zscored: bool,
    labels: Labels = Labels(),
    zeroed: bool = False,
) -> None:
    """Read all betas, (rows, V), and report what is wrong with them.

    Reported is what is not finite or larger than any measurement, constant, there twice, or not z-scored although it is said
    to be. ``session``: int (rows,), 0 where unknown; None where nobody knows any. ``zeroed``: a session may hold voxels that
    it did not image, all 0, as NSD's do.
    """
    rows, voxels = betas.shape
    session = np.zeros(rows, np.int64) if session is None else session
    whole, sessions = _Voxels(voxels), {}
    values = [_NoMeasurement(*kind, rows, voxels, labels) for kind in KINDS]
    odd_rows = _OddRows(labels)
    bar = progress(range(rows), findings.name(path), total=rows, unit="row")
    for number in np.unique(session).tolist():
        own = _Voxels(voxels)
        for ids, block in _blocks(betas, np.flatnonzero(session == number), findings, path):
            bar.update(len(ids))
            for kind in values:
                kind.add(ids, block)
            odd_rows.add(ids, block)
            own.add(block)
        whole.merge(own)
        if number > 0 and own.count >= FEW:
            sessions[number] = own.constant(), own.not_zscored() if zscored else ""
    bar.close()
    for kind in values:
        kind.report(findings, path)
    odd_rows.report(findings, path)
    constant = whole.constant()
    if whole.count >= FEW and constant.any():
        (findings.warning if zeroed else findings.error)(
            path,
            "betas",
            f"{constant.sum()} of {voxels} voxels are the same in all {whole.count} rows: "
            f"{_voxels(constant, labels)}; expected betas that vary (leave such voxels out of the mask)",
        )
    for number, (mask, _) in sessions.items():
        if (own := mask & ~constant).any():
            _report_session(findings, path, number, own, labels, zeroed)
    if odd := [f"session {number} has {found}" for number, (_, found) in sessions.items() if found]:
        findings.warning(
            path,
            "zscore",
            f"betas are said to be z-scored, but {some(odd)}; expected a mean near 0 and an sd near 1 in each session",
        )


def _report_session(findings: Findings, path: Path, number: int, own: np.ndarray, labels: Labels, zeroed: bool) -> None:
    found = f"{own.sum()} voxels are constant in session {number}: {_voxels(own, labels)}; "
    if not zeroed:
        findings.warning(path, "betas", found + "tuning on that session alone refuses them")
    elif own.mean() <= MANY_ZEROED:
        findings.note(path, "betas", found + "their z-scores in it will be 0")
    else:
        findings.warning(
            path,
            "betas",
            found + f"expected at most {MANY_ZEROED:.0%} of the {len(own)} voxels outside the "
            "imaged volume; a file that was not copied to its end?",
        )


def _voxels(mask: np.ndarray, labels: Labels) -> str:
    return some(labels.voxel(i) for i in np.flatnonzero(mask).tolist())


def _blocks(betas: LazyArray, rows: np.ndarray, findings: Findings, path: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(row numbers, float64 block), without the blocks that cannot be read: the first of these is reported."""
    reported = False
    for ids in np.array_split(rows, 1 + len(rows) * betas.shape[1] * 8 // BLOCK_BYTES):
        try:
            block = np.asarray(betas[ids], np.float64)
        except UserError as error:
            if not reported:
                with findings.catching(path, f"betas rows {ids[0]} to {ids[-1]}"):
                    raise error
            reported = True
        else:
            yield ids, block


class _Voxels:
    """Smallest, largest, sum and sum of squares of each voxel over the rows added so far."""

    def __init__(self, voxels: int):
        self.count = 0
        self.low, self.high = np.full(voxels, np.inf), np.full(voxels, -np.inf)
        self.sum, self.squares = np.zeros(voxels), np.zeros(voxels)

    def add(self, block: np.ndarray) -> None:
        self.count += len(block)
        self.low, self.high = np.minimum(self.low, block.min(axis=0)), np.maximum(self.high, block.max(axis=0))
        with np.errstate(invalid="ignore", over="ignore"):
            self.sum += block.sum(axis=0)
            self.squares += (block**2).sum(axis=0)

    def merge(self, other: _Voxels) -> None:
        """Takes over what ``constant`` needs."""
        self.count += other.count
        self.low, self.high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)

    def constant(self) -> np.ndarray:
        return (self.low == self.high) & np.isfinite(self.low)

    def not_zscored(self) -> str:
        """What speaks against these rows having been z-scored together, or nothing."""
        with np.errstate(invalid="ignore", over="ignore"):
            mean = self.sum / self.count
            sd = np.sqrt(np.maximum(self.squares / self.count - mean**2, 0))
        usable = np.isfinite(mean) & np.isfinite(sd)
        if not usable.any():
            return ""
        mean, sd = np.median(np.abs(mean[usable])), np.median(sd[usable])
        if mean <= MEAN_LIMIT and SD_LIMITS[0] <= sd <= SD_LIMITS[1]:
            return ""
        return f"a median |mean| of {mean:.3g} and a median sd of {sd:.3g}"


class _NoMeasurement:
    """Which rows and voxels hold a value that ``test`` finds."""

    def __init__(self, word: str, test: Callable[[np.ndarray], np.ndarray], rows: int, voxels: int, labels: Labels):
        self.word, self.test, self.labels = word, test, labels
        self.rows, self.voxels = np.zeros(rows, bool), np.zeros(voxels, bool)
        self.first = ""

    def add(self, ids: np.ndarray, block: np.ndarray) -> None:
        found = self.test(block)
        if found.any():
            at, voxel = np.argwhere(found)[0]
            self.first = self.first or f"{self.labels.row(ids[at])}, {self.labels.voxel(voxel)}"
            self.rows[ids[found.any(axis=1)]] = True
            self.voxels |= found.any(axis=0)

    def report(self, findings: Findings, path: Path) -> None:
        if self.first:
            findings.error(
                path,
                "betas",
                f"{self.voxels.sum()} of {len(self.voxels)} voxels hold {self.word} values, in "
                f"{self.rows.sum()} of {len(self.rows)} rows, first in {self.first}; expected {MEASURED} "
                "each (leave such voxels out of the mask)",
            )


class _OddRows:
    """Rows with one value in all voxels, and rows that equal an earlier one."""

    def __init__(self, labels: Labels):
        self.labels = labels
        self.seen: dict[bytes, int] = {}
        self.flat: list[int] = []
        self.twins: list[str] = []

    def add(self, ids: np.ndarray, block: np.ndarray) -> None:
        flat = (block == block[:, :1]).all(axis=1) & (block.shape[1] > 1)
        self.flat += ids[flat].tolist()
        for row, values in zip(ids[~flat].tolist(), block[~flat], strict=True):
            twin = self.seen.setdefault(hashlib.blake2b(values.tobytes(), digest_size=16).digest(), row)
            if twin != row:
                self.twins.append(f"{self.labels.row(row)} = {self.labels.row(twin)}")

    def report(self, findings: Findings, path: Path) -> None:
        if self.flat:
            findings.warning(
                path,
                "betas",
                f"{len(self.flat)} rows have one value in all voxels: "
                f"{some(map(self.labels.row, self.flat))}; trials that were never estimated?",
            )
        if self.twins:
            findings.warning(
                path, "betas", f"{len(self.twins)} rows equal an earlier one: {some(self.twins)}; trials that were copied?"
            )
