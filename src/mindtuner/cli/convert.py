"""Turn other people's files into this project's.

bdata: bdpy's BData files become a lab's folder, with the voxels of an expression such as "ROI_V1 + ROI_V2".
laion: LAION-fMRI becomes a lab's folder for each of some splits.
mindeye2: a released MindEye2 checkpoint becomes a base that equals it and that a new subject can be tuned on.
mosaic: MOSAIC's subject files become a lab's folder, without the cortical surface.
nsd: raw NSD becomes the NSD release, which every other verb reads.
unclip: the released unCLIP checkpoint becomes a folder that diffusers reads, and that paints pictures from tokens.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mindtuner.cli import options as shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    bdata = kinds.add_parser(
        "bdata",
        help="bdpy's BData -> a lab's folder",
        description="Write a folder of BData as a lab's folder: betas of the chosen voxels, trials, images (see "
        "docs/your-own-scans.md). What is not given here is what dataset.json says, or what the files tell.",
    )
    bdata.add_argument("root", type=Path, metavar="ROOT", help="folder with sub-01_....h5 or Subject1.h5, ... and stimuli/")
    bdata.add_argument("out", type=Path, metavar="OUT", help="folder to write, new or empty")
    bdata.add_argument(
        "--voxels", metavar="EXPRESSION", help="bdpy's expression, such as 'ROI_V1 + ROI_V2' (default VoxelData)"
    )
    bdata.add_argument("--label", metavar="KEY", help="metadata that says which picture was shown (default stimulus_name)")
    bdata.add_argument("--session", metavar="KEY", help="metadata of sessions from 1 (default Session)")
    for split, example in (("train", "*Training*"), ("test", "*Test*")):
        bdata.add_argument(
            f"--{split}",
            metavar="PATTERN,...",
            help=f"names of {split} files, such as '{example}' (default: a column DataType, or the files' names)",
        )
    bdata.set_defaults(convert=run_bdata)
    laion = kinds.add_parser(
        "laion",
        help="LAION-fMRI -> a lab's folder for each split",
        description="Write LAION-fMRI as lab folders OUT/SPLIT, which every other verb reads. Betas are read once, by mask, "
        "and shared by all splits. The same command goes on where an earlier one was cut short, and another split is added "
        "in seconds (docs/laion.md).",
    )
    laion.add_argument(
        "root", type=Path, metavar="ROOT", help="folder that mindtuner fetch laion, or its own package, filled"
    )
    laion.add_argument("out", type=Path, metavar="OUT", help="folder to write: new, or one that this command began")
    laion.add_argument(
        "--split",
        metavar="NAME,NAME,...",
        help="splits, of tau, cluster_k5_0 to _4, ood, random_0 to _4 (default: that of the file --split-files)",
    )
    laion.add_argument(
        "--split-files",
        type=Path,
        metavar="DIR_OR_JSON",
        help="a clone of LAION-fMRI's package, a folder of its splits (.../data for each subject's own, .../data/shared for "
        "images that all saw), or one file (default ROOT/splits)",
    )
    laion.add_argument(
        "--subjects", metavar="N,N,...", help="subjects, such as 1,3; all that are compared (default: all there)"
    )
    laion.add_argument(
        "--regions", metavar="NAME,NAME,...", help="keep the voxels of these regions (default: the whole mask)"
    )
    laion.add_argument(
        "--noise-ceiling",
        type=float,
        default=0.0,
        metavar="PERCENT",
        help="keep voxels of at least this noise ceiling, which is made with test trials too (default: all)",
    )
    laion.add_argument("--stimuli", type=Path, metavar="DIR", help="folder of the pictures (default ROOT/stimuli/images)")
    shared.add_mask_values(laion, "take the voxels where the mask has one of these values")
    laion.set_defaults(convert=run_laion)
    mindeye2 = kinds.add_parser(
        "mindeye2",
        help="a released MindEye2 checkpoint -> a base",
        description="Write a base whose outputs equal those of a released MindEye2 checkpoint.",
    )
    mindeye2.add_argument(
        "checkpoint", type=Path, metavar="CKPT", help=".pth with model_state_dict, or a DeepSpeed ZeRO folder"
    )
    mindeye2.add_argument("out", type=Path, metavar="OUT", help="file to write (.safetensors)")
    mindeye2.add_argument(
        "--subjects",
        metavar="N,N,...",
        help="NSD number of each ridge, in order (default: told from the voxel counts)",
    )
    mindeye2.add_argument(
        "--text-width",
        type=int,
        default=1280,
        metavar="N",
        help="text width of the Adaptive Projector, which starts untrained (default 1280)",
    )
    mindeye2.add_argument(
        "--seed", type=shared.seed, default=0, metavar="N", help="seed of the projector's start (default 0)"
    )
    mindeye2.add_argument("--force", action="store_true", help="replace OUT")
    mindeye2.set_defaults(convert=run_mindeye2)
    mosaic = kinds.add_parser(
        "mosaic",
        help="MOSAIC -> a lab's folder",
        description="Write MOSAIC's subjects as a lab's folder: betas of the vertices of some regions, trials, images. It "
        "holds no surface; each subject's folder keeps vertices.npy for maps (see docs/mosaic.md). Needs pip install "
        "'mindtuner[mosaic]'.",
    )
    mosaic.add_argument(
        "root", type=Path, metavar="ROOT", help="folder with sub-NN_DATASET.hdf5, their *_stiminfo.tsv and stimuli/"
    )
    mosaic.add_argument("out", type=Path, metavar="OUT", help="folder to write, new or empty")
    mosaic.add_argument(
        "--regions",
        metavar="NAME,NAME,...",
        default="early,ventral,lateral,dorsal",
        help="these groups of parcels, or single HCP-MMP parcels such as FFC (default %(default)s)",
    )
    mosaic.add_argument("--stimuli", type=Path, metavar="DIR", help="folder of the stimuli (default ROOT/stimuli)")
    mosaic.add_argument(
        "--split",
        type=Path,
        metavar="DIR",
        help="folder with MOSAIC's train_naturalistic.json and test_naturalistic.json: wanted with several datasets "
        "(default: each dataset's own split)",
    )
    mosaic.set_defaults(convert=run_mosaic)
    nsd = kinds.add_parser(
        "nsd",
        help="raw NSD -> the NSD release",
        description="Write raw NSD, which is NSD as its authors publish it, in the files of the NSD release. The same "
        "command goes on where an earlier one was cut short.",
    )
    nsd.add_argument("root", type=Path, metavar="ROOT", help="folder with nsddata, nsddata_betas and nsddata_stimuli")
    nsd.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    nsd.add_argument("--subjects", metavar="N,N,...", help="subjects (default: all that have betas in ROOT)")
    nsd.add_argument(
        "--captions",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR_OR_JSON",
        help="COCO's captions_train2017.json and captions_val2017.json, or their folder (default: no captions)",
    )
    shared.add_mask_values(nsd, "take the voxels where nsdgeneral.nii.gz has one of these values")
    nsd.add_argument("--force", action="store_true", help="replace what is in OUT")
    nsd.set_defaults(convert=run_nsd)
    unclip = kinds.add_parser(
        "unclip",
        help="the released unCLIP checkpoint -> a generator",
        description="Write the generator of a released unCLIP checkpoint as a folder of diffusers: UNet, autoencoder, "
        "scheduler (see docs/full-size.md).",
    )
    unclip.add_argument("checkpoint", type=Path, metavar="CKPT", help=".ckpt with state_dict")
    unclip.add_argument("out", type=Path, metavar="OUT", help="folder to write, new or empty")
    unclip.set_defaults(convert=run_unclip)

    for kind in kinds.choices.values():
        kind.set_defaults(help_of_verb=kind.format_help)  # so that errors name its flags


def run(options: argparse.Namespace) -> None:
    options.convert(options)


def run_laion(options: argparse.Namespace) -> None:
    from mindtuner.formats.laion.convert import convert_laion

    convert_laion(
        options.root,
        options.out,
        _listed(options.split),
        options.split_files,
        _subjects(options.subjects),
        _listed(options.regions),
        options.noise_ceiling,
        options.stimuli,
        shared.mask_values(options.mask_values),
        say=print,
    )
    print(options.out)


def _listed(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def run_mindeye2(options: argparse.Namespace) -> None:
    from mindtuner.errors import UserError

    if options.out.suffix != ".safetensors":
        raise UserError(f"{options.out}: ends in {options.out.suffix!r}; expected a file name that ends in .safetensors")
    if options.out.exists() and not options.force:
        raise UserError(f"{options.out}: is there already; expected a new name (or --force to replace it)")
    if options.text_width < 1:
        raise UserError(f"--text-width: is {options.text_width}; expected at least 1")
    subjects = _subjects(options.subjects)

    from mindtuner.interop.mindeye2 import convert_mindeye2

    card = convert_mindeye2(options.checkpoint, options.out, subjects, options.text_width, options.seed)
    backbone = card["backbone"]
    print(f"read: {card['read_from']}; subjects {', '.join(card['subjects'])}")
    print(f"dropped: {backbone['dropped_weights']:,} dead weights ({backbone['dropped']}): they reach no output")
    print(
        f"folded: x4 = x0 + {backbone['constant']:.6g}, the same for all units, into the biases of "
        f"{' and '.join(backbone['folded_into'])}"
    )
    for part in card["without"]:
        print(f"without: {part}, which this checkpoint was released without")
    print(f"untrained: {card['untrained']['projector']}")
    print(f"conventions: token_norm {card['conventions']['token_norm']}, image_range {card['conventions']['image_range']}")
    print(options.out)


def run_bdata(options: argparse.Namespace) -> None:
    from mindtuner.formats.bdata.convert import convert_bdata

    patterns = {
        split: None if text is None else _listed(text) for split, text in (("train", options.train), ("test", options.test))
    }
    convert_bdata(options.root, options.out, options.voxels, options.label, options.session, **patterns, say=print)
    print(options.out)


def run_mosaic(options: argparse.Namespace) -> None:
    from mindtuner.formats.mosaic.convert import convert_mosaic

    convert_mosaic(options.root, options.out, _listed(options.regions), options.stimuli, options.split, say=print)
    print(options.out)


def run_nsd(options: argparse.Namespace) -> None:
    subjects = _subjects(options.subjects)

    from mindtuner.formats.nsd_raw.convert import convert_nsd

    values = shared.mask_values(options.mask_values)
    convert_nsd(options.root, options.out, subjects, options.captions, options.force, values, say=print)
    print(options.out)


def run_unclip(options: argparse.Namespace) -> None:
    from mindtuner.interop.unclip import convert_unclip

    card = convert_unclip(options.checkpoint, options.out)
    weights, dropped = card["weights"], card["dropped"]
    print(f"read: {card['checkpoint']}; tokens {card['token_width']} wide")
    print(f"written: {weights['unet']:,} weights of the UNet, {weights['vae']:,} of the autoencoder")
    print(f"dropped: {dropped['conditioner']:,} weights (conditioner.*): {dropped['why']}")
    print(options.out)


def _subjects(text: str | None) -> list[int] | None:
    from mindtuner.errors import UserError

    if text is None:
        return None
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise UserError(f"--subjects: is {text!r}; expected numbers such as 2,3,4")
    return [int(part) for part in parts]
