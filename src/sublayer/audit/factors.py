"""Read a factor's formula from the numbers it takes: ``0.7071..`` at layer 2 of each depth is ``1/sqrt(layer)``.

A trace shows a multiplier as one float per layer. `fit` looks for the simplest scalar of the notation that gives every
one of them, in this order: a number; a product of powers ``c * layer**a * depth**b``, then also of a shifted base such
as ``layer + 1``; an exponential ``c * r**layer``; a sum of two or three products. What it finds is printed as a fact,
so it would rather find nothing than guess: a formula needs more samples than it has free numbers, and a dependence on
``layer`` or ``depth`` must have been seen.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import cached_property, lru_cache
from itertools import combinations

import numpy as np
import numpy.typing as npt

from sublayer.notation.numbers import ScalarError
from sublayer.notation.scalar import ONE, ZERO, Scalar

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]
Candidates = Iterator[tuple[Scalar, int]]  # with the count of free numbers

TOLERANCE, TOLERANCE_SINGLE = 1e-9, 3e-7  # relative, between a sample and the formula; for samples in float32
_NOISE, _NOISE_SINGLE = 1e-12, 1.2e-7  # error of a sample when we ask if a coefficient is one that people write
_CHANCE = 1e-4  # accepted odds that a meaningless number looks like one of the simple ones
_ROOTS = (1, 2, 3, 4, 6, 8, 12)
_SHORT, _SHORT_SINGLE = 12, 6  # a decimal of at most this many digits was typed, not computed
_SMALLEST, _LARGEST = 1e-299, 1e299

_STEPS = sorted({Fraction(i, d) for d in (1, 2, 3, 4) for i in range(-4 * d, 4 * d + 1)})  # exponents of a product
_STEP_VALUES = np.array([float(step) for step in _STEPS])
_PAIR_POWERS = [Fraction(s * i, 12) for i in (0, 3, 4, 6, 9, 12, 18, 24) for s in (1, -1) if i or s > 0]
_TRIPLE_POWERS = [Fraction(i, 4) for i in (0, 4, -4, 2, -2, 1, -1, 8, -8)]
_ROUGH = 1000  # sums that are looked at again, out of some 30 000
_SHORTLIST = 64  # sums whose coefficients are read
_OFFSETS = [Fraction(s * i, 10) for i in (10, 20, 5, 1, 30, 15, 2, 40) for s in (1, -1)]

_SHIFTS = [(1, 0, k) for k in (1, -1, 2, 3, 4)] + [(2, 0, -1), (2, 0, 1), (0, 1, 1), (0, 1, -1)]
_SHIFTS += [(-1, 1, 1), (-1, 1, 0), (1, 1, 0), (-1, 2, 0)]

_LAYER, _DEPTH = Scalar.symbol("layer"), Scalar.symbol("depth")


def fit(samples: Mapping[tuple[int, int], float]) -> Scalar | None:
    """The simplest scalar that gives every sample, or ``None`` where none is certain.

    Args:
        samples: ``(layer, depth) -> value``, layers from 1; from one depth or several, for some layers or all.

    A value that is the same everywhere is a number, also where only one depth was seen. Otherwise the formula agrees
    with every sample to a relative 1e-9 (3e-7 where the samples are float32 numbers), its coefficients and exponents
    are simple, and with ``k`` of them free there are ``k + 2`` samples that differ in what the formula depends on (in a
    formula of ``depth`` alone: ``k + 2`` samples, and more depths than terms if it has several). An exponent of 1 is
    not counted.
    """
    if not samples or not all(math.isfinite(value) for value in samples.values()):
        return None
    data = _Data.of(samples)
    middle = sorted(samples.values())[len(samples) // 2]
    if np.all(np.abs(data.y - middle) <= data.allowed):
        return number(middle) if middle == 0 or _SMALLEST < abs(middle) < _LARGEST else None
    if not data.symbols:
        return None
    with np.errstate(all="ignore"):  # a candidate that overflows is no candidate
        for stage in (_products, _exponentials, _shifted, _pairs, _triples):
            found = {str(scalar): scalar for scalar, free in stage(data) if data.confirm(scalar, free)}
            if found:
                return found[min(found, key=lambda text: (len(text), text))]
    return None


def number(value: float) -> Scalar:
    """The simplest exact form of one float: ``0.22``, ``1/3``, ``2**0.75``; else the decimal it prints as.

    A float32 number is taken for the short decimal or root that it is nearest to: 0.2199999988079071 is ``0.22``.

    Raises:
        ValueError: the value is not finite, or beyond what the notation can write (1e-300 .. 1e300).
    """
    value = float(value)
    if value == 0:
        return ZERO
    if not _SMALLEST < abs(value) < _LARGEST:
        raise ValueError(f"a number of the notation lies within 1e-300 and 1e300, got {value}; check for overflow")
    single = _is_single(value)
    printed = float(str(np.float32(value))) if single else value
    if len(_digits(value)) <= _SHORT:
        return Scalar.number(value)
    if single and len(_digits(printed)) <= _SHORT_SINGLE:
        return Scalar.number(printed)
    simple = _simple(value, _NOISE_SINGLE if single else _NOISE)
    if simple is not None and (not single or float(np.float32(simple.value(1, 1))) == value):
        return simple
    exact = Fraction(value)  # a power of two may be long in decimals
    return Scalar.number(exact if abs(exact.numerator) <= 256 else printed)


def _is_single(value: float) -> bool:
    return abs(value) < 3e38 and float(np.float32(value)) == value


def _digits(value: float) -> str:
    """The significant digits of a number as it prints."""
    return "".join(map(str, Decimal(repr(value)).as_tuple().digits)).strip("0")


@lru_cache(maxsize=4096)
def _simple(value: float, noise: float) -> Scalar | None:
    """The number a person would write for ``value``, known to a relative ``noise``; ``None`` if there is none.

    Candidates are decimals, fractions, roots of fractions, and a short decimal plus a square root; each costs about the
    product of the integers in it. Some C numbers of a cost below C lie in a unit interval, so a limit of
    ``_CHANCE / noise`` on the cost keeps a number that means nothing from being read as one of them.
    """
    size = abs(value)
    if not 1e-12 < size < 1e12:
        return None
    best, scalar = min(_CHANCE / noise, 1e8), None
    for digits in range(1, 9):
        short = float(f"{size:.{digits - 1}e}")
        if abs(short - size) <= noise * size:
            if (cost := float(_digits(short))) <= best:
                best, scalar = cost, Scalar.number(short)
            break
    for n in _ROOTS:
        fraction = _fraction(size**n, noise * n)
        if fraction and (cost := _root_cost(fraction, n)) < (best if n == 1 else min(best, 1e5)):
            best, scalar = cost, Scalar.number(fraction).power(Scalar.number(Fraction(1, n)))
    if scalar is not None and value < 0:
        scalar = -scalar
    for offset in _OFFSETS if best > 500 else ():
        rest = value - float(offset)
        square = _fraction(rest**2, 2 * noise * size / abs(rest)) if abs(rest) > 1e-3 else None
        price = 8 * abs(offset.numerator) * offset.denominator
        if square and (cost := price * _root_cost(square, 2)) < min(best, 1e5):
            root = Scalar.number(square).power(Scalar.number(Fraction(1, 2)))
            best, scalar = cost, Scalar.number(offset) + (root if rest > 0 else -root)
    return scalar


def _fraction(value: float, tolerance: float) -> Fraction | None:
    """The first convergent of a positive number's continued fraction that lies within a relative tolerance."""
    if not 1e-15 < value < 1e15:
        return None
    p0, q0, p1, q1, rest = 0, 1, 1, 0, value
    for _ in range(24):
        whole = math.floor(rest)
        p0, q0, p1, q1 = p1, q1, whole * p1 + p0, whole * q1 + q0
        if abs(p1 / q1 - value) <= tolerance * value:
            return Fraction(p1, q1)
        if rest == whole or p1 * q1 * tolerance > 1:
            return None
        rest = 1 / (rest - whole)
    return None


