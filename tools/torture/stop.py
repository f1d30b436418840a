"""SIGTERM and Ctrl-C, once and twice in a row: saved within one step, exact after --resume, exit codes 143 and 130.

The command is `sublayer train`, entered in a forked process, which sends itself the signal where it is to be met: while
data is prepared, in the command and in the run, while the model is built, in evaluations and measurements before the
first step and between steps, in a step, while a checkpoint is saved, and while the final weights are written. Then
`sublayer train` and `sublayer compare` as a shell starts them get signals at random times, loading included.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import sublayer.cli
import sublayer.study
from sublayer.train import TrainSpec, checkpoint, finished
from sublayer.train.callbacks import read_metrics
from torture import runs, table
from torture.crash import newest_whole

CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
# name -> (module, object, function that meets the signal, at which of its calls, the step that is done by then)
PLACES: dict[str, tuple[str, str, str, int, int | None]] = {
    "data is prepared by the command": ("sublayer.train.cache", "", "open_source", 1, None),
    "data is prepared by the run": ("sublayer.train.cache", "", "open_source", 2, None),
    "the model is built": ("sublayer.train.build", "", "build", 1, None),
    "evaluation before the first step": ("sublayer.train.trainer", "GuardedTrainer", "collate_held_out", 20, 0),
    "measuring before the first step": ("sublayer.probe.capture", "", "measure", 1, 0),
    "a step": ("sublayer.train.trainer", "GuardedTrainer", "training_step", 4, 3),
    "measuring between steps": ("sublayer.probe.capture", "", "measure", 3, 4),
    "evaluation between steps": ("sublayer.train.trainer", "GuardedTrainer", "evaluate", 3, 4),
    "a checkpoint is saved": ("sublayer.train.checkpoint", "", "commit", 2, 4),
    "the last evaluation": ("sublayer.train.trainer", "GuardedTrainer", "evaluate", 5, 8),
    "the final weights are written": ("sublayer.train.runner", "", "_save", 1, 8),
}
RANDOM, QUICK_RANDOM = 24, 2
STUDIES, QUICK_STUDIES = 8, 1


@dataclass
class Account:
    """What came of the signals."""

    tried: int = 0
    codes: int = 0
    saved: int = 0
    identical: int = 0
    met: Counter[str] = field(default_factory=Counter)
    odd: list[str] = field(default_factory=list)

    def line(self, name: str) -> table.Line:
        n = self.tried
        measured = f"codes {self.codes}, saved {self.saved}, identical {self.identical} of {n}"
        holds = self.codes == self.saved == self.identical == n > 0 and not self.odd
        return table.Line(name, "all: 143 or 130, saved within a step, identical", measured, holds)

    def to_dict(self) -> dict[str, Any]:
        return {"tried": self.tried, "codes": self.codes, "saved": self.saved, "identical": self.identical,
                "met": dict(self.met), "odd": self.odd}  # fmt: skip


def options(spec: TrainSpec) -> list[str]:
    """A run's settings as options of the command line."""
    names = ["layers", "hidden", "heads", "ffn", "dropout", "objective", "vocab_size", "seq", "batch", "steps", "data",
             "threads", "save_steps", "eval_every", "measure_every", "device", "cache", "workers"]  # fmt: skip
    found = ["--size", "tiny"]
    for name in names:
        found += [f"--{name.replace('_', '-')}", str(getattr(spec, name))]
    return found


def cli(arguments: list[str]) -> int:
    """The command line, in this process."""
    sys.argv = ["sublayer", *arguments]
    try:
        sublayer.cli.main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    return 0


