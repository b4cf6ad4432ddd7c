"""The same simulated brains in all four layouts: the same betas, and the same scores from pretraining to evaluation.

What the layouts may change, and hence how far scores may differ:

- A, C and D hold the betas' float32 and the pictures' 8 bits as they are. Their betas must be equal to the bit, and so must
  the scores. D writes trials in the order of stimuli, cannot say sessions, and lists vertices in the order of the surface;
  batches and starting weights follow these orders, so all layouts are put into one order here before they are trained on.
- B rounds a z-score to 1/600 of an sd (int16, percent x 300, 2 % an sd), z-scores again, and enlarges pictures to 425 pixels,
  which ``convert nsd`` makes small again. The bound on the betas is derived at the test. A score may differ by those
  images alone whose margin, own similarity less the best other, is within twice the largest change of any similarity; and
  the mean change must be under half of what another order of the same trials does (a third was measured; what training makes
  of small changes has no closed form).
- Where a region has more voxels than its parcels have vertices, D drops voxels. Here none is dropped.
"""

import dataclasses
import json

import h5py
import nibabel
import numpy as np
import pytest
import scipy.io

from mindtuner.config import SimulateConfig, load_config
from mindtuner.data import Dataset, Subject, Trials
from mindtuner.decoding.decoder import Decoder
from mindtuner.evaluation.scores.retrieval import brain_retrieval, cosine, image_retrieval, text_retrieval
from mindtuner.formats import load
from mindtuner.formats.lab_folder import write as layout_c_writer
from mindtuner.formats.mosaic import write as layout_d_writer
from mindtuner.formats.mosaic.parcels import load_atlas
from mindtuner.formats.mosaic.read import load_mosaic
from mindtuner.formats.nsd_raw import write as layout_b_writer
from mindtuner.formats.nsd_raw.convert import convert_nsd
from mindtuner.formats.nsd_raw.volumes import read_mask, read_session
from mindtuner.generators.compact import packaged
from mindtuner.simulation import cutouts
from mindtuner.simulation.simulate import simulate
from mindtuner.towers.compact import Autoencoder
from mindtuner.towers.embed import embed
from mindtuner.training import Targets, pretrain, tune

KNOBS = SimulateConfig(
    subjects=2, sessions=2, trials_per_session=48, shared_images=12, repeats=2, voxel_scale=0.02, noise=0.0
)
DIRECTIONS = ("image", "brain", "text")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Folders A, C and D, raw (Layout B) and B (raw, converted)."""
    root = tmp_path_factory.mktemp("layouts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutouts, "_VARIANTS", {"train": 1, "test": 1, "generator": 1})
        simulate(root / "A", KNOBS)
    made = load(root / "A")
    layout_b_writer.write(root / "raw", made)
    layout_c_writer.write(root / "C", made)
    layout_d_writer.write(root / "D", made)
    convert_nsd(root / "raw", root / "B", captions=[root / "raw" / "annotations"], say=lambda line: None)
    return root


def read(root):
    """Each layout by its own reader."""
    mosaic = load_mosaic(sorted((root / "D").glob("sub-*.hdf5")), root / "D" / "nsd_stiminfo.tsv", root / "D" / "stimuli")
    return {"A": load(root / "A"), "B": load(root / "B"), "C": load(root / "C"), "D": mosaic}


@pytest.fixture(scope="module")
def datasets(root):
    return read(root)


@pytest.fixture(scope="module")
def arranged(datasets):
    """All four with A's stimulus numbers and order of voxels, trials by stimulus and repeat; betas as they are read."""
    first = datasets["A"]
    known = {first.stimuli.images([i]).tobytes(): i for i in range(len(first.stimuli))}
    assert len(known) == len(first.stimuli)
    found = {}
    for layout, dataset in datasets.items():
        if layout == "B":  # whose pictures are not equal to the bit
            number = np.arange(len(dataset.stimuli))
        else:
            number = np.array([known[dataset.stimuli.images([i]).tobytes()] for i in range(len(dataset.stimuli))])
            assert [first.stimuli.captions[i] for i in number] == dataset.stimuli.captions
        subjects = {n: arrange(subject, number, first.stimuli.is_shared) for n, subject in dataset.subjects.items()}
        if layout == "D":
            subjects = {n: with_columns_of(found["A"].subject(n), subject) for n, subject in subjects.items()}
        found[layout] = Dataset(dataset.root, subjects, (dataset if layout == "B" else first).stimuli, dataset.card)
    return found


def arrange(subject, number, is_shared):
    stimulus = number[subject.trials.stimulus]
    order = np.lexsort((subject.trials.repeat, stimulus))
    trials = subject.trials.select(order)
    trials = Trials(np.arange(len(order)), stimulus[order], trials.session, trials.repeat, trials.is_test)
    return Subject(
        subject.number,
        trials,
        subject.rois,
        subject.betas(subject.trials.row[order]),
        is_shared,
        subject.where,
        subject.vertices,
    )


