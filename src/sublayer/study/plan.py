"""What a study is: designs x learning rates x seeds over one training set-up, as an indexed list of runs. Imports no
torch."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sublayer.notation import Design, DesignError, parse
from sublayer.study.errors import StudyError
from sublayer.train.spec import SIZES, TrainSpec

DEFAULT_DESIGNS = ("post-norm", "paf", "input-norm", "output-norm")
FORMAT = 1
# Settings of a run that the study sets itself.
_OWN = ("design", "seed", "lr")


@dataclass(frozen=True)
class PlannedDesign:
    """A design of the study under the short name that folders, tables and charts use."""

    id: str
    design: Design


@dataclass(frozen=True)
class PlannedRun:
    """One training run: its place in the list, its folder name, and everything it needs."""

    index: int
    id: str
    design: str
    spec: TrainSpec


@dataclass(frozen=True)
class Plan:
    """Designs, learning rates and seeds over one training set-up.

    Attributes:
        designs: each once; the first is the baseline.
        base: settings shared by all runs; its design, seed and lr are replaced.
        lrs: learning rates; each design is shown at its best one.
        seeds: seeds of the initial weights; run ``i`` of every design has the same.
    """

    designs: tuple[PlannedDesign, ...]
    base: TrainSpec
    lrs: tuple[float, ...]
    seeds: tuple[int, ...]

    @classmethod
    def make(
        cls,
        designs: Sequence[str | Design] = (),
        *,
        size: str = "tiny",
        seeds: Sequence[int] = (0,),
        lrs: Sequence[float] = (),
        **settings: Any,
    ) -> "Plan":
        """A plan from catalogue names or equations and the settings of `TrainSpec`; ``None`` settings take the
        size's value.

        Raises:
            DesignError: a design that cannot be read or does not fit the depth.
            StudyError, TrainError: a setting that does not fit.
        """
        for key in _OWN:
            if settings.get(key) is not None:
                raise StudyError(
                    f"a study sets {key} itself; give designs, lrs=(...) and seeds=(...) instead of "
                    f"{key}={settings[key]!r}"
                )
        chosen = [parse(d) for d in (designs or DEFAULT_DESIGNS)]
        if size not in SIZES:
            raise StudyError(f"size is one of {', '.join(SIZES)}, got {size!r}; or give layers, hidden, heads and ffn")
        if not seeds or len(set(seeds)) != len(seeds):
            raise StudyError(f"seeds are different whole numbers, at least one, got {list(seeds)}")
        if len(set(lrs)) != len(lrs):
            raise StudyError(f"learning rates must differ, got {list(lrs)}")
        if settings.get("measure_every") is None and settings.get("eval_every") is None:
            settings.update(_intervals(size, settings))
        base = TrainSpec.sized(size, design=str(chosen[0]), seed=seeds[0], **settings)
        plan = cls(_with_ids(chosen), base, tuple(lrs) or (base.lr,), tuple(seeds))
        plan.runs()  # every setting is checked before anything starts
        for planned in plan.designs:
            planned.design.check_depth(base.layers)
        return plan

    def runs(self) -> tuple[PlannedRun, ...]:
        """Every run, seeds outermost, so that an interrupted study has compared all designs on its first seeds."""
        found: list[PlannedRun] = []
        for seed in self.seeds:
            for lr in self.lrs:
                for planned in self.designs:
                    spec = self.base.with_(design=str(planned.design), seed=seed, lr=lr)
                    found.append(PlannedRun(len(found), f"{planned.id}-lr{lr:g}-s{seed}", planned.id, spec))
        return tuple(found)

    def run(self, run_id: str) -> PlannedRun:
        """The run of that id."""
        for run in self.runs():
            if run.id == run_id:
                return run
        raise StudyError(f"the study has no run {run_id!r}; it has {', '.join(r.id for r in self.runs())}")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` reads them back."""
        return {
            "format": FORMAT,
            "designs": [{"id": p.id, **p.design.to_dict()} for p in self.designs],
            "lrs": list(self.lrs),
            "seeds": list(self.seeds),
            "setup": {k: v for k, v in self.base.to_dict().items() if k not in _OWN},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Plan":
        """The inverse of `to_dict`."""
        try:
            designs = tuple(PlannedDesign(str(d["id"]), Design.from_dict(d)) for d in data["designs"])
            lrs, seeds = tuple(data["lrs"]), tuple(data["seeds"])
            base = TrainSpec.from_dict(
                {**data["setup"], "design": str(designs[0].design), "seed": seeds[0], "lr": lrs[0]}
            )
        except (KeyError, TypeError, IndexError) as error:
            raise StudyError(
                f"a plan has designs, lrs, seeds and setup: {error!r} is wrong; start the study anew in another folder"
            ) from None
        for planned in designs:
            if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,59}", planned.id):
                raise StudyError(f"a design's id is made of letters, digits, '.' and '-', got {planned.id!r}")
        return cls(designs, base, lrs, seeds)

    @classmethod
    def load(cls, path: Path) -> "Plan":
        """Read a plan that a study wrote."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise StudyError(f"cannot read the plan {path}: {error}") from None
        if not isinstance(data, dict):
            raise StudyError(f"{path} is no plan: it holds {type(data).__name__}, not an object")
        return cls.from_dict(data)

    def differences(self, other: "Plan") -> list[str]:
        """What another plan changes, in words; empty when all runs of this one may be kept."""
        found = self.base.differences(other.base.with_(design=self.base.design, seed=self.base.seed, lr=self.base.lr))
        mine, theirs = {p.id: p.design for p in self.designs}, {p.id: p.design for p in other.designs}
        found += [f"design {i}: {mine[i]} -> {theirs[i]}" for i in mine if i in theirs and mine[i] != theirs[i]]
        return found

    def sha256(self) -> str:
        """Hash of everything that decides a result."""
        text = json.dumps([self.base.sha256(), [(p.id, str(p.design)) for p in self.designs], self.lrs, self.seeds])
        return hashlib.sha256(text.encode()).hexdigest()


def read_config(path: Path) -> dict[str, Any]:
    """Settings of a study from a YAML or JSON file: ``designs``, ``seeds``, ``lrs``, ``size`` and any setting of a
    run."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Plain values only, and 1e-3 is a number, as in JSON and Python."""

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader)  # a SafeLoader
    except OSError as error:
        raise StudyError(f"cannot read {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StudyError(f"{path} is neither YAML nor JSON: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise StudyError(f"{path} must hold settings such as `designs: [post-norm, paf]`, got {type(data).__name__}")
    if "format" in data and "setup" in data:
        return _of_plan(Plan.from_dict(data))
    for key in ("designs", "seeds", "lrs"):
        if key in data and not isinstance(data[key], list):
            raise StudyError(f"{key} in {path} must be a list, got {data[key]!r}")
    if not all(isinstance(d, str) for d in data.get("designs", ())):
        raise StudyError(f"designs in {path} must be names or equations in quotes, got {data['designs']!r}")
    return {key.replace("-", "_"): value for key, value in data.items()}


def _of_plan(plan: Plan) -> dict[str, Any]:
    """The plan that a study wrote, as settings for a new study."""
    designs = [p.design.name or str(p.design) for p in plan.designs]
    settings = {k: v for k, v in plan.base.to_dict().items() if k not in _OWN}
    return {**settings, "designs": designs, "seeds": list(plan.seeds), "lrs": list(plan.lrs)}


def _intervals(size: str, settings: Mapping[str, Any]) -> dict[str, int]:
    """Evaluate and measure about eight and four times a run."""
    values = {**SIZES[size], **{k: v for k, v in settings.items() if v is not None}}
    per_step = values["seq"] * values["batch"] * values.get("accumulation", 1)
    steps = values["tokens"] // per_step if values.get("tokens") else values["steps"]
    return {"eval_every": max(1, steps // 8), "measure_every": max(1, steps // 4)}


def _with_ids(designs: Sequence[Design]) -> tuple[PlannedDesign, ...]:
    found: dict[Design, str] = {}
    for number, design in enumerate(designs, 1):
        if design in found:
            raise StudyError(f"designs must differ, but number {number} has the wiring of {found[design]}: {design}")
        name = design.name or (design.names[0] if design.names else "")
        slug = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")[:40] or f"design-{number}"
        found[design] = slug if slug not in found.values() else f"{slug}-{number}"
    return tuple(PlannedDesign(i, d) for d, i in found.items())


__all__ = ["DEFAULT_DESIGNS", "DesignError", "Plan", "PlannedDesign", "PlannedRun", "read_config"]
