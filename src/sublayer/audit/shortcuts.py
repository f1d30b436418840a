"""Ways around torch's own meta kernels, which are Python and take most of a trace.

A layer asks for the same shapes as the layer before it, so what a kernel answered is kept: the size, the strides and
the type of a result follow from those of its arguments and from nothing else.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import _disable_current_modes

if TYPE_CHECKING:
    from sublayer.audit.trace import Recorder

META = torch.device("meta")
MOST_ANSWERS = 1 << 14  # kept; then forgotten all at once

_ATTENTION = torch.ops.aten.scaled_dot_product_attention.default
_Answer = tuple[torch.Size, tuple[int, ...], torch.dtype]
_ANSWERS: dict[Any, tuple[bool, tuple[_Answer, ...]]] = {}  # whether it came in a tuple, and its tensors
_FRESH: dict[Any, bool] = {}


class _Unlike(Exception):
    """An argument that cannot be compared with another call's."""


def result_of(func: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """What ``func`` makes of meta tensors: from memory where it was asked before, else by its meta kernel."""
    fresh = _FRESH.get(func)
    if fresh is None:
        fresh = _FRESH[func] = _makes_tensors(func)
    if not fresh:
        return func(*args, **kwargs)
    try:
        key = (func, tuple(map(_likeness, args)), tuple((k, _likeness(v)) for k, v in kwargs.items()))
    except _Unlike:
        return func(*args, **kwargs)
    known = _ANSWERS.get(key)
    if known is not None:
        many, answers = known
        made = tuple([torch.empty_strided(size, stride, dtype=kind, device=META) for size, stride, kind in answers])
        return made if many else made[0]
    result = func(*args, **kwargs)
    _keep(func, key, (*args, *kwargs.values()), result)
    return result


def _keep(func: Any, key: Any, given: tuple[Any, ...], result: Any) -> None:
    """Keep an answer, if it is made of tensors on memory of their own."""
    made = result if isinstance(result, tuple) else (result,)
    tensors = [a for arg in given for a in (arg if isinstance(arg, list | tuple) else (arg,)) if isinstance(a, Tensor)]
    memory = {a.untyped_storage()._cdata for a in tensors}
    if any(type(r) is not Tensor or r.untyped_storage()._cdata in memory for r in made):
        _FRESH[func] = False  # some answer with their own input where there is nothing to do, whatever they declare
    elif all(r.device.type == "meta" and r.layout == torch.strided for r in made):
        if len(_ANSWERS) >= MOST_ANSWERS:
            _ANSWERS.clear()
        _ANSWERS[key] = (isinstance(result, tuple), tuple((r.size(), r.stride(), r.dtype) for r in made))


def _makes_tensors(func: Callable[..., Any]) -> bool:
    """Whether a call writes to nothing and answers with tensors that are no views, as far as it declares."""
    schema = func._schema  # type: ignore[attr-defined]
    plain = all(r.alias_info is None and str(r.type) == "Tensor" for r in schema.returns)
    return plain and bool(schema.returns) and not schema.is_mutable


def _likeness(arg: Any) -> Any:
    """What a kernel's answer may depend on of one argument: a tensor's shape, strides and type; a number itself."""
    kind = type(arg)
    if kind is Tensor or kind is torch.nn.Parameter:
        if arg.layout != torch.strided or arg.device.type != "meta":
            raise _Unlike
        return (arg.size(), arg.stride(), arg.dtype, arg.is_conj(), arg.is_neg())
    if kind in (list, tuple):
        return (kind, tuple(map(_likeness, arg)))
    if kind in (int, float, bool, str, complex) or arg is None:
        return (kind, arg)
    if kind in (torch.dtype, torch.device, torch.layout, torch.memory_format):
        return arg
    raise _Unlike


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
