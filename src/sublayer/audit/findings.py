"""Findings: what in the wiring of a model is broken, or unusual and often a mistake.

Every rule reads the audit's data only. An error is kept for what no working design does; what some published model does
on purpose is a warning or a note.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise

from sublayer.audit.broken import broken_shape
from sublayer.audit.oddities import among_neighbours, in_vain, norm_kinds
from sublayer.audit.result import SEVERITIES, Audit, Finding, LayerAudit, Stack
from sublayer.audit.sentences import said
from sublayer.audit.spans import layers_text
from sublayer.notation.explain import placements
from sublayer.notation.graph import BRANCHES, NORMS
from sublayer.notation.paths import origin, passes, residual_term, spine
from sublayer.notation.program import Add, Call, Section

__all__ = ["broken_shape", "findings"]

Told = tuple[str, str, str, str]  # severity, rule, place, message
LayerRule = Callable[[Stack, LayerAudit, Section], Iterator[Told]]

KNOWN = ("attn", "cross", "ffn", "moe")  # sub-layers that always have a residual; a mixer may pool
GROWS = 2.0  # factor on the stream over all layers from which it is told


def findings(audit: Audit) -> tuple[Finding, ...]:
    """Everything worth a look, most severe first; equal findings of several layers are one."""
    found: list[Finding] = []
    for stack in audit.stacks:
        prefix = f"{stack.name} " if len(audit.stacks) > 1 else ""
        gathered: dict[Told, list[int]] = {}
        for layer in stack.layers:
            for told in _of_layer(stack, layer):
                gathered.setdefault(told, []).append(layer.index)
        found += [
            Finding(severity, rule, prefix + layers_text(where), place, message)
            for (severity, rule, place, message), where in gathered.items()
        ]
        for severity, rule, where_text, place, message in (
            *among_neighbours(stack),
            *norm_kinds(stack),
            *_of_stack(audit, stack),
        ):
            found.append(Finding(severity, rule, (prefix + where_text).strip(), place, message))
    found += in_vain(audit)
    found = list(dict.fromkeys(found))
    return tuple(sorted(found, key=lambda f: SEVERITIES.index(f.severity)))


def _of_layer(stack: Stack, layer: LayerAudit) -> Iterator[Told]:
    if layer.unknown or layer.design is None:
        reason = layer.unknown or "its equation is not one that the notation takes"
        yield "note", "unknown-layer", "equation", said("unknown-layer", reason=reason)
    for branch in layer.dropped:
        # The last layer may well compute what a next one would have read: global tokens, say.
        others = any(b.op == branch.op for other in stack.layers if other is not layer for b in other.dropped)
        last = len(stack.layers) > 1 and layer is stack.layers[-1] and not others
        message = said("branch-dropped", what=_relative(branch.module, layer))
        yield "warning" if last else "error", "branch-dropped", branch.op, message
    yield from _projection(stack, layer)
    yield from _one_norm_twice(layer)
    section = _block(layer)
    if section is not None:
        for rule in (_normed_residual, _no_residual, _norm_on_skip, _norm_of_norm, _stream_norm):
            yield from rule(stack, layer, section)


def _block(layer: LayerAudit) -> Section | None:
    return layer.design.blocks[0][1] if layer.design is not None else None


def _relative(module: str, layer: LayerAudit) -> str:
    """A module's path within its layer, so that equal findings of several layers read the same."""
    if layer.module and module.startswith(layer.module + "."):
        return module[len(layer.module) + 1 :]
    return "a sub-layer" if module == layer.module or not module else module


# --- the residual -------------------------------------------------------------------------------------------------


