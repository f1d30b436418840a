"""Where the layers of a model are, however its author keeps them: the answer is that of a plain list of blocks."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sublayer import parse
from sublayer.audit import audit
from tests.audit.plain import (
    CONTEXT,
    HEADS,
    MLP,
    VOCABULARY,
    WIDTH,
    Block,
    EinsumAttention,
    LectureAttention,
    MinGPTAttention,
    NanoGPTAttention,
    after,
    before,
)

INPUT_NORM = "x = x + attn(norm(x)); x = x + ffn(norm(x))"
POST_NORM = "x = norm(x + attn(x)); x = norm(x + ffn(x))"


def ln() -> nn.Module:
    return nn.LayerNorm(WIDTH)


class Model(nn.Module):
    """Embeddings, what ``make`` makes and ``run`` runs, a norm, a head."""

    wiring = INPUT_NORM
    depth = 3

    def __init__(self) -> None:
        super().__init__()
        self.tok, self.pos = nn.Embedding(VOCABULARY, WIDTH), nn.Parameter(torch.zeros(1, CONTEXT, WIDTH))
        self.norm, self.head = self.end(), nn.Linear(WIDTH, VOCABULARY)
        self.make()

    def end(self) -> nn.Module:
        return ln()

    def make(self) -> None:
        self.h = nn.ModuleList([Block(before) for _ in range(self.depth)])

    def run(self, x: Tensor) -> Tensor:
        for block in self.h:
            x = block(x)
        return x

    def embed(self, idx: Tensor) -> Tensor:
        return self.tok(idx) + self.pos[:, : idx.shape[1]]

    def forward(self, idx: Tensor) -> Any:
        return self.head(self.norm(self.run(self.embed(idx))))


class Sequential(Model):
    def make(self) -> None:
        self.h = nn.Sequential(*[Block(before) for _ in range(3)])


class Dictionary(Model):
    def make(self) -> None:
        self.blocks = nn.ModuleDict({f"layer {i}": Block(before) for i in range(3)})

    def run(self, x: Tensor) -> Tensor:
        for block in self.blocks.values():
            x = block(x)
        return x


class Attributes(Model):
    wiring = POST_NORM
    depth = 4

    def end(self) -> nn.Module:
        return nn.Identity()

    def make(self) -> None:
        self.layer1, self.layer2, self.layer3, self.layer4 = (Block(after) for _ in range(4))

    def run(self, x: Tensor) -> Tensor:
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


class OneBlock(Model):
    depth = 1

    def make(self) -> None:
        self.block = Block(before)

    def run(self, x: Tensor) -> Tensor:
        return self.block(x)


class NoBlock(Model):
    """All in the model itself, the heads in a list."""

    depth = 1

    def make(self) -> None:
        self.sa, self.ffwd, self.ln1, self.ln2 = LectureAttention(), MLP(), ln(), ln()

    def run(self, x: Tensor) -> Tensor:
        x = x + self.sa(self.ln1(x))
        return x + self.ffwd(self.ln2(x))


class Parts(Model):
    """A list of lists of parts; the parent adds."""

    def make(self) -> None:
        self.layers = nn.ModuleList([nn.ModuleList([ln(), NanoGPTAttention(), ln(), MLP()]) for _ in range(3)])

    def run(self, x: Tensor) -> Tensor:
        for norm1, attn, norm2, ff in self.layers:
            x = attn(norm1(x)) + x
            x = ff(norm2(x)) + x
        return x


class Pairs(Model):
    """x-transformers before it grew: each part with its norm."""

    def make(self) -> None:
        parts = (lambda: nn.Sequential(ln(), EinsumAttention()), lambda: nn.Sequential(ln(), MLP()))
        self.layers = nn.ModuleList([nn.ModuleList([make() for make in parts]) for _ in range(3)])

    def run(self, x: Tensor) -> Tensor:
        for attn, ff in self.layers:
            x = attn(x) + x
            x = ff(x) + x
        return x


class Flat(Model):
    """Attention and feed-forward take turns in one list; norms in another."""

    def make(self) -> None:
        self.layers = nn.ModuleList([make() for _ in range(3) for make in (NanoGPTAttention, MLP)])
        self.norms = nn.ModuleList([ln() for _ in range(6)])

    def run(self, x: Tensor) -> Tensor:
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
        return x


class FlatPost(Flat):
    wiring = POST_NORM

    def end(self) -> nn.Module:
        return nn.Identity()

    def run(self, x: Tensor) -> Tensor:
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = norm(x + layer(x))
        return x


class FourLists(Model):
    def make(self) -> None:
        self.attns = nn.ModuleList([MinGPTAttention() for _ in range(3)])
        self.mlps = nn.ModuleList([MLP() for _ in range(3)])
        self.first, self.second = (nn.ModuleList([ln() for _ in range(3)]) for _ in range(2))

    def run(self, x: Tensor) -> Tensor:
        for i in range(3):
            x = x + self.attns[i](self.first[i](x))
            x = x + self.mlps[i](self.second[i](x))
        return x


class ByHand(Model):
    """Blocks whose forward is never called."""

    def run(self, x: Tensor) -> Tensor:
        for b in self.h:
            x = x + b.attn(b.ln1(x))
            x = x + b.mlp(b.ln2(x))
        return x


class Residual(nn.Module):
    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x) + x


def residuals() -> list[nn.Module]:
    return [Residual(nn.Sequential(ln(), EinsumAttention())), Residual(nn.Sequential(ln(), MLP()))]


class Residuals(Model):
    def make(self) -> None:
        self.h = nn.Sequential(*[nn.Sequential(*residuals()) for _ in range(3)])


class FlatResiduals(Model):
    def make(self) -> None:
        self.h = nn.Sequential(*[part for _ in range(3) for part in residuals()])


class FusedAddBlock(nn.Module):
    """The addition is left to whoever comes next, so that it can be fused with the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.ln1, self.ln2, self.attn, self.mlp = ln(), ln(), NanoGPTAttention(), MLP()

    def forward(self, h: Tensor, r: Tensor | None) -> tuple[Tensor, Tensor]:
        r = h if r is None else r + h
        h = self.attn(self.ln1(r))
        r = r + h
        return self.mlp(self.ln2(r)), r


