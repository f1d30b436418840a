"""Recipes: whole configurations by name, where the catalogue has only equations.

BERT-large (1810.04805, uncased) and RoBERTa-large (1907.11692) as they were published, and the same sizes wired in
parallel as in PAF (2305.13297): ``x = norm(x + attn(x) + ffn(x))``. The word SAF is that paper's for the serial wiring.
"""

import difflib
from typing import Any

from sublayer.model.config import SublayerConfig

_LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "hidden_act": "gelu",
    "norm": "layernorm",
    "position_embedding": "learned",
    "max_position_embeddings": 512,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "causal": False,
    # What stands before the output layer of the masked language model.
    "lm_head_dense": True,
    "lm_head_act": "gelu",
    "lm_head_norm": True,
    "lm_head_bias": True,
}
_BERT: dict[str, Any] = {
    **_LARGE,
    "vocab_size": 30522,
    "type_vocab_size": 2,
    "norm_eps": 1e-12,
    "position_counting": "row",
    "pad_token_id": 0,
}
# RoBERTa numbers its positions from the one after pad_token_id, over real tokens, and has a single token type.
_ROBERTA: dict[str, Any] = {
    **_LARGE,
    "vocab_size": 50265,
    "type_vocab_size": 1,
    "norm_eps": 1e-5,
    "position_counting": "pad",
    "position_offset": 2,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
_RECIPES: dict[str, dict[str, Any]] = {
    "saf-bert-large-uncased": {"design": "bert", **_BERT},
    "paf-bert-large-uncased": {"design": "paf-bert", **_BERT},
    "saf-roberta-large": {"design": "roberta", **_ROBERTA},
    "paf-roberta-large": {"design": "paf-bert", **_ROBERTA},
}


def recipes() -> tuple[str, ...]:
    """The names of all recipes."""
    return tuple(_RECIPES)


def recipe(name: str, **changes: Any) -> SublayerConfig:
    """The configuration of a published model.

    Args:
        name: one of :func:`recipes`.
        changes: settings of `SublayerConfig` in place of the recipe's, such as ``num_hidden_layers=2`` for a trial.

    Raises:
        ValueError: there is no such recipe, or a setting breaks a rule.
    """
    if name not in _RECIPES:
        near = difflib.get_close_matches(name, _RECIPES, n=1)
        hint = f" (nearest: {near[0]})" if near else ""
        raise ValueError(f"a recipe is one of {', '.join(_RECIPES)}; got {name!r}{hint}: choose one of them")
    return SublayerConfig(**{**_RECIPES[name], **changes})
