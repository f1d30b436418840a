"""How a run is told to stop: SIGTERM (143) and SIGINT, which is Ctrl-C (130). Imports no torch."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """A signal stopped the run where no step is under way that could be finished; `number` says which."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class StopOnSignal:
    """While entered, SIGTERM and SIGINT stop the run.

    Within `patiently` the first one is noted, for the run to finish its step and save, and a second SIGINT interrupts
    at once; elsewhere each raises `Interrupted`, since there is nothing to save.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._patient = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignal:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    @contextlib.contextmanager
    def patiently(self) -> Iterator[None]:
        """While entered, a signal is noted and nothing more."""
        self._patient = True
        try:
            yield
        finally:
            self._patient = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        again, self.received = self.received is not None, number
        if not self._patient or (again and number == signal.SIGINT):
            raise Interrupted(number)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
