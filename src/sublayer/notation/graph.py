"""The wiring graph of one section: operator calls over weighted sums, each value stored once.

A `Linear` is a weighted sum of nodes. A node is an input (a stream, or the embedding output ``e``) or the call of an
operator on
sums. Nodes with the same operator, parameters and arguments are one node, so a value used twice is shared.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sublayer.notation.scalar import ONE, Scalar

BRANCHES = ("attn", "dot", "cross", "mixer", "ffn", "moe", "op")
NORMS = ("norm", "layernorm", "rmsnorm", "dyt")
PLAIN = ("scale", "gate", "stop")
OPERATORS = (*BRANCHES, *NORMS, *PLAIN)  # also the order in which terms of one sum are printed
WEIGHTLESS = frozenset({"dot", "stop"})  # no parameters: two calls on one value are one value
VARIADIC = frozenset({"op"})
RESERVED = frozenset({*OPERATORS, "layer", "depth", "sqrt", "e", "embed", "block", "final"})

MAX_OPERATORS = 256  # calls in one design

Linear = tuple[tuple[int, Scalar], ...]  # (node, coefficient) by node, no zero coefficients


def linear(terms: Mapping[int, Scalar]) -> Linear:
    """The weighted sum with equal nodes gathered and zero terms dropped."""
    return tuple(sorted(((node, c) for node, c in terms.items() if not c.is_zero), key=lambda item: item[0]))


def add(left: Linear, right: Linear, factor: Scalar = ONE) -> Linear:
    """``left + factor * right``."""
    total = dict(left)
    for node, c in right:
        scaled = c * factor
        total[node] = total[node] + scaled if node in total else scaled
    return linear(total)


def times(value: Linear, factor: Scalar) -> Linear:
    """``factor * value``."""
    return linear({node: c * factor for node, c in value})


@dataclass(frozen=True)
class Node:
    """An input (``op == "input"``, ``name`` set) or a call; ``group`` numbers the parameter set, -1 without
    parameters."""

    op: str
    args: tuple[Linear, ...] = ()
    group: int = -1
    name: str = ""


@dataclass
class Graph:
    """The nodes of one section in the order they were made, and the sums that leave it."""

    nodes: list[Node] = field(default_factory=list)
    outputs: dict[str, Linear] = field(default_factory=dict)
    _index: dict[Node, int] = field(default_factory=dict)

    def node(self, node: Node) -> Linear:
        """The value of ``node``, added if it is new."""
        index = self._index.get(node)
        if index is None:
            index = self._index[node] = len(self.nodes)
            self.nodes.append(node)
        return ((index, ONE),)

    def input(self, name: str) -> Linear:
        return self.node(Node("input", name=name))

    def live(self, streams: frozenset[str]) -> set[int]:
        """Nodes that the outputs of ``streams`` depend on."""
        stack = [node for s in streams for node, _ in self.outputs.get(s, ())]
        seen: set[int] = set()
        while stack:
            index = stack.pop()
            if index not in seen:
                seen.add(index)
                stack += [child for arg in self.nodes[index].args for child, _ in arg]
        return seen

    def inputs_of(self, streams: frozenset[str]) -> set[str]:
        """Names of the inputs that the outputs of ``streams`` depend on."""
        return {self.nodes[i].name for i in self.live(streams) if self.nodes[i].op == "input"}
