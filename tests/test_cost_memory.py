"""Memory of a training step by formula against what torch allocates, event by event, and what autograd keeps."""

import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._C._profiler import _EventType

from sublayer.cost import cost
from sublayer.model import SublayerConfig, SublayerForCausalLM, SublayerForMaskedLM, SublayerModel

SIZES = {
    "vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 256,
    "max_position_embeddings": 512,
}  # fmt: skip
RESIDUAL = """
embed: x = e; r = e
block: a = attn(x); r = r + a; x = norm(x + a); f = ffn(x); r = r + f; x = norm(x + f)
final: x = x + norm(r)
"""
MACARON = "x = x + 0.5*ffn(norm(x)); x = x + scale(attn(norm(x))); x = x + 0.5*ffn(norm(x))"
DOT = "x = x + dot(norm(x)); x = x + ffn(norm(x))"
PAF = "x = norm(x + attn(x) + ffn(x))"
BERT = {
    "position_embedding": "learned", "type_vocab_size": 2, "hidden_dropout_prob": 0.1, "lm_head_dense": True,
    "lm_head_act": "gelu", "lm_head_norm": True, "lm_head_bias": True,
}  # fmt: skip
# name -> design, batch, seq, how it is run, sizes
STEPS: dict[str, tuple[str, int, int, dict[str, Any], dict[str, Any]]] = {
    "post-norm": ("post-norm", 4, 128, {}, {}),
    "untied": ("post-norm", 2, 64, {}, {"tie_word_embeddings": False, "vocab_size": 3000}),
    "tied, few tokens": ("input-norm", 1, 16, {}, {"vocab_size": 6000}),
    "no loss to speak of": ("input-norm", 4, 256, {}, {"vocab_size": 8}),
    "gated, grouped": ("input-norm", 4, 128, {}, {"norm": "rmsnorm", "hidden_act": "swiglu", "num_key_value_heads": 2}),
    "dyt, relu": ("sandwich", 4, 128, {}, {"norm": "dyt", "hidden_act": "relu"}),
    "qk-norm": ("output-norm", 4, 128, {}, {"qk_norm": True}),
    "bert": ("bert", 4, 128, {}, BERT),
    "attention dropout": ("post-norm", 2, 128, {}, {"attention_probs_dropout_prob": 0.1}),
    "eager": ("input-norm", 1, 512, {"attention": "eager"}, {}),
    "parallel, apart": (PAF, 1, 128, {}, {}),
    "parallel, together": (PAF, 8, 128, {}, {"vocab_size": 8}),
    "parallel, unfused": (PAF, 8, 128, {}, {"fuse_parallel": False}),
    "two streams": (RESIDUAL, 4, 128, {}, {}),
    "macaron": (MACARON, 4, 128, {}, {}),
    "dot": (DOT, 4, 128, {}, {}),
    "checkpointing": ("input-norm", 4, 256, {"checkpointing": True}, {"vocab_size": 8}),
    "checkpointing, two streams": (RESIDUAL, 4, 256, {"checkpointing": True}, {"vocab_size": 8}),
    "accumulation": ("input-norm", 1, 64, {"accumulation": 2}, {"vocab_size": 2000}),
    "packed": ("post-norm", 2, 256, {"packed": True}, {}),
    "mixed precision": ("post-norm", 2, 64, {"dtype": "bf16"}, {}),
    "mixed precision, checkpointing": ("input-norm", 2, 64, {"dtype": "bf16", "checkpointing": True}, {}),
}


