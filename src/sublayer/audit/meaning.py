"""What single ATen calls mean for the wiring: which node a call makes of the nodes that it reads."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sublayer.audit import vocabulary
from sublayer.audit.axes import CHANNELS, along
from sublayer.audit.norms import native, recognise
from sublayer.audit.tape import Value, values_in

if TYPE_CHECKING:
    from sublayer.audit.flow import Flow, Node

LIVE, MEMORY, WEIGHT, SIDE = 1, 2, 4, 8  # what a value descends from: the data, other data, weights, masks and such


def other(flow: "Flow", value: Value, live: list[Value], kind: str) -> None:
    """A call without a meaning of its own: taken by its shapes."""
    inputs = tuple(dict.fromkeys(flow.of[s.index] for s in live))
    if not kind or kind in ("add", "mul", "div", "batchnorm"):
        elementwise = value.shape == live[0].shape or len(value.shape) >= len(live[0].shape)
        kind = "pointwise" if elementwise else "opaque"
    weights = tuple(s for s in value.sources if flow.kinds[s.index] & WEIGHT and not flow.is_live(s))
    flow.add(kind, inputs, value, operands=weights)


def addition(flow: "Flow", value: Value, live: list[Value]) -> "Node | None":
    """``a + alpha*b``, ``a - b``, ``-a``."""
    factor = [1.0, 1.0]
    if value.name in ("sub", "sub_", "subtract"):
        factor = [1.0, -1.0]
    elif value.name == "rsub":
        factor = [-1.0, 1.0]
    elif value.name in ("neg", "neg_"):
        return weighted(flow, value, [(-1.0, flow.of[live[0].index])])
    alpha = flow.number(value.kwargs.get("alpha", value.args[2] if len(value.args) > 2 else 1))
    if alpha is None:
        return None
    factor[0 if value.name == "rsub" else 1] *= alpha
    pairs = [(f, a) for f, a in zip(factor, value.args[:2], strict=False)]
    terms = [(f, flow.of[a.index]) for f, a in pairs if isinstance(a, Value) and flow.is_live(a)]
    fixed = [a for _, a in pairs if not (isinstance(a, Value) and flow.is_live(a))]
    return weighted(flow, value, terms, fixed)


def weighted(
    flow: "Flow", value: Value, terms: list[tuple[float, int]], fixed: list[Any] | None = None
) -> "Node | None":
    """A sum of nodes with numbers as factors; what is fixed and added to it is an offset."""
    total: dict[int, float] = {}
    for f, i in terms:
        total[i] = total.get(i, 0.0) + f
    inputs = tuple(i for i, f in total.items() if f != 0)
    if not inputs:
        return None
    if fixed and any(isinstance(a, Value) and flow.kinds[a.index] & MEMORY for a in fixed):
        return None
    if len(inputs) == 1 and total[inputs[0]] == 1.0:
        return offset(flow, value, inputs[0], fixed or [])
    if len(inputs) == 1 and (node := unit_norm(flow, value, inputs[0], total[inputs[0]])) is not None:
        return node
    if len(inputs) > 1 and (node := one_map(flow, value, inputs)) is not None:
        return node
    return flow.add("sum", inputs, value, factors=tuple(total[i] for i in inputs))


def unit_norm(flow: "Flow", value: Value, index: int, factor: float) -> "Node | None":
    """A division by the length, times the root of the width, is a division by the root of the mean square."""
    node = flow.nodes[index]
    if node.kind != "norm" or node.detail["norm"] != "l2norm" or node.detail["offset"]:
        return None
    if abs(factor * node.detail["over"] ** -0.5 - 1) > 1e-3:
        return None
    return flow.add("norm", node.inputs, value, operands=node.operands, **{**node.detail, "norm": "rmsnorm"})


def one_map(flow: "Flow", value: Value, inputs: tuple[int, ...]) -> "Node | None":
    """A sum of linear maps of one node is a linear map of it, as with a low-rank adapter beside a matrix."""
    node = flow.nodes[inputs[0]]
    for _ in range(4):
        if node.kind not in ("linear", "factor") and not (node.kind == "sum" and len(node.inputs) == 1):
            return None
        if node.kind == "linear" and len(node.inputs) == 1:
            found = [map_of(flow, i, node.inputs[0]) for i in inputs]
            if all(one is not None for one in found):
                operands = tuple(dict.fromkeys(w for one in found for w in one or ()))
                detail = {k: node.detail[k] for k in ("along",) if k in node.detail}
                return flow.add("linear", node.inputs, value, operands=operands, first=True, **detail)
        node = flow.nodes[node.inputs[0]]
    return None


def map_of(flow: "Flow", place: int, source: int) -> list[Value] | None:
    """The weights by which a node is a linear map of ``source``; None if it is not."""
    operands: list[Value] = []
    stack, steps = [(place, False)], 0
    while stack:
        i, mapped = stack.pop()
        node = flow.nodes[i]
        steps += 1
        if i == source and mapped:
            continue
        if i <= source or steps > 12 or node.kind not in ("linear", "sum", "factor"):
            return None
        operands += node.operands
        stack += [(j, mapped or node.kind == "linear") for j in node.inputs]
    return operands


def offset(flow: "Flow", value: Value, index: int, fixed: list[Any]) -> "Node | None":
    """Something fixed is added: a bias of the norm or linear map before it, else a remark."""
    node = flow.nodes[index]
    flow.of[value.index] = index
    weights = [a for a in fixed if isinstance(a, Value) and flow.is_weight(a)]
    if weights and node.kind in ("norm", "linear", "factor"):
        # The same value, moved: later readers see the moved one.
        again = flow.add(
            node.kind, node.inputs, value, operands=(*node.operands, *weights), **{**node.detail, "offset": True}
        )
        return again
    if weights or any(isinstance(a, Value) for a in fixed):
        flow.notes.setdefault(index, []).append("something that does not depend on the input is added")
    return node


def multiply(flow: "Flow", value: Value, live: list[Value]) -> "Node | None":
    """``a * b``."""
    left, right = value.args[0], value.args[1]
    both = [a for a in (left, right) if isinstance(a, Value) and flow.is_live(a)]
    if len(both) == 2:
        return product(flow, value, flow.of[left.index], flow.of[right.index])
    other = right if both[0] is left else left
    return times(flow, value, flow.of[both[0].index], other)


def scaled_sum(flow: "Flow", value: Value, live: list[Value]) -> "Node | None":
    """``offset + gain * a``, the affine map of each channel that some models have in the place of a norm."""
    start, left, right = value.args[:3]
    if flow.is_live(start) or flow.is_live(left) == flow.is_live(right) or value.kwargs.get("value", 1) != 1:
        return None
    gain, data = (left, right) if flow.is_live(right) else (right, left)
    if not (flow.is_weight(start) and flow.is_weight(gain)):
        return None
    node = times(flow, value, flow.of[data.index], gain)
    return offset(flow, value, node.index, [start]) if node else None


def divide(flow: "Flow", value: Value, live: list[Value]) -> "Node | None":
    """``a / b``."""
    left, right = value.args[0], value.args[1]
    if len(value.args) > 2 or value.kwargs.get("rounding_mode"):
        return None
    if isinstance(right, Value) and flow.is_live(right):
        if isinstance(left, Value) and flow.is_live(left):
            return product(flow, value, flow.of[left.index], flow.of[right.index])
        return None
    number = flow.number(right)
    if number:
        return weighted(flow, value, [(1.0 / number, flow.of[left.index])])
    return times(flow, value, flow.of[left.index], right)


def times(flow: "Flow", value: Value, index: int, other: Any) -> "Node | None":
    """A node times something that does not depend on the data."""
    number = flow.number(other)
    if number is not None:
        return weighted(flow, value, [(number, index)]) if number else None
    assert isinstance(other, Value)
    if flow.kinds[other.index] & MEMORY:
        return None
    if not flow.is_weight(other):
        # A mask or a table of positions.
        return flow.add("masked", (index,), value)
    size = 1
    for n in other.shape:
        size *= n
    node = flow.nodes[index]
    wide = max(other.shape, default=1) == size and runs_along_channels(flow, value, other)
    if size > 1 and wide and node.kind == "norm" and not node.detail.get("gain") and not node.detail.get("offset"):
        return flow.add("norm", node.inputs, value, operands=(*node.operands, other), **{**node.detail, "gain": True})
    shape = "one" if size == 1 else "channel" if wide else "other"
    return flow.add("factor", (index,), value, operands=(other,), shape=shape, part=cut(flow, other))


def runs_along_channels(flow: "Flow", value: Value, other: Value) -> bool:
    """Whether a vector that multiplies a value has an entry a channel; of text it is taken to."""
    if not flow.pictured:
        return True
    axes = flow.axes[value.index]
    places = [d - len(other.shape) for d, n in enumerate(other.shape) if n != 1]
    return all(len(axes) >= -d and {role for _, role in axes[d]} == {CHANNELS} for d in places)


def cut(flow: "Flow", value: Value) -> tuple[Any, ...]:
    """How a value is cut from weights, comparable between calls: two entries of one vector are two gates."""
    if value.kind != "call":
        return ()
    plain = tuple(repr(a) for a in value.args if not isinstance(a, Value) and not any(True for _ in values_in(a)))
    above = tuple(cut(flow, s) for s in value.sources if flow.kinds[s.index] & WEIGHT)
    return (*above, value.name, plain) if vocabulary.KIND.get(value.name) == "slice" or any(above) else ()


def product(flow: "Flow", value: Value, left: int, right: int) -> "Node | None":
    """Two nodes multiplied element by element; a norm if one is a statistic of the other."""
    inputs = tuple(dict.fromkeys((left, right)))
    node = flow.add("product", inputs, value)
    norm = recognise(flow, node)
    if norm is not None:
        source, detail = norm
        if flow.pictured:
            steps = flow.between(source, node.index)
            taken = [flow.nodes[i].detail["along"] for i in steps if flow.nodes[i].kind == "reduce"]
            detail["along"] = frozenset().union(*taken)
        return flow.add("norm", (source,), value, **detail)
    return node


def interpolate(flow: "Flow", value: Value, live: list[Value]) -> "Node | None":
    """``a + w*(b - a)`` with a number for w."""
    start, end, weight = value.args[:3]
    number = flow.number(weight)
    if number is None or not (flow.is_live(start) and flow.is_live(end)):
        return None
    return weighted(flow, value, [(1 - number, flow.of[start.index]), (number, flow.of[end.index])])


def matmul(flow: "Flow", value: Value, live: list[Value]) -> "Node | None":
    """mm, bmm, addmm, baddbmm, linear, matmul."""
    factors = [a for a in value.args if isinstance(a, Value)]
    bias = None
    if value.name in ("addmm", "baddbmm", "addmm_", "addmv", "addbmm"):
        bias, factors = factors[0], factors[1:]
    elif value.name == "linear":
        factors = factors[:2]
    inner = [a for a in factors[:2] if flow.is_live(a)]
    others = [a for a in factors[:2] if not flow.is_live(a)]
    inputs = tuple(dict.fromkeys(flow.of[a.index] for a in inner))
    if not inner:
        return None
    if others and flow.is_weight(others[0]):
        weights = tuple(a for a in value.sources if not flow.is_live(a) and flow.kinds[a.index] & WEIGHT)
        first = factors[0] is inner[0]
        node = flow.add("linear", inputs, value, operands=weights, first=first, inner=inner[0].shape[-1])
    elif others and not flow.kinds[others[0].index] & MEMORY:
        node = flow.add("fixed_mix", inputs, value)  # by a table, as a Fourier transform or a mean over places
    else:
        node = flow.add(
            "matmul",
            inputs,
            value,
            left=flow.of.get(factors[0].index, -1),
            right=flow.of.get(factors[1].index, -1),
            inner=factors[0].shape[-1],
        )
    if bias is not None and flow.is_live(bias):
        return flow.add("sum", (flow.of[bias.index], node.index), value, factors=(1.0, 1.0))
    return node


def convolution(flow: "Flow", value: Value, live: list[Value]) -> "Node | None":
    """A convolution; of one place wide, a linear map."""
    data, weight = value.args[0], value.args[1]
    if not flow.is_live(data) or not flow.is_weight(weight):
        return None
    pointwise = all(n == 1 for n in weight.shape[2:])
    weights = tuple(s for s in value.sources if not flow.is_live(s))
    return flow.add("linear" if pointwise else "conv", (flow.of[data.index],), value, operands=weights, first=True)


def part_of(flow: "Flow", value: Value, live: list[Value]) -> "Node | None":
    """A part of a node. A part of what a linear map gives is what a part of the map gives."""
    source = live[0]
    if math.prod(value.shape) == math.prod(source.shape):
        flow.of[value.index] = flow.of[source.index]
        return flow.node(source)
    node = flow.node(source)
    axis = next((i for i, (a, b) in enumerate(zip(value.shape, source.shape, strict=False)) if a != b), -1)
    if axis < 0:
        axis = len(value.shape)  # the last one was taken away
    if node.kind == "linear" and keeps_tokens(flow, value, source, axis):
        return flow.add(
            "linear", node.inputs, value, operands=node.operands, **{**node.detail, "part": part(value, node)}
        )
    return flow.add("slice", (node.index,), value, axis=axis)


def moved(flow: "Flow", value: Value, live: list[Value]) -> "Node | None":
    """A shift or padding; by nothing it is the same value."""
    by = value.args[1] if len(value.args) > 1 else None
    if value.name in ("constant_pad_nd", "roll") and isinstance(by, list | tuple) and not any(by):
        flow.of[value.index] = flow.of[live[0].index]
        return flow.node(live[0])
    return None


def keeps_tokens(flow: "Flow", value: Value, source: Value, axis: int) -> bool:
    """Whether a slice leaves out channels only: every position of every row is still there."""
    if axis >= len(source.shape):
        return False
    if flow.pictured:
        return along(flow, value) == {CHANNELS}
    rows, length = flow.tokens
    if not length:
        return value.shape[:2] == source.shape[:2] and len(source.shape) > 2
    return source.shape[axis] not in (length, rows * length) and math.prod(value.shape) % (rows * length) == 0


def part(value: Value, node: "Node") -> tuple[Any, ...]:
    """Which part of a linear map's result a slice is, comparable between calls."""
    plain = tuple(repr(a) for a in value.args[1:] if not isinstance(a, Value))
    return (*node.detail.get("part", ()), value.name, plain, value.output)


