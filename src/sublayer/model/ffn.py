"""The position-wise feed-forward network, plain and gated."""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from sublayer.model.config import SublayerConfig

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


class FeedForward(nn.Module):
    """``FFN(h) = sigma(h W_h + b_h) W_f + b_f``, ``W_h: d -> d_ff``, ``W_f: d_ff -> d``; gated if ``hidden_act`` is.

    Args:
        config: reads hidden_size, intermediate_size, hidden_act, mlp_bias, hidden_dropout_prob.
    """

    def __init__(self, config: SublayerConfig) -> None:
        super().__init__()
        self.activation, gated = ACTIVATIONS[config.hidden_act]
        hidden, inner, bias = config.hidden_size, config.sizes.ffn, config.mlp_bias
        self.gate_proj = nn.Linear(hidden, inner, bias=bias) if gated else None
        self.up_proj = nn.Linear(hidden, inner, bias=bias)
        self.down_proj = nn.Linear(inner, hidden, bias=bias)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map ``hidden [batch, seq, d]`` to ``[batch, seq, d]``, each position by itself."""
        up = self.up_proj(hidden)  # [batch, seq, d_ff]
        inner = self.activation(up) if self.gate_proj is None else self.activation(self.gate_proj(hidden)) * up
        output: Tensor = self.dropout(self.down_proj(inner))  # [batch, seq, d]
        return output
