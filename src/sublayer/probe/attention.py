"""What attention looks at: entropy and first-token share, from the queries and keys of the running model."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import find_packed_sequence_indices

from sublayer.model.attention import AttentionCore
from sublayer.probe import measures


class AttentionWatch:
    """Attention probabilities of a few rows, written out from the queries and keys that each site hands to its backend,
    whichever backend that is."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._found: dict[tuple[int, str], list[tuple[int, float | None, float | None]]] = defaultdict(list)

    @contextmanager
    def attached(self, layers: Iterable[nn.Module], batch: Mapping[str, Tensor]) -> Iterator[None]:
        """Listen to every attention site of `layers` while one batch runs."""
        real = real_tokens(batch)
        sequence = document_ids(batch)
        handles = []
        for number, layer in enumerate(layers):
            for name, core in layer.named_modules():
                if isinstance(core, AttentionCore) and self._rows > 0:
                    key = (number, name.removesuffix(".core"))

                    def look(core: AttentionCore, args: tuple[Any, ...], key: tuple[int, str] = key) -> None:
                        for row in range(min(self._rows, len(real))):
                            self._look(key, core, args[0][row], args[1][row], real[row], sequence, row)

                    handles.append(core.register_forward_pre_hook(look))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _look(
        self,
        key: tuple[int, str],
        core: AttentionCore,
        queries: Tensor,
        keys: Tensor,
        real: Tensor,
        sequence: Tensor | None,
        row: int,
    ) -> None:
        """One row: queries [heads, seq, head_dim], keys [kv_heads, seq, head_dim], real [seq]."""
        keys = keys.repeat_interleave(core.num_key_value_groups, dim=0)
        allowed = visible(real, None if sequence is None else sequence[row], core.is_causal)[
            real
        ]  # [real queries, keys]
        scores = queries[:, real].float() @ keys.float().transpose(1, 2) * core.scaling  # [heads, real queries, keys]
        weights = scores.masked_fill(~allowed, -math.inf).softmax(dim=-1)
        entropy = measures.attention_entropy(weights)
        first = measures.first_token_share(weights, allowed)
        self._found[key].append((int(real.sum()), entropy, first))

    def of_layer(self, layer: int) -> list[dict[str, Any]]:
        """`{"site", "entropy", "first_token"}` of each attention site, means over the tokens looked at."""
        return [
            {"site": site, "entropy": _mean(found, 1), "first_token": _mean(found, 2)}
            for (number, site), found in self._found.items()
            if number == layer
        ]


def real_tokens(batch: Mapping[str, Tensor]) -> Tensor:
    """Which of the tokens are no padding, bool [batch, seq]."""
    mask = batch.get("attention_mask")
    return torch.ones_like(batch["input_ids"], dtype=torch.bool) if mask is None else mask.bool()


def document_ids(batch: Mapping[str, Tensor]) -> Tensor | None:
    """Document of each token [batch, seq], or None: `sequence_ids`, or what the model reads out of `position_ids` that
    start again when nothing else is given."""
    positions = batch.get("position_ids")
    if batch.get("sequence_ids") is None and batch.get("attention_mask") is None and positions is not None:
        return find_packed_sequence_indices(positions.expand_as(batch["input_ids"]))
    return batch.get("sequence_ids")


def visible(real: Tensor, sequence: Tensor | None, causal: bool) -> Tensor:
    """Which keys each query of one row may look at, bool [queries, keys]: no padding, its own document, and nothing
    later where attention is causal."""
    length = len(real)
    allowed = real.expand(length, length)
    if causal:
        allowed = allowed & torch.ones(length, length, dtype=torch.bool, device=real.device).tril()
    if sequence is not None:
        allowed = allowed & (sequence[:, None] == sequence[None, :])
    return allowed


def _mean(found: Sequence[tuple[int, float | None, float | None]], column: int) -> float | None:
    """Mean of one column, weighted by the first; what is not defined is left out."""
    values = [(row[0], row[column]) for row in found]
    defined = [(weight, value) for weight, value in values if value is not None]
    total = sum(weight for weight, _ in defined)
    return sum(weight * value for weight, value in defined) / total if total else None
