"""Which tokens are measured: a bounded number of them, spread evenly over all batches, however many there are."""

from dataclasses import dataclass

import torch
from torch import Tensor

LEAST = 64  # tokens that are measured whatever they cost: fewer say little of a cloud
ROOM = 4  # times as many tokens are kept as may be measured by then: a longer stream may afford them


def _affordable(count: int, seen: int, hidden: int) -> bool:
    """Whether measuring ``count`` tokens stays a small part of a forward pass over ``seen``.

    A layer takes 24 d^2 floating-point operations a token (its matrices alone), and its eight or so clouds of n tokens
    take two Gram products and one eigendecomposition each, in double precision: about 8 (4 n^2 d + 60 n^3) with n the
    smaller side, the second term weighted by how slowly it runs. That may be a tenth of the forward pass.
    """
    small = min(count, hidden)
    return count < 2 * LEAST or (
        8.0 * (4.0 * count * hidden * small + 60.0 * small**3) <= 24.0 * hidden * hidden * seen / 10
    )


def stride_of(kept: int, seen: int, hidden: int) -> int:
    """Each how-manieth of the kept tokens is measured, so that measuring stays a small part of the forward pass."""
    by = 1
    while not _affordable(-(-kept // by), seen, hidden):
        by *= 2
    return by


@dataclass
class Spread:
    """Tokens at equal distances, at most ``limit`` of them, without knowing how many will come.

    Every ``stride``-th token is kept. When that would be too many, the stride doubles and every second of those that
    are kept is let go; so the sample is always a systematic one, and the same for the same tokens whatever the batches
    (padding never counts).

    Args:
        limit: tokens that are kept at most.
        hidden: width of the stack, if no more tokens than `stride_of` has measured are worth keeping; `None` keeps up
            to the limit.
    """

    limit: int
    hidden: int | None = None
    seen: int = 0
    stride: int = 1

    @property
    def kept(self) -> int:
        return -(-self.seen // self.stride)

    def add(self, real: Tensor) -> tuple[int, Tensor]:
        """Take in one batch.

        Args:
            real: which of its positions are tokens, bool [positions].

        Returns:
            How the tokens kept so far thin out (1: all stay, k: each k-th stays, the first one included), and the
            positions of the batch that are kept, int64.
        """
        places = real.flatten().nonzero().squeeze(1)
        total = self.seen + len(places)
        before = self.stride
        count = self.kept
        while count * self.stride < total:  # the next token that this stride keeps; one by one, whatever the batches
            count += 1
            if self._too_many(count):
                self.stride *= 2
                count = -(-count // 2)
        first = -self.seen % self.stride
        self.seen = total
        return self.stride // before, places[first :: self.stride]

    def _too_many(self, count: int) -> bool:
        """Whether ``count`` kept tokens are too many, at the moment when the last of them is seen."""
        seen = (count - 1) * self.stride + 1
        return count > self.limit or (self.hidden is not None and not _affordable(count // ROOM, seen, self.hidden))


class Kept:
    """Rows of one value that are kept over many batches, in memory that is taken once: small pieces between the large
    tensors of a run would scatter it.

    Args:
        limit: rows that it holds at most.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.count = 0
        self._memory: Tensor | None = None

    def add(self, thin: int, new: Tensor) -> None:
        """Let each ``thin``-th row stay, the first one included, and put ``new`` [rows, ...] behind them."""
        if self._memory is None:
            self._memory = torch.empty(self.limit, *new.shape[1:], dtype=new.dtype, device=new.device)
        if thin > 1:
            stay = self._memory[: self.count : thin].clone()
            self.count = len(stay)
            self._memory[: self.count] = stay
        self._memory[self.count : self.count + len(new)] = new
        self.count += len(new)

    def rows(self, by: int = 1) -> Tensor:
        """Each ``by``-th row that is kept; not a copy."""
        assert self._memory is not None
        return self._memory[: self.count : by]

    def clear(self) -> None:
        """Keep nothing."""
        self.count = 0
