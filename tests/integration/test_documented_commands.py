"""Every command line in the documents is one that the real parsers take: an option that is renamed fails here."""

import argparse
import re
import shlex

import pytest
from paths import ROOT

from mindtuner.cli import generator_options, parse
from mindtuner.config import load_config
from mindtuner.errors import UserError

FOLDERS = (".", "docs", "benchmarks/results", "examples", "tests")
QUOTED = "\0"  # a space within quotation marks
PAGES = sorted(page for folder in FOLDERS for page in (ROOT / folder).glob("*.md"))


def command_lines(text):
    """The lines of indented or fenced blocks that begin with mindtuner, continued ones joined, each command for itself."""
    fenced, lines = False, []
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif lines and lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1] + " " + line.strip()
        elif (fenced or line.startswith("    ")) and re.match(r"(\$ )?mindtuner ", line.strip()):
            lines.append(line.strip().removeprefix("$ "))
    commands = [shlex.split(part, comments=True) for line in lines for part in line.split("&&")]
    return [words for words in commands if words[:1] == ["mindtuner"]]


def typed(words):
    """What a user would type: of a usage line all that is optional too, of a choice the first, and for N a number."""
    text = re.sub(r"\s*\|[^\]]*", "", " ".join(word.replace(" ", QUOTED) for word in words[1:])).replace(" ...", "")
    separate = re.sub(r"[\[\]]", "", text).split()
    return ["1" if re.fullmatch("[A-Z](,[A-Z]|,\\.\\.\\.)*", word) else word.replace(QUOTED, " ") for word in separate]


COMMANDS = [(page, words) for page in PAGES for words in command_lines(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page, words", COMMANDS, ids=[f"{page.name}-{' '.join(words)[10:60]}" for page, words in COMMANDS])
def test_documented_commands_are_parsed(page, words, monkeypatch):
    monkeypatch.setattr(argparse.ArgumentParser, "_get_option_tuples", lambda *_: [])  # no option by a part of its name
    try:
        taken, _, _ = parse(typed(words))
    except UserError as error:
        pytest.fail(f"{' '.join(words)}: {error}")
    if taken.verb in ("decode", "evaluate"):
        generator_options.check_options(taken)  # which options go together
    if getattr(taken, "config", None) and "/" not in str(taken.config):
        load_config(taken.config)


def test_commands_are_found_in_the_page_that_needs_them():
    found = [words for page, words in COMMANDS if page.name == "full-size.md"]
    assert {words[1] for words in found} >= {"fetch", "check", "embed", "pretrain", "tune", "decode", "evaluate", "convert"}
    assert {words[1] for words in found if words[2:3] == ["weights"]} == {"fetch", "check"}
    with pytest.raises(UserError):
        parse(["decode", "TUNED", "NSD", "OUT", "--painter", "sdxl"])
    page = "    mindtuner a B \\\n        --c D  # why\n    mindtuner b && mindtuner c\ntext mindtuner d\n"
    assert command_lines(page) == [["mindtuner", "a", "B", "--c", "D"], ["mindtuner", "b"], ["mindtuner", "c"]]
