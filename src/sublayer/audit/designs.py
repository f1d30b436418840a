"""From what was read of each layer to designs: factors become scalars, equal layers become ranges."""

from collections.abc import Mapping
from dataclasses import dataclass

from sublayer.audit.depths import Elsewhere, Factors, bound, starts
from sublayer.audit.factors import fit, number
from sublayer.audit.section import Reading
from sublayer.audit.stack import LayerReading, StackReading, only, template
from sublayer.notation import Design, DesignError, Scalar, parse
from sublayer.notation.scalar import ONE


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


def write(stack: StackReading, elsewhere: Elsewhere | None = None) -> Written:
    """Put a stack into the notation. ``elsewhere`` is the same model at other depths."""
    here = Elsewhere()
    here.add(stack)
    scalars = _fitted(here.factors, elsewhere.factors if elsewhere else {})
    depth = len(stack.layers)
    embed = _fixed(stack.embed) if stack.embed else _unnamed(stack)
    final = _fixed(stack.final)
    blocks: list[str] = []
    for i, layer in enumerate(stack.layers):
        blocks.append(_block(layer, scalars, i + 1, depth))
    _complete(stack, blocks, scalars)
    streams = {n for boundary in stack.names for n in boundary.values()}
    singles = [_single(embed, block, final, streams) if block else None for block in blocks]
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
        design = _design(embed, _ranges(blocks, elsewhere), final)
        if design is None:
            reasons.append(
                f"{len(_ranges(blocks, elsewhere))} runs of different layers are more than one design can hold"
            )
    one = design or next((d for b in blocks if b and (d := _design(embed, [("", b)], final)) is not None), None)
    if one is None and embed:
        alone = _design(embed, [("", "x = x + attn(x)")], "")
        embed = alone.embed if alone else embed
    return Written(
        one.embed if one else embed,
        one.final if one and stack.final is not None else "",
        equations,
        singles,
        design,
        reasons[0] + (f" (and {len(reasons) - 1} more like it)" if len(reasons) > 1 else "") if reasons else "",
    )


def _complete(stack: StackReading, blocks: list[str], scalars: Mapping[str, list[Scalar | None]]) -> None:
    """Give the first and the last layer all streams.

    At the first boundary two streams may still be one value, and after the last layer one may be read by nothing.
    Such a layer is written as its neighbour is where the two compute the same, seen through what is known there.
    """
    names = [set(boundary.values()) for boundary in stack.names]
    everything = set().union(*names[1:-1]) if len(names) > 2 else set()
    depth = len(blocks)
    if len(everything) < 2 or depth < 2 or not (blocks[0] and blocks[1] and blocks[-2] and blocks[-1]):
        return
    if names[0] < everything:
        same = "; ".join(f"{n} = x" for n in sorted(everything - names[0]))
        expected = f"{same}; {_numbers(stack.layers[1], scalars, 1, depth)}"
        if _equal(expected, f"{same}; {_numbers(stack.layers[0], scalars, 1, depth)}", names[1]):
            blocks[0] = blocks[1]
    if names[-1] < everything:
        expected = _numbers(stack.layers[-2], scalars, depth, depth)
        if _equal(expected, _numbers(stack.layers[-1], {}, depth, depth), names[-1]):
            blocks[-1] = blocks[-2]


def _numbers(layer: LayerReading, scalars: Mapping[str, list[Scalar | None]], at: int, depth: int) -> str:
    """A layer's block with every factor as the number that it is, or would be, in layer ``at``."""
    fitted = scalars.get(layer.template) or [None] * len(layer.factors)
    values = [f if s is None else s.value(at, depth) for s, f in zip(fitted, layer.factors, strict=True)]
    return layer.template.format(*[f"({number(float(f'{v:.12g}'))})" for v in values])


def _equal(one: str, other: str, results: set[str]) -> bool:
    left = only(one, results)
    return left is not None and left == only(other, results)


def _ranges(blocks: list[str], elsewhere: Elsewhere | None) -> list[tuple[str, str]]:
    """Neighbouring layers of one block as one range."""
    begins = starts(blocks)
    if len(begins) == 1:
        return [("", blocks[0])]
    depth = len(blocks)
    others = {d: b for d, b in (elsewhere.bounds if elsewhere else {}).items() if len(b) == len(begins)}
    ends = [bound({depth: begins[j], **{d: b[j] for d, b in others.items()}}, depth) for j in range(1, len(begins))]
    limits = ["", *ends, ""]
    return [(f"[{a}:{b}]", blocks[i]) for i, a, b in zip(begins, limits[:-1], limits[1:], strict=True)]


def _design(embed: str, blocks: list[tuple[str, str]], final: str) -> Design | None:
    lines = [f"embed: {embed}" if embed else "", *(f"block{where}: {text}" for where, text in blocks)]
    lines.append(f"final: {final}" if final else "final: x = x")
    try:
        return parse("\n".join(line for line in lines if line))
    except DesignError:
        return None


def _single(embed: str, block: str, final: str, streams: set[str]) -> Design | None:
    """The design of a model whose layers are all like this one, with no stream that the layer writes left out."""
    design = _design(embed, [("", block)], final)
    if design is None or len(design.streams) == len(streams):
        return design
    # A final that does not read a stream makes it vanish from the block too: let this one read them all.
    everything = "x = " + " + ".join(sorted(streams, key=lambda n: (n != "x", n)))
    whole = _design(embed, [("", block)], everything)
    return whole if whole is not None and len(whole.streams) > len(design.streams) else design


def _block_text(design: Design | None) -> str:
    return design.blocks[0][1].text if design else ""


def _unnamed(stack: StackReading) -> str:
    """An embed that could not be read: each stream begins as something that comes of the embedding."""
    streams = sorted({n for boundary in stack.names for n in boundary.values()}, key=lambda n: (n != "x", n))
    return "; ".join(f"{name} = op(e)" for name in streams) if len(streams) > 1 else ""


def _fixed(reading: Reading | None) -> str:
    """A section that stands once: its factors are numbers."""
    if reading is None:
        return ""
    values = [f"({number(f)})" if f != 1.0 else "1" for s in reading.statements for f in s.factors]
    return template(reading).format(*values)


def _block(layer: LayerReading, scalars: Mapping[str, list[Scalar | None]], index: int, depth: int) -> str:
    if layer.reading is None:
        return ""
    fitted = scalars.get(layer.template, [])
    values = []
    for i, value in enumerate(layer.factors):
        scalar = fitted[i]
        values.append(f"({scalar if scalar is not None else number(value)})" if scalar is not ONE else "1")
    return layer.template.format(*values)


def _fitted(here: Factors, elsewhere: Factors) -> dict[str, list[Scalar | None]]:
    """For each template and factor in it the one scalar that all its layers agree with, if there is one."""
    found: dict[str, list[Scalar | None]] = {}
    for text, by_layer in here.items():
        both = {**elsewhere.get(text, {}), **by_layer}
        count = len(next(iter(by_layer.values())))
        found[text] = [_scalar({place: values[i] for place, values in both.items()}) for i in range(count)]
    return found


def _scalar(samples: dict[tuple[int, int], float]) -> Scalar | None:
    return ONE if all(v == 1.0 for v in samples.values()) else fit(samples)
