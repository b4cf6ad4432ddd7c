"""Reading MATLAB 5 files: against SciPy's reader where files are whole, and one clear error where they are not."""

import re

import numpy as np
import pytest
import scipy.io
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mindtuner.formats.matlab5 import read_tables

TABLES = st.sampled_from(["f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"]).flatmap(
    lambda dtype: arrays.arrays(dtype, st.tuples(st.integers(0, 5), st.integers(0, 5)))
)
OTHERS = {
    "words": "a text",
    "cell": np.array([1, "x"], object),
    "record": {"field": [1, 2]},
    "thin": scipy.sparse.eye(3),
    "cube": np.zeros((2, 2, 2)),
    "z": np.array([[1j]]),
}


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(["a", "trials", "a_long_name_of_a_table"]), TABLES), st.booleans())
def test_it_reads_what_scipy_reads(tmp_path_factory, tables, packed):
    path = tmp_path_factory.mktemp("mat") / "some.mat"
    scipy.io.savemat(path, OTHERS | tables, do_compression=packed)
    found, wanted = read_tables(path, tables), scipy.io.loadmat(path, variable_names=list(tables))
    assert set(found) == set(tables) == {name for name in wanted if not name.startswith("__")}
    for name, table in found.items():
        np.testing.assert_array_equal(table, wanted[name])
        assert table.shape == wanted[name].shape and table.dtype == wanted[name].dtype
    assert set(read_tables(path, ["a", "nowhere"])) == set(tables) & {"a"}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_table_is_refused_where_it_is_asked_for(tmp_path, name):
    scipy.io.savemat(tmp_path / "some.mat", OTHERS)
    with pytest.raises(ValueError, match=f"{name} is no table of real numbers|{name} has .* numbers, but dimensions"):
        read_tables(tmp_path / "some.mat", [name])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda data: data[:100], "no header of a little-endian MATLAB 5 file"),
        (lambda data: data[:126] + b"MI" + data[128:], "no header of a little-endian MATLAB 5 file"),
        (lambda data: data[:133], "ends within an element"),
        (lambda data: data[:-1], "ends within an element"),
        (lambda data: data[:128] + b"\x0e\0\0\0\0\0\0\0", "ends within an array"),
        (lambda data: data[:128] + b"\x06" + data[129:], "an element is of type 6, not an array"),
        (lambda data: data[:128] + b"\x0f" + data[129:], "cannot be unpacked"),
        (lambda data: data[:130] + b"\x05" + data[131:], "a small element has 5 bytes"),
        (lambda data: data[:136] + b"\x05" + data[137:], "an array without flags, dimensions and name"),
        (lambda data: data[:160] + b"\x03" + data[161:], "table has 4 numbers, but dimensions 3 x 2"),
        (lambda data: data[:160] + b"\xff\xff\xff\xff" + data[164:], "table has 4 numbers, but dimensions -1 x 2"),
    ],
)
def test_damage_is_named(tmp_path, change, message):
    path = tmp_path / "some.mat"
    scipy.io.savemat(path, {"table": np.array([[1.5, 2.0], [3.0, 4.0]])})
    np.testing.assert_array_equal(read_tables(path, ["table"])["table"], [[1.5, 2.0], [3.0, 4.0]])
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=re.escape(message)):
        read_tables(path, ["table"])


@pytest.mark.parametrize("packed", [False, True])
def test_every_byte_damaged_or_cut_there_is_read_or_refused(tmp_path, packed):
    path = tmp_path / "some.mat"
    scipy.io.savemat(path, {"a": np.arange(6.0).reshape(2, 3), "b": np.ones((1, 2), np.uint8)}, do_compression=packed)
    whole = path.read_bytes()
    for place in range(len(whole)):
        for content in (
            whole[:place],
            *(whole[:place] + bytes([value]) + whole[place + 1 :] for value in (0, 5, 9, 14, 255)),
        ):
            path.write_bytes(content)
            try:
                assert all(table.ndim == 2 for table in read_tables(path, ["a", "b"]).values())
            except ValueError:
                pass
