"""Python in the documents runs: the blocks of a page one after the other, in a folder with a small simulated dataset."""

import pydoc
import re
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

import mindtuner
from mindtuner.formats import write

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"(<!-- not run: [^>]*-->\n)?^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BLOCKS = {page: BLOCK.findall(page.read_text(encoding="utf-8")) for page in PAGES}
RUN = [page for page, blocks in BLOCKS.items() if any(not marked for marked, _ in blocks)]


@pytest.mark.parametrize("page", [page for page in PAGES if BLOCKS[page]], ids=lambda page: page.name)
def test_blocks_are_python(page):
    for _, block in BLOCKS[page]:
        compile(block, str(page), "exec")


@pytest.fixture
def small(tmp_path, monkeypatch) -> Path:
    """A working folder with ``data/nsd`` and ``mystudy``; the demo's config is as quick as the quick one."""
    simulate = mindtuner.load_config("quick").simulate
    knobs = {"trials_per_session": 60, "shared_images": 8, "voxel_scale": 0.01}
    dataset = mindtuner.simulate(tmp_path / "data" / "nsd", simulate, **knobs)
    write(tmp_path / "mystudy", dataset, "lab_folder")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_blocks_run(page, small):
    names = {}
    for marked, block in BLOCKS[page]:
        if not marked:
            exec(compile(block, page.name, "exec"), names)
    if "results" in names:
        assert Path("report.html").stat().st_size > 10_000


NAMED = re.compile(r"`(mindtuner(?:\.[A-Za-z_]\w*)+)")
SAID = sorted(
    {name for page in PAGES for name in NAMED.findall(page.read_text(encoding="utf-8")) if name != "mindtuner.json"}
)


@pytest.mark.parametrize("name", SAID)
def test_what_the_text_names_is_there(name):
    assert pydoc.locate(name) is not None


def test_rooms_are_there_after_import_mindtuner():
    """In a fresh interpreter, where nothing else has imported them."""
    code = "import mindtuner; mindtuner.formats.write, mindtuner.studies.map_fingerprint; mindtuner.nothing"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stderr.rstrip().endswith("AttributeError: module 'mindtuner' has no attribute 'nothing'")


def test_the_pages_that_need_it_have_python():
    assert {"README.md", "getting-started.md", "your-own-scans.md"} <= {page.name for page in RUN}
