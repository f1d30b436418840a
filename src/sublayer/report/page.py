"""The page: everything computed here, placed by the template, one file with nothing outside it."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from sublayer.report import charts, evidence, glossary, layers, numbers, tables, training, wiring
from sublayer.report.template import template
from sublayer.report.view import Design, Study, read

SCHEMA = "sublayer.study/1"
LIMIT = 2_000_000  # bytes
_TIP = re.compile(r"<title>[^<]*</title>(?=</(?:circle|path)>)")


@dataclass(frozen=True)
class Detail:
    """How much a page shows. A page that grows beyond the limit is written again with less, and says so."""

    left_out: str = ""
    tables: bool = True  # behind the charts
    tips: bool = True  # the number at each point
    measures: int = 5  # of isotropy
    layers: bool = True  # what is inside the layers, after and during training


LEVELS = (
    Detail(),
    Detail("the tables behind the charts", tables=False),
    Detail("the tables behind the charts and the numbers at their points", tables=False, tips=False),
    Detail("the tables behind the charts and all measures of isotropy but one", tables=False, tips=False, measures=1),
    Detail("the tables behind the charts and the measures inside the layers", False, False, 0, False),
)


@dataclass(frozen=True)
class Fact:
    """A line of the fairness card: what was kept equal, whether it was, and the number."""

    label: str
    state: str  # yes, no, maybe
    text: str


@dataclass(frozen=True)
class Card:
    """A design with its picture and its distance from the first."""

    design: Design
    swatch: Markup
    diagram: wiring.Diagram | None
    sections: list[tuple[str, str]]
    placements: list[wiring.Placement]
    changes: Markup | None


def write(results: dict[str, Any], folder: Path, out: Path) -> None:
    """Writes the study's page.

    Args:
        results: results.json of a study, schema "sublayer.study/1" (see `sublayer/study/results.schema.json`).
        folder: the study's folder; the runs' metrics are read from it. Missing metrics leave charts out.
        out: the file to write, replaced in one step.

    Raises:
        ValueError: if the results have another schema, or no design.
    """
    if results.get("schema") != SCHEMA:
        raise ValueError(
            f"A report is written from results of schema {SCHEMA!r}; got {results.get('schema')!r}. "
            "Run `sublayer compare` of this version again, with --resume to keep finished runs."
        )
    study = read(results, Path(folder))
    context = _context(study)
    text = ""
    for detail in LEVELS:
        text = _render(context, detail)
        if len(text.encode()) < LIMIT:
            break
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(out)


def _render(context: dict[str, Any], detail: Detail) -> str:
    """The page as text, in one of the `LEVELS` of detail."""
    shown = {
        **context,
        "detail": detail,
        "with_tables": detail.tables,
        "isotropy": context["isotropy"][: detail.measures],
        "moving": context["moving"] if detail.layers else [],
        "ratio": context["ratio"] if detail.layers else None,
        "profile": context["profile"] if detail.layers else None,
    }
    text = template("page.html").render(shown)
    return text if detail.tips else _TIP.sub("", text)


def _context(study: Study) -> dict[str, Any]:
    """Everything that the template places."""
    raw = study.raw
    return {
        "study": study,
        "raw": raw,
        "title": _title(study),
        "setup": _setup(study),
        "strip": charts.strip_figure(study),
        "facts": _facts(study),
        "cards": _cards(study),
        "loss": charts.loss_figure(study),
        "rates": charts.rate_figure(study),
        "comparison": tables.comparison(study),
        "runs": tables.runs(study),
        "claims": evidence.claims(study),
        "ratio": layers.ratio_figure(study),
        "isotropy": layers.isotropy_figures(study),
        "isotropy_key": layers.isotropy_key(),
        "profile": layers.profile_figure(study),
        "moving": training.figures(study),
        "depth_key": training.depth_key(),
        "cost": tables.cost(study),
        "command": shlex.join(str(word) for word in raw.get("command") or ()),
        "details": _details(study),
        "glossary": glossary.ENTRIES,
        "status": tables.status,
    }


def _title(study: Study) -> str:
    titles = [design.short for design in study.designs]
    if len(titles) == 1:
        return f"{study.designs[0].title}, trained and measured"
    if len(titles) <= 4:
        return ", ".join(titles[:-1]) + " and " + titles[-1]
    return f"{len(titles)} block designs side by side"


def _setup(study: Study) -> str:
    setup, data = study.raw["setup"], study.raw["data"]
    kind = {"mlm": "masked language models", "clm": "causal language models"}.get(str(setup["objective"]), "models")
    tokens = setup["steps"] * setup["tokens_per_step"]
    each = " each" if len(study.designs) > 1 or study.seeds > 1 else ""
    return (
        f"{numbers.plural(len(study.designs), 'design')} × {numbers.plural(study.seeds, 'seed')}: {kind} of "
        f"{setup['layers']} layers and hidden size {setup['hidden']}, trained for {numbers.count(setup['steps'])} "
        f"steps ({numbers.scaled(tokens)} tokens){each} on “{data['spec']}”."
    )


def _facts(study: Study) -> list[Fact]:
    raw, data, setup = study.raw["fairness"], study.raw["data"], study.raw["setup"]
    rates = ", ".join(numbers.setting(rate) for rate in setup["lrs"])
    tokens = setup["steps"] * setup["tokens_per_step"]
    counts = [numbers.known(design.raw.get("parameters")) for design in study.designs]
    flops = [numbers.known(design.raw.get("flops_per_token")) for design in study.designs]
    return [
        Fact(
            "Data",
            "yes",
            f"“{data['spec']}”, {numbers.count(data['documents'])} documents; held out: "
            f"{numbers.count(data['eval_documents'])} documents, {numbers.count(data['eval_tokens'])} tokens. "
            f"sha256 {str(data['sha256'])[:12]}…",
        ),
        Fact("Tokens trained on", "yes", f"{numbers.count(tokens)} per run ({numbers.count(setup['steps'])} steps)"),
        _agree("Order of batches", raw.get("same_data_order"), "the same in every design, seed by seed"),
        _agree("Initial weights", raw.get("same_init"), "equal where designs share parameters, seed by seed"),
        _gap("Parameters", raw.get("parameter_gap"), counts, numbers.count),
        _gap("FLOPs per token", raw.get("flop_gap"), flops, numbers.scaled),
        Fact(
            "Learning rate",
            "yes",
            f"{rates} for every design" if len(setup["lrs"]) == 1 else f"best of {rates}, chosen per design",
        ),
    ]


def _agree(label: str, value: object, text: str) -> Fact:
    if value is None:
        return Fact(label, "maybe", "not known")
    return Fact(label, "yes", text) if value else Fact(label, "no", f"not {text}")


def _gap(label: str, value: object, found: list[float | None], show: Any) -> Fact:
    gap = numbers.known(value)
    sizes = [size for size in found if size is not None]
    if gap is None or not sizes:
        return Fact(label, "maybe", "not known")
    if gap == 0:
        return Fact(label, "yes", f"equal: {show(sizes[0])}")
    text = f"{show(min(sizes))} to {show(max(sizes))}: a gap of {numbers.percent(gap)}"
    return Fact(label, "maybe" if gap < 0.02 else "no", text)


def _cards(study: Study) -> list[Card]:
    first = study.baseline
    return [
        Card(
            design,
            tables.swatch(design),
            wiring.diagram(design),
            wiring.sections(design),
            wiring.placements(design, first),
            None if design is first else wiring.changes(first, design),
        )
        for design in study.designs
    ]


def _details(study: Study) -> list[tuple[str, str]]:
    """What one needs to run the study again."""
    raw = study.raw
    versions, machine, data, setup = raw["versions"], raw["machine"], raw["data"], raw["setup"]
    computer = (
        f"{machine.get('cpu')}; {machine.get('cores')} cores, {machine.get('threads')} threads per run; "
        f"{numbers.setting(machine.get('memory_gb'))} GB; device {machine.get('device')}; {machine.get('platform')}"
    )
    words = f"{data['tokenizer']}, {numbers.count(data['vocab_size'])} tokens"
    return [
        ("Written", str(raw.get("created") or "")),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("Machine", computer),
        ("Seeds", ", ".join(map(str, setup["seeds"]))),
        ("Data", f"{data['spec']}, sha256 {data['sha256']}"),
        ("Tokenizer", f"{words}, sha256 {data.get('tokenizer_sha256') or 'not known'}"),
        ("Set-up", ", ".join(f"{name.replace('_', ' ')} {_plain(value)}" for name, value in setup.items())),
        ("Schema", str(raw["schema"])),
    ]


def _plain(value: object) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(_plain, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(item)}" for name, item in value.items())
    return "none" if value is None else str(value)
