"""Text -> wiring graph -> text, LaTeX, SVG and code; the catalogue of named designs. Pure Python."""

from sublayer.notation.catalogue import Entry, Unsupported, designs, unsupported
from sublayer.notation.design import Design, parse
from sublayer.notation.errors import DesignError
from sublayer.notation.program import Add, Call, Section, Site
from sublayer.notation.scalar import Scalar
from sublayer.notation.text import LayerRange

__all__ = [
    "Add",
    "Call",
    "Design",
    "DesignError",
    "Entry",
    "LayerRange",
    "Scalar",
    "Section",
    "Site",
    "Unsupported",
    "designs",
    "parse",
    "unsupported",
]
