"""Default configurations that run: what transformers leaves out of some, filled in by rule, each filling told.

A checkpoint's own config always says these things, so `open_target` never repairs one. The atlas of all architectures
starts from the classes' defaults, and a few of those cannot be built or run as they are.
"""

from typing import Any

from sublayer.audit.target import configs_in

# Fields that are None by default although the model needs a number: the usual value, or the field it follows.
FOLLOWS = {"num_key_value_heads": "num_attention_heads", "num_kv_heads": "num_attention_heads"}
NUMBERS = {
    "vocab_size": 1000,
    "num_experts_per_tok": 2,
    "n_routed_experts": 8,
    "num_experts": 8,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "moe_intermediate_size": 1024,
}


def repaired(config_class: Any) -> tuple[Any, tuple[str, ...]]:
    """A default config with what is missing filled in, and what was filled, as text.

    Rules: heads of keys and values follow the heads of queries; ``head_dim`` is the width by the heads; a number of
    experts or of tokens that is None is a small one; layers without a kind are attention; a rotary table that is kept by
    layer kind has one for each; a class that must be told to decode is told.
    """
    made: list[str] = []
    config = config_class()
    for part in configs_in(config):
        _repair(part, made)
    return config, tuple(dict.fromkeys(made))


def _repair(config: Any, made: list[str]) -> None:
    def fill(name: str, value: Any) -> None:
        setattr(config, name, value)
        made.append(f"{name} = {value!r}" if not isinstance(value, list | dict) else f"{name} by rule")

    for name, source in FOLLOWS.items():
        if getattr(config, name, 0) is None and isinstance(getattr(config, source, None), int):
            fill(name, getattr(config, source))
    heads, width = getattr(config, "num_attention_heads", None), getattr(config, "hidden_size", None)
    if getattr(config, "head_dim", 0) is None and isinstance(heads, int) and isinstance(width, int) and heads:
        fill("head_dim", width // heads)
    for name, value in NUMBERS.items():
        if getattr(config, name, 0) is None:
            fill(name, value)
    layers = getattr(config, "num_hidden_layers", None)
    if getattr(config, "layer_types", ()) is None and isinstance(layers, int):
        fill("layer_types", ["full_attention"] * layers)
    _repair_rotary(config, fill)
    if getattr(config, "is_decoder", None) is False and not getattr(config, "is_encoder_decoder", False):
        fill("is_decoder", True)


def _repair_rotary(config: Any, fill: Any) -> None:
    table = getattr(config, "rope_parameters", None)
    theta = table.get("rope_theta", 10_000.0) if isinstance(table, dict) else 10_000.0
    kinds = set(getattr(config, "layer_types", None) or ()) & {"full_attention", "sliding_attention"}
    flat = not isinstance(table, dict) or not kinds & set(table)
    if kinds and flat and len(kinds) > 1:
        fill("rope_parameters", {kind: {"rope_type": "default", "rope_theta": theta} for kind in sorted(kinds)})
    for name in ("attn_config",):
        inner = getattr(config, name, None)
        if inner is not None and not hasattr(inner, "rope_theta"):
            inner.rope_theta = theta
            fill(name, inner)
