"""Expressions that choose columns of BData by the names of its metadata, such as ``ROI_V1 + ROI_V2``.

The words are bdpy's (``BData.select``): a name is all columns where that metadata is 1, ``*`` in it stands for anything;
``+`` or ``|`` is one or the other, ``&`` both, ``-`` the first without the second, from left to right; ``NAME = 1`` is
``NAME``, ``NAME = 0`` all others; parentheses group. bdpy's ``top N of ... @`` is not taken.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from mindtuner.errors import UserError

_TOKEN = re.compile(r"""\s*(?:(?P<sign>[()=|&+\-@])|"(?P<double>[^"]+)"|'(?P<single>[^']+)'|(?P<name>[^\s()=|&+\-@"']+))""")
_END = ""


def select(expression: str, named: Callable[[str], np.ndarray]) -> np.ndarray:
    """Which columns an expression chooses.

    Parameters
    ----------
    expression : str
    named : callable
        The columns of a name, bool (C,), ``*`` included; raises UserError where there is no such name.

    Returns
    -------
    bool (C,)

    Raises
    ------
    UserError
        Where it is no expression.

    Examples
    --------
    >>> import numpy as np
    >>> from mindtuner.formats.bdata.expression import select
    >>> columns = {"ROI_V1": np.array([True, True, False]), "ROI_V2": np.array([False, True, True])}
    >>> select("ROI_V1 + ROI_V2", columns.get), select("ROI_V1 - ROI_V2", columns.get)
    (array([ True,  True,  True]), array([ True, False, False]))
    """
    return _Reader(expression, named).whole()


class _Reader:
    """Reads an expression once, from left to right."""

    def __init__(self, expression: str, named: Callable[[str], np.ndarray]):
        self._expression, self._named, self._at = expression, named, 0
        self._tokens: list[tuple[str, bool]] = []  # (text, whether it is a sign)
        place, text = 0, expression.rstrip()
        while place < len(text):
            match = _TOKEN.match(text, place)
            if match is None:
                raise self._wrong(f"has a quote that is not closed at {text[place:]!r}")
            sign = match["sign"]
            self._tokens.append((sign or match["double"] or match["single"] or match["name"], sign is not None))
            place = match.end()
        self._tokens.append((_END, True))

    def whole(self) -> np.ndarray:
        found = self._chain()
        if self._tokens[self._at][0] != _END:
            raise self._wrong(f"goes on with {self._tokens[self._at][0]!r} where it should end")
        return found

    def _chain(self) -> np.ndarray:
        found = self._term()
        while self._tokens[self._at] in (("|", True), ("+", True), ("&", True), ("-", True)):
            sign = self._next()
            other = self._term()
            found = found | other if sign in "|+" else found & other if sign == "&" else found & ~other
        return found

    def _term(self) -> np.ndarray:
        text, is_sign = self._tokens[self._at]
        if text == "(" and is_sign:
            self._next()
            found = self._chain()
            if self._tokens[self._at] != (")", True):
                raise self._wrong("has a parenthesis that is not closed")
            self._next()
            return found
        if is_sign:
            raise self._wrong(f"has {text!r} in place of a name" if text else "ends where a name should stand")
        self._next()
        found = self._named(text)
        if self._tokens[self._at] == ("=", True):
            self._next()
            value = self._next()
            if value not in ("0", "1"):
                raise self._wrong(f"compares {text} with {value!r}")
            return found if value == "1" else ~found
        return found

    def _next(self) -> str:
        text = self._tokens[self._at][0]
        self._at = min(self._at + 1, len(self._tokens) - 1)
        return text

    def _wrong(self, what: str) -> UserError:
        return UserError(f"voxels: {self._expression!r} {what}; expected names joined by +, & or -, as 'ROI_V1 + ROI_V2'")
