"""Write a simulated NSD, in any of the dataset formats.

Scenes are composed of cut-outs on textured places, seen by simulated brains with noise, and written with the known truth
beside them (see docs/simulation.md). The formats, all of the same trials, are:

  nsd_release  the NSD release, which every verb reads: betas, behaviour tars, images, captions, region masks
  nsd_raw      raw NSD: int16 volumes a session, design, 425 x 425 images, COCO's form of captions.
               Then: mindtuner convert nsd OUT DATASET --captions OUT/annotations
  lab_folder   a lab's folder, which every verb reads: betas.npy, trials.tsv, stimuli/ (see docs/your-own-scans.md)
  mosaic       MOSAIC, on vertices of visual parcels of the cortical surface, which every verb reads; needs
               pip install 'mindtuner[mosaic]'. As a lab's folder: mindtuner convert mosaic OUT DATASET
  bdata        bdpy's BData, which every verb reads: sub-01.h5, ... and stimuli/ (see docs/your-own-scans.md)
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

_HELP = {
    "subjects": "subjects 1 to N, with NSD's voxel counts",
    "sessions": "sessions (hours) per subject",
    "trials_per_session": "trials in each session",
    "shared_images": "images that all subjects see: the test set",
    "repeats": "how often a subject sees each image",
    "voxel_scale": "share of NSD's voxel counts",
    "fingerprint": "strength of the subject's own non-linear recoding: its sd over the linear part's",
    "fingerprint_groups": "families of subjects that recode alike: subject n is in family n modulo N; 0: each for itself",
    "noise": "noise sd, relative to the calibrated noise ceilings",
    "seed": "seed of scenes, brains and noise",
}
FORMATS = ("nsd_release", "nsd_raw", "lab_folder", "laion", "mosaic", "bdata")
_NEXT = {
    "nsd_raw": "mindtuner convert nsd {out} DATASET --captions {out}/annotations",
    "laion": "mindtuner convert laion {out} DATASET --split own",
    "mosaic": "mindtuner convert mosaic {out} DATASET",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from mindtuner.config import KNOB_LIMITS, SimulateConfig

    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write, new or empty")
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0], help="whose files to write (default %(default)s)")
    add_stimuli(parser, "the defaults need 3900, fewer subjects or sessions less")
    for field in dataclasses.fields(SimulateConfig):
        kind = int if isinstance(field.default, int) else float
        low, high = KNOB_LIMITS[field.name]
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=kind,
            default=field.default,
            metavar="N",
            help=f"{_HELP[field.name]} ({low:.8g} to {high:.8g}; default {field.default:g})",
        )
    parser.add_argument("--force", action="store_true", help="replace an earlier simulation in OUT")


def add_stimuli(parser: argparse.ArgumentParser, needed: str) -> None:
    """The two folders that can take the place of the drawn cut-outs."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--cutouts",
        type=Path,
        metavar="DIR",
        help="compose scenes of these transparent PNGs (a .txt caption beside each; may be nested)",
    )
    which.add_argument(
        "--stimuli",
        type=Path,
        metavar="DIR",
        help=f"show these whole images (a .txt with captions beside each) instead of composed scenes; {needed}",
    )


def run(options: argparse.Namespace) -> None:
    from mindtuner.config import SimulateConfig, changed
    from mindtuner.simulation.simulate import simulate

    fields = dataclasses.fields(SimulateConfig)
    knobs = changed(SimulateConfig(), **{field.name: getattr(options, field.name) for field in fields})
    simulate(options.out, knobs, options.cutouts, options.stimuli, options.format, options.force)
    print(f"{options.out}: {knobs.subjects} simulated subjects, {knobs.sessions} sessions each")
    if options.format in _NEXT:
        print("next:", _NEXT[options.format].format(out=options.out))