def one_call_norm(flow: "Flow", value: Value, live: list[Value]) -> "Node | None":
    """A norm that is one ATen call."""
    data = value.args[0]
    if value.output != 0:
        return flow.add("reduce", (flow.of[live[0].index],), value)
    if not flow.is_live(data):
        return None
    detail = native(flow, value)
    if detail is None:
        return None
    weights = tuple(s for s in value.sources if s is not data and flow.kinds[s.index] & WEIGHT)
    return flow.add("norm", (flow.of[data.index],), value, operands=weights, **detail)


def batch_norm(flow: "Flow", value: Value, live: list[Value]) -> "Node | None":
    """A batch norm in evaluation, an affine map of each channel: behind a matrix or a convolution a part of it."""
    data = value.args[0]
    if value.output != 0 or not flow.is_live(data) or value.args[5]:
        return None
    node = flow.node(data)
    weights = tuple(s for s in value.sources if flow.kinds[s.index] & WEIGHT and not flow.is_live(s))
    if node.kind in ("linear", "conv") and flow.read_once(data, node):
        operands = (*node.operands, *weights)
        return flow.add(node.kind, node.inputs, value, operands=operands, **{**node.detail, "offset": True})
    learned = [isinstance(a, Value) for a in value.args[1:3]]
    detail = {"norm": "batchnorm", "eps": value.args[7], "gain": learned[0], "offset": learned[1], "over": 0}
    return flow.add("norm", (node.index,), value, operands=weights, **detail)


