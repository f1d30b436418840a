"""Drawing primitives: SVG elements as escaped markup, scales, ticks, lines, bands, markers and end labels.

Colours are CSS classes, never attributes, so that one chart serves light, dark and print. Every attribute and every
text goes through markupsafe, so a design's title can hold any character.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from sublayer.report.numbers import MINUS, significant

Point = tuple[float, float]
SHAPES = ("circle", "square", "triangle", "diamond", "wedge", "plus", "cross", "bar")
_PATHS = {
    "square": "M{0} {0}h{2}v{2}h-{2}z",
    "triangle": "M0 -{3}L{3} {1}H-{3}z",
    "diamond": "M0 -{3}L{3} 0L0 {3}L-{3} 0z",
    "wedge": "M0 {3}L{3} -{1}H-{3}z",
    "plus": "M-{3} 0H{3}M0 -{3}V{3}",
    "cross": "M-{1} -{1}L{1} {1}M-{1} {1}L{1} -{1}",
    "bar": "M0 -{3}V{3}",
}


def coordinate(value: float) -> str:
    """A coordinate with one decimal at most: 12, 12.5."""
    text = f"{value:.1f}"
    return text[:-2] if text.endswith(".0") else text


def tag(element: str, *children: str, **attributes: str | float | None) -> Markup:
    """An element. Attribute names lose a trailing underscore and take hyphens; None leaves an attribute out."""
    parts = [Markup("<") + element]
    for name, value in attributes.items():
        if value is not None:
            text = coordinate(value) if isinstance(value, float) else value
            parts.append(Markup(' {}="{}"').format(name.rstrip("_").replace("_", "-"), text))
    parts.append(Markup(">"))
    parts.extend(escape(child) for child in children)
    parts.append(Markup("</{}>").format(element))
    return Markup("").join(parts)


def marker(shape: str, x: float, y: float, size: float = 3.2, style: str = "", tip: str = "") -> Markup:
    """One point of a series, with a tooltip that needs no script."""
    inside = (tag("title", tip),) if tip else ()
    if shape == "circle":
        return tag("circle", *inside, cx=x, cy=y, r=size, class_=f"pt {style}")
    numbers = [coordinate(n) for n in (-size * 0.9, size * 0.9, size * 1.8, size * 1.25)]
    path = _PATHS[shape].format(*numbers)
    open_ = " stroke" if shape in ("plus", "cross", "bar") else ""
    move = f"translate({coordinate(x)} {coordinate(y)})"
    return tag("path", *inside, d=path, transform=move, class_=f"pt{open_} {style}")


@dataclass(frozen=True)
class Scale:
    """A linear or logarithmic map of values [low, high] onto pixels [start, end]."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log(max(value, low)), math.log(low), math.log(high)
        return self.start + (self.end - self.start) * ((value - low) / (high - low) if high > low else 0.5)

    def holds(self, value: float) -> bool:
        """Is the value on the axis?"""
        slack = 1e-9 * (abs(self.low) + abs(self.high))
        return self.low - slack <= value <= self.high + slack

    def ticks(self, about: int) -> list[float]:
        """Round values, about so many, inside the axis."""
        if self.log:
            return _log_ticks(self.low, self.high, about)
        span = self.high - self.low
        if span <= 0:
            return [self.low]
        raw = span / max(about, 1)
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.8)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(k * step, 12) for k in range(first, last + 1)]


def _log_ticks(low: float, high: float, about: int) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for mantissas in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        found = [m * 10.0**p for p in decades for m in mantissas if low * 0.999 <= m * 10.0**p <= high * 1.001]
        if len(found) >= min(about, 3):
            break
    while len(found) > about + 2:
        found = found[::2]
    return found


def extent(values: Iterable[float], pad: float = 0.05, include: Sequence[float] = ()) -> tuple[float, float]:
    """The smallest and largest value with some room around; (0, 1) for nothing at all."""
    found = [*values, *include]
    if not found:
        return 0.0, 1.0
    low, high = min(found), max(found)
    room = pad * (high - low) or 0.05 * abs(high) or 0.5
    return low - room, high + room


def tick_label(value: float, ticks: Sequence[float]) -> str:
    """A tick's number with just the decimals that set it apart from its neighbours."""
    largest = max((abs(t) for t in ticks), default=1.0)
    if largest and (largest < 1e-3 or largest >= 1e6):
        return significant(value, 2) if value else "0"
    for digits in range(5):
        if all(math.isclose(round(t, digits), t, abs_tol=1e-9 * max(largest, 1e-9)) for t in ticks):
            return f"{value:,.{digits}f}".replace("-", MINUS)
    return significant(value, 2) if value else "0"


def line_path(points: Sequence[Point]) -> str:
    """Path data through pixel points."""
    if not points:
        return ""
    head, *rest = (f"{coordinate(x)} {coordinate(y)}" for x, y in points)
    return f"M{head}" + ("L" + " ".join(rest) if rest else "")


