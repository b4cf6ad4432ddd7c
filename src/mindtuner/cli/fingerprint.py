"""Show where a subject's fingerprint lives: what flows from each voxel through ridge, LoRA and Skip-LoRA.

FINGERPRINT is a run of mindtuner tune, or a file of it. The variance of the tokens decoded from the subject's test trials is
shared out to voxels and routes. Writes into OUT voxels.csv, regions.csv (95 % intervals over images), results.json and
fingerprint.png; with --mask also fingerprint.nii.gz, the map as a volume, with --surface the map of each hemisphere as
fingerprint.left.func.gii and fingerprint.right.func.gii. Where the dataset holds the truth of simulated
brains, the maps are scored against what was planted. See docs/science.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

ROUTE_WORDS = {
    "ridge": "ridge",
    "lora": "LoRA",
    "skip_linear": "Skip-LoRA, linear",
    "skip_nonlinear": "Skip-LoRA, non-linear",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("fingerprint", type=Path, metavar="FINGERPRINT", help="run of mindtuner tune, or a file of it")
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of the dataset")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument(
        "--base",
        type=Path,
        metavar="BASE",
        help="run of mindtuner pretrain, or its base.safetensors (default: where it was when tuning)",
    )
    drawn = parser.add_mutually_exclusive_group()
    drawn.add_argument(
        "--mask",
        type=Path,
        metavar="NIFTI",
        help="volume that is not 0 at the subject's voxels: the maps are drawn as slices of it",
    )
    drawn.add_argument(
        "--surface",
        type=Path,
        nargs=2,
        metavar=("LEFT", "RIGHT"),
        help="GIFTI meshes of the two hemispheres, of fsaverage or fsLR say, whose vertices are the subject's "
        "voxels, left first: the maps are drawn on them",
    )
    parser.add_argument(
        "--truth",
        type=Path,
        metavar="FOLDER",
        help="truth of simulated brains to score against (default DATA/truth where there is one)",
    )
    parser.add_argument("--force", action="store_true", help="replace an earlier run in OUT")


def run(options: argparse.Namespace) -> None:
    import numpy as np

    from mindtuner.cli import steps, tuned
    from mindtuner.errors import UserError
    from mindtuner.files import write_json
    from mindtuner.formats import load
    from mindtuner.studies import map_figure, maps
    from mindtuner.studies.routes import ROUTES, shares
    from mindtuner.training import load_network, read_card, subject_name

    map_figure.check_packages(bool(options.mask or options.surface))
    path = options.fingerprint / tuned.FILES["mindtuner"] if options.fingerprint.is_dir() else options.fingerprint
    card = read_card(path)
    if "subject" not in card or "config" not in card or card.get("method") in tuned.WHOLE:
        raise UserError(
            f"{path}: is no fingerprint on a base; expected what mindtuner tune wrote for mindtuner, ridge_only "
            "or shuffled_brain"
        )
    number, base = card["subject"], tuned.base_of(path, options.base)
    steps.refuse_overlap(options.out, DATA=options.data, FINGERPRINT=path, BASE=base)
    subject = load(options.data, [number]).subject(number)
    test, train = subject.test, subject.sessions(card["config"]["tuning_sessions"]).train
    if len(np.unique(test.stimulus)) < 2 or len(train) == 0:
        raise UserError(
            f"{subject.where}: subject {number} has {len(np.unique(test.stimulus))} test images and {len(train)} "
            "training trials; expected at least 2 and 1"
        )
    mask = None if options.mask is None else map_figure.read_mask(options.mask, subject.n_voxels)
    surface = (
        None if options.surface is None else map_figure.read_surface(options.surface, subject.vertices, subject.n_voxels)
    )
    planted = _truth(options.truth or options.data / "truth", number, subject.n_voxels, options.truth is not None)
    command = steps.command_of(
        "fingerprint",
        options.fingerprint,
        options.data,
        options.out,
        *(["--mask", options.mask] if options.mask else []),
        *(["--surface", *options.surface] if options.surface else []),
    )
    steps.claim(options.out, f"# {command}\n", options.force)

    network = tuned.load_tuned(path, load_network(base), subject).eval()
    found = shares(
        network, subject_name(number), subject.betas(test.row), test.stimulus, subject.betas(train.row).mean(0), subject.rois
    )
    seed = card["config"]["seed"]
    drawn, rows = maps.maps_of(found), maps.regions(found, subject.rois, seed)
    scored = {}
    if planted is not None and np.ptp(planted["fingerprint_share"]) > 0:
        scored = {
            name: maps.recovery(values, planted["fingerprint_share"], maps.by_itself(subject.rois), seed)
            for name, values in drawn.items()
            if np.ptp(values) > 0
        }
    _csv(
        options.out / "voxels.csv",
        ("voxel", *subject.rois, *ROUTES, "fingerprint"),
        zip(
            range(subject.n_voxels),
            *(roi.astype(int) for roi in subject.rois.values()),
            *(route.round(9) for route in found.voxel),
            drawn["fingerprint"].round(6),
            strict=True,
        ),
    )
    _csv(
        options.out / "regions.csv",
        ("region", "voxels", "route", "share", "low", "high"),
        ((r["region"], r["voxels"], r["route"], round(r["share"], 6), *(round(end, 6) for end in r["ci"])) for r in rows),
    )
    titles = {
        "Decoded variance through the ridge": drawn["ridge"],
        "Part of the fingerprint's routes in each voxel's share": drawn["fingerprint"],
    }
    if planted is not None:
        titles["Planted: share of the signal that is the subject's own"] = planted["fingerprint_share"]
    picture = options.out / "fingerprint.png"
    if mask is not None:
        map_figure.slices(picture, titles, mask)
        map_figure.save_volume(options.out / "fingerprint.nii.gz", drawn["fingerprint"], mask)
    elif surface is not None:
        map_figure.cortex(picture, titles, surface)
        map_figure.save_surface(options.out, "fingerprint", drawn["fingerprint"], surface)
    else:
        map_figure.scatter(picture, titles, None if planted is None else planted["sheet"], subject.rois)
    totals = dict(zip(ROUTES, found.voxel.sum(1).tolist(), strict=True))
    write_json(
        options.out / "results.json",
        {
            "setting": {
                "subject": number,
                "method": card.get("method"),
                "voxels": subject.n_voxels,
                "images": len(found.images),
                "simulated_brains": card.get("simulated"),
                "tokens": "retrieval_tokens",
                "command": command,
            },
            "shares": totals,
            "residual": found.residual,
            "regions": rows,
            "recovery": scored,
        },
    )
    _print(totals, rows, scored, planted is not None)
    print(f"\nOpen {picture}")


def _truth(folder: Path, number: int, voxels: int, asked: bool):
    """Planted arrays of the subject, None where there are none and none were asked for."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    from mindtuner.errors import UserError

    path = folder / f"subj{number:02d}.safetensors"
    if not path.is_file():
        if asked:
            raise UserError(f"{path}: not found; expected the truth of a simulation")
        return None
    try:
        planted = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: not a whole file ({error}); expected the truth of a simulation") from error
    for name, shape in (("fingerprint_share", (voxels,)), ("sheet", (voxels, 2))):
        if name not in planted or planted[name].shape != shape:
            found = planted[name].shape if name in planted else "missing"
            raise UserError(f"{path}: {name} is {found}; expected {shape}, the subject's voxels")
    return planted


