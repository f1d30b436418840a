"""How far a run is: a bar that redraws itself in a terminal, lines in a log file, and a small file for a parent."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import IO, Any

_WIDTH = 24


class Progress:
    """Progress of one run.

    Args:
        total: steps of the run.
        path: `progress.json`, replaced whole each time: step, total, loss, seconds, eta_seconds, phase. None: no file.
        stream: where a person looks; None shows nothing.
        label: what the run is called there.
    """

    def __init__(self, total: int, path: Path | None, stream: IO[str] | None = None, label: str = "") -> None:
        self._total, self._path, self._stream, self._label = total, path, stream, label
        self._terminal = stream is not None and stream.isatty()
        self._began = time.monotonic()
        self._first: tuple[int, float] | None = None  # step and time from which speed is told
        self._written = self._shown = float("-inf")
        self._facts: dict[str, Any] = {"step": 0, "total": total, "loss": None, "eta_seconds": None}
        self.phase("starting")

    def phase(self, name: str) -> None:
        """Say what the run is at: starting, data, model, train, finish, or its final status."""
        self._facts.update(phase=name)
        self._write(time.monotonic())

    def update(self, step: int, loss: float | None) -> None:
        """A step is done (or training begins, at the step it starts from)."""
        now = time.monotonic()
        if self._first is None:
            self._first = (step, now)
        done = step - self._first[0]
        eta = (now - self._first[1]) / done * (self._total - step) if done else None
        self._facts.update(step=step, loss=loss, eta_seconds=None if eta is None else round(eta, 1))
        last = step >= self._total
        if last or now - self._written >= 0.5:
            self._write(now)
        # a terminal is redrawn often; a log file gets a line every ten seconds
        if self._stream is not None and (last or now - self._shown >= (0.2 if self._terminal else 10.0)):
            self._shown = now
            self._show(step, loss, eta)

    def say(self, text: str) -> None:
        """A line that stays, such as a score."""
        if self._stream is not None:
            clear = "\r\x1b[2K" if self._terminal else ""
            print(f"{clear}{self._label}  {text}".strip(), file=self._stream, flush=True)

    def close(self) -> None:
        """End the line of a terminal's bar."""
        if self._terminal and self._stream is not None and self._shown > float("-inf"):
            print(file=self._stream, flush=True)

    def _show(self, step: int, loss: float | None, eta: float | None) -> None:
        told = "" if loss is None else f"  loss {loss:.3f}"
        told += "" if eta is None else f"  {_clock(eta)} left"
        digits = len(str(self._total))
        line = f"{self._label}  step {step:>{digits}}/{self._total}{told}".strip()
        if self._terminal:
            filled = round(_WIDTH * step / self._total)
            print(f"\r\x1b[2K[{'#' * filled}{'.' * (_WIDTH - filled)}] {line}", end="", file=self._stream, flush=True)
        else:
            print(line, file=self._stream, flush=True)

    def _write(self, now: float) -> None:
        self._written = now
        if self._path is None:
            return
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        # nothing hangs on this file, so a full disk must not end the run here; it is written again soon
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps({**self._facts, "seconds": round(now - self._began, 1)}), encoding="utf-8")
            os.replace(temporary, self._path)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
