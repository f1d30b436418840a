"""Findings by comparison: layers unlike their neighbours, kinds of norm that are mixed, weights that nothing reads."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from sublayer.audit.result import Audit, Finding, LayerAudit, Stack
from sublayer.audit.sentences import said
from sublayer.audit.spans import layers_text

Placed = tuple[str, str, str, str, str]  # severity, rule, layers, place, message

COMPARED = ("heads", "kv_heads", "head_dim", "output_projection", "qk_norm", "width", "gated", "activation", "experts")
STREAM_PLACES = ("input of", "output of", "stream")
MOST_NAMES = 6  # modules that one finding lists
NUMBER = re.compile(r"(?<![\w.])\d+(\.\d+)?(e-?\d+)?")


def among_neighbours(stack: Stack) -> Iterator[Placed]:
    """Layers that differ from most: in their equation, else in their sub-layers."""
    known = [layer for layer in stack.layers if layer.equation]
    if len(known) < 3:
        return
    # Factors may differ from layer to layer on purpose.
    keys = [NUMBER.sub("#", layer.equation) for layer in known]
    equations = {layer.index: layer.equation for layer in known}
    odd = _odd(known, keys)
    if odd:
        usual = next(layer for layer in known if layer.index not in odd)
        alone = _irregular(sorted(odd), [layer.index for layer in known])
        values = {"here": equations[min(odd)], "count": len(known) - len(odd), "usual": usual.equation}
        message = said("odd-layer" if alone else "odd-layer (pattern)", what="the equation", **values)
        yield "warning" if alone else "note", "odd-layer", layers_text(sorted(odd)), "equation", message
        return
    if len(set(keys)) > 1:
        return
    facts = [_facts(layer) for layer in known]
    for name in sorted({n for f in facts for n in f}):
        odd = _odd(known, [repr(f.get(name)) for f in facts])
        if len(odd) == 1 and _irregular(sorted(odd), [layer.index for layer in known]):
            here = next(f for layer, f in zip(known, facts, strict=True) if layer.index in odd).get(name)
            others = next(f for layer, f in zip(known, facts, strict=True) if layer.index not in odd).get(name)
            op, _, what = name.partition(" ")
            message = said("odd-layer", what=what, here=here, count=len(known) - 1, usual=others)
            yield "warning", "odd-layer", layers_text(sorted(odd)), op, message


def _odd(layers: Sequence[LayerAudit], keys: Sequence[str]) -> set[int]:
    """Indices of the layers outside the largest group; empty if there is none that holds two thirds."""
    groups: dict[str, list[int]] = {}
    for layer, key in zip(layers, keys, strict=True):
        groups.setdefault(key, []).append(layer.index)
    most = max(groups.values(), key=len)
    if len(groups) == 1 or 3 * len(most) < 2 * len(layers):
        return set()
    return {layer.index for layer in layers} - set(most)


def _irregular(odd: Sequence[int], all_layers: Sequence[int]) -> bool:
    """Whether one layer, or two that make no pattern, stand inside the stack: not at its ends, not every k-th."""
    first, last = all_layers[0], all_layers[-1]
    return len(odd) == 1 and first < odd[0] < last


def _facts(layer: LayerAudit) -> dict[str, Any]:
    found: dict[str, Any] = {}
    count: dict[str, int] = {}
    for branch in layer.branches:
        count[branch.op] = count.get(branch.op, 0) + 1
        name = branch.op if count[branch.op] == 1 else f"{branch.op}_{count[branch.op]}"
        for key in COMPARED:
            if key in branch.details and key != "experts":
                found[f"{name} {key}"] = branch.details[key]
    return found


# --- kinds of norm ------------------------------------------------------------------------------------------------


def _stream_kinds(layer: LayerAudit) -> dict[str, list[str]]:
    """Kind -> places of the norms that stand on or beside the stream."""
    found: dict[str, list[str]] = {}
    for norm in layer.norms:
        if norm.where.startswith(STREAM_PLACES) and norm.kind in ("layernorm", "rmsnorm"):
            found.setdefault(norm.kind, []).append(norm.where)
    return found


def norm_kinds(stack: Stack) -> Iterator[Placed]:
    """LayerNorm beside RMSNorm, which leaves the mean."""
    mixed: dict[str, list[int]] = {}
    single: dict[str, list[int]] = {}
    for layer in stack.layers:
        kinds = _stream_kinds(layer)
        if len(kinds) > 1:
            text = f"{' and '.join(dict.fromkeys(kinds['layernorm']))}|{' and '.join(dict.fromkeys(kinds['rmsnorm']))}"
            mixed.setdefault(text, []).append(layer.index)
        elif kinds:
            single.setdefault(next(iter(kinds)), []).append(layer.index)
    for text, where in mixed.items():
        centred, plain = text.split("|")
        yield "warning", "mixed-norms", layers_text(where), plain, said("mixed-norms", centred=centred, plain=plain)
    if len(single) == 2:
        few, many = sorted(single, key=lambda kind: len(single[kind]))
        indices = single[few]
        interior = len(indices) == 1 and 0 < indices[0] < len(stack.layers) - 1
        message = said("mixed-norms (layers)", few=few, many=many)
        yield "warning" if interior else "note", "mixed-norms", layers_text(indices), "norm", message
    ends = {norm.kind for norm in stack.norms if norm.kind in ("layernorm", "rmsnorm")}
    if len(single) == 1 and not mixed and ends - set(single):
        kind, usual = next(iter(ends - set(single))), next(iter(single))
        places = " and ".join(sorted({n.where for n in stack.norms if n.kind == kind}))
        yield "note", "mixed-norms", places, "norm", said("mixed-norms (layers)", few=kind, many=usual)


# --- in vain ------------------------------------------------------------------------------------------------------


def in_vain(audit: Audit) -> list[Finding]:
    """Parameters that reach no output, gathered over layers, and inputs that change none."""
    paths = [
        (layer.module, layer, f"{stack.name} " if len(audit.stacks) > 1 else "")
        for stack in audit.stacks
        for layer in stack.layers
        if layer.module
    ]
    forgotten = {  # of sub-layers that are reported as dropped
        name
        for stack in audit.stacks
        for layer in stack.layers
        for branch in layer.dropped
        for name in branch.parameters
    }
    layers_of: dict[tuple[str, str, bool], list[int]] = {}  # (stack, module within the layer, chosen by data) -> layers
    outside: dict[str, None] = {}
    for name in audit.dead_parameters:
        owner = next((entry for entry in paths if name.startswith(entry[0] + ".")), None)
        if owner is None:
            outside.setdefault(name.rpartition(".")[0] or name)
        elif name not in forgotten:
            path, layer, prefix = owner
            inside = name[len(path) + 1 :]
            # Which experts the data chooses is not told by a run on made-up data.
            chosen = any(branch.op == "moe" for branch in layer.branches)
            layers_of.setdefault((prefix, inside.rpartition(".")[0] or inside, chosen), []).append(layer.index)
    gathered: dict[tuple[str, str, bool], list[str]] = {}  # (stack, layers, chosen by data) -> modules
    for (prefix, place, chosen), where in layers_of.items():
        gathered.setdefault((prefix, layers_text(where), chosen), []).append(place)
    found = [
        Finding("note", "dead-parameter", prefix + where, _listed(places), said("dead-parameter (chosen)"))
        if chosen
        else Finding("warning", "dead-parameter", prefix + where, _listed(places), said("dead-parameter"))
        for (prefix, where, chosen), places in gathered.items()
    ]
    if outside:
        message = said("dead-parameter (outside)")
        found.append(Finding("note", "dead-parameter", "model", _listed(list(outside)), message))
    for name in audit.dead_inputs:
        found.append(Finding("note", "dead-input", "model", name, said("dead-input")))
    return found


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
