"""Where, in a real run of any model, the values of its equations can be seen.

An audit says which values of a traced run the terms and sums of each equation are. Real kernels are not the traced
ones, so a value is looked for only at the borders of what it is: where a sum reads it, where a module is given it or
hands it on, or as the result of a sum or norm; each told by the module's path, which call of it this is, the operator,
and how many calls of that operator with a result of that shape came before it in the module's own code.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from sublayer.audit import vocabulary as words
from sublayer.audit.axes import CHANNELS, roles
from sublayer.audit.flow import Flow
from sublayer.audit.located import Located, LocatedSection, LocatedStack, values_of
from sublayer.audit.tape import Tape, Value

Call = tuple[str, int]  # path of a module, and which call of it
Key = tuple[int, int]  # stack, node of its flow
SUMS = ("add", "mul", "addcmul", "lerp")
MIXES = ("sdpa", "softmax")


@dataclass(frozen=True)
class Sight:
    """One place where a value can be seen.

    Attributes:
        key: whose value it is.
        call: the module call.
        what: ``argument`` or ``result`` of an operator in the module's own code; ``given`` or ``returned``: what the
            call is given by position, or hands on.
        op, likeness, ordinal: the operator, the number of axes and the last size of its result, and which of its calls.
        position: which argument; of ``given`` which of the tensors.
        channels: axis of the channels.
        swapped: whether positions come before rows.
    """

    key: Key
    call: Call
    what: Literal["argument", "result", "given", "returned"]
    op: str = ""
    likeness: tuple[int, int] = (0, 0)
    ordinal: int = 0
    position: int = 0
    channels: int = -1
    swapped: bool = False


@dataclass(frozen=True)
class Mix:
    """One attention: the module call in which its shares are computed, and which of those of the call it is."""

    stack: int
    layer: int
    site: str
    call: Call
    ordinal: int


@dataclass
class Plan:
    """Everything to look for in a run."""

    sights: list[Sight] = field(default_factory=list)
    mixes: list[Mix] = field(default_factory=list)
    lost: dict[Key, str] = field(default_factory=dict)  # nodes that cannot be looked for, with the reason


class Frames:
    """The module calls of a tape, and the calls of operators in each one's own code."""

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self.call: dict[int, Call] = {}
        count: dict[str, int] = defaultdict(int)
        for frame in tape.frames[1:]:
            self.call[frame.index] = (frame.path, count[frame.path])
            count[frame.path] += 1
        self.ordinal: dict[int, int] = {}  # value -> place among its like
        self.mixes: dict[int, int] = {}
        seen: dict[tuple[int, str, int, int], int] = defaultdict(int)
        mixed: dict[int, int] = defaultdict(int)
        self.last: dict[int, int] = {}  # frame -> last value made within it
        self.readers: dict[int, list[Value]] = defaultdict(list)
        self.results: dict[tuple[int, int], Value] = {}
        for value in tape.values:
            if value.kind != "call" or value.func is None or value.output != 0:
                continue
            like = (value.frame, value.name, *likeness(value.shape))
            self.ordinal[value.index] = seen[like]
            seen[like] += 1
            if words.KIND.get(value.name) in MIXES and len(value.shape) > 2:
                self.mixes[value.index] = mixed[value.frame]
                mixed[value.frame] += 1
            for source in value.sources:
                self.readers[source.index].append(value)
        for value in tape.values:
            if value.kind == "call":
                for around in tape.ancestry(value.frame):
                    self.last[around] = value.index


def likeness(shape: tuple[int, ...]) -> tuple[int, int]:
    """What a result is told from others of its operator by: axes, and the size of the last one."""
    return len(shape), shape[-1] if shape else 0


def plan(found: Located, wanted: dict[int, dict[int, set[str]]]) -> tuple[Plan, dict[tuple[int, int, str], Key]]:
    """Where to look.

    Args:
        found: the traced model.
        wanted: for each stack, and each of its sections by place, the values to see.

    Returns:
        The plan, and for each (stack, place of the section, value) the key of the node that holds it.
    """
    frames = Frames(found.tape)
    made = Plan()
    of: dict[tuple[int, int, str], Key] = {}
    done: set[Key] = set()
    for s, sections in wanted.items():
        stack = found.stacks[s]
        for place, names in sections.items():
            section = stack.sections[place]
            for name in sorted(names):
                if not section.nodes.get(name):
                    continue
                node = section.nodes[name][0][0]
                key = of[s, place, name] = (s, node)
                if key in done:
                    continue
                done.add(key)
                sight = next(_sights(stack, frames, key), None)
                if sight is None:
                    made.lost[key] = "the model never has it as one value that can be seen from outside"
                else:
                    made.sights.append(sight)
            made.mixes += _mixes(s, stack, section, frames)
    return made, of


