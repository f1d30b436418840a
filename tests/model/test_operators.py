"""Each operator against its formula."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import masking_utils
from transformers.integrations import flex_attention as flex

from sublayer.model import SublayerModel
from sublayer.model.attention import DotAttention, SelfAttention
from sublayer.model.config import HIDDEN_ACTS, NORMS
from sublayer.model.context import Context
from sublayer.model.ffn import ACTIVATIONS, FeedForward
from sublayer.model.masks import build_masks
from sublayer.model.norms import build_norm
from sublayer.model.positions import RotaryAngles, rotate, token_positions
from tests.model.support import randomise, same, tiny, tiny_config, tokens


def hidden_states(batch: int = 2, length: int = 5, width: int = 16) -> Tensor:
    return torch.randn(batch, length, width, generator=torch.Generator().manual_seed(3))


def test_norms_follow_their_formulas() -> None:
    h = hidden_states()
    layernorm, rmsnorm, dyt = (build_norm(kind, 16, 1e-5) for kind in NORMS)
    for module in (layernorm, rmsnorm, dyt):
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter)
    mean, variance = h.mean(-1, keepdim=True), h.var(-1, keepdim=True, unbiased=False)
    assert same(layernorm(h), layernorm.weight * (h - mean) / torch.sqrt(variance + 1e-5) + layernorm.bias)
    assert same(rmsnorm(h), rmsnorm.weight * h / torch.sqrt((h**2).mean(-1, keepdim=True) + 1e-5))
    assert same(dyt(h), dyt.weight * torch.tanh(dyt.alpha * h) + dyt.bias)
    with pytest.raises(ValueError, match=r"batchnorm.*layernorm, rmsnorm or dyt"):
        build_norm("batchnorm", 16, 1e-5)


@pytest.mark.parametrize("eps", [1e-12, 1.0])
def test_eps_reaches_the_norms(eps: float) -> None:
    model = tiny("x = layernorm(x + rmsnorm(ffn(x)))", norm_eps=eps)
    norms = [m for m in model.modules() if hasattr(m, "eps")]
    assert len(norms) == 6
    assert {m.eps for m in norms} == {eps}


@pytest.mark.parametrize("act", HIDDEN_ACTS)
def test_ffn_follows_its_formula(act: str) -> None:
    ffn = FeedForward(tiny_config("input-norm", hidden_act=act))
    randomise(ffn)
    h = hidden_states()
    plain = {
        "relu": torch.relu,
        "silu": lambda v: v * torch.sigmoid(v),
        "gelu": lambda v: v * 0.5 * (1 + torch.erf(v / math.sqrt(2))),
        "gelu_pytorch_tanh": lambda v: 0.5 * v * (1 + torch.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))),
    }
    gates = {"reglu": "relu", "geglu": "gelu", "swiglu": "silu"}
    up = h @ ffn.up_proj.weight.T + ffn.up_proj.bias
    if act in gates:
        assert ffn.gate_proj is not None
        inner = plain[gates[act]](h @ ffn.gate_proj.weight.T + ffn.gate_proj.bias) * up
    else:
        assert ffn.gate_proj is None
        inner = plain[act](up)
    assert same(ffn(h), inner @ ffn.down_proj.weight.T + ffn.down_proj.bias)


def test_every_activation_that_a_config_accepts_exists() -> None:
    assert set(ACTIVATIONS) == set(HIDDEN_ACTS)


def test_biases_can_be_left_out() -> None:
    model = tiny("input-norm", attention_bias=False, mlp_bias=False)
    assert not [n for n, _ in model.named_parameters() if n.endswith("proj.bias")]
    assert [n for n, _ in tiny("input-norm").named_parameters() if n.endswith("proj.bias")]


def test_grouped_query_attention_shares_keys_and_values() -> None:
    """Two key-value heads for four query heads equal four of which each pair is the same."""
    grouped = tiny("input-norm", SublayerModel, num_key_value_heads=2)
    full = tiny("input-norm", SublayerModel)
    state = grouped.state_dict()
    for name, value in list(state.items()):
        if ".k_proj." in name or ".v_proj." in name:
            heads = value.view(2, 4, *value.shape[1:])  # [kv_heads, head_dim, ...]
            state[name] = heads.repeat_interleave(2, dim=0).reshape(16, *value.shape[1:])
    full.load_state_dict(state)
    for backend in ("sdpa", "eager"):
        grouped.set_attn_implementation(backend)
        assert same(grouped(tokens()).last_hidden_state, full(tokens()).last_hidden_state)


def test_head_dim_may_differ_from_hidden_size_over_heads() -> None:
    model = tiny("input-norm", SublayerModel, num_attention_heads=3, head_dim=10)
    assert model.layers[0].attn.q_proj.weight.shape == (30, 16)
    assert model(tokens()).last_hidden_state.shape == (2, 7, 16)


def test_qk_norm_makes_the_scale_of_queries_and_keys_irrelevant() -> None:
    model = tiny("input-norm", SublayerModel, qk_norm=True, attention_bias=False, norm_eps=1e-12)
    before = model(tokens()).last_hidden_state
    with torch.no_grad():
        for block in model.layers:
            block.attn.q_proj.weight.mul_(3.0)
            block.attn.k_proj.weight.mul_(0.2)
    assert same(model(tokens()).last_hidden_state, before)
    assert model.layers[0].attn.q_norm.weight.shape == (4,)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("design", ["input-norm", "x = x + dot(norm(x)) + attn(x)"])
def test_eager_and_sdpa_agree_also_with_padding(design: str, causal: bool) -> None:
    model = tiny(design, SublayerModel, causal=causal)
    ids, mask = tokens(), torch.ones(2, 7, dtype=torch.long)
    mask[0, :2] = 0
    mask[1, 5:] = 0
    results = []
    for backend in ("sdpa", "eager"):
        model.set_attn_implementation(backend)
        results.append(model(ids, attention_mask=mask).last_hidden_state[mask.bool()])
    assert same(*results)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("causal", [True, False])
def test_flex_and_sdpa_agree_also_with_padding_and_packing(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flex attention as it is written, without the minutes that compiling its kernels takes on a CPU."""
    make_mask = masking_utils.create_block_mask
    monkeypatch.setattr(masking_utils, "create_block_mask", lambda **k: make_mask(**{**k, "_compile": False}))
    monkeypatch.setattr(flex, "WrappedFlexAttention", lambda training: lambda: flex.flex_attention)
    model = tiny("x = x + attn(norm(x)) + dot(x)", SublayerModel, causal=causal, num_key_value_heads=2)
    model.requires_grad_(False)  # flex has no backward pass on a CPU
    padding = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 2, 2, 2]])
    for inputs in ({}, {"attention_mask": padding}, {"sequence_ids": documents}):
        results = []
        for backend in ("sdpa", "flex_attention"):
            model.set_attn_implementation(backend)
            results.append(model(tokens(), **inputs).last_hidden_state[padding.bool()])
        assert same(*results)


