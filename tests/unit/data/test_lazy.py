"""What is read and what is not, and the ways around tarfile and HDF5 that make the full size quick."""

import functools
import hashlib
import io
import json
import tarfile
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nsd_release_files import TRIALS, make_nsd, raw_samples

from mindtuner.data import Stimuli
from mindtuner.data import stimuli as stimuli_module
from mindtuner.data.dataset import count_repeats
from mindtuner.data.lazy import FileRows, open_rows, read_ahead, unmapped
from mindtuner.data.stimuli import CAPTIONS_AT_ONCE
from mindtuner.errors import UserError
from mindtuner.formats import load
from mindtuner.formats.nsd_release import read as release
from mindtuner.formats.nsd_release.behaviour import read_behaviour


def in_chunks(path, field, rows, sound):
    """Store a dataset in compressed chunks and overwrite all of them on disk but those of the rows in ``sound``."""
    with h5py.File(path, "r") as file:
        data = file[field][()]
    with h5py.File(path, "w") as file:
        chunked = file.create_dataset(field, data=data, chunks=(rows, *data.shape[1:]), compression="gzip")
        file.flush()
        places = [chunked.id.get_chunk_info(i) for i in range(chunked.id.get_num_chunks())]
    with open(path, "r+b") as file:
        for place in places:
            if place.chunk_offset[0] // rows not in {row // rows for row in sound}:
                file.seek(place.byte_offset)
                file.write(b"\xee" * place.size)


@pytest.fixture(scope="module")
def torn(tmp_path_factory):
    """Every trial of image 2, and images 2 and 5, can be read; most others lie in chunks that cannot."""
    truth = make_nsd(tmp_path_factory.mktemp("torn"))
    shown = truth.tables[1].stimulus
    sound = np.flatnonzero(shown == 2)
    in_chunks(truth.root / "betas_all_subj01_fp32_renorm.hdf5", "betas", 1, sound)
    in_chunks(truth.root / "coco_images_224_float16.hdf5", "images", 1, [2, 5])
    return truth, sound


def test_a_batch_reads_its_rows_and_no_others(torn):
    truth, sound = torn
    dataset = load(truth.root)  # so opening reads no betas and no pixels
    subject = dataset.subject(1)
    np.testing.assert_array_equal(subject.betas(sound[::-1]), truth.betas[1][sound[::-1]])
    other = next(row for row in range(TRIALS) if row not in sound)
    with pytest.raises(UserError, match="betas_all_subj01.* cannot be read"):
        subject.betas([sound[0], other])
    assert dataset.stimuli.images([5, 2]).shape[0] == 2
    with pytest.raises(UserError, match="coco_images.* cannot be read"):
        dataset.stimuli.images([2, 3])


def test_subsets_and_averages_read_nothing_until_asked(torn):
    truth, sound = torn
    subject = load(truth.root).subject(1)
    mean = subject.averaged()
    place = int(np.flatnonzero(mean.trials.stimulus == 2)[0])
    np.testing.assert_allclose(mean.betas([place])[0], truth.betas[1][sound].mean(0, dtype=np.float64), rtol=1e-6)
    region = subject.sessions(1).within("V1").averaged()
    inside = [row for row in sound if row < 20]
    place = int(np.flatnonzero(region.trials.stimulus == 2)[0])
    np.testing.assert_allclose(
        region.betas([place])[0], truth.betas[1][inside][:, truth.masks[1]["V1"]].mean(0, dtype=np.float64), rtol=1e-6
    )
    with pytest.raises(UserError, match="cannot be read"):
        mean.betas([int(np.flatnonzero(mean.trials.stimulus == 3)[0])])


@pytest.mark.parametrize("kind", ["chunk of 1", "chunk of 7", "chunk of all", "chunks across voxels", "virtual"])
def test_chunked_rows_are_the_rows_of_the_array(tmp_path, kind):
    data = np.arange(33 * 5, dtype=np.float32).reshape(33, 5)
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        if kind == "virtual":
            file["part"] = data
            layout = h5py.VirtualLayout(data.shape, data.dtype)
            layout[:] = h5py.VirtualSource(file["part"])
            file.create_virtual_dataset("rows", layout)
        else:
            chunks = {"chunk of 1": (1, 5), "chunk of 7": (7, 5), "chunk of all": (33, 5), "chunks across voxels": (10, 2)}
            file.create_dataset("rows", data=data, chunks=chunks[kind])
    rows = open_rows(tmp_path / "x.hdf5", "rows", 2, ("float32",))
    assert not isinstance(rows, np.ndarray)

    @settings(max_examples=30, deadline=None)
    @given(st.lists(st.integers(0, 32), max_size=40))
    def any_rows(ids):
        got = rows[np.array(ids, np.int64)]
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, data[np.array(ids, np.int64)])

    any_rows()
    np.testing.assert_array_equal(rows[np.arange(33)], data)


