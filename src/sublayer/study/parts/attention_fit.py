"""How a cost grows with the length of the sequence: ``c + a T + b T^2`` with coefficients that cannot be negative.

numpy is imported when a fit is made.
"""

import itertools
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

DRAWS = 1000  # of the bootstrap (Efron & Tibshirani 1993, chapter 13)
LEVEL = 0.95


@dataclass(frozen=True)
class Fit:
    """``value = c + a T + b T^2``.

    Attributes:
        c, a, b: in the unit of the values, per token and per token squared; none is negative.
        r2: share of the variance of the values that the fit explains; None where the values do not vary.
        worst: the largest distance of a value from the fit, over the value.
        b_low, b_high: 95% interval of b over repeats; None for one repeat.
    """

    c: float
    a: float
    b: float
    r2: float | None
    worst: float
    b_low: float | None = None
    b_high: float | None = None

    def __call__(self, length: float) -> float:
        return self.c + self.a * length + self.b * length**2

    def share(self, length: float) -> float:
        """Share of the quadratic term at a length."""
        return self.b * length**2 / self(length) if self(length) > 0 else 0.0


Curve = dict[int, float]  # length -> value


def fit(values: Curve) -> Fit:
    """Least squares of the relative distance, so that short sequences count as much as long ones.

    Args:
        values: value by length, positive, at three lengths at least.

    The non-negative minimum is found exactly: it is an unconstrained minimum over some of the three terms (Lawson &
    Hanson 1974, chapter 23), so each of the seven choices is solved and the best without a negative one is kept.
    """
    import numpy as np

    lengths = np.array(sorted(values), dtype=float)
    y = np.array([values[int(length)] for length in lengths])
    scale = lengths[-1]  # columns of like size
    columns = np.stack([np.ones_like(lengths), lengths / scale, (lengths / scale) ** 2], axis=1) / y[:, None]
    best, least = np.zeros(3), math.inf
    for size in (1, 2, 3):
        for chosen in itertools.combinations(range(3), size):
            found = np.linalg.lstsq(columns[:, chosen], np.ones_like(y), rcond=None)[0]
            left = float(((columns[:, chosen] @ found - 1) ** 2).sum())
            if (found >= 0).all() and left < least - 1e-15:
                best, least = np.zeros(3), left
                best[list(chosen)] = found
    c, a, b = float(best[0]), float(best[1] / scale), float(best[2] / scale**2)
    shown = c + a * lengths + b * lengths**2
    spread = float(((y - y.mean()) ** 2).sum())
    r2 = 1 - float(((y - shown) ** 2).sum()) / spread if spread > 0 else None
    return Fit(c, a, b, r2, float(np.abs(shown / y - 1).max()))


def medians(rounds: Sequence[Curve]) -> Curve:
    """The median at each length over the rounds that have it."""
    lengths = sorted({length for curve in rounds for length in curve})
    return {length: statistics.median(curve[length] for curve in rounds if length in curve) for length in lengths}


def draws(rounds: int, seed: int) -> list[tuple[int, ...]]:
    """Rounds drawn with replacement, `DRAWS` times, in order; nothing where there is one round only."""
    chance = random.Random(seed)
    return [tuple(sorted(chance.choices(range(rounds), k=rounds))) for _ in range(DRAWS)] if rounds > 1 else []


def fit_rounds(rounds: Sequence[Curve], seed: int) -> Fit:
    """The fit of the medians, with the interval of b over rounds drawn again (percentile bootstrap)."""
    center = medians(rounds)
    found = fit(center)
    known: dict[tuple[int, ...], float | None] = {}  # few rounds give few different draws

    def again(drawn: tuple[int, ...]) -> float | None:
        if drawn not in known:
            curve = medians([rounds[i] for i in drawn])
            known[drawn] = fit(curve).b if len(curve) == len(center) else None
        return known[drawn]

    slopes = [b for drawn in draws(len(rounds), seed) if (b := again(drawn)) is not None]
    low, high = interval(slopes)
    return Fit(found.c, found.a, found.b, found.r2, found.worst, low, high)


def interval(values: Sequence[float]) -> tuple[float, float] | tuple[None, None]:
    """The central 95% of values; nothing for none."""
    if not values:
        return None, None
    order = sorted(values)
    rest = (1 - LEVEL) / 2
    return order[round(rest * (len(order) - 1))], order[round((1 - rest) * (len(order) - 1))]


def crossing(rising: Curve, other: Curve) -> float | None:
    """The first length at which `rising` reaches `other`, by a straight line between logarithms.

    Returns:
        the length; 0 where it is above at every length in common; infinity where it never gets there; None where they
        have no two lengths in common.
    """
    lengths = sorted(set(rising) & set(other))
    if len(lengths) < 2:
        return None
    gaps = [math.log(rising[length] / other[length]) for length in lengths]
    if gaps[0] >= 0:
        return 0.0
    for i in range(1, len(lengths)):
        if gaps[i] >= 0:
            left, right = math.log(lengths[i - 1]), math.log(lengths[i])
            return math.exp(left + (right - left) * -gaps[i - 1] / (gaps[i] - gaps[i - 1]))
    return math.inf


def crossing_interval(rising: Sequence[Curve], other: Sequence[Curve], seed: int) -> tuple[float | None, float | None]:
    """The 95% interval of `crossing` over rounds drawn again, the same rounds of both; None for a bound that lies
    outside of the lengths."""
    known: dict[tuple[int, ...], float | None] = {}
    places = []
    for drawn in draws(len(rising), seed):
        if drawn not in known:
            known[drawn] = crossing(medians([rising[i] for i in drawn]), medians([other[i] for i in drawn]))
        place = known[drawn]
        if place is not None:
            places.append(place)
    low, high = interval(places)
    inside = [bound if bound is not None and 0 < bound < math.inf else None for bound in (low, high)]
    return inside[0], inside[1]
