"""Charts as inline SVG, coloured by the page's style sheet. Built as XML elements, so that no name can escape into markup."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from robench.report.curves import Curve

WIDTH, HEIGHT = 460, 330
LEFT, RIGHT, TOP, BOTTOM = 46, 118, 14, 46
GAP = 14.0  # between labels, one line of text


@dataclass(frozen=True)
class Scale:
    """A map from values to places on the page."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log(each) for each in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)


@dataclass(frozen=True)
class Dot:
    """A model in a plot of robust against clean accuracy, in percent; intervals (low, high) where they are known."""

    name: str
    clean: float
    robust: float
    clean_interval: tuple[float, float] | None = None
    robust_interval: tuple[float, float] | None = None


def line_chart(curves: Sequence[Curve], *, label: str, description: str, log: bool = False, accent: str = "") -> str:
    """Robust accuracy against eps or steps, with intervals, each line named at its end.

    Args:
        curves: at least one, with at least two points each.
        label: of the horizontal axis.
        description: what the chart shows, for those who do not see it.
        log: whether the horizontal axis is logarithmic.
        accent: the curve that matters most, by its name; the last by default.
    """
    points = {point.x: point.x_text for curve in curves for point in curve.points}
    right = _room_for(curve.name for curve in curves)
    x = Scale(min(points), max(points), LEFT + 6, WIDTH - right, log)
    y = Scale(0, 100, HEIGHT - BOTTOM, TOP)
    svg = _canvas(description, label, "correct, %", y, right)
    _ticks(svg, x, points)
    accent = accent or curves[-1].name
    ordered = sorted(curves, key=lambda curve: curve.name == accent)
    ends = _apart([y(100 * curve.points[-1].accuracy) for curve in ordered], TOP, HEIGHT - BOTTOM)
    for place, (curve, end) in enumerate(zip(ordered, ends, strict=True)):
        kind = "accent" if curve.name == accent else f"plain dash{place % 4}"
        group = _add(svg, "g", class_=f"curve {kind}")
        places = [(x(point.x), y(100 * point.accuracy)) for point in curve.points]
        for point, (across, down) in zip(curve.points, places, strict=True):
            _whisker(group, across, y(100 * point.low), across, y(100 * point.high))
            dot = _add(group, "circle", cx=across, cy=down, r=3.2)
            _add(dot, "title", f"{curve.name}, {point.x_text}: {100 * point.accuracy:.2f} % of {point.n:,}")
        _add(group, "polyline", points=" ".join(f"{across:.1f},{down:.1f}" for across, down in places))
        if abs(end - places[-1][1]) > 3:
            _add(group, "path", class_="leader", d=f"M{places[-1][0] + 5:.1f},{places[-1][1]:.1f} L{WIDTH - right + 14},{end:.1f}")
        _add(group, "text", curve.name, x=WIDTH - right + 17, y=end + 4, class_="name")
    return ET.tostring(svg, encoding="unicode")


def step_chart(lines: Mapping[str, Sequence[tuple[float, float]]], *, label: str, description: str) -> str:
    """Percent that is left against what was spent, on a logarithmic axis from 1; each line falls in steps and is named at its end.

    Args:
        lines: (spent, percent) in the order of spending, of at least one attack; the last is drawn in colour.
        label, description: as of ``line_chart``.
    """
    high = 10 ** math.ceil(math.log10(max(max(line[-1][0] for line in lines.values()), 10)))
    right = _room_for(lines)
    x, y = Scale(1, high, LEFT + 6, WIDTH - right, log=True), Scale(0, 100, HEIGHT - BOTTOM, TOP)
    svg = _canvas(description, label, "correct, %", y, right)
    powers = [10**power for power in range(round(math.log10(high)) + 1)]
    _ticks(svg, x, {power: f"{power:,}" for power in powers})
    ends = _apart([y(line[-1][1]) for line in lines.values()], TOP, HEIGHT - BOTTOM)
    for place, ((name, line), end) in enumerate(zip(lines.items(), ends, strict=True)):
        group = _add(svg, "g", class_="curve accent" if place == len(lines) - 1 else f"curve plain dash{place % 4}")
        places = dict.fromkeys(
            (round(x(max(spent, 1)), 1), round(y(left), 1)) for spent, left in line
        )  # what no eye tells apart is one
        (across, down), *rest = places
        path = f"M{across},{down}" + "".join(f"H{along}V{below}" for along, below in rest)
        _add(group, "path", class_="line", d=path)
        _add(group, "path", class_="leader", d=f"M{x(line[-1][0]) + 3:.1f},{y(line[-1][1]):.1f} L{WIDTH - right + 14},{end:.1f}")
        _add(group, "text", name, x=WIDTH - right + 17, y=end + 4, class_="name")
    return ET.tostring(svg, encoding="unicode")


