"""What must hold for every design and every text."""

import math
import pickle
import random
import string

from hypothesis import given, settings
from hypothesis import strategies as st

from sublayer.notation import Add, Design, DesignError, designs, parse
from tests.notation.strategies import Spec, specs


@settings(max_examples=400, deadline=None)
@given(specs())
def test_the_printed_form_parses_to_the_same_design(spec: Spec) -> None:
    design = parse(spec.text())
    again = parse(str(design))
    assert again == design
    assert hash(again) == hash(design)
    assert Design.from_dict(design.to_dict()) == design
    assert pickle.loads(pickle.dumps(design)) == design


@settings(max_examples=400, deadline=None)
@given(specs(), st.integers(0, 2**32))
def test_names_orders_and_white_space_change_nothing(spec: Spec, seed: int) -> None:
    assert parse(spec.text(random.Random(seed))) == parse(spec.text())


@settings(max_examples=200, deadline=None)
@given(specs())
def test_every_value_is_computed_from_values_before_it(spec: Spec) -> None:
    design = parse(spec.text())
    for section in (design.section("embed"), *(s for _, s in design.blocks), design.section("final")):
        known = set(section.inputs)
        for step in section.steps:
            assert set(step.args) <= known
            known.add(step.value)
        assert {value for _, value in section.outputs} <= known
        names = [site.name for site in section.sites]
        assert len(names) == len(set(names))
        for add in section.sums:
            labels = section.labels(add)
            assert len(labels) == len(set(labels))


WORDS = [
    "x",
    "e",
    "r",
    "attn",
    "ffn",
    "norm",
    "norm_a",
    "layer",
    "depth",
    "sqrt",
    "block",
    "embed",
    "final",
    "block[:25%]",
    "h",
    "LN",
    "lambda",
    "import",
]
SYMBOLS = [
    "=",
    "+",
    "-",
    "*",
    "/",
    "**",
    "(",
    ")",
    ";",
    "\n",
    ":",
    "[",
    "]",
    "%",
    ",",
    ".",
    "0.5",
    "2",
    "1e9",
    "//",
    "#",
    "@",
    "{",
    "}",
    "'",
    " ",
]


def mutate(text: str, rng: random.Random) -> str:
    """The text with a few characters or words dropped, doubled, swapped or replaced."""
    for _ in range(rng.randint(1, 4)):
        i = rng.randrange(len(text) + 1)
        j = min(len(text), i + rng.randint(0, 4))
        new = rng.choice(
            [
                rng.choice(WORDS),
                rng.choice(SYMBOLS),
                rng.choice(string.printable),
                "",
                text[i:j] * 2,
                chr(rng.randrange(0x110000)),
            ]
        )
        text = text[:i] + new + text[j:]
    return text


def test_a_hundred_thousand_texts_raise_nothing_but_design_errors() -> None:
    rng = random.Random(20250101)
    seeds = [entry.text for entry in designs()]
    read = 0
    for i in range(100_000):
        if i % 3 == 0:
            text = "".join(rng.choice([*WORDS, *SYMBOLS]) for _ in range(rng.randint(1, 14)))
        elif i % 3 == 1:
            text = "".join(rng.choice(string.printable) for _ in range(rng.randint(0, 30)))
        else:
            text = mutate(rng.choice(seeds), rng)
        try:
            design = parse(text)
            read += 1
            if read % 7 == 0:
                assert parse(str(design)) == design, text
        except DesignError as error:
            assert str(error).strip()
    assert read > 1000  # the mutations are gentle enough to leave real designs


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200))
def test_any_unicode_text_raises_nothing_but_design_errors(text: str) -> None:
    try:
        parse(text)
    except DesignError as error:
        assert str(error)


def test_texts_made_to_exhaust_the_reader_are_refused() -> None:
    hostile = [
        "x = " + "(" * 100_000,
        "x = " + "-" * 15_000 + "x",
        "x = " + "(" * 85 + "x" + ")" * 85 + "**" + "9" * 60,
        "x = " + "norm(" * 80 + "x" + ")" * 80,
        "x = 9**9**9**9*x",
        "x = 1e308*1e308*1e308*x",
        "x = x" + " + x" * 4000,
        "x = " + " + ".join(f"layer**{i}*x" for i in range(500)),
        "x = (layer + depth + 1)**200*x",
        "; ".join("x = norm(x)" for _ in range(1000)),
        "; ".join("x = x + attn(x) + attn(x) + attn(x)" for _ in range(40)),
        "x = x + " + " + ".join("attn(x)" for _ in range(200)),
        "a" * 1_000_000,
        "x" * 15_000 + "(x)",
        "x = " + "y" * 15_000,
        "x = 1" + "0" * 10_000 + "*x",
        "x = x\x00",
        "x = \ud800",
        "x = 0x" + "f" * 50 + "*x",
        "block" + "[:5%]" * 1000 + ": x = x",
        "x = " + "1/" * 5000 + "x",
        "x = sqrt(" * 80 + "2" + ")" * 80 + "*x",
        "x = x" + "**layer" * 50,
        "x = (layer" + "**layer" * 50 + ")*x",
    ]
    for text in hostile:
        try:
            assert parse(str(parse(text))) == parse(text)
        except DesignError as error:
            assert len(str(error)) < 2000, len(str(error))


def test_chains_of_shared_sums_are_read_at_once() -> None:
    for text in ("; ".join(["x = x + norm(x)"] * 120), "; ".join(["x = norm(x) + norm(x)"] * 100)):
        assert parse(str(parse(text))) == parse(text)


PIECES = "layer depth 2 3 0.5 (layer+1) (depth-layer+1) sqrt(layer) sqrt(layer+1) (2*layer)**0.25".split()
PIECES += ["(layer+1)**1.5", "2**layer"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("*/"), st.sampled_from(PIECES)), min_size=1, max_size=6))
def test_scalars_print_what_they_are_and_keep_their_value(factors: list[tuple[str, str]]) -> None:
    expression = "1" + "".join(sign + piece for sign, piece in factors)
    design = parse(f"x = x + {expression}*attn(x)")
    assert parse(str(design)) == design
    (add,) = (s for s in design.layer(2, 7).steps if isinstance(s, Add))
    expected = eval(expression, {"layer": 3, "depth": 7, "sqrt": math.sqrt})
    assert math.isclose({t: c for c, t in add.terms}["v1"].value(3, 7), expected, rel_tol=1e-9)
