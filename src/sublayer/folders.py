"""The folder of something that is run: made for it, and worked on by one process at a time. Errors are the caller's
kind, so that each package refuses in its own name.

Two marks hold a folder, since neither is enough alone:

- `.lock` has a `flock`. The system lifts it when its process ends, however it ends; processes that it forks let go of
  it, for they may outlive it by some seconds. Whether it reaches other machines depends on the file system.
- `.owner` is a link, or where there are none a file made with O_EXCL: only one process of one machine can make it, also
  on NFS. It names the process and its machine, and a thread renews it every `BEAT` seconds. Whoever finds an owner of
  the same machine looks whether that process lives. An owner elsewhere is watched: renewed, it works; not renewed for
  `STALE` seconds, its machine is gone. Clocks of two machines are never compared.

A process that finds its own mark gone, because it was stopped for longer than `STALE`, ends at once and writes nothing.
"""

import contextlib
import fcntl
import json
import os
import platform
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LOCK, OWNER = ".lock", ".owner"
BEAT = 10.0  # seconds between signs of life
STALE = 60.0  # seconds without one after which an owner on another machine is taken for dead
_HOLDING: set[Any] = set()  # files of this process that have a flock
LOST = 75  # exit status of a process whose folder was taken over; EX_TEMPFAIL of sysexits.h


def make(folder: Path, refuse: type[ValueError]) -> Path:
    """The folder, made with its parents if it is new.

    Raises:
        refuse: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refuse(f"cannot make {folder}: {error.strerror or error}; give another folder") from None
    return folder


def forget(folder: Path) -> None:
    """Remove a folder that holds nothing but marks of processes, none of which works in it."""
    with contextlib.suppress(OSError), open(folder / LOCK, "a", encoding="utf-8") as file:
        # a process that holds the lock may not have come to its second mark yet
        if _locked(file, folder) is None and is_new(folder) and busy(folder) is None:
            (folder / LOCK).unlink(missing_ok=True)
            folder.rmdir()


def is_new(folder: Path) -> bool:
    """Whether a folder is not there, or holds nothing but marks of processes."""
    return not folder.exists() or all(path.name.startswith((LOCK, OWNER)) for path in folder.iterdir())


@contextlib.contextmanager
def held(folder: Path, refuse: type[ValueError], where: str, wait: float | None = None) -> Iterator[None]:
    """Hold the folder; ``where`` says in the message what another process is working on.

    Args:
        folder: made if another process has removed it because nothing was in it.
        refuse: the kind of error.
        where: such as "on the study in".
        wait: seconds to wait for a process that works in it; None: `$SUBLAYER_WAIT`, or not at all. An owner on
            another machine that shows no life is always waited for, up to `STALE` seconds.

    Raises:
        refuse: another process works in it.
    """
    deadline = time.monotonic() + (_patience() if wait is None else wait)
    while True:
        file = _open(make(folder, refuse), refuse)
        try:
            owner = _locked(file, folder)
            if owner is None and os.fstat(file.fileno()).st_ino != (folder / LOCK).stat().st_ino:
                raise FileNotFoundError  # the lock of a folder that was removed and made again
            owner = owner or _claimed(folder)
        except FileNotFoundError:  # `forget` was faster than we
            file.close()
            time.sleep(0.01)
            continue
        if owner is None:
            break
        file.close()
        if time.monotonic() >= deadline:
            raise refuse(
                f"another process works {where} {folder}{_who(owner)}; wait for it, or give another folder"
            ) from None
        time.sleep(min(0.5, max(0.01, deadline - time.monotonic())))
    _HOLDING.add(file)
    stop = threading.Event()
    mine = (folder / OWNER).read_text(encoding="utf-8")
    beating = threading.Thread(target=_beat, args=(folder / OWNER, mine, stop), daemon=True)
    beating.start()
    try:
        yield
    finally:
        stop.set()
        beating.join()
        if _read(folder / OWNER) == mine:
            (folder / OWNER).unlink(missing_ok=True)
        _HOLDING.discard(file)
        file.close()


def busy(folder: Path) -> str | None:
    """Who seems to work in the folder, in words; None: nobody does. A look, nothing is held or waited for."""
    text = _read(folder / OWNER)
    if text is None:
        return None
    owner = _parse(text)
    if owner.get("place") == place():
        return _who(owner).strip(" ()") if _lives(owner) else None
    with contextlib.suppress(OSError):
        if time.time() - (folder / OWNER).stat().st_mtime < 10 * STALE:  # clocks may differ, and this is only a look
            return _who(owner).strip(" ()")
    return None


def place() -> str:
    """This machine since it was started, and the processes that can see each other in it."""
    boot = _read(Path("/proc/sys/kernel/random/boot_id")) or ""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return f"{platform.node()} {boot.strip()} {space}".strip()


def _patience() -> float:
    try:
        return max(0.0, float(os.environ.get("SUBLAYER_WAIT", "0")))
    except ValueError:
        return 0.0


def _let_go() -> None:
    """In a process that was forked: close its ends of our locks, which leaves them with us alone."""
    for file in _HOLDING:
        with contextlib.suppress(OSError):
            file.close()
    _HOLDING.clear()


os.register_at_fork(after_in_child=_let_go)


# -- the two marks ---------------------------------------------------------------------------------------------------


def _open(folder: Path, refuse: type[ValueError]) -> Any:
    try:
        return open(folder / LOCK, "a", encoding="utf-8")
    except OSError as error:
        raise refuse(f"cannot write to {folder}: {error.strerror or error}; give another folder") from None


def _locked(file: Any, folder: Path) -> dict[str, Any] | None:
    """Whoever holds the flock, or None once we do, or where the file system has none."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _parse(_read(folder / OWNER) or "{}") | {"locked": True}
    except OSError:
        pass
    return None


