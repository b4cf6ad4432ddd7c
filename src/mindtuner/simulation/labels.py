"""What a stimulus shows, in the words that the simulated category areas are tuned to."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mindtuner.data.words import COLOURS, STOP_WORDS, WORD
from mindtuner.errors import UserError


@dataclass(frozen=True)
class PlacedObject:
    """One object of a scene.

    ``group`` is its superclass ("animal"), ``colour`` is "" where unknown; ``x`` and ``y`` are the centre as
    shares of the image (y down), ``size`` the height as a share of the image's.
    """

    name: str
    group: str
    colour: str
    x: float
    y: float
    size: float


@dataclass(frozen=True)
class SceneLabels:
    """A place ("" where unknown) and the objects in it."""

    place: str
    objects: tuple[PlacedObject, ...]


def content_labels(caption: str) -> SceneLabels:
    """Labels of a stimulus of which only a caption is known: its content words as objects of group "word".

    Words are lower-cased and stop words dropped. A colour word becomes the colour of the next content word;
    one that nothing follows stands for itself. Where things are is unknown, so all sit in the centre at half
    size.

    Raises UserError where the caption has no content word.

    Examples
    --------
    >>> [(o.name, o.colour) for o in content_labels("A dog beside the red ball").objects]
    [('dog', ''), ('ball', 'red')]
    """
    objects, colour = [], ""
    for word in re.findall(WORD, caption.lower()):
        if word in COLOURS:
            colour = word
        elif word not in STOP_WORDS:
            objects.append(PlacedObject(word, "word", colour, 0.5, 0.5, 0.5))
            colour = ""
    if colour:
        objects.append(PlacedObject(colour, "word", colour, 0.5, 0.5, 0.5))
    if not objects:
        raise UserError(f"caption {caption!r}: no content word; expected a caption that names what is seen")
    return SceneLabels("", tuple(objects))
