"""The same command again after something that a run is made of changed: refused in one line that names it, whatever the verb.

And after a copy with other times, which is the same data: the run goes on.
"""

import contextlib
import shutil
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import yaml
from commands import call, refused
from PIL import Image
from worlds import brief, tiny_config

from mindtuner.errors import UserError
from mindtuner.evaluation.results import load_run
from mindtuner.files import read_json
from mindtuner.formats import load, write
from mindtuner.pipeline import Results, demo
from mindtuner.pipeline.decoded_table import read_table
from mindtuner.studies import run as studies
from mindtuner.training import loop

pytestmark = pytest.mark.slow

SUBJECTS = ("sub-01", "sub-02")


@pytest.fixture(scope="module")
def lab(tmp_path_factory, simulated):
    """A lab's folder of two subjects, and a run of each verb on it, some of them stopped before their end."""
    folder = tmp_path_factory.mktemp("stale")
    data, config = folder / "study", folder / "brief.yaml"
    write(data, load(simulated), "lab_folder")
    config.write_text(yaml.safe_dump(brief(pictures=2)))
    pretrain = ("pretrain", data, folder / "base", "--without", 1, "--config", config)
    tune = ("tune", folder / "base", data, folder / "tuned", "--subject", 1, "--sessions", 1)
    verbs = {
        "pretrain": pretrain,
        "pretrain, stopped": (*pretrain[:2], folder / "begun", *pretrain[3:]),
        "tune": (*tune, "--method", "mindtuner", "ridge"),
        "tune, stopped": (*tune[:3], folder / "half", *tune[4:], "--method", "mindtuner", "ridge"),
        "fit": ("fit", data, folder / "alone", "--subject", 1, "--method", "ridge", "--config", config),
        "evaluate": ("evaluate", folder / "tuned", data, folder / "report"),
        "decode": ("decode", folder / "tuned", data, folder / "decoded", "--pictures", 1),
        "fingerprint": ("fingerprint", folder / "tuned", data, folder / "maps"),
        "ablate": ("ablate", folder / "study of parts", "--data", data, "--subject", 1, "--config", config, "--seeds", 2),
    }
    for verb, words in verbs.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(studies, "do", stop)  # before its many tunings
            if verb == "pretrain, stopped":
                patch.setattr(loop, "take_step", stop)
            if verb == "evaluate":
                patch.setattr(Results, "save", stop)  # when all is painted
            methods = ("--method", "mindtuner") if verb == "tune, stopped" else ()
            assert call(*words, *methods) == (130 if verb in ("pretrain, stopped", "evaluate", "ablate") else 0), verb
    out = {
        verb: words[1] if verb == "ablate" else words[2 + ("tune" in verb or verb in ("evaluate", "decode", "fingerprint"))]
        for verb, words in verbs.items()
    }
    return SimpleNamespace(folder=folder, data=data, config=config, verbs=verbs, out=out)


def stop(*arguments):
    raise KeyboardInterrupt


@contextlib.contextmanager
def kept(folder):
    """At the end, all of a folder is as it was, times too."""
    copy = folder.with_name(f"{folder.name} as it was")
    shutil.copytree(folder, copy)
    try:
        yield
    finally:
        shutil.rmtree(folder)
        copy.rename(folder)


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- what may change


def edit_betas(data, rows_of, edit):
    """``edit`` some rows of each subject: those that ``rows_of`` says, by the numbers of training and of test trials."""
    for name in SUBJECTS:
        lines = [line.split("\t") for line in (data / name / "trials.tsv").read_text().splitlines()]
        kinds = np.array([line[lines[0].index("split")] for line in lines[1:]])
        path = data / name / "betas.npy"
        betas = np.load(path)
        rows = rows_of(np.flatnonzero(kinds == "train"), np.flatnonzero(kinds == "test"))
        betas[rows] = edit(betas[rows])
        np.save(path, betas)


def betas(data):
    edit_betas(data, lambda train, test: np.union1d(train, test), lambda some: some + 1)


def one_beta(data):
    def edit(row):
        row[3] += 0.01
        return row

    edit_betas(data, lambda train, test: train[5], edit)


def betas_of_a_test_trial(data):
    edit_betas(data, lambda train, test: test[0], lambda row: -row)


def all_but_a_few(data):
    """The training rows that a glance at eight of them, evenly spaced, would not see."""
    seen = lambda train: train[np.linspace(0, len(train) - 1, 8).round().astype(int)]
    edit_betas(data, lambda train, test: np.setdiff1d(train, seen(train)), lambda some: -some)


