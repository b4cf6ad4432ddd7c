"""Exceptions that the command line turns into one line and an exit code."""

import unicodedata


class UserError(Exception):
    """Bad input. The message is one line naming the file, the field, and what was expected.

    The command line prints it and exits with code 2.
    """


class TrainingDiverged(Exception):
    """A loss or gradient is no longer finite. The message names step, loss term and the last good checkpoint.

    The command line prints it and exits with code 1.
    """


def is_odd(text: str) -> bool:
    """Whether a text does not fit into a line: it has a line break or another control character, or is no UTF-8."""
    return not text.isprintable() and any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in text)
