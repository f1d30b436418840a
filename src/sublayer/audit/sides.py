"""The two things that `diff` compares: what each is, and its layers as sections of the notation."""

import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sublayer.audit.result import Audit, LayerAudit, Stack
from sublayer.notation import Design, DesignError, Section, parse
from sublayer.notation.catalogue import ambiguous, lookup, unsupported_lookup
from sublayer.notation.explain import Placement, placements

NOMINAL = 24  # layers that designs with ranges are compared at, where no model says how many


@dataclass(frozen=True)
class Layer:
    """One layer of a side.

    Attributes:
        equation: empty if it is unknown.
        design: a model whose layers are all like this one; None if the equation is unknown.
        unknown: why the equation is unknown.
        facts: what an audit knows of it; None for a design.
    """

    equation: str
    design: Design | None
    unknown: str = ""
    facts: LayerAudit | None = None

    @cached_property
    def section(self) -> Section | None:
        return self.design.blocks[0][1] if self.design else None

    @cached_property
    def placements(self) -> list[Placement]:
        return placements(self.design) if self.design else []


@dataclass(frozen=True)
class Lane:
    """One stack of a side: an audit's, or a design at a number of layers."""

    name: str
    layers: tuple[Layer, ...]
    embed: str
    final: str
    design: Design | None
    unknown: str = ""
    stack: Stack | None = None


@dataclass(frozen=True)
class Side:
    """An audit or a design, with its name for the reader."""

    name: str
    audit: Audit | None = None
    design: Design | None = None

    def lanes(self, depth: int) -> list[Lane]:
        """The stacks; of a design one, with ``depth`` layers."""
        if self.audit is not None:
            return [_lane(stack) for stack in self.audit.stacks]
        return [at_depth(self.design, depth)] if self.design is not None else []


def side(target: Any) -> Side:
    """What is meant by ``target``: an Audit, a Design, a design by name or equation, or anything that `audit` takes.

    A string that is a design, by name or as an equation, is one unless a file has that path; write
    ``openai-community/gpt2`` for the Hub's model.
    """
    if isinstance(target, Audit):
        return Side(target.target, audit=target)
    if isinstance(target, str) and is_design(target):
        target = parse(target)
    if isinstance(target, Design):
        return Side(target.name or one_line(target), design=target)
    from sublayer.audit.read import audit

    found = audit(target)
    return Side(found.target, audit=found)


def is_design(text: str) -> bool:
    """Whether a string is meant as a design, right or wrong, and not as a model."""
    if "=" in text or "\n" in text:
        return True
    if os.path.exists(text):
        return False
    return lookup(text) is not None or ambiguous(text) is not None or unsupported_lookup(text) is not None


def one_line(design: Design) -> str:
    """The text of a design without line breaks."""
    return str(design).replace("\n", "; ")


def at_depth(design: Design, depth: int) -> Lane:
    """A design with so many layers."""
    layers = []
    try:
        made = {section.text: _alone(single(design, k)) for k, (_, section) in enumerate(design.blocks)}
        layers = [made[design.layer(i, depth).text] for i in range(depth)]
    except DesignError as error:
        return Lane("model", (), design.embed, design.final, design, f"it does not fit {depth} layers: {error}")
    return Lane("model", tuple(layers), design.embed, design.final, design)


def _alone(one: Design) -> Layer:
    return Layer(one.block, one)


def single(design: Design, block: int) -> Design:
    """The design of a model whose layers are all like one block of ``design``."""
    if len(design.blocks) == 1:
        return design
    _, section = design.blocks[block]
    return parse(f"embed: {design.embed}\nblock: {section.text}\nfinal: {design.final}")


def _lane(stack: Stack) -> Lane:
    layers = tuple(Layer(layer.equation, layer.design, layer.unknown, layer) for layer in stack.layers)
    return Lane(stack.name, layers, stack.embed, stack.final, stack.design, stack.unknown, stack)
