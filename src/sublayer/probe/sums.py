"""What a section's program says about its sums: which norm reads one, what made a term, how a person writes it."""

from sublayer.notation.graph import NORMS
from sublayer.notation.program import Add, Call, Section

# Operators that do a sub-layer's work, by the name the measure record gives them.
KINDS = {"attn": "attn", "dot": "attn", "cross": "attn", "ffn": "ffn", "moe": "ffn", "mixer": "mixer", "op": "op"}


def following_norm(section: Section, value: str) -> Call | None:
    """The norm that is the only reader of `value`, if there is one."""
    users = section.users[value]
    if len(users) == 1 and value not in dict(section.outputs).values():
        reader = users[0]
        if isinstance(reader, Call) and reader.site.op in NORMS:
            return reader
    return None


def kind(section: Section, value: str) -> str:
    """What made a term: "attn" (also for dot), "ffn", "attn+ffn" where both did, "stream" where no sub-layer did."""
    branch = section.branch(value)
    if branch is not None:
        return KINDS[branch.site.op]
    makers = (section.step.get(v) for v in (*section.ancestors[value], value))
    found = {KINDS[m.site.op] for m in makers if isinstance(m, Call) and m.site.op in KINDS}
    return "+".join(sorted(found)) or "stream"


def stream_name(section: Section, value: str) -> str:
    """The section's input that a stream value goes back to, through sums and norms; else the value's equation."""
    step = section.step.get(value)
    if step is None:
        return value
    if isinstance(step, Add) and step.stream is not None:
        return stream_name(section, step.stream)
    through = isinstance(step, Call) and step.site.op not in KINDS
    if through or (isinstance(step, Add) and len(step.terms) == 1):
        return stream_name(section, step.args[0])
    return section.expression(value)


def equation(section: Section, step: Add) -> str:
    """The + as a person writes it, its stream by name: `x + ffn(norm(x))`."""
    assert step.stream is not None
    names = {value: value for value in section.inputs} | {step.stream: stream_name(section, step.stream)}

    def text(value: str) -> str:
        if value in names:
            return names[value]
        inner = section.step[value]
        if isinstance(inner, Call):
            return f"{inner.site.call}({', '.join(map(text, inner.args))})"
        return joined(inner)

    def joined(add: Add) -> str:
        parts = []
        for scalar, value in add.terms:
            inner = section.step.get(value)
            bare = scalar.is_one or value in names or isinstance(inner, Call)
            parts.append((scalar, text(value) if bare else f"({text(value)})"))
        return section.sum_text(Add(add.value, tuple(parts)))

    return joined(step)
