"""The position-wise feed-forward network, plain and gated."""

from collections.abc import Callable, Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from sublayer.model.branch import Branch
from sublayer.model.config import SublayerConfig
from sublayer.model.context import Context

Activation = Callable[[Tensor], Tensor]

# hidden_act -> (activation, gated). The gated ones are sigma(h W_gate) * (h W_up) inside (Shazeer 2020, 2002.05202).
ACTIVATIONS: dict[str, tuple[Activation, bool]] = {
    "relu": (F.relu, False),
    "gelu": (F.gelu, False),
    "gelu_pytorch_tanh": (partial(F.gelu, approximate="tanh"), False),
    "silu": (F.silu, False),
    "reglu": (F.relu, True),
    "geglu": (F.gelu, True),
    "swiglu": (F.silu, True),
}

# One function by other names: transformers writes it out, and keeps eight tensors for the gradient where torch keeps 1.
SAME = {"gelu_new": "gelu_pytorch_tanh", "gelu_fast": "gelu_pytorch_tanh"}


def activation(name: str) -> Activation:
    """The function that an activation's name stands for, the one inside the gate for a gated name."""
    name = SAME.get(name, name)
    return ACTIVATIONS[name][0] if name in ACTIVATIONS else ACT2FN[name]


class FeedForward(Branch):
    """``FFN(h) = sigma(h W_h + b_h) W_f + b_f``, ``W_h: d -> d_ff``, ``W_f: d_ff -> d``; gated if the config says.

    Args:
        config: reads hidden_size, intermediate_size, hidden_act, gated_mlp, mlp_bias, hidden_dropout_prob.
    """

    def __init__(self, config: SublayerConfig) -> None:
        super().__init__()
        self.activation = activation(config.hidden_act)
        hidden, inner, bias = config.hidden_size, config.sizes.ffn, config.mlp_bias
        self.gate_proj = nn.Linear(hidden, inner, bias=bias) if config.gated else None
        self.up_proj = nn.Linear(hidden, inner, bias=bias)
        self.down_proj = nn.Linear(inner, hidden, bias=bias)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map ``hidden [batch, seq, d]`` to ``[batch, seq, d]``, each position by itself."""
        return self.output(self.inside(self.project(hidden), None))

    @property
    def inputs(self) -> tuple[nn.Module, ...]:
        """The gate, where there is one, and up."""
        return (self.up_proj,) if self.gate_proj is None else (self.gate_proj, self.up_proj)

    @property
    def last(self) -> nn.Module:
        """``W_f``, the way down."""
        return self.down_proj

    def inside(self, projected: Sequence[Tensor], context: Context | None) -> Tensor:
        """The hidden activations, ``[batch, seq, d_ff]``."""
        *gate, up = projected
        return self.activation(gate[0]) * up if gate else self.activation(up)
