"""From ordered steps to a section: sites get their names, sums their streams, values their variables."""

from collections import Counter

from sublayer.notation.graph import BRANCHES, NORMS, PLAIN
from sublayer.notation.program import Add, Call, Section, Site, Statement, Step

MAX_INLINE = 12  # calls nested in one expression before an inner value gets a name


def build(
    inputs: tuple[str, ...],
    steps: list[tuple[str, tuple[int, str], tuple[str, ...]] | Add],
    outputs: tuple[tuple[str, str], ...],
) -> Section:
    """Name the sites, find the streams and plan the statements of a section.

    ``steps`` holds sums, and calls as ``(value, (group, op), args)`` where equal groups share parameters.
    """
    named = _with_sites(inputs, steps, outputs)
    draft = Section(inputs, tuple(named), outputs, ())
    streams = _residual_streams(draft)
    final = [Add(s.value, s.terms, streams.get(s.value)) if isinstance(s, Add) else s for s in named]
    return Section(inputs, tuple(final), outputs, plan(draft))


def _with_sites(
    inputs: tuple[str, ...],
    steps: list[tuple[str, tuple[int, str], tuple[str, ...]] | Add],
    outputs: tuple[tuple[str, str], ...],
) -> list[Step]:
    """Give every parameter set a name that says what it reads or writes."""
    count = Counter(s[1] for s in steps if not isinstance(s, Add) and s[1][0] >= 0)
    shared = [key for key in dict.fromkeys(s[1] for s in steps if not isinstance(s, Add)) if count[key] > 1]
    label = {key: _letters(i) for i, key in enumerate(shared)}
    # A first pass with plain names, to look at the neighbourhood of each call.
    plain: list[Step] = [
        s if isinstance(s, Add) else Call(s[0], Site(f"{s[1][1]} {i}", s[1][1]), s[2]) for i, s in enumerate(steps)
    ]
    draft = Section(inputs, tuple(plain), outputs, ())
    sites: dict[object, Site] = {}
    taken: Counter[str] = Counter()
    result: list[Step] = []
    for i, (step, draft_step) in enumerate(zip(steps, plain, strict=True)):
        if isinstance(step, Add) or isinstance(draft_step, Add):
            result.append(draft_step)
            continue
        value, (group, op), args = step
        key: object = (group, op) if group >= 0 else i
        if key not in sites:
            role = _role(draft, draft_step, outputs)
            taken[role] += 1
            name = role if taken[role] == 1 else f"{role}_{taken[role]}"
            sites[key] = Site(name, op, label.get((group, op), ""))
        result.append(Call(value, sites[key], args))
    return result


def _role(section: Section, call: Call, outputs: tuple[tuple[str, str], ...]) -> str:
    """``attn`` and ``ffn`` for the sub-layers; norms by what they write to or read from: attn_in_norm, ffn_out_norm,
    stream_norm."""
    op = call.site.op
    if op in BRANCHES:
        return op
    kind = "norm" if op in NORMS else op
    source = section.branch(call.args[0])
    if source is not None:
        return f"{source.site.op}_out_{kind}"
    readers = _branch_readers(section, call.value, frozenset(v for _, v in outputs))
    if readers:
        return "_".join(dict.fromkeys(readers)) + f"_in_{kind}"
    return f"stream_{kind}"


def _branch_readers(section: Section, value: str, outputs: frozenset[str]) -> list[str]:
    """Operators of the sub-layers that alone read ``value``, seen through norms and factors; empty if anything else
    reads it."""
    if value in outputs:
        return []
    readers: list[str] = []
    for user in section.users[value]:
        if isinstance(user, Call) and user.site.op in BRANCHES:
            readers.append(user.site.op)
        elif isinstance(user, Call) or len(user.terms) == 1:
            inner = _branch_readers(section, user.value, outputs)
            if not inner:
                return []
            readers += inner
        else:
            return []
    return sorted(readers, key=BRANCHES.index)


