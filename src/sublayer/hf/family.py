"""What a family of checkpoints is: data. How it is applied: `sublayer.hf.plan` and `sublayer.hf.translation`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sublayer.hf.changes import Change


@dataclass(frozen=True)
class Row:
    """One line of a weight map: modules of the family, modules of the Sublayer model, what is done in between.

    Module paths, without ``.weight`` and ``.bias``, which are mapped alike. ``{i}`` stands for each layer, ``{h}`` for
    each head, ``a|b`` at the end for whichever of the sites the design has. Paths belong to the base model; where they
    begin with ``^`` they belong to the model with its head.
    """

    source: str
    target: str | tuple[str, ...]
    changes: tuple[Change, ...] = ()

    @property
    def targets(self) -> tuple[str, ...]:
        """The modules on the Sublayer side."""
        return (self.target,) if isinstance(self.target, str) else self.target


@dataclass(frozen=True)
class Aside:
    """Tensors that the Sublayer model has no use for; they are kept beside it and written back."""

    source: str
    reason: str


@dataclass(frozen=True)
class Pick:
    """A setting that depends on one field of the family's config by a table."""

    field: str
    values: Mapping[Any, Any]


@dataclass(frozen=True)
class Made:
    """A setting computed from fields of the family's config by a function of their values."""

    by: Callable[..., Any]
    fields: tuple[str, ...]


@dataclass(frozen=True)
class Maybe:
    """A field of the family's config where its class has such a field, otherwise a fixed value."""

    field: str
    otherwise: Any = None


@dataclass(frozen=True)
class Fixed:
    """A setting that is the same for the whole family."""

    value: Any


Setting = str | Pick | Made | Maybe | Fixed  # a plain string copies the field of that name


@dataclass(frozen=True)
class Equals:
    """The value of another field, in a condition."""

    field: str


@dataclass(frozen=True)
class Wiring:
    """A design, and the values of config fields under which it is the family's.

    ``{name}`` in the text stands for the number in that field. A value may be `Equals`, or a tuple of allowed values.
    """

    design: str
    when: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """The same tensors wired otherwise, as other code than transformers reads them.

    Args:
        design: the equation.
        aside: what it leaves unused.
        citation: where it comes from.
    """

    design: str
    aside: tuple[Aside, ...]
    citation: str


@dataclass(frozen=True)
class Family:
    """All that is known of one model type of transformers.

    Args:
        model_type: as in its config.json.
        prefix: name of the base model inside a model with a head.
        wirings: the first whose conditions hold.
        settings: setting of `SublayerConfig` -> where it comes from.
        rows: the weight map.
        aside: tensors without a place.
        harmless: fields of the config that change no output: training noise, other heads, initialisation.
        layouts: other wirings of the same tensors, by name.
        filed: module of transformers' model -> the name that it has in files, where that is another.
    """

    model_type: str
    prefix: str
    wirings: tuple[Wiring, ...]
    settings: Mapping[str, Setting]
    rows: tuple[Row, ...]
    aside: tuple[Aside, ...] = ()
    harmless: frozenset[str] = frozenset()
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    filed: Mapping[str, str] = field(default_factory=dict)

    def file_name(self, name: str) -> str:
        """The name in files of a tensor of transformers' model."""
        return _renamed(name, self.filed)

    def model_name(self, name: str) -> str:
        """The name in transformers' model of a tensor in a file."""
        return _renamed(name, {new: old for old, new in self.filed.items()})


def _renamed(name: str, names: Mapping[str, str]) -> str:
    for old, new in names.items():
        if name.startswith(f"{old}."):
            return new + name.removeprefix(old)
    return name