def meeting(place: str, number: int, twice: bool, action: Callable[[], int]) -> int:
    """Do `action`, and send this process a signal at a place."""
    module, owner, name, nth, _ = PLACES[place]
    if name == "collate_held_out":  # in an evaluation: a row after the 16 that are measured
        module, owner, name = "sublayer.train.dataset", "PackedRows", "text_row"
    home: Any = sys.modules[module]
    home = getattr(home, owner) if owner else home
    real, count = getattr(home, name), 0

    def met(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == nth:
            os.kill(os.getpid(), number)
            if twice:
                os.kill(os.getpid(), number)
        return real(*args, **kwargs)

    setattr(home, name, met)
    return action()


def judge(account: Account, told: str, code: int | None, number: int, out: Path, log: Path, least: int | None,
          expected: str, spec: TrainSpec, twice: bool) -> None:  # fmt: skip
    """Judge a run that got a signal when `least` steps were done (None: before it trained); then resume it."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    account.tried += 1
    good = code == CODES[signal.Signals(number)] and "Traceback" not in text
    account.codes += good
    if not good:
        account.odd.append(f"{told}: exit code {code}, and said {text[-700:]!r}")
    done = finished(out) is not None
    most = newest_whole(out)
    at_once = twice and number == signal.SIGINT  # the second Ctrl-C does not wait
    saved = done or least is None or at_once or least <= most <= least + 1
    account.saved += saved
    if not saved:
        account.odd.append(f"{told}: {least} steps were done, and the newest checkpoint is of {most}")
    command = ["train", spec.design, "--out", str(out), "--resume", *options(spec)]
    code = runs.wait(runs.start(partial(cli, command), out.with_suffix(".resume.txt")))
    row = finished(out)
    same = code == 0 and row is not None and row["weights_sha256"] == expected
    account.identical += same
    if not same:
        account.odd.append(f"{told}: resuming ended with {code}, or with other weights")


def at_places(top: Path, spec: TrainSpec, expected: str, given: Any, draw: random.Random) -> Account:
    """A signal at every place."""
    account = Account()
    points = [(place, number, twice) for place in PLACES for number in CODES for twice in (False, True)]
    if given.quick:
        points = [(place, number, False) for place, number in zip(PLACES, [*CODES] * len(PLACES), strict=False)]
    for place, number, twice in points:
        folder = top / "place"
        out, log = folder / "run", folder / "log.txt"
        folder.mkdir()
        mine = spec.with_(cache=str(folder / "cache")) if "data" in place else spec
        command = ["train", spec.design, "--out", str(out), *options(mine)]
        code = runs.wait(runs.start(partial(meeting, place, number, twice, partial(cli, command)), log))
        told = f"{number.name}{' twice' if twice else ''} while {place}"
        judge(account, told, code, number, out, log, PLACES[place][4], expected, mine, twice)
        account.met[place] += 1
        shutil.rmtree(folder)
    return account


def at_random(top: Path, spec: TrainSpec, expected: str, given: Any, draw: random.Random) -> Account:
    """`sublayer train` as a shell starts it; the time of the signal is drawn from its start to its end."""
    account = Account()
    length = 0.0
    for turn in range(-1, QUICK_RANDOM if given.quick else RANDOM):
        out, log = top / f"random-{turn}", top / f"random-{turn}.txt"
        line = [sys.executable, "-m", "sublayer", "train", spec.design, "--out", str(out), *options(spec)]
        began = time.monotonic()
        with open(log, "wb") as stream:
            process = subprocess.Popen(line, stdout=stream, stderr=stream, start_new_session=True)
            if turn < 0:  # nobody disturbs the first: it says how long one takes
                process.wait(120)
                length = time.monotonic() - began
                continue
            time.sleep(draw.uniform(0.3, length))  # before, Python itself is starting
            number = draw.choice(list(CODES))
            records = [r["step"] for r in read_metrics(out / "metrics.jsonl") if r["kind"] == "train"]
            twice = draw.random() < 0.5
            process.send_signal(number)
            if twice:
                time.sleep(draw.uniform(0, 0.05))
                process.send_signal(number)
            code = process.wait(120)
        if code == 0:
            account.met["had ended"] += 1
            continue
        code = 128 - code if code < 0 else code  # as a shell says it, where Python had no handler yet
        phase = "while it trained" if records else "before its first step" if out.exists() else "while it loaded"
        account.met[phase] += 1
        told = f"{number.name}{' twice' if twice else ''} {phase}"
        judge(account, told, code, number, out, log, max(records, default=None), expected, spec, twice)
    return account


def studies(top: Path, spec: TrainSpec, given: Any, draw: random.Random) -> Account:
    """`sublayer compare` with two designs; afterwards its runs must be those of a study that nobody disturbed."""
    account = Account()

    def line(out: Path) -> list[str]:
        return [sys.executable, "-m", "sublayer", "compare", "post-norm", "paf", "--out", str(out), "--jobs", "1",
                "--resume", *options(spec)]  # fmt: skip

    def weights(out: Path) -> str:
        rows = sorted((p.parent.name, finished(p.parent)) for p in out.glob("runs/*/run.json"))
        return str([(name, row and row["weights_sha256"]) for name, row in rows])

    began = time.monotonic()
    whole = subprocess.run(line(top / "study"), capture_output=True, timeout=200, check=False)
    if whole.returncode != 0:
        raise RuntimeError(f"an undisturbed study failed: {whole.stderr.decode()[-500:]}")
    expected, length = weights(top / "study"), time.monotonic() - began
    for turn in range(QUICK_STUDIES if given.quick else STUDIES):
        out, log = top / f"study-{turn}", top / f"study-{turn}.txt"
        with open(log, "wb") as stream:
            process = subprocess.Popen(line(out), stdout=stream, stderr=stream, start_new_session=True)
            time.sleep(draw.uniform(0.3, length * 0.95))
            number = draw.choice(list(CODES))
            process.send_signal(number)
            code = process.wait(120)
        text = log.read_text(encoding="utf-8", errors="replace")
        if code == 0:
            account.met["had ended"] += 1
            continue
        account.tried += 1
        begun = len(list(out.glob("runs/*/metrics.jsonl")))
        account.met[f"{begun} of 2 runs begun"] += 1
        good = (128 - code if code < 0 else code) == CODES[signal.Signals(number)] and "Traceback" not in text
        account.codes += good
        half = [p for p in out.glob("runs/*") if finished(p) is None and len(read_metrics(p / "metrics.jsonl")) > 3]
        saved = all(checkpoint.steps(p) for p in half)
        account.saved += saved
        again = subprocess.run(line(out), capture_output=True, timeout=200, check=False)
        same = again.returncode == 0 and weights(out) == expected
        account.identical += same
        if not (good and same and saved):
            account.odd.append(
                f"{signal.Signals(number).name} to a study: {code}, then {again.returncode}; {text[-500:]!r}"
            )
    return account


def main(arguments: list[str] | None = None) -> int:
    given = table.parser("stop", __doc__).parse_args(arguments)
    began, draw = time.monotonic(), random.Random(given.seed)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(sublayer.__file__).parent.parent),
                                                             os.environ.get("PYTHONPATH")]))  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        top = Path(temporary)
        spec = runs.tiny(top, steps=8, save_steps=2, eval_every=2, measure_every=2)
        command = ["train", spec.design, "--out", str(top / "whole"), *options(spec)]
        if runs.wait(runs.start(partial(cli, command), top / "whole.txt")) != 0:
            raise RuntimeError(f"an undisturbed run failed: {(top / 'whole.txt').read_text()[-500:]}")
        row = finished(top / "whole")
        assert row is not None
        expected = row["weights_sha256"]
        accounts = {
            "`sublayer train`, at every place": at_places(top, spec, expected, given, draw),
            "`sublayer train`, at random times": at_random(top, spec, expected, given, draw),
            "`sublayer compare`, at random times": studies(top, spec, given, draw),
        }
    lines = [account.line(f"SIGTERM and SIGINT: {name}") for name, account in accounts.items()]
    return table.finish("stop", given, began, lines, {name: one.to_dict() for name, one in accounts.items()})
