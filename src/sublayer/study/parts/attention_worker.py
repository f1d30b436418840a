"""One measuring process of the attention study: `python -m sublayer.study.parts.attention_worker JSON OUT`.

A process of its own, so that its peak memory is nobody else's. JSON is a `Task`, written out; OUT is replaced whole
after every measurement, and holds ``"done": true`` at the end.

Memory comes first, with an allocator that hands back at once what is freed: the call is made once to warm up, and the
peak of the resident set during one more call is taken, less the resident set before it. Weights and inputs are there
before, so they are not in it; gradients are. Times come after, with the allocator set to keep what it has, as in
training.
"""

import contextlib
import ctypes
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sublayer.model import SublayerConfig
from sublayer.model.attention import SelfAttention
from sublayer.model.context import Context
from sublayer.model.ffn import FeedForward
from sublayer.model.masks import build_masks, mask_key
from sublayer.train.frame import keep_freed_memory
from sublayer.whole_files import write_atomically

MOST_CALLS = 30
ROOM = 0.8  # of the free memory that a call may be expected to need
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Task:
    """What one process measures: one subject at every length and pass.

    Attributes:
        subject: name of the attention backend, or "ffn".
        implementation, kernel: transformers' name of the backend, and which kernel of sdpa alone may run.
        lengths: tokens of a sequence, ascending.
        tokens, rows: a timed call has tokens // length rows, at least 1; or rows where tokens is 0.
        passes: "forward", "forward+backward".
        seconds: calls are repeated until they took this long, `MOST_CALLS` at most.
        memory: measure the peak too, of one row.
        lost: [pass, length, reason] that an earlier process found impossible, not tried again.
    """

    subject: str
    implementation: str
    kernel: str | None
    lengths: tuple[int, ...]
    tokens: int
    rows: int
    hidden: int
    heads: int
    ffn: int
    layers: int
    act: str
    causal: bool
    dtype: str
    passes: tuple[str, ...]
    seconds: float
    clock: str
    threads: int
    seed: int
    memory: bool
    lost: tuple[tuple[str, int, str], ...]

    @classmethod
    def read(cls, text: str) -> "Task":
        """From JSON."""
        values = json.loads(text)
        values |= {name: tuple(values[name]) for name in ("lengths", "passes")}
        return cls(**values | {"lost": tuple((p, length, reason) for p, length, reason in values["lost"])})

    def rows_at(self, length: int) -> int:
        """Rows of a timed call."""
        return max(1, self.tokens // length) if self.tokens else self.rows


class Bench:
    """The sites of a task with their weights, callable at any length."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.dtype = getattr(torch, task.dtype)
        torch.manual_seed(task.seed)
        self.config = SublayerConfig(
            design="x = x + attn(x); x = x + ffn(x)",
            hidden_size=task.hidden,
            num_attention_heads=task.heads,
            intermediate_size=task.ffn,
            hidden_act=task.act,
            position_embedding="none",
            causal=task.causal,
            attn_implementation=task.implementation,
        )
        site = FeedForward if task.subject == "ffn" else SelfAttention
        self.sites = nn.ModuleList(site(self.config) for _ in range(task.layers)).to(self.dtype)

    def call(self, length: int, rows: int, name: str) -> Callable[[], None]:
        """One pass over ``[rows, length, d]``; what it computes is dropped at once."""
        back = name != "forward"
        hidden = torch.randn(rows, length, self.task.hidden, dtype=self.dtype, requires_grad=back)
        above = torch.randn(rows, length, self.task.hidden, dtype=self.dtype)  # the gradient that comes from above
        takes = (self._context(hidden),) if self.task.subject != "ffn" else ()

        def run() -> None:
            with torch.set_grad_enabled(back), self._kernel():
                x: Tensor = hidden
                for site in self.sites:
                    x = site(x, *takes)
                if back:
                    x.backward(above)
            hidden.grad = None
            self.sites.zero_grad(set_to_none=True)

        return run

    def _context(self, hidden: Tensor) -> Context:
        """The masks, made beforehand: a model makes them once for all its layers."""
        key = mask_key("attn", None)
        return Context(masks=build_masks(self.config, frozenset({key}), hidden.detach(), None, None, None))

    def _kernel(self) -> contextlib.AbstractContextManager[Any]:
        if self.task.kernel is None:
            return contextlib.nullcontext()
        kernel: contextlib.AbstractContextManager[Any] = sdpa_kernel(SDPBackend.__members__[self.task.kernel])
        return kernel


# --- the two measurements -----------------------------------------------------------------------------------------


def seconds_of(call: Callable[[], None], clock: Callable[[], float], least: float) -> list[float]:
    """Times of repeated calls, after one to warm up, in which a backend may compile."""
    times: list[float] = []
    call()
    while len(times) < MOST_CALLS and (not times or sum(times) < least):
        begun = clock()
        call()
        times.append(clock() - begun)
    return times


def peak_of(call: Callable[[], None]) -> int:
    """Bytes by which the resident set grows at most during a call, after one call to warm up."""
    call()
    gc.collect()
    _give_back()
    before = resident()
    with contextlib.suppress(OSError):  # elsewhere the peak is that of the whole process, which lengths make grow
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    call()
    return max(0, peak() - before)


def _give_back() -> None:
    with contextlib.suppress(OSError, AttributeError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)


def _map_large_blocks() -> None:
    """Let glibc hand back every block that a call frees at once. By default it keeps those below 32 MB in its heap, and
    the resident set would hold what no longer lives."""
    threshold = -3  # M_MMAP_THRESHOLD of malloc.h
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another system, another allocator
        ctypes.CDLL(None).mallopt(threshold, 1 << 16)


def resident() -> int:
    """Bytes of this process in memory now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def peak() -> int:
    """The most that was resident since the peak was last reset."""
    with contextlib.suppress(OSError, StopIteration):
        text = Path("/proc/self/status").read_text(encoding="ascii")
        return 1024 * next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmHWM:"))
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * (1 if sys.platform == "darwin" else 1024)


def available() -> int:
    """Bytes that a process may still take."""
    import psutil

    return int(psutil.virtual_memory().available)


# --- the task -----------------------------------------------------------------------------------------------------


def measure(task: Task) -> Iterator[dict[str, Any]]:
    """Rows ``{"pass", "length", "peak"}`` and ``{"pass", "length", "rows", "seconds"}``, where seconds are of one
    site and one sequence, the median over calls; or ``{"pass", "length", "reason"}`` for what could not be run."""
    lost = {(name, length) for name, length, _ in task.lost}
    bench = Bench(task)
    if task.memory:
        _map_large_blocks()
        for name in task.passes:
            earlier: tuple[int, int] | None = None
            for length in task.lengths:
                if (name, length) in lost:
                    continue
                row: dict[str, Any] = {"pass": name, "length": length}
                try:
                    _check_room(earlier, length)
                    row["peak"] = peak_of(bench.call(length, 1, name))
                    earlier = length, row["peak"]
                except (RuntimeError, MemoryError, NotImplementedError, AssertionError) as error:
                    row["reason"] = reason(error)
                    lost.add((name, length))
                yield row
    keep_freed_memory()
    for name in task.passes:
        for length in task.lengths:
            if (name, length) in lost:
                continue
            row = {"pass": name, "length": length, "rows": task.rows_at(length)}
            try:
                call = bench.call(length, row["rows"], name)
                times = seconds_of(call, CLOCKS[task.clock], task.seconds)
                row |= {"seconds": statistics.median(times) / row["rows"] / task.layers, "calls": len(times)}
            except (RuntimeError, MemoryError, NotImplementedError, AssertionError) as error:
                row["reason"] = reason(error)
            yield row


def _check_room(earlier: tuple[int, int] | None, length: int) -> None:
    """Do not start what would take all memory: from one length to the next the peak grows by the square at most."""
    if earlier is not None:
        need, free = earlier[1] * (length / earlier[0]) ** 2, available()
        if need > ROOM * free:
            raise MemoryError(f"would need about {need / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free")


def reason(error: BaseException) -> str:
    """The first line of an error, short."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line if len(line) <= 160 else line[:159] + "…"


def main() -> None:
    """Measure, and write after each measurement; stop where the process that asked for it is gone."""
    task, out = Task.read(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(task.threads)
    rows: list[dict[str, Any]] = []
    asked_by = os.getppid()

    def write(done: bool) -> None:
        write_atomically(out, json.dumps({"done": done, "rows": rows}, indent=1) + "\n")

    for row in measure(task):
        rows.append(row)
        write(False)
        if os.getppid() != asked_by:
            return
    write(True)


if __name__ == "__main__":
    main()
