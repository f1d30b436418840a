"""`sl.probe`: a model measured at every `+`, as a record, a table or a data frame."""

import html
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from sublayer.probe.aliases import at
from sublayer.probe.capture import Batch
from sublayer.probe.losses import Loss
from sublayer.probe.measures import ISOTROPY_MEASURES
from sublayer.probe.measuring import Record

_HEADINGS = {
    "layer": "layer",
    "sum": "sum",
    "term": "term",
    "ratio": "term/stream",
    "cosine": "cosine",
    "before": "before",
    "without": "without",
    "after": "after",
    "norm": "stream norm",
}
_CAPTION = "before, without, after: rank-one residual of the stream, of the sum without the term, and of the sum"


@dataclass(frozen=True)
class Probe:
    """What a probe measured. `str()` is a table, `.record` the whole (schema `sublayer.probe/1`: the measure record of
    a study's results and more)."""

    record: Record

    def to_dict(self) -> Record:
        """The record: plain JSON values, no NaN."""
        return self.record

    def at(self, name: str) -> Record:
        """What was measured at a place that TransformerLens has a name for, such as ``blocks.0.hook_resid_mid``,
        ``blocks.3.hook_mlp_out``, ``blocks.1.attn.hook_pattern`` or ``blocks.0.ln1.hook_normalized``.

        Raises:
            ProbeError: the model has no such place (no ``hook_resid_mid`` in a parallel block), or it was not measured.
        """
        return at(self.record, name)

    def write(self, path: str | Path) -> None:
        """Write the record as JSON, replacing a file in one step."""
        import json

        from sublayer.whole_files import write_atomically

        write_atomically(Path(path), json.dumps(self.record, indent=1, allow_nan=False) + "\n")

    def to_frame(self) -> Any:
        """A pandas DataFrame with one row for each term of each sum; needs pandas (the extra `frames`).

        Columns: layer, section, value, equation, term, kind, ratio_q25, ratio_median, ratio_q75, cosine, and for each
        measure of isotropy `<measure>_before`, `_without` and `_after`.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError(
                "to_frame needs pandas, which is not installed: pip install 'sublayer[frames]'"
            ) from error
        rows = []
        for of_sum in self.record["sums"]:
            for term in of_sum["terms"]:
                row = {k: of_sum[k] for k in ("layer", "section", "value", "equation")}
                row |= {"term": term["term"], "kind": term["kind"]}
                row |= {f"ratio_{q}": term["ratio"][q] for q in ("q25", "median", "q75")}
                row["cosine"] = term["cosine"]
                for place, isotropy in (
                    ("before", of_sum["before"]),
                    ("without", term["without"]),
                    ("after", of_sum["after"]),
                ):
                    row |= {f"{name}_{place}": isotropy[name] for name in ISOTROPY_MEASURES}
                rows.append(row)
        return pandas.DataFrame(rows)

    def _rows(self) -> list[dict[str, str]]:
        return rows_of(self.record)

    def __str__(self) -> str:
        parts = [_table(self.record), *_more(self.record)]
        for other in self.record.get("others", ()):
            parts += [f"\n{other['stack']}: " + _table(other), *_more(other)]
        return "\n".join(parts)

    def _repr_html_(self) -> str:
        def cells(row: dict[str, str], tag: str) -> str:
            return "".join(f"<{tag}>{html.escape(row[k])}</{tag}>" for k in _HEADINGS)

        body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in self._rows())
        caption = html.escape(f"{self.record['tokens']} tokens. {_CAPTION}.")
        head = f"<caption>{caption}</caption><thead><tr>{cells(_HEADINGS, 'th')}</tr></thead>"
        return f"<table>{head}<tbody>{body}</tbody></table>"


def schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a probe's record."""
    import json

    text = Path(__file__).with_name("probe.schema.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def rows_of(record: Record) -> list[dict[str, str]]:
    """The table of a record as text, one row a term."""
    norms = {layer["layer"]: layer["stream_norm"]["median"] for layer in record["layers"]}
    names = {"embed": "embed", "final": "final"}
    rows = []
    for of_sum in record["sums"]:
        for term in of_sum["terms"]:
            rows.append(
                {
                    "layer": names.get(of_sum["section"], str(of_sum["layer"])),
                    "sum": of_sum["equation"],
                    "term": term["term"],
                    "ratio": number(term["ratio"]["median"]),
                    "cosine": number(term["cosine"]),
                    "before": number(of_sum["before"]["rank_one_residual"]),
                    "without": number(term["without"]["rank_one_residual"]),
                    "after": number(of_sum["after"]["rank_one_residual"]),
                    "norm": number(norms.get(of_sum["layer"])),
                }
            )
    return rows


def _table(record: Record) -> str:
    rows = [_HEADINGS, *rows_of(record)]
    lines = aligned(rows, {"layer", "sum", "term"})
    seen = record.get("tokens_seen", record["tokens"])
    of = f" of {seen}" if seen != record["tokens"] else ""
    return "\n".join([f"{record['tokens']}{of} tokens. {_CAPTION}.", "", *lines])


def aligned(rows: list[dict[str, str]], text: set[str]) -> list[str]:
    """Rows in columns under a rule; the first row is the heading, the columns in ``text`` are flush left."""
    widths = {k: max(len(row[k]) for row in rows) for k in rows[0]}
    lines = [
        "  ".join(row[k].ljust(widths[k]) if k in text else row[k].rjust(widths[k]) for k in rows[0]).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths.values()))
    return lines