@pytest.mark.parametrize("shape", [(19,), (19, 3), (19, 2, 4)])
def test_rows_of_a_file_are_those_of_the_array(tmp_path, shape):
    data = np.random.default_rng(0).standard_normal(shape).astype(">f4")
    np.save(tmp_path / "x.npy", data)
    rows = unmapped(tmp_path / "x.npy", np.load(tmp_path / "x.npy", mmap_mode="r"))
    assert isinstance(rows, FileRows) and rows.shape == shape and rows.ndim == len(shape) and len(rows) == 19
    np.testing.assert_array_equal(rows, data)
    np.testing.assert_array_equal(np.asarray(rows, np.float64), data)
    ids = np.array([7, 2, 18, 7, 0, 1])
    for index in (
        ids,
        [],
        ids[:0],
        slice(3, 17, 4),
        slice(None, None, -1),
        slice(4, 4),
        5,
        -1,
        np.arange(19) % 2 == 0,
        ids.reshape(2, 3),
    ):
        got = rows[index]
        assert got.dtype == data[index].dtype and np.array_equal(got, data[index]), index
    with pytest.raises(IndexError):
        rows[19]
    with open(tmp_path / "x.npy", "r+b") as file:
        file.truncate((tmp_path / "x.npy").stat().st_size - 1)
    np.testing.assert_array_equal(rows[:18], data[:18])
    with pytest.raises(UserError, match="x.npy: ends within row 18; expected 19 rows"):
        rows[16:]


def test_an_array_in_fortran_order_is_read_as_well(tmp_path):
    data = np.asfortranarray(np.arange(12.0).reshape(3, 4))
    np.save(tmp_path / "x.npy", data)
    np.testing.assert_array_equal(unmapped(tmp_path / "x.npy", np.load(tmp_path / "x.npy", mmap_mode="r")), data)


def test_what_comes_next_is_read_while_the_rest_is_used():
    asked, lock = [], threading.Event()

    def items():
        for k in range(9):
            asked.append(k)
            yield k

    def slow_at_first(k):
        if k == 0:
            lock.wait(10)
        elif k == 2:
            lock.set()  # so 1 and 2 are read while 0 is not there yet
        return k * k

    found = read_ahead(slow_at_first, items(), threads=3)
    assert next(found) == 0 and asked == [0, 1, 2, 3]
    assert next(found) == 1 and asked == [0, 1, 2, 3, 4]
    assert list(found) == [k * k for k in range(2, 9)] and list(read_ahead(str, [])) == []


def test_an_error_comes_where_its_item_would_and_ends_the_reading():
    read = []

    def fails(k):
        read.append(k)
        return 1 / (3 - k)

    found = read_ahead(fails, range(100))
    assert [next(found) for _ in range(3)] == [1 / 3, 1 / 2, 1]
    with pytest.raises(ZeroDivisionError):
        next(found)
    assert max(read) <= 4
    stopped = read_ahead(fails, range(10, 100))
    next(stopped)
    stopped.close()
    assert len(read) <= 5 + 2


def behaviour_by_tarfile(path):
    return np.concatenate([arrays["behav.npy"] for arrays in raw_samples(path).values()])


def retold(path, form, **changes):
    """The same members written by tarfile in another of its forms."""
    with tarfile.open(path) as tar:
        contents = [(member, tar.extractfile(member).read()) for member in tar.getmembers()]
    with tarfile.open(path, "w", format=form) as tar:
        for number, (member, data) in enumerate(contents):
            for name, value in changes.items():
                setattr(member, name, value(number, member))
            tar.addfile(member, io.BytesIO(data))


@pytest.fixture
def tar(whole_tar, tmp_path):
    path = tmp_path / "0.tar"
    path.write_bytes(whole_tar.read_bytes())
    return path


