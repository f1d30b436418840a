"""Numbers as a reader wants them: few digits, true minus signs, one way to say that there is none."""

from __future__ import annotations

import math
from collections.abc import Iterable

NONE = "–"
SPACE = "\u00a0"  # between a number and its unit: no line break
MINUS = "\u2212"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_PREFIX = tuple((10.0**power, letter) for power, letter in zip(range(24, -1, -3), [*"YZEPTGMk", ""], strict=True))


def known(value: object) -> float | None:
    """The value as a float when it is a finite number, else None. Booleans are no numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the known values; None when there are none."""
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else None


def fixed(value: object, digits: int = 3, sign: bool = False) -> str:
    """`digits` decimals: 4.620, or +0.012 with `sign`."""
    number = known(value)
    if number is None:
        return NONE
    text = f"{number:{'+' if sign else ''}.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")  # a difference that rounds to nothing has no sign
    return text.replace("-", MINUS)


def significant(value: object, digits: int = 3) -> str:
    """`digits` significant digits: 0.0123, 12.3, 1,230; powers of ten outside 1e-4 .. 1e7."""
    number = known(value)
    if number is None:
        return NONE
    if number == 0:
        return "0"
    mantissa, _, exponent = f"{number:.{digits - 1}e}".partition("e")
    power = int(exponent)
    if not -5 < power < 7:
        return f"{mantissa}×10{str(power).translate(_SUPERSCRIPT)}".replace("-", MINUS)
    return f"{float(f'{mantissa}e{power}'):,.{max(0, digits - 1 - power)}f}".replace("-", MINUS)


def count(value: object) -> str:
    """A whole number with separators: 1,230,000."""
    number = known(value)
    return NONE if number is None else f"{round(number):,}".replace("-", MINUS)


def prefix(largest: float) -> tuple[float, str]:
    """The SI step that suits the largest value of an axis or a column: (1e12, "T")."""
    for factor, letter in _PREFIX:
        if abs(largest) >= factor:
            return factor, letter
    return 1.0, ""


def scaled(value: object, unit: str = "", digits: int = 3) -> str:
    """With an SI prefix: 20.4 M, 1.23 TFLOP."""
    number = known(value)
    if number is None:
        return NONE
    factor, letter = prefix(number)
    return f"{significant(number / factor, digits)}{SPACE}{letter}{unit}".rstrip(SPACE)


def percent(value: object) -> str:
    """A fraction as per cent, two significant digits: 0.068 %."""
    number = known(value)
    return NONE if number is None else f"{significant(100 * number, 2)}{SPACE}%"


def duration(value: object) -> str:
    """Seconds as a person says them: 41 s, 3 min 12 s, 2 h 5 min."""
    number = known(value)
    if number is None:
        return NONE
    if number < 10:
        return f"{significant(number, 2)}{SPACE}s"
    whole = round(number)
    if whole < 60:
        return f"{whole}{SPACE}s"
    if whole < 3600:
        return f"{whole // 60}{SPACE}min {whole % 60}{SPACE}s"
    return f"{whole // 3600}{SPACE}h {whole % 3600 // 60}{SPACE}min"


def setting(value: object) -> str:
    """A number that a person chose, as they would write it: 0.001, not 0.00100."""
    number = known(value)
    return NONE if number is None else f"{number:g}".replace("-", MINUS)


def plural(number: int, noun: str) -> str:
    """1 seed, 2 seeds."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def loss_digits(spreads: Iterable[float | None]) -> int:
    """Decimals for losses: enough to show the seeds' spread, 3 to 5."""
    found = sorted(spread for spread in spreads if spread)
    if not found:
        return 3
    return min(5, max(3, 1 - math.floor(math.log10(found[len(found) // 2]))))
