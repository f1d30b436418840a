"""Fine-tuning on GLUE: official files and metrics, several seeds, a majority baseline beside each score, resume.

`sl.finetune(checkpoint, task="cola")` runs some tasks and seeds; `run` makes one run. Importing this package imports no
torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sublayer._verb import callable_module

from .errors import FinetuneError
from .spec import FinetuneSpec
from .tasks import TASKS, Task, task_of

if TYPE_CHECKING:
    from .data import read
    from .metrics import rescore
    from .one import run
    from .result import Finetuning
    from .suite import finetune

__all__ = [
    "TASKS",
    "FinetuneError",
    "FinetuneSpec",
    "Finetuning",
    "Task",
    "finetune",
    "read",
    "rescore",
    "run",
    "task_of",
]

_LATER = {"Finetuning": "result", "finetune": "suite", "read": "data", "rescore": "metrics", "run": "one"}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


callable_module(__name__)
