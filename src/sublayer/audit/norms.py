"""Norms are recognised by what they compute, whatever the operators they are written in.

A candidate is a product or quotient whose two sides come from one value through element-wise operators and statistics
of its rows. It is then run on made-up numbers: a norm does not change when its input is scaled; a LayerNorm (Ba et al.
2016, 1607.06450) does not change when its input is shifted either, an RMSNorm (Zhang & Sennrich 2019, 1910.07467)
does.
"""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sublayer.audit import vocabulary as words
from sublayer.audit.tape import MOST_ELEMENTS, Replay, Value, values_in

if TYPE_CHECKING:
    from sublayer.audit.flow import Flow, Node

MOST_STEPS = 16  # nodes in a norm written by hand
_SEEN: dict[Any, dict[str, Any] | None] = {}  # what each way of writing a norm turned out to be


def native(flow: "Flow", value: Value) -> dict[str, Any] | None:
    """Kind, eps and affine part of a norm that is one ATen call."""
    args = value.args
    if value.name in ("native_layer_norm", "layer_norm"):
        weight, bias = args[2] if len(args) > 2 else None, args[3] if len(args) > 3 else None
        eps = args[4] if len(args) > 4 else 1e-5
        return {
            "norm": "layernorm",
            "eps": eps,
            "gain": weight is not None,
            "offset": bias is not None,
            "over": args[1][-1],
        }
    if value.name in ("_fused_rms_norm", "rms_norm"):
        weight, eps = args[2] if len(args) > 2 else None, args[3] if len(args) > 3 else None
        eps = eps if eps is not None else torch.finfo(value.dtype).eps
        return {"norm": "rmsnorm", "eps": eps, "gain": weight is not None, "offset": False, "over": args[1][-1]}
    groups = args[6] if value.name == "native_group_norm" else args[1]
    if groups == 1:
        eps = args[7] if value.name == "native_group_norm" else args[4] if len(args) > 4 else 1e-5
        # One group of [batch, channels, places] takes its statistics over places too: no norm of a token.
        return {"norm": "groupnorm", "eps": eps, "gain": True, "offset": True, "over": 0}
    return {"norm": "groupnorm", "eps": None, "gain": True, "offset": True, "over": 0}


def recognise(flow: "Flow", node: "Node") -> tuple[int, dict[str, Any]] | None:
    """The node that a product normalises and how, or None if it is no norm."""
    top = node.top
    if top < 0:
        return None
    steps = _steps(flow, top, node.index)
    if steps is None or not any(flow.nodes[i].kind == "reduce" for i in steps):
        return None
    # The mean may have been subtracted before: (x - mean(x)) is then what is divided.
    while flow.nodes[top].kind == "sum" and flow.nodes[top].top >= 0:
        further = _steps(flow, flow.nodes[top].top, node.index)
        centred = _steps(flow, flow.nodes[top].top, top)
        if further is None or centred is None or not any(flow.nodes[i].kind == "reduce" for i in centred):
            break
        top, steps = flow.nodes[top].top, further
    detail = _judge(flow, top, node)
    return (top, detail) if detail is not None else None


def _steps(flow: "Flow", top: int, bottom: int) -> list[int] | None:
    """The nodes from ``top`` to ``bottom`` if they are few and work on rows; None if not."""
    seen: set[int] = set()
    stack = [i for i in flow.nodes[bottom].inputs if i != top]
    while stack:
        i = stack.pop()
        if i in seen:
            continue
        node = flow.nodes[i]
        if i < top or node.value.name not in words.ROW_WISE or node.kind in ("linear", "norm", "matmul"):
            return None
        seen.add(i)
        if len(seen) > MOST_STEPS:
            return None
        stack += [j for j in node.inputs if j != top]
    return sorted(seen)


def _judge(flow: "Flow", top: int, node: "Node") -> dict[str, Any] | None:
    start = _start(flow, top, node)
    if start is None:
        return None
    signature = _signature(flow, start, node.value)
    if signature not in _SEEN:
        _SEEN[signature] = _measure(flow, start, node.value)
    found = _SEEN[signature]
    return dict(found) if found else None


def _start(flow: "Flow", top: int, node: "Node") -> Value | None:
    """The value on the tape from which every reading of node ``top`` within the norm comes."""
    chains: list[list[int]] = []
    seen: set[int] = set()
    stack = [node.value]
    while stack:
        value = stack.pop()
        if value.index in seen:
            continue
        seen.add(value.index)
        for source in value.sources:
            if not flow.is_live(source):
                continue
            if flow.of[source.index] == top:
                chain = [source.index]
                current = source
                while True:
                    back = [s for s in current.sources if flow.is_live(s) and flow.of.get(s.index) == top]
                    if not back or current.index == flow.nodes[top].value.index:
                        break
                    current = back[0]
                    chain.append(current.index)
                chains.append(chain)
            else:
                stack.append(source)
    if not chains:
        return None
    common = set(chains[0]).intersection(*chains[1:])
    return flow.tape.values[max(common)] if common else None


