"""Settings that a family's config says in other words."""

import math
from typing import Any

from sublayer.hf.errors import CheckpointError

FULL, NEAR = "full_attention", "sliding_attention"
_OFF = (False, None)
_MPT: dict[str, tuple[Any, ...]] = {
    "alibi": (True,),
    "alibi_bias_max": (8,),
    "qk_ln": _OFF,
    "prefix_lm": _OFF,
    "attn_uses_sequence_id": _OFF,
}


def half(value: int | None) -> int | None:
    """A window that counts both sides, as one that counts one side."""
    return None if value is None else value // 2


def root(value: float, on: bool = True) -> float:
    """The square root, where it is switched on."""
    return math.sqrt(value) if on else 1.0


def inverse_root(value: float) -> float:
    """1 / sqrt."""
    return float(value) ** -0.5


def inverse(value: float) -> float:
    """1 / value."""
    return 1.0 / value


def rope(parameters: dict[str, Any] | None) -> dict[str, Any] | None:
    """Rotary angles as they are, without the fields that repeat others."""
    if parameters is None:
        return None
    return {key: dict(value) if isinstance(value, dict) else value for key, value in parameters.items()}


def rope_near(parameters: dict[str, Any], layer_types: list[str], window: int | None) -> dict[str, Any]:
    """Rotary angles for layers with a window only, where there are any."""
    return rope(parameters) or {} if window is None else {NEAR: dict(parameters), FULL: None}


def rope_windows(parameters: dict[str, Any], layer_types: list[str], window: int | None) -> dict[str, Any]:
    """Rotary angles for layers with a window only; none at all where no layer has one."""
    return {NEAR: dict(parameters), FULL: None}


def partial_rope(rotary_dim: int | None, width: int, heads: int) -> dict[str, Any]:
    """Rotary angles of the first ``rotary_dim`` channels of each head, base 10000."""
    head_dim = width // heads
    return {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": (rotary_dim or head_dim) / head_dim}


def local_layers(kinds: list[str]) -> list[str]:
    """ "global" and "local" as layer types."""
    return [NEAR if kind == "local" else FULL for kind in kinds]


def score_factor(layers: int, width: int, heads: int, scaled: bool, by_layer: bool = False) -> Any:
    """GPT-2's factor on the scores: 1/sqrt(head_dim) unless switched off, over the layer's number if switched on."""
    base = (width // heads) ** -0.5 if scaled else 1.0
    return [base / (i + 1) for i in range(layers)] if by_layer else base


def truths(flags: list[int]) -> list[bool]:
    """0 and 1 as False and True."""
    return [bool(flag) for flag in flags]


def less_padding(rows: int, pad: int) -> int:
    """Positions that are left of a table whose first rows, up to the padding's, belong to no position."""
    return rows - pad - 1


def after_padding(pad: int) -> int:
    """The first row that belongs to a position."""
    return pad + 1


def group_count(heads: int, kv_heads: int, multi_query: bool, new: bool) -> int:
    """Falcon's key-value heads."""
    return kv_heads if new else 1 if multi_query else heads


def shared_keys(multi_query: bool, heads: int) -> int:
    """One key-value head for all query heads, or one for each."""
    return 1 if multi_query else heads


def four_times(width: int, inner: int | None = None) -> int:
    """The width inside the FFN, four times the stream's unless it is said."""
    return inner if inner is not None else 4 * width


def if_differs(embedding: int, hidden: int) -> bool:
    """Whether the token table is narrower or wider than the stream."""
    return embedding != hidden


def mpt_clip(attention: Any) -> float | None:
    """The limit of queries, keys and values, in MPT's config inside the config.

    Raises:
        CheckpointError: it asks for attention that transformers' MPT does not compute either.
    """
    for name, plain in _MPT.items():
        value = getattr(attention, name, plain[0])
        if value not in plain:
            raise CheckpointError(
                f"attn_config.{name} ({value!r}) has no counterpart here, where it is {plain[0]!r}: load a checkpoint "
                "with that value"
            )
    clip = getattr(attention, "clip_qkv", None)
    return clip or None


def mpt_scale(attention: Any) -> float | None:
    """The factor on the scores, in MPT's config inside the config."""
    scale: float | None = getattr(attention, "softmax_scale", None)
    return scale


def mpt_dropout(attention: Any) -> float:
    """Dropout on attention weights, in MPT's config inside the config."""
    return float(getattr(attention, "attn_pdrop", 0.0))
