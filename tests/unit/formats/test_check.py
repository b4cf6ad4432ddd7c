"""``check`` of the NSD release and a lab's folder: damage planted there is found, and no reader returns a row of it."""

import dataclasses
import json
import re
import shutil
import tarfile

import h5py
import nibabel
import numpy as np
import pytest
from lab_files import MASK_SHAPE, make_lab, save_nifti, write_betas, write_table
from nsd_release_files import CAPTIONS, TRIALS, VOXELS, make_nsd, put, rewrite
from PIL import Image

from mindtuner.cli import main
from mindtuner.errors import UserError
from mindtuner.formats import check, load
from mindtuner.formats.nsd_release import write as release_writer

BETAS = "betas_all_subj01_fp32_renorm.hdf5"
IMAGES = "coco_images_224_float16.hdf5"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Sound datasets: A; C as one file, as session files (with a second subject), and with HDF5 betas."""
    truths = {
        "release": make_nsd(tmp_path_factory.mktemp("a")),
        "lab": make_lab(tmp_path_factory.mktemp("c")),
        "nii.gz": make_lab(tmp_path_factory.mktemp("n"), "nii.gz", "sub-01"),
        "packed": make_lab(tmp_path_factory.mktemp("h"), "packed"),
    }
    make_lab(truths["nii.gz"].root, "nii", "sub-02", seed=1, stimuli=False)
    return truths


@pytest.fixture
def copy_of(whole, tmp_path):
    def copy(kind):
        shutil.copytree(whole[kind].root, tmp_path / "data")
        return dataclasses.replace(whole[kind], root=tmp_path / "data")

    return copy


def everything(root):
    """All that a training would read: betas and pictures of all trials; by subject, and by image."""
    dataset = load(root)
    betas = {
        (number, row): beta
        for number, subject in dataset.subjects.items()
        for row, beta in zip(subject.trials.row, subject.betas(subject.trials.row), strict=True)
    }
    for subject in dataset.subjects.values():
        assert len(subject.train) + len(subject.test) == len(subject.trials)
    stimulus = {
        (number, row): image
        for number, subject in dataset.subjects.items()
        for row, image in zip(subject.trials.row, subject.trials.stimulus, strict=True)
    }
    return betas, dataset.stimuli.images(range(len(dataset.stimuli))), stimulus


@pytest.mark.parametrize("kind", ["release", "lab", "nii.gz", "packed"])
def test_nothing_is_wrong_with_sound_data(whole, kind, capsys):
    findings = check(whole[kind].root)
    assert findings.count("error") == 0
    # What is odd is really there: captions that are missing.
    assert {(item.file, item.field) for item in findings.items if item.severity == "warning"} == {
        (IMAGES if kind == "release" else "stimuli", "captions")
    }
    assert main(["check", str(whole[kind].root)]) == 0
    table = capsys.readouterr().out
    said = "format nsd_release: the NSD release" if kind == "release" else "format lab_folder: a lab's folder"
    assert "0 errors, 1 warning, " in table and said in table
    voxels = VOXELS if kind == "release" else 11
    assert f"{voxels} voxels" in table


def test_sessions_that_the_card_leaves_out_are_no_damage(copy_of):
    truth = copy_of("release")
    for number in truth.tables:
        (truth.root / f"wds/subj0{number}/train/0.tar").unlink()
    assert check(truth.root).count("error") == len(truth.tables)
    release_writer.write_card(
        truth.root,
        {"simulated": True, "zscore": "train_trials", "seed": 0, "sessions": {str(number): [2] for number in truth.tables}},
    )
    findings = check(truth.root)
    assert findings.count("error") == 0
    assert sum(item.severity == "note" and item.field == "session" for item in findings.items) == len(truth.tables)
    assert set(load(truth.root).subject(1).train.session) == {2}


def cut(name, keep=0.6):
    def damage(truth):
        path = truth.root / name
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])

    return damage


def drop(name):
    def damage(truth):
        path = truth.root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def hdf5(name, change):
    def damage(truth):
        with h5py.File(truth.root / name, "r+") as file:
            change(file)

    return damage


def put_hdf5(name, field, where, value):
    return hdf5(name, lambda file: file[field].__setitem__(where, value))


def replace_hdf5(name, field, change):
    def damage(file):
        values = change(file[field][()])
        del file[field]
        file[field] = values

    return hdf5(name, damage)


def tar(name, change):
    return lambda truth: rewrite(truth.root / "wds/subj01" / name, change)


def broken_tar(truth):
    path = truth.root / "wds/subj01/train/1.tar"
    with tarfile.open(path) as file:
        members = file.getmembers()
    path.write_bytes(path.read_bytes()[: members[8].offset])


def shared_leak(truth):
    shared = truth.shared.copy()
    shared[2] = True
    release_writer.write_shared(truth.root, shared)


def wrong_index(truth):
    stimulus = {number: table.stimulus.copy() for number, table in truth.tables.items()}
    stimulus[1][9] = (stimulus[1][9] + 1) % 6
    release_writer.write_indices(truth.root, stimulus)


def masks(change):
    return lambda truth: release_writer.write_masks(truth.root, {1: truth.masks[1] | change, 3: truth.masks[3]})


def say(path, value):
    return lambda truth: (truth.root / path).write_text(json.dumps(value))


# name -> (damage, severity, file, what the finding says: a regular expression over field and message)
RELEASE_DAMAGE = {
    "betas truncated": (cut(BETAS), "error", BETAS, "betas: not a whole HDF5 file"),
    "betas missing": (drop(BETAS), "error", BETAS, "not found"),
    "betas float64": (replace_hdf5(BETAS, "betas", lambda b: b.astype(float)), "error", BETAS, "dtype float64"),
    "one NaN": (
        put_hdf5(BETAS, "betas", (17, 3), np.nan),
        "error",
        BETAS,
        "1 of 7 voxels hold NaN values, in 1 of 40 rows, first in row 17, voxel 3",
    ),
    "one infinity": (put_hdf5(BETAS, "betas", (5, 6), -np.inf), "error", BETAS, "infinite values.*row 5, voxel 6"),
    "constant voxel": (put_hdf5(BETAS, "betas", (slice(None), 2), 0.5), "error", BETAS, "same in all 40 rows: voxel 2;"),
    "constant in a session": (
        put_hdf5(BETAS, "betas", (slice(0, 20), 2), 0.5),
        "warning",
        BETAS,
        "1 voxels are constant in session 1: voxel 2",
    ),
    "row of zeros": (put_hdf5(BETAS, "betas", 8, 0), "warning", BETAS, "1 rows have one value.*row 8"),
    "row copied": (lambda t: put_hdf5(BETAS, "betas", 30, t.betas[1][4])(t), "warning", BETAS, "row 30 = row 4"),
    "not z-scored": (replace_hdf5(BETAS, "betas", lambda b: b * 30 + 500), "warning", BETAS, "zscore: .*session 1 has"),
    "one row too few": (
        replace_hdf5(BETAS, "betas", lambda b: b[:-1]),
        "error",
        "wds/subj01/",
        r"global trial\) of the trial .* is 39; expected 0..38",
    ),
    "one row too many": (
        replace_hdf5(BETAS, "betas", lambda b: np.concatenate([b, b[:1] + 1])),
        "error",
        "wds/subj01",
        "1 of 41 betas rows have no trial: row 40",
    ),
    "one voxel too many": (
        replace_hdf5(BETAS, "betas", lambda b: np.hstack([b, b[:, :1] + 1])),
        "error",
        "brain_region_masks.hdf5",
        "subj01/nsd_general has 7 entries",
    ),
    "tar truncated": (cut("wds/subj01/train/0.tar"), "error", "wds/subj01/train/0.tar", "not a whole tar"),
    "tar cut between members": (broken_tar, "error", "wds/subj01/train/1.tar", "breaks off after 2 trials"),
    "test tar missing": (drop("wds/subj01/new_test"), "error", "wds/subj01/new_test/0.tar", "not found"),
    "session tar missing": (drop("wds/subj01/train/0.tar"), "error", "wds/subj01/train", "session: 0.tar missing"),
    "no behaviour": (drop("wds/subj01"), "error", "wds/subj01/train", "no behaviour"),
    "trial row out of range": (
        tar("train/0.tar", put(5, TRIALS)),
        "error",
        "wds/subj01/train/0.tar",
        r"is 40; expected 0..39",
    ),
    "two trials of a row": (tar("train/0.tar", put(5, 3)), "error", "wds/subj01", "row 3"),
    "stimulus out of range": (tar("train/1.tar", put(0, 6)), "error", "wds/subj01/train/1.tar", "stimulus.* is 6"),
    "wrong subject": (tar("train/1.tar", put(1, 2)), "error", "wds/subj01/train/1.tar", "subject.* is 2; expected 1"),
    "wrong session": (tar("train/1.tar", put(2, 1)), "error", "wds/subj01/train/1.tar", "session.* is 1; expected 2"),
    "fraction in behaviour": (tar("train/1.tar", put(0, 1.5)), "error", "wds/subj01/train/1.tar", "fraction"),
    "repeats denied": (tar("new_test/0.tar", put(7, 0)), "warning", "wds/subj01", "is-old: .*said to be the first"),
    "repeats invented": (tar("train/0.tar", put(7, 1)), "warning", "wds/subj01", "is-old: .*said to repeat"),
    "test image in training": (shared_leak, "error", "wds/subj01", "training trials show a shared test image: image 2"),
    "index file disagrees": (wrong_index, "error", "COCO_73k_subj_indices.hdf5", r"subj01\[9\]"),
    "images truncated": (cut(IMAGES), "error", IMAGES, "images: not a whole HDF5"),
    "wild pixel": (put_hdf5(IMAGES, "images", (2, 0, 0, 0), 1.5), "error", IMAGES, "image 2 has pixels"),
    "NaN pixel": (put_hdf5(IMAGES, "images", (3, 0, 5, 5), np.nan), "error", IMAGES, "image 3 has pixels"),
    "blank image": (put_hdf5(IMAGES, "images", 5, 0.5), "warning", IMAGES, "one colour: image 5"),
    "captions lost": (
        lambda t: release_writer.write_captions(t.root, [()] * 4 + list(CAPTIONS[4:])),
        "warning",
        IMAGES,
        "captions: 4 of 6 images have no caption: image 0, image 1, image 2 and 1 more",
    ),
    "captions truncated": (
        cut("COCO_73k_annots_curated.npy"),
        "error",
        "COCO_73k_annots_curated.npy",
        "bytes; expected .* by its header",
    ),
    "shared list too short": (
        lambda t: np.save(t.root / "shared1000.npy", t.shared[:-1]),
        "error",
        "shared1000.npy",
        r"shape \(5,\)",
    ),
    "region of another size": (masks({"V2": np.ones(VOXELS + 1, bool)}), "error", "brain_region_masks.hdf5", "subj01/V2"),
    "region empty": (masks({"V3": np.zeros(VOXELS, bool)}), "warning", "brain_region_masks.hdf5", "V3: holds no voxel"),
    "masks truncated": (cut("brain_region_masks.hdf5"), "error", "brain_region_masks.hdf5", "not a whole HDF5"),
    "card": (say("dataset.json", {"simulated": True, "zscore": "some"}), "error", "dataset.json", "zscore is 'some'"),
}


def betas(change):
    def damage(lab):
        lab.betas = change(lab.betas.copy())
        write_betas(lab.root, lab, "npy")

    return damage


def changed(where, value):
    def change(array):
        array[where] = value
        return array

    return change


def cell(line, column, value, name="trials.tsv"):
    def damage(lab):
        path = lab.root / name
        rows = [row.split("\t") for row in path.read_text().split("\n")]
        rows[line - 1][column] = value
        path.write_text("\n".join("\t".join(row) for row in rows))

    return damage


def table(change):
    """Change the trials as a whole and write them again."""

    def damage(lab):
        lab.stimulus, lab.split, lab.session = list(lab.stimulus), list(lab.split), lab.session.copy()
        change(lab)
        write_table(lab.root, lab)

    return damage


def leak(lab):
    lab.split[lab.stimulus.index("d.png")] = "train"


def with_repeats(change):
    def damage(lab):
        path = lab.root / "trials.tsv"
        repeat = [lab.stimulus[:i].count(name) for i, name in enumerate(lab.stimulus)]
        change(repeat)
        lines = path.read_text().strip().split("\n")
        path.write_text("\n".join([lines[0] + "\trepeat"] + [f"{a}\t{b}" for a, b in zip(lines[1:], repeat, strict=True)]))

    return damage


def first_of(lab_repeat, wanted):
    return next(i for i, repeat in enumerate(lab_repeat) if repeat == wanted)


def session_three(lab):
    lab.session[lab.session == 2] = 3


def last_session_short(lab):
    image = nibabel.load(lab.root / "sub-01/betas_session-02.nii.gz")
    save_nifti(lab.root / "sub-01/betas_session-02.nii.gz", image.get_fdata()[..., :-1].astype(np.float32))


def corrupt_gzip(lab):
    path = lab.root / "sub-01/betas_session-01.nii.gz"
    content = bytearray(path.read_bytes())
    content[-6] ^= 1
    path.write_bytes(bytes(content))


def corrupt_chunk(lab):
    """A byte inside a compressed chunk."""
    path = lab.root / "betas.h5"
    with h5py.File(path) as file:
        chunk = file["betas"].id.get_chunk_info(2)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset + chunk.size // 2] ^= 0xFF
    path.write_bytes(bytes(content))


def train_in_one_test_in_other(lab):
    path = lab.root / "sub-02/trials.tsv"
    path.write_text(path.read_text().replace("\ttest", "\ttrain"))


def bigger_mask(lab):
    mask = lab.mask.copy()
    mask.flat[np.flatnonzero(~mask)[0]] = True
    save_nifti(lab.root / "mask.nii.gz", mask.astype(np.uint8))


def shown_in_pieces(lab):
    path = lab.root / "stimuli/b.jpg"
    path.write_bytes(path.read_bytes()[:300])


LAB_DAMAGE = {
    "betas truncated": ("lab", cut("betas.npy"), "error", "betas.npy", "betas: has .* bytes"),
    "betas missing": ("lab", drop("betas.npy"), "error", ".", "betas are none"),
    "bytes too many": ("lab", lambda lab: open(lab.root / "betas.npy", "ab").write(b"1234"), "error", "betas.npy", "bytes"),
    "hdf5 truncated": ("packed", cut("betas.h5"), "error", "betas.h5", "not a whole HDF5"),
    "hdf5 chunk corrupt": ("packed", corrupt_chunk, "error", "betas.h5", "betas rows .*: .*cannot be read"),
    "session file truncated": (
        "nii.gz",
        cut("sub-01/betas_session-02.nii.gz"),
        "error",
        "sub-01/betas_session-02.nii.gz",
        "cannot be read",
    ),
    "session file corrupt": ("nii.gz", corrupt_gzip, "error", "sub-01/betas_session-01.nii.gz", "cannot be read.*CRC"),
    "plain session file cut": ("nii.gz", cut("sub-02/betas_session-01.nii"), "error", "sub-02/betas_session-01.nii", "bytes"),
    "session file short of a trial": (
        "nii.gz",
        last_session_short,
        "error",
        "sub-01/trials.tsv",
        "24 trials but 23 betas rows",
    ),
    "session file missing": (
        "nii.gz",
        drop("sub-01/betas_session-01.nii.gz"),
        "error",
        "sub-01/trials.tsv",
        "24 trials but 12 betas rows",
    ),
    "mask missing": ("nii.gz", drop("sub-01/mask.nii.gz"), "error", "sub-01/mask.nii.gz", "not found"),
    "mask of another size": ("lab", bigger_mask, "error", "mask.nii.gz", "12 voxels are above 0; expected 11"),
    "mask moved": (
        "nii.gz",
        lambda lab: save_nifti(lab.root / "sub-01/mask.nii.gz", lab.mask.astype(np.uint8), np.eye(4)),
        "error",
        "sub-01/betas_session-01.nii.gz",
        "affine differs",
    ),
    "region of another grid": (
        "lab",
        lambda lab: save_nifti(lab.root / "rois/V2.nii.gz", np.ones((2, 2, 2), np.uint8)),
        "error",
        "rois/V2.nii.gz",
        r"volumes of \(2, 2, 2\)",
    ),
    "region empty": (
        "lab",
        lambda lab: save_nifti(lab.root / "rois/V2.nii.gz", np.zeros(MASK_SHAPE, np.uint8)),
        "warning",
        ".",
        "rois, V2: holds no voxel",
    ),
    "one NaN": ("lab", betas(changed((4, 9), np.nan)), "error", "betas.npy", "1 of 11 voxels hold NaN.*row 4, voxel 9"),
    "one far too large": ("lab", betas(changed((4, 9), 3e38)), "error", "betas.npy", "absurdly large values.*row 4, voxel 9"),
    "one infinity": ("lab", betas(changed((4, 9), np.inf)), "error", "betas.npy", "infinite values.*row 4, voxel 9"),
    "constant voxel": ("lab", betas(changed((slice(None), 5), 3)), "error", "betas.npy", "same in all 24 rows: voxel 5"),
    "row of zeros": ("lab", betas(changed(3, 0)), "warning", "betas.npy", "one value in all voxels: row 3"),
    "row copied": ("lab", betas(lambda b: changed(20, b[2])(b)), "warning", "betas.npy", "row 20 = row 2"),
    "betas turned round": (
        "packed",
        replace_hdf5("betas.h5", "betas", lambda b: b.T),
        "error",
        "mask.nii.gz",
        "turned round",
    ),
    "betas complex": ("lab", betas(lambda b: b.astype(complex)), "error", "betas.npy", "dtype complex128"),
    "betas in half precision": ("lab", betas(lambda b: b.astype(np.float16)), "warning", "betas.npy", "dtype: float16"),
    "betas in whole numbers": ("lab", betas(lambda b: (b * 300).astype(np.int16)), "warning", "betas.npy", "dtype: int16"),
    "said to be z-scored": (
        "lab",
        say("dataset.json", {"zscore": "publisher"}),
        "warning",
        "betas.npy",
        "zscore: .*session 1",
    ),
    "a trial too few": (
        "lab",
        lambda lab: (lab.root / "trials.tsv").write_text("\n".join((lab.root / "trials.tsv").read_text().split("\n")[:-2])),
        "error",
        "trials.tsv",
        "23 trials but 24 betas rows",
    ),
    "unknown image": ("lab", cell(7, 1, "gone.png"), "error", "trials.tsv", "line 7, stimulus: is 'gone.png'"),
    "split misspelt": ("lab", cell(8, 3, "tset"), "error", "trials.tsv", "line 8, split: is 'tset'"),
    "session of letters": ("lab", cell(9, 2, "one"), "error", "trials.tsv", "line 9, session: is 'one'"),
    "ragged line": ("lab", cell(5, 3, "train\t1"), "error", "trials.tsv", "line 5: has 5 cells"),
    "table missing": ("lab", drop("trials.tsv"), "error", "trials.tsv", "not found"),
    "test image in training": ("lab", table(leak), "error", "trials.tsv", r"split: has 'd.png' in test, line \d+ in train"),
    "test image in another's training": (
        "nii.gz",
        train_in_one_test_in_other,
        "error",
        "sub-02/trials.tsv",
        "'d.png' in train, subject 1 in test",
    ),
    "repeat twice": (
        "lab",
        with_repeats(lambda r: r.__setitem__(first_of(r, 1), 0)),
        "error",
        "trials.tsv",
        "repeat: is 0 .* as on line",
    ),
    "repeat missing": (
        "lab",
        with_repeats(lambda r: r.__setitem__(first_of(r, 3), 4)),
        "warning",
        "trials.tsv",
        "repeat: 1 images lack an earlier repeat",
    ),
    "session gap": ("lab", table(session_three), "warning", "trials.tsv", "session 2 missing between 1 and 3"),
    "session falls": (
        "lab",
        table(lambda lab: lab.session.__setitem__(slice(None), lab.session[::-1].copy())),
        "warning",
        "trials.tsv",
        "session: falls on line 14",
    ),
    "picture truncated": ("lab", shown_in_pieces, "error", "stimuli/b.jpg", "images: cannot be read"),
    "picture is text": (
        "lab",
        lambda lab: (lab.root / "stimuli/c.png").write_text("no"),
        "error",
        "stimuli/c.png",
        "cannot be read",
    ),
    "picture see-through": (
        "lab",
        lambda lab: Image.new("RGBA", (30, 30), (9, 9, 9, 90)).save(lab.root / "stimuli/c.png"),
        "error",
        "stimuli/c.png",
        "transparent",
    ),
    "caption not UTF-8": (
        "lab",
        lambda lab: (lab.root / "stimuli/d.txt").write_bytes(b"\xff\xfe\x00"),
        "error",
        "stimuli/d.txt",
        "UTF-8",
    ),
    "no stimuli": ("lab", drop("stimuli"), "error", ".", "holds neither stimuli/ nor stimuli.hdf5"),
    "card": ("lab", lambda lab: (lab.root / "dataset.json").write_text("{"), "error", "dataset.json", "not valid JSON"),
}
CASES = [("release", *case) for case in RELEASE_DAMAGE.values()] + list(LAB_DAMAGE.values())


@pytest.mark.parametrize(
    ("kind", "damage", "severity", "file", "said"),
    CASES,
    ids=[f"release: {name}" for name in RELEASE_DAMAGE] + [f"lab: {name}" for name in LAB_DAMAGE],
)
def test_damage_is_found_named_and_never_read(copy_of, whole, kind, damage, severity, file, said):
    truth = copy_of(kind)
    damage(truth)
    findings = check(truth.root)
    found = [
        item
        for item in findings.items
        if item.severity == severity
        and re.search(said, f"{item.field}: {item.message}")
        and (item.file == file or file.endswith("/") and item.file.startswith(file))
    ]
    assert found, [dataclasses.astuple(item) for item in findings.items if item.severity != "note"]
    assert all("\n" not in item.message for item in findings.items)
    if severity == "warning":
        assert findings.count("error") == 0
        everything(truth.root)
        return
    # What a reader still returns (another subject, other voxels) it returns rightly.
    try:
        betas, images, stimulus = everything(truth.root)
    except UserError:
        return
    sound = everything(whole[kind].root)
    np.testing.assert_array_equal(images, sound[1])
    assert stimulus.items() <= sound[2].items()
    constant = re.fullmatch(r"same in all .* voxel (\d).*", said)
    others = np.arange(next(iter(betas.values())).size) != (int(constant[1]) if constant else -1)
    for key, row in betas.items():
        np.testing.assert_array_equal(row[others], sound[0][key][others])


def test_all_damage_is_told_at_once(copy_of, capsys):
    """Three files, four errors: none hides another."""
    truth = copy_of("lab")
    betas(changed((4, 9), np.nan))(truth)
    cell(7, 1, "gone.png")(truth)
    cell(8, 3, "tset")(truth)
    shown_in_pieces(truth)
    assert main(["check", str(truth.root), "--json"]) == 2
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert report["errors"] == 4 == len([item for item in report["findings"] if item["severity"] == "error"])
    assert {(item["file"], item["field"]) for item in report["findings"] if item["severity"] == "error"} == {
        ("betas.npy", "betas"),
        ("trials.tsv", "line 7, stimulus"),
        ("trials.tsv", "line 8, split"),
        ("stimuli/b.jpg", "images"),
    }
    assert all(item["message"] and item["severity"] in ("error", "warning", "note") for item in report["findings"])
    assert "4 errors found; expected none" in printed.err
    assert main(["check", str(truth.root)]) == 2
    table = capsys.readouterr().out
    for said in ("NaN", "gone.png", "tset", "b.jpg", "4 errors"):
        assert said in table


def test_irregular_data_work_and_say_what_is_assumed(copy_of):
    truth = copy_of("nii.gz")
    shutil.rmtree(truth.root / "sub-02/rois")
    lines = (truth.root / "sub-02/trials.tsv").read_text().split("\n")
    lines[2] = lines[2].replace(lines[2].split("\t")[1], "n/a")
    (truth.root / "sub-02/trials.tsv").write_text("\n".join(lines))
    for path in truth.root.glob("stimuli/**/*.txt"):
        path.unlink()
    image = nibabel.load(truth.root / "sub-01/betas_session-01.nii.gz")
    (truth.root / "sub-01/betas_session-02.nii.gz").unlink()
    nibabel.save(image, truth.root / "sub-01/betas_session-01.nii.gz")
    lines = (truth.root / "sub-01/trials.tsv").read_text().split("\n")
    (truth.root / "sub-01/trials.tsv").write_text("\n".join(lines[:13]))
    findings = check(truth.root)
    assert [item for item in findings.items if item.severity == "error"] == []
    assert len(load(truth.root).subject(1).trials) == 12
    notes = " | ".join(f"{item.file} {item.field}: {item.message}" for item in findings.items if item.severity == "note")
    for said in (
        "z-scored per session with the statistics of its training trials",
        "sub-02 rois: no regions",
        "1 trials have no stimulus",
        "stimuli captions: no image has a caption",
        "no column of repeats",
        "different numbers of sessions (1: 1, 2: 2)",
        "number of NSD's own",
        "3 images are not square",
        "seen unequally often",
        "5 images have a side below 224",
    ):
        assert said in notes, notes


def test_what_is_no_dataset_is_refused_in_one_line(tmp_path, capsys):
    for root in (tmp_path, tmp_path / "nowhere"):
        assert main(["check", str(root)]) == 2
        printed = capsys.readouterr()
        assert printed.err.count("\n") == 1 and "expected" in printed.err and "error  " in printed.out
        assert main(["check", str(root), "--json"]) == 2
        report = json.loads(capsys.readouterr().out)
        assert report["errors"] == 1 and report["findings"][0]["field"] == "format"
    (tmp_path / "trials.tsv").write_text("")
    assert main(["check", str(tmp_path)]) == 2
