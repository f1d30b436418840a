"""Fuzzing the notation: any text is read, printed and drawn, or refused in one message.

Every text is parsed; what is a design is printed, read again, set in LaTeX and asked for its layers at two depths. The
designs among every 8th text (`--drawn 8`) are also explained, written as PyTorch code and drawn as SVG, which takes
most of the time. A text counts as failed when anything but the notation's own error comes out, when it takes more than
a minute, when what was printed is read as another design, or when the process holds more than 2 GB. Texts are a
function of the seed and their number: `--first 400000 --count 100000` does a part of them, and a record that `--out`
names is written again every 20,000 texts, so that a run which is interrupted is not lost.
"""

import argparse
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
NOTED = 20_000  # texts between two records


class _Hung(BaseException):
    """A text took too long; no handler of errors may catch it."""


def _hung(number: int, frame: Any) -> None:
    raise _Hung


class Tally:
    """What came of the texts so far."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.texts, self.designs, self.drawn, self.slowest = 0, 0, 0, 0.0
        self.kinds: collections.Counter[str] = collections.Counter()
        self.failures: list[dict[str, Any]] = []

    def one(self, number: int) -> None:
        """Make and try one text."""
        text = fuzz_notation.make(random.Random(f"{self.given.seed}:{number}"))
        drawn = number % self.given.drawn == 0
        at = time.perf_counter()
        signal.alarm(HANG)
        try:
            design = fuzz_notation.check(text, drawn)
            self.designs += design
            self.drawn += design and drawn
        except (Exception, _Hung) as error:
            self.kinds[type(error).__name__] += 1
            if len(self.failures) < 50:
                self.failures.append({"number": number, "text": text[:2000], "error": traceback.format_exc()[-1500:]})
        finally:
            signal.alarm(0)
        self.slowest = max(self.slowest, time.perf_counter() - at)
        self.texts += 1

    def line(self) -> table.Line:
        """The figure asked and the figure so far."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        failed = sum(self.kinds.values())
        return table.Line(
            "the notation reads any text, or refuses it in one message",
            f"{self.given.count:,} texts: none fails, hangs ({HANG} s) or takes over 2 GB",
            f"{self.texts:,} texts ({self.designs:,} designs, {self.drawn:,} of them drawn): {failed} failed"
            f"{f' {dict(self.kinds)}' if failed else ''}; slowest {self.slowest:.2f} s, {peak // 1024} MB",
            failed == 0 and peak < MOST_KIB and self.texts == self.given.count,
        )

    def details(self) -> dict[str, Any]:
        """For the record."""
        return {"texts": self.texts, "designs": self.designs, "drawn": self.drawn, "failures": self.failures}


def main(arguments: list[str]) -> int:
    """Run and write the record."""
    parser = table.parser("notation", __doc__)
    parser.add_argument("--count", type=int, default=1_000_000, help="texts")
    parser.add_argument("--first", type=int, default=0, help="number of the first text")
    parser.add_argument("--drawn", type=int, default=8, help="draw the designs among every so many texts")
    given = parser.parse_args(arguments)
    if given.quick:
        given.count = min(given.count, 2000)
    began = time.monotonic()
    signal.signal(signal.SIGALRM, _hung)
    tally = Tally(given)
    for number in range(given.first, given.first + given.count):
        tally.one(number)
        if number % 2000 == 1999:
            fuzz_notation.forget()
        if tally.texts % NOTED == 0:
            print(tally.line().measured, flush=True)
            if given.out is not None:
                line, details = tally.line(), tally.details()
                table.write(given.out, table.record("notation", given, began, [line], details))
    return table.finish("notation", given, began, [tally.line()], tally.details())
