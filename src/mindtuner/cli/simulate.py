"""Write a simulated NSD in the files of the public release.

Scenes are composed of cut-outs on textured places, seen by simulated brains with noise, and written as betas,
behaviour tars, images, captions and region masks (Layout A, see docs/simulation.md), the known truth beside them.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from mindtuner.config import KNOB_LIMITS, SimulateConfig
from mindtuner.files import claim_folder

_HELP = {
    "subjects": "subjects 1 to N, with NSD's voxel counts",
    "sessions": "sessions (hours) per subject",
    "trials_per_session": "trials in each session",
    "shared_images": "images that all subjects see: the test set",
    "repeats": "how often a subject sees each image",
    "voxel_scale": "share of NSD's voxel counts",
    "fingerprint": "strength of the subject's own non-linear recoding: its sd over the linear part's",
    "noise": "noise sd, relative to the calibrated noise ceilings",
    "seed": "seed of scenes, brains and noise",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write, new or empty")
    add_stimuli(parser, "the defaults need 3900, fewer subjects or sessions less")
    for field in dataclasses.fields(SimulateConfig):
        kind = int if isinstance(field.default, int) else float
        low, high = KNOB_LIMITS[field.name]
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default, metavar="N",
                            help=f"{_HELP[field.name]} ({low:.8g} to {high:.8g}; default {field.default:g})")
    parser.add_argument("--force", action="store_true", help="replace an earlier run in OUT")


def add_stimuli(parser: argparse.ArgumentParser, needed: str) -> None:
    """The two folders that can take the place of the drawn cut-outs."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--cutouts", type=Path, metavar="DIR",
                       help="compose scenes of these transparent PNGs (a .txt caption beside each; may be nested)")
    which.add_argument("--stimuli", type=Path, metavar="DIR",
                       help="show these whole images (a .txt with captions beside each) instead of composed scenes; "
                            f"{needed}")


def run(options: argparse.Namespace) -> None:
    from mindtuner.data.simulation.simulate import check_inputs, simulate

    knobs = SimulateConfig(**{f.name: getattr(options, f.name) for f in dataclasses.fields(SimulateConfig)})
    check_inputs(knobs, options.cutouts, options.stimuli)
    simulate(claim_folder(options.out, options.force), knobs, options.cutouts, options.stimuli)
    print(f"{options.out}: {knobs.subjects} simulated subjects, {knobs.sessions} sessions each")