def fused_attention(flow: "Flow", value: Value, live: list[Value]) -> "Node | None":
    """Attention in one call."""
    if value.output != 0:
        return None
    inputs = tuple(dict.fromkeys(flow.of[s.index] for s in live))
    query, key, mixed = value.args[:3]
    ends: dict[str, Any] = {n: flow.of.get(a.index, -1) for n, a in (("q", query), ("k", key), ("v", mixed))}
    return flow.add("core", inputs, value, **ends)


def reduction(flow: "Flow", value: Value, live: list[Value]) -> "Node | None":
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
    terms = [(factor, flow.of[p.index]) for p in parts if flow.is_live(p)]
    return weighted(flow, value, terms, [p for p in parts if not flow.is_live(p)])


def embedding(flow: "Flow", value: Value, live: list[Value]) -> "Node | None":
    """Rows of a table."""
    weights = tuple(s for s in value.sources if not flow.is_live(s) and flow.kinds[s.index] & WEIGHT)
    return flow.add("embedding", tuple(flow.of[s.index] for s in live), value, operands=weights)


def stop(flow: "Flow", value: Value, live: list[Value]) -> "Node | None":
    """``detach``."""
    return flow.add("stop", (flow.of[live[0].index],), value)


BUILDERS: dict[str, Callable[["Flow", Value, list[Value]], "Node | None"]] = {
    "add": addition,
    "mul": multiply,
    "div": divide,
    "lerp": interpolate,
    "addcmul": scaled_sum,
    "matmul": matmul,
    "convolution": convolution,
    "slice": part_of,
    "norm": one_call_norm,
    "batchnorm": batch_norm,
    "shift": moved,
    "sdpa": fused_attention,
    "reduce": reduction,
    "embedding": embedding,
    "stop": stop,
}
