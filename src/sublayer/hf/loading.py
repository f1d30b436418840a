"""`load`: a checkpoint of transformers as a Sublayer model with the same function."""

import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.utils import logging

import sublayer.model as models
from sublayer import plain_files
from sublayer.hf.errors import CheckpointError
from sublayer.hf.families import FAMILIES
from sublayer.hf.family import Family
from sublayer.hf.files import WeightFiles
from sublayer.hf.plan import fill, make_plan, reason_for
from sublayer.hf.schema import HEADS, Schema, head_of, quiet, schema_of
from sublayer.hf.translation import sublayer_config
from sublayer.hf.verification import check_design
from sublayer.model import SublayerConfig, SublayerPreTrainedModel
from sublayer.notation import Design, DesignError, parse

logger = logging.get_logger(__name__)

_WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.tiktoken", "*.jinja"]
# Tensors in old files that are computed, not learned: position numbers, causal masks, rotary frequencies.
_COMPUTED = re.compile(
    r"(.*\.)?(position_ids|token_type_ids|attn(\.attention)?\.(masked_)?bias|.*inv_freq|masked_bias)"
)
_OLD_NAMES = {".gamma": ".weight", ".beta": ".bias"}


@dataclass(frozen=True)
class Kept:
    """A tensor of the checkpoint that the Sublayer model has no place for.

    Attributes:
        tensor: as it was stored; `export` writes it back.
        reason: why there is no place for it.
    """

    tensor: Tensor
    reason: str


def load(
    source: str | os.PathLike[str] | PreTrainedModel,
    design: str | Design | None = None,
    *,
    head: str | None = None,
    dtype: torch.dtype | None = None,
    layout: str | None = None,
    verify: bool = True,
    attn_implementation: str | None = None,
    revision: str | None = None,
) -> SublayerPreTrainedModel:
    """A checkpoint as a Sublayer model.

    Its logits and hidden states are those of transformers' model, up to rounding. Weights are read from safetensors one
    by one, so the memory needed is that of the model.

    Args:
        source: a local folder, a model id of the Hugging Face Hub, or a live model of transformers (its weights are
            copied). A folder that a Sublayer model was saved in is loaded as that model.
        design: another wiring to change the model to, with the weights that have a place in it; what is dropped and
            what is new is logged (`sublayer.hf.convert.rewire`). Default: the checkpoint's own.
        head: "causal-lm", "masked-lm", or "none" for the model below the head. Default: what config.json names.
        dtype: of the weights. Default: as they are stored.
        layout: how the family's tensors are wired where another program wrote them: "paf" for the parallel BERTs and
            RoBERTas of Sonkar & Baraniuk (2305.13297), which leave one LayerNorm a layer unused.
        verify: compare the design with what the auditor reads from transformers' model of the same config.
        attn_implementation: as in ``from_pretrained``.
        revision: of a model on the Hub.

    Returns:
        a `SublayerForCausalLM`, `SublayerForMaskedLM` or `SublayerModel` in eval mode. Its ``kept_aside`` maps the
        names of tensors without a place (a pooler, a norm that a layout leaves unused) to `Kept`.

    Raises:
        CheckpointError: the model type is not known, a setting or a tensor has no counterpart, or a file is missing or
            not safetensors; the message says which and what to do.
        DesignError: ``design`` cannot be read.
    """
    if design is not None:
        parse(design)  # what is wrong with it is said before the weights are read
    if isinstance(source, PreTrainedModel):
        model = _from_model(source, head, dtype, layout, verify, attn_implementation)
    else:
        folder = _folder(source, revision)
        model = _from_folder(folder, head, dtype, layout, verify, attn_implementation)
        model.name_or_path = model.config._name_or_path = os.fspath(source)
        model.loaded_from = folder  # where `export` finds the tokenizer
    return (model if design is None else _rewired(model, design)).eval()


def _rewired(model: SublayerPreTrainedModel, design: str | Design) -> SublayerPreTrainedModel:
    from sublayer.hf.convert import rewire, wanted

    if wanted(design, model.config.wiring) == model.config.wiring:
        return model
    conversion = rewire(model, design, consume=True)
    changed = conversion.model
    changed.kept_aside, changed.loaded_from = model.kept_aside, model.loaded_from
    changed.name_or_path = model.name_or_path
    if hasattr(changed, "generation_config"):
        changed.generation_config = model.generation_config
    logger.warning(f"the wiring was changed:\n{conversion}")
    return changed


def family_of(model_type: str) -> Family:
    """The family of a model type.

    Raises:
        CheckpointError: there is none.
    """
    if model_type not in FAMILIES:
        raise CheckpointError(
            f"model_type ({model_type!r}) must be one of {', '.join(sorted(FAMILIES))}: load such a checkpoint; for "
            "any other, `sublayer audit` reads its wiring, and SublayerConfig builds a model from the equation"
        )
    return FAMILIES[model_type]