def scatter_chart(dots: Sequence[Dot], context: Sequence[Dot], *, description: str) -> str:
    """Robust against clean accuracy: our models numbered from 1 and with intervals, the context as grey dots.

    Args:
        dots: models of ours.
        context: what others published.
        description: what the chart shows, for those who do not see it.
    """
    low = 10 * math.floor(min([dot.clean for dot in [*dots, *context]] + [80]) / 10)
    x, y = Scale(low, 100, LEFT + 6, WIDTH - 20), Scale(0, 100, HEIGHT - BOTTOM, TOP)
    svg = _canvas(description, "correct without attack, %", "robust, %", y, right=20)
    step = 10 if 100 - low <= 50 else 20
    _ticks(svg, x, {each: str(each) for each in range(low, 101, step)})
    _add(svg, "path", class_="leader", d=f"M{x(low):.1f},{y(low):.1f} L{x(100):.1f},{y(100):.1f}")
    for dot in context:
        circle = _add(svg, "circle", class_="context", cx=x(dot.clean), cy=y(dot.robust), r=2.6)
        _add(circle, "title", f"{dot.name}: {dot.clean:.2f} % clean, {dot.robust:.2f} % robust")
    taken: list[tuple[float, float]] = []
    for place, dot in enumerate(dots, 1):
        group = _add(svg, "g", class_="curve accent")
        across, down = x(dot.clean), y(dot.robust)
        if dot.clean_interval:
            _whisker(group, x(max(dot.clean_interval[0], low)), down, x(dot.clean_interval[1]), down)
        if dot.robust_interval:
            _whisker(group, across, y(dot.robust_interval[0]), across, y(dot.robust_interval[1]))
        circle = _add(group, "circle", cx=across, cy=down, r=4.2)
        _add(circle, "title", f"{dot.name}: {dot.clean:.2f} % clean, {dot.robust:.2f} % robust")
        above = down - 7
        while any(abs(across - other) < 1.2 * GAP and abs(above - height) < GAP for other, height in taken):
            above -= GAP
        taken.append((across, above))
        _add(group, "text", str(place), x=across + 6, y=above, class_="name")
    return ET.tostring(svg, encoding="unicode")


def _room_for(names: Iterable[str]) -> int:
    """Width that the names of curves need at the right, up to half of the chart."""
    return min(max(RIGHT, 24 + 7 * max(map(len, names))), WIDTH // 2)


def _canvas(description: str, across: str, up: str, y: Scale, right: int = RIGHT) -> ET.Element:
    """An empty chart with a vertical axis in percent."""
    svg = ET.Element("svg", {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "role": "img", "aria-label": description, "class": "chart"})
    for value in range(0, 101, 20):
        _add(svg, "path", class_="grid", d=f"M{LEFT},{y(value):.1f} H{WIDTH - right}")
        _add(svg, "text", str(value), class_="tick up", x=LEFT - 7, y=y(value) + 4)
    _add(svg, "text", across, class_="axis", x=(LEFT + WIDTH - right) / 2, y=HEIGHT - 6)
    _add(svg, "text", up, class_="axis", transform=f"translate(12,{(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)")
    return svg


def _ticks(svg: ET.Element, x: Scale, points: dict[float, str]) -> None:
    """Marks at the places given, and their names where there is room."""
    free = -math.inf
    for value, description in sorted(points.items()):
        across, half = x(value), 3.4 * len(description)
        _add(svg, "path", class_="mark", d=f"M{across:.1f},{HEIGHT - BOTTOM} v5")
        if across - half >= free:
            _add(svg, "text", description, class_="tick", x=across, y=HEIGHT - BOTTOM + 18)
            free = across + half + 6


def _whisker(parent: ET.Element, x1: float, y1: float, x2: float, y2: float) -> None:
    _add(parent, "line", class_="whisker", x1=x1, y1=y1, x2=x2, y2=y2)


def _apart(places: list[float], low: float, high: float) -> list[float]:
    """The places, moved as little as one pass down and one up need so that neighbours are a line of text apart."""
    order = sorted(range(len(places)), key=lambda k: places[k])
    moved, before = list(places), low - GAP
    for k in order:
        moved[k] = before = max(places[k], before + GAP)
    after = high + GAP
    for k in reversed(order):
        moved[k] = after = min(moved[k], after - GAP)
    return moved


def _add(parent: ET.Element, tag: str, text: str = "", **attributes: object) -> ET.Element:
    named = {name.rstrip("_"): f"{value:.1f}" if isinstance(value, float) else str(value) for name, value in attributes.items()}
    element = ET.SubElement(parent, tag, named)
    element.text = text or None
    return element
