"""Shapes of the commonest calls, without torch's own meta kernels, which are Python and take most of a trace.

Anything out of the ordinary (mixed types, complex numbers, an ``out=``) goes the long way.
"""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import _disable_current_modes

if TYPE_CHECKING:
    from sublayer.audit.trace import Recorder

META = torch.device("meta")

# Element by element, with a result of the type of its floating-point tensors.
ELEMENTWISE = frozenset(
    "add sub rsub mul div neg abs pow sqrt rsqrt reciprocal exp log log1p sin cos tanh sigmoid silu gelu relu erf "
    "square clamp clamp_min clamp_max softplus hardtanh elu leaky_relu addcmul maximum minimum".split()
)
_ATTENTION = torch.ops.aten.scaled_dot_product_attention.default


def shortcut(name: str, args: list[Any], kwargs: dict[str, Any]) -> Tensor | None:
    """The result of an element-wise call, as a meta tensor; None if the call is not a plain one."""
    if name not in ELEMENTWISE or any(k not in ("alpha", "value", "approximate") for k in kwargs):
        return None
    shape: Any = None
    dtype: torch.dtype | None = None
    for arg in args:
        if isinstance(arg, Tensor):
            if not arg.dtype.is_floating_point or (dtype is not None and arg.dtype != dtype) or not arg.is_contiguous():
                return None
            dtype = arg.dtype
            if shape is None:
                shape = arg.shape
            elif shape != arg.shape:
                try:
                    shape = torch.broadcast_shapes(shape, arg.shape)
                except RuntimeError:
                    return None  # the long way says what is wrong
        elif not isinstance(arg, int | float | str | None) or isinstance(arg, bool):
            return None
    return None if dtype is None else torch.empty(shape, dtype=dtype, device=META)


@contextlib.contextmanager
def whole_attention(recorder: "Recorder") -> Iterator[None]:
    """Record fused attention as one call, not as the twenty that it is made of on the meta device."""
    original = F.scaled_dot_product_attention

    def attend(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        tensors = (query, key, value)
        fits = all(isinstance(t, Tensor) and t.dim() == query.dim() > 2 for t in tensors)
        fits = fits and query.shape[-1] == key.shape[-1] and key.shape[-2] == value.shape[-2]
        if not fits:
            return original(query, key, value, *args, **kwargs)
        with _disable_current_modes(), torch.no_grad():
            dtype = query.dtype
            batch = torch.broadcast_shapes(query.shape[:-3], value.shape[:-3])
            heads, length = query.shape[-3:-1]
            # Laid out as the fused kernels do: positions before heads.
            out = torch.empty((*batch, length, heads, value.shape[-1]), dtype=dtype, device=META).transpose(-2, -3)
            recorder.enter(_ATTENTION, (*tensors, *args), kwargs, out)
        return out

    with mock.patch.object(F, "scaled_dot_product_attention", attend):
        yield
