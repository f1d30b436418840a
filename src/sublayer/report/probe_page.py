"""A probe as one self-contained page: what each term adds, isotropy, attention, gradients and lens by layer."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sublayer.report import glossary, numbers
from sublayer.report.charts import Figure
from sublayer.report.errors import ProbePageError
from sublayer.report.probe_charts import (
    KINDS,
    MEASURES,
    TITLES,
    Line,
    by_kind,
    drawn,
    isotropy_lines,
    key_of,
    last_sums,
    layer_lines,
    ratio_lines,
    terms_of,
)
from sublayer.report.svg import Point
from sublayer.report.tables import Table, data
from sublayer.report.template import template
from sublayer.whole_files import write_atomically

SCHEMA = "sublayer.probe/1"
COMPARISON = "sublayer.probe-comparison/1"
Json = dict[str, Any]


@dataclass(frozen=True)
class Section:
    """A stack of a model on the page."""

    title: str
    summary: str
    figures: list[Figure]
    terms: Table
    layers: Table
    lost: list[str]


def write_probe(record: Json, out: Path) -> None:
    """Write the page of a probe or of two side by side, replacing a file in one step.

    Args:
        record: what ``sublayer probe --json`` prints: of schema ``sublayer.probe/1`` or
            ``sublayer.probe-comparison/1``.
        out: the file.

    Raises:
        ProbePageError: the record has another schema.
    """
    schema = record.get("schema")
    if schema not in (SCHEMA, COMPARISON):
        raise ProbePageError(
            f"the page of a probe is written from a record of schema {SCHEMA!r} or {COMPARISON!r}: got {schema!r}; "
            "run sublayer probe again"
        )
    models = [record] if schema == SCHEMA else [record["a"], record["b"]]
    claims = record.get("claims") or []
    of_models = [claims] if schema == SCHEMA else claims
    names = [str(m.get("name") or m["model"]["class"]) for m in models]
    text = template("probe.html").render(
        title=" and ".join(names),
        names=names,
        setups=[_setup(m) for m in models],
        notes=[(n, note) for n, m in zip(names, models, strict=True) for note in m.get("notes") or ()],
        claims=_claims(of_models, names),
        together=_together(models, names) if len(models) > 1 else [],
        comparison=_comparison(record) if schema == COMPARISON else None,
        sections=[s for n, m in zip(names, models, strict=True) for s in _sections(m, n if len(models) > 1 else "")],
        command=shlex.join(str(word) for word in record.get("command") or ()),
        details=[(n, label, value) for n, m in zip(names, models, strict=True) for label, value in _details(m)],
        glossary=glossary.ENTRIES,
        version=models[0]["versions"]["sublayer"],
        schema=schema,
    )
    write_atomically(out, text)


def _setup(model: Json) -> str:
    sizes = model["model"]
    text = model.get("data") or {}
    seen, kept = model["tokens_seen"], model["tokens"]
    return (
        f"{sizes['class']}, {numbers.scaled(sizes['parameters'])} parameters ({sizes['dtype']}), "
        f"{numbers.plural(len(model['layers']), 'layer')}; {numbers.count(seen)} tokens of "
        f"{numbers.plural(model['texts'], 'text')}{' (' + str(text['spec']) + ')' if text else ''}, "
        f"{numbers.count(kept)} of them measured."
    )


def _details(model: Json) -> list[tuple[str, str]]:
    text = model.get("data") or {}
    found = [("equation of layer 0", str(next((layer["equation"] for layer in model["layers"]), "") or "unknown"))]
    if text:
        found += [
            ("text", f"{text['spec']}; rows of at most {text['seq']} tokens"),
            ("sha256 of the text", str(text["sha256"])),
            ("sha256 of the ids", str(text["ids_sha256"])),
        ]
    found += [("seed", str(model.get("seed", 0))), ("values taken by", model["source"])]
    found += [(name, str(value)) for name, value in model["versions"].items()]
    return found


def _claims(of_models: Sequence[Sequence[Json]], names: Sequence[str]) -> list[Json]:
    """Each claim with the answers of all models."""
    found = []
    for k, claim in enumerate(of_models[0] if of_models and of_models[0] else ()):
        answers = []
        for claims, name in zip(of_models, names, strict=True):
            answer = claims[k]["answers"][0]
            low, high = (numbers.significant(answer[end], 2) for end in ("low", "high"))
            between = f" (95 % interval over texts {low} to {high})" if answer.get("over") == "texts" else ""
            answers.append(
                (name, answer["answer"], f"{numbers.significant(answer['value'], 3)}{between}", answer["detail"])
            )
        found.append({"question": claim["question"], "rule": claim["rule"], "answers": answers})
    return found


def _figures(model: Json, prefix: str) -> list[Figure]:
    found = []
    ratios = ratio_lines(model)
    if ratios:
        caption = (
            "Norm of the term divided by the norm of the stream that it is added to, per token, with their factors. "
            "Lines: median over tokens; bands: middle half of the tokens."
        )
        found.append(
            Figure(f"{prefix}ratio", "How much each term adds", caption, (drawn("term / stream", ratios, True),))
        )
    by_measure = [(m, isotropy_lines(model, m)) for m in MEASURES]
    panels = [drawn(TITLES[m], lines) for m, lines in by_measure if any(line.points for line in lines)]
    if panels:
        caption = (
            "For each kind of term the sum that adds it, and the same sum without it, both through the norm that "
            "follows if there is one. "
            "Measures disagree; look at more than one."
        )
        found.append(Figure(f"{prefix}isotropy", "How isotropic the token vectors are", caption, tuple(panels)))
    other = tuple(drawn(title, lines) for title, _, lines in layer_lines(model))
    if other:
        lens = model.get("lens") or {}
        caption = f"Loss: {lens['what']}, {numbers.count(lens['targets'])} targets." if lens.get("losses") else ""
        found.append(Figure(f"{prefix}layers", "Layer by layer", caption, other))
    return found


def _together(models: Sequence[Json], names: Sequence[str]) -> list[Figure]:
    """Both models in one panel a measure."""
    kinds = dict.fromkeys(t["kind"] for m in models for _, t in terms_of(m))

    def both(read: Callable[[Json], Sequence[Point]]) -> list[Line]:
        return [Line("AB"[k], f"d{k}", points) for k, m in enumerate(models) if (points := read(m))]

    panels = []
    for kind in kinds:
        lines = both(lambda m, kind=kind: by_kind(m, lambda s, t: t["ratio"]["median"]).get(kind, ()))  # type: ignore[misc]
        if lines:
            panels.append(drawn(f"{KINDS.get(kind, kind)} / stream", lines, True))
    for measure in MEASURES:
        lines = both(lambda m, measure=measure: last_sums(m, measure))  # type: ignore[misc]
        if lines:
            panels.append(drawn(f"{TITLES[measure]} of the last sum", lines))
    titles = dict.fromkeys(title for m in models for title, _, _ in layer_lines(m))
    for title in titles:
        lines = both(lambda m, title=title: next((ls[0].points for t, _, ls in layer_lines(m) if t == title), ()))  # type: ignore[misc]
        if lines:
            panels.append(drawn(title, lines))
    caption = f"A: {names[0]}. B: {names[1]}. Layers are matched by number."
    return [Figure("together", "Side by side", caption, tuple(panels), key=key_of(names))] if panels else []


# --- tables ---------------------------------------------------------------------------------------------------------


def _sections(model: Json, name: str) -> list[Section]:
    found = []
    for stack in (model, *model.get("others", ())):
        words = [name, stack["stack"] if model.get("others") else ""]
        title = ", ".join(w for w in words if w)
        prefix = "".join(c if c.isalnum() else "-" for c in title) + "-" if title else ""
        groups = dict.fromkeys(str(layer["equation"] or "unknown") for layer in stack["layers"])
        found.append(
            Section(
                title,
                "; or ".join(groups),
                _figures(stack, prefix),
                _term_table(stack),
                _layer_table(stack),
                [f"layer {u['layer']}, {u['equation'] or u['section']}: {u['reason']}" for u in stack["not_measured"]]
                + [
                    f"{what}: {r}"
                    for what in ("lens", "gradients")
                    if (r := (stack.get(what) or {}).get("not_measured"))
                ],
            )
        )
    return found


def _term_table(stack: Json) -> Table:
    spans = {
        (t["layer"], t["section"], t["value"], t["term"]): t for t in (stack.get("intervals") or {}).get("terms", ())
    }
    head: tuple[str, ...] = (
        "layer",
        "sum",
        "term",
        "term / stream",
        "cosine",
        "residual before",
        "without",
        "after",
        "own rank",
    )
    head += ("95 % of term / stream", "95 % of the change") if spans else ()
    rows = []
    for s in stack["sums"]:
        for t in s["terms"]:
            where = str(s["layer"]) if s["section"] == "block" else s["section"]
            values = (
                t["ratio"]["median"], t["cosine"], s["before"]["rank_one_residual"], t["without"]["rank_one_residual"],
                s["after"]["rank_one_residual"], t["own"]["effective_rank"],
            )  # fmt: skip
            row = [where, s["equation"], t["term"], *(data(v, numbers.significant(v)) for v in values)]
            if spans:
                one = spans.get((s["layer"], s["section"], s["value"], t["term"]))
                change = (one or {}).get("change", {}).get("rank_one_residual")
                row += [_between((one or {}).get("ratio")), _between(change)]
            rows.append(row)
    return Table.of("Every term of every sum.", head, rows, "lll" + "r" * (len(head) - 3))


def _between(interval: Json | None) -> str:
    if not interval or interval["low"] is None:
        return numbers.NONE
    return f"{numbers.significant(interval['low'], 3)} to {numbers.significant(interval['high'], 3)}"


def _layer_table(stack: Json) -> Table:
    losses = (stack.get("lens") or {}).get("losses") or []
    head = (
        "layer",
        "stream norm",
        "effective rank",
        "entropy",
        "first token",
        "rogue channels (share)",
        "large channels",
        "gradient norm",
        "lens loss",
    )
    rows = []
    for layer in stack["layers"]:
        k = layer["layer"]
        rogue = ", ".join(f"{r['dimension']} ({numbers.significant(r['share'], 2)})" for r in layer["rogue"]["cosine"])
        values = (layer["stream_norm"]["median"], layer["isotropy"]["effective_rank"])
        rows.append(
            [
                str(k),
                *(data(v, numbers.significant(v)) for v in values),
                ", ".join(numbers.significant(s["entropy"]) for s in layer["attention"]) or numbers.NONE,
                ", ".join(numbers.significant(s["first_token"]) for s in layer["attention"]) or numbers.NONE,
                rogue or numbers.NONE,
                str(layer["rogue"]["magnitude_count"]),
                data(layer["gradient_norm"], numbers.significant(layer["gradient_norm"])),
                numbers.significant(losses[k + 1]) if k + 1 < len(losses) else numbers.NONE,
            ]
        )
    return Table.of("Every layer.", head, rows, "lrrrrlrrr")


def _comparison(record: Json) -> Table:
    head = ("layer", "term", "A", "B", "B − A", "change A", "change B", "B − A")
    rows = []
    for t in record["terms"]:
        cells = [t[m][side] for m in ("ratio", "change") for side in ("a", "b", "difference")]
        rows.append(
            [str(t["layer"]), KINDS.get(t["term"], t["term"]), *(data(v, numbers.significant(v)) for v in cells)]
        )
    return Table.of("Term / stream, and the change of the rank-one residual by the term.", head, rows, "llrrrrrr")
