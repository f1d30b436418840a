"""Weights laid out column by column while tokens are made one at a time on a CPU.

``nn.Linear`` keeps ``W [out, in]`` row by row. A product with one token then is a dot product for each row, and on a
CPU the libraries do that more slowly than they add up columns, where ``out`` is the larger side: the
FFN's first matrices and the output layer, half of the weights of a small model. Both orders hold the same numbers. The
sums are rounded in another order (about 1e-7). ``benchmarks/generate.py`` measures it.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sublayer.model.fused import is_plain_linear

TOKENS = 64  # from which laying the weights out costs little beside what it saves
MOST_BYTES = 1 << 30  # of the copies; a model with more keeps its rows


@contextlib.contextmanager
def by_columns(model: nn.Module, rows: int, tokens: int) -> Iterator[None]:
    """Within it, the tall weights of plain linear maps on a CPU lie column by column; afterwards they are as before.

    The copies take memory of their own, at most `MOST_BYTES`; the weights themselves stay where they are, so that
    nothing has to be copied back.

    Args:
        rows: how many sequences grow at once. With more than two, rows are as fast.
        tokens: how many tokens will be made at most.
    """
    tall = {} if rows > 2 or tokens < TOKENS or torch.compiler.is_compiling() else _tall(model)
    if sum(weight.nbytes for weight in tall.values()) > MOST_BYTES:
        tall = {}
    kept: list[tuple[nn.Parameter, Tensor]] = []
    try:
        with torch.no_grad():
            for weight in tall.values():
                kept.append((weight, weight.data))
                weight.data = weight.data.t().contiguous().t()
        yield
    finally:
        for weight, data in kept:
            weight.data = data


def growth(inputs: Tensor | None, settings: Any, given: Mapping[str, Any]) -> tuple[int, int]:
    """How many sequences `generate` will grow, and by how many tokens at most, from its arguments."""

    def asked(name: str) -> Any:
        return given[name] if given.get(name) is not None else getattr(settings, name, None)

    prompt = next(
        (each for each in (inputs, given.get("input_ids"), given.get("inputs_embeds")) if each is not None), None
    )
    batch, length = (1, 0) if prompt is None else prompt.shape[:2]
    rows = batch * max(asked("num_beams") or 1, asked("num_return_sequences") or 1)
    return rows, asked("max_new_tokens") or (asked("max_length") or 0) - length


def _tall(model: nn.Module) -> dict[int, nn.Parameter]:
    """The weights that are worth it, each once, by identity. A tied one serves the embedding as well."""
    found: dict[int, nn.Parameter] = {}
    for module in model.modules():
        if type(module) is nn.Linear and is_plain_linear(module):
            weight = module.weight
            rows, columns = weight.shape
            if (
                isinstance(weight, nn.Parameter)
                and rows > columns
                and weight.device.type == "cpu"
                and weight.is_contiguous()
                and not weight.is_meta
            ):
                found[id(weight)] = weight
    return found
