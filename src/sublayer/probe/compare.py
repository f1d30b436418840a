"""Two probes side by side: layers matched by number, terms by what made them."""

from dataclasses import dataclass
from typing import Any

from sublayer.probe.errors import ProbeError
from sublayer.probe.measuring import Record
from sublayer.probe.result import Probe, aligned, number

SCHEMA = "sublayer.probe-comparison/1"
_OF_TERMS = {
    "ratio": "term/stream",
    "cosine": "cosine",
    "change": "change",
    "after": "after",
}
_OF_LAYERS = {
    "stream_norm": "stream norm",
    "effective_rank": "effective rank",
    "entropy": "attention entropy",
    "first_token": "first token",
    "gradient_norm": "gradient norm",
    "lens": "lens loss",
}


@dataclass(frozen=True)
class Comparison:
    """What two models have at the same layers. `str()` is a table; `.record` has both probes whole, too."""

    record: Record

    def to_dict(self) -> Record:
        """Plain JSON values, no NaN."""
        return self.record

    def __str__(self) -> str:
        a, b = self.record["names"]
        parts = []
        for rows, columns in ((self.record["terms"], _OF_TERMS), (self.record["layers"], _OF_LAYERS)):
            if not rows:
                continue
            columns = {k: v for k, v in columns.items() if any(r[k]["a"] is not None for r in rows)}
            head: dict[str, str] = {"layer": "layer"} | ({"term": "term"} if columns.keys() <= _OF_TERMS.keys() else {})
            for key, title in columns.items():
                head |= {f"{key} a": f"{title} A", f"{key} b": "B", f"{key} d": "B - A"}
            lines = [head]
            for r in rows:
                row: dict[str, str] = {k: str(r[k]) for k in ("layer", "term") if k in head}
                for key in columns:
                    row |= {f"{key} {p}": number(r[key][q]) for p, q in (("a", "a"), ("b", "b"), ("d", "difference"))}
                lines.append(row)
            parts.append("\n".join(aligned(lines, {"layer", "term"})))
        told = "change: of the rank-one residual of the sum by the term; after: that residual of the sum"
        tail = [f"only in {'AB'[k]}: {text}" for k, text in self.record["unmatched"]]
        return "\n\n".join([f"A: {a}\nB: {b}\n{told}", *parts, *(["\n".join(tail)] if tail else [])])


def compare(a: Probe | Record, b: Probe | Record, names: tuple[str, str] = ("A", "B")) -> Comparison:
    """Put two probes side by side; the difference is always b minus a.

    Args:
        a, b: probes or their records, best of the same text and the same number of measured tokens.
        names: what they are called.

    Returns:
        A comparison; its record holds ``terms`` (one a layer and sub-layer kind: ratio, cosine, change, after) and
        ``layers`` (stream norm, effective rank, attention, gradient norm, lens loss), each ``{"a", "b",
        "difference"}``, and in ``unmatched`` what only one of them has.

    Raises:
        ProbeError: one of the records is none of a probe.
    """
    left, right = (x.record if isinstance(x, Probe) else x for x in (a, b))
    for record in (left, right):
        if record.get("schema") != "sublayer.probe/1":
            raise ProbeError(f"probes of schema 'sublayer.probe/1' are compared: got {record.get('schema')!r}")
    terms = [_terms(left), _terms(right)]
    layers = [_layers(left), _layers(right)]
    both = [key for key in terms[0] if key in terms[1]]
    unmatched: list[tuple[int, str]] = []
    for side, (mine, other) in enumerate(((terms[0], terms[1]), (terms[1], terms[0]))):
        unmatched += [(side, f"layer {k[0]}, {k[1]}") for k in mine if k not in other]
    for side, (one, two) in enumerate(((layers[0], layers[1]), (layers[1], layers[0]))):
        unmatched += [(side, f"layer {k}") for k in one if k not in two]
    return Comparison(
        {
            "schema": SCHEMA,
            "names": list(names),
            "terms": [
                {"layer": k[0], "term": k[1]} | {m: _pair(terms[0][k][m], terms[1][k][m]) for m in _OF_TERMS}
                for k in both
            ],
            "layers": [
                {"layer": k} | {m: _pair(layers[0][k][m], layers[1][k][m]) for m in _OF_LAYERS}
                for k in layers[0]
                if k in layers[1]
            ],
            "unmatched": [list(u) for u in unmatched],
            "a": left,
            "b": right,
        }
    )


def _pair(a: float | None, b: float | None) -> Record:
    return {"a": a, "b": b, "difference": None if a is None or b is None else b - a}


def _terms(record: Record) -> dict[tuple[int, str], Record]:
    found: dict[tuple[int, str], Record] = {}
    for of_sum in record["sums"]:
        if of_sum["section"] != "block" or of_sum["stream"] != "x":
            continue
        for term in of_sum["terms"]:
            kind, count = term["kind"], 1
            while (of_sum["layer"], kind) in found:
                count += 1
                kind = f"{term['kind']} {count}"
            after, without = of_sum["after"]["rank_one_residual"], term["without"]["rank_one_residual"]
            change = None
            if after is not None and without is not None:
                change = (after - without) / (max(abs(after), abs(without)) or 1.0)
            found[of_sum["layer"], kind] = {
                "ratio": term["ratio"]["median"],
                "cosine": term["cosine"],
                "change": change,
                "after": after,
            }
    return found


def _layers(record: Record) -> dict[int, Record]:
    losses = (record.get("lens") or {}).get("losses") or []
    found = {}
    for layer in record["layers"]:
        k = layer["layer"]
        own: list[Any] = [s for s in layer["attention"] if not s["site"].startswith("cross")]
        found[k] = {
            "stream_norm": layer["stream_norm"]["median"],
            "effective_rank": layer["isotropy"]["effective_rank"],
            "entropy": own[0]["entropy"] if own else None,
            "first_token": own[0]["first_token"] if own else None,
            "gradient_norm": layer["gradient_norm"],
            "lens": losses[k + 1] if k + 1 < len(losses) else None,
        }
    return found
