"""Which values of a traced run the values of each equation are: for whoever wants to see them in a real run.

A layer is read twice here: as the nodes of the flow, and as the program that its equation is in normal form. Both are
computed on a few made-up numbers, every operator replaced by one fixed map; values that come out the same, up to a
factor, are the same.
"""

import ast
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from sublayer.audit import facts as fact
from sublayer.audit import read as reading_of
from sublayer.audit.acts import Unread
from sublayer.audit.branches import Branch
from sublayer.audit.designs import write
from sublayer.audit.flow import Flow
from sublayer.audit.inputs import Inputs
from sublayer.audit.result import AuditError, Stack
from sublayer.audit.section import SectionReader
from sublayer.audit.stack import StackReading
from sublayer.audit.tape import Tape, Value
from sublayer.audit.target import Target, open_target
from sublayer.notation.graph import NORMS
from sublayer.notation.program import Add, Section

SIZE = 8  # made-up numbers for each value
CLOSE = 1e-5  # relative: factors of a formula are fitted to numbers


@dataclass(frozen=True)
class LocatedSection:
    """One section of a stack.

    Attributes:
        layer: 0-based; -1 is the embed section, the number of layers the final one.
        name: ``embed``, ``block`` or ``final``.
        number, depth: what ``layer`` and ``depth`` are in its equation.
        section: the program of its equation; None where it is unknown.
        unknown: why it is unknown.
        nodes: for each value of the program the nodes that hold it, each with the factor that makes the value of it.
        branches: the sub-layers in the flow.
    """

    layer: int
    name: str
    number: int
    depth: int
    section: Section | None
    unknown: str = ""
    nodes: Mapping[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    branches: tuple[Branch, ...] = ()


@dataclass(frozen=True)
class LocatedStack:
    """One stack: its audit, its flow, the positions of the traced run, and its sections (embed, layers, final).

    ``streams`` holds, for each boundary between layers, the node of each stream's value there. ``spans`` holds the
    places on the tape where each layer begins and ends.
    """

    name: str
    stack: Stack
    flow: Flow
    length: int
    sections: tuple[LocatedSection, ...]
    streams: tuple[Mapping[str, int], ...]
    spans: tuple[tuple[int, int], ...]
    unknown: str = ""


@dataclass(frozen=True)
class Located:
    """A model as it was traced: its tape, the inputs that it was traced with, and its stacks, the last one making the
    output."""

    target: Target
    tape: Tape
    inputs: Inputs
    stacks: tuple[LocatedStack, ...]


def locate(module: Any, inputs: Any = None) -> Located:
    """Trace a live module once on the meta device, as `audit` does, and find the values of its equations on the tape.

    Args:
        module: an ``nn.Module``, or whatever else `audit` takes; nothing about a live module changes.
        inputs: what to feed it, where that cannot be guessed.

    Raises:
        AuditError: it cannot be run, or no output depends on what is fed in.
    """
    with reading_of._garbage_kept():
        target = open_target(module, inputs)
        tape, used, failures = reading_of._run(target)
        if tape is None or used is None:
            raise AuditError(reading_of._why(target, [error for _, error in failures]))
        found = reading_of._found(tape, target)
        if not found:
            raise AuditError(f"an audit follows the data from an input to the output; of {target.name} no output "
                             "depends on what was fed in; give inputs=, the arguments of one forward call")  # fmt: skip
        other = reading_of._elsewhere(target, found)
        alive = fact.living(tape)
        plain = reading_of._configured(target.config)
        stacks = []
        for k, one in enumerate(found):
            elsewhere = other[k] if k < len(other) else None
            stack = reading_of._stack(one, elsewhere, alive, tape)
            spans = tuple((layer.start, layer.stop) for layer in one.run.layers)
            if one.reading is None:
                flow = Flow(tape, tape.main[:1])
                stacks.append(LocatedStack(one.name, stack, flow, 1, (), (), spans, one.unknown))
                continue
            kind = plain or reading_of.plain_norm(one.reading.flow, one.run)
            stacks.append(_stack(one.name, one.reading, stack, tape, kind, spans, elsewhere))
        return Located(target, tape, used, tuple(stacks))


def _stack(
    name: str,
    reading: StackReading,
    stack: Stack,
    tape: Tape,
    plain: str,
    spans: tuple[tuple[int, int], ...],
    elsewhere: Any,
) -> LocatedStack:
    flow = reading.flow
    length = reading_of._length(tape, flow)
    written = write(reading, elsewhere)
    depth = len(reading.layers)
    width = [next(flow.nodes[i].width for i, n in one.items() if n == "x") for one in reading.names]
    one = written.design or next((d for d in written.singles if d is not None), None)
    sections = []

    def read_again(before: dict[int, str], after: dict[str, int], wide: int, ends: bool) -> SectionReader:
        reader = SectionReader(flow, before, wide, length, plain, ends)
        reader.ends(after)
        return reader

    if one is not None and reading.embed is not None and reading.root >= 0:
        streams = {n for later in reading.names[1:] for n in later.values()}
        start = next(i for i, n in reading.names[0].items() if n == "x")
        after = {name: node for node, name in reading.names[0].items()}
        after |= dict.fromkeys(sorted(streams - set(after)), start)
        reader = read_again({reading.root: "e"}, after, width[0], False)
        sections.append(_section(-1, "embed", 0, depth, one.section("embed"), reader))
    for i, layer in enumerate(reading.layers):
        single = written.singles[i]
        if layer.reading is None or single is None:
            unknown = layer.unknown or "its equation is not one that the notation takes"
            sections.append(LocatedSection(i, "block", i + 1, depth, None, unknown))
            continue
        after = {name: node for node, name in reading.names[i + 1].items()}
        reader = read_again(reading.names[i], after, width[i + 1], False)
        sections.append(_section(i, "block", i + 1, depth, single.blocks[0][1], reader))
    last = reading.names[-1]
    if one is not None and reading.final is not None:
        for end in _ends(flow, last):
            try:
                reader = read_again(last, {"x": end}, width[-1], True)
            except Unread:
                continue
            if reader.reading.statements == reading.final.statements:
                sections.append(_section(depth, "final", 0, depth, one.section("final"), reader))
                break
    boundaries = tuple({name: node for node, name in one.items()} for one in reading.names)
    return LocatedStack(name, stack, flow, length, tuple(sections), boundaries, spans)


def _ends(flow: Flow, last: Mapping[int, str]) -> Iterator[int]:
    """Nodes that the final section may end in: the stream itself, and what comes behind it."""
    yield next(i for i, n in last.items() if n == "x")
    begin = min(last)
    yield from (n.index for n in flow.nodes if n.index > begin and n.kind in ("norm", "sum", "factor", "stop"))


# --- one section ----------------------------------------------------------------------------------------------------


def _section(layer: int, name: str, number: int, depth: int, section: Section, reader: SectionReader) -> LocatedSection:
    given = set(reader.inputs.values())
    best: dict[str, tuple[tuple[int, float], ...]] = {}
    others = [s for s in section.inputs if s not in ("x", "e")]
    # The normal form may have given the streams beside x other names.
    for order in list(permutations(others)) or [()]:
        renamed = dict(zip(others, order, strict=True))
        start = {s: _made_up(renamed.get(s, s) if renamed.get(s, s) in given else "x") for s in section.inputs}
        found = _matched(_of_program(section, start, number, depth), _of_nodes(reader, {s: _made_up(s) for s in given}))
        if len(found) > len(best):
            best = found
    return LocatedSection(layer, name, number, depth, section, "", best, tuple(reader.reading.branches))


def _matched(values: Mapping[str, Tensor], nodes: Mapping[int, Tensor]) -> dict[str, tuple[tuple[int, float], ...]]:
    """The nodes whose numbers are those of a value up to a factor, of the same value the last first."""
    found = {}
    places = sorted(nodes, reverse=True)
    numbers = torch.stack([nodes[i] for i in places]) if places else torch.zeros(0, SIZE, dtype=torch.float64)
    square = numbers.square().sum(1)
    taken: dict[tuple[int, ...], int] = {}
    for name, value in values.items():
        factor = (numbers @ value) / square.clamp_min(1e-300)  # [places]
        gap = (factor[:, None] * numbers - value).norm(dim=1)
        close = [k for k in (gap <= CLOSE * value.norm()).nonzero().flatten().tolist() if float(factor[k]) != 0.0]
        if not close:
            continue
        # Two values that nothing tells apart (two sub-layers of one kind side by side) are given different nodes.
        alike = tuple(places[k] for k in close)
        turn = taken.get(alike, 0)
        taken[alike] = turn + 1
        exact = [k for k in close if abs(float(factor[k]) - 1.0) <= CLOSE]
        ordered = [*exact[turn % max(1, len(exact)) :], *exact[: turn % max(1, len(exact))]]
        ordered += [k for k in close if k not in ordered]
        found[name] = tuple(
            (places[k], 1.0 if abs(float(factor[k]) - 1.0) <= CLOSE else float(factor[k])) for k in ordered
        )
    return found


def _made_up(name: str) -> Tensor:
    """Numbers for a value that is given, the same whenever its name is."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"value {name}".encode()))
    return torch.randn(SIZE, generator=generator, dtype=torch.float64)


def _applied(op: str, args: Sequence[Tensor]) -> Tensor:
    """What stands for an operator: one fixed map of its arguments, not linear."""
    kind = "norm" if op in NORMS else op
    total = torch.zeros(SIZE, dtype=torch.float64)
    for place, arg in enumerate(args):
        generator = torch.Generator().manual_seed(zlib.crc32(f"operator {kind} {place}".encode()))
        matrix = torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)
        total += matrix @ arg / SIZE**0.5
    return torch.sin(total + 0.7) + 0.1 * total


def _of_program(section: Section, start: Mapping[str, Tensor], number: int, depth: int) -> dict[str, Tensor]:
    values = dict(start)
    for step in section.steps:
        if isinstance(step, Add):
            values[step.value] = sum(
                (scalar.value(number, depth) * values[v] for scalar, v in step.terms),
                torch.zeros(SIZE, dtype=torch.float64),
            )
        else:
            values[step.value] = _applied(step.site.op, [values[a] for a in step.args])
    return values


def _of_nodes(reader: SectionReader, start: Mapping[str, Tensor]) -> dict[int, Tensor]:
    """Numbers for every node that the reading has a variable for, and for those that are one of them times a factor."""
    values = dict(start)
    own = {variable: node for node, variable in reader.names.items() if node not in reader.inputs}
    found = {node: values[name] for node, name in reader.inputs.items()}
    for statement in reader.reading.statements:
        if statement.target not in own:
            continue
        tree = ast.parse(statement.text.format(*[repr(float(f)) for f in statement.factors]), mode="eval").body
        values[statement.target] = found[own[statement.target]] = _evaluated(tree, values)
    flow = reader.flow
    stop = max(found, default=0)
    for node in flow.nodes[min(found, default=0) :]:
        if node.index not in found and node.kind == "sum" and len(node.inputs) == 1 and node.inputs[0] in found:
            found[node.index] = node.factors[0] * found[node.inputs[0]]
        if node.index > stop:
            break
    return found


def _evaluated(tree: ast.expr, values: Mapping[str, Tensor]) -> Any:
    if isinstance(tree, ast.Name):
        return values[tree.id]
    if isinstance(tree, ast.Constant):
        return tree.value
    if isinstance(tree, ast.UnaryOp):
        return -_evaluated(tree.operand, values)
    if isinstance(tree, ast.BinOp):
        left, right = _evaluated(tree.left, values), _evaluated(tree.right, values)
        return left * right if isinstance(tree.op, ast.Mult) else left + right
    assert isinstance(tree, ast.Call)
    assert isinstance(tree.func, ast.Name)
    return _applied(tree.func.id.partition("_")[0], [_evaluated(a, values) for a in tree.args])


# --- from nodes to values of the tape ---------------------------------------------------------------------------------


def values_of(flow: Flow, node: int) -> list[Value]:
    """All values of the tape that are one node: as it was made, and every view, cast and copy of it."""
    first = flow.nodes[node].value.index
    return [flow.tape.values[i] for i, n in flow.of.items() if n == node and i >= first]
