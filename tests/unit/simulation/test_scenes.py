"""Cut-outs, scenes and folders of the user's own pictures: pools apart by content, the same seed the same pixels."""

import dataclasses
import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mindtuner.config import KNOB_LIMITS
from mindtuner.errors import UserError
from mindtuner.simulation import scenes as scenes_module
from mindtuner.simulation.cutouts import POOLS, drawn_cutouts, folder_cutouts, with_article
from mindtuner.simulation.drawing import COLOURS, KINDS, draw
from mindtuner.simulation.scenes import (
    _PLACES,
    FEWEST_PICTURES,
    PLACES,
    SIDE,
    FolderScenes,
    ReservedPictures,
    SceneStream,
    compose,
    generator_scenes,
    paint_place,
    render,
)


@pytest.fixture(scope="module")
def drawn():
    """All three pools as the package uses them."""
    return {pool: drawn_cutouts(pool) for pool in POOLS}


def blob(path, seed, words="a thing", size=40):
    """A transparent PNG with a caption beside it; ``words`` None writes none."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 255, (size + 8, size + 8, 4)).astype(np.uint8)
    pixels[..., 3] = 0
    pixels[4:-4, 4:-4, 3] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels, "RGBA").save(path)
    if words is not None:
        path.with_suffix(".txt").write_text(words)
    return pixels[4:-4, 4:-4]


@pytest.fixture(scope="module")
def stamps(tmp_path_factory):
    """A nested folder of forty captioned cut-outs."""
    root = tmp_path_factory.mktemp("stamps")
    for k in range(40):
        blob(root / ("animals" if k % 2 else "food/fruit") / f"{k}.png", k, f"A thing{k}.\nOtra cosa.\n")
    return root


def pixel_hashes(stream, count):
    return {hashlib.sha256(stream(k).pixels.tobytes()).digest() for k in range(count)}


def test_drawn_pools_share_no_picture(drawn):
    digests = {pool: [cutout.digest for cutout in drawn[pool]] for pool in POOLS}
    for pool in POOLS:
        assert len(set(digests[pool])) == len(digests[pool])  # no drawing twice within a pool either
        for other in set(POOLS) - {pool}:
            assert not set(digests[pool]) & set(digests[other])


def test_a_digest_tells_one_changed_pixel(drawn):
    cutout = drawn["test"][0]
    changed = cutout.image.copy()
    r, g, b, a = changed.getpixel((5, 5))
    changed.putpixel((5, 5), (r ^ 1, g, b, a))
    assert dataclasses.replace(cutout, image=changed).digest != cutout.digest
    assert dataclasses.replace(cutout, image=cutout.image.copy(), phrase="other").digest == cutout.digest


def test_every_pool_draws_every_kind_in_its_colours(drawn):
    for pool in POOLS:
        assert {cutout.name for cutout in drawn[pool]} == set(KINDS)
        for cutout in drawn[pool]:
            group, colours, _ = KINDS[cutout.name]
            assert cutout.group == group and cutout.colour in colours
            assert cutout.phrase == with_article(f"{cutout.colour} {cutout.name}")


@pytest.fixture(scope="module")
def reserved_stream():
    return generator_scenes()


def test_generator_scenes_are_no_simulated_scenes(drawn, reserved_stream):
    reserved = pixel_hashes(reserved_stream, 150)
    assert len(reserved) == 150
    for pool in ("train", "test"):
        for seed in (0, 1):
            assert not reserved & pixel_hashes(SceneStream(drawn[pool], pool, seed), 75)


def test_scenes_of_the_reserved_stream_come_from_the_generator_pool(drawn, reserved_stream):
    expected = {cutout.digest for cutout in drawn["generator"]}
    assert {cutout.digest for cutout in reserved_stream.cutouts} == expected


def test_no_simulation_may_take_the_reserved_seed():
    assert KNOB_LIMITS["seed"][1] < scenes_module.RESERVED_SEED


def test_folder_pools_share_no_picture_and_no_scene(stamps):
    pools = {pool: {cutout.digest for cutout in folder_cutouts(stamps, pool)} for pool in POOLS}
    assert not pools["generator"] & (pools["train"] | pools["test"])
    assert len(pools["generator"] | pools["train"]) == 40 and min(map(len, pools.values())) >= 4
    reserved = pixel_hashes(generator_scenes(stamps), 60)
    for pool in ("train", "test"):
        assert not reserved & pixel_hashes(SceneStream(folder_cutouts(stamps, pool), pool, 0), 60)


def test_the_same_picture_under_two_names_is_used_once(tmp_path):
    for name in ("a", "b/c"):
        blob(tmp_path / f"{name}.png", 3, "a thing")
    found = [len(_or_nothing(tmp_path, pool)) for pool in ("train", "generator")]
    assert sorted(found) == [0, 1]


def _or_nothing(folder, pool):
    try:
        return folder_cutouts(folder, pool)
    except UserError:
        return []


def test_folder_cutouts_read_nested_files_and_the_first_line(stamps):
    cutouts = folder_cutouts(stamps, "train") + folder_cutouts(stamps, "generator")
    by_name = {cutout.name: cutout for cutout in cutouts}
    assert set(by_name) == {f"thing{k}" for k in range(40)}
    assert by_name["thing3"].phrase == "a thing3" and by_name["thing3"].group == "animals"
    assert by_name["thing4"].group == "food" and by_name["thing4"].colour == ""


def test_folder_cutouts_are_cropped_to_what_is_opaque(tmp_path):
    inside = blob(tmp_path / "a.png", 0, "x")
    image = (_or_nothing(tmp_path, "train") + _or_nothing(tmp_path, "generator"))[0].image
    np.testing.assert_array_equal(np.asarray(image), inside)


def test_a_large_cutout_is_reduced(tmp_path):
    blob(tmp_path / "a.png", 0, "x", size=640)
    image = (_or_nothing(tmp_path, "train") + _or_nothing(tmp_path, "generator"))[0].image
    assert image.size == (320, 320)


def test_files_that_are_no_cutouts_are_passed_over(tmp_path):
    blob(tmp_path / "no_caption.png", 1, None)
    blob(tmp_path / "empty_caption.png", 2, "\n\n")
    blob(tmp_path / "small.png", 3, "tiny", size=20)
    Image.new("RGB", (50, 50), "red").save(tmp_path / "opaque.png")
    (tmp_path / "opaque.txt").write_text("a red square")
    Image.new("RGBA", (50, 50), (0, 0, 0, 0)).save(tmp_path / "nothing.png")
    (tmp_path / "nothing.txt").write_text("nothing at all")
    for pool in POOLS:
        with pytest.raises(UserError, match="no usable cut-out"):
            folder_cutouts(tmp_path, pool)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_a_broken_png_names_the_file(tmp_path_factory, data):
    root = tmp_path_factory.mktemp("broken")
    blob(root / "good.png", 0)
    whole = (root / "good.png").read_bytes()
    (root / "bad.png").write_bytes(whole[: data.draw(st.integers(0, len(whole) // 2))])
    (root / "bad.txt").write_text("broken")
    with pytest.raises(UserError, match=r"bad\.png: cannot be read") as error:
        folder_cutouts(root, "train")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: p.write_text("a file")])
def test_no_folder_and_an_empty_one_are_refused(tmp_path, make):
    make(tmp_path / "stamps")
    with pytest.raises(UserError, match="stamps: (not a folder|no usable cut-out); expected transparent PNGs"):
        folder_cutouts(tmp_path / "stamps", "train")


@pytest.mark.parametrize(
    "words, phrase", [("apple", "an apple"), ("red car", "a red car"), ("orange fish", "an orange fish")]
)
def test_article(words, phrase):
    assert with_article(words) == phrase


def test_drawing_depends_on_kind_colour_and_seed_alone():
    for kind, (_, colours, _) in KINDS.items():
        one, again, other = draw(kind, colours[0], 5), draw(kind, colours[0], 5), draw(kind, colours[0], 6)
        assert one.mode == "RGBA" and one.tobytes() == again.tobytes()
        assert one.tobytes() != other.tobytes()
        assert one.getchannel("A").getbbox() == (0, 0, *one.size)  # cropped to what is drawn


def test_drawings_have_the_colour_that_their_caption_says(drawn):
    """The median opaque pixel of a ball is nearest to the named colour, its light apart."""
    names = KINDS["ball"][1]
    for cutout in (c for c in drawn["test"] if c.name in ("balloon", "heart")):
        pixels = np.asarray(cutout.image, float)
        median = np.median(pixels[pixels[..., 3] > 200][:, :3], 0)
        distance = {
            name: 1 - median @ COLOURS[name] / np.linalg.norm(median) / np.linalg.norm(COLOURS[name]) for name in names
        }
        assert min(distance, key=distance.get) == cutout.colour


@pytest.mark.parametrize("place", PLACES)
def test_a_place_is_painted_within_range_and_never_twice_alike(place):
    one, other = (paint_place(place, np.random.default_rng(seed)) for seed in (0, 1))
    assert one.shape == (SIDE, SIDE, 3) and one.min() >= 0 and one.max() <= 255
    assert np.abs(one - other).mean() > 1
    np.testing.assert_array_equal(one, paint_place(place, np.random.default_rng(0)))


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_a_scene_is_what_its_labels_and_captions_say(seed):
    pool = SMALL
    scene, again = compose(pool, seed), compose(pool, seed)
    np.testing.assert_array_equal(scene.pixels, again.pixels)
    assert scene.labels == again.labels and scene.captions == again.captions
    assert scene.pixels.shape == (3, SIDE, SIDE) and scene.pixels.dtype == np.uint8
    assert scene.labels.place in PLACES
    objects = scene.labels.objects
    assert 1 <= len(objects) <= 3 and len({o.name for o in objects}) == len(objects)
    for o in objects:
        assert 0 <= o.x <= 1 and 0 <= o.y <= 1 and 0 < o.size <= 0.75
    assert len(set(scene.captions)) == len(scene.captions) >= 1
    for caption in scene.captions:
        assert _PLACES[scene.labels.place][0] in caption and objects[0].name in caption
    assert all(o.name in scene.captions[0] for o in objects)


SMALL = drawn_cutouts("test", 1)


def test_an_object_stands_where_its_label_says():
    """Against the same scene composed of invisible cut-outs, pixels change around the labelled centres only."""
    nothing = [dataclasses.replace(c, image=Image.new("RGBA", c.image.size, (0, 0, 0, 0))) for c in SMALL]
    for seed in range(20):
        scene, bare = compose(SMALL, seed), compose(nothing, seed)
        changed = (scene.pixels != bare.pixels).any(0)
        allowed = np.zeros_like(changed)
        y, x = (np.mgrid[:SIDE, :SIDE] + 0.5) / SIDE
        for o in scene.labels.objects:  # the longer side is at most .74 of the picture
            assert changed[(abs(x - o.x) < o.size / 4) & (abs(y - o.y) < o.size / 4)].any()
            allowed |= (abs(x - o.x) < 0.38) & (abs(y - o.y) < o.size / 2 + 0.02)
        assert changed.any() and not changed[~allowed].any()


def test_streams_of_another_name_or_seed_are_other_scenes():
    streams = [SceneStream(SMALL, "train", 0), SceneStream(SMALL, "test", 0), SceneStream(SMALL, "train", 1)]
    hashes = [pixel_hashes(stream, 10) for stream in streams]
    assert len(set.union(*hashes)) == 30


def test_rendering_on_threads_keeps_the_order():
    stream = SceneStream(SMALL, "train", 0)
    indices = [*range(70, 0, -1)]
    for index, scene in zip(indices, render(stream, indices, workers=3), strict=True):
        if index % 23 == 0:
            np.testing.assert_array_equal(scene.pixels, stream(index).pixels)


def photographs(root, count, captions="a red ball on the table\n\nsomething round"):
    root.mkdir(exist_ok=True)
    for k in range(count):
        pixels = np.random.default_rng(k).integers(0, 255, (60, 90, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{k}.{'jpg' if k % 2 else 'png'}")
        (root / f"{k}.txt").write_text(captions)
    return root


def test_whole_images_become_scenes(tmp_path):
    root = photographs(tmp_path / "photos", 6)
    stream = FolderScenes(root, 6, 0)
    seen = set()
    for k in range(6):
        scene = stream(k)
        seen.add(scene.pixels.tobytes())
        assert scene.pixels.shape == (3, SIDE, SIDE) and scene.pixels.dtype == np.uint8
        assert scene.captions == ("a red ball on the table", "something round")
        assert [(o.name, o.colour) for o in scene.labels.objects][:2] == [("ball", "red"), ("table", "")]
    assert len(seen) == 6
    assert [p.name for p in FolderScenes(root, 4, 1).paths] == [p.name for p in FolderScenes(root, 4, 1).paths]
    assert [p.name for p in FolderScenes(root, 4, 1).paths] != [p.name for p in FolderScenes(root, 4, 2).paths]


def test_a_whole_image_is_cropped_in_the_middle(tmp_path):
    pixels = np.zeros((SIDE, 2 * SIDE, 3), np.uint8)
    pixels[:, SIDE // 2 : -SIDE // 2] = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3))
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    (tmp_path / "wide.txt").write_text("stripes")
    np.testing.assert_array_equal(
        FolderScenes(tmp_path, 1, 0)(0).pixels.transpose(1, 2, 0), pixels[:, SIDE // 2 : -SIDE // 2]
    )


def test_too_few_images_are_refused_and_copies_count_once(tmp_path):
    root = photographs(tmp_path / "photos", 3)
    (root / "copy.png").write_bytes((root / "0.png").read_bytes())
    (root / "copy.txt").write_text("the first once more")
    (root / "alone.png").write_bytes((root / "2.png").read_bytes())
    with pytest.raises(UserError, match="photos: holds 3 different images with a .txt caption; expected at least 4"):
        FolderScenes(root, 4, 0)
    assert len(FolderScenes(root, 3, 0).paths) == 3


def test_a_whole_image_that_is_none_is_refused_at_once(tmp_path):
    root = photographs(tmp_path / "photos", 3)
    (root / "1.jpg").write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"1\.jpg: cannot be read"):
        FolderScenes(root, 3, 0)


def test_a_whole_image_that_breaks_off_is_refused_when_shown(tmp_path):
    root = photographs(tmp_path / "photos", 1)
    data = (root / "0.png").read_bytes()
    (root / "0.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"0\.png: cannot be read"):
        FolderScenes(root, 1, 0)(0)


def test_an_empty_caption_is_refused_at_once(tmp_path):
    root = photographs(tmp_path / "photos", 2, captions=" \n\n")
    with pytest.raises(UserError, match=r"\.txt: holds no caption"):
        FolderScenes(root, 2, 0)


def test_a_folder_of_whole_images_that_is_none(tmp_path):
    with pytest.raises(UserError, match="nowhere: not a folder"):
        FolderScenes(tmp_path / "nowhere", 1, 0)


def test_pictures_for_generators_are_a_third_by_content_and_taken_last(tmp_path):
    """Of scenes that fit into the other two thirds none is a generator's, by the pixels that both show."""
    root = photographs(tmp_path / "photos", 130)
    reserved = ReservedPictures(root)
    known = {path.read_bytes() for path in reserved.paths}
    assert known == {p.read_bytes() for p in root.iterdir() if p.suffix != ".txt" and third(p)}
    shown = {reserved(k).pixels.tobytes() for k in range(len(known))}
    assert len(shown) == len(known)
    rest = FolderScenes(root, 130 - len(known), 0)
    assert not shown & {rest(k).pixels.tobytes() for k in range(len(rest.paths))}
    every = FolderScenes(root, 130, 0)
    assert every.paths[: len(rest.paths)] == rest.paths and len(set(every.paths)) == 130


