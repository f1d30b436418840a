"""Every rule on hand-made audits: that it fires, and that it does not on designs that people use."""

from collections.abc import Callable

import pytest

import sublayer as sl
from sublayer.audit import Audit, BranchFacts, Finding, LayerAudit, NormFacts, Stack
from sublayer.audit.findings import findings
from sublayer.audit.result import SEVERITIES
from sublayer.audit.sentences import RULES
from sublayer.audit.spans import layers_text
from sublayer.notation import Design

ATTENTION = {"heads": 4, "kv_heads": 4, "output_projection": True}


def made(design: str, depth: int = 4, **changes: object) -> Audit:
    """An audit of a model of this design, as the reader would give it."""
    return Audit("made up", (stack_of([sl.parse(design)] * depth, **changes),))


def stack_of(designs: list[Design | None], name: str = "model", **changes: object) -> Stack:
    layers = tuple(LayerAudit(i, f"layers.{i}", d.blocks[0][1].text if d else "", d) for i, d in enumerate(designs))
    one = next(d for d in designs if d is not None)
    plain = {"embed": one.embed, "final": one.final, "design": one, "norm": "layernorm", "width": 64}
    return Stack(name, layers, **{**plain, **changes})  # type: ignore[arg-type]


def with_layers(**facts: Callable[[int], object] | object) -> Audit:
    """An input-norm model of four layers whose layers have these facts."""
    one = made("input-norm").stacks[0]
    layers = tuple(
        LayerAudit(
            layer.index,
            layer.module,
            layer.equation,
            layer.design,
            **{k: v(layer.index) if callable(v) else v for k, v in facts.items()},  # type: ignore[arg-type]
        )
        for layer in one.layers
    )
    return Audit("made up", (Stack(one.name, layers, one.embed, one.final, one.design),))


def rules(found: Audit) -> set[tuple[str, str]]:
    return {(f.rule, f.severity) for f in findings(found)}


def only(found: Audit, rule: str) -> Finding:
    matches = [f for f in findings(found) if f.rule == rule]
    assert len(matches) == 1, findings(found)
    return matches[0]


# --- on the catalogue ---------------------------------------------------------------------------------------------

ON_PURPOSE = {
    "normed-residual": {("residual-from-norm", "warning")},
    "chatglm-6b": {("residual-from-norm", "warning"), ("residual-factor", "note")},
    "hybridnorm": {("residual-from-norm", "note")},
    "hybridnorm-star": {("residual-from-norm", "note")},
    "no-residual": {("no-residual", "note")},
    "skipless-parallel": {("no-residual", "note")},
    "pure-attention": {("no-residual", "note")},
    "first-attention": {("no-residual", "note")},
}


@pytest.mark.parametrize("name", [d.name for d in sl.designs()])
def test_no_named_design_has_an_error(name: str) -> None:
    design = sl.parse(name)
    for layers, section in design.blocks:
        text = f"embed: {design.embed}\nblock: {section.text}\nfinal: {design.final}"
        found = rules(made(text))
        assert not [f for f in found if f[1] == "error"], (name, str(layers))
        assert found <= ON_PURPOSE.get(name, set()), (name, str(layers))


def test_a_stack_of_ranges_is_compared_layer_by_layer() -> None:
    design = sl.parse("mix-ln")
    blocks = {str(layers): section.text for layers, section in design.blocks}
    post, pre = (sl.parse(text) for text in blocks.values())
    assert rules(Audit("", (stack_of([post] * 2 + [pre] * 6, final="x = norm(x)"),))) == {("odd-layer", "note")}


# --- the residual -------------------------------------------------------------------------------------------------


def test_residual_from_norm() -> None:
    found = only(made("x = norm(x + attn(norm(x))); x = x + ffn(x)"), "residual-from-norm")
    assert (found.severity, found.layers, found.place) == ("warning", "layers 0-3", "ffn")
    both = [f for f in findings(made("normed-residual")) if f.rule == "residual-from-norm"]
    assert [f.place for f in both] == ["attn", "ffn"]
    assert "residual-from-norm" not in {r for r, _ in rules(made("post-norm"))}


