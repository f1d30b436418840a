"""Settings of a run as a plain record: made, checked, stored and compared in one way, whatever the run is of.

Nothing here imports torch.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self

from sublayer import signed

from .errors import TrainError

MOST = 2**53  # of any whole number


class Loop(Protocol):
    """What the training loop (`trainer`, `callbacks`, `frame`) reads of a run's settings."""

    @property
    def seed(self) -> int: ...
    @property
    def data_seed(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def accumulation(self) -> int: ...
    @property
    def total_steps(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def warmup_steps(self) -> int: ...
    @property
    def schedule(self) -> str: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def betas(self) -> tuple[float, float]: ...
    @property
    def eps(self) -> float: ...
    @property
    def clip(self) -> float: ...
    @property
    def threads(self) -> int | None: ...
    @property
    def workers(self) -> int: ...
    @property
    def device(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def compile(self) -> bool: ...
    @property
    def report_to(self) -> tuple[str, ...]: ...
    @property
    def log_every(self) -> int: ...
    @property
    def eval_every(self) -> int: ...
    @property
    def measure_every(self) -> int: ...
    @property
    def save_steps(self) -> int: ...
    @property
    def keep(self) -> int: ...


class Settings:
    """What a frozen dataclass of settings can do. Its fields hold JSON values and tuples of them.

    A subclass calls `check_types` when it is made, and then its own rules.
    """

    #: Settings that may differ between a checkpoint and the run that resumes from it.
    free_on_resume: ClassVar[frozenset[str]] = frozenset()
    #: Settings without a default -> what is said when one is missing.
    needed: ClassVar[Mapping[str, str]] = {}

    def check_types(self) -> None:
        """Turn lists into tuples where a tuple is meant, and check each value against its annotation.

        Raises:
            TrainError: one does not fit.
        """
        hints = _hints(type(self))  # type: ignore[arg-type]  # a class can be hashed, whatever its instances can
        for item in fields(self):  # type: ignore[arg-type]  # each subclass is a dataclass
            value, kind = getattr(self, item.name), hints[item.name]
            if typing.get_origin(kind) is tuple and isinstance(value, list):
                value = tuple(value)
                object.__setattr__(self, item.name, value)
            if not _matches(value, kind):
                raise TrainError(f"{item.name} must be {_describe(kind)}, got {value!r}")
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, int) and abs(number) > MOST:  # what follows computes with floats
                    raise TrainError(f"{item.name} must be at most 2**53, got one of {number.bit_length()} bits")

    def with_(self, **settings: Any) -> Self:
        """A copy with some settings changed, checked again."""
        return replace(self, **settings)  # type: ignore[type-var]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = asdict(self)  # type: ignore[call-overload]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`; a key that is no setting is an error that names the nearest one."""
        if not isinstance(values, dict):
            raise TrainError(f"a run is a JSON object of settings, got {type(values).__name__}")
        known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, 1, 0.0)[0]
                raise TrainError(f"{key!r} is not a setting of a run; did you mean {near!r}?")
        for name, message in cls.needed.items():
            if name not in values:
                raise TrainError(message)
        return cls(**values)

    def to_json(self) -> str:
        """Text of the settings, one a line."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise TrainError(f"a run's settings must be JSON: {error}") from None
        return cls.from_dict(values)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read settings from a JSON file; one that has a hash of itself must fit it."""
        try:
            return cls.from_dict(signed.read(Path(path)))
        except signed.Damaged as error:
            raise TrainError(
                f"a run's settings must be JSON, as they were written: {error}; restore the file, or remove the line "
                f"{signed.KEY} if you changed it yourself"
            ) from None
        except OSError as error:
            raise TrainError(f"cannot read settings from {path}: {error.strerror or error}") from None

    def less_memory(self) -> str:
        """What to change where a step took more memory than there is."""
        return "give a smaller batch"

    def differences(self, other: Settings) -> list[str]:
        """Settings in which two runs would train different weights, as `name: mine -> other`."""
        mine, theirs = self.to_dict(), other.to_dict()
        return [
            f"{name}: {mine[name]!r} -> {theirs[name]!r}"
            for name in mine
            if name not in self.free_on_resume and mine[name] != theirs[name]
        ]

    def sha256(self) -> str:
        """Hash of the settings that decide the weights."""
        values = {k: v for k, v in self.to_dict().items() if k not in self.free_on_resume}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


@functools.cache  # evaluating annotations takes milliseconds, and a large study has thousands of settings
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _matches(value: object, kind: Any) -> bool:
    """Is `value` of the annotated type? Integers pass for floats; booleans pass for nothing but bool."""
    origin = typing.get_origin(kind)
    if origin is Literal:
        return value in typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_matches(value, part) for part in typing.get_args(kind))
    if origin is tuple:
        parts = typing.get_args(kind)
        if not isinstance(value, tuple):
            return False
        if parts[-1] is Ellipsis:
            return all(_matches(item, parts[0]) for item in value)
        return len(value) == len(parts) and all(map(_matches, value, parts))
    if origin is dict:
        return isinstance(value, dict) and all(isinstance(key, str) for key in value)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _describe(kind: Any) -> str:
    """An annotated type in words."""
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(kind)))
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join(_describe(part) for part in typing.get_args(kind))
    names = {float: "a finite number", int: "a whole number", bool: "true or false", str: "text", type(None): "nothing"}
    return names.get(kind, str(kind).replace("typing.", ""))
