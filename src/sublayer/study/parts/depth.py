"""The depth forecast of a training study: written before its first run, held against the first step of each."""

import datetime
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sublayer.study import stats
from sublayer.study.plan import PlannedDesign
from sublayer.train.spec import TrainSpec
from sublayer.whole_files import write_atomically

Json = dict[str, Any]
FORECAST = "forecast.json"


def forecasts(designs: Sequence[PlannedDesign], base: TrainSpec, depths: Sequence[int], folder: Path) -> Json:
    """Per design and depth, what `sublayer.audit.forecast` says from the equation; kept as it was first written.

    The forecast knows the widths and the deviation of the weights, not a way to draw them that is a design's own.
    """
    path = folder / FORECAST
    if path.exists():
        kept: Json = json.loads(path.read_text(encoding="utf-8"))
        return kept
    from sublayer.audit.forecast import forecast
    from sublayer.audit.meanfield import Fresh
    from sublayer.notation import DesignError

    made: Json = {"made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "designs": {}}
    for planned in designs:
        spec = planned.of(base)
        fresh = Fresh(
            width=spec.hidden,
            std=spec.initializer_range,
            embedding=spec.initializer_range * float(spec.model_options.get("embedding_multiplier", 1)),
            ratio=spec.ffn / spec.hidden,
            activation="silu" if spec.hidden_act == "swiglu" else spec.hidden_act.replace("geglu", "gelu"),
            gated=spec.hidden_act.endswith("glu"),
            tokens=spec.seq,
            causal=spec.objective == "clm",
        )
        try:
            told = forecast(planned.design, depths, fresh=fresh).to_dict()
        except DesignError:
            continue
        made["designs"][planned.id] = {str(row["depth"]): row for row in told["depths"]}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(made, indent=1) + "\n")
    return made


def against(
    made: Json, designs: Sequence[PlannedDesign], depths: Sequence[int], rows: Sequence[Mapping[str, Any]]
) -> tuple[Json, list[str]]:
    """The table of growth and gradient ratio, forecast and measured, and how well they agree.

    ``rows`` are runs with ``design``, ``settings`` and what `first_step` found: ``growth`` and ``gradient``.
    """
    table: list[list[Any]] = []
    pairs: dict[str, list[tuple[float, float]]] = {"growth": [], "gradient": []}
    for planned in designs:
        for depth in depths:
            told = made["designs"].get(planned.id, {}).get(str(depth))
            mine = [r for r in rows if r["design"] == planned.id and r["settings"]["layers"] == depth]
            line: list[Any] = [planned.id, depth]
            for name in ("growth", "gradient"):
                seen = [r[name] for r in mine if r[name] is not None]
                measured = statistics.median(seen) if seen else None
                said = None if told is None else told[name]
                line += [said, measured]
                if measured and said:
                    pairs[name].append((math.log(said), math.log(measured)))
            table.append(line)
    shown = {
        "title": "The depth forecast against the first step",
        "note": f"The forecast was made {made['made']}, before any run, from the equation alone. Growth: median length "
        "of the stream behind the last layer over that behind the first. Gradient: norm of the gradient of the first "
        "layer's weights over the last layer's, at the first step. Medians over runs.",
        "head": [
            "design", "layers", "growth, forecast", "growth, measured", "gradient, forecast", "gradient, measured",
        ],
        "rows": table,
    }  # fmt: skip
    verdicts = []
    for name, found in pairs.items():
        if len(found) > 2:
            off = math.exp(statistics.median(abs(a - b) for a, b in found))
            rank = stats.rank_correlation([a for a, _ in found], [b for _, b in found])
            verdicts.append(
                f"The depth forecast's {name} is off by a factor of {off:.2f} (median of {len(found)} designs and "
                f"depths); its rank correlation with what the first step showed is {rank:.2f}."
            )
    return shown, verdicts


def first_step(metrics: Path) -> Json:
    """``growth`` of the stream in the untrained model, and the ``gradient`` norm of the first layer over the last's at
    the first step, out of a run's records; None where they are not there."""
    growth = gradient = None
    try:
        lines = metrics.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        record = json.loads(line)
        if record["kind"] == "measure" and record["step"] == 0:
            norms = [layer["stream_norm"]["median"] for layer in record["layers"]]
            growth = norms[-1] / norms[0] if norms and norms[0] and norms[-1] else None
        norms = []
        if record["kind"] == "gradients":
            norms = [record["layers"][k] for k in sorted(record["layers"], key=int)]
        elif record["kind"] == "measure" and record["step"] == 1:  # measured anyway, so not told apart
            norms = [layer["gradient_norm"] for layer in record["layers"]]
        if norms and norms[0] and norms[-1]:
            gradient = norms[0] / norms[-1]
    return {"growth": growth, "gradient": gradient}


__all__ = ["against", "first_step", "forecasts"]
