"""Where the layers of a model are: from the calls of modules to intervals of the tape.

A layer is a call that repeats: an element of a list of modules, or one of several sibling calls of one class, with
matrices inside. Where the elements are no more than parts of a layer (a list of attentions beside a list of
feed-forward networks, with the additions between them), a layer goes from one element of the first list to the next.
Where elements take turns and hold one sub-layer each, a layer is one turn of all. Where no call repeats, the sums on
the stream do.

Between the calls a layer begins where the fewest values pass: after a sum and what follows it alone.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

from sublayer.audit import vocabulary as words
from sublayer.audit.flow import Flow
from sublayer.audit.passing import Passing
from sublayer.audit.residuals import WEIGHTY, residual_sums, turns
from sublayer.audit.tape import Frame, Tape, Value

WORK = frozenset({"matmul", "convolution", "sdpa"})
Calls = list[tuple[int, str]]  # calls that may be layers, each with the path of its element


@dataclass
class Layer:
    """One layer: values ``start`` up to ``stop`` of the tape, the calls that make it, and its path as a label."""

    start: int
    stop: int
    path: str
    calls: list[int] = field(default_factory=list)


@dataclass
class Run:
    """Layers one after another on one stream.

    Attributes:
        container: path of what holds them, a label.
        layers: in the order of execution.
        framed: whether each layer is one call of a module, additions included.
    """

    container: str
    layers: list[Layer]
    framed: bool = True


class Frames:
    """The tree of module calls, with what happens in each."""

    def __init__(self, tape: Tape, flows: Sequence[Flow]) -> None:
        self.tape, self.flows = tape, flows
        n = len(tape.frames)
        self.children: list[list[int]] = [[] for _ in range(n)]
        for frame in tape.frames[1:]:
            self.children[frame.parent].append(frame.index)
        self.work = [0] * n
        self.sums = [0] * n
        self.places: list[set[int]] = [set() for _ in flows]  # of each flow's residual sums on the tape
        self.worked: list[int] = []
        self.first = [len(tape.values)] * n
        self.last = [-1] * n
        for value in tape.values:
            kind = words.KIND.get(value.name)
            worked = kind in WORK or value.name == "_grouped_mm"
            if worked:
                self.worked.append(value.index)
            f = value.frame
            self.first[f] = min(self.first[f], value.index)
            self.last[f] = max(self.last[f], value.index)
            # Fused attention is two products in one call.
            self.work[f] += 2 if kind == "sdpa" else worked
        for frame in reversed(tape.frames[1:]):  # a call comes after the one that it is in
            above, f = frame.parent, frame.index
            self.first[above] = min(self.first[above], self.first[f])
            self.last[above] = max(self.last[above], self.last[f])
            self.work[above] += self.work[f]
        for flow, places in zip(flows, self.places, strict=True):
            for place in residual_sums(flow):
                places.add(flow.nodes[place].value.index)
                for f in tape.ancestry(flow.nodes[place].value.frame):
                    self.sums[f] += 1

    @cached_property
    def repeated(self) -> frozenset[tuple[str, str]]:
        """Lists and classes of which some element does work, or, where none does, has parts and passes data on.

        A layer that only scales and norms is a layer like its neighbours.
        """
        works: set[tuple[str, str]] = set()
        passes: set[tuple[str, str]] = set()
        for frame in self.tape.frames[1:]:
            owner = _owner(self.element(frame))
            if owner or "" in self.tape.containers:
                key = (owner, frame.kind)
                works |= {key} if self.work[frame.index] >= 2 else set()
                live = any(f.is_live(v) for v in self._made(frame.index) for f in self.flows)
                passes |= {key} if self.children[frame.index] and live else set()
        return frozenset(works or passes)

    def whole(self, group: Sequence[tuple[int, str]]) -> bool:
        """Whether the calls are layers with their additions, not parts of layers that are added up outside."""
        adding = {(_owner(e), self.tape.frames[f].kind) for f, e in group if self.sums[f]}
        if adding:
            return all((_owner(e), self.tape.frames[f].kind) in adding for f, e in group)
        between = [range(self.last[a] + 1, self.first[b]) for (a, _), (b, _) in pairwise(group)]
        return not any(f.is_live(self.tape.values[i]) for places in between for i in places for f in self.flows)

    def _made(self, frame: int) -> list[Value]:
        return self.tape.values[self.first[frame] : self.last[frame] + 1]

    def stream(self, group: Sequence[tuple[int, str]]) -> Flow:
        """The flow that most sums within a group of calls and between them add to; of equal ones the last."""
        start, stop = self.first[group[0][0]], self.last[group[-1][0]]
        counts = [sum(start <= i <= stop for i in places) for places in self.places]
        return next(f for f, n in zip(reversed(self.flows), reversed(counts), strict=True) if n == max(counts))

    def signature(self, frame: int) -> frozenset[str]:
        """The operators of a call: what tells one kind of sub-layer from another."""
        made = self.tape.values[self.first[frame] : self.last[frame] + 1]
        return frozenset(v.name for v in made if v.kind == "call" and any(flow.is_live(v) for flow in self.flows))

    def turns(self, calls: Sequence[int]) -> int:
        """After how many calls their kinds begin again, where each holds one sub-layer at most; 1 if they do not."""
        if any(self.sums[f] > 1 for f in calls):
            return 1
        return turns([self.signature(f) for f in calls])

    def follow(self, first: int, last: int) -> bool:
        """Whether one call reads what another makes of the data: heads side by side do not."""
        for flow in self.flows:
            seen: set[int] = set()
            stack = [n.index for n in flow.nodes if self.first[last] <= n.value.index <= self.last[last]]
            while stack:
                i = stack.pop()
                value = flow.nodes[i].value.index
                if i in seen or value < self.first[first]:
                    continue
                if value <= self.last[first]:
                    return first != last
                seen.add(i)
                stack += flow.nodes[i].inputs
        return False

    def element(self, frame: Frame) -> str:
        """The path of the outermost list element, below the calling module, that a call belongs to; empty if none.

        The element itself need not be called: a list of lists is not, nor is one whose forward is called by hand.
        """
        above = self.tape.frames[frame.parent].path
        parts = frame.path.split(".")
        known = len(above.split(".")) if above and frame.path.startswith(above + ".") else 0
        for count in range(known + 1, len(parts) + 1):
            if ".".join(parts[: count - 1]) in self.tape.containers:
                found = ".".join(parts[:count])
                deeper = found in self.tape.containers and found not in self.called and self.sums[frame.index] > 1
                if not deeper or found == frame.path:
                    return found
        return ""

    @cached_property
    def called(self) -> frozenset[str]:
        return frozenset(frame.path for frame in self.tape.frames)

    def _begins(self, calls: Calls) -> bool:
        """Whether the first of some calls is what a stage begins with: no element of the list of the others, or of
        another class and with nothing added to what it is given."""
        kinds = {self.tape.frames[f].kind for f, _ in calls[:2]}
        return _owner(calls[0][1]) != _owner(calls[1][1]) or (not self.sums[calls[0][0]] and len(kinds) > 1)

    def reshapes(self, frame: int) -> bool:
        """Whether a call of a model of pictures hands on other channels or fewer places than it was given."""
        given = self.tape.frames[frame].given
        flow = next((f for f in self.flows if f.pictured and given and given[0] in f.axes), None)
        made = [v for v in self._made(frame) if flow and v.index in flow.of and not v.output] if flow else []
        if not flow or not made:
            return False
        first = self.tape.values[given[0]]
        return (flow.channels(first), flow.places(first)) != (flow.channels(made[-1]), flow.places(made[-1]))

    def candidates(self, root: int = 0) -> Calls:
        """Calls that may be layers, outermost first, each with its element path."""
        parts: dict[int, tuple[str, Calls]] = {}
        twins = Counter(self.tape.frames[c].kind for c in self.children[root] if self.sums[c])
        # Of one list several make the places fewer or the channels more: they are stages, not layers.
        listed = [self.tape.frames[c] for c in self.children[root] if self.reshapes(c)]
        reshaping = Counter((_owner(self.element(frame)), frame.kind) for frame in listed)
        for child in self.children[root]:
            frame = self.tape.frames[child]
            element = self.element(frame)
            if element and self.work[child] < 2 and (_owner(element), frame.kind) not in self.repeated:
                continue
            if not element and twins[frame.kind] > 1 and self.sums[child]:
                element = frame.path or f"{frame.kind}"
            stage = reshaping[_owner(element), frame.kind] > 1
            parts[child] = (element, self._stage(child, stage) if element else self.candidates(child))
        return [one for child, (element, inner) in parts.items() for one in self._alike(child, element, inner, parts)]

    def _alike(self, child: int, element: str, inner: Calls, parts: dict[int, tuple[str, Calls]]) -> Calls:
        """A call's layers; one that falls into parts, but is of the class of a call that is a layer, is a layer."""
        if element and inner and not self._listed(inner):
            for other, (name, within) in parts.items():
                same = self.tape.frames[other].kind == self.tape.frames[child].kind
                if same and _owner(name) == _owner(element) and not within and self.sums[other]:
                    return [(child, element)]
        return inner or ([(child, element)] if element else [])

    def _listed(self, group: Calls) -> bool:
        """Whether calls are elements of a list, not sibling calls of one class."""
        return all(_owner(element) in self.tape.containers for _, element in group)

    def _stage(self, frame: int, stage: bool) -> Calls:
        """The layers inside an element that is itself a stack of layers: calls of one class, each with a residual.

        A ``stage`` of a model of pictures may begin with what makes its places fewer or its channels more.
        """
        inner = self.candidates(frame)
        rest = inner
        while len(rest) > 1 and self.reshapes(rest[0][0]) and self._begins(rest):
            rest = rest[1:]
        stage = stage and bool(rest) and self._listed(rest)
        inner = rest if stage else inner
        kinds: dict[str, set[str]] = {}
        for f, element in inner:
            kinds.setdefault(_owner(element), set()).add(self.tape.frames[f].kind)
        whole = [(f, e) for f, e in inner if self.sums[f]]
        if not whole or len(whole) < len(inner[1:] if stage else inner):
            return []
        if stage:
            return inner  # its first layer may have a projected skip, or none
        if self.reshapes(frame) and not self._listed(inner):
            return []  # a layer that begins a stage
        if any(len(k) > 1 for k in kinds.values()) or self.sums[frame] > sum(self.sums[f] for f, _ in inner):
            return []  # parts of several kinds, or additions of its own: it is the layer
        turns = self.turns([f for f, _ in inner])
        if turns == len(inner) > 1:
            return []  # its sub-layers, each with an addition of its own
        if turns == 1 and not self._listed(inner) and all(self.sums[f] == 1 for f, _ in inner):
            if len({self.signature(f) for f, _ in inner}) > 1:
                return []  # sub-layers of several kinds that do not take turns
        if len(inner) == 1 and self.tape.frames[frame].kind == self.tape.frames[inner[0][0]].kind:
            return []
        return inner


