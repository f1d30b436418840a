"""The loss of a language model without its logits: the output layer where there is something to predict, in chunks."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

IGNORED = -100  # label of a position that is not predicted, as in torch's cross entropy
# Chunked in torch 2.13 and newer. Its gradients are those of the product, made while the loss is; no logits are kept.
_CHUNKED = getattr(F, "linear_cross_entropy", None)
# Logits that are made at once where it is chunked: all up to this many, then half as many a chunk. On a CPU torch's own
# choice of chunk (4 to 64 rows) makes the products several times as slow; these hold 128 MiB in float32.
AT_ONCE = 1 << 26


def linear_cross_entropy(
    hidden: Tensor, layer: nn.Linear, targets: Tensor, count: Tensor | int | None = None, scale: float = 1.0
) -> Tensor:
    """Mean over targets of ``cross_entropy(scale * layer(hidden), targets)``, a number.

    Args:
        hidden: ``[n, d]``.
        layer: the output layer, ``[vocab, d]``.
        targets: ``[n]``, none of them ignored.
        count: what the sum is divided by instead of n.
        scale: of the logits.
    """
    weight: Tensor = layer.weight
    bias: Tensor | None = layer.bias
    if scale != 1:
        hidden, bias = hidden * scale, None if bias is None else bias * scale
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    if len(targets) * len(weight) <= AT_ONCE or torch.compiler.is_compiling():
        return cross_entropy(F.linear(hidden, weight, bias), targets, count)
    if _CHUNKED is None or hidden.dtype != torch.float32:  # torch's own would return the loss rounded to half precision
        total = _by_parts(hidden, weight, bias, targets)
    else:
        total = _CHUNKED(hidden, weight, targets, linear_bias=bias, reduction="sum", options=_options(hidden, weight))
    return _mean(total, targets, count)


def _by_parts(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """The sum over targets, each part's logits made again for its gradient."""

    def part(rows: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(rows, weight, bias).float(), wanted, reduction="sum")

    size = _chunk(weight)
    sums = [
        checkpoint(part, rows, wanted, use_reentrant=False)
        for rows, wanted in zip(hidden.split(size), targets.split(size), strict=True)
    ]
    return torch.stack(sums).sum()


def _chunk(weight: Tensor) -> int:
    """Rows whose logits are made at once."""
    return max(1, AT_ONCE // 2 // len(weight))


def _options(hidden: Tensor, weight: Tensor) -> Any:
    if hidden.device.type != "cpu":
        return nn.LinearCrossEntropyOptions()
    return nn.LinearCrossEntropyOptions(batch_chunk_size=_chunk(weight), chunking_method=None)


def cross_entropy(logits: Tensor, targets: Tensor, count: Tensor | int | None = None) -> Tensor:
    """The same of logits ``[n, vocab]`` that have been made."""
    return _mean(F.cross_entropy(logits.float(), targets, reduction="sum"), targets, count)


def _mean(total: Tensor, targets: Tensor, count: Tensor | int | None) -> Tensor:
    return total / (len(targets) if count is None else torch.as_tensor(count, device=total.device))


def predicted(hidden: Tensor, labels: Tensor, shift: bool) -> tuple[Tensor, Tensor]:
    """What is predicted from where.

    Args:
        hidden: ``[batch, seq, d]``.
        labels: ``[batch, seq]``, -100 where nothing is to be predicted.
        shift: position t predicts the label of t + 1, and else its own.

    Returns:
        The rows ``[n, d]`` that predict, and their targets ``[n]``.
    """
    if shift:
        hidden, labels = hidden[:, :-1], labels[:, 1:]
    targets = labels.flatten().to(hidden.device)
    places = (targets != IGNORED).nonzero().squeeze(1)
    return hidden.flatten(0, 1)[places], targets[places]
