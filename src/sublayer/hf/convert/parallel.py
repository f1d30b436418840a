"""The parallel form of a serial block, by rewriting its graph.

Every sub-layer comes to read the value of the stream that the first one reads, through the norms that only it has. A
norm on the stream between two sub-layers goes: where another stands on the stream, because that one keeps it normed;
where none does, it becomes the input norm of the sub-layers that read it. Thus

    x = x + attn(norm(x)); x = x + ffn(norm(x))     becomes     x = x + attn(norm(x)) + ffn(norm(x))
    x = norm(x + attn(x)); x = norm(x + ffn(x))     becomes     x = norm(x + attn(x) + ffn(x))
"""

from dataclasses import dataclass, field

from sublayer.hf.convert.errors import ConvertError
from sublayer.notation.graph import BRANCHES, NORMS
from sublayer.notation.paths import is_output, only_branches, passes
from sublayer.notation.program import Add, Call, Section, Step
from sublayer.notation.scalar import ONE, Scalar


@dataclass(frozen=True)
class Serial:
    """A sub-layer that reads a stream to which earlier ones of its layer were added.

    Attributes:
        branch: the sub-layer.
        earlier: the sub-layers whose outputs are in what it reads.
    """

    branch: Call
    earlier: tuple[Call, ...]


def serial_branches(section: Section) -> tuple[Serial, ...]:
    """The sub-layers of a block that wait for another one's output on the stream, in order."""
    content = _content(section)
    found = []
    for step in section.steps:
        if isinstance(step, Call) and step.site.op in BRANCHES:
            read = content[step.args[0]]
            earlier = tuple(s for s in section.steps if isinstance(s, Call) and s.value in read)
            if earlier and read & set(section.inputs):
                found.append(Serial(step, earlier))
    return tuple(found)


def parallel_design(section: Section) -> str:
    """The equation of the parallel form of a block; for `parse`.

    Raises:
        ConvertError: no sub-layer of the block waits for another on a stream.
    """
    if not serial_branches(section):
        waits = any(_is_branch(s) and _content(section)[s.args[0]] - set(section.inputs) for s in section.steps)
        reason = (
            "the sub-layers read only what another one wrote, and no stream goes round it"
            if waits
            else "no sub-layer of it reads a stream to which an earlier one of the layer was added"
        )
        raise ConvertError(
            f"only a serial block has a parallel form, and in {section.text} {reason}: leave it as it is"
        )
    return _Rewriter(section).text()


def _is_branch(step: Step | None) -> bool:
    return isinstance(step, Call) and step.site.op in BRANCHES


def _content(section: Section) -> dict[str, frozenset[str]]:
    """The inputs and the sub-layers whose outputs each value holds, not looking into sub-layers."""
    content = {v: frozenset({v}) for v in section.inputs}
    for step in section.steps:
        own = frozenset({step.value}) if _is_branch(step) else frozenset().union(*(content[a] for a in step.args))
        content[step.value] = own
    return content


@dataclass
class _Rewriter:
    section: Section
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        section = self.section
        self.content = _content(section)
        self.inputs = set(section.inputs)
        self.serial = {s.branch.value for s in serial_branches(section)}
        self.middle = {s.value for s in section.steps if self._between(s)}
        on_stream = {s.value for s in section.steps if self._on_stream(s)}
        self.stays = bool(on_stream - self.middle)  # a norm that keeps the stream normed
        self.name = {v: v for v in section.inputs}

    def _on_stream(self, step: Step) -> bool:
        """Whether a step is a norm that the stream itself passes."""
        if not (isinstance(step, Call) and step.site.op in NORMS and self.content[step.value] & self.inputs):
            return False
        return not only_branches(self.section, step.value) or bool(self.content[step.value] - self.inputs)

    def _between(self, step: Step) -> bool:
        """Whether a step is a norm of the stream between two sub-layers."""
        if not self._on_stream(step) or not self.content[step.value] - self.inputs:
            return False
        if only_branches(self.section, step.value):
            return False
        return any(step.value in self.section.ancestors[b] for b in self.serial)

    def text(self) -> str:
        for step in self.section.steps:
            self.name[step.value] = self._emit(self._rewritten(step))
        # The streams get their values at once: one may be called what another still reads.
        final = [(stream, self._emit(self.name[value])) for stream, value in self.section.outputs]
        return "; ".join([*self.lines, *(f"{stream} = {value}" for stream, value in final)])

    def _emit(self, expression: str) -> str:
        name = f"p{len(self.lines) + 1}"
        self.lines.append(f"{name} = {expression}")
        return name

    def _rewritten(self, step: Step) -> str:
        if isinstance(step, Add):
            return " + ".join(_term(c, self.name[t]) for c, t in step.terms)
        if step.value in self.middle:
            return self._unnormed(step.args[0])
        args = [self._entry(a) if step.value in self.serial else self.name[a] for a in step.args]
        return f"{step.site.call}({', '.join(args)})"

    def _unnormed(self, value: str) -> str:
        """A sum in place of its norm. The norm makes the stream's own part about as large as it was, whatever factor
        it has in the sum."""
        step = self.section.step.get(value)
        if isinstance(step, Add) and step.stream is not None:
            unit = next(c for c, t in step.terms if t == step.stream)
            if not unit.is_one:
                return f"({self.name[value]}) * {_text(ONE / unit)}"
        return self.name[value]

    def _entry(self, value: str) -> str:
        """What a sub-layer reads in place of ``value``: the same, with no earlier sub-layer in it."""
        if not self.content[value] - self.inputs:
            return self.name[value]
        step = self.section.step[value]
        private = only_branches(self.section, value) and not is_output(self.section, value)
        if passes(step) and (private or value in self.middle):
            inner = self._entry(step.args[0])
            if isinstance(step, Add):
                return self._emit(_term(step.terms[0][0], inner)) if private else inner
            if private and not self._last_resort(step):
                return self._emit(f"{step.site.call}({inner})")
            return inner if self.stays else self._emit(f"{step.site.call}({inner})")
        if isinstance(step, Add):
            stream = step.stream or next((t for t in step.args if self.content[t] & self.inputs), step.args[0])
            return self._entry(stream)
        return self._entry(step.args[0])

    def _last_resort(self, step: Step) -> bool:
        return step.value in self.middle


def _text(scalar: Scalar) -> str:
    return f"({scalar})"


def _term(scalar: Scalar, name: str) -> str:
    return name if scalar.is_one else f"{_text(scalar)}*{name}"
