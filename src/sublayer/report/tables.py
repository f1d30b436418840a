"""Tables: the numbers themselves, and the numbers behind every chart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from sublayer.report import numbers
from sublayer.report.svg import SHAPES, Scale, coordinate, marker, tag
from sublayer.report.view import LOST, Design, Run, Study

Cell = str | Markup


@dataclass(frozen=True)
class Table:
    """Rows under a head. `align` has one letter per column: l text, r number, w text that may wrap."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    align: str

    @classmethod
    def of(cls, caption: str, head: Sequence[str], rows: Iterable[Sequence[Cell]], align: str = "") -> Table:
        """A table from any rows; by default the first column is text and the others are numbers."""
        return cls(caption, tuple(head), tuple(map(tuple, rows)), align or "l" + "r" * (len(head) - 1))


def data(value: object, text: str) -> Cell:
    """A shown number that carries its full value."""
    number = numbers.known(value)
    return text if number is None else Markup('<data value="{}">{}</data>').format(repr(number), text)


def swatch(design: Design) -> Markup:
    """The line and marker that stand for a design in charts."""

    line = tag("path", d="M0 6H26", class_=f"ln {design.style}")
    dot = marker(SHAPES[design.index % len(SHAPES)], 13.0, 6.0, 3.6, design.style)
    return tag("svg", line, dot, viewBox="0 0 26 12", class_="swatch", aria_hidden="true")


def named(design: Design) -> Markup:
    """A design's swatch and title."""
    return Markup('<span class="named">{} {}</span>').format(swatch(design), design.title)


def seeds_and_lost(study: Study, design: Design) -> str:
    """How many runs a mean stands on: '2', or '1 of 2'."""
    total = len(design.compared)
    done = len(design.finished)
    return str(done) if done == total else f"{done} of {total}"


def interval(study: Study, design: Design) -> str:
    """The interval of the paired difference, or a dash."""
    low, high = design.row.get("low"), design.row.get("high")
    if numbers.known(low) is None or numbers.known(high) is None:
        return numbers.NONE
    return f"{numbers.fixed(low, study.digits, True)} to {numbers.fixed(high, study.digits, True)}"


def comparison(study: Study) -> Table:
    """The final table: held-out loss, spread, and the paired difference to the baseline with its interval."""
    level = numbers.percent((study.raw.get("comparison") or {}).get("confidence")).replace(" ", "")
    sides = "lower loss ← 0 → higher"
    head = ("design", "held-out loss", "sd of seeds", "seeds", "difference", f"{level} interval", sides)
    scale = _difference_scale(study)
    rows: list[tuple[Cell, ...]] = []
    for design in study.designs:
        row, base = design.row, design is study.baseline
        difference: Cell = data(row.get("difference"), numbers.fixed(row.get("difference"), study.digits, True))
        rows.append(
            (
                named(design),
                data(row.get("mean"), numbers.fixed(row.get("mean"), study.digits)),
                data(row.get("sd"), numbers.fixed(row.get("sd"), study.digits)),
                seeds_and_lost(study, design),
                "baseline" if base else difference,
                "" if base else interval(study, design),
                forest(study, design, scale) if scale else "",
            )
        )
    caption = f"Held-out loss after the last step, and the paired difference to {study.baseline.title} (same seed)."
    return Table.of(caption, head, rows, "lrrrrrl")


def _difference_scale(study: Study) -> Scale | None:
    found = [numbers.known(design.row.get(name)) for design in study.designs for name in ("difference", "low", "high")]
    known = [abs(value) for value in found if value is not None]
    reach = max(known, default=0.0) * 1.08
    return Scale(-reach, reach, 4, 156) if reach > 0 else None


