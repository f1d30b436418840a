"""From text to sections and statements, with the place of each in the text. No meaning is given here."""

import ast
import re
import warnings
from dataclasses import dataclass
from fractions import Fraction

from sublayer.notation.errors import DesignError

MAX_TEXT = 20_000  # characters
MAX_NESTING = 90  # open brackets, below the limit of Python's own parser
MAX_SIGNS = 32  # unary signs in a row
MAX_NUMBER = 400  # characters of one number
MAX_WORD = 64  # characters of a word that a nearest spelling is looked for

SECTIONS = ("embed", "block", "final")
_FOREIGN = re.compile(r"[^\n\t\r -~]|[\"'`\\]")
_MARKS = re.compile(r"[()\[\];\n]")
_LABEL = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)\s*(?:(\[[^\]\n;]*\])\s*)?:(?!=)")


@dataclass(frozen=True)
class Bound:
    """One end of a layer range: an index (negative: from the end), a percentage of the depth, or open."""

    kind: str  # "index" | "percent" | "open"
    value: Fraction = Fraction(0)

    def __str__(self) -> str:
        if self.kind == "open":
            return ""
        number = str(self.value) if self.value.denominator == 1 else repr(float(self.value))
        return number + "%" * (self.kind == "percent")

    def resolve(self, depth: int, default: int) -> int:
        """Index of the layer, percentages rounded down."""
        if self.kind == "open":
            return default
        if self.kind == "percent":
            return int(self.value * depth / 100)
        return int(self.value) + (depth if self.value < 0 else 0)


@dataclass(frozen=True)
class LayerRange:
    """The layers that one ``block[start:stop]`` section describes."""

    start: Bound = Bound("open")
    stop: Bound = Bound("open")

    def __str__(self) -> str:
        return f"[{self.start}:{self.stop}]"

    @property
    def is_whole(self) -> bool:
        return self.start.kind == self.stop.kind == "open"

    def resolve(self, depth: int) -> tuple[int, int]:
        """First layer and the one after the last, 0-based, for a model of ``depth`` layers."""
        return self.start.resolve(depth, 0), self.stop.resolve(depth, depth)


@dataclass(frozen=True)
class Statement:
    """One statement: its syntax tree and where its text starts in the whole."""

    tree: ast.stmt
    source: str
    offset: int

    def place(self, node: ast.AST) -> tuple[int, int]:
        """Offset and length of ``node`` in the whole text."""
        lines = self.source.split("\n")
        row = getattr(node, "lineno", 1) - 1
        start = sum(len(line) + 1 for line in lines[:row]) + getattr(node, "col_offset", 0)
        end_row = (getattr(node, "end_lineno", None) or row + 1) - 1
        end_column = getattr(node, "end_col_offset", None)
        length = (end_column - node.col_offset) if end_row == row and end_column is not None else 1  # type: ignore[attr-defined]
        return self.offset + start, max(1, length)


@dataclass(frozen=True)
class RawSection:
    """A labelled part of the text."""

    kind: str  # "embed" | "block" | "final"
    layers: LayerRange
    statements: tuple[Statement, ...]
    offset: int


def split(text: str) -> list[RawSection]:
    """Cut the text into sections of statements. Raises DesignError at the first place that is not notation."""
    clean = _clean(text)
    sections: list[tuple[str, LayerRange, list[Statement], int]] = []
    for offset, piece in _pieces(clean, text):
        while label := _LABEL.match(piece):
            kind, layers = _section_label(label, offset, text)
            sections.append((kind, layers, [], offset + label.start(1)))
            offset, piece = offset + label.end(), piece[label.end() :]
        stripped = piece.strip()
        if not stripped:
            continue
        if not sections:
            sections.append(("block", LayerRange(), [], offset))
        begin = offset + piece.index(stripped)
        sections[-1][2].append(_statement(stripped, begin, text))
    if not sections:
        raise DesignError(
            "a design needs at least one statement, got none", expected="for example x = norm(x + attn(x))"
        )
    for kind, layers, statements, offset in sections:
        if not statements:
            name = kind if layers.is_whole else f"{kind}{layers}"
            raise DesignError(
                f"section '{name}' has no statement",
                text,
                offset,
                len(kind),
                expected=f"for example {name}: x = norm(x)",
            )
    return [RawSection(kind, layers, tuple(statements), offset) for kind, layers, statements, offset in sections]


