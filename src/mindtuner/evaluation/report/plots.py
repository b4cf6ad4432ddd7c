"""Small inline SVG plots of the report: a score with its interval, and a training curve.

Only numbers go into the markup, so nothing here needs escaping.
"""

from __future__ import annotations

import math

from markupsafe import Markup


def axis(values: list[float]) -> tuple[float, float]:
    """A range from 0 (or the lowest value) to a round number at or above the highest of ``values``."""
    low, high = min([0.0, *values]), max([0.0, *values])
    if high == low:
        return low, low + 1.0
    step = 10.0 ** math.floor(math.log10(high - low)) / 2
    return math.floor(low / step) * step, math.ceil(high / step - 1e-9) * step


def interval(value: float, ci: tuple[float, float] | None, chance: float | None,
             limits: tuple[float, float]) -> Markup:
    """A dot with its interval on a line from ``limits[0]`` to ``limits[1]``; chance is a dashed mark."""
    def at(number: float) -> str:
        share = (number - limits[0]) / (limits[1] - limits[0])
        return f"{2 + 96 * min(max(share, 0.0), 1.0):.2f}%"

    marks = ['<line class="base" x1="2%" x2="98%" y1="9" y2="9"/>']
    if chance is not None:
        marks.append(f'<line class="chance" x1="{at(chance)}" x2="{at(chance)}" y1="0" y2="18"/>')
    if ci is not None:
        marks.append(f'<line class="ci" x1="{at(ci[0])}" x2="{at(ci[1])}" y1="9" y2="9"/>')
    marks.append(f'<circle class="dot" cx="{at(value)}" cy="9" r="3.5"/>')
    return Markup(f'<svg class="interval" aria-hidden="true" height="18">{"".join(marks)}</svg>')


def curve(epochs: list[float], values: list[float]) -> tuple[Markup, bool]:
    """A loss over epochs. The axis is logarithmic where a positive loss spans a factor of 10 or more.

    ``epochs`` and ``values`` have equal length, at least 1, and are finite. Returns the SVG and whether
    the axis is logarithmic.
    """
    low, high = min(values), max(values)
    logarithmic = low > 0 and high / low >= 10
    scaled = [math.log(value) for value in values] if logarithmic else list(values)
    bottom, top = min(scaled), max(scaled)
    if top - bottom < 1e-12:
        bottom, top = bottom - 0.5, top + 0.5
    first, last = min(epochs), max(epochs)
    width, height, pad = 240.0, 84.0, 5.0

    def point(epoch: float, number: float) -> tuple[float, float]:
        x = (epoch - first) / (last - first) if last > first else 1.0
        y = (top - number) / (top - bottom)
        return pad + x * (width - 2 * pad), pad + y * (height - 2 * pad)

    points = [point(epoch, number) for epoch, number in zip(epochs, scaled, strict=True)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    x, y = points[-1]
    markup = (f'<svg class="curve" aria-hidden="true" viewBox="0 0 {width:g} {height:g}">'
              f'<line class="base" x1="0" x2="{width:g}" y1="{height - 0.5:g}" y2="{height - 0.5:g}"/>'
              f'<polyline points="{path}"/><circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3"/></svg>')
    return Markup(markup), logarithmic
