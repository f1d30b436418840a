"""The record for people who read files: README.md, in plain Markdown with its figures linked."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from sublayer.report import numbers
from sublayer.report.record_blocks import Cell, Grid, plain
from sublayer.report.record_charts import Drawing

_SPECIAL = re.compile(r"[\\`*\[\]<>|$~]|&(?=[#\w])|(?<!\w)_|_(?!\w)")
_OPENING = re.compile(r"^(#|[-+=](?=\s|$)|---)|^(\d+)(?=[.)](?:\s|$))")


def words(text: str) -> str:
    """Text that stays text: everything that Markdown or HTML would read is escaped; line breaks become spaces."""
    text = " ".join(text.split())
    text = _SPECIAL.sub(lambda match: "\\" + match[0], text)
    return _OPENING.sub(lambda match: f"\\{match[1]}" if match[1] else f"{match[2]}\\", text)


def fenced(text: str, language: str = "") -> str:
    """A block of code, its fence longer than any inside."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def link(label: str, path: str) -> str:
    """A link to a file beside the README."""
    return f"[{words(label)}]({quote(path, safe='/')})"


def table(grid: Grid) -> str:
    """A table of GitHub's Markdown; a cell without a value is "-"."""
    if not grid.head:
        return ""
    rules = ["---:" if letter == "r" else "---" for letter in grid.align]
    lines = [_row(words(name) for name in grid.head), _row(rules), *(_row(map(_cell, row)) for row in grid.rows)]
    return "\n".join(lines)


def _row(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(cell: Cell) -> str:
    return "-" if cell.text == numbers.NONE else words(cell.text)


def readme(
    record: dict[str, Any],
    parts: Sequence[tuple[dict[str, Any], Sequence[Grid], Sequence[tuple[int, Drawing]]]],
) -> str:
    """The text of README.md.

    Args:
        record: schema "sublayer.record/1".
        parts: each part with its tables and its charts, charts with the number of their figure.
    """
    many = len(parts) > 1
    lines = [f"# {words(record['title'])}", words(record["question"]), "## Verdict"]
    verdicts = [f"- {words(line)}" for part, *_ in parts for line in part["verdicts"]]
    lines.append("\n".join(verdicts) or words(record["verdict"]) or "No part came to a verdict.")
    lines += ["## Run it again", fenced(shlex.join(map(str, record["command"])), "sh")]
    lines.append("## Environment")
    lines.append(
        "\n".join(
            f"- {words(label)}: {words(text)}"
            for label, text in (
                ("written", str(record["created"])),
                ("versions", ", ".join(f"{name} {version}" for name, version in record["versions"].items())),
                ("machine", plain(record["machine"])),
                ("sha256 of the study file as read", str(record["config_sha256"])),
            )
        )
    )
    lines += ["## Seeds and budget", f"{words(numbers.duration(record['seconds']))} in all."]
    for part, *_ in parts:
        facts = [f"- {words(_label(name))}: {words(plain(value))}" for name, value in shown_facts(part)]
        if facts:
            lines += [f"{_part_name(part)}:", "\n".join(facts)]
    lines.append("## Results")
    for part, grids, drawings in parts:
        if many:
            lines.append(f"### {_part_name(part)}")
        for number, drawing in drawings:
            lines.append("!" + link(drawing.chart.title, f"figure-{number}.svg"))
            lines += [words(note) for note in drawing.notes]
        for grid in grids:
            lines += [f"**{words(grid.title)}**" if grid.title else "", table(grid), words(grid.note)]
    caveats = [
        f"- {f'{_part_name(part)}: ' if many else ''}{words(line)}" for part, *_ in parts for line in part["caveats"]
    ]
    lines += ["## Caveats", "\n".join(caveats) or "None noted."]
    lines += ["## Files", "\n".join(_files(parts))]
    return "\n\n".join(line for line in lines if line) + "\n"


def _part_name(part: dict[str, Any]) -> str:
    name, kind = str(part["name"]), str(part["kind"])
    return words(name if name == kind else f"{name} ({kind})")


def _label(name: str) -> str:
    return name.replace("_", " ")


def shown_facts(part: dict[str, Any]) -> list[tuple[str, Any]]:
    """The facts of a part that are no links."""
    return [(name, value) for name, value in part["facts"].items() if name != "pages"]


def pages(part: dict[str, Any]) -> list[tuple[str, str]]:
    """Pages within a part: (label, path beside the record). What points outside the folder is left as it stands in
    results.json and gets no link."""
    found = part["facts"].get("pages")
    if not isinstance(found, dict):
        return []
    return [(str(label), str(path)) for label, path in found.items() if _is_inside(str(path))]


def _is_inside(path: str) -> bool:
    return bool(path) and not path.startswith("/") and ".." not in path.split("/") and "\\" not in path


def _files(parts: Sequence[tuple[dict[str, Any], Sequence[Grid], Sequence[tuple[int, Drawing]]]]) -> list[str]:
    lines = [
        f"- {link('report.html', 'report.html')}: this record as one page, with the numbers behind the figures",
        f"- {link('results.json', 'results.json')}: everything as data, details included",
    ]
    for *_, drawings in parts:
        for number, drawing in drawings:
            lines.append(f"- {link(f'figure-{number}.svg', f'figure-{number}.svg')}: {words(drawing.chart.title)}")
    for part, *_ in parts:
        folder = str(part["folder"])
        lines.append(
            f"- {link(folder, folder) if _is_inside(folder) else words(folder)}: what {_part_name(part)} wrote"
        )
        lines += [f"  - {link(label, path)}" for label, path in pages(part)]
    return lines
