"""One process at a time works in a folder, and none that has died."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sublayer import folders


class Refused(ValueError):
    """What the caller of `folders` raises."""


def test_children_of_a_process_that_was_killed_hold_nothing(tmp_path: Path) -> None:
    """Workers that make batches outlive a `kill -9` of their run by some seconds; the run goes on meanwhile."""
    code = (
        "import os, sys, time\nfrom pathlib import Path\nfrom sublayer import folders\n"
        "with folders.held(Path(sys.argv[1]), ValueError, 'in'):\n"
        "    child = os.fork()\n"
        "    if child:\n"
        "        print(child, flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        with pytest.raises(Refused, match=rf"another process works in .*\(process {process.pid} on "):
            folders.held(tmp_path, Refused, "in").__enter__()
        process.kill()
        process.wait()
        os.kill(child, 0)  # it lives
        until = time.monotonic() + 2  # the child may not have come to its first instruction
        while True:
            try:
                with folders.held(tmp_path, Refused, "in"):
                    break
            except Refused:
                assert time.monotonic() < until
    finally:
        process.kill()
        os.kill(child, signal.SIGKILL)
        process.stdout.close()


def test_a_folder_is_forgotten_only_when_nothing_is_in_it(tmp_path: Path) -> None:
    empty, used = tmp_path / "empty", tmp_path / "used"
    for folder in (empty, used):
        folder.mkdir()
        with folders.held(folder, Refused, "in"):
            folders.forget(folder)  # somebody works in it
            assert folder.exists()
    (used / "run.json").write_text("{}")
    folders.forget(empty)
    folders.forget(used)
    assert not empty.exists()
    assert (used / "run.json").exists()


def test_a_folder_that_a_process_is_about_to_claim_is_not_forgotten(tmp_path: Path) -> None:
    """Of two processes that make a folder, the second is refused, and must not remove it under the first."""
    import fcntl

    folder = tmp_path / "run"
    folder.mkdir()
    with open(folder / folders.LOCK, "a") as first:
        fcntl.flock(first, fcntl.LOCK_EX)  # its second mark is not there yet
        with pytest.raises(Refused), folders.held(folder, Refused, "in"):
            pass
        folders.forget(folder)
        assert folder.exists()
    folders.forget(folder)
    assert not folder.exists()


def test_a_folder_that_was_forgotten_meanwhile_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    real, calls = folders._open, []

    def opened(place: Path, refuse: type[ValueError]) -> object:
        file = real(place, refuse)
        calls.append(place)
        if len(calls) == 1:  # another process, between our look and our lock
            folders.forget(place)
            assert not place.exists()
        return file

    monkeypatch.setattr(folders, "_open", opened)
    with folders.held(folder, Refused, "in"):
        assert (folder / folders.OWNER).exists()
        assert (folder / folders.LOCK).exists()
    assert len(calls) == 2


@pytest.mark.parametrize("links", [True, False])
def test_a_mark_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    def no_links(*_: object) -> None:
        raise OSError("this file system has no links")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    mark = tmp_path / folders.OWNER
    assert folders._put(mark, "one")
    assert not folders._put(mark, "two")
    assert mark.read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == [folders.OWNER]
