"""`python -m sublayer.study.executors.tied PARENT WORDS`: `sublayer WORDS` in a process that is told to stop when its
parent dies, also by kill -9. Imports no torch.
"""

import contextlib
import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # prctl(2) of Linux; it stays set when the process becomes another program


def tie(parent: int) -> None:
    """Let this process get SIGTERM when its parent dies; on other systems than Linux it then goes on to its end."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if os.getppid() != parent:
        sys.exit(128 + signal.SIGTERM)  # it died before we asked


if __name__ == "__main__":
    tie(int(sys.argv[1]))
    os.execv(sys.executable, [sys.executable, "-m", "sublayer", *sys.argv[2:]])
