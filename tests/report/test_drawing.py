"""Numbers, scales, formulas and colours: the small parts that every chart is made of."""

import itertools
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublayer.report import glossary, numbers, svg
from sublayer.report import page as page_module
from sublayer.report.charts import thin
from sublayer.report.formula import mathml
from sublayer.report.layers import log_range


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (0.012345, "0.0123"), (12.34, "12.3"), (1234.5, "1,230"), (-0.5, "−0.500"), (9.999, "10.0"),
        (1.5e-6, "1.50×10⁻⁶"), (2.5e9, "2.50×10⁹"), (None, "–"), (math.nan, "–"), (math.inf, "–"), (True, "–"),
    ],
)  # fmt: skip
def test_significant(value: object, text: str) -> None:
    assert numbers.significant(value) == text


def test_other_numbers() -> None:
    assert numbers.fixed(0.0004, 3, sign=True) == "0.000"
    assert numbers.fixed(-0.0126, 3, sign=True) == "−0.013"
    assert numbers.fixed(0.0126, 3, sign=True) == "+0.013"
    assert numbers.setting(0.001) == "0.001"
    assert numbers.scaled(20_400_000, "FLOPs").replace(numbers.SPACE, " ") == "20.4 MFLOPs"
    assert numbers.percent(0.00068).replace(numbers.SPACE, " ") == "0.068 %"
    spans = [numbers.duration(seconds).replace(numbers.SPACE, " ") for seconds in (3.21, 41.4, 192, 7500, None)]
    assert spans == ["3.2 s", "41 s", "3 min 12 s", "2 h 5 min", "–"]
    assert numbers.count(2_245_632) == "2,245,632"
    assert (numbers.plural(1, "seed"), numbers.plural(2, "seed")) == ("1 seed", "2 seeds")
    assert [numbers.loss_digits([spread]) for spread in (None, 0.1, 0.004, 0.0004, 1e-9)] == [3, 3, 4, 5, 5]


@given(st.floats(-1e12, 1e12), st.floats(1e-9, 1e12), st.integers(2, 8))
def test_linear_ticks_are_few_round_and_inside(low: float, span: float, about: int) -> None:
    scale = svg.Scale(low, low + span, 0.0, 100.0)
    ticks = scale.ticks(about)
    assert len(ticks) <= 2 * about + 2
    slack = 1e-6 * (abs(low) + span)
    assert all(low - slack <= tick <= low + span + slack for tick in ticks)


@given(st.floats(1e-9, 1e9), st.floats(1.05, 1e9))
def test_log_ticks_are_few_and_inside(low: float, factor: float) -> None:
    scale = svg.Scale(low, low * factor, 0.0, 100.0, log=True)
    ticks = scale.ticks(4)
    assert len(ticks) <= 6
    assert all(0.99 * low <= tick <= 1.01 * low * factor for tick in ticks)
    assert scale(low) == pytest.approx(0.0)
    assert scale(low * factor) == pytest.approx(100.0)


def test_tick_labels_have_the_decimals_they_need() -> None:
    assert [svg.tick_label(t, (0.0, 0.25, 0.5)) for t in (0.0, 0.25, 0.5)] == ["0.00", "0.25", "0.50"]
    assert [svg.tick_label(t, (-10.0, 0.0, 10.0)) for t in (-10.0, 0.0)] == ["−10", "0"]
    assert svg.tick_label(2e-6, (0.0, 2e-6)) == "2.0×10⁻⁶"


@given(st.lists(st.floats(0, 200), min_size=1, max_size=12))
def test_end_labels_never_meet(places: list[float]) -> None:
    plot = svg.Plot(300, 240, svg.Scale(0, 1, 0, 200), svg.Scale(0, 200, 200, 0))
    for place in places:
        plot.end_label(place, "name", "d0")
    drawn = sorted(float(y) for text in plot._placed_labels() for y in re.findall(r' y="([-\d.]+)"', text))
    assert len(drawn) == len(places)
    assert all(after - before > 12 for before, after in itertools.pairwise(drawn))


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=500))
def test_thinning_keeps_the_last_point_and_the_range(values: list[float]) -> None:
    points = [(float(k), value) for k, value in enumerate(values)]
    thinned = thin(points, 50)
    assert len(thinned) <= 51
    assert thinned[-1] == points[-1]
    assert min(values) - 1e-9 <= min(y for _, y in thinned)
    assert max(y for _, y in thinned) <= max(values) + 1e-9


def test_axes_are_logarithmic_only_for_positive_numbers_that_differ_much() -> None:
    assert log_range([0.1, 1.0])[1] is True
    assert log_range([0.0, 1.0])[1] is False
    assert log_range([0.5, 1.0])[1] is False
    assert log_range([0.0, 1.0])[0][0] == 0.0
    assert log_range([])[0] == (0.0, 1.0)


def test_markup_is_escaped_in_text_and_attributes() -> None:
    assert str(svg.tag("text", "<b>&", x=1.0, class_='"')) == '<text x="1" class="&#34;">&lt;b&gt;&amp;</text>'


def test_formulas() -> None:
    assert "<mfrac><mrow><mn>1</mn></mrow><mrow><mi>N</mi></mrow></mfrac>" in mathml(r"\frac{1}{N}")
    assert "<munder><mo>∑</mo><mi>i</mi></munder>" in mathml(r"\sum_i x")
    assert "<msubsup><mi>x</mi><mi>i</mi><mn>2</mn></msubsup>" in mathml("x_i^2")
    assert all(entry.formula for entry in glossary.ENTRIES)
    for broken in (r"\frac{1}{N", r"\integral x", "(a"):
        with pytest.raises(ValueError, match="formula"):
            mathml(broken)


def _palettes() -> dict[str, dict[str, str]]:
    style = (Path(page_module.__file__).parent / "templates" / "style.css").read_text()
    light = dict(re.findall(r"--([a-z0-9]+): (#[0-9a-f]{6});", style.split("@media", 1)[0]))
    dark = dict(re.findall(r"--([a-z0-9]+): (#[0-9a-f]{6});", style.split("@media", 2)[1]))
    return {"light": light, "dark": {**light, **dark}}


def _luminance(colour: str) -> float:
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(first: str, second: str) -> float:
    high, low = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_have_the_contrast_that_wcag_asks_for(theme: str) -> None:
    palette = _palettes()[theme]
    for name in ("ink", "soft", "link", "yes", "maybe", "no"):
        assert _contrast(palette[name], palette["paper"]) >= 4.5, name
    for name in ("d0", "d1", "d2", "d3", "d4", "d5", "d6", "d7", "attn", "ffn", "other"):
        assert _contrast(palette[name], palette["paper"]) >= 3.0, name
