"""Run the runs of a plan, each in a process of its own, and keep a bar of the whole. Imports no torch."""

import contextlib
import json
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from sublayer import folders, signed
from sublayer.streams import STDERR
from sublayer.study.errors import StudyError
from sublayer.study.nursery import Forked, Nursery
from sublayer.study.plan import Plan, PlannedRun
from sublayer.train import kept
from sublayer.whole_files import write_atomically

POLL = 0.2  # seconds between looks at the children
GRACE = 60.0  # seconds a child has to save its state after a signal
LINE_EVERY = 15.0  # seconds between lines where the output is no terminal
FINISHED = ("ok", "diverged")  # states of a run that needs no further work
_log = logging.getLogger("sublayer")
TAIL = 2000  # characters of a log's end that are searched for the reason of a failure


@dataclass
class _Child:
    run: PlannedRun
    process: "subprocess.Popen[bytes] | Forked"
    before: dict[str, Any] | None  # what an earlier attempt said about its end
    began: float = field(default_factory=time.monotonic)


def run_folder(study: Path, run: PlannedRun) -> Path:
    """Folder of one run."""
    return study / "runs" / run.id


def finished(study: Path, run: PlannedRun) -> dict[str, Any] | None:
    """The row of a run that needs no further work."""
    row = read_row(study, run)
    return row if row is not None and row.get("status") in FINISHED else None


def read_row(study: Path, run: PlannedRun) -> dict[str, Any] | None:
    """What a run wrote about itself at its end; ``None``, with a warning, where that was damaged since."""
    row, problem = kept.read_row(run_folder(study, run))
    if problem is not None:
        _log.warning("%s; the run is taken for one that is not finished", problem)
        return None
    return row


def execute(
    plan: Plan,
    study: Path,
    *,
    jobs: int = 1,
    measure: bool = True,
    flops: Mapping[str, float] | None = None,
    output: IO[str] | None = STDERR,
    command: Callable[[Path, Path], list[str]] | None = None,
) -> None:
    """Run every run of ``plan`` that is not finished, ``jobs`` at a time.

    A run that fails, diverges or is killed leaves the others as they are; its row or log says why. On Ctrl-C or
    SIGTERM the
    children are told to save and stop, and the signal is raised again as KeyboardInterrupt or SystemExit(143).

    Args:
        plan: what to run.
        study: folder of the study; each run has ``runs/<id>`` in it.
        jobs: processes at once.
        measure: whether the runs look at every ``+``.
        flops: training FLOPs per token, by design id, for the records.
        output: where progress is shown, or ``None``.
        command: the command line of one run from its settings file and folder; for tests.
    """
    if jobs < 1:
        raise StudyError(f"jobs must be at least 1, got {jobs}")
    waiting = [run for run in plan.runs() if finished(study, run) is None]
    done = len(plan.runs()) - len(waiting)
    children: list[_Child] = []
    display = Display(len(plan.runs()), done, output)
    try:
        with terminating(), Nursery() as nursery:
            try:
                while waiting or children:
                    while waiting and len(children) < jobs:
                        run = waiting.pop(0)
                        flop = (flops or {}).get(run.design)
                        children.append(_start(run, study, measure, flop, command, nursery))
                    time.sleep(POLL)
                    for child in [c for c in children if c.process.poll() is not None]:
                        children.remove(child)
                        seconds = time.monotonic() - child.began
                        row = account(study, child.run, child.process.returncode or 0, seconds, child.before)
                        display.finished(child.run, row)
                    if display.due():
                        display.show({c.run.id: progress(study, c.run) for c in children})
            except BaseException:
                stop_all([child.process for child in children])
                raise
    finally:
        display.close()


@contextlib.contextmanager
def terminating() -> Iterator[None]:
    """While entered, SIGTERM raises SystemExit(143), so that children can be told to save first."""
    if not _in_main_thread():  # Python allows handlers nowhere else
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def write_spec(study: Path, run: PlannedRun) -> Path:
    """The file that a run's process reads its settings from, written if it is not there as it should be."""
    path, text = study / "specs" / f"{run.id}.json", run.spec.to_json()
    try:
        there = path.read_text(encoding="utf-8") == text
    except (OSError, ValueError):
        there = False
    if not there:
        write_atomically(path, text)
    return path


def arguments(study: Path, run: PlannedRun, measure: bool, flops: float | None) -> list[str]:
    """What `sublayer.train.__main__` is given for one run, which then begins or goes on."""
    line = [str(write_spec(study, run)), str(run_folder(study, run)), "--resume"]
    line += [] if measure else ["--no-measure"]
    return line + (["--flops-per-token", repr(flops)] if flops else [])


