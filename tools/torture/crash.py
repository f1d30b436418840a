"""Die at every file-system call of a run: each must resume to the same weights, and no committed checkpoint be lost.

The run saves at each step and keeps one checkpoint, so that it begins, saves, saves and rotates, and writes the final
weights. Its calls that change the disk are counted once; then it is started anew for each of them and killed right
before that call, and for each write also after half of its bytes.
"""

import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sublayer.train import TrainError, checkpoint, finished
from torture import interpose, runs, table

QUICK = 12  # of the crash points


def newest_whole(out: Path) -> int:
    """Step of the newest checkpoint that is whole, or -1. Looks only."""
    for step, folder in checkpoint.steps(out):
        try:
            checkpoint.verify(folder)
        except TrainError:
            continue
        return step
    return -1


def _commits(call: interpose.Call) -> bool:
    return call.name == "rename" and call.path.endswith(f"/{checkpoint.MANIFEST}")


def crash(
    top: Path,
    action: Callable[[Path], Callable[[], int]],
    result: Callable[[Path], str],
    chosen: Callable[[list[tuple[int, int]]], list[tuple[int, int]]],
    prepare: Callable[[Path], None] | None = None,
) -> dict[str, Any]:
    """Crash one kind of run at every point that `chosen` takes of (number of the call, how).

    Args:
        top: folder for the runs.
        action: what a process does to begin or resume the run of a folder.
        result: of a run that has ended, what must be the same.
        chosen: which points.
        prepare: makes the folder that the run starts from; default: there is none.
    """
    whole, counted = top / "whole", top / "counted"
    for out in (whole, counted):
        if prepare is not None:
            prepare(out)
    if runs.wait(runs.start(action(whole), top / "whole.txt")) != 0:
        raise RuntimeError(f"an undisturbed run failed; see {top / 'whole.txt'}")
    expected = result(whole)
    log = top / "calls.txt"
    runs.wait(runs.start(interpose.armed(action(counted), counted, 0, interpose.NONE, log), top / "counted.txt"))
    calls = interpose.calls(log)
    points = [(call.number, interpose.DIE) for call in calls]
    points += [(call.number, interpose.DIE_HALF) for call in calls if call.name in interpose.WRITES]
    odd: list[str] = []
    done = identical = kept = 0
    mine = top / "mine.txt"
    for number, how in chosen(sorted(points)):
        call, out = calls[number - 1], top / "run"
        told = f"call {number} ({call.name} {call.path})" + (", half of it" if how == interpose.DIE_HALF else "")
        if prepare is not None:
            prepare(out)
        code = runs.wait(runs.start(interpose.armed(action(out), out, number, how, mine), top / "crash.txt"))
        # progress.json goes by the clock, so runs differ by a call or two: each has a list of its own
        met = interpose.calls(mine)
        if code != -signal.SIGKILL and not (code == 0 and len(met) < number):
            odd.append(f"{told}: the run ended with {code}, not killed")
        committed = max((int(c.path.split("/")[0].split("-")[1]) for c in met[:-1] if _commits(c)), default=-1)
        newest = newest_whole(out)
        if newest >= committed or finished(out) is not None:
            kept += 1
        else:
            odd.append(f"{told}: the newest whole checkpoint is of step {newest}, and {committed} was committed")
        done += 1
        code = runs.wait(runs.start(action(out), top / "resume.txt"))
        if code == 0 and result(out) == expected:
            identical += 1
        else:
            odd.append(f"{told}: resuming ended with {code}, or with other weights")
            shutil.copyfile(top / "resume.txt", top / f"odd-{number}.txt")
        shutil.rmtree(out)
    return {"calls": len(calls), "kinds": dict(Counter(call.name for call in calls)), "points": len(points),
            "tried": done, "identical": identical, "kept": kept, "odd": odd}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    given = table.parser("crash", __doc__).parse_args(arguments)
    status = interpose.again("crash", list(arguments or []))
    if status is not None:
        return status
    began, draw = time.monotonic(), random.Random(given.seed)

    def chosen(points: list[tuple[int, int]]) -> list[tuple[int, int]]:
        return sorted(draw.sample(points, QUICK)) if given.quick else points

    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        top = Path(os.path.realpath(temporary))
        spec = runs.tiny(top, steps=3, save_steps=1, keep=1)
        folder = top / "train"
        folder.mkdir()
        found["a run from its beginning"] = crash(
            folder, lambda out: lambda: runs.train(spec, out), runs.weights, chosen
        )
    lines = []
    for name, one in found.items():
        asked = f"all of {one['points']} points" if not given.quick else f"{one['tried']} of {one['points']} points"
        ends = (
            f"{one['identical']} of {one['tried']} end identically, {one['kept']} of {one['tried']} lose no checkpoint"
        )
        holds = one["identical"] == one["kept"] == one["tried"] > 0 and not one["odd"]
        lines.append(table.Line(f"killed at each file-system call: {name} ({one['calls']} calls)", asked, ends, holds))
    return table.finish("crash", given, began, lines, found)
