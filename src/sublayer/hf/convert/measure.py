"""How far a conversion moved the function: loss, hidden states of every layer, and logits, on one sample."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sublayer.hf.convert.errors import ConvertError
from sublayer.model import SublayerPreTrainedModel

Batch = Mapping[str, Tensor] | Tensor
Batches = Batch | Iterable[Batch]

LOGIT_TOKENS = 256  # tokens whose logits are kept; a large vocabulary makes them the largest thing there is
EQUAL = 1e-6  # largest difference of the logits, relative to the largest logit, that is called equal


@dataclass(frozen=True)
class FunctionChange:
    """What a conversion did to the function, on a sample.

    Attributes:
        tokens: tokens of the sample.
        loss_before, loss_after: mean loss a token in nats; None where the sample has no labels.
        layers: for each layer ||h' - h|| / ||h|| of the stream ``x`` that leaves it, over all tokens.
        output: largest difference of the logits (without a head: of the last hidden states), relative to the largest.
        kl: mean KL divergence of the predicted distributions in nats a token, before from after; None without logits.
    """

    tokens: int
    loss_before: float | None
    loss_after: float | None
    layers: tuple[float, ...]
    output: float
    kl: float | None

    @property
    def equal(self) -> bool:
        """Whether the outputs are equal on the sample within :data:`EQUAL`."""
        return self.output <= EQUAL

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return {**asdict(self), "layers": list(self.layers)}


@dataclass
class Observed:
    """What one model does on a sample: mean loss, the stream after each layer ``[tokens, d]``, and its output."""

    tokens: int
    loss: float | None
    hidden: list[Tensor]
    output: Tensor
    has_logits: bool


def measure_change(before: SublayerPreTrainedModel, after: SublayerPreTrainedModel, batches: Batches) -> FunctionChange:
    """Compare two models on the same tokens.

    Args:
        before, after: Sublayer models of one depth, width and vocabulary; in any mode, which is left as it is.
        batches: one batch or several: token ids ``[batch, seq]``, or a mapping with ``input_ids`` and, where it has
            them, ``labels``, ``attention_mask``, ``token_type_ids``, ``position_ids``, ``sequence_ids``. Padding
            (attention_mask 0) does not count.

    Raises:
        ConvertError: there is no token, or the models differ in depth or width.
    """
    kept = listed(batches)
    return between(observe(before, kept), observe(after, kept))


def listed(batches: Batches) -> list[dict[str, Tensor]]:
    """The batches as mappings."""
    several = [batches] if isinstance(batches, Tensor | Mapping) else list(batches)
    return [{"input_ids": b} if isinstance(b, Tensor) else dict(b) for b in several]


def observe(model: SublayerPreTrainedModel, batches: list[dict[str, Tensor]]) -> Observed:
    """Run a model on a sample, without dropout and gradients."""
    base: Any = model.base_model
    seen: list[list[Tensor]] = [[] for _ in base.layers]
    outputs: list[Tensor] = []
    total, counted, tokens, logits = 0.0, 0, 0, False
    with evaluated(model), torch.no_grad(), ExitStack() as stack:
        for batch in batches:
            batch = {name: value.to(model.device) for name, value in batch.items()}
            real = batch["input_ids"] == batch["input_ids"]
            if "attention_mask" in batch:
                real = batch["attention_mask"].bool()
            for i, layer in enumerate(base.layers):
                hook = layer.register_forward_hook(_keeper(seen[i], real))
                stack.callback(hook.remove)
            result = model(**batch, **({"use_cache": False} if base.config.left_to_right else {}))
            stack.close()
            if getattr(result, "loss", None) is not None:
                n = _predicted(batch["labels"], base.config.left_to_right)
                total, counted = total + float(result.loss) * n, counted + n
            logits = hasattr(result, "logits") and result.logits.dim() == 3
            found = result.logits if hasattr(result, "logits") else result.last_hidden_state
            room = LOGIT_TOKENS - sum(len(o) for o in outputs)
            outputs.append((found[real] if found.dim() == 3 else found)[: max(0, room)].float().cpu())
            tokens += int(real.sum())
    if not tokens:
        raise ConvertError("a change is measured on tokens, and the sample has none: give at least one row of text")
    hidden = [torch.cat(each) for each in seen]
    return Observed(tokens, total / counted if counted else None, hidden, torch.cat(outputs), logits)


def between(before: Observed, after: Observed) -> FunctionChange:
    """The difference of two observations of one sample."""
    if len(before.hidden) != len(after.hidden) or before.output.shape != after.output.shape:
        raise ConvertError(
            f"models that are compared have one depth and one vocabulary; got {len(before.hidden)} and "
            f"{len(after.hidden)} layers and outputs of {before.output.shape[-1]} and {after.output.shape[-1]}: give "
            "two wirings of one model"
        )
    layers = tuple(relative(b, a) for b, a in zip(before.hidden, after.hidden, strict=True))
    scale = max(float(before.output.abs().max()), torch.finfo(torch.float32).tiny)
    output = float((after.output - before.output).abs().max()) / scale
    kl = None
    if before.has_logits:
        p, q = before.output.log_softmax(-1), after.output.log_softmax(-1)
        kl = max(0.0, float((p.exp() * (p - q)).sum(-1).mean()))
    return FunctionChange(before.tokens, before.loss, after.loss, layers, output, kl)


def relative(before: Tensor, after: Tensor) -> float:
    """||after - before|| / ||before||, over all numbers."""
    size = float(before.norm())
    moved = float((after - before).norm())
    return moved / size if size else math.inf if moved else 0.0


@contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """The model in eval mode; afterwards every module is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _keeper(kept: list[Tensor], real: Tensor) -> Any:
    def keep(module: nn.Module, args: Any, output: Any) -> None:
        x = output[0] if isinstance(output, tuple) else output  # [batch, seq, d]
        kept.append(x[real].float().cpu())

    return keep


def _predicted(labels: Tensor, shifted: bool) -> int:
    return int(((labels[:, 1:] if shifted and labels.dim() > 1 else labels) != -100).sum())