def _start(
    run: PlannedRun,
    study: Path,
    measure: bool,
    flops: float | None,
    command: Callable[[Path, Path], list[str]] | None,
    nursery: Nursery,
) -> _Child:
    folder = run_folder(study, run)
    folder.mkdir(parents=True, exist_ok=True)
    before, log = read_row(study, run), folder / "output.txt"
    if command is None:
        line = [*arguments(study, run, measure, flops), "--quiet"]
        return _Child(run, nursery.start("sublayer.train.__main__", line, log), before)
    with open(log, "ab") as file:
        # A session of its own: Ctrl-C reaches this process only, which tells the children to save first.
        process = subprocess.Popen(
            command(write_spec(study, run), folder),
            stdout=file, stderr=file, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    return _Child(run, process, before)


def account(study: Path, run: PlannedRun, code: int, seconds: float, before: dict[str, Any] | None) -> dict[str, Any]:
    """The row of a run whose process ended; one that could not write its own gets one that says how it died, unless
    another process works on the run by now and will write it.

    Args:
        study: the study's folder.
        run: which one.
        code: exit status of its process, below zero if a signal killed it.
        seconds: how long that took.
        before: the row that was there when it began.
    """
    row = read_row(study, run)
    if row is not None and row != before:
        return row
    spec = run.spec
    if code < 0:
        name = signal.Signals(-code).name
        hint = f"; the system may have been out of memory: give fewer --jobs; {spec.less_memory()}"
        hint = hint if name == "SIGKILL" else ""
        status, reason = "killed", f"killed by {name}{hint}"
    else:
        status, reason = "failed", _last_line(run_folder(study, run) / "output.txt") or f"exit status {code}"
    row = {"id": run.id, "design": spec.design, "seed": spec.seed, "lr": spec.lr, "status": status, "reason": reason}
    row |= {"eval_loss": None, "seconds": round(seconds, 3)}
    if folders.busy(run_folder(study, run)) is None:
        signed.write(run_folder(study, run) / kept.RESULT, row)
    return row


def stop_all(processes: "Sequence[subprocess.Popen[bytes] | Forked]") -> None:
    """Ask every process to save and stop, and end those that have not in `GRACE` seconds."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + GRACE
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(GRACE)


def _last_line(path: Path) -> str:
    try:
        text = path.read_bytes()[-TAIL:].decode("utf-8", "replace")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def progress(study: Path, run: PlannedRun) -> dict[str, Any]:
    """How far a run says it is; empty if it says nothing."""
    try:
        facts = json.loads((run_folder(study, run) / "progress.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _in_main_thread() -> bool:
    import threading

    return threading.current_thread() is threading.main_thread()


class Display:
    """The study's progress: a bar that redraws in a terminal, a line now and then elsewhere."""

    def __init__(self, total: int, done: int, output: IO[str] | None) -> None:
        self._total, self._done, self._output = total, done, output
        self._terminal = output is not None and output.isatty()
        self._shown = time.monotonic()
        self._began = time.monotonic()
        self._already = done
        if done:
            self._line(f"{done} of {total} runs are finished already")

    def finished(self, run: PlannedRun, row: Mapping[str, Any]) -> None:
        self._done += 1
        loss = row.get("eval_loss")
        told = f"held-out loss {loss:.4f}" if loss is not None else f"{row['status']}: {row.get('reason')}"
        self._line(f"[{self._done}/{self._total}] {run.id}: {told} ({row.get('seconds') or 0:.0f} s)")

    def due(self) -> bool:
        """Whether it is time to show progress again."""
        past = time.monotonic() - self._shown
        return self._output is not None and past >= (0.5 if self._terminal else LINE_EVERY)

    def show(self, running: Mapping[str, Mapping[str, Any]]) -> None:
        if self._output is None:
            return
        self._shown = time.monotonic()
        parts = [_describe(name, facts) for name, facts in running.items()]
        if not parts:
            return
        text = f"[{self._done}/{self._total}] " + "; ".join(parts)
        if self._terminal:
            width = os.get_terminal_size(self._output.fileno()).columns if self._output.fileno() >= 0 else 80
            print("\r\x1b[K" + text[: width - 1], end="", file=self._output, flush=True)
        else:
            print(text, file=self._output, flush=True)

    def close(self) -> None:
        if self._terminal and self._output is not None:
            print("\r\x1b[K", end="", file=self._output, flush=True)

    def _line(self, text: str) -> None:
        if self._output is not None:
            print(("\r\x1b[K" if self._terminal else "") + text, file=self._output, flush=True)


def _describe(name: str, facts: Mapping[str, Any]) -> str:
    """One running child in words: a bar, the step, the loss and the time left."""
    if not facts or facts.get("phase") not in ("train", "finish"):
        return f"{name}: {facts.get('phase', 'starting')}"
    step, total = facts.get("step") or 0, facts.get("total") or 1
    filled = round(12 * step / total)
    loss, eta = facts.get("loss"), facts.get("eta_seconds")
    text = f"{name} [{'#' * filled}{'.' * (12 - filled)}] step {step}/{total}"
    text += f", loss {loss:.3f}" if loss is not None else ""
    return text + (f", {eta:.0f} s left" if eta is not None else "")
