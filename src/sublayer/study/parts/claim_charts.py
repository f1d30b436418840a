"""The two claims of a training study as charts: layer by layer at the end, and step by step on the way. Imports no
torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sublayer.study.claims import answer_claims
from sublayer.study.study import Study

Json = dict[str, Any]

_AXES = {
    "ffn-isotropy": ("What the FFN's term does to isotropy", "change of the rank-one residual"),
    "attention-small": ("What attention adds beside the stream", "||term|| / ||stream||"),
}


def by_layer(study: Study) -> list[Json]:
    """One chart a claim: its number at each layer of the trained models, mean over seeds."""
    charts = []
    for claim in study.results["claims"]:
        series = [
            {"name": a["design"], "points": [_point(p["layer"], p["value"]) for p in a["layers"]]}
            for a in claim["answers"]
            if a.get("layers")  # a design without such a term has none
        ]
        if series:
            charts.append(_chart(claim["claim"], "layer (from 0)", "at the end of training, mean over seeds", series))
    return charts


def over_training(study: Study) -> list[Json]:
    """One chart a claim: its number at the median layer after so many steps, mean over seeds with its 95% interval."""
    lrs = {r["design"]: r["lr"] for r in study.results["comparison"]["rows"]}
    designs = [d["id"] for d in study.results["designs"]]
    history = {run["id"]: _measures(study.folder / run["metrics"]) for run in study.results["runs"]}
    steps = sorted({step for found in history.values() for step in found})
    points: dict[str, dict[str, list[Json]]] = {}
    for step in steps:
        rows = [
            {**run, "status": "ok", "measures": history[run["id"]][step]}
            for run in study.results["runs"]
            if step in history[run["id"]]
        ]
        for claim in answer_claims(rows, designs, lrs):
            for answer in claim["answers"]:
                if answer["value"] is not None:
                    point = {"x": step, "y": answer["value"], "low": answer["low"], "high": answer["high"]}
                    points.setdefault(claim["claim"], {}).setdefault(answer["design"], []).append(point)
    return [
        _chart(
            claim, "step", "at the median layer, over training", [{"name": d, "points": p} for d, p in found.items()]
        )
        for claim, found in points.items()
        if len(steps) > 1
    ]


def verdicts(study: Study) -> list[str]:
    """One sentence a claim: the answer of every design with the number of its median layer."""
    told = []
    for claim in study.results["claims"]:
        answers = [
            f"{a['design']} {a['answer']} ({a['value']:.3f})" for a in claim["answers"] if a["value"] is not None
        ]
        if answers:
            told.append(f"{claim['question']} {'; '.join(answers)}.")
    return told


def isotropy(study: Study) -> tuple[list[Json], list[Json]]:
    """How isotropic the stream is behind each layer of the trained models: a table of the last layer by four measures,
    and a chart of the rank-one residual by layer. Means over seeds. A design without an FFN, or without attention,
    shows here what is left without it."""
    found: dict[str, dict[int, list[Json]]] = {}
    lrs = {r["design"]: r["lr"] for r in study.results["comparison"]["rows"]}
    for run in study.results["runs"]:
        if run["status"] == "ok" and run["measures"] and lrs[run["design"]] == run["lr"]:
            last = {s["layer"]: s["after"] for s in run["measures"]["sums"] if s["section"] == "block"}
            for layer, cloud in last.items():  # the last + of each layer
                found.setdefault(run["design"], {}).setdefault(layer, []).append(cloud)
    if not found:
        return [], []
    names = ("rank_one_residual", "mean_cosine", "iso_score", "effective_rank")
    rows = [[d, *(_mean(layers[max(layers)], name) for name in names)] for d, layers in found.items()]
    table = {
        "title": "Isotropy behind the last layer",
        "note": "At the last + of the last layer, behind its norm where it has one; means over seeds. Rank-one "
        "residual 0: all tokens are the same vector.",
        "head": ["design", "rank-one residual", "mean cosine", "IsoScore", "effective rank"],
        "rows": rows,
    }
    series = [
        {"name": d, "points": [_point(k, _mean(layers[k], names[0])) for k in sorted(layers)]}
        for d, layers in found.items()
    ]
    chart = {
        "title": "Isotropy of the stream behind each layer", "note": "1: the tokens' mean is zero; 0: all are equal.",
        "x": "layer (from 0)", "y": "rank-one residual", "x_log": False, "y_log": False, "series": series, "marks": [],
    }  # fmt: skip
    return [table], [chart]


def _mean(clouds: list[Json], name: str) -> float | None:
    values = [c[name] for c in clouds if c[name] is not None]
    return sum(values) / len(values) if values else None


def _chart(claim: str, x: str, where: str, series: list[Json]) -> Json:
    title, y = _AXES[claim]
    return {
        "title": f"{title}, {where}", "note": f"The number that decides the claim {claim}.", "x": x, "y": y,
        "x_log": False, "y_log": False, "series": series, "marks": [],
    }  # fmt: skip


def _point(x: int, y: float | None) -> Json:
    return {"x": x, "y": y, "low": None, "high": None}


def _measures(metrics: Path) -> Mapping[int, Json]:
    found: dict[int, Json] = {}
    try:
        lines = metrics.read_text(encoding="utf-8").splitlines()
    except OSError:
        return found
    for line in lines:
        record = json.loads(line)
        if record["kind"] == "measure":
            found[record["step"]] = record
    return found
