"""Several processes that train one model together, each forked from this one and told who it is as `torchrun` would.

When one of them has ended badly the others are ended too, as torchrun does it: with SIGTERM, and with SIGKILL where
that does not help.
"""

import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sublayer.train import TrainSpec
from torture import runs

GRACE = 30.0  # seconds between SIGTERM and SIGKILL, as of torchrun


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@dataclass
class Members:
    """Processes of one run; `codes` are their exit statuses as far as they have ended, below zero for a signal."""

    pids: list[int]
    codes: dict[int, int] = field(default_factory=dict)

    def look(self) -> bool:
        """Note who has ended; whether all have."""
        for pid in self.pids:
            if pid not in self.codes:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    self.codes[pid] = os.waitstatus_to_exitcode(status)
        return len(self.codes) == len(self.pids)

    def send(self, number: int) -> None:
        """A signal to all that are alive."""
        for pid in self.pids:
            if pid not in self.codes:
                os.kill(pid, number)

    def wait(self, limit: float = 2 * runs.LIMIT) -> list[int | None]:
        """Exit statuses in the order of the ranks; None: it took too long, or did not heed SIGTERM, and was killed."""
        until, told = time.monotonic() + limit, False
        while not self.look():
            now = time.monotonic()
            if not told and (any(self.codes.values()) or now > until):
                self.send(signal.SIGTERM)
                told, until = True, now + GRACE
            elif told and now > until:
                self.send(signal.SIGKILL)
                late = [pid for pid in self.pids if pid not in self.codes]
                while not self.look():
                    time.sleep(0.005)
                return [None if pid in late else self.codes[pid] for pid in self.pids]
            time.sleep(0.005)
        return [self.codes[pid] for pid in self.pids]


def start(size: int, action: Callable[[], int], log: Path) -> Members:
    """Fork `size` processes that do `action` together; rank n says what it says in `log`, with n at its end."""
    port = free_port()

    def act(rank: int) -> Callable[[], int]:
        def told() -> int:
            if size > 1:
                os.environ.update({name: str(rank) for name in ("RANK", "LOCAL_RANK")})
                os.environ.update({name: str(size) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")})
                os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            return action()

        return told

    return Members([runs.start(act(rank), log.with_name(f"{log.name}.{rank}")) for rank in range(size)])


def train(size: int, spec: TrainSpec, out: Path, **options: object) -> list[int | None]:
    """Begin the run of a folder, or go on with it, in `size` processes; their exit statuses."""
    return start(size, lambda: runs.train(spec, out, **options), out.with_suffix(".txt")).wait()
