"""Learned factors on a value, ``scale`` and ``gate``, and ``stop``, which lets no gradient through."""

import torch
from torch import Tensor, nn


class ChannelScale(nn.Module):
    """``scale(v) = w * v`` with one learned factor a channel: LayerScale (Touvron et al. 2021, 2103.17239)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))

    def forward(self, value: Tensor) -> Tensor:
        """Scale each channel of ``value [..., d]``."""
        return self.weight * value

    def extra_repr(self) -> str:
        """Width, for ``print(model)``."""
        return f"{self.weight.numel()}"


class ScalarGate(nn.Module):
    """``gate(v) = w * v`` with one learned number: ReZero's residual weight (Bachlechner et al. 2020, 2003.04887)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, value: Tensor) -> Tensor:
        """Scale ``value [..., d]`` as a whole."""
        return self.weight * value


class StopGradient(nn.Module):
    """``stop(v) = v`` on the way forward; no gradient on the way back."""

    def forward(self, value: Tensor) -> Tensor:
        """The same numbers, detached."""
        return value.detach()
