"""A full disk at every call that needs space: what is committed stays, the message says what to do, resuming is exact.

The same run as of `crash`. From its n-th call that needs space on every further one fails with ENOSPC until the process
has ended, a write after half of its bytes; or only that one call fails, as when someone else frees space at once. Then,
with space again, the run is resumed. Last, a real disk: a tmpfs of a few hundred kilobytes where it can be mounted
(root), and a limit on the size of files (RLIMIT_FSIZE) everywhere.
"""

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from sublayer.train import TrainSpec
from sublayer.train.__main__ import main as command
from torture import interpose, runs, table
from torture.crash import newest_whole

QUICK = 10  # of the points, each in both ways
TOLD = re.compile(r"free some space on the disk of .*--resume|cannot write to .*give another folder", re.DOTALL)


class Account:
    """What came of the runs that met a full disk."""

    def __init__(self, expected: str, log: Path) -> None:
        self.expected, self.log = expected, log
        self.tried = self.kept = self.clear = self.identical = self.unharmed = 0
        self.said: Counter[str] = Counter()
        self.odd: list[str] = []

    def add(self, told: str, out: Path, code: int | None, before: int, again: Callable[[], int]) -> None:
        """Judge a run that has met a full disk and ended with `code`; then resume it.

        Args:
            told: which point it is.
            before: the newest checkpoint that is whole must be of this step at least.
            again: what a process does to resume it.
        """
        self.tried += 1
        text = self.log.read_text(encoding="utf-8", errors="replace")
        row = json.loads((out / "run.json").read_text(encoding="utf-8")) if (out / "run.json").exists() else None
        if code == 0:  # what failed was of no weight, such as progress.json, the log, or the flush of a folder
            self.unharmed += 1
            self.clear += "Traceback" not in text
        elif (
            code in (1, 2)
            and TOLD.search(text)
            and "Traceback" not in text
            and (row is None or row["status"] == "failed")
        ):
            self.clear += 1
        else:
            self.odd.append(f"{told}: ended with {code}, and said {text[-600:]!r}")
        self.said[re.sub(r"/\S+|\d+", "_", text.strip().splitlines()[-1])[:120] if text.strip() else ""] += 1
        self.kept += newest_whole(out) >= before
        code = runs.wait(runs.start(again, out.with_suffix(".resume.txt")))
        if code == 0 and runs.weights(out) == self.expected:
            self.identical += 1
        else:
            self.odd.append(f"{told}: resuming ended with {code}, or with other weights")

    def to_dict(self) -> dict[str, Any]:
        return {"tried": self.tried, "kept": self.kept, "clear": self.clear, "identical": self.identical,
                "went_on": self.unharmed, "said": dict(self.said), "odd": self.odd}  # fmt: skip

    def line(self, name: str, asked: str) -> table.Line:
        n = self.tried
        measured = f"kept {self.kept}, clear {self.clear}, identical {self.identical} of {n} ({self.unharmed} went on)"
        return table.Line(name, asked, measured, self.kept == self.clear == self.identical == n > 0 and not self.odd)


def train(spec: TrainSpec, out: Path, settings: Path | None = None) -> int:
    """As `python -m sublayer.train`, which prints what a person sees; `settings` is a file beside the run's folder."""
    settings = settings or out.with_suffix(".json")
    settings.write_text(spec.to_json(), encoding="utf-8")
    return command([str(settings), str(out), "--resume", "--no-measure", "--quiet"])


def injected(top: Path, given: Any, draw: random.Random) -> Account:
    """ENOSPC at every call that needs space."""
    spec = runs.tiny(top, steps=3, save_steps=1, keep=1)
    log, counted, out = top / "calls.txt", top / "counted", top / "run"
    expected = runs.whole(spec, top / "whole")
    runs.wait(runs.start(interpose.armed(lambda: train(spec, counted), counted, 0, interpose.NONE, log)))
    calls = interpose.calls(log)
    points = [(call.number, how) for call in calls if call.needs_space for how in (interpose.FULL, interpose.FULL_ONCE)]
    if given.quick:
        points = sorted(draw.sample(points, QUICK))
    committed = [(c.number, int(c.path.split("/")[0].split("-")[1])) for c in calls
                 if c.name == "rename" and c.path.endswith("/manifest.json")]  # fmt: skip
    account = Account(expected, top / "full.txt")
    for number, how in points:
        account.log.unlink(missing_ok=True)
        code = runs.wait(runs.start(interpose.armed(lambda: train(spec, out), out, number, how), account.log))
        before = max((step for at, step in committed if at < number), default=-1)
        call = calls[number - 1]
        told = f"call {number} ({call.name} {call.path}), {'from here on' if how == interpose.FULL else 'once'}"
        account.add(told, out, code, before, lambda: train(spec, out))
        shutil.rmtree(out)
    return account


def mounted(top: Path, given: Any) -> Account | None:
    """A tmpfs too small for one checkpoint, for two, for the final weights; None where it cannot be mounted."""
    spec = runs.tiny(top, steps=4, save_steps=1, keep=1)
    expected = runs.whole(spec, top / "whole-4")
    account = Account(expected, top / "full.txt")
    disk = top / "disk"
    disk.mkdir(exist_ok=True)
    for size in (60, 200, 400) if given.quick else range(20, 620, 20):
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", str(disk)]
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            return None
        try:
            account.log.unlink(missing_ok=True)
            act = partial(train, spec, disk / "run", top / "settings.json")
            code = runs.wait(runs.start(act, account.log))
            subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
            (disk / "run").mkdir(exist_ok=True)
            account.add(f"a disk of {size} kB", disk / "run", code, -1, act)
        finally:
            subprocess.run(["umount", str(disk)], check=True)
    return account


def limited(top: Path, given: Any) -> Account:
    """A limit on the size of a file, which is met in the middle of one."""
    spec = runs.tiny(top, steps=4, save_steps=1, keep=1)
    account = Account(runs.whole(spec, top / "whole-l"), top / "full.txt")
    for kilobytes in (8, 32) if given.quick else (2, 4, 8, 16, 24, 32, 40, 48, 64):
        out = top / f"limited-{kilobytes}"
        account.log.unlink(missing_ok=True)

        def act(kilobytes: int = kilobytes, out: Path = out) -> int:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python does at its start: an error, not an end
            resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1024, resource.RLIM_INFINITY))
            return train(spec, out)

        code = runs.wait(runs.start(act, account.log))
        out.mkdir(exist_ok=True)
        account.add(f"files of at most {kilobytes} kB", out, code, -1, partial(train, spec, out))
    return account


def main(arguments: list[str] | None = None) -> int:
    given = table.parser("full", __doc__).parse_args(arguments)
    status = interpose.again("full", list(arguments or []))
    if status is not None:
        return status
    began, draw = time.monotonic(), random.Random(given.seed)
    with tempfile.TemporaryDirectory() as temporary:
        top = Path(os.path.realpath(temporary))
        accounts = {"each call that needs space fails (ENOSPC)": injected(top, given, draw)}
        accounts["files have a largest size (RLIMIT_FSIZE)"] = limited(top, given)
        small = mounted(top, given)
        if small is not None:
            accounts["a small tmpfs"] = small
    asked = "all: kept, clear, identical after"
    lines = [account.line(f"disk full: {name}", asked) for name, account in accounts.items()]
    return table.finish("full", given, began, lines, {name: one.to_dict() for name, one in accounts.items()})
