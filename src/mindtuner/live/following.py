"""Follow a session: look into a folder, decode what comes, and show it."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from mindtuner.claims import releasing
from mindtuner.data import Dataset
from mindtuner.data.identity import inputs_of
from mindtuner.data.zscore import SessionZScored
from mindtuner.errors import UserError
from mindtuner.generators.compact import CompactGenerator
from mindtuner.generators.painter import Painter
from mindtuner.live.arrivals import Arrival, Broken, WatchedFolder, trial_reader
from mindtuner.live.page import LivePage
from mindtuner.live.running import RunningZScore
from mindtuner.live.session import LiveSession, LookUp
from mindtuner.pipeline import Features, TunedSubject
from mindtuner.pipeline.decoding import settings_of
from mindtuner.pipeline.evaluation import weights_of
from mindtuner.pipeline.features import TextEncoder, refuse_pictures_trained_on
from mindtuner.pipeline.run_folder import claim, refuse_overlap

AMONG = ("all", "test", "train")
LOOK_EVERY_S = 0.05
MOST_BYTES = 8 * 2**30  # of candidates' tokens, which stay in memory


@releasing()
def follow(
    subject: TunedSubject,
    dataset: Dataset,
    features: Features,
    watched: str | Path,
    out: str | Path,
    *,
    among: str = "all",
    mask: str | Path | None = None,
    zscored: bool | None = None,
    pictures: bool = True,
    generator: Painter | None = None,
    text_encoder: TextEncoder | None = None,
    port: int = 0,
    stop_after: int | None = None,
    force: bool = False,
    command: str | None = None,
    began: Callable[[str, str], None] = lambda url, scaling: None,
    came: Callable[[dict | Broken], None] = lambda found: None,
) -> LiveSession:
    """Decode trials as they arrive in a folder, and show them on a page, until interrupted.

    Each file of ``watched`` is a trial: ``.npy`` (V,), or a NIfTI volume. The same call goes on where an earlier one was
    stopped.

    Parameters
    ----------
    subject : TunedSubject
    dataset : Dataset
        With the subject, and the stimuli to look for.
    features : Features
        Of these stimuli.
    watched : path
    out : path
        See ``LiveSession``.
    among : str
        Which stimuli are looked for: ``all``, ``test`` or ``train``.
    mask : path, optional
        For NIfTI volumes, by default the dataset's own.
    zscored : bool, optional
        Whether trials come z-scored; by default as the dataset's betas do. Otherwise they are z-scored by
        ``RunningZScore``.
    pictures : bool
        Whether to paint.
    generator, text_encoder : optional
        At full size, where they have to be given.
    port : int
        Of the page on this machine, 0 for a free one.
    stop_after : int, optional
        End after so many trials in all, when they are painted.
    force, command
        As in ``decode``.
    began : callable
        Called with the page's address, and how betas are scaled, when the first trial may come.
    came : callable
        Called with what each trial said, and each file that is broken.

    Returns
    -------
    LiveSession

    Raises
    ------
    UserError
        Where subject, dataset and features do not fit together, the folder cannot be watched, the port is taken, or ``out``
        holds another run.
    """
    watched, out = Path(watched), Path(out)
    refuse_no_folder(watched)
    own = dataset.subject(subject.number)
    mask = own.mask if mask is None else Path(mask)
    read = trial_reader(own.n_voxels, mask)
    raw = own.source if isinstance(own.source, SessionZScored) and not zscored else None
    if zscored is False and raw is None:
        raise UserError(f"zscored: is false, but {own.where} holds z-scored betas; expected a dataset of betas as measured")
    refuse_overlap(out, dataset=dataset.root, watched=watched, **subject.files)
    if pictures:
        features.refuse_without_pictures("painting")
    if pictures and generator is None:
        generator = CompactGenerator(subject.config.decode, subject.config.seed, features.weights)
    if isinstance(generator, CompactGenerator):
        refuse_pictures_trained_on(generator.path, dataset.stimuli)
    features.check_stimuli(dataset.stimuli)
    decoder = subject.decoder(features=features, text_encoder=text_encoder, generator=generator)
    alone = dataclasses.replace(dataset, subjects={own.number: own})
    inputs = inputs_of(alone, features.folder, features.pictures, test=True)
    inputs |= weights_of(subject, generator if pictures else None)
    facts = {"among": among, "mask": None if mask is None else str(mask), "zscored": raw is None}
    claim(out, f"{settings_of(subject, command or 'mindtuner.live', False)}# {json.dumps(facts)}\n", force, inputs=inputs)
    scaling = None if raw is None else RunningZScore(raw.pooled())
    looked_up = LookUp(dataset.stimuli, features.caches["tokens"], candidates_of(dataset, decoder.training_images, among))
    if (size := looked_up.candidates.size * int(np.prod(looked_up.tokens.shape[1:])) * 4) > MOST_BYTES:
        raise UserError(
            f"among: is {among}, {looked_up.candidates.size} images, whose tokens take {size / 2**30:.0f} GB of memory; "
            f"expected at most {MOST_BYTES / 2**30:.0f}, as of a dataset with fewer stimuli"
        )
    session = LiveSession(decoder, looked_up, out, scaling, pictures)
    folder = WatchedFolder(watched, read, [entry["trial"] for entry in session.trials])
    page = LivePage(session, dataset.stimuli, f"Subject {subject.number}, {own.n_voxels:,} voxels", port)
    said = "as they come, z-scored" if scaling is None else "z-scored by the session so far and by earlier sessions"
    painted_all = False
    with ThreadPoolExecutor(1, "painter") as threads:
        painter = None
        try:
            session.warm_up()
            painter = threads.submit(session.paint_until_over) if pictures else None
            began(page.url, said)
            _watch(folder, session, painter, stop_after, came)
            painted_all = True
        except KeyboardInterrupt:  # how a session ends
            pass
        finally:
            session.end(paint_all=painted_all)
            if painter is not None:
                painter.result()
            page.close()
    return session


def refuse_no_folder(watched: Path) -> None:
    """Raise UserError where there is nothing to watch."""
    if not watched.is_dir():
        raise UserError(f"{watched}: is no folder; expected the folder in which trials arrive")


def candidates_of(dataset: Dataset, training_images: np.ndarray, among: str) -> np.ndarray:
    """Ids of the stimuli that a trial is looked up among, ascending. Raises UserError where there is none."""
    if among not in AMONG:
        raise UserError(f"among: is {among!r}; expected one of {', '.join(AMONG)}")
    test = np.flatnonzero(dataset.stimuli.is_shared)
    found = {"test": test, "train": training_images, "all": np.union1d(test, training_images)}[among]
    if len(found) == 0:
        raise UserError(f"among: is {among}, and the dataset has no such image; expected one of {', '.join(AMONG)}")
    return found


def _watch(
    folder: WatchedFolder,
    session: LiveSession,
    painter: Future | None,
    stop_after: int | None,
    came: Callable[[dict | Broken], None],
) -> None:
    while stop_after is None or len(session.trials) < stop_after:
        for found in folder.look():
            session.take(found)
            came(session.trials[-1] if isinstance(found, Arrival) else found)
            if len(session.trials) == stop_after:
                return
        if painter is not None and painter.done():
            painter.result()  # it never ends by itself but by an error
        time.sleep(LOOK_EVERY_S)
