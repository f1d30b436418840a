"""The one error of a conversion."""


class ConvertError(ValueError):
    """A conversion that cannot be made as asked: the message gives the rule, the value received and the remedy."""
