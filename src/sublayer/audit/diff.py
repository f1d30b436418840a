"""`diff`: two wirings side by side and, above all, in words what moved from the first to the second."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sublayer._verb import callable_module
from sublayer.audit import changes, moves, phrases
from sublayer.audit.result import Audit, NormFacts, Stack
from sublayer.audit.sides import NOMINAL, Lane, Layer, Side, at_depth, one_line, side
from sublayer.notation import Design, DesignError, parse

FORMAT = 1  # version of Diff.to_dict


@dataclass(frozen=True)
class Move:
    """What moved at one place.

    Attributes:
        stack: name of the stack; empty where there is one only.
        place: ``layers 0-11``, ``embed``, ``final`` or ``model``.
        phrases: what moved, each in words.
        a, b: the equations there, where they differ; else empty.
    """

    stack: str
    place: str
    phrases: tuple[str, ...]
    a: str = ""
    b: str = ""


@dataclass(frozen=True)
class Diff:
    """How ``b`` differs from ``a``; true if it does, or if that cannot be told.

    Attributes:
        a, b: names of the two.
        moved: what is different, place by place.
        unknown: what could not be compared, each with the reason; never counted as equal.
        compared: what was compared and is the same, in words.
        remarks: what the reader should know of the comparison.
    """

    a: str
    b: str
    moved: tuple[Move, ...] = ()
    unknown: tuple[str, ...] = ()
    compared: str = ""
    remarks: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """Whether everything is known and nothing differs."""
        return not self.moved and not self.unknown

    def __bool__(self) -> bool:
        return not self.same

    def __str__(self) -> str:
        lines = [f"A  {self.a}", f"B  {self.b}"]
        for move in self.moved:
            where = f"{move.stack}, {move.place}" if move.stack else move.place
            equations = [f"  A  {move.a}", f"  B  {move.b}"] if move.a or move.b else []
            if not equations and len(move.phrases) == 1:
                lines += ["", f"{where}: {move.phrases[0]}"]
            else:
                lines += ["", f"{where}:", *equations, *(f"  {phrase}" for phrase in move.phrases)]
        if self.unknown:
            lines += ["", *(f"unknown: {text}" for text in self.unknown)]
        if self.same:
            lines += ["", f"the same: {self.compared}"]
        elif not self.moved:
            lines += ["", "no difference in what is known"]
        return "\n".join([*lines, *(f"remark: {text}" for text in self.remarks)])

    def to_dict(self) -> dict[str, Any]:
        """The difference as JSON values."""
        return {
            "format": FORMAT,
            "a": self.a,
            "b": self.b,
            "same": self.same,
            "moved": [
                {"stack": m.stack, "place": m.place, "phrases": list(m.phrases), "a": m.a, "b": m.b} for m in self.moved
            ],
            "unknown": list(self.unknown),
            "remarks": list(self.remarks),
        }


def diff(a: Any, b: Any) -> Diff:
    """Compare two wirings.

    Args:
        a, b: an Audit, a Design, the name or equation of a design, or anything that `sublayer.audit.audit` takes.

    Raises:
        AuditError, DesignError: one of them is none of these, or cannot be read at all.
    """
    return between(side(a), side(b))


def between(a: Side, b: Side, ends: bool = True) -> Diff:
    """Compare two sides; a design is compared with the main stack of a model, at the model's number of layers.

    Without ``ends``, embed and final are left aside.
    """
    comparison = _Comparison(a, b, ends)
    comparison.run()
    return Diff(
        a.name,
        b.name,
        tuple(comparison.moved),
        tuple(dict.fromkeys(comparison.unknown)),
        comparison.compared,
        tuple(comparison.remarks),
    )


class _Comparison:
    def __init__(self, a: Side, b: Side, ends: bool) -> None:
        self.a, self.b, self.ends = a, b, ends
        self.moved: list[Move] = []
        self.unknown: list[str] = []
        self.remarks: list[str] = []
        self.compared = ""
        self.several = False

    def run(self) -> None:
        for letter, one in (("A", self.a), ("B", self.b)):
            if one.audit is not None and (one.audit.unknown or not one.audit.stacks):
                self.unknown.append(f"{letter}: {one.audit.unknown or 'no layers were found'}")
        if self.a.design is not None and self.b.design is not None:
            self._designs(self.a.design, self.b.design)
            return
        pairs = list(self._stacks())
        self.several = len(pairs) > 1
        for left, right in pairs:
            self._lanes(left, right)
        if self.a.audit is not None and self.b.audit is not None:
            self._whole(self.a.audit, self.b.audit)
        self.compared = self._said()

    # --- pairs of stacks ----------------------------------------------------------------------------------------

    def _designs(self, a: Design, b: Design) -> None:
        if a == b:
            self.compared = one_line(a)
            return
        if len(a.blocks) == len(b.blocks) == 1:
            depth = 1
        else:
            depth = NOMINAL
            self.remarks.append(f"the layer ranges are those of a model with {depth} layers")
        self._lanes(at_depth(a, depth), at_depth(b, depth))
        if not self.moved and not self.unknown:
            self.remarks.clear()
            self.moved.append(Move("", "model", ("they differ only in the layer ranges",), one_line(a), one_line(b)))

    def _stacks(self) -> Iterator[tuple[Lane, Lane]]:
        """Stacks that belong together: in order where there are as many, else by name, and main with main."""
        if self.a.audit is None or self.b.audit is None:
            one = self.a if self.a.audit is not None else self.b
            if one.audit is None or one.audit.main is None:
                return
            depth = len(one.audit.main.layers)
            yield self.a.lanes(depth)[-1], self.b.lanes(depth)[-1]
            if len(one.audit.stacks) > 1:
                self.remarks.append(f"a design describes one stack; compared with {one.audit.main.name}")
            return
        left, right = self.a.lanes(0), self.b.lanes(0)
        if len(left) == len(right):
            yield from zip(left, right, strict=True)
            return
        if not left or not right:
            return
        pairs = [(x, next((y for y in right[:-1] if y.name == x.name), None)) for x in left[:-1]]
        taken = [id(y) for _, y in pairs if y is not None]
        for x, y in pairs:
            if y is None:
                self.moved.append(Move(x.name, "model", (f"{_size(x)} that only A has",)))
            else:
                yield x, y
        for y in right[:-1]:
            if id(y) not in taken:
                self.moved.append(Move(y.name, "model", (f"{_size(y)} that only B has",)))
        yield left[-1], right[-1]

    # --- one pair -------------------------------------------------------------------------------------------------

    def _lanes(self, a: Lane, b: Lane) -> None:
        name = "" if not self.several else a.name if a.name == b.name else f"{a.name} / {b.name}"
        sizes = []
        if a.stack is not None and b.stack is not None and a.stack.width != b.stack.width:
            sizes.append(f"d {a.stack.width} -> {b.stack.width}")
        if len(a.layers) != len(b.layers):
            sizes.append(f"number of layers {len(a.layers)} -> {len(b.layers)}")
        if sizes:
            self.moved.append(Move(name, "model", tuple(sizes)))
        before = len(self.moved), len(self.unknown)
        for letter, lane in (("A", a), ("B", b)):
            if not lane.layers and lane.unknown:
                self.unknown.append(f"{letter}{f', {name}' if name else ''}: {lane.unknown}")
        if self.ends:
            self._ends(name, "embed", a, b)
        self._layers(name, a, b)
        if self.ends:
            self._ends(name, "final", a, b)
        if before == (len(self.moved), len(self.unknown)):
            self._rest(name, a, b)

    def _rest(self, name: str, a: Lane, b: Lane) -> None:
        """Why two equal stacks may still not be written alike as whole designs."""
        where = f"{name}: " if name else ""
        for letter, lane in (("A", a), ("B", b)):
            if lane.design is None and lane.unknown:
                # Every part was compared, or this would not be reached: only the one design for all is missing.
                self.remarks.append(f"{where}{letter} is not one design, because {lane.unknown}")
        if None not in (a.design, b.design) and a.design != b.design and (a.stack is None or b.stack is None):
            count = phrases.plural(len(a.layers), "layer")
            self.remarks.append(f"{where}equal at {count}; their layer ranges are written otherwise")

    def _ends(self, name: str, place: str, a: Lane, b: Lane) -> None:
        one, other = getattr(a, place), getattr(b, place)
        missing = [letter for letter, text in (("A", one), ("B", other)) if not text]
        if missing:
            if a.layers and b.layers:
                where = f"{name}, {place}" if name else place
                self.unknown.append(f"{where}: could not be read in {' and '.join(missing)}")
            return
        said = _end_words(place, one, other) if one != other else []
        if a.stack is not None and b.stack is not None:
            said += _end_norms(place, a.stack, b.stack)
        if said:
            self.moved.append(Move(name, place, tuple(said), *((one, other) if one != other else ())))

    def _layers(self, name: str, a: Lane, b: Lane) -> None:
        width_a = a.stack.width if a.stack else 0
        width_b = b.stack.width if b.stack else 0
        found: dict[tuple[str, str, tuple[str, ...]], list[int]] = {}
        dark: dict[str, list[int]] = {}
        for i, (x, y) in enumerate(zip(a.layers, b.layers, strict=False)):
            if x.equation and y.equation:
                said = moves.between(x, y, width_a, width_b)
            else:
                dark.setdefault(_dark(x, y), []).append(i)
                both = x.facts is not None and y.facts is not None
                said = changes.between(x.facts, y.facts, width_a, width_b) if both else []  # type: ignore[arg-type]
            if said:
                equations = (x.equation, y.equation) if x.equation != y.equation else ("", "")
                found.setdefault((*equations, tuple(said)), []).append(i)
        whole = self.a.audit is None and self.b.audit is None and len(a.layers) == 1
        for (one, other, words), where in found.items():
            place = "block" if whole else phrases.layers(where)
            self.moved.append(Move(name, place, words, one, other))
        for reason, where in dark.items():
            self.unknown.append(f"{f'{name}, ' if name else ''}{phrases.layers(where)}: {reason}")
        self._surplus(name, a, b)

    def _surplus(self, name: str, a: Lane, b: Lane) -> None:
        """Layers that one side has more: said where they are not like the last one that both have."""
        common = min(len(a.layers), len(b.layers))
        for letter, lane in (("A", a), ("B", b)):
            groups: dict[tuple[str, str], list[int]] = {}
            for i in range(common, len(lane.layers)):
                layer = lane.layers[i]
                if layer.unknown or (common and layer.equation != lane.layers[common - 1].equation):
                    groups.setdefault((layer.equation, layer.unknown), []).append(i)
            for (equation, why), where in groups.items():
                if why:
                    self.unknown.append(
                        f"{f'{name}, ' if name else ''}{phrases.layers(where)}, only in {letter}: {why}"
                    )
                else:
                    self.moved.append(Move(name, phrases.layers(where), (f"only in {letter}: {equation}",)))

    # --- the whole ------------------------------------------------------------------------------------------------

    def _whole(self, a: Audit, b: Audit) -> None:
        said = []
        gone, new = _new(b.dead_inputs, a.dead_inputs), _new(a.dead_inputs, b.dead_inputs)
        said += [f"input {n} changes the output now" for n in gone]
        said += [f"input {n} no longer changes the output" for n in new]
        if len(a.dead_parameters) != len(b.dead_parameters):
            names = _new(a.dead_parameters, b.dead_parameters)
            which = f" (new: {phrases.listed(phrases.grouped(names), 4)})" if names else ""
            said.append(f"parameters that nothing reads: {len(a.dead_parameters)} -> {len(b.dead_parameters)}{which}")
        if said:
            self.moved.append(Move("", "model", tuple(said)))

    def _said(self) -> str:
        audit = self.a.audit or self.b.audit
        if audit is None or audit.main is None:
            return ""
        main = audit.main
        wiring = one_line(main.design) if main.design else "; ".join(dict.fromkeys(x.equation for x in main.layers))
        count = phrases.plural(len(main.layers), "layer")
        if self.a.audit is None or self.b.audit is None:
            return f"{count} of {wiring} (a design says nothing of heads, widths and kinds of norms)"
        return f"{count} of {wiring}, with equal heads, widths and norms"


def _size(lane: Lane) -> str:
    return phrases.plural(len(lane.layers), "layer")


def _new(before: tuple[str, ...], after: tuple[str, ...]) -> list[str]:
    return [n for n in after if n not in before]


def _dark(a: Layer, b: Layer) -> str:
    if not a.equation and not b.equation:
        if a.unknown == b.unknown:
            return f"in both, because {a.unknown or 'they could not be read'}"
        return f"in A, because {a.unknown}; in B, because {b.unknown}"
    letter, layer = ("A", a) if not a.equation else ("B", b)
    other = b if letter == "A" else a
    why = layer.unknown or "it could not be read"
    return f"in {letter}, because {why}; {'B' if letter == 'A' else 'A'} has {other.equation}"


_NORM = re.compile(r"\b(?:norm|layernorm|rmsnorm|dyt)(?:_\w+)?\(")
_STREAM = re.compile(r"\b([a-z]\w*) = ")


def _end_words(place: str, a: str, b: str) -> list[str]:
    """What moved in embed or final."""
    noun = "the norm on the embedding" if place == "embed" else "the last norm"
    before, after = len(_NORM.findall(a)), len(_NORM.findall(b))
    found = []
    if before != after:
        counts = {(0, 1): f"{noun} is new", (1, 0): f"{noun} is gone"}
        found.append(counts.get((before, after), f"it has {phrases.plural(after, 'norm')} instead of {before}"))
    one, other = _STREAM.findall(a), _STREAM.findall(b)
    if place == "embed":
        found += [f"it begins the carried stream {s}" for s in dict.fromkeys(other) if s not in one]
        found += [f"it no longer begins the carried stream {s}" for s in dict.fromkeys(one) if s not in other]
        found += _embedding_factor(a, b)
    return found or ["it is wired otherwise"]


def _embedding_factor(a: str, b: str) -> list[str]:
    factors = []
    for text in (a, b):
        try:
            factors.append(phrases.without_factor(parse(f"embed: {text}\nblock: x = x + attn(x)"))[1])
        except DesignError:
            return []
    was, now = factors
    if was == now:
        return []
    if was and now:
        return [f"the factor on the embedding: {was} -> {now}"]
    return [f"the embedding is multiplied by {now} now" if now else f"the embedding is no longer multiplied by {was}"]


def _end_norms(place: str, a: Stack, b: Stack) -> list[str]:
    def at(stack: Stack) -> list[NormFacts]:
        return [n for n in stack.norms if n.where == place]

    found = []
    for was, now in zip(at(a), at(b), strict=False):
        found += [f"its norm: {text}" for text in changes.norm_change(was, now)]
    return found


callable_module(__name__)