def with_columns_of(first, subject):
    """Columns told by content, not by the writer: each voxel of A is exactly one column here."""
    columns = {column.tobytes(): i for i, column in enumerate(subject.source.T.copy())}
    order = np.array([columns[column.tobytes()] for column in first.source.T.copy()])
    assert len(set(order.tolist())) == subject.n_voxels == first.n_voxels
    rois = {name: mask[order] for name, mask in subject.rois.items()}
    return dataclasses.replace(subject, source=subject.source[:, order], rois=rois, vertices=subject.vertices[order])


# ---- what is in the files


def test_betas_of_a_c_and_d_are_equal_to_the_bit(arranged):
    for number, subject in arranged["A"].subjects.items():
        assert len(subject.trials) == 96 and subject.source.std() > 0.5
        for layout in "CD":
            other = arranged[layout].subject(number)
            np.testing.assert_array_equal(other.source, subject.source)
            for field in ("stimulus", "repeat", "is_test"):
                np.testing.assert_array_equal(getattr(other.trials, field), getattr(subject.trials, field))
        np.testing.assert_array_equal(arranged["C"].subject(number).trials.session, subject.trials.session)


def test_betas_of_b_differ_by_int16_and_its_second_z_scoring_only(arranged):
    """Rounding moves z by e, |e| <= u = 1/1200. The mean over training trials, 0 before, is then within u, and the sd, 1
    before, too (it changes by no more than the rms of e): |change| <= (u + u + |z| u) / (1 - u)."""
    unit = 1 / (2 * 300 * 2)
    for number, subject in arranged["A"].subjects.items():
        other = arranged["B"].subject(number)
        z, change = subject.source.astype(float), other.source.astype(float) - subject.source
        assert (np.abs(change) <= (2 + np.abs(z)) * unit / (1 - unit) + 1e-5).all()  # 1e-5: float32
        assert np.abs(change).max() > unit / 2
        correlation = [np.corrcoef(a, b)[0, 1] for a, b in zip(z.T, other.source.T, strict=True)]
        assert min(correlation) > 1 - unit**2
        for field in ("stimulus", "session", "repeat", "is_test"):
            np.testing.assert_array_equal(getattr(other.trials, field), getattr(subject.trials, field))


def test_pictures_of_b_come_back_from_425_pixels(datasets):
    a, b = datasets["A"].stimuli, datasets["B"].stimuli
    assert a.captions == b.captions and np.array_equal(a.is_shared, b.is_shared)
    seen, back = (s.images(np.arange(len(s))).astype(np.float32).reshape(len(s), -1) for s in (a, b))
    distance = np.abs(seen[:, None, ::97] - back[None, :, ::97]).mean(2)
    np.testing.assert_array_equal(distance.argmin(1), np.arange(len(a)))
    assert np.abs(seen - back).mean(1).max() < 0.03


def test_regions_stay_what_they_were(datasets, arranged):
    atlas, surface = load_atlas(), {}
    for parcel in set(atlas.parcel.tolist()):
        surface[parcel] = atlas.surface[atlas.parcel == parcel]
    for number, subject in datasets["A"].subjects.items():
        for layout in "BC":
            rois = datasets[layout].subject(number).rois
            for name, mask in subject.rois.items():
                np.testing.assert_array_equal(rois[name], mask)
        mosaic = arranged["D"].subject(number)
        for name in ("V1", "V2", "V3", "V4"):
            np.testing.assert_array_equal(mosaic.rois[name], subject.rois[name])
            assert np.isin(mosaic.vertices[subject.rois[name]], surface[name]).all()
        others = mosaic.rois["ventral"] | mosaic.rois["lateral"] | mosaic.rois["dorsal"]
        np.testing.assert_array_equal(others, subject.rois["higher_vis"])
        assert len(set(mosaic.vertices.tolist())) == mosaic.n_voxels


def test_simulated_brains_stay_simulated(datasets, root):
    for dataset in datasets.values():
        assert dataset.card["simulated"] is True
    assert datasets["B"].card["simulate"] == dataclasses.asdict(KNOBS) and datasets["B"].card["zscore"] == "train_trials"
    assert json.loads((root / "raw" / "dataset.json").read_text())["zscore"] == "none"


