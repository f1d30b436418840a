"""What surrounds the training of any run: its folder, its log, its machine, and the account of a failure.

Importing this module imports no torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import os
import platform
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import sublayer
from sublayer import folders, signed

from . import checkpoint, kept, remedies
from .errors import TrainError
from .kept import DATA as DATA
from .kept import LOG as LOG
from .kept import METRICS as METRICS
from .kept import PROGRESS as PROGRESS
from .kept import RESULT
from .kept import SPEC as SPEC
from .settings import Loop, Settings
from .stopping import Interrupted

#: A run with one of these has nothing left to do.
DONE = frozenset({"ok", "diverged"})
_log = logging.getLogger("sublayer")


def finished(out: Path) -> dict[str, Any] | None:
    """The row of a run that is done (`ok` or `diverged`), or None. `run.json` is written last, so it is the proof, and
    every file that it lists is as it was then."""
    row, problem = kept.read_row(Path(out))
    return row if row is not None and problem is None and row.get("status") in DONE else None


_P = ParamSpec("_P")
_Run = Callable[Concatenate[Any, "Path | str", _P], dict[str, Any]]


def alone(run: _Run[_P]) -> _Run[_P]:
    """A function of settings and a folder that works in that folder while no other process does. Of several processes
    that train one model together (`$RANK`), the first holds the folder for all."""

    @functools.wraps(run)
    def held(spec: Any, out: Path | str, /, *args: _P.args, **kwargs: _P.kwargs) -> dict[str, Any]:
        folder = Path(out)
        if folder.exists() and not folder.is_dir():
            raise TrainError(f"{folder} is a file; give a folder for the run")
        if os.environ.get("RANK", "0") != "0":
            return run(spec, out, *args, **kwargs)
        new = not folder.exists()
        try:
            with folders.held(folders.make(folder, TrainError), TrainError, "on the run in"):
                return run(spec, out, *args, **kwargs)
        finally:
            if new:
                folders.forget(folder)  # a mistake in the settings leaves nothing behind

    return held


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions() -> dict[str, str]:
    """Versions of everything that decides a result."""
    found = {"python": platform.python_version(), "sublayer": sublayer.__version__}
    for name in ("torch", "transformers", "tokenizers"):
        found[name] = metadata.version(name)
    return found


def go_through(trainer: Any, guard: Any, newest: tuple[Path, dict[str, Any]] | None, row: dict[str, Any]) -> int:
    """Train from the newest checkpoint, or from the beginning; the step that was reached."""
    row["device"] = str(trainer.args.device)
    if newest is not None:
        guard.restore(newest[0])
        row["seconds"] = float(newest[1]["seconds"])
        _log.info("resuming from step %d", newest[1]["step"])
    guard.progress.phase("train")
    trainer.train(resume_from_checkpoint=str(newest[0]) if newest else None)
    guard.progress.phase("finish")
    return int(trainer.state.global_step)


def cut_short(row: dict[str, Any], step: int, received: int | None) -> None:
    """Put into the row that the run was stopped before its end, by a signal or a callback."""
    name = signal.Signals(received).name if received else "a callback"
    reason = f"stopped by {name} after step {step}; --resume goes on from there"
    row.update(status="killed", signal=received or None, reason=reason)


def claim(spec: Settings, out: Path, resume: bool) -> dict[str, Any] | None:
    """Make `out` this run's folder. The row of a run that is already done, or None when there is work."""
    row = examine(spec, out, resume)
    if row is None:
        begin(spec, out)
    return row


def examine(spec: Settings, out: Path, resume: bool) -> dict[str, Any] | None:
    """The row of a run that `out` holds and that is done, or None when there is work. To go on, what is damaged is set
    aside; nothing else is written.

    Raises:
        TrainError: `out` holds another run, or an unfinished one and `resume` is False.
    """
    if out.exists() and not out.is_dir():
        raise TrainError(f"{out} is a file; give a folder for the run")
    if resume:
        kept.set_aside(out)
    if not (out / SPEC).exists() or _never_began(out):
        return None
    if not resume:
        state = "a finished run" if finished(out) else "a run that is not finished"
        raise TrainError(f"{out} holds {state}; pass --resume to go on with it, or give another folder")
    changed = type(spec).load(out / SPEC).differences(spec)
    if changed:
        told = "; ".join(changed)
        raise TrainError(f"{out} holds a run with other settings ({told}); give those it began with, or another folder")
    return finished(out)


def begin(spec: Settings, out: Path) -> None:
    """Write the settings into the run's folder, which holds no result from here on until the run ends.

    Raises:
        TrainError: the folder cannot be written to.
    """
    (out / RESULT).unlink(missing_ok=True)
    try:
        out.mkdir(parents=True, exist_ok=True)
        signed.write(out / SPEC, spec.to_dict())
    except OSError as error:
        raise TrainError(f"cannot write to {out}: {error.strerror or error}; give another folder") from None