def _root_cost(fraction: Fraction, n: int) -> float:
    """The integers in ``fraction ** (1/n)`` multiplied, n-th powers out of the root: sqrt(49/300) is 7/10/sqrt(3)."""
    cost = float(n)
    for integer in (fraction.numerator, fraction.denominator):
        for prime in (2, 3, 5, 7, 11, 13):
            while n > 1 and integer % prime**n == 0:
                integer //= prime**n
                cost *= prime
        cost *= integer
    return cost


@dataclass(frozen=True)
class _Data:
    """The samples as arrays ``[n]``, with what they can tell."""

    layers: Array
    depths: Array
    y: Array
    single: bool  # float32 numbers
    by_layer: bool  # a dependence on the layer can be seen
    by_depth: bool

    @staticmethod
    def of(samples: Mapping[tuple[int, int], float]) -> "_Data":
        layers, depths = (np.array(column, dtype=float) for column in zip(*samples, strict=True))
        y = np.array([float(value) for value in samples.values()])
        # Numbers such as 0.5 are the same in both precisions: only a long decimal shows that it was rounded to float32.
        single = all(map(_is_single, y.tolist())) and any(len(_digits(v)) > _SHORT for v in y.tolist())
        seen: dict[int, set[int]] = {}
        for layer, depth in samples:
            seen.setdefault(depth, set()).add(layer)
        # One layer of each depth, and not the same one: nobody can say which of the two made the difference.
        by_layer = any(len(of_depth) > 1 for of_depth in seen.values()) and bool(layers.min() >= 1)
        by_depth = len(seen) > 1 and (by_layer or bool(np.all(layers == layers[0]))) and bool(depths.min() >= 1)
        return _Data(layers, depths, y, single, by_layer, by_depth)

    @cached_property
    def noise(self) -> float:
        return _NOISE_SINGLE if self.single else _NOISE

    @cached_property
    def weight(self) -> Array:
        """What an error is measured against: the sample, or a little of the largest where it is about zero."""
        size: Array = np.abs(self.y)
        return np.maximum(size, 1e-6 * size.max())

    @cached_property
    def allowed(self) -> Array:
        return self.weight * (TOLERANCE_SINGLE if self.single else TOLERANCE)

    @cached_property
    def counts(self) -> tuple[int, int]:
        """Distinct layers and depths."""
        return len(np.unique(self.layers)), len(np.unique(self.depths))

    @cached_property
    def symbols(self) -> list[tuple[Scalar, Array]]:
        """What a formula may depend on, with its values."""
        seen = ((self.by_layer, _LAYER, self.layers), (self.by_depth, _DEPTH, self.depths))
        return [(symbol, values) for usable, symbol, values in seen if usable]

    @cached_property
    def one_sign(self) -> bool:
        return bool(np.all(self.y > 0) or np.all(self.y < 0))

    def values(self, base: Scalar) -> Array | None:
        """The base at every sample, or ``None`` where it has no value."""
        try:
            return np.array([base.value(int(n), int(d)) for n, d in zip(self.layers, self.depths, strict=True)])
        except ScalarError:
            return None

    def confirm(self, scalar: Scalar, free: int) -> bool:
        """Whether the scalar gives every sample, and there are enough of them for its ``free`` numbers."""
        text = str(scalar)
        # What a formula does not depend on is no new evidence for it. A formula of the depth alone is let off: nobody
        # traces six depths. Its single power and coefficient must still be simple, and sums of it meet `_enough`.
        distinct = self.counts[0] if "layer" in text and "depth" not in text else len(self.y)
        values = self.values(scalar) if distinct >= free + 2 else None
        return values is not None and bool(np.all(np.abs(values - self.y) <= self.allowed))