@pytest.fixture(scope="module")
def whole_tar(tmp_path_factory):
    return make_nsd(tmp_path_factory.mktemp("tars")).root / "wds/subj01/train/0.tar"


@pytest.mark.parametrize(
    ("form", "changes"),
    [
        (tarfile.USTAR_FORMAT, {}),
        (
            tarfile.PAX_FORMAT,
            {"mtime": lambda number, member: 1.7e9 + number / 7, "uname": lambda *_: "bigdata"},
        ),  # webdataset
        (tarfile.PAX_FORMAT, {"pax_headers": lambda *_: {"comment": "path=elsewhere"}}),
        (tarfile.GNU_FORMAT, {"uid": lambda *_: 2**40}),
        (tarfile.USTAR_FORMAT, {"name": lambda number, member: "deep/" * 25 + member.name}),
        (tarfile.PAX_FORMAT, {"name": lambda number, member: "x" * 120 + member.name}),
        (tarfile.GNU_FORMAT, {"name": lambda number, member: "x" * 120 + member.name}),
        (tarfile.PAX_FORMAT, {"name": lambda number, member: "é" + member.name}),
    ],
)
def test_every_form_of_tar_tells_the_same(tar, form, changes):
    expected = behaviour_by_tarfile(tar)
    retold(tar, form, **changes)
    np.testing.assert_array_equal(read_behaviour(tar), expected)
    np.testing.assert_array_equal(behaviour_by_tarfile(tar), expected)


def test_arrays_of_other_dtypes_and_npy_versions(tar):
    """Each array by its own header, also where headers differ from one to the next."""
    expected = behaviour_by_tarfile(tar)
    with tarfile.open(tar) as old:
        contents = [(member, old.extractfile(member).read()) for member in old.getmembers()]
    with tarfile.open(tar, "w") as new:
        for number, (member, data) in enumerate(contents):
            array, out = np.load(io.BytesIO(data)), io.BytesIO()
            np.lib.format.write_array(out, array.astype([">f8", "<f8", "<f4"][number % 3]), version=(1 + number % 2, 0))
            member.size = len(out.getvalue())
            new.addfile(member, io.BytesIO(out.getvalue()))
    np.testing.assert_array_equal(read_behaviour(tar), expected)


