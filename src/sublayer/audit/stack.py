"""One stack of layers read into equations: the streams that pass from layer to layer, embed, final, and every layer."""

import math
from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import pairwise, permutations

from sublayer.audit.acts import Unread
from sublayer.audit.ends import EndReader
from sublayer.audit.flow import Flow
from sublayer.audit.layers import Layer, Run
from sublayer.audit.section import Reading, SectionReader
from sublayer.audit.tape import Value
from sublayer.notation import Design, DesignError, parse

STREAMS = ("x", "r", "s", "t", "u", "w")
MOST_STREAMS = 3


@dataclass
class LayerReading:
    """A layer's statements, or why there are none."""

    layer: Layer
    reading: Reading | None
    unknown: str = ""
    inputs: dict[int, str] = field(default_factory=dict)

    @property
    def template(self) -> str:
        """The equation with its factors left open; empty if it is unknown."""
        return template(self.reading) if self.reading else ""

    pattern: str = ""  # the template; of a first or last layer that lacks a stream, that of the layer it is like

    @property
    def factors(self) -> tuple[float, ...]:
        return tuple(f for s in self.reading.statements for f in s.factors) if self.reading else ()


@dataclass
class StackReading:
    """All of a stack. ``embed`` and ``final`` are None where they were left unread, with the reason in ``remarks``.

    ``names`` holds, for each boundary between layers, the name of each value that crosses it.
    """

    run: Run
    flow: Flow
    layers: list[LayerReading]
    embed: Reading | None
    final: Reading | None
    width: int
    root: int
    names: list[dict[int, str]]
    remarks: list[str]


def template(reading: Reading) -> str:
    """The statements as one text, factors numbered through."""
    parts, count = [], 0
    for s in reading.statements:
        text = s.text
        for i in range(len(s.factors)):
            text = text.replace(f"{{{i}}}", f"{{<{count + i}>}}")
        count += len(s.factors)
        parts.append(f"{s.target} = {text}")
    return "; ".join(parts).replace("{<", "{").replace(">}", "}")


def same_results(one: Reading, other: Reading, results: set[str], before: str = "") -> bool:
    """Whether two readings compute the same for the streams in ``results``, whatever they leave in others and whatever
    their factors are; ``before`` holds statements that come first."""
    left, right = (_alone(reading, results, before) for reading in (one, other))
    return left is not None and left == right


def _alone(reading: Reading, results: set[str], before: str) -> Design | None:
    text = template(reading).format(*["1"] * sum(len(s.factors) for s in reading.statements))
    return only(f"{before}; {text}" if before else text, results)


def only(block: str, results: set[str]) -> Design | None:
    """A block as a design of which nothing is kept but the streams in ``results``; None if it is no design.

    It is written as what follows an embedding, so that streams which nothing reads any more fall away.
    """
    start = "; ".join(f"{s} = {i + 2}*e + norm(e)" for i, s in enumerate(STREAMS))
    final = " + ".join(f"{i + 2}*{name}" for i, name in enumerate(sorted(results)))
    try:
        return parse(f"embed: {start}; {block}; x = {final}\nblock: x = x + attn(x)")
    except DesignError:
        return None


def _apart(one: LayerReading, other: LayerReading) -> int:
    """In how many factors two readings differ; all, where they do not have the same ones."""
    if one.template != other.template:
        return max(len(one.factors), len(other.factors))
    return sum(a != b for a, b in zip(one.factors, other.factors, strict=True))


