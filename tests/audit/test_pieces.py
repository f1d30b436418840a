"""A network that works on a few positions at a time, to save memory, works on each position by itself."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sublayer.audit import audit
from sublayer.notation import parse
from tests.audit.plain import GPT, MLP, WIDTH, Block, before

Cut = Callable[[Tensor], Any]


class Pieces(nn.Module):
    """``cat([f(c) for c in cut(x)])``."""

    def __init__(self, cut: Cut, networks: int = 1, dim: int = 1) -> None:
        super().__init__()
        self.cut, self.dim = cut, dim
        self.f = nn.ModuleList([MLP() for _ in range(networks)])

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.f[i % len(self.f)](c) for i, c in enumerate(self.cut(x))], self.dim)


def wiring_of(*how: Any) -> str:
    found = audit(GPT(lambda i: Block(before, mlp=lambda: Pieces(*how)), lambda: nn.LayerNorm(WIDTH)))
    assert found.main is not None
    return found.main.layers[0].equation


FFN, MIXER = "x = x + attn(norm(x)); x = x + ffn(norm(x))", "x = x + attn(norm(x)); x = x + mixer(norm(x))"


@pytest.mark.parametrize(
    "cut",
    [
        lambda x: x.split(5, 1),
        lambda x: x.chunk(3, 1),
        lambda x: (x[:, :4], x[:, 4:]),
        lambda x: x.split([3, 1, x.shape[1] - 4], 1),
        lambda x: [x[:, i : i + 1] for i in range(x.shape[1])],
    ],
)
def test_pieces_that_are_put_back_mix_nothing(cut: Cut) -> None:
    assert parse(wiring_of(cut)) == parse(FFN)


@pytest.mark.parametrize(
    "how",
    [
        (lambda x: (x[:, 4:], x[:, :4]),),  # put back in another order
        (lambda x: (x[:, :4], x[:, 3:-1]),),  # cut elsewhere
        (lambda x: (x[:, :1].expand_as(x[:, :4]), x[:, 4:]),),  # one position for several
        (lambda x: (x[:, :4], x[:, 4:]), 2),  # other weights for other positions
    ],
)
def test_other_cuts_are_no_ffn(how: Any) -> None:
    assert "ffn" not in wiring_of(*how)
