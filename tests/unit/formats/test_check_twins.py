"""``check`` of test pictures that are training pictures: the same pixels, stored again, scaled, or shown in no trial."""

import shutil

import h5py
import numpy as np
import pytest
from lab_files import NAMES, make_lab, write_table
from nsd_release_files import make_nsd
from PIL import Image

from mindtuner.cli import main
from mindtuner.formats import check


@pytest.fixture
def lab(tmp_path):
    """``d.png`` is the test image, five others are for training."""
    return make_lab(tmp_path / "lab")


def of_images(root, **options):
    """Severity and message of what is said of twins."""
    said = ("same pixels", "look like a training image")
    return [
        (item.severity, item.message) for item in check(root, **options).items if any(text in item.message for text in said)
    ]


def show(lab, splits):
    """Each image in four trials, of the split that ``splits`` says, or in none."""
    shown = [name for name in NAMES if name in splits]
    lab.stimulus = [shown[k % len(shown)] for k in range(len(lab.stimulus))]
    lab.split = [splits[name] for name in lab.stimulus]
    write_table(lab.root, lab)


def test_sound_pictures_are_no_twins(lab):
    assert of_images(lab.root) == []


def test_a_test_picture_in_training_is_an_error_unless_allowed(lab, capsys):
    shutil.copy(lab.root / "stimuli/d.png", lab.root / "stimuli/c.png")
    [(severity, message)] = of_images(lab.root)
    assert severity == "error" and message.startswith("1 test images have the same pixels as a training image: d.png = c.png")
    assert main(["check", str(lab.root)]) == 2
    assert "1 error found; expected none" in capsys.readouterr().err
    [(severity, allowed)] = of_images(lab.root, allow_twins=True)
    assert severity == "warning" and allowed == message
    assert main(["check", str(lab.root), "--allow-twins"]) == 0


@pytest.mark.parametrize("unused", ["a/one.png", "e.png"])  # sorted before the others and after them
def test_an_unused_copy_hides_no_leak(lab, unused):
    for name in ("c.png", unused):
        shutil.copy(lab.root / "stimuli/d.png", lab.root / "stimuli" / name)
    show(lab, {"b.jpg": "train", "c.png": "train", "d.png": "test"})
    [(severity, message)] = of_images(lab.root)
    assert severity == "error" and message.startswith(
        "1 test images have the same pixels as a training image: d.png = c.png;"
    )


def test_the_test_images_are_counted_and_named_first(lab):
    """Many training copies of two test images are two leaks, whichever is sorted first."""
    for name in ("a/two.png", "c.png", "d.png"):
        shutil.copy(lab.root / "stimuli/a/one.png", lab.root / "stimuli" / name)
    (lab.root / "stimuli/e.jpeg").unlink()
    show(lab, {"a/one.png": "test", "a/two.png": "train", "b.jpg": "train", "c.png": "train", "d.png": "test"})
    [(severity, message)] = of_images(lab.root)
    assert severity == "error"
    assert message.startswith(
        "2 test images have the same pixels as a training image: a/one.png = a/two.png, d.png = a/two.png;"
    )


def test_twins_of_one_split_are_a_warning(lab):
    shutil.copy(lab.root / "stimuli/a/two.png", lab.root / "stimuli/c.png")
    assert of_images(lab.root) == [("warning", "1 images have the same pixels as another: c.png = a/two.png")]
    shutil.copy(lab.root / "stimuli/d.png", lab.root / "stimuli/f.png")  # of the test image, which no trial shows
    assert ("warning", "2 images have the same pixels as another: c.png = a/two.png, f.png = d.png") in of_images(lab.root)


def test_of_the_release_too(tmp_path):
    truth = make_nsd(tmp_path)
    with h5py.File(tmp_path / "coco_images_224_float16.hdf5", "r+") as file:
        file["images"][4] = file["images"][3]
    assert truth.shared[4] and not truth.shared[3]
    [(severity, message)] = of_images(tmp_path)
    assert severity == "error"
    assert message.startswith("1 test images have the same pixels as a training image: image 4 = image 3;")


def stored_again(picture, folder):
    picture.save(folder / "e.jpeg", quality=60)


def halved(picture, folder):
    picture.resize((112, 112), Image.Resampling.BICUBIC).save(folder / "e.jpeg", quality=90)


def brightened(picture, folder):
    Image.fromarray((np.asarray(picture).astype(float) * 0.8 + 20).astype(np.uint8)).save(folder / "e.jpeg", quality=90)


@pytest.mark.parametrize("change", [stored_again, halved, brightened])
def test_a_picture_stored_again_or_scaled_is_a_warning(lab, change):
    rng = np.random.default_rng(3)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    picture = coarse.resize((224, 224), Image.Resampling.BICUBIC)
    picture.save(lab.root / "stimuli/d.png")
    change(picture, lab.root / "stimuli")
    [(severity, message)] = of_images(lab.root)
    assert severity == "warning" and message.startswith("1 test images look like a training image: d.png ~ e.jpeg;")
    show(lab, {"b.jpg": "train", "c.png": "train", "d.png": "test"})
    assert of_images(lab.root) == []  # no trial shows the copy
