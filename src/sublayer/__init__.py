"""Sublayer: write how a Transformer block is wired as one line; build, train, measure and compare what it says.

Importing this package imports no torch. Models and training are imported when first used.
"""

import importlib
from typing import TYPE_CHECKING

from sublayer.notation import Design, DesignError, designs, parse

if TYPE_CHECKING:
    from sublayer import testing
    from sublayer.audit import Audit, audit
    from sublayer.audit.diff import diff
    from sublayer.compare import compare
    from sublayer.cost import Cost, cost
    from sublayer.finetune import FinetuneError, Finetuning, finetune
    from sublayer.hf import CheckpointError, export, load
    from sublayer.model import (
        SublayerConfig,
        SublayerForCausalLM,
        SublayerForMaskedLM,
        SublayerForSequenceClassification,
        SublayerModel,
    )
    from sublayer.probe import Probe, probe
    from sublayer.study import Study

__version__ = "0.1.0"

# Public names that need torch or pandas, each with the module that has it.
_LAZY = {
    "Audit": "sublayer.audit",
    "CheckpointError": "sublayer.hf",
    "Cost": "sublayer.cost",
    "FinetuneError": "sublayer.finetune",
    "Finetuning": "sublayer.finetune",
    "Probe": "sublayer.probe",
    "Study": "sublayer.study",
    "SublayerConfig": "sublayer.model",
    "SublayerForCausalLM": "sublayer.model",
    "SublayerForMaskedLM": "sublayer.model",
    "SublayerForSequenceClassification": "sublayer.model",
    "SublayerModel": "sublayer.model",
    "audit": "sublayer.audit",
    "compare": "sublayer.compare",
    "cost": "sublayer.cost",
    "diff": "sublayer.audit.diff",
    "export": "sublayer.hf",
    "finetune": "sublayer.finetune",
    "load": "sublayer.hf",
    "probe": "sublayer.probe",
    "testing": "sublayer.testing",
}

__all__ = [
    "Audit",
    "CheckpointError",
    "Cost",
    "Design",
    "DesignError",
    "FinetuneError",
    "Finetuning",
    "Probe",
    "Study",
    "SublayerConfig",
    "SublayerForCausalLM",
    "SublayerForMaskedLM",
    "SublayerForSequenceClassification",
    "SublayerModel",
    "audit",
    "compare",
    "cost",
    "designs",
    "diff",
    "export",
    "finetune",
    "load",
    "parse",
    "probe",
    "testing",
]


def __getattr__(name: str) -> object:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module 'sublayer' has no attribute {name!r}; it has {', '.join(__all__)}")
    found = importlib.import_module(module)
    # A module that bears the verb's own name is callable itself (see _verb): importing it has set the attribute
    # already.
    return found if module == f"sublayer.{name}" else getattr(found, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
