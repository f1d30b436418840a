"""Formulas of factors, read back from the numbers they take."""

import itertools
import math
import random
import statistics
import time

import numpy as np
import pytest

from sublayer.audit.factors import fit, number
from sublayer.notation import Add, Scalar, designs, parse
from tests.notation.strategies import FACTORS

DEPTHS = (4, 7, 12)


def scalar(text: str) -> Scalar:
    """The scalar as a design reads it."""
    steps = parse(f"x = x + ({text})*attn(x)").blocks[0][1].steps
    return next(terms[1][0] for step in steps if isinstance(step, Add) for terms in [step.terms])


def sample(wanted: Scalar, depths: tuple[int, ...] = DEPTHS, single: bool = False) -> dict[tuple[int, int], float]:
    values = {(n, depth): wanted.value(n, depth) for depth in depths for n in range(1, depth + 1)}
    return {key: float(np.float32(value)) for key, value in values.items()} if single else values


def catalogue_scalars() -> list[Scalar]:
    found: dict[str, Scalar] = {}
    for entry in designs():
        design = parse(entry.name)
        sections = [design.section("embed"), design.section("final"), *(section for _, section in design.blocks)]
        for step in (step for section in sections for step in section.steps if isinstance(step, Add)):
            found |= {str(s): s for s, _ in step.terms}
    return list(found.values())


PLAIN = [factor.replace("*{}", "").replace("{}*", "").replace("{}/", "1/") for factor in FACTORS]
TWO = list(itertools.combinations_with_replacement(PLAIN, 2))
PRODUCTS = [scalar(f"({a})*({b})") for a, b in TWO]
SUMS = [scalar(f"({a}) + ({b})") for a, b in TWO]


def shares(wanted: list[Scalar], depths: tuple[int, ...], single: bool) -> tuple[float, list[tuple[str, str]]]:
    """The share that is found, and what is found wrongly."""
    results = [(w, fit(sample(w, depths, single))) for w in wanted]
    wrong = [(str(w), str(found)) for w, found in results if found is not None and found != w]
    return sum(found == w for w, found in results) / len(wanted), wrong


@pytest.mark.parametrize("depths", [(4, 7), DEPTHS])
def test_the_catalogue_is_read_back(depths: tuple[int, ...]) -> None:
    wanted = catalogue_scalars()
    assert len(wanted) >= 8
    for s in wanted:
        assert fit(sample(s, depths)) == s
        assert fit(sample(s, depths, single=True)) == s


@pytest.mark.parametrize("single", [False, True], ids=["float64", "float32"])
def test_products_and_sums_are_read_back(single: bool) -> None:
    assert shares([scalar(f) for f in PLAIN], (4, 7), single) == (1.0, [])
    for depths, wanted in (((4, 7), PRODUCTS), (DEPTHS, PRODUCTS), (DEPTHS, SUMS)):
        share, wrong = shares(wanted, depths, single)
        assert share >= 0.95
        assert wrong == []


@pytest.mark.parametrize("single", [False, True], ids=["float64", "float32"])
def test_two_depths_do_not_prove_a_sum_of_depths(single: bool) -> None:
    share, wrong = shares(SUMS, (4, 7), single)
    assert wrong == []
    assert share >= 0.7  # layer + layer/depth, 2 + 1/depth and the like are left alone
    for text in ("2*depth - 1", "2 + 1/depth", "layer + layer/depth"):
        assert fit(sample(scalar(text), (4, 7), single)) is None
        assert fit(sample(scalar(text), DEPTHS, single)) == scalar(text)


@pytest.mark.parametrize(
    "text",
    "layer**-0.5+layer; 1+layer/depth; (layer+1)*0.5; 2*depth-layer; 0.5**layer; -3*0.5**layer; 1/sqrt(2*layer-1); "
    "-sqrt(layer); layer-1; (layer-1)/depth; sqrt(depth-layer); 1/(layer+1); layer**(1/3)*depth**-0.75; 1-layer/depth; "
    "layer+1+1/depth; 1/(layer+depth)".split("; "),
)
def test_other_formulas(text: str) -> None:
    wanted = scalar(text)
    assert fit(sample(wanted)) == wanted
    assert fit(sample(wanted, single=True)) == wanted


