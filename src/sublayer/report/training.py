"""How measures moved during training: one panel per design, one line per layer from light (first) to dark (last)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from markupsafe import Markup

from sublayer.report import measured, numbers
from sublayer.report.charts import Figure, thin
from sublayer.report.layers import LOW, NAMES, SMALL, absent, log_range, panel
from sublayer.report.svg import Plot, Scale, tag
from sublayer.report.tables import Cell, Table
from sublayer.report.view import ISOTROPY, Isotropy, Json, Study

MOST_LAYERS, MOST_STEPS = 12, 40
STEPS_IN_TABLE = 12


@dataclass(frozen=True)
class Moving:
    """A measure that is followed: its title, what to say about it, and how it is read from a record."""

    id: str
    title: str
    caption: str
    extract: Callable[[Json], dict[int, float]]


def _after(measure: Isotropy) -> measured.ReadTerm:
    return lambda total, term: (total.get("after") or {}).get(measure)


def _moving() -> tuple[Moving, ...]:
    def layers(read: measured.ReadLayer) -> Callable[[Json], dict[int, float]]:
        return lambda record: measured.by_layer(record, read)

    first = ISOTROPY[0]
    return (
        Moving(
            "attn",
            "Norm ratio of attention",
            "What attention adds beside the stream, median over tokens.",
            measured.kind_by_layer("attn", measured.median_ratio),
        ),
        Moving(
            "ffn",
            "Norm ratio of the FFN",
            "What the FFN adds beside the stream, median over tokens.",
            measured.kind_by_layer("ffn", measured.median_ratio),
        ),
        Moving(
            "iso",
            f"Isotropy after the FFN's sum ({NAMES[first]})",
            "Higher is more isotropic.",
            measured.kind_by_layer("ffn", _after(first)),
        ),
        Moving("stream", "Norm of the stream", "Median over tokens.", layers(measured.stream_norm)),
        Moving("gradient", "Gradient norm", "Of all parameters of a layer.", layers(measured.gradient_norm)),
        Moving("entropy", "Attention entropy", "In nats, mean over queries.", layers(measured.attention_entropy)),
    )


def figures(study: Study) -> list[Figure]:
    """One figure per followed measure; none for a study that measured only at the end."""
    found = []
    for moving in _moving():
        histories = {design.id: measured.history(design, moving.extract) for design in study.designs}
        if any(len(steps) > 1 for layers in histories.values() for steps in layers.values()):
            found.append(_figure(study, moving, histories))
    return found


def _figure(study: Study, moving: Moving, histories: dict[str, dict[int, dict[int, float]]]) -> Figure:
    shown = _spread(study.depth, MOST_LAYERS)
    every = [v for layers in histories.values() for layer in shown for v in layers.get(layer, {}).values()]
    last = max((step for layers in histories.values() for steps in layers.values() for step in steps), default=1)
    y, log = log_range(every)
    panels = []
    for design in study.designs:
        layers = histories[design.id]
        if not layers:
            panels.append(absent(design))
            continue
        plot = Plot(SMALL, LOW, Scale(0.0, float(last), 38.0, SMALL - 14), Scale(*y, LOW - 32, 8.0, log))
        plot.axes("steps", x_ticks=4)
        words = []
        for layer in shown:
            line = thin([(float(step), value) for step, value in layers.get(layer, {}).items()], MOST_STEPS)
            if line:
                plot.line(line, f"depth{_shade(layer, study.depth)}")
                words.append((layer, line))
        for layer, line in (words[:1] + words[-1:]) if len(words) > 1 else words:
            plot.labels.append((plot.y(line[-1][1]), str(layer), ""))
        ends = [
            f"layer {layer} from {numbers.significant(line[0][1])} to {numbers.significant(line[-1][1])}"
            for layer, line in words
        ]
        panels.append(panel(design, plot, "; ".join(ends)))
    some = "" if len(shown) == study.depth else f" {len(shown)} of {study.depth} layers are drawn."
    caption = moving.caption + some + (" Logarithmic axis." if log else "")
    return Figure(f"moving-{moving.id}", moving.title, caption, tuple(panels), _table(study, moving, histories), 4)


def _spread(total: int, most: int) -> list[int]:
    """At most so many of 0..total-1, evenly, first and last among them."""
    if total <= most:
        return list(range(total))
    return sorted({round(k * (total - 1) / (most - 1)) for k in range(most)})


def _shade(layer: int, depth: int) -> int:
    """0 (light, first layer) to 4 (dark, last layer)."""
    return round(4 * layer / max(depth - 1, 1))


def _table(study: Study, moving: Moving, histories: dict[str, dict[int, dict[int, float]]]) -> Table:
    every = sorted({step for layers in histories.values() for steps in layers.values() for step in steps})
    steps = [every[k] for k in _spread(len(every), STEPS_IN_TABLE)]
    rows: list[tuple[Cell, ...]] = []
    for design in study.designs:
        for layer, values in histories[design.id].items():
            rows.append((design.title, str(layer), *(numbers.significant(values.get(step)) for step in steps)))
    head = ("design", "layer", *(f"step {numbers.count(step)}" for step in steps))
    return Table.of(f"{moving.title}, mean over seeds.", head, rows, "lr" + "r" * len(steps))


def depth_key() -> Markup:
    """Which line is which layer."""
    lines = [tag("path", d=f"M{k * 14} 6H{k * 14 + 12}", class_=f"ln depth{k}") for k in range(5)]
    picture = tag("svg", *lines, viewBox="0 0 70 12", class_="swatch ramp", aria_hidden="true")
    return Markup('<ul class="key"><li>first layer {} last layer</li></ul>').format(picture)
