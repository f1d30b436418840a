"""Start many Python processes quickly: one process imports torch and transformers once, and forks each run from there.

A run is still a process of its own, in a session of its own: it can be killed, run out of memory or crash, and nothing
else notices. The nursery imports and does nothing more, so it has no threads, no random numbers drawn and no device in
use when it forks. Importing takes seconds, a small run may take less. Imports no torch in the parent.
"""

import contextlib
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sublayer.study.errors import StudyError

# What the runs import: the more of it is there before the fork, the sooner they begin.
PRELOADED = (
    "sublayer.model", "sublayer.probe.capture", "sublayer.train.__main__", "sublayer.train.build",
    "sublayer.train.cache", "sublayer.train.callbacks", "sublayer.train.runner", "sublayer.train.trainer",
)  # fmt: skip


class Forked:
    """A process that the nursery forked, spoken to as a `subprocess.Popen` is."""

    def __init__(self, pid: int, ended: threading.Condition) -> None:
        self.pid = pid
        self.returncode: int | None = None  # below zero: killed by that signal
        self._ended = ended

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Wait for the end. Raises `subprocess.TimeoutExpired`."""
        with self._ended:
            if not self._ended.wait_for(lambda: self.returncode is not None, timeout):
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
        assert self.returncode is not None
        return self.returncode

    def terminate(self) -> None:
        """Ask it to save and stop."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


class Nursery:
    """The parent's end. A context: its end closes the nursery, whose children by then have ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._ended = threading.Condition()
        self._started: list[int] = []
        self._closed = False  # the nursery has ended, and no child can be started or heard of
        self._children: dict[int, Forked] = {}

    def __enter__(self) -> "Nursery":
        return self

    def __exit__(self, *_: object) -> None:
        process = self._process
        if process is not None and process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()  # the end of its input is the end of the nursery
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()

    def start(self, module: str, arguments: Sequence[str], log: Path) -> Forked:
        """Run ``main(arguments)`` of a module in a process of its own, with its output appended to ``log``."""
        process = self._open()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps({"module": module, "arguments": list(arguments), "log": str(log)}) + "\n")
            process.stdin.flush()
        except OSError:
            pass  # it has died, and the wait below says so
        with self._ended:
            self._ended.wait_for(lambda: self._started or self._closed, 300)
            if not self._started:
                raise StudyError("the process that starts the runs ended or hangs; what it said stands above")
            return self._children[self._started.pop(0)]

    def _open(self) -> "subprocess.Popen[str]":
        if self._process is None:
            # Threads that spin while they wait take the cores from each other; torch reads this once, when it loads.
            environment = {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ
            self._process = subprocess.Popen(
                [sys.executable, "-c", "from sublayer.study.nursery import serve; serve()"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True, env=environment,
            )  # fmt: skip
            threading.Thread(target=self._listen, args=(self._process,), daemon=True).start()
        return self._process

    def _listen(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        with contextlib.suppress(ValueError):  # closed while we read
            for line in process.stdout:
                told = json.loads(line)
                with self._ended:
                    if told["what"] == "started":
                        self._children[told["pid"]] = Forked(told["pid"], self._ended)
                        self._started.append(told["pid"])
                    else:
                        self._children.pop(told["pid"]).returncode = told["code"]
                    self._ended.notify_all()
        with self._ended:  # without the nursery nobody hears of its children any more
            self._closed = True
            for child in self._children.values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGKILL)
                child.returncode = -signal.SIGKILL
            self._ended.notify_all()


# --- the other end ------------------------------------------------------------------------------------------------


def serve() -> int:
    """Fork a process for each line of standard input, and tell on standard output of its start and its end. When the
    input ends, tell those that are left to save and stop, and end after them."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an import prints is no message
    for name in PRELOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # else a search for garbage in a child reads all that was imported, and copies its pages
    telling = threading.Lock()

    def tell(what: dict[str, Any]) -> None:
        with telling, contextlib.suppress(OSError):
            print(json.dumps(what), file=out, flush=True)

    alive: set[int] = set()
    signal.set_wakeup_fd(-1)
    asked, answer = os.pipe()  # a child's end, as a byte to wake up for
    os.set_blocking(answer, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(answer)
    import selectors

    with selectors.DefaultSelector() as waiting:
        waiting.register(0, selectors.EVENT_READ)
        waiting.register(asked, selectors.EVENT_READ)
        pending, closed = b"", False
        while not closed or alive:
            for key, _ in waiting.select():
                if key.fd == asked:
                    os.read(asked, 4096)
                    continue
                given = os.read(0, 1 << 16)
                if not given:  # closed, or whoever started us is dead: nobody would stop the children
                    closed = True
                    waiting.unregister(0)
                    for pid in alive:
                        os.kill(pid, signal.SIGTERM)
                    continue
                *lines, pending = (pending + given).split(b"\n")
                for line in lines:
                    pid = _fork(json.loads(line), [asked, answer, out.fileno()])
                    alive.add(pid)
                    tell({"what": "started", "pid": pid})
            for pid in list(alive):
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    alive.remove(pid)
                    tell({"what": "ended", "pid": pid, "code": os.waitstatus_to_exitcode(status)})
    return 0


def _fork(wanted: dict[str, Any], ours: Sequence[int]) -> int:
    """A child that runs one ``main``; in the parent, its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        log = os.open(wanted["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        for handle in (*ours, log, nothing):
            os.close(handle)
        found = importlib.import_module(wanted["module"]).main(wanted["arguments"])
        code = found if isinstance(found, int) else 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)  # what the nursery would do at its exit is not the child's to do
