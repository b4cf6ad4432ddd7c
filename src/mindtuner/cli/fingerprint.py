"""Show where a subject's fingerprint lives: what flows from each voxel through ridge, LoRA and Skip-LoRA.

FINGERPRINT is a run of mindtuner tune, a file of it, or a fingerprint that was shared: its folder, or its id on the hub. The
variance of the tokens decoded from the subject's test trials is shared out to voxels and routes. Writes into OUT voxels.csv,
regions.csv (95 % intervals over images), results.json, and fingerprint.png where matplotlib is installed (pip install
'mindtuner[maps]'); with the dataset's own mask, or another --mask, also fingerprint.nii.gz, the map as a volume, with
--surface the map of each hemisphere as fingerprint.left.func.gii and fingerprint.right.func.gii. Where the dataset holds the
truth of simulated brains, the maps are scored against what was planted. See docs/science.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mindtuner.cli import options as shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "fingerprint", type=Path, metavar="FINGERPRINT", help="run of mindtuner tune, a file of it, or OWNER/NAME on the hub"
    )
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of the dataset")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    shared.add_base(parser)
    drawn = parser.add_mutually_exclusive_group()
    drawn.add_argument(
        "--mask",
        type=Path,
        metavar="NIFTI",
        help="volume that is above 0 at the subject's voxels (default: the dataset's own): maps are drawn as its slices",
    )
    drawn.add_argument(
        "--surface",
        type=Path,
        nargs=2,
        metavar=("LEFT", "RIGHT"),
        help="GIFTI meshes of the two hemispheres, of fsaverage or fsLR say, whose vertices are the subject's "
        "voxels, left first: the maps are drawn on them",
    )
    shared.add_mask_values(parser, "values of --mask at the subject's voxels")
    parser.add_argument(
        "--truth",
        type=Path,
        metavar="FOLDER",
        help="truth of simulated brains to score against (default DATA/truth where there is one)",
    )
    shared.add_device(parser)
    shared.add_force(parser)


def run(options: argparse.Namespace) -> None:
    from mindtuner.errors import UserError
    from mindtuner.formats import load
    from mindtuner.pipeline import TunedSubject
    from mindtuner.pipeline.run_folder import command_of, refuse_overlap
    from mindtuner.pipeline.subject import read_tuned
    from mindtuner.pipeline.tuned_files import decoding_file
    from mindtuner.studies import map_fingerprint

    if options.mask_values is not None and options.mask is None:
        raise UserError("--mask-values: says nothing without a mask; expected --mask, too")
    values = shared.mask_values(options.mask_values)
    path = decoding_file(options.fingerprint)
    found = read_tuned(path, options.base)
    refuse_overlap(options.out, DATA=options.data, FINGERPRINT=path, BASE=found.base.path)
    dataset = load(options.data, [found.number])
    command = command_of(
        "fingerprint",
        options.fingerprint,
        options.data,
        options.out,
        *(["--mask", options.mask] if options.mask else []),
        *([f"--mask-values={options.mask_values}"] if options.mask_values else []),
        *(["--surface", *options.surface] if options.surface else []),
    )
    maps = map_fingerprint(
        TunedSubject.load(path, dataset, base=found.base),
        dataset,
        options.out,
        mask=options.mask,
        surface=options.surface,
        truth=options.truth,
        mask_values=values,
        force=options.force,
        command=command,
    )
    print(maps)
    print(f"\nOpen {maps.picture}" if maps.picture else f"\nNo picture: {maps.not_drawn}")
