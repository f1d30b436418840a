"""Sub-layers: the part of the flow between what a sub-layer reads and what it writes, and what kind it is.

A sub-layer is followed from its output back to its input. Attention is complete where a product of two projections that
goes through a softmax (or a fused kernel) has one source; a feed-forward network where two linear maps have something
non-linear between them. Norms met before that are inside it; norms met after are not its own.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from sublayer.audit.acts import WEIGHTLESS, Acts, Unread
from sublayer.audit.axes import CHANNELS, PLACES
from sublayer.audit.flow import Flow, Node

WIRING = frozenset({"norm", "factor", "sum", "stop", "masked"})
WEIGHTY = frozenset({"linear", "conv", "matmul", "core", "embedding", "pick", "softmax", "reduce", "scan", "route"})


@dataclass
class Branch:
    """One sub-layer in the flow.

    Attributes:
        op: as the notation calls it.
        source: the node it reads.
        output: the node it writes.
        content: its nodes, ``output`` among them.
        outer: the linear map that ends it (W_o, or the FFN's second matrix), or -1.
        hub: the node at which it mixes, gates or bends: attention's result, the FFN's hidden activations; or -1.
    """

    op: str
    source: int
    output: int
    content: list[int] = field(default_factory=list)
    outer: int = -1
    hub: int = -1


class BranchReader(Acts):
    """Follows sub-layers backwards.

    Args:
        flow: the graph.
        inputs: nodes where a section begins; nothing is followed beyond them.
        is_stream: whether a node is a sum on the stream, where a sub-layer cannot go on.
        length: number of positions in the run.
    """

    def __init__(self, flow: Flow, inputs: Iterable[int], is_stream: Callable[[int], bool], length: int) -> None:
        super().__init__(flow, length)
        self.inputs = frozenset(inputs)
        self.is_stream = is_stream

    def read(self, output: int, linear: bool = False) -> Branch:
        """The sub-layer that ends in ``output``; ``linear`` if a matrix stands behind it. Raises Unread."""
        nodes = self.flow.nodes
        branch = Branch("op", output, output)
        bent = mixes = False
        place = output
        trailing: int | None = None  # where wiring began that nothing but wiring has followed
        while True:
            node = nodes[place]
            ends = place in self.inputs or node.kind in ("source", "embedding")
            if ends or (branch.content and (self.is_stream(place) or self._is_added(place))):
                return self._incomplete(branch, place if trailing is None else trailing, linear, bent, mixes)
            following, within = self._step(node)
            part = [*within, place]
            if node.kind in WIRING and not within:
                trailing = place if trailing is None else trailing
                branch.content += part
                place = following
                continue
            trailing = None
            branch.content += part
            attention = self.attention(part)
            if node.memory and not within:
                # Keys and values come from elsewhere: only the queries lead back to the stream.
                attention = attention or self.attention(branch.content)
                if attention:
                    following = self._queries(branch, following)
            if attention:
                branch.op, branch.hub = attention, place if branch.hub < 0 else branch.hub
                return self._finish(branch, following)
            if self.chooses(part):
                branch.op = "moe"
                return self._finish(branch, following)
            if self.gates_itself(node, within):
                bent = mixes = True
                branch.hub = place if branch.hub < 0 else branch.hub
                place = following
                continue
            if self.mixes(part):
                mixes = True
                if within and any(nodes[i].kind == "linear" for i in part):
                    branch.op = "mixer"
                    return self._finish(branch, following)
            if node.kind == "linear":
                if linear and bent:
                    if self._goes_on(node.inputs[0]):
                        place = following
                        continue
                    branch.op = "mixer" if mixes else "ffn"
                    return self._finish(branch, following)
                linear = True
                branch.outer = place if branch.outer < 0 and not bent else branch.outer
            elif within and any(nodes[i].kind == "linear" for i in within):
                branch.hub = place if branch.hub < 0 else branch.hub
                bent = True
                if linear or self._in_sequence(within):
                    branch.op = "mixer" if mixes else "ffn"
                    return self._finish(branch, following)
                linear = True
            else:
                bent = bent or node.kind in ("pointwise", "product", "softmax")
                branch.hub = place if branch.hub < 0 and bent else branch.hub
            place = following

    def _queries(self, branch: Branch, place: int) -> int:
        """From the scores back over the projection of the queries to what it reads."""
        nodes = self.flow.nodes
        start = place
        passed: list[int] = []
        while place not in self.inputs and len(nodes[place].inputs) == 1 and not self.is_stream(place):
            passed.append(place)
            if nodes[place].kind == "linear":
                branch.content += passed
                return nodes[place].inputs[0]
            place = nodes[place].inputs[0]
        return start

    def _step(self, node: Node) -> tuple[int, list[int]]:
        """The node that everything here comes from, and what lies between."""
        if len(node.inputs) == 1:
            return node.inputs[0], []
        if node.top < 0 or self._crosses(node):
            found = sorted(self._entries(node.index))
            raise Unread(
                f"a sub-layer ({self.label([node.index])}) reads {len(found)} separate values"
                if len(found) > 1
                else f"a value ({self.label([node.index])}) has no single source within the layer"
            )
        return node.top, self.flow.between(node.top, node.index)

    def _crosses(self, node: Node) -> bool:
        """Whether a way from the dominator to the node passes an input of the section: it has several, then."""
        return any(i in self.inputs for i in self.flow.between(node.top, node.index))

    def _entries(self, place: int) -> set[int]:
        found: set[int] = set()
        seen: set[int] = set()
        stack = [place]
        while stack:
            i = stack.pop()
            if i in self.inputs or not self.flow.nodes[i].inputs:
                found.add(i)
                continue
            for j in self.flow.nodes[i].inputs:
                if j not in seen:
                    seen.add(j)
                    stack.append(j)
        return found

    def gates_itself(self, node: Node, within: list[int]) -> bool:
        """Whether a value of a picture is multiplied by something of its own mean over positions: squeeze, excite."""
        nodes = self.flow.nodes
        if not self.flow.pictured or node.kind != "product" or node.top not in node.inputs:
            return False
        means = [i for i in within if nodes[i].kind in ("reduce", "pool")]
        return bool(means) and all(PLACES in nodes[i].detail["along"] for i in means)

    def _in_sequence(self, content: list[int]) -> bool:
        """Whether two linear maps follow one another: a whole feed-forward network, gated at its end."""
        linear = [i for i in content if self.flow.nodes[i].kind == "linear"]
        return any(self._fed_by(i, set(content), frozenset(linear) - {i}) for i in linear)

    def _goes_on(self, place: int) -> bool:
        """Whether the first linear map of a feed-forward network is not its first: something non-linear of another
        linear map comes before it."""
        nodes = self.flow.nodes
        while place not in self.inputs and nodes[place].kind == "pointwise" and len(nodes[place].inputs) == 1:
            place = nodes[place].inputs[0]
            if place not in self.inputs and nodes[place].kind == "linear":
                return True
        return False

    def _finish(self, branch: Branch, source: int) -> Branch:
        source = self._chosen(branch, source)
        branch.content = sorted(set(branch.content))
        self._closed(branch)
        branch.source = self._gathered(branch, self._projected(branch, source))
        if branch.op == WEIGHTLESS or (branch.op == "dot" and branch.source != source):
            # Queries, keys and values may be cut from one projection that came before something else, such as a clamp.
            branch.op = "attn" if branch.source != source else "mixer"
        if branch.op == "attn" and any(self.flow.nodes[i].memory for i in branch.content):
            raise Unread(f"{self.label(branch.content)} attends to the stream and to other data at once")
        if branch.op not in ("op", "dot", "moe") and self._skips(branch):
            raise Unread(
                f"in {self.label(branch.content)} the stream passes beside the sub-layer by a gate or a sum of its own"
            )
        return branch

    def _closed(self, branch: Branch) -> None:
        """A sub-layer with a sum inside that the stream goes on from reads more than its source."""
        inside = set(branch.content)
        for i in branch.content:
            if i == branch.output or self.flow.nodes[i].kind != "sum" or not self.is_stream(i):
                continue
            if any(u not in inside and self.is_stream(u) for u in self.flow.users[i]):
                raise Unread(f"a sub-layer ({self.label([branch.output])}) reads more than one value of the stream")

    def _chosen(self, branch: Branch, source: int) -> int:
        """What an expert reads before it is given its share: tokens that a router weighed or picked."""
        node = self.flow.nodes[source]
        if branch.op != "ffn" or source in self.inputs or len(node.inputs) < 2 or node.kind in WIRING or node.top < 0:
            return source
        within = [*self.flow.between(node.top, source), source]
        if not self.chooses(within):
            return source
        branch.op = "moe"
        branch.content += within
        return node.top

    def _is_added(self, place: int) -> bool:
        """Whether a value is also a term of a sum on the stream: another sub-layer's result then."""
        if self.flow.nodes[place].kind in ("masked", "slice", "stop", "factor"):
            return False
        return any(self.is_stream(u) for u in self.flow.users[place])

    def _projected(self, branch: Branch, source: int) -> int:
        """What a sub-layer reads whose parts are cut from one linear map: the map is its own."""
        node, inside = self.flow.nodes[source], set(branch.content)
        if branch.op not in ("attn", "mixer", "dot", WEIGHTLESS) or source in self.inputs:
            return source
        if node.kind == "pointwise" and len(node.inputs) == 1 and all(u in inside for u in self.flow.users[source]):
            branch.content.insert(0, source)  # a clamp on what the projection gives
            return self._projected(branch, node.inputs[0])
        if node.kind != "linear":
            return source
        own = any(self.flow.nodes[i].kind == "linear" for i in self.flow.users[source] if i in inside)
        if own or any(u not in inside for u in self.flow.users[source]):
            return source
        branch.content.insert(0, source)
        return node.inputs[0]

    def _gathered(self, branch: Branch, source: int) -> int:
        """What a sub-layer over windows reads: the moves that lay the windows out are its own, where they are undone
        behind it or add nothing but padding."""
        nodes, inside = self.flow.nodes, set(branch.content)
        while branch.op in ("attn", "mixer") and source not in self.inputs:
            node = nodes[source]
            used = [u for u in self.flow.users[source] if self.flow.users[u]]
            if node.kind != "shift" or len(node.inputs) != 1 or any(u not in inside for u in used):
                return source
            by = list(node.value.args[1]) if isinstance(node.value.args[1], list | tuple) else []
            undone = any(nodes[i].value.name == "roll" and [-n for n in nodes[i].value.args[1]] == by for i in inside)
            padded = node.value.name == "constant_pad_nd" and all(n >= 0 for n in by) and not any(by[::2])
            if not (undone if node.value.name == "roll" else padded):
                return source
            branch.content.insert(0, source)
            inside.add(source)
            source = node.inputs[0]
        return source

    def _skips(self, branch: Branch) -> bool:
        """Whether the source reaches the output by a way that passes no weights: a skip inside, or a gated one."""
        nodes, inside = self.flow.nodes, set(branch.content)
        if not any(nodes[i].kind in WEIGHTY for i in inside):
            return False  # it only moves things: a shift of tokens, a cyclic roll of windows
        seen: set[int] = set()
        stack = [branch.output]
        while stack:
            i = stack.pop()
            if i == branch.source:
                return True
            if i in seen or i not in inside or nodes[i].kind in WEIGHTY or nodes[i].value.name == "_grouped_mm":
                continue
            if nodes[i].kind == "slice" and CHANNELS in nodes[i].detail.get("along", ()):
                continue  # some of the channels pass on as they are
            seen.add(i)
            stack += nodes[i].inputs
        return False

    def _incomplete(self, branch: Branch, place: int, linear: bool, bent: bool, mixes: bool) -> Branch:
        """The start of the section was reached first: a lone matrix, a pool, a Fourier transform."""
        kept = [i for i in branch.content if i > place]
        if not kept:
            raise Unread(f"nothing was recognised between the start of the layer and {self.label([branch.output])}")
        branch.content = kept
        branch.op = "mixer" if mixes else "op"
        return self._finish(branch, place)