def rotary_table(positions: torch.Tensor, theta: float) -> tuple[torch.Tensor, torch.Tensor]:
    config = tiny_config("input-norm", position_embedding="rotary", head_dim=8, rope_theta=theta)
    return RotaryAngles(config, None).table(positions, torch.float32)


def test_rotary_turns_pairs_of_channels_as_complex_numbers() -> None:
    positions = torch.tensor([[0, 1, 5, 40]])
    heads = hidden_states(4, 12, 8).reshape(1, 12, 4, 8)
    cos, sin = rotary_table(positions, 100.0)
    pairs = torch.complex(heads[..., :4], heads[..., 4:])
    angles = positions[0, :, None] * 100.0 ** (-torch.arange(4) / 4)
    turned = pairs * torch.polar(torch.ones_like(angles), angles)
    assert same(rotate(heads, cos, sin), torch.cat((turned.real, turned.imag), -1))


def test_rotary_scores_depend_on_distance_only() -> None:
    q, k = hidden_states(1, 1, 8)[None], hidden_states(1, 2, 8)[None, :, 1:]

    def score(i: int, j: int) -> float:
        turned = [rotate(v, *rotary_table(torch.tensor([[p]]), 1e4)) for v, p in ((q, i), (k, j))]
        return (turned[0] * turned[1]).sum().item()

    assert math.isclose(score(3, 1), score(30, 28), rel_tol=1e-4)
    assert not math.isclose(score(3, 1), score(3, 2), rel_tol=1e-2)