def _owner(element: str) -> str:
    return element.rpartition(".")[0]


def runs(tape: Tape, flows: Sequence[Flow]) -> list[Run]:
    """The stacks of layers in the order of execution; empty if nothing repeats."""
    frames = Frames(tape, flows)
    found: list[Run] = []
    for group in _groups(frames.candidates(), frames):
        framed = frames.whole(group)
        passing = Passing(tape, frames.stream(group))
        layers = _merged(group, frames, framed)
        for one, after in pairwise(layers):
            one.stop = after.start
        if framed:
            _join(layers, frames, passing)
        else:
            ends = [max(frames.last[c] for c in layer.calls) + 1 for layer in layers]
            _bound(layers, ends, found[-1].layers[-1].stop if found else len(tape.inputs), passing)
        if all(len(layer.calls) == 1 for layer in layers):
            layers = _inturns(layers, frames.turns([layer.calls[0] for layer in layers]))
        container = _common([layer.path for layer in layers])
        found.append(Run(container, layers, framed))
    return found or _by_sums(tape, flows)


def _bound(layers: list[Layer], ends: Sequence[int], begin: int, passing: Passing) -> None:
    """Let layers that are made of parts begin where the fewest values pass; ``ends`` are those of their last parts."""
    for layer, before in zip(layers, (begin, *ends), strict=False):
        layer.start = passing.fewest(before, layer.start, last=True)
    for one, after in pairwise(layers):
        one.stop = after.start
    size = len(passing.count) - 2
    if len(layers) > 1:
        tail = passing.made[layers[-2].stop] - passing.made[ends[-2]]
        layers[-1].stop = passing.after(ends[-1], tail)
    else:
        layers[-1].stop = passing.fewest(ends[-1], size, last=False)


