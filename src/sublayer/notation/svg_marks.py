"""The marks of a block's diagram: their sizes, their colours, and the SVG element of each."""

from xml.sax.saxutils import escape

from sublayer.notation.svg_layout import Item

BOX_HEIGHT = 38.0
BOX_WIDTH = 92.0
DOT = 6.5  # radius of a norm on a branch
RAIL_DOT = 8.5  # radius of a norm on a stream
SUM = 10.5
FONT = 13.0
SMALL = 11.5
LONGEST_FACTOR = 28  # characters of a factor before it is cut
ARGUMENT = 16.0  # distance between the lines that enter one box

# Colours are custom properties, so that the two schemes differ in one place and a page may set its own.
STYLE = """
.sl{--sl-bg:#fff;--sl-frame:#f5f7fb;--sl-edge:#d9dfeb;--sl-ink:#1d2433;--sl-soft:#5c667a;--sl-x:#2b3a67;--sl-r:#8a5a9e;
--sl-line:#4a566e;--sl-attn:#dbe8ff;--sl-attn-edge:#3f6fd1;--sl-ffn:#ffe8cf;--sl-ffn-edge:#cc7a1f;--sl-other:#e6e4f2;
--sl-other-edge:#776fb0;--sl-norm:#12a07a;--sl-mark:#f6e3f3;--sl-mark-edge:#b0509c}
@media (prefers-color-scheme:dark){.sl{--sl-bg:#10141d;--sl-frame:#171d29;--sl-edge:#2c3547;--sl-ink:#e8ecf4;
--sl-soft:#9aa6bb;--sl-x:#8ea6f0;--sl-r:#cf9fe0;--sl-line:#93a0b8;--sl-attn:#1d3564;--sl-attn-edge:#7ea6f5;
--sl-ffn:#4d3110;--sl-ffn-edge:#f0ab5c;--sl-other:#2f2b4d;--sl-other-edge:#aaa2e4;--sl-norm:#35c99d;--sl-mark:#46213f;
--sl-mark-edge:#dd8fcb}}
.sl text{font-family:ui-sans-serif,system-ui,-apple-system,"Segoe UI",Helvetica,Arial,sans-serif;fill:var(--sl-ink)}
.sl .sl-code{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
.sl .sl-soft{fill:var(--sl-soft)}
.sl .sl-card{fill:var(--sl-bg)}
.sl .sl-frame{fill:var(--sl-frame);stroke:var(--sl-edge)}
.sl .sl-line,.sl .sl-x,.sl .sl-r{fill:none;stroke:var(--sl-line);stroke-width:1.8}
.sl .sl-x{stroke:var(--sl-x);stroke-width:6.5}
.sl .sl-r{stroke:var(--sl-r);stroke-width:5}
.sl .sl-halo{fill:none;stroke:var(--sl-frame)}
.sl .sl-norm{fill:var(--sl-norm);stroke:var(--sl-frame);stroke-width:2}
.sl .sl-attn{fill:var(--sl-attn);stroke:var(--sl-attn-edge);stroke-width:1.6}
.sl .sl-ffn{fill:var(--sl-ffn);stroke:var(--sl-ffn-edge);stroke-width:1.6}
.sl .sl-other{fill:var(--sl-other);stroke:var(--sl-other-edge);stroke-width:1.5}
.sl .sl-mark{fill:var(--sl-mark);stroke:var(--sl-mark-edge);stroke-width:1.5}
.sl .sl-sum-x,.sl .sl-sum-r{fill:var(--sl-bg);stroke:var(--sl-x);stroke-width:2.2;stroke-linecap:round}
.sl .sl-sum-r{stroke:var(--sl-r)}
.sl .sl-tip-x{fill:var(--sl-x)}
.sl .sl-tip-r{fill:var(--sl-r)}
"""
_TONE = {"attn": "attn", "dot": "attn", "cross": "attn", "ffn": "ffn", "moe": "ffn"}
_HEIGHT = {"box": BOX_HEIGHT, "norm": 19.0, "mark": 22.0, "factor": 22.0, "sum": 2 * SUM + 2, "wire": 2.0}


