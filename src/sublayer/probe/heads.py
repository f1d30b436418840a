"""What attention looks at in any model: from the queries and keys that a fused kernel is given, or from the shares that
a softmax makes."""

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sublayer.audit import vocabulary as words
from sublayer.probe import measures
from sublayer.probe.places import Mix


class HeadWatch:
    """Entropy and first-token share of each attention of a run, over a few rows of its first batch.

    Args:
        rows: rows of the batch that are looked at; 0 for none.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.on = rows > 0
        self.batch = 0
        self.real: Callable[[int, int], Tensor | None] = lambda stack, queries: None
        self.found: dict[tuple[int, int, str], list[tuple[int, float | None, float | None]]] = defaultdict(list)
        self.future: dict[tuple[int, int, str], bool] = {}  # whether any query looks at a later key

    def look(self, mix: Mix, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Tensor) -> None:
        """Take in one attention: ``result`` is [batch, heads, queries, keys] shares, or what a fused kernel made."""
        if not self.on:
            return
        name = func._schema.name.rpartition("::")[2]
        if words.KIND.get(name) == "softmax":
            shares = None if name.startswith(("_log", "log")) else self._rows_of(result)
        else:
            shares = self._fused(func, args, kwargs)
        if shares is None:
            return
        real = self.real(mix.stack, shares.shape[2])  # which queries are tokens, bool [batch, queries]
        for row, probabilities in enumerate(shares.unbind(0)):  # [heads, queries, keys]
            self._row((mix.stack, mix.layer, mix.site), probabilities, None if real is None else real[row])

    def _row(self, key: tuple[int, int, str], shares: Tensor, real: Tensor | None) -> None:
        queries = shares.shape[1]
        if shares.shape[1] == shares.shape[2]:
            later = torch.ones(queries, queries, dtype=torch.bool, device=shares.device).triu(1)
            self.future[key] = self.future.get(key, False) or bool((shares * later).any())
        if real is not None:
            shares = shares[:, real.to(shares.device)]
        allowed = (shares > 0).any(dim=0)  # [queries, keys]: what is masked has no share in any head
        entropy = measures.attention_entropy(shares)
        self.found[key].append((shares.shape[1], entropy, measures.first_token_share(shares, allowed)))

    def _rows_of(self, shares: Tensor) -> Tensor | None:
        """The first rows of shares that may have rows and heads in one axis."""
        if shares.ndim == 3:
            if not self.batch or shares.shape[0] % self.batch:
                return None
            shares = shares.reshape(self.batch, -1, *shares.shape[1:])
        if shares.ndim != 4:
            return None
        return shares[: self.rows].detach().float()

    def _fused(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        names = [a.name for a in func._schema.arguments]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        query, key = given.get("query"), given.get("key")
        if not isinstance(query, Tensor) or not isinstance(key, Tensor) or query.ndim != 4 or key.ndim != 4:
            return None
        if query.shape[-1] != key.shape[-1] or query.shape[1] % key.shape[1] or "cum_seq_q" in given:
            return None
        q, k = query[: self.rows].detach().float(), key[: self.rows].detach().float()
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        scale = given.get("scale")
        scores = q @ k.transpose(-1, -2) * (scale if scale is not None else 1 / math.sqrt(q.shape[-1]))
        mask = given.get("attn_mask", given.get("attn_bias"))
        if isinstance(mask, Tensor):
            mask = mask[: self.rows] if mask.ndim == 4 and mask.shape[0] > 1 else mask
            scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask.float()
        if given.get("is_causal"):
            visible = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
            scores = scores.masked_fill(~visible, -math.inf)
        return scores.softmax(dim=-1)

    def of_layer(self, stack: int, layer: int) -> list[dict[str, Any]]:
        """`{"site", "entropy", "first_token"}` of each attention of a layer, means over the queries looked at."""
        return [
            {"site": site, "entropy": _mean(rows, 1), "first_token": _mean(rows, 2)}
            for (s, where, site), rows in self.found.items()
            if (s, where) == (stack, layer)
        ]

    def causal(self, stack: int) -> bool | None:
        """Whether no query of a stack's attentions looks at a later key; None where none was seen."""
        seen = [later for (s, _, site), later in self.future.items() if s == stack and not site.startswith("cross")]
        return not any(seen) if seen else None


def _mean(rows: list[tuple[int, float | None, float | None]], column: int) -> float | None:
    """Mean of one column, weighted by the first; what is not defined is left out."""
    defined = [(row[0], value) for row in rows if (value := row[column]) is not None]
    total = sum(weight for weight, _ in defined)
    return sum(weight * value for weight, value in defined) / total if total else None
