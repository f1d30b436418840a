"""What the values of a `SublayerConfig` must obey; each broken rule is one ValueError: rule, value, remedy."""

import difflib
import math
from collections.abc import Sequence
from typing import Any

from transformers.activations import ACT2CLS

PLAIN_ACTS = ("relu", "gelu", "gelu_pytorch_tanh", "silu")
GATED_ACTS = ("reglu", "geglu", "swiglu")
HIDDEN_ACTS = (*PLAIN_ACTS, *GATED_ACTS)
NORMS = ("layernorm", "rmsnorm", "dyt")
POSITIONS = ("learned", "rotary", "none", "sinusoidal", "alibi")
INITS = ("normal", "deepnorm")
LAYER_TYPES = ("full_attention", "sliding_attention")
# Activations of transformers that own parameters, or of which the name says too little.
_NOT_PLAIN = ("xielu", "laplace", "prelu")

_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "max_position_embeddings",
    "embedding_size",
    "sliding_window",
)
_POSITIVE = (
    "norm_eps",
    "rope_theta",
    "initializer_range",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "clip_qkv",
)
_FINITE = ("scale_init", "gate_init", "dyt_alpha_init", "embedding_multiplier", "logits_scale", "alibi_scale")
_DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "embedding_dropout_prob")
_PER_LAYER = ("layer_types", "rotary_layers", "attention_scale")


def activations() -> tuple[str, ...]:
    """Every name that ``hidden_act`` may have: ours, and transformers' that own no parameters."""
    others = (name for name in ACT2CLS if name not in (*HIDDEN_ACTS, *_NOT_PLAIN))
    return (*HIDDEN_ACTS, *others)


def check(config: Any) -> None:
    """Raise ValueError or DesignError where a value breaks a rule."""
    for name in _SIZES:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} ({value}) must be at least 1: give a positive number")
    for name in ("type_vocab_size", "position_offset"):
        if getattr(config, name) < 0:
            raise ValueError(f"{name} ({getattr(config, name)}) must be at least 0: 0 leaves it out")
    for name in _DROPOUTS:
        value = getattr(config, name)
        if value is not None and not 0 <= value < 1:
            raise ValueError(f"{name} ({value}) must be at least 0 and below 1: 0 turns dropout off")
    for name in _POSITIVE:
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise ValueError(f"{name} ({value}) must be positive: give a number above 0")
    _check_choices(config)
    if config.pad_token_id is not None and not 0 <= config.pad_token_id < config.vocab_size:
        raise ValueError(
            f"pad_token_id ({config.pad_token_id}) must lie within 0..{config.vocab_size - 1}: give an id of the "
            "vocabulary, or None"
        )
    for name in _FINITE:
        value = getattr(config, name)
        if value is not None and not math.isfinite(value):
            raise ValueError(f"{name} ({value}) must be finite: give a number")
    _check_heads(config)
    _check_layers(config)
    _check_positions(config)
    # Ranges such as block[:25%] must tile the depth: this raises a DesignError that says how they do not.
    config.wiring.check_depth(config.num_hidden_layers)


def suggest(word: str, choices: Sequence[str]) -> str:
    """The nearest choice in brackets, or nothing."""
    near = difflib.get_close_matches(word, choices, n=1)
    return f" (nearest: {near[0]})" if near else ""


def _check_choices(config: Any) -> None:
    for name, choices in (
        ("hidden_act", activations()),
        ("norm", NORMS),
        ("position_embedding", POSITIONS),
        ("init", INITS),
        ("qk_norm", (False, True, "head", "heads", "full")),
        ("qk_norm_kind", ("rmsnorm", "layernorm")),
        ("position_counting", ("mask", "row", "pad")),
        ("embedding_projection", ("sum", "tokens")),
        ("alibi_dtype", ("float32", "bfloat16")),
        ("lm_head_act", (None, *activations())),
        ("classifier_act", (None, *activations())),
        ("classifier_reads", (None, "first", "last", "mean")),
    ):
        value = getattr(config, name)
        if value not in choices:
            known = f"{', '.join(str(c) for c in choices)}{suggest(str(value), [str(c) for c in choices])}"
            raise ValueError(f"{name} ({value!r}) must be one of {known}: choose one of them")
    for name in ("lm_head_act", "classifier_act"):
        if getattr(config, name) in GATED_ACTS:
            raise ValueError(
                f"{name} ({getattr(config, name)!r}) has no second product to be gated by: use a plain one"
            )


def _divisor(number: int, most: int) -> int:
    """The largest divisor of a number up to ``most``, and up to what any model has heads."""
    return max((n for n in range(1, min(number, most, 4096) + 1) if number % n == 0), default=1)


def _check_heads(config: Any) -> None:
    hidden, heads = config.hidden_size, config.num_attention_heads
    if config.head_dim is None and hidden % heads:
        near = _divisor(hidden, heads)
        raise ValueError(
            f"hidden_size ({hidden}) must be divisible by num_attention_heads ({heads}): use hidden_size "
            f"{hidden + heads - hidden % heads} or {near} heads, or give head_dim"
        )
    groups = config.num_key_value_heads
    if groups is not None and heads % groups:
        near = _divisor(heads, groups)
        raise ValueError(
            f"num_attention_heads ({heads}) must be divisible by num_key_value_heads ({groups}): "
            f"use {near} key-value heads"
        )
    width = config.head_dim if config.head_dim is not None else hidden // heads
    if config.position_embedding == "rotary" and width % 2:
        raise ValueError(
            f"head_dim ({width}) must be even for rotary positions: "
            "use an even head_dim, or position_embedding='learned' or 'none'"
        )


def _check_layers(config: Any) -> None:
    depth = config.num_hidden_layers
    for name in _PER_LAYER:
        value = getattr(config, name)
        if isinstance(value, list) and len(value) != depth:
            raise ValueError(f"{name} has {len(value)} entries for {depth} layers: give one for each layer")
    kinds = config.layer_types or []
    for kind in kinds:
        if kind not in LAYER_TYPES:
            raise ValueError(
                f"layer_types has {kind!r}{suggest(kind, LAYER_TYPES)}: each entry must be one of "
                f"{', '.join(LAYER_TYPES)}"
            )
    if "sliding_attention" in kinds and config.sliding_window is None:
        raise ValueError(
            "layer_types has sliding_attention but sliding_window is None: say how many tokens such a layer sees"
        )
    if config.sliding_window is not None and config.position_embedding == "alibi":
        raise ValueError(
            f"sliding_window ({config.sliding_window}) with position_embedding 'alibi' is not built: use one of them"
        )
    outside = [which for which in ("embed", "final") if _attends(config.wiring.section(which))]
    if config.sliding_window is not None and outside:
        raise ValueError(
            f"sliding_window ({config.sliding_window}) belongs to the layers, but the {outside[0]} section has "
            "attention too: take one of them out"
        )


def _attends(section: Any) -> bool:
    return any(site.op == "attn" for site in section.sites)


def _check_positions(config: Any) -> None:
    if config.position_counting == "pad" and config.pad_token_id is None:
        raise ValueError("position_counting 'pad' counts the tokens that are not pad_token_id, which is None: give it")
    parameters = config.rope_parameters
    if parameters is None:
        return
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    nested = [parameters[kind] for kind in parameters if kind in LAYER_TYPES] or [parameters]
    known = ("default", *ROPE_INIT_FUNCTIONS)
    for values in nested:
        kind = (values or {}).get("rope_type", "default")
        if kind not in known:
            raise ValueError(
                f"rope_parameters has rope_type {kind!r}{suggest(kind, known)}: use one of {', '.join(known)}"
            )