def test_no_residual() -> None:
    found = only(made("x = attn(norm(x)); x = x + ffn(norm(x))"), "no-residual")
    assert (found.severity, found.place) == ("error", "attn")
    # A sub-layer that feeds another one within a branch has its residual outside both.
    assert not rules(made("x = x + ffn(mixer(norm(x)))"))
    # All layers alike: a design, not a slip.
    assert ("no-residual", "note") in rules(made("no-residual"))
    # One layer of many: a slip, even if that layer has no residual at all.
    whole, bare = sl.parse("input-norm"), sl.parse("x = ffn(norm(attn(norm(x))))")
    one = Audit("", (stack_of([whole, whole, bare, whole]),))
    assert {f.layers for f in findings(one) if f.rule == "no-residual"} == {"layer 2"}
    assert ("no-residual", "error") in rules(one)


def test_a_first_layer_of_its_own_kind_may_replace_the_stream() -> None:
    usual = sl.parse("input-norm")
    for first, severity in (("x = mixer(x); x = x + ffn(norm(x))", "note"), ("x = attn(x)", "warning")):
        found = [
            f for f in findings(Audit("", (stack_of([sl.parse(first), *[usual] * 5]),))) if f.rule == "no-residual"
        ]
        assert [(f.severity, f.layers) for f in found] == [(severity, "layer 0")]


def test_no_residual_round_parallel_sublayers() -> None:
    whole, bare = sl.parse("parallel-two-norms"), sl.parse("x = attn(norm(x)) + ffn(norm(x))")
    found = only(Audit("", (stack_of([whole, bare, whole, whole]),)), "no-residual")
    assert (found.severity, found.place, found.layers) == ("error", "attn + ffn", "layer 1")


def test_residual_factor() -> None:
    found = only(made("x = 0.5*x + attn(norm(x)); x = x + ffn(norm(x))"), "residual-factor")
    assert found.severity == "note"
    assert "shrink to 0.0625 of itself over 4 layers" in found.message
    assert not rules(made("deepnorm"))  # a norm follows
    assert not rules(made("x = 0.95*x + attn(norm(x)); x = x + ffn(norm(x))"))


# --- norms --------------------------------------------------------------------------------------------------------


def test_norm_on_skip() -> None:
    found = only(made("x = norm(x) + attn(x); x = x + ffn(norm(x))"), "norm-on-skip")
    assert (found.severity, found.place) == ("warning", "attn")
    apart = only(made("x = norm(x) + attn(norm(x)); x = x + ffn(norm(x))"), "norm-on-skip")
    assert apart.place == "attn"


def test_norm_twice() -> None:
    found = only(made("x = x + attn(norm(norm(x))); x = x + ffn(norm(x))"), "norm-twice")
    assert (found.severity, found.place) == ("warning", "norm(norm(x))")
    assert only(made("x = norm(x + attn(x)); x = norm(norm(x + ffn(x)))"), "norm-twice")
    assert not rules(made("keel"))  # the inner norm is the stream, which the sum reads too


def test_norm_shared() -> None:
    found = only(made("x = x + attn(norm_a(x)); x = x + ffn(norm_a(x))"), "norm-shared")
    assert (found.severity, found.place) == ("warning", "norm_a")

    def norms(same: bool) -> tuple[NormFacts, ...]:
        names = ("ln.weight",), ("ln.weight" if same else "ln2.weight",)
        places = ("input of attn", "input of ffn")
        return tuple(NormFacts("layernorm", 1e-5, "gain", w, "ln", n) for w, n in zip(places, names, strict=True))

    assert only(with_layers(norms=norms(True)), "norm-shared").place == "input of attn and input of ffn"
    assert not rules(with_layers(norms=norms(False)))
    # ALBERT: one set of parameters for all layers is no norm used twice in a layer.
    assert not rules(with_layers(norms=norms(False), shares=lambda i: 0 if i else None))
    # Queries and keys may share theirs.
    both = NormFacts("rmsnorm", 1e-5, "gain", "query or key", "qk", ("qk.weight",))
    assert not rules(with_layers(norms=(both, both)))


def test_block_end_norm() -> None:
    wired = "x = x + attn(norm(x)); x = norm(x + ffn(norm(x)))"
    found = only(made(wired), "block-end-norm")
    assert (found.severity, found.place) == ("warning", "stream")
    assert "narrowed" not in found.message
    assert only(made("x = norm(x + attn(norm(x)) + ffn(norm(x)))"), "block-end-norm")
    assert only(made("x = x + norm(attn(norm(x))); x = norm(x + norm(ffn(norm(x))))"), "block-end-norm")
    # At the end of the last layer only it is the final norm.
    usual = sl.parse("input-norm")
    last = Audit("", (stack_of([usual, usual, sl.parse(wired)], final="x = x"),))
    assert rules(last) == {("odd-layer", "note")}
    for genuine in ("post-norm", "paf", "b2t", "keel", "deepnorm", "macaron", "no-residual"):
        assert "block-end-norm" not in {r for r, _ in rules(made(genuine))}


