"""Pictures of maps over voxels: slices of the volume where a mask says where voxels lie, else a flat scatter."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mindtuner.errors import UserError
from mindtuner.files import atomic_path
from mindtuner.foreign import package

HOW = "'mindtuner[maps]'"
SLICES = 7


def check_packages(volume: bool) -> None:
    """Raises UserError where what draws is not installed."""
    package("matplotlib", HOW)
    if volume:
        package("nilearn", HOW)


def read_mask(path: Path, voxels: int):
    """A NIfTI image that is not 0 at the subject's voxels. Raises UserError where it is none, or has another number."""
    import nibabel

    try:
        image = nibabel.load(path)
        inside = np.asarray(image.dataobj) != 0
    except (OSError, ValueError, EOFError, nibabel.filebasedimages.ImageFileError) as error:
        raise UserError(f"{path}: cannot be read ({error}); expected a NIfTI mask") from error
    if inside.ndim != 3 or inside.sum() != voxels:
        raise UserError(f"{path}: has shape {inside.shape} and {int(inside.sum())} voxels; expected three axes and {voxels}, "
                        "the subject's")
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


def slices(path: Path, maps: Mapping[str, np.ndarray], mask) -> None:
    """Each map (V,) as a row of axial slices, into a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from nilearn.plotting import plot_stat_map

    figure, axes = plt.subplots(len(maps), 1, figsize=(12, 2.4 * len(maps)), squeeze=False)
    for axis, (title, values) in zip(axes[:, 0], maps.items(), strict=True):
        plot_stat_map(volume_of(values, mask), bg_img=None, display_mode="z", cut_coords=SLICES, axes=axis, title=title,
                      cmap="viridis", black_bg=False, vmin=0)
    _save(figure, path)


def scatter(path: Path, maps: Mapping[str, np.ndarray], places: np.ndarray | None, rois: Mapping[str, np.ndarray]) -> None:
    """Each map (V,) over the places (V, 2) of a flat sheet; without places, every voxel as a dot in the column of each of its
    regions."""
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
                    axis.annotate(name, places[mask].mean(0), ha="center", color="white", fontsize=8,
                                  bbox={"facecolor": "black", "alpha": 0.5, "edgecolor": "none", "pad": 1})
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
