"""Pairs of models with the same weights, fused and unfused, and what tells the two apart."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import sublayer as sl
from sublayer.model import SublayerForCausalLM
from sublayer.model.fused import Together
from sublayer.notation import Section
from sublayer.notation.parallel import parallel
from tests.model.support import Model, tiny, tokens

# Designs beside the catalogue's: factors, laws of depth, norms and scales on one branch, several results, shared sites.
MADE = {
    "factors": "h = norm(x); x = x + 0.5*attn(h) - 2*ffn(h)",
    "one-factor": "h = norm(x); x = norm(x + 0.5*(attn(h) + ffn(h)))",
    "laws": "h = norm(x); x = x + attn(h)/sqrt(layer) + ffn(h)*layer/depth",
    "input-only": "h = norm(x); x = x + norm(attn(h)) + scale(ffn(h))",
    "carried": "embed: x = norm(e); r = e\nblock: r = r + attn(x); x = norm(x + ffn(x))\nfinal: x = norm(x + r)",
    "two-results": "h = norm(x); x = x + attn(h) + ffn(h) + scale(ffn(h))",
    "two-ffns": "x = x + attn(norm(x)); h = norm(x); x = x + ffn(h) + ffn(h)",
    "two-inputs": "h = norm(x); g = rmsnorm(x); x = x + attn(h) + ffn(h) + ffn(g) + attn(g)",
    "shared-site": "x = x + attn_a(x) + attn_a(norm(x)) + ffn(x)",
    "in-sections": "embed: x = norm(e + attn(e) + ffn(e))\nblock: x = x + ffn(x)\nfinal: x = norm(attn(x) + ffn(x))",
}


def sections(design: sl.Design) -> list[Section]:
    return [design.section("embed"), *(section for _, section in design.blocks), design.section("final")]


def is_parallel(text: str) -> bool:
    return any(parallel(section).groups for section in sections(sl.parse(text)))


# One of each equation: many models of the catalogue share theirs.
CATALOGUE = {str(sl.parse(e.name)): e.name for e in reversed(sl.designs()) if is_parallel(e.name)}
DESIGNS = {**{name: name for name in CATALOGUE.values()}, **MADE}


def pair(design: str, kind: type[Model] = SublayerForCausalLM, **changes: Any) -> tuple[Model, Model]:
    """The fused and the unfused model."""
    return tiny(design, kind, **changes), tiny(design, kind, fuse_parallel=False, **changes)


def groups(model: nn.Module) -> list[Together]:
    return [each for module in model.modules() for each in getattr(module, "_together", {}).values()]


def gradients(model: nn.Module, **inputs: Any) -> dict[str, Tensor]:
    model.zero_grad()
    inputs = inputs or {"input_ids": tokens(), "labels": tokens()}
    model(**inputs).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def close(left: Tensor, right: Tensor, scale: float = 0.0, tolerance: float = 1e-5) -> bool:
    """Within ``tolerance`` of the largest number of ``right``, or of ``scale`` where that is larger."""
    largest = max(right.abs().max().item(), scale)
    return left.shape == right.shape and (left - right).abs().max().item() <= tolerance * largest


def alike(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Gradients within 1e-5 of their own size; that of a bias, of its weight's if that is larger: a key's bias moves
    all scores of a query alike, so that its gradient is zero but for rounding."""
    assert left.keys() == right.keys()
    sizes = {name: gradient.abs().max().item() for name, gradient in right.items()}
    floor = 1e-3 * max(sizes.values())
    scales = {name: max(floor, sizes.get(f"{name.removesuffix('.bias')}.weight", 0.0)) for name in right}
    return all(close(left[name], right[name], scales[name]) for name in right)


class Products(TorchDispatchMode):
    """Counts matrix products by their shape ``[tokens, in] x [in, out]``, and what is copied into one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: Counter[tuple[int, int]] = Counter()
        self.copied = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket._qualified_op_name.removeprefix("aten::")
        if name in ("mm", "addmm", "addmm_"):
            self.shapes[tuple(args[1 if name == "mm" else 2].shape)] += 1
        if name == "cat":
            self.copied += sum(part.numel() for part in args[0] if part.dim() == 2)
        return func(*args, **(kwargs or {}))


def products(model: nn.Module, *args: Any, **inputs: Any) -> Products:
    with Products() as found, torch.no_grad():
        model(*args, **inputs)
    return found
