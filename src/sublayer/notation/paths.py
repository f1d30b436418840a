"""Ways through a section: from a sub-layer back to what it reads, and on to the sum that takes it in."""

from dataclasses import dataclass

from sublayer.notation.graph import BRANCHES, NORMS, PLAIN
from sublayer.notation.program import Add, Call, Section, Step


def passes(step: Step | None) -> bool:
    """Whether a step only changes the size of one value: a norm, scale, gate, stop, or a factor."""
    if isinstance(step, Call):
        return step.site.op in NORMS or step.site.op in PLAIN
    return step is not None and len(step.terms) == 1


def origin(section: Section, value: str) -> str:
    """The value that ``value`` is, seen through norms, scales, gates and factors."""
    while passes(step := section.step.get(value)) and step is not None:
        value = step.args[0]
    return value


def is_output(section: Section, value: str) -> bool:
    """Whether a value leaves the section."""
    return any(value == v for _, v in section.outputs)


def only_branches(section: Section, value: str) -> bool:
    """Whether nothing but sub-layers reads ``value``, seen through norms, scales, gates and factors."""
    users = section.users[value]
    return (
        bool(users)
        and not is_output(section, value)
        and all(
            (isinstance(u, Call) and u.site.op in BRANCHES) or (passes(u) and only_branches(section, u.value))
            for u in users
        )
    )


def residual_term(section: Section, add: Add, stream: str = "x") -> str | None:
    """The term that carries the stream: the one the others come from, else the one that is no sub-layer's output."""
    if len(add.terms) < 2 or add.stream is not None:
        return add.stream
    plain = [t for t in add.args if section.branch(t) is None]
    own = [t for t in plain if origin(section, t) == stream]
    return next(iter(own or plain), None)


def spine(section: Section, stream: str) -> list[str]:
    """The values along which a stream runs through the section, from its result back to where it comes in.

    At a sum the path goes on with a term that the stream comes in by; of several with the one that has been summed
    most, so that of two skips the short one is the stream and the long one a bypass. It ends at an input, or at a sum
    of sub-layers with no stream among its terms.
    """
    score = {v: (v == stream, 0) for v in section.inputs}  # whether the stream comes in by this path, and its sums
    below: dict[str, str] = {}
    for step in section.steps:
        value = step.value
        if isinstance(step, Add) and len(step.terms) > 1:
            residual = residual_term(section, step, stream)
            plain = [t for t in step.args if section.branch(t) is None] or ([residual] if residual else [])
            if not plain:
                score[value] = (False, 0)
                continue
            term = max(plain, key=lambda t: (score[t], t == residual))
            score[value] = (score[term][0], score[term][1] + 1)
        else:
            term = step.args[0]
            score[value] = score[term]
        below[value] = term
    path = [dict(section.outputs)[stream]]
    while path[-1] in below:
        path.append(below[path[-1]])
    return path


@dataclass(frozen=True)
class Way:
    """Where a value goes: the steps it passes, and where it ends: a sum, a sub-layer, or an output of the section."""

    passed: tuple[Step, ...]
    end: Step | None
    term: str  # the value that arrives at the end


def ways(section: Section, value: str) -> list[Way]:
    """Every way that ``value`` takes to a sum, a sub-layer or out of the section."""
    found = [Way((), None, value)] if is_output(section, value) else []
    for user in section.users[value]:
        if passes(user):
            found += [Way((user, *way.passed), way.end, way.term) for way in ways(section, user.value)]
        else:
            found.append(Way((), user, value))
    return found
