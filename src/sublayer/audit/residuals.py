"""The sums on a stream, and the turns that the sub-layers between them take."""

from collections.abc import Sequence

from sublayer.audit import vocabulary as words
from sublayer.audit.flow import Flow

WEIGHTY = frozenset({"linear", "conv", "matmul", "core", "scan", "route", "fixed_mix"})
MOST_TURNS = 3  # sub-layers of a layer whose calls hold one sub-layer each


def residual_sums(flow: Flow) -> list[int]:
    """Sums of a value and something that weights made of it."""
    found = []
    for node in flow.nodes:
        if node.kind == "sum" and len(node.inputs) > 1 and any(_unmixed(flow, i) == node.top for i in node.inputs):
            if any(flow.nodes[i].kind in WEIGHTY for i in flow.between(node.top, node.index)):
                found.append(node.index)
    return found


def _unmixed(flow: Flow, place: int) -> int:
    """What a node is but for factors: of ``a * x``, ``x``."""
    node = flow.nodes[place]
    while node.kind in ("factor", "masked", "stop") or (node.kind == "sum" and len(node.inputs) == 1):
        node = flow.nodes[node.inputs[0]]
    return node.index


def turns(kinds: Sequence[frozenset[str]]) -> int:
    """The period of a sequence that ends with a whole one; 1 if there is none, or none of some members that attend and
    some that do not."""
    attends = [any(words.KIND.get(name) in ("softmax", "sdpa") for name in kind) for kind in kinds]
    if all(attends) or not any(attends):
        return 1
    for period in range(2, MOST_TURNS + 1):
        if len(kinds) % period == 0 and all(a == b for a, b in zip(kinds, kinds[period:], strict=False)):
            return period
    return 1
