"""Any design that can be written with these operators builds, runs, learns and generates."""

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sublayer.model import SublayerForCausalLM, SublayerForMaskedLM
from tests.model.support import same, tiny, tokens

SUBLAYERS = ["attn", "ffn", "dot", "attn_a", "ffn_b"]
AROUND = ["norm", "layernorm", "rmsnorm", "dyt", "scale", "gate", "norm_c"]
SCALARS = ["", "0.5*", "-", "1/sqrt(layer)*", "(2*depth)**0.25*"]


@st.composite
def branches(draw: st.DrawFn, streams: list[str]) -> str:
    """A sub-layer on a stream, with norms and factors inside and outside."""
    text = draw(st.sampled_from(streams))
    for pool in (AROUND, SUBLAYERS, AROUND):
        for operator in draw(st.lists(st.sampled_from(pool), max_size=1)):
            text = f"{operator}({text})"
    return f"{draw(st.sampled_from(SCALARS))}{text}".replace("*-", "*").replace("--", "-")


@st.composite
def blocks(draw: st.DrawFn, streams: list[str]) -> str:
    lines = []
    for _ in range(draw(st.integers(1, 3))):
        target = draw(st.sampled_from(streams))
        terms = [target, *draw(st.lists(branches(streams), min_size=1, max_size=2))]
        total = " + ".join(f"({t})" for t in terms)
        lines.append(f"{target} = {draw(st.sampled_from(['', '', 'norm', 'rmsnorm']))}({total})")
    return "; ".join(lines)


@st.composite
def random_designs(draw: st.DrawFn) -> str:
    streams = draw(st.sampled_from([["x"], ["x", "r"]]))
    embed = "embed: x = norm(e); r = e\n" if "r" in streams else ""
    final = "final: x = norm(x + r)" if "r" in streams else "final: x = norm(x)"
    if draw(st.booleans()):
        # Every range of a two-stream design must carry both streams on.
        body = f"block[:50%]: {draw(blocks(streams))}\nblock[50%:]: {draw(blocks(streams))}\n"
    else:
        body = f"block: {draw(blocks(streams))}\n"
    return embed + body + final


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(random_designs())
def test_random_designs_build_run_and_learn(design: str) -> None:
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 2, 2, 2]])
    for kind in (SublayerForCausalLM, SublayerForMaskedLM):
        model = tiny(design, kind, num_hidden_layers=2, hidden_size=8, num_attention_heads=2, intermediate_size=12)
        output = model(tokens(), labels=tokens(), sequence_ids=documents)
        assert output.loss.isfinite()
        output.loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, f"{name} is not used"
            assert parameter.grad.isfinite().all(), name


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(random_designs())
def test_random_designs_generate_the_same_with_a_cache(design: str) -> None:
    model = tiny(design, num_hidden_layers=2, hidden_size=8, num_attention_heads=2, intermediate_size=12)
    cache, steps = None, []
    for piece in tokens().split(3, dim=1):
        output = model(piece, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        steps.append(output.logits)
    assert same(torch.cat(steps, 1), model(tokens()).logits, 1e-4)
