"""Branches that run together compute what they compute one by one: values and gradients, for every parallel design."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sublayer.model import SublayerForCausalLM, SublayerForMaskedLM, SublayerModel, fused
from tests.model.fused_support import DESIGNS, MADE, alike, close, gradients, groups, pair, products
from tests.model.support import randomise, tiny, tokens

EVERYWHERE: dict[str, int] = {}
FORMS = {"added": 10**9, "joined": 0}  # tokens from which the output weights are joined


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both forms of the output product, and the input product for few tokens too."""
    monkeypatch.setattr(fused, "JOINED", EVERYWHERE)
    monkeypatch.setattr(fused, "CONCATENATED", FORMS[request.param])
    return str(request.param)


@pytest.mark.parametrize("design", DESIGNS.values(), ids=DESIGNS)
def test_values_and_gradients_are_those_of_the_plain_equation(design: str, form: str) -> None:
    together, apart = pair(design)
    assert groups(together)
    assert not groups(apart)
    assert close(together(tokens()).logits, apart(tokens()).logits)
    assert alike(gradients(together), gradients(apart))


KINDS: dict[str, dict[str, Any]] = {
    "grouped queries, gated": {"num_key_value_heads": 2, "hidden_act": "swiglu"},
    "no biases": {"attention_bias": False, "mlp_bias": False},
    "bias on ffn alone": {"attention_bias": False},
    "bias on attn alone": {"mlp_bias": False, "hidden_act": "geglu"},
    "bias on q, k, v alone": {"attention_out_bias": False, "mlp_bias": False},
    "rotary, normed queries": {"position_embedding": "rotary", "qk_norm": True, "num_key_value_heads": 1},
    "wide heads": {"head_dim": 8, "intermediate_size": 20},
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("design", ["paf", MADE["factors"], MADE["two-results"]])
def test_with_every_kind_of_branch(design: str, kind: dict[str, Any], form: str) -> None:
    together, apart = pair(design, **kind)
    assert close(together(tokens()).logits, apart(tokens()).logits)
    assert alike(gradients(together), gradients(apart))


BRANCHES = [
    "attn(h)",
    "ffn(h)",
    "attn(g)",
    "ffn(g)",
    "attn_a(h)",
    "attn_a(g)",
    "ffn_b(h)",
    "ffn_b(x)",
    "attn(x)",
    "ffn(x)",
]
AROUND = ["{}", "{}", "{}", "0.5*{}", "{}/sqrt(layer)", "norm({})", "scale({})"]


@st.composite
def parallel_designs(draw: st.DrawFn) -> str:
    lines = ["h = norm(x)", "g = rmsnorm(x)"]
    for _ in range(draw(st.integers(1, 2))):
        branches = draw(st.lists(st.sampled_from(BRANCHES), min_size=2, max_size=4))
        terms = [draw(st.sampled_from(AROUND)).format(branch) for branch in branches]
        total = f"x + {' + '.join(terms)}"
        lines.append(f"x = {draw(st.sampled_from(['', 'norm']))}({total})")
    return "; ".join(lines)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(parallel_designs(), st.integers(0, 99))
def test_random_parallel_designs(form: str, design: str, seed: int) -> None:
    together, apart = pair(
        design, seed=seed, num_hidden_layers=2, hidden_size=8, num_attention_heads=2, intermediate_size=12
    )
    assert close(together(tokens()).logits, apart(tokens()).logits)
    assert alike(gradients(together), gradients(apart))


def test_one_input_and_one_output_product_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 x 72 is q, k, v and up (3*16 + 24); 40 x 16 is W_o beside W_2. No multiplication is for nothing."""
    ids = tokens(20, 60)  # 1200 tokens: above both limits
    together, apart = pair("paf", vocab_size=29)
    found, plain = products(together, ids), products(apart, ids)
    head = {(16, 29): 1}
    assert found.shapes == {(16, 72): 3, (40, 16): 3, **head}
    assert plain.shapes == {(16, 16): 3 * 4, (16, 24): 3, (24, 16): 3, **head}
    assert found.copied - plain.copied == 3 * (40 * 16)  # the output weights, and no more: the input's lie together
    monkeypatch.setattr(fused, "CONCATENATED", 10**9)
    found = products(together, ids)
    assert found.shapes == {(16, 72): 3, (16, 16): 3, (24, 16): 3, **head}
    assert found.copied == plain.copied


def test_for_few_tokens_on_a_cpu_the_inputs_run_apart() -> None:
    together, _ = pair("paf")
    few, many = products(together, tokens(1, 5)), products(together, tokens(8, 32))
    assert (few.shapes[16, 72], few.shapes[16, 24]) == (0, 3)
    assert (many.shapes[16, 72], many.shapes[16, 24]) == (3, 0)
    assert few.copied == many.copied


def swapped(joined: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(self: Any, i: int, linears: list[Any], value: Tensor) -> Any:
        weight, bias = joined(self, i, linears, value)
        return weight.flip(0), bias

    return wrong


def without_bias(output: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(branches: list[Any], inner: list[Tensor], numbers: list[Any]) -> Tensor:
        first = next((b.last for b in branches if b.last.bias is not None), None)
        result: Tensor = output(branches, inner, numbers)
        return result if first is None else result - first.bias

    return wrong


def without_factors(output: Callable[..., Any]) -> Callable[..., Any]:
    return lambda branches, inner, numbers: output(branches, inner, [1] * len(numbers))


def no_gradient_of_one(backward: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(ctx: Any, *grads: Tensor) -> Any:
        whole, first, *rest = backward(ctx, *grads)
        return whole, 0 * first, *rest

    return wrong


@pytest.mark.parametrize(
    ("owner", "name", "mutant", "values"),
    [
        (fused.Together, "_joined", swapped, True),
        (fused, "_output", without_bias, True),
        (fused, "_output", without_factors, True),
        (fused.SideBySide, "backward", no_gradient_of_one, False),
    ],
)
def test_mutants_are_told_apart(
    owner: Any, name: str, mutant: Callable[..., Any], values: bool, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    together, apart = pair(MADE["factors"])
    changed = mutant(getattr(owner, name))
    monkeypatch.setattr(owner, name, staticmethod(changed) if owner is fused.SideBySide else changed)
    assert close(together(tokens()).logits, apart(tokens()).logits) is not values
    assert not alike(gradients(together), gradients(apart))


@pytest.mark.parametrize("kind", [SublayerForCausalLM, SublayerForMaskedLM])
@pytest.mark.parametrize("design", ["paf", "parallel-one-norm", MADE["two-results"]])
def test_with_padding(design: str, kind: type, form: str) -> None:
    together, apart = pair(design, kind)
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[0, :3] = 0
    inputs = {"input_ids": tokens(), "attention_mask": mask}
    found, plain = together(**inputs).logits, apart(**inputs).logits
    assert close(found[mask.bool()], plain[mask.bool()])
    assert not close(found[mask.bool()], together(tokens()).logits[mask.bool()])  # the mask is not ignored
    labels = tokens().masked_fill(mask == 0, -100)
    assert alike(gradients(together, labels=labels, **inputs), gradients(apart, labels=labels, **inputs))


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("design", ["paf", "parallel-two-norms", MADE["two-inputs"], MADE["shared-site"]])
def test_generation_with_a_cache(design: str, cache: str, form: str) -> None:
    together, apart = pair(design, num_key_value_heads=2)
    together.generation_config.disable_compile = True
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    expected = apart.generate(tokens(), **options)
    assert torch.equal(together.generate(tokens(), cache_implementation=cache, **options), expected)
    # What was fused so far and what comes one by one, as under a limit of tokens or a probe, share one cache.
    past = together(tokens(), use_cache=True).past_key_values
    with together.model.layers[1].tapped(lambda name, value: value):
        step = together(tokens(2, 1, seed=4), past_key_values=past, use_cache=True).logits
    assert close(step[:, 0], apart(torch.cat([tokens(), tokens(2, 1, seed=4)], 1)).logits[:, -1], tolerance=1e-4)


def test_dropout_is_drawn_on_each_branch(form: str) -> None:
    """In training with dropout the output runs unfused, with the random numbers of the plain equation."""
    rates = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.2}
    together, apart = pair("paf", attn_implementation="eager", **rates)
    together.train(), apart.train()

    def seeded(model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
        torch.manual_seed(7)
        logits = model(tokens()).logits
        torch.manual_seed(7)
        return logits, gradients(model)

    (found, slopes), (plain, expected) = seeded(together), seeded(apart)
    assert close(found, plain)
    assert alike(slopes, expected)
    # The input product needs no dropout and stays one; without dropout, the output product is one again.
    assert products(together, tokens()).shapes[16, 72] == 3
    assert products(together, tokens()).shapes[40, 16] == 0
    together.eval(), apart.eval()
    assert products(together, tokens()).shapes[40, 16] == (3 if form == "joined" else 0)
    assert close(together(tokens()).logits, apart(tokens()).logits)


def test_in_bfloat16(form: str) -> None:
    together, apart = (model.bfloat16() for model in pair("paf"))
    exact = tiny("paf")(tokens()).logits
    error = (together(tokens()).logits.float() - exact).abs().max()
    plain = (apart(tokens()).logits.float() - exact).abs().max()
    assert together(tokens()).logits.dtype == torch.bfloat16
    assert error < 2 * plain + 1e-3
    assert products(together, tokens()).shapes[16, 72] == 3


def test_under_autocast(form: str) -> None:
    together, apart = pair("paf")
    exact, right = apart(tokens()).logits, gradients(apart)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, plain = together(tokens()).logits, apart(tokens()).logits
        slopes = gradients(together)
    assert (found - exact).abs().max() < 2 * (plain - exact).abs().max() + 1e-3
    assert all(close(slopes[name], right[name], scale=1.0, tolerance=0.05) for name in right)


def test_a_second_derivative(form: str) -> None:
    def curvature(model: nn.Module) -> dict[str, Tensor]:
        embeddings = model.embed_tokens(tokens()).detach().requires_grad_()
        out = model(inputs_embeds=embeddings).last_hidden_state
        (slope,) = torch.autograd.grad(out.pow(3).sum(), embeddings, create_graph=True)
        names = [n for n, _ in model.named_parameters() if "layers" in n and not n.endswith("k_proj.bias")]
        parameters = dict(model.named_parameters())
        return dict(zip(names, torch.autograd.grad(slope.pow(2).sum(), [parameters[n] for n in names]), strict=True))

    together, apart = pair("paf", SublayerModel, attn_implementation="eager", num_hidden_layers=1)
    assert alike(curvature(together), curvature(apart))


def test_under_functional_transforms(form: str) -> None:
    together, apart = pair("paf", SublayerModel, attn_implementation="eager", num_hidden_layers=1)

    def loss(model: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda row: model(inputs_embeds=row[None], use_cache=False).last_hidden_state.pow(2).sum()

    rows = torch.randn(1, 5, 16)[0]
    assert close(torch.func.grad(loss(together))(rows), torch.func.grad(loss(apart))(rows))
    given = {name: p.detach() * 1.5 for name, p in together.named_parameters()}

    def by_parameters(model: nn.Module) -> Callable[[dict[str, Tensor]], Tensor]:
        run = {"inputs_embeds": rows[None], "use_cache": False}
        return lambda weights: torch.func.functional_call(model, weights, (), run).last_hidden_state.pow(3).sum()

    assert alike(torch.func.grad(by_parameters(together))(given), torch.func.grad(by_parameters(apart))(given))


def test_frozen_parts_stay_frozen(form: str) -> None:
    together, apart = pair("paf")
    for model in (together, apart):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("v_proj" in name or "down" in name)
        model.zero_grad()
        model(tokens(), labels=tokens()).loss.backward()
    left, right = ({n: p.grad for n, p in m.named_parameters() if p.grad is not None} for m in (together, apart))
    assert set(right) == {n for n, _ in apart.named_parameters() if "v_proj" in n or "down" in n}
    assert alike(left, right)


def test_training_ends_at_the_same_weights(form: str) -> None:
    together, apart = pair("parallel-one-norm")
    for model in (together, apart):
        randomise(model, seed=3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for step in range(5):
            optimizer.zero_grad()
            model(tokens(seed=step), labels=tokens(seed=step)).loss.backward()
            optimizer.step()
    left, right = together.state_dict(), apart.state_dict()
    assert all(close(left[name], right[name], scale=1.0, tolerance=1e-4) for name in right)
    assert all(together.wholes for together in groups(together))  # steps in place leave the weights where they are