def sight_of(found: Located, s: int, node: int, made: bool) -> Sight | None:
    """Where the value of a node can be seen; ``made``: where it is made, so that another can take its place for all
    that reads it."""
    sights = _sights(found.stacks[s], Frames(found.tape), (s, node))
    return next((sight for sight in sights if not made or sight.what in ("result", "returned")), None)


def _sights(stack: LocatedStack, frames: Frames, key: Key) -> Iterator[Sight]:
    """Places of one node, the surest first."""
    flow, node = stack.flow, key[1]
    width = flow.nodes[node].width
    whole = [v for v in values_of(flow, node) if _channels(flow, v) is not None and _size(flow, v) == width]
    for value in whole:
        for reader in frames.readers[value.index]:
            if words.KIND.get(reader.name) not in SUMS or reader.frame not in frames.call:
                continue
            position = next((k for k, a in enumerate(reader.args) if a is value), None)
            if position is not None and _is_sum(flow, reader):
                yield _sight(stack, frames, key, value, "argument", reader, position)
    inside = {v.index for v in whole}
    for frame in frames.tape.frames[1:]:
        for position, index in enumerate(frame.given):
            if index in inside:
                value = frames.tape.values[index]
                yield _border(stack, frames, key, value, "given", frame.index, position)
    for value in whole:
        if words.KIND.get(value.name) == "add" and value.index in frames.ordinal and value.frame in frames.call:
            yield _sight(stack, frames, key, value, "result", value, 0)
    for value in whole:
        for around in frames.tape.ancestry(value.frame)[:-1]:
            if frames.last.get(around) == value.index:
                yield _border(stack, frames, key, value, "returned", around, 0)
    for value in whole:
        if words.KIND.get(value.name) not in ("same", None) and value.index in frames.ordinal:
            if value.frame in frames.call:
                yield _sight(stack, frames, key, value, "result", value, 0)


def _is_sum(flow: Flow, reader: Value) -> bool:
    place = flow.of.get(reader.index)
    return place is not None and flow.nodes[place].kind == "sum"


def _channels(flow: Flow, value: Value) -> int | None:
    """The axis of the channels; None if that is not one axis."""
    if not flow.pictured:
        return -1 if value.shape else None
    axes = flow.axes.get(value.index)
    if axes is None:
        return None
    places = [k for k, role in enumerate(axes) if roles((role,)) == {CHANNELS}]
    return places[0] - len(value.shape) if len(places) == 1 else None


def _size(flow: Flow, value: Value) -> int:
    axis = _channels(flow, value)
    return value.shape[axis] if axis is not None else 0


def _sight(
    stack: LocatedStack,
    frames: Frames,
    key: Key,
    value: Value,
    what: Literal["argument", "result"],
    op: Value,
    position: int,
) -> Sight:
    axis = _channels(stack.flow, value)
    return Sight(
        key,
        frames.call[op.frame],
        what,
        op.name,
        likeness(op.shape),
        frames.ordinal[op.index],
        position,
        -1 if axis is None else axis,
        _swapped(stack, value),
    )


def _border(
    stack: LocatedStack,
    frames: Frames,
    key: Key,
    value: Value,
    what: Literal["given", "returned"],
    frame: int,
    position: int,
) -> Sight:
    axis = _channels(stack.flow, value)
    return Sight(
        key,
        frames.call[frame],
        what,
        position=position,
        channels=-1 if axis is None else axis,
        swapped=_swapped(stack, value),
    )


def _swapped(stack: LocatedStack, value: Value) -> bool:
    """Whether a value has its positions before its rows, other than the input."""
    rows, length = stack.flow.tokens
    return not stack.flow.pictured and len(value.shape) == 3 and rows != length and value.shape[:2] == (length, rows)


def _mixes(s: int, stack: LocatedStack, section: LocatedSection, frames: Frames) -> Iterator[Mix]:
    """The attentions of a section."""
    if section.section is None:
        return
    nodes = stack.flow.nodes
    names: dict[str, list[str]] = {}
    for call in section.section.sites:
        names.setdefault(call.op, []).append(call.name)
    count: dict[str, int] = defaultdict(int)
    for branch in section.branches:
        if branch.op not in ("attn", "dot", "cross"):
            continue
        sites = names.get(branch.op, [branch.op])
        site = sites[min(count[branch.op], len(sites) - 1)]
        count[branch.op] += 1
        for i in branch.content:
            value = nodes[i].value
            if nodes[i].kind in ("core", "softmax") and value.index in frames.mixes and value.frame in frames.call:
                yield Mix(s, section.layer, site, frames.call[value.frame], frames.mixes[value.index])
                break
