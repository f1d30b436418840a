"""Making any transformers cache fit: one entry for each attention call, however many a block has."""

import copy

from torch import Tensor
from transformers.cache_utils import Cache

from sublayer.notation.program import Call, Section

CACHED = ("attn", "dot")


def attention_calls(section: Section) -> int:
    """How many times a section runs attention; two calls that share parameters count twice, since their keys differ."""
    return sum(isinstance(step, Call) and step.site.op in CACHED for step in section.steps)


def fit_cache(cache: Cache, slots: int) -> None:
    """Give ``cache`` at least ``slots`` entries.

    transformers makes one entry a layer. Dynamic, static, quantised and offloaded caches alike hold them in ``layers``;
    a copy of an unused entry is a further entry of the same kind.

    Raises:
        ValueError: the cache already holds tokens but too few entries, so it was filled by another model.
    """
    missing = slots - len(cache.layers)
    if missing <= 0 or cache.layer_class_to_replicate is not None:
        return  # large enough, or grows by itself
    if cache.layers[-1].is_initialized:
        raise ValueError(
            f"past_key_values has {len(cache.layers)} entries, but this design calls attention {slots} times: "
            "pass a new cache, or one that this model returned"
        )
    spare = cache.layers[-1]
    cache.layers.extend(copy.deepcopy(spare) for _ in range(missing))


def count_tokens(cache: Cache, embeddings: Tensor) -> None:
    """Let a design without attention know how many tokens came before: one number a token in the first entry."""
    ones = embeddings.new_ones(embeddings.shape[0], 1, embeddings.shape[1], 1)  # [batch, 1, seq, 1]
    cache.update(ones, ones, 0)
