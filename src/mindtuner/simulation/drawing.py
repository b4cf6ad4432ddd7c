"""The package's own cut-outs: small drawings of things, each variant drawn from its own seed.

A drawing is made on a 100 x 100 canvas (x right, y down), enlarged and smoothed, then shaded with soft light from
the upper left. Two variants of a kind differ in proportions, details and shade, so a variant that one
scene uses is never, pixel for pixel, the variant of another pool.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIDE = 160  # pixels of a finished cut-out
_SUPERSAMPLE = 2

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 45, 45),
    "orange": (238, 134, 36),
    "yellow": (242, 208, 58),
    "green": (66, 152, 72),
    "blue": (52, 104, 200),
    "purple": (132, 72, 172),
    "pink": (238, 138, 172),
    "white": (238, 238, 232),
    "brown": (132, 88, 54),
    "grey": (132, 136, 142),
}
_DARK = (42, 40, 44)


class Pen:
    """Filled shapes in canvas units."""

    def __init__(self, colour: tuple[int, int, int], rng: np.random.Generator):
        self.scale = SIDE * _SUPERSAMPLE / 100
        self.image = Image.new("RGBA", (SIDE * _SUPERSAMPLE,) * 2, (0, 0, 0, 0))
        self.draw = ImageDraw.Draw(self.image)
        self.colour = colour
        self.rng = rng

    def tone(self, factor: float) -> tuple[int, int, int]:
        """The main colour, darker (< 1) or lighter (> 1)."""
        if factor <= 1:
            return tuple(int(c * factor) for c in self.colour)
        return tuple(int(c + (255 - c) * (factor - 1)) for c in self.colour)

    def vary(self, low: float, high: float) -> float:
        """A number drawn evenly between ``low`` and ``high``."""
        return float(self.rng.uniform(low, high))

    def oval(self, x, y, rx, ry, fill=None):
        """Fill an ellipse around (x, y) with the radii rx and ry."""
        s = self.scale
        self.draw.ellipse([(x - rx) * s, (y - ry) * s, (x + rx) * s, (y + ry) * s], fill=fill or self.colour)

    def box(self, x0, y0, x1, y1, fill=None, radius=0.0):
        """Fill a rectangle from (x0, y0) to (x1, y1), its corners rounded by ``radius``."""
        s = self.scale
        self.draw.rounded_rectangle([x0 * s, y0 * s, x1 * s, y1 * s], radius * s, fill=fill or self.colour)

    def shape(self, points, fill=None):
        """Fill a polygon of the corners ``points``, each (x, y)."""
        self.draw.polygon([(x * self.scale, y * self.scale) for x, y in points], fill=fill or self.colour)

    def line(self, points, width, fill=None):
        """Draw a line through ``points``, each (x, y)."""
        flat = [(x * self.scale, y * self.scale) for x, y in points]
        self.draw.line(flat, fill=fill or self.colour, width=max(1, int(width * self.scale)), joint="curve")

    def pie(self, x, y, r, start, end, fill=None):
        """Fill a sector of the circle of radius r around (x, y), from angle ``start`` to ``end`` in degrees."""
        s = self.scale
        self.draw.pieslice([(x - r) * s, (y - r) * s, (x + r) * s, (y + r) * s], start, end, fill=fill or self.colour)


def _bird(p: Pen):
    w = p.vary(24, 30)
    p.shape([(20, 52), (4, p.vary(38, 60)), (10, 66)], p.tone(0.7))
    p.oval(44, 56, w, p.vary(18, 23))
    p.oval(68, 36, 15, 15)
    p.shape([(82, 33), (97, 39), (81, 43)], (236, 160, 40))
    p.oval(40, 55, w * 0.6, 11, p.tone(0.65))
    p.oval(72, 33, 3, 3, _DARK)
    p.line([(42, 76), (40, 92)], 3, (210, 130, 40))
    p.line([(54, 76), (54, 92)], 3, (210, 130, 40))


def _fish(p: Pen):
    h = p.vary(19, 27)
    p.shape([(26, 50), (4, 50 - h), (4, 50 + h)], p.tone(0.7))
    p.shape([(40, 34), (56, p.vary(12, 20)), (66, 36)], p.tone(0.75))
    p.oval(55, 50, 36, h)
    for x in (44, 56):
        p.line([(x, 50 - h * 0.7), (x - 5, 50), (x, 50 + h * 0.7)], 3, p.tone(1.5))
    p.oval(76, 44, 5, 5, (250, 250, 250))
    p.oval(77, 44, 2.5, 2.5, _DARK)


def _cat(p: Pen):
    ear = p.vary(10, 20)
    p.shape([(20, 48), (22, ear), (46, 30)])
    p.shape([(80, 48), (78, ear), (54, 30)])
    p.oval(50, 56, p.vary(32, 37), p.vary(30, 34))
    for x in (36, 64):
        p.oval(x, 50, 6, 8, (250, 246, 170))
        p.oval(x, 50, 2.5, 7, _DARK)
    p.shape([(45, 63), (55, 63), (50, 70)], (226, 120, 130))
    for y in (64, 70):
        p.line([(30, y), (8, y - 4)], 1.5, _DARK)
        p.line([(70, y), (92, y - 4)], 1.5, _DARK)


def _butterfly(p: Pen):
    top, low = p.vary(19, 24), p.vary(14, 19)
    for side in (-1, 1):
        p.oval(50 + side * 24, 36, 22, top)
        p.oval(50 + side * 20, 70, 17, low, p.tone(0.72))
        p.oval(50 + side * 26, 36, 9, 9, p.tone(1.6))
        p.line([(50, 28), (50 + side * 12, 8)], 1.8, _DARK)
    p.oval(50, 52, 5, 28, _DARK)


def _snail(p: Pen):
    p.shape([(6, 86), (12, 72), (70, 72), (80, 44), (92, 42), (92, 76), (78, 88)], (214, 186, 140))
    p.line([(86, 44), (80, 26)], 2, (190, 160, 120))
    p.line([(90, 44), (94, 26)], 2, (190, 160, 120))
    r = p.vary(26, 31)
    for k, tone in enumerate((1, 0.72, 1.35, 0.8)):
        p.oval(44 - k, 54 + k, r * (1 - 0.24 * k), r * (1 - 0.24 * k), p.tone(tone))


def _ladybug(p: Pen):
    p.oval(50, 24, 16, 14, _DARK)
    p.oval(50, 56, p.vary(34, 39), 36)
    p.line([(50, 20), (50, 92)], 2.5, _DARK)
    r = p.vary(5, 8)
    for x, y in ((34, 44), (66, 44), (30, 64), (70, 64), (42, 80), (58, 80)):
        p.oval(x, y, r, r, _DARK)


def _dog(p: Pen):
    p.oval(50, 52, 29, p.vary(31, 36))
    drop = p.vary(20, 28)
    p.oval(18, 46, 11, drop, p.tone(0.6))
    p.oval(82, 46, 11, drop, p.tone(0.6))
    p.oval(50, 68, 17, 15, p.tone(1.55))
    p.oval(50, 60, 7, 5, _DARK)
    for x in (38, 62):
        p.oval(x, 42, 4.5, 5.5, _DARK)
    p.oval(50, 79, 5, 8, (222, 96, 110))


def _car(p: Pen):
    roof = p.vary(26, 34)
    p.shape([(22, 54), (34, roof), (66, roof), (82, 54)], p.tone(0.85))
    p.shape([(30, 52), (38, roof + 5), (49, roof + 5), (49, 52)], (196, 224, 240))
    p.shape([(53, 52), (53, roof + 5), (64, roof + 5), (73, 52)], (196, 224, 240))
    p.box(5, 50, 96, 74, radius=7)
    p.box(88, 55, 96, 62, (250, 236, 150))
    for x in (26, 75):
        p.oval(x, 74, 12, 12, _DARK)
        p.oval(x, 74, 5, 5, (200, 200, 204))


def _bus(p: Pen):
    top = p.vary(20, 28)
    p.box(4, top, 96, 76, radius=6)
    for k in range(4):
        p.box(9 + k * 22, top + 8, 26 + k * 22, top + 26, (200, 228, 242), 2)
    p.box(4, 56, 96, 61, p.tone(0.6))
    for x in (25, 75):
        p.oval(x, 77, 11, 11, _DARK)
        p.oval(x, 77, 4, 4, (205, 205, 205))


def _boat(p: Pen):
    p.box(48, 8, 52, 70, (110, 78, 50))
    top = p.vary(8, 16)
    p.shape([(54, top), (54, 62), (90, 62)], (246, 244, 236))
    p.shape([(46, top + 6), (46, 62), (18, 62)], p.tone(1.4))
    p.shape([(6, 66), (95, 66), (80, 90), (22, 90)])
    p.line([(6, 67), (95, 67)], 3, p.tone(0.6))


def _rocket(p: Pen):
    p.shape([(34, 66), (16, 88), (38, 82)], p.tone(0.6))
    p.shape([(66, 66), (84, 88), (62, 82)], p.tone(0.6))
    p.shape([(40, 84), (50, 99), (60, 84)], (250, 170, 40))
    p.oval(50, 46, p.vary(17, 21), 42, (232, 234, 238))
    p.shape([(34, 24), (50, 2), (66, 24)])
    p.oval(50, 42, 8, 8)
    p.oval(50, 42, 5, 5, (170, 214, 240))
    p.box(34, 76, 66, 84)


def _tractor(p: Pen):
    p.box(40, 40, 92, 66, radius=4)
    p.box(16, p.vary(14, 22), 46, 66, p.tone(0.85), 3)
    p.box(21, 25, 41, 44, (200, 228, 242))
    p.box(74, 18, 79, 40, _DARK)
    p.oval(30, 70, 23, 23, _DARK)
    p.oval(30, 70, 11, 11, (226, 200, 70))
    p.oval(80, 78, 14, 14, _DARK)
    p.oval(80, 78, 6, 6, (226, 200, 70))


def _tree(p: Pen):
    p.box(44, 56, 56, 97, (112, 76, 46))
    r = p.vary(19, 25)
    for x, y in ((50, 26), (30, 42), (70, 42), (50, 48)):
        p.oval(x, y, r, r, p.tone(p.vary(0.82, 1.15)))


def _flower(p: Pen):
    p.line([(50, 44), (50, 97)], 5, (62, 130, 60))
    p.oval(64, 78, 13, 6, (62, 130, 60))
    petals = int(p.rng.integers(5, 8))
    for k in range(petals):
        angle = 2 * np.pi * k / petals
        p.oval(50 + 21 * np.cos(angle), 34 + 21 * np.sin(angle), 13, 13)
    p.oval(50, 34, 11, 11, (246, 200, 60) if p.colour != COLOURS["yellow"] else (120, 76, 40))


def _cactus(p: Pen):
    p.box(40, 8, 60, 84, radius=10)
    left, right = p.vary(34, 46), p.vary(28, 42)
    p.box(14, left, 28, left + 26, radius=7)
    p.box(14, left + 16, 46, left + 28, radius=6)
    p.box(72, right, 86, right + 28, radius=7)
    p.box(54, right + 18, 86, right + 30, radius=6)
    p.shape([(28, 80), (72, 80), (66, 98), (34, 98)], (178, 92, 56))


def _mushroom(p: Pen):
    p.box(38, 48, 62, 94, (238, 226, 204), 9)
    p.pie(50, 52, p.vary(38, 45), 180, 360)
    for x, y, r in ((34, 38, 6), (52, 24, 7), (70, 40, 6), (50, 42, 4)):
        p.oval(x, y, r, r, (250, 248, 240))


def _apple(p: Pen):
    p.oval(37, 58, p.vary(25, 29), 33)
    p.oval(63, 58, p.vary(25, 29), 33)
    p.line([(50, 32), (54, 10)], 4, (100, 70, 40))
    p.oval(67, 15, 13, 6, (72, 150, 66))
    p.oval(32, 46, 6, 10, p.tone(1.55))


def _banana(p: Pen):
    lift = p.vary(0, 8)
    outer = [(8 + 84 * t, 40 + 46 * np.sin(np.pi * t) - 14 * t) for t in np.linspace(0, 1, 24)]
    inner = [(14 + 74 * t, 34 + (20 - lift) * np.sin(np.pi * t) - 14 * t) for t in np.linspace(1, 0, 24)]
    p.shape(outer + inner)
    p.line([(14 + 70 * t, 42 + 34 * np.sin(np.pi * t) - 14 * t) for t in np.linspace(0.08, 0.95, 20)], 2, p.tone(0.75))
    p.shape([(6, 32), (14, 30), (16, 44), (8, 44)], (110, 80, 40))
    p.oval(91, 25, 4, 5, (110, 80, 40))


def _cupcake(p: Pen):
    p.shape([(22, 56), (78, 56), (68, 96), (32, 96)], (190, 128, 74))
    for x in (34, 45, 56, 66):
        p.line([(x, 58), (50 + (x - 50) * 0.75, 95)], 2, (150, 96, 52))
    p.oval(50, 54, p.vary(33, 37), 14)
    p.oval(50, 40, 26, 13, p.tone(1.2))
    p.oval(50, 28, 16, 11, p.tone(1.4))
    p.oval(50, 15, 7, 7, (214, 40, 56))


def _icecream(p: Pen):
    p.shape([(28, 50), (72, 50), (50, 98)], (222, 170, 100))
    for k in range(3):
        p.line([(34 + k * 12, 52), (50 + k * 5, 84 - 8 * k)], 1.6, (180, 124, 66))
    p.oval(50, 40, p.vary(24, 28), 20)
    p.oval(50, 22, p.vary(17, 20), 17, p.tone(1.35))


def _house(p: Pen):
    eave = p.vary(40, 48)
    p.box(16, eave, 84, 94)
    p.shape([(6, eave + 2), (50, p.vary(6, 14)), (94, eave + 2)], (126, 66, 52))
    p.box(42, 66, 58, 94, (96, 62, 40))
    for x in (22, 64):
        p.box(x, 56, x + 14, 70, (206, 230, 244))
        p.line([(x + 7, 56), (x + 7, 70)], 1.4, _DARK)


def _castle(p: Pen):
    wall = p.vary(46, 54)
    p.box(18, wall, 82, 95)
    for x in (8, 68):
        p.box(x, 34, x + 24, 95, p.tone(0.85))
        p.shape([(x - 3, 35), (x + 12, 8), (x + 27, 35)], p.tone(0.55))
        p.box(x + 9, 50, x + 15, 62, _DARK)
    for x in range(34, 66, 11):
        p.box(x, wall - 8, x + 6, wall + 1)
    p.box(41, 68, 59, 95, (80, 56, 40), 8)


def _tent(p: Pen):
    peak = p.vary(12, 24)
    p.shape([(4, 90), (50, peak), (96, 90)])
    p.shape([(50, peak), (96, 90), (74, 90)], p.tone(0.7))
    p.shape([(36, 90), (50, peak + 24), (64, 90)], _DARK)


def _lighthouse(p: Pen):
    p.shape([(36, 30), (64, 30), (72, 96), (28, 96)], (242, 240, 232))
    for y in (42, 66):
        p.shape(
            [
                (35 - (y - 30) * 0.12, y),
                (65 + (y - 30) * 0.12, y),
                (66.5 + (y - 30) * 0.12, y + 12),
                (33.5 - (y - 30) * 0.12, y + 12),
            ]
        )
    p.box(38, 14, 62, 30, (250, 226, 120))
    p.shape([(34, 15), (50, p.vary(0, 5)), (66, 15)])
    p.box(31, 28, 69, 32, _DARK)


def _ball(p: Pen):
    p.oval(50, 50, 42, 42)
    start = p.vary(0, 60)
    for k in range(3):
        p.pie(50, 50, 42, start + 120 * k, start + 120 * k + 60, (244, 242, 236))
    p.oval(50, 50, 8, 8, p.tone(0.6))


def _balloon(p: Pen):
    p.line([(50, 72), (46, 84), (54, 98)], 1.6, _DARK)
    p.oval(50, 38, p.vary(28, 33), 36)
    p.shape([(45, 78), (50, 71), (55, 78)], p.tone(0.7))
    p.oval(38, 24, 6, 10, p.tone(1.7))


def _umbrella(p: Pen):
    p.line([(50, 46), (50, 88), (44, 95), (37, 90)], 4, (110, 78, 50))
    top = p.vary(42, 46)
    p.pie(50, 52, top, 180, 360)
    p.pie(50, 52, top * 0.42, 180, 360, p.tone(1.45))
    for x in (50 - top * 0.72, 50, 50 + top * 0.72):
        p.oval(x, 52, top * 0.28, 6, (0, 0, 0, 0))
    p.line([(50, 8), (50, 3)], 3, _DARK)


def _kite(p: Pen):
    mid = p.vary(32, 40)
    p.shape([(50, 2), (80, mid), (50, 78), (20, mid)])
    p.shape([(50, 2), (80, mid), (50, mid)], p.tone(1.4))
    p.shape([(50, 78), (20, mid), (50, mid)], p.tone(0.65))
    p.line([(50, 78), (58, 86), (46, 92), (56, 99)], 2, _DARK)


def _cup(p: Pen):
    top = p.vary(24, 32)
    p.oval(74, 56, 19, 18, p.tone(0.8))
    p.oval(74, 56, 10, 10, (0, 0, 0, 0))
    p.box(18, top, 72, 88, radius=9)
    p.oval(45, top + 2, 27, 7, p.tone(0.6))
    p.box(18, 54, 72, 62, p.tone(1.5))


def _clock(p: Pen):
    p.oval(50, 50, 44, 44)
    p.oval(50, 50, 35, 35, (248, 246, 238))
    for k in range(12):
        a = np.pi * k / 6
        p.oval(50 + 29 * np.cos(a), 50 + 29 * np.sin(a), 2, 2, _DARK)
    hour, minute = p.vary(0, 2 * np.pi), p.vary(0, 2 * np.pi)
    p.line([(50, 50), (50 + 16 * np.cos(hour), 50 + 16 * np.sin(hour))], 4, _DARK)
    p.line([(50, 50), (50 + 26 * np.cos(minute), 50 + 26 * np.sin(minute))], 2.5, _DARK)


def _hat(p: Pen):
    p.box(26, p.vary(16, 26), 74, 74, radius=5)
    p.oval(50, 76, 45, 11, p.tone(0.85))
    p.box(26, 58, 74, 69, p.tone(0.45))


def _star(p: Pen):
    inner, turn = p.vary(18, 23), p.vary(-0.2, 0.2)
    p.shape(
        [
            (50 + r * np.sin(turn + np.pi * k / 5), 52 - r * np.cos(turn + np.pi * k / 5))
            for k in range(10)
            for r in [46 if k % 2 == 0 else inner]
        ]
    )
    p.oval(42, 46, 3, 4, _DARK)
    p.oval(58, 46, 3, 4, _DARK)


def _heart(p: Pen):
    r = p.vary(22, 24)
    p.oval(30, 36, r, r)
    p.oval(70, 36, r, r)
    p.shape([(9, 45), (91, 45), (50, 94)])
    p.oval(26, 28, 7, 8, p.tone(1.6))


# kind -> (group, colours that it comes in, drawing)
_BRIGHT = ("red", "orange", "yellow", "green", "blue", "purple", "pink")
KINDS: dict[str, tuple[str, tuple[str, ...], Callable[[Pen], None]]] = {
    "bird": ("animal", ("red", "yellow", "blue", "green"), _bird),
    "fish": ("animal", ("red", "orange", "blue", "purple"), _fish),
    "cat": ("animal", ("orange", "grey", "brown", "white"), _cat),
    "dog": ("animal", ("brown", "white", "grey", "orange"), _dog),
    "butterfly": ("animal", ("red", "orange", "blue", "purple", "pink"), _butterfly),
    "snail": ("animal", ("red", "brown", "purple", "green"), _snail),
    "ladybug": ("animal", ("red", "orange", "yellow"), _ladybug),
    "car": ("vehicle", ("red", "yellow", "blue", "green"), _car),
    "bus": ("vehicle", ("red", "yellow", "blue", "orange"), _bus),
    "boat": ("vehicle", ("red", "brown", "blue", "green"), _boat),
    "rocket": ("vehicle", ("red", "orange", "blue", "purple"), _rocket),
    "tractor": ("vehicle", ("red", "green", "blue", "orange"), _tractor),
    "tree": ("plant", ("green", "orange", "pink", "yellow"), _tree),
    "flower": ("plant", ("red", "yellow", "purple", "pink", "white"), _flower),
    "cactus": ("plant", ("green",), _cactus),
    "mushroom": ("plant", ("red", "brown", "orange", "purple"), _mushroom),
    "apple": ("food", ("red", "green", "yellow"), _apple),
    "banana": ("food", ("yellow", "green"), _banana),
    "cupcake": ("food", ("pink", "white", "blue", "yellow"), _cupcake),
    "ice cream": ("food", ("pink", "white", "green", "brown"), _icecream),
    "house": ("building", ("white", "yellow", "red", "blue"), _house),
    "castle": ("building", ("grey", "pink", "brown", "white"), _castle),
    "tent": ("building", ("red", "orange", "green", "blue"), _tent),
    "lighthouse": ("building", ("red", "blue", "green"), _lighthouse),
    "ball": ("thing", _BRIGHT, _ball),
    "balloon": ("thing", _BRIGHT, _balloon),
    "umbrella": ("thing", _BRIGHT, _umbrella),
    "kite": ("thing", _BRIGHT, _kite),
    "cup": ("thing", _BRIGHT + ("white",), _cup),
    "clock": ("thing", ("red", "blue", "brown", "grey"), _clock),
    "hat": ("thing", ("grey", "red", "blue", "brown"), _hat),
    "star": ("thing", ("yellow", "orange", "pink"), _star),
    "heart": ("thing", ("red", "pink", "purple"), _heart),
}


def draw(kind: str, colour: str, seed: int) -> Image.Image:
    """One variant of ``kind`` as a transparent RGBA picture, ``SIDE`` x ``SIDE``, cropped to what is drawn."""
    rng = np.random.default_rng(seed)
    base = np.asarray(COLOURS[colour], float) * rng.uniform(0.86, 1.06) + rng.normal(0, 7, 3)
    pen = Pen(tuple(int(c) for c in base.clip(0, 255)), rng)
    KINDS[kind][2](pen)
    pixels = np.asarray(pen.image.reduce(_SUPERSAMPLE), np.float32)
    alpha = pixels[..., 3]
    depth = np.asarray(Image.fromarray(alpha.astype(np.uint8)).filter(ImageFilter.GaussianBlur(9)), np.float32) / 255
    y, x = np.mgrid[0 : 1 : SIDE * 1j, 0 : 1 : SIDE * 1j]
    light = 1.12 - 0.30 * (0.45 * x + 0.55 * y) - 0.22 * (1 - depth)
    pixels[..., :3] *= light[..., None]
    pixels[..., :3] += rng.normal(0, 3.5, pixels.shape[:2])[..., None]
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8), "RGBA")
    return image.crop(image.getchannel("A").getbbox())