def _more(record: Record) -> list[str]:
    """Attention, gradients and lens by layer, where they were measured, and what was not."""
    heads = {
        "layer": "layer",
        "entropy": "attention entropy",
        "first": "first token",
        "rank": "effective rank",
        "rogue": "largest rogue share",
        "gradient": "gradient norm",
        "lens": "lens loss",
    }
    losses = (record.get("lens") or {}).get("losses") or []
    rows = [heads]
    for layer in record["layers"]:
        if "rogue" not in layer:
            return []
        sites = layer["attention"]
        k = layer["layer"]
        rogue = layer["rogue"]["cosine"]
        rows.append(
            {
                "layer": str(k),
                "entropy": ", ".join(number(s["entropy"]) for s in sites) or "-",
                "first": ", ".join(number(s["first_token"]) for s in sites) or "-",
                "rank": number(layer["isotropy"]["effective_rank"]),
                "rogue": f"{number(rogue[0]['share'])} (dimension {rogue[0]['dimension']})" if rogue else "-",
                "gradient": number(layer["gradient_norm"]),
                "lens": number(losses[k + 1]) if k + 1 < len(losses) else "-",
            }
        )
    empty = [c for c in heads if all(row[c] == "-" for row in rows[1:])]
    lines = ["", *aligned([{c: v for c, v in row.items() if c not in empty} for row in rows], {"layer"})]
    lens = record.get("lens") or {}
    if losses:
        lines.append(
            f"lens loss before layer 0: {number(losses[0])}; the model's: {number(lens['loss'])} ({lens['what']})"
        )
    for what in ("lens", "gradients"):
        reason = (record.get(what) or {}).get("not_measured")
        if reason:
            lines.append(f"{what}: not measured, because {reason}")
    spans = record.get("intervals")
    if spans:
        for name, found in spans["median_layer"].items():
            said = {"ffn_change": "median change of isotropy by the FFN", "attention_ratio": "attention, median layer"}
            between = (
                f"{number(found['low'])} to {number(found['high'])}" if found["low"] is not None else "no interval"
            )
            lines.append(f"{said[name]}: {number(found['value'])} ({between}, {spans['texts']} texts)")
    for lost in record.get("not_measured", ()):
        place = lost["equation"] or lost["section"]
        lines.append(f"not measured: layer {lost['layer']}, {place}: {lost['reason']}")
    return lines


def number(value: float | None) -> str:
    """A number of a table."""
    if value is None:
        return "-"
    if value != 0 and not 1e-3 <= math.fabs(value) < 1e4:
        return f"{value:.1e}"
    return f"{value:.3f}"


def probe(
    model: nn.Module,
    batches: Iterable[Batch] | Batch,
    *,
    max_tokens: int | None = None,
    attention_rows: int = 4,
    measures: str = "default",
    loss: Loss | None = None,
    lens: bool = False,
    intervals: bool | int = False,
    seed: int = 0,
    via: str | None = None,
    extra_tokens: int = 2048,
    step: int = 0,
    gradient_norms: list[float | None] | None = None,
) -> Probe:
    """Measure any model that `sl.audit` reads at every `+` of its equations: isotropy before, after and without each
    term, what each term adds beside the stream, how the stream grows, and where attention looks.

    Args:
        model: a Hugging Face model, a plain module, or one of ours, in any mode and on any device; nothing about it is
            changed.
        batches: one batch or an iterable of them, also a generator of any length: a tensor or tuple of forward's
            positional arguments, or a mapping of its named ones (such as `input_ids` [batch, seq], `attention_mask`
            [batch, seq] with 0 for padding, `labels`). Padding never counts.
        max_tokens: tokens that are measured at most, evenly spaced over all. None: up to 2,048, and fewer where
            measuring them would cost more than a small part of the forward pass (`tokens` says how many).
        attention_rows: rows of the first batch whose attention is looked at; 0 for none.
        measures: "default", or "all": up to 4,096 tokens whatever they cost, and lens and gradients where the batches
            have a target.
        loss: for gradients and lens: True for the model's own loss (with labels in the batch) or next-token
            cross-entropy; or a function of the model's output and the batch's tensors by name. True also measures
            gradient norms.
        lens: measure the loss by layer, each layer's stream put through the model's own end.
        intervals: bootstrap intervals over texts; a number says how many resamples (1,000).
        seed: of the bootstrap.
        via: "taps" (only our own models, and theirs unless said otherwise) or "audit".
        extra_tokens: of the first batches that gradients and lens are taken on, at most (one batch at least).
        step, gradient_norms: written into the record.

    Raises:
        ProbeError: no `+` of the model could be measured, with the reason; or a batch does not fit.
    """
    from sublayer.probe.whole import record

    return Probe(
        record(
            model,
            batches,
            max_tokens=max_tokens,
            attention_rows=attention_rows,
            everything=measures,
            loss=loss,
            lens=lens,
            intervals=intervals,
            seed=seed,
            via=via,
            extra_tokens=extra_tokens,
            step=step,
            gradient_norms=gradient_norms,
        )
    )
