"""Look at a model from outside: isotropy, residual norms and attention, at every `+` of its equation."""

import sys
from types import ModuleType
from typing import Any

from sublayer.probe.capture import gradient_norms, measure
from sublayer.probe.result import Probe, probe

__all__ = ["Probe", "gradient_norms", "measure", "probe"]


class _CallablePackage(ModuleType):
    # Importing this package binds `sublayer.probe` to it, and the public function has that name too: so that
    # `sl.probe(model, batches)` works whatever was imported first, the package can be called.
    def __call__(self, *args: Any, **kwargs: Any) -> Probe:
        return probe(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
