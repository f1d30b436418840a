"""The kind `attention`: what one attention call site costs beside the FFN, at each length and on each backend.

    - kind: attention
      lengths: [128, 256, 512, 1024, 2048, 4096, 8192]
      hidden: 256
      heads: 4
      passes: [forward, forward+backward]

Imports no torch: each measurement is a process of its own (`attention_worker`), and what is measured stays in
`measured/`, so that an interrupted part measures only what is missing.
"""

import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from sublayer.study.errors import StudyError
from sublayer.study.parts.attention_findings import FFN, Kernel, Measured, Shape
from sublayer.study.parts.attention_show import show
from sublayer.study.parts.part import Part, Result, Setting
from sublayer.study.results import machine
from sublayer.train.frame import cores
from sublayer.whole_files import write_atomically

# name -> (transformers' name of the backend, the one kernel of sdpa that may run, what `sublayer cost` takes it for)
BACKENDS: dict[str, tuple[str, str | None, Kernel]] = {
    "eager": ("eager", None, "eager"),
    "sdpa-math": ("sdpa", "MATH", "sdpa"),
    "sdpa-flash": ("sdpa", "FLASH_ATTENTION", "sdpa"),
    "sdpa-efficient": ("sdpa", "EFFICIENT_ATTENTION", "sdpa"),
    "flex": ("flex_attention", None, "sdpa"),
}
NO_BACKEND: tuple[str, str | None, Kernel] = ("sdpa", None, "sdpa")  # of the FFN, which asks for none
PASSES = ("forward", "forward+backward")
METHOD = 1  # goes up when the worker measures in another way: what was measured before is then not taken up
TAIL = 2000  # characters of a log that are searched for the reason of a failure
Json = dict[str, Any]