def third(path):
    return int(hashlib.sha256(path.read_bytes()).hexdigest()[:8], 16) % 3 == 0


def test_a_picture_that_comes_again_is_shown_in_part(tmp_path):
    """Of a ramp from left to right and from top to bottom a part is a ramp between two of its values, less steep."""
    root, ramp = tmp_path / "photos", np.linspace(0, 250, SIDE)
    photographs(root, 130)
    reserved = ReservedPictures(root)
    count, path = len(reserved.paths), reserved.paths[0]
    pixels = np.stack(
        [np.broadcast_to(ramp, (SIDE, SIDE)), np.broadcast_to(ramp[:, None], (SIDE, SIDE)), np.zeros((SIDE, SIDE))]
    )
    Image.fromarray(pixels.transpose(1, 2, 0).astype(np.uint8)).save(path, format="PNG")
    for turn in (1, 2, 3):
        part = reserved(turn * count).pixels.astype(float)
        across, down = np.ptp(part[0].mean(0)), np.ptp(part[1].mean(1))
        assert across == pytest.approx(down, abs=3) and 0.75 * 250 - 4 <= across <= 250
        np.testing.assert_allclose(np.diff(part[0].mean(0))[5:-5].mean() * (SIDE - 1), across, rtol=0.05)
    again = [reserved(count).pixels, ReservedPictures.__call__(reserved, count).pixels]
    assert np.array_equal(*again) and not np.array_equal(reserved(count).pixels, reserved(2 * count).pixels)
    assert np.array_equal(reserved(0).pixels, FolderScenes.__call__(reserved, 0).pixels)


def test_too_few_pictures_for_a_generator_are_refused(tmp_path):
    root = photographs(tmp_path / "photos", 9)
    with pytest.raises(UserError, match=rf"photos: holds 9 different images .* expected at least {FEWEST_PICTURES} of these"):
        ReservedPictures(root)
    with pytest.raises(UserError, match="nowhere: not a folder"):
        ReservedPictures(tmp_path / "nowhere")
