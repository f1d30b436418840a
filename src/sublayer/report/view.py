"""A study as the page reads it: designs with their runs, curves and measures, averaged over seeds where that is meant.

Input is results.json (schema "sublayer.study/1") and the runs' metrics.jsonl beside it. Damaged or missing metrics
leave gaps in charts, never an exception: a page about what was lost must still be written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from sublayer.report.numbers import known, loss_digits, mean

Json = dict[str, Any]
Isotropy = Literal["iso_score", "mean_cosine", "partition_ratio", "rank_one_residual", "effective_rank"]
# The first is the one that the claim about the FFN is decided by.
ISOTROPY: tuple[Isotropy, ...] = ("rank_one_residual", "iso_score", "mean_cosine", "effective_rank", "partition_ratio")
QUARTILES = ("q25", "median", "q75")
LOST = {
    "diverged": "diverged",
    "failed": "failed",
    "killed": "killed",
    "missing": "not run",
}


@dataclass(frozen=True)
class Evaluation:
    """A loss (nats per token) at a step, with the compute spent until then."""

    step: int
    loss: float
    flops: float | None


@dataclass(frozen=True)
class Run:
    """One design, one seed, one learning rate."""

    raw: Json
    evals: tuple[Evaluation, ...] = ()
    trains: tuple[Evaluation, ...] = ()
    history: tuple[Json, ...] = ()  # measure records in order of step

    @property
    def seed(self) -> int:
        return int(self.raw.get("seed") or 0)

    @property
    def lr(self) -> float | None:
        return known(self.raw.get("lr"))

    @property
    def ok(self) -> bool:
        return self.raw.get("status") == "ok"

    @property
    def final(self) -> Json | None:
        """The measure record of the trained model."""
        record = self.raw.get("measures")
        return record if isinstance(record, dict) and self.ok else None


@dataclass(frozen=True)
class TermKey:
    """Which term of a layer: the n-th of its kind, and the stream that it is added to."""

    kind: str
    nth: int
    stream: str

    def title(self, many: bool) -> str:
        name = {"attn": "attention", "ffn": "FFN"}.get(self.kind, self.kind)
        place = f" into {self.stream}" if self.stream not in ("", "x") else ""
        return f"{name}{f' {self.nth}' if many else ''}{place}"

    @property
    def style(self) -> str:
        return f"t-{self.kind}" if self.kind in ("attn", "ffn") else "t-other"


def placed_terms(record: Json) -> Iterator[tuple[int, TermKey, Json, Json]]:
    """(layer, key, sum, term) of every term of a measure record's blocks, in the order of the record."""
    seen: dict[tuple[int, str, str], int] = {}
    for total in record.get("sums") or ():
        if total.get("section", "block") != "block":
            continue
        layer = int(total["layer"])
        stream = _carried(str(total.get("stream") or "x"))
        for term in total.get("terms") or ():
            kind = str(term.get("kind") or "other")
            nth = seen[layer, kind, stream] = seen.get((layer, kind, stream), 0) + 1
            yield layer, TermKey(kind, nth, stream), total, term


def _carried(stream: str) -> str:
    """The carried stream behind a stream's label; anything computed, such as norm(x + attn(x)), counts as x."""
    return stream if stream.isidentifier() else "x"


