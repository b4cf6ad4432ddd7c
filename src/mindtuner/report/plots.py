"""Small inline SVG plots of the report: a score with its interval, a bar, a training curve, scores against scanning time.

Only numbers go into the markup, so nothing here needs escaping.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from markupsafe import Markup


def axis(values: Iterable[float]) -> tuple[float, float]:
    """A range from 0 (or the lowest value) to a round number at or above the highest of ``values``."""
    values = list(values)
    low, high = min([0.0, *values]), max([0.0, *values])
    if high == low:
        return low, low + 1.0
    step = 10.0 ** math.floor(math.log10(high - low)) / 2
    return math.floor(low / step) * step, math.ceil(high / step - 1e-9) * step


def interval(
    value: float,
    ci: tuple[float, float] | None,
    chance: float | None,
    limits: tuple[float, float],
    dots: Sequence[float] = (),
) -> Markup:
    """A dot with its interval on a line from ``limits[0]`` to ``limits[1]``; chance is a dashed mark, ``dots`` are small."""
    at = _along(limits)
    marks = ['<line class="base" x1="2%" x2="98%" y1="9" y2="9"/>']
    if chance is not None:
        marks.append(f'<line class="chance" x1="{at(chance)}" x2="{at(chance)}" y1="0" y2="18"/>')
    if ci is not None:
        marks.append(f'<line class="ci" x1="{at(ci[0])}" x2="{at(ci[1])}" y1="9" y2="9"/>')
    marks += [f'<circle class="each" cx="{at(dot)}" cy="9" r="2"/>' for dot in dots]
    marks.append(f'<circle class="dot" cx="{at(value)}" cy="9" r="3.5"/>')
    return _row(marks)


def bar(
    value: float, ci: tuple[float, float] | None, seen: float | None, ceiling: float | None, limits: tuple[float, float]
) -> Markup:
    """A bar from 0 to ``value`` with its interval; a ring is what the seen picture reaches, a tall mark the ceiling."""
    at = _along(limits)
    marks = [
        '<line class="base" x1="2%" x2="98%" y1="9" y2="9"/>',
        f'<line class="bar" x1="{at(0)}" x2="{at(value)}" y1="9" y2="9"/>',
    ]
    if ci is not None:
        marks.append(f'<line class="whisker" x1="{at(ci[0])}" x2="{at(ci[1])}" y1="9" y2="9"/>')
    if seen is not None:
        marks.append(f'<circle class="ring" cx="{at(seen)}" cy="9" r="4"/>')
    if ceiling is not None:
        marks.append(f'<line class="ceiling" x1="{at(ceiling)}" x2="{at(ceiling)}" y1="0" y2="18"/>')
    return _row(marks)


def _along(limits: tuple[float, float]):
    def at(number: float) -> str:
        share = (number - limits[0]) / (limits[1] - limits[0])
        return f"{2 + 96 * min(max(share, 0.0), 1.0):.2f}%"

    return at


def _row(marks: list[str]) -> Markup:
    return Markup(f'<svg class="interval" aria-hidden="true" height="18">{"".join(marks)}</svg>')


def curve(lines: list[list[tuple[float, float]]]) -> tuple[Markup, bool]:
    """A loss over epochs, one line per run. The axis is logarithmic where positive losses span a factor of 10 or more.

    ``lines`` hold (epoch, loss), at least one each, all finite. Returns the SVG and whether the axis is logarithmic.
    """
    losses = [loss for line in lines for _, loss in line]
    logarithmic = min(losses) > 0 and max(losses) / min(losses) >= 10
    scale = math.log if logarithmic else float
    bottom, top = scale(min(losses)), scale(max(losses))
    if top - bottom < 1e-12:
        bottom, top = bottom - 0.5, top + 0.5
    epochs = [epoch for line in lines for epoch, _ in line]
    first, last = min(epochs), max(epochs)
    width, height, pad = 240.0, 84.0, 5.0

    def point(epoch: float, loss: float) -> str:
        x = (epoch - first) / (last - first) if last > first else 1.0
        y = (top - scale(loss)) / (top - bottom)
        return f"{pad + x * (width - 2 * pad):.1f},{pad + y * (height - 2 * pad):.1f}"

    marks = [f'<line class="base" x1="0" x2="{width:g}" y1="{height - 0.5:g}" y2="{height - 0.5:g}"/>']
    for line in lines:
        points = [point(*pair) for pair in line]
        x, y = points[-1].split(",")
        marks.append(f'<polyline points="{" ".join(points)}"/><circle class="dot" cx="{x}" cy="{y}" r="3"/>')
    return _drawing("curve", width, height, marks), logarithmic


def _drawing(kind: str, width: float, height: float, marks: list[str]) -> Markup:
    return Markup(f'<svg class="{kind}" aria-hidden="true" viewBox="0 0 {width:g} {height:g}">{"".join(marks)}</svg>')


def growth(
    lines: dict[str, list[tuple[float, float, float, float]]],
    chance: float | None,
    ticks: Sequence[float],
    limits: tuple[float, float],
    labels: tuple[str, str],
    logarithmic: bool = False,
) -> Markup:
    """Scores against an amount of data, one line per method.

    ``lines``: method -> (amount, score, lower end, upper end), amounts ascending. ``labels`` are those of ``limits``. A line
    has the CSS class of its method, so that a legend can show it; the first method is drawn last, on top.
    ``logarithmic``: the axis of amounts.
    """
    width, height, left, right, over, under = 320.0, 190.0, 46.0, 10.0, 8.0, 24.0
    scale = math.log if logarithmic else float
    least, most = scale(min(ticks)), scale(max(ticks))

    def x(amount: float) -> float:
        return left + 12 + (scale(amount) - least) / (most - least or 1) * (width - left - right - 24)

    def y(score: float) -> float:
        return over + (limits[1] - score) / (limits[1] - limits[0]) * (height - over - under)

    foot = height - under
    marks = [f'<line class="base" x1="{left:g}" x2="{width - right:g}" y1="{at:g}" y2="{at:g}"/>' for at in (over, foot)]
    marks += [
        f'<text class="end" x="{left - 6:g}" y="{at + 4:g}">{label}</text>'
        for at, label in ((foot, labels[0]), (over, labels[1]))
    ]
    marks += [f'<text class="middle" x="{x(amount):.1f}" y="{height - 6:g}">{amount:g}</text>' for amount in ticks]
    if chance is not None:
        marks.append(f'<line class="chance" x1="{left:g}" x2="{width - right:g}" y1="{y(chance):.1f}" y2="{y(chance):.1f}"/>')
    for turn, (method, points) in reversed(list(enumerate(lines.items()))):
        aside = 3.0 * (turn - (len(lines) - 1) / 2)  # so that spans stand beside each other
        placed = [(x(amount) + aside, y(score), y(low), y(high)) for amount, score, low, high in points]
        path = " ".join(f"{across:.1f},{up:.1f}" for across, up, _, _ in placed)
        ends = "".join(
            f'<line class="span" x1="{across:.1f}" x2="{across:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
            for across, _, low, high in placed
        )
        at = "".join(marker(method, across, up) for across, up, _, _ in placed)
        marks.append(f'<g class="line {method}">{ends}<polyline points="{path}"/>{at}</g>')
    return _drawing("growth", width, height, marks)


_SHAPES = {  # corners of a marker around 0, so that methods differ by more than colour
    "pretrained": "0,-5 4,0 0,5 -4,0",
    "ridge_only": "-4,-4 4,-4 4,4 -4,4",
    "ridge": "-5,-5 5,5 5,-5 -5,5",
    "full_finetune": "0,-5 5,4 -5,4",
    "from_scratch": "0,-5.5 5.5,0 0,5.5 -5.5,0",
    "nearest_training_image": "-5,-4 5,-4 0,5",
    "shuffled_brain": "-5,-1.5 5,-1.5 5,1.5 -5,1.5",
    "prior_only": "-1.5,-5 1.5,-5 1.5,5 -1.5,5",
}


def marker(method: str, x: float, y: float) -> Markup:
    """The mark of a method in ``growth`` and its legend."""
    if method not in _SHAPES:
        return Markup(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
    return Markup(f'<polygon points="{_SHAPES[method]}" transform="translate({x:.1f} {y:.1f})"/>')
