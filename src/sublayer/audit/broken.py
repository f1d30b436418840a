"""From the error of a forward pass that failed to the matrix whose shape does not fit."""

import re
from collections.abc import Mapping
from math import prod
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from sublayer.audit.result import Finding
from sublayer.audit.sentences import said

# What torch says on the CPU, and what it says on the meta device.
PRODUCT = re.compile(r"shapes cannot be multiplied|must have same reduction dim")
NORMED = re.compile(r"Given normalized_shape=\[")
SUM = (
    re.compile(r"size of tensor a \((?P<a>\d+)\) must match the size of tensor b \((?P<b>\d+)\)"),
    re.compile(r"broadcast a dimension of length (?P<b>\d+) at -1!.*broadcastable to \[(?:[^\]]*, )?(?P<a>\d+)\]"),
)
VIEW = re.compile(r"shape '\[(?P<shape>[^']*)\]' is invalid for input of size (?P<size>\d+)")

Running = tuple[str, nn.Module, dict[str, Any]]  # path, module, local values of its forward


def broken_shape(error: BaseException, module: nn.Module, inputs: Any = None) -> Finding | None:
    """The shape that does not fit, or None if the error is about something else.

    Args:
        error: what the forward pass raised. The modules that were running are read off its traceback.
        module: the model.
        inputs: the arguments of the failed call, to run it again where the error came without its traceback: something
            with ``args`` and ``kwargs``, a tuple, a mapping or a tensor.
    """
    text = str(error)
    if not isinstance(error, RuntimeError | ValueError):
        return None
    if not any(p.search(text) for p in (PRODUCT, NORMED, *SUM, VIEW)):
        return None
    running = _running(error, module)
    if not running and inputs is not None:
        again = _again(module, inputs)
        running = _running(again, module) if again is not None else []
    if not running:
        return None
    path, inner, values = running[-1]
    where, place = _layer(path, module), path
    if PRODUCT.search(text) or NORMED.search(text):
        expected = _expected(inner)
        found = next((v.shape[-1] for v in values.values() if isinstance(v, Tensor) and v.dim() > 1), None)
        if expected is None or found in (None, expected) or _is_first(inner, module):
            return None  # the input that was tried is at fault, or a product without weights
        takes = "takes" if isinstance(inner, nn.Linear) else "normalises"
        known = {"expected": expected, "found": found, "maker": _maker(running, found, inner)}
        message = said("broken-shape", path=path, size=_size(inner), takes=takes, **known)
        return Finding("error", "broken-shape", where, place, message)
    if where == "model":
        return None  # outside the layers it is as likely the size of the input that does not fit
    match = next((m for p in SUM if (m := p.search(text))), None)
    if match:
        a, b = int(match["a"]), int(match["b"])
        writer = _writer(inner, path, a, b)
        if not writer:
            return None  # no matrix writes either: lengths, not channels
        message = said("broken-shape (sum)", path=path, a=a, b=b, writer=f", which {writer} writes")
        return Finding("error", "broken-shape", where, writer, message)
    match = VIEW.search(text)
    if match and _splits_channels(inner, match["shape"], int(match["size"])):
        message = said("broken-shape (other)", path=path, error=_line(error))
        return Finding("error", "broken-shape", where, place, message)
    return None


def _splits_channels(inner: nn.Module, shape: str, size: int) -> bool:
    """Whether a view that failed was to split what a matrix writes into parts of another size."""
    try:
        batch, length, *parts = (int(n) for n in shape.split(","))
    except ValueError:
        return False
    widths = {m.out_features for m in inner.modules() if isinstance(m, nn.Linear)}
    widths |= {w // n for w in widths for n in (2, 3) if w % n == 0}  # the chunks of a fused matrix
    channels, rest = divmod(size, batch * length) if batch > 0 and length > 0 else (0, 1)
    return rest == 0 and channels in widths and -1 not in parts and prod(parts) != channels


def _line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:160]


def _again(module: nn.Module, inputs: Any) -> BaseException | None:
    arguments, named = getattr(inputs, "args", None), getattr(inputs, "kwargs", None)
    if arguments is None:
        arguments = () if isinstance(inputs, Mapping) else inputs if isinstance(inputs, tuple) else (inputs,)
        named = inputs if isinstance(inputs, Mapping) else {}
    try:
        with torch.no_grad():
            module(*arguments, **(named or {}))
    except Exception as error:
        return error
    return None


def _running(error: BaseException, module: nn.Module) -> list[Running]:
    """The modules of the model that were in their forward pass, outermost first, with their local values."""
    names = {id(m): name for name, m in module.named_modules()}
    found: list[Running] = []
    place: TracebackType | None = error.__traceback__
    while place is not None:
        own = place.tb_frame.f_locals
        owner = own.get("self")
        if isinstance(owner, nn.Module) and id(owner) in names and not place.tb_frame.f_code.co_name.startswith("_"):
            found.append((names[id(owner)], owner, {k: v for k, v in own.items() if k != "self"}))
        place = place.tb_next
    return found


def _expected(module: nn.Module) -> int | None:
    if isinstance(module, nn.Linear):
        return module.in_features
    shape = getattr(module, "normalized_shape", None)
    return shape[-1] if isinstance(shape, tuple) and shape else None


def _size(module: nn.Module) -> str:
    kind = type(module).__name__
    return f"{kind} {module.in_features} -> {module.out_features}" if isinstance(module, nn.Linear) else kind


def _is_first(inner: nn.Module, module: nn.Module) -> bool:
    """Whether it is the first module of the model that has parameters of its own: what the input goes into."""
    first = next((m for m in module.modules() if any(True for _ in m.parameters(recurse=False))), None)
    return first is inner and inner is not module


def _maker(running: list[Running], found: int | None, reader: nn.Module) -> str:
    """The matrix in the same module that writes the width that was found."""
    for path, owner, _ in reversed(running[:-1]):
        before = []
        for name, other in owner.named_modules():
            if other is reader:
                break
            if isinstance(other, nn.Linear) and other.out_features == found:
                before.append(f"{path}.{name}".strip("."))
        if before:
            return f" by {before[-1]} and others" if len(before) > 1 else f" by {before[-1]}"
    return ""


def _writer(inner: nn.Module, path: str, a: int, b: int) -> str:
    """The matrix in a module whose output has one of the two sizes, where no other has: it is the odd one."""
    linear = [(f"{path}.{n}".strip("."), m) for n, m in inner.named_modules() if isinstance(m, nn.Linear)]
    for size in (b, a):
        other = b if size == a else a
        writers = [name for name, m in linear if m.out_features == size]
        if len(writers) == 1 and any(m.in_features == other for _, m in linear):
            return writers[0]
    return ""


def _layer(path: str, module: nn.Module) -> str:
    """``layer 2`` where the path goes through the third element of a list of modules."""
    parts = path.split(".")
    for i, part in enumerate(parts):
        if part.isdigit() and isinstance(module.get_submodule(".".join(parts[:i])), nn.ModuleList | nn.Sequential):
            return f"layer {part}"
    return "model"
