"""Tiny runs for the trials, each a process of its own that is forked from one which has imported everything.

Importing torch and transformers takes seconds, a tiny run takes less than one. The parent draws no random number,
starts no thread and computes no tensor before it forks.
"""

import atexit
import contextlib
import gc
import hashlib
import importlib
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before torch is imported: one thread each, and none that spins while it waits.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from sublayer.study.nursery import PRELOADED
from sublayer.train import TrainSpec, runner

for _name in PRELOADED:
    importlib.import_module(_name)
# what is imported never becomes garbage; to look for it there would copy all of its pages in each forked process
gc.collect()
gc.freeze()

WORDS = "the a residual stream norm layer reads writes adds token sees no other document and of in to is by".split()
LIMIT = 120.0  # seconds that a tiny run may take before it counts as hanging


def write_texts(folder: Path, documents: int = 24) -> Path:
    """Documents of two to thirty sentences, the same every time."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(documents):
        draw = random.Random(number)
        sentences = (" ".join(draw.choices(WORDS, k=draw.randint(4, 12))) for _ in range(6 + number))
        (folder / f"{number:02}.txt").write_text("\n".join(f"{s.capitalize()}." for s in sentences), encoding="utf-8")
    return folder


def tiny(folder: Path, **changes: Any) -> TrainSpec:
    """A run of forty steps with dropout, saved at every second one; its text and cache lie under `folder`."""
    texts = folder / "texts"
    if not texts.exists():
        write_texts(texts)
    settings: dict[str, Any] = {
        "design": "post-norm", "layers": 2, "hidden": 16, "heads": 2, "ffn": 32, "dropout": 0.1, "data": str(texts),
        "objective": "mlm", "vocab_size": 300, "seq": 16, "batch": 2, "steps": 40, "lr": 1e-2, "eval_rows": 4,
        "measure_rows": 2, "threads": 1, "log_every": 1, "save_steps": 2, "cache": str(folder / "cache"),
        "device": "cpu",
    }  # fmt: skip
    return TrainSpec(**{**settings, **changes})


def start(action: Callable[[], int | None], log: Path | None = None) -> int:
    """Fork a process that does `action` and ends with what it returns; its process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        atexit._clear()  # what is to be done at this process's end, such as removing its folder, is not the child's
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        if log is not None:
            handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            os.close(handle)
        code = action() or 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def wait(pid: int, limit: float = LIMIT) -> int | None:
    """Exit status of a process (below zero: the signal that ended it), or None: it took too long and was killed."""
    until = time.monotonic() + limit
    while time.monotonic() < until:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def train(spec: TrainSpec, out: Path, **options: Any) -> int:
    """In a forked process: one run, from where it stands; the exit status of `python -m sublayer.train`."""
    options = {"resume": True, "measure": False, **options}
    row = runner.run(spec, out, **options)
    return {"ok": 0, "diverged": 3, "failed": 1, "killed": 128 + (row["signal"] or 9)}[row["status"]]


def whole(spec: TrainSpec, out: Path, **options: Any) -> str:
    """Let a run go to its end without being disturbed; the sha256 of its weights.

    Raises:
        RuntimeError: it did not end well, though nothing was done to it.
    """
    log = out.with_suffix(".txt")
    code = wait(start(lambda: train(spec, out, **options), log))
    if code != 0:
        raise RuntimeError(f"an undisturbed run ended with {code}; see {log}")
    return weights(out)


def weights(out: Path) -> str:
    """sha256 of the model file of a run that has ended."""
    return hashlib.sha256((out / "model" / "model.safetensors").read_bytes()).hexdigest()