def _join(layers: list[Layer], frames: Frames, passing: Passing) -> None:
    """Calls that begin with the addition that the call before left open: layers begin behind it."""
    if len(layers) < 2:
        return
    starts = []
    for layer in layers[1:]:
        work = next((i for i in frames.worked if i >= layer.start), layer.stop)
        if work >= layer.stop:
            return  # nothing but additions: none of them is the one before's
        place = passing.fewest(layer.start, work, last=False)
        if passing.count[place] == passing.count[layer.start] or not any(
            layer.start <= i < place for places in frames.places for i in places
        ):
            return
        starts.append(place)
    for k, place in enumerate(starts):
        layers[k].stop = layers[k + 1].start = place
    layers[-1].stop = passing.fewest(layers[-1].stop, len(passing.count) - 2, last=False)


def _inturns(layers: list[Layer], period: int) -> list[Layer]:
    """One layer of each ``period`` of them."""
    if period == 1:
        return layers
    found = []
    for k in range(0, len(layers), period):
        part = layers[k : k + period]
        found.append(Layer(part[0].start, part[-1].stop, part[0].path, [c for layer in part for c in layer.calls]))
    return found


def _by_sums(tape: Tape, flows: Sequence[Flow]) -> list[Run]:
    """Layers where no call repeats: between the sums on the stream, as many to a layer as take turns."""
    flow = max(flows, key=lambda one: len(_elements(tape, one)[0]), default=None)
    if flow is None:
        return []
    layers, ends, kinds = _elements(tape, flow)
    period = turns(kinds)
    if not layers or (period == 1 and len(set(kinds)) > 1):
        return []
    _bound(layers, ends, len(tape.inputs), Passing(tape, flow))
    return [Run("", _inturns(layers, period), framed=False)]


