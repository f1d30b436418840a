"""What measurements of attention and FFN say: fits, crossovers, rates, beside the FLOPs of `sublayer.cost`."""

import math
import statistics
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from sublayer.cost import Cost, cost
from sublayer.study.parts.attention_fit import Curve, Fit, crossing, crossing_interval, fit, fit_rounds, medians

FFN = "ffn"
Kernel = Literal["sdpa", "eager"]  # as `sublayer.cost` knows them: one that keeps no probabilities, or written out
EXPLAINED = 0.98  # of the variance, for a square term to count


@dataclass(frozen=True)
class Formula:
    """FLOPs of matrix products by `sublayer.cost`: attention has ``fixed + rising T`` a token, the FFN ``ffn``.

    Attributes:
        products: length from which the two products between positions, the square term, cost more than the FFN.
    """

    fixed: float
    rising: float
    ffn: float
    products: float

    @property
    def whole(self) -> float:
        """Length from which the whole call site has more FLOPs than the FFN; 0 where it always has."""
        return max(0.0, (self.ffn - self.fixed) / self.rising)

    def ratio(self, length: int) -> float:
        """FLOPs of attention over the FFN's at a length."""
        return (self.fixed + self.rising * length) / self.ffn


@dataclass(frozen=True)
class Shape:
    """Sizes of the sites: d, heads, d_ff, activation, bytes of a number, call sites in a row."""

    hidden: int
    heads: int
    ffn: int
    act: str
    width: int
    layers: int = 1

    def _cost(self, block: str, seq: int, layers: int, attention: Kernel) -> Cost:
        return cost(
            block,
            seq=seq,
            head="none",
            attention=attention,
            hidden_size=self.hidden,
            num_hidden_layers=layers,
            num_attention_heads=self.heads,
            intermediate_size=self.ffn,
            hidden_act=self.act,
            position_embedding="none",
            vocab_size=2,
        )

    def formula(self) -> Formula:
        """Read off `sublayer.cost` at two lengths, between which attention's FLOPs a token are a straight line."""
        near, far = (self._cost("x = x + attn(x); x = x + ffn(x)", seq, 1, "sdpa") for seq in (1024, 2048))
        at_near, at_far = near.flops_by_site["layers.attn"] / 1024, far.flops_by_site["layers.attn"] / 2048
        rising = (at_far - at_near) / 1024
        assert near.crossover is not None  # the block has both
        return Formula(at_near - 1024 * rising, rising, near.flops_by_site["layers.ffn"] / 1024, near.crossover)

    def matrices(self, attention: Kernel) -> float | None:
        """Score matrices at the peak of a training step by `sublayer.cost`, which counts float32 and autocast only: the
        second difference of its memory far out, where nothing else matters."""
        if self.width != 4:
            return None
        step = 8192
        near, middle, far = (
            self._cost("x = x + attn(x)", seq, self.layers, attention).memory.total
            for seq in (step, 2 * step, 3 * step)
        )
        return (far - 2 * middle + near) / (2 * step**2) / (self.heads * self.width)


@dataclass(frozen=True)
class Measured:
    """One subject in one pass: seconds of a sequence by length, a curve for each round; peak bytes; what was lost; and
    what `sublayer.cost` takes it for."""

    subject: str
    name: str  # of the pass
    rounds: list[Curve]
    peaks: Curve
    lost: dict[int, str]
    kernel: Kernel = "sdpa"

    @cached_property
    def times(self) -> Curve:
        """The median over rounds."""
        return medians(self.rounds)

    @property
    def spread(self) -> float | None:
        """The largest distance between two rounds at one length, over their median; None for one round."""
        found = [[curve[length] for curve in self.rounds if length in curve] for length in self.times]
        gaps = [(max(each) - min(each)) / statistics.median(each) for each in found if len(each) > 1]
        return max(gaps, default=None)


@dataclass(frozen=True)
class Finding:
    """A backend in one pass, beside the FFN in the same pass.

    Attributes:
        time, memory: fitted to the medians of seconds, and to the peaks in bytes; None below three lengths.
        cross, low, high: where its curve crosses the FFN's, see `crossing`, with the 95% interval over rounds.
        rate, ffn_rate: FLOPs of products a second, in the fitted square term and in the FFN; None for none.
        square_from: length at which the fitted square term alone takes as long as the FFN.
        matrices: the square term of the peak memory, in score matrices of ``heads T T`` numbers; counted: the same by
            `sublayer.cost`, for training steps.
    """

    measured: Measured
    ffn: Measured
    time: Fit | None
    memory: Fit | None
    cross: float | None
    low: float | None
    high: float | None
    rate: float | None
    ffn_rate: float | None
    square_from: float | None
    matrices: float | None
    counted: float | None

    @property
    def within(self) -> float | None:
        """The crossover, if it lies inside of what was measured."""
        return self.cross if self.cross is not None and 0 < self.cross < math.inf else None

    @property
    def grows(self) -> bool:
        """Is a term of the square in the time shown?"""
        found = self.time
        if found is None or found.r2 is None or found.r2 < EXPLAINED:
            return False
        return (found.b if found.b_low is None else found.b_low) > 0


def find(measured: Measured, ffn: Measured, shape: Shape, seed: int) -> Finding:
    """Fits, crossover and rates of one backend in one pass."""
    formula = shape.formula()
    time = fit_rounds(measured.rounds, seed) if len(measured.times) >= 3 else None
    peaks = {length: float(value) for length, value in measured.peaks.items() if value > 0}
    memory = fit(peaks) if len(peaks) >= 3 else None
    beside = fit(ffn.times) if len(ffn.times) >= 3 else None
    low, high = crossing_interval(measured.rounds, ffn.rounds, seed)
    products = 1 if measured.name == "forward" else 3  # the backward pass has two for each of the forward pass
    square = time.b if time else 0.0  # seconds
    linear = beside.a if beside else 0.0
    return Finding(
        measured,
        ffn,
        time,
        memory,
        crossing(measured.times, ffn.times),
        low,
        high,
        products * formula.rising / square if square > 0 else None,
        products * formula.ffn / linear if linear > 0 else None,
        linear / square if square > 0 and linear > 0 else None,
        memory.b / (shape.heads * shape.width) if memory else None,
        None if measured.name == "forward" else shape.matrices(measured.kernel),
    )