def test_some_layers_are_enough() -> None:
    wanted = scalar("(2*depth)**0.25/sqrt(layer)")
    seen = {key: v for key, v in sample(wanted).items() if key[0] > key[1] // 4}
    assert fit(seen) == wanted


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5, "0.5"),
        (0.22, "0.22"),
        (1.4, "1.4"),
        (-1.0, "-1"),
        (0.0, "0"),
        (2**0.5, "sqrt(2)"),
        (8**0.25, "2**0.75"),
        (3**0.5 / 2, "sqrt(3)/2"),
        (-1 / 3, "-1/3"),
        (0.1 + 0.2, "0.3"),
        (1.4 / 7**0.5, "1.4/sqrt(7)"),
        (24**0.25, "24**0.25"),
        (2 + 3**0.5, "2 + sqrt(3)"),
        (2.0**-20, "1/1048576"),
    ],
)
@pytest.mark.parametrize("single", [False, True], ids=["float64", "float32"])
def test_numbers(value: float, text: str, single: bool) -> None:
    value = float(np.float32(value)) if single else value
    assert number(value) == scalar(text) if value else number(value).is_zero
    # Seen at one depth it is the same number: the depth is not guessed.
    assert fit({(n, 7): value for n in range(1, 8)}) == number(value)
    assert fit({(n, d): value for d in DEPTHS for n in range(1, d + 1)}) == number(value)


def test_a_number_that_means_nothing_stays_as_it_is() -> None:
    assert number(0.7234918273645546).value(1, 1) == 0.7234918273645546
    assert number(0.2199999988079071) == scalar("0.22")
    single = float(np.float32(0.7234987))
    assert np.float32(number(single).value(1, 1)) == single
    for value in (math.nan, math.inf, 1e308, 5e-324):
        with pytest.raises(ValueError, match="number of the notation"):
            number(value)


def test_one_depth_says_nothing_of_the_depth() -> None:
    for wanted in [*PRODUCTS, *SUMS]:
        found = fit(sample(wanted, (7,)))
        assert found is None or "depth" not in str(found)
    assert fit(sample(scalar("layer/depth"), (7,))) == scalar("layer/7")
    assert fit(sample(scalar("1/sqrt(layer)"), (4,))) == scalar("1/sqrt(layer)")


def test_too_few_samples() -> None:
    assert fit({}) is None
    assert fit(sample(scalar("1/sqrt(layer)"), (3,))) is None
    assert fit({(1, 4): 1.0, (2, 4): 2.0}) is None
    assert fit({(1, 4): 1.0, (2, 7): 2.0}) is None  # the layer or the depth?
    assert fit({(n, n): n**0.5 for n in range(2, 9)}) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_a_number(bad: float) -> None:
    assert fit({(1, 2): bad, (2, 2): 1.0}) is None


def test_odd_input_raises_nothing() -> None:
    assert fit({(1, 2): 0.0, (2, 2): 0.0}) == scalar("0*depth - 0*depth + 1") - scalar("1")
    for values in ([1e300, 1e-300, 1e308, 5.0], [0.0, 1e-320, 1.0, 2.0], [5e-324] * 4, [1e308] * 4):
        assert fit(dict(zip([(n, 4) for n in range(1, 5)], values, strict=True))) is None
    assert fit({(0, 4): 1.0, (0, 7): 2.5}) is None
    fit({(n, d): float(n - d) for d in (0, 1, 5) for n in range(-1, d)})


@pytest.mark.parametrize("single", [False, True], ids=["float64", "float32"])
@pytest.mark.parametrize("depths", [(4,), (12,), (4, 7), DEPTHS])
def test_noise_has_no_formula(depths: tuple[int, ...], single: bool) -> None:
    rng = random.Random(0)
    for _ in range(12):
        for draw in (rng.random, lambda: 1 + 1e-3 * rng.gauss(0, 1), lambda: rng.randint(1, 999) / 1000):
            values = {(n, d): draw() for d in depths for n in range(1, d + 1)}
            assert fit({k: float(np.float32(v)) if single else v for k, v in values.items()}) is None
    for function in (math.log1p, math.sin, lambda n: 0.8 - 0.6 * math.exp(-0.3 * n)):
        assert fit({(n, d): function(n) for d in depths for n in range(1, d + 1)}) is None


def test_what_is_found_is_read_back_by_a_design() -> None:
    for wanted in [*PRODUCTS, *SUMS]:
        for depths in ((7,), DEPTHS):
            found = fit(sample(wanted, depths))
            if found is not None:
                assert scalar(str(found)) == found
                if len(found.terms) == 1:
                    assert parse(f"x = x + {found}*attn(x)") == parse(f"x = x + ({found})*attn(x)")


def test_speed() -> None:
    times = []
    for wanted in [*map(scalar, PLAIN), *PRODUCTS, *SUMS]:
        values = sample(wanted)
        start = time.process_time()
        fit(values)
        times.append(time.process_time() - start)
    assert statistics.median(times) < 0.02
