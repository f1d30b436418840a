"""Which layers are converted, and the design of a model whose layers run different equations."""

import re
from collections.abc import Iterable

from sublayer.hf.convert.errors import ConvertError
from sublayer.notation import Design, Section, parse
from sublayer.notation.catalogue import resolve
from sublayer.notation.text import split

_PART = re.compile(r"(\d+)-(\d+)|(-?\d+)?(?:(:)(-?\d+)?)?")


def read_layers(spec: str, depth: int) -> tuple[int, ...]:
    """The layers that a text names, 0-based and sorted.

    Args:
        spec: parts separated by commas: ``3``, ``5-7`` (both ends included), ``2:6`` (the end left out, as in a
            design), ``:3``, ``-2:``.
        depth: number of layers.

    Raises:
        ConvertError: a part that is none of these, or that names no layer of the model.
    """
    chosen: set[int] = set()
    for part in (p.strip() for p in spec.split(",")):
        match = _PART.fullmatch(part)
        if match is None or not part:
            raise ConvertError(f"layers are written 3, 5-7, 2:6 or :3, separated by commas; got {part!r} in {spec!r}")
        if match[1] is not None:
            first, stop = int(match[1]), int(match[2]) + 1
        elif match[4]:
            first, stop = _from_end(match[3], 0, depth), _from_end(match[5], depth, depth)
        else:
            first = _from_end(match[3], 0, depth)
            stop = first + 1
        if not 0 <= first < stop <= depth:
            raise ConvertError(
                f"layers lie within 0..{depth - 1} in this model and a range has its first layer before its end; got "
                f"{part!r}: name layers of the model"
            )
        chosen |= set(range(first, stop))
    return tuple(sorted(chosen))


def _from_end(text: str | None, default: int, depth: int) -> int:
    if text is None:
        return default
    return int(text) + (depth if text.startswith("-") else 0)


def wanted(design: str | Design, before: Design) -> Design:
    """The design that a model of design ``before`` is to get.

    A text that says nothing of ``embed`` keeps the model's embed section where both hand on the same streams: who asks
    for ``x = norm(x + attn(x) + ffn(x))`` asks for a block. `embed: x = e` drops it. A Design is taken as it is.
    """
    after = parse(design)
    if isinstance(design, Design) or after.streams != before.streams or after.embed == before.embed:
        return after
    entry = resolve(design)
    kinds = {section.kind for section in split(entry.text if entry is not None else design)}
    if "embed" in kinds:
        return after
    return _whole(before.embed, [(layers, s.text) for layers, s in after.blocks], after.final)


def _whole(embed: str, blocks: Iterable[tuple[object, str]], final: str) -> Design:
    lines = [f"block{'' if str(layers) == '[:]' else layers}: {text}" for layers, text in blocks]
    return parse("\n".join([f"embed: {embed}", *lines, f"final: {final}"]))


def mixed(before: Design, after: Design, layers: Iterable[int], depth: int) -> Design:
    """The design in which ``layers`` run ``after`` and the others ``before``; neighbours that are equal share a range.

    The embed section is that of ``before``, the final section that of the design which the last layer runs.

    Raises:
        ConvertError: the two cannot stand in one model: they hand on different streams, or carry streams besides ``x``
            that begin or end differently.
    """
    chosen = set(layers)
    before.check_depth(depth)
    after.check_depth(depth)
    if chosen == set(range(depth)):
        return after
    if not chosen:
        return before
    if before.streams != after.streams:
        raise ConvertError(
            f"layers of one model hand on the same streams; the model's hand on {', '.join(before.streams)} and those "
            f"of the new design {', '.join(after.streams)}: convert all layers, or choose a design with those streams"
        )
    if len(before.streams) > 1 and (before.embed, before.final) != (after.embed, after.final):
        raise ConvertError(
            f"streams beside x mean the same only where they begin and end alike; the model has embed: {before.embed} "
            f"and final: {before.final}, the new design embed: {after.embed} and final: {after.final}: convert all "
            "layers"
        )
    if after.embed not in ("x = e", before.embed):
        raise ConvertError(
            f"a model has one embed section; this model's is {before.embed} and the new design's {after.embed}: leave "
            "it out, or convert all layers"
        )
    texts = [(after if i in chosen else before).layer(i, depth).text for i in range(depth)]
    return _whole(before.embed, _ranges(texts), (after if depth - 1 in chosen else before).final)


def layerwise(before: Design, blocks: dict[int, Section | str], depth: int) -> Design:
    """``before`` with the equations of some layers replaced; embed and final stay.

    Raises:
        DesignError: the equations do not make a design.
    """
    texts = [before.layer(i, depth).text for i in range(depth)]
    for i, block in blocks.items():
        texts[i] = block if isinstance(block, str) else block.text
    return _whole(before.embed, _ranges(texts), before.final)


def _ranges(texts: list[str]) -> list[tuple[str, str]]:
    """Neighbours of one equation as one range, from open to open."""
    starts = [i for i, text in enumerate(texts) if i == 0 or text != texts[i - 1]]
    ends = [*starts[1:], None]
    return [
        (f"[{start or ''}:{'' if end is None else end}]", texts[start]) for start, end in zip(starts, ends, strict=True)
    ]
