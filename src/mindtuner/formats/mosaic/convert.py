"""MOSAIC to a lab's folder, which holds no surface but keeps the vertex of each voxel."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from mindtuner.claims import claim_folder, empty, finish, releasing
from mindtuner.data.dataset import CARD
from mindtuner.data.surface import GROUPS
from mindtuner.errors import UserError
from mindtuner.files import filled
from mindtuner.formats.lab_folder import write as lab_writer
from mindtuner.formats.mosaic.read import load_mosaic, mosaic_files


@releasing()
def convert_mosaic(
    root: str | Path,
    out: str | Path,
    regions: Iterable[str] = tuple(GROUPS),
    stimuli: str | Path | None = None,
    split: str | Path | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> dict:
    """Write a folder of MOSAIC's files as a lab's folder.

    Betas are kept as they are, float32, of the vertices of ``regions`` alone. Images become 224 x 224, 8 bits. The vertex of
    each voxel stands in ``sub-NNN/vertices.npy``.

    Parameters
    ----------
    root : str or Path
        Folder with ``sub-NN_DATASET.hdf5`` and their ``*_stiminfo.tsv``.
    out : str or Path
        Folder to write, new or empty.
    regions : iterable of str
        ``early``, ``ventral``, ``lateral``, ``dorsal``, or single HCP-MMP parcels such as ``FFC``.
    stimuli : str or Path, optional
        Folder of the stimuli. By default ``root/stimuli``.
    split : str or Path, optional
        Folder with MOSAIC's split across datasets. By default each dataset's own split counts.
    say : callable
        Gets a line of text for each subject, and for each thing that was left out or assumed.

    Returns
    -------
    dict
        The card. Its ``notes`` say what was left out and assumed.

    Raises
    ------
    UserError
        As ``load_mosaic`` does, and where ``root`` holds no subject or ``out`` holds anything. Then ``out`` stays empty.
    """
    root, out = Path(root), Path(out)
    if not root.is_dir():
        raise UserError(f"{root}: not found; expected a folder with MOSAIC's sub-NN_DATASET.hdf5 and *_stiminfo.tsv")
    files, tables, own_stimuli = mosaic_files(root)
    if not files:
        raise UserError(f"{root}: no subject; expected MOSAIC's files such as sub-01_NSD.hdf5")
    dataset = load_mosaic(files, tables, own_stimuli if stimuli is None else stimuli, regions, split)
    settings = {"root": root, "regions": list(regions), "stimuli": stimuli, "split": split}
    if claim_folder(out, json.dumps(settings, default=str), "convert mosaic"):
        empty(out)
    for number, subject in dataset.subjects.items():
        say(
            f"subject {number} ({dataset.card['subjects'][str(number)]}): {len(subject.trials)} trials, "
            f"{int(subject.trials.is_test.sum())} of them test, {subject.n_voxels} vertices"
        )
    for note in dataset.card["notes"]:
        say(note)
    with filled(out, first=CARD) as part:
        lab_writer.write(part, dataset)
    finish(out)
    return dataset.card
