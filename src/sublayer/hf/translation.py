"""From a config of transformers to the settings of a Sublayer model; what changes the function is never passed over."""

import copy
import dataclasses
from typing import Any

from transformers import PreTrainedConfig

from sublayer.hf.errors import CheckpointError
from sublayer.hf.family import Equals, Family, Fixed, Made, Maybe, Pick, Setting
from sublayer.model import SublayerConfig
from sublayer.notation import parse

# Fields of many configs that change no output of the models that are loaded here.
HARMLESS = frozenset({
    "initializer_range", "init_std", "initializer_factor", "initializer_cutoff_factor", "use_cache", "layerdrop",
    "classifier_dropout", "summary_type", "summary_use_proj", "summary_activation",
    "summary_last_dropout", "summary_first_dropout", "summary_proj_to_labels", "pretraining_tp", "activation_dropout",
    "n_ctx", "task_specific_params", "sparse_prediction", "sparse_pred_ignore_index", "deterministic_flash_attn",
    "cls_token_id", "sep_token_id", "mask_token_id", "qa_dropout", "seq_classif_dropout", "decoder_start_token_id",
    "ignore_keys_at_rope_validation",
})  # fmt: skip
# What any config may say beside its fields, and the values under which it says nothing new.
_NEUTRAL = {
    "position_embedding_type": (None, "absolute", "rotary", "rope"),
    "is_encoder_decoder": (False, None),
    "quantization_config": (None,),
}


def settings_of(family: Family, config: PreTrainedConfig, layout: str | None = None) -> dict[str, Any]:
    """The settings of the Sublayer config with the function of the family's config, design included.

    Raises:
        CheckpointError: a field has a value that no setting represents.
    """
    read: set[str] = set()
    values = {name: _value(setting, config, read) for name, setting in family.settings.items()}
    values["design"] = design_of(family, config, layout, read)
    if (values.get("pad_token_id") or 0) < 0:
        values["pad_token_id"] = None  # what older configs mean by -1
    _check_read(family, config, read)
    return values


def design_of(family: Family, config: PreTrainedConfig, layout: str | None = None, read: set[str] | None = None) -> str:
    """The equation of a config, in normal form."""
    read = set() if read is None else read
    for wiring in family.wirings:
        read |= {*wiring.when}
        if all(_holds(_get(config, name), value, config) for name, value in wiring.when.items()):
            break
    else:
        said = {name: _get(config, name) for name in family.wirings[0].when}
        raise CheckpointError(
            f"no wiring of {family.model_type} is known for {said}: load another checkpoint, or build the model from "
            "an equation with SublayerConfig"
        )
    text = wiring.design
    if layout is not None:
        if layout not in family.layouts:
            known = ", ".join(family.layouts) or "none"
            raise CheckpointError(
                f"layout ({layout!r}) must be one that {family.model_type} has: {known}; leave it out for the layout "
                "of transformers"
            )
        text = family.layouts[layout].design
    numbers = {name: value for name in _names(config) if isinstance(value := _get(config, name), int | float)}
    read |= {name for name in numbers if "{" + name + "}" in text}
    depth = _get(config, "num_hidden_layers")
    if depth == 1:  # a range that starts behind the only layer covers nothing
        text = "\n".join(line for line in text.splitlines() if not line.startswith("block[1:]"))
    return str(parse(text.format(**numbers)))


def sublayer_config(family: Family, config: PreTrainedConfig, layout: str | None = None, **more: Any) -> SublayerConfig:
    """The Sublayer config of a family's config, with what it came from written into it."""
    result = SublayerConfig(**settings_of(family, config, layout), **more)
    for name in ("id2label", "label2id", "problem_type"):
        setattr(result, name, copy.copy(getattr(config, name)))
    result.source_checkpoint = {"model_type": family.model_type, "layout": layout, "config": plain(config)}
    return result


def plain(config: PreTrainedConfig) -> dict[str, Any]:
    """The config as JSON values, what differs from its class's defaults."""
    import json

    values: dict[str, Any] = json.loads(config.to_json_string(use_diff=True))
    return values


def _value(setting: Setting, config: PreTrainedConfig, read: set[str]) -> Any:
    if isinstance(setting, Fixed):
        return setting.value
    if isinstance(setting, Maybe):
        if not hasattr(config, setting.field):
            return setting.otherwise
        read.add(setting.field)
        return _get(config, setting.field)
    if isinstance(setting, Made):
        read |= {*setting.fields}
        return setting.by(*(_get(config, name) for name in setting.fields))
    name = setting.field if isinstance(setting, Pick) else setting
    read.add(name)
    value = _get(config, name)
    if not isinstance(setting, Pick):
        return value
    if value not in setting.values:
        known = ", ".join(repr(v) for v in setting.values)
        raise CheckpointError(f"{name} ({value!r}) must be one of {known} to be represented: load another checkpoint")
    return setting.values[value]


def _check_read(family: Family, config: PreTrainedConfig, read: set[str]) -> None:
    aliases = type(config).attribute_map or {}
    seen = {aliases.get(name, name) for name in read} | HARMLESS | family.harmless
    general = {*PreTrainedConfig.__dataclass_fields__}
    for item in dataclasses.fields(config):
        if item.name in general or item.name in seen or item.name.startswith("_") or item.name.endswith("_plan"):
            continue
        default = item.default
        if default is dataclasses.MISSING and item.default_factory is not dataclasses.MISSING:
            default = item.default_factory()
        value = getattr(config, item.name, default)
        if value != default:
            raise CheckpointError(
                f"{item.name} ({value!r}) of {family.model_type} has no counterpart in a Sublayer model, where it is "
                f"always {default!r}: load a checkpoint with that value"
            )
    for name, neutral in _NEUTRAL.items():
        value = getattr(config, name, None)
        if value not in neutral:
            remedy = (
                "load it with transformers, dequantise() it, save it, and load that"
                if name == "quantization_config"
                else "load another checkpoint"
            )
            raise CheckpointError(f"{name} ({value!r}) cannot be represented by a Sublayer model: {remedy}")


def _holds(value: Any, expected: Any, config: PreTrainedConfig) -> bool:
    if isinstance(expected, Equals):
        return bool(value == _get(config, expected.field))
    return value in expected if isinstance(expected, tuple) else bool(value == expected)


def _get(config: PreTrainedConfig, name: str) -> Any:
    try:
        return getattr(config, name)
    except AttributeError:
        raise CheckpointError(
            f"{name} is missing from a config of {config.model_type}: check that config.json is complete"
        ) from None


def _names(config: PreTrainedConfig) -> list[str]:
    return [*config.to_dict(), *(type(config).attribute_map or {})]
