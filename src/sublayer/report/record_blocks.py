"""The blocks of a record, read and checked: tables whose numbers have the digits a reader needs, charts whose points
are split into what can be drawn and what was lost."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sublayer.report import numbers

Json = dict[str, Any]

SCHEMA = "sublayer.record/1"
LONG = 40  # characters from which a cell may wrap
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class RecordError(ValueError):
    """A record that cannot be shown: one message with the rule, the value received and the remedy."""


def clean(value: Any) -> Any:
    """The same JSON value with signs that neither XML nor UTF-8 can hold shown as U+FFFD."""
    if isinstance(value, str):
        return _UNPRINTABLE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {clean(str(name)): clean(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    return value


def plain(value: object) -> str:
    """A fact or a setting in words: lists with commas, numbers as a person would write them."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return "; ".join(f"{name.replace('_', ' ')} {plain(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value))
    if isinstance(value, int):
        return str(value) if abs(value) < 10_000 else numbers.count(value)
    if isinstance(value, float):
        return _short(value)
    return numbers.NONE if value is None else str(value)


def _short(value: float) -> str:
    """Four digits at most, without zeros at the end: 23.4, 0.0001235, 123,457."""
    number = numbers.known(value)
    if number is None:
        return numbers.NONE
    if number.is_integer() and abs(number) < 1e15:
        return plain(int(number))
    if not 1e-4 <= abs(number) < 1e7:
        return numbers.significant(number, 3)
    return (f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.4g}").replace("-", numbers.MINUS)


# --- tables -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """What a cell shows, and the number behind it where there is one."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Grid:
    """A table with its cells in text. ``align`` has a letter a column: l text, w text that may wrap, r numbers."""

    title: str
    note: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    align: str


def grid(block: Json, part: str) -> Grid:
    """A table block with its numbers written out, a column at a time.

    Raises:
        RecordError: a row that has another number of cells than the head.
    """
    title, head = str(block.get("title") or ""), [str(name) for name in block.get("head") or ()]
    rows = [list(row) for row in block.get("rows") or ()]
    for row in rows:
        if len(row) != len(head):
            raise RecordError(
                f"a row of a table has one cell for each of the head's {len(head)}; table {title!r} of part {part!r} "
                f"has a row of {len(row)}: {row!r}. Fill it with None"
            )
    columns = [_column([row[i] for row in rows]) for i in range(len(head))]
    # The first column names its row, so numbers stand at the left there too.
    align = "".join(_align([row[i] for row in rows], "r" if i else "l") for i in range(len(head)))
    written = tuple(tuple(column[k] for column in columns) for k in range(len(rows)))
    return Grid(title, str(block.get("note") or ""), tuple(head), written, align)


def _align(values: Sequence[object], of_numbers: str) -> str:
    texts = [value for value in values if isinstance(value, str)]
    if any(len(text) > LONG for text in texts):
        return "w"
    return "l" if texts else of_numbers


def _column(values: Sequence[object]) -> list[Cell]:
    found = [number for value in values if (number := numbers.known(value)) is not None]
    whole = all(number.is_integer() and abs(number) < 1e15 for number in found)
    digits = None if whole else decimals(found)
    return [_cell(value, whole, digits) for value in values]


def decimals(found: Iterable[float]) -> int | None:
    """Decimals that show four digits of the largest number and at least two of the smallest; None: no such."""
    sizes = [abs(number) for number in found if number]
    if not sizes or max(sizes) >= 1e7:
        return None
    digits = max(0, 3 - math.floor(math.log10(max(sizes))))
    return digits if digits <= 6 and min(sizes) >= 10 * 10.0**-digits else None


def _cell(value: object, whole: bool, digits: int | None) -> Cell:
    number = numbers.known(value)
    if number is None:
        return Cell(plain(value) if isinstance(value, str | bool) else numbers.NONE)
    if whole:
        return Cell(numbers.count(number), number)
    if digits is None:
        return Cell(numbers.significant(number), number)
    return Cell(f"{number:,.{digits}f}".replace("-", numbers.MINUS), number)


# --- charts -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spot:
    """A point that is drawn; ``low`` and ``high`` where it has an interval."""

    x: float
    y: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Series:
    """One line: the stretches between its gaps, and what is missing in words."""

    name: str
    runs: tuple[tuple[Spot, ...], ...]
    lost: tuple[str, ...]  # as "4 (no value)"
    gaps: tuple[float, ...]  # the x of what is lost

    @property
    def spots(self) -> list[Spot]:
        """All points that are drawn, by x."""
        return [spot for run in self.runs for spot in run]


@dataclass(frozen=True)
class Mark:
    """A line across the frame: at an x (``upright``) or at a y."""

    value: float
    name: str
    upright: bool


@dataclass(frozen=True)
class Chart:
    """A chart block, read."""

    title: str
    note: str
    x: str
    y: str
    x_log: bool
    y_log: bool
    series: tuple[Series, ...]
    marks: tuple[Mark, ...]

    @property
    def lost(self) -> str:
        """What could not be drawn, in one line; empty where all was."""
        return "; ".join(f"{each.name} at {', '.join(each.lost)}" for each in self.series if each.lost)


def chart(block: Json, part: str) -> Chart:
    """A chart block with each point placed: drawn, or lost with the reason.

    Raises:
        RecordError: a point without a finite x, or one that is no mapping.
    """
    title = str(block.get("title") or "")
    logs = bool(block.get("x_log")), bool(block.get("y_log"))
    series = tuple(_series(each, logs, f"chart {title!r} of part {part!r}") for each in block.get("series") or ())
    marks = []
    for mark in block.get("marks") or ():
        for axis in ("x", "y"):
            value = numbers.known(mark.get(axis))
            if value is not None:
                marks.append(Mark(value, str(mark.get("name") or ""), axis == "x"))
    x, y, note = (str(block.get(name) or "") for name in ("x", "y", "note"))
    return Chart(title, note, x, y, *logs, series, tuple(marks))


def _series(block: Json, logs: tuple[bool, bool], where: str) -> Series:
    name = " ".join(str(block.get("name") or "").split())
    points = []
    for point in block.get("points") or ():
        x = numbers.known(point.get("x")) if isinstance(point, dict) else None
        if x is None:
            raise RecordError(
                f"a point of a chart has a finite x (its y may be None); series {name!r} of {where} has {point!r}"
            )
        points.append((x, point))
    points.sort(key=lambda pair: pair[0])
    runs: list[list[Spot]] = [[]]
    lost, gaps = [], []
    for x, point in points:
        y, low, high = (numbers.known(point.get(key)) for key in ("y", "low", "high"))
        reason = _reason(x, y, logs)
        if reason or y is None:
            lost.append(f"{plain(x)} ({reason})")
            gaps.append(x)
            runs.append([])
        else:
            bounded = low is not None and high is not None
            runs[-1].append(Spot(x, y, low if bounded else None, high if bounded else None))
    return Series(name, tuple(tuple(run) for run in runs if run), tuple(lost), tuple(gaps))


def _reason(x: float, y: float | None, logs: tuple[bool, bool]) -> str:
    if y is None:
        return "no value"
    if logs[0] and x <= 0:
        return "such an x has no place on a logarithmic axis"
    return f"{plain(y)} has no place on a logarithmic axis" if logs[1] and y <= 0 else ""