def edit_table(data, edit):
    for name in SUBJECTS:
        path = data / name / "trials.tsv"
        head, *lines = path.read_text().splitlines()
        rows = [dict(zip(head.split("\t"), line.split("\t"), strict=True)) for line in lines]
        edit(rows)
        path.write_text("\n".join([head, *("\t".join(row.values()) for row in rows)]) + "\n")


def trials(data):
    """Two training trials of a session change places."""

    def edit(rows):
        first = next(row for row in rows if row["split"] == "train")
        other = next(row for row in rows if row["split"] == "train" and row["stimulus"] != first["stimulus"])
        first["stimulus"], other["stimulus"] = other["stimulus"], first["stimulus"]

    edit_table(data, edit)


def split(data):
    """A training image of the first subject and a test image change sides."""
    seen = {}

    def note(rows):
        for kind in ("train", "test"):
            seen.setdefault(kind, min(row["stimulus"] for row in rows if row["split"] == kind))

    edit_table(data, note)
    moved = {seen["train"]: "test", seen["test"]: "train"}
    edit_table(data, lambda rows: [row.update(split=moved.get(row["stimulus"], row["split"])) for row in rows])


def regions(data):
    for name in SUBJECTS:
        path = data / name / "rois.npz"
        with np.load(path) as file:
            masks = dict(file)
        masks["V1"] = ~masks["V1"]
        np.savez(path, **masks)


def image(data):
    path = sorted((data / "stimuli").glob("*.png"))[-1]
    pixels = np.asarray(Image.open(path))
    Image.fromarray(pixels[:, ::-1].copy()).save(path)


def caption(data):
    path = sorted((data / "stimuli").glob("*.txt"))[-1]
    path.write_text("an owl on a red wall\n")


ALL = ("pretrain", "pretrain, stopped", "tune", "tune, stopped", "fit", "evaluate", "decode", "fingerprint", "ablate")
TESTED = ("evaluate", "decode", "fingerprint", "ablate")  # which look at test trials
CASES = {  # what changes, the verbs that it matters to, and what the line may name
    betas: (ALL, ["betas of subject"]),
    one_beta: (ALL, ["training betas of subject"]),
    all_but_a_few: (ALL, ["training betas of subject"]),
    betas_of_a_test_trial: (TESTED, ["test betas of subject 1"]),
    trials: (ALL, ["training trials of subject", "training trials by number of subject"]),
    split: (ALL, ["split changed", "trained on", "training betas of subject 1 changed"]),
    regions: (ALL, ["regions of subject", "mask differs"]),
    image: ([verb for verb in ALL if verb != "fingerprint"], ["stimuli is", "images"]),
    caption: (ALL, ["stimuli is", "captions"]),
}


@pytest.mark.parametrize("change", CASES, ids=lambda change: change.__name__)
def test_changed_data_are_refused(lab, change, capsys):
    verbs, names = CASES[change]
    with kept(lab.data):
        change(lab.data)
        for verb in verbs:
            refuses(lab, verb, capsys, names)


def refuses(lab, verb, capsys, names):
    """In one line, with the run as it was."""
    before = snapshot(lab.out[verb])
    capsys.readouterr()
    assert call(*lab.verbs[verb]) == 2, verb
    [line] = capsys.readouterr().err.splitlines()
    assert any(name in line for name in names) and "expected" in line, (verb, line)
    assert snapshot(lab.out[verb]) == before


def test_there_are_enough_cases():
    assert sum(len(verbs) for verbs, _ in CASES.values()) >= 60


# ---- what is made with the data


def test_another_base_in_the_same_place_is_refused(lab, capsys):
    """Also where nothing but a whole network was tuned, which holds all its weights."""
    words = [*lab.verbs["tune"][:3], lab.folder / "ridge", *lab.verbs["tune"][4:], "--method", "ridge"]
    assert call(*words) == 0
    other = lab.folder / "other"
    assert call(*lab.verbs["pretrain"][:2], other, *lab.verbs["pretrain"][3:], "--seed", 1) == 0
    with kept(lab.folder / "base"):
        shutil.copy(other / "base.safetensors", lab.folder / "base")
        for verb in ("tune", "tune, stopped"):
            refuses(lab, verb, capsys, ["base changed"])
        for verb in ("evaluate", "decode", "fingerprint"):
            refuses(lab, verb, capsys, ["belongs to another base"])
        refused(
            capsys, ["evaluate", lab.folder / "ridge", lab.data, lab.folder / "no"], "ridge.safetensors: belongs to another"
        )


