"""The fields of a table of wirings that people read from source, computed from an audit."""

from collections import Counter
from typing import Any

from sublayer.audit.result import Audit, LayerAudit, Stack
from sublayer.notation import Design
from sublayer.notation.explain import Placement, placements

MIXING = ("attn", "dot", "mixer")
POINTWISE = ("ffn", "moe")
PLACE = {
    "input norm": "pre",
    "post-norm": "post",
    "output norm": "output",
    "sandwich": "sandwich",
    "residual after the norm": "ran",
    "no norm": "none",
}


def fields(audit: Audit) -> dict[str, Any]:
    """attn, ffn, wiring, norm, final_norm, embed_norm, res_scale, qk_norm, moe of most layers of the main stack."""
    stack = audit.main
    assert stack is not None, audit.unknown
    found = [_layer(layer) for layer in stack.layers if layer.design is not None]
    assert found, stack.unknown
    most: dict[str, Any] = {key: _most([f[key] for f in found]) for key in ("attn", "ffn", "wiring", "norm")}
    kinds = {frozenset(b.op for b in layer.branches) for layer in stack.layers}
    single = all(len(k) == 1 for k in kinds)
    return {
        **most,
        "wiring": "single" if single else most["wiring"],
        "final_norm": "norm" in stack.final,
        "embed_norm": "norm" in stack.embed,
        "res_scale": _scale(stack),
        "qk_norm": _query_norm(stack),
        "moe": any(b.op == "moe" for layer in stack.layers for b in layer.branches),
    }


def _most(values: list[Any]) -> Any:
    present = [v for v in values if v != "absent"]
    return Counter(present).most_common(1)[0][0] if present else "absent"


def _layer(layer: LayerAudit) -> dict[str, Any]:
    assert layer.design is not None
    found = placements(layer.design)
    attn = next((p for p in found if p.op in MIXING), None)
    ffn = next((p for p in found if p.op in POINTWISE), None)
    wired = "absent"
    if attn and ffn:
        wired = _wiring(layer.design, attn)
    kinds = Counter(n.kind for n in layer.norms if n.where.startswith(("input", "output", "stream")))
    kind = kinds.most_common(1)[0][0] if kinds else "absent"
    return {
        "attn": _placed(attn),
        "ffn": _placed(ffn),
        "wiring": wired,
        "norm": {"layernorm": "LayerNorm", "rmsnorm": "RMSNorm"}.get(kind, kind),
    }


def _placed(placement: Placement | None) -> str:
    if placement is None:
        return "absent"
    return PLACE.get(placement.kind, placement.kind)


def _wiring(design: Design, attn: Placement) -> str:
    if not attn.parallel:
        return "series"
    text = design.blocks[0][1].text
    return "parallel-two-norms" if text.count("norm(") > 1 else "parallel-shared-norm"


def _scale(stack: Stack) -> str:
    text = " ".join(layer.equation for layer in stack.layers)
    if "gate" in text or "scale" in text:
        return "param"
    return "const" if "*" in text or "/" in text else "none"


def _query_norm(stack: Stack) -> Any:
    kinds = {b.details.get("qk_norm", "none") for layer in stack.layers for b in layer.branches} - {"none", "unit"}
    return "latent" if kinds == {"latent"} else bool(kinds)
