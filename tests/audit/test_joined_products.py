"""Products that belong to several sub-layers: one matrix before q, k, v and the FFN, one matrix over their results."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sublayer.audit import audit
from sublayer.notation import parse

WIDTH, HEADS, INNER = 32, 4, 128


class Block(nn.Module):
    """A parallel block whose products are joined as ``before`` and ``after`` say."""

    def __init__(self, before: str, after: str, inside: bool) -> None:
        super().__init__()
        self.before, self.after, self.inside = before, after, inside
        self.norm = nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)
        if before == "one":
            self.one_in = nn.Linear(WIDTH, 3 * WIDTH + INNER)
        if after == "one":
            self.one_out = nn.Linear(WIDTH + INNER, WIDTH)

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)  # [batch, heads, seq, head_dim]

    def branches(self, x: Tensor) -> Tensor:
        parts = (self.q, self.k, self.v, self.up)
        if self.before == "apart":
            q, k, v, up = (part(x) for part in parts)
        elif self.before == "one":
            q, k, v, up = self.one_in(x).split([WIDTH, WIDTH, WIDTH, INNER], -1)
        else:
            joined = F.linear(x, torch.cat([p.weight for p in parts]), torch.cat([p.bias for p in parts]))
            q, k, v, up = joined.split([WIDTH, WIDTH, WIDTH, INNER], -1)
        mixed = F.scaled_dot_product_attention(self.heads(q), self.heads(k), self.heads(v))
        mixed, inner = mixed.transpose(1, 2).flatten(-2), F.gelu(up)
        if self.after == "apart":
            return self.o(mixed) + self.down(inner)
        both = torch.cat([mixed, inner], -1)
        if self.after == "one":
            return self.one_out(both)
        weight, bias = torch.cat([self.o.weight, self.down.weight], 1), self.o.bias + self.down.bias
        return F.linear(both, weight, bias) if self.after == "cat" else both @ weight.t() + bias

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branches(self.norm(x)) if self.inside else self.norm(x + self.branches(x))


class Model(nn.Module):
    def __init__(self, *how) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(50, WIDTH), nn.Linear(WIDTH, 50)
        self.blocks = nn.ModuleList([Block(*how) for _ in range(3)])
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("after", ["apart", "one", "cat", "product of cat"])
@pytest.mark.parametrize("before", ["apart", "one", "cat"])
def test_joined_products_are_sub_layers_of_their_own(before: str, after: str, inside: bool) -> None:
    found = audit(Model(before, after, inside))
    wiring = "h = norm(x); x = x + attn(h) + ffn(h)" if inside else "x = norm(x + attn(x) + ffn(x))"
    assert found.design is not None, found.unknown
    assert found.design.block == parse(wiring).block
    layer = found.main.layers[0]
    details = {b.op: b.details for b in layer.branches}
    assert details["attn"]["heads"] == HEADS
    assert details["attn"]["output_projection"] is True
    assert details["ffn"]["width"] == INNER
