"""Facts of an audit in words: ranges of layers, groups of names, one line for a sub-layer or a norm.

`show` and `diff` speak with these, so that one fact is always said in one way.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from sublayer.audit.result import BranchFacts, NormFacts
from sublayer.notation import Design, designs, parse
from sublayer.notation.program import Add

ATTENTION = frozenset({"attn", "cross", "dot"})
# What a person calls an operator.
SPOKEN = {
    "attn": "attention",
    "dot": "weightless attention",
    "cross": "cross-attention",
    "ffn": "FFN",
    "moe": "mixture of experts",
    "mixer": "mixer",
    "op": "unnamed sub-layer",
}
QK_PLACES = frozenset({"query", "key", "query or key"})
MOST_RUNS = 4  # runs of layers that are listed one by one
MOST_NAMES = 12  # groups of names that are listed


# --- layers and names ---------------------------------------------------------------------------------------------


def runs(indices: Iterable[int]) -> list[tuple[int, int]]:
    """First and last of every run of consecutive numbers."""
    found: list[tuple[int, int]] = []
    for i in sorted(set(indices)):
        if found and found[-1][1] == i - 1:
            found[-1] = (found[-1][0], i)
        else:
            found.append((i, i))
    return found


def numbers(indices: Iterable[int]) -> str:
    """``0-11``; ``0, 2, ..., 22`` where runs of one length come at one distance."""
    spans = runs(indices)
    said = [str(a) if a == b else f"{a}-{b}" for a, b in spans]
    if len(spans) > MOST_RUNS:
        steps = {b[0] - a[0] for a, b in pairwise(spans)}
        if len(steps) == 1 and len({b - a for a, b in spans[:-1]}) == 1:
            return f"{said[0]}, {said[1]}, ..., {said[-1]}"
    return ", ".join(said)


def layers(indices: Iterable[int]) -> str:
    """``layer 3``, ``layers 0-11``."""
    chosen = sorted(set(indices))
    return f"layer{'s' if len(chosen) > 1 else ''} {numbers(chosen)}"


def grouped(names: Sequence[str]) -> list[str]:
    """Dotted names with their numbers gathered: ``layers.0-11.x``."""
    by_shape: dict[tuple[str, ...], list[tuple[int, ...]]] = {}
    for name in dict.fromkeys(names):
        parts = name.split(".")
        shape = tuple("" if p.isdecimal() else p for p in parts)
        by_shape.setdefault(shape, []).append(tuple(int(p) for p in parts if p.isdecimal()))
    found = []
    for shape, places in by_shape.items():
        for said in _boxes(places):
            spans = iter(said)
            found.append(".".join(part or next(spans) for part in shape))
    return _stems(found)


def _stems(names: Sequence[str]) -> list[str]:
    """Names that differ in their last part only, together: ``q.{weight, bias}``."""
    ends: dict[str, list[str]] = {}
    for name in names:
        stem, dot, end = name.rpartition(".")
        ends.setdefault(stem + dot, []).append(end)
    found = []
    for stem, last in ends.items():
        found += [stem + "{" + ", ".join(last) + "}"] if stem and len(last) > 1 else [stem + end for end in last]
    return found


def _boxes(places: list[tuple[int, ...]]) -> list[tuple[str, ...]]:
    """Places as few products of ranges: all of one box, else one box for each first number."""
    if not places or not places[0]:
        return [()] if places else []
    axes = [sorted({p[i] for p in places}) for i in range(len(places[0]))]
    size = 1
    for axis in axes:
        size *= len(axis)
    if size == len(places):
        return [tuple("{" + n + "}" if "," in (n := numbers(axis)) else n for axis in axes)]
    by_rest: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for first in axes[0]:
        rest = tuple(sorted(p[1:] for p in places if p[0] == first))
        by_rest.setdefault(rest, []).append(first)
    found = []
    for rest, firsts in by_rest.items():
        said = numbers(firsts)
        found += [("{" + said + "}" if "," in said else said, *inner) for inner in _boxes(list(rest))]
    return found


def listed(items: Sequence[str], most: int = MOST_NAMES) -> str:
    """Items with commas, of very many the first and how many more."""
    more = len(items) - most
    return ", ".join(items[:most]) + (f", and {more} more" if more > 0 else "")


def number(value: Any) -> str:
    """A number as short as it can be written."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def plural(count: int, word: str) -> str:
    """``1 head``, ``12 heads``."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


# --- norms --------------------------------------------------------------------------------------------------------


def norm(facts: NormFacts) -> str:
    """``rmsnorm, eps 1e-05, gain``."""
    if facts.kind == "dyt":
        return "dyt (a scaled tanh)"
    eps = "eps unknown" if facts.eps is None else f"eps {number(facts.eps)}"
    affine = "nothing learned" if facts.affine == "none" else facts.affine.replace("+", " and ")
    return f"{facts.kind}, {eps}, {affine}"


def outside(norms: Iterable[NormFacts]) -> list[NormFacts]:
    """Norms that stand in the equation: not those inside a sub-layer."""
    return [n for n in norms if n.where not in QK_PLACES and n.where != "latent" and not n.where.startswith("inside")]


# --- sub-layers ---------------------------------------------------------------------------------------------------


def sites(branches: Iterable[BranchFacts]) -> list[str]:
    """What each sub-layer of a layer is called: ``attn``, ``ffn``, ``ffn_2``."""
    found: list[str] = []
    seen: dict[str, int] = {}
    for branch in branches:
        seen[branch.op] = seen.get(branch.op, 0) + 1
        found.append(branch.op if seen[branch.op] == 1 else f"{branch.op}_{seen[branch.op]}")
    return found


def branch(facts: BranchFacts, width: int, norms: Sequence[NormFacts] = ()) -> str:
    """What is known of one sub-layer, in a line."""
    details = facts.details
    if facts.op in ATTENTION:
        parts = _attention(details, norms)
    elif facts.op == "ffn":
        parts = [ffn_width(details), *_ffn(details)]
    elif facts.op == "moe":
        parts = _experts(details)
    elif facts.op == "mixer":
        parts = [f"mixes by {details['mixes']}"] if details.get("mixes") else []
    else:
        parts = ["placed, not named"]
    inner = [n for n in norms if n.where == f"inside {facts.op}"]
    if inner:
        parts += [f"norm inside: {text}" for text in dict.fromkeys(norm(n) for n in inner)]
    elif details.get("inner_norm") is True:
        parts.append("a norm inside")
    if width and facts.reads and facts.writes and (facts.reads, facts.writes) != (width, width):
        parts.append(f"reads {facts.reads} and writes {facts.writes} channels")
    return ", ".join(p for p in parts if p) or "nothing known of it"


def _attention(details: Mapping[str, Any], norms: Sequence[NormFacts]) -> list[str]:
    heads, groups, width = details.get("heads"), details.get("kv_heads"), details.get("head_dim")
    parts = []
    if heads is not None:
        parts.append(plural(heads, "head") + (f" of {width}" if width else ""))
    if groups is not None and groups != heads:
        parts.append(plural(groups, "key-value head"))
    if details.get("output_projection") is False:
        parts.append("no output projection W_o")
    kind = details.get("qk_norm")
    if kind not in (None, "none"):
        own = [n for n in norms if n.where in QK_PLACES or (kind == "latent" and n.where == "latent")]
        said = " / ".join(dict.fromkeys(norm(n) for n in own))
        parts.append(f"{QK_NORMS.get(kind, f'QK-norm ({kind})')}" + (f": {said}" if said else ""))
    if details.get("gated") is True:
        parts.append("output gated")
    return parts


QK_NORMS = {
    "none": "no QK-norm",
    "head": "QK-norm per head",
    "full": "QK-norm over all heads",
    "latent": "norm on the compressed queries or keys",
}


def ffn_width(details: Mapping[str, Any]) -> str:
    """``3072 wide (4d)``."""
    width, ratio = details.get("width"), details.get("ratio")
    if width is None:
        return "width unknown"
    return f"{width} wide" + (f" ({times_d(ratio)})" if ratio else "")


def times_d(ratio: Any) -> str:
    """``4d``, ``2.667d``, ``d``; a record that was read may hold anything here."""
    return "d" if ratio == 1 else f"{ratio:.4g}d" if isinstance(ratio, int | float) else f"{ratio} d"


def _ffn(details: Mapping[str, Any]) -> list[str]:
    return ["gated" if details.get("gated") is True else "", str(details.get("activation") or "")]


def _experts(details: Mapping[str, Any]) -> list[str]:
    count = details.get("experts")
    parts = ["number of experts unknown" if count is None else plural(count, "expert")]
    if details.get("shared_expert") is True:
        parts.append("and a shared one")
    return [" ".join(parts), *([ffn_width(details), *_ffn(details)] if "width" in details else [])]


# --- designs ------------------------------------------------------------------------------------------------------


def standing(design: Design) -> tuple[tuple[str, ...], str]:
    """Where a design stands among the named ones: their names, and what sets it apart from them (empty: nothing)."""
    if design.names:
        return design.names, ""
    bare, factor = without_factor(design)
    if factor and bare.names:
        return bare.names, f"but for the factor {factor} on the embedding"
    first = _first_of_block(design.block)
    if first is None:
        return (), ""
    wanted = parse(first)
    apart = [
        f"{part}: {mine}"
        for part, mine, theirs in (("embed", design.embed, wanted.embed), ("final", design.final, wanted.final))
        if mine != theirs
    ]
    return wanted.names, f"but for {' and '.join(apart)}"


def without_factor(design: Design) -> tuple[Design, str]:
    """The design without a constant factor on the embedding, and that factor; empty if there is none."""
    section = design.section("embed")
    found = [s for s in section.steps if isinstance(s, Add) and s.args == ("e",) and not s.terms[0][0].is_one]
    if len(found) != 1:
        return design, ""
    written = section.sum_text(found[0])
    if section.text.count(written) != 1:
        return design, ""
    record = {**design.to_dict(), "name": None, "embed": section.text.replace(written, "e")}
    return Design.from_dict(record), str(found[0].terms[0][0])


def _first_of_block(block: str) -> str | None:
    """The first entry of the catalogue with this block."""
    named = ((entry.name, parse(entry.name)) for entry in designs())
    return next((name for name, design in named if design.block == block and design.streams == ("x",)), None)


def in_words(names: Sequence[str]) -> str:
    """``input-norm, as gpt-2, llama and 3 more``."""
    if not names:
        return "no named design"
    head, rest = names[0], list(names[1:])
    return head + (f" (the wiring of {listed(rest, 5)})" if rest else "")