def _from_model(
    source: PreTrainedModel,
    head: str | None,
    dtype: torch.dtype | None,
    layout: str | None,
    verify: bool,
    attention: str | None,
) -> SublayerPreTrainedModel:
    if isinstance(source, SublayerPreTrainedModel):
        raise CheckpointError(
            "the model is a Sublayer model already: use it as it is, or change it with `sublayer.hf.convert.rewire`"
        )
    if getattr(source, "hf_quantizer", None) is not None:
        raise CheckpointError(
            "quantised weights cannot be mapped exactly: call dequantize() on the model, and load that"
        )
    tensors = source.state_dict()
    config = source.config
    implementation = attention or config._attn_implementation
    found = head_of([type(source).__name__], head)
    model = _build(config, found, tensors.keys(), lambda name: tensors[name].detach().cpu(), dtype, layout,
                   verify, implementation)  # fmt: skip
    if getattr(source, "generation_config", None) is not None and hasattr(model, "generation_config"):
        model.generation_config = GenerationConfig.from_dict(source.generation_config.to_dict())
    return model


def _from_folder(
    folder: Path,
    head: str | None,
    dtype: torch.dtype | None,
    layout: str | None,
    verify: bool,
    attention: str | None,
) -> SublayerPreTrainedModel:
    config = _config(folder)
    if isinstance(config, SublayerConfig):
        return _own(folder, config, head, dtype, attention)
    files = WeightFiles(folder)
    found = head_of(config.architectures, head)
    model = _build(config, found, files.names(), files.read, dtype, layout, verify, attention)
    if (folder / "generation_config.json").is_file() and hasattr(model, "generation_config"):
        model.generation_config = _generation(folder)
    return model


def _generation(folder: Path) -> GenerationConfig:
    file = folder / "generation_config.json"
    try:
        plain_files.read_bytes(file)  # a plain file of an honest size
        return GenerationConfig.from_pretrained(folder)
    except Exception as error:  # it checks its values with errors of many kinds
        raise CheckpointError(
            f"{file} must hold settings of generate(), and does not ({_brief(error)}): correct or remove it"
        ) from error


def _build(
    config: PreTrainedConfig,
    head: str,
    names: Iterable[str],
    read: Callable[[str], Tensor],
    dtype: torch.dtype | None,
    layout: str | None,
    verify: bool,
    attention: str | None,
) -> SublayerPreTrainedModel:
    family = family_of(config.model_type)
    try:
        ours = sublayer_config(family, config, layout)
    except (CheckpointError, DesignError):
        raise
    except Exception as error:  # sizes that no model has break one rule or another
        raise CheckpointError(
            f"config.json must describe a {config.model_type} model, and does not ({_brief(error)}): correct it"
        ) from error
    schema = schema_of(config, head)
    ours.source_checkpoint = {**(ours.source_checkpoint or {}), "head": head, "architecture": schema.architecture}
    if verify:
        check_design(config, ours, family, layout)
    files = _located(family, schema, names, layout)
    if attention is not None:
        ours._attn_implementation = attention
    with torch.device("meta"), no_init_weights(), quiet():
        model: SublayerPreTrainedModel = getattr(models, HEADS[head][1])(ours)
    plan = make_plan(family, layout, schema, model)
    missing = [name for move in plan.moves for name in move.sources if name not in files.stored]
    if missing:
        shown = ", ".join(f"{name} {list(schema.shapes[name])}" for name in missing[:6])
        raise CheckpointError(
            f"a checkpoint of {schema.architecture} must hold {len(missing)} more tensors: {shown}"
            f"{' and others' if len(missing) > 6 else ''}; get the missing files, or give another head= (one of "
            f"{', '.join(HEADS)})"
        )
    fill(model, plan, lambda name: read(files.stored[name]), dtype)
    with quiet():
        model.tie_weights()
    reasons = {name: why for name, why in plan.aside.items() if name in files.stored}
    kept = {name: Kept(read(files.stored[name]).clone(), why) for name, why in reasons.items()}
    kept |= {name: Kept(read(name).clone(), why) for name, why in files.extra.items()}
    model.kept_aside = kept
    model.config.dtype = next(iter(model.parameters())).dtype
    if kept:
        why = "; ".join(f"{_grouped([n for n in kept if kept[n].reason == r])}: {r}" for r in _reasons(kept))
        logger.warning(f"{len(kept)} tensors have no place in the Sublayer model and are kept aside: {why}")
    return model


@dataclass(frozen=True)
class _Located:
    """Where the tensors of a schema are.

    Attributes:
        stored: name in the schema -> name in the checkpoint.
        extra: name in the checkpoint that the schema does not have -> why it is kept aside.
    """

    stored: dict[str, str]
    extra: dict[str, str]


