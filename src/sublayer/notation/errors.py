"""The one error of the notation: it shows the text, a caret under the place, what was expected and the nearest
spelling."""

MAX_SHOWN = 160  # characters of a line that an error shows around the caret
MAX_LINE = 600  # characters of any other line of an error


class DesignError(ValueError):
    """A design that cannot be read or built.

    Args:
        rule: the rule that was broken and the value received, in one sentence.
        text: the whole text of the design, if there is one.
        start: offset in ``text`` where the fault begins; ``None`` when it has no single place.
        length: number of characters to underline.
        expected: what would have been right.
        nearest: the nearest valid spelling.
    """

    def __init__(
        self,
        rule: str,
        text: str = "",
        start: int | None = None,
        length: int = 1,
        *,
        expected: str | None = None,
        nearest: str | None = None,
    ) -> None:
        self.rule = rule
        self.text = text
        self.start = start
        self.length = max(1, length)
        self.expected = expected
        self.nearest = nearest
        super().__init__(self._message())

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (self.rule, self.text, self.start, self.length, self.expected, self.nearest))

    def _message(self) -> str:
        lines = [_short(self.rule)]
        if self.text and self.start is not None:
            lines += _excerpt(self.text, min(self.start, len(self.text)), self.length)
        if self.expected:
            lines.append(f"expected: {_short(self.expected)}")
        if self.nearest:
            lines.append(f"nearest valid spelling: {_short(self.nearest)}")
        return "\n".join(lines)


def _short(text: str) -> str:
    return text if len(text) <= MAX_LINE else f"{text[: MAX_LINE - 3]}..."


def _rebuild(
    rule: str, text: str, start: int | None, length: int, expected: str | None, nearest: str | None
) -> DesignError:
    return DesignError(rule, text, start, length, expected=expected, nearest=nearest)


def _excerpt(text: str, start: int, length: int) -> list[str]:
    """The line of ``text`` that holds offset ``start`` and a caret line under it."""
    begin = text.rfind("\n", 0, start) + 1
    end = text.find("\n", start)
    line = text[begin : end if end >= 0 else len(text)]
    column = start - begin
    # A long line is cut around the caret, so that the message stays one screen.
    cut = max(0, column - MAX_SHOWN // 2)
    shown = line[cut : cut + MAX_SHOWN]
    # Control characters would break the caret's column on a terminal.
    shown = "".join(c if c.isprintable() else "?" for c in shown)
    width = max(1, min(length, len(shown) - (column - cut)))
    number = text.count("\n", 0, begin) + 1
    prefix = f"  line {number}: " if "\n" in text.strip() else "  "
    return [prefix + shown, " " * (len(prefix) + column - cut) + "^" * width]
