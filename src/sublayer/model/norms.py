"""Normalisations: LayerNorm, RMSNorm and DyT, each over the last axis of ``[..., d]``."""

import torch
from torch import Tensor, nn


class SublayerLayerNorm(nn.LayerNorm):
    """``alpha * (h - mean) / sqrt(var + eps) + beta`` (Ba et al. 2016, 1607.06450).

    The book form puts eps beside the standard deviation, ``(h - mean) / (sigma + eps)``; PyTorch under the root. With
    eps far below the variance they agree.
    """


class SublayerRMSNorm(nn.RMSNorm):
    """``alpha * h / sqrt(mean(h^2) + eps)`` (Zhang & Sennrich 2019, 1910.07467)."""


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


def build_norm(kind: str, hidden_size: int, eps: float) -> nn.Module:
    """The norm that ``kind`` names, over vectors of ``hidden_size`` channels."""
    if kind == "layernorm":
        return SublayerLayerNorm(hidden_size, eps=eps)
    if kind == "rmsnorm":
        return SublayerRMSNorm(hidden_size, eps=eps)
    if kind == "dyt":
        return SublayerDyT(hidden_size)
    raise ValueError(f"norm ({kind!r}) must be layernorm, rmsnorm or dyt: choose one of them")
