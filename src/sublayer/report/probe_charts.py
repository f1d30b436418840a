"""The lines of a probe's page: each number by layer, and the panels that show them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from sublayer.report import numbers
from sublayer.report.charts import HIGH, WIDE
from sublayer.report.svg import SHAPES, Plot, Point, Scale, extent, marker, tag

Json = dict[str, Any]
MEASURES = ("rank_one_residual", "mean_cosine", "iso_score", "effective_rank", "partition_ratio")
TITLES = {
    "rank_one_residual": "Rank-one residual",
    "mean_cosine": "Mean cosine",
    "iso_score": "IsoScore",
    "effective_rank": "Effective rank",
    "partition_ratio": "Partition ratio",
}
KINDS = {
    "attn": "attention",
    "ffn": "FFN",
    "attn+ffn": "attention and FFN",
    "mixer": "mixer",
    "op": "op",
    "stream": "stream",
}


@dataclass(frozen=True)
class Line:
    """One series: its name, its class in the style sheet, its points, and a band around them."""

    name: str
    style: str
    points: Sequence[Point]
    low: Sequence[Point] = ()
    high: Sequence[Point] = ()


# --- lines ----------------------------------------------------------------------------------------------------------


def terms_of(model: Json) -> list[tuple[Json, Json]]:
    return [(s, t) for s in model["sums"] if s["section"] == "block" for t in s["terms"]]


def by_kind(model: Json, read: Callable[[Json, Json], object]) -> dict[str, list[Point]]:
    """Kind of term -> (layer, number), the mean where a layer has several."""
    gathered: dict[str, dict[int, list[float]]] = {}
    for of_sum, term in terms_of(model):
        value = numbers.known(read(of_sum, term))
        if value is not None and of_sum["stream"] == "x":
            gathered.setdefault(term["kind"], {}).setdefault(of_sum["layer"], []).append(value)
    return {k: [(float(n), sum(v) / len(v)) for n, v in sorted(of.items())] for k, of in gathered.items()}


def _by_layer(model: Json, read: Callable[[Json], object]) -> list[Point]:
    pairs = ((float(layer["layer"]), numbers.known(read(layer))) for layer in model["layers"])
    return [(x, y) for x, y in pairs if y is not None]


def _style(kind: str) -> str:
    return f"t-{kind}" if kind in ("attn", "ffn") else "t-other"


def ratio_lines(model: Json) -> list[Line]:
    quartiles = {q: by_kind(model, lambda s, t, q=q: t["ratio"][q]) for q in ("q25", "median", "q75")}  # type: ignore[misc]
    return [
        Line(KINDS.get(k, k), _style(k), points, quartiles["q25"].get(k, ()), quartiles["q75"].get(k, ()))
        for k, points in quartiles["median"].items()
    ]


def isotropy_lines(model: Json, measure: str) -> list[Line]:
    """For each kind of term the sum that adds it, and that sum without it."""
    without = by_kind(model, lambda s, t: t["without"][measure])
    lines = []
    for kind, points in by_kind(model, lambda s, t: s["after"][measure]).items():
        name, style = KINDS.get(kind, kind), _style(kind)
        lines.append(Line(f"with {name}", f"{style} solid", points))
        if kind in without:
            lines.append(Line(f"without {name}", f"{style} without", without[kind]))
    return lines


def last_sums(model: Json, measure: str) -> list[Point]:
    """The last sum of each layer on the stream."""
    found: dict[int, float] = {}
    for of_sum in model["sums"]:
        value = numbers.known(of_sum["after"][measure])
        if value is not None and of_sum["stream"] == "x" and of_sum["section"] == "block":
            found[of_sum["layer"]] = value
    return [(float(k), v) for k, v in sorted(found.items())]


def layer_lines(model: Json) -> list[tuple[str, str, list[Line]]]:
    """(title, unit, lines) of what a layer has one number of."""
    losses = (model.get("lens") or {}).get("losses") or []
    entropies = _by_layer(model, lambda layer: _mean(layer["attention"], "entropy"))
    firsts = _by_layer(model, lambda layer: _mean(layer["attention"], "first_token"))
    norms = [
        Line("median", "d0", _by_layer(model, lambda layer: layer["stream_norm"]["median"]),
             _by_layer(model, lambda layer: layer["stream_norm"]["q25"]),
             _by_layer(model, lambda layer: layer["stream_norm"]["q75"]))
    ]  # fmt: skip
    rank = _by_layer(model, lambda layer: layer["isotropy"]["effective_rank"])
    rogue = _by_layer(model, lambda layer: layer["rogue"]["cosine"][0]["share"] if layer["rogue"]["cosine"] else None)
    found = [
        ("Norm of the stream that leaves a layer", "norm", norms),
        ("Effective rank of that stream", "rank", [Line("rank", "d0", rank)]),
        ("Share of one channel in the mean cosine", "share", [Line("largest share", "d0", rogue)]),
        ("Entropy of attention, nats", "entropy", [Line("entropy", "t-attn", entropies)]),
        ("Attention to the first token", "first", [Line("share", "t-attn", firsts)]),
        ("Gradient norm", "gradient", _gradient_lines(model)),
    ]
    if losses:
        points = [(float(k - 1), float(v)) for k, v in enumerate(losses)]
        found.append(("Loss if the model ended here (logit lens)", "lens", [Line("lens loss", "d0", points)]))
    return [(title, unit, lines) for title, unit, lines in found if any(line.points for line in lines)]


def _gradient_lines(model: Json) -> list[Line]:
    lines = [Line("layer", "d0", _by_layer(model, lambda layer: layer["gradient_norm"]))]
    names = dict.fromkeys(n for layer in model["layers"] for n in layer.get("gradient_norms") or ())
    for name in names:
        points = _by_layer(model, lambda layer, name=name: (layer.get("gradient_norms") or {}).get(name))  # type: ignore[misc]
        lines.append(Line(name, _style(name.partition("_")[0]), points))
    return lines


def _mean(sites: Sequence[Json], key: str) -> float | None:
    return numbers.mean(numbers.known(site.get(key)) for site in sites)


# --- drawing --------------------------------------------------------------------------------------------------------


def drawn(title: str, lines: Sequence[Line], zero: bool = False) -> Markup:
    """One panel: a title over lines by layer."""
    every = [y for line in lines for of in (line.points, line.low, line.high) for _, y in of]
    layers = [x for line in lines for x, _ in line.points]
    positive = [y for y in every if y > 0]
    log = len(positive) == len(every) and bool(every) and max(positive) / min(positive) > 20
    y = (min(positive) / 1.15, max(positive) * 1.15) if log else extent(every, 0.08, (0.0,) if zero else ())
    right = 16 + 6.4 * max(len(line.name) for line in lines)
    low, high = min(layers, default=0.0), max(layers, default=1.0)
    plot = Plot(
        WIDE, HIGH, Scale(low, high if high > low else low + 1, 46.0, WIDE - right), Scale(*y, HIGH - 36.0, 12.0, log)
    )
    plot.axes("layer", x_ticks=6, whole=True)
    words = []
    for k, line in enumerate(lines):
        if not line.points:
            continue
        if line.low and line.high:
            plot.band(line.low, line.high, line.style)
        plot.line(line.points, line.style)
        for x, value in line.points:
            plot.dot(
                (x, value),
                SHAPES[k % len(SHAPES)],
                line.style,
                f"{line.name}, layer {x:.0f}: {numbers.significant(value)}",
                2.8,
            )
        plot.end_label(line.points[-1][1], line.name, line.style)
        words.append(
            f"{line.name}: {numbers.significant(line.points[0][1], 2)} to {numbers.significant(line.points[-1][1], 2)}"
        )
    return tag("div", tag("h4", title), plot.render(title, "; ".join(words)), class_="panel")


def key_of(names: Sequence[str]) -> Markup:
    items = []
    for k, name in enumerate(names):
        line = tag("path", d="M0 6H26", class_=f"ln d{k}")
        mark = tag(
            "svg",
            line,
            marker("circle", 13.0, 6.0, 3.4, f"d{k}"),
            viewBox="0 0 26 12",
            class_="swatch",
            aria_hidden="true",
        )
        items.append(Markup("<li>{} {}: {}</li>").format(mark, "AB"[k], name))
    return Markup('<ul class="key">{}</ul>').format(Markup("").join(items))
