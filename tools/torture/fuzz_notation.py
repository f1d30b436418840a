"""The notation as a target: texts that are parsed, printed, drawn and explained."""

import random
from functools import cache
from typing import Any

from sublayer.cli.designs import code, describe
from sublayer.notation import DesignError, designs, parse, unsupported
from sublayer.notation import design as implementation
from tests.notation.strategies import random_spec
from torture.fuzz_inputs import spoilt_text

TOKENS = (
    "x e r h layer depth attn ffn norm layernorm rmsnorm dyt scale gate dot stop cross sqrt attn_a ffn_b norm_ x_ "
    "embed: block: final: block[:25%]: block[25%:]: block[2:6]: block[-1:]: = + - * / ** ( ) [ ] , ; : . 0 1 2 0.5 "
    "1e9 1e308 1e-300 1e400 300 2048 "
    "(2*depth)**0.25 depth**layer layer**depth 0**0 1/0 (layer-1)**-1 sqrt(-1) (-8)**(1/3) "
    "lambda if else for in not and or is await yield := -> @ ~ % // << >> & | ^ == != <= True None ... * , **x f'' b'' "
    "1j 0x10 0b1 1_000 += -= *= del import pass return async def class \n # # \\ post-norm prenorm pre-LN sandwich"
).split(" ")


@cache
def seeds() -> tuple[str, ...]:
    """Every equation and name of the catalogue."""
    found = [text for entry in designs() for text in (entry.text, entry.name, *entry.aliases)]
    return (*found, *(name for entry in unsupported() for name in (entry.name, *entry.aliases)))


def make(rng: random.Random) -> str:
    """One text: a spoilt seed, a spoilt random design, a valid one, or a heap of tokens."""
    chance = rng.random()
    if chance < 0.12:
        return " ".join(rng.choice(TOKENS) for _ in range(rng.randint(1, 40)))
    if chance < 0.4:
        text = random_spec(rng).text(rng)
        return text if rng.random() < 0.1 else spoilt_text(rng, text, seeds(), TOKENS)
    return spoilt_text(rng, rng.choice(seeds()), seeds(), TOKENS)


def check(text: Any, drawn: bool = True) -> bool:
    """Everything that is done with a text; whether it is a design.

    Every text is parsed. A design is printed and read again, set in LaTeX, and asked for its layers at depths 1 and 12.
    One that is to be `drawn` is also explained, written as PyTorch code and drawn as SVG, which take most of the time.

    Raises:
        AssertionError: a printed design is read as another one, or a message is no message. Anything else that is
        raised is a failure too.
    """
    try:
        design = parse(text)
    except DesignError as error:
        message = str(error)
        assert 0 < len(message) < 5000, message[:300]
        assert "Traceback" not in message, message[:300]
        message.encode("utf-8", "backslashreplace")
        return False
    printed = str(design)
    again = parse(printed)
    assert str(again) == printed, (printed, str(again))
    assert again == design, printed
    design.latex()
    for depth in (1, 12):
        try:
            [design.layer(i, depth) for i in range(depth)]
        except DesignError:
            break
    if drawn:
        describe(design)
        code(design)
        drawing = design.svg()
        assert drawing.startswith("<svg")
        assert "<script" not in drawing
    return True


def forget() -> None:
    """Empty the caches, so that memory shows what one text needs."""
    implementation._parse.cache_clear()
    implementation._normalise.cache_clear()
