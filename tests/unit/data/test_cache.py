"""Stimulus hash, leak check and feature cache."""

import contextlib
import itertools
import json
import resource

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindtuner.data import FileRows, Stimuli, Subject, Trials, build_cache, check_no_leak, open_cache
from mindtuner.data import stimuli as stimuli_module
from mindtuner.data.lazy import open_rows
from mindtuner.errors import UserError
from mindtuner.formats.nsd_release.write import write_betas, write_indices, write_shared

IDENTITY = {"tower": "sum", "size": [3, 224], "norm": {"after": True}}


def make_stimuli(count=5, captions=None, seed=0, pixels=None):
    rng = np.random.default_rng(seed)
    if pixels is None:
        pixels = (rng.integers(0, 256, (count, 3, 224, 224)) / 255).astype(np.float16)
    captions = captions or [[f"image {i}"] for i in range(count)]
    return Stimuli(pixels, captions, np.arange(count) < 2, "test images")


def features(images):
    """Two numbers per image that any tower could return: the mean pixel of two corners."""
    return np.stack(
        [images[:, :, :8, :8].mean((1, 2, 3), dtype=np.float64), images[:, :, -8:, -8:].mean((1, 2, 3), dtype=np.float64)], 1
    )


def build(folder, stimuli, compute=features, identity=IDENTITY, shape=(2,), dtype="float32", batch=2, **more):
    return build_cache(folder, "tokens", shape, dtype, identity, stimuli, compute, batch, "tokens", **more)


def test_hash_tells_stimuli_apart_and_nothing_else(tmp_path, monkeypatch):
    stimuli = make_stimuli()
    pixels = stimuli.images(np.arange(5))
    touched = pixels.copy()
    touched[3, 1, 100, 100] += np.float16(0.01) if touched[3, 1, 100, 100] < 0.5 else np.float16(-0.01)
    captions = [list(texts) for texts in stimuli.captions]
    hashes = [
        stimuli.hash,
        make_stimuli(pixels=touched).hash,
        make_stimuli(pixels=pixels.astype(np.float32)).hash,
        make_stimuli(pixels=pixels[::-1]).hash,
        make_stimuli(captions=captions[::-1]).hash,
        make_stimuli(4, pixels=pixels[:4]).hash,
        make_stimuli(captions=[["image 0", "image 1"], *captions[1:]]).hash,
    ]
    assert len(set(hashes)) == len(hashes)
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file.create_dataset("images", data=pixels, chunks=(2, 3, 224, 224), compression="gzip")
    same = Stimuli(open_rows(tmp_path / "x.hdf5", "images", 4, ("float16",)), captions, np.zeros(5, bool), "x")
    assert same.hash == stimuli.hash == make_stimuli(captions=[[*c, " "] for c in captions]).hash
    # Beyond the limit a sample stands for all: first and last image always belong to it.
    monkeypatch.setattr(stimuli_module, "HASH_ALL_BYTES", 1000)
    monkeypatch.setattr(stimuli_module, "HASH_SAMPLE", 2)
    sampled = make_stimuli(pixels=pixels).hash
    assert sampled == make_stimuli(pixels=touched).hash
    touched[4, 0, 0, 0] = 1 - touched[4, 0, 0, 0]
    assert sampled != make_stimuli(pixels=touched).hash


def test_stimuli_refuse_unequal_counts():
    pixels = np.zeros((3, 3, 224, 224), np.float16)
    for bad in (
        lambda: Stimuli(pixels, [[]] * 2, np.zeros(3, bool), "x"),
        lambda: Stimuli(pixels, [[]] * 3, np.zeros(4, bool), "x"),
        lambda: Stimuli(pixels[:, :, :9], [[]] * 3, np.zeros(3, bool), "x"),
    ):
        with pytest.raises(UserError, match="^x: .*expected"):
            bad()


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=12))
def test_leak_check_passes_exactly_when_test_means_shared(pairs):
    shared = np.array([True, False, True, False])
    stimulus, is_test = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    n = len(pairs)
    trials = Trials(np.arange(n) + 100, stimulus, np.arange(n) + 1, np.zeros(n), is_test)
    leaked = [i for i, (image, test) in enumerate(pairs) if image in (0, 2) and not test]
    foreign = [i for i, (image, test) in enumerate(pairs) if image in (1, 3) and test]
    if not leaked and not foreign:
        return check_no_leak(trials, shared, "here")
    first = (leaked or foreign)[0]
    with pytest.raises(
        UserError, match=f"^here: trial of session {first + 1}, row {first + 100}, stimulus {stimulus[first]} "
    ):
        check_no_leak(trials, shared, "here")


