"""How far a long work is, where nobody looks at a terminal."""

import re

from mindtuner import runtime


def test_without_a_terminal_lines_say_how_far_it_is_and_what_is_left(monkeypatch, capsys):
    monkeypatch.setattr(runtime, "LINES_EVERY_S", 0)
    assert list(runtime.progress("abc", "pictures", 3, lines=True)) == ["a", "b", "c"]
    told = capsys.readouterr().err.splitlines()
    assert [re.sub(r"\d\d:\d\d", "TIME", line) for line in told[:2]] == [
        f"pictures: {k} of 3 in TIME, about TIME left" for k in (1, 2)
    ]
    assert all(re.match("pictures: 3 of 3", line) for line in told[2:])
    with runtime.progress((), "paint", 10, lines=True) as bar:
        bar.start_t -= 60  # so 4 take a minute, and 6 a minute and a half
        bar.update(4)
    assert capsys.readouterr().err.splitlines()[0] == "paint: 4 of 10 in 01:00, about 01:30 left"


def test_lines_are_few_and_short_works_silent(capsys):
    assert list(runtime.progress(range(1000), "pictures", 1000, lines=True)) == list(range(1000))
    assert list(runtime.progress(range(10), "steps", 10)) == list(range(10))
    assert capsys.readouterr().err == ""
