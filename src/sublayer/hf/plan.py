"""The one mechanism between the tensors of a family and those of a Sublayer model, the same in both directions.

A plan is a list of moves. Every tensor of the family is moved once, or kept aside for a reason; every parameter of the
Sublayer model is filled once. Whatever breaks that is one error that names tensors and shapes.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sublayer.hf.changes import Change
from sublayer.hf.errors import CheckpointError
from sublayer.hf.family import Aside, Family, Row
from sublayer.hf.schema import Schema

_SHOWN = 6  # tensors that an error lists
_PARAMETERS = ("weight", "bias")


@dataclass(frozen=True)
class Move:
    """Tensors of the family, tensors of the Sublayer model, and the steps between them."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    changes: tuple[Change, ...]

    def forward(self, tensors: list[Tensor], config: Any, rows: Sequence[int]) -> list[Tensor]:
        """The Sublayer model's tensors."""
        for change in self.changes:
            tensors = change.forward(tensors, config, rows)
        return tensors

    def back(self, tensors: list[Tensor], config: Any, rows: Sequence[int]) -> list[Tensor]:
        """The family's tensors."""
        for change in reversed(self.changes):
            tensors = change.back(tensors, config, rows)
        return tensors


@dataclass(frozen=True)
class Plan:
    """What becomes of every tensor.

    Attributes:
        moves: what is mapped.
        aside: name of a tensor of the family -> why the Sublayer model has no place for it.
    """

    moves: tuple[Move, ...]
    aside: Mapping[str, str]


def make_plan(family: Family, layout: str | None, schema: Schema, model: nn.Module) -> Plan:
    """The plan for a family's tensors, as transformers would have them, and a Sublayer model of the same function.

    Raises:
        CheckpointError: a tensor is left over on one of the sides, or would be filled twice.
    """
    unused = tuple(family.layouts[layout].aside if layout else ())
    targets = own_parameters(model)
    moves: list[Move] = []
    for row in family.rows:
        moves += _moves(row, family, schema, targets, model.config, unused)
    used = [name for move in moves for name in move.sources]
    filled = [name for move in moves for name in move.targets]
    left = [name for name in schema.shapes if name not in {*used}]
    reasons = {name: why for name in left if (why := reason_for(name, family, schema, layout)) is not None}
    _refuse(
        family,
        {
            "tensors of the checkpoint without a place": [n for n in left if n not in reasons],
            "tensors of the checkpoint with two places": _repeated(used),
            "parameters of the Sublayer model that nothing fills": [n for n in targets if n not in {*filled}],
            "parameters of the Sublayer model that are filled twice": _repeated(filled),
        },
        {**{n: tuple(t.shape) for n, t in targets.items()}, **schema.shapes},
    )
    return Plan(tuple(moves), reasons)


