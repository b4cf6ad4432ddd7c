"""Where a subject's fingerprint lives: what flows from each voxel through ridge, LoRA and Skip-LoRA, as tables and a map."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from mindtuner.claims import releasing
from mindtuner.data import Dataset
from mindtuner.data.identity import inputs_of
from mindtuner.errors import UserError
from mindtuner.files import write_json, write_text
from mindtuner.inputs import reading
from mindtuner.pipeline.evaluation import weights_of
from mindtuner.pipeline.known import refuse_other_trials
from mindtuner.pipeline.run_folder import claim, refuse_overlap
from mindtuner.pipeline.subject import TunedSubject
from mindtuner.pipeline.tuned_files import WHOLE
from mindtuner.studies import map_figure, maps
from mindtuner.studies.routes import ROUTES, shares

ROUTE_WORDS = {
    "ridge": "ridge",
    "lora": "LoRA",
    "skip_linear": "Skip-LoRA, linear",
    "skip_nonlinear": "Skip-LoRA, non-linear",
}


@dataclass(frozen=True)
class FingerprintMaps:
    """What was found.

    ``results``, plain values as in results.json; ``simulated``, whether something planted was there to compare with;
    ``picture``, the map, or None and ``not_drawn``, why there is none.
    """

    results: dict
    simulated: bool
    picture: Path | None
    not_drawn: str = ""

    def __repr__(self) -> str:
        rows, scored = self.results["regions"], self.results["recovery"]
        lines = ["share of the decoded variance, by route (95 % over images)", ""]
        lines.append(f"{'region':<14}{'voxels':>8}" + "".join(f"{words:>32}" for words in ROUTE_WORDS.values()))
        for name in dict.fromkeys(row["region"] for row in rows):
            own = {row["route"]: row for row in rows if row["region"] == name}
            cells = ["{:+.4f} [{:+.4f}, {:+.4f}]".format(own[route]["share"], *own[route]["ci"]) for route in ROUTE_WORDS]
            lines.append(f"{name:<14}{own['ridge']['voxels']:>8}" + "".join(f"{cell:>32}" for cell in cells))
        lines.append(f"{'all voxels':<22}" + "".join(f"{self.results['shares'][route]:>+32.4f}" for route in ROUTE_WORDS))
        if scored:
            lines += [
                "",
                "maps beside what was planted: Spearman [chance], by permuted regions, by permuted voxels within each,",
                "and by random maps that are as smooth",
            ]
            for name, one in scored.items():
                cells = [
                    "the same in each region"
                    if part is None
                    else "{:+.3f} [{:+.3f}, {:+.3f}], p {:.3f}".format(part["spearman"], *part["null"], part["p"])
                    for part in (one["between"], one["within"], one["smooth"])
                ]
                lines.append(f"{name:<16}{cells[0]:<38}{cells[1]:<38}{cells[2]}")
        elif self.simulated:
            lines += ["", "nothing was planted that differs between voxels, so no map is scored"]
        return "\n".join(lines)


@releasing()
def map_fingerprint(
    tuned: TunedSubject,
    dataset: Dataset,
    out: str | Path,
    *,
    mask: str | Path | None = None,
    surface: Sequence[str | Path] | None = None,
    truth: str | Path | None = None,
    mask_values: Sequence[float] | None = None,
    force: bool = False,
    command: str = "mindtuner.studies.map_fingerprint",
) -> FingerprintMaps:
    """Share the variance of the tokens decoded from a subject's test trials out to voxels and routes.

    Writes ``voxels.csv``, ``regions.csv`` (95 % intervals over images) and ``results.json`` into ``out``, and
    ``fingerprint.png`` where the package that draws it is installed.

    Parameters
    ----------
    tuned : TunedSubject
        By a method on a frozen base; its first is mapped.
    dataset : Dataset
        Which holds the subject, with two test images at least.
    out : path
    mask : path, optional
        NIfTI volume that is above 0 at the subject's voxels, by default the dataset's own where it has one: the maps are
        drawn as slices of it, and written as ``fingerprint.nii.gz``.
    surface : two paths, optional
        GIFTI meshes of the left and the right hemisphere whose vertices are the subject's voxels: the maps are drawn on
        them, and written as ``fingerprint.left.func.gii`` and ``fingerprint.right.func.gii``.
    truth : path, optional
        Folder of the truth of simulated brains to score against, by default ``truth`` in the dataset's folder where there is
        one.
    mask_values : sequence of float, optional
        Values of ``mask`` at the subject's voxels, by default all above 0.
    force : bool
        Replace an earlier run in ``out``.
    command : str
        How it was called.

    Raises
    ------
    UserError
        Where the subject was not tuned on a frozen base, trials are too few, or mask, surface or truth are not the subject's.
    """
    out, subject = Path(out), dataset.subject(tuned.number)
    method, network = next(iter(tuned.networks.items()))
    if method in WHOLE:
        raise UserError(
            f"{tuned.files.get(method, method)}: is no fingerprint on a base; expected what mindtuner tune wrote for "
            "mindtuner, ridge_only or shuffled_brain"
        )
    test, train = subject.test, subject.sessions(tuned.config.tuning_sessions).train
    if len(np.unique(test.stimulus)) < 2 or len(train) == 0:
        raise UserError(
            f"{subject.where}: subject {subject.number} has {len(np.unique(test.stimulus))} test images and {len(train)} "
            "training trials; expected at least 2 and 1"
        )
    if mask is None and surface is None:
        mask = subject.mask
    volume = None if mask is None else map_figure.read_mask(Path(mask), subject.n_voxels, mask_values)
    meshes = None if surface is None else map_figure.read_surface(surface, subject.vertices, subject.n_voxels)
    planted = read_truth(Path(truth or dataset.root / "truth"), subject.number, subject.n_voxels, truth is not None)
    refuse_overlap(out, dataset=dataset.root, **tuned.files)
    hour = dataclasses.replace(dataset, subjects={tuned.number: subject.sessions(tuned.config.tuning_sessions)})
    inputs = inputs_of(hour, dataset.root / "cache", test=True)
    refuse_other_trials(tuned, inputs)
    claim(out, f"# {command}\n", force, inputs=inputs | weights_of(tuned, None))

    found = shares(
        network.eval(), tuned.name, subject.betas(test.row), test.stimulus, subject.betas(train.row).mean(0), subject.rois
    )
    seed = tuned.config.seed
    gains = maps.gains_of(network, tuned.name, subject.betas(test.row), seed)
    drawn, rows = maps.maps_of(found) | gains, maps.regions(found, subject.rois, seed)
    scored = {}
    if planted is not None and np.ptp(planted["fingerprint_share"]) > 0:
        scored = {
            name: maps.recovery(values, planted["fingerprint_share"], maps.by_itself(subject.rois), seed, planted["sheet"])
            for name, values in drawn.items()
            if np.ptp(values) > 0
        }
    _csv(
        out / "voxels.csv",
        ("voxel", *subject.rois, *ROUTES, "fingerprint", *gains),
        zip(
            range(subject.n_voxels),
            *(roi.astype(int) for roi in subject.rois.values()),
            *(route.round(9) for route in found.voxel),
            drawn["fingerprint"].round(6),
            *(values.round(6) for values in gains.values()),
            strict=True,
        ),
    )
    _csv(
        out / "regions.csv",
        ("region", "voxels", "route", "share", "low", "high"),
        ((r["region"], r["voxels"], r["route"], round(r["share"], 6), *(round(end, 6) for end in r["ci"])) for r in rows),
    )
    titles = {
        "Decoded variance through the ridge": drawn["ridge"],
        "Part of the fingerprint's routes in each voxel's share": drawn["fingerprint"],
    }
    if planted is not None:
        titles["Planted: share of the signal that is the subject's own"] = planted["fingerprint_share"]
    not_drawn = map_figure.missing_package(bool(mask or surface))
    picture = None if not_drawn else out / "fingerprint.png"
    if volume is not None:
        map_figure.save_volume(out / "fingerprint.nii.gz", drawn["fingerprint"], volume)
    elif meshes is not None:
        map_figure.save_surface(out, "fingerprint", drawn["fingerprint"], meshes)
    if picture is not None and volume is not None:
        map_figure.slices(picture, titles, volume)
    elif picture is not None and meshes is not None:
        map_figure.cortex(picture, titles, meshes)
    elif picture is not None:
        map_figure.scatter(picture, titles, None if planted is None else planted["sheet"], subject.rois)
    results = {
        "setting": {
            "subject": subject.number,
            "method": tuned.cards[method].get("method"),
            "voxels": subject.n_voxels,
            "images": len(found.images),
            "simulated_brains": tuned.cards[method].get("simulated"),
            "tokens": "retrieval_tokens",
            "command": command,
        },
        "shares": dict(zip(ROUTES, found.voxel.sum(1).tolist(), strict=True)),
        "residual": found.residual,
        "regions": rows,
        "recovery": scored,
    }
    write_json(out / "results.json", results)
    return FingerprintMaps(results, planted is not None, picture, not_drawn)


def read_truth(folder: Path, number: int, voxels: int, asked: bool = True) -> dict[str, np.ndarray] | None:
    """Planted arrays of a simulated subject, None where there are none and none were ``asked`` for.

    Raises UserError where the file is missing, damaged, or of other voxels.
    """
    path = folder / f"subj{number:02d}.safetensors"
    if not path.is_file():
        if asked:
            raise UserError(f"{path}: not found; expected the truth of a simulation")
        return None
    with reading(path, "the truth of a simulation"):
        planted = load_file(path)
    for name, shape in (("fingerprint_share", (voxels,)), ("sheet", (voxels, 2))):
        if name not in planted or planted[name].shape != shape:
            found = planted[name].shape if name in planted else "missing"
            raise UserError(f"{path}: {name} is {found}; expected {shape}, the subject's voxels")
    return planted


def _csv(path: Path, head: Sequence[str], rows: Iterable[Sequence]) -> None:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    write_text(path, table.getvalue())
