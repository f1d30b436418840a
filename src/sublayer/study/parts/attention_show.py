"""From measurements of attention and FFN to the blocks of a record. The rules stand in `attention.AttentionCost`."""

import statistics
from collections.abc import Sequence
from typing import Any

from sublayer.study.parts.attention_findings import FFN, Finding, Formula, Measured, Shape, find
from sublayer.study.parts.attention_words import caveats, parting, verdicts
from sublayer.study.parts.part import Result

Json = dict[str, Any]


def show(shape: Shape, measured: Sequence[Measured], lengths: Sequence[int], seed: int, causal: bool) -> Result:
    """The part's result; facts of what ran are added by the part."""
    formula = shape.formula()
    result = Result()
    passes = list(dict.fromkeys(each.name for each in measured))
    ffns = {each.name: each for each in measured if each.subject == FFN}
    findings = [find(each, ffns[each.name], shape, seed) for each in measured if each.subject != FFN]
    for name in passes:
        rows = [each for each in measured if each.name == name and each.times]
        here = [each for each in findings if each.measured.name == name and each.measured.times]
        absent = [each.subject for each in measured if each.name == name and not each.times]
        note = f" Not measured: {', '.join(absent)}; see the table of what was lost." if absent else ""
        result.charts += [
            _times(name, rows, lengths, note),
            _ratios(name, here, lengths, formula, note),
            _peaks(name, rows, lengths, note),
        ]
        result.verdicts += verdicts(name, here, formula)
        result.details[name] = {
            each.measured.subject: {
                "time": vars(each.time) if each.time else None,
                "memory": vars(each.memory) if each.memory else None,
                "crossover": each.within,
            }
            for each in here
        }
    result.tables += [_crossovers(findings, formula, lengths), _fits(findings, lengths)]
    result.tables += [_table_of(measured, lengths, "time"), _table_of(measured, lengths, "memory")]
    if any(each.lost for each in measured):
        result.tables.append(_lost(measured))
    if not any(each.measured.times for each in findings):
        result.verdicts = ["No backend could be measured; the table of what was lost says why."]
    result.caveats = caveats(measured, findings, causal)
    result.details["formula"] = {**vars(formula), "whole": formula.whole}
    return result


# --- charts -------------------------------------------------------------------------------------------------------


def _times(name: str, rows: Sequence[Measured], lengths: Sequence[int], note: str) -> Json:
    series = []
    for each in rows:
        points = []
        for length in lengths:
            found = [1000 * curve[length] for curve in each.rounds if length in curve]
            points.append(_point(length, found))
        series.append({"name": each.subject, "points": points})
    said = "One sequence through one call site. Medians over rounds; intervals reach from the fastest to the slowest."
    return _chart(f"Time, {name}", said + note, "milliseconds", series, [])


def _ratios(name: str, rows: Sequence[Finding], lengths: Sequence[int], formula: Formula, note: str) -> Json:
    counted = [{"x": n, "y": formula.ratio(n), "low": None, "high": None} for n in lengths]
    series: list[Json] = [{"name": "FLOPs of products", "points": counted}]
    for each in rows:
        points = []
        for length in lengths:
            pairs = zip(each.measured.rounds, each.ffn.rounds, strict=True)
            points.append(_point(length, [a[length] / f[length] for a, f in pairs if length in a and length in f]))
        series.append({"name": each.measured.subject, "points": points})
    marks = [{"y": 1.0, "name": "as dear as the FFN"}]
    said = "Attention's time over the FFN's in the same round, and the same ratio of FLOPs by sublayer cost."
    why = parting(rows)
    return _chart(f"Attention beside the FFN, {name}", f"{said} {why}".strip() + note, "attention / FFN", series, marks)


def _peaks(name: str, rows: Sequence[Measured], lengths: Sequence[int], note: str) -> Json:
    series = []
    for each in rows:
        points = [_point(length, [each.peaks[length] / 1e6] if each.peaks.get(length) else []) for length in lengths]
        series.append({"name": each.subject, "points": points})
    said = "How far the resident memory of a process rises during one call on one sequence, weights and input aside."
    return _chart(f"Peak memory, {name}", said + note, "MB", series, [])


def _point(length: int, found: Sequence[float]) -> Json:
    many = len(found) > 1
    return {
        "x": length,
        "y": statistics.median(found) if found else None,
        "low": min(found) if many else None,
        "high": max(found) if many else None,
    }


def _chart(title: str, note: str, y: str, series: list[Json], marks: list[Json]) -> Json:
    axes = {"x": "tokens in a sequence", "y": y, "x_log": True, "y_log": True}
    return {"title": title, "note": note, **axes, "series": series, "marks": marks}


# --- tables -------------------------------------------------------------------------------------------------------