def test_no_damage_to_a_header_changes_the_trials_unseen(whole_tar, tmp_path_factory):
    data = whole_tar.read_bytes()
    with tarfile.open(whole_tar) as tar:
        headers = [member.offset for member in tar.getmembers()]
    expected = behaviour_by_tarfile(whole_tar)
    path = tmp_path_factory.mktemp("hurt") / "0.tar"

    @settings(max_examples=60, deadline=None)
    @given(st.sampled_from(headers), st.integers(0, 511), st.integers(1, 255))
    def hurt(header, byte, flip):
        wrong = bytearray(data)
        wrong[header + byte] ^= flip
        path.write_bytes(wrong)
        try:
            got = read_behaviour(path)
        except UserError as error:
            assert "0.tar" in str(error) and "\n" not in str(error)
        else:
            np.testing.assert_array_equal(got, expected)

    hurt()
    for end in (headers[8], headers[8] + 100, headers[8] + 600, len(data) // 3, 0):
        path.write_bytes(data[:end])
        with pytest.raises(UserError, match="0.tar: not a whole tar"):
            read_behaviour(path)


def test_an_empty_tar_is_a_session_without_training_trials(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w"):
        pass
    assert read_behaviour(tmp_path / "0.tar").shape == (0, 17)


@given(st.lists(st.integers(0, 5), max_size=30))
def test_repeats_are_how_often_an_image_came_before(shown):
    expected = [shown[:i].count(image) for i, image in enumerate(shown)]
    repeat = count_repeats(np.array(shown, np.int64))
    assert repeat.dtype == np.int64 and repeat.tolist() == expected


def test_captions_of_more_than_one_block(tmp_path, monkeypatch):
    """Read as they are asked for, or all there: the same captions, the same stimuli."""
    count = 2 * CAPTIONS_AT_ONCE + 3
    table = np.array(
        [[f"{i} \N{GREEK SMALL LETTER ALPHA}{k}" * (k != i % 6) for k in range(4)] + [" "] for i in range(count)]
    )
    every = [tuple(text for text in texts if text.strip()) for texts in table.tolist()]
    np.save(tmp_path / "captions.npy", table)
    stored = release.load_captions(tmp_path / "captions.npy", count)
    assert stored == every and every != stored[:-1] and stored != [*every[:-1], ("other",)]
    assert stored[CAPTIONS_AT_ONCE] == stored[CAPTIONS_AT_ONCE - count] == every[CAPTIONS_AT_ONCE]
    assert stored[CAPTIONS_AT_ONCE - 1 : CAPTIONS_AT_ONCE + 1] == every[CAPTIONS_AT_ONCE - 1 : CAPTIONS_AT_ONCE + 1]
    with pytest.raises(IndexError):
        stored[count]
    images = np.broadcast_to(np.float16(0.5), (count, 3, 224, 224))
    monkeypatch.setattr(stimuli_module, "HASH_ALL_BYTES", 1000)
    monkeypatch.setattr(stimuli_module, "HASH_SAMPLE", 2)
    lazy, there = (Stimuli(images, captions, np.zeros(count, bool), "x") for captions in (stored, every))
    expected = hashlib.sha256(json.dumps([[count, 3, 224, 224], "float16", every]).encode() + images[:2].tobytes())
    assert lazy.hash == there.hash == expected.hexdigest()
    with pytest.raises(UserError, match="captions.npy: has shape"):
        release.load_captions(tmp_path / "captions.npy", count + 1)


def older_split(truth, last):
    """``test/0.tar`` with the test trials of the first ``last`` sessions only."""
    for subject, table in truth.tables.items():
        folder = truth.root / f"wds/subj0{subject}"
        (folder / "test").mkdir()
        with tarfile.open(folder / "new_test/0.tar") as old, tarfile.open(folder / "test/0.tar", "w") as new:
            for member in old:
                if table.session[int(member.name[6:15])] <= last:
                    new.addfile(member, old.extractfile(member))


def test_the_older_test_split_leaves_out_late_test_trials_alone(tmp_path):
    truth = make_nsd(tmp_path)
    with pytest.raises(UserError, match=r"test/0\.tar: not found"):
        release.load(tmp_path, test_split="test")
    older_split(truth, 1)
    new, old = release.load(tmp_path), release.load(tmp_path, test_split="test")
    for number in (1, 3):
        one, two = new.subject(number), old.subject(number)
        for field in ("row", "stimulus", "session", "repeat"):
            np.testing.assert_array_equal(getattr(two.train, field), getattr(one.train, field))
        np.testing.assert_array_equal(two.test.row, [row for row in one.test.row if row < 20])
        np.testing.assert_array_equal(two.betas(range(TRIALS)), truth.betas[number])
    path = tmp_path / "wds/subj01/train/1.tar"
    lost = int(new.subject(1).train.row[-1])
    with tarfile.open(path) as tar:
        contents = [(member, tar.extractfile(member).read()) for member in tar if int(member.name[6:15]) != lost]
    with tarfile.open(path, "w") as tar:
        for member, data in contents:
            tar.addfile(member, io.BytesIO(data))
    for split in release.TEST_SPLITS:  # a training trial is missed in either
        with pytest.raises(UserError, match=f"row {lost} has none"):
            release.load(tmp_path, test_split=split)
    with pytest.raises(UserError, match="test split is 'train'; expected new_test or test"):
        release.load(tmp_path, test_split="train")


# ---- where HDF5 would give other numbers than were written, or zeros


@pytest.fixture
def numbers():
    return np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)


def plain(file, data):
    file["betas"] = data


def in_other_byte_order(file, data):
    file.create_dataset("betas", data=data, dtype=">f4")


def compact(file, data):
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.COMPACT)
    made = h5py.h5d.create(file.id, b"betas", h5py.h5t.NATIVE_FLOAT, h5py.h5s.create_simple(data.shape), plist)
    made.write(h5py.h5s.ALL, h5py.h5s.ALL, data)


def packed(file, data):
    file.create_dataset("betas", data=data, chunks=(7, 4), compression="gzip", shuffle=True, fletcher32=True)


