"""Stand before every file-system call of a run: `interpose.c`, loaded into the trial's process before libc.

What a run writes comes from Python, from safetensors (Rust) and from torch (C++), so its calls are met in libc, where
all of them pass. A C compiler is needed.
"""

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("interpose.c")
NONE, DIE, DIE_HALF, FULL, FULL_ONCE = range(5)  # what happens at the n-th call, as in the C source
WRITES = frozenset({"write", "writev", "pwrite", "sendfile", "copy_file_range"})


@dataclass(frozen=True)
class Call:
    """One call that changed what lies on the disk; `path` is below the folder that was watched."""

    number: int
    name: str
    path: str

    @property
    def needs_space(self) -> bool:
        return self.name not in ("unlink", "rmdir")


def again(trial: str, arguments: list[str]) -> int | None:
    """None if the calls of this process are watched; else do the whole trial in one whose are, and give its status."""
    if "interpose.so" in os.environ.get("LD_PRELOAD", ""):
        return None
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        raise SystemExit(f"{trial} needs Linux and a C compiler (cc or gcc), and finds none: install gcc")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "interpose.so"
        subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
        here = str(Path(__file__).resolve().parent)
        environment = {**os.environ, "LD_PRELOAD": str(library)}
        return subprocess.run([sys.executable, here, trial, *arguments], env=environment, check=False).returncode


def armed(action: Callable[[], int], folder: Path, at: int, what: int, log: Path | None = None) -> Callable[[], int]:
    """`action`, with `what` happening at its `at`-th call under `folder`; the calls are listed in `log`."""

    def do() -> int:
        handle = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC) if log is not None else -1
        library = ctypes.CDLL(os.environ["LD_PRELOAD"])
        library.interpose_arm(str(folder).encode(), ctypes.c_long(at), what, handle)
        try:
            return action()
        finally:
            library.interpose_disarm()

    return do


def calls(log: Path) -> list[Call]:
    """What `armed` listed."""
    found = []
    for line in log.read_text(encoding="utf-8").splitlines():
        number, name, path = line.split("\t")
        found.append(Call(int(number), name, path.lstrip("/")))
    return found