class FusedAdd(Model):
    def make(self) -> None:
        self.h = nn.ModuleList([FusedAddBlock() for _ in range(3)])

    def run(self, x: Tensor) -> Tensor:
        r = None
        for block in self.h:
            x, r = block(x, r)
        return x + r


class Functional(nn.Module):
    """No module but the model: lists of parameters and a loop."""

    wiring = INPUT_NORM
    depth = 3
    post = False

    def __init__(self) -> None:
        super().__init__()
        d = WIDTH

        def some(*shape: int) -> nn.ParameterList:
            return nn.ParameterList([nn.Parameter(torch.randn(*shape) * 0.02) for _ in range(3)])

        self.wte, self.wpe = nn.Parameter(torch.randn(VOCABULARY, d)), nn.Parameter(torch.randn(CONTEXT, d))
        self.qkv, self.o, self.up, self.down = some(3 * d, d), some(d, d), some(4 * d, d), some(d, 4 * d)
        self.g1, self.g2, self.gf = some(d), some(d), nn.Parameter(torch.ones(d))

    def attend(self, i: int, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = F.linear(x, self.qkv[i]).view(b, t, 3, HEADS, d // HEADS).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return F.linear(y.transpose(1, 2).reshape(b, t, d), self.o[i])

    def forward(self, idx: Tensor) -> Tensor:
        def norm(x: Tensor, gain: Tensor) -> Tensor:
            return F.rms_norm(x, (WIDTH,), gain)

        x = self.wte[idx] + self.wpe[: idx.shape[1]]
        for i in range(3):
            x = x + self.attend(i, x if self.post else norm(x, self.g1[i]))
            x = norm(x, self.g1[i]) if self.post else x
            x = x + F.relu((x if self.post else norm(x, self.g2[i])) @ self.up[i].T).square() @ self.down[i].T
            x = norm(x, self.g2[i]) if self.post else x
        return (x if self.post else norm(x, self.gf)) @ self.wte.T


class FunctionalPost(Functional):
    wiring = POST_NORM
    post = True


class Shared(Model):
    """One block, four times."""

    depth = 4

    def make(self) -> None:
        self.block = Block(before)

    def run(self, x: Tensor) -> Tensor:
        for _ in range(4):
            x = self.block(x)
        return x


class LayerDrop(Model):
    def run(self, x: Tensor) -> Tensor:
        for block in self.h:
            if self.training and torch.rand(()) < 0.5:
                continue
            x = block(x)
        return x


class LengthFirst(Model):
    def run(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        for block in self.h:
            x = block(x.transpose(0, 1)).transpose(0, 1)
        return x.transpose(0, 1)


class Pooled(Model):
    def forward(self, idx: Tensor) -> Tensor:
        return self.head(self.norm(self.run(self.embed(idx))).mean(1))


class Loss(Model):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        return F.cross_entropy(super().forward(x).transpose(1, 2), y)


class EmbedNorm(Model):
    wiring = f"embed: x = norm(e)\nblock: {INPUT_NORM}"

    def make(self) -> None:
        super().make()
        self.first = ln()

    def run(self, x: Tensor) -> Tensor:
        return super().run(self.first(x))


class EmbedScale(Model):
    wiring = f"embed: x = sqrt({WIDTH})*e\nblock: {INPUT_NORM}"

    def run(self, x: Tensor) -> Tensor:
        return super().run(x * WIDTH**0.5)


class ByDepth(Model):
    """LayerNorm Scaling (Sun et al. 2025, 2502.05795)."""

    wiring = "x = x + attn(norm(x)/sqrt(layer)); x = x + ffn(norm(x)/sqrt(layer))"
    depth = 4

    def make(self) -> None:
        def block(i: int) -> nn.Module:
            def wire(b: Any, x: Tensor) -> Tensor:
                x = x + b.attn(b.ln1(x) / math.sqrt(i + 1))
                return x + b.mlp(b.ln2(x) / math.sqrt(i + 1))

            return Block(wire)

        self.h = nn.ModuleList([block(i) for i in range(4)])


class ResiDual(Model):
    """Xie et al. 2023, 2304.14802."""

    wiring = (
        "embed: x = e; r = e\nblock: a = attn(x); r = r + a; x = norm(x + a); f = ffn(x); r = r + f; x = norm(x + f)\n"
        "final: x = x + norm(r)"
    )

    def run(self, x: Tensor) -> Tensor:
        r = x
        for b in self.h:
            a = b.attn(x)
            r, x = r + a, b.ln1(x + a)
            f = b.mlp(x)
            r, x = r + f, b.ln2(x + f)
        self.dual = r
        return x

    def forward(self, idx: Tensor) -> Tensor:
        return self.head(self.run(self.embed(idx)) + self.norm(self.dual))


class ByName(Model):
    """Its input comes by name only."""

    def forward(self, *, idx: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(idx)


MODELS: list[Callable[[], Any]] = [
    *(Model, Sequential, Dictionary, Attributes, OneBlock, NoBlock, Parts, Pairs, Flat, FlatPost, FourLists, ByHand),
    *(Residuals, FlatResiduals, FusedAdd, Functional, FunctionalPost, Shared, LayerDrop, LengthFirst, Pooled, Loss),
    *(EmbedNorm, EmbedScale, ByDepth, ResiDual, ByName),
]


@pytest.mark.parametrize("make", MODELS)
def test_layers_are_found(make: Callable[[], Any]) -> None:
    model = make()
    found = audit(model)
    assert found.main is not None
    assert found.main.unknown == ""
    assert found.design == parse(model.wiring)
    assert len(found.main.layers) == model.depth
    assert not [f for f in found.findings if f.severity == "error"]
