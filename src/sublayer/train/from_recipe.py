"""A recipe as the settings of a run. Imports no torch."""

from __future__ import annotations

from typing import Any

from sublayer.recipes import Recipe

#: Fields of `SublayerConfig` that a run's settings have under a name of their own.
_FIELDS = {
    "num_hidden_layers": "layers", "hidden_size": "hidden", "num_attention_heads": "heads", "intermediate_size": "ffn",
    "num_key_value_heads": "kv_heads", "hidden_act": "hidden_act", "norm": "norm", "position_embedding": "positions",
    "hidden_dropout_prob": "dropout", "attention_probs_dropout_prob": "attention_dropout", "init": "init",
    "tie_word_embeddings": "tie_embeddings", "initializer_range": "initializer_range",
}  # fmt: skip
_SAME = ("objective", "seq", "mask_rate", "batch", "lr", "schedule", "betas", "eps", "weight_decay", "clip", "dtype")
#: A run of the recipe with one of these changed is a trial.
_SHORTENS = ("layers", "steps", "tokens")
#: What a trial has unless it is said otherwise: a row a step, local text, a small tokenizer that is trained on it. The
#: model keeps its width and all rows of its table.
TRIAL: dict[str, Any] = {
    "batch": 1, "accumulation": 1, "dtype": "float32", "tokenizer": None, "vocab_size": 4096, "eval_rows": 2,
    "measure_rows": 1, "log_every": 1, "eval_every": 0, "measure_every": 0,
}  # fmt: skip


def settings(recipe: Recipe, **changes: Any) -> dict[str, Any]:
    """The recipe as settings of `TrainSpec`, on one process that accumulates up to the global batch.

    Args:
        recipe: what to run.
        changes: settings in place of the recipe's; None changes nothing. With ``steps``, ``tokens`` or ``layers`` among
            them the run is a trial: what else they leave open comes from `TRIAL`.
    """
    changes = {name: value for name, value in changes.items() if value is not None}
    model, training = dict(recipe.model), recipe.training
    found: dict[str, Any] = {"data": "docs", "design": model.pop("design"), "tokenizer": recipe.data.get("tokenizer")}
    for name in ("causal", "pad_token_id", "bos_token_id", "eos_token_id"):
        model.pop(name, None)  # they follow from the objective and the tokenizer
    found |= {mine: model.pop(theirs) for theirs, mine in _FIELDS.items() if theirs in model}
    found |= {name: training[name] for name in _SAME if name in training}
    found["warmup"] = recipe.warmup
    if not changes.keys() & {"steps", "tokens"}:
        found["steps"] = recipe.steps
    if changes.keys() & set(_SHORTENS):
        found |= TRIAL
    rows = changes.get("batch", found["batch"])
    found.setdefault("accumulation", max(1, -(-training["global_batch"] // rows)))
    return {**found, **changes, "model_options": {**model, **changes.get("model_options", {})}}


def departures(recipe: Recipe, chosen: dict[str, Any]) -> list[str]:
    """What a run does otherwise than the recipe, a line each."""
    plain = settings(recipe)
    found = [
        f"{name}: {plain[name]!r} -> {chosen[name]!r}"
        for name in sorted(chosen)
        if name in plain and name not in ("model_options", "data") and plain[name] != chosen[name]
    ]
    if chosen["data"] == "docs":
        found.append("data: the local documentation (give --data for more), in place of the recipe's corpora")
    return found