def draw(item: Item, x: float, y: float) -> str:
    """The mark of an item with its middle at (x, y); nothing for wires and for what enters and leaves."""
    match item.kind:
        case "box":
            return _box(item, x, y)
        case "norm":
            radius = RAIL_DOT if item.rail else DOT
            # On a stream's line the name stands on the left, away from the branches.
            at, anchor = (x - radius - 6, "end") if item.lane <= 0 else (x + radius + 6, "start")
            dot = f'<circle class="sl-norm" cx="{n(x)}" cy="{n(y)}" r="{n(radius)}"/>'
            return dot + text(label(item.text), at, y + 4, size=SMALL, anchor=anchor)
        case "mark" | "factor":
            return _pill(item, x, y)
        case "sum":
            tone = f'class="sl-sum-{stream_tone(item)}"'
            circle = f'<circle {tone} cx="{n(x)}" cy="{n(y)}" r="{n(SUM - 0.5)}"/>'
            return circle + f'<path {tone} d="M{n(x - 5)} {n(y)}h10M{n(x)} {n(y - 5)}v10"/>'
    return ""


def _box(item: Item, x: float, y: float) -> str:
    width = box_width(item)
    dash = ' stroke-dasharray="5 3"' if item.op == "dot" else ""  # no weights: an outline only
    return (
        f'<rect class="sl-{_TONE.get(item.op, "other")}" x="{n(x - width / 2)}" y="{n(y - BOX_HEIGHT / 2)}" '
        f'width="{n(width)}" height="{n(BOX_HEIGHT)}" rx="8"{dash}/>'
        + text(label(item.text), x, y + 4.5, size=FONT + 1, anchor="middle", weight="600")
    )


def _pill(item: Item, x: float, y: float) -> str:
    shown = pill_text(item)
    width = text_width(shown, SMALL) + 16
    full = f"<title>{escape(item.text)}</title>" if shown.endswith("…") else ""
    return (
        f'<g>{full}<rect class="sl-{"mark" if item.kind == "mark" else "other"}" x="{n(x - width / 2)}" '
        f'y="{n(y - 10)}" width="{n(width)}" height="20" rx="10"/>'
        + text(shown, x, y + 4, size=SMALL, anchor="middle")
        + "</g>"
    )


def pill_text(item: Item) -> str:
    """What stands in a pill: ``gate a``, ``× 0.5``, ``× (2·depth)^0.25``."""
    if item.kind == "mark":
        return label(item.text)
    factor = item.text.removeprefix("-").replace("**", "^").replace("*", "·")
    factor = factor.replace("sqrt(layer)", "√layer").replace("sqrt(depth)", "√depth").replace("sqrt(", "√(")
    shown = f"× {'−' if item.text.startswith('-') else ''}{factor}"
    return shown if len(shown) <= LONGEST_FACTOR else shown[: LONGEST_FACTOR - 1] + "…"


def label(name: str) -> str:
    """``norm_a`` as a person reads it: the operator and the label of its parameters."""
    op, _, rest = name.partition("_")
    return f"{op} {rest}" if rest else op


def stream_tone(item: Item) -> str:
    """``x`` for the residual stream and for what is on no stream, ``r`` for a carried one."""
    return "x" if item.stream in ("", "x") else "r"


def box_width(item: Item) -> float:
    """The width of a sub-layer's box: room for its name and for the lines that enter it."""
    return max(BOX_WIDTH, text_width(label(item.text), FONT + 1) + 30, ARGUMENT * len(item.args) + 20)


def height(item: Item) -> float:
    """The height of an item; nothing for what enters and leaves, which stand outside the frame."""
    return _HEIGHT.get(item.kind, 0.0)


def extent(item: Item) -> tuple[float, float]:
    """How far an item and its name reach to the left and to the right of its lane."""
    match item.kind:
        case "box":
            return box_width(item) / 2, box_width(item) / 2
        case "norm":
            radius = (RAIL_DOT if item.rail else DOT) + 1
            named = radius + 8 + text_width(label(item.text), SMALL)
            return (named, radius) if item.lane <= 0 else (radius, named)
        case "mark" | "factor":
            half = text_width(pill_text(item), SMALL) / 2 + 8
            return half, half
        case "sum":
            return SUM, SUM
    return 9.0, 9.0


def text_width(shown: str, size: float) -> float:
    """About how wide a text is: fonts differ, so this is on the wide side."""
    return len(shown) * size * 0.57


def text(
    shown: str,
    x: float,
    y: float,
    *,
    size: float,
    anchor: str,
    css: str = "",
    weight: str = "",
    style: str = "",
) -> str:
    """A text element with its base line at (x, y)."""
    attributes = f' class="{css}"' if css else ""
    attributes += f' font-weight="{weight}"' if weight else ""
    attributes += f' font-style="{style}"' if style else ""
    return (
        f'<text x="{n(x)}" y="{n(y)}" font-size="{n(size)}" text-anchor="{anchor}"{attributes}>{escape(shown)}</text>'
    )


def n(value: float) -> str:
    """A number of the drawing, to a tenth of a point."""
    return f"{value:.1f}".removesuffix(".0")
