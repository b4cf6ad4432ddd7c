"""GLMsingle's output in a lab's folder: every order of axes gives the betas that were put in, and none is guessed."""

import pickle
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lab_files import MASK_SHAPE, TRIALS, VOXELS, make_lab, save_nifti, write_table, zscored

from mindtuner.cli import main
from mindtuner.errors import UserError
from mindtuner.formats import check, convert, load, trial_volumes
from mindtuner.formats.trial_volumes import TrialVolumes, order_of

MODEL = "TYPED_FITHRF_GLMDENOISE_RR"


@pytest.fixture
def lab(tmp_path):
    return bare(tmp_path / "data")


def bare(root):
    """A lab's folder with a mask, and no betas."""
    lab = make_lab(root)
    (root / "betas.npy").unlink()
    return lab


def volumes_of(lab, rows=slice(None)):
    """(X, Y, Z, trials), NaN outside the mask, as GLMsingle divides by a mean of 0 there."""
    betas = lab.betas[rows]
    volumes = np.full((*MASK_SHAPE, len(betas)), np.nan, np.float32)
    for trial, row in enumerate(betas):
        volumes[..., trial][lab.mask] = row
    return volumes


def flat_of(lab):
    """(voxels, trials) in NumPy's order of the mask."""
    return lab.betas.T


def python(path, array, name="betasmd", **options):
    """As glmsingle/utils/h5_utils.py writes: arrays as they are, what is None as an empty dataset."""
    with h5py.File(path, "w") as file:
        file.create_dataset(name, data=array, **options)
        file.create_dataset("R2", data=np.zeros(array.shape[:-1], np.float32))
        file.create_dataset("glmbadness", data=h5py.Empty("f"))


def matlab(path, array, name="modelmd", **options):
    """As MATLAB saves -v7.3: a header of 512 bytes, axes in reverse, the class of each variable beside it."""
    with h5py.File(path, "w", userblock_size=512) as file:
        data = file.create_dataset(name, data=array.T, **options)
        data.attrs["MATLAB_class"] = np.bytes_("single")
    with open(path, "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")


def packed(array):
    return {"chunks": tuple(min(n, 2) for n in array.shape), "compression": "gzip"}


def npy(path, array):
    np.save(path, array)


def column_by_column(lab):
    """(voxels, trials) in MATLAB's order of the mask, which is that of data(mask, :)."""
    volumes = volumes_of(lab)
    places = [(x, y, z) for z in range(MASK_SHAPE[2]) for y in range(MASK_SHAPE[1]) for x in range(MASK_SHAPE[0])]
    return np.stack([volumes[place] for place in places if lab.mask[place]])


