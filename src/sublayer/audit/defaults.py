"""Default configurations that run: what transformers leaves out of some, filled in by rule, each filling told.

A checkpoint's own config always says these things, so `open_target` never repairs one. The atlas of all architectures
starts from the classes' defaults, and a few of those cannot be built or run as they are.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from sublayer.audit.configs import configs_in

# Fields that are None by default although the model needs a number: the usual value, or the field it follows.
FOLLOWS = {
    "num_key_value_heads": "num_attention_heads",
    "num_kv_heads": "num_attention_heads",
    "indexer_head_dim": "head_dim",
}
NUMBERS = {
    "vocab_size": 1000,
    "num_experts_per_tok": 2,
    "n_routed_experts": 8,
    "num_experts": 8,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "moe_intermediate_size": 1024,
    "clip_qkv": 8.0,
    "rope_theta": 10_000.0,
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_budget": 64,
    "indexer_compress_ratio": 4,
}


def candidates(config_class: Any) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """Default configs to try in order, each with what was filled in: none of it, what is None, then more.

    Rules: heads of keys and values follow the heads of queries; ``head_dim`` is the width by the heads; a number that
    is None is a usual small one; layers without a kind are attention; a class that must be told to decode is told; a
    rotary table that is kept by layer kind has one for each. Whatever a config's own checks raise is raised.
    """
    yield config_class(), ()
    for also in (_nothing, _rotary, _decoding):
        made: list[str] = []
        config = config_class()
        for part in configs_in(config):
            with contextlib.suppress(AttributeError):  # a config whose layers differ refuses some of its fields
                _numbers(part, made)
            also(part, made)
        yield config, tuple(dict.fromkeys(made))


def _nothing(config: Any, made: list[str]) -> None:
    """No further filling."""


def _decoding(config: Any, made: list[str]) -> None:
    if getattr(config, "is_decoder", None) is False and not getattr(config, "is_encoder_decoder", False):
        config.is_decoder = True
        made.append("is_decoder = True")


def _numbers(config: Any, made: list[str]) -> None:
    def fill(name: str, value: Any) -> None:
        setattr(config, name, value)
        made.append(f"{name} = {value!r}" if not isinstance(value, list) else f"{name} = {value[0]!r} everywhere")

    for name, source in FOLLOWS.items():
        if getattr(config, name, 0) is None and isinstance(getattr(config, source, None), int):
            fill(name, getattr(config, source))
    heads, width = getattr(config, "num_attention_heads", None), getattr(config, "hidden_size", None)
    if getattr(config, "head_dim", 0) is None and isinstance(heads, int) and isinstance(width, int) and heads:
        fill("head_dim", width // heads)
    if getattr(config, "vocab_size", 0) is None:
        for name, special in (("mask_token_id", 4), ("pad_token_id", 1)):
            if getattr(config, name, 0) is None:
                fill(name, special)
    for name, value in NUMBERS.items():
        # rope_theta is read by an attention part's config that does not declare it
        if getattr(config, name, None if name == "rope_theta" and hasattr(config, "clip_qkv") else 0) is None:
            fill(name, value)
    layers = getattr(config, "num_hidden_layers", None)
    if getattr(config, "layer_types", ()) is None and isinstance(layers, int):
        fill("layer_types", ["full_attention"] * layers)


def _rotary(config: Any, made: list[str]) -> None:
    table = getattr(config, "rope_parameters", None)
    theta = table.get("rope_theta", 10_000.0) if isinstance(table, dict) else 10_000.0
    kinds = sorted(set(getattr(config, "layer_types", None) or ()) & {"full_attention", "sliding_attention"})
    if kinds and not (isinstance(table, dict) and set(kinds) & set(table)):
        config.rope_parameters = {kind: {"rope_type": "default", "rope_theta": theta} for kind in kinds}
        made.append(f"rope_parameters = {theta} for each of {', '.join(kinds)}")
