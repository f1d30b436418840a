"""Gradient norms of each layer and sub-layer of any model, without touching what its parameters hold as gradients."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from sublayer.audit.located import LocatedStack
from sublayer.probe.audited import Reader, ran, untouched
from sublayer.probe.errors import ProbeError
from sublayer.probe.feeding import Fed
from sublayer.probe.losses import Loss, loss_of
from sublayer.probe.measuring import Record


def layer_parameters(reader: Reader, stack: LocatedStack) -> list[set[str]]:
    """Names of the parameters that each layer reads, also those that it shares with others."""
    values = reader.found.tape.values
    return [
        {s.name for v in values[start:stop] for s in v.sources if s.kind == "parameter"} for start, stop in stack.spans
    ]


def gradients(reader: Reader, batches: Sequence[Fed], loss: Loss, causal: bool | None) -> Record:
    """L2 norms of the gradient of a loss, mean over the targets of all batches, in evaluation mode.

    Returns:
        ``{"loss", "targets", "what", "stacks"}``; for each stack a list with ``{"gradient_norm", "branches"}`` a layer:
        of all parameters that the layer reads (a parameter of several layers counts in each, with its whole gradient),
        and of those of each sub-layer by its name. None where a gradient is not finite or nothing has one.

    Raises:
        ProbeError: there is no loss, or it does not depend on any parameter.
    """
    module = reader.module
    named = dict(module.named_parameters(remove_duplicate=False))
    wanted = {id(p): p for p in named.values() if p.is_floating_point()}
    frozen = [p for p in wanted.values() if not p.requires_grad]
    totals: dict[int, Tensor] = {}
    sums = [0.0, 0.0]
    what = ""
    try:
        for p in frozen:
            p.requires_grad_(True)
        with untouched(module), torch.enable_grad():
            for fed in batches:
                found, count, what = loss_of(ran(module, fed), fed, loss, causal)
                if not found.requires_grad:
                    raise ProbeError("a gradient needs a loss that depends on the parameters: this one does not")
                parts = torch.autograd.grad(found, list(wanted.values()), allow_unused=True)
                for key, part in zip(wanted, parts, strict=True):
                    if part is not None:
                        part = part.to_dense() if part.is_sparse else part
                        totals[key] = totals[key] + count * part if key in totals else count * part
                sums = [sums[0] + count * float(found.detach()), sums[1] + count]
    finally:
        for p in frozen:
            p.requires_grad_(False)

    def norm(names: Iterable[str]) -> float | None:
        keys = {id(named[n]) for n in names if n in named} & set(totals)
        value = math.sqrt(sum(float((totals[k] / sums[1]).double().square().sum()) for k in keys)) if keys else math.nan
        return value if math.isfinite(value) else None

    return {
        "loss": sums[0] / sums[1],
        "targets": int(sums[1]),
        "what": what,
        "stacks": [_stack(reader, stack, norm) for stack in reader.found.stacks],
    }


def _stack(reader: Reader, stack: LocatedStack, norm: Any) -> list[Record]:
    found = []
    for names, layer in zip(layer_parameters(reader, stack), stack.stack.layers, strict=True):
        branches: dict[str, float | None] = {}
        for branch in layer.branches:
            count = sum(name.partition("_")[0] == branch.op for name in branches)
            branches[branch.op if not count else f"{branch.op}_{count + 1}"] = norm(branch.parameters)
        found.append({"gradient_norm": norm(names), "branches": branches, "shares": layer.shares})
    return found
