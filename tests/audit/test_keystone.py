"""What is built from a design is read back as that design: `audit(build(d)).design == d`."""

import pytest

import sublayer as sl
from sublayer.audit import audit
from tools.keystone import build, is_shown, text

# Enough to meet every operator, carried streams, ranges and factors; `make keystone` runs a thousand.
SEEDS = [s for s in range(70) if is_shown(sl.parse(text(s)))]
SEEDS += [72, 79, 180, 184, 203, 267, 321, 353, 397, 829]  # once misread: streams of like sums, layers that only add


@pytest.mark.parametrize("name", [entry.name for entry in sl.designs()])
def test_the_catalogue_comes_back(name: str) -> None:
    design = sl.parse(name)
    assert audit(build(str(design))).design == design


@pytest.mark.parametrize("seed", SEEDS)
def test_random_designs_come_back(seed: int) -> None:
    design = sl.parse(text(seed))
    assert audit(build(str(design))).design == design


def test_other_designs_do_not() -> None:
    model = build("x = norm(x + attn(x)); x = norm(x + ffn(x))")
    for other in ("input-norm", "x = norm(x + attn(x)); x = norm(x + 2*ffn(x))", "x = norm(x + attn(x) + ffn(x))"):
        assert audit(model).design != sl.parse(other)
