"""The catalogue: named designs with citations, a name that means two things, and names that cannot be expressed."""

import difflib
import re
from functools import cache

from sublayer.notation.entries import Entry, Unsupported, key
from sublayer.notation.entries_blocks import BLOCKS
from sublayer.notation.entries_layouts import LAYOUTS
from sublayer.notation.entries_models import MODELS
from sublayer.notation.entries_unsupported import UNSUPPORTED
from sublayer.notation.errors import DesignError

__all__ = [
    "Entry",
    "Unsupported",
    "ambiguous",
    "designs",
    "lookup",
    "nearest",
    "resolve",
    "unsupported",
    "unsupported_lookup",
]

# The literature uses this one word for two designs, so the notation has none for it.
_PRE_NORM = frozenset(
    {"prenorm", "pre.norm", "prenormed", "prenormalization", "prenormalisation", "prermsnorm", "prenormtransformer"}
)


def designs() -> tuple[Entry, ...]:
    """Every named design: first the block designs, then those of whole models."""
    return BLOCKS + LAYOUTS + MODELS


def unsupported() -> tuple[Unsupported, ...]:
    """Every published design that is known by name and cannot be expressed."""
    return UNSUPPORTED


@cache
def _by_key() -> dict[str, Entry]:
    return {key(name): entry for entry in designs() for name in (entry.name, *entry.aliases)}


@cache
def _unsupported_by_key() -> dict[str, Unsupported]:
    return {key(name): entry for entry in UNSUPPORTED for name in (entry.name, *entry.aliases)}


def lookup(name: str) -> Entry | None:
    """The entry of this name or alias, whatever its case, spaces, underscores and dashes; ``None`` if there is none."""
    return _by_key().get(key(name))


def unsupported_lookup(name: str) -> Unsupported | None:
    """The unsupported design of this name or alias, found as ``lookup`` finds a design; ``None`` if there is none."""
    return _unsupported_by_key().get(key(name))


def ambiguous(name: str) -> str | None:
    """The two meanings of a spelling of "pre-norm", as one message; ``None`` for any other name."""
    if key(name) not in _PRE_NORM:
        return None
    return (
        f"{name.strip()!r} is the name of two designs in the literature: "
        "x + F(norm(x)), the norm on what the sub-layer reads (Xiong et al. 2020; GPT-2, Llama), "
        "is input-norm, alias pre-ln; x + norm(F(x)), the norm on what the sub-layer writes (Xiao and Zhu, "
        "Foundations of Large Language Models; OLMo 2), is output-norm, aliases res-post-norm and pre-norm-flm"
    )


def nearest(name: str) -> str | None:
    """The catalogue name or alias that is spelled most like ``name``; ``None`` if none is close."""
    spelled = _spelled()
    found = difflib.get_close_matches(key(name), spelled, n=1, cutoff=0.6)
    return spelled[found[0]] if found else None


@cache
def _spelled() -> dict[str, str]:
    return {key(each): each for entry in designs() for each in (entry.name, *entry.aliases)}


# A name has no "=", no brackets and no section label; every equation has at least one of them.
_NAME = re.compile(r"[^\W\d][\w .*+\-\u2010-\u2015\u2212]*")


def resolve(text: str) -> Entry | None:
    """The entry that ``text`` names; ``None`` if it is not a name but, it may be, an equation.

    Raises:
        DesignError: for a name that means two designs, that the notation cannot express, or that is in no catalogue.
    """
    shown = text.strip()  # in the pattern, white space at both ends would take quadratic time
    if not _NAME.fullmatch(shown):
        return None
    entry = lookup(text)
    if entry is not None:
        return entry
    start = text.index(shown)
    meanings = ambiguous(text)
    if meanings is not None:
        raise DesignError(meanings, text, start, len(shown), expected="input-norm or output-norm")
    known = unsupported_lookup(text)
    if known is not None:
        raise DesignError(
            f"{known.name} cannot be written in the notation: {known.reason} ({known.citation})",
            text,
            start,
            len(shown),
        )
    raise DesignError(
        f"no design has the name {shown[:80]!r}",
        text,
        start,
        len(shown),
        expected="an equation such as x = norm(x + attn(x)), or a name that `sublayer designs` lists",
        nearest=nearest(shown),
    )
