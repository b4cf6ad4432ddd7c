"""Links and anchors in the documents resolve, and modules and files that they name exist."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").rglob("*.md")])
ROOMS = ROOT / "src" / "mindtuner"
FOLDERS = ("src", "tests", "docs", "benchmarks", "examples")
FILES = {path.relative_to(ROOT).as_posix() for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()}
ELSEWHERE = {"models.py"}  # files of other people's repositories
MADE = ("gallery/", "api/")  # what only the built site has
FRONT_DOOR = {"Base", "check", "embed", "evaluate", "load_config", "simulate"}  # of the pipeline

LINK = re.compile(r"\]\(([^()\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
MODULE = re.compile(r"\bmindtuner(?:\.[A-Za-z_]\w*)+")
PYTHON_FILE = re.compile(r"[\w./-]*\w\.py\b")
OURS = re.compile(rf"(?<![\w/.-])(?:{'|'.join(FOLDERS)}|configs)/[\w./-]*\w")


def anchors(text: str) -> set[str]:
    """Anchors of a page's headings as GitHub makes them."""
    found = set()
    for heading in re.findall(r"^#+ (.+?)\s*#*$", FENCE.sub("", text), re.MULTILINE):
        heading = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.add(next(name for n in range(99) if (name := anchor + f"-{n}" * (n > 0)) not in found))
    return found


def broken_links(page: Path, text: str) -> Iterator[str]:
    for target in LINK.findall(CODE.sub("", FENCE.sub("", text))):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        if not path.exists() and not target.startswith(MADE):
            yield f"{target}: no such file"
        elif path.exists() and anchor and anchor not in anchors(text if path == page else path.read_text(encoding="utf-8")):
            yield f"{target}: no such heading"


def code(text: str) -> str:
    """All that a page sets as code: blocks and words."""
    blocks = FENCE.findall(text) + re.findall(r"^    .*", text, re.MULTILINE)
    return "\n".join([*blocks, *CODE.findall(FENCE.sub("", text))])


def missing(text: str) -> Iterator[str]:
    """Files and names of the package that a page speaks of and that are not there."""
    words = code(text)
    for name in sorted(set(PYTHON_FILE.findall(words)) - ELSEWHERE):
        if not any(f"/{file}".endswith("/" + name.removeprefix("./")) for file in FILES):
            yield name
    for name in sorted(set(OURS.findall(words))):
        path = "src/mindtuner/" + name if name.startswith("configs/") else name
        if not (ROOT / path).exists() and not name.endswith(".py") and "NAME" not in name:
            yield name
    for name in sorted(set(MODULE.findall(words))):
        if not known(name) and name.split(".")[1] not in FRONT_DOOR and not name.endswith((".json", ".safetensors")):
            yield name


def known(name: str) -> bool:
    """A module, or what one offers."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


@pytest.mark.parametrize("page", PAGES, ids=[page.relative_to(ROOT).as_posix() for page in PAGES])
def test_links_resolve_and_what_is_named_exists(page):
    text = page.read_text(encoding="utf-8")
    assert not list(broken_links(page, text))
    assert not list(missing(text))


def test_architecture_names_every_room():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = {path.parent.name for path in ROOMS.glob("*/__init__.py")}
    assert {room for room in rooms if f"`{room}/`" not in page} == set()
    drawing = (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8")
    assert {room for room in rooms if f">{room}</text>" not in drawing} == set()


def test_every_page_of_results_is_in_the_index():
    folder = ROOT / "benchmarks" / "results"
    index = (folder / "README.md").read_text(encoding="utf-8")
    assert [
        page.name
        for page in folder.glob("*.md")
        if page.name != "README.md" and not re.search(rf"[(`]{page.name}[)`]", index)
    ] == []


def test_what_is_broken_is_found():
    links = "[a](#a-title-twice-1) [b](docs/none.md) [c](docs/scores.md#none) `[d](e)` [f](https://g)"
    found = list(broken_links(ROOT / "README.md", f"# A title, twice\n# A title, twice\n{links}\n"))
    assert found == ["docs/none.md: no such file", "docs/scores.md#none: no such heading"]
    named = "`cli/demo.py`, `cli/none.py`, `mindtuner.load`, `mindtuner.none`"
    found = list(missing(f"{named}\n\n    python benchmarks/gone.py\n    ls docs/gone.png\n"))
    assert found == ["benchmarks/gone.py", "cli/none.py", "docs/gone.png", "mindtuner.none"]
