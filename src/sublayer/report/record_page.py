"""The record of a study made of parts: report.html, README.md and one SVG file a chart, from the same blocks."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from markupsafe import Markup

from sublayer.report import numbers
from sublayer.report.record_blocks import SCHEMA, Cell, Grid, RecordError, chart, clean, grid, plain
from sublayer.report.record_charts import Drawing, draw
from sublayer.report.record_figures import figure
from sublayer.report.record_markdown import pages, readme, shown_facts
from sublayer.report.tables import Table, data
from sublayer.report.template import template
from sublayer.whole_files import write_atomically

_NEEDED = (
    "title question created command versions machine config config_sha256 seconds parts verdict"  # of a record
).split()
_LISTS = ("tables", "charts", "verdicts", "caveats")  # of a part


@dataclass(frozen=True)
class Figure:
    """A chart as the template for figures takes it."""

    id: str
    title: str
    key: Markup
    panels: tuple[Markup, ...]
    caption: Markup
    table: Table
    columns: int = 1


@dataclass(frozen=True)
class PartView:
    """A part as the template shows it."""

    id: str
    title: str
    verdicts: list[str]
    caveats: list[str]
    figures: list[Figure]
    tables: list[tuple[Table, str]]  # with the note below
    facts: list[tuple[str, str]]
    pages: list[tuple[str, str]]  # label, link


def write_record(record: dict[str, Any], folder: Path) -> None:
    """Write `report.html`, `README.md` and `figure-1.svg`, `figure-2.svg`, ... of a record into its folder.

    Each file is replaced whole; figures of an earlier record with more charts are removed. results.json is not
    written: it is the record itself.

    Args:
        record: results.json of a study made of parts, schema "sublayer.record/1" (see
            `sublayer/study/record.schema.json`). Values that are not finite count as None.
        folder: the study's folder. Links to parts and pages are relative to it.

    Raises:
        RecordError: another schema, a part of the record that is missing, a row that does not fit its head, or a
            point without an x.
    """
    record = clean(_checked(record))
    parts = []
    count = 0
    for part in record["parts"]:
        grids = [grid(block, part["name"]) for block in part["tables"]]
        drawings = []
        for block in part["charts"]:
            count += 1
            drawings.append((count, draw(chart(block, part["name"]))))
        parts.append((part, grids, drawings))
    source = f"{record['title']}. Written by Sublayer {record['versions'].get('sublayer', '')} on {record['created']}."
    files = {f"figure-{number}.svg": figure(d, source) for _, _, drawn in parts for number, d in drawn}
    files |= {"report.html": _page(record, parts), "README.md": readme(record, parts)}
    for name, text in files.items():
        write_atomically(folder / name, text)
    for old in folder.glob("figure-*.svg"):
        if re.fullmatch(r"figure-[1-9]\d*\.svg", old.name) and old.name not in files:
            old.unlink()


def _checked(record: dict[str, Any]) -> dict[str, Any]:
    """The record with the lists of its parts there, though empty."""
    if record.get("schema") != SCHEMA:
        raise RecordError(
            f"a record is written from results of schema {SCHEMA!r}; got {record.get('schema')!r}. Run the study "
            "again with this version; finished parts are kept"
        )
    missing = [name for name in _NEEDED if name not in record]
    if missing:
        raise RecordError(f"a record has {', '.join(_NEEDED)}; this one lacks {', '.join(missing)}: add them")
    parts = []
    for number, part in enumerate(record["parts"], 1):
        lacking = [name for name in ("name", "kind", "folder") if not part.get(name)]
        if lacking:
            raise RecordError(f"a part has name, kind and folder; part {number} lacks {', '.join(lacking)}: add them")
        parts.append({**part, **{name: part.get(name) or [] for name in _LISTS}, "facts": part.get("facts") or {}})
    return {**record, "parts": parts}


def _page(record: dict[str, Any], parts: list[tuple[dict[str, Any], list[Grid], list[tuple[int, Drawing]]]]) -> str:
    shown = [_part(number, *part) for number, part in enumerate(parts, 1)]
    return template("record.html").render(
        record=record,
        parts=shown,
        many=len(shown) > 1,
        command=shlex.join(map(str, record["command"])),
        details=_details(record),
        config=yaml.safe_dump(record["config"], sort_keys=False, allow_unicode=True, width=100),
    )


def _part(number: int, part: dict[str, Any], grids: list[Grid], drawings: list[tuple[int, Drawing]]) -> PartView:
    name, kind = str(part["name"]), str(part["kind"])
    facts = [(name.replace("_", " "), plain(value)) for name, value in shown_facts(part)]
    return PartView(
        f"part-{number}",
        name if name == kind else f"{name} ({kind})",
        list(map(str, part["verdicts"])),
        list(map(str, part["caveats"])),
        [_figure(count, drawing) for count, drawing in drawings],
        [(_table(each), each.note) for each in grids],
        facts,
        [(label, quote(path, safe="/")) for label, path in pages(part)],
    )


def _figure(number: int, drawing: Drawing) -> Figure:
    file = f"figure-{number}.svg"
    said = [Markup("{} ").format(note) for note in drawing.notes]
    caption = Markup("").join([*said, Markup('<a href="{0}">{0}</a>').format(file)])
    return Figure(
        f"figure-{number}", drawing.chart.title, drawing.key, (drawing.picture,), caption, _table(drawing.grid)
    )


def _table(grid: Grid) -> Table:
    rows = [[_shown(cell) for cell in row] for row in grid.rows]
    return Table.of(grid.title, grid.head, rows, grid.align)


def _shown(cell: Cell) -> Any:
    return cell.text if cell.value is None else data(cell.value, cell.text)


def _details(record: dict[str, Any]) -> list[tuple[str, str]]:
    """What one needs to run the study again."""
    return [
        ("Written", str(record["created"])),
        ("Took", numbers.duration(record["seconds"])),
        ("Versions", ", ".join(f"{name} {version}" for name, version in record["versions"].items())),
        ("Machine", plain(record["machine"])),
        ("Study file", f"sha256 {record['config_sha256']}"),
        ("Schema", str(record["schema"])),
    ]