def _never_began(out: Path) -> bool:
    """Whether the folder's run failed before its first step, so that nothing is lost by beginning another there."""
    row, _ = kept.read_row(out, files=False)
    failed = row is not None and row.get("status") == "failed" and row.get("steps_done") == 0
    return failed and not any(out.glob("checkpoint-*"))


def interrupted(row: dict[str, Any], error: KeyboardInterrupt, out: Path) -> None:
    """Put into the row that a signal ended the run where it had no step to finish."""
    number = error.number if isinstance(error, Interrupted) else int(signal.SIGINT)
    kept = next((path.name for _, path in checkpoint.steps(out)), None)
    then = f"goes on from {kept}" if kept else "begins again, since no checkpoint was made"
    reason = f"stopped by {signal.Signals(number).name} before a step was finished; --resume {then}"
    row.update(status="killed", reason=reason, signal=number, eval_loss=None)


def explain(row: dict[str, Any], error: Exception, spec: Settings, out: Path) -> None:
    """Put what went wrong and what to do into the row, and its traceback into the log."""
    from .trainer import Diverged

    if isinstance(error, Diverged):
        row.update(status="diverged", reason=error.reason, steps_done=max(0, error.step - 1), eval_loss=None)
        return
    row["eval_loss"] = None
    if isinstance(error, TrainError):
        row.update(status="failed", reason=str(error))
        return
    if remedies.no_memory(error):
        row.update(status="killed", reason=f"out of memory: {_first_line(error)}; {spec.less_memory()}")
    elif remedies.no_space(error):
        with contextlib.suppress(OSError):
            checkpoint.sweep(out)  # half a checkpoint is of no use, and holds the space that is wanted
        row.update(status="failed", reason=f"a file could not be written ({_first_line(error)}): "
                   + remedies.more_space(out))  # fmt: skip
    else:
        row.update(status="failed", reason=f"{type(error).__name__}: {_first_line(error)}")
    _log.error("%s", "".join(traceback.format_exception(error)))


def conclude(row: dict[str, Any], out: Path, more: Iterable[str] = ()) -> None:
    """Write `run.json`, the proof that a run ended. If it cannot be written the row says so: nothing proves it then.
    ``more`` names files of the result beside those that every run has."""
    try:
        kept.write_row(row, out, more)
    except OSError as error:
        # it may be in place all the same, where only the folder could not be put on the disk; then it is believed
        if row["status"] not in ("failed", "killed") and finished(out) != row:
            reason = f"{RESULT} could not be written ({error.strerror or error}): {remedies.more_space(out)}"
            row.update(status="failed", reason=reason, eval_loss=None)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")


@contextlib.contextmanager
def machine(spec: Loop) -> Iterator[None]:
    """Fix what decides the order of sums: the number of threads, and deterministic kernels where there is a GPU.
    Progress bars of transformers are off: saving a model would draw one into the log."""
    import torch
    from transformers.utils import logging as messages

    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    assert spec.threads is not None
    torch.set_num_threads(spec.threads)
    bars = messages.is_progress_bar_enabled()
    messages.disable_progress_bar()
    if spec.device == "auto" and torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        if bars:
            messages.enable_progress_bar()
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


class _LogFile(logging.FileHandler):
    """A log that cannot be written ends no run, and shows no traceback; what matters is written elsewhere."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Let the line go."""

    def close(self) -> None:
        """Let the rest go."""
        with contextlib.suppress(OSError):
            super().close()


@contextlib.contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Write what this package and transformers log to a file, with times; warnings also to standard error."""
    form = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        handler: logging.Handler = _LogFile(path, encoding="utf-8")
    except OSError:
        handler = logging.NullHandler()  # what the run writes next says that nothing can be written
    handler.setFormatter(form)
    loggers = [logging.getLogger("sublayer"), logging.getLogger("transformers")]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.addHandler(handler)
    loggers[0].setLevel(logging.INFO)
    try:
        yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.removeHandler(handler)
            one.setLevel(level)
        handler.close()


def peak_memory_mb() -> float:
    """Peak resident memory of this process. `VmHWM` where there is one: `ru_maxrss` of a child can be its parent's."""
    with contextlib.suppress(OSError, StopIteration):
        text = Path("/proc/self/status").read_text(encoding="ascii")
        line = next(line for line in text.splitlines() if line.startswith("VmHWM:"))
        return round(int(line.split()[1]) / 1024, 1)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1)


def keep_freed_memory() -> None:
    """Let the allocator keep what a step frees for the next one. By default glibc hands large blocks back to the
    system, which clears every page of them again at each step: about a tenth of a small run. No number changes."""
    mmap_max, trim_threshold = -4, -1  # M_MMAP_MAX and M_TRIM_THRESHOLD of glibc's malloc.h
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another system, another allocator
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
