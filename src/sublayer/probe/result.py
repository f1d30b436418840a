"""`sl.probe`: a model measured at every `+`, as a record, a table or a data frame."""

import html
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from sublayer.probe.capture import Batch, Record, measure
from sublayer.probe.measures import ISOTROPY_MEASURES

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
    """What a probe measured. `str()` is a table, `.record` the whole (the measure record of a study's results)."""

    record: Record

    def to_dict(self) -> Record:
        """The measure record: plain JSON values, no NaN."""
        return self.record

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
        norms = {layer["layer"]: layer["stream_norm"]["median"] for layer in self.record["layers"]}
        names = {"embed": "embed", "final": "final"}
        rows = []
        for of_sum in self.record["sums"]:
            for term in of_sum["terms"]:
                rows.append(
                    {
                        "layer": names.get(of_sum["section"], str(of_sum["layer"])),
                        "sum": of_sum["equation"],
                        "term": term["term"],
                        "ratio": _number(term["ratio"]["median"]),
                        "cosine": _number(term["cosine"]),
                        "before": _number(of_sum["before"]["rank_one_residual"]),
                        "without": _number(term["without"]["rank_one_residual"]),
                        "after": _number(of_sum["after"]["rank_one_residual"]),
                        "norm": _number(norms.get(of_sum["layer"])),
                    }
                )
        return rows

    def __str__(self) -> str:
        rows = [_HEADINGS, *self._rows()]
        widths = {k: max(len(row[k]) for row in rows) for k in _HEADINGS}
        text = {"layer", "sum", "term"}
        lines = [
            "  ".join(row[k].ljust(widths[k]) if k in text else row[k].rjust(widths[k]) for k in _HEADINGS).rstrip()
            for row in rows
        ]
        lines.insert(1, "  ".join("-" * width for width in widths.values()))
        return "\n".join([f"{self.record['tokens']} tokens. {_CAPTION}.", "", *lines])

    def _repr_html_(self) -> str:
        def cells(row: dict[str, str], tag: str) -> str:
            return "".join(f"<{tag}>{html.escape(row[k])}</{tag}>" for k in _HEADINGS)

        body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in self._rows())
        caption = html.escape(f"{self.record['tokens']} tokens. {_CAPTION}.")
        head = f"<caption>{caption}</caption><thead><tr>{cells(_HEADINGS, 'th')}</tr></thead>"
        return f"<table>{head}<tbody>{body}</tbody></table>"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if value != 0 and not 1e-3 <= math.fabs(value) < 1e4:
        return f"{value:.1e}"
    return f"{value:.3f}"


def probe(model: nn.Module, batches: Iterable[Batch] | Batch, **options: Any) -> Probe:
    """Measure a Sublayer model at every `+` of its equation: isotropy before, after and without each term, what each
    term adds beside the stream, how the stream grows, and where attention looks.

    Args:
        model: SublayerModel or a head on it, in any mode; nothing about it is changed.
        batches: one batch or several, token ids [batch, seq] or mappings with `input_ids` and, for padded or packed
            text, `attention_mask` or `sequence_ids`.
        options: `max_tokens`, `attention_rows`, `step`, `gradient_norms` of `sublayer.probe.capture.measure`.
    """
    return Probe(measure(model, batches, **options))
