"""Run a command; print its time and the peak memory of its processes together: `tools/measure.py make demo`."""

import subprocess
import sys
import time

import psutil

POLL = 0.5  # seconds


def resident(pid: int) -> int:
    """Bytes resident in a process and all below it. A page that several share counts once for each."""
    total = 0
    try:
        top = psutil.Process(pid)
        family = [top, *top.children(recursive=True)]
    except psutil.Error:
        return 0
    for process in family:
        try:
            total += process.memory_info().rss
        except psutil.Error:
            continue  # it has just ended
    return total


def main(command: list[str]) -> int:
    """Measure one command; its exit status is this one's."""
    if not command:
        print("usage: python tools/measure.py COMMAND [ARGUMENT ...]", file=sys.stderr)
        return 2
    began, peak = time.monotonic(), 0
    process = subprocess.Popen(command)
    while process.poll() is None:
        peak = max(peak, resident(process.pid))
        time.sleep(POLL)
    seconds = time.monotonic() - began
    print(f"{' '.join(command)}: {seconds:.0f} s, peak {peak / 2**20:.0f} MB, exit {process.returncode}")
    return process.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