def _claimed(folder: Path) -> dict[str, Any] | None:
    """The owner that lives, or None once we are the owner. Waits for one that shows no life."""
    path = folder / OWNER
    me = {"host": platform.node(), "pid": os.getpid(), "began": _began(os.getpid()), "place": place(),
          "token": uuid.uuid4().hex}  # fmt: skip
    while True:
        if _put(path, json.dumps(me)):
            return None
        seen = _read(path)
        if seen is None:
            continue  # it went in this moment
        owner = _parse(seen)
        if owner.get("place") == place():
            if _lives(owner):
                return owner
        elif _renewed(path, seen):
            return owner
        _remove(path, seen)


def _put(path: Path, text: str) -> bool:
    """Make the mark with its text, whole or not at all; False if there is one already."""
    own = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        _write_new(own, text)
        try:
            os.link(own, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without links: then a kill in this moment leaves half a mark
            _write_new(path, text)
        return True
    except FileExistsError:
        return False
    finally:
        own.unlink(missing_ok=True)


def _write_new(path: Path, text: str) -> None:
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def _renewed(path: Path, seen: str) -> bool:
    """Watch an owner on another machine, or one whose mark cannot be read: whether it shows life within `STALE`."""
    until, before = time.monotonic() + STALE, _stamp(path)
    while time.monotonic() < until:
        time.sleep(min(1.0, STALE / 10))
        if _read(path) != seen:
            return False  # gone or another one: look again
        if _stamp(path) != before:
            return True
    return False


def _remove(path: Path, seen: str) -> None:
    """Remove the mark of a dead owner, and of nobody else: it is renamed first, which only one process can do."""
    own = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        path.rename(own)
    except FileNotFoundError:
        return
    if _read(own) != seen:  # somebody took over between our look and our rename: give it back
        with contextlib.suppress(FileExistsError):
            os.link(own, path)
    own.unlink(missing_ok=True)


def _beat(path: Path, mine: str, stop: threading.Event) -> None:
    last = time.monotonic()
    while not stop.wait(BEAT):
        late, last = time.monotonic() - last > STALE, time.monotonic()
        there = _read(path)
        if there is None and not late:  # removed by hand, or the file server is away for a moment
            continue
        if there != mine:
            print(f"sublayer: {path.parent} was taken over by another process; ending at once", file=sys.stderr)
            os._exit(LOST)
        with contextlib.suppress(OSError):
            os.utime(path)


def _lives(owner: dict[str, Any]) -> bool:
    """Whether a process of this machine is there, and the same one: its number may have been given out again."""
    pid = owner.get("pid")
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    now, zombie = _began(pid), _state(pid) == "Z"
    return not zombie and (now is None or owner.get("began") in (None, now))


def _stat(pid: int) -> list[str]:
    text = _read(Path(f"/proc/{pid}/stat")) or ""
    return text.rpartition(")")[2].split()


def _state(pid: int) -> str | None:
    return next(iter(_stat(pid)), None)


def _began(pid: int) -> str | None:
    """When a process began, in ticks since the machine was started; None where that is not told."""
    found = _stat(pid)
    return found[19] if len(found) > 19 else None


def _stamp(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _parse(text: str) -> dict[str, Any]:
    try:
        owner = json.loads(text)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _who(owner: dict[str, Any]) -> str:
    return f" (process {owner['pid']} on {owner.get('host')})" if isinstance(owner.get("pid"), int) else ""