def linked(file, data):
    """In another file, at another offset than this file's own dataset of the same size."""
    file["decoy"] = np.zeros_like(data)
    with h5py.File(file.filename.replace("betas", "other"), "w") as other:
        other["first"] = np.ones(1000)
        other["x"] = data
    file["betas"] = h5py.ExternalLink("other.hdf5", "/x")


def external(file, data):
    raw = file.filename.replace("betas.hdf5", "raw.bin")
    (bytes_before := open(raw, "wb")).write(b"\7" * 24)
    bytes_before.close()
    file.create_dataset("betas", data=data, external=[(raw, 24, data.nbytes)])


def virtual(file, data):
    with h5py.File(file.filename.replace("betas", "other"), "w") as other:
        other["x"] = data
    layout = h5py.VirtualLayout(data.shape, data.dtype)
    for row in range(0, len(data), 5):
        layout[row : row + 5] = h5py.VirtualSource("other.hdf5", "x", data.shape)[row : row + 5]
    file.create_virtual_dataset("betas", layout)


LAYOUTS = (plain, in_other_byte_order, compact, packed, linked, external, virtual)


@pytest.mark.parametrize("block", [0, 512])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_are_those_that_were_written_however_they_are_stored(layout, block, tmp_path, numbers):
    """``block``: bytes in front of the file proper, which offsets count."""
    path = tmp_path / "betas.hdf5"
    with h5py.File(path, "w", userblock_size=block) as file:
        layout(file, numbers)
    rows = open_rows(path, "betas", 2, ("float32",))
    asked = np.array([19, 3, 4, 5, 3])
    np.testing.assert_array_equal(rows[asked], numbers[asked])
    assert isinstance(rows, FileRows) == (layout in (plain, in_other_byte_order))


def lacks_its_other_file(file, data, layout):
    layout(file, data)
    for name in ("other.hdf5", "raw.bin"):
        (Path(file.filename).parent / name).unlink(missing_ok=True)


def ends_early(file, data):
    external(file, data)
    raw = Path(file.filename).parent / "raw.bin"
    raw.write_bytes(raw.read_bytes()[:-1])


def has_a_gap(file, data):
    with h5py.File(file.filename.replace("betas", "other"), "w") as other:
        other["x"] = data
    layout = h5py.VirtualLayout(data.shape, data.dtype)
    layout[:10] = h5py.VirtualSource("other.hdf5", "x", data.shape)[:10]
    file.create_virtual_dataset("betas", layout)


def has_a_small_source(file, data):
    virtual(file, data)
    with h5py.File(file.filename.replace("betas", "other"), "w") as other:
        other["x"] = data[:12]


def has_a_small_source_for_all(file, data):
    with h5py.File(file.filename.replace("betas", "other"), "w") as other:
        other["x"] = data[:12]
    layout = h5py.VirtualLayout(data.shape, data.dtype)
    layout[...] = h5py.VirtualSource("other.hdf5", "x", data.shape)
    file.create_virtual_dataset("betas", layout)


def has_a_source_of_nothing(file, data):
    virtual(file, data)
    with h5py.File(file.filename.replace("betas", "other"), "w") as other:
        other["y"] = data


def was_never_written(file, data):
    file.create_dataset("betas", data.shape, "f4")


def was_written_in_part(file, data):
    file.create_dataset("betas", data.shape, "f4", chunks=(5, 6))[:15] = data[:15]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (functools.partial(lacks_its_other_file, layout=linked), "betas"),
        (functools.partial(lacks_its_other_file, layout=external), "raw.bin: not found"),
        (functools.partial(lacks_its_other_file, layout=virtual), "other.hdf5: not found"),
        (ends_early, r"raw.bin: has 503 bytes; expected 504"),
        (has_a_gap, "leave gaps"),
        (has_a_small_source, "whose x is too small"),
        (has_a_small_source_for_all, "whose x is too small"),
        (has_a_source_of_nothing, "which has no x"),
        (was_never_written, "never written"),
        (was_written_in_part, "3 of 4 chunks"),
    ],
)
def test_zeros_that_nobody_wrote_are_never_read(make, said, tmp_path, numbers):
    path = tmp_path / "betas.hdf5"
    with h5py.File(path, "w") as file:
        make(file, numbers)
    with pytest.raises(UserError, match=f"(?s)^(?!.*\n).*{said}") as error:
        open_rows(path, "betas", 2, ("float32",))
    assert "expected" in str(error.value)
