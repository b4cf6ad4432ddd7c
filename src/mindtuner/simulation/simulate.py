"""A simulated NSD on disk: scenes, brains, sessions, written in any format with the known truth beside it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mindtuner.claims import claim_folder, empty, finish, releasing
from mindtuner.config import KNOB_LIMITS, SimulateConfig
from mindtuner.data import nsd
from mindtuner.data.dataset import CARD
from mindtuner.data.surface import load_atlas
from mindtuner.data.zscore import zscore
from mindtuner.errors import UserError
from mindtuner.files import filled, write_arrays, write_json
from mindtuner.formats import mosaic, named, nsd_release, write
from mindtuner.formats.mosaic.write import place
from mindtuner.formats.nsd_release import write as release_writer
from mindtuner.formats.nsd_release.write import TrialTable
from mindtuner.runtime import derive_seed, progress
from mindtuner.simulation.brains import MIN_IMAGES, measure, simulate_brain
from mindtuner.simulation.cutouts import drawn_cutouts, folder_cutouts
from mindtuner.simulation.early import early_features
from mindtuner.simulation.labels import SceneLabels
from mindtuner.simulation.scenes import FolderScenes, Scene, SceneStream, render
from mindtuner.simulation.semantic import semantic_features

TRIAL_SECONDS = 4.0


def simulate(
    out: str | Path,
    knobs: SimulateConfig,
    cutouts: Path | None = None,
    stimuli: Path | None = None,
    format: str = "nsd_release",
    force: bool = False,
) -> None:
    """Write a simulated NSD into an empty folder, with the known truth beside it.

    Where a kill stopped it, the same call starts over.

    The truth goes to ``out/truth``: per subject noise ceilings, fingerprint strengths and the cortical sheet, and what each
    stimulus shows. All formats hold the same trials of the same brains: others are made of the NSD release, which is written
    within ``out`` and removed again. Of MOSAIC the truth also says on which grayordinate each voxel lies
    (``placement.safetensors``, -1 nowhere).

    Betas are z-scored per session with the statistics of the session's training trials. Those of raw NSD are percent signal
    change (see ``nsd_raw.write``).

    Parameters
    ----------
    out : str or Path
        Folder to write, new or empty.
    knobs : SimulateConfig
        How many subjects, sessions and images, how many voxels, how much noise, how strong a fingerprint; and the seed.
    cutouts : Path, optional
        Folder of transparent PNGs with captions, which take the place of the drawn cut-outs.
    stimuli : Path, optional
        Folder of whole captioned images, which take the place of scenes.
    format : str
        Whose files to write: ``nsd_release``, ``nsd_raw``, ``lab_folder``, ``laion``, ``mosaic`` or ``bdata``.
    force : bool
        Replace an earlier simulation in ``out``.

    Raises
    ------
    UserError
        Naming the knob that is out of range, or the folder that cannot serve; for an unknown format; where cortical parcels
        are needed and not installed; and where ``out`` holds anything else.

    Examples
    --------
    >>> from mindtuner.config import SimulateConfig
    >>> from mindtuner.simulation.simulate import simulate
    >>> simulate("simulated", SimulateConfig(subjects=2, sessions=1))  # doctest: +SKIP
    """
    out = Path(out)
    check_inputs(knobs, format=format)
    plan = Plan(knobs)
    scene_of = _scenes(plan, cutouts, stimuli)
    shown = f"folder {stimuli}" if stimuli else f"scenes of cut-outs in {cutouts}" if cutouts else "drawn scenes"
    card = {
        "simulated": True,
        "simulated_scenes": stimuli is None,
        "zscore": "train_trials",
        "stimuli": shown,
        "simulate": dataclasses.asdict(knobs),
    }
    with releasing():
        if claim_folder(out, json.dumps({"format": format, **card}), "simulate", force):
            empty(out)
        if format == nsd_release.FORMAT.name:
            _simulate_release(out, plan, scene_of, card)
        else:
            _simulate_other(out, plan, scene_of, card, format)
        finish(out)


def _simulate_other(out: Path, plan: Plan, scene_of: Callable[[int], Scene], card: dict, format: str) -> None:
    with filled(out, first=CARD) as part:
        made = part / "made"
        _simulate_release(made, plan, scene_of, card)
        dataset = nsd_release.FORMAT.load(made)
        write(part, dataset, format)
        if format == mosaic.FORMAT.name:
            placed = {f"subj0{number}": place(subject) for number, subject in dataset.subjects.items()}
            write_arrays(made / "truth" / "placement.safetensors", placed)
        (made / "truth").rename(part / "truth")
        shutil.rmtree(made)


def _simulate_release(out: Path, plan: Plan, scene_of: Callable[[int], Scene], card: dict) -> None:
    knobs = plan.knobs
    release_writer.write_card(out, card)
    release_writer.write_shared(out, plan.is_shared)
    early, labels, captions = _write_stimuli(out, scene_of, plan.count)
    release_writer.write_captions(out, captions)
    semantic = semantic_features(labels)
    write_json(out / "truth" / "scenes.json", {"scenes": [dataclasses.asdict(scene) for scene in labels]})
    masks, stimulus = {}, {}
    for number in progress(range(1, knobs.subjects + 1), "brains"):
        table = plan.trials(number)
        seen, rows = np.unique(table.stimulus, return_inverse=True)
        voxels = nsd.voxel_count(number, knobs.voxel_scale)
        brain = simulate_brain(
            number,
            voxels,
            early[seen],
            semantic[seen],
            knobs.fingerprint,
            knobs.seed,
            number % knobs.fingerprint_groups if knobs.fingerprint_groups else None,
        )
        betas = zscore(measure(brain, rows, table.session, knobs.noise), table.session, ~table.is_shared)
        release_writer.write_betas(out, number, [betas], betas.shape)
        release_writer.write_behaviour(out, number, table)
        write_arrays(out / "truth" / f"subj0{number}.safetensors", brain.truth())
        masks[number], stimulus[number] = brain.rois, table.stimulus
    release_writer.write_indices(out, stimulus)
    release_writer.write_masks(out, masks)  # last: a folder without it is no dataset, so one that was cut short is refused


def check_inputs(
    knobs: SimulateConfig, cutouts: Path | None = None, stimuli: Path | None = None, format: str = "nsd_release"
) -> None:
    """Raise UserError as ``simulate`` would, before anything is written.

    It refuses knobs out of range, folders that cannot serve, an unknown format, and cortical parcels that are not installed.
    """
    check_knobs(knobs)
    if named(format) is mosaic.FORMAT:
        load_atlas()
    if cutouts is not None or stimuli is not None:
        _scenes(Plan(knobs), cutouts, stimuli)


def check_knobs(knobs: SimulateConfig) -> None:
    """Raise UserError naming the first knob that is out of range."""
    for name, (low, high) in KNOB_LIMITS.items():
        value = getattr(knobs, name)
        if not low <= value <= high:
            raise UserError(f"simulate: {name} is {value}; expected {low} to {high}")
    trials, shared = knobs.sessions * knobs.trials_per_session, knobs.shared_images * knobs.repeats
    if shared > trials / 2:
        raise UserError(
            f"simulate: shared_images x repeats is {knobs.shared_images} x {knobs.repeats}; expected at most "
            f"half of the {trials} trials"
        )
    seen = Plan(knobs).images_per_subject
    if seen < MIN_IMAGES:
        raise UserError(
            f"simulate: trials_per_session x sessions / repeats lets each subject see {seen} images; expected at "
            f"least {MIN_IMAGES}"
        )


class Plan:
    """Which subject sees which stimulus when.

    All subjects see the shared images ``repeats`` times; each sees images of its own as often. Every session
    holds the same number of shared trials, and repeats lie in different sessions where there are enough.
    """

    def __init__(self, knobs: SimulateConfig):
        self.knobs = knobs
        self.test_trials = knobs.shared_images * knobs.repeats
        self.train_trials = knobs.sessions * knobs.trials_per_session - self.test_trials
        self.own_images = -(-self.train_trials // knobs.repeats)
        self.images_per_subject = knobs.shared_images + self.own_images
        self.count = knobs.shared_images + knobs.subjects * self.own_images
        order = np.random.default_rng(derive_seed(knobs.seed, "stimulus ids")).permutation(self.count)
        self.shared = np.sort(order[: knobs.shared_images])
        self.own = order[knobs.shared_images :].reshape(knobs.subjects, self.own_images)
        self.is_shared = np.zeros(self.count, bool)
        self.is_shared[self.shared] = True

    def trials(self, number: int) -> TrialTable:
        """All trials of a subject in order of time."""
        knobs, rng = self.knobs, np.random.default_rng(derive_seed(self.knobs.seed, "trials", number))
        shown = {}
        for name, images, total in (
            ("own", self.own[number - 1], self.train_trials),
            ("shared", self.shared, self.test_trials),
        ):
            sequence = np.concatenate([rng.permutation(images) for _ in range(knobs.repeats)])[:total]
            shown[name] = np.array_split(sequence, knobs.sessions)
        # Uneven splits would make sessions of unequal length: the first ones get the spare shared trials, so
        # they give up as many of the subject's own.
        own = np.concatenate(shown["own"])
        stimulus, start = [], 0
        for shared in shown["shared"]:
            room = knobs.trials_per_session - len(shared)
            stimulus.append(rng.permutation(np.concatenate([own[start : start + room], shared])))
            start += room
        stimulus = np.concatenate(stimulus)
        within = np.tile(np.arange(knobs.trials_per_session), knobs.sessions)
        per_run = -(-knobs.trials_per_session // nsd.RUNS)
        session = np.repeat(np.arange(1, knobs.sessions + 1), knobs.trials_per_session)
        return TrialTable(
            stimulus=stimulus,
            session=session,
            run=within // per_run + 1,
            trial=within % per_run + 1,
            time=within * TRIAL_SECONDS,
            is_shared=self.is_shared[stimulus],
        )


def _scenes(plan: Plan, cutouts: Path | None, stimuli: Path | None) -> Callable[[int], Scene]:
    """The scene of each stimulus id. Test scenes come from their own stream and, when drawn, their own cut-outs."""
    if stimuli is not None:
        return FolderScenes(stimuli, plan.count, plan.knobs.seed)
    if cutouts is not None:
        pools = dict.fromkeys(("train", "test"), folder_cutouts(cutouts, "train"))
    else:
        pools = {pool: drawn_cutouts(pool) for pool in ("train", "test")}
    streams = {pool: SceneStream(pieces, pool, plan.knobs.seed) for pool, pieces in pools.items()}
    return lambda index: streams["test" if plan.is_shared[index] else "train"](index)


def _write_stimuli(out: Path, scene_of, count: int) -> tuple[np.ndarray, list[SceneLabels], list[tuple[str, ...]]]:
    """Write the images; return what early areas see of them, their labels and captions."""
    early, labels, captions = [], [], []

    def blocks():
        pixels = []
        for scene in progress(render(scene_of, range(count)), "scenes", count, "scene"):
            keep(scene, pixels)
            if len(pixels) == 64:
                yield flush(pixels)
        if pixels:
            yield flush(pixels)

    def keep(scene: Scene, pixels: list) -> None:
        pixels.append(scene.pixels)
        labels.append(scene.labels)
        captions.append(scene.captions)

    def flush(pixels: list) -> np.ndarray:
        block = np.stack(pixels)
        pixels.clear()
        early.append(early_features(block.astype(np.float32) / 255))
        return block

    release_writer.write_images(out, blocks(), count)
    return np.concatenate(early), labels, captions
