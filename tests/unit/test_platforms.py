"""What systems other than Linux lack is not asked for: it is taken away here, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mindtuner

WITHOUT = """
import sys
import psutil  # has a part for each system, and that for Linux wants what is taken away
for name in ("fcntl", "resource"):
    sys.modules[name] = None
import os
for name in ("pread", "preadv", "pwrite", "pwritev", "posix_fallocate", "posix_fadvise", "fork"):
    if hasattr(os, name):
        delattr(os, name)
import warnings
warnings.filterwarnings("ignore", "only soft file lock")  # Windows has a lock of its own
"""

EVERYTHING = """
import importlib, pkgutil
import mindtuner
for module in pkgutil.walk_packages(mindtuner.__path__, "mindtuner."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""

PIECES = """
from pathlib import Path
import numpy as np
from mindtuner import runtime
from mindtuner.data import FileRows, Stimuli, build_cache
from mindtuner.data.cache.build import Part
from mindtuner.errors import UserError
from mindtuner.files import write_json, read_json

folder = Path(sys.argv[1])
pixels = np.random.default_rng(0).random((5, 3, 224, 224)).astype(np.float16)
stimuli = Stimuli(pixels, [["a"]] * 5, np.arange(5) < 2, "test images")
build = lambda compute: build_cache(folder, "tokens", (2,), "float32", {"tower": "mean"}, stimuli, compute, 2, "tokens")

def stopped(images):
    if len(images) == 1:  # the last batch
        raise KeyboardInterrupt
    return mean(images)

def mean(images):
    return images.mean((2, 3), dtype=np.float64)[:, :2]

try:
    build(stopped)
except KeyboardInterrupt:
    pass
part = Part(folder, "tokens", read_json(folder / "tokens.part.json")["header"], 2)
assert 0 <= part.bytes_to_write() <= 40
with part._alone():
    try:
        build(mean)
    except UserError as error:
        assert "is being written by another process" in str(error), error
    else:
        raise AssertionError("two builds at a time")
    assert not part.seal.exists()
features = build(mean)
np.testing.assert_allclose(features[:], mean(pixels), rtol=1e-6)
np.testing.assert_array_equal(FileRows(folder / "tokens.bin", (5, 2), "float32")[[4, 0]], features[:][[4, 0]])
assert sorted(path.name for path in folder.iterdir()) == ["tokens.bin", "tokens.json"]
assert 50 < runtime.peak_memory_mb() < 64_000
"""


def run_without(code, *words):
    environment = os.environ | {"PYTHONPATH": str(Path(mindtuner.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", WITHOUT + code, *words], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_every_module_is_imported_and_a_cache_built_without_what_windows_lacks(tmp_path):
    run_without(EVERYTHING + PIECES, str(tmp_path / "cache"))


def test_peak_memory_where_there_is_no_proc(monkeypatch):
    from mindtuner import runtime

    told = runtime.peak_memory_mb()

    class Elsewhere:
        def __init__(self, path):
            assert str(path) == "/proc/self/status"

        def exists(self):
            return False

    monkeypatch.setattr(runtime, "Path", Elsewhere)
    assert runtime.peak_memory_mb() >= 0.5 * told  # as on macOS: getrusage

    class Windows:
        class Process:
            def memory_info(self):
                from types import SimpleNamespace

                return SimpleNamespace(rss=1, peak_wset=300 * 2**20)

    monkeypatch.setattr(runtime, "psutil", Windows)
    assert runtime.peak_memory_mb() == 300


# ---- permissions


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("umask, expected", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_permissions_that_the_umask_gives(tmp_path, umask, expected):
    import numpy as np
    from safetensors.numpy import save_file

    from mindtuner.files import atomic_path, write_json

    before = os.umask(umask)
    try:
        write_json(tmp_path / "a.json", {})
        with atomic_path(tmp_path / "b.safetensors") as part:
            save_file({"x": np.zeros(2)}, part)
        with atomic_path(tmp_path / "folder") as part:
            (part / "unet").mkdir(parents=True)
            save_file({"x": np.zeros(2)}, part / "unet" / "c.safetensors")
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"a.json", "b.safetensors", "c.safetensors"}
    assert {path.stat().st_mode & 0o777 for path in files} == {expected}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_a_file_that_is_linked_keeps_its_permissions(tmp_path):
    from mindtuner.files import atomic_path

    (tmp_path / "theirs.safetensors").write_bytes(b"x")
    (tmp_path / "theirs.safetensors").chmod(0o400)
    with atomic_path(tmp_path / "ours.safetensors") as part:
        os.link(tmp_path / "theirs.safetensors", part)
    assert (tmp_path / "theirs.safetensors").stat().st_mode & 0o777 == 0o400
