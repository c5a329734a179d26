"""Numbers come in, and plots go out as inline SVG: histograms, bars by version, and ranked bars.

A plot has no script and no font of its own. Its colours are classes that the page's style sheet defines for light and dark.
Its view box is as wide as a narrow phone, so that its letters stay legible there. Every mark has a title, which a browser
shows under the pointer.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 380, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 10, 36
BINS = 40
_INNER_WIDTH, _INNER_HEIGHT = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
_FEWEST_TICKS = 4
_ROW_HEIGHT = 24


@dataclass(frozen=True, eq=False)
class Series:
    name: str
    values: NDArray[np.float64]


def histogram(series: Sequence[Series], x: str, limit: tuple[float, str] | None = None) -> str:
    """Draw the share of each series' values that falls into each of BINS bins. The `limit` is a place on the x axis that is
    marked, with what it is."""
    values = np.concatenate([one.values for one in series])
    low, high = float(values.min()), float(values.max())
    if limit is not None:
        low, high = min(low, limit[0]), max(high, limit[0])
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, BINS + 1)
    shares = [np.histogram(one.values, edges)[0] / max(1, len(one.values)) for one in series]
    top = max(float(share.max()) for share in shares) or 1.0
    marks = []
    for number, (one, share) in enumerate(zip(series, shares, strict=True)):
        for start, stop, height in zip(edges[:-1], edges[1:], share, strict=True):
            if not height:
                continue
            left, right = _across(start, low, high), _across(stop, low, high)
            told = f"{one.name}: {height:.1%} from {_number(start)} to {_number(stop)}"
            marks.append(_bar(left, right - left - 0.5, 0.0, height / top, number, told))
    if limit is not None:
        place = _across(limit[0], low, high)
        end = "end" if place > WIDTH / 2 else "start"
        marks.append(f'<line class="limit" x1="{place:.1f}" x2="{place:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        shift = -4 if end == "end" else 4
        marks.append(_text(place + shift, TOP + 10, limit[1], end))
    axes = [*_x_ticks(low, high), *_y_ticks(top, lambda value: f"{value:.3g}%", 100.0), _x_title(x)]
    return _svg(f"Histogram of {x}", [*axes, *marks], HEIGHT, [one.name for one in series] if len(series) > 1 else [])


def bars(labels: Sequence[str], stacks: Mapping[str, Sequence[float]], y: str) -> str:
    """Draw one bar for each label, with the stacks on top of one another. The longest stack decides the scale."""
    sums = [sum(values) for values in zip(*stacks.values(), strict=True)]
    top = max(sums, default=0.0) or 1.0
    step = _INNER_WIDTH / max(1, len(labels))
    width = min(step * 0.8, 34.0)
    marks = []
    for place, label in enumerate(labels):
        left, base = LEFT + step * place + (step - width) / 2, 0.0
        for number, (name, values) in enumerate(stacks.items()):
            height = values[place] / top
            if height:
                told = f"{label}: {_number(values[place])} {name}"
                marks.append(_bar(left, width, base, base + height, number, told))
            base += height
    every = max(1, math.ceil(len(labels) / 8))
    shown = [
        _text(LEFT + step * (place + 0.5), HEIGHT - BOTTOM + 14, label, "middle")
        for place, label in enumerate(labels)
        if (len(labels) - 1 - place) % every == 0
    ]
    axes = [*shown, *_y_ticks(top, _number, 1.0), _x_title(y)]
    return _svg(y, [*axes, *marks], HEIGHT, list(stacks) if len(stacks) > 1 else [])


def ranked(rows: Sequence[tuple[str, float, str]], label: str) -> str:
    """Draw a horizontal bar for each (name, value, value in words), in the given order."""
    top = max((value for _, value, _ in rows), default=0.0) or 1.0
    names, room = 96, 70
    marks = []
    for place, (name, value, told) in enumerate(rows):
        y = place * _ROW_HEIGHT + 4
        length = max(value / top * (WIDTH - names - room), 1.0)
        marks.append(_text(names - 6, y + 13, name, "end"))
        title = f"<title>{escape(f'{name}: {told}')}</title>"
        marks.append(
            f'<rect class="series0" x="{names}" y="{y}" width="{length:.1f}" height="16" rx="2">{title}</rect>'
        )
        marks.append(_text(names + length + 5, y + 13, told, "start"))
    return _svg(label, marks, len(rows) * _ROW_HEIGHT + 6, [])


def ticks(low: float, high: float, fewest: int = _FEWEST_TICKS) -> list[float]:
    """Return round numbers from `low` to `high`, at least `fewest` minus one of them, each step 1, 2 or 5 times a power of
    ten. `high` is above `low`."""
    rough = (high - low) / fewest
    power = 10.0 ** math.floor(math.log10(rough))
    step = max(factor * power for factor in (1, 2, 5) if factor * power <= rough * (1 + 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _across(value: float, low: float, high: float) -> float:
    return LEFT + (value - low) / (high - low) * _INNER_WIDTH


def _up(share: float) -> float:
    return TOP + (1 - share) * _INNER_HEIGHT


def _bar(left: float, width: float, bottom: float, top: float, number: int, told: str) -> str:
    height = max((top - bottom) * _INNER_HEIGHT, 0.5)
    return (
        f'<rect class="series{number}" x="{left:.1f}" y="{_up(top):.1f}" width="{max(width, 0.5):.1f}" '
        f'height="{height:.1f}"><title>{escape(told)}</title></rect>'
    )


def _x_ticks(low: float, high: float) -> Iterable[str]:
    for value in ticks(low, high):
        yield _text(_across(value, low, high), HEIGHT - BOTTOM + 14, _number(value), "middle")


def _y_ticks(top: float, told: Callable[[float], str], scale: float) -> Iterable[str]:
    for value in ticks(0.0, top * scale, 3):
        y = _up(value / scale / top)
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield _text(LEFT - 5, y + 4, told(value), "end")


def _x_title(text: str) -> str:
    return _text(LEFT + _INNER_WIDTH / 2, HEIGHT - 4, text, "middle")


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _number(value: float) -> str:
    """Return a number as it is told beside an axis, such as `12k`, `3.5M`, `0.25`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            scale = 1e3 if unit == "k" else size
            return f"{value / scale:.3g}{unit}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _svg(label: str, marks: Iterable[str], height: float, legend: Sequence[str]) -> str:
    keys = "".join(
        f'<span class="key"><i class="series{number}"></i>{escape(name)}</span>' for number, name in enumerate(legend)
    )
    drawn = f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(label)}">{"".join(marks)}</svg>'
    return f"<figure>{drawn}{f'<figcaption>{keys}</figcaption>' if keys else ''}</figure>"