FORMS = {
    "Python": lambda lab, at: python(at / f"{MODEL}.hdf5", volumes_of(lab)),
    "Python, packed": lambda lab, at: python(at / f"{MODEL}.hdf5", v := volumes_of(lab), **packed(v)),
    "Python, float64": lambda lab, at: python(at / f"{MODEL}.hdf5", volumes_of(lab).astype(float)),
    "Python, model C": lambda lab, at: python(at / "TYPEC_FITHRF_GLMDENOISE.hdf5", volumes_of(lab)),
    "Python, model B": lambda lab, at: python(at / "TYPEB_FITHRF.hdf5", volumes_of(lab)),
    "Python, flat": lambda lab, at: python(at / f"{MODEL}.hdf5", flat_of(lab)[:, None, None]),
    "Python, two axes": lambda lab, at: python(at / f"{MODEL}.hdf5", flat_of(lab)),
    "MATLAB": lambda lab, at: matlab(at / f"{MODEL}.mat", volumes_of(lab)),
    "MATLAB, betasmd": lambda lab, at: matlab(at / f"{MODEL}.mat", volumes_of(lab), "betasmd"),
    "MATLAB, packed": lambda lab, at: matlab(at / f"{MODEL}.mat", v := volumes_of(lab), **packed(v)),
    "MATLAB, flat": lambda lab, at: matlab(at / f"{MODEL}.mat", column_by_column(lab)[:, None, None]),
    "MATLAB, two axes": lambda lab, at: matlab(at / f"{MODEL}.mat", column_by_column(lab)),
    "MATLAB without its mark": lambda lab, at: python(at / f"{MODEL}.hdf5", volumes_of(lab).T),
    "betas.hdf5 of that name inside": lambda lab, at: python(at / "betas.hdf5", volumes_of(lab)),
    "betas.h5 with four axes": lambda lab, at: python(at / "betas.h5", volumes_of(lab), "betas"),
    "betas.npy with four axes": lambda lab, at: npy(at / "betas.npy", volumes_of(lab)),
    "betas.npy in Fortran order": lambda lab, at: npy(at / "betas.npy", np.asfortranarray(volumes_of(lab))),
    "betas.npy, trials first": lambda lab, at: npy(at / "betas.npy", np.moveaxis(volumes_of(lab), 3, 0)),
    "betas.npy of MATLAB's": lambda lab, at: npy(at / "betas.npy", np.ascontiguousarray(volumes_of(lab).T)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_betas_that_were_put_in(lab, form, monkeypatch):
    monkeypatch.setattr(trial_volumes, "BLOCK_BYTES", 500)  # several blocks
    FORMS[form](lab, lab.root)
    subject = load(lab.root).subject(1)
    assert subject.n_voxels == VOXELS and len(subject.trials) == TRIALS
    np.testing.assert_allclose(subject.betas(range(TRIALS)), zscored(lab), atol=2e-5)
    np.testing.assert_allclose(subject.betas([7, 2, 7]), zscored(lab)[[7, 2, 7]], atol=2e-5)
    np.testing.assert_allclose(subject.within("V1").betas([3]), zscored(lab)[[3]][:, lab.v1], atol=2e-5)
    findings = check(lab.root)
    assert findings.count("error") == 0, findings.items
    assert any("24 trials x 11 voxels" in what for _, what in findings.facts)
    assert any(item.field == "betas" and "unpacked once per run" in item.message for item in findings.items)


def test_without_a_mask_the_table_tells_voxels_from_trials(lab):
    shutil.rmtree(lab.root / "rois")
    (lab.root / "mask.nii.gz").unlink()
    for write in (python, matlab):
        for array in (flat_of(lab), flat_of(lab)[:, None, None]):
            write(lab.root / f"{MODEL}.{'mat' if write is matlab else 'hdf5'}", array)
            np.testing.assert_allclose(load(lab.root).subject(1).betas(range(TRIALS)), zscored(lab), atol=2e-5)
        for path in lab.root.glob(f"{MODEL}.*"):
            path.unlink()
    python(lab.root / f"{MODEL}.hdf5", lab.betas)  # trials x voxels: 24 is found where it is
    np.testing.assert_allclose(load(lab.root).subject(1).betas(range(TRIALS)), zscored(lab), atol=2e-5)


def test_one_output_a_session(lab):
    for number in (1, 2):
        (lab.root / f"ses-{number:02d}").mkdir()
        place = lab.root / f"ses-{number:02d}"
        (python if number == 1 else matlab)(
            place / f"{MODEL}.{'hdf5' if number == 1 else 'mat'}", volumes_of(lab, lab.session == number)
        )
    np.testing.assert_allclose(load(lab.root).subject(1).betas(range(TRIALS)), zscored(lab), atol=2e-5)
    assert check(lab.root).count("error") == 0
    lab.session[11] = 2
    write_table(lab.root, lab)
    with pytest.raises(UserError, match="line 13, session is 2; expected 1, since the session files hold 12 trials"):
        load(lab.root)
    (lab.root / "ses-02").rename(lab.root / "ses-b")
    with pytest.raises(UserError, match="ses-b/TYPED.*expected a folder such as ses-01"):
        load(lab.root)


@pytest.mark.parametrize("voxels", [1, VOXELS - 2])
def test_sessions_of_other_voxels_are_refused(lab, capsys, voxels):
    no_mask(lab)
    for number, own in ((1, VOXELS), (2, voxels)):
        (lab.root / f"ses-{number:02d}").mkdir()
        matlab(lab.root / f"ses-{number:02d}" / f"{MODEL}.mat", lab.betas[lab.session == number, :own].T)
    with pytest.raises(
        UserError, match=rf"ses-02/{MODEL}.mat: {voxels} voxels; expected {VOXELS} as in .*ses-01/{MODEL}.mat"
    ):
        load(lab.root)
    assert main(["check", str(lab.root)]) == 2
    assert f"{voxels} voxels; expected {VOXELS} as in" in capsys.readouterr().out


def test_the_fullest_model_counts_and_a_pickle_beside_betas_does_not(lab):
    python(lab.root / f"{MODEL}.hdf5", volumes_of(lab))
    python(lab.root / "TYPEB_FITHRF.hdf5", volumes_of(lab) * 0)
    with open(lab.root / "DESIGNINFO.npy", "wb") as file:
        np.save(file, {"stimorder": [0]}, allow_pickle=True)
    np.testing.assert_allclose(load(lab.root).subject(1).betas(range(TRIALS)), zscored(lab), atol=2e-5)
    (lab.root / f"{MODEL}.hdf5").rename(lab.root / "betas.hdf5")
    (lab.root / "TYPEB_FITHRF.hdf5").unlink()
    (lab.root / f"{MODEL}.npy").write_bytes(b"never looked at")
    np.testing.assert_allclose(load(lab.root).subject(1).betas(range(TRIALS)), zscored(lab), atol=2e-5)


class Trap:
    """Unpickling it would leave a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("name", [f"{MODEL}.npy", "TYPEB_FITHRF.npy", "betas.npy"])
def test_a_pickle_is_never_loaded_and_the_line_says_what_to_do(lab, capsys, name):
    sprung = lab.root / "sprung"
    array = np.array({"betasmd": Trap(sprung)}, object)
    np.save(lab.root / name, array, allow_pickle=True)
    with pytest.raises(UserError, match=rf"{name}: is pickled, .*never loaded; expected .*wanthdf5=1") as caught:
        load(lab.root)
    assert "\n" not in str(caught.value)
    assert main(["check", str(lab.root)]) == 2
    assert "wanthdf5=1" in capsys.readouterr().out and not sprung.exists()
    pickle.loads(pickle.dumps(Trap(sprung))).close()  # the trap works
    assert sprung.exists()


def cut(path):
    path.write_bytes(path.read_bytes()[:-600])


def write_old_matlab(path):
    import scipy.io

    scipy.io.savemat(path, {"modelmd": np.ones((2, 2))})


def no_mask(lab):
    shutil.rmtree(lab.root / "rois")
    (lab.root / "mask.nii.gz").unlink()


def both(lab):
    FORMS["Python"](lab, lab.root)
    FORMS["MATLAB"](lab, lab.root)


def python_and_npy(lab):
    FORMS["Python"](lab, lab.root)
    np.save(lab.root / "betas.npy", lab.betas)


BAD = {
    "volumes without a mask": (
        lambda lab: (no_mask(lab), FORMS["Python"](lab, lab.root)),
        "betasmd has shape (3, 4, 5, 24); expected mask.nii.gz beside it",
    ),
    "another mask": (
        lambda lab: python(lab.root / f"{MODEL}.hdf5", np.ones((3, 4, 6, 24), np.float32)),
        "betasmd has shape (3, 4, 6, 24); expected X x Y x Z x trials or trials x Z x Y x X or trials x X x Y x Z with a "
        "mask of (3, 4, 5)",
    ),
    "MATLAB's with another mask": (
        lambda lab: matlab(lab.root / f"{MODEL}.mat", np.ones((5, 4, 3, 24), np.float32)),
        "modelmd has shape (24, 3, 4, 5); expected MATLAB's trials x Z x Y x X with a mask of (3, 4, 5)",
    ),
    "another number of trials": (
        lambda lab: python(lab.root / f"{MODEL}.hdf5", volumes_of(lab)[..., :20]),
        "24 trials but 20 betas rows in TYPED_FITHRF_GLMDENOISE_RR.hdf5",
    ),
    "flat, of no known number": (
        lambda lab: python(lab.root / f"{MODEL}.hdf5", np.ones((60, 24), np.float32)),
        "betasmd has shape (60, 24); expected voxels x trials or trials x voxels with a mask of 11 voxels",
    ),
    "three axes": (
        lambda lab: python(lab.root / f"{MODEL}.hdf5", np.ones((3, 4, 24), np.float32)),
        "betasmd has shape (3, 4, 24); expected X x Y x Z x trials, or voxels x trials",
    ),
    "no betas inside": (
        lambda lab: python(lab.root / f"{MODEL}.hdf5", volumes_of(lab), "beta"),
        "holds 0 datasets betasmd or modelmd",
    ),
    "whole numbers": (
        lambda lab: python(lab.root / f"{MODEL}.hdf5", np.ones((3, 4, 5, 24), np.int16)),
        "betasmd holds int16",
    ),
    "cut": (lambda lab: (FORMS["Python"](lab, lab.root), cut(lab.root / f"{MODEL}.hdf5")), "not a whole HDF5 file"),
    "text": (lambda lab: (lab.root / f"{MODEL}.mat").write_text("hello"), "not a whole HDF5 file"),
    "empty": (lambda lab: (lab.root / f"{MODEL}.hdf5").touch(), "not a whole HDF5 file"),
    "MATLAB 5": (lambda lab: write_old_matlab(lab.root / f"{MODEL}.mat"), "MATLAB's older format; expected version 7.3"),
    "both endings": (both, "holds both TYPED_FITHRF_GLMDENOISE_RR.hdf5 and TYPED_FITHRF_GLMDENOISE_RR.mat"),
    "betas.npy too": (python_and_npy, "betas are betas.npy, TYPED_FITHRF_GLMDENOISE_RR.hdf5; expected one of"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_read_is_refused_in_one_line(lab, capsys, kind):
    damage, words = BAD[kind]
    damage(lab)
    with pytest.raises(UserError) as caught:
        load(lab.root)
    assert words in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value) and "expected" in str(caught.value)
    assert main(["check", str(lab.root)]) == 2
    assert words.partition(";")[0] in capsys.readouterr().out


def test_damage_inside_is_found_when_it_is_read(lab):
    volumes = volumes_of(lab)
    python(lab.root / f"{MODEL}.hdf5", volumes, chunks=volumes.shape, compression="gzip", shuffle=True)
    whole = (lab.root / f"{MODEL}.hdf5").read_bytes()
    with h5py.File(lab.root / f"{MODEL}.hdf5") as file:
        start, size = (lambda chunk: (chunk.byte_offset, chunk.size))(file["betasmd"].id.get_chunk_info(0))
    (lab.root / f"{MODEL}.hdf5").write_bytes(whole[: start + 20] + bytes(size - 40) + whole[start + size - 20 :])
    with pytest.raises(UserError, match="hdf5: cannot be read"):
        load(lab.root).subject(1).betas([0])


# ---- orders of axes


def fitting(shape, mask, trials, matlab):
    """By hand: the orders of four axes under which the array has the mask's volume and the table's trials."""
    places = {"X x Y x Z x trials": (0, 1, 2, 3), "trials x Z x Y x X": (3, 2, 1, 0), "trials x X x Y x Z": (1, 2, 3, 0)}
    if matlab:
        places = {"trials x Z x Y x X": (3, 2, 1, 0)}
    fits = {n: p for n, p in places.items() if tuple(shape[i] for i in p[:3]) == mask}
    exact = {n: p for n, p in fits.items() if shape[p[3]] == trials}
    return exact if len(fits) > 1 and exact else fits


@settings(max_examples=300, deadline=None)
@given(st.tuples(*[st.integers(2, 4)] * 4), st.permutations(range(4)), st.integers(2, 4), st.booleans(), st.booleans())
def test_an_order_is_taken_only_where_it_is_the_only_one(sizes, shuffled, trials, same, matlab):
    mask = np.ones(sizes[:3], bool)
    stored = tuple(sizes[i] for i in shuffled)
    trials = sizes[3] if same else trials
    fits = fitting(stored, mask.shape, trials, matlab)
    if len(fits) == 1:
        order, shape = order_of("f", "betasmd", stored, matlab, mask, trials)
        assert order.name in fits and shape == stored
    else:
        with pytest.raises(UserError, match="f: betasmd has shape .*expected"):
            order_of("f", "betasmd", stored, matlab, mask, trials)


def test_a_cube_with_as_many_trials_is_refused_with_both_orders(tmp_path, capsys):
    lab = bare(tmp_path)
    mask = np.ones((3, 3, 3), np.uint8)
    lab.stimulus, lab.split, lab.session = lab.stimulus[:3], ["train"] * 3, lab.session[:3]
    write_table(tmp_path, lab)
    shutil.rmtree(tmp_path / "rois")
    save_nifti(tmp_path / "mask.nii.gz", mask)
    cube = np.random.default_rng(0).standard_normal((3, 3, 3, 3)).astype(np.float32)
    python(tmp_path / f"{MODEL}.hdf5", cube)
    wanted = (
        r"with a mask of \(3, 3, 3\) and 3 trials may be X x Y x Z x trials or trials x Z x Y x X or .*; expected one that"
    )
    with pytest.raises(UserError, match=wanted):
        load(tmp_path)
    assert main(["check", str(tmp_path)]) == 2
    capsys.readouterr()
    (tmp_path / f"{MODEL}.hdf5").unlink()
    matlab(tmp_path / f"{MODEL}.mat", cube)  # its own mark tells
    (tmp_path / "dataset.json").write_text('{"zscore": "publisher"}')
    np.testing.assert_array_equal(load(tmp_path).subject(1).betas(range(3)), cube.reshape(27, 3).T)


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(*[st.integers(2, 5)] * 3), st.integers(6, 9), st.integers(0, 2**32 - 1), st.integers(50, 2000), st.booleans()
)
def test_rows_are_those_of_the_array_whatever_the_blocks(shape, trials, seed, block, chunked):
    rng = np.random.default_rng(seed)
    mask = rng.random(shape) < 0.6
    mask.flat[0] = True
    volumes = rng.standard_normal((*shape, trials)).astype(np.float32)
    expected = volumes[mask].T
    rows = rng.integers(0, trials, 5)
    with pytest.MonkeyPatch.context() as patch, h5py.File("f", "w", driver="core", backing_store=False) as file:
        patch.setattr(trial_volumes, "BLOCK_BYTES", block)
        for name, place in (("a", (0, 1, 2, 3)), ("b", (3, 2, 1, 0)), ("c", (3, 0, 1, 2))):
            if name != "a" and shape[0] == shape[2]:
                continue  # refused: X and Z could be exchanged
            stored = volumes.transpose(place)
            options = {"chunks": tuple(rng.integers(1, n + 1) for n in stored.shape)} if chunked else {}
            data = file.create_dataset(name, data=stored, **options)
            order, kept = order_of("f", name, stored.shape, False, mask, trials)
            np.testing.assert_array_equal(TrialVolumes(Path(__file__), data, order, kept, mask)[rows], expected[rows])


# ---- GLMsingle's folder alone


def test_its_folder_and_its_files_are_recognised(lab, tmp_path, capsys):
    place = tmp_path / "GLMsingle"
    place.mkdir()
    FORMS["MATLAB"](lab, place)
    way = "a lab's folder with it, trials.tsv (the image of each trial), mask.nii.gz and stimuli/"
    with pytest.raises(UserError) as caught:
        load(place)
    assert f"GLMsingle: is GLMsingle's output, which is not read as it is; expected {way}" in str(caught.value)
    with pytest.raises(UserError, match="is GLMsingle's output, which is not converted by itself; expected a lab's folder"):
        convert(place, tmp_path / "out")
    assert main(["check", str(place)]) == 2
    out = capsys.readouterr().out
    assert "format glmsingle: GLMsingle's output" in out and way in out
    assert "modelmd (24, 5, 4, 3) float32, written by MATLAB" in out
    for path in (place / f"{MODEL}.mat", place / f"{MODEL}.npy"):
        path.touch()
        with pytest.raises(UserError, match="is a file of GLMsingle's output; expected a folder with a dataset"):
            load(path)
        assert main(["check", str(path)]) == 2
    (place / f"{MODEL}.mat").unlink()
    with pytest.raises(UserError, match="is GLMsingle's output"):
        load(place)
    assert main(["check", str(place)]) == 2
    assert "wanthdf5=1" in capsys.readouterr().out
    (tmp_path / "study/sub-01/ses-01").mkdir(parents=True)
    FORMS["Python"](lab, tmp_path / "study/sub-01/ses-01")
    assert main(["check", str(tmp_path / "study")]) == 2
    assert "betasmd (3, 4, 5, 24) float32, written by Python" in capsys.readouterr().out