def test_leak_check_also_guards_the_door_of_a_subject():
    """A subject put together by other code than a reader is checked when its trials are taken."""
    shared = np.array([True, False])
    trials = Trials([0, 1], [0, 1], [1, 1], [0, 0], [False, False])
    subject = Subject(7, trials, {}, np.zeros((2, 3), np.float32), shared, "memory")
    for door in ("train", "test"):
        with pytest.raises(UserError, match="subject 7: trial of session 1, row 0, stimulus 0 shows a shared"):
            getattr(subject, door)
    with pytest.raises(UserError, match="stimulus 9 is out of range"):
        check_no_leak(Trials([0], [9], [1], [0], [True]), shared, "x")
    with pytest.raises(UserError, match=r"repeat has shape \(1,\); expected \(2,\)"):
        Trials([0, 1], [0, 1], [1, 1], [0], [False, False])


def test_cache_is_built_once_and_read_row_by_row(tmp_path):
    stimuli = make_stimuli()
    built = build(tmp_path, stimuli)
    np.testing.assert_allclose(built, features(stimuli.images(np.arange(5))), rtol=1e-6)
    assert isinstance(built, FileRows) and built.dtype == np.float32

    def never(images):
        raise AssertionError("computed again")

    np.testing.assert_array_equal(build(tmp_path, stimuli, never), built)
    np.testing.assert_array_equal(open_cache(tmp_path, "tokens", IDENTITY, stimuli.hash), built)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokens.bin", "tokens.json"]


def test_cache_of_other_inputs_gets_the_ids(tmp_path):
    stimuli = make_stimuli(captions=[["a"], ["bb", "ccc"], [], ["dddd"], ["e"]])
    lengths = build(
        tmp_path,
        stimuli,
        lambda texts: np.array([[sum(map(len, t))] for t in texts]),
        shape=(1,),
        dtype="int64",
        inputs=lambda ids: [stimuli.captions[i] for i in ids],
    )
    assert lengths[:][:, 0].tolist() == [1, 5, 0, 4, 1]


@pytest.mark.parametrize("stop", [0, 1, 2])
def test_an_interrupted_build_goes_on_where_it_stopped(tmp_path, stop):
    stimuli = make_stimuli()
    calls = itertools.count()

    def interrupted(images):
        if next(calls) == stop:
            raise KeyboardInterrupt
        return features(images)

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, stimuli, interrupted)
    with pytest.raises(UserError, match="tokens.json: not found"):
        open_cache(tmp_path, "tokens", IDENTITY, stimuli.hash)
    seen = []
    resumed = build(tmp_path, stimuli, lambda images: seen.append(len(images)) or features(images))
    assert sum(seen) == 5 - 2 * stop
    np.testing.assert_array_equal(resumed, build(tmp_path / "fresh", stimuli))


def test_a_part_of_something_else_is_not_continued(tmp_path):
    stimuli = make_stimuli()
    answers = iter([np.zeros((2, 2))])
    with pytest.raises(StopIteration):
        build(tmp_path, stimuli, lambda images: next(answers), identity={"tower": "zeros"})
    assert json.loads((tmp_path / "tokens.part.json").read_text())["header"]["identity"] == {"tower": "zeros"}
    assert (tmp_path / "tokens.part.done").read_bytes() == b"\x01\0\0"
    np.testing.assert_array_equal(build(tmp_path, stimuli), build(tmp_path / "fresh", stimuli))


