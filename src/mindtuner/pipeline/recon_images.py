"""Painted pictures as the Kamitani lab's evaluation reads them: ``recon_image-NAME.tiff``, NAME that of the stimulus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from mindtuner.data import Stimuli
from mindtuner.errors import UserError
from mindtuner.formats.image_files import write_reconstruction

RECON_IMAGES = "recon_images"


def write_recon_images(folder: Path, stimuli: Stimuli, pictures: Mapping[int, Path]) -> list[Path]:
    """Write pictures as ``recon_image-NAME.tiff``, pixel by pixel.

    Parameters
    ----------
    folder : Path
        Folder to write into.
    stimuli : Stimuli
        Whose file names, without folder and ending, are the names. Stimuli without file names have their numbers.
    pictures : dict of int to Path
        Id of each stimulus -> its painted picture.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    UserError
        Where two stimuli would have one name, or a file cannot be written.
    """
    names = {image: stimuli.names[image] if stimuli.named else f"{image:06d}" for image in pictures}
    stems = Counter(PurePosixPath(name).stem for name in names.values())
    for stem, count in stems.items():
        if count > 1:
            raise UserError(
                f"{folder}: {count} stimuli are called {stem}; expected file names that differ without folder and ending"
            )
    return [write_reconstruction(folder, names[image], path) for image, path in pictures.items()]
