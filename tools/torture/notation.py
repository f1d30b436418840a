"""Fuzzing the notation: any text is read, printed and drawn, or refused in one message.

A text counts as failed when anything but the notation's own error comes out, when it takes more than a minute, when
what was printed is read as another design, or when the process holds more than 2 GB. Texts are a function of the seed
and their number.
"""

import collections
import random
import resource
import signal
import time
import traceback
from typing import Any

from torture import fuzz_notation, table

HANG = 60  # seconds
MOST_KIB = 2 * 1024 * 1024


class _Hung(BaseException):
    """A text took too long; no handler of errors may catch it."""


def _hung(number: int, frame: Any) -> None:
    raise _Hung


def main(arguments: list[str]) -> int:
    """Run and write the record."""
    parser = table.parser("notation", __doc__)
    parser.add_argument("--count", type=int, default=1_000_000, help="texts")
    given = parser.parse_args(arguments)
    if given.quick:
        given.count = min(given.count, 2000)
    began = time.monotonic()
    signal.signal(signal.SIGALRM, _hung)
    designs, slowest, failures = 0, 0.0, list[dict[str, Any]]()
    kinds: collections.Counter[str] = collections.Counter()
    for number in range(given.count):
        text = fuzz_notation.make(random.Random(f"{given.seed}:{number}"))
        at = time.perf_counter()
        signal.alarm(HANG)
        try:
            designs += fuzz_notation.check(text)
        except (Exception, _Hung) as error:
            kinds[type(error).__name__] += 1
            if len(failures) < 50:
                failures.append({"number": number, "text": text[:2000], "error": traceback.format_exc()[-1500:]})
        finally:
            signal.alarm(0)
        slowest = max(slowest, time.perf_counter() - at)
        if number % 2000 == 1999:
            fuzz_notation.forget()
            if number % 100_000 == 99_999:
                print(f"{number + 1} texts, {designs} designs, {sum(kinds.values())} failures", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    failed = sum(kinds.values())
    line = table.Line(
        "the notation reads any text, or refuses it in one message",
        f"{given.count:,} texts: none fails, hangs ({HANG} s) or takes over 2 GB",
        f"{given.count:,} texts ({designs:,} designs): {failed} failed {dict(kinds) if kinds else ''}"
        f"; slowest {slowest:.2f} s, {peak // 1024} MB",
        failed == 0 and peak < MOST_KIB,
    )
    return table.finish("notation", given, began, [line], {"failures": failures})
