"""A verb as a user types it, in this process."""

from mindtuner.cli import main


def refused(capsys, argv, *parts):
    """Run a command that must fail with code 2 and exactly one line on stderr that holds all ``parts``."""
    capsys.readouterr()
    assert main([str(word) for word in argv]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("mindtuner: "), lines
    for part in parts:
        assert part in lines[0]


def call(*words):
    return main([str(word) for word in words])
