"""The contract between a study file and the kinds of its parts. Imports no torch."""

import difflib
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, final

from sublayer.study.errors import StudyError

# kind -> where its class is; a kind is imported when a study has a part of it.
KINDS = {
    "attention": "sublayer.study.parts.attention:AttentionCost",
    "claims": "sublayer.study.parts.claims:ClaimsOnText",
    "convert": "sublayer.study.parts.convert:Convert",
    "finetune": "sublayer.study.parts.finetune:Finetune",
    "train": "sublayer.study.parts.train:Train",
}


@dataclass(frozen=True)
class Setting:
    """Where and how a part runs.

    Attributes:
        folder: of the part, made; what is in it from an earlier, interrupted run is taken up.
        jobs: processes at once; None: as many as the cores allow.
        output: where progress is shown, or None.
        earlier: results of the parts before this one, by name.
        folders: folders of the parts before this one, by name.
        page: writes the page of a training study from its results, its folder and the page's path.
    """

    folder: Path
    jobs: int | None
    output: IO[str] | None
    earlier: Mapping[str, "Result"]
    folders: Mapping[str, Path]
    page: Callable[[dict[str, Any], Path, Path], None] | None = None

    def say(self, text: str) -> None:
        """A line of progress."""
        if self.output is not None:
            print(text, file=self.output, flush=True)


@dataclass
class Result:
    """What a part found, ready to be shown: plain JSON values, no NaN.

    Attributes:
        tables: ``{"title", "note", "head": [text], "rows": [[text, number or None]]}``.
        charts: ``{"title", "note", "x", "y", "x_log", "y_log", "series": [{"name", "points": [{"x", "y", "low",
            "high"}]}]}``; ``low`` and ``high`` are None where there is no interval; ``marks`` may hold
            ``[{"x" or "y": number, "name"}]``, lines across the frame.
        verdicts: one sentence each, by a rule that the part's kind writes down.
        caveats: what a reader must know before believing them.
        facts: what ran: hashes of data, tokens, seeds, seconds.
        details: everything else, for programs.
    """

    tables: list[dict[str, Any]] = field(default_factory=list)
    charts: list[dict[str, Any]] = field(default_factory=list)
    verdicts: list[str] = field(default_factory=list)
    caveats: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


class Part(ABC):
    """One part of a study: checked when it is made, run later."""

    kind = ""  # as the study's file names it

    def __init__(self, name: str, settings: Mapping[str, Any], here: Path) -> None:
        self.name = name
        self.here = here  # folder of the study's file: relative paths start there
        self.settings = dict(settings)
        self.check()

    @abstractmethod
    def check(self) -> None:
        """Raise StudyError for a setting that does not fit, before anything has run."""

    @abstractmethod
    def run(self, at: Setting) -> Result:
        """Do what is not done yet, and say what was found."""

    @final
    def only(self, *known: str) -> None:
        """Raise StudyError for a setting that this kind does not have."""
        for key in self.settings:
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                raise StudyError(
                    f"part {self.name!r} has no setting {key!r}{f' (nearest: {near[0]})' if near else ''}; it has "
                    f"{', '.join(known)}"
                )

    @final
    def take(self, key: str, kind: type | tuple[type, ...], default: Any = None, need: bool = False) -> Any:
        """A setting of the given type; StudyError otherwise."""
        value = self.settings.get(key)
        if value is None and not need:
            return default
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join(k.__name__ for k in kinds)
            raise StudyError(f"{key} of part {self.name!r} must be a {wanted}, got {value!r}")
        return value


def make(settings: Mapping[str, Any], number: int, here: Path, earlier: Sequence[str]) -> Part:
    """The part that one entry of a study file describes."""
    if not isinstance(settings, Mapping):
        raise StudyError(f"part {number} must be settings such as `kind: train`, got {settings!r}")
    values = dict(settings)
    kind, name = values.pop("kind", None), values.pop("name", None)
    if kind not in KINDS:
        raise StudyError(f"kind of part {number} is one of {', '.join(KINDS)}, got {kind!r}")
    name = str(name or kind)
    if not name.replace("-", "").isalnum() or name in earlier:
        raise StudyError(f"name of part {number} is made of letters, digits and '-' and used once, got {name!r}")
    module, _, cls = KINDS[kind].partition(":")
    found: Callable[..., Part] = getattr(importlib.import_module(module), cls)
    part = found(name, values, here)
    part.kind = str(kind)
    return part