@dataclass(frozen=True)
class Design:
    """One design with all its runs, and those that its numbers come from."""

    index: int
    raw: Json
    runs: tuple[Run, ...]
    row: Json

    @property
    def id(self) -> str:
        return str(self.raw["id"])

    @property
    def title(self) -> str:
        """What the design is called everywhere: its id, as in file names and the command."""
        return self.id

    @property
    def subtitle(self) -> str:
        """The catalogue's title, where it says more than the id."""
        title = str(self.raw.get("title") or "")
        return "" if re.sub(r"[\s_-]", "", title).casefold() == re.sub(r"[\s_-]", "", self.id).casefold() else title

    @property
    def short(self) -> str:
        """The title as a chart has room for it."""
        title = " ".join(self.title.split())
        return title if len(title) <= 18 else title[:17] + "…"

    @property
    def style(self) -> str:
        return f"d{self.index % 8} k{self.index // 8 % 3}"

    @cached_property
    def lr(self) -> float | None:
        """The learning rate compared: the one in the comparison's row, else the one with the lowest mean loss."""
        stated = known(self.row.get("lr"))
        if stated is not None:
            return stated
        losses: dict[float, list[float]] = {}
        for run in self.runs:
            loss = known(run.raw.get("eval_loss"))
            if run.ok and loss is not None and run.lr is not None:
                losses.setdefault(run.lr, []).append(loss)
        if not losses:
            return self.runs[0].lr if self.runs else None
        return min(losses, key=lambda lr: sum(losses[lr]) / len(losses[lr]))

    @cached_property
    def compared(self) -> tuple[Run, ...]:
        """The runs at the compared learning rate, lost ones too."""
        return tuple(run for run in self.runs if run.lr == self.lr)

    @cached_property
    def finished(self) -> tuple[Run, ...]:
        return tuple(run for run in self.compared if run.ok)

    @cached_property
    def losses(self) -> list[float]:
        """Held-out losses of the finished runs."""
        found = (known(run.raw.get("eval_loss")) for run in self.finished)
        return [loss for loss in found if loss is not None]

    @cached_property
    def measured(self) -> tuple[Run, ...]:
        """Finished runs with measures of the trained model."""
        return tuple(run for run in self.finished if run.final)


@dataclass(frozen=True)
class Study:
    """Everything that the page shows."""

    raw: Json
    designs: tuple[Design, ...]

    @property
    def baseline(self) -> Design:
        wanted = (self.raw.get("comparison") or {}).get("baseline")
        return next((design for design in self.designs if design.id == wanted), self.designs[0])

    @property
    def depth(self) -> int:
        return int(self.raw["setup"]["layers"])

    @property
    def seeds(self) -> int:
        return len(self.raw["setup"]["seeds"])

    @property
    def lost(self) -> tuple[Run, ...]:
        return tuple(run for design in self.designs for run in design.runs if not run.ok)

    @cached_property
    def digits(self) -> int:
        """Decimals that losses of this study are shown with."""
        return loss_digits(known(design.row.get("sd")) for design in self.designs)

    @property
    def remarks(self) -> list[tuple[str, str]]:
        """(design, note) of the comparison's rows that have one."""
        return [(design.title, str(note)) for design in self.designs if (note := design.row.get("note"))]

    def title_of(self, design_id: object) -> str:
        return next((design.title for design in self.designs if design.id == design_id), str(design_id))


def read(results: Json, folder: Path) -> Study:
    """The study of `results`, with the metrics found under `folder`."""
    rows = {row.get("design"): row for row in (results.get("comparison") or {}).get("rows") or ()}
    runs: dict[object, list[Run]] = {}
    for raw in results["runs"]:
        runs.setdefault(raw.get("design"), []).append(_read_run(raw, folder))
    designs = tuple(
        Design(index, raw, tuple(runs.get(raw["id"], ())), rows.get(raw["id"], {}))
        for index, raw in enumerate(results["designs"])
    )
    if not designs:
        raise ValueError("a report needs one design at least: results['designs'] is empty; pass a study's results.json")
    return Study(results, designs)


def _read_run(raw: Json, folder: Path) -> Run:
    evals: dict[int, Evaluation] = {}
    trains: dict[int, Evaluation] = {}
    history: dict[int, Json] = {}
    for record in _records(raw.get("metrics"), folder):
        kind, step, loss = record.get("kind"), known(record.get("step")), known(record.get("loss"))
        if step is None:
            continue
        point = int(step)
        if kind == "measure":
            history[point] = record
        elif loss is not None and kind in ("eval", "train"):
            # A resumed run repeats steps: the later record is the one that led to the final weights.
            (evals if kind == "eval" else trains)[point] = Evaluation(point, loss, known(record.get("flops")))
    return Run(raw, _in_order(evals), _in_order(trains), tuple(history[step] for step in sorted(history)))


def _in_order(found: dict[int, Evaluation]) -> tuple[Evaluation, ...]:
    return tuple(found[step] for step in sorted(found))


def _records(name: object, folder: Path) -> Iterator[Json]:
    """The whole lines of a metrics file; a killed run may leave half a line, a missing run no file."""
    if not isinstance(name, str) or not name:
        return
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record


def over_seeds(values: list[Json], names: tuple[str, ...] = QUARTILES) -> dict[str, float | None]:
    """The mean over seeds of each named number."""
    return {name: mean(known(value.get(name)) for value in values) for name in names}
