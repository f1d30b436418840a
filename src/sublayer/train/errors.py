"""The one error type that this package raises for what a person can mend."""

from __future__ import annotations


class TrainError(ValueError):
    """Bad settings, data or checkpoint: one message with the rule, the value received and the remedy."""
