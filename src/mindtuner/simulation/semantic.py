"""What category-selective cortex could know about a scene, as numbers.

That is objects, places, colours, counts and layout.

Computed from the stimulus's own labels, never from a network. Every name has a fixed random vector that its
spelling alone decides, so any vocabulary works and a name means the same in every dataset.
"""

from __future__ import annotations

import functools

import numpy as np

from mindtuner.errors import UserError
from mindtuner.runtime import derive_seed
from mindtuner.simulation.labels import SceneLabels

_CELLS = 4  # the layout grid is 4 x 4
_WIDTHS = {"objects": 24, "place": 10, "colours": 6, "counts": 5, "layout": _CELLS**2 + 3, "bindings": 12}
_ENDS = np.cumsum(list(_WIDTHS.values()))
BLOCKS = {name: slice(int(end - width), int(end)) for (name, width), end in zip(_WIDTHS.items(), _ENDS)}
FEATURES = int(_ENDS[-1])


def semantic_features(labels: list[SceneLabels]) -> np.ndarray:
    """Features of scenes, float32 (n, 76); ``BLOCKS`` names the columns.

    objects: sum over objects of their name's vector, bigger ones more, at unit total weight; half of a name's
    vector is its group's. place, colours: the same for the place and the objects' colours. counts: how many
    objects there are (soft one-hot of 1, 2, 3, 4 and more) and how many groups. layout: how much of each cell
    of a 4 x 4 grid objects cover, and their centre of mass and total size. bindings: which colour is on which
    object (elementwise product of two vectors, so that red dog + blue car differs from blue dog + red car).

    Raises UserError where there is no scene, or one without objects.
    """
    if not labels:
        raise UserError("labels: empty; expected one SceneLabels per image")
    return np.stack([_scene(scene, where) for where, scene in enumerate(labels)])


def _scene(scene: SceneLabels, where: int) -> np.ndarray:
    objects = scene.objects
    if not objects:
        raise UserError(f"labels[{where}].objects: empty; expected at least one object")
    row = np.zeros(FEATURES, np.float32)
    weight = np.sqrt([max(o.size, 0.01) for o in objects])
    weight /= np.linalg.norm(weight)  # responses to many objects are normalised, not summed without end
    row[BLOCKS["objects"]] = weight @ [_object_vector(o.name, o.group) for o in objects]
    if scene.place:
        row[BLOCKS["place"]] = _vector("place", scene.place, _WIDTHS["place"])
    for share, o in zip(weight, objects):
        if o.colour:
            row[BLOCKS["colours"]] += share * _vector("colour", o.colour, _WIDTHS["colours"])
            row[BLOCKS["bindings"]] += (
                share
                * _vector("bound colour", o.colour, _WIDTHS["bindings"])
                * _vector("bound object", o.name, _WIDTHS["bindings"])
            )
    groups = len({o.group for o in objects})
    row[BLOCKS["counts"]] = [*np.exp(-((np.arange(1, 5) - min(len(objects), 4)) ** 2)), groups]
    row[BLOCKS["layout"]] = _layout(objects)
    return row


def _layout(objects) -> np.ndarray:
    x, y = np.array([o.x for o in objects]), np.array([o.y for o in objects])
    size = np.maximum([o.size for o in objects], 0.01)
    centres = (np.arange(_CELLS) + 0.5) / _CELLS
    reach = np.maximum(size, 0.1)[:, None] / 2
    across = np.exp(-((centres - x[:, None]) ** 2) / (2 * reach**2))
    down = np.exp(-((centres - y[:, None]) ** 2) / (2 * reach**2))
    occupancy = np.einsum("oy,ox->yx", down, across).ravel()
    total = size.sum()
    return np.array([*occupancy, x @ size / total, y @ size / total, total])


@functools.cache
def _vector(kind: str, name: str, width: int) -> np.ndarray:
    vector = np.random.default_rng(derive_seed(0, kind, name)).standard_normal(width).astype(np.float32)
    vector /= np.sqrt(width)
    return vector


def _object_vector(name: str, group: str) -> np.ndarray:
    width = _WIDTHS["objects"]
    fall = np.arange(1, width + 1) ** -0.3  # few dimensions carry most: a power law, as in cortex
    return fall * (_vector("group", group, width) + _vector("object", name, width)) / np.sqrt(2 * (fall**2).mean())