def test_raw_nsd_is_in_nsds_form(datasets, root, tmp_path):
    """Read without the package: design, int16 percent x 300 of (trials, Z, Y, X), and the same from NIfTI."""
    design = scipy.io.loadmat(root / "raw" / "nsddata/experiments/nsd/nsd_expdesign.mat")
    order, images = design["masterordering"].ravel().astype(int), design["subjectim"].astype(int)
    np.testing.assert_array_equal(design["sharedix"].ravel() - 1, np.flatnonzero(datasets["A"].stimuli.is_shared))
    layout_b_writer.write(tmp_path, dataclasses.replace(datasets["A"], subjects={2: datasets["A"].subject(2)}), form="nifti")
    for number, subject in datasets["A"].subjects.items():
        np.testing.assert_array_equal(images[number - 1, order - 1] - 1, subject.trials.stimulus)
        folder = f"nsddata/ppdata/subj{number:02d}/func1pt8mm/roi"
        mask = nibabel.load(root / "raw" / folder / "nsdgeneral.nii.gz").get_fdata() > 0
        path = f"nsddata_betas/ppdata/subj{number:02d}/func1pt8mm/betas_fithrf_GLMdenoise_RR/betas_session02"
        with h5py.File(root / "raw" / f"{path}.hdf5") as file:
            betas = file["betas"]
            assert betas.dtype == np.int16 and betas.shape == (48, *mask.shape[::-1]) and betas.chunks == (48, 1, 1, 1)
            volumes = betas[()]
        z = subject.betas(subject.trials.row[48:]).astype(float)
        for voxel, (x, y, z_) in enumerate(np.argwhere(mask)):
            np.testing.assert_array_equal(volumes[:, z_, y, x], np.rint(300 * (1 + 2 * z[:, voxel])))
        assert not volumes.transpose(3, 2, 1, 0)[~mask].any()
    nifti = read_session(tmp_path / f"{path}.nii.gz", read_mask(tmp_path, 2))
    np.testing.assert_array_equal(nifti, read_session(root / "raw" / f"{path}.hdf5", read_mask(root / "raw", 2)))
    with h5py.File(root / "raw" / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5") as file:
        assert file["imgBrick"].shape == (len(datasets["A"].stimuli), 425, 425, 3)


# ---- pretrain, tune, decode, evaluate


@pytest.fixture(scope="module")
def config():
    quick = load_config("quick")
    fit = dataclasses.replace(quick.tune, epochs=12, lr=3e-3, batch_per_subject=24, head_trials=8)
    first = dataclasses.replace(fit, start="random", similar_voxels=0)
    model = dataclasses.replace(quick.model, hidden=64, blocks=1, prior_depth=1, prior_heads=2, lowlevel_channels=(8, 4))
    return dataclasses.replace(
        quick, model=model, pretrain=first, tune=fit, pivot=dataclasses.replace(quick.pivot, epochs=30, batch=32)
    )


@pytest.fixture(scope="module")
def targets(arranged, tmp_path_factory, image_encoder, text_encoder):
    """A's for A, C and D, whose pictures and captions are equal; B's own."""
    folder, autoencoder = tmp_path_factory.mktemp("caches"), Autoencoder(packaged("generator.safetensors"))
    made = {}
    for layout in "AB":
        caches = embed(arranged[layout], folder / layout, image_encoder, text_encoder, autoencoder)
        made[layout] = Targets(**{field.name: caches[field.name] for field in dataclasses.fields(Targets)})
    return made | {"C": made["A"], "D": made["A"]}


def decode(dataset, targets, config):
    """Similarities (n, n) of what is read from subject 1's brain (rows) to what was seen, and the scores."""
    base = pretrain(dataset.without(subject=1), targets, config, seed=0)
    tuned = tune(base, dataset.subject(1), targets, config, seed=0)
    test = dataset.subject(1).test
    found = Decoder(tuned, "subj01", config.decode, 0).predict(dataset.subject(1).betas(test.row), test.stimulus)
    tokens, text = targets.rows("tokens", found.images).numpy(), targets.rows("text", found.images).numpy()
    images = cosine(found.retrieval_tokens.reshape(len(tokens), -1), tokens.reshape(len(tokens), -1))
    return {"image": images, "brain": images.T, "text": cosine(found.text, text)}, {
        "image": image_retrieval(found.retrieval_tokens, tokens).top1,
        "brain": brain_retrieval(found.retrieval_tokens, tokens).top1,
        "text": text_retrieval(found.text, text).top1,
    }


def margins(similarity):
    others = np.where(np.eye(len(similarity), dtype=bool), -np.inf, similarity)
    return np.diag(similarity) - others.max(1)


def mean_rank(similarity):
    return 1 + (similarity > np.diag(similarity)[:, None]).sum(1).mean()


def test_scores_are_the_same_from_every_layout(arranged, targets, config):
    decoded = {layout: decode(arranged[layout], targets[layout], config) for layout in "ABCD"}
    similarity, hits = decoded["A"]
    # There is something to lose: of 12 images the mean rank is 6.5 by chance.
    assert (mean_rank(similarity["image"]) + mean_rank(similarity["brain"])) / 2 < 5.5
    for layout in "CD":
        for direction in DIRECTIONS:
            np.testing.assert_array_equal(decoded[layout][1][direction], hits[direction])
            np.testing.assert_array_equal(decoded[layout][0][direction], similarity[direction])
    backwards = {n: reverse(subject) for n, subject in arranged["A"].subjects.items()}
    other, _ = decode(dataclasses.replace(arranged["A"], subjects=backwards), targets["A"], config)
    for direction in DIRECTIONS:
        change = np.abs(decoded["B"][0][direction] - similarity[direction])
        another = np.abs(other[direction] - similarity[direction])
        assert 0 < change.mean() < another.mean() / 2
        moved = np.flatnonzero(decoded["B"][1][direction] != hits[direction])
        assert (np.abs(margins(similarity[direction]))[moved] <= 2 * change.max()).all()


def reverse(subject):
    return dataclasses.replace(subject, trials=subject.trials.select(slice(None, None, -1)))