def own_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Parameters by name, tied ones once, buffers not."""
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    return {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if name not in tied}


def reason_for(name: str, family: Family, schema: Schema, layout: str | None) -> str | None:
    """Why a tensor of the family is kept aside, or None where nothing says so."""
    for aside in (*(family.layouts[layout].aside if layout else ()), *family.aside):
        of_head = aside.source.startswith("^") and not schema.has_head  # the head as a whole is not loaded
        if not of_head and _pattern(aside, family, schema).fullmatch(name):
            return aside.reason
    return None


def _pattern(aside: Aside, family: Family, schema: Schema) -> re.Pattern[str]:
    path = _source_path(aside.source, family, schema)
    # A base model loaded alone has no prefix, but the file of a head that it came from does.
    text = re.escape(path).replace(r"\{i\}", r"\d+").replace(r"\*", ".*")
    return re.compile(rf"{text}(\.(weight|bias))?")


def _source_path(path: str, family: Family, schema: Schema) -> str:
    if path.startswith("^"):
        return path[1:]
    return f"{family.prefix}.{path}" if schema.has_head and family.prefix else path


def _moves(
    row: Row, family: Family, schema: Schema, targets: Mapping[str, Tensor], config: Any, unused: tuple[Aside, ...]
) -> Iterator[Move]:
    if row.source.startswith("^") and not schema.has_head:
        return
    source = _source_path(row.source, family, schema)
    skip = [_pattern(aside, family, schema) for aside in unused]
    for i in range(config.num_hidden_layers) if "{i}" in source else (0,):
        modules = _heads(source.replace("{i}", str(i)), schema)
        for parameter in _PARAMETERS:
            names = tuple(schema.stored(f"{module}.{parameter}") for module in modules)
            if any(pattern.fullmatch(name) for name in names for pattern in skip):
                continue
            places = [_place(target, i, parameter, schema.has_head, targets) for target in row.targets]
            found = tuple(place for place in places if place is not None)
            if len(found) == len(places) and names and all(name in schema.shapes for name in names):
                yield Move(names, found, row.changes)


def _heads(path: str, schema: Schema) -> list[str]:
    if "{h}" not in path:
        return [path]
    found: list[str] = []
    while f"{path.replace('{h}', str(len(found)))}.weight" in schema.shapes:
        found.append(path.replace("{h}", str(len(found))))
    return found


def _place(target: str, layer: int, parameter: str, has_head: bool, targets: Mapping[str, Tensor]) -> str | None:
    """The parameter that a target path names, the first of its alternatives that exists."""
    if target.startswith("^"):
        path = target[1:]
    else:
        path = f"model.{target}" if has_head else target
    owner, _, last = path.replace("{i}", str(layer)).rpartition(".")
    for site in last.split("|"):
        name = ".".join(filter(None, (owner, site, parameter)))
        if name in targets:
            return name
    return None


def _repeated(names: Sequence[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1}) if len(names) != len({*names}) else []


def _refuse(family: Family, faults: Mapping[str, Sequence[str]], shapes: Mapping[str, tuple[int, ...]]) -> None:
    lines = []
    for what, names in faults.items():
        if names:
            shown = ", ".join(f"{name} {list(shapes.get(name, ()))}" for name in names[:_SHOWN])
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            lines.append(f"{what}: {shown}{more}")
    if lines:
        raise CheckpointError(
            f"every tensor of a {family.model_type} checkpoint must have one place in the Sublayer model, and the "
            f"other way round; {'; '.join(lines)}: check that config.json belongs to these weights"
        )


def fill(model: nn.Module, plan: Plan, read: Callable[[str], Tensor], dtype: Any = None) -> None:
    """Give the model, made on the meta device, its parameters one after another.

    Args:
        read: the tensor of the family by its name, which may be a view of a file or a model: it is copied.
        dtype: what to cast to; None keeps the checkpoint's.

    Raises:
        CheckpointError: a tensor has another shape than the config says.
    """
    targets = own_parameters(model)
    for move in plan.moves:
        rows = [targets[name].shape[0] for name in move.targets]
        given = [read(name) for name in move.sources]
        shared = {tensor.untyped_storage().data_ptr() for tensor in given}
        tensors = move.forward(given, model.config, rows)
        for name, tensor in zip(move.targets, tensors, strict=True):
            if tensor.shape != targets[name].shape:
                raise CheckpointError(
                    f"{name} has shape {list(targets[name].shape)} by the config, but {', '.join(move.sources)} gives "
                    f"{list(tensor.shape)}: check that config.json belongs to these weights"
                )
            owner, _, last = name.rpartition(".")
            if tensor.untyped_storage().data_ptr() in shared:
                tensor = tensor.clone(memory_format=torch.contiguous_format)
            tensor = tensor.contiguous() if dtype is None else tensor.to(dtype).contiguous()
            model.get_submodule(owner).register_parameter(last, nn.Parameter(tensor, tensor.is_floating_point()))


def unfill(model: nn.Module, plan: Plan) -> Iterator[tuple[str, Tensor]]:
    """The family's tensors one after another, from the parameters of the Sublayer model."""
    held = own_parameters(model)
    for move in plan.moves:
        tensors = [held[name].detach() for name in move.targets]
        yield from zip(move.sources, move.back(tensors, model.config, [t.shape[0] for t in tensors]), strict=True)
