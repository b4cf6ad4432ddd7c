"""Imports run one way: each room only from the rooms before it, as docs/architecture.md gives them."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import ROOT

PACKAGE = ROOT / "src" / "mindtuner"
MODULES = sorted(PACKAGE.rglob("*.py"))
OUTSIDE = sorted(path for folder in ("benchmarks", "examples", "tests") for path in (ROOT / folder).rglob("*.py"))
TESTS_OF_VERBS = {  # those that look at a verb's own words, beside tests/unit/cli
    "tests/integration/test_documented_commands.py": {"generator_options", "parse"},
    "tests/integration/test_mixed_up.py": {"embed"},
    "tests/unit/published_weights/test_store.py": {"fetch_weights"},
    "tests/unit/simulation/test_simulate.py": {"simulate", "simulate.FORMATS"},
    "tests/integration/test_embed_verb.py": {"embed"},
}
CAMPAIGNS = ("benchmarks/bad_inputs.py", "benchmarks/kills.py")  # which call every verb as a shell does
BESIDE = {"published_weights": "foundations", "interop": "generators"}  # room -> the last one that it may import
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
FOUNDATIONS = (
    "errors",
    "inputs",
    "temporary",
    "claims",
    "files",
    "config",
    "runtime",
    "processes",
    "threads",
    "download",
    "thirdparty",
)
FLOW = (
    "foundations",
    *re.findall(r"^\| `(\w+)/` \|", PAGE.split("## Where something new goes")[0], re.MULTILINE),
)


@functools.cache
def nodes(source: str) -> list[ast.AST]:
    return list(ast.walk(ast.parse(source)))


def imported(source: str) -> Iterator[str]:
    """Every module that a source names in an import, wherever it stands; of ``from a import b`` both a and a.b."""
    for node in nodes(source):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield base
            yield from (f"{base}.{name.name}" for name in node.names)


def rooms_of(source: str) -> set[str]:
    """The rooms that a source imports from; a relative import counts as one of its own, which no room is called."""
    rooms = {name.split(".")[1] for name in imported(source) if name.startswith("mindtuner.")}
    return {"foundations" if room in FOUNDATIONS else room for room in rooms} | {
        name for name in imported(source) if name.startswith(".")
    }


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "foundations" if first in FOUNDATIONS else first


def upward(room: str, source: str) -> set[str]:
    """What a room imports that does not come before it."""
    last = BESIDE.get(room, room)
    before = set(FLOW[: FLOW.index(last) + 1]) | {room}
    before |= {beside for beside, after in BESIDE.items() if FLOW.index(after) < FLOW.index(last)}
    return rooms_of(source) - before


def printed(source: str) -> Iterator[str]:
    """What speaks to a terminal: print to standard output, and parsing of arguments."""
    for node in nodes(source):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            if not any(word.arg == "file" and ast.unparse(word.value) == "sys.stderr" for word in node.keywords):
                yield f"print in line {node.lineno}"
    if "argparse" in set(imported(source)):
        yield "argparse"


def is_command(source: str) -> bool:
    """Whether ``python -m`` runs it."""
    return '\nif __name__ == "__main__":' in source


def test_the_page_lists_every_room_once():
    rooms = [path.parent.name for path in PACKAGE.glob("*/__init__.py")]
    assert sorted(rooms) == sorted({*FLOW[1:], *BESIDE}) and len(set(FLOW)) == len(FLOW)
    assert FLOW[-1] == "cli"
    assert {path.stem for path in PACKAGE.glob("*.py")} == {*FOUNDATIONS, "__init__", "__main__"}
    assert all(f"`{name}.py`" in PAGE for name in FOUNDATIONS)


@pytest.mark.parametrize("room", [*FLOW, *BESIDE])
def test_no_room_imports_one_after_it(room):
    found = {
        path.relative_to(PACKAGE).as_posix(): upward(room, path.read_text(encoding="utf-8"))
        for path in MODULES
        if room_of(path) == room
    }
    assert found and {path: rooms for path, rooms in found.items() if rooms} == {}


def test_only_the_command_line_prints_and_parses():
    found = {
        path.relative_to(PACKAGE).as_posix(): list(printed(source))
        for path in MODULES
        if room_of(path) != "cli" and not is_command(source := path.read_text(encoding="utf-8"))
    }
    assert {path: what for path, what in found.items() if what} == {}


def test_only_tests_of_the_command_line_import_it():
    """``main`` is the command line as a shell has it, so every test may call verbs with it."""
    found = {}
    for path in OUTSIDE:
        name = path.relative_to(ROOT).as_posix()
        names = {line for line in imported(path.read_text(encoding="utf-8")) if f"{line}.".startswith("mindtuner.cli.")}
        if name.startswith("tests/") or name in CAMPAIGNS:
            names -= {f"mindtuner.cli{allowed and '.'}{allowed}" for allowed in {"", "main", *TESTS_OF_VERBS.get(name, ())}}
        if not name.startswith("tests/unit/cli/") and names:
            found[name] = names
    assert found == {}


def test_what_is_forbidden_is_found():
    assert upward("training", "import mindtuner.data\nfrom mindtuner.model import x\nfrom mindtuner import errors") == set()
    assert upward("training", "def f():\n    from mindtuner import cli, pipeline") == {"cli", "pipeline"}
    assert upward("data", "import mindtuner.formats.hdf5") == {"formats"} and upward("model", "from . import x") == {
        ".",
        "..x",
    }
    assert upward("published_weights", "import mindtuner.data") == {"data"}
    assert upward("evaluation", "import mindtuner.interop") == set()
    assert upward("data", "import mindtuner.interop") == {"interop"}
    assert list(printed("print(1)\nprint(2, file=sys.stderr)\nimport argparse")) == ["print in line 1", "argparse"]
