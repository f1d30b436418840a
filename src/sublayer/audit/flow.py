"""From a tape of ATen calls to a graph of what they mean: linear maps, norms, sums, products, attention.

A node stands for one value of the data that flows from an input to the output. Calls that only change its shape, type
or place in memory make no node. What is computed from weights, masks and constants alone is no node either: it is an
operand.
"""

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch

from sublayer.audit import axes as track
from sublayer.audit import vocabulary as words
from sublayer.audit.meaning import BUILDERS, LIVE, MEMORY, SIDE, WEIGHT, other
from sublayer.audit.tape import Replay, Tape, Value

MOST_NAMES = 64  # parameters of one operand: more is a stack of experts, which no label needs in full


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
        detail: what a reader of the kind needs to know besides; of a picture's, ``along`` is what it takes together.
        width: channels: of text the size of the last axis.
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
    width: int = 1


class Flow:
    """The graph of the data that comes in through ``main``."""

    def __init__(self, tape: Tape, main: tuple[str, ...]) -> None:
        self.tape = tape
        self.main = main
        # Rows and positions, where the input is one number or one vector a token.
        shape = tape.inputs[main[0]].shape if main and main[0] in tape.inputs else ()
        self.tokens: tuple[int, int] = (shape[0], shape[1]) if len(shape) in (2, 3) else (1, 0)
        self.axes: dict[int, track.Axes] = {}  # of live values, where the data is a picture
        self.pictured = track.of_input(shape) is not None
        self.nodes: list[Node] = []
        self.of: dict[int, int] = {}  # value -> node
        self.kinds: list[int] = [0] * len(tape.values)
        self.users: list[list[int]] = []
        self.numbers = Replay({}, lambda v: v.real)
        self._readers: Counter[int] | None = None  # calls that read each value
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

    def made_between(self, start: int, stop: int) -> range:
        """The nodes that were made as values ``start`` up to ``stop`` of the tape."""
        places = range(len(self.nodes))
        return places[
            bisect_left(places, start, key=lambda i: self.nodes[i].value.index) : bisect_left(
                places, stop, key=lambda i: self.nodes[i].value.index
            )
        ]

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
            elif len(value.sources) == 1:
                found = self.parameter_names(value.sources[0])
            else:
                names = dict.fromkeys(n for s in value.sources for n in self.parameter_names(s))
                found = tuple(names)[:MOST_NAMES]
            self._names[value.index] = found
        return found

    # --- building -------------------------------------------------------------------------------------------------

    def _enter(self, value: Value) -> None:
        bits = self.kinds[value.index] = self._descent(value)
        if not bits & LIVE:
            return
        if self.pictured:
            given = track.of_input(value.shape) if value.kind == "input" else None
            self.axes[value.index] = given or track.follow(self, value)
        if value.kind == "input":
            self.add("source", (), value)
            return
        kind = words.KIND.get(value.name, "")
        sources = value.sources[1:] if value.name in words.OVERWRITES else value.sources
        live = [s for s in sources if self.kinds[s.index] & LIVE]
        if kind == "same":
            self.of[value.index] = self.of[live[0].index]
            return
        builder = BUILDERS.get(kind)
        node = builder(self, value, live) if builder else None
        if node is None and value.index not in self.of:
            other(self, value, live, kind)

    def add(
        self, kind: str, inputs: tuple[int, ...], value: Value, *, operands: tuple[Value, ...] = (), **more: Any
    ) -> Node:
        """Append a node and find its dominator."""
        factors = more.pop("factors", ())
        memory = any(self.kinds[s.index] & MEMORY and not self.kinds[s.index] & LIVE for s in value.sources)
        if self.pictured and "along" not in more and kind not in ("sum", "factor", "product", "masked", "stop"):
            more["along"] = track.along(self, value)
        width = self.channels(value)
        node = Node(len(self.nodes), kind, inputs, value, factors, operands, memory, more, width=width)
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

    def channels(self, value: Value) -> int:
        """Numbers that a value holds of each position."""
        if self.pictured:
            return track.size(self.axes[value.index], track.CHANNELS)
        return value.shape[-1] if value.shape else 1

    def places(self, value: Value) -> int:
        """Positions of a value that comes of a picture."""
        return track.size(self.axes[value.index], track.PLACES)

    def read_once(self, value: Value, node: Node) -> bool:
        """Whether one call alone reads a value of a node, and so back to where the node was made."""
        if self._readers is None:
            self._readers = Counter(s.index for v in self.tape.values if not v.output for s in set(v.sources))
        while self._readers[value.index] == 1 and value is not node.value:
            back = next((s for s in value.sources if self.of.get(s.index) == node.index), None)
            if back is None:
                return False
            value = back
        return self._readers[value.index] == 1

    def is_followed(self, node: int) -> bool:
        """Whether it is known what runs along each axis of a node; of text it is."""
        return track.UNKNOWN not in track.roles(self.axes.get(self.nodes[node].value.index, ()))

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

    def between(self, top: int, bottom: int, most: int | None = None) -> list[int]:
        """The nodes on the ways from ``top`` to ``bottom``, both left out, by index; none if they are more than
        ``most``."""
        seen: set[int] = set()
        stack = [i for i in self.nodes[bottom].inputs if i != top]
        while stack:
            i = stack.pop()
            if i in seen:
                continue
            seen.add(i)
            if most is not None and len(seen) > most:
                return []
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
