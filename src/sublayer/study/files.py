"""The folder of a study: one process at a time."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from sublayer.study.errors import StudyError


@contextlib.contextmanager
def locked(study: Path) -> Iterator[None]:
    """Hold the study's folder. Raises StudyError if another process works on it."""
    with open(study / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StudyError(
                f"another process works on the study in {study}; wait for it, or give another folder"
            ) from None
        yield
