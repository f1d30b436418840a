"""From statements to the wiring graph: names are resolved, sums flattened, scalars folded."""

import ast
import re
from dataclasses import dataclass, field

from sublayer.notation import graph as g
from sublayer.notation.catalogue import ambiguous
from sublayer.notation.errors import DesignError
from sublayer.notation.scalar import ONE, SYMBOLS, Scalar, ScalarError
from sublayer.notation.text import Statement, nearest

Value = g.Linear | Scalar
_PRE_NORM = re.compile(r"\bpre[-_ ]?norm", re.IGNORECASE)

# What people write for an operator in papers and code.
SPELLINGS = {
    spelling: word
    for word, spellings in {
        "norm": "ln lnorm normalize",
        "layernorm": "layer_norm",
        "rmsnorm": "rms rms_norm",
        "dyt": "tanh",
        "attn": "a sa mha mhsa attention selfattn self_attn selfattention",
        "ffn": "f ff fnn mlp feedforward feed_forward",
        "cross": "crossattn cross_attn",
        "scale": "ls layerscale",
        "gate": "rezero",
        "stop": "sg detach stopgrad stop_gradient",
        "layer": "l",
        "depth": "n num_layers",
    }.items()
    for spelling in spellings.split()
}


@dataclass
class Reader:
    """Reads the statements of one section into a graph. Labels are of the section: each layer has its own."""

    text: str
    kind: str
    graph: g.Graph = field(default_factory=g.Graph)
    env: dict[str, Value] = field(default_factory=dict)
    groups: dict[str, int] = field(default_factory=dict)
    reads: dict[str, tuple[int, int]] = field(default_factory=dict)  # names read before they are assigned: place
    calls: int = 0

    def fail(
        self,
        statement: Statement,
        node: ast.AST,
        rule: str,
        expected: str | None = None,
        nearest: str | None = None,
    ) -> DesignError:
        if word := _PRE_NORM.search(statement.source):
            # The one word with two meanings, wherever it stands.
            rule, expected, nearest = ambiguous(word.group()) or rule, "input-norm or output-norm, as an equation", None
        return DesignError(rule, self.text, *statement.place(node), expected=expected, nearest=nearest)

    def run(self, statements: tuple[Statement, ...]) -> None:
        for statement in statements:
            target, expression = self._assignment(statement)
            value = self.value(statement, expression)
            if isinstance(value, Scalar) and target == "x":
                raise self.fail(
                    statement,
                    expression,
                    "x is the residual stream, got a number",
                    expected="x = ... with a value such as attn(x)",
                )
            self.env[target] = value

    def _assignment(self, statement: Statement) -> tuple[str, ast.expr]:
        """The name that is assigned, and what it is assigned."""
        tree = statement.tree
        if (
            isinstance(tree, ast.AugAssign)
            and isinstance(tree.target, ast.Name)
            and isinstance(tree.op, ast.Add | ast.Sub)
        ):
            sign = "+" if isinstance(tree.op, ast.Add) else "-"
            rest = ast.get_source_segment(statement.source, tree.value) or "..."
            name = tree.target.id
            raise self.fail(
                statement, tree, f"'{sign}=' is not in the notation", nearest=f"{name} = {name} {sign} {rest}"
            )
        if isinstance(tree, ast.Expr):
            raise self.fail(
                statement,
                tree,
                "a statement assigns a value, got an expression",
                expected="x = ...",
                nearest=self._as_value(statement, tree.value),
            )
        if not isinstance(tree, ast.Assign):
            raise self.fail(
                statement, tree, f"only assignments are allowed, got {type(tree).__name__.lower()}", expected="x = ..."
            )
        if len(tree.targets) != 1 or not isinstance(tree.targets[0], ast.Name):
            raise self.fail(statement, tree.targets[-1], "a statement assigns one name", expected="x = ...")
        name = tree.targets[0].id
        if name in g.RESERVED:
            raise self.fail(
                statement,
                tree.targets[0],
                f"'{name}' is a word of the notation and cannot be assigned",
                expected="another lower-case name",
                nearest=f"{name}_out",
            )
        self._check_name(statement, tree.targets[0], name)
        return name, tree.value

    def _as_value(self, statement: Statement, expression: ast.expr) -> str | None:
        """The expression as an assignment to x, if that is a statement."""
        try:
            value = self.value(statement, expression)
        except DesignError:
            return None
        return None if isinstance(value, Scalar) else f"x = {statement.source.strip()}"

    def _check_name(self, statement: Statement, node: ast.AST, name: str) -> None:
        if not (name[0].islower() and name == name.lower()) or name.startswith("_"):
            raise self.fail(
                statement,
                node,
                f"names are lower case and begin with a letter, got '{name}'",
                nearest=self._suggest(name, call=False),
            )

    def _suggest(self, name: str, call: bool) -> str | None:
        plain = SPELLINGS.get(name.lower())
        if call:
            return plain or nearest(name, g.OPERATORS)
        return (
            nearest(name, [*self.env, "x", "e", "layer", "depth"])
            or plain
            or (name.lower() if name.lower() != name else None)
        )

    def value(self, statement: Statement, node: ast.AST) -> Value:
        match node:
            case ast.Constant():
                return self._number(statement, node)
            case ast.Name():
                return self._name(statement, node)
            case ast.UnaryOp(op=ast.USub() | ast.UAdd()):
                value = self.value(statement, node.operand)
                if isinstance(node.op, ast.UAdd):
                    return value
                return -value if isinstance(value, Scalar) else g.times(value, -ONE)
            case ast.BinOp():
                left, right = self.value(statement, node.left), self.value(statement, node.right)
                try:
                    return self._binary(statement, node, left, right)
                except ScalarError as error:
                    raise self.fail(statement, node, str(error), expected="a finite real number") from None
            case ast.Call():
                return self._call(statement, node)
        raise self.fail(
            statement,
            node,
            f"{type(node).__name__.lower()} is not in the notation",
            expected="a name, a number, + - * / ** or a call such as attn(x)",
        )

    def _number(self, statement: Statement, node: ast.Constant) -> Scalar:
        if type(node.value) not in (int, float):
            raise self.fail(
                statement, node, f"{node.value!r} is not a number of the notation", expected="an integer or a decimal"
            )
        try:
            return Scalar.number(node.value)  # type: ignore[arg-type]
        except ScalarError as error:
            raise self.fail(statement, node, str(error), expected="a finite number") from None

    def _name(self, statement: Statement, node: ast.Name) -> Value:
        name = node.id
        if name in self.env:
            return self.env[name]
        if name in SYMBOLS:
            if self.kind != "block" and name == "layer":
                raise self.fail(statement, node, f"'layer' has no value in {self.kind}", expected="depth or a number")
            return SYMBOLS[name]()
        if name == "e":
            return self.graph.input("e")
        if name in g.RESERVED:
            raise self.fail(statement, node, f"'{name}' is an operator and needs a value", nearest=f"{name}(x)")
        self._check_name(statement, node, name)
        if self.kind == "embed":
            raise self.fail(
                statement,
                node,
                f"'{name}' has no value yet in embed",
                expected="the embedding output e, or a name assigned before",
                nearest=self._suggest(name, call=False) or "e",
            )
        self.reads.setdefault(name, statement.place(node))
        value = self.graph.input(name)
        self.env[name] = value
        return value

    def _binary(self, statement: Statement, node: ast.BinOp, left: Value, right: Value) -> Value:
        match node.op:
            case ast.Add() | ast.Sub():
                if isinstance(left, Scalar) and isinstance(right, Scalar):
                    return left + right if isinstance(node.op, ast.Add) else left - right
                if isinstance(left, Scalar) or isinstance(right, Scalar):
                    place = node.left if isinstance(left, Scalar) else node.right
                    raise self.fail(
                        statement, place, "a number cannot be added to a value", expected="a term such as 0.5*attn(x)"
                    )
                return g.add(left, right, ONE if isinstance(node.op, ast.Add) else -ONE)
            case ast.Mult():
                if isinstance(left, Scalar) and isinstance(right, Scalar):
                    return left * right
                if isinstance(left, Scalar):
                    return g.times(right, left)  # type: ignore[arg-type]
                if isinstance(right, Scalar):
                    return g.times(left, right)
                raise self.fail(
                    statement,
                    node,
                    "two values cannot be multiplied",
                    expected="a number times a value, gate(...) or scale(...)",
                )
            case ast.Div():
                if not isinstance(right, Scalar):
                    raise self.fail(statement, node.right, "a value cannot divide", expected="a number below the '/'")
                return left / right if isinstance(left, Scalar) else g.times(left, ONE / right)
            case ast.Pow():
                if isinstance(left, Scalar) and isinstance(right, Scalar):
                    return left.power(right)
                raise self.fail(
                    statement,
                    node,
                    "only numbers can be raised to a power",
                    expected="a scalar such as (2*depth)**0.25",
                )
        raise self.fail(statement, node, "this operation is not in the notation", expected="+ - * / **")

    def _call(self, statement: Statement, node: ast.Call) -> Value:
        if not isinstance(node.func, ast.Name):
            raise self.fail(statement, node.func, "only operators are called", expected=", ".join(g.OPERATORS))
        if node.keywords or any(isinstance(a, ast.Starred) for a in node.args):
            raise self.fail(statement, node, "operators take plain values", expected=f"{node.func.id}(x)")
        name = node.func.id
        op, _, label = name.partition("_")
        if name == "sqrt":
            if len(node.args) != 1 or not isinstance(scalar := self.value(statement, node.args[0]), Scalar):
                raise self.fail(statement, node, "sqrt takes one number", expected="sqrt(layer)")
            try:
                return scalar.power(Scalar.number(0.5))
            except ScalarError as error:
                raise self.fail(statement, node, str(error), expected="a positive number") from None
        if op not in g.OPERATORS or ("_" in name and not label) or name != name.lower():
            raise self.fail(
                statement,
                node.func,
                f"unknown operator '{name}'",
                expected=", ".join((*g.OPERATORS, "sqrt")),
                nearest=self._suggest(name, call=True),
            )
        if len(node.args) != 1 and not (op in g.VARIADIC and node.args):
            raise self.fail(statement, node, f"{name} takes one value, got {len(node.args)}", expected=f"{name}(x)")
        args = []
        for arg in node.args:
            value = self.value(statement, arg)
            if isinstance(value, Scalar):
                raise self.fail(statement, arg, f"{name} takes a value, got the number {value}", nearest=f"{name}(x)")
            if not value:
                raise self.fail(
                    statement, arg, f"the argument of {name} is always zero", expected="a value that depends on x"
                )
            args.append(value)
        self.calls += 1
        if self.calls > g.MAX_OPERATORS:  # here, because a sum of n calls costs n times n
            raise self.fail(statement, node, f"a design has at most {g.MAX_OPERATORS} operator calls, got more")
        if op in g.WEIGHTLESS:
            group = -1
        elif label:
            group = self.groups.setdefault(name, len(self.groups))
        else:
            group = self.groups.setdefault(f"{name} #{len(self.groups)}", len(self.groups))
        return self.graph.node(g.Node(op, tuple(args), group))
