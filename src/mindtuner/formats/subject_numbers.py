"""Numbers of subjects whose files or folders are called by numbers, or by names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from mindtuner.errors import UserError


def number_subjects(people: Mapping[str, Path], number_of: Callable[[str], int | None], card: dict) -> dict[int, str]:
    """Number -> name of subjects.

    Parameters
    ----------
    people : dict of str to Path
        Name -> file or folder, for messages.
    number_of : callable
        The number in a name, None where it has none. Where no name has one, subjects are counted from 1, sorted by name.
    card : dict
        ``subject_numbers`` says other numbers, ``subject_offset`` is added to all.

    Raises
    ------
    UserError
        Where some names have numbers and others have not, or two subjects have one number.
    """
    said, names = card.get("subject_numbers", {}), sorted(people)
    unnumbered = [name for name in names if number_of(name) is None]
    found: dict[int, str] = {}
    for name in names:
        number = said.get(name, number_of(name))
        if number is None and len(unnumbered) < len(names):
            other = next(known for known in names if known not in unnumbered)
            raise UserError(
                f'{people[name]}: has no number, as {other} has; expected subject_numbers in dataset.json, as {{"{name}": 1}}'
            )
        number = card["subject_offset"] + (names.index(name) + 1 if number is None else number)
        if number in found or number < 1:
            also = f", as {found[number]}" if number in found else ""
            raise UserError(f"{people[name]}: is subject {number}{also}; expected a number of its own, from 1")
        found[number] = name
    return found
