"""The formulas against the models they describe: parameters and FLOPs to the last one, memory to a few per cent."""

import itertools
import json
import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import sublayer as sl
from sublayer.cost import Cost, Sizes, cost
from sublayer.model import (
    SublayerConfig,
    SublayerForCausalLM,
    SublayerForMaskedLM,
    SublayerForSequenceClassification,
    SublayerModel,
)

BASE = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 40,
    "max_position_embeddings": 32, "init_seed": 0,
}  # fmt: skip
RESIDUAL = """
embed: x = e; r = e
block: a = attn(x); r = r + a; x = norm(x + a); f = ffn(x); r = r + f; x = norm(x + f)
final: x = x + norm(r)
"""
MIXED = """
block[:25%]: x = norm(x + attn(x)); x = norm(x + ffn(x))
block[25%:]: x = x + attn(norm(x)); x = x + ffn(norm(x))
"""
MACARON = """
embed: x = scale(rmsnorm(e))
block: x = x + 0.5*ffn(norm(x)); x = x + gate(attn(norm(x))); x = x + 0.5*ffn(dyt(x))
"""
SHARED = "x = x + attn_a(norm_b(x)); x = x + attn_a(norm_b(x)); x = x + dot(stop(x))"
PAF = "x = norm(x + attn(x) + ffn(x))"
LATE = "block: x = x + ffn(norm(x))\nfinal: x = attn(norm(x))"
DESIGNS = ["post-norm", "input-norm", PAF, RESIDUAL, MIXED, MACARON, SHARED, LATE]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"hidden_act": "swiglu", "norm": "rmsnorm", "attention_bias": False, "mlp_bias": False},
    {"hidden_act": "relu", "norm": "dyt", "position_embedding": "learned", "tie_word_embeddings": False},
    {"num_key_value_heads": 2, "head_dim": 6, "qk_norm": True, "hidden_act": "reglu", "position_embedding": "none"},
]


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())  # tied tables are one parameter


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("options", OPTIONS)
def test_parameters_are_the_model_s(design: str, options: dict[str, Any]) -> None:
    config = SublayerConfig(design=design, **(BASE | options))
    with torch.device("meta"):
        model, head = SublayerModel(config), SublayerForCausalLM(config)
        score = SublayerForSequenceClassification(SublayerConfig(design=design, num_labels=3, **(BASE | options)))
    bare = cost(config, head="none")
    assert bare.parameters == count(model)
    assert cost(config, head=3).parameters == count(score)
    tied = 0 if config.tie_word_embeddings else 50 * 16
    assert cost(config).parameters == count(model) + tied  # on meta the head's table is not tied yet
    assert count(head) in (count(model) + tied, count(model) + 50 * 16)
    embedding = count(model.embed_tokens) + (count(model.embed_positions) if model.embed_positions is not None else 0)
    assert bare.embedding_parameters == embedding
    by_site: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        key = f"layers.{parts[2]}" if parts[0] == "layers" else ".".join(parts[: 2 if "section" in parts[0] else 1])
        by_site[key] = by_site.get(key, 0) + parameter.numel()
    assert bare.parameters_by_site == by_site
    assert cost(config.to_dict(), head="none") == bare
    sizes = {n: v for n, v in (BASE | options).items() if n != "init_seed"}
    assert cost(design, head="none", **sizes) == bare


def test_the_catalogue_too() -> None:
    built = 0
    for entry in sl.designs():
        try:
            config = SublayerConfig(design=entry.name, **BASE)
            with torch.device("meta"):
                model = SublayerModel(config)
        except sl.DesignError:
            with pytest.raises(sl.DesignError):
                cost(entry.name, num_hidden_layers=4, hidden_size=16, num_attention_heads=4)
            continue
        assert cost(config, head="none").parameters == count(model), entry.name
        built += 1
    assert built >= 30


def test_defaults_are_the_config_s() -> None:
    config = SublayerConfig()
    default = Sizes()
    for field in fields(Sizes):
        assert getattr(default, field.name) in (getattr(config, field.name), None), field.name
    assert cost("input-norm") == cost(config)
    assert cost(config).seq == 512


SHAPES = [(1, 8), (2, 16), (3, 5), (2, 31), (4, 1), (1, 32)]