def test_another_cache_is_refused_by_the_field_that_differs(tmp_path):
    stimuli = make_stimuli()
    build(tmp_path, stimuli)
    other = make_stimuli(seed=1)
    cases = {
        "identity.tower is 'sum'": {"identity": IDENTITY | {"tower": "mean"}},
        "identity.norm.after is True": {"identity": IDENTITY | {"norm": {"after": False}}},
        r"identity.size is \[3, 224\]": {"identity": IDENTITY | {"size": (3, 225)}},
        "identity.extra is 'nothing'": {"identity": IDENTITY | {"extra": 1}},
        "dtype is 'float32'": {"dtype": "float16"},
        "shape is": {"shape": (3,)},
    }
    for message, change in cases.items():
        with pytest.raises(UserError, match=f"tokens.json: {message}"):
            build(tmp_path, stimuli, **change)
    with pytest.raises(UserError, match=f"tokens.json: stimuli is '{stimuli.hash}'; expected '{other.hash}'"):
        build(tmp_path, other)
    with pytest.raises(UserError, match="tokens.json: identity.tower is 'sum'; expected 'mean'"):
        open_cache(tmp_path, "tokens", IDENTITY | {"tower": "mean"}, stimuli.hash)
    with pytest.raises(UserError, match="stimuli is"):
        open_cache(tmp_path, "tokens", IDENTITY, other.hash)
    with pytest.raises(UserError, match="words.json: not found"):
        open_cache(tmp_path, "words", IDENTITY, stimuli.hash)


def test_a_damaged_cache_and_bad_features_are_refused(tmp_path):
    stimuli = make_stimuli()
    build(tmp_path, stimuli)
    with open(tmp_path / "tokens.bin", "r+b") as file:
        file.truncate(39)
    for damaged in (lambda: build(tmp_path, stimuli), lambda: open_cache(tmp_path, "tokens", IDENTITY, stimuli.hash)):
        with pytest.raises(UserError, match="tokens.bin: missing or not whole; expected 40 bytes"):
            damaged()
    (tmp_path / "tokens.json").write_text("{}")
    with pytest.raises(UserError, match="tokens.json: missing field shape"):
        open_cache(tmp_path, "tokens", IDENTITY, stimuli.hash)
    huge = tmp_path / "huge"
    with pytest.raises(UserError, match="features of stimulus 2 are not finite in float16"):
        build(
            huge,
            stimuli,
            lambda images: np.where(np.arange(3)[: len(images), None] == 2, 1e6, 1.0) * [1, 1],
            dtype="float16",
            batch=3,
        )
    assert not (huge / "tokens.json").exists()
    with pytest.raises(ValueError, match="returned shape"):
        build(tmp_path / "shape", stimuli, lambda images: features(images)[:, :1])
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        build(tmp_path / "file", stimuli)


def test_a_full_disk_is_named_and_leaves_no_whole_file(tmp_path, small_files_only):
    stimuli = make_stimuli()
    with small_files_only(50_000):
        with pytest.raises(UserError, match="tokens.part.bin: cannot be written"):
            build(tmp_path, stimuli, lambda images: np.ones((len(images), 5000)), shape=(5000,))
        with pytest.raises(UserError, match=r"betas_all_subj01.*: cannot be written \([^\n]+$"):
            write_betas(tmp_path / "data", 1, (np.ones((10, 5000)) for _ in range(2)), (20, 5000))
        with pytest.raises(UserError, match=r"COCO_73k_subj_indices.*: cannot be written \([^\n]+$"):
            write_indices(tmp_path / "data", {1: np.arange(100_000)})
        with pytest.raises(UserError, match="shared1000.npy: cannot be written"):
            write_shared(tmp_path / "data", np.ones(100_000, bool))
    assert list((tmp_path / "data").iterdir()) == [] and not (tmp_path / "tokens.json").exists()
    # With room again the build goes on.
    assert build(tmp_path, stimuli, lambda images: np.ones((len(images), 5000)), shape=(5000,))[:].sum() == 25_000


@pytest.fixture
def small_files_only():
    """Writes beyond a size fail as on a full disk."""

    @contextlib.contextmanager
    def limit(size):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit
