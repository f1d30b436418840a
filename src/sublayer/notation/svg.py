"""A block's diagram as SVG: the stream as one thick vertical line, sub-layers beside it, norms as dots on or off it.

The picture reads from bottom to top. It carries its own colours for light and dark, a title and a description for
screen readers, and refers to nothing outside itself.
"""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from sublayer.notation import svg_marks as marks
from sublayer.notation.explain import placements, range_in_words
from sublayer.notation.program import Section
from sublayer.notation.svg_layout import Item, Layout
from sublayer.notation.svg_marks import n
from sublayer.notation.text import LayerRange

if TYPE_CHECKING:
    from sublayer.notation.design import Design

RADIUS = 10.0  # of the corners of lines
TRACK = 10.0  # distance of horizontal lines that share a gap
GAP = 15.0  # between rows without a horizontal line
COLUMN_GAP = 20.0
PAD = 18.0
MARGIN = 14.0  # inside the frame, above the highest mark and below the lowest
ABOVE = 26.0  # above the frame: arrows and names of streams
BELOW = 28.0  # below the frame: names of streams
HEADING = 26.0
EQUATION = 12.5  # size of its text
LINE = 18.0
MONO = 0.602  # width of a monospaced character, in its size
LONGEST_LINE = 62  # characters of an equation's line before it is broken
MOST_LINES = 12


def svg(design: "Design") -> str:
    """The diagram of the design's block; of each layer range side by side, where there are several."""
    panels = [Panel(section, _caption(layers)) for layers, section in design.blocks]
    title = f"Block diagram of {design.name}" if design.name else "Block diagram"
    heading = HEADING if design.name else 0.0
    drawn = max(panel.drawn for panel in panels)
    width = PAD + sum(panel.width + PAD for panel in panels)
    height = PAD + heading + drawn + max(panel.text_height for panel in panels) + PAD
    if design.name:
        width = max(width, marks.text_width(design.name, 16) * 1.1 + 2 * PAD)
    identity = "sl-" + hashlib.sha256(str(design).encode()).hexdigest()[:10]
    body = []
    if design.name:
        body.append(marks.text(design.name, width / 2, PAD + 14, size=16, anchor="middle", weight="600"))
    left = (width - sum(panel.width + PAD for panel in panels) + PAD) / 2
    for panel in panels:
        # Panels stand on one line, so that the stream comes in at one height.
        top = PAD + heading + drawn - panel.drawn
        body.append(f'<g transform="translate({n(left)} {n(top)})">{panel.draw()}</g>')
        left += panel.width + PAD
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="sl" role="img" width="{n(width)}" height="{n(height)}" '
        f'viewBox="0 0 {n(width)} {n(height)}" aria-labelledby="{identity}-t {identity}-d">'
        f'<title id="{identity}-t">{escape(title)}</title>'
        f'<desc id="{identity}-d">{escape(_description(design))}</desc><style>{marks.STYLE}</style>'
        f'<rect class="sl-card" width="{n(width)}" height="{n(height)}" rx="12"/>{"".join(body)}</svg>'
    )


def _caption(layers: LayerRange) -> str:
    return "each layer" if layers.is_whole else range_in_words(layers)


def _description(design: "Design") -> str:
    """The picture in words."""
    equation = str(design).replace("\n", "; ")
    parts = [f"The equation: {equation}. From bottom to top:"]
    for place in placements(design):
        where = "" if place.layers == "[:]" else f"layers {place.layers}, "
        parts.append(f"{where}{place.site}: {place}.")
    return " ".join(parts)


@dataclass(frozen=True)
class Run:
    """A line that leads a value sideways: which value, how high its horizontal part is, and from where to where."""

    net: str
    y: float
    x1: float
    x2: float
    path: str
    css: str


@dataclass(frozen=True)
class Rise:
    """The vertical line of one value. ``y`` grows downwards, so ``top`` is the smaller."""

    x: float
    bottom: float
    top: float
    css: str