def _products(data: _Data) -> Candidates:
    """``c * layer**a * depth**b``."""
    if data.one_sign:
        yield from _product(data, data.symbols)


def _shifted(data: _Data) -> Candidates:
    """``c * base**e * layer**a * depth**b`` with a base such as ``layer + 1``."""
    for shifted in _bases(data):
        values = data.values(shifted)
        if values is None or np.any((values == 0) != (data.y == 0)):
            continue
        # With many samples the exponents that are not needed come out as 0.
        for size in range(
            len(data.symbols) if len(data.y) > 8 and "layer" in str(shifted) else 0, len(data.symbols) + 1
        ):
            # Of the depth alone, two depths give any base an exponent and a coefficient.
            if "layer" in str(shifted) or data.counts[1] > size + 2:
                for others in combinations(data.symbols, size):
                    yield from _product(data, [(shifted, values), *others], extra=1)


def _bases(data: _Data) -> Iterator[Scalar]:
    """Sums ``p*layer + q*depth + k`` that people count with; ``2*layer - 1`` is the number of a sub-layer."""
    for p, q, k in _SHIFTS:
        if (data.by_layer or not p) and (data.by_depth or not q):
            yield Scalar.number(p) * _LAYER + Scalar.number(q) * _DEPTH + Scalar.number(k)


