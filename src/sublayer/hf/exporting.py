"""`export`: a Sublayer model as a checkpoint folder, in the format that it came from while its wiring is still that."""

import dataclasses
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, PreTrainedConfig

from sublayer.hf.errors import CheckpointError
from sublayer.hf.families import FAMILIES
from sublayer.hf.family import Family, Maybe
from sublayer.hf.files import size_in_bytes, write_weights
from sublayer.hf.plan import Plan, make_plan, own_parameters, unfill
from sublayer.hf.schema import Schema, quiet, schema_of
from sublayer.hf.translation import settings_of
from sublayer.model import SublayerConfig, SublayerPreTrainedModel

FORMATS = ("family", "sublayer")
# Settings that say how a model starts or runs, not what it computes.
_NO_FUNCTION = frozenset({
    "init", "initializer_range", "init_seed", "scale_init", "gate_init", "dyt_alpha_init", "use_cache",
    "source_checkpoint", "fuse_parallel",
})  # fmt: skip


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the folder.
        format: "family", for transformers' own class, or "sublayer".
        model_type: as in config.json.
        reason: why it is Sublayer's format, if it is; else empty.
    """

    path: Path
    format: str
    model_type: str
    reason: str = ""


class _NotTheFamily(Exception):
    """Why a model cannot be written in the format that it came from."""


def export(
    model: SublayerPreTrainedModel,
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    layout: str | None = None,
    max_shard_size: int | str = "5GB",
    overwrite: bool = False,
) -> Exported:
    """Write a model as a checkpoint folder that transformers reads.

    A model that `load` made, still wired as its family is, is written in the family's own format, bit for bit as it
    was: config.json with the family's model type, safetensors, and what was kept aside. Any other model is written in
    Sublayer's format, which ``AutoModel.from_pretrained(path, trust_remote_code=True)`` reads where sublayer is
    installed. The tokenizer of the folder that the model was loaded from goes along. The folder appears whole, or, if
    anything fails, not at all.

    Args:
        format: "family" or "sublayer" to have that and no other. Default: the family's where it fits.
        layout: name of the layout that the model was loaded in, to write its tensors back in that layout. transformers
            would read them with the family's usual wiring, so it is done on request only.
        max_shard_size: largest weight file, in bytes or such as "5GB".
        overwrite: replace a folder that holds files; what is in it is lost.

    Raises:
        CheckpointError: the model is not a Sublayer model, has no family's format though that is asked for, or the
            folder holds files.
    """
    if not isinstance(model, SublayerPreTrainedModel):
        raise CheckpointError(f"export takes a Sublayer model and got {type(model).__name__}: `load` it first")
    if format not in (None, *FORMATS):
        raise CheckpointError(f"format ({format!r}) must be {' or '.join(FORMATS)}: leave it out to have what fits")
    size_in_bytes(max_shard_size)
    target = Path(path)
    _check_target(target, overwrite)
    reason = "it was asked for"
    written: _Written | None = None
    if format != "sublayer":
        try:
            written = _as_family(model, layout)
        except _NotTheFamily as why:
            reason = str(why)
            if format == "family" or layout is not None:
                raise CheckpointError(
                    f"the model cannot be written in a family's format: {reason}; leave format and layout out for "
                    "Sublayer's own"
                ) from None

    def fill(folder: Path) -> None:
        if written is None:
            with quiet():
                model.save_pretrained(folder, max_shard_size=max_shard_size)
        else:
            written.config.save_pretrained(folder)
            write_weights(folder, written.tensors(model), written.shapes(model), max_shard_size)
            if model.can_generate() and model.generation_config is not None:
                model.generation_config.save_pretrained(folder)
        _carry_files(model, folder)

    from sublayer.hf.convert.folder import write_folder

    write_folder(target, fill, overwrite)
    if written is None:
        return Exported(target, "sublayer", SublayerConfig.model_type, reason)
    return Exported(target, "family", written.config.model_type)


@dataclass(frozen=True)
class _Written:
    """All that is needed to write a model in its family's format."""

    family: Family
    config: PreTrainedConfig
    schema: Schema
    plan: Plan
    kept: dict[str, Tensor]

    def shapes(self, model: SublayerPreTrainedModel) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of every tensor, in transformers' order."""
        held = own_parameters(model)
        dtypes = {name: held[move.targets[0]].dtype for move in self.plan.moves for name in move.sources}
        shapes = self.schema.shapes.items()
        known = {self.family.file_name(name): (shape, dtypes[name]) for name, shape in shapes if name in dtypes}
        return known | {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in self.kept.items()}

    def tensors(self, model: SublayerPreTrainedModel) -> Iterator[tuple[str, Tensor]]:
        """Every tensor, one after another."""
        for name, tensor in unfill(model, self.plan):
            yield self.family.file_name(name), tensor
        yield from self.kept.items()