@dataclass
class Plot:
    """One panel: two scales and the marks drawn so far, back to front."""

    width: float
    height: float
    x: Scale
    y: Scale
    marks: list[Markup] = field(default_factory=list)
    clipped: list[Markup] = field(default_factory=list)
    over: list[Markup] = field(default_factory=list)
    labels: list[tuple[float, str, str]] = field(default_factory=list)

    def axes(self, x_title: str = "", x_ticks: int = 5, whole: bool = False) -> None:
        """Faint horizontal rules with their numbers, and ticks below."""
        levels = self.y.ticks(max(4, round(abs(self.y.start - self.y.end) / 42)))
        for value in levels:
            y = self.y(value)
            self.marks.append(tag("line", x1=self.x.start, x2=self.x.end, y1=y, y2=y, class_="rule"))
            label = tick_label(value, (value,) if self.y.log else levels)
            self.marks.append(tag("text", label, x=self.x.start - 5, y=y + 3.5, class_="tick end"))
        stops = self.x.ticks(x_ticks)
        stops = [stop for stop in stops if not whole or float(stop).is_integer()]
        base = self.y.start
        for value in stops:
            x = self.x(value)
            self.marks.append(tag("line", x1=x, x2=x, y1=base, y2=base + 3, class_="axis"))
            self.marks.append(
                tag("text", tick_label(value, (value,) if self.x.log else stops), x=x, y=base + 15, class_="tick mid")
            )
        self.marks.append(tag("line", x1=self.x.start, x2=self.x.end, y1=base, y2=base, class_="axis"))
        if x_title:
            middle = (self.x.start + self.x.end) / 2
            self.marks.append(tag("text", x_title, x=middle, y=base + 29, class_="axis-title mid"))

    def reference(self, value: float, text: str = "", below: bool = False) -> None:
        """A dotted level that means something: no difference, as large as the stream."""
        if not self.y.holds(value):
            return
        y = self.y(value)
        self.marks.append(tag("line", x1=self.x.start, x2=self.x.end, y1=y, y2=y, class_="ref"))
        if text:
            drop = 11.0 if below else -4.0
            self.marks.append(tag("text", text, x=self.x.end, y=y + drop, class_="note end"))

    def _pixels(self, points: Iterable[Point]) -> list[Point]:
        return [(self.x(x), self.y(y)) for x, y in points]

    def band(self, low: Sequence[Point], high: Sequence[Point], style: str) -> None:
        """The area between two lines."""
        if len(low) > 1:
            outline = self._pixels(high) + self._pixels(low)[::-1]
            self.clipped.append(tag("path", d=line_path(outline) + "z", class_=f"band {style}"))

    def line(self, points: Sequence[Point], style: str) -> None:
        """A line through points, cut at the plot's edge."""
        if len(points) > 1:
            self.clipped.append(tag("path", d=line_path(self._pixels(points)), class_=f"ln {style}"))

    def dot(self, point: Point, shape: str, style: str, tip: str = "", size: float = 3.2) -> None:
        """A marker, if its place is on the plot."""
        if self.x.holds(point[0]) and self.y.holds(point[1]):
            self.over.append(marker(shape, self.x(point[0]), self.y(point[1]), size, style, tip))

    def span(self, x: float, low: float, high: float, style: str) -> None:
        """A vertical bar at one x: an interval."""
        self.clipped.append(tag("path", d=line_path(self._pixels(((x, low), (x, high)))), class_=f"ln {style}"))

    def end_label(self, value: float, text: str, style: str) -> None:
        """A name at the right edge, moved aside later if two would meet."""
        y = self.y(min(max(value, self.y.low), self.y.high))
        self.labels.append((y, text, style))

    def _placed_labels(self, gap: float = 13.5) -> list[Markup]:
        order = sorted(self.labels, key=lambda label: label[0])
        places = [label[0] for label in order]
        for _ in range(60):
            moved = False
            for k in range(1, len(places)):
                lack = gap - (places[k] - places[k - 1])
                if lack > 0.01:
                    places[k - 1] -= lack / 2
                    places[k] += lack / 2
                    moved = True
            if not moved:
                break
        lowest = self.y.start - 4  # above the numbers of the axis below
        for k in range(len(places) - 1, -1, -1):
            places[k] = min(places[k], lowest)
            lowest = places[k] - gap
        return [
            tag("text", text, x=self.x.end + 8, y=place + 3.5, class_=f"label {style}")
            for place, (_, text, style) in zip(places, order, strict=True)
        ]

    def render(self, title: str, description: str = "") -> Markup:
        """The whole picture, named for screen readers."""
        label = f"{title}. {description}" if description else title
        left, top = self.x.start - 1, self.y.end - 1
        wide, high = self.x.end - self.x.start + 2, self.y.start - self.y.end + 2
        window = tag(  # an inner svg cuts its content without an id
            "svg",
            *self.clipped,
            x=left,
            y=top,
            width=wide,
            height=high,
            viewBox=" ".join(map(coordinate, (left, top, wide, high))),
        )
        box = f"0 0 {coordinate(self.width)} {coordinate(self.height)}"
        inside = (*self.marks, window, *self.over, *self._placed_labels())
        return tag("svg", *inside, viewBox=box, role="img", aria_label=label, class_="plot")
