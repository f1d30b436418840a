"""Language models in one file, every part written by hand in several ways: the wiring is the same whatever the hand."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sublayer import parse
from sublayer.audit import audit
from tests.audit import plain
from tests.audit.plain import GPT, LAYERS, MLP, WIDTH, Block, Make, after, before

INPUT_NORM = "x = x + attn(norm(x)); x = x + ffn(norm(x))"
POST_NORM = "x = norm(x + attn(x)); x = norm(x + ffn(x))"

RMS = (
    plain.RMSByRsqrt,
    plain.RMSInFloat,
    plain.RMSByNormalize,
    plain.RMSByLength,
    plain.RMSBySquares,
    plain.RMSByVar,
    plain.RMSOnePlus,
)
LAYER = (plain.LayerByStd, plain.LayerByVar, plain.LayerBySquares)
ATTENTIONS = (
    plain.LectureAttention,
    plain.MinGPTAttention,
    plain.NanoGPTAttention,
    plain.EinsumAttention,
    plain.UnboundAttention,
    plain.CosineAttention,
    plain.RotaryAttention,
)
MLPS = (plain.MLP, plain.MinGPTMLP, plain.SwiGLU, plain.ChunkedGLU, plain.SquaredReLU)


def layer_norm() -> nn.Module:
    return nn.LayerNorm(WIDTH)


def wired(model: nn.Module, text: str) -> None:
    """Assert the whole design, and that nothing is wrong with it."""
    found = audit(model)
    assert found.main is not None
    assert found.main.unknown == ""
    assert found.design == parse(text)
    assert not [f for f in found.findings if f.severity == "error"]


@pytest.mark.parametrize("norm", [*RMS, *LAYER, layer_norm])
def test_norms_by_hand(norm: Make) -> None:
    found = audit(GPT(lambda i: Block(before, norm=norm), norm))
    assert found.main is not None
    assert found.main.norm == ("rmsnorm" if norm in RMS else "layernorm")
    assert found.design == parse(INPUT_NORM)
    wired(GPT(lambda i: Block(after, norm=norm)), POST_NORM)


def test_dynamic_tanh() -> None:
    wired(
        GPT(lambda i: Block(before, norm=plain.DyT), plain.DyT),
        "block: x = x + attn(dyt(x)); x = x + ffn(dyt(x))\nfinal: x = dyt(x)",
    )
    wired(GPT(lambda i: Block(after, norm=plain.DyT)), "x = dyt(x + attn(x)); x = dyt(x + ffn(x))")


@pytest.mark.parametrize("attn", ATTENTIONS)
def test_attentions_by_hand(attn: Make) -> None:
    wired(GPT(lambda i: Block(before, attn), layer_norm), INPUT_NORM)
    wired(GPT(lambda i: Block(after, attn)), POST_NORM)


@pytest.mark.parametrize("mlp", MLPS)
def test_feed_forward_by_hand(mlp: Make) -> None:
    wired(GPT(lambda i: Block(before, mlp=mlp), layer_norm), INPUT_NORM)
    wired(GPT(lambda i: Block(after, mlp=mlp)), POST_NORM)


# --- wirings ----------------------------------------------------------------------------------------------------------


def in_place(b: Any, x: Tensor) -> Tensor:
    x += b.attn(b.ln1(x))
    return x.add_(b.mlp(b.ln2(x)))


def in_place_post(b: Any, x: Tensor) -> Tensor:
    x = x.clone()
    x += b.attn(x)
    x = b.ln1(x)
    x += b.mlp(x)
    return b.ln2(x)


def stacked_sums(b: Any, x: Tensor) -> Tensor:
    x = torch.add(x, b.attn(b.ln1(x)))
    return torch.stack([x, b.mlp(b.ln2(x))]).sum(0)


def python_sum(b: Any, x: Tensor) -> Tensor:
    x = sum([x, b.attn(b.ln1(x))])  # type: ignore[assignment]
    return sum((x, b.mlp(b.ln2(x))))  # type: ignore[return-value]


def checkpointed(b: Any, x: Tensor) -> Tensor:
    x = x + checkpoint(lambda y: b.attn(b.ln1(y)), x, use_reentrant=False)
    return x + checkpoint(lambda y: b.mlp(b.ln2(y)), x, use_reentrant=False)


def dropout_everywhere(b: Any, x: Tensor) -> Tensor:
    x = F.dropout(x + F.dropout(b.attn(F.dropout(b.ln1(x), 0.1, True)), 0.1, True), 0.1, True)
    return F.dropout(x + F.dropout(b.mlp(b.ln2(x)), 0.3, True), 0.1, True)


def stochastic_depth(b: Any, x: Tensor) -> Tensor:
    x = x + b.path(b.attn(b.ln1(x)))
    return x + b.path(b.mlp(b.ln2(x)))


def scaled(b: Any, x: Tensor) -> Tensor:
    x = x + b.attn(b.ln1(x)) / math.sqrt(2 * LAYERS)
    return x + b.mlp(b.ln2(x)) * (2 * LAYERS) ** -0.5


def layer_scale(b: Any, x: Tensor) -> Tensor:
    x = x + b.g1 * b.attn(b.ln1(x))
    return x + b.mlp(b.ln2(x)) * b.g2


def scaled_skip(b: Any, x: Tensor) -> Tensor:
    x = x * b.g1 + b.attn(b.ln1(x))
    return x * b.g2 + b.mlp(b.ln2(x))


def rezero(b: Any, x: Tensor) -> Tensor:
    x = x + b.a * b.attn(x)
    return x + b.mlp(x) * b.a


def two_gates(b: Any, x: Tensor) -> Tensor:
    x = x + b.gates[0] * b.attn(x)
    return x + b.mlp(x) * b.gates[1]


def parallel(b: Any, x: Tensor) -> Tensor:
    h = b.ln1(x)
    return x + b.attn(h) + b.mlp(h)


def parallel_two(b: Any, x: Tensor) -> Tensor:
    return b.mlp(b.ln2(x)) + b.attn(b.ln1(x)) + x


def paf(b: Any, x: Tensor) -> Tensor:
    return b.ln1(x + b.attn(x) + b.mlp(x))


def macaron(b: Any, x: Tensor) -> Tensor:
    x = x + 0.5 * b.mlp0(b.ln0(x))
    x = x + b.attn(b.ln1(x))
    return b.ln3(x + b.mlp(b.ln2(x)) / 2)


def sandwich(b: Any, x: Tensor) -> Tensor:
    x = x + b.ln0(b.attn(b.ln1(x)))
    return x + b.ln3(b.mlp(b.ln2(x)))


def output_norm(b: Any, x: Tensor) -> Tensor:
    x = x + b.ln1(b.attn(x))
    return x + b.ln2(b.mlp(x))


def deep_norm(b: Any, x: Tensor) -> Tensor:
    alpha = (2 * LAYERS) ** 0.25
    x = b.ln1(alpha * x + b.attn(x))
    return b.ln2(x * alpha + b.mlp(x))


def averaged(b: Any, x: Tensor) -> Tensor:
    x = (x + b.attn(b.ln1(x))) / 2
    return torch.lerp(x, b.mlp(b.ln2(x)), 0.25)


def only_attention(b: Any, x: Tensor) -> Tensor:
    return x + b.attn(b.ln1(x))


class DropPath(nn.Module):
    """Stochastic depth."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * x.new_empty(x.shape[0], 1, 1).bernoulli_(0.8).div_(0.8)


