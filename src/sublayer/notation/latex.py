"""A design as LaTeX: an ``aligned`` environment (amsmath) with one line a statement."""

import ast
from typing import TYPE_CHECKING

from sublayer.notation.graph import NORMS
from sublayer.notation.program import Add, Call, Section
from sublayer.notation.scalar import Scalar
from sublayer.notation.text import LayerRange

if TYPE_CHECKING:
    from sublayer.notation.design import Design

_NAMES = {
    "attn": "Attn",
    "ffn": "FFN",
    "dot": "Dot",
    "cross": "Cross",
    "moe": "MoE",
    "mixer": "Mixer",
    "op": "Op",
    "norm": "Norm",
    "layernorm": "LayerNorm",
    "rmsnorm": "RMSNorm",
    "dyt": "DyT",
    "stop": "sg",
}
MAX_LINE = 96  # characters of LaTeX after which a sum is broken before its next term


def latex(design: "Design") -> str:
    r"""The sections as an ``aligned`` environment.

    ``\ell`` is the layer and ``L`` the depth. Several parameter sets of one operator have an index each.
    """
    lines = _section("embed", design.section("embed"))
    for layers, section in design.blocks:
        lines += _section("block" + _layers(layers), section)
    lines += _section("final", design.section("final"))
    return "\\begin{aligned}\n" + " \\\\\n".join(lines) + "\n\\end{aligned}"


def _layers(layers: LayerRange) -> str:
    return "" if layers.is_whole else str(layers).replace("%", r"\%")


def _section(label: str, section: Section) -> list[str]:
    writer = _Writer(section)
    lines = []
    for i, (target, expression) in enumerate(writer.statements()):
        head = rf"\text{{{label}}}" if i == 0 else ""
        first, *rest = _broken(expression)
        lines.append(rf"{head} && {_name(target)} &\leftarrow {first}".lstrip())
        lines += [rf"&& &\qquad {more}" for more in rest]
    return lines


def _broken(terms: list[str]) -> list[str]:
    """The terms of a sum, gathered into lines."""
    lines = [terms[0]]
    for term in terms[1:]:
        if len(lines[-1]) + len(term) > MAX_LINE:
            lines.append(term)
        else:
            lines[-1] += " " + term
    return lines


def _name(variable: str) -> str:
    """``h2`` as ``h_{2}``; a longer name upright, so that it is not read as a product."""
    stem = variable.rstrip("0123456789")
    number = variable[len(stem) :]
    text = stem if len(stem) == 1 else rf"\mathrm{{{stem}}}"
    return f"{text}_{{{number}}}" if number else text


class _Writer:
    """Writes the statements of one section, with an index on each operator that has several parameter sets."""

    def __init__(self, section: Section) -> None:
        self.section = section
        self.variable = {v: v for v in section.inputs}
        self.index: dict[str, str] = {}
        for op in dict.fromkeys(site.op for site in section.sites):
            same = [site for site in section.sites if site.op == op]
            for i, site in enumerate(same):
                self.index[site.name] = f"_{{{i + 1}}}" if len(same) > 1 and op not in ("dot", "stop") else ""

    def statements(self) -> list[tuple[str, list[str]]]:
        """(target, terms) of each statement."""
        lines = []
        for statement in self.section.statements:
            if statement.value in self.variable:
                terms = [_name(self.variable[statement.value])]
            else:
                terms = self._terms(statement.value)
            lines.append((statement.target, terms))
            self.variable[statement.value] = statement.target
        return lines

    def _text(self, value: str) -> str:
        if value in self.variable:
            return _name(self.variable[value])
        return " ".join(self._terms(value))

    def _terms(self, value: str) -> list[str]:
        step = self.section.step[value]
        if isinstance(step, Call):
            return [self._call(step)]
        terms = []
        for i, (scalar, term) in enumerate(step.terms):
            factor = self._text(term)
            minus = len(scalar.terms) == 1 and scalar.negative
            magnitude = -scalar if minus else scalar
            if not magnitude.is_one and term not in self.variable and isinstance(self.section.step.get(term), Add):
                factor = rf"\left({factor}\right)"
            body = factor if magnitude.is_one else rf"{_scalar(magnitude)}\,{factor}"
            sign = "-" if minus else ("+" if i else "")
            terms.append(f"{sign} {body}".lstrip())
        return terms

    def _call(self, call: Call) -> str:
        op, index = call.site.op, self.index[call.site.name]
        args = r",\, ".join(self._text(a) for a in call.args)
        if op in ("gate", "scale"):
            symbol = rf"g{index}\," if op == "gate" else rf"\lambda{index} \odot"
            simple = call.args[0] in self.variable or isinstance(self.section.step.get(call.args[0]), Call)
            return f"{symbol} {args}" if simple else rf"{symbol} \left({args}\right)"
        operator = rf"\operatorname{{{_NAMES.get(op, op)}}}{index}"
        nested = "(" in args
        return rf"{operator}\bigl({args}\bigr)" if nested and op in NORMS else f"{operator}({args})"


def _scalar(scalar: Scalar) -> str:
    """A scalar in LaTeX, from the text that the notation prints for it."""
    text = _node(ast.parse(str(scalar), mode="eval").body)
    return rf"\left({text}\right)" if len(scalar.terms) > 1 else text


def _node(node: ast.expr) -> str:
    match node:
        case ast.Constant(value=value):
            return str(value)
        case ast.Name(id="layer"):
            return r"\ell"
        case ast.Name(id="depth"):
            return "L"
        case ast.UnaryOp(operand=operand):
            return f"-{_node(operand)}"
        case ast.Call(args=[argument]):
            return rf"\sqrt{{{_node(argument)}}}"
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return rf"\frac{{{_node(left)}}}{{{_node(right)}}}"
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return f"{_grouped(left, always=True)}^{{{_node(right)}}}"
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            times = r"\cdot " if isinstance(right, ast.Constant) else r"\,"
            return f"{_grouped(left)}{times}{_grouped(right)}"
        case ast.BinOp(left=left, op=op, right=right):
            sign = "+" if isinstance(op, ast.Add) else "-"
            return f"{_node(left)} {sign} {_grouped(right)}"
    raise TypeError(f"a scalar prints numbers, layer, depth and sqrt, got {ast.dump(node)}")


def _grouped(node: ast.expr, always: bool = False) -> str:
    """The text of an operand, in brackets where its own operator binds less."""
    text = _node(node)
    loose = isinstance(node, ast.UnaryOp) or (
        isinstance(node, ast.BinOp) and (always or isinstance(node.op, ast.Add | ast.Sub))
    )
    return rf"\left({text}\right)" if loose else text