@pytest.mark.parametrize(
    ("design", "options", "shape"),
    [(design, OPTIONS[i % 4], SHAPES[i % 6]) for i, design in enumerate(DESIGNS)]
    + [("input-norm", options, shape) for options, shape in itertools.product(OPTIONS, SHAPES[:2])],
)
def test_flops_are_the_counter_s(design: str, options: dict[str, Any], shape: tuple[int, int]) -> None:
    """torch's counter gives its scaled-dot-product kernels no FLOPs on a CPU, so the model runs on eager attention."""
    config = SublayerConfig(design=design, **(BASE | options))
    for head, build in (("lm", SublayerForCausalLM), ("lm", SublayerForMaskedLM), ("none", SublayerModel)):
        model = build(config)
        model.set_attn_implementation("eager")
        ids = torch.ones(shape, dtype=torch.long)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(input_ids=ids)
        batch, seq = shape
        got = cost(config, batch=batch, seq=seq, head=head)
        assert got.forward_flops == counter.get_total_flops()
        assert got.forward_flops == sum(got.flops_by_site.values())
        assert got.forward_flops_per_token * batch * seq == pytest.approx(counter.get_total_flops())


@pytest.mark.parametrize("design", [d for d in DESIGNS if "stop" not in d])
def test_training_is_three_forward_passes(design: str) -> None:
    config = SublayerConfig(design=design, **BASE)
    model = SublayerForMaskedLM(config)
    model.set_attn_implementation("eager")
    ids = torch.ones(2, 9, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    assert cost(config, batch=2, seq=9).training_flops == counter.get_total_flops()


def test_flops_of_a_classifier() -> None:
    config = SublayerConfig(design="post-norm", num_labels=3, causal=False, **BASE)
    model = SublayerForSequenceClassification(config)
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.ones(2, 9, dtype=torch.long))
    assert cost(config, batch=2, seq=9, head=3).forward_flops == counter.get_total_flops()


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
    sizes = BASE | {"hidden_size": 64, "intermediate_size": 256, "max_position_embeddings": 64} | options
    config = SublayerConfig(design=design, causal=False, **sizes)
    model = SublayerModel(config).train()
    model.set_attn_implementation(attention)
    kept = kept_bytes(model, torch.ones(4, 64, dtype=torch.long))
    estimate = cost(config, batch=4, seq=64, head="none", attention=attention).memory.activations
    # with QK-norm the kernel hands back another layout, and the mix is copied once more
    assert estimate == pytest.approx(kept, rel=0.065 if config.qk_norm else 0.01)


def test_memory_adds_up() -> None:
    got = cost("input-norm", batch=2, seq=8, **{n: v for n, v in BASE.items() if n != "init_seed"})
    m = got.memory
    assert m.weights == m.gradients == 4 * got.parameters
    assert m.optimizer == 8 * got.parameters
    assert m.logits == 12 * 16 * 50
    assert m.total == m.weights + m.gradients + m.optimizer + m.activations + m.logits
    half = cost("input-norm", batch=2, seq=8, dtype="bf16", **{n: v for n, v in BASE.items() if n != "init_seed"})
    assert half.memory.activations * 2 == m.activations
    assert half.memory.weights == m.weights


def test_it_prints_and_serialises() -> None:
    got = cost("post-norm", batch=4, seq=128)
    data = json.loads(json.dumps(got.to_dict(), allow_nan=False))
    assert data["training_flops"] == 3 * data["forward_flops"]
    assert data["memory"]["total"] == got.memory.total
    text = str(got)
    assert f"{got.parameters:,}" in text
    assert "layers.attn" in text
    assert "4 x 128 tokens" in text


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: cost("post-norm", hiden_size=8), ValueError, r"hiden_size.*nearest: hidden_size"),
        (lambda: cost("post-norm", hidden_size=10, num_attention_heads=4), ValueError, r"10.*divisible.*\(4\)"),
        (lambda: cost("post-norm", hidden_size=0), ValueError, r"hidden_size \(0\)"),
        (lambda: cost("post-norm", batch=0), ValueError, r"batch \(0\)"),
        (
            lambda: cost("post-norm", position_embedding="learned", max_position_embeddings=8, seq=9),
            ValueError,
            "at most",
        ),
        (lambda: cost({"hidden_size": 8}), ValueError, "got dict without one"),
        (lambda: cost("x = x + moe(norm(x))"), sl.DesignError, "moe"),
        (lambda: cost("block[:25%]: x = norm(x + attn(x))"), sl.DesignError, "tile|cover"),
        (lambda: cost("x = x + foo(x)"), sl.DesignError, "foo"),
    ],
)
def test_mistakes(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_needs_no_torch_and_can_be_called_by_its_name() -> None:
    code = (
        "import sys, sublayer.cost, sublayer as sl; got = sl.cost('post-norm', hidden_size=64, num_attention_heads=4)\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules, type(got).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "Cost"]
    assert isinstance(sl.cost("post-norm"), Cost)