class Panel:
    """One block drawn: its layout in points, from the arrows at the top to the equation below."""

    def __init__(self, section: Section, caption: str) -> None:
        self.caption = caption
        self.layout = Layout(section)
        self._set_rows()
        inner = self._set_columns()
        self.lines = _wrapped(section.text)
        self.text_width = max(len(line) for line in self.lines) * EQUATION * MONO
        # The caption stands above the frame, to the right of the arrows.
        arrows = max(self.x[i.lane] for i in self.layout.items if i.kind == "output")
        heading = arrows + 36 + marks.text_width(caption, marks.SMALL)
        self.width = max(inner, self.text_width + 8, heading)
        self.shift = (max(inner, self.text_width + 8) - inner) / 2
        self.text_height = 6.0 + LINE * len(self.lines)

    def _set_rows(self) -> None:
        """Heights: each row as high as its highest item, below it a gap with a track for each value led sideways."""
        layout = self.layout
        self.tracks: dict[tuple[int, str], float] = {}  # (row, value) -> distance below the row's floor
        middle, half = {}, {}
        total = 0.0
        for r in range(layout.rows):
            items = layout.row(r)
            nets = self._led_sideways(r)
            for i, net in enumerate(nets):
                self.tracks[r, net] = RADIUS + TRACK * i
            if r == 0:
                gap = 0.0
            elif any(i.kind == "sum" for i in items):
                gap = 4.0 if any(i.kind == "sum" for i in layout.row(r - 1)) else 8.0
            else:
                gap = 2 * RADIUS + TRACK * (len(nets) - 1) if nets else GAP
            half[r] = max(marks.height(i) for i in items) / 2
            middle[r] = total + gap + half[r]
            total = middle[r] + half[r]
        top = ABOVE + MARGIN
        self.y = {r: top + total - m for r, m in middle.items()}
        self.floor = {r: self.y[r] + half[r] for r in self.y}
        self.frame = (ABOVE, top + total + MARGIN)
        self.drawn = self.frame[1] + BELOW

    def _led_sideways(self, row: int) -> list[str]:
        """The values that a row's calls read from other lanes; short ways first: they turn up above the long ones."""
        made = self.layout.made
        reach: dict[str, int] = {}
        for item in self.layout.row(row):
            for arg in item.args if item.kind != "sum" else ():
                if made[arg].lane != item.lane or len(item.args) > 1:
                    reach[arg] = max(reach.get(arg, 0), abs(item.lane - made[arg].lane))
        return sorted(reach, key=lambda net: reach[net])

    def _set_columns(self) -> float:
        """The x of each lane, so far apart that boxes and names have room. Returns the width."""
        items = self.layout.items
        x = PAD
        self.x: dict[int, float] = {}
        for lane in sorted({i.lane for i in items}):
            extents = [marks.extent(i) for i in items if i.lane == lane]
            x += max(left for left, _ in extents)
            self.x[lane] = x
            x += max(right for _, right in extents) + COLUMN_GAP
        return x - COLUMN_GAP + PAD

    def draw(self) -> str:
        """The drawing as SVG elements: first what lies at the back."""
        top, bottom = self.frame
        items = self.layout.items
        runs = [run for item in items for run in self.runs(item)]
        parts = [
            f'<rect class="sl-frame" y="{n(top)}" width="{n(self.width)}" height="{n(bottom - top)}" rx="10"/>',
            f'<g transform="translate({n(self.shift)} 0)">',
        ]
        parts += [f'<path class="{run.css}" d="{run.path}"/>' for run in runs]
        for item in items:
            if item.kind != "output":
                rise = self.rise(item, runs)
                parts += _halos(item.net, rise, runs)
                parts.append(f'<path class="{rise.css}" d="M{n(rise.x)} {n(rise.bottom)}V{n(rise.top)}"/>')
        for item in items:
            ends = self._entrance(item) if item.kind == "input" else self._exit(item) if item.kind == "output" else ""
            parts.append(ends or marks.draw(item, self.x[item.lane], self.y[item.row]))
        parts.append("</g>")
        parts.append(marks.text(self.caption, self.width - 4, top - 8, size=marks.SMALL, anchor="end", css="sl-soft"))
        left = (self.width - self.text_width) / 2
        for i, line in enumerate(self.lines):
            y = self.drawn + 16.0 + LINE * i
            parts.append(marks.text(line, left, y, size=EQUATION, anchor="start", css="sl-code"))
        return "".join(parts)

    def runs(self, item: Item) -> list[Run]:
        """The lines that bring an item what it reads from other lanes."""
        made = self.layout.made
        x, y = self.x[item.lane], self.y[item.row]
        if item.kind == "sum":
            # The first term comes from straight below, the second from the side.
            source = self.x[made[item.args[1]].lane]
            sign = 1.0 if x > source else -1.0
            edge = x - sign * marks.SUM
            path = f"M{n(source)} {n(y + RADIUS)}Q{n(source)} {n(y)} {n(source + sign * RADIUS)} {n(y)}H{n(edge)}"
            return [Run(item.args[1], y, source, edge, path, "sl-line")]
        runs = []
        css = self._css(item) if item.kind in ("wire", "output") else "sl-line"
        bottom = y + marks.height(item) / 2
        for i, arg in enumerate(item.args):
            source = self.x[made[arg].lane]
            goal = x + (i - (len(item.args) - 1) / 2) * marks.ARGUMENT
            if goal == source:
                continue
            track = self.floor[item.row] + self.tracks[item.row, arg]
            r = min(RADIUS, abs(goal - source) / 2)
            turn = r if goal > source else -r
            path = (
                f"M{n(source)} {n(track + r)}Q{n(source)} {n(track)} {n(source + turn)} {n(track)}"
                f"H{n(goal - turn)}Q{n(goal)} {n(track)} {n(goal)} {n(track - r)}V{n(bottom)}"
            )
            runs.append(Run(arg, track, source, goal, path, css))
        return runs

    def rise(self, item: Item, runs: list[Run]) -> Rise:
        """The vertical line of an item's value, from the item up to its last reader."""
        bottom = self.frame[1] + 10 if item.kind == "input" else self.y[item.row] + 1.5
        ends = [run.y + RADIUS for run in runs if run.net == item.net]
        for reader in self.layout.items:
            if item.net in reader.args and self._is_straight(item, reader):
                ends.append(self.frame[0] - 8 if reader.kind == "output" else self.y[reader.row])
        # A value that nothing reads ends as a stub.
        return Rise(self.x[item.lane], bottom, min(ends, default=bottom - 14.0), self._css(item))

    def _is_straight(self, item: Item, reader: Item) -> bool:
        """Whether a reader stands right above the item."""
        if reader.kind == "sum":
            return reader.args[0] == item.net
        # The middle one of an odd number of arguments enters straight.
        middle = len(reader.args) % 2 == 1 and reader.args[len(reader.args) // 2] == item.net
        return reader.lane == item.lane and middle

    def _css(self, item: Item) -> str:
        """Thick for a stream; a wire is one if what it leads is."""
        led = item.kind == "wire" and not self.layout.made[item.args[0]].stream
        return "sl-line" if led or not item.stream else f"sl-{marks.stream_tone(item)}"

    def _entrance(self, item: Item) -> str:
        return marks.text(
            item.text, self.x[item.lane], self.frame[1] + 25, size=marks.FONT, anchor="middle", style="italic"
        )

    def _exit(self, item: Item) -> str:
        """An arrow above the frame with the stream's name, and the line below it where that is not the value's own."""
        x, tip = self.x[item.lane], self.frame[0] - 17
        line = ""
        if self.layout.made[item.args[0]].lane != item.lane:
            line = f'<path class="{self._css(item)}" d="M{n(x)} {n(self.y[item.row] + 1)}V{n(tip + 8)}"/>'
        arrow = f'<path class="sl-tip-{marks.stream_tone(item)}" d="M{n(x - 8)} {n(tip + 11)}L{n(x)} {n(tip)}l8 11Z"/>'
        return line + arrow + marks.text(item.text, x + 13, tip + 9, size=marks.FONT, anchor="start", style="italic")


def _halos(name: str, rise: Rise, runs: list[Run]) -> list[str]:
    """Gaps in the horizontal lines of other values that pass behind a vertical one."""
    width = {"sl-x": 13.0, "sl-r": 11.5}.get(rise.css, 8.5)
    return [
        f'<path class="sl-halo" stroke-width="{n(width)}" d="M{n(rise.x)} {n(run.y + 4)}v-8"/>'
        for run in runs
        if run.net != name
        and min(run.x1, run.x2) + 1 < rise.x < max(run.x1, run.x2) - 1
        and rise.top < run.y < rise.bottom
    ]


def _wrapped(equation: str) -> list[str]:
    """The statements of an equation, one a line; long ones broken at a space, very many cut."""
    lines: list[str] = []
    for statement in equation.split("; "):
        line = ""
        for piece in statement.split(" "):
            if line and len(line) + 1 + len(piece) > LONGEST_LINE:
                lines.append(line)
                line = "\u00a0" * 4 + piece
            else:
                line = f"{line} {piece}" if line else piece
        lines.append(line)
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], "…"]
    return [line if len(line) <= LONGEST_LINE + 8 else line[: LONGEST_LINE + 7] + "…" for line in lines]