def _csv(path: Path, head, rows) -> None:
    import csv
    import io

    from mindtuner.files import write_text

    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    write_text(path, table.getvalue())


def _print(totals: dict, rows: list[dict], scored: dict, simulated: bool) -> None:
    print("share of the decoded variance, by route (95 % over images)\n")
    print(f"{'region':<14}{'voxels':>8}" + "".join(f"{words:>32}" for words in ROUTE_WORDS.values()))
    for name in dict.fromkeys(row["region"] for row in rows):
        own = {row["route"]: row for row in rows if row["region"] == name}
        cells = ["{:+.4f} [{:+.4f}, {:+.4f}]".format(own[route]["share"], *own[route]["ci"]) for route in ROUTE_WORDS]
        print(f"{name:<14}{own['ridge']['voxels']:>8}" + "".join(f"{cell:>32}" for cell in cells))
    print(f"{'all voxels':<22}" + "".join(f"{totals[route]:>+32.4f}" for route in ROUTE_WORDS))
    if scored:
        print("\nmaps beside what was planted: Spearman [chance], by permuted regions, and by permuted voxels within each")
        for name, one in scored.items():
            cells = [
                "the same in each region"
                if part is None
                else "{:+.3f} [{:+.3f}, {:+.3f}], p {:.3f}".format(part["spearman"], *part["null"], part["p"])
                for part in (one["between"], one["within"])
            ]
            print(f"{name:<16}{cells[0]:<38}{cells[1]}")
    elif simulated:
        print("\nnothing was planted that differs between voxels, so no map is scored")
