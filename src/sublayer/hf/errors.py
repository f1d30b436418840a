"""The one error of reading and writing checkpoints."""


class CheckpointError(ValueError):
    """A checkpoint cannot be read or written as asked: the rule, what was received and the remedy."""