def _residual_streams(section: Section) -> dict[str, str]:
    """For each sum, the term that the others are computed from; else the stream that the sum updates."""
    destination: dict[str, str] = {}
    for stream, value in reversed(section.outputs):
        stack = [value]
        while stack:
            v = stack.pop()
            if destination.get(v) == stream:
                continue
            destination[v] = stream
            step = section.step.get(v)
            if isinstance(step, Add):
                stack += list(step.args)
            elif isinstance(step, Call) and step.site.op in (*NORMS, *PLAIN):
                stack.append(step.args[0])
    found = {}
    for step in section.steps:
        if not isinstance(step, Add) or len(step.terms) < 2:
            continue
        terms = step.args
        # A residual may pass through a learned factor on its way, as in Admin: scale(x) + attn(x).
        source = {t: _source(section, t) for t in terms}
        roots = [t for t in terms if all(t == o or t in section.ancestors[o] for o in terms)]
        roots += [t for t in terms if all(t == o or source[t] in section.ancestors[o] for o in terms)]
        own = [t for t in terms if source[t] in section.inputs and source[t] == destination.get(step.value)]
        given = [t for t in terms if source[t] in section.inputs]
        # A running sum such as r + (partial sum of r) keeps the partial sum as its stream.
        partial = [t for t in terms if isinstance(section.step.get(t), Add) and t in found]
        # A branch is no stream, unless the other terms are computed from it.
        choice = roots or own or partial or (given if len(given) == 1 else [])
        if choice:
            found[step.value] = choice[0]
    return found


def _source(section: Section, value: str) -> str:
    """The value before learned factors and scalars."""
    step = section.step.get(value)
    while (isinstance(step, Call) and step.site.op in PLAIN) or (isinstance(step, Add) and len(step.terms) == 1):
        value = step.args[0]
        step = section.step.get(value)
    return value


def _letters(i: int) -> str:
    return "abcdefghijklmnopqrstuvwxyz"[i] if i < 26 else f"l{i}"


_LOCAL = {"attn": "a", "dot": "a", "ffn": "f", "cross": "c", "mixer": "m", "moe": "m", "op": "m"}


def plan(section: Section) -> tuple[Statement, ...]:
    """Which values get a name, and which variable holds each: a stream's own name as soon as its old value is done
    with."""
    named = _named(section)
    order = [s.value for s in section.steps if s.value in named]
    reads = {v: _leaves(section, v, named) for v in order}
    final = {
        stream: ({v} if v in named or v in section.inputs else _leaves(section, v, named))
        for stream, v in section.outputs
    }
    targets = dict(section.outputs)
    variable = {v: v for v in section.inputs}  # value -> variable
    holder = {v: v for v in section.inputs}  # variable -> value
    statements = []

    def live_after(position: int) -> set[str]:
        later = [reads[v] for v in order[position + 1 :]]
        return set().union(*later, *final.values())

    def local(step: Step | None, live: set[str]) -> str:
        base = "h"
        if isinstance(step, Call):
            base = _LOCAL.get(step.site.op, "h" if step.site.op in NORMS else "v")
        number = 1
        while holder.get(name := base if number == 1 else f"{base}{number}") in live and name in holder:
            number += 1
        return name

    for i, value in enumerate(order):
        live = live_after(i)
        mine = [s for s, v in section.outputs if v == value]
        free = [s for s in (mine or ["x"]) if s not in holder or holder[s] not in live]
        target = free[0] if free else local(section.step.get(value), live)
        statements.append(Statement(target, value))
        variable[value], holder[target] = target, value
    pending = [s for s, v in section.outputs if holder.get(s) != v]
    pending.sort(key=lambda s: (s == "x") == ("x" in section.inputs))
    while pending:
        clear = [s for s in pending if not any(holder.get(s) in final[o] for o in pending if o != s)]
        if clear:
            stream = clear[0]
            pending.remove(stream)
            statements.append(Statement(stream, targets[stream]))
            holder[stream] = targets[stream]
            continue
        # Streams that trade places: keep one value aside first.
        stream = pending[0]
        value = targets[stream]
        live = set().union(*(final[s] for s in pending)) | {value}
        name = local(section.step.get(value), live)
        statements.append(Statement(name, value))
        holder[name] = value
        final[stream] = {value}
        if value in section.inputs:
            holder[value] = ""  # its old variable is free: reads now go to the copy
    if not any(s.target == "x" for s in statements):
        statements.append(Statement("x", targets["x"]))
    return tuple(statements)


def _named(section: Section) -> set[str]:
    """Values read more than once, and inner values of expressions that would nest too deeply."""
    uses: Counter[str] = Counter(v for _, v in section.outputs)
    for step in section.steps:
        uses.update(step.args)
    named = {s.value for s in section.steps if uses[s.value] > 1}
    height: dict[str, int] = {}
    for step in section.steps:
        inner = max((height.get(a, 0) for a in step.args if a not in named), default=0)
        height[step.value] = inner + 1
        if height[step.value] >= MAX_INLINE:
            named.add(step.value)
    return named


def _leaves(section: Section, value: str, named: set[str]) -> set[str]:
    """Inputs and named values that the statement computing ``value`` reads."""
    found: set[str] = set()
    stack = list(section.step[value].args) if value in section.step else [value]
    while stack:
        v = stack.pop()
        if v in named or v in section.inputs:
            found.add(v)
        else:
            stack += section.step[v].args
    return found
