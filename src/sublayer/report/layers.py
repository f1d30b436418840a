"""Small multiples over depth: one panel per design, all panels of a figure on one scale."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from markupsafe import Markup

from sublayer.report import measured, numbers
from sublayer.report.charts import Figure, design_key, plot_area, shape
from sublayer.report.svg import Plot, Point, Scale, extent, marker, tag
from sublayer.report.tables import Cell, Table, data
from sublayer.report.view import ISOTROPY, QUARTILES, Design, Isotropy, Study, TermKey

SMALL, LOW = 236.0, 158.0
NAMES: dict[Isotropy, str] = {
    "iso_score": "IsoScore",
    "mean_cosine": "mean cosine",
    "partition_ratio": "partition ratio",
    "rank_one_residual": "rank-one residual",
    "effective_rank": "effective rank",
}
TERM_SHAPE = {"attn": "circle", "ffn": "square"}
KINDS = {"ffn": "FFN", "attn": "attention"}


def small_plot(study: Study, y: tuple[float, float], log: bool = False) -> Plot:
    """An empty panel of the small kind over layers 0..depth-1."""
    room = 0.04 * max(study.depth - 1, 1) + (0.5 if study.depth == 1 else 0.0)
    x = Scale(-room, study.depth - 1 + room, 38.0, SMALL - 6)
    return Plot(SMALL, LOW, x, Scale(*y, LOW - 32, 8.0, log))


def _head(design: Design, more: str = "") -> Markup:
    mark = marker(shape(design), 6.0, 6.0, 4.0, design.style)
    dot = tag("svg", mark, viewBox="0 0 12 12", class_="dot", aria_hidden="true")
    rest = Markup(' <span class="sub">{}</span>').format(more) if more else ""
    return Markup("<h4>{} {}{}</h4>").format(dot, design.title, rest)


def panel(design: Design, plot: Plot, description: str, more: str = "") -> Markup:
    """A small plot under its design's name."""
    title = f"{design.title}, {more}" if more else design.title
    return tag("div", _head(design, more), plot.render(title, description), class_="panel")


def absent(design: Design, more: str = "") -> Markup:
    """The place of a panel without numbers: said, not left out."""
    fates = ", ".join(str(run.raw.get("status")) for run in design.compared if not run.ok)
    why = "no run finished" + (f" ({fates})" if fates else "") if not design.finished else "not measured"
    return tag("div", _head(design, more), tag("p", f"No measures: {why}.", class_="absent"), class_="panel")


def mean_line(values: dict[int, list[float]]) -> list[Point]:
    """(layer, mean over runs)."""
    return [(float(layer), sum(found) / len(found)) for layer, found in values.items()]


def log_range(values: Sequence[float]) -> tuple[tuple[float, float], bool]:
    """A logarithmic axis for positive numbers that differ much, else a linear one."""
    positive = [value for value in values if value > 0]
    if positive and len(positive) == len(values) and max(positive) / min(positive) > 3:
        return (min(positive) / 1.15, max(positive) * 1.15), True
    low, high = extent(values, 0.06)
    return (max(low, 0.0) if values and min(values) >= 0 else low, high), False


# --- what each term adds -------------------------------------------------------------------------------------------


def ratio_figure(study: Study) -> Figure | None:
    """Norm of what attention and FFN add beside the norm of the stream, per layer."""
    found = {
        design.id: {name: measured.final_terms(design, _ratio(name)) for name in QUARTILES} for design in study.designs
    }
    every = _values(found)
    if not every:
        return None
    y, log = log_range(every)
    panels = []
    for design in study.designs:
        terms = found[design.id]
        if not terms["median"]:
            panels.append(absent(design))
            continue
        plot = small_plot(study, y, log)
        plot.axes("layer", x_ticks=6, whole=True)
        plot.reference(1.0)
        words = []
        for key, values in terms["median"].items():
            many = _many(terms["median"], key)
            line = mean_line(values)
            plot.band(mean_line(terms["q25"].get(key, {})), mean_line(terms["q75"].get(key, {})), key.style)
            plot.line(line, key.style)
            for x, value in line:
                tip = f"{key.title(many)}, layer {x:.0f}: {numbers.significant(value)}"
                plot.dot((x, value), TERM_SHAPE.get(key.kind, "diamond"), key.style, tip, 2.8)
            _seed_bars(plot, values, key.style)
            first, last = (numbers.significant(line[k][1], 2) for k in (0, -1))
            words.append(f"{key.title(many)}: {first} in the first layer, {last} in the last")
        panels.append(panel(design, plot, "; ".join(words)))
    caption = (
        "Norm of the term divided by the norm of the stream that it is added to, per token. Lines: median over "
        "tokens, mean over seeds. Bands: middle half of the tokens. Thin bars: lowest to highest seed. Dotted level: "
        "as large as the stream." + (" The vertical axis is logarithmic." if log else "")
    )
    title = "How much attention and the FFN add"
    return Figure("ratio", title, caption, tuple(panels), _ratio_table(study), 4, term_key())


