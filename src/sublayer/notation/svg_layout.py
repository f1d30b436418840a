"""Where everything in a block's diagram goes: rows from bottom to top, lanes from left to right.

Each value owns one lane, a vertical line, from the row where it is made to the row where it is last read, and no two
values share a lane in one row, so no line lies on another. The values of a stream lie on that stream's lane. A step in
another lane than the value it reads takes it in along a horizontal line just below itself (a call) or at its own height
(a sum), and a sum has a row to itself, so no line runs through a box.
"""

from dataclasses import dataclass, field
from itertools import chain, count

from sublayer.notation.graph import BRANCHES, NORMS
from sublayer.notation.paths import spine
from sublayer.notation.program import Add, Call, Section


@dataclass
class Item:
    """One mark of the diagram.

    Attributes:
        kind: "input", "box" (a sub-layer), "norm", "mark" (scale, gate, stop), "factor", "sum", "wire" (a value led to
            another lane) or "output".
        net: the value it makes.
        args: the values it reads; a sum has two, the first from straight below.
        text: its label.
        op: its operator.
        stream: the stream it belongs to, if any.
        rail: whether it lies on that stream's line.
        waits: values that must have been made in an earlier row or in the same one.
        row, lane: its place.
    """

    kind: str
    net: str
    args: list[str]
    text: str = ""
    op: str = ""
    stream: str = ""
    rail: bool = False
    waits: set[str] = field(default_factory=set)
    row: int = -1
    lane: int = 0


class Layout:
    """The items of one block with their places.

    Attributes:
        items: in the order of the section's steps.
        streams: ``x`` first.
        made: the item that makes each value.
        last: the row in which each value is last read; its own row if it never is.
        rows: number of rows.
    """

    def __init__(self, section: Section) -> None:
        builder = _Builder(section)
        self.items = builder.items
        self.streams = builder.streams
        self.made = {item.net: item for item in self.items}
        _schedule(self.items, self.made)
        self.rows = 1 + max(item.row for item in self.items)
        self.last = {item.net: item.row for item in self.items}
        for item in self.items:
            for arg in item.args:
                self.last[arg] = max(self.last[arg], item.row)
        _Lanes(self).assign()

    def row(self, number: int) -> list[Item]:
        """The items of one row."""
        return [item for item in self.items if item.row == number]

    def inherits(self, item: Item) -> str | None:
        """The value that reaches an item from straight below in its own lane, if one does."""
        return next((a for a in item.args if self.made[a].lane == item.lane), None)


class _Builder:
    """Turns steps into items: sums of two terms, factors as marks of their own, wires where a value changes lane."""

    def __init__(self, section: Section) -> None:
        self.section = section
        self.streams = tuple(s for s, _ in section.outputs)
        self.items: list[Item] = []
        self.net: dict[str, str] = {}  # value of the section -> value of the diagram
        # The stream that each value lies on. x comes first; a value lies on one stream only.
        self.path: dict[str, str] = {}
        self.before: dict[str, str] = {}  # the value below each one on its stream
        for stream in self.streams:
            above = ""
            for value in spine(section, stream):
                if value in self.path or (value in section.inputs and value != stream):
                    break
                self.path[value] = stream
                self.before[above] = value
                above = value
        for name in section.inputs:
            stream = name if name in self.streams else ""
            self._add(Item("input", name, [], name, stream=stream, rail=bool(stream)))
            self.net[name] = name
        for step in section.steps:
            self.net[step.value] = self._call(step) if isinstance(step, Call) else self._sum(step)
        for stream, value in section.outputs:
            self._add(Item("output", f"out {stream}", [self.net[value]], stream, stream=stream))
        self._lead_around()

    def _add(self, item: Item) -> str:
        self.items.append(item)
        return item.net

    def _call(self, call: Call) -> str:
        op = call.site.op
        kind = "box" if op in BRANCHES else "norm" if op in NORMS else "mark"
        stream = self.path.get(call.value, "")
        args = [self.net[a] for a in call.args]
        return self._add(Item(kind, call.value, args, call.site.call, op, stream, bool(stream)))

    def _sum(self, add: Add) -> str:
        stream = self.path.get(add.value, "")
        main = self._straight(add, stream)
        below: str | None = None
        sides = []
        for i, (scalar, term) in enumerate(add.terms):
            net = self.net[term]
            on_rail = term == main and bool(stream)
            if not scalar.is_one:
                text = f"({scalar})" if len(scalar.terms) > 1 else str(scalar)
                item = Item("factor", f"{add.value}.{i}", [net], text, stream=stream if on_rail else "", rail=on_rail)
                net = self._add(item)
            if term == main:
                below = net
            else:
                sides.append(net)
        if below is None:
            # Nothing comes from straight below: lead the first term there.
            below = self._add(Item("wire", f"{add.value}.w", [sides.pop(0)], stream=stream, rail=bool(stream)))
        for i, side in enumerate(sides):
            net = add.value if i == len(sides) - 1 else f"{add.value}+{i}"
            below = self._add(Item("sum", net, [below, side], "+", "sum", stream, bool(stream)))
        return below

    def _straight(self, add: Add, stream: str) -> str | None:
        """The term that comes from straight below: of a stream's sum the stream, else one that nothing else reads."""
        if stream:
            return self.before.get(add.value)
        own = [
            t
            for (c, t) in add.terms
            if t not in self.path and (not c.is_one or (t in self.section.step and self._reads(t) == 1))
        ]
        return own[0] if own else None

    def _reads(self, value: str) -> int:
        return len(self.section.users[value]) + sum(v == value for _, v in self.section.outputs)

    def _lead_around(self) -> None:
        """Make the next item of each stream wait for the other readers of a value, and lead later readers around it."""
        after: dict[str, set[str]] = {item.net: set() for item in self.items}  # what may not come before a value
        for item in self.items:
            for arg in item.args:
                after[arg].add(item.net)
        for item in [i for i in self.items if i.rail]:
            readers = [r for r in self.items if item.net in r.args]
            following = [r for r in readers if r.rail and r.stream == item.stream and r.args[0] == item.net]
            if not following:
                continue
            successor = following[0]
            late = []
            for reader in readers:
                if reader is successor:
                    continue
                if reader.kind == "output" or _reaches(after, successor.net, reader.net):
                    late.append(reader)
                else:
                    after[reader.net].add(successor.net)
                    successor.waits.add(reader.net)
            if late:
                wire = Item("wire", f"{item.net}.by", [item.net])
                wire.stream = next((r.stream for r in late if r.kind == "output"), "")
                for reader in late:
                    reader.args = [wire.net if a == item.net else a for a in reader.args]
                after[wire.net] = {r.net for r in late} | {successor.net}
                successor.waits.add(wire.net)
                self.items.insert(self.items.index(item) + 1, wire)


