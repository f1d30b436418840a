"""Exact arithmetic on the scalars of a design: numbers, ``layer``, ``depth``, ``sqrt``, ``+ - * / **``.

A scalar is kept as a sum of monomials ``c * b1**p1 * b2**p2 ...`` with a rational ``c`` and rational exponents. A
base is a
prime, ``layer``, ``depth``, or a scalar that cannot be taken apart. Equal expressions therefore have one form:
``2**0.25 * depth**0.25`` is ``(2*depth)**0.25``. Sums are multiplied out above a division line and kept below it, so
that
``1/(layer + 1)**2`` and ``1/(layer + 1)/(layer + 1)`` are the one limit: equal numbers in two forms.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Union

MAX_TERMS = 32  # monomials in one scalar
MAX_BITS = 2048  # size of a numerator or denominator
MAX_EXPONENT = 256
MAX_POWERS = 12  # powers and sums in each other: each is a bracket or two where it is printed
MAX_EXPANDED = 4  # whole powers of sums up to this are multiplied out
LARGEST = Fraction(10) ** 300
MAX_DIGITS = 12  # decimals longer than this are printed as a fraction
_TRIAL_DIVISION = 4096


class ScalarError(ArithmeticError):
    """A scalar that has no finite real value, or is too large to handle."""


@dataclass(frozen=True)
class Power:
    """``base ** exponent`` with an exponent that depends on ``layer`` or ``depth``."""

    base: "Scalar"
    exponent: "Scalar"


Atom = Union[int, str, Power, "Scalar"]
Monomial = tuple[tuple[Atom, Fraction], ...]


@dataclass(frozen=True)
class Scalar:
    """A factor of a term: a real number that may depend on ``layer`` (1..depth) and ``depth``."""

    terms: tuple[tuple[Monomial, Fraction], ...]

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(self.terms)  # fractions are slow to hash, and each node of a graph asks again

    @staticmethod
    def number(value: int | float | Fraction) -> "Scalar":
        """An exact number; a float stands for the decimal it prints as, so ``0.1`` is one tenth."""
        if isinstance(value, float):
            if not math.isfinite(value):
                raise ScalarError(f"a scalar must be finite, got {value}")
            value = Fraction(repr(value))
        fraction = Fraction(value)
        _check_size(fraction)
        return Scalar((((), fraction),)) if fraction else ZERO

    @staticmethod
    def symbol(name: str) -> "Scalar":
        """``layer`` or ``depth``."""
        return Scalar(((((name, Fraction(1)),), Fraction(1)),))

    @property
    def is_zero(self) -> bool:
        return not self.terms

    @property
    def is_one(self) -> bool:
        return self == ONE

    @cached_property
    def constant(self) -> Fraction | None:
        """The rational value, or ``None`` if the scalar is irrational or depends on the layer."""
        if not self.terms:
            return Fraction(0)
        if len(self.terms) == 1 and not self.terms[0][0]:
            return self.terms[0][1]
        return None

    @cached_property
    def nesting(self) -> int:
        """How many powers and sums stand in each other at most."""
        parts = [atom for monomial, _ in self.terms for atom, _ in monomial]
        inner = [(a,) if isinstance(a, Scalar) else (a.base, a.exponent) for a in parts if not isinstance(a, int | str)]
        return max((1 + each.nesting for pair in inner for each in pair), default=0)

    @property
    def negative(self) -> bool:
        """Whether the scalar prints with a leading minus."""
        return bool(self.terms) and self.terms[0][1] < 0

    def __add__(self, other: "Scalar") -> "Scalar":
        return _collect(self.terms + other.terms)

    def __neg__(self) -> "Scalar":
        return Scalar(tuple((monomial, -c) for monomial, c in self.terms))

    def __sub__(self, other: "Scalar") -> "Scalar":
        return self + -other

    def __mul__(self, other: "Scalar") -> "Scalar":
        if other == ONE:  # nearly always
            return self
        if len(self.terms) * len(other.terms) > MAX_TERMS * MAX_TERMS:
            raise ScalarError("the scalar has too many terms")
        for sum_, single in ((self, other), (other, self)):
            if len(sum_.terms) > 1 and len(single.terms) == 1:
                content = sum_._content()
                primitive = Scalar(tuple((m, c / content) for m, c in sum_.terms))
                if any(atom == primitive for atom, _ in single.terms[0][0]):
                    # (layer + 1) meets a power of itself: the exponents add, and nothing is multiplied out.
                    monomial, c = _multiply(((primitive, Fraction(1)), *single.terms[0][0]))
                    return _expanded(monomial, single.terms[0][1] * content * c)
        total = ZERO
        products = []
        for m1, c1 in self.terms:
            for m2, c2 in other.terms:
                monomial, c = _multiply(m1 + m2)
                if _whole_sum(monomial):
                    total = total + _expanded(monomial, c1 * c2 * c)
                else:
                    products.append((monomial, c1 * c2 * c))
        return total + _collect(products)

    def __truediv__(self, other: "Scalar") -> "Scalar":
        return self * other.power(Scalar.number(-1))

    def power(self, exponent: "Scalar") -> "Scalar":
        """``self ** exponent``, over the positive reals; raises ScalarError where there is none."""
        p = exponent.constant
        if p is None:
            if self.is_zero:
                raise ScalarError("0 has no power that depends on the layer")
            return self if self.is_one else _of_atom(Power(self, exponent), Fraction(1))
        if abs(p) > MAX_EXPONENT or p.denominator > MAX_EXPONENT:
            raise ScalarError(f"an exponent must lie within {MAX_EXPONENT}, got {p}")
        if p == 0:
            return ONE
        if self.is_zero:
            if p < 0:
                raise ScalarError("division by zero")
            return ZERO
        if p.denominator == 1 and 0 < p <= MAX_EXPANDED and len(self.terms) > 1:
            result = self
            for _ in range(int(p) - 1):
                result = result * self
            return result
        return self._monomial_power(p)

    def _monomial_power(self, p: Fraction) -> "Scalar":
        content = self._content()
        if p.denominator != 1 and len(self.terms) > 1:
            content = abs(content)
        primitive = Scalar(tuple((m, c / content) for m, c in self.terms)) if len(self.terms) > 1 else ONE
        monomial: Monomial = self.terms[0][0] if len(self.terms) == 1 else ((primitive, Fraction(1)),)
        if p.denominator == 1:
            _check_power(content, int(p))
            merged, c = _multiply(tuple((atom, e * p) for atom, e in monomial))
            return _expanded(merged, content ** int(p) * c)
        if content < 0 and (not monomial or _positive(monomial)):
            raise ScalarError(f"a negative number has no real power {p}")
        if content < 0 or not (_positive(monomial) or (len(self.terms) > 1)):
            # The sign of the whole is unknown until layer and depth are: keep it in one piece.
            return _of_atom(self, p)
        factors = [(prime, e * p) for prime, e in _factor(content)]
        merged, c = _multiply(tuple(factors) + tuple((atom, e * p) for atom, e in monomial))
        return _expanded(merged, c)

    def _content(self) -> Fraction:
        """The rational factor that leaves coprime integer coefficients, the first one positive."""
        coefficients = [c for _, c in self.terms]
        if len(coefficients) == 1:
            return coefficients[0]
        numerator = math.gcd(*(abs(c.numerator) for c in coefficients))
        denominator = math.lcm(*(c.denominator for c in coefficients))
        return Fraction(numerator if coefficients[0] > 0 else -numerator, denominator)

    def value(self, layer: int, depth: int) -> float:
        """The number at one layer (1..depth). Raises ScalarError where it is not finite and real."""
        symbols = {"layer": layer, "depth": depth}
        try:
            total = math.fsum(float(c) * _monomial_value(monomial, symbols) for monomial, c in self.terms)
        except ZeroDivisionError:
            raise ScalarError(f"{self} divides by zero at layer {layer} of {depth}") from None
        except OverflowError:
            raise ScalarError(f"{self} is too large at layer {layer} of {depth}") from None
        if isinstance(total, complex) or not math.isfinite(total):
            raise ScalarError(f"{self} is not a finite real number at layer {layer} of {depth}")
        return total

    def __str__(self) -> str:
        return render(self, "")

    @cached_property
    def sort_key(self) -> str:
        return str(self)


def render(scalar: Scalar, factor: str) -> str:
    """The text of ``scalar * factor``; ``factor`` is an expression that binds like a call, or empty."""
    if scalar.is_zero:
        return "0"
    if len(scalar.terms) > 1:
        parts = []
        for i, (monomial, c) in enumerate(scalar.terms):
            sign = "-" if c < 0 else "+"
            text = _render_monomial(monomial, abs(c), "")
            parts.append(f" {sign} {text}" if i else ("-" if c < 0 else "") + text)
        total = "".join(parts)
        return f"({total})*{factor}" if factor else total
    (monomial, c) = scalar.terms[0]
    return ("-" if c < 0 else "") + _render_monomial(monomial, abs(c), factor)


def _render_monomial(monomial: Monomial, coefficient: Fraction, factor: str) -> str:
    """``coefficient * monomial * factor`` for a positive coefficient, primes gathered under the roots of the
    symbols."""
    roots: dict[Fraction, list[str]] = {}  # exponent -> symbols and primes under one root
    above: list[str] = []
    below: list[str] = []
    apart: list[str] = []  # divisors written one by one: as one product they would be multiplied out when read
    for atom, e in monomial:
        if isinstance(atom, str):
            roots.setdefault(e, []).append(atom)
    for atom, e in monomial:
        if isinstance(atom, int):
            for exponent in sorted(roots, reverse=True):
                if (exponent - e).denominator == 1 and exponent.denominator > 1:
                    coefficient *= Fraction(atom) ** int(e - exponent)
                    roots[exponent].insert(0, str(atom))
                    break
            else:
                roots.setdefault(e, []).insert(0, str(atom))
        elif not isinstance(atom, str):
            text = _render_atom(atom)
            if e.denominator == 1 and -MAX_EXPANDED <= e < 0:
                apart += [text] * -int(e)
            elif e == 1:
                above.append(text)
            else:
                (above if e > 0 else apart).append(_render_power([text], abs(e)))
    for exponent, bases in sorted(roots.items(), key=lambda item: (-item[0], item[1])):
        side = above if exponent > 0 else below
        if abs(exponent) == 1:
            side += bases
        else:
            side.append(_render_power(_fold_ints(bases), abs(exponent)))
    head, tail = _decimal(coefficient)
    if head != "1":
        above.insert(0, head)
    if tail != "1":
        below.insert(0, tail)
    if factor:
        above.append(factor)
    text = "*".join(above) or "1"
    if below:
        text += f"/{below[0]}" if len(below) == 1 else f"/({'*'.join(below)})"
    return text + "".join(f"/{divisor}" for divisor in apart)


def _fold_ints(bases: list[str]) -> list[str]:
    """Gather the integers of a product in one: ``2*3*depth`` is ``6*depth``."""
    product = math.prod(int(b) for b in bases if b.isdigit())
    rest = [b for b in bases if not b.isdigit()]
    return ([str(product)] if product != 1 else []) + rest


def _render_power(bases: list[str], exponent: Fraction) -> str:
    product = "*".join(bases)
    if exponent == Fraction(1, 2):
        return f"sqrt{product}" if len(bases) == 1 and product.startswith("(") else f"sqrt({product})"
    text, below = _decimal(exponent)
    power = text if below == "1" else f"({text}/{below})"
    single = len(bases) == 1 and (bases[0].isalnum() or bases[0].startswith("("))
    return f"{product}**{power}" if single else f"({product})**{power}"


def _render_atom(atom: "Atom") -> str:
    if isinstance(atom, Scalar):
        return f"({atom})"
    if isinstance(atom, Power):
        base, exponent = str(atom.base), str(atom.exponent)
        base = base if base.isalnum() else f"({base})"
        return f"({base}**{exponent if exponent.isalnum() else f'({exponent})'})"
    return str(atom)


def _decimal(value: Fraction) -> tuple[str, str]:
    """A positive fraction as ``(numerator text, denominator text)``; short decimals stay decimals: 0.25."""
    if value.denominator == 1:
        return str(value.numerator), "1"
    rest = value.denominator
    for p in (2, 5):
        while rest % p == 0:
            rest //= p
    if rest == 1:
        digits = 0
        scaled = value
        while scaled.denominator != 1 and digits <= MAX_DIGITS:
            scaled *= 10
            digits += 1
        if scaled.denominator == 1:
            text = str(scaled.numerator).rjust(digits + 1, "0")
            text = f"{text[:-digits]}.{text[-digits:]}"
            if Fraction(repr(float(text))) == value:  # as it will be read
                return text, "1"
    return str(value.numerator), str(value.denominator)


def _collect(terms: Iterable[tuple[Monomial, Fraction]]) -> Scalar:
    total: dict[Monomial, Fraction] = {}
    for monomial, c in terms:
        total[monomial] = total.get(monomial, Fraction(0)) + c
    kept = [(monomial, c) for monomial, c in total.items() if c]
    if len(kept) > MAX_TERMS:
        raise ScalarError(f"a scalar may have {MAX_TERMS} terms, got {len(kept)}")
    for _, c in kept:
        _check_size(c)
    # Symbols before numbers, as people write them: layer + 1.
    kept.sort(key=lambda item: (not item[0], [(_atom_key(a), e) for a, e in item[0]]))
    return Scalar(tuple(kept))


def _multiply(factors: Monomial) -> tuple[Monomial, Fraction]:
    """Merge equal bases; whole powers of primes move into the returned rational factor."""
    exponents: dict[Atom, Fraction] = {}
    for atom, e in factors:
        exponents[atom] = exponents.get(atom, Fraction(0)) + e
    coefficient = Fraction(1)
    kept = []
    for atom, e in exponents.items():
        if abs(e) > MAX_EXPONENT * 4:
            raise ScalarError(f"an exponent must lie within {MAX_EXPONENT}, got {e}")
        if isinstance(atom, int):
            whole = math.floor(e)
            coefficient *= Fraction(atom) ** whole
            e -= whole
        if e:
            kept.append((atom, e))
    kept.sort(key=lambda item: _atom_key(item[0]))
    return tuple(kept), coefficient


def _whole_sum(monomial: Monomial) -> "Scalar | None":
    """A sum that stands in the monomial with a small whole power, which is written out."""
    for atom, e in monomial:
        if isinstance(atom, Scalar) and e.denominator == 1 and 0 < e <= MAX_EXPANDED:
            return atom
    return None


def _expanded(monomial: Monomial, coefficient: Fraction) -> Scalar:
    """``coefficient * monomial`` with whole powers of sums multiplied out, so that they can be added to others."""
    base = _whole_sum(monomial)
    if base is None:
        return _collect([(monomial, coefficient)])
    exponent = int(next(e for atom, e in monomial if atom == base))
    result = _expanded(tuple((atom, e) for atom, e in monomial if atom != base), coefficient)
    for _ in range(exponent):
        result = result * base
    return result


def _of_atom(atom: "Atom", exponent: Fraction) -> Scalar:
    made = Scalar(((((atom, exponent),), Fraction(1)),))
    if made.nesting > MAX_POWERS:
        raise ScalarError(f"powers and sums may nest {MAX_POWERS} deep in a number")
    return made


def _atom_key(atom: "Atom") -> tuple[int, str, int]:
    if isinstance(atom, int):
        return (0, "", atom)
    if isinstance(atom, str):
        return (1, atom, 0)
    return (2 if isinstance(atom, Power) else 3, _render_atom(atom), 0)


def _positive(monomial: Monomial) -> bool:
    """Whether every base is surely positive: primes, layer, depth, and powers of positive numbers."""
    return all(
        isinstance(atom, int | str) or (isinstance(atom, Power) and (atom.base.constant or 0) > 0)
        for atom, _ in monomial
    )


def _factor(value: Fraction) -> list[tuple[int, Fraction]]:
    """A positive fraction as primes with exponents; a large cofactor stands as it is."""
    factors: list[tuple[int, Fraction]] = []
    for number, sign in ((value.numerator, 1), (value.denominator, -1)):
        prime = 2
        while prime * prime <= number and prime < _TRIAL_DIVISION:
            count = 0
            while number % prime == 0:
                number //= prime
                count += 1
            if count:
                factors.append((prime, Fraction(sign * count)))
            prime += 1 if prime == 2 else 2
        if number > 1:
            factors.append((number, Fraction(sign)))
    return factors


def _monomial_value(monomial: Monomial, symbols: dict[str, int]) -> float:
    product = 1.0
    for atom, exponent in monomial:
        if isinstance(atom, int):
            base = float(atom)
        elif isinstance(atom, str):
            base = float(symbols[atom])
        elif isinstance(atom, Scalar):
            base = atom.value(symbols["layer"], symbols["depth"])
        else:
            arguments = (symbols["layer"], symbols["depth"])
            base = _real_power(atom.base.value(*arguments), atom.exponent.value(*arguments))
        product *= _real_power(base, exponent)
    return product


def _real_power(base: float, exponent: Fraction | float) -> float:
    result = base ** (int(exponent) if exponent == int(exponent) else float(exponent))
    if isinstance(result, complex):
        raise ScalarError(f"{base:g} has no real power {float(exponent):g}")
    return result


def _check_size(value: Fraction) -> None:
    if value and not 1 / LARGEST <= abs(value) <= LARGEST:
        raise ScalarError("a number must lie within 1e-300 and 1e300")
    if max(abs(value.numerator), value.denominator) > LARGEST:  # it is printed as one over the other
        raise ScalarError("a number must be a fraction of two numbers up to 1e300")


def _check_power(base: Fraction, exponent: int) -> None:
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if bits * abs(exponent) > 2 * MAX_BITS:
        raise ScalarError("the number is too large or too small")


ZERO = Scalar(())
ONE = Scalar((((), Fraction(1)),))
SYMBOLS: dict[str, Callable[[], Scalar]] = {
    "layer": lambda: Scalar.symbol("layer"),
    "depth": lambda: Scalar.symbol("depth"),
}