def _signature(flow: "Flow", start: Value, end: Value) -> Any:
    """The calls from ``start`` to ``end`` as a comparable value: operators, numbers, sizes, and who feeds whom."""
    places: dict[int, int] = {start.index: 0}
    steps: list[Any] = [tuple(start.shape[2:]), len(start.shape)]

    def visit(value: Value) -> int:
        if value.index in places:
            return places[value.index]
        if not flow.is_live(value):
            steps.append(("fixed", flow.number(value), value.shape))
        else:
            arguments = [visit(a) if isinstance(a, Value) else repr(a) for a in value.args if not isinstance(a, list)]
            lists = [repr(a) for a in value.args if isinstance(a, list) and not any(True for _ in values_in(a))]
            steps.append((value.name, tuple(arguments), tuple(lists), repr(sorted(value.kwargs))))
        places[value.index] = len(places)
        return places[value.index]

    visit(end)
    return tuple(steps)


def _measure(flow: "Flow", start: Value, end: Value) -> dict[str, Any] | None:
    """Run the calls from ``start`` to ``end`` on numbers and see what stays the same."""
    if not start.shape or math.prod(start.shape) > MOST_ELEMENTS:
        return None
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(start.shape, generator=generator)

    def run(numbers: Tensor) -> Tensor | None:
        given: dict[int, Tensor] = {start.index: numbers.to(start.dtype)}

        def leaf(v: Value) -> Tensor | None:
            if v.real is None and math.prod(v.shape) > MOST_ELEMENTS:
                return None  # no gain of a norm
            return v.real if v.real is not None else torch.ones(v.shape, dtype=v.dtype)

        result = Replay(given, leaf)(end)
        return None if result is None else result.double()

    plain = run(10 * data)
    scaled = run(30 * data)
    if plain is None or scaled is None or plain.numel() != data.numel() or not bool(torch.isfinite(plain).all()):
        return None
    size = plain.abs().mean()
    if not bool(size > 0) or float((plain - scaled).abs().mean() / size) > 1e-2:
        return None
    mirrored = run(-10 * data)
    if mirrored is None or float((plain + mirrored).abs().mean() / size) > 1e-2:
        return None  # shares of a sum keep their sign: weights of experts, not a norm
    axis, over = _axis(run, data, plain)
    if axis is None:
        return None
    shifted = run(10 * data + 7)
    assert shifted is not None
    centred = float((plain - shifted).abs().mean() / size) < 1e-2
    root = float(plain.square().mean().sqrt())  # 1 if it divides by the root of the mean square
    if abs(root - 1) < 0.05:
        kind = "layernorm" if centred else "rmsnorm"
    elif abs(root * math.sqrt(over) - 1) < 0.05:
        kind = "l2norm"
    else:
        return None
    return {
        "norm": kind,
        "eps": _eps(run, data, axis, centred) if kind != "l2norm" else None,
        "gain": False,
        "offset": False,
        "over": over,
    }


def _axis(run: Any, data: Tensor, plain: Tensor) -> tuple[int | None, int]:
    """The axis that is normalised, and its size: scaling one row of it changes nothing elsewhere and nothing there."""
    for axis in (data.dim() - 1, 1, *range(data.dim() - 2, 1, -1)):
        if data.dim() <= axis or axis < 0:
            continue
        row = [slice(0, 1)] * data.dim()
        row[axis] = slice(None)
        factor = torch.ones_like(data)
        factor[tuple(row)] = 5.0
        changed = run(10 * data * factor)
        if changed is not None and float((changed - plain).abs().max()) < 2e-2 * float(plain.abs().max()):
            return axis, data.shape[axis]
    return None, 0


def _eps(run: Any, data: Tensor, axis: int, centred: bool) -> float | None:
    """The constant beside the statistic, from how small inputs are held back; None if two of them disagree."""
    unit = data - data.mean(axis, keepdim=True) if centred else data
    unit = unit / unit.square().mean(axis, keepdim=True).sqrt()

    def estimate(s: float, outside: bool) -> float | None:
        result = run(s * unit)
        if result is None:
            return None
        ratio = float(result.square().mean().sqrt())
        if not 0 < ratio < 1:
            return None
        return s * (1 / ratio - 1) if outside else s * s * (1 / (ratio * ratio) - 1)

    for outside in (False, True):
        guess = estimate(1e-4, outside)
        if guess is None or guess <= 0:
            continue
        s = guess if outside else math.sqrt(guess)
        one, two = estimate(s, outside), estimate(3 * s, outside)
        if one and two and abs(one / two - 1) < 0.02:
            return float(f"{one:.2g}")
    return None
