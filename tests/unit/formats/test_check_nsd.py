"""``mindtuner check`` on raw NSD: damage planted in each file is found and named, and the readers give no row of it."""

import dataclasses
import gzip
import json
import re
import shutil

import h5py
import nibabel
import numpy as np
import pytest
import scipy.io
from nsd_raw_files import (
    BETAS,
    DESIGN,
    ROI,
    SESSION,
    SESSIONS,
    SHAPE,
    STIMULI,
    TABLE,
    betas_of,
    cut,
    edit,
    flip,
    hdf5,
    make_raw_nsd,
    nifti,
    redesign,
    write_design,
    write_session,
)

from mindtuner.cli import main
from mindtuner.errors import UserError
from mindtuner.formats import check, format_of, load
from mindtuner.formats.nsd_raw import read as raw
from mindtuner.formats.nsd_raw.convert import find_scans
from mindtuner.formats.nsd_raw.volumes import read_mask, read_session

MASK1, VISUAL2 = ROI.format(1) + "/nsdgeneral.nii.gz", ROI.format(2) + "/prf-visualrois.nii.gz"
ONE = [f"{BETAS.format(1)}/betas_session0{n}.nii.gz" for n in (1, 2, 3)]
TWO = [f"{BETAS.format(2)}/betas_session0{n}.hdf5" for n in (1, 2)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_raw_nsd(tmp_path_factory.mktemp("nsd"))


@pytest.fixture
def truth(whole, tmp_path):
    shutil.copytree(whole.root, tmp_path / "nsd")
    return dataclasses.replace(whole, root=tmp_path / "nsd")


def everything(root):
    """All that a conversion reads: betas, stimulus and kind of each trial, by subject; images; captions."""
    pixels = np.concatenate(list(raw.read_stimuli(root, 5)))
    design = raw.read_design(root, len(pixels))
    captions = raw.read_captions(raw.caption_files([root]), raw.read_coco_ids(root, design.is_shared))
    scans = find_scans(root, design, raw.find_subjects(root))
    betas = {
        subject.number: np.concatenate([read_session(path, subject.mask) for path in subject.sessions]) for subject in scans
    }
    return (
        pixels,
        captions,
        {subject.number: (betas[subject.number], subject.table.stimulus, subject.table.is_shared) for subject in scans},
    )


def test_nothing_is_wrong_with_sound_data(whole, capsys):
    assert format_of(whole.root).name == "nsd_raw"
    findings = check(whole.root)
    assert findings.count("error") == 0
    # What is odd is really there: small masks, trials of one value (the ends of int16), images without captions.
    warnings = {(item.file, item.field) for item in findings.items if item.severity == "warning"}
    assert warnings == {(ROI.format(s) + "/nsdgeneral.nii.gz", "mask") for s in (1, 2)} | {
        (BETAS.format(s), "betas") for s in (1, 2)
    } | {(TABLE, "captions")}
    notes = " | ".join(f"{item.file} {item.field}: {item.message}" for item in findings.items if item.severity == "note")
    voxel = ", ".join(map(str, whole.voxels(1)[0]))
    for said in (
        f"1 voxels are constant in session 2: voxel ({voxel})",
        "2 of NSD's 40",
        "smallest or largest of int16",
        "NSD's sessions have 750 trials, these 24",
        "73000 images of 425 x 425",
    ):
        assert said in notes, notes
    facts = dict(findings.facts)
    assert facts[MASK1].startswith(f"{len(whole.voxels(1))} voxels") and "96 trials of 8 subjects" in facts[DESIGN]
    assert main(["check", str(whole.root)]) == 0
    assert "format nsd_raw: raw NSD" in capsys.readouterr().out


def test_raw_nsd_is_converted_before_it_is_loaded(whole):
    with pytest.raises(UserError, match="mindtuner convert nsd .* OUT") as error:
        load(whole.root)
    assert "\n" not in str(error.value)


def save(path, change):
    """Change a NIfTI file's numbers."""

    def damage(truth):
        nifti(truth.root / path, change(np.asanyarray(nibabel.load(truth.root / path, mmap=False).dataobj)))

    return damage


def changed(where, value):
    def change(array):
        array[where] = value
        return array

    return change


def truncate(path, keep=0.6):
    return lambda truth: cut(truth.root / path, keep)


def drop(path):
    return lambda truth: (truth.root / path).unlink()


def replace(path, old, new):
    return lambda truth: edit(truth.root / path, old, new)


def put(path, name, where, value):
    def damage(truth):
        with h5py.File(truth.root / path, "r+") as file:
            file[name][where] = value

    return damage


def flat_voxel(truth):
    """In all sessions of subject 2."""
    x, y, z = truth.voxels(2)[5]
    for path in TWO:
        put(path, "betas", (slice(None), z, y, x), 7)(truth)


def unwritten(truth):
    with h5py.File(truth.root / TWO[0], "w") as file:
        file.create_dataset("betas", (SESSION, *SHAPE[::-1]), np.int16, chunks=(SESSION, 1, 1, 1))


def photograph_twice(truth):
    edit(truth.root / TABLE, f"0,{truth.coco[0]},", f"0,{truth.coco[1]},")


def image_of(truth, shared):
    """An image that subject 1 saw, shared or not, from 0."""
    return next(i for i, is_shared in zip(truth.stimulus(1), truth.is_shared(1), strict=True) if is_shared == shared)


def copy_into_test(truth):
    put(STIMULI, "imgBrick", image_of(truth, True), truth.pixels[image_of(truth, False)])(truth)


def mask_elsewhere(truth):
    image = nibabel.load(truth.root / MASK1)
    nibabel.Nifti1Image(image.get_fdata().astype(np.float32), np.diag([2, 2, 2, 1])).to_filename(truth.root / MASK1)


def flip_mask(truth):
    path = truth.root / MASK1
    packed = bytearray(gzip.compress(gzip.decompress(path.read_bytes()), 0))
    packed[-11] ^= 0x80
    path.write_bytes(bytes(packed))


def corrupt_images(truth):
    with h5py.File(truth.root / STIMULI, "w") as file:
        file.create_dataset("imgBrick", data=truth.pixels, chunks=(1, 40, 40, 3), compression="gzip")
        chunk = file["imgBrick"].id.get_chunk_info(4)
    content = bytearray((truth.root / STIMULI).read_bytes())
    content[chunk.byte_offset + chunk.size // 2] ^= 0xFF
    (truth.root / STIMULI).write_bytes(bytes(content))


def listed_twice(truth):
    images = truth.images.copy()
    images[2, 9] = images[2, 8]
    write_design(dataclasses.replace(truth, images=images))


def shared_by_some(truth):
    images = truth.images.copy()
    images[4, 0] = images[4, 5]
    write_design(dataclasses.replace(truth, images=images))


def repeats_lost(truth):
    order = truth.order.copy()
    order[order == 4] = 5
    write_design(dataclasses.replace(truth, order=order))


def in_percent(truth):
    for path, betas in zip(ONE, truth.raw[1], strict=True):
        nifti(truth.root / path, np.where(np.abs(betas.astype(int)) > 32766, 0, betas // 300).astype(np.int16))


def beyond_design(truth):
    for n in (4, 5):
        write_session(betas_of(truth, 1, 1).parent, n, truth.raw[1][0], "nii.gz")


# name -> (damage, severity, file, what the finding says: a regular expression over field and message)
DAMAGE = {
    "no design": (drop(DESIGN), "error", DESIGN, "not found"),
    "design truncated": (truncate(DESIGN), "error", DESIGN, "cannot be read"),
    "design is text": (lambda t: (t.root / DESIGN).write_text("x" * 500), "error", DESIGN, "cannot be read"),
    "design lacks a field": (
        lambda t: scipy.io.savemat(t.root / DESIGN, {"subjectim": [[1]]}),
        "error",
        DESIGN,
        "no field masterordering",
    ),
    "order out of range": (lambda t: redesign(t, order=11), "error", DESIGN, r"masterordering\(1, 96\) is 11"),
    "image out of range": (lambda t: redesign(t, images=18), "error", DESIGN, r"subjectim\(8, 10\) is 18"),
    "shared out of range": (lambda t: redesign(t, shared=99), "error", DESIGN, r"sharedix\(1, 3\) is 99"),
    "image listed twice": (listed_twice, "warning", DESIGN, "subjectim, row 3: lists 1 images more than once"),
    "shared by some": (shared_by_some, "warning", DESIGN, "subjectim, row 5: lacks 1 of the images in sharedix"),
    "repeats missing and too many": (
        repeats_lost,
        "warning",
        DESIGN,
        r"masterordering: 2 of 10 places .*place 4 \(0 times\)",
    ),
    "no stimuli": (drop(STIMULI), "error", STIMULI, "imgBrick: not found"),
    "stimuli truncated": (truncate(STIMULI), "error", STIMULI, "imgBrick: not a whole HDF5"),
    "stimuli as floats": (
        lambda t: hdf5(t.root / STIMULI, "imgBrick", t.pixels / np.float32(255)),
        "error",
        STIMULI,
        "dtype float32; expected .* uint8",
    ),
    "stimuli turned round": (
        lambda t: hdf5(t.root / STIMULI, "imgBrick", t.pixels.transpose(0, 3, 1, 2)),
        "error",
        STIMULI,
        r"shape \(17, 3, 40, 40\)",
    ),
    "a stimulus cannot be read": (corrupt_images, "error", STIMULI, "imgBrick cannot be read"),
    "stimulus blank": (put(STIMULI, "imgBrick", 5, 128), "warning", STIMULI, "images: 1 images have one colour: image 5"),
    "test image in training": (copy_into_test, "error", STIMULI, "1 test images have the same pixels as a training image"),
    "no table": (drop(TABLE), "error", TABLE, "not found"),
    "table truncated": (truncate(TABLE, 0.5), "error", TABLE, "table: (no )?line"),
    "table breaks off in its last line": (
        lambda t: (t.root / TABLE).write_text((t.root / TABLE).read_text()[:-13]),
        "error",
        TABLE,
        "line 18: has . cells; expected 9",
    ),
    "table without a column": (replace(TABLE, "cocoId", "coco"), "error", TABLE, "line 2: cocoId is None"),
    "table says shared": (replace(TABLE, "False,False,False", "False,False,True"), "error", TABLE, "shared1000 is 'True'"),
    "table line twice": (replace(TABLE, ",1,False", ",0,False"), "error", TABLE, "nsdId is 0; expected each"),
    "photograph twice": (photograph_twice, "warning", TABLE, r"cocoId: 1 photographs are two stimuli: cocoId \d+"),
    "captions truncated": (truncate("captions_val2017.json"), "error", "captions_val2017.json", "not valid JSON"),
    "captions are instances": (
        replace("captions_train2017.json", '"caption"', '"bbox"'),
        "error",
        "captions_train2017.json",
        r"annotations\[0\]",
    ),
    "captions lost": (
        lambda t: (t.root / "captions_val2017.json").unlink(),
        "warning",
        TABLE,
        r"captions: \d+ of 17 images have no caption",
    ),
    "no mask": (drop(MASK1), "error", MASK1, "mask: not found"),
    "mask truncated": (truncate(MASK1), "error", MASK1, "mask: cannot be read"),
    "mask with a flipped bit": (flip_mask, "error", MASK1, "mask: cannot be read"),
    "mask empty": (save(MASK1, np.zeros_like), "error", MASK1, "no voxel is above 0"),
    "mask of another size": (save(MASK1, lambda m: m[:, :, :-1]), "error", ONE[0], r"over \(6, 5, 3\)"),
    "mask with NaN": (save(MASK1, changed((0, 0, 0), np.nan)), "warning", MASK1, "labels: 1 voxels are nan"),
    "mask elsewhere": (mask_elsewhere, "warning", ONE[1], "affine: differs from that of nsdgeneral"),
    "regions of another size": (save(VISUAL2, lambda m: m[:-1]), "error", VISUAL2, "regions: has shape"),
    "regions truncated": (truncate(VISUAL2), "error", VISUAL2, "regions: cannot be read"),
    "regions of other labels": (save(VISUAL2, changed((0, 0, 0), 31)), "warning", VISUAL2, "labels: 1 voxels are 31"),
    "a region empty": (save(VISUAL2, lambda m: np.where(m == 7, 0, m)), "warning", VISUAL2, "V4 holds no voxel"),
    "a session missing": (drop(ONE[1]), "error", ONE[1][:-7] + ".hdf5 (or .nii.gz)", "session: not found"),
    "no session": (lambda t: [drop(path)(t) for path in TWO], "error", BETAS.format(2), "no session"),
    "session misnamed": (
        lambda t: (t.root / ONE[2]).rename((t.root / ONE[2]).with_name("betas_session3.nii.gz")),
        "warning",
        BETAS.format(1) + "/betas_session3.nii.gz",
        "session: is passed over",
    ),
    "session too short": (
        lambda t: write_session(t.root / BETAS.format(1), 3, t.raw[1][2][..., 1:], "nii.gz"),
        "error",
        ONE[2],
        "holds 23 trials; expected 24",
    ),
    "sessions beyond the design": (beyond_design, "error", ONE[0].replace("01.nii", "05.nii"), "beyond the design"),
    "NIfTI truncated": (truncate(ONE[1]), "error", ONE[1], "betas .*cannot be read"),
    "NIfTI with a flipped bit": (lambda t: flip(t.root / ONE[2]), "error", ONE[2], "cannot be read .*CRC"),
    "NIfTI is text": (lambda t: (t.root / ONE[0]).write_text("hello"), "error", ONE[0], "cannot be read"),
    "NIfTI as floats": (
        lambda t: nifti(t.root / ONE[0], t.raw[1][0].astype(np.float32)),
        "error",
        ONE[0],
        "dtype float32; expected int16",
    ),
    "NIfTI scaled": (lambda t: nifti(t.root / ONE[0], t.raw[1][0], slope=0.5), "error", ONE[0], "is scaled by 0.5"),
    "NIfTI not times 300": (in_percent, "warning", BETAS.format(1), r"scale: .*betas_session01.nii.gz \(0.0"),
    "HDF5 truncated": (truncate(TWO[1]), "error", TWO[1], "not a whole HDF5"),
    "HDF5 as floats": (lambda t: hdf5(t.root / TWO[1], "betas", t.raw[2][1].T / 300), "error", TWO[1], "dtype float64"),
    "HDF5 turned round": (lambda t: hdf5(t.root / TWO[1], "betas", t.raw[2][1]), "error", TWO[1], r"shape \(24, 4, 5, 6\)"),
    "HDF5 under another name": (lambda t: hdf5(t.root / TWO[1], "b", t.raw[2][1].T), "error", TWO[1], "no dataset 'betas'"),
    "HDF5 never written": (unwritten, "error", TWO[0], "betas was declared but never written"),
    "half a session zero": (
        put(TWO[1], "betas", (slice(None), slice(0, 2)), 0),
        "warning",
        BETAS.format(2),
        "voxels are constant in session 2: .*not copied to its end",
    ),
    "voxel constant": (flat_voxel, "warning", BETAS.format(2), r"1 of \d+ voxels are the same in all 48 rows: voxel \("),
    "trial of zeros": (put(TWO[1], "betas", 6, 0), "warning", BETAS.format(2), "one value.*betas_session02.hdf5, trial 7"),
    "session copied": (
        lambda t: shutil.copy(t.root / TWO[0], t.root / TWO[1]),
        "warning",
        BETAS.format(2),
        "betas_session02.hdf5, trial 3 = betas_session01.hdf5, trial 3",
    ),
    "subject that NSD has not": (
        lambda t: shutil.copytree(t.root / BETAS.format(1), t.root / BETAS.format(9)),
        "error",
        BETAS.format(9),
        "subject: 9 is not in NSD's design",
    ),
}
# What the files then say is another thing, and that is what a reader gives.
OTHERWISE = (
    "image listed twice",
    "shared by some",
    "repeats missing and too many",
    "stimulus blank",
    "test image in training",
    "photograph twice",
    "captions lost",
    "mask with NaN",
    "session misnamed",
    "NIfTI not times 300",
    "half a session zero",
    "voxel constant",
    "trial of zeros",
    "session copied",
)


@pytest.fixture(scope="module")
def sound(whole):
    return everything(whole.root)


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_named_and_never_read(truth, sound, name):
    damage, severity, file, said = DAMAGE[name]
    damage(truth)
    findings = check(truth.root)
    found = [
        item
        for item in findings.items
        if item.severity == severity and item.file == file and re.search(said, f"{item.field}: {item.message}")
    ]
    assert found, [dataclasses.astuple(item) for item in findings.items if item.severity != "note"]
    assert all("\n" not in item.message for item in findings.items)
    assert (findings.count("error") > 0) == (severity == "error")
    try:
        pixels, captions, subjects = everything(truth.root)
    except UserError:
        assert severity == "error"
        return
    if name not in OTHERWISE:
        np.testing.assert_array_equal(pixels, sound[0])
        assert captions == sound[1]
        for number, arrays in subjects.items():
            for array, expected in zip(arrays, sound[2][number], strict=True):
                np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("checksum", ["kept", "made anew"])
def test_a_flipped_bit_behind_what_nibabel_reads_is_seen(tmp_path, checksum):
    """nibabel stops at the last voxel, so that gzip never compares; a mask of NSD's size is not read at once either."""
    path, mask = tmp_path / MASK1, np.zeros((20, 20, 20), np.float32)
    mask[3, 4, 5], mask[-1, -1, -1] = 1, -1
    nifti(path, mask)
    plain = bytearray(gzip.decompress(path.read_bytes()))
    if checksum == "made anew":
        plain[-1] ^= 0x80
        path.write_bytes(gzip.compress(bytes(plain)))
        assert np.flatnonzero(read_mask(tmp_path, 1)).tolist() == [3 * 400 + 4 * 20 + 5, 7999]  # what is guarded against
        return
    packed = bytearray(gzip.compress(bytes(plain), 0))
    packed[-9] ^= 0x80  # the sign of the last voxel; eight bytes of checksum and length follow
    path.write_bytes(bytes(packed))
    with pytest.raises(UserError, match="nsdgeneral.nii.gz: cannot be read .*CRC"):
        read_mask(tmp_path, 1)


def test_all_damage_is_told_at_once(truth, capsys):
    for name in ("captions truncated", "NIfTI as floats", "NIfTI with a flipped bit", "HDF5 truncated"):
        DAMAGE[name][0](truth)
    assert main(["check", str(truth.root), "--json"]) == 2
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert {item["file"] for item in report["findings"] if item["severity"] == "error"} == {
        "captions_val2017.json",
        ONE[0],
        ONE[2],
        TWO[1],
    }
    assert report["errors"] == 4 and "4 errors found; expected none" in printed.err


def test_sessions_fewer_than_nsds_and_no_regions_or_captions_are_assumed(truth):
    (truth.root / VISUAL2).unlink()
    (truth.root / ONE[2]).unlink()
    for path in truth.root.glob("captions_*"):
        path.unlink()
    findings = check(truth.root)
    assert findings.count("error") == 0 and SESSIONS[2] == 2
    notes = " | ".join(f"{item.field}: {item.message}" for item in findings.items if item.severity == "note")
    for said in ("no prf-visualrois.nii.gz, so V1 to V4 are empty", "session: 2 of NSD's 40 sessions", "--captions"):
        assert said in notes, notes
