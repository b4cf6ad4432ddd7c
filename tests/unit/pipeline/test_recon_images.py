"""Pictures for the Kamitani lab's evaluation: names of stimuli, and pixels as they were painted."""

import numpy as np
import pytest
from PIL import Image

from mindtuner.data import Stimuli
from mindtuner.errors import UserError
from mindtuner.pipeline.recon_images import write_recon_images


def stimuli(*names):
    grey = np.full((len(names), 3, 224, 224), 0.5, np.float16)
    return Stimuli(grey, [()] * len(names), np.zeros(len(names), bool), "here", None if None in names else names)


@pytest.fixture
def painted(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (3, 7, 9, 3), dtype=np.uint8)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    return {number: tmp_path / f"{number}.png" for number in range(3)}, pictures


@pytest.mark.parametrize(
    "names, expected",
    [
        (("n01_2.JPEG", "animals/cat.v2.png", "b.jpg"), ("n01_2", "cat.v2", "b")),
        ((None, None, None), ("000000", "000001", "000002")),
    ],
)
def test_a_file_for_each_picture_by_its_name(painted, tmp_path, names, expected):
    files, pictures = painted
    written = write_recon_images(tmp_path / "out", stimuli(*names), files)
    assert [path.name for path in written] == [f"recon_image-{name}.tiff" for name in expected]
    for path, picture in zip(written, pictures, strict=True):
        with Image.open(path) as image:
            assert image.format == "TIFF" and image.mode == "RGB"
            np.testing.assert_array_equal(np.asarray(image), picture)


def test_two_pictures_of_one_name_are_refused_before_any_is_written(painted, tmp_path):
    with pytest.raises(UserError, match="out: 2 stimuli are called cat; expected file names that differ"):
        write_recon_images(tmp_path / "out", stimuli("a/cat.png", "dog.png", "b/cat.jpg"), painted[0])
    assert not (tmp_path / "out").exists()
