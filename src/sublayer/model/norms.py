"""Normalisations: LayerNorm, RMSNorm and DyT, each over the last axis of ``[..., d]``."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sublayer.model.config import SublayerConfig


class SublayerLayerNorm(nn.LayerNorm):
    """``alpha * (h - mean) / sqrt(var + eps) + beta`` (Ba et al. 2016, 1607.06450).

    The book form puts eps beside the standard deviation, ``(h - mean) / (sigma + eps)``; PyTorch under the root. With
    eps far below the variance they agree.

    Args:
        hidden_size: d.
        eps: under the root.
        affine: whether there are an alpha and, with ``bias``, a beta.
        zero_centred: alpha is 1 + weight.
    """

    def __init__(
        self, hidden_size: int, eps: float = 1e-5, affine: bool = True, bias: bool = True, zero_centred: bool = False
    ) -> None:
        super().__init__(hidden_size, eps=eps, elementwise_affine=affine, bias=bias)
        self.zero_centred = zero_centred and affine

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalise ``hidden [..., d]``."""
        if not self.zero_centred:
            return super().forward(hidden)
        return F.layer_norm(hidden, self.normalized_shape, self.weight + 1, self.bias, self.eps)


class SublayerRMSNorm(nn.RMSNorm):
    """``alpha * h / sqrt(mean(h^2) + eps)`` (Zhang & Sennrich 2019, 1910.07467); arguments as in LayerNorm."""

    def __init__(self, hidden_size: int, eps: float = 1e-5, affine: bool = True, zero_centred: bool = False) -> None:
        super().__init__(hidden_size, eps=eps, elementwise_affine=affine)
        self.zero_centred = zero_centred and affine

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalise ``hidden [..., d]``."""
        if not self.zero_centred:
            return super().forward(hidden)
        # In bfloat16 the numbers beside 1 are 1/128 apart: the sum must not be rounded to them.
        alpha = self.weight.float() + 1
        return F.rms_norm(hidden.float(), self.normalized_shape, alpha, self.eps).type_as(hidden)


class SublayerHeadsNorm(nn.Module):
    """A norm of each head's vector, with a weight for each head: ``[batch, heads, seq, head_dim]``.

    Args:
        kind: "rmsnorm" or "layernorm".
        heads, head_dim: shape of the weight.
        bias: whether a layernorm also has a bias for each head.
    """

    def __init__(self, kind: str, heads: int, head_dim: int, eps: float, bias: bool = False) -> None:
        super().__init__()
        self.kind, self.eps = kind, eps
        self.weight = nn.Parameter(torch.ones(heads, head_dim))
        self.bias = nn.Parameter(torch.zeros(heads, head_dim)) if bias and kind == "layernorm" else None

    def forward(self, heads: Tensor) -> Tensor:
        """Normalise ``heads [batch, heads, seq, head_dim]``."""
        norm = F.layer_norm if self.kind == "layernorm" else F.rms_norm
        scaled = norm(heads, heads.shape[-1:], eps=self.eps) * self.weight.unsqueeze(1)
        return scaled if self.bias is None else scaled + self.bias.unsqueeze(1)

    def extra_repr(self) -> str:
        """Kind and shape, for ``print(model)``."""
        return f"{self.kind}, {tuple(self.weight.shape)}, eps={self.eps}"


class SublayerDyT(nn.Module):
    """Dynamic tanh, ``gamma * tanh(alpha * h) + beta`` with a learned scalar alpha (Zhu et al. 2025, 2503.10622).

    No statistic of h is taken, so scaling h changes the output: a norm by its place, not by its nature.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1))
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.bias = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, hidden: Tensor) -> Tensor:
        """Squash and rescale ``hidden [..., d]``."""
        return self.weight * torch.tanh(self.alpha * hidden) + self.bias

    def extra_repr(self) -> str:
        """Width, for ``print(model)``."""
        return f"{self.weight.numel()}"


def build_norm(
    kind: str, hidden_size: int, eps: float, affine: bool = True, bias: bool = True, zero_centred: bool = False
) -> nn.Module:
    """The norm that ``kind`` names, over vectors of ``hidden_size`` channels."""
    if kind == "layernorm":
        return SublayerLayerNorm(hidden_size, eps, affine, bias, zero_centred)
    if kind == "rmsnorm":
        return SublayerRMSNorm(hidden_size, eps, affine, zero_centred)
    if kind == "dyt":
        return SublayerDyT(hidden_size)
    raise ValueError(f"norm ({kind!r}) must be layernorm, rmsnorm or dyt: choose one of them")


def configured_norm(config: SublayerConfig, kind: str | None = None, hidden_size: int | None = None) -> nn.Module:
    """The norm of a model: ``kind`` or its own kind, over its stream or vectors of another width."""
    return build_norm(
        kind or config.norm,
        hidden_size or config.hidden_size,
        config.norm_eps,
        config.norm_affine,
        config.norm_bias,
        config.norm_zero_centred,
    )


def query_key_norm(config: SublayerConfig, heads: int) -> Any:
    """The norm of the queries or keys of ``heads`` heads, or None."""
    head_dim, eps, bias = config.sizes.head_dim, config.norm_eps, config.qk_norm_bias
    if not config.qk_norm:
        return None
    if config.qk_norm == "heads":
        return SublayerHeadsNorm(config.qk_norm_kind, heads, head_dim, eps, bias)
    width = heads * head_dim if config.qk_norm == "full" else head_dim
    return build_norm(config.qk_norm_kind, width, eps, config.norm_affine, bias, config.norm_zero_centred)