def measured(design: str, batch: int, seq: int, how: dict[str, Any], sizes: dict[str, Any]) -> int:
    """The peak of a step, in bytes, with weights and moments, which stand before and after it."""
    config = SublayerConfig(design=design, init_seed=0, use_cache=False, **{**SIZES, **sizes})
    model = (SublayerForCausalLM if batch % 2 else SublayerForMaskedLM)(config).train()
    model.set_attn_implementation(how.get("attention", "sdpa"))
    if how.get("checkpointing"):
        model.activation_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.zeros(batch, seq, dtype=torch.long)
    documents = {"sequence_ids": (torch.arange(seq) // 37).expand(batch, -1)} if how.get("packed") else {}

    def step() -> None:
        for _ in range(how.get("accumulation", 1)):
            with torch.autocast("cpu", torch.bfloat16, enabled=how.get("dtype") == "bf16"):
                loss = model(input_ids=ids, labels=ids, **documents).loss
            loss.backward()
            del loss
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    step()
    gc.collect()  # memory of before that is let go during the step would be missing
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    waiting, events = list(profile.profiler.kineto_results.experimental_event_tree()), []
    while waiting:
        event = waiting.pop()
        waiting += event.children
        if event.tag == _EventType.Allocation:
            events.append((event.start_time_ns, event.extra_fields.alloc_size))
    now = most = 0
    for _, size in sorted(events, key=lambda event: event[0]):
        now += size
        most = max(most, now)
    return most + 12 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", STEPS)
def test_peak_of_a_step_is_what_torch_allocates(name: str) -> None:
    design, batch, seq, how, sizes = STEPS[name]
    found = measured(design, batch, seq, how, sizes)
    memory = cost(design, batch=batch, seq=seq, **how, **{**SIZES, **sizes}).memory
    assert memory.total == pytest.approx(found, rel=0.03)


def kept_bytes(model: nn.Module, ids: Tensor) -> int:
    """Bytes that autograd keeps between the passes, parameters and small tables left out, each storage once."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, tuple[Tensor, int]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and tensor.is_floating_point():
            kept[storage.data_ptr()] = (tensor, storage.nbytes())  # the tensor is held so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = model(input_ids=ids).last_hidden_state
    assert result.requires_grad
    return sum(size for _, size in kept.values())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("design", "options"),
    [
        ("post-norm", {}),
        ("post-norm", {"norm": "dyt", "hidden_act": "reglu"}),
        ("input-norm", {"qk_norm": True}),
        ("input-norm", {"hidden_act": "swiglu", "norm": "rmsnorm"}),
        ("sandwich", {"hidden_act": "relu"}),
        (PAF, {}),
        (PAF, {"fuse_parallel": False}),
        (PAF, {"position_embedding": "learned"}),
        (PAF, {"qk_norm": True}),
        (RESIDUAL, {"position_embedding": "learned"}),
    ],
)
def test_activations_are_what_autograd_keeps(design: str, options: dict[str, Any], attention: Any) -> None:
    config = SublayerConfig(design=design, causal=False, init_seed=0, **{**SIZES, **options})
    model = SublayerModel(config).train()
    model.set_attn_implementation(attention)
    kept = kept_bytes(model, torch.ones(4, 64, dtype=torch.long))
    estimate = cost(config, batch=4, seq=64, head="none", attention=attention).memory.activations
    assert estimate == pytest.approx(kept, rel=0.03)


def test_parts_and_the_whole() -> None:
    got = cost("input-norm", batch=2, seq=8, **SIZES)
    m = got.memory
    assert m.weights == m.gradients == 4 * got.parameters
    assert m.optimizer == 8 * got.parameters
    assert m.logits == 12 * 16 * 100
    assert m.weights + m.optimizer + m.gradients <= m.total
    assert m.total < m.weights + m.gradients + m.optimizer + m.activations + m.logits


def test_gradients_come_as_activations_go() -> None:
    """With many tokens the peak is at the loss, with few at the end, where the tables' gradients meet."""
    many, few = (cost("input-norm", batch=batch, seq=8, **SIZES).memory for batch in (512, 1))
    assert "loss" in many.moment
    assert "embedding" in few.moment
    longer = cost("input-norm", batch=2, seq=512, attention="eager", **SIZES).memory
    assert "layer 3, backwards" in longer.moment


def test_what_saves_memory_saves_it() -> None:
    plain = cost("post-norm", batch=8, seq=128, **SIZES).memory
    half = cost("post-norm", batch=8, seq=128, dtype="bf16", **SIZES).memory
    again = cost("post-norm", batch=8, seq=128, checkpointing=True, **SIZES).memory
    assert half.activations < 0.75 * plain.activations
    assert half.weights == plain.weights
    assert again.activations < 0.3 * plain.activations
    assert again.total < plain.total
    dropped = cost("post-norm", batch=8, seq=128, **SIZES, hidden_dropout_prob=0.1).memory
    byte = cost("post-norm", batch=8, seq=128, **SIZES, hidden_dropout_prob=0.1, device="cuda").memory
    masks = 8 * 128 * 64 * (1 + 2 * 3)  # after the embedding, and after each branch
    assert dropped.activations == plain.activations + 4 * masks
    assert byte.activations == plain.activations + masks