def vector() -> nn.Parameter:
    return nn.Parameter(torch.full((WIDTH,), 0.1))


def more(*names: str) -> dict[str, nn.Module]:
    return {n: layer_norm() if n.startswith("ln") else MLP() for n in names}


OPEN = "\nfinal: x = x"  # no norm follows the last layer
WIRINGS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "in place": (in_place, {}, INPUT_NORM + OPEN),
    "in place, post": (in_place_post, {}, POST_NORM),
    "stacked and summed": (stacked_sums, {}, INPUT_NORM + OPEN),
    "python's sum": (python_sum, {}, INPUT_NORM + OPEN),
    "checkpointed parts": (checkpointed, {}, INPUT_NORM + OPEN),
    "dropout everywhere": (dropout_everywhere, {}, INPUT_NORM + OPEN),
    "stochastic depth": (stochastic_depth, {"path": DropPath()}, INPUT_NORM + OPEN),
    "scaled residual": (
        scaled,
        {},
        f"x = x + attn(norm(x)) / sqrt({2 * LAYERS}); x = x + ffn(norm(x)) / sqrt({2 * LAYERS})" + OPEN,
    ),
    "layer scale": (
        layer_scale,
        {"g1": vector, "g2": vector},
        "x = x + scale(attn(norm(x))); x = x + scale(ffn(norm(x)))" + OPEN,
    ),
    "scaled skip": (
        scaled_skip,
        {"g1": vector, "g2": vector},
        "x = scale(x) + attn(norm(x)); x = scale(x) + ffn(norm(x))" + OPEN,
    ),
    "rezero": (
        rezero,
        {"a": lambda: nn.Parameter(torch.zeros(1))},
        "x = x + gate_a(attn(x)); x = x + gate_a(ffn(x))" + OPEN,
    ),
    "two gates of one parameter": (
        two_gates,
        {"gates": lambda: nn.Parameter(torch.zeros(2))},
        "x = x + gate(attn(x)); x = x + gate(ffn(x))" + OPEN,
    ),
    "parallel": (parallel, {}, "h = norm(x); x = x + attn(h) + ffn(h)" + OPEN),
    "parallel, two norms": (parallel_two, {}, "x = x + attn(norm(x)) + ffn(norm(x))" + OPEN),
    "paf": (paf, {}, "x = norm(x + attn(x) + ffn(x))"),
    "macaron": (
        macaron,
        more("mlp0", "ln0", "ln3"),
        "x = x + 0.5*ffn(norm(x)); x = x + attn(norm(x)); x = norm(x + 0.5*ffn(norm(x)))",
    ),
    "sandwich": (sandwich, more("ln0", "ln3"), "x = x + norm(attn(norm(x))); x = x + norm(ffn(norm(x)))" + OPEN),
    "output norm": (output_norm, {}, "x = x + norm(attn(x)); x = x + norm(ffn(x))" + OPEN),
    "deep norm": (
        deep_norm,
        {},
        f"x = norm({2 * LAYERS}**0.25*x + attn(x)); x = norm({2 * LAYERS}**0.25*x + ffn(x))",
    ),
    "averaged": (
        averaged,
        {},
        "x = 0.5*x + 0.5*attn(norm(x)); x = 0.75*x + 0.25*ffn(norm(x))" + OPEN,
    ),
    "only attention": (only_attention, {}, "x = x + attn(norm(x))" + OPEN),
}


@pytest.mark.parametrize("name", WIRINGS)
@pytest.mark.parametrize("attn", [plain.MinGPTAttention, plain.NanoGPTAttention])
def test_wirings(name: str, attn: Make) -> None:
    wire, parts, text = WIRINGS[name]

    def block(i: int) -> nn.Module:
        made = {n: p if isinstance(p, nn.Module) else p() for n, p in parts.items()}
        return Block(wire, attn, **{n: type(p)() if isinstance(p, MLP | DropPath) else p for n, p in made.items()})

    wired(GPT(block), text if ":" not in text or text.startswith("block") else f"block: {text}")


def test_a_highway_is_unknown_and_says_why() -> None:
    def highway(b: Any, x: Tensor) -> Tensor:
        t = torch.sigmoid(b.choice(x))
        x = t * b.attn(b.ln1(x)) + (1 - t) * x
        return x + b.mlp(b.ln2(x))

    found = audit(GPT(lambda i: Block(highway, choice=nn.Linear(WIDTH, WIDTH)), layer_norm))
    assert found.design is None
    assert found.main is not None
    assert all("beside the sub-layer" in layer.unknown for layer in found.main.layers)
