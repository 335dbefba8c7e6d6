"""The little that the figures need of SVG: scales with round ticks, axes, and marks that take their colours from the page's style."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise


@dataclass(frozen=True)
class Scale:
    """Maps values from [low, high] to pixels from `start` to `end`, linearly or by their logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        share = (self._inner(value) - self._inner(self.low)) / (self._inner(self.high) - self._inner(self.low))
        return self.start + share * (self.end - self.start)

    def _inner(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def ticks(self, count: int = 5) -> list[float]:
        """About so many round values inside the domain: 1, 2 or 5 times a power of ten apart, or those numbers themselves."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for steps in ((1, 2, 5), (1, 3), (1,)):
                found = [step * 10.0**power for power in powers for step in steps if self.low <= step * 10.0**power <= self.high]
                if len(found) <= count + 1:
                    break
            if len(found) > 1:
                return found[:: math.ceil(len(found) / (count + 1))]
        raw = (self.high - self.low) / count
        step = next(s for s in (1, 2, 5, 10) if s * 10 ** math.floor(math.log10(raw)) >= raw) * 10 ** math.floor(math.log10(raw))
        first = math.ceil(self.low / step - 1e-9)
        return [step * i for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def linear(values: Sequence[float], start: float, end: float, *, zero: bool = False, margin: float = 0.05) -> Scale:
    """A scale around some values, with a margin of a fraction of their span; from 0 on if `zero`."""
    low, high = min(values), max(values)
    room = margin * (high - low) or 0.01 * abs(high) or 1.0
    return Scale(0.0 if zero else low - room, high + room, start, end)


def logarithmic(values: Sequence[float], start: float, end: float) -> Scale:
    """A logarithmic scale around some values above 0, with a margin of 15 %."""
    return Scale(min(values) / 1.15, max(values) * 1.15, start, end, log=True)


@dataclass(frozen=True)
class Box:
    """A rectangle of a drawing; y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def holds(self, x: float, y: float) -> bool:
        """Whether a point lies in it."""
        return self.left <= x <= self.right and self.top <= y <= self.bottom

    def meets(self, other: Box) -> bool:
        """Whether the two have an area in common."""
        return self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom


def along(points: Sequence[tuple[float, float]], step: float = 4.0) -> list[tuple[float, float]]:
    """Points on a line through some points, at most `step` apart, to see what it crosses."""
    found = list(points[:1])
    for (x1, y1), (x2, y2) in pairwise(points):
        count = max(1, math.ceil(math.hypot(x2 - x1, y2 - y1) / step))
        found += [(x1 + (x2 - x1) * i / count, y1 + (y2 - y1) * i / count) for i in range(1, count + 1)]
    return found


_LETTER = 6.4
"""Width of a letter of a label, at most on average."""


@dataclass(frozen=True)
class Plot:
    """A drawing area inside its margins."""

    x: Scale
    y: Scale
    width: float
    height: float

    def axes(self, x_label: str, y_label: str, x_text: Callable[[float], str], y_text: Callable[[float], str] | None) -> list[str]:
        """Grid lines with their numbers, and the labels of both axes; no numbers on the y axis where `y_text` is None."""
        left, right, bottom, top = self.x.start, self.x.end, self.y.start, self.y.end
        parts = [line(left, bottom, right, bottom, "axis")]
        for tick in self.x.ticks(4):
            x = self.x(tick)
            parts += [line(x, bottom, x, top, "grid"), text(x, bottom + 14, x_text(tick), "tick mid")]
        if y_text is not None:
            for tick in self.y.ticks(5):
                parts += [
                    line(left, self.y(tick), right, self.y(tick), "grid"),
                    text(left - 5, self.y(tick) + 3.5, y_text(tick), "tick end"),
                ]
        half = len(x_label) * _LETTER / 2  # what is longer than the plot ends at the edge of the drawing
        parts.append(text(max(half, min((left + right) / 2, self.width - half)), bottom + 30, x_label, "label mid"))
        if y_label:
            parts.append(text(left, top - 7, y_label, "label"))
        return parts

    def svg(self, parts: Sequence[str], summary: str, extra: str = "") -> str:
        """The whole drawing; `summary` is what a screen reader says."""
        head = f'<svg class="plot{extra}" viewBox="0 0 {self.width:g} {self.height:g}" role="img" aria-label="{escape(summary)}">'
        return head + "".join(parts) + "</svg>"


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    """A straight line."""
    return f'<path class="{style}" d="M{_n(x1)} {_n(y1)}L{_n(x2)} {_n(y2)}"/>'


def path(points: Sequence[tuple[float, float]], style: str) -> str:
    """A line through points."""
    return f'<path class="{style}" d="M' + "L".join(f"{_n(x)} {_n(y)}" for x, y in points) + '"/>'


def circle(x: float, y: float, radius: float, style: str) -> str:
    """A dot."""
    return f'<circle class="{style}" cx="{_n(x)}" cy="{_n(y)}" r="{_n(radius)}"/>'


def rect(x: float, y: float, width: float, height: float, style: str, tip: str = "") -> str:
    """A bar, with a text that is shown when it is pointed at."""
    inner = f"><title>{escape(tip)}</title></rect>" if tip else "/>"
    return f'<rect class="{style}" x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}"{inner}'


def text(x: float, y: float, content: str, style: str) -> str:
    """A line of text."""
    return f'<text class="{style}" x="{_n(x)}" y="{_n(y)}">{escape(content)}</text>'


def group(name: str, slot: int | None, tip: str, parts: Sequence[str]) -> str:
    """The marks of one method: coloured by its slot, pale without one, with a text that is shown when they are pointed at."""
    style = "m" if slot is None else f"m s{slot}"
    return f'<g class="{style}" data-m="{escape(name)}"><title>{escape(tip)}</title>{"".join(parts)}</g>'


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
