"""Where it is measured, limits of time, and what goes on when a part fails."""

import gc
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from pairs import Row, turns


class OutOfTime(BaseException):
    """A time limit rang. No Exception: a compiler that catches those would take it for a graph it cannot compile."""


@dataclass
class Bench:
    """Where and how it is measured, and what was found.

    Attributes:
        batch: rows of a training step at 512 tokens a row; at 1024 half as many.
        weights: what weights and moments are kept in; with float32 the step runs under autocast.
        compiler: backend of `torch.compile`.
        ends: on `time.monotonic`, when the part that runs must be over.
        peak: FLOP/s that a utilisation is reckoned from, and `peak_source` where the number is from.
        left_out: what could not be measured, with reasons.
        found: more of the record, by part.
    """

    device: torch.device
    quick: bool
    rounds: int
    clock: Callable[[], float]
    batch: int
    weights: torch.dtype
    compiler: str
    ends: float = float("inf")
    peak: float = float("nan")
    peak_source: str = ""
    rows: list[Row] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)
    found: dict[str, Any] = field(default_factory=dict)

    def sync(self) -> None:
        """Wait until the device has done its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def count(self, device: int, quick: int) -> int:
        """A size, by whether this is a rehearsal."""
        return quick if self.quick else device

    def autocast(self) -> AbstractContextManager[Any]:
        """bfloat16 for what runs within, if weights are float32."""
        if self.weights == torch.float32:
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def repeated(self, work: Callable[[], Any], times: int) -> Callable[[], None]:
        """``work`` so many times, and the wait for the device."""

        def run() -> None:
            for _ in range(times):
                work()
            self.sync()

        return run

    def turns(self, forms: Mapping[str, Callable[[], Any]]) -> dict[str, list[float]]:
        """Seconds of each form in each round, by turns."""
        with limited(self.ends - time.monotonic()):
            return turns(forms, self.rounds, self.clock)

    @contextmanager
    def guarded(self, work: str, seconds: float = float("inf")) -> Iterator[None]:
        """What fails within, or takes longer, is noted with its reason, and the rest goes on."""
        try:
            with limited(min(seconds, self.ends - time.monotonic())):
                yield
        except (Exception, OutOfTime) as error:
            # or what it held would stay on the device until the next failure
            traceback.clear_frames(error.__traceback__)
            said = str(error).strip().splitlines() or [""]
            self.left_out.append({"work": work, "reason": f"{type(error).__name__}: {said[0]}"[:400]})
            print(f"{work}: not measured: {self.left_out[-1]['reason']}", flush=True)
        finally:
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()


_deadlines: list[float] = []  # of the limits that are open, on `time.monotonic`


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise OutOfTime within, after so many seconds; limits may lie in one another. In the main thread only."""

    def ring(*_: Any) -> None:
        if _deadlines and min(_deadlines) <= time.monotonic():  # a limit may have closed while the bell rang
            raise OutOfTime("its time was over")

    def set_to(deadlines: Sequence[float]) -> None:
        left = min(deadlines, default=float("inf")) - time.monotonic()
        # Again each second: what rings while a destructor runs is lost.
        signal.setitimer(signal.ITIMER_REAL, *((max(left, 0.001), 1) if left < 1e6 else (0, 0)))

    if seconds <= 0:
        raise OutOfTime("no time was left for it")
    before = signal.signal(signal.SIGALRM, ring)
    _deadlines.append(time.monotonic() + seconds)
    set_to(_deadlines)
    try:
        yield
    finally:
        _deadlines.pop()
        set_to(_deadlines)
        signal.signal(signal.SIGALRM, before)


def matmul_rate(bench: Bench) -> float:
    """FLOP/s of the best of some large bfloat16 products."""
    n, times = bench.count(8192, 256), bench.count(10, 2)
    a, b = (torch.randn(n, n, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    spent = bench.turns({"product": bench.repeated(lambda: a @ b, times)})["product"]
    return 2 * n**3 * times / min(spent)
