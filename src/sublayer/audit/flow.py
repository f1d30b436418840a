"""From a tape of ATen calls to a graph of what they mean: linear maps, norms, sums, products, attention.

A node stands for one value of the data that flows from an input to the output. Calls that only change its shape, type or
place in memory make no node. What is computed from weights, masks and constants alone is no node either: it is an operand.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sublayer.audit import vocabulary as words
from sublayer.audit.tape import Replay, Tape, Value, values_in

LIVE, MEMORY, WEIGHT, SIDE = 1, 2, 4, 8  # what a value descends from: the data, other data, weights, masks and such


@dataclass
class Node:
    """One value of the flow.

    Attributes:
        index: place in the graph; a node comes after what it is computed from.
        kind: one of `sublayer.audit.vocabulary`'s kinds.
        inputs: the nodes it is computed from, in the order of the arguments.
        value: the value on the tape that it was made as.
        factors: of a sum, the number that each input is multiplied by.
        operands: values computed from weights alone that take part: matrices, gains, gates.
        memory: whether data that does not come through this flow takes part (an encoder's output).
        detail: what a reader of the kind needs to know besides.
        top: the immediate dominator: the last node that every way to this one passes; -1 if there is none.
    """

    index: int
    kind: str
    inputs: tuple[int, ...]
    value: Value
    factors: tuple[float, ...] = ()
    operands: tuple[Value, ...] = ()
    memory: bool = False
    detail: dict[str, Any] = field(default_factory=dict)
    top: int = -1
    depth: int = 0

    @property
    def width(self) -> int:
        """Size of the last axis."""
        return self.value.shape[-1] if self.value.shape else 1


class Flow:
    """The graph of the data that comes in through ``main``."""

    def __init__(self, tape: Tape, main: tuple[str, ...]) -> None:
        self.tape = tape
        self.main = main
        # Rows and positions, where the input is one number or one vector a token.
        shape = tape.inputs[main[0]].shape if main and main[0] in tape.inputs else ()
        self.tokens: tuple[int, int] = (shape[0], shape[1]) if len(shape) in (2, 3) else (1, 0)
        self.nodes: list[Node] = []
        self.of: dict[int, int] = {}  # value -> node
        self.kinds: list[int] = [0] * len(tape.values)
        self.users: list[list[int]] = []
        self.numbers = Replay({}, lambda v: v.real)
        self._names: dict[int, tuple[str, ...]] = {}
        self.notes: dict[int, list[str]] = {}  # node -> remarks on what the equation leaves out
        for value in tape.values:
            self._enter(value)

    # --- what a value descends from -------------------------------------------------------------------------------

    def _descent(self, value: Value) -> int:
        if value.kind == "input":
            if value.name in self.main:
                return LIVE
            return MEMORY if value.name in self.tape.main or value.dtype.is_floating_point else SIDE
        if value.kind == "parameter":
            return WEIGHT
        if value.kind == "buffer":
            return 0 if value.real is not None else WEIGHT
        if value.kind == "constant":
            return 0 if value.real is not None else SIDE
        bits = 0
        sources = value.sources
        if value.name in words.OVERWRITES:
            sources = sources[1:]  # what was there before is gone
        for source in sources:
            bits |= self.kinds[source.index]
        if value.name in words.SHAPE_ONLY:
            return 0  # only the size of a tensor is read
        if bits & LIVE and value.dtype == torch.bool and not any(s.dtype.is_floating_point for s in sources):
            return bits & ~LIVE | SIDE  # a mask that is read off the ids
        return bits

    def is_live(self, value: Value) -> bool:
        return bool(self.kinds[value.index] & LIVE)

    def is_weight(self, value: Value) -> bool:
        """Whether a value is computed from weights and nothing that comes in."""
        return self.kinds[value.index] & (LIVE | MEMORY | SIDE | WEIGHT) == WEIGHT

    def number(self, value: Any) -> float | None:
        """The one number that an operand is, if it is known."""
        if isinstance(value, bool | int | float):
            return float(value)
        if not isinstance(value, Value) or self.kinds[value.index] & (LIVE | MEMORY | WEIGHT | SIDE):
            return None
        size = 1
        for n in value.shape:
            size *= n
        if size != 1:
            return None
        known = self.numbers(value)
        return None if known is None else float(known)

    def parameter_names(self, value: Value) -> tuple[str, ...]:
        """The parameters (and buffers of unknown content) that an operand is computed from."""
        found = self._names.get(value.index)
        if found is None:
            if value.kind in ("parameter", "buffer"):
                found = (value.name,)
            else:
                found = tuple(dict.fromkeys(n for s in value.sources for n in self.parameter_names(s)))
            self._names[value.index] = found
        return found

    # --- building -------------------------------------------------------------------------------------------------

    def _enter(self, value: Value) -> None:
        bits = self.kinds[value.index] = self._descent(value)
        if not bits & LIVE:
            return
        if value.kind == "input":
            self.add("source", (), value)
            return
        kind = words.KIND.get(value.name, "")
        sources = value.sources[1:] if value.name in words.OVERWRITES else value.sources
        live = [s for s in sources if self.kinds[s.index] & LIVE]
        if kind == "same":
            self.of[value.index] = self.of[live[0].index]
            return
        builder = getattr(self, f"_{kind}", None) if kind else None
        node = builder(value, live) if builder else None
        if node is None and value.index not in self.of:
            self._other(value, live, kind)

    def add(
        self, kind: str, inputs: tuple[int, ...], value: Value, *, operands: tuple[Value, ...] = (), **more: Any
    ) -> Node:
        """Append a node and find its dominator."""
        factors = more.pop("factors", ())
        memory = any(self.kinds[s.index] & MEMORY and not self.kinds[s.index] & LIVE for s in value.sources)
        node = Node(len(self.nodes), kind, inputs, value, factors, operands, memory, more)
        self.nodes.append(node)
        self.users.append([])
        for i in dict.fromkeys(inputs):
            self.users[i].append(node.index)
        if inputs:
            top = inputs[0]
            for other in inputs[1:]:
                top = self.meet(top, other)
            node.top = top
            node.depth = self.nodes[top].depth + 1 if top >= 0 else 0
        self.of[value.index] = node.index
        return node

    def meet(self, a: int, b: int) -> int:
        while a != b:
            if a < 0 or b < 0:
                return -1
            if self.nodes[a].depth >= self.nodes[b].depth and (self.nodes[a].depth > self.nodes[b].depth or a > b):
                a = self.nodes[a].top
            else:
                b = self.nodes[b].top
        return a

    def node(self, value: Value) -> Node:
        return self.nodes[self.of[value.index]]

    def between(self, top: int, bottom: int) -> list[int]:
        """The nodes on the ways from ``top`` to ``bottom``, both left out, by index."""
        seen: set[int] = set()
        stack = [i for i in self.nodes[bottom].inputs if i != top]
        while stack:
            i = stack.pop()
            if i in seen:
                continue
            seen.add(i)
            stack += [j for j in self.nodes[i].inputs if j != top and j not in seen]
        return sorted(seen)

    def reaches(self, above: int, below: int) -> bool:
        """Whether ``below`` is computed from ``above``."""
        seen: set[int] = set()
        stack = [below]
        while stack:
            i = stack.pop()
            if i == above:
                return True
            for j in self.nodes[i].inputs:
                if j >= above and j not in seen:
                    seen.add(j)
                    stack.append(j)
        return False

    # --- kinds ----------------------------------------------------------------------------------------------------

    def _other(self, value: Value, live: list[Value], kind: str) -> None:
        inputs = tuple(dict.fromkeys(self.of[s.index] for s in live))
        if not kind or kind in ("add", "mul", "div"):
            elementwise = value.shape == live[0].shape or len(value.shape) >= len(live[0].shape)
            kind = "pointwise" if elementwise else "opaque"
        weights = tuple(s for s in value.sources if self.kinds[s.index] & WEIGHT and not self.is_live(s))
        self.add(kind, inputs, value, operands=weights)

    def _add(self, value: Value, live: list[Value]) -> Node | None:
        """``a + alpha*b``, ``a - b``, ``-a``."""
        factor = [1.0, 1.0]
        if value.name in ("sub", "sub_", "subtract"):
            factor = [1.0, -1.0]
        elif value.name == "rsub":
            factor = [-1.0, 1.0]
        elif value.name in ("neg", "neg_"):
            return self.weighted(value, [(-1.0, self.of[live[0].index])])
        alpha = self.number(value.kwargs.get("alpha", value.args[2] if len(value.args) > 2 else 1))
        if alpha is None:
            return None
        factor[0 if value.name == "rsub" else 1] *= alpha
        pairs = [(f, a) for f, a in zip(factor, value.args[:2], strict=False)]
        terms = [(f, self.of[a.index]) for f, a in pairs if isinstance(a, Value) and self.is_live(a)]
        fixed = [a for _, a in pairs if not (isinstance(a, Value) and self.is_live(a))]
        return self.weighted(value, terms, fixed)

    def weighted(self, value: Value, terms: list[tuple[float, int]], fixed: list[Any] | None = None) -> Node | None:
        """A sum of nodes with numbers as factors; what is fixed and added to it is an offset."""
        total: dict[int, float] = {}
        for f, i in terms:
            total[i] = total.get(i, 0.0) + f
        inputs = tuple(i for i, f in total.items() if f != 0)
        if not inputs:
            return None
        if fixed and any(isinstance(a, Value) and self.kinds[a.index] & MEMORY for a in fixed):
            return None
        if len(inputs) == 1 and total[inputs[0]] == 1.0:
            return self._offset(value, inputs[0], fixed or [])
        if len(inputs) == 1 and (node := self._unit_norm(value, inputs[0], total[inputs[0]])) is not None:
            return node
        if len(inputs) > 1 and (node := self._one_map(value, inputs)) is not None:
            return node
        return self.add("sum", inputs, value, factors=tuple(total[i] for i in inputs))

    def _unit_norm(self, value: Value, index: int, factor: float) -> Node | None:
        """A division by the length, times the root of the width, is a division by the root of the mean square."""
        node = self.nodes[index]
        if node.kind != "norm" or node.detail["norm"] != "l2norm" or node.detail["offset"]:
            return None
        if abs(factor * node.detail["over"] ** -0.5 - 1) > 1e-3:
            return None
        return self.add("norm", node.inputs, value, operands=node.operands, **{**node.detail, "norm": "rmsnorm"})

    def _one_map(self, value: Value, inputs: tuple[int, ...]) -> Node | None:
        """A sum of linear maps of one node is a linear map of it, as with a low-rank adapter beside a matrix."""
        node = self.nodes[inputs[0]]
        for _ in range(4):
            if node.kind not in ("linear", "factor") and not (node.kind == "sum" and len(node.inputs) == 1):
                return None
            if node.kind == "linear" and len(node.inputs) == 1:
                found = [self._map_of(i, node.inputs[0]) for i in inputs]
                if all(one is not None for one in found):
                    operands = tuple(dict.fromkeys(w for one in found for w in one or ()))
                    return self.add("linear", node.inputs, value, operands=operands, first=True)
            node = self.nodes[node.inputs[0]]
        return None

    def _map_of(self, place: int, source: int) -> list[Value] | None:
        """The weights by which a node is a linear map of ``source``; None if it is not."""
        stack, operands, steps = [(place, False)], [], 0
        while stack:
            i, mapped = stack.pop()
            node = self.nodes[i]
            steps += 1
            if i == source and mapped:
                continue
            if i <= source or steps > 12 or node.kind not in ("linear", "sum", "factor"):
                return None
            operands += node.operands
            stack += [(j, mapped or node.kind == "linear") for j in node.inputs]
        return operands

    def _offset(self, value: Value, index: int, fixed: list[Any]) -> Node | None:
        """Something fixed is added: a bias of the norm or linear map before it, else a remark."""
        node = self.nodes[index]
        self.of[value.index] = index
        weights = [a for a in fixed if isinstance(a, Value) and self.is_weight(a)]
        if weights and node.kind in ("norm", "linear", "factor"):
            # The same value, moved: later readers see the moved one.
            again = self.add(
                node.kind, node.inputs, value, operands=(*node.operands, *weights), **{**node.detail, "offset": True}
            )
            return again
        if weights or any(isinstance(a, Value) for a in fixed):
            self.notes.setdefault(index, []).append("something that does not depend on the input is added")
        return node

    def _mul(self, value: Value, live: list[Value]) -> Node | None:
        left, right = value.args[0], value.args[1]
        both = [a for a in (left, right) if isinstance(a, Value) and self.is_live(a)]
        if len(both) == 2:
            return self._product(value, self.of[left.index], self.of[right.index])
        other = right if both[0] is left else left
        return self._times(value, self.of[both[0].index], other)

    def _div(self, value: Value, live: list[Value]) -> Node | None:
        left, right = value.args[0], value.args[1]
        if len(value.args) > 2 or value.kwargs.get("rounding_mode"):
            return None
        if isinstance(right, Value) and self.is_live(right):
            if isinstance(left, Value) and self.is_live(left):
                return self._product(value, self.of[left.index], self.of[right.index])
            return None
        number = self.number(right)
        if number:
            return self.weighted(value, [(1.0 / number, self.of[left.index])])
        return self._times(value, self.of[left.index], right)

    def _times(self, value: Value, index: int, other: Any) -> Node | None:
        """A node times something that does not depend on the data."""
        number = self.number(other)
        if number is not None:
            return self.weighted(value, [(number, index)]) if number else None
        assert isinstance(other, Value)
        if self.kinds[other.index] & MEMORY:
            return None
        if not self.is_weight(other):
            # A mask or a table of positions.
            return self.add("masked", (index,), value)
        size = 1
        for n in other.shape:
            size *= n
        node = self.nodes[index]
        wide = max(other.shape, default=1) == size
        if size > 1 and wide and node.kind == "norm" and not node.detail.get("gain") and not node.detail.get("offset"):
            return self.add("norm", node.inputs, value, operands=(*node.operands, other), **{**node.detail, "gain": True})
        shape = "one" if size == 1 else "channel" if wide else "other"
        return self.add("factor", (index,), value, operands=(other,), shape=shape, part=self._cut(other))

    def _cut(self, value: Value) -> tuple[Any, ...]:
        """How a value is cut from weights, comparable between calls: two entries of one vector are two gates."""
        if value.kind != "call":
            return ()
        plain = tuple(repr(a) for a in value.args if not isinstance(a, Value) and not any(True for _ in values_in(a)))
        above = tuple(self._cut(s) for s in value.sources if self.kinds[s.index] & WEIGHT)
        return (*above, value.name, plain) if words.KIND.get(value.name) == "slice" or any(above) else ()

    def _product(self, value: Value, left: int, right: int) -> Node | None:
        from sublayer.audit.norms import recognise

        inputs = tuple(dict.fromkeys((left, right)))
        node = self.add("product", inputs, value)
        norm = recognise(self, node)
        if norm is not None:
            source, detail = norm
            return self.add("norm", (source,), value, **detail)
        return node

    def _addcmul(self, value: Value, live: list[Value]) -> Node | None:
        return None

    def _lerp(self, value: Value, live: list[Value]) -> Node | None:
        start, end, weight = value.args[:3]
        number = self.number(weight)
        if number is None or not (self.is_live(start) and self.is_live(end)):
            return None
        return self.weighted(value, [(1 - number, self.of[start.index]), (number, self.of[end.index])])

    def _matmul(self, value: Value, live: list[Value]) -> Node | None:
        """mm, bmm, addmm, baddbmm, linear, matmul."""
        factors = [a for a in value.args if isinstance(a, Value)]
        bias = None
        if value.name in ("addmm", "baddbmm", "addmm_", "addmv", "addbmm"):
            bias, factors = factors[0], factors[1:]
        elif value.name == "linear":
            factors = factors[:2]
        inner = [a for a in factors[:2] if self.is_live(a)]
        others = [a for a in factors[:2] if not self.is_live(a)]
        inputs = tuple(dict.fromkeys(self.of[a.index] for a in inner))
        if not inner:
            return None
        if others and self.is_weight(others[0]):
            weights = tuple(a for a in value.sources if not self.is_live(a) and self.kinds[a.index] & WEIGHT)
            first = factors[0] is inner[0]
            node = self.add("linear", inputs, value, operands=weights, first=first)
        elif others and not self.kinds[others[0].index] & MEMORY:
            node = self.add("fixed_mix", inputs, value)  # by a table, as a Fourier transform or a mean over places
        else:
            node = self.add("matmul", inputs, value, left=self.of.get(factors[0].index, -1), right=self.of.get(factors[1].index, -1))
        if bias is not None and self.is_live(bias):
            return self.add("sum", (self.of[bias.index], node.index), value, factors=(1.0, 1.0))
        return node

    def _convolution(self, value: Value, live: list[Value]) -> Node | None:
        data, weight = value.args[0], value.args[1]
        if not self.is_live(data) or not self.is_weight(weight):
            return None
        pointwise = all(n == 1 for n in weight.shape[2:])
        weights = tuple(s for s in value.sources if not self.is_live(s))
        return self.add("linear" if pointwise else "conv", (self.of[data.index],), value, operands=weights, first=True)

    def _slice(self, value: Value, live: list[Value]) -> Node | None:
        """A part of a node. A part of what a linear map gives is what a part of the map gives."""
        source = live[0]
        if value.shape == source.shape:
            self.of[value.index] = self.of[source.index]
            return self.node(source)
        node = self.node(source)
        axis = next((i for i, (a, b) in enumerate(zip(value.shape, source.shape, strict=False)) if a != b), -1)
        if axis < 0:
            axis = len(value.shape)  # the last one was taken away
        if node.kind == "linear" and self._keeps_tokens(value, source, axis):
            return self.add("linear", node.inputs, value, operands=node.operands, **{**node.detail, "part": self._part(value, node)})
        return self.add("slice", (node.index,), value, axis=axis)

    def _keeps_tokens(self, value: Value, source: Value, axis: int) -> bool:
        """Whether a slice leaves out channels only: every position of every row is still there."""
        if axis >= len(source.shape):
            return False
        rows, length = self.tokens
        if not length:
            return value.shape[:2] == source.shape[:2] and len(source.shape) > 2
        return source.shape[axis] not in (length, rows * length) and math.prod(value.shape) % (rows * length) == 0

    @staticmethod
    def _part(value: Value, node: Node) -> tuple[Any, ...]:
        """Which part of a linear map's result a slice is, comparable between calls."""
        plain = tuple(repr(a) for a in value.args[1:] if not isinstance(a, Value))
        return (*node.detail.get("part", ()), value.name, plain, value.output)

    def _norm(self, value: Value, live: list[Value]) -> Node | None:
        """A norm that is one ATen call."""
        from sublayer.audit.norms import native

        data = value.args[0]
        if value.output != 0:
            return self.add("reduce", (self.of[live[0].index],), value)
        if not self.is_live(data):
            return None
        detail = native(self, value)
        if detail is None:
            return None
        weights = tuple(s for s in value.sources if s is not data and self.kinds[s.index] & WEIGHT)
        return self.add("norm", (self.of[data.index],), value, operands=weights, **detail)

    def _sdpa(self, value: Value, live: list[Value]) -> Node | None:
        if value.output != 0:
            return None
        inputs = tuple(dict.fromkeys(self.of[s.index] for s in live))
        query, key, mixed = value.args[:3]
        ends = {n: self.of.get(a.index, -1) for n, a in (("q", query), ("k", key), ("v", mixed))}
        return self.add("core", inputs, value, **ends)

    def _reduce(self, value: Value, live: list[Value]) -> Node | None:
        """A sum or mean over values that were stacked for it is their sum."""
        joined = live[0]
        if value.name not in ("sum", "mean") or joined.name not in ("stack", "cat") or len(value.args) < 2:
            return None
        parts, axes = joined.args[0], value.args[1]
        axis = (joined.args[1] if len(joined.args) > 1 else 0) % len(joined.shape)
        if not isinstance(axes, list | tuple) or [a % len(joined.shape) for a in axes] != [axis]:
            return None
        if joined.name == "cat" and any(p.shape[axis] != 1 for p in parts):
            return None
        factor = 1.0 if value.name == "sum" else 1.0 / len(parts)
        terms = [(factor, self.of[p.index]) for p in parts if self.is_live(p)]
        return self.weighted(value, terms, [p for p in parts if not self.is_live(p)])

    def _embedding(self, value: Value, live: list[Value]) -> Node | None:
        weights = tuple(s for s in value.sources if not self.is_live(s) and self.kinds[s.index] & WEIGHT)
        return self.add("embedding", tuple(self.of[s.index] for s in live), value, operands=weights)

    def _stop(self, value: Value, live: list[Value]) -> Node | None:
        return self.add("stop", (self.of[live[0].index],), value)

    def tensor(self, value: Value) -> Tensor | None:
        """The numbers of a value that does not depend on weights or data."""
        return self.numbers(value)
