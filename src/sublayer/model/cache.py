"""Making any transformers cache fit: one entry for each attention call, however many a block has."""

import copy
from collections.abc import Iterable, Sequence

from torch import Tensor
from transformers.cache_utils import Cache

from sublayer.model.config import SublayerConfig
from sublayer.notation.program import Call, Section

CACHED = ("attn", "dot")


def cache_windows(sections: Iterable[tuple[int, Section]], config: SublayerConfig) -> list[int | None]:
    """For each attention call in the order of running, how many tokens it sees: the window of its layer, or None.

    Args:
        sections: (layer 1..depth or 0, section) in the order of running.
    """
    windows: list[int | None] = []
    for layer, section in sections:
        calls = (s for s in section.steps if isinstance(s, Call) and s.site.op in CACHED)
        windows += [config.window(layer) if call.site.op == "attn" else None for call in calls]
    return windows


def fit_cache(cache: Cache, windows: Sequence[int | None]) -> None:
    """Give ``cache`` at least one entry for each attention call, each as long as its window.

    transformers makes one entry a layer. Dynamic, static, quantised and offloaded caches alike hold them in ``layers``;
    a copy of an unused entry is a further entry of the same kind.

    Raises:
        ValueError: the cache already holds tokens but too few entries, so it was filled by another model; or it has
            no entry of the kind that a call needs.
    """
    if cache.layer_class_to_replicate is not None:
        return  # grows by itself
    fits = len(cache.layers) >= len(windows) and all(
        sliding == (window is not None) for sliding, window in zip(cache.is_sliding, windows, strict=False)
    )
    if fits:
        return
    if any(entry.is_initialized for entry in cache.layers):
        raise ValueError(
            f"past_key_values has {len(cache.layers)} entries, but this design calls attention {len(windows)} times"
            f"{', some with a sliding window' if any(windows) else ''}: pass a new cache, or one that this model "
            "returned"
        )
    spare = dict(zip(cache.is_sliding, cache.layers, strict=True))  # one of each kind
    needed = {window is not None for window in windows}
    if not needed <= set(spare):
        raise ValueError(
            f"past_key_values has no entry for {'all tokens' if False in needed - set(spare) else 'a sliding window'}, "
            "which a call of attention needs: leave it out, and a DynamicCache is made"
        )
    cache.layers[:] = [copy.deepcopy(spare[window is not None]) for window in windows]


def count_tokens(cache: Cache, embeddings: Tensor) -> None:
    """Let a design without attention know how many tokens came before: one number a token in the first entry."""
    ones = embeddings.new_ones(embeddings.shape[0], 1, embeddings.shape[1], 1)  # [batch, 1, seq, 1]
    cache.update(ones, ones, 0)
