"""Answers for calls whose result depends on numbers that a meta tensor does not have.

Where the numbers follow from the inputs alone they are computed for real. Where they follow from weights, a plausible
answer stands in, and the tape says so.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

if TYPE_CHECKING:
    from sublayer.audit.trace import Recorder

Standin = Callable[["Recorder", Any, Any, list[Any], dict[str, Any]], Any]

aten = torch.ops.aten

MOST_VISITS = 128  # entries of a list chosen by weights that are all visited
FEW_VISITS = 16  # of a longer one
MOST_CHOICES = 64  # options of a top-k of which all are chosen by one token or another

# Calls that make a tensor from nothing, on the CPU unless they are told otherwise.
FACTORIES_ON_CPU = frozenset(
    getattr(getattr(aten, name), overload)
    for name, overloads in {
        "arange": ("default", "start", "start_step"),
        "zeros": ("default",),
        "ones": ("default",),
        "full": ("default",),
        "empty": ("memory_format",),
        "rand": ("default",),
        "randn": ("default",),
        "randint": ("default", "low"),
        "randperm": ("default",),
        "eye": ("default", "m"),
        "linspace": ("default",),
        "scalar_tensor": ("default",),
        "tril_indices": ("default",),
        "triu_indices": ("default",),
    }.items()
    for overload in overloads
)


def _scalar(recorder: "Recorder", func: Any, args: Any, twins: list[Any], kwargs: dict[str, Any]) -> Any:
    """``tensor.item()``, ``if tensor:``."""
    known = recorder.numbers(args[0])
    if known is not None:
        return known.item()
    value = recorder.value_of(args[0])
    answer: Any = False if value.dtype == torch.bool else (1 if not value.dtype.is_floating_point else 1.0)
    _assume(recorder, f"a number that depends on weights or data ({value.name}) was taken to be {answer}")
    return answer


def _nonzero(recorder: "Recorder", func: Any, args: Any, twins: list[Any], kwargs: dict[str, Any]) -> Any:
    known = recorder.numbers(args[0])
    twin = twins[0]
    if known is not None:
        return torch.empty((int(torch.count_nonzero(known)), twin.dim()), dtype=torch.long, device="meta")
    count = twin.shape[0] if twin.dim() else 1
    if twin.dim() != 1:
        _assume(recorder, f"the number of places chosen by weights or data (nonzero) was taken to be {count}")
        return torch.empty((count, twin.dim()), dtype=torch.long, device="meta")
    # A list of things to visit, experts as a rule: all of them, unless that would take too long.
    visited = count if count <= MOST_VISITS else FEW_VISITS
    _assume(recorder, f"of {count} places chosen by weights or data (nonzero) the first {visited} were visited")
    result = torch.empty((visited, 1), dtype=torch.long, device="meta")
    recorder.promised[id(result)] = torch.arange(visited, device="cpu")[:, None]
    return result


def _index(recorder: "Recorder", func: Any, args: Any, twins: list[Any], kwargs: dict[str, Any]) -> Any:
    """Indexing, by masks too."""
    indices = list(twins[1])
    plain: list[Any] = []
    for i, twin in enumerate(indices):
        if isinstance(twin, Tensor) and twin.dtype in (torch.bool, torch.uint8):
            known = recorder.numbers(args[1][i])
            if known is None:
                count = max(twin.numel() // 2, 1)
                _assume(
                    recorder,
                    f"a mask that depends on weights or data was taken to choose {count} of {twin.numel()} places",
                )
            else:
                count = int(torch.count_nonzero(known))
            plain += [torch.empty(count, dtype=torch.long, device="meta") for _ in range(twin.dim())]
        else:
            plain.append(twin)
    return func(twins[0], plain, *twins[2:], **kwargs)


def _masked_select(recorder: "Recorder", func: Any, args: Any, twins: list[Any], kwargs: dict[str, Any]) -> Any:
    known = recorder.numbers(args[1])
    shape = torch.broadcast_shapes(twins[0].shape, twins[1].shape)
    count = int(torch.count_nonzero(known.expand(shape))) if known is not None else shape.numel()
    return torch.empty(count, dtype=twins[0].dtype, device="meta")


def _equal(recorder: "Recorder", func: Any, args: Any, twins: list[Any], kwargs: dict[str, Any]) -> Any:
    left, right = recorder.numbers(args[0]), recorder.numbers(args[1])
    if left is not None and right is not None:
        return torch.equal(left, right)
    _assume(recorder, "two tensors that depend on weights or data were taken to differ")
    return False


def _unique(recorder: "Recorder", func: Any, args: Any, twins: list[Any], kwargs: dict[str, Any]) -> Any:
    known = recorder.numbers(args[0])
    if known is not None:
        found = func(known, *twins[1:], **kwargs)
        return tuple(torch.empty_like(t, device="meta") for t in found)
    _assume(recorder, "the number of distinct values (unique) was taken to be all")
    flat = twins[0].numel()
    return tuple(
        torch.empty(n, dtype=d, device="meta")
        for n, d in ((flat, twins[0].dtype), (twins[0].shape, torch.long), (flat, torch.long))
    )


def _repeat_interleave(recorder: "Recorder", func: Any, args: Any, twins: list[Any], kwargs: dict[str, Any]) -> Any:
    known = recorder.numbers(args[0])
    if known is not None and not kwargs.get("output_size"):
        return torch.empty(int(known.sum()), dtype=torch.long, device="meta")
    return func(*twins, **kwargs)


def _bincount(recorder: "Recorder", func: Any, args: Any, twins: list[Any], kwargs: dict[str, Any]) -> Any:
    known = recorder.numbers(args[0])
    least = kwargs.get("minlength", twins[2] if len(twins) > 2 else 0)
    size = max(int(known.max()) + 1 if known is not None and known.numel() else 1, least)
    return torch.empty(size, dtype=torch.long, device="meta")


def _grouped_mm(recorder: "Recorder", func: Any, args: Any, twins: list[Any], kwargs: dict[str, Any]) -> Any:
    """``[tokens, d] x [experts, d, n] -> [tokens, n]``."""
    left, right = twins[0], twins[1]
    return torch.empty((*left.shape[:-1], right.shape[-1]), dtype=left.dtype, device="meta")


def _chosen(recorder: "Recorder", func: Any, args: Any, twins: list[Any], kwargs: dict[str, Any]) -> Any:
    """The places of the largest: where weights decide, one after the other, so that tokens visit all experts."""
    result = func(*twins, **kwargs)
    indices = result[1] if isinstance(result, tuple | list) else result
    if not isinstance(indices, Tensor) or indices.dtype != torch.long or recorder.numbers(args[0]) is not None:
        return result
    place = 2 if func is aten.topk.default else 1
    axis = twins[place] if len(twins) > place else kwargs.get("dim", -1)
    options = twins[0].numel() if axis is None or not twins[0].dim() else twins[0].shape[axis]
    if not options or indices.numel() > 1 << 20:
        return result
    shape = list(indices.shape)
    if indices.dim() == twins[0].dim() and indices.dim():
        shape.append(shape.pop(axis))
        chosen = torch.arange(indices.numel(), device="cpu").reshape(shape).movedim(-1, axis)
    else:
        chosen = torch.arange(indices.numel(), device="cpu").reshape(shape)
    recorder.promised[id(indices)] = chosen % (options if options <= MOST_CHOICES else FEW_VISITS)
    return result


def _split(recorder: "Recorder", func: Any, args: Any, twins: list[Any], kwargs: dict[str, Any]) -> Any:
    """Splitting by sizes that were made up: as many parts, of nearly equal size."""
    tensor, sizes = twins[0], list(twins[1])
    axis = twins[2] if len(twins) > 2 else kwargs.get("dim", 0)
    whole = tensor.shape[axis]
    if sizes and sum(sizes) != whole and any("list of numbers" in a for a in recorder.tape.assumptions):
        share, rest = divmod(whole, len(sizes))
        sizes = [share + (i < rest) for i in range(len(sizes))]
    return func(tensor, sizes, *twins[2:], **kwargs)


STANDINS: dict[str, Standin] = {
    "_local_scalar_dense": _scalar,
    "nonzero": _nonzero,
    "index": _index,
    "masked_select": _masked_select,
    "equal": _equal,
    "_unique2": _unique,
    "unique_consecutive": _unique,
    "repeat_interleave": _repeat_interleave,
    "bincount": _bincount,
    "_grouped_mm": _grouped_mm,
    "split_with_sizes": _split,
    "topk": _chosen,
    "argmax": _chosen,
    "max": _chosen,
}


def _assume(recorder: "Recorder", text: str) -> None:
    """Note what was made up."""
    if text not in recorder.tape.assumptions:
        recorder.tape.assumptions.append(text)


@contextlib.contextmanager
def patched(recorder: "Recorder") -> Iterator[None]:
    """Answer the few tensor methods that leave torch without passing its dispatcher."""

    def tolist(tensor: Tensor) -> Any:
        with _disable_current_modes():
            known = recorder.numbers(tensor)
            if known is None:
                _assume(recorder, "a list of numbers that depend on weights or data was taken to be ones")
                known = torch.ones(tensor.shape, dtype=tensor.dtype, device="cpu")
            return _TOLIST(known)

    def numpy(tensor: Tensor, *, force: bool = False) -> Any:
        with _disable_current_modes():
            known = recorder.numbers(tensor)
            if known is None:
                raise RuntimeError("numbers of a tensor are asked for that depend on weights or data")
            return _NUMPY(known)

    def formatted(tensor: Tensor, spec: str) -> str:
        """f"expert_{index}" names a module: the number, not the tensor's text."""
        return format(tensor.item(), spec) if tensor.dim() == 0 else _FORMAT(tensor, spec)

    def autocast(context: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        """`torch.autocast(x.device.type, enabled=False)` must not fail where x is on the meta device."""
        _AUTOCAST(context, "cpu" if device_type == "meta" else device_type, *args, **kwargs)

    def topk(tensor: Tensor, k: Any = None, *args: Any, **kwargs: Any) -> Any:
        if k is None:
            _assume(recorder, "how many experts a token goes to is open in the config: taken to be 1")
            k = 1
        return _TOPK(tensor, k, *args, **kwargs)

    with (
        mock.patch.object(torch, "topk", topk),
        mock.patch.object(Tensor, "topk", topk),
        mock.patch.object(Tensor, "tolist", tolist),
        mock.patch.object(Tensor, "numpy", numpy),
        mock.patch.object(Tensor, "__format__", formatted),
        mock.patch.object(torch.autocast, "__init__", autocast),
        mock.patch.object(torch.distributions.Distribution, "_validate_args", False),  # it looks at the numbers
    ):
        yield


_TOLIST = Tensor.tolist
_NUMPY = Tensor.numpy
_TOPK = torch.topk
_FORMAT = Tensor.__format__
_AUTOCAST = torch.autocast.__init__
