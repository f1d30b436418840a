"""kill -9 at random times while training; the final weights must be those of a run that nobody disturbed.

Dropout 0.1; accumulation 1 and 3; 0 and 2 workers that make batches. A run is killed, resumed, and killed again at a
random time of what it still has to do, until it comes to its end; then the next one begins. Fine-tuning, which has the
same guard, is killed a few times too. How many kills fell into what the run was at is counted from what they left.
"""

import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sublayer.train import checkpoint, finished
from torture import runs, table

KILLS, QUICK = 100, 8
FINETUNE_KILLS = 10


@dataclass
class Tally:
    """What came of the kills of one setting."""

    name: str
    kills: int = 0
    ends: int = 0
    identical: int = 0
    found: Counter[str] = field(default_factory=Counter)  # what a kill left -> how often
    odd: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {"setting": self.name, "kills": self.kills, "ends": self.ends, "identical": self.identical,
                "left_by_kills": dict(self.found), "odd": self.odd}  # fmt: skip


def left(out: Path) -> str:
    """What a run that was killed was at, by what lies in its folder."""
    folders = [folder for _, folder in checkpoint.steps(out)]
    if any(not (folder / checkpoint.MANIFEST).exists() for folder in folders):
        return "while a checkpoint was written or removed"
    if (out / "model").exists():
        return "while the final weights were written"
    return "between checkpoints" if folders else "before the first checkpoint"


def torment(
    name: str,
    wanted: int,
    draw: random.Random,
    folder: Path,
    action: Callable[[Path], Callable[[], int]],
    result: Callable[[Path], str],
) -> Tally:
    """Kill runs `wanted` times, each run as often as it takes, and compare every end with an undisturbed one.

    Args:
        name: of the setting.
        wanted: kills.
        draw: when.
        folder: for the runs.
        action: what a process does to begin or resume the run of a folder.
        result: of a run that has ended, what must be the same.
    """
    tally = Tally(name)
    began = time.monotonic()
    whole = folder / "whole"
    code = runs.wait(runs.start(action(whole), folder / "whole.txt"))
    if code != 0:
        raise RuntimeError(f"an undisturbed run ended with {code}; see {folder / 'whole.txt'}")
    expected, length = result(whole), time.monotonic() - began
    out, number = folder / "run-0", 0
    while True:
        pid = runs.start(action(out), folder / "killed.txt")
        if tally.kills < wanted:
            until = time.monotonic() + draw.uniform(0.02, length)
            code = None
            while time.monotonic() < until and code is None:
                found, status = os.waitpid(pid, os.WNOHANG)
                code = os.waitstatus_to_exitcode(status) if found else None
                time.sleep(0.0005)
            if code is None:
                os.kill(pid, signal.SIGKILL)
                _, status = os.waitpid(pid, 0)
                code = os.waitstatus_to_exitcode(status)
                if code == -signal.SIGKILL:
                    tally.kills += 1
                    tally.found[left(out)] += 1
                    continue
        else:
            code = runs.wait(pid)
        if code != 0 or finished(out) is None:
            tally.odd.append(f"{out.name} ended with {code}")
            return tally
        tally.ends += 1
        same = result(out) == expected
        tally.identical += same
        if not same:
            tally.odd.append(f"{out.name} ended with other weights")
        tally.odd += [f"{out.name}: {path.name}" for path in out.glob("damaged-*")]
        if tally.kills >= wanted:
            return tally
        shutil.rmtree(out)
        number += 1
        out = folder / f"run-{number}"


def main(arguments: list[str] | None = None) -> int:
    given = table.parser("kill", __doc__).parse_args(arguments)
    began, draw = time.monotonic(), random.Random(given.seed)
    wanted = QUICK if given.quick else KILLS
    tallies = []
    with tempfile.TemporaryDirectory() as temporary:
        top = Path(temporary)
        settings = [(accumulation, workers) for accumulation in (1, 3) for workers in (0, 2)]
        for accumulation, workers in settings:
            spec = runs.tiny(top, accumulation=accumulation, workers=workers)
            name = f"accumulation {accumulation}, workers {workers}"
            folder = top / f"{accumulation}-{workers}"
            folder.mkdir()

            def action(out: Path, spec: Any = spec) -> Callable[[], int]:
                return lambda: runs.train(spec, out)

            tallies.append(torment(name, wanted // len(settings), draw, folder, action, runs.weights))
            print(f"{name}: {tallies[-1].to_dict()}", flush=True)
    kills, ends = sum(t.kills for t in tallies), sum(t.ends for t in tallies)
    same = sum(t.identical for t in tallies)
    odd = [text for t in tallies for text in t.odd]
    inside = sum(t.found["while a checkpoint was written or removed"] for t in tallies)
    lines = [
        table.Line(
            "kill -9 at random times, dropout 0.1, accumulation 1 and 3, workers 0 and 2",
            f"{wanted} kills, final weights identical every time",
            f"{kills} kills ({inside} in the middle of saving), {same} of {ends} runs identical",
            kills == wanted and same == ends > 0 and not odd,
        )
    ]
    return table.finish("kill", given, began, lines, {"settings": [t.to_dict() for t in tallies]})
