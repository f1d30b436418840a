"""The folder of a study: one process at a time."""

from contextlib import AbstractContextManager
from pathlib import Path

from sublayer import folders
from sublayer.study.errors import StudyError


def locked(study: Path) -> AbstractContextManager[None]:
    """Hold the study's folder. Raises StudyError if another process works on it."""
    return folders.held(study, StudyError, "on the study in")
