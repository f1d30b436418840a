"""Texts at the limits: what is printed is read as it was, and no short text takes long."""

import time

import pytest

from sublayer.notation import DesignError, parse

LONG = 19_000  # characters, below the limit of a text


@pytest.mark.parametrize(
    "text",
    [
        "x = x + 299999999999999999997*0.5*ffn(x)",  # no float is half of it
        "x = x + 99999999999999999999.5*attn(x) + 0.1*99999999999999999999*ffn(x)",
        "x = x + 123456789012345678*ffn(x)/10",
        "x = x + 12345678901.123456*ffn(x)",
        "x = x + " + "(2*depth)**" * 9 + "0.5*ffn(x)",
    ],
)
def test_a_printed_number_is_read_as_it_was(text: str) -> None:
    design = parse(text)
    assert parse(str(design)) == design


@pytest.mark.parametrize("text", ["x = x + 1e-300*x + attn(x)", "x = x + 1.5e-300*attn(x)"])
def test_a_number_that_could_not_be_read_again_is_refused(text: str) -> None:
    with pytest.raises(DesignError, match="two numbers up to 1e300"):
        parse(text)


def test_powers_nest_so_far() -> None:
    with pytest.raises(DesignError, match="nest 12 deep"):
        parse("x = x + " + "(2*depth)**" * 30 + "0.5*ffn(x)")


@pytest.mark.parametrize(
    "text",
    [
        "a" + " " * LONG + "=",  # took quadratic time in two patterns
        "a" + "\t" * LONG + "=",
        "block" + " " * LONG + "x",
        "; ".join(["x = x + norm(x)"] * 1200),  # each sum one term longer than the one before
        "x = x" + " + attn(norm(x))" * 100,  # a hundred calls that can change places
        "a-" * (LONG // 2),
        "- " * (LONG // 2),
    ],
    ids=["spaces", "tabs", "label", "sums", "ties", "name", "signs"],
)
def test_no_text_takes_long(text: str) -> None:
    parse("x = norm(x + attn(x))")  # what is read once, is read
    began = time.process_time()
    try:
        parse(text)
    except DesignError as error:
        assert len(str(error)) < 3000
    assert time.process_time() - began < 2.5  # seconds; 5 to 20 before


def test_checking_a_depth_again_costs_nothing() -> None:
    design = parse("x = x + attn(x)/(layer + depth)**0.3; x = x + ffn(x)/(layer + depth)**0.3")
    began = time.process_time()
    sections = [design.layer(i, 3000) for i in range(3000)]
    assert time.process_time() - began < 5  # each layer was checked for each layer: 9,000,000 numbers a factor
    assert len({section.text for section in sections}) == 1
