"""The official files: tab-separated, a header or none, quotes as plain text.

A line ends at a line feed and at nothing else, since texts hold other characters that Python takes for line ends. A
carriage return before it and a byte order mark at the start of the file are not part of the data. Columns are found by
their names where the file has a header.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .data import Label, Split, TaskData, assemble
from .errors import FinetuneError
from .tasks import DevIds, Task

_MOST_SKIPPED = 0.01  # of a file's rows; more of them broken means that it is another file


@dataclass(frozen=True)
class Lines:
    """A file as cells.

    Attributes:
        path: of the file.
        sha256: of its bytes.
        rows: line number from 1, and the cells; blank lines are left out.
    """

    path: Path
    sha256: str
    rows: list[tuple[int, list[str]]]


@dataclass
class Skipped:
    """Broken rows of a file that were left out."""

    count: int = 0
    lines: list[int] = field(default_factory=list)  # the first few

    def add(self, line: int) -> None:
        """One more."""
        self.count += 1
        if len(self.lines) < 10:
            self.lines.append(line)


def read_lines(path: Path) -> Lines:
    """The cells of a tab-separated file.

    Raises:
        FinetuneError: it cannot be read, or is not UTF-8.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FinetuneError(
            f"{path} cannot be read ({error.strerror or error}): give the task's whole folder"
        ) from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise FinetuneError(
            f"{path}, line {line}: a task's files are UTF-8, and this one is not ({error.reason}): convert it"
        ) from None
    bare = (line.removesuffix("\r") for line in text.split("\n"))
    rows = [(number, line.split("\t")) for number, line in enumerate(bare, 1) if line]
    return Lines(path, hashlib.sha256(data).hexdigest(), rows)


def read_folder(task: Task, folder: Path) -> TaskData:
    """The task's data in its own folder.

    Raises:
        FinetuneError: a file is missing, or a row is not the task's; with file, line, rule and remedy.
    """
    files: dict[str, str] = {}
    skipped: dict[str, Any] = {}

    def table(name: str) -> Split:
        lines = read_lines(folder / name)
        files[name] = lines.sha256
        split, broken = _rows(task, lines)
        if broken.count:
            skipped[name] = {"count": broken.count, "first_lines": broken.lines}
        return split

    wanted = ["train.tsv", *task.dev.values()]
    missing = [name for name in wanted if not (folder / name).is_file()]
    rule = task.split_by
    if missing and rule is not None and all((folder / name).is_file() for name in (rule.file, rule.ids)):
        whole = table(rule.file)
        train, dev = _without_dev(whole, read_lines(folder / rule.file), read_lines(folder / rule.ids), rule)
        files[rule.ids] = read_lines(folder / rule.ids).sha256
        (name,) = task.dev
        return assemble(task, str(folder), train, {name: dev}, files, skipped)
    if missing:
        other = f", or {rule.file} and {rule.ids}" if rule else ""
        raise FinetuneError(
            f"{task.title} needs {', '.join(wanted)}{other} in {folder}; missing: {', '.join(missing)}: give "
            "the folder as it is distributed"
        )
    train = table("train.tsv")
    return assemble(task, str(folder), train, {name: table(file) for name, file in task.dev.items()}, files, skipped)


def _rows(task: Task, lines: Lines) -> tuple[Split, Skipped]:
    """Texts and labels of a file."""
    columns, rows = _columns(task, lines)
    places = [columns.index(name) for name in task.texts]
    place = columns.index(task.label)
    split, broken = Split([], [], []), Skipped()
    for index, (number, cells) in enumerate(rows):
        try:
            label = _label(task, cells, columns, place, lines.path, number)
        except FinetuneError:
            if not task.skips_broken:
                raise
            broken.add(number)
            continue
        split.index.append(index)
        split.texts.append(tuple(cells[i] for i in places))
        split.labels.append(label)
    if broken.count > max(1, _MOST_SKIPPED * len(rows)):
        raise FinetuneError(
            f"{lines.path}: {broken.count} of {len(rows)} rows are broken, the first in line {broken.lines[0]}; at "
            f"most {_MOST_SKIPPED:.0%} may be, which are then left out: give the file as it is distributed"
        )
    return split, broken


def _columns(task: Task, lines: Lines) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The names of a file's columns, and the rows below them."""
    if task.columns is not None:
        return list(task.columns), lines.rows
    if not lines.rows:
        raise FinetuneError(f"{lines.path} is empty: give the file as it is distributed")
    number, header = lines.rows[0]
    absent = [name for name in (*task.texts, task.label) if name not in header]
    if absent:
        raise FinetuneError(
            f"{lines.path}, line {number}: the header of {task.title} names {', '.join((*task.texts, task.label))}, "
            f"this one {', '.join(map(repr, header[:12]))}: give the file as it is distributed, with its header"
        )
    return header, lines.rows[1:]


def _label(task: Task, cells: list[str], columns: list[str], place: int, path: Path, number: int) -> Label:
    """The label of a row, after checking that the row is whole.

    Raises:
        FinetuneError: it is not.
    """
    if len(cells) != len(columns):
        raise FinetuneError(
            f"{path}, line {number}: a row of {task.title} has {len(columns)} cells ({', '.join(columns[:12])}), got "
            f"{len(cells)}: give the file as it is distributed"
        )
    text = cells[place]
    if task.labels is not None:
        if text not in task.labels:
            raise FinetuneError(
                f"{path}, line {number}: {task.label} of {task.title} is one of {', '.join(task.labels)}, got {text!r}"
                ": correct the row"
            )
        return task.labels.index(text)
    low, high = task.limits
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise FinetuneError(
            f"{path}, line {number}: {task.label} of {task.title} is a number from {low:g} to {high:g}, got {text!r}: "
            "correct the row"
        )
    return value


def _without_dev(whole: Split, lines: Lines, ids: Lines, rule: DevIds) -> tuple[Split, Split]:
    """Training and dev rows of a file that holds both."""
    header = lines.rows[0][1]
    first, second = (header.index(name) for name in rule.columns)
    dev_ids = {(cells[0], cells[1]) for _, cells in ids.rows if len(cells) == 2}
    below = [cells for _, cells in lines.rows[1:]]
    is_dev = [(below[i][first], below[i][second]) in dev_ids for i in whole.index]
    return whole.take(list(_where(is_dev, False))), whole.take(list(_where(is_dev, True)))


def _where(flags: list[bool], wanted: bool) -> Iterator[int]:
    return (place for place, flag in enumerate(flags) if flag is wanted)
