"""Out of memory in one run of a study: the others finish, and its row says what to change, with figures.

Four ways: Python's MemoryError, torch's OutOfMemoryError, memory that the system refuses (RLIMIT_AS, met by an
allocation of torch), and the system's killer (SIGKILL). The run that meets it is the first of two of a study.
"""

import os
import re
import resource
import signal
import sys
import tempfile
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from sublayer.study import Plan
from sublayer.study.execute import execute, read_row
from sublayer.train import TrainSpec
from sublayer.train.__main__ import main as command
from sublayer.train.trainer import GuardedTrainer
from torture import runs, table

WAYS = ("MemoryError", "OutOfMemoryError", "RLIMIT_AS", "SIGKILL")
_TAKES = r"takes [\d,.]+ MB"
ADVICE = re.compile(
    rf"a step of 8 x 16 tokens {_TAKES}.*--batch 4 --accumulation 2 {_TAKES}.*--seq 8 {_TAKES}.*sublayer cost"
)


def meet(way: str) -> None:
    """Let the third step of this process's run have no memory."""
    real = GuardedTrainer.training_step

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 2:
            if way == "MemoryError":
                raise MemoryError("Unable to allocate 3.00 TiB for an array")
            if way == "OutOfMemoryError":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
            if way == "SIGKILL":
                os.kill(os.getpid(), signal.SIGKILL)
            used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
            torch.empty(1 << 28)  # a gigabyte
        return real(self, *args, **kwargs)

    GuardedTrainer.training_step = step  # type: ignore[method-assign]


def one_run(way: str, lost: str, arguments: list[str]) -> int:
    """As `python -m sublayer.train`; a run of the design `lost` has no memory in its third step."""
    if TrainSpec.load(arguments[0]).design == lost:
        meet(way)
    return command(arguments)


def main(arguments: list[str] | None = None) -> int:
    if arguments and arguments[0] == "--run":  # a run of the study, in a process of its own
        return one_run(arguments[1], arguments[2], arguments[3:])
    given = table.parser("memory", __doc__).parse_args(arguments)
    began = time.monotonic()
    lines, details = [], {}
    with tempfile.TemporaryDirectory() as temporary:
        top = Path(temporary)
        spec = runs.tiny(top, batch=8, steps=5)
        names = [line.name for line in fields(spec) if line.name not in ("design", "seed", "lr", "tokens")]
        plan = Plan.make(["post-norm", "paf"], lrs=(1e-2,), **{name: getattr(spec, name) for name in names})
        first, second = plan.runs()
        here = [sys.executable, str(Path(__file__).resolve().parent), "memory", "--run"]
        for way in WAYS[1:] if given.quick else WAYS:
            study = top / way

            def line(settings: Path, folder: Path, way: str = way) -> list[str]:
                return [*here, way, first.spec.design, str(settings), str(folder), "--no-measure", "--quiet"]

            execute(plan, study, measure=False, output=None, command=line)
            row, other = read_row(study, first) or {}, read_row(study, second) or {}
            reason = str(row.get("reason"))
            holds = row.get("status") == "killed" and "memory" in reason and bool(ADVICE.search(reason))
            details[way] = {"status": row.get("status"), "reason": reason, "other": other.get("status")}
            lines.append(
                table.Line(
                    f"out of memory in one run of a study: {way}",
                    "the other finishes; the row says what to change, with figures",
                    f"the other {other.get('status')}, {'advice with figures' if holds else 'no advice'}",
                    holds and other.get("status") == "ok",
                )
            )
    return table.finish("memory", given, began, lines, details)