def test_rotary_theta_is_used() -> None:
    left, right = (tiny("input-norm", position_embedding="rotary", rope_theta=t) for t in (1e4, 10.0))
    assert not same(left(tokens()).logits, right(tokens()).logits, 1e-3)


@pytest.mark.parametrize("position_embedding", ["learned", "rotary", "none"])
def test_positions_matter_unless_there_are_none(position_embedding: str) -> None:
    """A bidirectional model without positions does not see the order of the tokens."""
    model = tiny("input-norm", SublayerModel, causal=False, position_embedding=position_embedding)
    ids, order = tokens(), torch.tensor([3, 0, 6, 1, 5, 2, 4])
    plain, shuffled = model(ids).last_hidden_state, model(ids[:, order]).last_hidden_state
    assert same(plain[:, order], shuffled) is (position_embedding == "none")


def test_padding_on_the_left_moves_no_position() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    assert token_positions(torch.zeros(2, 5, 4), mask, 0)[mask.bool()].tolist() == [0, 1, 2, 0, 1, 2]
    assert token_positions(torch.zeros(2, 1, 4), mask, 4).tolist() == [[2], [2]]
    assert token_positions(torch.zeros(2, 2, 4), None, 4).tolist() == [[4, 5]]


@pytest.mark.parametrize("design", ["input-norm", "x = x + dot(norm(x))"])
def test_a_padded_row_gives_what_the_unpadded_one_gives(design: str) -> None:
    model, ids = tiny(design, SublayerModel), tokens(1, 4)
    padded = torch.cat((torch.zeros(1, 3, dtype=torch.long), ids), 1)
    mask = (torch.arange(7) >= 3).long()[None]
    assert same(model(padded, attention_mask=mask).last_hidden_state[:, 3:], model(ids).last_hidden_state)


def test_dropout_is_where_bert_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the embed section, on attention probabilities, on the outputs of attn and ffn; nowhere in eval mode."""
    model = tiny(
        "sandwich", SublayerModel, num_hidden_layers=1, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.2
    )
    model.set_attn_implementation("eager")
    seen: list[float] = []

    def record(value: Tensor, p: float, training: bool = True, inplace: bool = False) -> Tensor:
        if training:
            seen.append(p)
        return value

    monkeypatch.setattr(F, "dropout", record)
    model(tokens())
    assert seen == []
    model.train()(tokens())
    assert seen == [0.3, 0.2, 0.3, 0.3]


def test_sdpa_drops_attention_probabilities_in_training_only() -> None:
    model = tiny("input-norm", SublayerModel, attention_probs_dropout_prob=0.5)
    once, again = model(tokens()).last_hidden_state, model(tokens()).last_hidden_state
    assert torch.equal(once, again)
    model.train()
    assert not torch.equal(model(tokens()).last_hidden_state, model(tokens()).last_hidden_state)


def test_streams_that_start_equal_are_dropped_alike() -> None:
    """ResiDual carries the embedding twice; dropout must not make two embeddings of it."""
    design = "embed: x = e; r = e\nblock: x = x; r = r\nfinal: x = x - r"
    model = tiny(design, SublayerModel, hidden_dropout_prob=0.5).train()
    assert model(tokens()).last_hidden_state.abs().max() == 0


def test_a_block_may_read_the_embedding() -> None:
    model = tiny("block: x = x + e\nfinal: x = x", SublayerModel, num_hidden_layers=3, position_embedding="none")
    assert same(model(tokens()).last_hidden_state, 4 * model.embed_tokens(tokens()))


def test_stop_lets_nothing_back() -> None:
    model = tiny("block: x = stop(x) + ffn(stop(x))\nfinal: x = x", SublayerModel, num_hidden_layers=1)
    model(tokens()).last_hidden_state.sum().backward()
    assert model.embed_tokens.weight.grad is None
    assert model.layers[0].ffn.up_proj.weight.grad.abs().max() > 0


@pytest.mark.parametrize("kind", [SelfAttention, DotAttention])
def test_attention_keeps_the_shape_of_its_input(kind: type) -> None:
    config = tiny_config("x = x + attn(x) + dot(x)")
    config._attn_implementation = "sdpa"
    h = hidden_states()
    context = Context(build_masks(config, frozenset({"attn", "dot"}), h, None, None, None))
    assert kind(config)(h, context).shape == h.shape
