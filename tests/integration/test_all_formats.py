"""The same simulated brains in five formats: the same betas, and the same scores from pretraining to evaluation.

What the formats may change, and hence how far scores may differ:

- The NSD release, a lab's folder and MOSAIC hold the betas' float32 and the pictures' 8 bits as they are. Their betas must be
  equal to the bit, and so must the scores. MOSAIC writes trials in the order of stimuli, cannot say sessions, and lists
  vertices in the order of the surface; batches and starting weights follow these orders, so all are put into one order here
  before they are trained on.
- Raw NSD rounds a z-score to 1/600 of an sd (int16, percent x 300, 2 % an sd), and enlarges pictures to 425 pixels.
  ``convert nsd`` z-scores again and makes pictures small again. The bound on the betas is derived at the test. A score may
  differ by those images alone whose margin, own similarity less the best other, is within twice the largest change of any
  similarity; and the mean change must be under half of what another order of the same trials does (a third was measured; what
  training makes of small changes has no closed form).
- LAION-fMRI holds the same float32, and becomes a lab's folder whose betas are z-scored again, as they are read. They were
  already, by the same trials, so that rounding alone is left. Scores are bounded as those of raw NSD.
- Where a region has more voxels than its parcels have vertices, MOSAIC drops voxels. Here none is dropped.
"""

import dataclasses
import json

import h5py
import nibabel
import numpy as np
import pytest
import scipy.io
from worlds import draw_few

from mindtuner.config import SimulateConfig, load_config
from mindtuner.data import Dataset, Subject, Trials
from mindtuner.data.surface import load_atlas
from mindtuner.decoding.decoder import Decoder
from mindtuner.evaluation.scores.retrieval import brain_retrieval, cosine, image_retrieval, text_retrieval
from mindtuner.formats import load, write
from mindtuner.formats.laion.convert import convert_laion
from mindtuner.formats.mosaic.read import load_mosaic
from mindtuner.formats.nsd_raw.convert import convert_nsd
from mindtuner.formats.nsd_raw.volumes import read_mask, read_session
from mindtuner.generators.compact import packaged
from mindtuner.simulation.simulate import simulate
from mindtuner.towers.compact import Autoencoder
from mindtuner.towers.embed import embed
from mindtuner.training import Targets, pretrain, tune

pytestmark = pytest.mark.slow

KNOBS = SimulateConfig(
    subjects=2, sessions=2, trials_per_session=48, shared_images=12, repeats=2, voxel_scale=0.02, noise=0.0
)
DIRECTIONS = ("image", "brain", "text")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of each format, and raw NSD converted."""
    root = tmp_path_factory.mktemp("formats")
    with pytest.MonkeyPatch.context() as patch:
        draw_few(patch)
        simulate(root / "nsd_release", KNOBS)
    made = load(root / "nsd_release")
    for format in ("nsd_raw", "lab_folder", "mosaic", "laion"):
        write(root / format, made, format)
    convert_laion(root / "laion", root / "of_laion", "own", say=lambda line: None)
    convert_nsd(root / "nsd_raw", root / "converted", captions=[root / "nsd_raw" / "annotations"])
    return root


def read(root):
    """Each format by its own reader; raw NSD as it was converted."""
    mosaic = root / "mosaic"
    read = {name: load(root / name) for name in ("nsd_release", "converted", "lab_folder")}
    read["laion"] = load(root / "of_laion" / "own")
    return read | {"mosaic": load_mosaic(sorted(mosaic.glob("sub-*.hdf5")), mosaic / "nsd_stiminfo.tsv", mosaic / "stimuli")}


@pytest.fixture(scope="module")
def datasets(root):
    return read(root)


@pytest.fixture(scope="module")
def arranged(datasets):
    """All with the release's stimulus numbers and order of voxels, trials by stimulus and repeat; betas as they are read."""
    first = datasets["nsd_release"]
    known = {first.stimuli.images([i]).tobytes(): i for i in range(len(first.stimuli))}
    assert len(known) == len(first.stimuli)
    found = {}
    for name, dataset in datasets.items():
        if name == "converted":  # whose pictures are not equal to the bit
            number = np.arange(len(dataset.stimuli))
        else:
            number = np.array([known[dataset.stimuli.images([i]).tobytes()] for i in range(len(dataset.stimuli))])
            assert [first.stimuli.captions[i] for i in number] == dataset.stimuli.captions
        subjects = {n: arrange(subject, number, first.stimuli.is_shared) for n, subject in dataset.subjects.items()}
        if name == "mosaic":
            subjects = {n: with_columns_of(found["nsd_release"].subject(n), subject) for n, subject in subjects.items()}
        found[name] = Dataset(dataset.root, subjects, (dataset if name == "converted" else first).stimuli, dataset.card)
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
    """Columns told by content, not by the writer: each voxel of the release is exactly one column here."""
    columns = {column.tobytes(): i for i, column in enumerate(subject.source.T.copy())}
    order = np.array([columns[column.tobytes()] for column in first.source.T.copy()])
    assert len(set(order.tolist())) == subject.n_voxels == first.n_voxels
    rois = {name: mask[order] for name, mask in subject.rois.items()}
    return dataclasses.replace(subject, source=subject.source[:, order], rois=rois, vertices=subject.vertices[order])


