"""BData to a lab's folder, which starts faster and needs no choice any more."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from mindtuner.claims import claim_folder, empty, finish, releasing
from mindtuner.data.dataset import CARD
from mindtuner.files import filled
from mindtuner.formats.bdata.read import load_bdata
from mindtuner.formats.lab_folder import write as lab_writer


@releasing()
def convert_bdata(
    root: str | Path,
    out: str | Path,
    voxels: str | None = None,
    label: str | None = None,
    session: str | None = None,
    train: Sequence[str] | None = None,
    test: Sequence[str] | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> dict:
    """Write a folder of BData as a lab's folder: float32 betas of the chosen voxels, z-scored as they are read.

    Parameters
    ----------
    root : str or Path
        Folder of BData.
    out : str or Path
        Folder to write, new or empty.
    voxels, label, session, train, test
        As in ``load_bdata``.
    say : callable
        Gets a line of text for each subject.

    Returns
    -------
    dict
        The card.

    Raises
    ------
    UserError
        As ``load_bdata`` does, and where ``out`` holds anything. Then ``out`` stays empty.
    """
    out = Path(out)
    dataset = load_bdata(root, voxels=voxels, label=label, session=session, train=train, test=test)
    settings = {"root": root, "voxels": voxels, "label": label, "session": session, "train": train, "test": test}
    if claim_folder(out, json.dumps(settings, default=str), "convert bdata"):
        empty(out)
    for number, subject in dataset.subjects.items():
        say(
            f"subject {number} ({dataset.card['subjects'][str(number)]}): {len(subject.trials)} trials, "
            f"{int(subject.trials.is_test.sum())} of them test, {subject.n_voxels} voxels"
        )
    with filled(out, first=CARD) as part:
        lab_writer.write(part, dataset)
    finish(out)
    return dataset.card
