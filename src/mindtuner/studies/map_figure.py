"""Pictures of maps over voxels.

They are slices of the volume where a mask says where voxels lie, the cortical surface where there are meshes of it, else a
flat scatter.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mindtuner import runtime
from mindtuner.data.surface import HEMISPHERE, on_surface
from mindtuner.errors import UserError
from mindtuner.files import atomic_path
from mindtuner.inputs import reading
from mindtuner.thirdparty import package

HOW = "'mindtuner[maps]'"
SLICES = 7
HEMISPHERES, VIEWS = ("left", "right"), ("lateral", "medial")


def missing_package(brain: bool) -> str:
    """Why nothing can be drawn, and how to get what draws; "" where it is there. A ``brain`` needs more than a scatter."""
    try:
        package("matplotlib", HOW)
        if brain:
            package("nilearn", HOW)
    except UserError as error:
        return str(error)
    return ""


def read_mask(path: Path, voxels: int, values: Sequence[float] | None = None):
    """A NIfTI image that is above 0, or one of ``values``, at the subject's voxels, and where that is, bool (X, Y, Z).

    Raises UserError where it is none, or has another number of voxels.
    """
    import nibabel

    with reading(path, "a NIfTI mask"):
        image = nibabel.load(path)
        held = np.asarray(image.dataobj)
        inside = held > 0 if values is None else np.isin(held, values)
    if inside.ndim != 3 or inside.sum() != voxels:
        raise UserError(
            f"{path}: has shape {inside.shape} and {int(inside.sum())} voxels"
            f"{' above 0' if values is None else f' of {list(values)}'}; expected three axes and {voxels}, the subject's"
        )
    return image, inside


def volume_of(values: np.ndarray, mask) -> object:
    """A map (V,) as a NIfTI image; voxels in the order of ``volume[mask]``."""
    import nibabel

    image, inside = mask
    filled = np.zeros(inside.shape, np.float32)
    filled[inside] = values
    return nibabel.Nifti1Image(filled, image.affine)


def save_volume(path: Path, values: np.ndarray, mask) -> None:
    """``volume_of`` as a .nii.gz file."""
    import nibabel

    with atomic_path(path) as part:
        part.write_bytes(gzip.compress(nibabel.Nifti1Image.to_bytes(volume_of(values, mask)), mtime=0))


def read_surface(paths: Sequence[Path], vertices: np.ndarray | None, voxels: int) -> tuple[list, np.ndarray]:
    """The left and the right mesh as (coordinates, faces), and at which vertex each voxel lies, (V,).

    The left mesh's vertices are counted first, then the right one's. Without ``vertices``, the subject's on fsLR-32k, every
    vertex has to be a voxel.

    Raises UserError where a file is no GIFTI mesh, or has other vertices than that.
    """
    meshes = [_mesh(path) for path in paths]
    sizes = [len(coordinates) for coordinates, _ in meshes]
    if vertices is None and sum(sizes) != voxels:
        raise UserError(
            f"{paths[0]}: has {sizes[0]} vertices, {paths[1]} {sizes[1]}; expected {voxels} in all, one for each "
            "of the subject's voxels, as its data do not say where these lie"
        )
    if vertices is not None and sizes != [HEMISPHERE, HEMISPHERE]:
        raise UserError(
            f"{paths[0]}: has {sizes[0]} vertices, {paths[1]} {sizes[1]}; expected {HEMISPHERE} each, the "
            "fsLR-32k meshes, on which the subject's voxels lie"
        )
    return meshes, np.arange(voxels) if vertices is None else vertices


def _mesh(path: Path) -> tuple[np.ndarray, np.ndarray]:
    import nibabel

    with reading(path, "a GIFTI surface mesh"):
        image = nibabel.load(path)
        coordinates, faces = (image.agg_data(kind) for kind in ("pointset", "triangle"))
    if not isinstance(coordinates, np.ndarray) or not isinstance(faces, np.ndarray):
        raise UserError(f"{path}: holds no mesh; expected points and triangles, as in a .surf.gii file")
    return coordinates, faces


def on_meshes(values: np.ndarray, surface: tuple[list, np.ndarray]) -> list[np.ndarray]:
    """A map (V,) as one float32 array a mesh, NaN where there is no voxel."""
    meshes, vertices = surface
    left, right = (len(coordinates) for coordinates, _ in meshes)
    return [half.astype(np.float32) for half in on_surface(vertices, values, left=left, right=right)]


def save_surface(folder: Path, name: str, values: np.ndarray, surface: tuple[list, np.ndarray]) -> None:
    """``on_meshes`` as two GIFTI files, NAME.left.func.gii and NAME.right.func.gii."""
    from nibabel.gifti import GiftiDataArray, GiftiImage

    for hemisphere, own in zip(HEMISPHERES, on_meshes(values, surface), strict=True):
        image = GiftiImage(darrays=[GiftiDataArray(own, intent="NIFTI_INTENT_SHAPE")])
        with atomic_path(folder / f"{name}.{hemisphere}.func.gii") as part:
            part.write_bytes(image.to_bytes())


def cortex(path: Path, maps: Mapping[str, np.ndarray], surface: tuple[list, np.ndarray]) -> None:
    """Each map (V,) on both hemispheres from outside and from inside, into a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from nilearn.plotting import plot_surf_stat_map

    columns = [(hemisphere, view) for hemisphere in HEMISPHERES for view in VIEWS]
    figure, axes = plt.subplots(
        len(maps),
        len(columns),
        figsize=(12, 3 * len(maps)),
        squeeze=False,
        subplot_kw={"projection": "3d"},
        layout="constrained",
    )
    for row, (title, values) in zip(axes, runtime.progress(maps.items(), "maps", len(maps), "map"), strict=True):
        halves = dict(zip(HEMISPHERES, zip(surface[0], on_meshes(values, surface), strict=True), strict=True))
        top = float(np.quantile(values, 0.98)) or 1.0
        for axis, (hemisphere, view) in zip(row, columns, strict=True):
            mesh, own = halves[hemisphere]
            plot_surf_stat_map(
                mesh,
                own,
                hemi=hemisphere,
                view=view,
                axes=axis,
                figure=figure,
                cmap="viridis",
                vmin=0,
                vmax=top,
                colorbar=axis is row[-1],
                title=f"{hemisphere}, {view}",
            )
        row[0].text2D(0, 1.15, title, transform=row[0].transAxes)
    _save(figure, path)