def test_block_end_norm_mentions_a_narrow_ffn() -> None:
    design = sl.parse("x = x + attn(norm(x)); x = norm(x + ffn(norm(x)))")
    layer = LayerAudit(0, "l.0", design.block, design, branches=(BranchFacts("ffn", details={"ratio": 1.0}),))
    one = Stack("model", (layer,), design.embed, design.final, design)
    assert "ffn beside it is narrowed to 1 times" in only(Audit("", (one,)), "block-end-norm").message


def test_stream_norm() -> None:
    found = [
        f for f in findings(made("x = norm(x + attn(norm(x))); x = x + norm(ffn(norm(x)))")) if f.severity == "warning"
    ]
    assert ("stream-norm", "after attn") in {(f.rule, f.place) for f in found}
    assert not rules(made("sandwich"))


def test_no_final_norm() -> None:
    found = only(made("block: x = x + attn(norm(x)); x = x + ffn(norm(x))\nfinal: x = x"), "no-final-norm")
    assert (found.severity, found.layers) == ("warning", "final")
    assert not rules(made("post-norm"))
    assert not rules(made("rezero"))  # no norm anywhere: not forgotten
    assert not rules(made("input-norm", final=""))  # what follows could not be read
    # A stage of a pyramid is followed by the next one.
    bare = "block: x = x + attn(norm(x))\nfinal: x = x"
    stages = (stack_of([sl.parse(bare)], "stack 1"), stack_of([sl.parse("input-norm")], "stack 2"))
    assert not rules(Audit("", stages))


def test_mixed_norms() -> None:
    def norms(*kinds: str) -> tuple[NormFacts, ...]:
        places = ("input of attn", "input of ffn")
        return tuple(NormFacts(k, 1e-5, "gain", w, w, (w,)) for k, w in zip(kinds, places, strict=True))

    found = only(with_layers(norms=norms("layernorm", "rmsnorm")), "mixed-norms")
    assert (found.severity, found.layers, found.place) == ("warning", "layers 0-3", "input of ffn")
    assert "LayerNorm stands at input of attn and RMSNorm at input of ffn" in found.message
    assert not rules(with_layers(norms=norms("rmsnorm", "rmsnorm")))
    one = with_layers(norms=lambda i: norms("rmsnorm", "rmsnorm") if i == 1 else norms("layernorm", "layernorm"))
    assert (only(one, "mixed-norms").severity, only(one, "mixed-norms").layers) == ("warning", "layer 1")
    # QK-norm is RMSNorm in models whose other norms are LayerNorm.
    query = NormFacts("rmsnorm", 1e-6, "gain", "query or key", "q", ("q",))
    assert not rules(with_layers(norms=(*norms("layernorm", "layernorm"), query)))


# --- sub-layers ---------------------------------------------------------------------------------------------------


def test_branch_dropped() -> None:
    found = only(with_layers(dropped=lambda i: (BranchFacts("attn", f"layers.{i}.attn"),)), "branch-dropped")
    assert (found.severity, found.layers, found.place) == ("error", "layers 0-3", "attn")
    assert found.message.startswith("attn is computed")
    # The last layer may compute what only a next one would read.
    last = with_layers(dropped=lambda i: (BranchFacts("attn", f"layers.{i}.attn"),) if i == 3 else ())
    assert only(last, "branch-dropped").severity == "warning"
    first = with_layers(dropped=lambda i: (BranchFacts("attn", f"layers.{i}.attn"),) if i == 0 else ())
    assert only(first, "branch-dropped").severity == "error"


def test_no_output_projection() -> None:
    def branches(projected: bool, heads: int = 4) -> tuple[BranchFacts, ...]:
        return (BranchFacts("attn", details={**ATTENTION, "heads": heads, "output_projection": projected}),)

    found = only(with_layers(branches=branches(False)), "no-output-projection")
    assert (found.severity, found.place) == ("warning", "attn")
    assert not rules(with_layers(branches=branches(True)))
    assert not rules(with_layers(branches=branches(False, heads=1)))
    assert not rules(with_layers(branches=(BranchFacts("attn"),)))  # not known
    # Where half of the layers lack it, that is a design.
    assert only(with_layers(branches=lambda i: branches(i < 2)), "no-output-projection").severity == "warning"
    one = with_layers(branches=lambda i: branches(i != 2))
    assert (only(one, "no-output-projection").severity, only(one, "no-output-projection").layers) == (
        "error",
        "layer 2",
    )


