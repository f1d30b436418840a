"""The error of fine-tuning."""

from __future__ import annotations

from sublayer.train import TrainError


class FinetuneError(TrainError):
    """A task, its files or a checkpoint that cannot be used: one message with the rule, the value and the remedy."""
