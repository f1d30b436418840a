"""Measures under the names that TransformerLens gives its hooks (Nanda & Bloom 2022), found by structure.

A name says a place in a block with attention and an FFN. Where the block of this model has no such place (a parallel
block has no stream between its two sub-layers) the name is refused with the reason.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sublayer.probe.errors import ProbeError
from sublayer.probe.measuring import Record

_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
PLACES = (
    "hook_resid_pre",
    "hook_resid_mid",
    "hook_resid_post",
    "hook_attn_out",
    "hook_mlp_out",
    "attn.hook_pattern",
    "attn.hook_attn_scores",
    "ln1.hook_normalized",
    "ln2.hook_normalized",
    "ln1_post.hook_normalized",
    "ln2_post.hook_normalized",
)
NAMES = (*(f"blocks.N.{place}" for place in PLACES), "ln_final.hook_normalized")
_NORMS = {  # which sub-layer's norm, and on which side of it
    "ln1": ("attn", "in"),
    "ln2": ("ffn", "in"),
    "ln1_post": ("attn", "out"),
    "ln2_post": ("ffn", "out"),
}
_FFN = ("ffn", "moe")


def at(record: Record, name: str) -> Record:
    """What was measured at a place, by TransformerLens' name for it.

    Args:
        record: a probe's record.
        name: one of ``NAMES`` with a layer's number for N.

    Returns:
        Of a stream or a sub-layer's output ``{"place", "isotropy", "norm"}``, of an output also ``ratio``, ``cosine``
        and ``without``; of a norm ``{"place", "before", "after"}``; of a pattern ``{"place", "sites"}``.

    Raises:
        ProbeError: there is no such name, no such layer, no such place in its block, or it was not measured.
    """
    if name == "ln_final.hook_normalized":
        norms = [n for n in record.get("norms", ()) if n["section"] == "final"]
        if not norms:
            raise ProbeError(f"{name} is the norm behind the last layer: this model has none that was measured")
        return _norm(norms[-1])
    match = _BLOCK.fullmatch(name)
    place = match[2] if match else ""
    if match is None or place not in PLACES:
        raise ProbeError(f"a place is one of {', '.join(NAMES)}, N a layer's number: got {name!r}")
    layer, depth = int(match[1]), len(record["layers"])
    if layer >= depth:
        raise ProbeError(f"this model has {depth} layers, 0 to {depth - 1}: got {name!r}")
    if place.endswith(("hook_pattern", "hook_attn_scores")):
        sites = record["layers"][layer]["attention"]
        if not sites:
            raise ProbeError(
                f"{name}: no attention shares were seen in layer {layer}; give attention_rows of at least 1"
            )
        return {"place": f"attention of layer {layer}", "sites": sites}
    if place.endswith("hook_normalized"):
        return _norm_of(record, layer, place.partition(".")[0], name)
    sums = [s for s in record["sums"] if s["layer"] == layer and s["section"] == "block" and s["stream"] == "x"]
    if not sums:
        raise ProbeError(f"{name}: {_why_not(record, layer)}")
    if place in ("hook_attn_out", "hook_mlp_out"):
        return _term(sums, "attn" if place == "hook_attn_out" else "ffn", layer, name)
    return _stream(record, sums, layer, place, name)


def _stream(record: Record, sums: Sequence[Record], layer: int, place: str, name: str) -> Record:
    if any(u["layer"] == layer and u["section"] == "block" for u in record.get("not_measured", ())):
        raise ProbeError(f"{name}: a + of the layer is missing; {_why_not(record, layer)}")
    first, last = sums[0], sums[-1]
    if place == "hook_resid_pre":
        if not first.get("from_input", True):
            raise ProbeError(f"{name}: the first + of layer {layer} ({first['equation']}) does not add to what the "
                             "layer is given")  # fmt: skip
        return {"place": "the stream into the layer", "isotropy": first["before"], "norm": first["before_norm"]}
    if place == "hook_resid_post":
        return {"place": f"the sum {last['equation']}", "isotropy": last["sum"], "norm": last["sum_norm"]}
    kinds = [[_kind(t) for t in s["terms"]] for s in sums]
    if any("attn" in k and "ffn" in k for k in kinds):
        raise ProbeError(
            f"{name}: attention and FFN of layer {layer} are parallel ({sums[0]['equation']}): both read one value and "
            "one + adds both, so there is no stream between them; ask for hook_resid_pre or hook_resid_post"
        )
    middle = next((k for k, found in enumerate(kinds) if "attn" in found), None)
    if middle is None or middle == len(sums) - 1:
        raise ProbeError(
            f"{name} is the sum that attention is added to, with an FFN behind it: layer {layer} is "
            f"{'; '.join(s['equation'] for s in sums)}"
        )
    found = sums[middle]
    return {"place": f"the sum {found['equation']}", "isotropy": found["sum"], "norm": found["sum_norm"]}


def _kind(term: Mapping[str, Any]) -> str:
    return str(term["kind"])


def _term(sums: Sequence[Record], wanted: str, layer: int, name: str) -> Record:
    found = [(s, t) for s in sums for t in s["terms"] if t["kind"] == wanted]
    own = [(s, t) for s, t in found if not str(t.get("branch") or "").startswith("cross")] or found
    if not own:
        raise ProbeError(f"{name}: no + of layer {layer} adds a term of {wanted} alone: it is "
                         f"{'; '.join(s['equation'] for s in sums)}")  # fmt: skip
    of_sum, term = own[0]
    return {
        "place": f"{term['term']} in {of_sum['equation']}",
        "isotropy": term["own"],
        **{k: term[k] for k in ("norm", "ratio", "cosine", "without")},
    }


def _norm_of(record: Record, layer: int, which: str, name: str) -> Record:
    """A norm by its place: the one that a sub-layer reads through, or that its result goes through."""
    branch, side = _NORMS[which]
    ops = _FFN if branch == "ffn" else (branch,)
    found = [n for n in record.get("norms", ()) if n["layer"] == layer and n["section"] == "block"]
    for one in found:
        parts = re.sub(r"_(in|out)_norm(_\d+)?$", "", one["norm"]).split("_")
        inside = f"_{side}_" in one["norm"] and any(op in parts for op in ops)
        if inside:
            return _norm(one)
    if side == "in":
        # Behind a sum, as in post-norm: TransformerLens numbers these by the sub-layer that the sum adds.
        sums = [s for s in record["sums"] if s["layer"] == layer and s.get("normed")]
        for of_sum in sums:
            if any(_kind(t) == branch for t in of_sum["terms"]):
                behind = next((n for n in found if n["norm"] == of_sum["normed"]), None)
                if behind is not None:
                    return _norm(behind)
    raise ProbeError(
        f"{name}: layer {layer} has no such norm; its norms are {', '.join(n['norm'] for n in found) or 'none'}"
    )


def _norm(found: Record) -> Record:
    return {"place": found["value"], "before": found["before"], "after": found["after"]}


def _why_not(record: Record, layer: int) -> str:
    lost = [u for u in record.get("not_measured", ()) if u["layer"] == layer]
    return lost[0]["reason"] if lost else f"layer {layer} has no + on the stream x"