def _normed_residual(stack: Stack, layer: LayerAudit, section: Section) -> Iterator[Told]:
    """``n = norm(x); x = n + F(n)``."""
    if layer.design is None:
        return
    found = placements(layer.design)
    normed = [p for p in found if p.residual == "normed" and _on_spine(section, p.site)]
    if not normed or _carried(section):
        return
    # HybridNorm: one sub-layer is post-norm, and the next one reads and adds to that norm's result. The norm is then
    # the sum's, not an input norm whose residual was taken from the wrong side.
    chosen = all(p.sum_norm and not p.input_norm and p.residual == "stream" for p in found if p not in normed)
    chosen = chosen and len(normed) < len(found)
    for p in normed:
        if chosen:
            yield "note", "residual-from-norm", p.site, said("residual-from-norm (hybrid)")
        else:
            yield "warning", "residual-from-norm", p.site, said("residual-from-norm")


def _on_spine(section: Section, site: str) -> bool:
    """Whether a sub-layer's result is added to the stream, not to what another sub-layer reads."""
    path = set(spine(section, "x"))
    values = [s.value for s in section.steps if isinstance(s, Call) and section.label(s.value) == site]
    while values and not any(isinstance(section.step[v], Add) for v in values):
        values = [u.value for v in values for u in section.users[v]]
    return not values or any(v in path for v in values)


def _carried(section: Section) -> bool:
    """Whether more than one stream goes through: the untouched path may be another one."""
    return len(section.outputs) > 1


def _no_residual(stack: Stack, layer: LayerAudit, section: Section) -> Iterator[Told]:
    around = _bare(section)
    if not around:
        return
    siblings = [s for other in stack.layers if (s := _block(other)) is not None]
    whole = all(sum(map(len, _bare(s))) == _sublayers(s) for s in siblings)
    sure = _surely_lost(stack, layer, section)
    for names in around:
        site = " + ".join(names)
        known = sure and all(name.partition("_")[0].partition("[")[0] in KNOWN for name in names)
        if whole:
            yield "note", "no-residual", site, said("no-residual (everywhere)")
        else:
            named = any(name.partition("_")[0].partition("[")[0] in KNOWN for name in names)
            projected = any(_projects(section, s) for s in section.steps if isinstance(s, Add))
            if not projected and (known or not _passes_elsewhere(layer, section)):
                severity = "error" if known else "warning" if named else "note"
                yield severity, "no-residual", site, said("no-residual")


def _passes_elsewhere(layer: LayerAudit, section: Section) -> bool:
    """Whether a layer changes the width, as one that begins a stage does; or whether another stream passes it: a class
    token may begin as nothing but what it reads."""
    resized = any(b.reads and b.writes and b.reads != b.writes for b in layer.branches)
    carried = any(name != "x" and section.step.get(value) is None for name, value in section.outputs)
    return resized or carried


def _projects(section: Section, step: Add) -> bool:
    """Whether all terms of a sum are sub-layers, one of which is a pool, a convolution or a lone matrix: a skip that
    other places or channels need."""
    calls = [section.branch(t) for t in step.args]
    if len(calls) < 2 or any(t in section.ancestors[o] for t in step.args for o in step.args if o != t):
        return False
    return all(calls) and any(c is not None and c.site.op in ("op", "mixer") for c in calls)


def _surely_lost(stack: Stack, layer: LayerAudit, section: Section) -> bool:
    """Whether a residual is missing rather than not meant.

    It is where all layers are alike, so that other sub-layers have one, or where most layers have the same sub-layers
    with residuals. A first layer of a kind of its own may well have none.
    """
    if len(stack.layers) > 1 and all(other.equation == layer.equation for other in stack.layers):
        return True
    ops = [s.site.op for s in section.steps if isinstance(s, Call) and s.site.op in BRANCHES]
    alike = 0
    for other in stack.layers:
        block = _block(other)
        if block is not None and not _bare(block):
            alike += sorted(ops) == sorted(
                s.site.op for s in block.steps if isinstance(s, Call) and s.site.op in BRANCHES
            )
    return 2 * alike > len(stack.layers)


def _sublayers(section: Section) -> int:
    return sum(isinstance(s, Call) and s.site.op in BRANCHES for s in section.steps)


