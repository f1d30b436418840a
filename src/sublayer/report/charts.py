"""Charts of the loss and of the two claims: all designs in one panel, told apart by colour, dash and marker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from sublayer.report import numbers
from sublayer.report.svg import SHAPES, Plot, Point, Scale, extent, marker, tag, tick_label
from sublayer.report.tables import Table, named
from sublayer.report.view import LOST, Design, Evaluation, Run, Study

WIDE, HIGH = 500.0, 300.0
MOST_POINTS = 120
PAIRED = (
    " The difference is taken at the same step and seed, so the luck of shared batches cancels; its axis fits the end "
    "of training, and what goes further leaves the frame."
)


@dataclass(frozen=True)
class Figure:
    """Panels under one caption, the key to their marks, and the table of their numbers."""

    id: str
    title: str
    caption: str
    panels: tuple[Markup, ...]
    table: Table | None = None
    columns: int = 2
    key: Markup = Markup("")


def design_key(study: Study) -> Markup:
    """Which line is which design."""
    items = [Markup("<li>{}</li>").format(named(design)) for design in study.designs]
    return Markup('<ul class="key">{}</ul>').format(Markup("").join(items)) if len(items) > 1 else Markup("")


def banded(study: Study) -> bool:
    """Are seeds shown as bands? More than six bands cover each other."""
    return len(study.designs) <= 6


def shape(design: Design) -> str:
    return SHAPES[design.index % len(SHAPES)]


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most so many points: neighbours are averaged, the last point stays as it is."""
    if len(points) <= most:
        return list(points)
    size = -(-(len(points) - 1) // (most - 1))
    chunks = [points[k : k + size] for k in range(0, len(points) - 1, size)]
    means = [(sum(x for x, _ in chunk) / len(chunk), sum(y for _, y in chunk) / len(chunk)) for chunk in chunks]
    return [*means, points[-1]]


def plot_area(study: Study, x: tuple[float, float], y: tuple[float, float], log: bool = False, more: int = 0) -> Plot:
    """An empty panel of the wide kind, with room on the right for names and `more` characters."""
    right = 16 + 6.4 * (more + max(len(design.short) for design in study.designs))
    return Plot(WIDE, HIGH, Scale(*x, 46.0, WIDE - right), Scale(*y, HIGH - 36.0, 12.0, log))


Place = Callable[[Evaluation], float | None]


def _mean_and_band(runs: Sequence[Run], which: str, place: Place) -> tuple[list[Point], list[Point], list[Point]]:
    """Mean, lowest and highest over seeds at each step that every run reached."""
    curves = [{e.step: e for e in getattr(run, which)} for run in runs]
    curves = [curve for curve in curves if curve]
    if not curves:
        return [], [], []
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    middle, low, high = [], [], []
    for step in steps:
        x = numbers.mean(place(curve[step]) for curve in curves)
        if x is not None:
            losses = [curve[step].loss for curve in curves]
            middle.append((x, sum(losses) / len(losses)))
            low.append((x, min(losses)))
            high.append((x, max(losses)))
    return middle, low, high


def loss_panel(study: Study, which: str, place: Place, title: str, x_title: str, factor: float = 1.0) -> Markup | None:
    """Loss of every design against steps or compute; lost runs end in a cross."""

    def scaled(e: Evaluation) -> float | None:
        x = place(e)
        return None if x is None else x / factor

    drawn = [(design, *_mean_and_band(design.finished, which, scaled)) for design in study.designs]
    ends: list[tuple[Design, Run, list[Point]]] = []
    for design in study.designs:
        for run in design.compared:
            if not run.ok:
                points = [(x, e.loss) for e in getattr(run, which) if (x := scaled(e)) is not None]
                ends.append((design, run, points))
    kept = [y for _, *lines in drawn for line in lines for _, y in line]
    kept = kept or [y for *_, points in ends for _, y in points]
    places = [x for _, line, *_ in drawn for x, _ in line] + [x for *_, points in ends for x, _ in points]
    if not kept or not places:
        return None
    # A spike above where training began would flatten all the rest: it leaves the frame.
    start = max((line[0][1] for _, line, *_ in drawn if line), default=max(kept))
    plot = plot_area(study, (0.0, max(places) or 1.0), extent([min(y, start) for y in kept], 0.04), more=5)
    plot.axes(x_title)
    words = []
    for design, center, lowest, highest in drawn:
        if center:
            if banded(study) and len(design.finished) > 1:
                plot.band(thin(lowest), thin(highest), design.style)
            _mean_line(plot, study, design, thin(center), x_title)
            words.append(f"{design.title} ends at {numbers.fixed(center[-1][1], study.digits)}")
    _lost_lines(plot, ends)
    return _panel(plot, title, "; ".join(words))


def _mean_line(plot: Plot, study: Study, design: Design, line: Sequence[Point], unit: str) -> None:
    """A design's line with about a dozen markers, the last one at its end, and its name."""
    plot.line(line, design.style)
    stride = max(1, len(line) // 12)
    for x, y in line[::-1][::stride][::-1]:
        tip = f"{design.title}: {numbers.fixed(y, study.digits)} at {numbers.significant(x, 4)} {unit}"
        plot.dot((x, y), shape(design), design.style, tip)
    plot.end_label(line[-1][1], f"{design.short} {numbers.fixed(line[-1][1], 2)}", design.style)


def _lost_lines(plot: Plot, ends: Sequence[tuple[Design, Run, list[Point]]]) -> None:
    """What lost runs wrote, each ending in a cross and a word; where several end in one place, one word."""
    noted: list[Point] = []
    for design, run, points in ends:
        if points:
            line = [(x, min(y, plot.y.high)) for x, y in thin(points)]
            plot.line(line, f"faint {design.style}")
            plot.dot(line[-1], "cross", "lost", f"{design.title}, seed {run.seed}: {fate(run)}", 5.0)
            at, high = plot.x(line[-1][0]), plot.y(line[-1][1])
            if all(abs(at - x) > 50 or abs(high - y) > 12 for x, y in noted):
                plot.over.append(tag("text", fate(run), x=at + 8, y=high + 4, class_="note"))
                noted.append((at, high))


def fate(run: Run) -> str:
    """What became of a lost run, in one word or two."""
    return LOST.get(str(run.raw.get("status")), "lost")


def _panel(plot: Plot, title: str, description: str) -> Markup:
    head = tag("h4", title)
    return tag("div", head, plot.render(title, description), class_="panel")


def difference_panel(study: Study) -> Markup | None:
    """Held-out loss minus the baseline's at the same step and seed: the noise of shared batches cancels."""
    base = {run.seed: {e.step: e.loss for e in run.evals} for run in study.baseline.finished}
    drawn = []
    for design in study.designs:
        pairs: dict[int, list[float]] = {}
        for run in design.finished:
            for e in run.evals:
                if design is not study.baseline and e.step in base.get(run.seed, {}):
                    pairs.setdefault(e.step, []).append(e.loss - base[run.seed][e.step])
        most = max(map(len, pairs.values()), default=0)
        points = [(step, gaps) for step, gaps in sorted(pairs.items()) if len(gaps) == most]
        if len(points) > 1:
            drawn.append((design, points))
    if not drawn:
        return None
    last = max(points[-1][0] for _, points in drawn)
    plot = plot_area(study, (0.0, float(last)), _difference_range(drawn, last), more=7)
    plot.axes("steps")
    plot.reference(0.0)
    plot.end_label(0.0, f"{study.baseline.short} 0", study.baseline.style)
    described = []
    for design, points in drawn:
        middle = [(float(step), sum(gaps) / len(gaps)) for step, gaps in points]
        if banded(study) and len(points[-1][1]) > 1:
            low = [(float(step), min(gaps)) for step, gaps in points]
            high = [(float(step), max(gaps)) for step, gaps in points]
            plot.band(thin(low), thin(high), design.style)
        line = thin(middle)
        plot.line(line, design.style)
        for x, y in line[:: max(1, len(line) // 12)]:
            tip = f"{design.title}: {numbers.fixed(y, study.digits, True)} at step {numbers.count(x)}"
            plot.dot((x, y), shape(design), design.style, tip)
        plot.end_label(line[-1][1], f"{design.short} {numbers.fixed(line[-1][1], 3, True)}", design.style)
        described.append(f"{design.title} ends {numbers.fixed(line[-1][1], study.digits, True)}")
    return _panel(plot, f"Held-out loss minus {study.baseline.title}'s", "; ".join(described))


def _difference_range(drawn: Sequence[tuple[Design, list[tuple[int, list[float]]]]], last: int) -> tuple[float, float]:
    """An axis for the differences of late training that one spike cannot flatten."""
    settled = [gap for _, points in drawn for step, gaps in points if step >= 0.3 * last for gap in gaps]
    final = [gap for _, points in drawn for gap in points[-1][1]]
    reach = max(sorted(map(abs, settled))[int(0.85 * (len(settled) - 1))], max(map(abs, final))) * 1.3
    return extent([min(max(gap, -reach), reach) for gap in settled], 0.08, (0.0,))


def loss_figure(study: Study) -> Figure | None:
    """Held-out loss by step and by FLOPs, the paired difference, and the training loss."""
    flops = [e.flops for d in study.designs for run in d.compared for e in run.evals if e.flops is not None]
    factor, letter = numbers.prefix(max(flops, default=1.0))
    gap = difference_panel(study)
    panels = (
        loss_panel(study, "evals", lambda e: float(e.step), "Held-out loss by step", "steps"),
        loss_panel(study, "evals", lambda e: e.flops, "Held-out loss by compute", f"{letter}FLOPs", factor),
        gap,
        loss_panel(study, "trains", lambda e: float(e.step), "Training loss by step", "steps"),
    )
    found = tuple(panel for panel in panels if panel is not None)
    if not found:
        return None
    several = any(len(design.finished) > 1 for design in study.designs)
    bands = "; bands reach from the lowest to the highest seed" if banded(study) else ""
    band = f"Lines are means over seeds{bands}. " if several else ""
    lost = "A cross ends the line of a lost run. " if study.lost else ""
    paired = "" if gap is None else PAIRED
    caption = f"{band}{lost}Loss is cross-entropy in nats per predicted token; lower is better.{paired}"
    return Figure("loss", "Loss by step and by compute", caption, found, _loss_table(study), 2, design_key(study))


def _loss_table(study: Study) -> Table:
    steps = sorted({e.step for design in study.designs for run in design.compared for e in run.evals})
    stride = -(-len(steps) // 40) if steps else 1
    steps = steps[::-1][::stride][::-1]
    runs = [(design, run) for design in study.designs for run in design.compared if run.evals]
    losses = [{e.step: e.loss for e in run.evals} for _, run in runs]
    head = ("step", *(f"{design.title}, seed {run.seed}" for design, run in runs))
    rows = [
        (numbers.count(step), *(numbers.fixed(curve.get(step), study.digits) for curve in losses)) for step in steps
    ]
    return Table.of("Held-out loss of every run at the compared learning rate.", head, rows, "r" * len(head))


def strip_figure(study: Study) -> Markup | None:
    """The result at a glance: one line per design, one mark per seed, a bar at the mean."""
    found = {design.id: design.losses for design in study.designs}
    losses = [loss for values in found.values() for loss in values]
    if not losses:
        return None
    row, width, left = 24.0, 520.0, 124.0
    height = row * len(study.designs) + 40
    x = Scale(*extent(losses, 0.08), left, width - 100)
    plot = Plot(width, height, x, Scale(0.0, 1.0, height - 34, 6.0))
    stops = x.ticks(6)

    for stop in stops:
        plot.marks.append(tag("path", d=f"M{x(stop):.1f} 6V{height - 34:.1f}", class_="rule"))
        plot.marks.append(tag("text", tick_label(stop, stops), x=x(stop), y=height - 20, class_="tick mid"))
    middle = (x.start + x.end) / 2
    plot.marks.append(tag("text", "held-out loss, nats per token", x=middle, y=height - 5, class_="axis-title mid"))
    described = []
    for design in study.designs:
        y = 6 + row * (design.index + 0.5)
        plot.over.append(tag("text", design.short, x=0.0, y=y + 4, class_=f"label {design.style}"))
        values = found[design.id]
        for value in values:
            tip = f"{design.title}: {numbers.fixed(value, study.digits)}"
            plot.over.append(marker(shape(design), x(value), y, 4.0, design.style, tip))
        average = numbers.mean(values)
        if average is not None:
            at = f"M{x(average):.1f} {y - 8:.1f}V{y + 8:.1f}"
            plot.over.append(tag("path", d=at, class_=f"mean {design.style}"))
        lost = len(design.compared) - len(values)
        text = "" if average is None else numbers.fixed(average, study.digits)
        described.append(f"{design.title}: {text or 'no run finished'}")
        note = text + (f" ({lost} lost)" if lost else "")
        plot.over.append(tag("text", note.strip(), x=x.end + 8, y=y + 4, class_="tick"))
    return plot.render("Held-out loss of each seed, with the mean of each design as a bar", "; ".join(described))


def rate_figure(study: Study) -> Figure | None:
    """Held-out loss against the learning rate, where several were run: is the comparison made at each one's best?"""
    rates = sorted({run.lr for design in study.designs for run in design.runs if run.lr})
    if len(rates) < 2:
        return None
    found: dict[str, list[Point]] = {}
    for design in study.designs:
        for rate in rates:
            values = (numbers.known(run.raw.get("eval_loss")) for run in design.runs if run.ok and run.lr == rate)
            loss = numbers.mean(values)
            if loss is not None:
                found.setdefault(design.id, []).append((rate, loss))
    if not found:
        return None
    losses = [loss for points in found.values() for _, loss in points]
    plot = plot_area(study, (rates[0] / 1.2, rates[-1] * 1.2), extent(losses, 0.06))
    plot.x = Scale(plot.x.low, plot.x.high, plot.x.start, plot.x.end, log=True)
    plot.axes("learning rate")
    words = []
    for design in study.designs:
        points = found.get(design.id, [])
        plot.line(points, design.style)
        for x, y in points:
            tip = f"{design.title}: {numbers.fixed(y, study.digits)} at {numbers.setting(x)}"
            plot.dot((x, y), shape(design), design.style, tip, 4.4 if x == design.lr else 2.8)
        if points:
            plot.end_label(points[-1][1], design.short, design.style)
            words.append(f"{design.title} is best at {numbers.setting(min(points, key=lambda p: p[1])[0])}")
    head = ("design", *(f"rate {numbers.setting(rate)}" for rate in rates))
    rows = [
        (named(design), *(numbers.fixed(dict(found.get(design.id, ())).get(rate), study.digits) for rate in rates))
        for design in study.designs
    ]
    table = Table.of("Mean held-out loss of finished runs by learning rate.", head, rows)
    caption = "Mean over finished seeds. The large mark is the rate at which a design is compared."
    drawn = _panel(plot, "Held-out loss by learning rate", "; ".join(words))
    return Figure("rates", "Learning rates", caption, (drawn,), table, 1)
