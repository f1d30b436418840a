"""Designs as the reader meets them: diagram, words, and what sets an equation apart from the first one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import SequenceMatcher

from markupsafe import Markup

from sublayer.report.view import Design

_TOKEN = re.compile(r"\s+|[A-Za-z_]\w*|\d+(?:\.\d+)?|\*\*|.")
_SILENT = ("", "x", "x = x", "e", "x = e")


@dataclass(frozen=True)
class Placement:
    """Where a sub-layer stands, in words, and whether the first design says so too."""

    who: str
    text: str
    new: bool


@dataclass(frozen=True)
class Diagram:
    """A design's picture and its own width in pixels, by which all pictures are drawn to one scale."""

    svg: Markup
    width: float


def diagram(design: Design) -> Diagram | None:
    """The block's picture, or None where the equation cannot be read."""
    from sublayer.notation import DesignError, parse

    try:
        svg = parse(str(design.raw["equation"])).svg()
    except DesignError:
        return None
    width = re.search(r'<svg[^>]* width="([\d.]+)"', svg)
    return Diagram(Markup(svg), float(width.group(1)) if width else 300.0)


def placements(design: Design, first: Design) -> list[Placement]:
    """Each sub-layer's norm and order in words; nothing where the equation cannot be read."""
    known = {(site, text) for site, _, text in _placements(first)}
    return [
        Placement(f"{site}, layers {layers}" if layers != "[:]" else site, text, (site, text) not in known)
        for site, layers, text in _placements(design)
    ]


def _placements(design: Design) -> list[tuple[str, str, str]]:
    from sublayer.notation import DesignError, parse
    from sublayer.notation.explain import placements as placed

    try:
        found = placed(parse(str(design.raw["equation"])))
    except DesignError:
        return []
    return [(p.site, p.layers, str(p)) for p in found]


def sections(design: Design) -> list[tuple[str, str]]:
    """(label, equation) of the block, and of the other sections unless they are trivial; one statement a line."""
    found = []
    for name in ("embed", "block", "final"):
        text = str(design.raw.get(name) or "").removeprefix(f"{name}: ")
        if name == "block" or text not in _SILENT:
            found.append((name, _lines(text)))
    return found


def changes(first: Design, other: Design) -> Markup:
    """The other block's equation with what it adds to and takes from the first marked as insertions and deletions."""
    before, after = (_TOKEN.findall(_lines(str(design.raw.get("block") or ""))) for design in (first, other))
    parts = []
    for kind, a, b, c, d in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        gone, come = "".join(before[a:b]), "".join(after[c:d])
        if kind == "equal":
            parts.append(Markup("{}").format(come))
            continue
        if gone:
            parts.append(Markup("<del>{}</del>").format(gone))
        if come:
            parts.append(Markup("<ins>{}</ins>").format(come))
    return Markup("").join(parts)


def _lines(text: str) -> str:
    return re.sub(r";\s*|\n", "\n", text)