def _clean(text: str) -> str:
    """The text with comments blanked, so that every offset stays what it was."""
    if len(text) > MAX_TEXT:
        raise DesignError(f"a design is at most {MAX_TEXT} characters, got {len(text)}")
    text = re.sub(r"#[^\n]*", lambda m: " " * len(m.group()), text)
    if found := _FOREIGN.search(text):
        c, i = found.group(), found.start()
        if c in "\"'`\\":
            raise DesignError(
                f"{c} has no meaning in the notation", text, i, expected="names, numbers and + - * / ** ( ) = ; :"
            )
        raise DesignError(
            f"the notation is plain ASCII, got character {c!a}",
            text,
            i,
            expected="letters, digits and + - * / ** ( ) = ; :",
        )
    return text.replace("\r", " ").replace("\t", " ")


def check_size(text: str) -> None:
    """Raise DesignError where a text is too long or nests too deep to be read."""
    _pieces(_clean(text), text)


def _pieces(clean: str, text: str) -> list[tuple[int, str]]:
    """Statements by ``;`` and newlines outside brackets, each with its offset."""
    pieces, begin, stack = [], 0, list[tuple[str, int]]()
    for mark in _MARKS.finditer(clean):
        i, c = mark.start(), mark.group()
        if c in "([":
            stack.append((c, i))
            if len(stack) > MAX_NESTING:
                raise DesignError(
                    f"brackets may nest {MAX_NESTING} deep", text, i, expected="a local name for the inner value"
                )
        elif c in ")]":
            if not stack or stack.pop()[0] != ("(" if c == ")" else "["):
                raise DesignError(f"'{c}' closes nothing", text, i, expected="one closing bracket for each opening one")
        elif c == ";" and stack:
            raise DesignError(
                f"'{stack[-1][0]}' is not closed before ';'",
                text,
                stack[-1][1],
                expected="')' before the statement ends",
            )
        elif c == ";" or (c == "\n" and not stack):
            pieces.append((begin, clean[begin:i]))
            begin = i + 1
    if stack:
        raise DesignError(
            f"'{stack[-1][0]}' is never closed", text, stack[-1][1], expected="one closing bracket for each opening one"
        )
    pieces.append((begin, clean[begin:]))
    return pieces


def _section_label(label: re.Match[str], offset: int, text: str) -> tuple[str, LayerRange]:
    kind, bounds = label.group(1), label.group(2)
    start = offset + label.start(1)
    if kind not in SECTIONS:
        raise DesignError(
            f"unknown section '{kind}'",
            text,
            start,
            len(kind),
            expected="embed, block or final",
            nearest=nearest(kind, SECTIONS),
        )
    if bounds is None:
        return kind, LayerRange()
    if kind != "block":
        raise DesignError(
            f"only block takes a layer range, got {kind}{bounds}", text, start, len(kind), nearest=f"{kind}:"
        )
    return kind, _layer_range(bounds, offset + label.start(2), text)


