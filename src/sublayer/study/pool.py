"""A list of processes, so many at a time: what the parts of a study run their work with. Imports no torch."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sublayer.study.execute import POLL, stop_all, terminating
from sublayer.study.nursery import Forked, Nursery


@dataclass(frozen=True)
class Work:
    """One process: ``main(arguments)`` of a module, with its output appended to ``log``."""

    name: str
    module: str
    arguments: tuple[str, ...]
    log: Path


def run_all(work: Sequence[Work], jobs: int, say: Callable[[str], None]) -> dict[str, int]:
    """Run everything, ``jobs`` processes at once; the exit status of each, by name (below zero: the signal).

    One that fails leaves the others as they are. On Ctrl-C or SIGTERM the processes are told to save and stop, and the
    signal is raised again as KeyboardInterrupt or SystemExit(143).
    """
    waiting, codes = list(work), dict[str, int]()
    running: list[tuple[Work, Forked, float]] = []
    with terminating(), Nursery() as nursery:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    one = waiting.pop(0)
                    one.log.parent.mkdir(parents=True, exist_ok=True)
                    running.append((one, nursery.start(one.module, one.arguments, one.log), time.monotonic()))
                time.sleep(POLL)
                for item in [r for r in running if r[1].poll() is not None]:
                    running.remove(item)
                    one, process, began = item
                    codes[one.name] = process.returncode or 0
                    told = "done" if codes[one.name] == 0 else f"ended with status {codes[one.name]}, see {one.log}"
                    say(f"[{len(codes)}/{len(work)}] {one.name}: {told} ({time.monotonic() - began:.0f} s)")
        except BaseException:
            stop_all([process for _, process, _ in running])
            raise
    return codes
