"""The error of studies."""


class StudyError(ValueError):
    """A study that cannot be planned, run or resumed: one message with the rule, the value received and the remedy."""
