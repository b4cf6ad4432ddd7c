"""Captioned scenes: one to three cut-outs on a textured place, with the labels that simulated brains respond to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mindtuner.errors import UserError
from mindtuner.formats.image_files import ENDINGS, read_picture
from mindtuner.inputs import file_hash, open_picture
from mindtuner.runtime import derive_seed, progress
from mindtuner.simulation.cutouts import Cutout, drawn_cutouts, folder_cutouts
from mindtuner.simulation.labels import PlacedObject, SceneLabels, content_labels

SIDE = 224
CAPTIONS = 5  # the release keeps up to five captions per image, some of them empty
FEWEST_PICTURES = 30  # that a generator can be trained on
PARTS = (0.75, 1.0)  # of the side of a picture that are shown when it comes again

# place -> (words in a caption, horizon as share of height, sky top, sky low, ground near horizon, ground low,
#           texture of the sky, texture of the ground, how stretched the ground's texture is sideways)
_PLACES = {
    "beach": ("on the beach", 0.50, (96, 172, 226), (196, 226, 240), (238, 214, 156), (222, 188, 122), 10, 12, 1),
    "meadow": ("in the meadow", 0.48, (120, 184, 232), (206, 230, 242), (132, 186, 84), (82, 146, 58), 12, 20, 1),
    "forest": ("in the forest", 0.58, (40, 76, 52), (78, 118, 72), (86, 82, 46), (62, 54, 34), 34, 22, 1),
    "desert": ("in the desert", 0.55, (232, 176, 106), (250, 222, 164), (214, 150, 86), (186, 112, 60), 6, 16, 3),
    "snow": ("in the snow", 0.46, (150, 168, 192), (206, 216, 228), (240, 244, 250), (214, 226, 242), 8, 6, 2),
    "night": ("at night", 0.68, (14, 18, 52), (44, 44, 98), (34, 38, 58), (18, 22, 36), 6, 8, 1),
    "sea": ("in the sea", 0.0, (24, 110, 150), (24, 110, 150), (40, 140, 176), (8, 52, 98), 8, 20, 4),
    "room": ("in a room", 0.70, (226, 206, 180), (212, 188, 158), (150, 98, 62), (118, 72, 44), 5, 18, 7),
    "city": ("in the city", 0.66, (176, 188, 200), (206, 210, 214), (112, 114, 120), (84, 86, 92), 8, 14, 2),
}
PLACES = tuple(_PLACES)


@dataclass(frozen=True)
class Scene:
    """One stimulus: ``pixels`` uint8 (3, 224, 224), what it shows, and one or more captions."""

    pixels: np.ndarray
    labels: SceneLabels
    captions: tuple[str, ...]


def _noise_tiles(count: int = 12) -> np.ndarray:
    """Fractal noise (count, 2 * SIDE, 2 * SIDE), unit variance: textures are windows into these."""
    rng = np.random.default_rng(derive_seed(0, "textures"))
    side = 2 * SIDE
    tiles = np.zeros((count, side, side), np.float32)
    for tile in tiles:
        for octave, weight in ((7, 1.0), (14, 0.7), (28, 0.6), (56, 0.5), (112, 0.4)):
            grid = Image.fromarray(rng.normal(size=(octave, octave)).astype(np.float32))
            tile += weight * np.asarray(grid.resize((side, side), Image.Resampling.BICUBIC))
        tile /= tile.std()
    return tiles


_TILES = _noise_tiles()


def _texture(rng: np.random.Generator, height: int, stretch: int = 1) -> np.ndarray:
    tile = _TILES[rng.integers(len(_TILES))]
    y, x = rng.integers(0, SIDE, 2)
    window = tile[y : y + height, x : x + SIDE]
    if stretch == 1:
        return window
    narrow = window[:, : max(2, SIDE // stretch)]
    return np.repeat(narrow, stretch + 1, axis=1)[:, :SIDE]


def _fade(top, low, height: int) -> np.ndarray:
    ramp = np.linspace(0, 1, max(height, 1), dtype=np.float32)[:, None, None]
    return np.float32(top) * (1 - ramp) + np.float32(low) * ramp


def paint_place(place: str, rng: np.random.Generator) -> np.ndarray:
    """A background, float32 (224, 224, 3) in 0..255, with its own light, horizon and texture."""
    _, horizon, sky_top, sky_low, ground_top, ground_low, rough_sky, rough_ground, stretch = _PLACES[place]
    edge = int(SIDE * np.clip(horizon + (rng.normal(0, 0.04) if horizon else 0), 0, 1))
    canvas = np.empty((SIDE, SIDE, 3), np.float32)
    if edge:
        canvas[:edge] = _fade(sky_top, sky_low, edge) + rough_sky * _texture(rng, edge)[..., None]
    ground = _fade(ground_top, ground_low, SIDE - edge)
    canvas[edge:] = ground + rough_ground * _texture(rng, SIDE - edge, stretch)[..., None]
    if place == "city":
        _add_blocks(canvas, edge, rng)
    elif place == "forest":
        _add_trunks(canvas, rng)
    elif place == "night":
        stars = rng.integers(0, (max(edge, 1), SIDE), (60, 2))
        canvas[stars[:, 0], stars[:, 1]] = 235
    elif place == "beach":
        shore = max(edge - int(SIDE * 0.12), 0)
        canvas[shore:edge] = np.float32((52, 132, 186)) + 10 * _texture(rng, edge - shore, 4)[..., None]
    canvas += rng.normal(0, 9) + rng.normal(0, 4, 3).astype(np.float32)
    return canvas.clip(0, 255, out=canvas)


def _add_blocks(canvas, edge, rng):
    x = 0
    while x < SIDE:
        width, height = int(rng.integers(22, 46)), int(rng.integers(50, 120))
        shade = rng.uniform(90, 165) + rng.normal(0, 8, 3)
        canvas[max(edge - height, 0) : edge, x : x + width] = shade
        for wy in range(max(edge - height, 0) + 6, edge - 6, 14):
            for wx in range(x + 5, min(x + width - 5, SIDE), 10):
                canvas[wy : wy + 6, wx : wx + 4] = shade + rng.choice((-35, 45))
        x += width + 2


def _add_trunks(canvas, rng):
    for x in rng.integers(0, SIDE, int(rng.integers(5, 9))):
        width = int(rng.integers(6, 14))
        canvas[: int(SIDE * rng.uniform(0.55, 0.75)), x : x + width] *= rng.uniform(0.42, 0.66)


def _arrange(count: int, rng: np.random.Generator) -> list[tuple[float, float, float]]:
    """Centres and sizes that overlap little; the first object is the largest."""
    placed: list[tuple[float, float, float]] = []
    largest = {1: (0.50, 0.74), 2: (0.42, 0.56), 3: (0.36, 0.46)}[count]
    for number in range(count):
        low, high = largest if number == 0 else (0.28, 0.38)
        best, best_gap = None, -np.inf
        for _ in range(12):
            size = rng.uniform(low, high)
            x, y = rng.uniform(size / 2, 1 - size / 2), rng.uniform(max(size / 2, 0.3), 1 - size / 2)
            gap = min((np.hypot(x - px, y - py) - (size + other) / 2 for px, py, other in placed), default=1.0)
            if gap > best_gap:
                best, best_gap = (x, y, size), gap
        placed.append(best)
    return placed


def compose(cutouts: Sequence[Cutout], seed: int) -> Scene:
    """One scene, the same for the same cut-outs and seed.

    Parameters
    ----------
    cutouts : pool to draw from (one kind is never shown twice in a scene)
    seed : any non-negative integer
    """
    rng = np.random.default_rng(seed)
    place = PLACES[rng.integers(len(PLACES))]
    canvas = Image.fromarray(paint_place(place, rng).astype(np.uint8))
    wanted = int(rng.choice((1, 2, 3), p=(0.45, 0.4, 0.15)))
    chosen: list[Cutout] = []
    for index in rng.permutation(len(cutouts))[:50]:
        if all(cutouts[index].name != other.name for other in chosen):
            chosen.append(cutouts[index])
        if len(chosen) == wanted:
            break
    objects = []
    for cutout, (x, y, size) in zip(chosen, _arrange(len(chosen), rng), strict=True):
        image = cutout.image
        scale = size * SIDE / max(image.size)
        image = image.resize([max(2, round(side * scale)) for side in image.size], Image.Resampling.BILINEAR)
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        canvas.paste(image, (round(x * SIDE - image.width / 2), round(y * SIDE - image.height / 2)), image)
        objects.append(PlacedObject(cutout.name, cutout.group, cutout.colour, x, y, image.height / SIDE))
    pixels = np.ascontiguousarray(np.asarray(canvas).transpose(2, 0, 1))
    labels = SceneLabels(place, tuple(objects))
    return Scene(pixels, labels, _captions(chosen, labels, rng))


def _captions(chosen: Sequence[Cutout], labels: SceneLabels, rng: np.random.Generator) -> tuple[str, ...]:
    where = _PLACES[labels.place][0]
    phrases = [cutout.phrase for cutout in chosen]
    listed = phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]
    main = labels.objects[0]
    side = "on the left" if main.x < 0.4 else "on the right" if main.x > 0.6 else "in the middle"
    captions = [f"{listed} {where}"]
    if rng.random() < 0.3:  # as in the release, images have different numbers of captions
        captions.append(f"{phrases[0]} {side}, {where}")
    return tuple(captions)


class SceneStream:
    """An endless, indexable stream of scenes. Streams of different names never share a seed."""

    def __init__(self, cutouts: Sequence[Cutout], name: str, seed: int):
        self.cutouts, self.name, self.seed = cutouts, name, seed

    def __call__(self, index: int) -> Scene:
        """The scene of number ``index``, the same each time."""
        return compose(self.cutouts, derive_seed(self.seed, "scene", self.name, index))


class FolderScenes:
    """Whole captioned images of a folder: each picture with a ``.txt`` beside it, one caption a line.

    Labels are the content words of the captions. Pictures that a generator may have been trained on (``ReservedPictures``)
    are taken last. Raises UserError where fewer than ``needed`` pairs are found, or one of those chosen has no caption or is
    no picture; a picture that breaks off is only found out when it is shown.
    """

    def __init__(self, folder: str | Path, needed: int, seed: int):
        found = _captioned(Path(folder))
        distinct: dict[bytes, Path] = {}  # one picture under two names could stand in training and in test
        reserved: dict[bytes, Path] = {}
        for k in np.random.default_rng(derive_seed(seed, "folder scenes")).permutation(len(found)):
            if len(distinct) < needed:
                digest = file_hash(found[k])
                (reserved if _is_reserved(digest) else distinct).setdefault(digest, found[k])
        self.paths = [*distinct.values(), *reserved.values()][:needed]
        if len(self.paths) < needed:
            raise UserError(
                f"{folder}: holds {len(self.paths)} different images with a .txt caption; expected at least "
                f"{needed} (fewer subjects, sessions or shared images need fewer)"
            )
        _refuse_unusable(self.paths)

    def __call__(self, index: int) -> Scene:
        """The scene of number ``index``: the picture's central square, scaled, and its captions.

        Raises UserError where the picture breaks off.
        """
        return _whole(self.paths[index])


class ReservedPictures:
    """The captioned pictures of a folder that generators are trained on: a third, chosen by a hash of the file's content.

    Raises UserError where there are fewer than ``FEWEST_PICTURES``, or one has no caption or is no picture.
    """

    def __init__(self, folder: str | Path):
        distinct: dict[bytes, Path] = {}
        for path in progress(_captioned(Path(folder)), "pictures"):
            distinct.setdefault(file_hash(path), path)
        self.paths = [path for digest, path in distinct.items() if _is_reserved(digest)]
        if len(self.paths) < FEWEST_PICTURES:
            raise UserError(
                f"{folder}: holds {len(distinct)} different images with a .txt caption, of which generators are trained on "
                f"{len(self.paths)}, a third by content; expected at least {FEWEST_PICTURES} of these"
            )
        _refuse_unusable(self.paths)

    def __call__(self, index: int) -> Scene:
        """Scene number ``index``: each picture once as it stands, and from then on by a random part of it."""
        turn, number = divmod(index, len(self.paths))
        scene = _whole(self.paths[number])
        if turn == 0:
            return scene
        rng = np.random.default_rng(derive_seed(RESERVED_SEED, "part", index))
        side = round(SIDE * rng.uniform(*PARTS))
        top, left = rng.integers(0, SIDE - side + 1, 2)
        part = Image.fromarray(scene.pixels[:, top : top + side, left : left + side].transpose(1, 2, 0))
        pixels = np.asarray(part.resize((SIDE, SIDE), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
        return Scene(np.ascontiguousarray(pixels), scene.labels, scene.captions)


def _captioned(folder: Path) -> list[Path]:
    """The pictures of a folder with a text beside them, sorted by name."""
    if not folder.is_dir():
        raise UserError(f"{folder}: not a folder; expected images with a .txt caption beside each")
    return [
        path for path in sorted(folder.rglob("*")) if path.suffix.lower() in ENDINGS and path.with_suffix(".txt").is_file()
    ]


def _refuse_unusable(paths: Sequence[Path]) -> None:
    """Raise UserError where a picture has no caption that names something, or is none: before the first is shown."""
    for path in paths:
        content_labels(" ".join(_captions_of(path)))
        with open_picture(path):
            pass


def _is_reserved(digest: bytes) -> bool:
    """Whether a picture of this sha256 belongs to generators."""
    return int.from_bytes(digest[:4], "big") % 3 == 0


def _whole(path: Path) -> Scene:
    captions = _captions_of(path)
    return Scene(np.ascontiguousarray(read_picture(path)), content_labels(" ".join(captions)), captions)


def _captions_of(path: Path) -> tuple[str, ...]:
    """The first captions of the text file beside a picture, without empty lines."""
    beside = path.with_suffix(".txt")
    lines = beside.read_text(encoding="utf-8", errors="replace").splitlines()
    captions = tuple(line.strip() for line in lines if line.strip())[:CAPTIONS]
    if not captions:
        raise UserError(f"{beside}: holds no caption; expected one caption a line")
    return captions


def render(stream: Callable[[int], Scene], indices: Sequence[int], workers: int = 2) -> Iterator[Scene]:
    """Scenes of ``indices`` in order, composed on ``workers`` threads."""
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(indices), 64):
            yield from pool.map(stream, indices[start : start + 64])


# ---- the reserved stream: scenes that only generators and the token projection are trained on

RESERVED_SEED = 20_240_412  # simulations take seeds below this (see simulate.py), and other stream names


def generator_scenes(cutouts: str | Path | None = None, stimuli: str | Path | None = None) -> SceneStream | ReservedPictures:
    """What generators are trained on: scenes of their own cut-outs, from a seed and a stream name that no simulation uses.

    With ``stimuli``, a folder of whole captioned pictures, those of it that are reserved for generators.
    """
    if stimuli:
        return ReservedPictures(stimuli)
    pool = folder_cutouts(cutouts, "generator") if cutouts else drawn_cutouts("generator")
    return SceneStream(pool, "generator", RESERVED_SEED)