def _product(data: _Data, bases: Sequence[tuple[Scalar, Array]], extra: int = 0) -> Candidates:
    """The product of powers of the bases that fits best, if its numbers are simple."""
    kept = data.y != 0  # a zero of the only base that has one: it says nothing about the exponents
    y = data.y[kept]
    if not (np.all(y > 0) or np.all(y < 0)) or len(y) < len(bases) + 1:
        return
    logs = np.log(np.stack([values[kept] for _, values in bases], axis=1))
    matrix = np.concatenate([np.ones((len(y), 1)), logs], axis=1)
    solution, _, rank, _ = np.linalg.lstsq(matrix, np.log(np.abs(y)), rcond=None)
    if rank < matrix.shape[1] or not np.all(np.isfinite(solution)):
        return
    nearest = np.argmin(np.abs(solution[1:, None] - _STEP_VALUES), axis=1)
    if np.any(np.abs(_STEP_VALUES[nearest] - solution[1:]) > (1e-4 if data.single else 1e-7)):
        return
    exponents = [_STEPS[i] for i in nearest]
    coefficient = _simple(float(np.median(y / np.exp(logs @ _STEP_VALUES[nearest]))), data.noise)
    scalar = _build([(coefficient, [(base, e) for (base, _), e in zip(bases, exponents, strict=True)])])
    if scalar is not None:
        yield scalar, 1 + extra + sum(e not in (0, 1) for e in exponents)


def _build(terms: Iterable[tuple[Scalar | None, Sequence[tuple[Scalar, Fraction]]]]) -> Scalar | None:
    """The sum of coefficients times powers; ``None`` where a coefficient is missing or the notation cannot hold it."""
    total = ZERO
    try:
        for coefficient, powers in terms:
            if coefficient is None:
                return None
            total = total + math.prod((base.power(Scalar.number(e)) for base, e in powers), start=coefficient)
    except ScalarError:
        return None
    return total


def _exponentials(data: _Data) -> Candidates:
    """``c * r**layer``."""
    if data.by_layer and data.one_sign:
        slope, start = np.polyfit(data.layers, np.log(np.abs(data.y)), 1)
        base, first = (_simple(float(v), 4 * data.noise) for v in (np.exp(slope), np.exp(start)))
        if base is not None and first is not None and not base.is_one:
            yield (first if data.y[0] > 0 else -first) * base.power(_LAYER), 2


@dataclass(frozen=True)
class _Terms:
    """Columns a sum may be made of, each divided by the weights and scaled to length 1."""

    powers: list[tuple[Scalar, Fraction, Fraction]]  # base that depends on the layer, its exponent, the depth's
    scale: Array
    columns: Array  # [n, terms]

    @staticmethod
    def of(data: _Data, exponents: Sequence[Fraction]) -> "_Terms":
        none = [Fraction(0)]
        layer, depth = exponents if data.by_layer else none, exponents if data.by_depth else none
        powers = [(_LAYER, a, b) for a in layer for b in depth]
        if data.by_layer:
            powers += [(_LAYER + ONE, Fraction(i, 2), Fraction(0)) for i in (-2, -1, 1)]
        shifted = data.layers + 1
        columns = [
            (data.layers if p == _LAYER else shifted) ** float(a) * data.depths ** float(b) for p, a, b in powers
        ]
        matrix = np.stack(columns, axis=1) / data.weight[:, None]
        scale = np.linalg.norm(matrix, axis=0)
        return _Terms(powers, scale, matrix / scale)


def _pairs(data: _Data) -> Candidates:
    """Sums of two products."""
    terms = _Terms.of(data, _PAIR_POWERS)
    yield from _sums(data, terms, _best(terms.columns, data.y / data.weight, _ROUGH)[1])


