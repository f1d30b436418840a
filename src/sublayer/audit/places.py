"""What is done to some of the positions of a value: class tokens, what joins and leaves, work done piece by piece."""

from collections.abc import Iterable

from sublayer.audit.axes import PLACES, along
from sublayer.audit.flow import Flow, Node
from sublayer.audit.tape import Value


def averages(flow: Flow, node: Node) -> bool:
    """Whether a node is a mean of all positions."""
    value = node.value
    if flow.pictured:
        mean = node.kind == "pool" or (node.kind == "reduce" and value.name == "mean")
        return mean and node.detail["along"] == {PLACES} and flow.places(value) <= 1
    shape = flow.nodes[node.inputs[0]].value.shape if node.kind == "reduce" and value.name == "mean" else ()
    return len(shape) == 3 and tuple(shape[:2]) == flow.tokens and value.args[1:2] in (([1],), ([-2],))


def joined_places(flow: Flow, node: Node) -> tuple[int, ...] | None:
    """The live values whose positions a node puts side by side; None if it does something else."""
    if not flow.pictured or node.kind != "join" or node.value.name != "cat" or node.detail["along"] != {PLACES}:
        return None
    return node.inputs


def rewritten(flow: Flow, node: Node) -> int | None:
    """The changed part of a value of which the other positions are as they were: ``cat(cls + F(x), x[:, 1:])``.

    The parts are put back where they were cut from, and the changed one has its own old value in it.
    """
    held = joined_places(flow, node)
    if held is None or len(held) < 2:
        return None
    parts: list[Value] = list(node.value.args[0])
    if any(p.index not in flow.of for p in parts):
        return None
    dim = (node.value.args[1] if len(node.value.args) > 1 else 0) % len(node.value.shape)
    offsets = [sum(p.shape[dim] for p in parts[:k]) for k in range(len(parts))]
    cuts = [_cut(flow, flow.of[p.index]) for p in parts]
    changed = [k for k, cut in enumerate(cuts) if cut is None]
    sources = {cut[0] for cut in cuts if cut}
    if len(changed) != 1 or len(sources) != 1:
        return None
    source = next(iter(sources))
    whole = flow.places(flow.nodes[source].value) == flow.places(node.value)
    if not whole or any(cut and cut[1] != offset for cut, offset in zip(cuts, offsets, strict=True)):
        return None
    part = flow.of[parts[changed[0]].index]
    wanted = (source, offsets[changed[0]], parts[changed[0]].shape[dim])
    return part if any(_cut(flow, i) == wanted for i in _skipped(flow, part)) else None


def _skipped(flow: Flow, part: int) -> list[int]:
    """The values that a node is a sum of, sums among them opened up."""
    found, stack = [], [part]
    while stack:
        i = stack.pop()
        node = flow.nodes[i]
        if node.kind == "sum" and all(f == 1.0 for f in node.factors):
            stack += node.inputs
        else:
            found.append(i)
    return found


def _cut(flow: Flow, place: int) -> tuple[int, int, int] | None:
    """Of a slice of positions the node it is cut from, where it begins and how many it takes; None for others."""
    return _where(flow.nodes[place]) if along(flow, flow.nodes[place].value) == {PLACES} else None


def _where(node: Node) -> tuple[int, int, int] | None:
    """The same, of a slice of whatever."""
    if node.kind != "slice" or len(node.inputs) != 1:
        return None
    args, name = node.value.args, node.value.name
    given = args[0].shape
    if name == "slice":
        dim = (args[1] if len(args) > 1 else 0) % len(given)
        begin = (args[2] if len(args) > 2 else 0) or 0
        if len(args) > 4 and args[4] != 1:
            return None
        return (node.inputs[0], begin % given[dim], node.value.shape[dim])
    if name == "select":
        dim = args[1] % len(given)
        return (node.inputs[0], args[2] % given[dim], 1)
    if name in ("split", "split_with_sizes"):
        dim = (args[2] if len(args) > 2 else 0) % len(given)
        sizes = args[1] if isinstance(args[1], list | tuple) else [args[1]] * node.value.output
        return (node.inputs[0], sum(sizes[: node.value.output]), node.value.shape[dim])
    return None


def pieces(flow: Flow, content: Iterable[int], length: int) -> frozenset[int]:
    """Slices of the positions that are put back where they were cut from, each worked on by the same weights.

    A network that saves memory so works on each position by itself, and its slices mix nothing.
    """
    inside, found = set(content), set()
    for i in inside:
        node = flow.nodes[i]
        if node.kind != "join" or node.value.name != "cat":
            continue
        parts: list[Value] = list(node.value.args[0])
        dim = (node.value.args[1] if len(node.value.args) > 1 else 0) % len(node.value.shape)
        if node.value.shape[dim] != length or any(p.index not in flow.of for p in parts):
            continue
        cuts = [_worked_on(flow, flow.of[p.index], inside) for p in parts]
        wheres = [_where(flow.nodes[cut]) if cut is not None else None for cut, _ in cuts]
        offsets = [sum(p.shape[dim] for p in parts[:k]) for k in range(len(parts))]
        wanted = [(offset, p.shape[dim]) for offset, p in zip(offsets, parts, strict=True)]
        if [where[1:] if where else None for where in wheres] != wanted:
            continue
        if len({where[0] for where in wheres if where}) == 1 and len({weights for _, weights in cuts}) == 1:
            found |= {cut for cut, _ in cuts if cut is not None}
    return frozenset(found)


def _worked_on(flow: Flow, part: int, inside: set[int]) -> tuple[int | None, frozenset[str]]:
    """The one slice that a part is computed from, None if there is none or another value comes in, and the weights."""
    cuts: set[int] = set()
    weights: set[str] = set()
    seen, stack = {part}, [part]
    while stack:
        i = stack.pop()
        node = flow.nodes[i]
        if i not in inside:
            return None, frozenset()
        if _where(node) is not None:
            cuts.add(i)
            continue
        weights |= {name for v in node.operands for name in flow.parameter_names(v)}
        new = [j for j in node.inputs if j not in seen]
        seen |= {*new}
        stack += new
    return (cuts.pop(), frozenset(weights)) if len(cuts) == 1 else (None, frozenset())
