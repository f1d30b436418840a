"""A chart as a file of its own: SVG on a light ground with title, key and notes, for a README or a slide.

Its colours are written out, not left to variables, because many viewers of SVG know none.
"""

from __future__ import annotations

import re
import textwrap
from functools import cache
from pathlib import Path

from markupsafe import Markup

from sublayer.report.record_charts import HIGH, WIDE, Drawing, style
from sublayer.report.svg import SHAPES, marker, tag

WIDTH, EDGE = 640.0, 20.0
FONT = "Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"
_USED = ("plot", "rule", "axis", "ref", "ln", "band", "pt")  # classes in a chart, as in style.css
_RULE = re.compile(r"^(\.[^{}]+?) \{ ([^{}]+) \}(?= |$)", re.M)
_CLASS = re.compile(r"\.([a-z]+)")


@cache
def sheet() -> str:
    """The rules for charts of style.css and record.css, with the light colours in place of their names."""
    folder = Path(__file__).parent / "templates"
    text, more = ((folder / name).read_text(encoding="utf-8") for name in ("style.css", "record.css"))
    light = dict(re.findall(r"--([a-z]+\d?): ([^;]+);", text.split("@media")[0])) | {"sans": FONT}
    charts = text.split("/* charts */")[1].split("/* one measure")[0] + more
    rules = []
    for selector, body in _RULE.findall(charts.replace(" } .", " }\n.")):
        if _CLASS.findall(selector)[0] not in _USED:
            continue
        body = re.sub(r"var\((--c), var\(--\w+\)\)", r"var(\1)", body)
        # The colour of a series comes from its class: one rule for each of the eight.
        for number in range(8) if "var(--c)" in body else (None,):
            where = selector if number is None else f"{selector}.d{number}"
            filled = body.replace("var(--c)", light[f"d{number}"]) if number is not None else body
            rules.append(f"{where} {{ {re.sub(r'var[(]--([a-z]+[0-9]?)[)]', lambda m: light[m[1]], filled)} }}")
    words = f"text {{ font-family: {FONT}; fill: {light['ink']}; }} .head {{ font-size: 16px; font-weight: 600; }}"
    aside = f".key {{ font-size: 12px; }} .said {{ font-size: 11.5px; fill: {light['soft']}; }}"
    return "\n".join([words, aside, f".ground {{ fill: {light['paper']}; }}", *rules])


def figure(drawing: Drawing, source: str) -> str:
    """The file's text.

    Args:
        drawing: the chart as drawn for the page.
        source: where it is from, as a last line below.
    """
    chart = drawing.chart
    marks: list[Markup] = []
    y = EDGE + 14
    for line in textwrap.wrap(chart.title, 66):
        marks.append(tag("text", line, x=EDGE, y=y, class_="head"))
        y += 20
    key, y = _key(drawing, y)
    marks += key
    scale = (WIDTH - 2 * EDGE) / WIDE
    place = f'<svg x="{EDGE:g}" y="{y:.1f}" width="{WIDE * scale:g}" height="{HIGH * scale:g}" '
    marks.append(Markup(str(drawing.picture).replace("<svg ", place, 1)))
    y += HIGH * scale + 18
    for note in (*drawing.notes, source):
        for line in textwrap.wrap(note, 104):
            marks.append(tag("text", line, x=EDGE, y=y, class_="said"))
            y += 15
        y += 3
    height = y + 4
    ground = tag("rect", width=WIDTH, height=height, class_="ground")
    box = f'width="{WIDTH:g}" height="{height:.0f}" viewBox="0 0 {WIDTH:g} {height:.0f}"'
    head = Markup(f'<svg xmlns="http://www.w3.org/2000/svg" {box} role="img">')
    title = tag("title", chart.title)
    return str(Markup("\n").join([head, title, tag("style", Markup(sheet())), ground, *marks, Markup("</svg>\n")]))


def _key(drawing: Drawing, y: float) -> tuple[list[Markup], float]:
    """Swatches with names, in as many columns as the names allow; and the height below them."""
    names = [each.name for each in drawing.chart.series]
    if len(names) < 2:
        return [], y
    names = [textwrap.shorten(name, 80, placeholder="…") for name in names]
    column = 46 + 6.6 * max(map(len, names))
    columns = max(1, int((WIDTH - 2 * EDGE) // column))
    marks = []
    for i, name in enumerate(names):
        left, top = EDGE + column * (i % columns), y + 17 * (i // columns)
        line = tag("path", d=f"M{left:.1f} {top - 4:.1f}h26", class_=f"ln {style(i)}")
        dot = marker(SHAPES[i % len(SHAPES)], left + 13, top - 4, 3.6, style(i))
        marks += [line, dot, tag("text", name, x=left + 34, y=top, class_="key")]
    return marks, y + 17 * -(-len(names) // columns) + 2