def _table_of(measured: Sequence[Measured], lengths: Sequence[int], what: str) -> Json:
    head = ["subject", "pass", *(f"{length:,}" for length in lengths)]
    rows: list[list[Any]] = []
    for each in measured:
        curve = each.times if what == "time" else each.peaks
        factor = 1000 if what == "time" else 1e-6
        values = [_rounded(factor * curve[length]) if length in curve else None for length in lengths]
        spread = [None if each.spread is None else _rounded(100 * each.spread)] if what == "time" else []
        rows.append([each.subject, each.name, *values, *spread])
    if what == "memory":
        return {"title": "Peak memory of one sequence, MB, by tokens", "note": "", "head": head, "rows": rows}
    note = "Medians over rounds. Spread: the largest distance between two rounds at one length, over the median."
    return {
        "title": "Milliseconds of one sequence, by tokens",
        "note": note,
        "head": [*head, "spread, %"],
        "rows": rows,
    }


def _crossovers(findings: Sequence[Finding], formula: Formula, lengths: Sequence[int]) -> Json:
    rows: list[list[Any]] = []
    for each in findings:
        place = each.within
        rows.append(
            [
                each.measured.subject,
                each.measured.name,
                _place(each.cross, lengths) if place is None else f"{place:,.0f}",
                *(None if bound is None else round(bound) for bound in (each.low, each.high)),
                round(formula.whole),
                None if place is None or not formula.whole else _rounded(place / formula.whole),
                None if each.square_from is None else round(each.square_from),
                round(formula.products),
            ]
        )
    head = ["backend", "pass", "as dear as the FFN from", "low", "high", "by FLOPs", "measured / FLOPs"]
    head += ["square term alone from", "by FLOPs, alone"]
    note = (
        "Tokens. First the whole call site against the FFN, where the measured curves cross, with its 95% interval "
        "over rounds. Then the fitted square term alone against the FFN's time a token, which may lie beyond what was "
        "measured."
    )
    return {"title": "Crossover with the FFN", "note": note, "head": head, "rows": rows}


def _fits(findings: Sequence[Finding], lengths: Sequence[int]) -> Json:
    rows: list[list[Any]] = []
    longest = lengths[-1]
    for each in findings:
        found = each.time
        if found is None:
            continue
        memory = None if each.memory is None else 100 * each.memory.share(longest)
        values = [1e3 * found.c, 1e6 * found.a, *_times_of(1e9, found.b, found.b_low, found.b_high), found.r2]
        values += [100 * found.worst, 100 * found.share(longest), *_times_of(1e-9, each.rate, each.ffn_rate)]
        shown = [None if value is None else _rounded(value) for value in (*values, memory, each.matrices, each.counted)]
        rows.append([each.measured.subject, each.measured.name, *shown])
    head = ["backend", "pass", "c, ms", "a, µs", "b, ns", "b low", "b high", "R²", "worst, %"]
    head += [f"square at {longest:,}, %", "square, GFLOP/s", "FFN, GFLOP/s", "square of memory, %"]
    head += ["score matrices", "by sublayer cost"]
    note = (
        "Seconds of a sequence of T tokens, fitted by c + a T + b T² with none negative; b with its 95% interval over "
        "rounds. Worst: the largest distance of a median from the fit. GFLOP/s: FLOPs of products over fitted time, in "
        "the square term and in the FFN. Square of memory: share of the fitted square term in the peak at "
        f"{longest:,} tokens. Score matrices: that term in matrices of heads × T × T numbers; sublayer cost counts "
        "them for training steps, and takes all but eager for kernels that keep no probabilities."
    )
    return {"title": "What was fitted", "note": note, "head": head, "rows": rows}


def _times_of(factor: float, *values: float | None) -> list[float | None]:
    return [None if value is None else factor * value for value in values]


def _lost(measured: Sequence[Measured]) -> Json:
    """What could not be measured, one row for each reason."""
    rows: dict[tuple[str, str, str], list[int]] = {}
    for each in measured:
        for length, why in each.lost.items():
            rows.setdefault((each.subject, each.name, why), []).append(length)
    shown = [
        [subject, name, ", ".join(f"{length:,}" for length in sorted(lengths)), why]
        for (subject, name, why), lengths in rows.items()
    ]
    return {"title": "Lost", "note": "", "head": ["subject", "pass", "tokens", "reason"], "rows": shown}


def _rounded(value: float, digits: int = 4) -> float:
    return float(f"{value:.{digits}g}")


def _place(place: float | None, lengths: Sequence[int]) -> str | None:
    """A crossover outside of what was measured, in words."""
    if place is None:
        return None
    return f"before {lengths[0]:,}" if place == 0 else f"after {lengths[-1]:,}"