def _reaches(after: dict[str, set[str]], start: str, goal: str) -> bool:
    stack, seen = [start], set[str]()
    while stack:
        net = stack.pop()
        if net == goal:
            return True
        if net not in seen:
            seen.add(net)
            stack += after[net]
    return False


def _schedule(items: list[Item], made: dict[str, Item]) -> None:
    """Give every item a row: as low as what it reads and what it waits for allow, each sum in a row of its own."""
    for item in items:
        if item.kind == "input":
            item.row = 0
    row = 0
    waiting = [item for item in items if item.kind not in ("input", "output")]
    while waiting:
        row += 1
        ready = [i for i in waiting if all(0 <= made[a].row < row for a in i.args)]
        # A sum goes first, so that what it adds does not run on beside the stream.
        chosen = [i for i in ready if i.kind == "sum" and all(made[w].row >= 0 for w in i.waits)][:1]
        calls = [] if chosen else [i for i in ready if i.kind != "sum"]
        while not chosen:
            # An item may share its row with those that it waits for, but not come before them.
            nets = {i.net for i in calls}
            kept = [i for i in calls if all(made[w].row >= 0 or w in nets for w in i.waits)]
            if len(kept) == len(calls):
                chosen = calls
                break
            calls = kept
        for item in chosen:
            item.row = row
        waiting = [i for i in waiting if i.row < 0]
    for item in items:
        if item.kind == "output":
            item.row = row + 1


class _Lanes:
    """Gives every item a lane that is free for as long as its value is needed."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.stream_lane = {s: -i for i, s in enumerate(layout.streams)}
        self.taken: dict[int, list[tuple[int, int, str]]] = {}
        self.joined: dict[str, int] = {}

    def assign(self) -> None:
        """Streams first, then what comes in and goes out, then the rest from bottom to top."""
        items = self.layout.items
        rails = [i for i in items if i.rail and i.kind != "input"]
        for item in rails:
            self._place(item, self.stream_lane[item.stream])
        for item in items:
            if item.kind == "input":
                self._place(item, self._entrance(item))
        # Of branches side by side, the one that joins first is the innermost: its line then crosses no other.
        rest = [i for i in items if i.kind != "input" and i not in rails]
        for item in sorted(rest, key=lambda i: (i.row, self._joins(i))):
            self._place(item, self._exit(item) if item.kind == "output" else self._choose(item))

    def _joins(self, item: Item) -> int:
        """The row in which a branch reaches a stream or the end of the block."""
        if item.net not in self.joined:
            readers = [r for r in self.layout.items if item.net in r.args]
            rows = [r.row if r.rail or r.kind == "output" else self._joins(r) for r in readers]
            self.joined[item.net] = min(rows, default=item.row)
        return self.joined[item.net]

    def _place(self, item: Item, lane: int) -> None:
        item.lane = lane
        self.taken.setdefault(lane, []).append((item.row, self.layout.last[item.net], item.net))

    def _free(self, lane: int, item: Item) -> bool:
        """Whether ``lane`` is free while the item's value lives; what it reads from below may end where it starts."""
        start, end = item.row, self.layout.last[item.net]
        for first, last, net in self.taken.get(lane, ()):
            follows = net in item.args and last == start
            leads = self.layout.made[net].args[:1] == [item.net] and first == end
            if first <= end and start <= last and not follows and not leads:
                return False
        return True

    def _entrance(self, item: Item) -> int:
        lane = self.stream_lane.get(item.stream)
        if lane is not None and self._free(lane, item):
            return lane
        return next(n for n in count(-len(self.stream_lane), -1) if self._free(n, item))

    def _exit(self, item: Item) -> int:
        lane = self.stream_lane[item.stream]
        source = self.layout.made[item.args[0]].lane
        return next(n for n in chain((lane, source), count(1)) if self._free(n, item))

    def _choose(self, item: Item) -> int:
        sources = [self.layout.made[a].lane for a in item.args]
        streams = set(self.stream_lane.values())
        if item.kind == "wire":
            own = [self.stream_lane[item.stream]] if item.stream else []
            # A bypass looks best on the left of the stream, where no branches are; carried streams have that side.
            side = count(-1, -1) if len(streams) == 1 else count(1)
            return next(n for n in chain(own, side) if self._free(n, item))
        straight = [n for n in sources if n not in streams and self._free(n, item)]
        return next(n for n in chain(straight[:1], count(1)) if self._free(n, item))