class StackReader:
    """Reads one run of layers in the flow that goes through it.

    Args:
        flow: the data's graph.
        run: the layers.
        output: the value that the model returns (or another stack reads), from which the need of a node is told.
        plain: the norm that the notation's ``norm`` stands for.
    """

    def __init__(
        self, flow: Flow, run: Run, output: Value, plain: str, length: int, last: bool = True, floor: int = 0
    ) -> None:
        self.flow, self.run, self.plain, self.length = flow, run, plain, length
        self.floor = floor  # where the stack before it ends on the tape
        self.last = last  # whether no other stack follows
        self.output = flow.of[output.index]
        self.needed = self._ancestors(self.output)
        self.bounds = [(layer.start, layer.stop) for layer in run.layers]

    def _ancestors(self, node: int) -> set[int]:
        seen: set[int] = set()
        stack = [node]
        while stack:
            i = stack.pop()
            if i not in seen:
                seen.add(i)
                stack += self.flow.nodes[i].inputs
        return seen

    def crossings(self) -> list[list[int]]:
        """For each boundary (before every layer, and after the last) the needed nodes made before it and read after."""
        places = [layer.start for layer in self.run.layers] + [self.run.layers[-1].stop]
        found: list[list[int]] = [[] for _ in places]
        nodes = self.flow.nodes
        for i in sorted(self.needed):
            made = nodes[i].value.index
            uses = [nodes[u].value.index for u in self.flow.users[i] if u in self.needed]
            last = len(self.flow.tape.values) if i == self.output else max(uses, default=-1)
            for k in range(bisect_right(places, made), bisect_right(places, last)):
                found[k].append(i)
        return found

    def read(self) -> StackReading:
        """Raises Unread if the streams themselves cannot be told."""
        layers = self.run.layers
        crossings = self.crossings()
        # What passes over all layers untouched and is read after them is no stream of theirs.
        bypass = set(crossings[0]).intersection(*crossings[1:])
        inside = [self._reads(layer) for layer in layers]
        bypass = {i for i in bypass if not any(i in reads for reads in inside)}
        around = EndReader(self.flow, self._section, self.needed, self.output, self.floor)
        if self.last:
            bypass -= around.beside(set(crossings[-1]) - bypass, bypass)
        crossings = [[i for i in c if i not in bypass] for c in crossings]
        counts = {len(c) for c in crossings[:-1]}
        if not all(crossings):
            raise Unread("no data passes from layer to layer")
        if max(counts) > MOST_STREAMS:
            raise Unread(f"{max(counts)} separate values pass from layer to layer: more than a carried stream or two")
        self._check_lanes(crossings)
        names = self._names(crossings)
        widths = [next(self.flow.nodes[i].width for i, n in one.items() if n == "x") for one in names]
        found = [self._layer(layer, names[k], names[k + 1], widths[k + 1]) for k, layer in enumerate(layers)]
        self._rename_last(found, names, widths[-1])
        self._patterns(found, names)
        # Streams that start as one value are one value at the first boundary.
        streams = {n for later in names[1:] for n in later.values()}
        start = next(i for i, n in names[0].items() if n == "x")
        also = dict.fromkeys(sorted(streams - set(names[0].values())), start)
        root, embed, remarks = around.embed(names[0], widths[0], also)
        final = around.final(names[-1], widths[-1], self.last)
        width = max(widths, key=lambda w: (widths.count(w), w == widths[-1]))
        return StackReading(self.run, self.flow, found, embed, final, width, root, names, remarks)

    def _check_lanes(self, crossings: list[list[int]]) -> None:
        """Streams of several lanes, values that are no stream, and channels before places are not read."""
        rows, length = self.flow.tokens
        several = any(len(crossing) > 1 for crossing in crossings)
        fixed = {i for one, other in pairwise(crossings) for i in one if i in other}  # not updated by a layer
        for i in {i for crossing in crossings for i in crossing}:
            shape = self.flow.nodes[i].value.shape
            if self.flow.pictured and not self.flow.is_followed(i):
                raise Unread("it cannot be told which axis of the stream holds its channels")
            if not length:
                continue
            if len(shape) < 4:
                continue
            numbers = math.prod(shape)
            channels = numbers // (rows * length) if numbers % (rows * length) == 0 else 0
            if i not in fixed and channels > shape[-1] and channels % shape[-1] == 0:
                raise Unread(
                    f"the stream has {channels // shape[-1]} lanes of {shape[-1]} channels that are mixed between "
                    "sub-layers, as with hyper-connections"
                )
            if several:
                raise Unread("a value that is no stream (keys, values, scores, a table) passes from layer to layer")

    def _reads(self, layer: Layer) -> set[int]:
        made = self.flow.made_between(layer.start, layer.stop)
        return {i for n in made if n in self.needed for i in self.flow.nodes[n].inputs}

    # --- streams --------------------------------------------------------------------------------------------------

    def _names(self, crossings: list[list[int]]) -> list[dict[int, str]]:
        """A name for each value that crosses each boundary; ``x`` is what a layer is given first."""
        names: list[dict[int, str]] = []
        for k, crossing in enumerate(crossings):
            before = names[-1] if names else {}
            kept = {i: before[i] for i in crossing if i in before}
            given = self._given(k)
            rest = sorted((i for i in crossing if i not in kept), key=lambda i: (given.get(i, len(given)), i))
            if k == 1 and rest and "x" in kept.values():
                # It stays what it was before the first layer: another stream, that only began as the same value.
                first = next(i for i, n in kept.items() if n == "x")
                kept[first] = next(s for s in STREAMS[1:] if s not in kept.values())
            free = [s for s in STREAMS if s not in kept.values()]
            order = self._matched(rest, before, free) if before and not all(i in given for i in rest) else None
            names.append(kept | (order or dict(zip(rest, free, strict=False))))
            if "x" not in names[-1].values():
                first = min(names[-1], key=lambda i: STREAMS.index(names[-1][i]))
                names[-1][first] = "x"
        return names

    def _given(self, k: int) -> dict[int, int]:
        """The order in which a layer's call is given the values that cross into it."""
        if k >= len(self.run.layers):
            return {}
        given: dict[int, int] = {}
        for call in self.run.layers[k].calls:
            for position, index in enumerate(self.flow.tape.frames[call].given):
                if index in self.flow.of:
                    given.setdefault(self.flow.of[index], position)
        return given

    def _matched(self, new: list[int], before: dict[int, str], free: list[str]) -> dict[int, str] | None:
        """Names for new values by the stream that each continues: the one its chain of sums comes from."""
        if len(new) < 2:
            return None
        scores: dict[tuple[int, str], int] = {}
        for i in new:
            for name, steps in self._continues(i, before).items():
                scores[i, name] = steps
        best: dict[int, str] | None = None
        most = -1
        for order in permutations(free, len(new)):
            total = sum(scores.get((i, n), 0) > 0 for i, n in zip(new, order, strict=True))
            if total > most:
                best, most = dict(zip(new, order, strict=True)), total
        return best if most == len(new) else None

    def _continues(self, node: int, before: dict[int, str]) -> dict[str, int]:
        """Streams that reach a node by sums and norms alone."""
        found: dict[str, int] = {}
        stack = [(node, 1)]
        seen: set[int] = set()
        while stack:
            i, steps = stack.pop()
            if i in before:
                found[before[i]] = min(found.get(before[i], steps), steps)
                continue
            if i in seen or self.flow.nodes[i].kind not in ("sum", "norm", "factor", "stop"):
                continue
            seen.add(i)
            stack += [(j, steps + 1) for j in self.flow.nodes[i].inputs]
        return found

    # --- sections -------------------------------------------------------------------------------------------------

    def _patterns(self, found: list[LayerReading], names: list[dict[int, str]]) -> None:
        for layer in found:
            layer.pattern = layer.template
        if len(found) < 2 or not (found[0].reading and found[1].reading and found[-1].reading and found[-2].reading):
            return
        streams = {n for boundary in names[1:-1] for n in boundary.values()}
        missing = "; ".join(f"{n} = x" for n in sorted(streams - set(names[0].values())))
        if missing and same_results(found[1].reading, found[0].reading, set(names[1].values()), missing):
            found[0].pattern = found[1].template
        if set(names[-1].values()) < streams:
            if same_results(found[-2].reading, found[-1].reading, set(names[-1].values())):
                found[-1].pattern = found[-2].pattern

    def _rename_last(self, found: list[LayerReading], names: list[dict[int, str]], width: int) -> None:
        """Call what the last layer hands on by the names that make it like the layer before it, if any do."""
        if len(found) < 2 or found[-1].reading is None or len(set().union(*(n.values() for n in names))) < 2:
            return
        streams = sorted({n for boundary in names[:-1] for n in boundary.values()}, key=STREAMS.index)
        nodes = list(names[-1])
        alike: list[tuple[int, LayerReading, dict[int, str]]] = []
        for order in permutations(streams, min(len(nodes), len(streams))):
            again = dict(zip(nodes, order, strict=False))
            last = self._layer(found[-1].layer, names[-2], again, width)
            if last.reading and found[-2].reading and same_results(found[-2].reading, last.reading, set(order)):
                alike.append((_apart(found[-2], last), last, again))
        if alike:
            # Two streams may be sums of the same terms: then their factors tell them apart.
            _, found[-1], names[-1] = min(alike, key=lambda each: each[0])

    def _layer(self, layer: Layer, before: dict[int, str], after: dict[int, str], width: int) -> LayerReading:
        try:
            reading = self._section(before, after, width)
        except Unread as error:
            return LayerReading(layer, None, str(error), before)
        if not reading.branches and self._works(layer):
            return LayerReading(
                layer, None, "what it computes does not reach what it hands on as a term of a sum", before
            )
        return LayerReading(layer, reading, "", before)

    def _works(self, layer: Layer) -> bool:
        """Whether matrices or attention of a layer take part in the result."""
        made = self.flow.made_between(layer.start, layer.stop)
        return any(i in self.needed and self.flow.nodes[i].kind in ("linear", "core", "matmul") for i in made)

    def _section(
        self,
        before: dict[int, str],
        after: dict[int, str],
        width: int,
        also: dict[str, int] | None = None,
        *,
        ends: bool = False,
    ) -> Reading:
        """Statements from the values named ``before`` to those named ``after``; ``also`` holds more names of values,
        ``ends`` says that this is what comes after the layers."""
        reader = SectionReader(self.flow, before, width, self.length, self.plain, ends)
        reader.ends({name: node for node, name in after.items()} | (also or {}))
        return reader.reading