def slices(path: Path, maps: Mapping[str, np.ndarray], mask) -> None:
    """Each map (V,) as a row of axial slices, into a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from nilearn.plotting import plot_stat_map

    figure, axes = plt.subplots(len(maps), 1, figsize=(12, 2.4 * len(maps)), squeeze=False)
    for axis, (title, values) in zip(axes[:, 0], maps.items(), strict=True):
        plot_stat_map(
            volume_of(values, mask),
            bg_img=None,
            display_mode="z",
            cut_coords=SLICES,
            axes=axis,
            title=title,
            cmap="viridis",
            black_bg=False,
            vmin=0,
        )
    _save(figure, path)


def scatter(path: Path, maps: Mapping[str, np.ndarray], places: np.ndarray | None, rois: Mapping[str, np.ndarray]) -> None:
    """Each map (V,) over the places (V, 2) of a flat sheet.

    Without places, every voxel is a dot in the column of each of its regions.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(maps), 1, figsize=(9, 2.9 * len(maps)), squeeze=False, layout="constrained")
    for axis, (title, values) in zip(axes[:, 0], maps.items(), strict=True):
        if places is not None:
            dots = axis.scatter(*places.T, c=values, s=5, vmin=0, vmax=np.quantile(values, 0.98) or 1)
            figure.colorbar(dots, ax=axis)
            axis.set(aspect="equal", xticks=[], yticks=[])
            for name, mask in rois.items():
                if not mask.all():
                    axis.annotate(
                        name,
                        places[mask].mean(0),
                        ha="center",
                        color="white",
                        fontsize=8,
                        bbox={"facecolor": "black", "alpha": 0.5, "edgecolor": "none", "pad": 1},
                    )
        else:
            shown = {name: mask for name, mask in rois.items() if mask.any()} or {"all": np.ones(len(values), bool)}
            for at, (name, mask) in enumerate(shown.items()):
                spread = np.random.default_rng(0).uniform(-0.3, 0.3, mask.sum())
                axis.plot(at + spread, values[mask], ".", markersize=2)
            axis.set_xticks(range(len(shown)), list(shown))
        axis.set_title(title)
    _save(figure, path)


def _save(figure, path: Path) -> None:
    import matplotlib.pyplot as plt

    with atomic_path(path) as part:
        figure.savefig(part, format="png", dpi=110)
    plt.close(figure)
