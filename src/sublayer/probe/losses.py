"""The loss of any model on a batch: its own, a caller's, or next-token cross-entropy where attention is causal."""

from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from sublayer.probe.errors import LossError, ProbeError
from sublayer.probe.feeding import Fed

Loss = bool | Callable[[Any, Mapping[str, Tensor]], Tensor]


def logits_of(output: Any) -> Tensor | None:
    """The logits [batch, seq, vocabulary] among what a model returns, if there are any."""
    for found in (output, getattr(output, "logits", None), output[0] if isinstance(output, tuple) and output else None):
        if isinstance(found, Tensor) and found.ndim == 3 and found.is_floating_point():
            return found
    return None


def loss_of(output: Any, fed: Fed, loss: Loss, causal: bool | None) -> tuple[Tensor, int, str]:
    """The loss of one batch.

    Args:
        output: what the model returned.
        fed: the batch.
        loss: a callable of output and the batch's tensors by name; or True: the loss that the model itself returns,
            else the cross-entropy of its logits with ``labels`` (position by position, -100 left out), else with the
            next token.
        causal: whether the model's attention is causal, so that the next token is something to predict.

    Returns:
        The loss (in nats a target for all but a callable's), how many targets it is a mean over, and what it is.

    Raises:
        ProbeError: there is no target.
    """
    labels = fed.named.get("labels")
    if callable(loss):
        found = loss(output, fed.named)
        if not isinstance(found, Tensor) or found.numel() != 1:
            raise LossError(f"loss= must return one number as a tensor: got {type(found).__name__}; return the mean")
        return found.reshape(()), fed.rows, "the loss that was given"
    own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(own, Tensor) and own.numel() == 1:
        count = int((labels != -100).sum()) if labels is not None else fed.rows
        return own.reshape(()), count, "the model's own loss"
    logits = logits_of(output)
    if logits is None:
        raise ProbeError("a loss needs logits [batch, seq, vocabulary] or a loss among the outputs: got neither; give "
                         "loss=, a function of the output and the batch")  # fmt: skip
    if labels is not None and labels.shape == logits.shape[:2]:
        what, target = "cross-entropy with the labels", labels
    else:
        ids = fed.named.get("input_ids", next(iter(fed.named.values()), None))
        if causal is not True:
            raise ProbeError("a loss needs a target, and the batch has no labels; attention is not causal, so the next "
                             "token is none: give labels in the batch, or loss=")  # fmt: skip
        if ids is None or ids.shape != logits.shape[:2] or ids.is_floating_point():
            raise ProbeError("a loss needs a target, and the batch has neither labels nor ids of the logits' length; "
                             "give labels in the batch, or loss=")  # fmt: skip
        what, logits, target = "cross-entropy with the next token", logits[:, :-1], ids[:, 1:]
        real = fed.real("input_ids", ids.numel())
        if real is not None:
            target = target.masked_fill(~(real[:, 1:] & real[:, :-1]), -100)
    count = int((target != -100).sum())
    if count == 0:
        raise ProbeError("a loss needs a target: every label of the batch is -100; give labels")
    return F.cross_entropy(logits.flatten(0, 1).float(), target.flatten(), ignore_index=-100), count, what