def _as_family(model: SublayerPreTrainedModel, layout: str | None) -> _Written:
    config: SublayerConfig = model.config
    source = config.source_checkpoint
    if not source:
        raise _NotTheFamily("it was not loaded from a checkpoint of transformers")
    family = FAMILIES.get(str(source.get("model_type")))
    if family is None or "head" not in source or "config" not in source:
        raise _NotTheFamily(f"source_checkpoint names no known family ({source.get('model_type')!r})")
    if source.get("layout") != layout:
        raise _NotTheFamily(
            f"its layout is {source['layout']!r}, which transformers reads as another wiring"
            if layout is None
            else f"it was loaded in layout {source.get('layout')!r}, not {layout!r}"
        )
    theirs = _family_config(family, config, source, layout)
    schema = schema_of(theirs, source["head"])
    plan = make_plan(family, layout, schema, model)
    kept = {_stored_name(name, schema, family): one.tensor for name, one in model.kept_aside.items()}
    lost = [name for name in plan.aside if name not in kept]
    if lost:
        raise _NotTheFamily(f"{', '.join(lost[:3])} was not kept beside it")
    theirs.architectures = [schema.architecture]
    theirs.dtype = next(iter(model.parameters())).dtype
    return _Written(family, theirs, schema, plan, kept)


def _stored_name(name: str, schema: Schema, family: Family) -> str:
    """A kept tensor of the schema goes by the schema's name, whatever the file called it."""
    prefixed = f"{family.prefix}.{name}"
    return prefixed if prefixed in schema.shapes else name


def _family_config(
    family: Family, config: SublayerConfig, source: dict[str, Any], layout: str | None
) -> PreTrainedConfig:
    """The family's config with the function of ours.

    Settings that are copies of one of its fields are written back, so a longer vocabulary or another dropout is no
    reason to leave the format.
    """
    theirs: PreTrainedConfig = CONFIG_MAPPING[family.model_type].from_dict(dict(source["config"]))
    for name, setting in family.settings.items():
        field = setting.field if isinstance(setting, Maybe) else setting
        if isinstance(field, str) and hasattr(theirs, field) and not _same(theirs, field, config, name):
            setattr(theirs, field, getattr(config, name))
    for name in ("id2label", "label2id", "problem_type"):
        setattr(theirs, name, getattr(config, name))
    expected = SublayerConfig(**settings_of(family, theirs, layout))
    for item in dataclasses.fields(SublayerConfig):
        if item.name in PreTrainedConfig.__dataclass_fields__ or item.name in _NO_FUNCTION:
            continue
        if getattr(config, item.name) != getattr(expected, item.name):
            raise _NotTheFamily(
                f"its {item.name} is {getattr(config, item.name)!r}, and as {family.model_type} it would be "
                f"{getattr(expected, item.name)!r}"
            )
    return theirs


def _same(theirs: PreTrainedConfig, field: str, ours: SublayerConfig, name: str) -> bool:
    value = getattr(theirs, field)
    filled = {"num_key_value_heads", "head_dim", "intermediate_size"}  # ours has a number where theirs may say None
    return value == getattr(ours, name) or (value is None and name in filled)


def _check_target(target: Path, overwrite: bool) -> None:
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"a checkpoint is a folder, and {target} is a file: give another name")
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise CheckpointError(
            f"a checkpoint is written to a new or empty folder, and {target} holds files: give another folder, or "
            "overwrite=True to lose what is there"
        )


def _carry_files(model: SublayerPreTrainedModel, folder: Path) -> None:
    """The tokenizer's files, as they were."""
    from sublayer.hf.convert.folder import TOKENIZER_FILES

    source = model.loaded_from
    if source is None:
        return
    for name in TOKENIZER_FILES:
        if (source / name).is_file() and not (folder / name).exists():
            shutil.copyfile(source / name, folder / name)
