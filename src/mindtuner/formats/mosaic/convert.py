"""A folder of MOSAIC's files (Layout D) to Layout C, which every verb reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from mindtuner.data.whole_folder import filled
from mindtuner.errors import UserError
from mindtuner.files import claim_folder
from mindtuner.formats.lab_folder import write as layout_c_writer
from mindtuner.formats.mosaic.parcels import GROUPS
from mindtuner.formats.mosaic.read import load_mosaic
from mindtuner.formats.mosaic.tables import DATASETS


def convert_mosaic(
    root: str | Path,
    out: str | Path,
    regions: Iterable[str] = tuple(GROUPS),
    stimuli: str | Path | None = None,
    split: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Write the subjects in ``root`` (``sub-NN_DATASET.hdf5``, ``*_stiminfo.tsv``) as Layout C into the empty folder ``out``.

    ``stimuli`` is by default ``root/stimuli``; ``regions`` and ``split`` as for ``layout_d.load_mosaic``. Betas are kept as
    they are, float32, of the vertices of ``regions`` alone; images become 224 x 224, 8 bits. The card says what was left out
    and assumed, and so does ``say``. Layout C has no word for vertices: they stand in ``sub-NNN/vertices.npy``, which its
    reader does not look at.

    Raises UserError as ``load_mosaic`` does, and where ``root`` holds no subject or ``out`` anything; ``out`` is then empty.
    """
    root, out = Path(root), Path(out)
    if not root.is_dir():
        raise UserError(f"{root}: not found; expected a folder with MOSAIC's sub-NN_DATASET.hdf5 and *_stiminfo.tsv")
    files = sorted(root.glob("sub-*_*.hdf5"))
    if not files:
        raise UserError(f"{root}: no subject; expected MOSAIC's files such as sub-01_NSD.hdf5")
    tables = [path for source in DATASETS.values() if (path := root / source.stiminfo).is_file()]
    dataset = load_mosaic(files, tables, root / "stimuli" if stimuli is None else stimuli, regions, split)
    claim_folder(out)
    for number, subject in dataset.subjects.items():
        say(
            f"subject {number} ({dataset.card['subjects'][str(number)]}): {len(subject.trials)} trials, "
            f"{int(subject.trials.is_test.sum())} of them test, {subject.n_voxels} vertices"
        )
    for note in dataset.card["notes"]:
        say(note)
    with filled(out) as part:
        layout_c_writer.write(part, dataset)
