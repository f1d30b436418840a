"""Data, training and checkpoints: one run of a study, from a `TrainSpec` to a folder.

Importing this package imports neither torch nor transformers; `run` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import TrainError
from .spec import SIZES, TrainSpec

if TYPE_CHECKING:
    from .cache import Corpus, prepare
    from .frame import finished
    from .runner import run

__all__ = ["SIZES", "Corpus", "TrainError", "TrainSpec", "finished", "prepare", "run"]

_LATER = {"Corpus": "cache", "prepare": "cache", "finished": "frame", "run": "runner"}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
