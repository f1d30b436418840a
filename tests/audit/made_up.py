"""Audits made by hand from designs, so that what is said of an audit can be tested without a model."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sublayer.audit.result import Audit, BranchFacts, Finding, LayerAudit, NormFacts, Stack
from sublayer.audit.sides import at_depth
from sublayer.notation import parse
from sublayer.notation.explain import placements

ATTENTION = {"heads": 12, "kv_heads": 12, "head_dim": 64, "output_projection": True, "qk_norm": "none", "gated": False}
FFN = {"width": 3072, "ratio": 4.0, "gated": False, "activation": "gelu", "inner_norm": False}
LAYERNORM = NormFacts("layernorm", 1e-12, "gain+offset", "stream")
RMSNORM = NormFacts("rmsnorm", 1e-6, "gain", "stream")


def stack(
    text: str,
    depth: int = 12,
    norm: NormFacts = LAYERNORM,
    width: int = 768,
    details: Mapping[str, Mapping[str, Any]] | None = None,
    name: str = "model",
) -> Stack:
    """A stack with the wiring of a design and the facts of a small model; ``details`` overrides an operator's."""
    design = parse(text)
    given = {"attn": ATTENTION, "cross": ATTENTION, "ffn": FFN}
    layers = []
    for i, layer in enumerate(at_depth(design, depth).layers):
        assert layer.design is not None
        branches, norms = [], []
        for place in placements(layer.design):
            known = {**given.get(place.op, {}), **(details or {}).get(place.op, {})}
            module = f"layers.{i}.{place.site}"
            branches.append(BranchFacts(place.op, module, known, (f"{module}.weight",), width, width))
            if place.input_norm:
                norms.append(replace(norm, where=f"input of {place.op}", module=f"{module}.norm"))
            if place.output_norm:
                norms.append(replace(norm, where=f"output of {place.op}"))
            if place.sum_norm:
                norms.append(replace(norm, where="stream"))
        layers.append(
            LayerAudit(i, f"layers.{i}", layer.equation, layer.design, branches=tuple(branches), norms=tuple(norms))
        )
    ends = [replace(norm, where=part) for part in ("embed", "final") if "norm(" in getattr(design, part)]
    return Stack(
        name, tuple(layers), design.embed, design.final, design, norm=norm.kind, width=width, norms=tuple(ends)
    )


def audit(text: str, target: str = "Model", **options: Any) -> Audit:
    """An audit with one stack."""
    return Audit(target, (stack(text, **options),))


def with_layers(one: Audit, where: range, **changes: Any) -> Audit:
    """The same audit with some of its layers changed."""
    main = one.stacks[0]
    layers = tuple(replace(x, **changes) if x.index in where else x for x in main.layers)
    return replace(one, stacks=(replace(main, layers=layers), *one.stacks[1:]))


def llama(depth: int = 32) -> Audit:
    """Llama 3.1 8B, as far as the auditor looks."""
    details = {
        "attn": {"heads": 32, "kv_heads": 8, "head_dim": 128},
        "ffn": {"width": 14336, "ratio": 3.5, "gated": True, "activation": "silu"},
    }
    return audit("llama", "meta-llama/Llama-3.1-8B", depth=depth, norm=RMSNORM, width=4096, details=details)


BROKEN = Finding("error", "residual-from-norm", "layers 0-11", "attn", "the residual is taken from the normed value.")