def _elements(tape: Tape, flow: Flow) -> tuple[list[Layer], list[int], list[frozenset[str]]]:
    """What stands between the sums on the stream, where each ends, and its operators."""
    output = next((flow.of[v.index] for _, v in tape.outputs if v.index in flow.of), -1)
    passed = set()
    while output >= 0:
        passed.add(output)
        output = flow.nodes[output].top
    layers, ends, kinds = [], [], []
    for place in residual_sums(flow):
        node = flow.nodes[place]
        within = flow.between(node.top, place)
        work = [flow.nodes[i].value.index for i in within if flow.nodes[i].kind in WEIGHTY]
        if place in passed and work:
            layers.append(Layer(work[0], work[-1] + 1, tape.frames[node.value.frame].path))
            ends.append(work[-1] + 1)
            kinds.append(frozenset(flow.nodes[i].value.name for i in within))
    return layers, ends, kinds


def _groups(candidates: list[tuple[int, str]], frames: Frames) -> list[list[tuple[int, str]]]:
    """Candidates that follow each other: of one list, or of lists that take turns."""
    groups: list[list[tuple[int, str]]] = []
    owners: list[set[str]] = []
    later: dict[str, int] = {}
    for position, (_, element) in enumerate(candidates):
        later[_owner(element)] = position
    for position, (frame, element) in enumerate(candidates):
        owner = _owner(element)
        joins = bool(groups) and (owner in owners[-1] or any(later[o] > position for o in owners[-1]))
        if joins:
            groups[-1].append((frame, element))
            owners[-1].add(owner)
        else:
            groups.append([(frame, element)])
            owners.append({owner})
    return [g for g in groups if any(frames.sums[f] for f, _ in g) or frames.follow(g[0][0], g[-1][0])]


def _merged(group: list[tuple[int, str]], frames: Frames, framed: bool) -> list[Layer]:
    """One layer a call; or, where calls are parts of layers, from one element of the first list to the next."""
    layers: list[Layer] = []
    first = _owner(group[0][1])
    seen: set[str] = set()
    for frame, element in group:
        path = frames.tape.frames[frame].path
        own = element == path
        new = not layers or (framed and own)
        if not new and not framed:
            new = _owner(element) == first and (element != layers[-1].path or path in seen)
        elif not new:
            new = element != layers[-1].path or path in seen
        if new:
            layers.append(Layer(frames.first[frame], frames.last[frame] + 1, element, [frame]))
            seen = {path}
        else:
            layers[-1].calls.append(frame)
            layers[-1].stop = frames.last[frame] + 1
            seen.add(path)
    return layers


def _common(paths: list[str]) -> str:
    return _owner(paths[0]) if paths else ""
