"""The shape of every parameter of a design, as equations of the model's sizes.

Symbols: ``d`` hidden size, ``d_ff`` width of the FFN, ``h`` heads, ``h_kv`` heads of keys and values, ``d_h`` width
of a head (``d/h`` unless it is configured). Matrices act on rows, ``Y = X W`` with X of m x d, as in Xiao and Zhu
(2025).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sublayer.notation.program import Section, Site

if TYPE_CHECKING:
    from sublayer.notation.design import Design

LEGEND = (
    "d hidden size · d_ff FFN width · h heads · h_kv key and value heads (h unless grouped) · "
    "d_h head width (d/h unless set) · rows times matrix: Y = X W"
)


@dataclass(frozen=True)
class Shape:
    """One parameter of one site.

    Attributes:
        section: ``embed``, ``block``, ``block[:25%]``, ... or ``final``.
        site: the site's name, which is the module's attribute name.
        name: the parameter: ``W_q``, ``gain``.
        dims: its dimensions as equations, outermost first; one for a vector, none for a single number.
        when: the configuration that it depends on, empty if it is always there.
    """

    section: str
    site: str
    name: str
    dims: tuple[str, ...]
    when: str = ""

    @property
    def text(self) -> str:
        """``d x d_ff``, ``d``, or ``1`` for a single number."""
        return " x ".join(self.dims) or "1"


_ATTENTION = (
    ("W_q", ("d", "h*d_h"), ""),
    ("W_k", ("d", "h_kv*d_h"), ""),
    ("W_v", ("d", "h_kv*d_h"), ""),
    ("W_o", ("h*d_h", "d"), ""),
    ("b_q", ("h*d_h",), "attention_bias"),
    ("b_k", ("h_kv*d_h",), "attention_bias"),
    ("b_v", ("h_kv*d_h",), "attention_bias"),
    ("b_o", ("d",), "attention_bias"),
    ("gain_q", ("d_h",), "qk_norm"),
    ("gain_k", ("d_h",), "qk_norm"),
)
_FFN = (
    ("W_h", ("d", "d_ff"), ""),
    ("W_g", ("d", "d_ff"), "a gated activation"),
    ("W_f", ("d_ff", "d"), ""),
    ("b_h", ("d_ff",), "mlp_bias"),
    ("b_g", ("d_ff",), "mlp_bias and a gated activation"),
    ("b_f", ("d",), "mlp_bias"),
)
_PARAMETERS: dict[str, tuple[tuple[str, tuple[str, ...], str], ...]] = {
    "attn": _ATTENTION,
    "ffn": _FFN,
    "norm": (
        ("gain", ("d",), ""),
        ("offset", ("d",), "norm is layernorm or dyt"),
        ("slope", (), "norm is dyt"),
    ),
    "layernorm": (("gain", ("d",), ""), ("offset", ("d",), "")),
    "rmsnorm": (("gain", ("d",), ""),),
    "dyt": (("slope", (), ""), ("gain", ("d",), ""), ("offset", ("d",), "")),
    "scale": (("factor", ("d",), ""),),
    "gate": (("factor", (), ""),),
    "dot": (),
    "stop": (),
}


def site_shapes(section: str, site: Site) -> tuple[Shape, ...]:
    """The parameters of one site; empty for an operator without weights or one that cannot be built."""
    return tuple(Shape(section, site.name, name, dims, when) for name, dims, when in _PARAMETERS.get(site.op, ()))


def shapes(design: "Design") -> tuple[Shape, ...]:
    """Every parameter of the design's sections; those of a block are there once for each of its layers."""
    sections: list[tuple[str, Section]] = [("embed", design.section("embed"))]
    sections += [("block" if layers.is_whole else f"block{layers}", section) for layers, section in design.blocks]
    sections.append(("final", design.section("final")))
    return tuple(shape for name, section in sections for site in section.sites for shape in site_shapes(name, site))


def table(design: "Design") -> str:
    """The shapes as aligned text, one line a parameter, with the symbols explained at the end."""
    rows = [(s.section, s.site, s.name, s.text, f"if {s.when}" if s.when else "") for s in shapes(design)]
    if not rows:
        return "no parameters"
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = []
    previous = ("", "")
    for section, site, name, text, when in rows:
        # A section and a site are named where they begin.
        first = section if section != previous[0] else ""
        second = site if (section, site) != previous else ""
        cells = [cell.ljust(width) for cell, width in zip((first, second, name, text), widths, strict=True)]
        lines.append("  ".join([*cells, when]).rstrip())
        previous = (section, site)
    return "\n".join([*lines, LEGEND])
