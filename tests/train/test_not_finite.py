"""Where a run says that its numbers stopped being finite: the first place, in the order in which the pass runs."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sublayer.train import finished, run
from sublayer.train.build import build as build_model

NAN, INF = float("nan"), float("inf")
HUGE = 3.4e38  # two of them are more than a float32 can hold
IN_EVALUATION = "the loss on held-out text is nan after step 0; it began in "


class LostOnTheWayBack(torch.autograd.Function):
    """The number itself, with a gradient that is none."""

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient * NAN


def parameter(name: str, value: float):
    def touch(model: nn.Module) -> None:
        with torch.no_grad():
            model.get_parameter(name).view(-1)[0] = value

    return touch


def whole_parameters(value: float, *names: str):
    def touch(model: nn.Module) -> None:
        with torch.no_grad():
            for name in names:
                model.get_parameter(name).fill_(value)

    return touch


def output(change, *names: str):
    """Change what modules give."""

    def touch(model: nn.Module) -> None:
        for name in names:
            model.get_submodule(name).register_forward_hook(lambda module, given, result: change(result))

    return touch


def gradient(name: str):
    def touch(model: nn.Module) -> None:
        model.get_parameter(name).register_hook(lambda gradient: gradient * INF)

    return touch


def loss(model: nn.Module) -> None:
    def hook(module: nn.Module, given: Any, result: Any) -> None:
        if module.training:
            result["loss"] = result["loss"] * NAN

    model.register_forward_hook(hook)


LAYER = "model.layers.1"
SCORES = whole_parameters(1e25, f"{LAYER}.attn.q_proj.weight", f"{LAYER}.attn.k_proj.weight")
CASES = {
    "a parameter": (
        parameter(f"{LAYER}.ffn.up_proj.weight", NAN), {},
        f"{IN_EVALUATION}a parameter, before the pass, of layer 1, term ffn: {LAYER}.ffn.up_proj.weight",
    ),
    "a parameter of a norm": (
        parameter(f"{LAYER}.stream_norm.weight", INF), {},
        f"{IN_EVALUATION}a parameter, before the pass, of layer 1, term stream_norm: {LAYER}.stream_norm.weight",
    ),
    "an activation": (
        output(lambda value: value * INF, f"{LAYER}.ffn.up_proj"), {},
        f"{IN_EVALUATION}the forward pass of layer 1, term ffn: {LAYER}.ffn.up_proj (mul)",
    ),
    "a sum": (
        output(lambda value: value * 0 + HUGE, f"{LAYER}.stream_norm", f"{LAYER}.ffn"), {},
        f"{IN_EVALUATION}the forward pass of layer 1, the sum stream_norm + ffn: {LAYER} (add)",
    ),
    "a sum of parallel branches": (
        output(lambda value: value * 0 + HUGE, f"{LAYER}.attn", f"{LAYER}.ffn"), {"design": "paf"},
        f"{IN_EVALUATION}the forward pass of layer 1, the sum x + attn + ffn: {LAYER} (add)",
    ),
    "attention scores": (
        SCORES, {}, f"{IN_EVALUATION}the forward pass of layer 1, term attn: {LAYER}.attn.core (_scaled_dot_product",
    ),
    "attention scores, written out": (
        SCORES, {"attn_implementation": "eager"},
        f"{IN_EVALUATION}the forward pass of layer 1, term attn: {LAYER}.attn.core (bmm)",
    ),
    "a gradient": (
        gradient(f"{LAYER}.ffn.down_proj.weight"), {},
        f"the gradient is inf at step 1; it began in the backward pass of layer 1, term ffn: {LAYER}.ffn.down_proj",
    ),
    "the way back through attention": (
        output(LostOnTheWayBack.apply, f"{LAYER}.attn"), {"accumulation": 2},
        f"the gradient is nan at step 1; it began in the backward pass of layer 1, term attn: {LAYER}.attn (mul)",
    ),
    "the way back through the last term of a block": (
        output(LostOnTheWayBack.apply, f"{LAYER}.stream_norm"), {"design": "paf"},
        f"the gradient is nan at step 1; it began in the backward pass of layer 1, term stream_norm: {LAYER}.stream_",
    ),
    "the way back through the embedding": (
        output(LostOnTheWayBack.apply, "model.embed_tokens"), {"dropout": 0.0},
        "the gradient is nan at step 1; it began in the backward pass of model.embed_tokens (mul)",
    ),
    "the loss": (loss, {}, "the loss is nan at step 1; it began in the forward pass of the loss (mul)"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_first_place_is_named(spec, tmp_path, name):
    touch, changes, told = CASES[name]

    def build(given, words):
        model = build_model(given, words)
        touch(model)
        return model

    row = run(spec(**changes), tmp_path / "run", measure=False, build=build)
    assert row["status"] == "diverged"
    assert told in row["reason"]
    assert row["eval_loss"] is None
    assert row["steps_done"] == 0
    assert finished(tmp_path / "run") == row
    assert not (tmp_path / "run" / "model").exists()


def test_a_step_of_several_passes_is_searched_from_its_first(spec, tmp_path):
    """Only the second of three passes of step 2 is lost: the last one, run again, would show nothing."""
    passes = 0

    def lose(module: nn.Module, given: Any, result: Tensor) -> Tensor:
        nonlocal passes
        passes += module.training
        return result * INF if passes in (5, 8) else result  # the fifth, and the same pass when the step is run again

    def build(given, words):
        model = build_model(given, words)
        model.get_submodule("model.layers.0.attn.o_proj").register_forward_hook(lose)
        return model

    row = run(spec(accumulation=3), tmp_path / "run", measure=False, build=build)
    assert "at step 2; it began in the forward pass of layer 0, term attn: model.layers.0.attn.o_proj" in row["reason"]
    assert row["steps_done"] == 1
