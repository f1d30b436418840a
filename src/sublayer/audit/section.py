"""One section read backwards into statements of the notation: an embed, a layer, a final."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sublayer.audit.acts import Unread
from sublayer.audit.axes import CHANNELS, PLACES
from sublayer.audit.branches import WIRING, Branch, BranchReader
from sublayer.audit.flow import Flow, Node
from sublayer.audit.places import averages, joined_places, rewritten

MOST_STATEMENTS = 200
MOST_OF_A_QUERY = 200  # nodes from a query to what is added to it
PASSED = ("norm", "conv", "pool", "reduce", "slice", "join")  # what a query may go through behind its projection
NORMS_OF_MORE = {
    "batchnorm": "op stands for a batch norm: in evaluation a fixed gain and offset for each channel",
    "groupnorm": "op stands for a group norm: its statistics run over positions",
}


@dataclass
class Statement:
    """``target = text``.

    Every value in the text has a number before it, ``{0}*v1``, also where it is 1: two layers whose factors differ have
    one text. The numbers are filled in when all layers are known.
    """

    target: str
    text: str
    factors: tuple[float, ...] = ()


@dataclass
class Reading:
    """What was read of one section.

    Attributes:
        statements: in the order of execution; the outputs come last.
        branches: sub-layers with the variable that holds the result of each.
        norms: nodes of the norms outside sub-layers, each with its place in words.
        remarks: what the statements do not say.
        shared: outputs of mixtures that have a shared expert beside the routed ones.
    """

    statements: list[Statement] = field(default_factory=list)
    branches: list[Branch] = field(default_factory=list)
    norms: list[tuple[int, str]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    shared: set[int] = field(default_factory=set)

    @property
    def ops(self) -> list[str]:
        return [b.op for b in self.branches]


class SectionReader:
    """Reads nodes as expressions over the section's inputs.

    Args:
        flow: the graph.
        inputs: nodes where the section begins, each with its name (``x``, ``r``, ``e``).
        width: channels of the stream.
        length: positions in the run.
        plain: the norm that the notation's ``norm`` stands for.
        ends: whether the section comes after the layers: a mean over all positions is how a head begins there.
    """

    def __init__(
        self, flow: Flow, inputs: Mapping[int, str], width: int, length: int, plain: str, ends: bool = False
    ) -> None:
        self.flow, self.behind = flow, ends
        self.inputs = dict(inputs)
        self.width = width
        self.plain = plain
        self.branches = BranchReader(flow, inputs, self._is_stream, length)
        self.reading = Reading()
        self.names: dict[int, str] = dict(inputs)
        self._groups: dict[Any, str] = {}
        self._residual: dict[int, bool] = {}
        self._ways: dict[Any, Any] = {}  # how each set of parameters of a sub-layer was first used
        self._slots: list[float] = []  # factors of the values in the statement that is being written

    def read(self, node: int) -> str:
        """The variable that holds a node, with a slot for its factor. Raises Unread."""
        factor = 1.0
        while node not in self.names and self._is_scaled(node):
            factor *= self.flow.nodes[node].factors[0]
            node = self.flow.nodes[node].inputs[0]
        found = self.names.get(node)
        if found is None:
            outer, self._slots = self._slots, []
            text = self._expression(self.flow.nodes[node])
            factors, self._slots = tuple(self._slots), outer
            found = f"v{len(self.reading.statements) + 1}"
            self.reading.statements.append(Statement(found, text, factors))
            if len(self.reading.statements) > MOST_STATEMENTS:
                raise Unread("the layer has more parts than an equation can show")
            self.names[node] = found
        self._slots.append(factor)
        return f"{{{len(self._slots) - 1}}}*{found}"

    def _is_scaled(self, node: int) -> bool:
        return self.flow.nodes[node].kind == "sum" and len(self.flow.nodes[node].inputs) == 1

    def ends(self, nodes: Mapping[str, int]) -> None:
        """Read what leaves the section and give each stream its new value."""
        results = {}
        for name, node in sorted(nodes.items()):
            self._slots = []
            results[name] = (self.read(node), self._slots[0])
        self._assign(results)

    def _assign(self, results: Mapping[str, tuple[str, float]]) -> None:
        """All streams change at once: one that is read after it changed is put aside before."""
        add = self.reading.statements.append
        given = set(self.inputs.values())
        held = {stream: text.partition("*")[2] for stream, (text, _) in results.items()}
        aside = {v for s, v in held.items() if v in given and v != s and v in results}
        for variable in sorted(aside):
            add(Statement(f"old_{variable}", variable))
        for stream, (text, factor) in results.items():
            variable = held[stream]
            if variable == stream and factor == 1.0 and stream != "x":
                continue  # handed on as it is
            text = text if variable not in aside else text.replace(f"*{variable}", f"*old_{variable}")
            add(Statement(stream, text, (factor,)))
        if "x" not in results:
            add(Statement("x", "x"))

    def _expression(self, node: Node) -> str:
        if node.kind == "sum" and self._is_wiring_sum(node):
            return self._sum(node)
        if node.kind == "norm":
            return self._norm(node)
        squash = self._dyt(node)
        if squash is not None:
            self.reading.norms.append((node.index, ""))
            return f"{self._site('norm' if self.plain == 'dyt' else 'dyt', self._weights(node))}({self.read(squash)})"
        if node.kind == "factor" and node.detail["shape"] != "other":
            op = "gate" if node.detail["shape"] == "one" else "scale"
            return f"{self._site(op, self._weights(node))}({self.read(node.inputs[0])})"
        if node.kind == "stop":
            return f"stop({self.read(node.inputs[0])})"
        if node.kind == "masked" or (node.kind == "slice" and self._whole_channels(node)):
            self.reading.remarks.append("positions are masked or left out on the stream")
            return self.read(node.inputs[0])
        if self.behind and averages(self.flow, node):
            self.reading.remarks.append("positions are averaged")
            return self.read(node.inputs[0])
        if (held := joined_places(self.flow, node)) is not None and len(held) == 1:
            self.reading.remarks.append("learned positions are put beside those of the stream")
            return self.read(held[0])
        if held and all(i in self.inputs or self._is_stream(i) for i in held):
            self.reading.remarks.append("op stands for the positions of two values side by side")
            return f"op({', '.join([self.read(i) for i in held])})"
        if (part := rewritten(self.flow, node)) is not None:
            few, all_of_them = (self.flow.places(self.flow.nodes[i].value) for i in (part, node.index))
            self.reading.remarks.append(f"{max(few, 1)} of {all_of_them} positions change, the others pass as they are")
            return self.read(part)
        if node.kind == "join" and self._is_concatenation(node):
            self.reading.remarks.append("op stands for values side by side, channel by channel")
            return f"op({', '.join([self.read(i) for i in node.inputs])})"
        return self._joined(node) or self._sub_layer(node)

    def _sub_layer(self, node: Node) -> str:
        try:
            return self._branch(self.branches.read(node.index))
        except Unread:
            within = self.flow.between(node.top, node.index) if node.top >= 0 else []
            if not self.branches.gates_itself(node, within):
                raise
        self.reading.remarks.append("op stands for a gate made of the mean over positions, on the stream itself")
        weights = tuple(dict.fromkeys(w for i in within for w in self._weights(self.flow.nodes[i])))
        return f"{self._site('op', weights)}({self.read(node.top)})"

    def _branch(self, branch: Branch) -> str:
        inner = self.read(branch.source)
        self.reading.branches.append(branch)
        weights = tuple(w for i in branch.content for w in self._weights(self.flow.nodes[i]))
        # One set of weights used in two ways is two operators: a result that is also resampled, say.
        moves = [self.flow.nodes[i].value for i in branch.content if self.flow.nodes[i].kind in ("pool", "shift")]
        ways = tuple((v.name, v.shape) for v in moves)
        if weights and self._ways.setdefault((branch.op, weights), ways) != ways:
            self.reading.remarks.append("sub-layers with one set of parameters differ in how they resample")
        return f"{self._site(branch.op, (*dict.fromkeys(weights), *ways))}({inner})"

    def _joined(self, node: Node) -> str | None:
        """One matrix over the results of several sub-layers side by side, ``[W_o | W_2]``: a sum of sub-layers."""
        source = self.flow.nodes[node.inputs[0]] if node.kind == "linear" else None
        if source is None or source.index in self.inputs or source.kind != "join" or len(source.inputs) < 2:
            return None
        parts = source.value.args[0] if source.value.name == "cat" else ()  # heads may lie side by side in them
        if sum(v.shape[-1] for v in parts) != source.width or len(parts) != len(source.inputs):
            return None
        try:
            found = [self.branches.read(i, linear=True) for i in source.inputs]
        except Unread:
            return None
        if len({b.op for b in found}) < 2 or any(b.op not in ("attn", "ffn", "mixer", "moe") for b in found):
            return None
        for branch in found:
            branch.content = sorted({*branch.content, node.index})
            branch.outer = node.index
        return " + ".join(self._branch(b) for b in found)

    def _whole_channels(self, node: Node) -> bool:
        if self.flow.pictured:
            whole = node.inputs[0] in self.inputs or self._is_stream(node.inputs[0])
            return node.detail["along"] == {PLACES} and (whole or node.width == self.width)
        shape = self.flow.nodes[node.inputs[0]].value.shape
        return 0 <= node.detail.get("axis", -1) < len(shape) - 1 and node.width == self.width

    # --- sums -----------------------------------------------------------------------------------------------------

    def _sum(self, node: Node) -> str:
        experts = self._routed(node)
        parts = []
        for i, factor in zip(node.inputs, node.factors, strict=True):
            if i not in experts:
                parts.append(self.read(i))
                self._slots[-1] *= factor
        return " + ".join(parts)

    def _routed(self, node: Node) -> frozenset[int]:
        """Terms that are the shared expert of a routed one beside them: one sub-layer together."""
        if len(node.inputs) < 2 or any(f != 1.0 for f in node.factors):
            return frozenset()
        found: list[tuple[int, Branch]] = []
        for i in node.inputs:
            if i in self.inputs or self.flow.nodes[i].kind in WIRING:
                continue
            try:
                found.append((i, self.branches.read(i)))
            except Unread:
                return frozenset()
        routed = [b for _, b in found if b.op == "moe"]
        shared = [(i, b) for i, b in found if b.op == "ffn" and any(r.source == b.source for r in routed)]
        for _, b in shared:
            routed[0].content = sorted({*routed[0].content, *b.content})
            self.reading.shared.add(routed[0].output)
        return frozenset(i for i, _ in shared)

    def is_residual(self, node: Node) -> bool:
        """Whether one term of a sum is what all the others are computed from."""
        found = self._residual.get(node.index)
        if found is None:
            terms = node.inputs
            found = any(t in self.inputs for t in terms) or any(
                all(o == t or self.flow.reaches(t, o) for o in terms) for t in terms
            )
            self._residual[node.index] = found
        return found

    def _is_stream(self, place: int) -> bool:
        node = self.flow.nodes[place]
        if node.kind == "join":
            return self._is_concatenation(node) or rewritten(self.flow, node) is not None
        if node.kind != "sum" or len(node.inputs) < 2 or not self.is_residual(node):
            return False
        if self._of_its_query(node):
            return False
        # A bottleneck has a stream of its own; a mean that is subtracted, or a shift in time, makes none.
        return node.width == self.width or self._adds_weights(node)

    def _of_its_query(self, node: Node) -> bool:
        """Whether a sum adds an attention's own query to what it attends to: a skip within the sub-layer.

        The query takes part as it is, or by scores that a learned vector gives it, not by a projection of it.
        """
        nodes = self.flow.nodes
        query = next((t for t in node.inputs if all(o == t or self.flow.reaches(t, o) for o in node.inputs)), -1)
        place = query
        while place >= 0 and place not in self.inputs and nodes[place].kind in PASSED:
            place = nodes[place].top
        if place < 0 or place in self.inputs or nodes[place].kind != "linear":
            return False
        inside = self.flow.between(query, node.index, MOST_OF_A_QUERY)
        stack = [j for i in inside if nodes[i].kind in ("matmul", "core", "product") for j in nodes[i].inputs]
        seen: set[int] = set()
        while stack:
            i = stack.pop()
            if i == query:
                return True
            projected = nodes[i].kind == "linear" and nodes[i].width > 1
            if i > query and i not in seen and not projected and nodes[i].kind not in ("conv", "core", "matmul"):
                seen.add(i)
                stack += nodes[i].inputs
        return False

    def _adds_weights(self, node: Node) -> bool:
        nodes = self.flow.nodes
        if node.top < 0 or node.top not in node.inputs:
            return False
        return any(nodes[i].kind in ("linear", "core", "matmul") for i in self.flow.between(node.top, node.index))

    def _is_concatenation(self, node: Node) -> bool:
        """Whether a node puts values of the stream side by side, channel by channel."""
        nodes = self.flow.nodes
        if len(node.inputs) < 2 or sum(nodes[i].width for i in node.inputs) != node.width:
            return False
        if (
            self.flow.pictured
            and node.detail["along"] == {CHANNELS}
            and all(i in self.inputs or self._is_stream(i) for i in node.inputs)
        ):
            return True
        return any(i in self.inputs for i in node.inputs) and all(
            i in self.inputs or nodes[i].kind in ("norm", "factor") or self._is_stream(i) for i in node.inputs
        )

    def _is_wiring_sum(self, node: Node) -> bool:
        """A residual sum, or a sum of sub-layers that share nothing but values of the stream's width."""
        if self.is_residual(node):
            return True
        nodes = self.flow.nodes
        parts = [self._above(t, node.top) for t in node.inputs]
        shared = {i for k, one in enumerate(parts) for other in parts[k + 1 :] for i in one & other}
        # What the terms share must be whole values, not the inside of a sub-layer such as a router's choice.
        read = set().union(*parts) | {node.index}
        edge = {i for i in shared if any(u in read and u not in shared for u in self.flow.users[i])}
        return all(
            nodes[i].width == self.width and nodes[i].kind in (*WIRING, "linear", "core", "matmul") for i in edge
        )

    def _above(self, place: int, top: int) -> set[int]:
        seen: set[int] = set()
        stack = [place]
        while stack:
            i = stack.pop()
            if i in seen or i in self.inputs or i == top:
                continue
            seen.add(i)
            stack += self.flow.nodes[i].inputs
        return seen

    # --- norms and learned factors ---------------------------------------------------------------------------------

    def _norm(self, node: Node) -> str:
        inner = self.read(node.inputs[0])
        kind = node.detail["norm"]
        self.reading.norms.append((node.index, ""))
        if PLACES in node.detail.get("along", ()) and kind in ("layernorm", "rmsnorm"):
            merged = node.width // max(1, self.flow.nodes[node.inputs[0]].width)
            if merged < 2:
                self.reading.remarks.append(f"op stands for a {kind} whose statistics run over positions too")
                return f"{self._site('op', self._weights(node))}({inner})"
            self.reading.remarks.append(f"a norm of {merged} positions side by side, as one token")
        if kind not in ("layernorm", "rmsnorm"):
            if kind == "l2norm":
                kind = "rmsnorm"
                self.reading.remarks.append("a norm divides by the length, not by the root of the mean square")
            else:
                if kind in NORMS_OF_MORE:
                    self.reading.remarks.append(NORMS_OF_MORE[kind])
                return f"{self._site('op', self._weights(node))}({inner})"
        return f"{self._site('norm' if kind == self.plain else kind, self._weights(node))}({inner})"

    def _dyt(self, node: Node) -> int | None:
        """The source of a dynamic tanh, ``gain * tanh(gate * x) + offset`` (Zhu et al. 2025, 2503.10622)."""
        nodes = self.flow.nodes
        if node.kind != "factor" or node.detail["shape"] != "channel":
            return None
        squash = nodes[node.inputs[0]]
        if squash.index in self.inputs or squash.value.name != "tanh":
            return None
        slope = nodes[squash.inputs[0]]
        if slope.index in self.inputs or slope.kind != "factor" or slope.detail["shape"] != "one":
            return None
        return slope.inputs[0]

    def _weights(self, node: Node) -> tuple[Any, ...]:
        """What tells one set of weights from another: parameters, and which part of them."""
        return tuple(
            (names, node.detail.get("part") if len(node.operands) else None)
            for names in (self.flow.parameter_names(w) for w in node.operands)
            if names
        )

    def _site(self, op: str, weights: tuple[Any, ...]) -> str:
        """The operator with a label for its set of weights; labels of sets that are used once fall away in the normal
        form."""
        if not weights:
            return op
        key = (op, weights)
        if key not in self._groups:
            self._groups[key] = f"{op}_s{len(self._groups) + 1}"
        return self._groups[key]
