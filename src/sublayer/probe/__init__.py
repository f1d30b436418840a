"""Look at any model from outside: isotropy, residual norms and attention, at every `+` of its equations."""

from sublayer._verb import callable_module
from sublayer.probe.capture import gradient_norms, measure
from sublayer.probe.errors import ProbeError
from sublayer.probe.result import Probe, probe

__all__ = ["Probe", "ProbeError", "gradient_norms", "measure", "probe"]

callable_module(__name__)
