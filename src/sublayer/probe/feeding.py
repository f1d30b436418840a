"""Batches for any model: what its forward is given, and which positions of it are tokens."""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sublayer.probe.errors import ProbeError


@dataclass(frozen=True)
class Fed:
    """One batch.

    Attributes:
        args, kwargs: what forward is given, on the model's device.
        named: the tensors among them by the names that forward gives them, and those that it has no place for.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    named: dict[str, Tensor] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Rows of the batch: the first size of its first tensor."""
        return next((t.shape[0] for t in self.named.values() if t.ndim), 1)

    def real(self, main: str, positions: int) -> Tensor | None:
        """Which positions of the stack that reads ``main`` are tokens, bool [rows, seq]; None if nothing says so, or
        what says so is about another number of positions than ``positions``, those of the whole batch."""
        prefix = "decoder_" if main.startswith("decoder") else ""
        for name, value in self.named.items():
            if value.ndim != 2 or value.numel() != positions:
                continue
            if name == f"{prefix}attention_mask":
                return value.bool()
            if name.endswith("padding_mask") and value.dtype == torch.bool:
                return ~value
        labels = self.named.get("labels")
        if prefix and "decoder_input_ids" not in self.named and labels is not None and labels.numel() == positions:
            return labels != -100  # the model makes its decoder's inputs of the labels
        return None


def single(batches: Any) -> list[Any] | None:
    """The one batch in a list, where `batches` is a batch and not several."""
    return [batches] if isinstance(batches, Tensor | Mapping) else None


def stream_of(batches: Any) -> Iterator[Any]:
    """Batches one by one."""
    if not isinstance(batches, Iterable):
        raise ProbeError(
            f"batches are a tensor, a mapping of forward's arguments, or an iterable of those: got "
            f"{type(batches).__name__}; give for example [{{'input_ids': ids}}]"
        )
    return iter(single(batches) or batches)


def device_of(module: nn.Module) -> torch.device:
    """Where the model's first parameter lies."""
    return next((p.device for p in module.parameters()), torch.device("cpu"))


class Feeder:
    """Turns batches into arguments of a model's forward."""

    def __init__(self, module: nn.Module) -> None:
        parameters = inspect.signature(module.forward).parameters
        self.names = [n for n, p in parameters.items() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        self.takes = {n for n, p in parameters.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
        self.device = device_of(module)

    def __call__(self, batch: Any) -> Fed:
        """Raises ProbeError for what is no batch."""
        if isinstance(batch, Tensor):
            batch = (batch,)
        if isinstance(batch, tuple):
            args = tuple(self._moved(a) for a in batch)
            named = {n: a for n, a in zip(self.names, args, strict=False) if isinstance(a, Tensor)}
            return Fed(args, self._quiet({}), named)
        if not isinstance(batch, Mapping) or not batch:
            raise ProbeError(
                f"a batch is a tensor, a tuple of forward's arguments, or a mapping of them by name: got "
                f"{type(batch).__name__}{' without keys' if isinstance(batch, Mapping) else ''}; give "
                "{'input_ids': ids}"
            )
        given = {str(k): self._moved(batch[k]) for k in batch}
        kwargs = {k: v for k, v in given.items() if k in self.takes and v is not None}
        if not kwargs:
            raise ProbeError(
                f"forward takes {', '.join(sorted(self.takes)) or 'nothing by name'}: got a batch of "
                f"{', '.join(given)}; name the batch's tensors as forward does, or give a tuple"
            )
        return Fed((), self._quiet(kwargs), {k: v for k, v in given.items() if isinstance(v, Tensor)})

    def _quiet(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """No cache of keys and values: nothing reads it."""
        return {"use_cache": False, **kwargs} if "use_cache" in self.takes else kwargs

    def _moved(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(self.device)
        if isinstance(value, list) and value and isinstance(value[0], list | int):
            return torch.as_tensor(value).to(self.device)
        return value
