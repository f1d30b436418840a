"""Attention within documents that are packed into rows: block by block, so that nothing is computed between them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sublayer.model.positions import document_starts

Attend = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]]

# Multiply-adds that take as long as starting one more block, which is what it must save: on a CPU 0.17 ms a block and
# layer, forward and backward, at some 30 GFLOP/s.
START = 1_500_000


@dataclass(frozen=True)
class Blocks:
    """Where the documents of a batch lie, in place of a mask.

    Attributes:
        lengths: tokens of each document, in order over all rows.
    """

    lengths: list[int]

    def attend(self, attend: Attend, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of each document to itself.

        Args:
            attend: attention without a mask.
            query, key, value: ``[batch, heads, seq, head_dim]``.

        Returns:
            ``[batch, seq, heads, head_dim]``.
        """
        batch, heads, seq, _ = query.shape
        length = self.lengths[0]
        if all(each == length for each in self.lengths):  # then the documents are rows
            # [documents, heads, length, head_dim]
            parted = (self._flat(each).unflatten(0, (-1, length)).transpose(1, 2) for each in (query, key, value))
            return attend(*parted)[0].reshape(batch, seq, heads, -1)
        # Split, not sliced: the gradient of all pieces is then put together once.
        pieces = zip(*(self._flat(each).split(self.lengths) for each in (query, key, value)), strict=True)
        mixed = [attend(*(each.transpose(0, 1).unsqueeze(0) for each in piece))[0][0] for piece in pieces]
        return torch.cat(mixed).view(batch, seq, heads, -1)

    @staticmethod
    def _flat(x: Tensor) -> Tensor:
        """``[batch, heads, seq, head_dim]`` as ``[batch * seq, heads, head_dim]``."""
        return x.transpose(1, 2).flatten(0, 1)


def blocks_of(sequence_ids: Tensor, width: int) -> Blocks | None:
    """The documents of a batch as blocks; None where a mask over whole rows costs less, or nothing may be looked at.

    Args:
        sequence_ids: document of each token, ``[batch, seq]``; the tokens of a document stand together.
        width: of all heads together.
    """
    if torch.compiler.is_compiling() or type(sequence_ids) is not Tensor or sequence_ids.device.type != "cpu":
        return None
    batch, seq = sequence_ids.shape
    starts = document_starts(sequence_ids).flatten().nonzero().squeeze(1)
    lengths = torch.diff(starts, append=starts.new_tensor([batch * seq]))
    saved = 2 * width * (batch * seq**2 - int(lengths.square().sum()))
    if len(lengths) > batch and saved < START * len(lengths):
        return None
    found: list[int] = lengths.tolist()
    return Blocks(found)
