"""Making any transformers cache fit: one entry for each attention call, however many a block has; and letting it grow
without being copied for each token."""

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from sublayer.model.config import SublayerConfig
from sublayer.notation.program import Call, Section

CACHED = ("attn", "dot")
SPARE = 64  # tokens of room at least that a cache grows by, or a quarter of what it holds
_ROOM = "sublayer_room"


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


def append(cache: Cache, keys: Tensor, values: Tensor, slot: int) -> tuple[Tensor, Tensor]:
    """``cache.update``: append ``[batch, heads, seq, head_dim]`` to an entry, and return all that it holds.

    A dynamic cache is copied as a whole for each token. Where no gradient is taken, the copy is made with room for more
    tokens, which are then written behind the others: what an entry shows is a window on that room. Other kinds of
    caches, and entries that somebody else has changed since, are left to themselves.
    """
    entry: Any = cache.layers[slot] if slot < len(cache.layers) else None
    if not _is_plain(cache, entry) or (entry.keys.dtype, entry.values.dtype) != (keys.dtype, values.dtype):
        seen: tuple[Tensor, Tensor] = cache.update(keys, values, slot)
        return seen
    of_keys, of_values = getattr(entry, _ROOM, (None, None))
    of_keys, of_values = _room(of_keys, entry.keys, keys), _room(of_values, entry.values, values)
    setattr(entry, _ROOM, (of_keys, of_values))
    entry.keys, entry.values = _written(of_keys, entry.keys, keys), _written(of_values, entry.values, values)
    return entry.keys, entry.values


def _is_plain(cache: Cache, entry: Any) -> bool:
    """Whether an entry is of the kind that grows by copies, holds something, and may be written to as it is."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    return type(cache) is DynamicCache and not cache.offloading and type(entry) is DynamicLayer and entry.is_initialized


def _room(room: Tensor | None, held: Tensor, new: Tensor) -> Tensor:
    """Room ``[batch, heads, more, head_dim]`` that begins with what is held, and lasts; else a new one."""
    length, wanted = held.shape[-2], held.shape[-2] + new.shape[-2]
    if (
        room is not None
        and room.data_ptr() == held.data_ptr()
        and room[..., :length, :].shape == held.shape
        and room.stride() == held.stride()
        and wanted <= room.shape[-2]
        and (torch.is_inference_mode_enabled() or not room.is_inference())  # or it may not be written to
    ):
        return room
    more = held.new_empty(*held.shape[:-2], wanted + max(SPARE, wanted // 4), held.shape[-1])
    more[..., :length, :] = held
    return more


def _written(room: Tensor, held: Tensor, new: Tensor) -> Tensor:
    length, wanted = held.shape[-2], held.shape[-2] + new.shape[-2]
    room[..., length:wanted, :] = new
    return room[..., :wanted, :]
