"""How long the command line takes to start, beyond a bare Python: `--help`, and `show`, which reads an equation.

    python benchmarks/start.py [--out benchmarks/start.json] [--rounds 9] [--clock wall]

A value is the difference in seconds between the command and `python -c pass` of the same round, each a process of its
own. With `--clock cpu` it is the time in which those processes ran, whatever else the machine does.
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from pairs import Row, arguments, children_seconds, turns, write

BARE = "python -c pass"
COMMANDS = {"sublayer --help": ("--help",), "sublayer show post-norm": ("show", "post-norm")}
MOST = 0.5  # seconds beyond a bare Python


def starts(*words: str) -> Callable[[], None]:
    """What runs a Python to its end."""

    def run() -> None:
        subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True)

    return run


def main() -> None:
    """Start each in turns, print a row each, write them."""
    given = arguments(__doc__, __file__, rounds=9).parse_args()
    if given.quick:
        given.rounds = min(given.rounds, 2)
    forms = {BARE: starts("-c", "pass")}
    forms |= {name: starts("-m", "sublayer", *words) for name, words in COMMANDS.items()}
    spent = turns(forms, given.rounds, children_seconds if given.clock == "cpu" else time.perf_counter)
    rows = [
        Row(
            work=name,
            against=BARE,
            values=[ours - bare for ours, bare in zip(spent[name], spent[BARE], strict=True)],
            bound="at most",
            reach=MOST,
            ours=statistics.median(spent[name]),
            theirs=statistics.median(spent[BARE]),
            note="the values are differences in seconds, not ratios",
        )
        for name in COMMANDS
    ]
    write("start", rows, given)


if __name__ == "__main__":
    main()
