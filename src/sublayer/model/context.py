"""What one forward pass hands to every attention site."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache

from sublayer.model.cache import append


@dataclass
class Context:
    """Masks, positions and cache of one forward pass, the same object for every layer.

    Attributes:
        masks: by `sublayer.model.masks.mask_key`, the mask in the form its backend wants, `Blocks`, or None where none
            is needed.
        rotary: by layer type, cosines and sines ``[batch or 1, seq, width]``; empty without rotary positions.
        cache: keys and values of earlier tokens, or None.
        slot: the cache entry that the next attention call uses. Calls are counted as they run, because a block may hold
            several, two may share one site's parameters, and blocks may differ in how many they hold.
        options: keyword arguments handed on to the attention backend.
    """

    masks: dict[str, Any]
    rotary: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    cache: Cache | None = None
    slot: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    def remember(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append to the cache, ``[batch, heads, seq, head_dim]`` each, and return all that has been seen."""
        if self.cache is None:
            return keys, values
        slot, self.slot = self.slot, self.slot + 1
        return append(self.cache, keys, values, slot)
