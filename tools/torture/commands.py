"""The real command line in a fork of this process: as a user would see it, without the seconds that imports take."""

import os
import signal
import sys
import time
from pathlib import Path

from sublayer import cli


def run(arguments: list[str], output: Path, seconds: float) -> tuple[int, str]:
    """Exit status and everything that was printed; the status of what took too long is 124.

    Args:
        arguments: after `sublayer`.
        output: a file for what is printed.
        seconds: until it is killed.
    """
    child = os.fork()
    if child == 0:
        _child(arguments, output)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status), output.read_text(encoding="utf-8", errors="replace")
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return 124, output.read_text(encoding="utf-8", errors="replace")


def _child(arguments: list[str], output: Path) -> None:
    code = 70
    try:
        file = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.argv = ["sublayer", *arguments]
        signal.alarm(0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        cli.main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
