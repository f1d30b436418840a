"""`rewire`: parameters go by role, what is called exact is exact, and every parameter is accounted for."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings

from sublayer.hf.convert import Conversion, ConvertError, rewire
from sublayer.hf.convert.factor import Factor
from sublayer.hf.convert.match import match
from sublayer.hf.convert.network import Network
from sublayer.hf.convert.plan import NormPlan, Plan
from sublayer.hf.convert.proof import prove
from sublayer.hf.convert.weights import assemble, biased, parameters, shell
from sublayer.model import (
    SublayerForCausalLM,
    SublayerForMaskedLM,
    SublayerForSequenceClassification,
    SublayerModel,
    SublayerPreTrainedModel,
)
from sublayer.notation import Design, DesignError, designs, parse
from tests.model.support import same, tiny, tokens
from tests.model.test_random_designs import random_designs

SMALL: dict[str, Any] = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12}
BERT_MOVED = "embed: x = e\nblock: h = norm(x); x = h + attn(h); h = norm(x); x = h + ffn(h)\nfinal: x = norm(x)"
BERT_NORMED = "embed: x = norm(e)\nblock: x = norm(x + attn(x)); x = norm(x + ffn(x))\nfinal: x = norm(x)"

# Pairs of equations that have one function once the weights are moved, and what moves.
EXACT = {
    "the affine part of two norms into the products that read one": ("parallel-two-norms", "parallel-one-norm"),
    "one norm copied": ("parallel-one-norm", "parallel-two-norms"),
    "a number into W_o and W_2": ("granite", "input-norm"),
    "a number out of W_o and W_2": ("input-norm", "granite"),
    "a number that depends on the layer, before the products": ("layernorm-scaling", "input-norm"),
    "and back": ("input-norm", "layernorm-scaling"),
    "a learned vector into W_o and W_2": ("layerscale", "input-norm"),
    "new factors of 1": ("input-norm", "layerscale"),
    "a learned number as a vector": ("gated-input-norm", "layerscale"),
    "norms that belong to the layer before": ("bert", BERT_MOVED),
    "and to the layer after": (BERT_MOVED, "bert"),
    "a shared norm in two": ("x = norm_a(x + attn(x)); x = norm_a(x + ffn(x))", "post-norm"),
    "a shared sub-layer in two, one of them scaled": (
        "x = x + attn_a(norm(x)); x = x + 0.5*attn_a(norm(x)); x = x + ffn(norm(x))",
        "x = x + attn(norm(x)); x = x + attn(norm(x)); x = x + ffn(norm(x))",
    ),
    "the same, in the other order": (
        "x = x + 0.5*attn_a(norm(x)); x = x + attn_a(norm(x)); x = x + ffn(norm(x))",
        "x = x + attn(norm(x)); x = x + attn(norm(x)); x = x + ffn(norm(x))",
    ),
    "shared factors in two": ("rezero", "skipinit"),
    "new sub-layers that add nothing": ("sandwich-order", "input-norm"),
    "a new sub-layer with an output norm": ("ffn-only", "normformer"),
    "a learned vector before the products": ("x = x + attn(scale(norm(x))) + ffn(norm(x))", "parallel-two-norms"),
}
UP_TO_EPS = {
    "a norm does not see the size": ("post-norm", "deepnorm"),
    "and back": ("deepnorm", "post-norm"),
    "a norm of a normed value": ("post-norm", "x = norm(norm(x + attn(x))); x = norm(x + ffn(x))"),
    "a second final norm": ("bert", BERT_NORMED),
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rmsnorm, swiglu, no biases": {
        "norm": "rmsnorm", "hidden_act": "swiglu", "attention_bias": False, "mlp_bias": False, "num_key_value_heads": 2,
        "qk_norm": True, "position_embedding": "rotary",
    },
    "norms that multiply by 1 + weight": {"norm": "rmsnorm", "norm_zero_centred": True},
    "norms without bias": {"norm_bias": False, "tie_word_embeddings": False},
    "norms without weights": {"norm_affine": False},
}  # fmt: skip


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model(tokens())[0]
    return output


def accounted(old: SublayerPreTrainedModel, conversion: Conversion) -> None:
    """Each parameter stands once in the account of its side, and the two accounts agree."""
    new = dict(conversion.model.named_parameters())
    assert [t.name for t in conversion.targets] == list(new)
    assert [s.name for s in conversion.sources] == [name for name, _ in old.named_parameters()]
    assert all(t.count == new[t.name].numel() for t in conversion.targets)
    given = {s.name: s for s in conversion.sources}
    for target in conversion.targets:
        assert bool(target.sources) is (target.how != "new")
        assert all(target.name in given[source].targets for source in target.sources)
    for source in conversion.sources:
        assert bool(source.targets) is (source.how != "dropped")
        kept = [t for t in conversion.targets if t.how == "kept" and t.sources == (source.name,)]
        assert bool(kept) is (source.how == "kept")
        for target in kept:
            assert torch.equal(new[target.name], old.get_parameter(source.name))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("pair", EXACT)
def test_exact_conversions_are_proved_and_give_equal_logits(pair: str, variant: str) -> None:
    before, after = EXACT[pair]
    old = tiny(before, num_hidden_layers=4, **VARIANTS[variant])
    found = rewire(old, parse(after), batches=tokens())
    assert found.exact
    assert found.verdict.startswith("exact (another equation")
    assert same(logits(found.model), logits(old))
    assert found.change is not None
    assert found.change.output < 1e-5
    accounted(old, found)
    moved = rewire(old, parse(after), consume=True)
    assert moved.targets == found.targets
    assert moved.sources == found.sources
    for name, value in moved.model.state_dict().items():
        assert torch.equal(value, found.model.state_dict()[name]), name
    memory = [p.data_ptr() for p in moved.model.parameters()]
    assert len(set(memory)) == len(memory)


@pytest.mark.parametrize("pair", UP_TO_EPS)
def test_conversions_that_only_the_eps_tells_apart(pair: str) -> None:
    before, after = UP_TO_EPS[pair]
    far = rewire(tiny(before), parse(after))
    assert far.proof == "up to eps"
    assert far.verdict.startswith("exact but for the norms' eps")
    old = tiny(before, norm_eps=1e-12)
    near = rewire(old, parse(after))
    assert same(logits(near.model), logits(old))
    difference = (logits(far.model) - logits(tiny(before))).abs().max()
    assert 0 < difference < 1e-3


Mutant = Callable[[Plan], None]


def _drop_fold(plan: Plan) -> None:
    place = next(p for p, made in plan.branches.items() if made.fold is not None)
    plan.branches[place] = replace(plan.branches[place], fold=None)


def _drop_shift(plan: Plan) -> None:
    place = next(p for p, made in plan.branches.items() if made.fold is not None)
    plan.branches[place] = replace(plan.branches[place], shift=Factor(0.0))


def _wrong_out(plan: Plan) -> None:
    place = next(p for p, made in plan.branches.items() if made.source)
    plan.branches[place] = replace(plan.branches[place], out=plan.branches[place].out * Factor(1.01))


def _wrong_inside(plan: Plan) -> None:
    place = next(p for p, made in plan.branches.items() if made.source)
    plan.branches[place] = replace(plan.branches[place], inside=plan.branches[place].inside * Factor(1.01))


def _swap_norms(plan: Plan) -> None:
    (a, one), (b, two) = [item for item in plan.norms.items() if item[1].source][:2]
    plan.norms[a], plan.norms[b] = two, one


def _lose_norm(plan: Plan) -> None:
    plan.norms[next(p for p, made in plan.norms.items() if made.source)] = NormPlan()


def _swap_layers(plan: Plan) -> None:
    a, b = plan.branches["layers.0.attn"], plan.branches["layers.1.attn"]
    plan.branches["layers.0.attn"], plan.branches["layers.1.attn"] = b, a


@pytest.mark.parametrize(
    ("pair", "mutant"),
    [
        (("parallel-two-norms", "parallel-one-norm"), _drop_fold),
        (("parallel-two-norms", "parallel-one-norm"), _drop_shift),
        (("parallel-one-norm", "parallel-two-norms"), _swap_layers),
        (("granite", "input-norm"), _wrong_out),
        (("layerscale", "input-norm"), _wrong_out),
        (("layernorm-scaling", "input-norm"), _wrong_inside),
        (("bert", BERT_MOVED), _swap_norms),
        (("bert", BERT_MOVED), _lose_norm),
        (("post-norm", "post-norm"), _swap_norms),
    ],
)
def test_mutants_of_a_plan_are_neither_proved_nor_equal(pair: tuple[str, str], mutant: Mutant) -> None:
    old = tiny(pair[0], num_hidden_layers=4)
    design = parse(pair[1])
    before, after = (Network(d, 4, "layernorm") for d in (old.config.wiring, design))
    right, wrong = shell(old, str(design)), shell(old, str(design))
    plan = match(before, after, parameters(old).keys(), parameters(right).keys(), biased(old))
    assert prove(before, after, plan) == "exact"
    assemble(old, right, plan, "copy")
    assert same(logits(right), logits(old))
    mutant(plan)
    assert prove(before, after, plan) == "none"
    assemble(old, wrong, plan, "copy")
    assert not same(logits(wrong), logits(old), 1e-4)


def _catalogue() -> dict[str, Design]:
    found: dict[str, Design] = {}
    for entry in designs():
        found.setdefault(str(parse(entry.name)), parse(entry.name))
    return found


@pytest.mark.parametrize("start", range(4))
def test_every_design_of_the_catalogue_becomes_every_other(start: int) -> None:
    """A part of the pairs of each design, spread over the catalogue."""
    every = list(_catalogue().values())
    for i, before in enumerate(every[start::4]):
        old = tiny(str(before), num_hidden_layers=4, **SMALL)
        reference = logits(old)
        for after in [before, *every[(i + start) % 8 :: 8]]:
            found = rewire(old, after)
            accounted(old, found)
            new = logits(found.model)
            assert new.isfinite().all()
            if found.proof == "exact":
                assert same(new, reference), (before.name, after.name)
            if found.proof == "up to eps":
                assert same(new, reference, 1e-3), (before.name, after.name)
            if before == after:
                assert found.verdict == "exact (same equation)"
                assert torch.equal(new, reference)
                assert {t.how for t in found.targets} == {"kept"}
                assert all(t.name == t.sources[0] for t in found.targets)
            elif same(new, reference, 1e-6):
                assert found.proof != "none", f"{before.name} -> {after.name} is equal and was not proved"


def test_a_factor_on_a_norm_goes_into_its_weight_if_it_has_one() -> None:
    for affine, centred in ((True, False), (True, True), (False, False)):
        old = tiny("x = x + 0.5*norm(attn(x))", norm_affine=affine, norm_zero_centred=centred)
        found = rewire(old, "x = x + norm(attn(x))")
        assert found.exact is affine
        assert same(logits(found.model), logits(old)) is affine


def _readable(text: str) -> bool:
    try:
        parse(text)
    except DesignError:
        return False
    return True


@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@given(random_designs().filter(_readable), random_designs().filter(_readable))
def test_random_designs_convert(before: str, after: str) -> None:
    old = tiny(before, num_hidden_layers=2, **SMALL)
    reference = logits(old)
    unchanged = rewire(old, parse(before))
    assert unchanged.exact
    assert torch.equal(logits(unchanged.model), reference)
    found = rewire(old, parse(after))
    accounted(old, found)
    new = logits(found.model)
    assert new.isfinite().all()
    if found.exact:
        assert same(new, reference, 1e-4)


@pytest.mark.parametrize("kind", [SublayerModel, SublayerForMaskedLM, SublayerForSequenceClassification])
def test_every_kind_of_model_converts(kind: type) -> None:
    old = tiny("parallel-two-norms", kind, num_hidden_layers=2)
    found = rewire(old, "parallel-one-norm")
    assert type(found.model) is kind
    assert same(logits(found.model), logits(old))
    accounted(old, found)


def test_dtype_frozen_parameters_mode_and_generation_settings_are_kept() -> None:
    old = tiny("granite", SublayerForCausalLM).to(torch.bfloat16)
    old.model.embed_tokens.weight.requires_grad_(False)
    old.generation_config.max_new_tokens = 7
    new = rewire(old, "input-norm").model
    assert {p.dtype for p in new.parameters()} == {torch.bfloat16}
    assert [n for n, p in new.named_parameters() if not p.requires_grad] == ["model.embed_tokens.weight"]
    assert new.lm_head.weight is new.model.embed_tokens.weight
    assert new.generation_config.max_new_tokens == 7
    assert not new.training
    assert rewire(old.train(), "input-norm").model.training


def test_the_old_model_is_left_alone_or_emptied() -> None:
    old = tiny("parallel-two-norms")
    reference, state = logits(old), {k: v.clone() for k, v in old.state_dict().items()}
    found = rewire(old, "parallel-one-norm")
    with torch.no_grad():
        for parameter in found.model.parameters():
            parameter.zero_()
    assert all(torch.equal(v, state[k]) for k, v in old.state_dict().items())
    table = old.model.embed_tokens.weight.data_ptr()
    moved = rewire(old, "parallel-one-norm", consume=True).model
    assert moved.model.embed_tokens.weight.data_ptr() == table
    assert same(logits(moved), reference)
    assert sum(p.numel() for p in old.parameters()) == 0


def test_a_converted_model_trains_saves_and_loads(tmp_path: Any) -> None:
    new = rewire(tiny("post-norm"), "x = norm(x + attn(norm(x)) + ffn(scale(x)))").model
    new(tokens(), labels=tokens()).loss.backward()
    assert all(p.grad is not None for p in new.parameters())
    new.save_pretrained(tmp_path)
    assert same(logits(SublayerForCausalLM.from_pretrained(tmp_path)), logits(new))


def test_mistakes_say_what_to_do() -> None:
    old = tiny("post-norm")
    with pytest.raises(ConvertError, match="got Linear: read it with"):
        rewire(torch.nn.Linear(2, 2), "paf")  # type: ignore[arg-type]
    with pytest.raises(DesignError, match="unknown operator"):
        rewire(old, "x = x + atn(x)")
    with pytest.raises(ConvertError, match="does not fit the model's depth"):
        rewire(old, "block[:9]: x = x + attn(norm(x))\nblock[9:]: x = x + ffn(norm(x))")
    with pytest.raises(ConvertError, match=r"lie within 0\.\.2"):
        rewire(old, "paf", layers=[3])
