"""Where gradients go: which values of a model need one, and which get one, by the graph alone."""

from collections.abc import Sequence
from dataclasses import dataclass

from sublayer.notation.graph import NORMS
from sublayer.notation.program import Call, Section
from sublayer.sizes import Sizes

Sections = Sequence[tuple[str, Section]]


@dataclass(frozen=True)
class Flow:
    """Gradients in one section.

    Attributes:
        needs: for each value whether something trained lies before it: its gradient is asked for.
        gets: for each value whether the loss is reached from it with a gradient on the way.
    """

    needs: dict[str, bool]
    gets: dict[str, bool]


def gradient_flow(sections: Sections, shape: Sizes) -> list[Flow]:
    """The flow in each section, in order: the embed section, the layers, the final section.

    The tables of the embedding are trained, so ``e`` needs a gradient; the loss reads the final section's ``x``.
    """
    needs: list[dict[str, bool]] = []
    streams = {"e": True}
    for _, section in sections:
        found = {name: streams[name] for name in section.inputs}
        for step in section.steps:
            found[step.value] = _needs(step, shape, any(found[arg] for arg in step.args))
        streams |= {stream: found[value] for stream, value in section.outputs}
        needs.append(found)
    gets: list[dict[str, bool]] = []
    wanted = {"x": True}
    for (_, section), known in zip(reversed(sections), reversed(needs), strict=True):
        found = dict.fromkeys(known, False)
        for stream, value in section.outputs:
            found[value] |= wanted.pop(stream, False) and known[value]
        for step in reversed(section.steps):
            if found[step.value] and not (isinstance(step, Call) and step.site.op == "stop"):
                for arg in step.args:
                    found[arg] |= known[arg]
        for name in section.inputs:
            wanted[name] = wanted.get(name, False) or found[name]
        gets.append(found)
    return [Flow(n, g) for n, g in zip(needs, reversed(gets), strict=True)]


def _needs(step: object, shape: Sizes, read: bool) -> bool:
    if not isinstance(step, Call):
        return read
    op = step.site.op
    if op == "stop":
        return False
    if op in NORMS:
        return read or bool(shape.norm_affine) or op == "dyt" or (op == "norm" and shape.norm == "dyt")
    return read or op != "dot"


def ends_unsaved(section: Section, shape: Sizes) -> Call | None:
    """The call whose output product gradient checkpointing need not run again: the last to keep anything, if so.

    Running a block again ends once all that was saved is there. A product saves what it reads before it runs; sums,
    factors that are plain numbers, and ``stop`` save nothing.
    """
    calls = [step for step in section.steps if isinstance(step, Call) and step.site.op != "stop"]
    if not calls or shape.hidden_dropout_prob or calls[-1].site.op not in ("attn", "ffn"):
        return None
    return calls[-1]