def test_other_weights_in_the_same_place_are_refused(lab, capsys):
    other = lab.folder / "tuned anew"
    words = lab.verbs["tune"]
    assert call(*words[:3], other, *words[4:], "--seed", 1) == 0
    with kept(lab.folder / "tuned"):
        shutil.copy(other / "fingerprint.safetensors", lab.folder / "tuned")
        for verb in ("evaluate", "decode", "fingerprint"):
            refuses(lab, verb, capsys, ["weights of mindtuner changed", "holds another run"])  # its card has another seed


def test_methods_that_were_tuned_on_other_data_do_not_stand_together(lab, capsys):
    """As an earlier version left them, which did not note what a run is made of."""
    with kept(lab.data):
        betas(lab.data)
        run = lab.folder / "other betas"
        assert call(*lab.verbs["tune"][:3], run, *lab.verbs["tune"][4:]) == 0
    mixed = lab.folder / "mixed"
    shutil.copytree(lab.folder / "tuned", mixed)
    shutil.copy(run / "ridge.safetensors", mixed)
    words = ["evaluate", mixed, lab.data, lab.folder / "no"]
    refused(capsys, words, "ridge.safetensors: training betas of subject 1 was", "fingerprint.safetensors was")


def test_a_stopped_demo_goes_on_with_its_own_data_alone(tmp_path, few_cutouts, monkeypatch):
    config, out = tiny_config(), tmp_path / "demo"
    monkeypatch.setattr(demo, "pretrain_into", stop)
    run = lambda: demo.run_demo(out, config)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run()
    path = next((out / "data").glob("betas_all_subj01*"))
    with h5py.File(path, "r+") as file:
        file["betas"][0, 0] += 1
    with pytest.raises(UserError, match="betas of subject 1 changed"):
        run()


# ---- test images that were trained on


def test_an_image_that_changed_sides_is_left_out_where_that_is_asked_for(lab, capsys):
    """One training image became a test image, and one test image a training image: of eight, seven are left."""
    report, decoded = lab.folder / "less", lab.folder / "fewer"
    with kept(lab.data):
        split(lab.data)
        moved = "1 of 8 test images"
        for verb, out in (("evaluate", report), ("decode", decoded)):
            words = [verb, lab.folder / "tuned", lab.data, out]
            refused(capsys, words, moved, "fingerprint.safetensors", "or --leave-out-known to go on without them")
            assert not out.exists()
            assert call(*words, "--leave-out-known") == 0 and f"{moved} (" in capsys.readouterr().out
    setting = load_run(report).results["setting"]
    assert (setting["n_test_images"], setting["left_out_known"]) == (7, 1) and "--leave-out-known" in setting["command"]
    assert "1 test image that training saw is left out." in setting["stimuli_note"]
    assert setting["inputs"]["base"] == read_json(report / "inputs.json")["base"]
    assert len(read_table(decoded / "decoded.csv")) == 7


def test_a_training_image_stored_again_as_a_test_image_is_refused(lab, capsys):
    dataset = load(lab.data)
    hour = dataset.subject(1).sessions(1)
    tested, trained = (dataset.stimuli.names[trials.stimulus[0]] for trials in (hour.test, hour.train))
    with kept(lab.data):
        with Image.open(lab.data / "stimuli" / trained) as image:
            image.convert("RGB").resize((180, 180)).save(lab.data / "stimuli" / tested)
        words = ["evaluate", lab.folder / "tuned", lab.data, lab.folder / "no", "--cache", lab.folder / "new cache"]
        refused(capsys, words, f"1 of 8 test images ({tested}) were trained on, as they are or stored otherwise")


# ---- the same data with other times


def test_a_copy_is_the_same_data(lab):
    """Each verb does again what it does, or goes on; the last test here, since runs that were stopped come to their end."""
    copy = lab.folder / "copy"
    shutil.copytree(lab.data, copy, copy_function=shutil.copyfile)
    shutil.rmtree(lab.data)
    copy.rename(lab.data)
    for verb, words in lab.verbs.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(studies, "do", stop)
            assert call(*words) == (130 if verb == "ablate" else 0), verb
    assert (lab.folder / "report" / "results.json").is_file() and (lab.folder / "half" / "ridge.safetensors").is_file()
