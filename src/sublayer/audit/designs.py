"""From what was read of each layer to designs: factors become scalars, equal layers become ranges."""

from collections.abc import Mapping
from dataclasses import dataclass

from sublayer.audit.factors import fit, number
from sublayer.audit.section import Reading
from sublayer.audit.stack import LayerReading, StackReading, template
from sublayer.notation import Design, DesignError, Scalar, parse

Samples = dict[str, dict[tuple[int, int], tuple[float, ...]]]  # template -> (layer, depth) -> factors


@dataclass
class Written:
    """A stack in the notation.

    Attributes:
        embed, final: sections in normal form; empty where they could not be read.
        equations: normal form of each layer's block; empty where it is unknown.
        singles: for each layer the design of a model in which all layers are like it.
        design: all of it; None if anything is unknown.
        unknown: why there is no design.
    """

    embed: str
    final: str
    equations: list[str]
    singles: list[Design | None]
    design: Design | None
    unknown: str = ""


def samples(stack: StackReading) -> Samples:
    """The factors of every layer, by the template they stand in."""
    found: Samples = {}
    depth = len(stack.layers)
    for i, layer in enumerate(stack.layers):
        if layer.factors:
            found.setdefault(layer.template, {})[i + 1, depth] = layer.factors
    return found


def write(stack: StackReading, elsewhere: Samples | None = None) -> Written:
    """Put a stack into the notation. ``elsewhere`` holds factors of the same model at other depths."""
    scalars = _fitted(samples(stack), elsewhere or {})
    depth = len(stack.layers)
    embed = _fixed(stack.embed)
    final = _fixed(stack.final)
    blocks: list[str] = []
    for i, layer in enumerate(stack.layers):
        blocks.append(_block(layer, scalars, i + 1, depth))
    singles = [_design(embed, [("", block)], final) if block else None for block in blocks]
    equations = [_block_text(d) for d in singles]
    reasons = [f"layer {i}: {layer.unknown}" for i, layer in enumerate(stack.layers) if layer.unknown]
    reasons += [
        f"layer {i}: its equation is not one that the notation takes"
        for i, (b, d) in enumerate(zip(blocks, singles, strict=True))
        if b and d is None
    ]
    if stack.final is None:
        reasons.append("what follows the last layer could not be read")
    design = None
    if not reasons:
        design = _design(embed, _ranges(blocks), final)
        if design is None:
            reasons.append(f"{len(_ranges(blocks))} runs of different layers are more than one design can hold")
    one = next((d for d in singles if d is not None), None)
    return Written(
        one.embed if one else embed,
        one.final if one and stack.final is not None else "",
        equations,
        singles,
        design,
        reasons[0] + (f" (and {len(reasons) - 1} more like it)" if len(reasons) > 1 else "") if reasons else "",
    )


def _ranges(blocks: list[str]) -> list[tuple[str, str]]:
    """Neighbouring layers of one block as one range."""
    found: list[tuple[int, int, str]] = []
    for i, block in enumerate(blocks):
        if found and found[-1][2] == block:
            found[-1] = (found[-1][0], i + 1, block)
        else:
            found.append((i, i + 1, block))
    if len(found) == 1:
        return [("", found[0][2])]
    last = len(blocks)
    return [(f"[{a or ''}:{b if b < last else ''}]", text) for a, b, text in found]


def _design(embed: str, blocks: list[tuple[str, str]], final: str) -> Design | None:
    lines = [f"embed: {embed}" if embed else "", *(f"block{where}: {text}" for where, text in blocks)]
    lines.append(f"final: {final}" if final else "final: x = x")
    try:
        return parse("\n".join(line for line in lines if line))
    except DesignError:
        return None


def _block_text(design: Design | None) -> str:
    return design.blocks[0][1].text if design else ""


def _fixed(reading: Reading | None) -> str:
    """A section that stands once: its factors are numbers."""
    if reading is None:
        return ""
    values = [f"({number(f)})" for s in reading.statements for f in s.factors]
    return template(reading).format(*values)


def _block(layer: LayerReading, scalars: Mapping[str, list[Scalar | None]], index: int, depth: int) -> str:
    if layer.reading is None:
        return ""
    fitted = scalars.get(layer.template, [])
    values = []
    for i, value in enumerate(layer.factors):
        scalar = fitted[i]
        values.append(f"({scalar if scalar is not None else number(value)})")
    return layer.template.format(*values)


def _fitted(here: Samples, elsewhere: Samples) -> dict[str, list[Scalar | None]]:
    """For each template and factor in it the one scalar that all its layers agree with, if there is one."""
    found: dict[str, list[Scalar | None]] = {}
    for text, by_layer in here.items():
        both = {**elsewhere.get(text, {}), **by_layer}
        count = len(next(iter(by_layer.values())))
        found[text] = [fit({place: values[i] for place, values in both.items()}) for i in range(count)]
    return found
