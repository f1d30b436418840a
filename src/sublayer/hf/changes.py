"""What a weight map does to tensors on the way in, and takes back on the way out, without changing one bit.

Shapes: ``rows`` are the output channels of a projection, axis 0 of its weight ``[rows, columns]`` and of its bias
``[rows]``.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class Change(ABC):
    """One step from the tensors of a family to those of a Sublayer model, and back.

    A step may return views of what it was given: copies that are thrown away leave holes in memory.

    Args of both directions:
        tensors: what the step reads.
        config: of the Sublayer model; steps read head_dim, the head counts and the rotary width from it.
        rows: how many rows each tensor of the Sublayer side has.
    """

    @abstractmethod
    def forward(self, tensors: list[Tensor], config: Any, rows: Sequence[int]) -> list[Tensor]:
        """From the family's tensors to Sublayer's."""

    @abstractmethod
    def back(self, tensors: list[Tensor], config: Any, rows: Sequence[int]) -> list[Tensor]:
        """From Sublayer's tensors to the family's."""


@dataclass(frozen=True)
class Transposed(Change):
    """A weight stored as ``[columns, rows]``, as Conv1D does."""

    def forward(self, tensors: list[Tensor], config: Any, rows: Sequence[int]) -> list[Tensor]:
        """Turn each matrix; a bias has nothing to turn."""
        return [t.T if t.dim() == 2 else t for t in tensors]

    back = forward


@dataclass(frozen=True)
class Fused(Change):
    """Several projections in one tensor: ``groups`` groups of rows, each with the same share of every projection.

    One group is a plain concatenation. A group for each head is the order of GPT-NeoX, a group for each key-value head
    that of the newer Falcons.

    Args:
        groups: a number, or the name of a setting of the Sublayer config that holds it.
    """

    groups: int | str = 1

    def forward(self, tensors: list[Tensor], config: Any, rows: Sequence[int]) -> list[Tensor]:
        """Split one tensor."""
        (whole,) = tensors
        groups = self._count(config)
        shares = [count // groups for count in rows]
        parts = whole.reshape(groups, sum(shares), *whole.shape[1:]).split(shares, dim=1)
        return [part.reshape(-1, *whole.shape[1:]) for part in parts]

    def back(self, tensors: list[Tensor], config: Any, rows: Sequence[int]) -> list[Tensor]:
        """Join them again."""
        groups = self._count(config)
        parts = [t.reshape(groups, -1, *t.shape[1:]) for t in tensors]
        return [torch.cat(parts, dim=1).flatten(0, 1)]

    def _count(self, config: Any) -> int:
        return self.groups if isinstance(self.groups, int) else int(getattr(config, self.groups))


@dataclass(frozen=True)
class Halved(Change):
    """Rotary pairs that stand side by side, (0, 1), (2, 3), ..., moved so that channel i pairs with i + width/2.

    Queries and keys are permuted alike, so their products stay what they were; what is rotated is the first ``width``
    channels of each head.

    Args:
        which: which of the tensors are permuted.
    """

    which: tuple[int, ...] = (0,)

    def forward(self, tensors: list[Tensor], config: Any, rows: Sequence[int]) -> list[Tensor]:
        """Even channels first, then the odd ones."""
        return [_permuted(t, config, False) if i in self.which else t for i, t in enumerate(tensors)]

    def back(self, tensors: list[Tensor], config: Any, rows: Sequence[int]) -> list[Tensor]:
        """Side by side again."""
        return [_permuted(t, config, True) if i in self.which else t for i, t in enumerate(tensors)]


def _permuted(tensor: Tensor, config: Any, back: bool) -> Tensor:
    head_dim = config.sizes.head_dim
    width = int(head_dim * (config.rope_parameters or {}).get("partial_rotary_factor", 1.0))
    # A projection has its channels along axis 0; a norm with a weight for each head, [heads, head_dim], along axis 1.
    flat = tensor.flatten() if tensor.shape[-1] == head_dim and tensor.shape[0] % head_dim else tensor
    heads = flat.reshape(-1, head_dim, *flat.shape[1:])
    pairs = (2, width // 2) if back else (width // 2, 2)
    turned = heads[:, :width].reshape(-1, *pairs, *flat.shape[1:]).transpose(1, 2).flatten(1, 2)
    return torch.cat((turned, heads[:, width:]), dim=1).reshape(tensor.shape)


@dataclass(frozen=True)
class Stacked(Change):
    """One tensor for each head, stored apart."""

    def forward(self, tensors: list[Tensor], config: Any, rows: Sequence[int]) -> list[Tensor]:
        """Stack them: ``[heads, ...]``."""
        return [torch.stack(tensors)]

    def back(self, tensors: list[Tensor], config: Any, rows: Sequence[int]) -> list[Tensor]:
        """Take them apart."""
        return list(tensors[0].unbind())