def forest(study: Study, design: Design, scale: Scale) -> Markup:
    """The difference as a dot on an interval, on one scale for all designs. Left of the line is lower loss."""
    row = design.row
    value, low, high = (numbers.known(row.get(name)) for name in ("difference", "low", "high"))
    marks = [tag("path", d=f"M{coordinate(scale(0))} 0V22", class_="ref")]
    if low is not None and high is not None:
        x1, x2 = coordinate(scale(low)), coordinate(scale(high))
        marks.append(tag("path", d=f"M{x1} 11H{x2}M{x1} 7V15M{x2} 7V15", class_=f"ln solid {design.style}"))
    if value is not None:
        marks.append(marker(SHAPES[design.index % len(SHAPES)], scale(value), 11.0, 4.0, design.style))
    label = "baseline" if value is None else f"difference {numbers.fixed(value, study.digits, True)}"
    return tag("svg", *marks, viewBox="0 0 160 22", class_="forest", role="img", aria_label=label)


def runs(study: Study) -> Table:
    """Every run that was asked for, lost ones with the reason."""
    rates = len(study.raw["setup"].get("lrs") or ()) > 1
    rate = ("learning rate",) if rates else ()
    head = ("design", "seed", *rate, "status", "held-out loss", "training loss", "steps")
    rows: list[tuple[Cell, ...]] = []
    for design in study.designs:
        for run in design.runs:
            raw = run.raw
            rows.append(
                (
                    named(design),
                    str(run.seed),
                    *((numbers.setting(run.lr),) if rates else ()),
                    status(run),
                    data(raw.get("eval_loss"), numbers.fixed(raw.get("eval_loss"), study.digits)),
                    data(raw.get("train_loss"), numbers.fixed(raw.get("train_loss"), study.digits)),
                    numbers.count(raw.get("steps_done")),
                )
            )
    align = "lr" + ("r" if rates else "") + "wrrr"
    return Table.of("Every run of the study. Lost runs have no held-out loss and enter no mean.", head, rows, align)


def status(run: Run) -> Markup:
    """A run's fate in words, with the reason when it was lost."""
    if run.ok:
        return Markup("finished")
    word = LOST.get(str(run.raw.get("status")), str(run.raw.get("status")))
    reason = run.raw.get("reason")
    text = Markup('<strong class="lost">{}</strong>').format(word)
    return text + (Markup(': <span class="why">{}</span>').format(reason) if reason else Markup(""))


def cost(study: Study) -> Table:
    """What each design costs: parameters and FLOPs by count, time and memory as measured."""
    counted = ("parameters", "without embeddings", "FLOPs per token")
    head = ("design", *counted, "time per run", "tokens per s", "peak memory")
    rows: list[tuple[Cell, ...]] = []
    first = _costs(study.baseline)
    for design in study.designs:
        cells: list[Cell] = [named(design)]
        values = _costs(design)
        texts = (numbers.count, numbers.count, numbers.scaled, numbers.duration, numbers.count, _megabytes)
        for value, start, write in zip(values, first, texts, strict=True):
            shown = data(value, write(value))
            if design is not study.baseline and value is not None and start:
                shown = shown + Markup(' <span class="rel">{}</span>').format(_relative(value / start))
            cells.append(shown)
        rows.append(tuple(cells))
    caption = f"Cost. In grey: relative to {study.baseline.title}. Time and memory are means over finished runs."
    return Table.of(caption, head, rows)


def _costs(design: Design) -> tuple[float | None, ...]:
    raw = design.raw
    total, embedding = numbers.known(raw.get("parameters")), numbers.known(raw.get("parameters_embedding"))
    measured = [
        numbers.mean(numbers.known(run.raw.get(name)) for run in design.finished)
        for name in ("seconds", "tokens_per_second", "peak_memory_mb")
    ]
    bare = total - embedding if total is not None and embedding is not None else None
    return total, bare, numbers.known(raw.get("flops_per_token")), *measured


def _relative(ratio: float) -> str:
    change = 100 * (ratio - 1)
    if abs(change) < 0.05:
        return "same" if change == 0 else f"{'+' if change > 0 else numbers.MINUS}<0.1 %"
    return numbers.fixed(change, 1, True) + f"{numbers.SPACE}%"


def _megabytes(value: object) -> str:
    number = numbers.known(value)
    return numbers.NONE if number is None else f"{number:,.0f} MB"
