"""What the benchmarks are made of: forms of one piece of work that take turns, ratios of pairs, one kind of record.

A benchmark is a script `benchmarks/NAME.py` that takes `--out`, `--rounds`, `--threads`, `--clock` and `--quick` (small
shapes, to see that it runs; its figures mean nothing) and writes a record with `rows`. `sublayer bench` runs them and
shows the rows.
"""

import argparse
import gc
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from sublayer.whole_files import write_atomically

SCHEMA = "sublayer.pairs/1"
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
PACKAGES = ("sublayer", "torch", "transformers", "tokenizers", "x-transformers", "liger-kernel")


@dataclass
class Row:
    """One line of the table.

    Attributes:
        work: what is done.
        against: the peer or the limit.
        values: one ratio a pair of turns.
        bound, reach: the goal: ``at least`` or ``at most`` so much; None where there is none.
        ours, theirs: medians, in ``unit``.
        checks: that both did the same, such as the largest relative difference of the losses.
        note: what must be known to read it.
    """

    work: str
    against: str
    values: list[float]
    bound: Literal["at least", "at most"] = "at least"
    reach: float | None = None
    ours: float | None = None
    theirs: float | None = None
    unit: str = "s"
    checks: dict[str, float] = field(default_factory=dict)
    note: str = ""

    def record(self) -> dict[str, Any]:
        """The row with its median, its spread and whether the goal was reached."""
        ratio = statistics.median(self.values)
        reached = None
        if self.reach is not None:
            reached = ratio >= self.reach if self.bound == "at least" else ratio <= self.reach
        return {
            **asdict(self),
            "ratio": ratio,
            "low": min(self.values),
            "high": max(self.values),
            "rounds": len(self.values),
            "reached": reached,
        }


def arguments(doc: str | None, file: str, rounds: int = 5) -> argparse.ArgumentParser:
    """The arguments that all benchmarks take."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(file).with_suffix(".json"))
    parser.add_argument("--rounds", type=int, default=rounds, help="pairs of turns")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: only the time in which this process ran")
    parser.add_argument("--quick", action="store_true", help="small shapes: does it run?")
    return parser


def turns(forms: Mapping[str, Callable[[], Any]], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of each form in each round. All run once before, and the order turns round from one round to the next."""
    for form in forms.values():
        form()
    spent: dict[str, list[float]] = {name: [] for name in forms}
    names = list(forms)
    for turn in range(rounds):
        for name in names if turn % 2 == 0 else reversed(names):
            gc.collect()
            begin = clock()
            forms[name]()
            spent[name].append(clock() - begin)
    return spent


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """How many times as fast ours is, round by round, from seconds of the same work."""
    return [their / our for our, their in zip(ours, theirs, strict=True)]


def apart(one: Sequence[float], other: Sequence[float]) -> float:
    """The largest relative difference of two curves."""
    return max(abs(a - b) / max(abs(a), abs(b), 1e-30) for a, b in zip(one, other, strict=True))


def in_a_process(file: str, *words: str) -> str:
    """The last line that a part of a benchmark prints in a process of its own, such as a peak of memory."""
    done = subprocess.run([sys.executable, file, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{file} {' '.join(words)} ended with {done.returncode}: {done.stderr.strip()[-800:]}")
    return done.stdout.strip().splitlines()[-1]


def status(field: str) -> int:
    """A field of this process' status in KiB (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{field}:")))


def peak_kib() -> int:
    """Largest resident size of this process so far. Not getrusage's, which counts what the parent held."""
    return status("VmHWM")


def children_seconds() -> float:
    """Seconds in which the processes that this one started and saw to their end were running."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def versions() -> dict[str, str]:
    """Versions of all that decides a figure; those that are not installed are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of a record as text."""
    lines = []
    for row in rows:
        goal = "" if row["reach"] is None else f"; {row['bound']} {row['reach']:g}: {_verdict(row['reached'])}"
        checks = "".join(f"; {name} {value:.1e}" for name, value in row["checks"].items())
        times = "" if row["ours"] is None else f", {row['ours']:.4g} to {row['theirs']:.4g} {row['unit']}"
        lines.append(
            f"{row['work']} / {row['against']}: {row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f} in "
            f"{row['rounds']}{times}{goal}{checks})"
        )
    return "\n".join(lines)


def _verdict(reached: bool | None) -> str:
    return "reached" if reached else "missed"


def write(name: str, rows: Sequence[Row], given: argparse.Namespace, **more: Any) -> None:
    """Write the record and show its rows."""
    records = [row.record() for row in rows]
    record = {
        "schema": SCHEMA,
        "benchmark": name,
        "command": " ".join(["python", f"benchmarks/{name}.py", *map(_named, sys.argv[1:])]),
        "quick": given.quick,
        "rounds": given.rounds,
        "threads": given.threads,
        "clock": given.clock,
        "versions": versions(),
        "machine": {"platform": platform.platform(), "cores": os.cpu_count(), "cpu": _cpu()},
        **more,
        "rows": records,
    }
    write_atomically(given.out, json.dumps(record, indent=1, allow_nan=False) + "\n")
    print(table(records), flush=True)


def _named(word: str) -> str:
    """A word of the command line; of a path its name, since the folder is this machine's."""
    return Path(word).name if os.sep in word else word


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "not known"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "not known")
