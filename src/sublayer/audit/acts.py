"""What a set of nodes does: attention, a choice of experts, a mixing of positions."""

from collections.abc import Iterable

from sublayer.audit.axes import CHANNELS, PLACES, ROWS, UNKNOWN
from sublayer.audit.flow import Flow
from sublayer.audit.places import pieces

WEIGHTLESS = "weightless"  # attention of something with itself, until it is known whether a projection came before
CHOOSES = frozenset({"topk", "argmax", "_grouped_mm", "kthvalue", "multinomial"})
MIXES = {
    "conv": "convolution",
    "scan": "scan",
    "shift": "shift",
    "fixed_mix": "fixed table",
    "matmul": "product",
    "pool": "pooling",
}
# Of a picture's values it is known what a call takes together: these mix where that is places.
TAKES = {
    **MIXES,
    "linear": "matrix over positions",
    "reduce": "mean over positions",
    "slice": "steps along the sequence",
    "core": "product",
    "norm": "statistics over positions",
}


class Unread(Exception):
    """A part of the flow whose wiring cannot be told; the message says why."""


class Acts:
    """Says what nodes do.

    Args:
        flow: the graph.
        length: number of positions in the run.
    """

    def __init__(self, flow: Flow, length: int) -> None:
        self.flow, self.length = flow, length

    def attention(self, content: list[int]) -> str:
        """``attn``, ``cross`` or ``dot`` if the nodes are an attention, else nothing."""
        nodes = self.flow.nodes
        inside = set(content)
        cores = [i for i in content if nodes[i].kind == "core" and self._over_places(i)]
        found = bool(cores)
        products = [i for i in content if nodes[i].kind == "matmul"]
        for i in content if not found else ():
            if nodes[i].kind == "softmax" and self._over_places(i) and self._fed_by(i, inside, frozenset(products)):
                found = True
                cores = [j for j in products if self._fed_by(j, inside, frozenset({i}))]
                break
        if not found and len(products) > 1:
            for i in products:
                shape = nodes[i].value.shape
                scores = not self.flow.pictured and len(shape) > 1 and all(n % self.length == 0 for n in shape[-2:])
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

    def _over_places(self, place: int) -> bool:
        """Whether the shares of a softmax are those of positions: not of channels, as in a cross-covariance."""
        return not self.flow.pictured or PLACES in self.flow.nodes[place].detail["along"]

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
            nodes[i].kind == "softmax"
            and nodes[i].detail.get("along", {CHANNELS}) == {CHANNELS}  # not of positions: a map of where to look
            and any(self._fed_by(p, inside, frozenset({i})) for p in products)
            for i in content
        )

    def mixes(self, content: list[int]) -> tuple[str, ...]:
        """How the nodes mix positions, in words; empty if each position is on its own."""
        nodes = self.flow.nodes
        if self.flow.pictured:
            taken = [i for i in content if nodes[i].kind in TAKES]
            if over := [i for i in taken if ROWS in nodes[i].detail["along"]]:
                raise Unread(f"{self.label(over)} takes the rows of a batch together")
            lost = [i for i in taken if UNKNOWN in nodes[i].detail["along"]]
            if lost:
                raise Unread(f"it cannot be told whether {self.label(lost)} takes positions or channels together")
            return tuple(dict.fromkeys(TAKES[nodes[i].kind] for i in taken if PLACES in nodes[i].detail["along"]))
        ways = [MIXES[nodes[i].kind] for i in content if nodes[i].kind in MIXES]
        by_pieces = pieces(self.flow, content, self.length)
        for i in content:
            node = nodes[i]
            if node.kind == "linear" and node.detail.get("inner") == self.length > 1:
                if nodes[node.inputs[0]].width != self.length:
                    ways.append("matrix over positions")  # the axes were swapped before it
            if node.kind == "slice" and len(node.inputs) == 1 and i not in by_pieces:
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
