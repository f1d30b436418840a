"""Look at a model from outside: isotropy, residual norms and attention, at every `+` of its equation."""

from sublayer._verb import callable_module
from sublayer.probe.capture import gradient_norms, measure
from sublayer.probe.result import Probe, probe

__all__ = ["Probe", "gradient_norms", "measure", "probe"]

callable_module(__name__)
