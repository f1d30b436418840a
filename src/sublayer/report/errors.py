"""What a page says when it cannot be written."""


class ProbePageError(ValueError):
    """A record is none that a page of a probe is written from."""