def _bare(section: Section) -> list[tuple[str, ...]]:
    """Sub-layers through which every way of the streams to the result goes: one, or several in parallel together."""
    calls = [s for s in section.steps if isinstance(s, Call) and s.site.op in BRANCHES]
    names = {c.value: section.label(c.value) for c in calls}
    alone: list[tuple[str, ...]] = [(names[c.value],) for c in calls if not _reaches(section, {c.value})]
    if alone or not calls or _reaches(section, set(names)):
        return alone
    return [tuple(n for v, n in names.items() if _ends(section, v))]


def _ends(section: Section, value: str) -> bool:
    """Whether a sub-layer's output gets to the result past no other sub-layer."""
    return not any(
        isinstance(s, Call) and s.site.op in BRANCHES and value in section.ancestors[s.value] for s in section.steps
    )


def _reaches(section: Section, closed: set[str]) -> bool:
    """Whether a stream gets from the layer's input to the result ``x`` through none of the values ``closed``."""
    stack, seen = [dict(section.outputs)["x"]], set()
    while stack:
        value = stack.pop()
        if value in seen or value in closed:
            continue
        seen.add(value)
        step = section.step.get(value)
        if step is None:
            if value != "e":
                return True
            continue
        stack += step.args
    return False


# --- norms --------------------------------------------------------------------------------------------------------


def _is_norm(section: Section, value: str) -> bool:
    step = section.step.get(value)
    return isinstance(step, Call) and step.site.op in NORMS


def _norm_on_skip(stack: Stack, layer: LayerAudit, section: Section) -> Iterator[Told]:
    """``x = norm(x) + F(..)`` where F does not read that norm."""
    for step in section.steps:
        if not isinstance(step, Add) or len(step.terms) < 2:
            continue
        skip = residual_term(section, step)
        others = [t for t in step.args if t != skip and section.branch(t) is not None]
        if skip is None or not others or section.branch(skip) is not None:
            continue
        value = skip
        while passes(section.step.get(value)):
            if _is_norm(section, value) and not any(value in section.ancestors[t] for t in others):
                yield "warning", "norm-on-skip", section.label(others[0]), said("norm-on-skip")
                break
            value = section.step[value].args[0]


def _norm_of_norm(stack: Stack, layer: LayerAudit, section: Section) -> Iterator[Told]:
    """``norm(norm(x))`` where nothing else reads the inner one."""
    for step in section.steps:
        if not isinstance(step, Call) or step.site.op not in NORMS or step.site.op == "dyt":
            continue
        inner = step.args[0]
        while passes(section.step.get(inner)) and not _is_norm(section, inner) and len(section.users[inner]) == 1:
            inner = section.step[inner].args[0]
        if _is_norm(section, inner) and len(section.users[inner]) == 1 and inner not in dict(section.outputs).values():
            text = section.expression(step.value)
            yield "warning", "norm-twice", text if len(text) < 40 else "norm(norm(..))", said("norm-twice")


def _one_norm_twice(layer: LayerAudit) -> Iterator[Told]:
    """One norm's parameters at two places of one layer."""
    places: dict[tuple[str, ...], list[str]] = {}
    for norm in layer.norms:
        if norm.parameters and norm.where.startswith(("input of", "output of", "stream")):
            places.setdefault(norm.parameters, []).append(norm.where)
    shared = [" and ".join(dict.fromkeys(where)) for where in places.values() if len(where) > 1]
    section = _block(layer)
    if section is not None and not shared:
        calls = Counter(s.site for s in section.steps if isinstance(s, Call) and s.site.op in NORMS and s.site.label)
        shared = [site.call for site, count in calls.items() if count > 1]
    for where in shared:
        yield "warning", "norm-shared", where, said("norm-shared")