def _located(family: Family, schema: Schema, names: Iterable[str], layout: str | None) -> _Located:
    """Match names: checkpoints may lack the base model's prefix, or have one too many, or use names of old."""
    stored: dict[str, str] = {}
    tied: dict[str, str] = {}
    extra: dict[str, str] = {}
    strange = []
    names = list(names)
    # Where the base model's tensors have its prefix, what has none belongs to some head.
    prefix = f"{family.prefix}."
    base = prefix if any(name.startswith(prefix) for name in names) else ""
    for name in names:
        choices = _choices(name, family)
        known = next((c for c in choices if c in schema.shapes or c in schema.tied), name)
        if known in schema.shapes and known not in stored:
            stored[known] = name
        elif known in schema.tied:
            tied[schema.tied[known]] = name
        elif reasons := [why for c in choices if (why := reason_for(c, family, schema, layout)) is not None]:
            extra[name] = reasons[0]
        elif _belongs_to_head(name, family) or not (schema.has_head or name.startswith(base)):
            extra[name] = "it belongs to a head that is not loaded"
        elif not _COMPUTED.fullmatch(name):
            strange.append(name)
    if strange:
        raise CheckpointError(
            f"every tensor of the checkpoint must be one that {schema.architecture} has; {len(strange)} are not: "
            f"{', '.join(strange[:6])}{' and others' if len(strange) > 6 else ''}; check that config.json belongs to "
            f"these weights, or give another head= (one of {', '.join(HEADS)})"
        )
    for name, other in tied.items():
        stored.setdefault(name, other)  # where weights are tied, one of the names is enough
    return _Located(stored, extra)


def _choices(name: str, family: Family) -> tuple[str, ...]:
    """What a tensor of a file may be called in transformers' model."""
    for old, new in _OLD_NAMES.items():
        if name.endswith(old):
            name = name.removesuffix(old) + new
    prefix = f"{family.prefix}."
    name = family.model_name(name)
    return name, prefix + name, name.removeprefix(prefix)


def _belongs_to_head(name: str, family: Family) -> bool:
    heads = [row.source[1:] for row in family.rows if row.source.startswith("^")]
    return any(name.startswith(f"{head}.") for head in heads)


def _reasons(kept: dict[str, Kept]) -> list[str]:
    return list(dict.fromkeys(one.reason for one in kept.values()))


def _grouped(names: list[str]) -> str:
    return ", ".join(dict.fromkeys(re.sub(r"\.\d+\.", ".{i}.", name) for name in names))


def _own(
    folder: Path, config: SublayerConfig, head: str | None, dtype: torch.dtype | None, attention: str | None
) -> SublayerPreTrainedModel:
    named = (config.architectures or [""])[0]
    classes = {name: getattr(models, name) for name in models.__all__ if name.startswith("Sublayer")}
    kind = classes.get(HEADS[head_of(None, head)][1] if head is not None else named)
    if kind is None:
        raise CheckpointError(
            f"architectures ({named!r}) names no Sublayer model: give head=, one of {', '.join(HEADS)}"
        )
    WeightFiles(folder)  # a pickle is refused with the reason
    try:
        with quiet():
            model, found = kind.from_pretrained(
                folder, dtype=dtype or "auto", attn_implementation=attention, output_loading_info=True,
                use_safetensors=True,
            )  # fmt: skip
    except Exception as error:  # transformers raises very many kinds
        raise CheckpointError(
            f"config.json and weights of {folder} must be those of one {kind.__name__}: {_brief(error)}; get both again"
        ) from error
    for problem in ("missing_keys", "mismatched_keys", "error_msgs"):  # transformers would draw such weights anew
        if found.get(problem):
            raise CheckpointError(
                f"the weights of {folder} must be those of a {kind.__name__}: {problem.replace('_', ' ')} "
                f"{', '.join(sorted(map(str, found[problem]))[:6])}; get both again, or give another head="
            )
    model.kept_aside = {}
    return cast(SublayerPreTrainedModel, model)


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _config(folder: Path) -> PreTrainedConfig:
    file = folder / "config.json"
    if not file.is_file():
        raise CheckpointError(f"{folder} has no config.json: give the folder of a checkpoint, or a model id of the Hub")
    try:
        values = json.loads(plain_files.read_bytes(file).decode("utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"it holds a {type(values).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{file} must hold one JSON object, and cannot be read ({error}): download it again"
        ) from error
    kind = values.get("model_type")
    if kind != SublayerConfig.model_type:
        family_of(str(kind))
    if quantised := values.get("quantization_config"):
        method = quantised.get("quant_method") if isinstance(quantised, dict) else None
        method = method or "an unnamed method"
        raise CheckpointError(
            f"weights must be plain numbers to be mapped exactly, and these are quantised by {method}: load them with "
            "transformers, dequantize(), save_pretrained(), and load that"
        )
    try:
        with quiet():
            return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # a config class may raise anything for values that it does not expect
        raise CheckpointError(
            f"{file} must describe a {kind} model, and transformers refuses it ({type(error).__name__}: {error}): "
            "correct it"
        ) from error


def _folder(source: str | os.PathLike[str], revision: str | None) -> Path:
    name = os.fspath(source)
    path = Path(name)
    if path.is_dir():
        return path
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1 or not name.strip():
        raise CheckpointError(f"{name!r} is no folder: give the folder that holds config.json and the weights")
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_WANTED))
    except (OSError, ValueError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{name!r} is no local folder, and cannot be had from the Hub ({first}): check the name and the network"
        ) from error
