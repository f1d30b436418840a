"""The two claims: their answers, and the numbers of each layer that they rest on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from markupsafe import Markup

from sublayer.report import measured, numbers
from sublayer.report.charts import Figure
from sublayer.report.layers import by_design_panel
from sublayer.report.tables import Cell, Table, data, named
from sublayer.report.view import Design, Json, Study

MARK = {"holds": "✓", "does not": "✗", "unclear": "?"}


@dataclass(frozen=True)
class Claim:
    """A question, the rule that answers it, one answer per design, and the evidence by layer."""

    id: str
    question: str
    rule: str
    summary: str
    answers: Table
    details: list[tuple[str, str]]  # (design, why, in words)
    figure: Figure | None


@dataclass(frozen=True)
class _Kind:
    """How the number of a claim is taken and shown."""

    name: str  # of the number, as an axis and a column say it
    show: Callable[[object], str]
    factor: float  # from the number to its axis
    line: tuple[float, str]  # the level that answers are measured against
    read: Callable[[Design], dict[int, list[float]]]  # {layer: numbers} when the answers carry none


def _relative_residual(total: Json, term: Json) -> object:
    with_term = numbers.known((total.get("after") or {}).get("rank_one_residual"))
    without = numbers.known((term.get("without") or {}).get("rank_one_residual"))
    if with_term is None or without is None:
        return None
    larger = max(abs(with_term), abs(without))
    return (with_term - without) / larger if larger else 0.0


def _signed_percent(value: object) -> str:
    number = numbers.known(value)
    return numbers.NONE if number is None else numbers.fixed(100 * number, 1, True) + f"{numbers.SPACE}%"


def _two(value: object) -> str:
    return numbers.fixed(value, 2)


_KINDS = {
    "ffn-isotropy": _Kind(
        "Change of the rank-one residual by the FFN's term",
        _signed_percent,
        100.0,
        (0.0, "no change"),
        lambda design: measured.of_kind(design, "ffn", _relative_residual),
    ),
    "attention-small": _Kind(
        "Attention's term over the stream, median token",
        _two,
        1.0,
        (1 / 3, "one third"),
        lambda design: measured.of_kind(design, "attn", measured.median_ratio),
    ),
}
_PLAIN = _Kind("Value", numbers.significant, 1.0, (0.0, ""), lambda design: {})


def claims(study: Study) -> list[Claim]:
    """The claims of the results, in their order."""
    found = []
    for raw in study.raw.get("claims") or ():
        kind = _KINDS.get(str(raw.get("claim")), _PLAIN)
        answers = {str(answer.get("design")): answer for answer in raw.get("answers") or ()}
        found.append(
            Claim(
                str(raw.get("claim")),
                str(raw.get("question") or ""),
                str(raw.get("rule") or ""),
                _summary(study, answers),
                _table(study, answers, kind),
                [(d.title, str(text)) for d in study.designs if (text := answers.get(d.id, {}).get("detail"))],
                _figure(study, str(raw.get("claim")), answers, kind),
            )
        )
    return found


def _summary(study: Study, answers: dict[str, Json]) -> str:
    """Holds for A, B. Does not hold for C. Unclear for D."""
    words = {"holds": "Holds for", "does not": "Does not hold for", "unclear": "Unclear for"}
    parts = []
    for answer, start in words.items():
        titles = [d.title for d in study.designs if str(answers.get(d.id, {}).get("answer", "unclear")) == answer]
        if titles:
            parts.append(f"{start} {', '.join(titles)}.")
    return " ".join(parts)


def _table(study: Study, answers: dict[str, Json], kind: _Kind) -> Table:
    level = numbers.percent((study.raw.get("comparison") or {}).get("confidence")).replace(" ", "")
    rows: list[tuple[Cell, ...]] = []
    for design in study.designs:
        raw = answers.get(design.id, {})
        answer = str(raw.get("answer") or "unclear")
        style = {"holds": "yes", "does not": "no"}.get(answer, "maybe")
        badge = Markup('<span class="answer {}"><span aria-hidden="true">{}</span> {}</span>').format(
            style, MARK.get(answer, "?"), answer
        )
        low, high = raw.get("low"), raw.get("high")
        bounds = numbers.NONE
        if numbers.known(low) is not None and numbers.known(high) is not None:
            bounds = f"{kind.show(low)} to {kind.show(high)}"
        value = data(raw.get("value"), kind.show(raw.get("value")))
        rows.append((named(design), badge, value, bounds))
    head = ("design", "answer", "value", f"{level} interval")
    return Table.of(f"{kind.name}; of the median layer, mean over seeds.", head, rows, "llrr")


def _figure(study: Study, claim: str, answers: dict[str, Json], kind: _Kind) -> Figure | None:
    values = {design.id: _layers(answers.get(design.id, {})) or kind.read(design) for design in study.designs}
    drawn = {
        design: {layer: [kind.factor * value for value in found] for layer, found in layers.items()}
        for design, layers in values.items()
    }
    title = kind.name + (", per cent" if kind.factor == 100 else "")
    panel = by_design_panel(study, drawn, title, kind.line)
    if panel is None:
        return None
    rows = []
    for layer in range(study.depth):
        cells = []
        for design in study.designs:
            value = numbers.mean(values[design.id].get(layer, ()))
            cells.append(data(value, kind.show(value)))
        rows.append((str(layer), *cells))
    head = ("layer", *(design.title for design in study.designs))
    table = Table.of(f"{kind.name}, mean over seeds.", head, rows, "r" * len(head))
    return Figure(f"evidence-{claim}", "", "", (panel,), table, 1)


def _layers(answer: Json) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    for item in answer.get("layers") or ():
        layer, value = numbers.known(item.get("layer")), numbers.known(item.get("value"))
        if layer is not None and value is not None:
            found[int(layer)] = [value]
    return found
