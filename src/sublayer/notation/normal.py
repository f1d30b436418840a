"""Normal form: one order for the terms of every sum and one name for every value, whatever the text looked like.

Nodes are coloured by what they compute and by who reads them, until nothing more can be told apart (colour
refinement, as in
graph canonisation). Nodes that still tie are told apart by trying each first and keeping the smallest text.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from sublayer.notation.assemble import build
from sublayer.notation.graph import OPERATORS, Graph, Linear
from sublayer.notation.program import Add, Section
from sublayer.notation.scalar import ONE, Scalar
from sublayer.notation.text import LayerRange
from sublayer.notation.wiring import Wiring

MAX_TRIES = 24  # orders tried where symmetric terms tie; all of them print the same except in contrived designs
MAX_WORK = 2000  # nodes times tries, so that a large symmetric design is still read at once
STREAM_NAMES = ("x", "r", "s", "t", "u", "w")

K = TypeVar("K")
Vertex = tuple[int, int]  # (section, node)
Colours = dict[Vertex, int]


@dataclass(frozen=True)
class NormalForm:
    """The sections of a design in normal form, the canonical names of its streams, and whether the last block ends
    in a norm."""

    embed: Section
    blocks: tuple[tuple[LayerRange, Section], ...]
    final: Section
    streams: tuple[str, ...]
    normalised: bool


def normal_form(wiring: Wiring) -> NormalForm:
    """The one form that every way of writing this wiring has."""
    canonical = _Canonical(wiring)
    best: NormalForm | None = None
    best_text: tuple[str, ...] = ()
    for colours, streams in canonical.orders():
        form = canonical.program(colours, streams)
        text = tuple(s.text for s in (form.embed, *(b for _, b in form.blocks), form.final))
        if best is None or text < best_text:
            best, best_text = form, text
    assert best is not None
    return best


class _Canonical:
    def __init__(self, wiring: Wiring) -> None:
        self.wiring = wiring
        self.graphs: list[Graph] = [wiring.embed, *(b for _, b in wiring.blocks), wiring.final]
        self.vertices: list[Vertex] = [(s, i) for s, graph in enumerate(self.graphs) for i in range(len(graph.nodes))]
        self.users: dict[Vertex, list[tuple[Vertex, int, str]]] = {v: [] for v in self.vertices}
        self.members: dict[tuple[int, int], list[Vertex]] = {}
        for s, i in self.vertices:
            node = self.graphs[s].nodes[i]
            if node.group >= 0:
                self.members.setdefault((s, node.group), []).append((s, i))
            for position, arg in enumerate(node.args):
                for child, c in arg:
                    self.users[(s, child)].append(((s, i), position, c.sort_key))

    def orders(self) -> list[tuple[Colours, dict[str, int]]]:
        """Complete orders of the nodes and streams; more than one only where symmetric nodes tie."""
        results: list[tuple[Colours, dict[str, int]]] = []
        stack = [(self._initial(), {s: min(i, 1) for i, s in enumerate(self.wiring.streams)})]
        tries = max(1, min(MAX_TRIES, MAX_WORK // max(1, len(self.vertices))))
        while stack and len(results) < tries:
            colours, streams = self.refine(*stack.pop())  # here: most of what is on the stack is never tried
            tied = self._first_tie(colours)
            if tied is None:
                results.append((colours, self._order_streams(streams)))
                continue
            for chosen in tied[: tries - len(results)]:
                split = {v: 2 * c for v, c in colours.items()}
                split[chosen] -= 1
                stack.append((split, streams))
        return results

    def _order_streams(self, streams: dict[str, int]) -> dict[str, int]:
        """Streams that tie after every node is told apart compute the same: any order will do."""
        return {s: i for i, s in enumerate(sorted(streams, key=lambda s: (s != "x", streams[s])))}

    def _first_tie(self, colours: Colours) -> list[Vertex] | None:
        classes: dict[int, list[Vertex]] = {}
        for v, c in colours.items():
            # Only ties within one section matter: each section is printed on its own.
            classes.setdefault(c, []).append(v)
        for c in sorted(classes):
            if len(classes[c]) < 2:
                continue
            by_section = Counter(s for s, _ in classes[c])
            for s in sorted(by_section):
                if by_section[s] > 1:
                    return [v for v in classes[c] if v[0] == s]
        return None

    def _initial(self) -> Colours:
        height: dict[Vertex, int] = {}
        for s, i in self.vertices:  # nodes come after their arguments
            node = self.graphs[s].nodes[i]
            height[s, i] = 1 + max((height[s, child] for arg in node.args for child, _ in arg), default=-1)
        keys = {}
        for s, i in self.vertices:
            node = self.graphs[s].nodes[i]
            rank = (
                OPERATORS.index(node.op) + 2
                if node.op != "input"
                else (0 if node.name == "x" else 1 + (node.name == "e"))
            )
            keys[s, i] = (height[s, i], rank)
        return _ranked(keys)

    def refine(self, colours: Colours, streams: dict[str, int]) -> tuple[Colours, dict[str, int]]:
        """Colour by neighbours until the number of colours stands still."""
        while True:
            keys = {v: self._key(v, colours, streams) for v in self.vertices}
            new = _ranked(keys)
            new_streams = _ranked({s: (streams[s], self._stream_key(s, new)) for s in streams})
            if len(set(new.values())) == len(set(colours.values())) and len(set(new_streams.values())) == len(
                set(streams.values())
            ):
                return new, new_streams
            colours, streams = new, new_streams

    def _key(self, v: Vertex, colours: Colours, streams: dict[str, int]) -> tuple[object, ...]:
        s, i = v
        graph = self.graphs[s]
        node = graph.nodes[i]
        stream = streams.get(node.name, -1) if node.op == "input" else -2
        args = tuple(self._colour_of(s, arg, colours) for arg in node.args)
        group = tuple(sorted(colours[m] for m in self.members.get((s, node.group), ()))) if node.group >= 0 else ()
        users = tuple(sorted((colours[u], position, c) for u, position, c in self.users[v]))
        leaves = tuple(
            sorted((streams[name], c.sort_key) for name, value in graph.outputs.items() for n, c in value if n == i)
        )
        return (colours[v], stream, args, group if len(group) > 1 else (), users, leaves)

    def _colour_of(self, s: int, value: Linear, colours: Colours) -> tuple[tuple[int, str], ...]:
        return tuple(sorted((colours[s, child], c.sort_key) for child, c in value))

    def _stream_key(self, stream: str, colours: Colours) -> tuple[object, ...]:
        sums = tuple(self._colour_of(s, graph.outputs.get(stream, ()), colours) for s, graph in enumerate(self.graphs))
        given = tuple(
            tuple(colours[s, i] for i, node in enumerate(graph.nodes) if node.op == "input" and node.name == stream)
            for s, graph in enumerate(self.graphs)
        )
        return (sums, given)

    def program(self, colours: Colours, streams: dict[str, int]) -> NormalForm:
        """Write every section as a program, given a complete order."""
        names = {s: STREAM_NAMES[i] if i < len(STREAM_NAMES) else f"r{i}" for s, i in streams.items()}
        ordered = tuple(sorted(streams, key=lambda s: streams[s]))
        sections = []
        for s, graph in enumerate(self.graphs):
            rank = {i: colours[s, i] for i in range(len(graph.nodes))}
            given = () if s == 0 else ordered
            sections.append(_Writer(graph, rank, names, given, ordered).section())
        embed, *blocks, final = sections
        ranges = [layers for layers, _ in self.wiring.blocks]
        layers = tuple(zip(ranges, blocks, strict=True))
        return NormalForm(embed, layers, final, tuple(names[s] for s in ordered), self.wiring.normalised)


def _ranked(keys: Mapping[K, tuple[object, ...]]) -> dict[K, int]:
    order = {key: i for i, key in enumerate(sorted(set(keys.values())))}
    return {k: order[key] for k, key in keys.items()}


class _Writer:
    """Turns one graph into a program: partial sums are shared where one sum contains another."""

    def __init__(
        self,
        graph: Graph,
        rank: dict[int, int],
        names: dict[str, str],
        given: tuple[str, ...],
        streams: tuple[str, ...],
    ) -> None:
        self.graph = graph
        self.rank = rank
        self.names = names
        self.given = given
        self.streams = streams
        self.steps: list[tuple[str, tuple[int, str], tuple[str, ...]] | Add] = []
        self.value: dict[int, str] = {}
        self.sum_value: dict[Linear, str] = {}
        sums = [v for v in (*graph.outputs.values(), *(a for n in graph.nodes for a in n.args)) if len(v) > 1]
        self.sums = sorted(set(sums), key=lambda v: (-len(v), [(rank[n], c.sort_key) for n, c in self._ordered(v)]))

    def _ordered(self, value: Linear) -> list[tuple[int, Scalar]]:
        return sorted(value, key=lambda item: self.rank[item[0]])

    def section(self) -> Section:
        read = {n.name for n in self.graph.nodes if n.op == "input"}
        inputs = tuple(self.names[s] for s in self.given) + (("e",) if "e" in read or not self.given else ())
        for index in sorted(self.rank, key=lambda i: self.rank[i]):
            node = self.graph.nodes[index]
            if node.op == "input":
                self.value[index] = self.names.get(node.name, node.name)
                continue
            args = tuple(self._sum(arg) for arg in node.args)
            self.value[index] = self._fresh()
            self.steps.append((self.value[index], (node.group, node.op), args))
        outputs = tuple(
            (self.names[s], self._sum(self.graph.outputs[s])) for s in self.streams if s in self.graph.outputs
        )
        return build(inputs, self.steps, outputs)

    def _fresh(self) -> str:
        return f"v{len(self.steps) + 1}"

    def _sum(self, value: Linear) -> str:
        """The value of a weighted sum, written as the largest other sum it contains plus the rest."""
        if len(value) == 1 and value[0][1].is_one:
            return self.value[value[0][0]]
        if value in self.sum_value:
            return self.sum_value[value]
        rest = dict(value)
        terms = []
        for other in self.sums:
            if len(other) < len(value) and all(rest.get(n) == c for n, c in other):
                terms.append((min(self.rank[n] for n, _ in other), ONE, self._sum(other)))
                for n, _ in other:
                    del rest[n]
        terms += [(self.rank[n], c, self.value[n]) for n, c in rest.items()]
        terms.sort(key=lambda item: item[0])
        name = self.sum_value[value] = self._fresh()
        self.steps.append(Add(name, tuple((c, v) for _, c, v in terms)))
        return name
