"""A section in normal form: a straight-line program over named values, and its text.

The same statements give the equation that is printed and the Python that is run (`sublayer.notation.code`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from sublayer.notation.graph import BRANCHES
from sublayer.notation.scalar import Scalar, render


@dataclass(frozen=True)
class Site:
    """The owner of one parameter set: the module's attribute name, its operator, and its label where calls share it."""

    name: str
    op: str
    label: str = ""

    @property
    def call(self) -> str:
        """The operator as the notation spells it at this site: ``norm``, or ``norm_a`` where two calls share
        parameters."""
        return f"{self.op}_{self.label}" if self.label else self.op


@dataclass(frozen=True)
class Call:
    """``value = site(args)``."""

    value: str
    site: Site
    args: tuple[str, ...]


@dataclass(frozen=True)
class Add:
    """``value = sum of scalar * term``; ``stream`` names the term that is the residual stream, if one is."""

    value: str
    terms: tuple[tuple[Scalar, str], ...]
    stream: str | None = None

    @property
    def args(self) -> tuple[str, ...]:
        return tuple(term for _, term in self.terms)


Step = Call | Add


@dataclass(frozen=True)
class Statement:
    """``target = value`` as printed: ``target`` is a variable that may be assigned again later."""

    target: str
    value: str


@dataclass(frozen=True)
class Section:
    """One section (embed, one block, or final) as a program in static single assignment.

    Attributes:
        inputs: values it is given; streams with ``x`` first, and ``e`` where it reads the embedding output.
        steps: calls and sums in the order they can be computed.
        outputs: (stream, value) pairs, ``x`` first.
        statements: how the steps are gathered into printed statements.
    """

    inputs: tuple[str, ...]
    steps: tuple[Step, ...]
    outputs: tuple[tuple[str, str], ...]
    statements: tuple[Statement, ...]

    @cached_property
    def step(self) -> dict[str, Step]:
        """The step that computes each value."""
        return {s.value: s for s in self.steps}

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """Parameter owners, each once, in canonical order."""
        return tuple(dict.fromkeys(s.site for s in self.steps if isinstance(s, Call)))

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams it writes, ``x`` first."""
        return tuple(stream for stream, _ in self.outputs)

    @cached_property
    def users(self) -> dict[str, list[Step]]:
        """The steps that read each value."""
        users: dict[str, list[Step]] = {v: [] for v in (*self.inputs, *self.step)}
        for step in self.steps:
            for arg in dict.fromkeys(step.args):
                users[arg].append(step)
        return users

    @cached_property
    def sums(self) -> tuple[Add, ...]:
        """Every ``+``: the sums with a residual stream among their terms."""
        return tuple(s for s in self.steps if isinstance(s, Add) and s.stream is not None)

    @property
    def text(self) -> str:
        """The equation of this section in normal form."""
        return "; ".join(
            f"{target} = {expression}"
            for target, expression in self.render(lambda call, args: f"{call.site.call}({', '.join(args)})")
        )

    def render(self, call: Callable[[Call, list[str]], str]) -> list[tuple[str, str]]:
        """(target, expression) of each statement; ``call`` writes one operator call from its arguments' texts."""
        variable = {v: v for v in self.inputs}
        lines = []
        for statement in self.statements:
            text = variable.get(statement.value) or self._expression(statement.value, variable, call)
            lines.append((statement.target, text))
            # An input keeps its own variable, unless it was set aside because that one is needed.
            if statement.value not in self.inputs or statement.target not in self.streams:
                variable[statement.value] = statement.target
        return lines

    def expression(self, value: str) -> str:
        """The equation of one value written out down to the section's inputs."""
        return self._expression(value, {v: v for v in self.inputs}, lambda c, args: f"{c.site.call}({', '.join(args)})")

    def _expression(self, value: str, variable: dict[str, str], call: Callable[[Call, list[str]], str]) -> str:
        step = self.step.get(value)
        if step is None:
            return value

        def inner(v: str) -> str:
            return variable.get(v) or self._expression(v, variable, call)

        if isinstance(step, Call):
            return call(step, [inner(a) for a in step.args])

        def factor(scalar: Scalar, term: str) -> str:
            text = inner(term)
            bare = term in variable or isinstance(self.step.get(term), Call) or scalar.is_one
            return text if bare else f"({text})"

        return _join(step, factor)

    def sum_text(self, step: Add) -> str:
        """A sum with each term by the name of its value."""
        return _join(step, lambda scalar, term: term)

    def branch(self, value: str) -> Call | None:
        """The sub-layer that a value is the output of, seen through norms, scales, gates and factors."""
        step = self.step.get(value)
        while step is not None:
            if isinstance(step, Call) and step.site.op in BRANCHES:
                return step
            if isinstance(step, Add) and len(step.terms) > 1:
                return None
            step = self.step.get(step.args[0])
        return None

    def label(self, value: str) -> str:
        """What a person calls a value: ``x``, ``attn``, ``ffn_2``, or the equation where it is none of these."""
        call = self.branch(value)
        if call is not None:
            same = [s for s in self.steps if isinstance(s, Call) and s.site == call.site]
            return call.site.name if len(same) == 1 else f"{call.site.name}[{same.index(call) + 1}]"
        return value if value in self.inputs else self.expression(value)

    def labels(self, add: Add) -> tuple[str, ...]:
        """The label of each term of a sum, told apart where one sub-layer's output enters twice."""
        plain = [self.label(t) for t in add.args]
        full = [self.expression(t) if plain.count(p) > 1 else p for t, p in zip(add.args, plain, strict=True)]
        return tuple(f"{f} [{t}]" if full.count(f) > 1 else f for t, f in zip(add.args, full, strict=True))

    @cached_property
    def ancestors(self) -> dict[str, frozenset[str]]:
        """All values that each value is computed from, itself left out."""
        found: dict[str, frozenset[str]] = {v: frozenset() for v in self.inputs}
        for step in self.steps:
            found[step.value] = frozenset(step.args).union(*(found[a] for a in step.args))
        return found


def _join(step: Add, factor: Callable[[Scalar, str], str]) -> str:
    """``c1*t1 + c2*t2 - ...`` with ``factor`` writing each term."""
    parts = []
    for i, (scalar, term) in enumerate(step.terms):
        text = factor(scalar, term)
        if len(scalar.terms) > 1 or not scalar.negative:
            parts.append((" + " if i else "") + render(scalar, text))
        else:
            parts.append((" - " if i else "-") + render(-scalar, text))
    return "".join(parts)
