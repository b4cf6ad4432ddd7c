"""The readers of other people's files: what each refuses, in one line that begins with the file."""

import io
import os
import socket
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image

from mindtuner import inputs
from mindtuner.errors import UserError, is_odd

READERS = {
    "text": inputs.read_text,
    "json": inputs.read_json,
    "array": inputs.read_array,
    "arrays": inputs.read_arrays,
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_what_is_no_file_is_refused_before_it_is_opened(read, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for name, found in {
            "pipe": "is a pipe",
            "socket": "is a socket",
            "folder": "is a folder",
            "loop": "cannot be read",
            "nothing": "not found",
            "n" * 300: "cannot be read",
            "a\0b": "cannot be read",
        }.items():
            with pytest.raises(UserError) as error:
                read(tmp_path / name, "something else")
            assert str(error.value).startswith(f"{tmp_path / name}: {found}") and "expected something else" in str(
                error.value
            )
    with pytest.raises(UserError, match="/dev/zero: is a device"):
        read("/dev/zero", "something else")


def refused(read, path, data, *parts):
    path.write_bytes(data)
    with pytest.raises(UserError) as error:
        read(path, "what is wanted")
    said = str(error.value)
    assert said.startswith(str(path)) and "what is wanted" in said and not is_odd(said) and len(said) < 600
    for part in parts:
        assert part in said


def test_json_that_is_none(tmp_path):
    path = tmp_path / "a.json"
    refused(inputs.read_json, path, b"\xff{}", "not UTF-8 text", "byte 0")
    refused(inputs.read_json, path, b"{", "not valid JSON")
    refused(inputs.read_json, path, b"[" * 200_000, "not valid JSON")
    refused(inputs.read_json, path, b"9" * 20_000, "not valid JSON")
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')  # as Windows' editor writes it
    assert inputs.read_json(path, "JSON") == {"a": 1}


def test_yaml_that_is_none_or_grows():
    def bad(text):
        with pytest.raises(UserError, match="^here: not valid YAML .*; expected settings$") as error:
            inputs.parse_yaml(text, "here", "settings")
        assert len(str(error.value)) < 400

    bad("[" * 50_000)
    bad("a: &a [*a]")
    bad("a: !!python/object/apply:os.getcwd []")
    bad("\n".join([f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" if k else "a0: &a0 [x]" for k in range(12)]))
    assert inputs.parse_yaml("a: &x {b: 1}\nc: *x", "here", "settings") == {"a": {"b": 1}, "c": {"b": 1}}


def npy(header: str, body: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + body


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-3,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000, 100000), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (True,), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<q9', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<f4', 'shape': (1,), }",
        "(" * 4000,
        "__import__('os')",
    ],
)
def test_headers_of_arrays_that_lie(header, tmp_path):
    """No header is believed before it fits the file, be it alone or in an archive."""
    refused(inputs.read_array, tmp_path / "a.npy", npy(header, bytes(4)))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("a.npy", npy(header, bytes(4)))
    refused(inputs.read_arrays, tmp_path / "a.npz", packed.getvalue())


def test_arrays_come_as_they_were_written(tmp_path):
    rng = np.random.default_rng(0)
    for array in (rng.random((3, 4)), np.arange(5, dtype=">i2"), np.array(["a", "é"]), np.asfortranarray(rng.random((2, 3)))):
        np.save(tmp_path / "a.npy", array)
        np.savez_compressed(tmp_path / "a.npz", x=array)
        assert np.array_equal(inputs.read_array(tmp_path / "a.npy", "an array"), array)
        assert np.array_equal(inputs.read_arrays(tmp_path / "a.npz", "arrays")["x"], array)


def test_an_archive_that_unpacks_to_more_than_memory_is_not_unpacked(tmp_path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        for name in range(70):
            file.writestr(f"{name}.npy", bytes(2**24))
    refused(inputs.read_arrays, tmp_path / "a.npz", packed.getvalue(), "unpacks to 1,174,405,120 bytes")


def test_pictures_that_would_fill_the_memory(tmp_path, recwarn):
    Image.new("1", (11_000, 10_000)).save(tmp_path / "a.png")
    with (
        pytest.raises(UserError, match="a.png: is too large; expected at most 89,478,485 pixels"),
        inputs.open_picture(tmp_path / "a.png"),
    ):
        pass
    assert list(recwarn) == []


@pytest.mark.parametrize(
    ("text", "odd"), [("a b", False), ("naïve 図", False), ("a\nb", True), ("\u2028", True), ("\udcff", True)]
)
def test_what_fits_into_a_line(text, odd):
    assert is_odd(text) == odd
