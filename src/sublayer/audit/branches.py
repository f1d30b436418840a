"""Sub-layers: the part of the flow between what a sub-layer reads and what it writes, and what kind it is.

A sub-layer is followed from its output back to its input. Attention is complete where a product of two projections that
goes through a softmax (or a fused kernel) has one source; a feed-forward network where two linear maps have something
non-linear between them. Norms met before that are inside it; norms met after are not its own.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from sublayer.audit.flow import Flow, Node

WEIGHTLESS = "weightless"  # attention of something with itself, until it is known whether a projection came before
WIRING = frozenset({"norm", "factor", "sum", "stop", "masked"})
CHOOSES = frozenset({"topk", "argmax", "_grouped_mm", "kthvalue", "multinomial"})
WEIGHTY = frozenset({"linear", "conv", "matmul", "core", "embedding", "pick", "softmax", "reduce", "scan", "route"})
MIXES = {"conv": "convolution", "scan": "scan", "shift": "shift", "fixed_mix": "fixed table", "matmul": "product"}


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


class Unread(Exception):
    """A part of the flow whose wiring cannot be told; the message says why."""


class BranchReader:
    """Follows sub-layers backwards.

    Args:
        flow: the graph.
        inputs: nodes where a section begins; nothing is followed beyond them.
        is_stream: whether a node is a sum on the stream, where a sub-layer cannot go on.
        length: number of positions in the run.
    """

    def __init__(self, flow: Flow, inputs: Iterable[int], is_stream: Callable[[int], bool], length: int) -> None:
        self.flow = flow
        self.inputs = frozenset(inputs)
        self.is_stream = is_stream
        self.length = length

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
        branch.source = self._projected(branch, source)
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

    # --- what a set of nodes does ---------------------------------------------------------------------------------

    def attention(self, content: list[int]) -> str:
        """``attn``, ``cross`` or ``dot`` if the nodes are an attention, else nothing."""
        nodes = self.flow.nodes
        inside = set(content)
        cores = [i for i in content if nodes[i].kind == "core"]
        found = bool(cores)
        products = [i for i in content if nodes[i].kind == "matmul"]
        for i in content if not found else ():
            if nodes[i].kind == "softmax" and self._fed_by(i, inside, frozenset(products)):
                found = True
                cores = [j for j in products if self._fed_by(j, inside, frozenset({i}))]
                break
        if not found and len(products) > 1:
            for i in products:
                shape = nodes[i].value.shape
                scores = len(shape) > 1 and all(n % self.length == 0 for n in shape[-2:])
                cores = [j for j in products if j != i and scores and self._fed_by(j, inside, frozenset({i}))]
                if cores:
                    found = True
                    break
        if not found:
            return ""
        if any(nodes[i].memory for i in products + cores):
            return "cross"
        if not any(nodes[i].kind in ("linear", "conv") for i in content):
            return "dot" if self._is_plain(content, cores) else WEIGHTLESS
        return "attn"

    def _is_plain(self, content: list[int], cores: list[int]) -> bool:
        """Whether an attention without weights is softmax of x x^T, unscaled, over what came before: a `dot`."""
        nodes = self.flow.nodes
        scaled = 1.0
        for i in content:
            scaled *= nodes[i].factors[0] if nodes[i].kind == "sum" and len(nodes[i].inputs) == 1 else 1.0
        masked = any(nodes[i].kind in ("pointwise", "masked") or i in self.flow.notes for i in content)
        for i in cores:
            if nodes[i].kind == "core":
                value = nodes[i].value
                scale = value.kwargs.get("scale", value.args[6] if len(value.args) > 6 else None)
                scaled *= scale if scale is not None else 0.0
                mask = value.kwargs.get("attn_mask", value.args[3] if len(value.args) > 3 else None)
                masked = masked or mask is not None or bool(value.kwargs.get("is_causal"))
        return abs(scaled - 1) < 1e-6 and masked

    def _fed_by(self, place: int, inside: set[int], wanted: frozenset[int]) -> bool:
        seen: set[int] = set()
        stack = list(self.flow.nodes[place].inputs)
        while stack:
            i = stack.pop()
            if i in wanted:
                return True
            if i in inside and i not in seen:
                seen.add(i)
                stack += self.flow.nodes[i].inputs
        return False

    def chooses(self, content: list[int]) -> bool:
        """Whether data decides which weights are used: a mixture of experts."""
        nodes = self.flow.nodes
        if any(nodes[i].value.name in CHOOSES for i in content):
            return True
        inside = set(content)
        products = frozenset(i for i in content if nodes[i].kind == "product")
        return any(
            nodes[i].kind == "softmax" and any(self._fed_by(p, inside, frozenset({i})) for p in products)
            for i in content
        )

    def mixes(self, content: list[int]) -> tuple[str, ...]:
        """How the nodes mix positions, in words; empty if each position is on its own."""
        nodes = self.flow.nodes
        ways = [MIXES[nodes[i].kind] for i in content if nodes[i].kind in MIXES]
        for i in content:
            node = nodes[i]
            if node.kind == "linear" and node.detail.get("inner") == self.length > 1:
                if nodes[node.inputs[0]].width != self.length:
                    ways.append("matrix over positions")  # the axes were swapped before it
            if node.kind == "slice" and len(node.inputs) == 1:
                shape, axis = nodes[node.inputs[0]].value.shape, node.detail.get("axis", -1)
                if 0 <= axis < len(shape) - 1 and shape[axis] == self.length:
                    ways.append("steps along the sequence")
        return tuple(dict.fromkeys(ways))

    def label(self, content: list[int]) -> str:
        """The module that holds all of the nodes, for messages only."""
        return label(self.flow, content)


def label(flow: Flow, content: Iterable[int]) -> str:
    """The dotted path of the innermost module call that holds all of the nodes."""
    common: list[int] | None = None
    for i in content:
        chain = flow.tape.ancestry(flow.nodes[i].value.frame)
        if common is None:
            common = chain
        else:
            held = set(chain)
            common = [f for f in common if f in held]
    frames = flow.tape.frames
    return next((frames[f].path for f in common or [] if frames[f].path), "the model")
