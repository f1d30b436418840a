"""The settings that families brought, where no family tries them: other caches, packed documents, fresh weights."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sublayer.cost import CostError, cost
from sublayer.hf import load
from sublayer.model import SublayerConfig, SublayerForCausalLM, SublayerForMaskedLM, SublayerForSequenceClassification
from sublayer.model.config_rules import activations
from tests.model.support import same, tiny, tokens

MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
SETTINGS: dict[str, dict[str, Any]] = {
    "windows": {"position_embedding": "rotary", "sliding_window": 4, "layer_types": MIXED},
    "window-everywhere": {"position_embedding": "rotary", "sliding_window": 4},
    "alibi": {"position_embedding": "alibi"},
    "sinusoidal": {"position_embedding": "sinusoidal"},
    "offset": {"position_offset": 2, "position_counting": "row"},
    "softcap": {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "narrow": {"embedding_size": 12, "embedding_norm": True, "lm_head_dense": True, "lm_head_norm": True,
               "lm_head_act": "gelu", "lm_head_bias": True},
    "projected-tokens": {"embedding_size": 12, "embedding_projection": "tokens", "lm_head_dense": True},
    "types": {"type_vocab_size": 3},
    "qk-heads": {"qk_norm": "heads", "qk_norm_kind": "layernorm", "qk_norm_bias": True},
    "qk-full": {"qk_norm": "full", "norm_zero_centred": True, "norm": "rmsnorm"},
    "no-affine": {"norm_affine": False},
    "no-bias": {"norm_bias": False, "attention_out_bias": False},
    "partial": {"position_embedding": "rotary", "rotary_layers": [True, False, True],
                "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}},
    "gated": {"hidden_act": "gelu_new", "gated_mlp": True},
    "scaled": {"attention_scale": [0.1, 0.5, 1.0], "embedding_multiplier": 3.0, "logits_scale": 0.5, "clip_qkv": 0.7},
}  # fmt: skip


@torch.no_grad()
def logits(model: Any, ids: Tensor, **more: Any) -> Tensor:
    result: Tensor = model(ids, **more).logits
    return result


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("design", ["input-norm", "post-norm"])
def test_fresh_models_train_save_generate_and_are_counted(name: str, design: str, tmp_path: Any) -> None:
    model = tiny(design, **SETTINGS[name])
    ids = tokens()
    assert not same(logits(model, ids), logits(tiny(design), ids), 1e-3) if name != "types" else True
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(SublayerForCausalLM.from_pretrained(tmp_path).eval(), ids), logits(model, ids))
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    want = model.generate(ids, **options, use_cache=False)
    assert torch.equal(model.generate(ids, **options), want)
    assert torch.equal(model.generate(ids, **options, cache_implementation="static", disable_compile=True), want)
    assert cost(model.config).parameters == sum(p.numel() for p in model.parameters())
    loss = model.train()(ids, labels=ids).loss
    loss.backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert all(n.endswith("k_proj.bias") for n in still), still  # softmax does not see what all keys have in common
    # Fresh weights: norms start as norms, whatever is added to their weight.
    fresh = SublayerForCausalLM(model.config)
    for module in fresh.modules():
        weight = getattr(module, "weight", None)
        if weight is not None and type(module).__name__.endswith("Norm"):
            assert torch.equal(weight + getattr(module, "zero_centred", False), torch.ones_like(weight))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_packed_documents_see_their_own_window(causal: bool, implementation: str) -> None:
    kind: Any = SublayerForCausalLM if causal else SublayerForMaskedLM
    model = tiny("input-norm", kind, **SETTINGS["windows"])
    model.set_attn_implementation(implementation)
    first, second = tokens(1, 9, seed=1), tokens(1, 8, seed=2)
    documents = torch.tensor([[0] * 9 + [1] * 8])
    packed = logits(model, torch.cat((first, second), dim=1), sequence_ids=documents)
    assert same(packed[:, :9], logits(model, first))
    assert same(packed[:, 9:], logits(model, second))


def test_a_window_is_as_wide_as_it_says() -> None:
    model = tiny("input-norm", num_hidden_layers=1, position_embedding="none", sliding_window=4)
    ids = tokens(1, 12)
    other = ids.clone()
    other[0, 3] = (other[0, 3] + 1) % 28 + 1
    moved = (logits(model, ids) - logits(model, other)).abs().amax(dim=-1)[0] > 1e-6
    assert moved.tolist() == [3 <= i <= 6 for i in range(12)]  # the token itself and the next three
    both = tiny("input-norm", SublayerForMaskedLM, num_hidden_layers=1, position_embedding="none", sliding_window=4)
    moved = (logits(both, ids) - logits(both, other)).abs().amax(dim=-1)[0] > 1e-6
    assert moved.tolist() == [i <= 7 for i in range(12)]  # four to each side


def test_alibi_prefers_what_is_near() -> None:
    from sublayer.model.positions import alibi_bias, alibi_slopes

    assert alibi_slopes(8) == [2.0**-i for i in range(1, 9)]
    assert alibi_slopes(3) == [2.0**-4, 2.0**-8, 2.0**-2]
    config = SublayerConfig(num_attention_heads=2, hidden_size=8, position_embedding="alibi", alibi_scale=0.5)
    bias = alibi_bias(torch.tensor([[0, 1, 2]]), config)
    assert bias[0, :, 0].tolist() == [[0.0, 2.0**-5, 2.0**-4], [0.0, 2.0**-9, 2.0**-8]]


def test_a_mixed_cache_serves_designs_with_more_or_other_attention() -> None:
    """Two attentions a layer, or ``dot`` beside a window: every call has an entry of its own length."""
    for design in (
        "x = x + attn(norm(x)); x = x + attn(norm(x)) + ffn(x)",
        "x = x + attn(norm(x)); x = x + dot(norm(x))",
    ):
        model = tiny(design, **SETTINGS["windows"])
        ids = tokens(2, 9)
        options = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0}
        assert torch.equal(model.generate(ids, **options), model.generate(ids, **options, use_cache=False))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer_types": ["full_attention"]}, "layer_types has 1 entries for 3 layers"),
        ({"layer_types": ["near"] * 3}, r"layer_types has 'near'"),
        ({"layer_types": MIXED}, "sliding_window is None: say how many"),
        ({"sliding_window": 4, "position_embedding": "alibi"}, "with position_embedding 'alibi' is not built"),
        ({"sliding_window": 0}, r"sliding_window \(0\) must be at least 1"),
        ({"position_counting": "pad"}, "which is None: give it"),
        ({"rope_parameters": {"rope_type": "yran"}}, r"rope_type 'yran' \(nearest: yarn\)"),
        ({"qk_norm": "heds"}, r"qk_norm \('heds'\) must be one of False, True, head, heads, full \(nearest: heads\)"),
        ({"lm_head_act": "swiglu"}, "has no second product"),
        ({"clip_qkv": 0.0}, r"clip_qkv \(0.0\) must be positive"),
        ({"type_vocab_size": -1}, r"type_vocab_size \(-1\) must be at least 0"),
        (
            {"design": "final: x = attn(x)\nblock: x = x + ffn(x)", "sliding_window": 3},
            "the final section has attention",
        ),
    ],
)
def test_broken_rules(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SublayerConfig(**{"num_hidden_layers": 3, "hidden_size": 16, "num_attention_heads": 4, **settings})


def test_a_narrow_table_needs_a_projection_before_the_output_layer() -> None:
    with pytest.raises(ValueError, match=r"embedding_size \(12\) differs from hidden_size \(16\).*lm_head_dense=True"):
        tiny("input-norm", embedding_size=12)
    model = tiny("input-norm", SublayerForSequenceClassification, embedding_size=12, num_labels=2)
    assert logits(model, tokens()).shape == (2, 2)


def test_costs_know_every_activation() -> None:
    for act in activations():
        config = SublayerConfig(hidden_act=act, hidden_size=16, num_attention_heads=4, num_hidden_layers=1)
        assert cost(config).parameters > 0
    with pytest.raises(CostError, match="hidden_act"):
        cost("input-norm", hidden_act="gloo")


@pytest.mark.parametrize("name", ["gemma3_text", "bloom", "opt-post-norm", "phi3-longrope"])
def test_one_graph_without_breaks(name: str) -> None:
    """`torch.compile` and `torch.export` take the whole model: no step looks at a number."""
    import tests.hf.support as families

    model = load(families.tiny(families.CASES[name]), verify=False, attn_implementation="sdpa")
    ids = families.tokens()
    want = logits(model, ids)
    torch.compiler.reset()
    assert same(logits(torch.compile(model, fullgraph=True, backend="eager"), ids), want)
    program = torch.export.export(model, (ids,), {"use_cache": False}, strict=False)
    assert same(logits(program.module(), ids, use_cache=False), want)
