"""Where each sub-layer stands, computed from the wiring and said in words."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sublayer.notation.graph import BRANCHES, NORMS
from sublayer.notation.paths import is_output, only_branches, origin, passes, residual_term, ways
from sublayer.notation.program import Add, Call, Section, Step
from sublayer.notation.scalar import Scalar
from sublayer.notation.text import LayerRange

if TYPE_CHECKING:
    from sublayer.notation.design import Design

MOST_NAMES = 4  # sub-layers that a sentence lists by name

_KINDS = {
    (False, False, False): "no norm",
    (True, False, False): "input norm",
    (False, True, False): "output norm",
    (True, True, False): "sandwich",
    (False, False, True): "post-norm",
    (True, False, True): "input norm and norm of the sum",
    (False, True, True): "output norm and norm of the sum",
    (True, True, True): "sandwich and norm of the sum",
}


@dataclass(frozen=True)
class Placement:
    """How one sub-layer is wired.

    Attributes:
        layers: the layer range it is in, as written: ``[:]`` for all layers.
        site: the sub-layer's site, ``attn`` or ``ffn_2``.
        op: its operator.
        kind: "input norm", "output norm", "post-norm" (norm of the sum), "sandwich" (input and output),
            "residual after the norm", "no norm", or two of them.
        input_norm, output_norm, sum_norm: whether a norm stands before it, after it, and on the sum that takes it in.
        residual: "stream" where its sum has a residual, "normed" where that is taken after the norm, else "none".
        parallel: sites of the sub-layers that neither feed it nor are fed by it.
        scaling: what scales it or its residual, each as a phrase.
        sums: how many sums take its output in.
    """

    layers: str
    site: str
    op: str
    kind: str
    input_norm: bool
    output_norm: bool
    sum_norm: bool
    residual: Literal["stream", "normed", "none"]
    parallel: tuple[str, ...]
    scaling: tuple[str, ...]
    sums: int

    def __str__(self) -> str:
        parts = [_SENTENCE.get(self.kind, self.kind)]
        if self.residual == "normed" and self.kind != _AFTER_NORM:
            parts.append("residual taken after the norm")
        elif self.residual == "none":
            parts.append("no residual")
        parts.append(f"in parallel with {_listed(self.parallel)}" if self.parallel else "in series")
        if self.sums > 1:
            parts.append(f"added to {self.sums} sums")
        return "; ".join([*parts, *self.scaling])


_AFTER_NORM = "residual after the norm"
_SENTENCE = {
    _AFTER_NORM: "residual after the norm: the normed value that it reads is also the residual",
    "input norm": "input norm: it reads a normed copy of the stream",
    "output norm": "output norm: its output is normed",
    "sandwich": "sandwich: input norm and output norm",
    "post-norm": "post-norm: the sum is normed",
}


def placements(design: "Design") -> list[Placement]:
    """Every sub-layer of the block sections, in the order in which they run."""
    found = []
    for layers, section in design.blocks:
        calls = {s.value: s for s in section.steps if isinstance(s, Call) and s.site.op in BRANCHES}
        names = {value: section.label(value) for value in calls}
        found += [_placement(section, call, layers, names) for call in calls.values()]
    return found


def _placement(section: Section, call: Call, layers: LayerRange, names: dict[str, str]) -> Placement:
    before = _before(section, call)
    after = ways(section, call.value)
    joins = [way for way in after if isinstance(way.end, Add)]
    join = joins[0] if joins else None
    input_norm = any(_is_norm(s) for s in before)
    output_norm = any(_is_norm(s) for way in joins or after[:1] for s in way.passed)
    sum_norm = any(isinstance(way.end, Add) and _sum_is_normed(section, way.end) for way in joins)
    residual, stream = _residual(section, call, join.end, join.term) if join else ("none", None)
    if residual == "normed":
        # The norm on the stream is no input norm: what it gives is also the residual.
        input_norm = any(_is_norm(s) and only_branches(section, s.value) for s in before)
        if sum_norm and not _reads_normed_input(section, stream):
            residual = "stream"  # the norm is that of the sum before: plain post-norm
    kind = _KINDS[input_norm, output_norm, sum_norm]
    if residual == "normed" and kind == "no norm":
        kind = _AFTER_NORM
    scaling = _scaling(before, "what it reads") + (_scaling(join.passed, "what it adds") if join else ())
    if join and isinstance(join.end, Add):
        scaling += _factors(section, join.end, join.term, stream)
    return Placement(
        layers=str(layers),
        site=names[call.value],
        op=call.site.op,
        kind=kind,
        input_norm=input_norm,
        output_norm=output_norm,
        sum_norm=sum_norm,
        residual=residual,
        parallel=_parallel(section, call, names),
        scaling=tuple(dict.fromkeys(scaling)),
        sums=len(joins),
    )


def _before(section: Section, call: Call) -> list[Step]:
    """The steps between the last sum or sub-layer and the call, of those that lead to sub-layers only."""
    found = []
    for arg in call.args:
        value = arg
        while (step := section.step.get(value)) is not None and passes(step):
            # The output norm of another sub-layer is that sub-layer's.
            if not only_branches(section, value) or (_is_norm(step) and section.branch(value) is not None):
                break
            found.append(step)
            value = step.args[0]
    return found


def _is_norm(step: Step | None) -> bool:
    return isinstance(step, Call) and step.site.op in NORMS


def _sum_is_normed(section: Section, add: Add) -> bool:
    """Whether a sum goes nowhere but into norms of the stream, seen through scales and factors."""
    users = section.users[add.value]
    if not users or is_output(section, add.value):
        return False
    return all(_stream_norm_ahead(section, user) for user in users)


def _stream_norm_ahead(section: Section, step: Step) -> bool:
    if _is_norm(step):
        return not only_branches(section, step.value)
    if not passes(step) or is_output(section, step.value):
        return False
    users = section.users[step.value]
    return bool(users) and all(_stream_norm_ahead(section, user) for user in users)


def _residual(
    section: Section, call: Call, end: Step | None, term: str
) -> tuple[Literal["stream", "normed", "none"], str | None]:
    if not isinstance(end, Add):
        return "none", None
    stream = residual_term(section, end)
    if stream is None or stream == term or section.branch(stream) == call:
        return "none", None
    value: str | None = stream
    # A residual that passes through a norm which the sub-layer reads as well.
    while value is not None and passes(step := section.step.get(value)) and step is not None:
        if _is_norm(step) and value in section.ancestors[call.value]:
            return "normed", stream
        value = step.args[0]
    return "stream", stream


def _reads_normed_input(section: Section, stream: str | None) -> bool:
    """Whether the residual is a norm of what comes into the block, not of a sum within it."""
    return stream is not None and origin(section, stream) in section.inputs


def _parallel(section: Section, call: Call, names: dict[str, str]) -> tuple[str, ...]:
    before = section.ancestors
    return tuple(
        name
        for value, name in names.items()
        if value != call.value and value not in before[call.value] and call.value not in before[value]
    )


def _scaling(steps: "list[Step] | tuple[Step, ...]", what: str) -> tuple[str, ...]:
    found = []
    for step in steps:
        if isinstance(step, Add):
            found.append(f"{what} is multiplied by {step.terms[0][0]}")
        elif step.site.op == "scale":
            found.append(f"{what} is scaled per channel ({step.site.call})")
        elif step.site.op == "gate":
            found.append(f"{what} is multiplied by a learned number ({step.site.call})")
        elif step.site.op == "stop":
            found.append(f"no gradient flows through {what}")
    return tuple(found)


def _factors(section: Section, add: Add, term: str, stream: str | None) -> tuple[str, ...]:
    factor: dict[str, Scalar] = {value: scalar for scalar, value in add.terms}
    found: tuple[str, ...] = ()
    if not factor[term].is_one:
        found += (f"what it adds is multiplied by {factor[term]}",)
    if stream is not None:
        if not factor[stream].is_one:
            found += (f"the residual is multiplied by {factor[stream]}",)
        passed = []
        value = stream
        while passes(step := section.step.get(value)) and step is not None and not _is_norm(step):
            passed.append(step)
            value = step.args[0]
        found += _scaling(passed, "the residual")
    return found


def _listed(names: tuple[str, ...]) -> str:
    if len(names) > MOST_NAMES:
        return f"{len(names)} others"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def range_in_words(layers: LayerRange) -> str:
    """``all layers``, ``the first 25% of the layers``, ``layers 2 to 5``, ``the last layer`` and so on."""
    start, stop = layers.start, layers.stop
    if layers.is_whole:
        return "all layers"
    if start.kind == "open":
        if stop.kind == "index" and stop.value > 0:
            return "the first layer" if stop.value == 1 else f"the first {stop} layers"
        if stop.kind == "index":
            return "all but the last layer" if stop.value == -1 else f"all but the last {-stop.value} layers"
        return f"the first {stop} of the layers"
    if stop.kind == "open":
        if start.kind == "index" and start.value > 0:
            return "all but the first layer" if start.value == 1 else f"all but the first {start} layers"
        if start.kind == "index":
            return "the last layer" if start.value == -1 else f"the last {-start.value} layers"
        return f"the layers from {start} on"
    if start.kind == stop.kind == "index" and start.value >= 0 and stop.value > 0:
        # People count layers from one.
        first, last = int(start.value) + 1, int(stop.value)
        return f"layer {first}" if first == last else f"layers {first} to {last}"
    if start.kind == stop.kind == "percent":
        return f"the layers from {start} to {stop}"
    return f"the layers {layers}"


def explain(design: "Design") -> str:
    """The three sections, each with its equation, and in words where each sub-layer stands."""
    embed, final = design.section("embed"), design.section("final")
    lines = [f"embed  {embed.text}", f"         {_embedding(embed)}"]
    found = placements(design)
    width = max((len(p.site) for p in found), default=0)
    for layers, section in design.blocks:
        where = "" if layers.is_whole else f"{layers}  ({range_in_words(layers)})"
        lines.append(f"block{where}" if where else f"block  {section.text}")
        if where:
            lines.append(f"         {section.text}")
        mine = [p for p in found if p.layers == str(layers)]
        lines += [f"         {p.site:<{width}}  {p}" for p in mine] or ["         no sub-layer"]
    lines += [f"final  {final.text}", f"         {_ending(final)}"]
    return "\n".join(lines)


def _embedding(section: Section) -> str:
    phrases = []
    for stream, value in section.outputs:
        name = "the stream" if stream == "x" else f"carried stream {stream}"
        plain = value in section.inputs
        phrases.append(f"{name} starts as " + ("the embedding" if plain else section.expression(value)))
    return "; ".join(phrases).replace("(e)", "(embedding)")


def _ending(section: Section) -> str:
    value = dict(section.outputs)["x"]
    if value in section.inputs:
        return "the stream as the last block leaves it"
    step = section.step[value]
    if _is_norm(step) and step.args[0] in section.inputs:
        return "a last norm on the stream"
    return f"the result is {section.expression(value)}"
