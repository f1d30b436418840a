"""Where the layers of a model are: from the calls of modules to intervals of the tape.

A layer is a call that repeats: an element of a list of modules, or one of several sibling calls of one class, with
matrices inside. Where the elements are no more than parts of a layer (a list of attentions beside a list of feed-forward
networks, with the additions between them), a layer goes from one element of the first list to the next.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from sublayer.audit import vocabulary as words
from sublayer.audit.flow import Flow
from sublayer.audit.tape import Frame, Tape

WORK = frozenset({"matmul", "convolution", "sdpa"})
WEIGHTY = frozenset({"linear", "conv", "matmul", "core", "scan", "route", "fixed_mix"})


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
        self.tape = tape
        n = len(tape.frames)
        self.children: list[list[int]] = [[] for _ in range(n)]
        for frame in tape.frames[1:]:
            self.children[frame.parent].append(frame.index)
        self.work = [0] * n
        self.sums = [0] * n
        self.first = [len(tape.values)] * n
        self.last = [-1] * n
        for value in tape.values:
            worked = words.KIND.get(value.name) in WORK or value.name == "_grouped_mm"
            for f in tape.ancestry(value.frame):
                self.first[f] = min(self.first[f], value.index)
                self.last[f] = max(self.last[f], value.index)
                self.work[f] += worked
        for flow in flows:
            for place in residual_sums(flow):
                for f in tape.ancestry(flow.nodes[place].value.frame):
                    self.sums[f] += 1

    def element(self, frame: Frame) -> str:
        """The path of the outermost list element, below the calling module, that a call belongs to; empty if there is
        none. The element itself need not be called: a list of lists is not, nor is one whose forward is called by hand."""
        above = self.tape.frames[frame.parent].path
        parts = frame.path.split(".")
        known = len(above.split(".")) if above and frame.path.startswith(above + ".") else 0
        for count in range(known + 1, len(parts) + 1):
            if ".".join(parts[: count - 1]) in self.tape.containers:
                return ".".join(parts[:count])
        return ""

    def candidates(self, root: int = 0) -> list[tuple[int, str]]:
        """Calls that may be layers, outermost first, each with its element path."""
        found: list[tuple[int, str]] = []
        twins = Counter(self.tape.frames[c].kind for c in self.children[root] if self.sums[c])
        for child in self.children[root]:
            frame = self.tape.frames[child]
            if self.work[child] < 2:
                continue
            element = self.element(frame)
            if not element and twins[frame.kind] > 1 and self.sums[child]:
                element = frame.path or f"{frame.kind}"
            if element:
                inner = self._stage(child)
                found += inner if inner else [(child, element)]
            else:
                found += self.candidates(child)
        return found

    def _stage(self, frame: int) -> list[tuple[int, str]]:
        """The layers inside an element that is itself a stack of layers: calls of one class, each with a residual."""
        inner = self.candidates(frame)
        kinds: dict[str, set[str]] = {}
        for f, element in inner:
            kinds.setdefault(element.rpartition(".")[0], set()).add(self.tape.frames[f].kind)
        whole = [(f, e) for f, e in inner if self.sums[f]]
        if not whole or any(len(k) > 1 for k in kinds.values()) or len(whole) < len(inner):
            return []
        if self.sums[frame] > sum(self.sums[f] for f, _ in inner):
            return []  # additions of its own: it is the layer
        if len(inner) == 1 and self.tape.frames[frame].kind == self.tape.frames[inner[0][0]].kind:
            return []
        return inner


def residual_sums(flow: Flow) -> list[int]:
    """Sums of a value and something that weights made of it."""
    found = []
    for node in flow.nodes:
        if node.kind == "sum" and len(node.inputs) > 1 and node.top in node.inputs:
            if any(flow.nodes[i].kind in WEIGHTY for i in flow.between(node.top, node.index)):
                found.append(node.index)
    return found


def runs(tape: Tape, flows: Sequence[Flow]) -> list[Run]:
    """The stacks of layers in the order of execution; empty if no call repeats."""
    frames = Frames(tape, flows)
    found: list[Run] = []
    for group in _groups(frames.candidates(), frames):
        framed = all(frames.sums[f] for f, _ in group)
        layers = _merged(group, frames, framed)
        for one, after in zip(layers, layers[1:], strict=False):
            one.stop = after.start
        if not framed and len(layers) > 1:
            tail = layers[-2].stop - 1 - max(frames.last[c] for c in layers[-2].calls)
            layers[-1].stop = min(layers[-1].stop + tail, len(tape.values))
        container = _common([layer.path for layer in layers])
        found.append(Run(container, layers, framed))
    return found


def _groups(candidates: list[tuple[int, str]], frames: Frames) -> list[list[tuple[int, str]]]:
    """Candidates that follow each other: of one list, or of lists that take turns."""
    groups: list[list[tuple[int, str]]] = []
    owners: list[set[str]] = []
    later: dict[str, int] = {}
    for position, (_, element) in enumerate(candidates):
        later[element.rpartition(".")[0]] = position
    for position, (frame, element) in enumerate(candidates):
        owner = element.rpartition(".")[0]
        joins = bool(groups) and (
            owner in owners[-1] or any(later[o] > position for o in owners[-1])
        )
        if joins:
            groups[-1].append((frame, element))
            owners[-1].add(owner)
        else:
            groups.append([(frame, element)])
            owners.append({owner})
    return [g for g in groups if any(frames.sums[f] for f, _ in g) or len(g) > 1 or len(groups) == 1]


def _merged(group: list[tuple[int, str]], frames: Frames, framed: bool) -> list[Layer]:
    """One layer a call; or, where calls are parts of layers, from one element of the first list to the next."""
    layers: list[Layer] = []
    first = group[0][1].rpartition(".")[0]
    seen: set[str] = set()
    for frame, element in group:
        path = frames.tape.frames[frame].path
        own = element == path
        new = not layers or (framed and own)
        if not new and not framed:
            new = element.rpartition(".")[0] == first and (element != layers[-1].path or path in seen)
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
    return paths[0].rpartition(".")[0] if paths else ""
