"""The plain numbers below `sublayer.notation.scalar`: prime factors, real powers, and how large a number may be."""

from fractions import Fraction

MAX_BITS = 2048  # size of a numerator or denominator of a power
LARGEST = Fraction(10) ** 300
_TRIAL_DIVISION = 4096


class ScalarError(ArithmeticError):
    """A scalar that has no finite real value, or is too large to handle."""


def prime_factors(value: Fraction) -> list[tuple[int, Fraction]]:
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


def real_power(base: float, exponent: Fraction | float) -> float:
    """A power that is a real number; raises ScalarError where it is none."""
    result = base ** (int(exponent) if exponent == int(exponent) else float(exponent))
    if isinstance(result, complex):
        raise ScalarError(f"{base:g} has no real power {float(exponent):g}")
    return result


def check_size(value: Fraction) -> None:
    """Raise ScalarError for a number that could not be written and read again."""
    if value and not 1 / LARGEST <= abs(value) <= LARGEST:
        raise ScalarError("a number must lie within 1e-300 and 1e300")
    if max(abs(value.numerator), value.denominator) > LARGEST:  # it is printed as one over the other
        raise ScalarError("a number must be a fraction of two numbers up to 1e300")


def check_power(base: Fraction, exponent: int) -> None:
    """Raise ScalarError for a power that would be very large, before it is computed."""
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if bits * abs(exponent) > 2 * MAX_BITS:
        raise ScalarError("the number is too large or too small")
