"""The folder of something that is run: made for it, and worked on by one process at a time. Errors are the caller's
kind, so that each package refuses in its own name."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path


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


@contextlib.contextmanager
def held(folder: Path, refuse: type[ValueError], where: str) -> Iterator[None]:
    """Hold the folder; ``where`` says in the message what another process is working on.

    Raises:
        refuse: another process works in it.
    """
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise refuse(f"another process works {where} {folder}; wait for it, or give another folder") from None
        yield
