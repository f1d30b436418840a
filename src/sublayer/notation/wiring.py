"""From text to the wiring of a whole design: sections, streams carried from layer to layer, defaults."""

from dataclasses import dataclass

from sublayer.notation import graph as g
from sublayer.notation.errors import DesignError
from sublayer.notation.parse import SPELLINGS, Reader
from sublayer.notation.scalar import Scalar
from sublayer.notation.text import LayerRange, RawSection, in_order, nearest, split


@dataclass
class Wiring:
    """The graphs of a whole design before they are put in normal form."""

    embed: g.Graph
    blocks: list[tuple[LayerRange, g.Graph]]
    final: g.Graph
    streams: tuple[str, ...]
    normalised: bool  # whether the last block ends in a norm


def read(text: str) -> Wiring:
    """The wiring that ``text`` describes. Raises DesignError, and nothing else, when it is not a design."""
    try:
        return _read(text)
    except RecursionError:
        raise DesignError("the design is nested too deeply", expected="local names for inner values") from None


def _read(text: str) -> Wiring:
    sections = split(text)
    _check_sections(sections, text)
    embed = _section(text, "embed", next((s for s in sections if s.kind == "embed"), None))
    ordered = in_order([s for s in sections if s.kind == "block"], text)
    blocks = [(s, _section(text, "block", s)) for s in ordered]
    final = _section(text, "final", next((s for s in sections if s.kind == "final"), None))
    calls = embed.calls + final.calls + sum(r.calls for _, r in blocks)
    if calls > g.MAX_OPERATORS:
        raise DesignError(f"a design has at most {g.MAX_OPERATORS} operator calls, got {calls}")
    streams = _streams(text, embed, [r for _, r in blocks], final)
    for reader in (embed, *(r for _, r in blocks), final):
        for s in streams:
            value = reader.env.get(s, reader.graph.input("e" if reader is embed else s))
            if isinstance(value, Scalar) or not value:
                got = "a number" if isinstance(value, Scalar) else "always zero"
                raise DesignError(
                    f"stream '{s}' must leave {reader.kind} as a value, but it is {got}",
                    expected=f"{s} = ... with a value such as attn(x)",
                )
            reader.graph.outputs[s] = value
    ends_in_norm = normalised(blocks[-1][1].graph)
    if not any(s.kind == "final" for s in sections) and not ends_in_norm:
        x = final.graph.outputs["x"]
        final.graph.outputs["x"] = final.graph.node(g.Node("norm", (x,), 0))
    return _prune(Wiring(embed.graph, [(s.layers, r.graph) for s, r in blocks], final.graph, streams, ends_in_norm))


def normalised(block: g.Graph) -> bool:
    """Whether the block leaves the stream normalised: its result is a norm, up to a factor, a learned scale or a
    gate."""
    value = block.outputs["x"]
    while len(value) == 1:
        node = block.nodes[value[0][0]]
        if node.op in g.NORMS:
            return True
        if node.op not in g.PLAIN:
            return False
        value = node.args[0]
    return False


def _section(text: str, kind: str, raw: RawSection | None) -> Reader:
    reader = Reader(text, kind)
    if raw is not None:
        reader.run(raw.statements)
    return reader


def _check_sections(sections: list[RawSection], text: str) -> None:
    for kind in ("embed", "final"):
        extra = [s for s in sections if s.kind == kind][1:]
        if extra:
            raise DesignError(
                f"a design has one {kind} section, got {len(extra) + 1}", text, extra[0].offset, len(kind)
            )
    blocks = [s for s in sections if s.kind == "block"]
    if not blocks:
        raise DesignError("a design needs a block section", text, expected="block: x = ...")
    whole = [s for s in blocks if s.layers.is_whole]
    if whole and len(blocks) > 1:
        again = blocks[1] if blocks[0] is whole[0] else whole[0]
        raise DesignError(
            "block sections must tile the depth: one covers it all already",
            text,
            again.offset,
            5,
            expected="block[:25%]: ... and block[25%:]: ...",
        )


def _streams(text: str, embed: Reader, blocks: list[Reader], final: Reader) -> tuple[str, ...]:
    """x and the names that live from layer to layer; each needs a value in embed."""
    carried: dict[str, tuple[int, int]] = {}
    for reader in (*blocks, final):
        for name, place in reader.reads.items():
            carried.setdefault(name, place)
    for name, place in carried.items():
        if name != "x" and name not in embed.env:
            known = [n for reader in (*blocks, final) for n in reader.env if n != name]
            raise DesignError(
                f"'{name}' is read before it has a value, so it is carried from layer to layer and embed must give "
                f"it one",
                text,
                *place,
                expected=f"embed: x = e; {name} = e, or an assignment to {name} before",
                nearest=nearest(name, ["x", *known]) or SPELLINGS.get(name),
            )
    return ("x", *(n for n in carried if n != "x"))


def _prune(wiring: Wiring) -> Wiring:
    """Drop streams that never reach the result, and read ``e`` directly where a stream is never updated."""
    graphs = [wiring.embed, *(block for _, block in wiring.blocks), wiring.final]
    live = frozenset({"x"}) | (wiring.final.inputs_of(frozenset({"x"})) - {"e"})
    while True:
        reads = frozenset().union(*(block.inputs_of(live) for _, block in wiring.blocks)) - {"e"}
        if reads <= live:
            break
        live |= reads
    constant = {s for s in live - {"x"} if wiring.embed.outputs[s] == wiring.embed.input("e")}
    # A stream stays the embedding if every block hands it on, or another that stays so.
    while changed := {s for s in constant if not all(_one_of(b, s, constant | {"e"}) for _, b in wiring.blocks)}:
        constant -= changed
    keep = tuple(s for s in wiring.streams if s in live - constant)
    rebuilt = []
    for graph in graphs:
        outputs = ("x",) if graph is wiring.final else keep
        rebuilt.append(_copy(graph, outputs, dict.fromkeys(constant, "e")))
    embed, *blocks, final = rebuilt
    return Wiring(
        embed,
        [(layers, b) for (layers, _), b in zip(wiring.blocks, blocks, strict=True)],
        final,
        keep,
        wiring.normalised,
    )


def _one_of(block: g.Graph, stream: str, names: set[str]) -> bool:
    """Whether the block gives a stream the value of one of the named inputs."""
    value = block.outputs[stream]
    if len(value) != 1 or not value[0][1].is_one:
        return False
    node = block.nodes[value[0][0]]
    return node.op == "input" and node.name in names


def _copy(graph: g.Graph, outputs: tuple[str, ...], rename: dict[str, str]) -> g.Graph:
    """The part of a graph that ``outputs`` need, inputs renamed."""
    new = g.Graph()
    live = graph.live(frozenset(outputs))
    index: dict[int, int] = {}

    def moved(value: g.Linear) -> g.Linear:
        total: g.Linear = ()
        for node, c in value:
            total = g.add(total, ((index[node], c),))
        if not total:
            raise DesignError(
                "a value is always zero: a stream that stays the embedding output is taken from e itself",
                expected="a value that depends on x",
            )
        return total

    for i, node in enumerate(graph.nodes):
        if i in live:
            copied = g.Node(node.op, tuple(moved(a) for a in node.args), node.group, rename.get(node.name, node.name))
            index[i] = new.node(copied)[0][0]
    new.outputs = {s: moved(graph.outputs[s]) for s in outputs}
    return new