def _triples(data: _Data) -> Candidates:
    """Sums of three products."""
    terms, goal = _Terms.of(data, _TRIPLE_POWERS), data.y / data.weight
    errors, chosen = [], []
    for i in range(len(terms.powers) - 2):
        # Take term i out of those after it and out of the goal; what is left is a search for two.
        column, others = terms.columns[:, i], terms.columns[:, i + 1 :]
        others = others - np.outer(column, column @ others)
        length = np.linalg.norm(others, axis=0)
        usable = np.flatnonzero(length > 1e-5)
        error, pairs = _best(others[:, usable] / length[usable], goal - column * (column @ goal), _ROUGH // 16)
        errors.append(error)
        chosen.append(np.column_stack([np.full(len(pairs), i), usable[pairs] + i + 1]))
    best = np.argsort(np.concatenate(errors))[:_ROUGH]
    yield from _sums(data, terms, np.concatenate(chosen)[best])


def _best(columns: Array, goal: Array, count: int) -> tuple[Array, Indices]:
    """The pairs of unit columns that leave least of the goal, ``[count, 2]``, with the square of what they leave.

    From the normal equations: fast, and right to about 1e-8 of the goal, so `_sums` looks again.
    """
    first, second = np.triu_indices(columns.shape[1], 1)
    shadow = columns.T @ goal
    cosine, s, t = (columns.T @ columns)[first, second], shadow[first], shadow[second]
    sine = 1 - cosine * cosine
    left = goal @ goal - (s * s - 2 * cosine * s * t + t * t) / np.where(sine > 1e-10, sine, np.inf)
    left += 1e-15 * (goal @ goal) / np.maximum(sine, 1e-15)  # rounding must not make a pair look better than it is
    order = np.argpartition(left, count)[:count] if len(left) > count else np.arange(len(left))
    return left[order], np.column_stack([first[order], second[order]])


def _residual(columns: Array, goal: Array) -> Array:
    """What is left of the goal ``[n]`` by its projection on each set of columns ``[sets, n, terms]``: ``[sets, n]``."""
    left = np.broadcast_to(goal, columns.shape[:2])
    basis: list[Array] = []
    for term in range(columns.shape[2]):
        direction = columns[:, :, term]
        for known in basis * 2:  # twice is enough for nearly parallel columns
            direction = direction - known * np.sum(known * direction, axis=1, keepdims=True)
        direction = direction / np.linalg.norm(direction, axis=1, keepdims=True)
        left = left - direction * np.sum(direction * left, axis=1, keepdims=True)
        basis.append(direction)
    return left


def _sums(data: _Data, terms: _Terms, chosen: Indices) -> Candidates:
    """The sums among the chosen terms that give the samples with simple coefficients."""
    goal = data.y / data.weight
    left = np.abs(_residual(terms.columns.T[chosen].transpose(0, 2, 1), goal))
    chosen = chosen[np.all(left <= data.allowed / data.weight, axis=1)]
    sets = [(indices, powers) for indices in chosen if _enough(data, powers := [terms.powers[i] for i in indices])]
    # Exponents that people use come first.
    sets.sort(key=lambda item: sum(abs(e.numerator) * e.denominator for _, a, b in item[1] for e in (a, b)))
    for indices, powers in sets[:_SHORTLIST]:
        inverse = np.linalg.pinv(terms.columns[:, indices])
        solution = inverse @ goal
        # How far a coefficient may be off: the samples' errors, as the solution passes them on.
        noise = data.noise * np.linalg.norm(inverse, axis=1) / np.maximum(np.abs(solution), 1e-12)
        values = solution / terms.scale[indices]
        coefficients = [_simple(float(value), float(error)) for value, error in zip(values, noise, strict=True)]
        scalar = _build((c, [(base, a), (_DEPTH, b)]) for c, (base, a, b) in zip(coefficients, powers, strict=True))
        if scalar is not None:
            yield scalar, len(indices) + sum(e not in (0, 1) for _, a, b in powers for e in (a, b))


def _enough(data: _Data, powers: Sequence[tuple[Scalar, Fraction, Fraction]]) -> bool:
    """Whether no part of a sum goes through any samples whatever: ``u + v*depth`` needs three depths."""
    parts = [(base, a) if a else (ONE, a) for base, a, _ in powers]
    of_depth = max(parts.count(part) for part in parts)
    of_layer = max(sum(q[2] == p[2] for q in powers) for p in powers)
    layers, depths = data.counts
    return (of_depth == 1 or of_depth < depths) and (of_layer == 1 or of_layer + 1 < layers)
