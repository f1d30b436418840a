"""A whole model as one wiring: embed, every layer and final unrolled into visits of modules and weighted sums.

What a norm is for shows only here: in a post-norm model the norm that the attention of layer 3 reads from is the last
one of layer 2, and in an input-norm model it is its own.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from sublayer.hf.convert.factor import Factor
from sublayer.notation import Design
from sublayer.notation.graph import BRANCHES, NORMS, WEIGHTLESS
from sublayer.notation.program import Add, Section

BLIND = frozenset({"layernorm", "rmsnorm"})  # norms that do not see the size of what they read

Key = tuple[int, str, int]  # layer, "mix" or "each", number: the branches of one layer that do the same job, in order
FactorOf = Callable[[str], Factor]


@dataclass(frozen=True)
class Visit:
    """``value = place(args)``: one call of a module; ``place`` is its name in the base model (``layers.0.attn``)."""

    value: str
    place: str
    op: str
    args: tuple[str, ...]


@dataclass(frozen=True)
class Total:
    """``value = sum of coefficient * term``; ``stream`` names the term that is the residual stream."""

    value: str
    terms: tuple[tuple[float, str], ...]
    stream: str | None

    @property
    def args(self) -> tuple[str, ...]:
        return tuple(term for _, term in self.terms)


Step = Visit | Total


class Way(NamedTuple):
    """Where a value goes: the factors it passes, and who takes it in (None: it leaves the model)."""

    factor: Factor
    end: Step | None


class Network:
    """The unrolled wiring of a model.

    Args:
        design: how it is wired.
        depth: number of layers.
        norm: what ``norm`` means: layernorm, rmsnorm or dyt.

    Attributes:
        steps: all visits and sums in the order they run.
        names: for each section by its name in the base model, its own names of values and those here.
        key: which sub-layer of its layer each visit of one is, by the visit's value.
        content: the branches that have been added to each value, and "e" where the embedding is in it.
        height: how many norms a value has passed since the embedding or a branch.
        above: the norm visits that a value has passed.
    """

    def __init__(self, design: Design, depth: int, norm: str) -> None:
        self.norm, self.depth = norm, depth
        self.steps: list[Step] = []
        self.names: dict[str, dict[str, str]] = {}
        streams = self._unroll("embed_section", design.section("embed"), {"e": "e"}, 0, depth)
        streams["e"] = "e"
        for layer in range(depth):
            streams |= self._unroll(f"layers.{layer}", design.layer(layer, depth), streams, layer + 1, depth)
        self.output = self._unroll("final_section", design.section("final"), streams, 0, depth)["x"]
        self.step = {s.value: s for s in self.steps}
        self.users: dict[str, list[Step]] = {"e": [], **{s.value: [] for s in self.steps}}
        for step in self.steps:
            for arg in dict.fromkeys(step.args):
                self.users[arg].append(step)
        self.key: dict[str, Key] = {}
        for visit in self.visits(BRANCHES):
            layer, role = self.layer(visit.place), "each" if visit.op == "ffn" else "mix"
            number = sum(key[:2] == (layer, role) for key in self.key.values())
            self.key[visit.value] = (layer, role, number)
        self._look_back()

    @property
    def branches(self) -> dict[Key, Visit]:
        """The visits of sub-layers by what they are in their layer."""
        return {self.key[v.value]: v for v in self.visits(BRANCHES)}

    def align(self, other: "Network") -> None:
        """Number the sub-layers as in another wiring: where their orders agree first, then what is left in order.

        Attention and FFN are the second and third of FFN, attention, FFN, and not the second and first.
        """
        for layer in {key[0] for key in self.key.values()}:
            mine = [(v, key) for v, key in self.key.items() if key[0] == layer]
            theirs = [key for key in other.key.values() if key[0] == layer]
            pairs = _common([key[1] for _, key in mine], [key[1] for key in theirs])
            new = {mine[i][0]: theirs[j] for i, j in pairs}
            for value, (_, role, _) in mine:
                if value not in new:
                    free = (k for k in theirs if k[1] == role and k not in new.values())
                    extra = max((k[2] for k in (*theirs, *new.values()) if k[1] == role), default=-1) + 1
                    new[value] = next(free, (layer, role, extra))
            self.key |= new
        self._look_back()

    def _unroll(self, part: str, section: Section, streams: dict[str, str], layer: int, depth: int) -> dict[str, str]:
        """Append one section; the values of the streams that it writes."""
        name = {v: streams[v] for v in section.inputs} | {s.value: f"{part}/{s.value}" for s in section.steps}
        self.names[part] = name
        for step in section.steps:
            if isinstance(step, Add):
                terms = tuple((c.value(layer, depth), name[t]) for c, t in step.terms)
                self.steps.append(Total(name[step.value], terms, name[step.stream] if step.stream else None))
            else:
                op = self.norm if step.site.op == "norm" else step.site.op
                args = tuple(name[a] for a in step.args)
                self.steps.append(Visit(name[step.value], f"{part}.{step.site.name}", op, args))
        return {stream: name[value] for stream, value in section.outputs}

    def layer(self, place: str) -> int:
        """0-based layer of a place; -1 in the embed section, the depth in the final one."""
        part, _, rest = place.partition(".")
        return int(rest.partition(".")[0]) if part == "layers" else -1 if part == "embed_section" else self.depth

    def visits(self, ops: tuple[str, ...]) -> Iterator[Visit]:
        """The visits of some operators, in order."""
        return (s for s in self.steps if isinstance(s, Visit) and s.op in ops)

    def _look_back(self) -> None:
        self.content: dict[str, frozenset[Key | str]] = {"e": frozenset({"e"})}
        self.height: dict[str, int] = {"e": 0}
        self.above: dict[str, frozenset[str]] = {"e": frozenset()}
        for step in self.steps:
            v = step.value
            if v in self.key:
                self.content[v], self.height[v], self.above[v] = frozenset({self.key[v]}), 0, frozenset()
                continue
            self.content[v] = frozenset().union(*(self.content[a] for a in step.args))
            self.height[v] = max(self.height[a] for a in step.args)
            self.above[v] = frozenset().union(*(self.above[a] for a in step.args))
            if is_norm(step):
                self.height[v] += 1
                self.above[v] |= {v}

    def chain(self, value: str, factor_of: FactorOf) -> tuple[Factor, str]:
        """The factors on the way back from ``value``, and the norm, sum, branch or input where they begin."""
        factor = Factor()
        while (step := self.step.get(value)) is not None and not is_norm(step) and value not in self.key:
            if isinstance(step, Total):
                if len(step.terms) > 1:
                    break
                factor = factor * Factor(step.terms[0][0])
            elif step.op not in WEIGHTLESS:
                factor = factor * factor_of(step.place)
            value = step.args[0]
        return factor, value

    def ways(self, value: str, factor_of: FactorOf) -> list[Way]:
        """Every way from ``value`` to a norm, a branch, a sum of several terms, or out of the model.

        Where nothing but norms that are blind to size reads a sum, only its terms beside the stream count: the factor
        is given relative to the stream's.
        """
        found = [Way(Factor(), None)] if value == self.output else []
        for user in self.users[value]:
            if isinstance(user, Total) and len(user.terms) > 1:
                own = {t: c for c, t in user.terms}
                unit = own[user.stream] if user.stream is not None and self._only_normed(user.value) else 1.0
                found.append(Way(Factor(own[value] / (unit if unit > 0 else 1.0)), user))
            elif is_norm(user) or user.value in self.key:
                found.append(Way(Factor(), user))
            else:
                if isinstance(user, Total):
                    passed = Factor(user.terms[0][0])
                else:
                    passed = Factor() if user.op in WEIGHTLESS else factor_of(user.place)
                found += [Way(passed * way.factor, way.end) for way in self.ways(user.value, factor_of)]
        return found

    def _only_normed(self, value: str) -> bool:
        ends = [way.end for way in self.ways(value, lambda place: Factor())] if value != self.output else [None]
        return bool(ends) and all(isinstance(end, Visit) and end.op in BLIND for end in ends)

    def readers(self, value: str) -> list[Visit]:
        """The branches that read ``value``, seen through factors only."""
        ends = [way.end for way in self.ways(value, lambda place: Factor())]
        return [end for end in ends if isinstance(end, Visit) and end.value in self.key]

    def private(self, value: str) -> bool:
        """Whether nothing but branches reads ``value``."""
        ends = [way.end for way in self.ways(value, lambda place: Factor())]
        return bool(ends) and all(end is not None and end.value in self.key for end in ends)


def is_norm(step: Step) -> bool:
    """Whether a step is the visit of a norm."""
    return isinstance(step, Visit) and step.op in NORMS


def _common(left: list[str], right: list[str]) -> list[tuple[int, int]]:
    """A longest common subsequence, as pairs of indices."""
    best = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i in reversed(range(len(left))):
        for j in reversed(range(len(right))):
            same = best[i + 1][j + 1] + 1 if left[i] == right[j] else 0
            best[i][j] = max(same, best[i + 1][j], best[i][j + 1])
    pairs, i, j = [], 0, 0
    while i < len(left) and j < len(right):
        if left[i] == right[j] and best[i][j] == best[i + 1][j + 1] + 1:
            pairs.append((i, j))
            i, j = i + 1, j + 1
        elif best[i + 1][j] >= best[i][j + 1]:
            i += 1
        else:
            j += 1
    return pairs
