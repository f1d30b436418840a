"""What the catalogue is made of: named designs, and names that the notation cannot express."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One named design.

    Attributes:
        name: the canonical name, lower case with dashes.
        title: the name as a person writes it.
        text: the design as an equation, ready for ``parse``.
        citation: authors, year, title, and arXiv id where there is one.
        used: one line on where it is used.
        aliases: other names for the same equation.
        note: what the equation leaves out, or what could not be checked; empty if nothing.
    """

    name: str
    title: str
    text: str
    citation: str
    used: str
    aliases: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Unsupported:
    """A published design that the notation cannot express.

    Attributes:
        name: the canonical name, lower case with dashes.
        aliases: other names for it.
        reason: one sentence that says what is missing, and the nearest design that can be written if there is one.
        citation: authors, year, title, and arXiv id where there is one.
    """

    name: str
    aliases: tuple[str, ...]
    reason: str
    citation: str


_SEPARATORS = re.compile(r"[\s_\-\u2010-\u2015\u2212]+")


def key(name: str) -> str:
    """The form in which names are compared: case folded, without spaces, underscores and dashes.

    ``Post-Norm``, ``post_norm`` and ``postnorm`` are one name.
    """
    return _SEPARATORS.sub("", name.casefold())