def _values(found: dict[str, dict[str, dict[TermKey, dict[int, list[float]]]]]) -> list[float]:
    """Every number of every design, part, term, layer and run: what a shared axis has to hold."""
    terms = [layers for parts in found.values() for part in parts.values() for layers in part.values()]
    return [value for layers in terms for values in layers.values() for value in values]


def _ratio(name: str) -> measured.ReadTerm:
    return lambda total, term: (term.get("ratio") or {}).get(name)


def _many(keys: Iterable[TermKey], key: TermKey) -> bool:
    return sum(other.kind == key.kind and other.stream == key.stream for other in keys) > 1


def _seed_bars(plot: Plot, values: dict[int, list[float]], style: str) -> None:
    for layer, found in values.items():
        if len(found) > 1:
            plot.span(float(layer), min(found), max(found), f"seeds {style}")


def term_key() -> Markup:
    """Which line is attention, which the FFN."""
    items = []
    for kind, name in (("attn", "attention"), ("ffn", "FFN")):
        line = tag("path", d="M0 6H26", class_=f"ln t-{kind}")
        dot = marker(TERM_SHAPE[kind], 13.0, 6.0, 3.4, f"t-{kind}")
        mark = tag("svg", line, dot, viewBox="0 0 26 12", class_="swatch", aria_hidden="true")
        items.append(Markup("<li>{} {}</li>").format(mark, name))
    return Markup('<ul class="key">{}</ul>').format(Markup("").join(items))


def _ratio_table(study: Study) -> Table:
    head = ("design", "layer", "term", "lower quartile", "median", "upper quartile", "cosine with the stream")
    reads = (*(_ratio(name) for name in QUARTILES), lambda total, term: term.get("cosine"))
    rows: list[tuple[Cell, ...]] = []
    for design in study.designs:
        columns = [measured.final_terms(design, read) for read in reads]
        for key, layers in columns[1].items():
            for layer in layers:
                values = [numbers.mean(column.get(key, {}).get(layer, ())) for column in columns]
                cells = (data(value, numbers.significant(value)) for value in values)
                rows.append((design.title, str(layer), key.title(_many(columns[1], key)), *cells))
    return Table.of("Norm ratio of every term, mean over seeds.", head, rows, "lrlrrrr")


# --- isotropy ------------------------------------------------------------------------------------------------------


def isotropy_figure(study: Study, measure: Isotropy) -> Figure | None:
    """Isotropy before the sum, after it, and of the sum without its FFN or attention term, per layer."""
    reads = {name: _isotropy(name, measure) for name in ("before", "after", "without")}
    found = {d.id: {name: measured.final_terms(d, read) for name, read in reads.items()} for d in study.designs}
    every = _values(found)
    if not every:
        return None
    y, log = log_range(every) if measure == "effective_rank" else (_unit(every), False)
    panels = []
    for kind, name in KINDS.items():
        for design in study.designs:
            parts = found[design.id]
            keys = [key for key in parts["after"] if key.kind == kind]
            if not keys:
                panels.append(absent(design, f"sum with {name}"))
            for key in keys:
                label = key.title(_many(parts["after"], key))
                plot = small_plot(study, y, log)
                plot.axes("layer", x_ticks=6, whole=True)
                plot.line(mean_line(parts["before"].get(key, {})), "before")
                words = []
                for part, style, mark in (("without", f"{key.style} without", "square"), ("after", "after", "circle")):
                    values = parts[part].get(key, {})
                    line = mean_line(values)
                    plot.line(line, style)
                    what = "the sum" if part == "after" else f"without {label}"
                    for x, value in line:
                        plot.dot((x, value), mark, style, f"{what}, layer {x:.0f}: {numbers.significant(value)}", 2.8)
                    middle = numbers.mean(value for _, value in line)
                    words.append(f"{what}: {numbers.significant(middle)} on average")
                panels.append(panel(design, plot, "; ".join(words), f"sum with {label}"))
    caption = f"{NAMES[measure]}, mean over seeds. {READING[measure]}" + (" Logarithmic axis." if log else "")
    columns = min(4, max(2, len(study.designs)))
    return Figure(f"iso-{measure}", NAMES[measure], caption, tuple(panels), _isotropy_table(study, measure), columns)


READING: dict[Isotropy, str] = {
    "iso_score": "1: variance spread evenly over all directions; 0: all in one. Higher is more isotropic.",
    "mean_cosine": "0: tokens point in unrelated directions; 1: all in one. Lower is more isotropic.",
    "partition_ratio": "1: the same in every direction. Higher is more isotropic.",
    "rank_one_residual": "0: every token has the same vector. Higher is more isotropic.",
    "effective_rank": "Number of directions in real use, 1 to the hidden size. Higher is more isotropic.",
}


def _isotropy(part: str, measure: Isotropy) -> measured.ReadTerm:
    if part == "without":
        return lambda total, term: (term.get("without") or {}).get(measure)
    return lambda total, term: (total.get(part) or {}).get(measure)


