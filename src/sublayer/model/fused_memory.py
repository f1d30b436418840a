"""Parameters that lie one after another in memory, so that they are one matrix without a copy."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class SideBySide(torch.autograd.Function):
    """``whole``, whose rows are the memory of ``parts``; the gradient of each part is its rows of the whole's."""

    generate_vmap_rule = True

    @staticmethod
    def forward(whole: Tensor, *parts: Tensor) -> Tensor:
        return whole.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])  # so that autograd notices if one is changed before its gradient is taken

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        parts = grads[0].split([part.shape[0] for part in ctx.saved_tensors])
        needed = ctx.needs_input_grad[1:]
        return None, *(part if want else None for part, want in zip(parts, needed, strict=True))


@torch.no_grad()
def place(parameters: Sequence[Tensor]) -> Tensor | None:
    """Put parameters one after another into one piece of memory; their names, values and objects stay.

    Each has a storage of its own, a window on that memory, so that saving, copying or sharing one of them takes it
    alone. Nothing is done where that could surprise another holder of a parameter's memory: on the meta device, with
    several dtypes or devices, with a tensor class of its own, tied, or shared between processes.

    Args:
        parameters: alike in all axes but the first.

    Returns:
        the whole, ``[sum of first axes, ...]``; None if nothing was done.
    """
    first = parameters[0]
    for one in parameters:
        alone = type(one) is nn.Parameter and one.is_contiguous() and one.untyped_storage().nbytes() == one.nbytes
        alike = (one.dtype, one.device, one.shape[1:]) == (first.dtype, first.device, first.shape[1:])
        if not (alone and alike) or one.is_meta or (one.device.type == "cpu" and one.is_shared()):
            return None
    if len({one.data_ptr() for one in parameters}) < len(parameters):
        return None
    whole = torch.cat([one.detach() for one in parameters])
    start = 0
    for one in parameters:
        window = whole.untyped_storage()[start : start + one.nbytes]
        one.data = whole.new_empty(0).set_(window, 0, one.shape, one.stride())
        start += one.nbytes
    return whole


def still_placed(whole: Tensor, parameters: Sequence[Tensor]) -> bool:
    """Whether the rows of ``whole`` are the memory of the parameters, in this order, as :func:`place` left them."""
    at = whole.data_ptr()
    for one in parameters:
        if one.data_ptr() != at or one.dtype != whole.dtype or not one.is_contiguous():
            return False
        at += one.nbytes
    return at == whole.data_ptr() + whole.nbytes