# ---- what is in the files


def test_betas_of_all_but_raw_nsd_are_equal_to_the_bit(arranged):
    for number, subject in arranged["nsd_release"].subjects.items():
        assert len(subject.trials) == 96 and subject.source.std() > 0.5
        for name in ("lab_folder", "mosaic"):
            other = arranged[name].subject(number)
            np.testing.assert_array_equal(other.source, subject.source)
            for field in ("stimulus", "repeat", "is_test"):
                np.testing.assert_array_equal(getattr(other.trials, field), getattr(subject.trials, field))
        np.testing.assert_array_equal(arranged["lab_folder"].subject(number).trials.session, subject.trials.session)


def test_betas_of_laion_differ_by_a_second_z_scoring_of_what_is_z_scored(arranged):
    for number, subject in arranged["nsd_release"].subjects.items():
        other = arranged["laion"].subject(number)
        np.testing.assert_allclose(other.source, subject.source, atol=1e-5)
        for field in ("stimulus", "session", "repeat", "is_test"):
            np.testing.assert_array_equal(getattr(other.trials, field), getattr(subject.trials, field))


def test_betas_of_raw_nsd_differ_by_int16_and_its_second_z_scoring_only(arranged):
    """Rounding moves z by e, |e| <= u = 1/1200. The mean over training trials, 0 before, is then within u, and the sd, 1
    before, too (it changes by no more than the rms of e): |change| <= (u + u + |z| u) / (1 - u)."""
    unit = 1 / (2 * 300 * 2)
    for number, subject in arranged["nsd_release"].subjects.items():
        other = arranged["converted"].subject(number)
        z, change = subject.source.astype(float), other.source.astype(float) - subject.source
        assert (np.abs(change) <= (2 + np.abs(z)) * unit / (1 - unit) + 1e-5).all()  # 1e-5: float32
        assert np.abs(change).max() > unit / 2
        correlation = [np.corrcoef(a, b)[0, 1] for a, b in zip(z.T, other.source.T, strict=True)]
        assert min(correlation) > 1 - unit**2
        for field in ("stimulus", "session", "repeat", "is_test"):
            np.testing.assert_array_equal(getattr(other.trials, field), getattr(subject.trials, field))


def test_pictures_of_raw_nsd_come_back_from_425_pixels(datasets):
    a, b = datasets["nsd_release"].stimuli, datasets["converted"].stimuli
    assert a.captions == b.captions and np.array_equal(a.is_shared, b.is_shared)
    seen, back = (s.images(np.arange(len(s))).astype(np.float32).reshape(len(s), -1) for s in (a, b))
    distance = np.abs(seen[:, None, ::97] - back[None, :, ::97]).mean(2)
    np.testing.assert_array_equal(distance.argmin(1), np.arange(len(a)))
    assert np.abs(seen - back).mean(1).max() < 0.03


def test_regions_stay_what_they_were(datasets, arranged):
    atlas, surface = load_atlas(), {}
    for parcel in set(atlas.parcel.tolist()):
        surface[parcel] = atlas.surface[atlas.parcel == parcel]
    for number, subject in datasets["nsd_release"].subjects.items():
        for other in ("converted", "lab_folder", "laion"):
            rois = datasets[other].subject(number).rois
            for name, mask in subject.rois.items():
                np.testing.assert_array_equal(rois[name], mask)
        mosaic = arranged["mosaic"].subject(number)
        for name in ("V1", "V2", "V3", "V4"):
            np.testing.assert_array_equal(mosaic.rois[name], subject.rois[name])
            assert np.isin(mosaic.vertices[subject.rois[name]], surface[name]).all()
        others = mosaic.rois["ventral"] | mosaic.rois["lateral"] | mosaic.rois["dorsal"]
        np.testing.assert_array_equal(others, subject.rois["higher_vis"])
        assert len(set(mosaic.vertices.tolist())) == mosaic.n_voxels


def test_simulated_brains_stay_simulated(datasets, root):
    for dataset in datasets.values():
        assert dataset.card["simulated"] is True
    card = datasets["converted"].card
    assert card["simulate"] == dataclasses.asdict(KNOBS) and card["zscore"] == "train_trials"
    assert json.loads((root / "nsd_raw" / "dataset.json").read_text())["zscore"] == "none"


