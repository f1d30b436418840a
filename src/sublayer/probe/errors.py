"""What the probe says when it cannot measure."""


class ProbeError(ValueError):
    """A model, a batch or an option cannot be probed; the message gives the rule, what was received and the remedy."""


class LossError(ProbeError):
    """A function that was given as the loss does not give one."""
