"""The whole story on a laptop, in one function: simulate, pretrain, tune, decode, score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mindtuner.claims import finish, releasing, remove
from mindtuner.config import Config, SimulateConfig, changed, load_config
from mindtuner.data import Dataset
from mindtuner.data.hold_out import shows
from mindtuner.data.identity import FIELD, Inputs, folder_hash, inputs_of, short_hash
from mindtuner.errors import UserError
from mindtuner.evaluation.results import load_log, log_to
from mindtuner.files import atomic_path, write_text
from mindtuner.formats import load
from mindtuner.formats.nsd_release.read import MASKS
from mindtuner.generators.compact import CompactGenerator, starting_prior
from mindtuner.pipeline.base import FILE, card_of, held_out, images_trained_on, pretrain_into
from mindtuner.pipeline.evaluation import measure
from mindtuner.pipeline.features import embed
from mindtuner.pipeline.results import Results
from mindtuner.pipeline.run_folder import claim, hold_inputs, settings_text
from mindtuner.pipeline.setting import generator_note
from mindtuner.pipeline.stopwatch import Stopwatch
from mindtuner.pipeline.tuned_files import FILES, MAIN, write
from mindtuner.pipeline.tuning import fit_methods
from mindtuner.report.contact_sheet import contact_sheet
from mindtuner.simulation.drawing import KINDS
from mindtuner.simulation.scenes import PLACES
from mindtuner.simulation.simulate import check_inputs
from mindtuner.simulation.simulate import simulate as write_simulation
from mindtuner.training import METHODS


def simulate(
    out: str | Path,
    config: str | Path | Config | SimulateConfig = "demo",
    *,
    cutouts: str | Path | None = None,
    stimuli: str | Path | None = None,
    **knobs: Any,
) -> Dataset:
    """Write a simulated NSD in the files of the public release, and open it.

    Parameters
    ----------
    out : path
        Folder to write. A whole simulation that lies there already is opened as it is.
    config : str, path, Config or SimulateConfig
        Whose ``simulate`` section says how large, such as ``"demo"`` or ``"quick"``.
    cutouts, stimuli : path, optional
        Folders of transparent PNGs to compose scenes of, or of whole images to show, a ``.txt`` caption beside each.
    **knobs
        Fields of the section that differ, such as ``subjects=3``, ``noise=0.5``, ``fingerprint=1.0`` or ``seed=1``.

    Returns
    -------
    Dataset
        Its truth (noise ceilings, fingerprint, regions) lies in ``out/truth``.

    Raises
    ------
    UserError
        Where a knob cannot be, images are too few, or the disk refuses.

    Examples
    --------
    >>> dataset = mindtuner.simulate("simulated", "quick", subjects=2, voxel_scale=0.01)
    >>> sorted(dataset.subjects)
    [1, 2]
    """
    out = Path(out)
    if not isinstance(config, SimulateConfig):
        config = (config if isinstance(config, Config) else load_config(config)).simulate
    section = changed(config, **knobs)
    cutouts = None if cutouts is None else Path(cutouts)
    stimuli = None if stimuli is None else Path(stimuli)
    check_inputs(section, cutouts, stimuli)
    if not is_whole(out):
        write_simulation(out, section, cutouts, stimuli)
    return load(out)


def is_whole(data: Path) -> bool:
    """Whether a simulation was written to its end."""
    return (data / MASKS).exists()  # written last


@releasing()
def run_demo(
    out: str | Path,
    config: Config,
    *,
    cutouts: str | Path | None = None,
    stimuli: str | Path | None = None,
    weights: str | Path | None = None,
    keep_data: bool = False,
    force: bool = False,
    command: str = "mindtuner demo",
    watch: Stopwatch | None = None,
) -> Results:
    """All stages, into the folder ``out``; a run that was stopped goes on where the same call comes again.

    Parameters
    ----------
    out : path
        Gets ``report.html``, ``results.json``, pictures, the base and the fingerprint.
    config : Config
        From ``load_config("demo")`` or ``load_config("quick")``.
    cutouts, stimuli : path, optional
        As in ``simulate``.
    weights : path, optional
        Of another compact generator.
    keep_data : bool
        Keep the simulated dataset in ``out/data``.
    force : bool
        Replace an earlier run in ``out``.
    command : str
        How the run was called, for the report.
    watch : Stopwatch, optional
        Measures the stages.

    Raises
    ------
    UserError
        Where ``out`` holds another run, or images, weights and config do not fit.
    """
    out, watch = Path(out), watch or Stopwatch()
    generator = CompactGenerator(config.decode, config.seed, None if weights is None else Path(weights))
    starting_prior(config.model, None if weights is None else Path(weights))  # refuses what cannot be, before a claim
    goes_on = _claim(out, settings_text(config, command), force)
    log = log_to(out)
    with watch.stage("simulate"):
        dataset = simulate(out / "data", config.simulate, cutouts=cutouts, stimuli=stimuli)
        dataset = held_out(dataset, config.hold_out_category)
    with watch.stage("embed"):
        features = embed(dataset, weights=weights)
    inputs = inputs_of(dataset, features.folder, features.pictures, test=True)
    given = {name: Path(path) for name, path in (("cutouts", cutouts), ("stimuli", stimuli)) if path is not None}
    hashes = {name: folder_hash(path) for name, path in given.items()}
    hashes["generator"] = short_hash([json.dumps(generator.identity, sort_keys=True).encode()])
    files = {**{name: str(path) for name, path in given.items()}, "generator": str(generator.path)}
    hold_inputs(out, inputs | Inputs(hashes, files), goes_on and any(out.glob("base.*")))
    with watch.stage("pretrain"):
        others = dataset.without(subject=config.target_subject)
        own = inputs_of(others, features.folder, features.pictures)
        card = card_of(others, features, config, own, images_trained_on(others))
        base = pretrain_into(out / FILE, others, features, config, card, log)
    hour = dataset.subject(config.target_subject).sessions(config.tuning_sessions)
    with watch.stage("tune"):
        tuned = fit_methods(base, hour, features, config, METHODS, log)
        card = {**tuned.cards[MAIN], "base_path": FILE}
        write(out / FILES[MAIN], MAIN, tuned.networks[MAIN], hour, config, card)
    results = measure(
        dataset=dataset,
        hour=hour,
        base=base.network,
        tuned=tuned.networks,
        features=features,
        config=config,
        generator=generator,
        text_encoder=features.text_encoder,
        note="" if weights else generator_note(dataset.card),
        facts={FIELD: dict(inputs.hashes)},
        command=command,
        log=load_log(out),
        watch=watch,
    ).results
    with watch.stage("report"):
        results = results.save(out)
        if shown := min(8, len(results.run.pictures["seen"])):
            with atomic_path(out / "demo.png") as part:
                contact_sheet(out, shown).save(part, "PNG")
    if not keep_data:
        remove(out / "data")
    finish(out)
    return results


def refuse_unseen_category(category: str) -> None:
    """Raise UserError where scenes of the package's drawings never show the category, before they are made."""
    if not shows([*KINDS, *PLACES], category):
        raise UserError(f"hold_out_category: {category!r} is in no scene; expected one of {', '.join([*KINDS, *PLACES])}")


def _claim(out: Path, settings: str, force: bool) -> bool:
    """Make ``out`` this run's: empty but for ``settings`` in config.yaml, or what the same run left when it was stopped.

    Returns whether it goes on. Of a stopped run the dataset is kept, where it is whole, and what pretraining had done.
    """
    if not claim(out, settings, force):
        return False
    log_to(out)  # drops a line that a killed process left unfinished
    # Until the base is there, pretraining logs again what it had done.
    kept = load_log(out) if (out / FILE).exists() else []
    write_text(
        out / "log.jsonl",
        "".join(json.dumps(entry) + "\n" for entry in kept if entry["stage"] in ("pivot", "pretrain")),
    )
    return True
