"""Processes that are forked where the libraries are loaded: each is a process of its own in every other respect."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from sublayer.study import StudyError
from sublayer.study.nursery import Nursery
from sublayer.study.pool import Work, run_all

CHILD = """
import os, signal, sys, time

def main(arguments):
    what, = arguments
    print("said", what, flush=True)
    if what == "die": os.kill(os.getpid(), signal.SIGKILL)
    if what == "raise": raise RuntimeError("went wrong")
    if what == "exit": sys.exit(4)
    if what == "wait":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        time.sleep(60)
    if what == "threads":
        import torch
        torch.set_num_threads(2)
        x = torch.randn(300, 300, requires_grad=True)
        (x @ x).sum().backward()
        return 0 if x.grad.isfinite().all() else 1
    if what == "session": return 0 if os.getsid(0) == os.getpid() else 1
    return 7
"""


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    folder = tmp_path_factory.mktemp("modules")
    (folder / "child_of_the_tests.py").write_text(CHILD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        with Nursery() as found:
            yield found


@pytest.mark.parametrize(
    ("what", "code"), [("return", 7), ("exit", 4), ("raise", 1), ("die", -9), ("threads", 0), ("session", 0)]
)
def test_each_child_ends_in_its_own_way(nursery: Nursery, tmp_path: Path, what: str, code: int) -> None:
    log = tmp_path / "log.txt"
    child = nursery.start("child_of_the_tests", [what], log)
    assert child.wait(60) == code
    assert child.poll() == code
    text = log.read_text()
    assert text.startswith(f"said {what}")
    assert ("RuntimeError: went wrong" in text) is (what == "raise")


def test_a_child_is_asked_to_stop(nursery: Nursery, tmp_path: Path) -> None:
    child = nursery.start("child_of_the_tests", ["wait"], tmp_path / "log.txt")
    while not (tmp_path / "log.txt").exists() or "said" not in (tmp_path / "log.txt").read_text():
        time.sleep(0.05)
    assert child.poll() is None
    time.sleep(0.2)
    child.terminate()
    assert child.wait(30) == 143


def test_children_do_not_outlive_the_nursery(tmp_path: Path) -> None:
    (tmp_path / "child_of_the_tests.py").write_text(CHILD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        with Nursery() as found:
            child = found.start("child_of_the_tests", ["wait"], tmp_path / "log.txt")
            assert found._process is not None
            os.kill(found._process.pid, signal.SIGKILL)
            assert child.wait(30) == -signal.SIGKILL
            with pytest.raises(StudyError, match="starts the runs"):
                found.start("child_of_the_tests", ["return"], tmp_path / "log.txt")


def test_a_pool_runs_everything_and_tells_how_each_ended(tmp_path: Path) -> None:
    (tmp_path / "child_of_the_tests.py").write_text(CHILD)
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        work = [
            Work(w, "child_of_the_tests", (w,), tmp_path / "logs" / f"{w}.txt") for w in ("return", "die", "session")
        ]
        codes = run_all(work, 2, said.append)
    assert codes == {"return": 7, "die": -9, "session": 0}
    assert len(said) == 3
    assert any("die: ended with status -9" in line for line in said)


def test_children_are_stopped_when_whoever_started_them_is_killed(tmp_path: Path) -> None:
    """Nobody would know of them: they would train on beside those that a later command starts."""
    (tmp_path / "child_of_the_tests.py").write_text(CHILD)
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom sublayer.study.nursery import Nursery\n"
        "with Nursery() as nursery:\n"
        "    print(nursery.start('child_of_the_tests', ['wait'], Path(sys.argv[1])).pid, flush=True)\n"
        "    time.sleep(100)\n"
    )
    path = f"{tmp_path}{os.pathsep}{Path(__file__).parents[2] / 'src'}"
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "log.txt")],
        stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    while not (tmp_path / "log.txt").exists() or "said" not in (tmp_path / "log.txt").read_text():
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert psutil.wait_procs([child], 20)[1] == []