# --- layers and stacks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("odd", "severity", "text"),
    [
        ([3], "warning", "layer 3"),
        ([0], "note", "layer 0"),
        ([7], "note", "layer 7"),
        ([0, 1], "note", "layers 0-1"),
        ([1, 5], "note", "layers 1, 5"),
        ([], None, ""),
        ([0, 2, 4, 6], None, ""),
    ],
)
def test_odd_layers(odd: list[int], severity: str | None, text: str) -> None:
    usual, other = sl.parse("input-norm"), sl.parse("post-norm")
    found = Audit("", (stack_of([other if i in odd else usual for i in range(8)], final="x = norm(x)"),))
    if severity is None:
        assert not rules(found)
    else:
        assert (only(found, "odd-layer").severity, only(found, "odd-layer").layers) == (severity, text)


def test_layers_that_differ_in_factors_are_no_oddity() -> None:
    designs = [sl.parse(f"x = x + 0.{i + 1}*attn(norm(x)); x = x + ffn(norm(x))") for i in range(6)]
    assert not rules(Audit("", (stack_of(list(designs)),)))


def test_a_lone_narrow_ffn_is_odd() -> None:
    found = only(
        with_layers(branches=lambda i: (BranchFacts("ffn", details={"width": 64 if i == 2 else 256}),)), "odd-layer"
    )
    assert (found.severity, found.layers, found.place) == ("warning", "layer 2", "ffn")
    assert not rules(with_layers(branches=lambda i: (BranchFacts("ffn", details={"width": 64 * (i + 1)}),)))


def test_unknown_layers_are_told_once_for_each_reason() -> None:
    found = made("input-norm").stacks[0]
    layers = tuple(
        LayerAudit(i, f"layers.{i}", "", None, unknown="two values pass a gate" if i < 3 else "it loops")
        for i in range(4)
    )
    told = findings(Audit("", (Stack("model", layers, found.embed, found.final, None),)))
    assert [(f.layers, f.severity, f.rule) for f in told] == [
        ("layers 0-2", "note", "unknown-layer"),
        ("layer 3", "note", "unknown-layer"),
    ]


def test_dead_parameters_and_inputs() -> None:
    names = (*(f"layers.{i}.ln3.{p}" for i in range(4) for p in ("weight", "bias")), "pooler.dense.weight")
    found = findings(Audit("", made("post-norm").stacks, dead_parameters=names, dead_inputs=("token_type_ids",)))
    assert [(f.severity, f.layers, f.place) for f in found] == [
        ("warning", "layers 0-3", "ln3"),
        ("note", "model", "pooler.dense"),
        ("note", "model", "token_type_ids"),
    ]


def test_experts_that_no_token_chose_are_not_called_dead() -> None:
    layers = with_layers(branches=(BranchFacts("moe", "mlp"),)).stacks
    found = findings(
        Audit("", layers, dead_parameters=("layers.1.experts.3.up.weight", "layers.2.experts.3.up.weight"))
    )
    assert [(f.severity, f.layers, f.place) for f in found] == [("note", "layers 1-2", "experts.3.up")]


def test_two_stacks_are_told_apart_and_errors_come_first() -> None:
    bare = "block: x = x + attn(norm(x))\nfinal: x = x"
    stacks = (
        stack_of([sl.parse(bare)] * 2, "encoder"),
        stack_of([*[sl.parse("input-norm")] * 2, sl.parse("x = attn(norm(x)); x = x + ffn(norm(x))")], "decoder"),
    )
    found = findings(Audit("", stacks))
    assert [(f.severity, f.layers, f.rule) for f in found] == [
        ("error", "decoder layer 2", "no-residual"),
        ("warning", "encoder final", "no-final-norm"),
        ("note", "decoder layer 2", "odd-layer"),
    ]
    assert all(f.severity in SEVERITIES and f.rule in RULES for f in found)


def test_layers_as_text() -> None:
    assert layers_text([3]) == "layer 3"
    assert layers_text([2, 0, 1, 7]) == "layers 0-2, 7"
