"""Which calls run together is decided by the graph, and the code that is printed computes the same."""

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

import sublayer as sl
from sublayer.notation import Section, parse
from sublayer.notation.code import forward_source
from sublayer.notation.parallel import Group, parallel
from tests.notation.strategies import Spec, specs

BLOCK = {
    "paf": ["attn_ffn(h) = attn(h) + ffn(h): one input product and one output product"],
    "parallel-one-norm": ["attn_ffn(h) = attn(h) + ffn(h): one input product and one output product"],
    "parallel-two-norms": ["attn_ffn(h1, h2) = attn(h1) + ffn(h2): one output product"],
    "skipless-parallel": ["attn_ffn(h) = attn(h) + ffn(h): one input product and one output product"],
    "h = norm(x); x = x + norm(attn(h)) + scale(ffn(h))": ["attn_ffn(h) = attn(h), ffn(h): one input product"],
    "h = norm(x); x = x + gate(attn(h)) + ffn(h) + ffn(h)": [
        "attn_ffn_ffn_2(h) = attn(h), ffn(h) + ffn_2(h): one input product and one output product"
    ],
    "x = x + ffn(norm(x)) + ffn(norm(x)) + dot(x)": ["ffn_ffn_2(h1, h2) = ffn(h1) + ffn_2(h2): one output product"],
    "x = x + attn_a(x) + attn_a(norm(x))": ["attn_attn(h1, h2) = attn(h1) + attn(h2): one output product"],
    "parallel-vit": [
        "attn_attn_2(h1, h2) = attn(h1) + attn_2(h2): one output product",
        "ffn_ffn_2(h1, h2) = ffn(h1) + ffn_2(h2): one output product",
    ],
    "x = x + 2*attn(x) - ffn(x)": [
        "attn_ffn(h, [c1, c2]) = c1*attn(h) + c2*ffn(h): one input product and one output product"
    ],
    "h = norm(x); g = rmsnorm(x); x = x + attn(h) + ffn(h) + ffn(g) + attn(g)": [
        (
            "attn_attn_2_ffn_ffn_2(h1, h2) = attn(h1) + attn_2(h2) + ffn(h1) + ffn_2(h2): "
            "2 input products and one output product"
        ),
    ],
    # One call waits for the other, reads another value, is used twice, or has no product of its own.
    "post-norm": [],
    "input-norm": [],
    "x = x + ffn(norm(attn(x)))": [],
    "x = x + dot(x) + ffn(x)": [],
    "a = attn(x); x = x + a + ffn(norm(a))": [],
}


def comments(source: str) -> list[str]:
    return [line.strip(" #") for line in source.splitlines() if line.lstrip().startswith("#")]


@pytest.mark.parametrize("design", BLOCK)
def test_groups(design: str) -> None:
    section = parse(design).blocks[0][1]
    assert comments(forward_source(section)) == BLOCK[design]
    assert (forward_source(section) == forward_source(section, fuse=False)) is (not BLOCK[design])
    assert comments(forward_source(section, tap=True)) == []


def test_the_fused_code_reads_as_the_equation() -> None:
    assert forward_source(parse("h = norm(x); x = x + attn(h)/sqrt(layer) + ffn(h)/sqrt(layer)").layer(0, 1)) == (
        "def forward(self, x, context):\n"
        "    # attn_ffn(h) = attn(h) + ffn(h): one input product and one output product\n"
        "    layer = self.layer\n"
        "    x = x + self.attn_ffn(self.attn_ffn_in_norm(x), context)/sqrt(layer)\n"
        "    return x\n"
    )


class Fake:
    """Stands for a block: every site is a function of its own, groups are made of their calls, order is recorded."""

    layer, depth = 3, 7

    def __init__(self, section: Section, groups: tuple[Group, ...]) -> None:
        self.order: list[str] = []
        for k, site in enumerate(section.sites):
            setattr(self, site.name, self.site(site.name, site.op, k))
        for group in groups:
            setattr(self, group.name, self.group(group))

    def site(self, name: str, op: str, k: int) -> Any:
        def call(value: float, context: Any = None) -> float:
            assert (context is not None) is (op in ("attn", "dot"))
            if context is not None:
                self.order.append(f"{name} {value:.9g}")
            return (0.5 + 0.13 * k) * value + 0.3 * k / (1 + value * value)

        return call

    def group(self, group: Group) -> Any:
        def call(*given: Any) -> Any:
            values, context = given[: len(group.args)], given[len(group.args)]
            numbers = iter(given[len(group.args) + 1] if group.factors else [])
            outputs = []
            for step, i in zip(group.calls, group.reads, strict=True):
                extra = [context] if step.site.op == "attn" else []
                outputs.append(getattr(self, step.site.name)(values[i], *extra))
            results = [sum((next(numbers) if group.factors else 1) * outputs[t.call] for t in r) for r in group.results]
            return results[0] if len(results) == 1 else tuple(results)

        return call


def run(section: Section, fuse: bool) -> tuple[Any, list[str]]:
    namespace: dict[str, Any] = {"sqrt": lambda v: v**0.5}
    exec(forward_source(section, fuse=fuse), namespace)
    block = Fake(section, parallel(section).groups if fuse else ())
    rng = random.Random(len(section.inputs))
    result = namespace["forward"](block, *(rng.uniform(0.5, 2) for _ in section.inputs), object())
    return result if isinstance(result, tuple) else (result,), block.order


def check(design: sl.Design) -> int:
    found = 0
    for section in (design.section("embed"), *(s for _, s in design.blocks), design.section("final")):
        (plain, order), (fused, fused_order) = run(section, False), run(section, True)
        assert fused == pytest.approx(plain, rel=1e-9)
        assert fused_order == order  # the cache counts the attention calls as they come
        found += len(parallel(section).groups)
    return found


@pytest.mark.parametrize("name", [entry.name for entry in sl.designs()])
def test_the_code_of_the_catalogue_computes_the_same(name: str) -> None:
    check(parse(name))


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(specs())
def test_the_code_of_random_designs_computes_the_same(spec: Spec) -> None:
    check(parse(spec.text()))


def test_random_designs_have_groups_of_every_kind() -> None:
    """So that the test above has something to look at."""
    from tests.notation.strategies import random_spec

    groups = []
    for seed in range(150):
        spec = random_spec(random.Random(seed), ("attn", "attn", "ffn", "ffn", "norm"))
        design = parse(spec.text())
        check(design)
        groups += [g for _, section in design.blocks for g in parallel(section).groups]
    assert len(groups) > 100
    assert sum(len(g.results) > 1 for g in groups) > 10
    assert sum(bool(g.factors) for g in groups) > 10
    assert sum(len(g.args) < len(g.calls) for g in groups) > 20
