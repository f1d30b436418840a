"""Parameters by formula against the models they describe, to the last one; what a cost prints and refuses."""

import json
import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import nn

import sublayer as sl
from sublayer.cost import Cost, Sizes, attention_crossover, cost
from sublayer.model import (
    SublayerConfig,
    SublayerForCausalLM,
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


def test_it_prints_and_serialises() -> None:
    got = cost("post-norm", batch=4, seq=128)
    data = json.loads(json.dumps(got.to_dict(), allow_nan=False))
    assert data["model_flops"] == data["training_flops"] - data["recomputed_flops"] == 3 * data["forward_flops"]
    assert data["memory"]["total"] == got.memory.total
    text = str(got)
    assert got.memory.moment in text
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
        (lambda: cost("post-norm", head=0), ValueError, r"head \(0\)"),
        (lambda: cost("post-norm", accumulation=0), ValueError, r"accumulation \(0\)"),
        (lambda: cost("post-norm", hidden_dropout_prob=1.5), ValueError, r"hidden_dropout_prob \(1.5\)"),
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


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("design", DESIGNS)
def test_the_table_of_lengths_is_the_cost_at_each(design: str, attention: Any) -> None:
    sizes = {**BASE, "max_position_embeddings": 20000}
    del sizes["init_seed"]
    got = cost(design, seq=7, batch=3, attention=attention, **sizes)
    assert [row.seq for row in got.lengths] == [512, 1024, 2048, 4096, 8192, 16384]
    for row in got.lengths[::2]:
        at = cost(design, seq=row.seq, attention=attention, **sizes)
        assert row.forward_flops_per_token == pytest.approx(at.forward_flops_per_token, rel=1e-12)
        assert row.training_flops_per_token == pytest.approx(at.training_flops_per_token, rel=1e-12)
        assert row.attention_share == pytest.approx(
            at.lengths[0].attention_share
            * row.seq
            / 512
            * (at.lengths[0].forward_flops_per_token / row.forward_flops_per_token)
        )


def test_the_crossover_of_attention_and_ffn() -> None:
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3}
    assert attention_crossover("post-norm", **sizes) == 256
    assert attention_crossover("post-norm", hidden_act="swiglu", **sizes) == 384
    assert attention_crossover("post-norm", head_dim=8, **sizes) == 512
    assert attention_crossover(MACARON, **sizes) == 512
    assert attention_crossover("x = x + attn(norm(x))", **sizes) is None
    assert attention_crossover("x = x + ffn(norm(x))", **sizes) is None
    at = cost("post-norm", seq=256, head="none", **sizes)
    ffn = at.flops_by_site["layers.ffn"]
    assert ffn == pytest.approx(
        at.forward_flops
        * at.lengths[0].attention_share
        * (at.lengths[0].forward_flops_per_token / at.forward_flops_per_token)
        / 2
    )


def test_needs_no_torch_and_can_be_called_by_its_name() -> None:
    code = (
        "import sys, sublayer.cost, sublayer as sl; got = sl.cost('post-norm', hidden_size=64, num_attention_heads=4)\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules, type(got).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "Cost"]
    assert isinstance(sl.cost("post-norm"), Cost)
