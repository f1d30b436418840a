"""FLOPs by formula against torch's counter, to the last one: forward, and forward with backward."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from sublayer.cost import Cost, cost
from sublayer.model import (
    SublayerConfig,
    SublayerForCausalLM,
    SublayerForMaskedLM,
    SublayerForSequenceClassification,
    SublayerModel,
)

BASE = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40,
    "max_position_embeddings": 32, "init_seed": 0,
}  # fmt: skip
MACARON = "x = x + 0.5*ffn(norm(x)); x = x + attn(norm(x)); x = x + 0.5*ffn(norm(x))"
RESIDUAL = """
embed: x = e; r = e
block: a = attn(x); r = r + a; x = norm(x + a); f = ffn(x); r = r + f; x = norm(x + f)
final: x = x + norm(r)
"""
PARTS = {
    "one_norm": "h = norm(x); x = x + attn(h) + ffn(h)",
    "two_norms": "x = x + attn(norm(x)) + ffn(norm(x))",
    "dot": "x = x + dot(norm(x)); x = x + ffn(norm(x))",
    "dot, weightless": "embed: x = stop(e)\nblock: x = x + dot(x)\nfinal: x = norm(x)",
    "stop before": "x = x + attn(stop(x)); x = x + ffn(norm(x))",
    "stop behind": "x = x + stop(attn(norm(x))); x = x + ffn(norm(x))",
    "stop all": "embed: x = stop(e)\nblock: x = x + attn(x) + ffn(x)\nfinal: x = x",
    "unread stream": "embed: x = e; r = e\nblock: r = r + ffn(x); x = x + attn(x)\nfinal: x = x",
    "shared": "x = x + attn_a(norm_b(x)); x = x + attn_a(norm_b(x))",
}
DESIGNS = {"post": "post-norm", "input": "input-norm", "sandwich": "sandwich", "paf": "paf", "macaron": MACARON}
DESIGNS |= {"residual": RESIDUAL, **PARTS}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped, gated": {"num_key_value_heads": 2, "head_dim": 6, "hidden_act": "swiglu", "attention_bias": False},
    "transform": {"lm_head_dense": True, "lm_head_act": "gelu", "lm_head_norm": True, "lm_head_bias": True},
    "untied": {"tie_word_embeddings": False, "position_embedding": "learned", "type_vocab_size": 2},
    "narrow table": {"embedding_size": 8, "lm_head_dense": True, "norm_affine": False},
}


def _forward(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(q, _heads(k, q), _heads(v, q)))


def _backward(g: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(g, q, _heads(k, q), _heads(v, q)))


def _heads(shape: tuple[int, ...], like: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], like[1], *shape[2:])


# torch counts the CPU's attention kernel as nothing; these are its own formulas for the kernels of GPUs.
KERNELS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}


@contextmanager
def counted() -> Iterator[FlopCounterMode]:
    with FlopCounterMode(display=False, custom_mapping=KERNELS) as counter:
        yield counter


def model_of(build: type, design: str, attention: str, **options: Any) -> Any:
    config = SublayerConfig(design=design, attn_implementation=attention, **{**BASE, **options})
    return build(config).train()


def priced(model: Any, **how: Any) -> Cost:
    return cost(model.config, **how)


def step(model: nn.Module, batch: int, seq: int) -> torch.Tensor:
    ids = torch.ones(batch, seq, dtype=torch.long)
    labels = torch.ones(batch, dtype=torch.long) if hasattr(model, "score") else ids
    loss: torch.Tensor = model(input_ids=ids, labels=labels).loss
    return loss


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("design", DESIGNS)
def test_training_step_of_every_wiring(design: str, attention: Any) -> None:
    for build in (SublayerForCausalLM, SublayerForMaskedLM):
        model = model_of(build, DESIGNS[design], attention)
        expected = priced(model, batch=2, seq=9, attention=attention)
        with counted() as counter:
            loss = step(model, 2, 9)
            assert expected.forward_flops == counter.get_total_flops()
            loss.backward()
        assert expected.training_flops == counter.get_total_flops()
        assert expected.forward_flops < expected.model_flops <= 3 * expected.forward_flops


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("design", ["post", "one_norm", "stop before"])
def test_training_step_with_every_part(design: str, options: str, attention: Any) -> None:
    model = model_of(SublayerForMaskedLM, DESIGNS[design], attention, **OPTIONS[options])
    with counted() as counter:
        step(model, 3, 7).backward()
    assert priced(model, batch=3, seq=7, attention=attention).training_flops == counter.get_total_flops()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("options", [{}, {"classifier_dense": True, "classifier_act": "tanh"}])
@pytest.mark.parametrize("design", ["post", "input", "stop all"])
def test_training_step_of_a_classifier(design: str, options: dict[str, Any], attention: Any) -> None:
    model = model_of(SublayerForSequenceClassification, DESIGNS[design], attention, num_labels=3, **options)
    with counted() as counter:
        step(model, 2, 9).backward()
    assert priced(model, batch=2, seq=9, head=3, attention=attention).training_flops == counter.get_total_flops()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_training_step_of_the_bare_model(attention: Any) -> None:
    model = model_of(SublayerModel, "input-norm", attention)
    with counted() as counter:
        model(input_ids=torch.ones(2, 9, dtype=torch.long)).last_hidden_state.sum().backward()
    assert priced(model, batch=2, seq=9, head="none", attention=attention).training_flops == counter.get_total_flops()


def test_the_catalogue_s_training_steps() -> None:
    from sublayer import DesignError, designs

    built = 0
    for entry in designs():
        try:
            model = model_of(SublayerForCausalLM, entry.name, "eager", num_hidden_layers=4)
        except DesignError:
            continue
        with counted() as counter:
            step(model, 2, 8).backward()
        assert priced(model, batch=2, seq=8, attention="eager").training_flops == counter.get_total_flops(), entry.name
        built += 1
    assert built >= 30


@pytest.mark.parametrize(
    ("options", "attention", "kernel"),
    [
        ({"attn_logit_softcapping": 30.0}, "sdpa", False),
        ({"attention_probs_dropout_prob": 0.1}, "sdpa", False),
        ({"hidden_dropout_prob": 0.1}, "sdpa", True),
    ],
)
def test_where_the_kernel_does_not_run(options: dict[str, Any], attention: Any, kernel: bool) -> None:
    model = model_of(SublayerForMaskedLM, "post-norm", attention, **options)
    expected = priced(model, batch=2, seq=9, attention=attention)
    with counted() as counter:
        step(model, 2, 9).backward()
    assert expected.training_flops == counter.get_total_flops()
    assert (expected.recomputed_flops > 0) == kernel


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("options", [{}, {"hidden_dropout_prob": 0.1}])
@pytest.mark.parametrize("design", ["post", "input", "sandwich", "paf", "macaron", "one_norm", "two_norms", "dot"])
def test_gradient_checkpointing(design: str, options: dict[str, Any], attention: Any) -> None:
    model = model_of(SublayerForMaskedLM, DESIGNS[design], attention, **options)
    model.activation_checkpointing_enable()
    expected = priced(model, batch=2, seq=9, attention=attention, checkpointing=True)
    with counted() as counter:
        step(model, 2, 9).backward()
    assert expected.training_flops == counter.get_total_flops()
    plain = priced(model, batch=2, seq=9, attention=attention)
    assert expected.model_flops == plain.model_flops
    assert expected.recomputed_flops > plain.recomputed_flops


class Dispatched(TorchDispatchMode):
    """torch's formulas without its hooks on modules, which make parallel branches run one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        packet = torch.ops.aten.addmm if packet is torch.ops.aten.addmm_ else packet
        formula = {**flop_registry, **KERNELS}.get(packet)
        if formula is not None:
            shapes = [tuple(a.shape) if isinstance(a, torch.Tensor) else a for a in args] if packet in KERNELS else args
            extra = {} if packet in KERNELS else {"out_val": result}
            self.total += formula(*shapes, **(kwargs or {}), **extra)
            self.products += 1
        return result


@pytest.mark.parametrize("tokens", [(2, 9), (4, 32), (16, 32), (64, 32)])
@pytest.mark.parametrize("design", ["paf", "one_norm", "two_norms"])
def test_parallel_branches_together(design: str, tokens: tuple[int, int]) -> None:
    totals, products = [], []
    for fuse in (True, False):
        model = model_of(SublayerForMaskedLM, DESIGNS[design], "sdpa", fuse_parallel=fuse)
        with Dispatched() as counter:
            step(model, *tokens).backward()
        totals.append(counter.total)
        products.append(counter.products)
        assert counter.total == priced(model, batch=tokens[0], seq=tokens[1]).training_flops
    assert totals[0] == totals[1]
    if tokens[0] * tokens[1] >= 1024:
        assert products[0] < products[1]