def _stream_norm(stack: Stack, layer: LayerAudit, section: Section) -> Iterator[Told]:
    """A norm of one sum although every sub-layer has a norm of its own: the identity path is cut once a block."""
    if layer.design is None or _carried(section):
        return
    found = placements(layer.design)
    if not found or not all(p.input_norm or p.output_norm for p in found):
        return  # a post-norm, or one beside sub-layers without a norm
    path = spine(section, "x")
    sums = [v for v in path if isinstance(step := section.step.get(v), Add) and len(step.terms) > 1]
    cut = {origin(section, v): v for v in path if _is_norm(section, v)}
    normed = [v for v in sums if v in cut]
    if not normed or len(normed) == len(sums) > 1:
        return  # every sum is normed, as in Keel: a post-norm of its own kind
    if cut[normed[0]] == path[0]:
        before = _block(stack.layers[layer.index - 1]) if layer is stack.layers[-1] and layer.index else None
        if before is not None and not _is_norm(before, dict(before.outputs)["x"]):
            return  # the last layer only: the final norm, which is called there
        narrow = [b for b in layer.branches if b.op == "ffn" and (b.details.get("ratio") or 9) <= 1]
        beside = f"; the ffn beside it is narrowed to {narrow[0].details['ratio']:g} times the width" if narrow else ""
        yield "warning", "block-end-norm", "stream", said("block-end-norm", beside=beside)
        return
    step = section.step[normed[0]]
    writers = [section.label(t) for t in step.args if section.branch(t) is not None]
    yield "warning", "stream-norm", f"after {' + '.join(writers)}", said("stream-norm", after=" and ".join(writers))


# --- what a sub-layer lacks ---------------------------------------------------------------------------------------


def _projection(stack: Stack, layer: LayerAudit) -> Iterator[Told]:
    """Attention with several heads and no W_o: an error where the same attention of most like layers has one."""
    for place, branch in enumerate(layer.branches):
        heads = branch.details.get("heads")
        if branch.op not in ("attn", "cross") or branch.details.get("output_projection") is not False or heads == 1:
            continue
        alike = [
            other.branches[place].details.get("output_projection")
            for other in stack.layers
            if other.equation == layer.equation and len(other.branches) == len(layer.branches)
        ]
        most = 2 * alike.count(True) > len(alike)
        many = f"{heads} heads are" if heads else "heads are"
        rest = "the other layers have one" if most else "multi-head attention ends with one"
        severity = "error" if most else "warning"
        yield severity, "no-output-projection", branch.op, said("no-output-projection", heads=many, usual=rest)


# --- a stack as a whole -------------------------------------------------------------------------------------------

Placed = tuple[str, str, str, str, str]  # severity, rule, layers, place, message


def _of_stack(audit: Audit, stack: Stack) -> Iterator[Placed]:
    if stack.unknown and all(layer.design is not None for layer in stack.layers):
        yield "note", "unknown-stack", "model", "design", said("unknown-stack", reason=stack.unknown)
    yield from _no_final_norm(audit, stack)
    yield from _factors(stack)


def _no_final_norm(audit: Audit, stack: Stack) -> Iterator[Placed]:
    last = _block(stack.layers[-1]) if stack.layers else None
    if last is None or not stack.final or (stack is not audit.main and stack.name not in ("encoder", "decoder")):
        return
    if any(re.search(rf"\b{norm}(_\w+)?\(", stack.final) for norm in NORMS):
        return
    if any(_is_norm(last, v) for v in spine(last, "x")) or not any(s.op in NORMS for s in last.sites):
        return
    yield "warning", "no-final-norm", "final", "norm", said("no-final-norm")


def _factors(stack: Stack) -> Iterator[Placed]:
    """Constant factors on a residual that no norm takes back."""
    depth, total, where = len(stack.layers), 1.0, []
    for layer in stack.layers:
        section = _block(layer)
        if section is None:
            return
        factor, path = 1.0, spine(section, "x")
        for value, below in pairwise(path):
            step = section.step[value]
            if isinstance(step, Call) and step.site.op in NORMS:
                return
            if isinstance(step, Add):
                factor *= abs(next(c for c, t in step.terms if t == below).value(layer.index + 1, depth))
        if abs(factor - 1) > 1e-9:
            where.append(layer.index)
        total *= factor
    if where and not 1 / GROWS < total < GROWS:
        grows = f"grow {total:.3g} times" if total > 1 else f"shrink to {total:.3g} of itself"
        message = said("residual-factor", change=grows, depth=depth)
        yield "note", "residual-factor", layers_text(where), "residual", message