def _layer_range(bounds: str, offset: int, text: str) -> LayerRange:
    inner = bounds[1:-1]
    if inner.count(":") != 1:
        raise DesignError(
            f"a layer range has one ':', got {bounds}",
            text,
            offset,
            len(bounds),
            expected="[:25%], [25%:], [2:6] or [-1:]",
        )
    ends = []
    for part in inner.split(":"):
        part = part.strip()
        match = re.fullmatch(r"(-?\d{1,6})|(\d{1,3}(?:\.\d{1,6})?)\s*%", part)
        if not part:
            ends.append(Bound("open"))
        elif match and match.group(1):
            ends.append(Bound("index", Fraction(match.group(1))))
        elif match and Fraction(match.group(2)) <= 100:
            ends.append(Bound("percent", Fraction(match.group(2))))
        else:
            raise DesignError(
                f"a layer range ends at an index or a percentage up to 100%, got '{part}'",
                text,
                offset,
                len(bounds),
                expected="[:25%], [25%:], [2:6] or [-1:]",
            )
    start, stop = ends
    # The ends of the whole depth have one spelling.
    start = Bound("open") if start in (Bound("index"), Bound("percent")) else start
    stop = Bound("open") if stop == Bound("percent", Fraction(100)) else stop
    return LayerRange(start, stop)


def _statement(source: str, offset: int, text: str) -> Statement:
    for match in re.finditer(r"[0-9][0-9A-Za-z_.]*", source):
        if len(match.group()) > MAX_NUMBER:
            raise DesignError(
                f"a number is at most {MAX_NUMBER} characters", text, offset + match.start(), len(match.group())
            )
    if signs := re.search(rf"(?:[-+~]\s*){{{MAX_SIGNS},}}", source):
        raise DesignError(
            "too many signs in a row", text, offset + signs.start(), len(signs.group()), expected="one sign"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python warns of spellings such as `1or`; they are refused below
            body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        row, column = (getattr(error, "lineno", 1) or 1) - 1, (getattr(error, "offset", 1) or 1) - 1
        lines = source.split("\n")
        start = sum(len(line) + 1 for line in lines[:row]) + max(0, column)
        start = min(start, max(0, len(source) - 1))
        raise DesignError(
            "this is not a statement", text, offset + start, expected="x = ..., as in x = x + attn(norm(x))"
        ) from None
    if len(body) != 1:
        raise DesignError("statements are separated by ';' or a newline", text, offset, len(source))
    return Statement(body[0], source, offset)


def in_order(blocks: list[RawSection], text: str) -> list[RawSection]:
    """Block sections by the layers they cover. Raises DesignError where they cannot tile any depth exactly."""
    chain: list[RawSection] = []
    rest = list(blocks)
    while rest:
        end = chain[-1].layers.stop if chain else None
        if end is not None and end.kind == "open":
            break
        following = [b for b in rest if (b.layers.start.kind == "open" if end is None else b.layers.start == end)]
        if len(following) != 1:
            break
        chain.append(following[0])
        rest.remove(following[0])
    empty = next((b for b in blocks if b.layers.start == b.layers.stop and not b.layers.is_whole), None)
    if empty is not None:
        raise DesignError(
            f"block{empty.layers} covers no layer", text, empty.offset, 5, expected="a range such as block[:25%]"
        )
    if not rest:
        return chain
    ends = [end for b in blocks for end in (b.layers.start, b.layers.stop) if end.kind != "open"]
    if len({(end.kind, end.value < 0) for end in ends}) <= 1:
        shown = ", ".join(f"block{b.layers}" for b in blocks)
        raise DesignError(
            f"block sections must tile the depth exactly, each starting where another ends; got {shown}",
            text, rest[0].offset, 5, expected="ranges such as block[:25%] and block[25%:]",
        )  # fmt: skip
    # Indices beside percentages tile some depths only: `Design.layer` checks them when the depth is known.
    return sorted(blocks, key=lambda b: (b.layers.stop.kind == "open", b.layers.start.kind != "open", str(b.layers)))


def nearest(word: str, known: "tuple[str, ...] | list[str]") -> str | None:
    """The known word closest in spelling, if one is close."""
    import difflib

    if len(word) > MAX_WORD:
        return None
    lowered = {k.lower(): k for k in known}
    found = difflib.get_close_matches(word.lower(), list(lowered), n=1, cutoff=0.5)
    return lowered[found[0]] if found else None