class AttentionCost(Part):
    """Time and peak memory of an attention call site and of the FFN against the length of the sequence.

    A call site is ``attn(x)`` with its four projections, as a model runs it, without norm and residual; so is the FFN.
    A round measures every backend and the FFN once, each in a fresh process and in turn, and the next round starts
    with another one; a round's time is the median of its calls, a result the median of the rounds. Peak memory is
    measured in the first round.

    To the medians ``t = c + a T + b T^2`` is fitted, by least squares of the relative distance with no negative
    coefficient; the interval of b is a percentile bootstrap over rounds. The formula is that of `sublayer.cost`: FLOPs
    of the matrix products, ``8 d^2 + 4 T d`` a token in attention and ``4 d d_ff`` in an FFN without a gate.

    Rules of the verdict, the same for every backend and pass:

    - "grows with the square": the 95% interval of b lies above 0 (with one round: b is above 0), and the fit explains
      at least 98% of the variance. "not shown" otherwise.
    - "costs as much as the FFN from T": the first crossing of the two measured curves, by a straight line between
      logarithms; never extrapolated. It "agrees" with the formula within a factor of 1.25, or "comes sooner" or
      "later".
    - peak memory "grows with the square" where the quadratic term is at least half of the fitted peak at the longest
      sequence, "in proportion" where it is at most a tenth, "in between" otherwise.

    Settings:
        lengths: tokens of a sequence, ascending, three at least.
        backends: of eager, sdpa-math, sdpa-flash, sdpa-efficient, flex. Default: all. What cannot run here is lost,
            with the reason, and stays in the tables.
        rows: sequences of a timed call (default 1); or tokens: of a timed call, so that short sequences are measured
            in batches. Times are of one sequence either way; memory is always of one.
        hidden, heads, ffn, act: of the model; ffn is 4 hidden by default, act gelu.
        layers: call sites one after another, 1 or 2; times are of one.
        causal: whether a token sees only itself and earlier ones (default false).
        dtype: float32 or bfloat16.
        passes: forward, forward+backward. Default: both.
        repeats, seeds: rounds for each seed (default 5 of seed 0); the seed draws weights and inputs.
        seconds: a round repeats a call until it took this long (default 0.3).
        threads: of each process. Default: as many as cores.
        clock: wall, or cpu for the time in which the process ran, on a busy machine.
    """

    def check(self) -> None:
        """Raise StudyError for a setting that does not fit."""
        self.only(
            "lengths", "backends", "rows", "tokens", "hidden", "heads", "ffn", "act", "layers", "causal", "dtype",
            "passes", "repeats", "seeds", "seconds", "threads", "clock",
        )  # fmt: skip
        self.lengths = self._list("lengths", int, None)
        if len(self.lengths) < 3 or self.lengths != sorted(set(self.lengths)) or self.lengths[0] < 1:
            raise StudyError(
                f"lengths of part {self.name!r} must be at least 3 ascending numbers of tokens, because three "
                f"coefficients are fitted; got {self.lengths}"
            )
        self.backends = self._chosen("backends", tuple(BACKENDS))
        self.passes = self._chosen("passes", PASSES)
        self.seeds = self._list("seeds", int, [0])
        if "rows" in self.settings and "tokens" in self.settings:
            raise StudyError(f"part {self.name!r} takes rows or tokens of a timed call, not both: leave one out")
        self.hidden = self._count("hidden", 256)
        self.heads = self._count("heads", max(1, self.hidden // 64))
        if self.hidden % self.heads:
            raise StudyError(f"heads ({self.heads}) of part {self.name!r} must divide hidden ({self.hidden})")
        self.ffn = self._count("ffn", 4 * self.hidden)
        self.layers = self._count("layers", 1)
        if self.layers > 2:
            raise StudyError(f"layers of part {self.name!r} must be 1 or 2 call sites in a row, got {self.layers}")
        self.rounds = self._count("repeats", 5) * len(self.seeds)
        self.threads = self._count("threads", cores())
        self.seconds = float(self.take("seconds", (int, float), 0.3))
        if self.seconds <= 0:
            raise StudyError(f"seconds of part {self.name!r} must be above 0, got {self.seconds}")
        self.dtype = self._one_of("dtype", ("float32", "bfloat16"))
        self.clock = self._one_of("clock", ("wall", "cpu"))
        self.causal = bool(self.take("causal", bool, False))
        self.act = str(self.take("act", str, "gelu"))
        self.shape = Shape(
            self.hidden, self.heads, self.ffn, self.act, 4 if self.dtype == "float32" else 2, self.layers
        )
        self.shape.formula()  # raises CostError for sizes that no model can have

    def _count(self, key: str, default: int) -> int:
        value = int(self.take(key, int, default))
        if value < 1:
            raise StudyError(f"{key} of part {self.name!r} must be at least 1, got {value}")
        return value

    def _list(self, key: str, kind: type, default: list[Any] | None) -> list[Any]:
        values: list[Any] = self.take(key, list, default, need=default is None)
        if not values or not all(isinstance(value, kind) and not isinstance(value, bool) for value in values):
            raise StudyError(f"{key} of part {self.name!r} must be a list of {kind.__name__}, got {values!r}")
        return values

    def _chosen(self, key: str, known: Sequence[str]) -> list[str]:
        values = self._list(key, str, list(known))
        for value in values:
            if value not in known or values.count(value) > 1:
                raise StudyError(f"{key} of part {self.name!r} are of {', '.join(known)}, each once; got {value!r}")
        return values

    def _one_of(self, key: str, known: Sequence[str]) -> str:
        value = str(self.take(key, str, known[0]))
        if value not in known:
            raise StudyError(f"{key} of part {self.name!r} is one of {', '.join(known)}, got {value!r}")
        return value

    # --- measuring ------------------------------------------------------------------------------------------------

    def run(self, at: Setting) -> Result:
        """Measure what is missing, one process at a time whatever ``jobs`` says, and fit."""
        place = at.folder / "measured"
        place.mkdir(parents=True, exist_ok=True)
        lost: dict[str, list[tuple[str, int, str]]] = {}
        found: dict[tuple[str, int], list[Json]] = {}
        subjects = [FFN, *self.backends]
        for number in range(self.rounds):
            turn = number % len(subjects)
            for subject in [*subjects[turn:], *subjects[:turn]]:
                task = self._task(subject, number, lost.get(subject, []))
                if len(task["lost"]) == len(self.passes) * len(self.lengths):  # nothing of it runs here
                    found[subject, number] = []
                    continue
                rows = self._measured(task, place / f"{subject}-{number}.json", at, number)
                found[subject, number] = rows
                new = [(row["pass"], row["length"], row["reason"]) for row in rows if "reason" in row]
                lost[subject] = [*lost.get(subject, []), *new]
        measured = []
        for name in self.passes:
            for subject in subjects:
                rounds = [[row for row in found[subject, n] if row["pass"] == name] for n in range(self.rounds)]
                times = [{row["length"]: row["seconds"] for row in rows if "seconds" in row} for rows in rounds]
                peaks = {row["length"]: row["peak"] for row in rounds[0] if "peak" in row}
                reasons = {length: reason for each, length, reason in lost[subject] if each == name}
                *_, kernel = BACKENDS.get(subject, NO_BACKEND)
                measured.append(Measured(subject, name, times, peaks, reasons, kernel))
        result = show(self.shape, measured, self.lengths, self.seeds[0], self.causal)
        result.facts |= {
            "seeds": list(self.seeds),
            "rounds": self.rounds,
            "threads": self.threads,
            "device": "cpu",
            "clock": self.clock,
            "dtype": self.dtype,
            "causal": self.causal,
            "lengths": list(self.lengths),
            "sizes": f"d = {self.hidden}, {self.heads} heads, FFN {self.ffn} wide, {self.act}",
            "sequences_in_a_timed_call": self._rows_in_words(),
        }
        result.details["measured"] = [
            {"subject": subject, "round": number, "rows": rows} for (subject, number), rows in sorted(found.items())
        ]
        return result

    def _rows_in_words(self) -> str:
        tokens = self.settings.get("tokens")
        return f"{tokens} tokens' worth" if tokens else str(self.settings.get("rows", 1))

    def _task(self, subject: str, number: int, lost: list[tuple[str, int, str]]) -> Json:
        implementation, kernel, _ = BACKENDS.get(subject, NO_BACKEND)
        return {
            "subject": subject,
            "implementation": implementation,
            "kernel": kernel,
            "lengths": self.lengths,
            "tokens": self.take("tokens", int, 0),
            "rows": self._count("rows", 1),
            "hidden": self.hidden,
            "heads": self.heads,
            "ffn": self.ffn,
            "layers": self.layers,
            "act": self.act,
            "causal": self.causal,
            "dtype": self.dtype,
            "passes": self.passes,
            "seconds": self.seconds,
            "clock": self.clock,
            "threads": self.threads,
            "seed": self.seeds[number % len(self.seeds)],
            "memory": number == 0,
            "lost": [list(each) for each in lost],
        }

    def _measured(self, task: Json, file: Path, at: Setting, number: int) -> list[Json]:
        """The rows of a finished measurement of the same task on the same machine; else it is made."""
        key = {"method": METHOD, "task": task, "where": _where()}
        old = _read(file)
        if old.get("key") == key and old.get("done"):
            rows: list[Json] = old["rows"]
            return rows
        at.say(f"{self.name}: round {number + 1} of {self.rounds}, {task['subject']}")
        for left in file.parent.glob(f"{file.stem}.*.part.*"):  # of a run that was interrupted
            left.unlink(missing_ok=True)
        raw = file.with_suffix(f".{os.getpid()}.part.json")  # an orphan of that run may still write its own
        code, log = _run(task, raw, self.threads)
        new = _read(raw)
        rows = list(new.get("rows", []))
        if not new.get("done"):
            rows += _unfinished(task, rows, code, log)
        write_atomically(file, json.dumps({"done": True, "key": key, "rows": rows}, indent=1, allow_nan=False) + "\n")
        raw.unlink(missing_ok=True)
        return rows


def _run(task: Json, out: Path, threads: int) -> tuple[int, str]:
    """The exit status of one measuring process, and the end of what it printed."""
    count = str(threads)
    setting = {**os.environ, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count}
    log = out.with_suffix(".log")
    command = [sys.executable, "-m", "sublayer.study.parts.attention_worker", json.dumps(task), str(out)]
    with open(log, "wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, env=setting)
        try:
            code = process.wait()
        except BaseException:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            raise
    text = log.read_bytes()[-TAIL:].decode("utf-8", "replace")
    if code == 0:
        log.unlink()
    return code, text


def _unfinished(task: Json, rows: Sequence[Json], code: int, log: str) -> list[Json]:
    """Rows that say of everything a dead process left undone that it is lost, and why."""
    if code < 0:
        why = f"the process was killed by {signal.Signals(-code).name}; the system may have been out of memory"
    else:
        lines = [line.strip() for line in log.splitlines() if line.strip()]
        why = f"the process failed: {lines[-1][:160] if lines else f'exit status {code}'}"
    known = {(name, length) for name, length, _ in task["lost"]}
    known |= {(row["pass"], row["length"]) for row in rows if "seconds" in row or "reason" in row}
    wanted = [(name, length) for name in task["passes"] for length in task["lengths"]]
    return [{"pass": n, "length": length, "reason": why} for n, length in wanted if (n, length) not in known]


def _where() -> Json:
    """What a time depends on beside the task: times of two machines are never mixed."""
    facts: Mapping[str, Any] = machine([])
    return {
        "cpu": facts.get("cpu"),
        "cores": facts.get("cores"),
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "transformers": metadata.version("transformers"),
    }


def _read(file: Path) -> Json:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
