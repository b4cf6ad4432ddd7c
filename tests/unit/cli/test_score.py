"""``mindtuner score``: two folders of pictures in, a table out; bad pictures are named."""

import numpy as np
import pytest
from commands import refused
from PIL import Image

from mindtuner.cli import main
from mindtuner.evaluation.scores.pictures import pixcorr, ssim
from mindtuner.files import read_json


@pytest.fixture
def folders(tmp_path):
    rng = np.random.default_rng(0)
    seen = rng.integers(0, 256, (4, 24, 24, 3), dtype=np.uint8)
    painted = (seen // 2 + rng.integers(0, 128, seen.shape)).astype(np.uint8)
    for name, pictures in (("seen", seen), ("painted", painted)):
        (tmp_path / name).mkdir()
        for k, picture in enumerate(pictures):
            Image.fromarray(picture).save(tmp_path / name / f"{k}.png")
    return tmp_path / "seen", tmp_path / "painted", seen.transpose(0, 3, 1, 2), painted.transpose(0, 3, 1, 2)


def score(*words):
    return main(["score", *map(str, words)])


def test_folders_are_scored_beside_chance(folders, tmp_path, capsys):
    seen, painted, true, made = folders
    assert score(seen, painted, "--out", tmp_path / "scores.json") == 0
    said, found = capsys.readouterr().out, read_json(tmp_path / "scores.json")
    assert list(found["scores"]) == ["pixcorr", "ssim", "two_way"] and "not scored: alexnet2" in said and "Two-way" in said
    assert "not scored: objects, objects_f1, objects_clip, colours, places (needs captions of training images)" in said
    for name, function in (("pixcorr", pixcorr), ("ssim", ssim)):
        own = found["scores"][name]
        assert list(own["pictures"].values()) == pytest.approx(function(made, true).tolist(), abs=1e-5)
        assert own["mean"] == pytest.approx(function(made, true).mean(), abs=1e-5)
        assert own["ci95"][0] <= own["mean"] <= own["ci95"][1] and own["chance"] < own["mean"]
    assert found["setting"]["networks"]["efficientnet_lite2"]["network"] == "EfficientNet-lite2"
    assert score(seen, painted, "--scores", "ssim", "--as-published", "--out", tmp_path / "published.json") == 0
    published = read_json(tmp_path / "published.json")
    assert list(published["scores"]) == ["ssim"] and published["setting"]["pixel_side"] == 425
    assert published["scores"]["ssim"]["mean"] != pytest.approx(found["scores"]["ssim"]["mean"], abs=0.01)


def test_reconstructions_as_the_kamitani_lab_calls_and_stores_them(folders, tmp_path, capsys):
    """recon_image-NAME.tiff pairs with NAME of any ending; the numbers are those of the same pixels as PNG."""
    seen, painted, _, _ = folders
    assert score(seen, painted, "--scores", "pixcorr,two_way", "--out", tmp_path / "png.json") == 0
    (tmp_path / "tiff").mkdir()
    for path in painted.iterdir():
        Image.open(path).save(tmp_path / "tiff" / f"recon_image-{path.stem}.tiff")
    for path in list(seen.iterdir()):
        Image.open(path).save(seen / f"{path.stem}.BMP")
        path.unlink()
    assert score(seen, tmp_path / "tiff", "--scores", "pixcorr,two_way", "--out", tmp_path / "tiff.json") == 0
    assert read_json(tmp_path / "tiff.json")["scores"] == read_json(tmp_path / "png.json")["scores"]
    capsys.readouterr()
    Image.new("RGB", (24, 24)).save(tmp_path / "tiff" / "2.png")
    refused(capsys, ["score", seen, tmp_path / "tiff"], "is the second picture named 2")


def test_pictures_are_scored_upright(folders, tmp_path):
    seen, painted, _, _ = folders
    assert score(seen, painted, "--scores", "pixcorr", "--out", tmp_path / "before.json") == 0
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it clockwise to see it
    Image.open(seen / "1.png").transpose(Image.Transpose.ROTATE_90).save(seen / "1.png", exif=exif)
    assert score(seen, painted, "--scores", "pixcorr", "--out", tmp_path / "after.json") == 0
    assert read_json(tmp_path / "after.json")["scores"] == read_json(tmp_path / "before.json")["scores"]


def test_flat_pictures_are_named_and_nan_is_no_number_of_a_table(folders, tmp_path, capsys):
    seen, painted, _, _ = folders
    for path in (seen / "1.png", painted / "2.png"):
        Image.new("RGB", (24, 24), (9, 9, 9)).save(path)
    assert score(seen, painted, "--scores", "pixcorr", "--out", tmp_path / "scores.json") == 0
    said, found = capsys.readouterr().out, read_json(tmp_path / "scores.json")
    assert "leaves out 1 seen pictures of one value everywhere: 1" in said
    assert "counts 0 for 1 painted pictures of one value everywhere: 2" in said
    values = found["scores"]["pixcorr"]["pictures"]
    assert values["1"] is None and values["2"] == 0 and found["flat"] == {"seen": ["1"], "painted": ["2"]}
    assert found["scores"]["pixcorr"]["mean"] == pytest.approx((values["0"] + values["2"] + values["3"]) / 3, abs=1e-5)


def test_bad_folders_and_scores_are_refused(folders, tmp_path, capsys):
    seen, painted, _, _ = folders

    def bad(*expected, words=()):
        refused(capsys, ["score", seen, painted, *words], *expected)

    bad("--scores: objects cannot be had of two folders", "needs captions", words=("--scores", "ssim,objects"))
    bad("--scores: objects_clip cannot be had of two folders", "needs captions", words=("--scores", "objects_clip"))
    bad("--scores: lpips is an unknown reconstruction score", "pixcorr, ssim", words=("--scores", "ssim,lpips"))
    bad("--scores: clip cannot be had (needs", words=("--scores", "clip"))
    bad("nowhere: is no folder", words=("--networks", tmp_path / "nowhere"))
    before = (painted / "3.png").read_bytes()
    for mode, kind in (("L", "is grey"), ("RGBA", "is with transparency"), ("P", "is P")):
        Image.open(seen / "3.png").convert(mode).save(painted / "3.png")
        bad(str(painted / "3.png"), kind, "expected three channels, RGB")
    Image.new("RGB", (23, 24)).save(painted / "3.png")
    bad(str(painted / "3.png"), "23 x 24 pixels; expected 24 x 24")
    (painted / "3.png").write_bytes(before[:200])
    bad(str(painted / "3.png"), "cannot be read")
    (painted / "3.png").unlink()
    bad(f"{painted}: no picture 3 (4 are in {seen}, 3 in {painted})")
    (painted / "3.png").write_bytes(before)
    (painted / "more.jpg").write_bytes(before)
    bad(f"{seen}: no picture more (4 are in")
    (painted / "more.jpg").rename(painted / "3.jpg")
    bad("is the second picture named 3")
    refused(capsys, ["score", seen, tmp_path / "nowhere"], "nowhere: is no folder")
    (tmp_path / "empty").mkdir()
    refused(capsys, ["score", tmp_path / "empty", painted], "empty: holds no picture")