def test_raw_nsd_is_in_nsds_form(datasets, root, tmp_path):
    """Read without the package: design, int16 percent x 300 of (trials, Z, Y, X), and the same from NIfTI."""
    design = scipy.io.loadmat(root / "nsd_raw" / "nsddata/experiments/nsd/nsd_expdesign.mat")
    order, images = design["masterordering"].ravel().astype(int), design["subjectim"].astype(int)
    np.testing.assert_array_equal(design["sharedix"].ravel() - 1, np.flatnonzero(datasets["nsd_release"].stimuli.is_shared))
    one = dataclasses.replace(datasets["nsd_release"], subjects={2: datasets["nsd_release"].subject(2)})
    write(tmp_path, one, "nsd_raw", form="nifti")
    for number, subject in datasets["nsd_release"].subjects.items():
        np.testing.assert_array_equal(images[number - 1, order - 1] - 1, subject.trials.stimulus)
        folder = f"nsddata/ppdata/subj{number:02d}/func1pt8mm/roi"
        mask = nibabel.load(root / "nsd_raw" / folder / "nsdgeneral.nii.gz").get_fdata() > 0
        path = f"nsddata_betas/ppdata/subj{number:02d}/func1pt8mm/betas_fithrf_GLMdenoise_RR/betas_session02"
        with h5py.File(root / "nsd_raw" / f"{path}.hdf5") as file:
            betas = file["betas"]
            assert betas.dtype == np.int16 and betas.shape == (48, *mask.shape[::-1]) and betas.chunks == (48, 1, 1, 1)
            volumes = betas[()]
        z = subject.betas(subject.trials.row[48:]).astype(float)
        for voxel, (x, y, z_) in enumerate(np.argwhere(mask)):
            np.testing.assert_array_equal(volumes[:, z_, y, x], np.rint(300 * (1 + 2 * z[:, voxel])))
        assert not volumes.transpose(3, 2, 1, 0)[~mask].any()
    nifti = read_session(tmp_path / f"{path}.nii.gz", read_mask(tmp_path, 2))
    np.testing.assert_array_equal(nifti, read_session(root / "nsd_raw" / f"{path}.hdf5", read_mask(root / "nsd_raw", 2)))
    with h5py.File(root / "nsd_raw" / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5") as file:
        assert file["imgBrick"].shape == (len(datasets["nsd_release"].stimuli), 425, 425, 3)


# ---- pretrain, tune, decode, evaluate


@pytest.fixture(scope="module")
def config():
    quick = load_config("quick")
    fit = dataclasses.replace(quick.ridge_only, epochs=12, lr=3e-3, batch_per_subject=24, head_trials=8)
    first = dataclasses.replace(fit, start="random", similar_voxels=0)
    model = dataclasses.replace(quick.model, hidden=64, blocks=1, prior_depth=1, prior_heads=2, lowlevel_channels=(8, 4))
    return dataclasses.replace(
        quick,
        model=model,
        pretrain=first,
        tune=fit,
        pivot=dataclasses.replace(quick.pivot, epochs=30, batch=32),
        decode=dataclasses.replace(quick.decode, retrieval_tokens="projected"),
    )


@pytest.fixture(scope="module")
def targets(arranged, tmp_path_factory, image_encoder, text_encoder):
    """The release's for all whose pictures and captions are equal to its own; those that were converted have their own."""
    folder, autoencoder = tmp_path_factory.mktemp("caches"), Autoencoder(packaged("generator.safetensors"))
    made = {}
    for name in ("nsd_release", "converted"):
        caches = embed(arranged[name], folder / name, image_encoder, text_encoder, autoencoder)
        made[name] = Targets(**{field.name: caches[field.name] for field in dataclasses.fields(Targets)})
    return made | dict.fromkeys(("lab_folder", "mosaic", "laion"), made["nsd_release"])


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


def test_scores_are_the_same_from_every_format(arranged, targets, config):
    decoded = {name: decode(arranged[name], targets[name], config) for name in arranged}
    similarity, hits = decoded["nsd_release"]
    # There is something to lose: of 12 images the mean rank is 6.5 by chance.
    assert (mean_rank(similarity["image"]) + mean_rank(similarity["brain"])) / 2 < 5.5
    for name in ("lab_folder", "mosaic"):
        for direction in DIRECTIONS:
            np.testing.assert_array_equal(decoded[name][1][direction], hits[direction])
            np.testing.assert_array_equal(decoded[name][0][direction], similarity[direction])
    backwards = {n: reverse(subject) for n, subject in arranged["nsd_release"].subjects.items()}
    other, _ = decode(dataclasses.replace(arranged["nsd_release"], subjects=backwards), targets["nsd_release"], config)
    for name in ("converted", "laion"):
        for direction in DIRECTIONS:
            change = np.abs(decoded[name][0][direction] - similarity[direction])
            another = np.abs(other[direction] - similarity[direction])
            assert 0 < change.mean() < another.mean() / 2
            moved = np.flatnonzero(decoded[name][1][direction] != hits[direction])
            assert (np.abs(margins(similarity[direction]))[moved] <= 2 * change.max()).all()


def reverse(subject):
    return dataclasses.replace(subject, trials=subject.trials.select(slice(None, None, -1)))
