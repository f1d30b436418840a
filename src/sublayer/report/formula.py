r"""Formulas as MathML from a small part of TeX: _ ^, ( ), ‖ ‖, \frac \sqrt \sum \text \ln \exp \min \max.

Only for formulas written in this package; a reader's text never comes here. Greek letters and signs are themselves.
"""

from __future__ import annotations

import re

from markupsafe import Markup

from sublayer.report.svg import tag

_TOKEN = re.compile(r"\\text\{([^}]*)\}|(\\[a-z]+)|(\d+(?:\.\d+)?)|(\S)")
_FENCE = {"(": ")", "‖": "‖"}
_WORDS = ("\\ln", "\\exp", "\\min", "\\max")
_BELOW = ("\\sum", "\\min", "\\max")


def mathml(tex: str) -> Markup:
    """The formula as one displayed <math> element. Raises ValueError for what it does not know."""
    tokens = [(m.group(1), m.group(0)) if m.group(1) is not None else (None, m.group(0)) for m in _TOKEN.finditer(tex)]
    reader = _Reader(tokens, tex)
    body = reader.row(None)
    return tag("math", body, display="block", alttext=tex)


class _Reader:
    """Reads tokens left to right, one element after the other."""

    def __init__(self, tokens: list[tuple[str | None, str]], tex: str) -> None:
        self.tokens, self.tex, self.at = tokens, tex, 0

    def row(self, end: str | None) -> Markup:
        """Everything up to the closing token `end`, or to the end of the text."""
        parts: list[Markup] = []
        while self.at < len(self.tokens):
            if end is not None and self.tokens[self.at][1] == end:
                self.at += 1
                return tag("mrow", *parts)
            parts.append(self.scripted())
        if end is not None:
            raise ValueError(f"formula {self.tex!r} lacks a closing {end!r}: add it")
        return tag("mrow", *parts)

    def scripted(self) -> Markup:
        """One element with what stands below and above it."""
        first = self.tokens[self.at][1]
        base = self.element()
        scripts = {}
        while self.at < len(self.tokens) and (sign := self.tokens[self.at][1]) in ("_", "^"):
            self.at += 1
            scripts[sign] = self.element()
        if len(scripts) == 2:
            return tag("msubsup", base, scripts["_"], scripts["^"])
        if "_" in scripts:
            return tag("munder" if first in _BELOW else "msub", base, scripts["_"])
        return tag("msup", base, scripts["^"]) if scripts else base

    def element(self) -> Markup:
        """One letter, number, sign, word, fraction, root or bracketed row."""
        words, token = self.tokens[self.at]
        self.at += 1
        if words is not None:
            return tag("mtext", words)
        if token == "{":
            return self.row("}")
        if token in _FENCE:
            return tag("mrow", tag("mo", token), self.row(_FENCE[token]), tag("mo", _FENCE[token]))
        if token == "\\frac":
            return tag("mfrac", self.element(), self.element())
        if token == "\\sqrt":
            return tag("msqrt", self.element())
        if token == "\\sum":
            return tag("mo", "∑")
        if token in _WORDS:
            space = () if token in _BELOW else (tag("mspace", width="0.17em"),)
            return tag("mrow", tag("mi", token[1:]), *space)
        if token.startswith("\\"):
            raise ValueError(f"formula {self.tex!r} has {token}, which is not known: see sublayer.report.formula")
        if token[0].isdigit():
            return tag("mn", token)
        return tag("mi" if token.isalpha() else "mo", "−" if token == "-" else token)
