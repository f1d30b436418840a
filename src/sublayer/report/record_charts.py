"""Charts of a record: lines with markers, told apart by colour, dash and marker, with intervals, marks and gaps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup

from sublayer.report import numbers
from sublayer.report.record_blocks import Cell, Chart, Grid, Mark, Series, Spot, plain
from sublayer.report.svg import SHAPES, Plot, Scale, coordinate, extent, line_path, marker, tag

WIDE, HIGH = 500.0, 310.0
BARS = 12  # points of a series up to which its intervals are bars; beyond, one band
APART = 3.0  # pixels between the bars of series that share their x
SHORT = 18  # characters of a name that stands at its line's end
ROOM = 30.0  # pixels that a number below the axis needs
FAR = 1.0  # a mark farther from the points than this many spans of the axis stays outside


def style(index: int) -> str:
    """Classes of a series: eight colours with their dashes, then the same with other widths."""
    return f"d{index % 8} k{index // 8 % 3}"


def swatch(index: int) -> Markup:
    """The line and marker that stand for a series."""
    line = tag("path", d="M0 6H26", class_=f"ln {style(index)}")
    dot = marker(SHAPES[index % len(SHAPES)], 13.0, 6.0, 3.6, style(index))
    return tag("svg", line, dot, viewBox="0 0 26 12", class_="swatch", aria_hidden="true")


@dataclass(frozen=True)
class Stops(Scale):
    """A scale whose ticks are the places where something was measured, as far as they leave each other room."""

    places: tuple[float, ...] = ()

    def ticks(self, about: int) -> list[float]:
        """The measured places, all of them or every second, third, ...; round values where they are many."""
        if not 1 < len(self.places) <= BARS:
            return super().ticks(about)
        pixels = [self(place) for place in self.places]
        near = min(right - left for left, right in itertools.pairwise(pixels))
        return list(self.places[:: max(1, math.ceil(ROOM / near))]) if near > ROOM / 3 else super().ticks(about)


@dataclass(frozen=True)
class Drawing:
    """A chart drawn, with what stands beside the picture."""

    chart: Chart
    picture: Markup
    notes: tuple[str, ...]  # the block's note, the lost points, marks outside, how intervals are drawn

    @property
    def key(self) -> Markup:
        """Which line is which series; nothing for one."""
        names = [each.name for each in self.chart.series]
        items = [Markup("<li>{} {}</li>").format(swatch(i), name) for i, name in enumerate(names)]
        return Markup('<ul class="key">{}</ul>').format(Markup("").join(items)) if len(items) > 1 else Markup("")

    @property
    def grid(self) -> Grid:
        """Every point of the chart as a table, lost ones too."""
        rows: list[tuple[Cell, ...]] = []
        for each in self.chart.series:
            for spot in each.spots:
                values = [Cell(plain(value), value) for value in (spot.x, spot.y)]
                bounds = [Cell(plain(value), value) for value in (spot.low, spot.high)]
                rows.append((Cell(each.name), *values, *bounds))
            rows += [(Cell(each.name), Cell(lost), *[Cell(numbers.NONE)] * 3) for lost in each.lost]
        head = ("series", self.chart.x or "x", self.chart.y or "y", "low", "high")
        return Grid(f"The numbers of “{self.chart.title}”", "", head, tuple(rows), "lrrrr")


def draw(chart: Chart) -> Drawing:
    """The chart as SVG of `WIDE` by `HIGH` units, its colours left to the style sheet."""
    spots = [spot for each in chart.series for spot in each.spots]
    inside, outside = _marks(chart, spots)
    gaps = [x for each in chart.series for x in each.gaps if x > 0 or not chart.x_log]
    x_axis = _axis([*gaps, *(s.x for s in spots)], [m.value for m in inside if m.upright], chart.x_log, 0.05)
    values = [v for s in spots for v in (s.y, s.low, s.high) if v is not None]
    y_axis = _axis(values, [m.value for m in inside if not m.upright], chart.y_log, 0.06)
    many = len(chart.series) > 1
    named = many and len(chart.series) <= 8 and all(len(each.name) <= SHORT for each in chart.series)
    right = 18 + 6.4 * max((len(each.name) for each in chart.series), default=0) if named else 14.0
    y = Scale(*y_axis, HIGH - 36.0, 26.0, chart.y_log)
    measured = tuple(sorted({*gaps, *(spot.x for spot in spots)}))
    plot = Plot(WIDE, HIGH, Stops(*x_axis, _room(y), WIDE - right, chart.x_log, measured), y)
    plot.axes(chart.x)
    plot.marks.append(tag("text", chart.y, x=0.0, y=11.0, class_="axis-title"))
    for number, mark in enumerate(inside):
        _draw_mark(plot, mark, sum(m.upright for m in inside[:number]))
    apart = _apart(chart)
    for index, each in enumerate(chart.series):
        shift = APART * (index - (len(chart.series) - 1) / 2) if apart else 0.0
        _draw_series(plot, each, index, shift)
        _draw_lost(plot, each, index, shift)
        if named and each.spots:
            plot.end_label(each.spots[-1].y, each.name, style(index))
    notes = [chart.note] if chart.note else []
    if chart.lost:
        notes.append(f"Lost, with a cross at the upper edge: {chart.lost}.")
    for mark in outside:
        notes.append(f"Outside the frame: {mark.name}, {'x' if mark.upright else 'y'} = {plain(mark.value)}.")
    if apart:
        notes.append("Series are set a few pixels apart sideways, so that their intervals do not cover each other.")
    if not spots:
        plot.over.append(tag("text", "no value to draw", x=WIDE / 2, y=HIGH / 2, class_="note mid"))
    return Drawing(chart, plot.render(chart.title, _described(chart)), tuple(notes))


def _axis(values: Iterable[float], marks: Iterable[float], log: bool, pad: float) -> tuple[float, float]:
    found = [*values, *marks]
    if not log:
        return extent(found, pad)
    found = [value for value in found if value > 0] or [1.0, 10.0]
    low, high = math.log(min(found)), math.log(max(found))
    room = pad * (high - low) or 0.5
    return math.exp(low - room), math.exp(high + room)


def _room(y: Scale) -> float:
    """Space for the numbers of the vertical axis."""
    ticks = y.ticks(6)
    longest = max((len(numbers.significant(t, 2) if abs(t) < 1e-3 else f"{t:,.6g}") for t in ticks), default=1)
    return max(30.0, 10 + 6.6 * min(longest, 9))


def _marks(chart: Chart, spots: list[Spot]) -> tuple[list[Mark], list[Mark]]:
    """Marks that the frame can reach, and those so far away that they would flatten the lines."""
    inside: list[Mark] = []
    outside: list[Mark] = []
    for mark in chart.marks:
        log = chart.x_log if mark.upright else chart.y_log
        found = [spot.x if mark.upright else spot.y for spot in spots]
        (inside if _near(mark.value, found, log) else outside).append(mark)
    return inside, outside


def _near(value: float, found: list[float], log: bool) -> bool:
    if log:
        if value <= 0:
            return False
        value, found = math.log(value), [math.log(each) for each in found]
    if not found:
        return True
    low, high = min(found), max(found)
    reach = FAR * (high - low) or math.inf
    return low - reach <= value <= high + reach


def _apart(chart: Chart) -> bool:
    """Do several series have bars at one x?"""
    barred = [each for each in chart.series if len(each.spots) <= BARS and any(s.low is not None for s in each.spots)]
    places = [spot.x for each in barred for spot in each.spots]
    return len(barred) > 1 and len(set(places)) < len(places)


def _draw_mark(plot: Plot, mark: Mark, earlier: int) -> None:
    """A dotted line with its name; names of upright lines take turns in height."""
    if not mark.upright:
        plot.reference(mark.value, mark.name)
        return
    if not plot.x.holds(mark.value):
        return
    x, top = plot.x(mark.value), plot.y.end
    line = f"M{coordinate(x)} {coordinate(top)}V{coordinate(plot.y.start)}"
    plot.marks.append(tag("path", d=line, class_="ref"))
    left = x > (plot.x.start + plot.x.end) / 2
    place = x - 4 if left else x + 4
    height = top + 10 + 12 * (earlier % 8)
    plot.marks.append(tag("text", mark.name, x=place, y=height, class_="note end" if left else "note"))


def _draw_series(plot: Plot, series: Series, index: int, shift: float) -> None:
    look, shape = style(index), SHAPES[index % len(SHAPES)]
    bars = len(series.spots) <= BARS
    for run in series.runs:
        places = [(plot.x(spot.x) + shift, plot.y(spot.y)) for spot in run]
        if len(places) > 1:
            plot.clipped.append(tag("path", d=line_path(places), class_=f"ln {look}"))
        bounded = [spot for spot in run if spot.low is not None and spot.high is not None]
        if bars:
            for spot in bounded:
                plot.clipped.append(_bar(plot, spot, shift, look))
        else:
            for stretch in _stretches(run):
                low = [(s.x, s.low) for s in stretch if s.low is not None]
                high = [(s.x, s.high) for s in stretch if s.high is not None]
                plot.band(low, high, look)
        few = run[:: max(1, len(series.spots) // 24)] if len(run) > 1 else run
        for spot in (*few, *(() if few[-1] is run[-1] else (run[-1],))):
            tip = f"{series.name}: {plain(spot.y)} at {plain(spot.x)}"
            if spot.low is not None:
                tip += f" ({plain(spot.low)} to {plain(spot.high)})"
            plot.over.append(marker(shape, plot.x(spot.x) + shift, plot.y(spot.y), 3.2, look, tip))


def _draw_lost(plot: Plot, series: Series, index: int, shift: float) -> None:
    """A cross at the upper edge for each point that has no place in the frame."""
    for x in series.gaps:
        if plot.x.holds(x):
            place = plot.x(x) + shift
            plot.over.append(
                marker("cross", place, plot.y.end - 4, 3.6, style(index), f"{series.name}: lost at {plain(x)}")
            )


def _stretches(run: tuple[Spot, ...]) -> list[list[Spot]]:
    """Neighbours that have an interval, in groups: a band does not bridge a point without one."""
    groups: list[list[Spot]] = [[]]
    for spot in run:
        if spot.low is None:
            groups.append([])
        else:
            groups[-1].append(spot)
    return [group for group in groups if group]


def _bar(plot: Plot, spot: Spot, shift: float, look: str) -> Markup:
    assert spot.low is not None
    assert spot.high is not None
    x, low, high = plot.x(spot.x) + shift, plot.y(spot.low), plot.y(spot.high)
    left, right = coordinate(x - 3), coordinate(x + 3)
    low_at, high_at = coordinate(low), coordinate(high)
    path = f"M{coordinate(x)} {low_at}V{high_at}M{left} {low_at}H{right}M{left} {high_at}H{right}"
    return tag("path", d=path, class_=f"ln solid bar {look}")


def _described(chart: Chart) -> str:
    """The chart in words, for who cannot see it: where each line begins and ends."""
    words = []
    for each in chart.series:
        spots = each.spots
        if not spots:
            words.append(f"{each.name} has no value")
        elif len(spots) == 1:
            words.append(f"{each.name} is {plain(spots[0].y)} at {plain(spots[0].x)}")
        else:
            first, last = spots[0], spots[-1]
            words.append(
                f"{each.name} goes from {plain(first.y)} at {plain(first.x)} to {plain(last.y)} at {plain(last.x)}"
            )
    axes = f"{chart.y or 'y'} against {chart.x or 'x'}"
    return f"{axes}: {'; '.join(words)}. {f'Lost: {chart.lost}.' if chart.lost else ''}".strip()