def _unit(values: Sequence[float]) -> tuple[float, float]:
    low, high = extent(values, 0.06)
    return (max(low, 0.0) if min(values) >= 0 else low), (min(high, 1.0) if max(values) <= 1 else high)


def isotropy_key() -> Markup:
    """Which line is the sum, which the sum without a term."""
    marks = (
        ("after", "circle", "the sum"),
        ("t-ffn without", "square", "the sum without the FFN"),
        ("t-attn without", "square", "the sum without attention"),
        ("before", "", "the stream before"),
    )
    items = []
    for style, mark, text in marks:
        line = tag("path", d="M0 6H26", class_=f"ln {style}")
        dot = (marker(mark, 13.0, 6.0, 3.4, style),) if mark else ()
        picture = tag("svg", line, *dot, viewBox="0 0 26 12", class_="swatch", aria_hidden="true")
        items.append(Markup("<li>{} {}</li>").format(picture, text))
    return Markup('<ul class="key">{}</ul>').format(Markup("").join(items))


def _isotropy_table(study: Study, measure: Isotropy) -> Table:
    head = ("design", "layer", "term", "stream before", "sum", "sum without the term", "difference")
    rows: list[tuple[Cell, ...]] = []
    for design in study.designs:
        parts = [measured.final_terms(design, _isotropy(part, measure)) for part in ("before", "after", "without")]
        for key, layers in parts[1].items():
            for layer in layers:
                before, after, without = (numbers.mean(part.get(key, {}).get(layer, ())) for part in parts)
                gain = after - without if after is not None and without is not None else None
                cells = (data(value, numbers.significant(value)) for value in (before, after, without, gain))
                rows.append((design.title, str(layer), key.title(_many(parts[1], key)), *cells))
    return Table.of(f"{NAMES[measure]} around every sum, mean over seeds.", head, rows, "lrlrrrr")


def isotropy_figures(study: Study) -> list[Figure]:
    """One figure per measure, in the order that the page offers them."""
    return [figure for measure in ISOTROPY if (figure := isotropy_figure(study, measure))]


# --- one number per layer: designs together --------------------------------------------------------------------------


def by_design_panel(
    study: Study, values: dict[str, dict[int, list[float]]], title: str, reference: tuple[float, str] | None = None
) -> Markup | None:
    """One line per design over the layers; thin bars reach from the lowest to the highest seed."""
    every = [value for layers in values.values() for found in layers.values() for value in found]
    if not every:
        return None
    y, log = log_range([*every, reference[0]] if reference else every)
    room = 0.02 * max(study.depth - 1, 1)
    plot = plot_area(study, (-room, max(study.depth - 1, 1) + room), y, log)
    plot.axes("layer", x_ticks=8, whole=True)
    if reference:
        plot.reference(*reference)
    words = []
    for design in study.designs:
        layers = values.get(design.id) or {}
        line = mean_line(layers)
        if not line:
            continue
        plot.line(line, design.style)
        for x, value in line:
            tip = f"{design.title}, layer {x:.0f}: {numbers.significant(value)}"
            plot.dot((x, value), shape(design), design.style, tip)
        _seed_bars(plot, layers, design.style)
        plot.end_label(line[-1][1], design.short, design.style)
        words.append(f"{design.title}: {numbers.significant(line[0][1])} to {numbers.significant(line[-1][1])}")
    return tag("div", tag("h4", title), plot.render(f"{title}, by layer", "; ".join(words)), class_="panel")


def profile_figure(study: Study) -> Figure | None:
    """Gradient norm, stream norm, attention entropy and first-token weight over depth."""
    rows: tuple[tuple[str, measured.ReadLayer], ...] = (
        ("Gradient norm", measured.gradient_norm),
        ("Norm of the stream", measured.stream_norm),
        ("Attention entropy, nats", measured.attention_entropy),
        ("Attention on the first token", measured.first_token),
    )
    panels, columns = [], []
    for title, read in rows:
        values = {design.id: measured.final_layers(study, design, read) for design in study.designs}
        drawn = by_design_panel(study, values, title)
        if drawn is not None:
            panels.append(drawn)
            columns.append((title, values))
    if not panels:
        return None
    table_rows: list[tuple[Cell, ...]] = []
    for design in study.designs:
        for layer in range(study.depth):
            found = [numbers.mean(values[design.id].get(layer, ())) for _, values in columns]
            if any(value is not None for value in found):
                cells = (data(value, numbers.significant(value)) for value in found)
                table_rows.append((design.title, str(layer), *cells))
    head = ("design", "layer", *(title for title, _ in columns))
    table = Table.of("Measures of each layer, mean over seeds.", head, table_rows, "lr" + "r" * len(columns))
    caption = (
        "Lines: mean over seeds; thin bars: lowest to highest seed. The norm of the stream is the median over tokens "
        "where it leaves the layer. Axes are logarithmic where values differ more than threefold."
    )
    title = "Gradients, stream and attention over depth"
    return Figure("profile", title, caption, tuple(panels), table, 2, design_key(study))
