"""What a study is: designs x learning rates x seeds over one training set-up, as an indexed list of runs. Imports no
torch."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sublayer import plain_files, signed
from sublayer.cost import Cost, Sizes, cost
from sublayer.notation import Design, parse
from sublayer.study.errors import StudyError
from sublayer.train.spec import SIZES, TrainSpec

DEFAULT_DESIGNS = ("post-norm", "paf", "input-norm", "output-norm")
FORMAT = 1
# Settings of a run that the study sets itself.
_OWN = ("design", "seed", "lr")
# What says how a study is run, not what it is.
_COMMAND_LINE = ("out", "resume", "jobs", "measure", "command", "output", "config")


@dataclass(frozen=True)
class PlannedDesign:
    """A design of the study under the short name that folders, tables and charts use.

    ``settings`` are its own, over those that all runs share: DeepNorm is a wiring and a way to draw the weights.
    """

    id: str
    design: Design
    settings: tuple[tuple[str, Any], ...] = ()

    def of(self, base: TrainSpec) -> TrainSpec:
        """The settings of a run of this design."""
        return TrainSpec.from_dict({**base.to_dict(), **dict(self.settings), "design": str(self.design)})


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
        designs: "Sequence[str | Design | Mapping[str, Any]]" = (),
        *,
        size: str = "tiny",
        seeds: Sequence[int] = (0,),
        lrs: Sequence[float] = (),
        **settings: Any,
    ) -> "Plan":
        """A plan from catalogue names or equations and the settings of `TrainSpec`; ``None`` settings take the
        size's value. A design with settings of its own is a mapping: ``{"design": "deepnorm", "init": "deepnorm"}``;
        ``id`` in it is the name to show.

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
        chosen = [_read_design(d) for d in (designs or DEFAULT_DESIGNS)]
        if not isinstance(size, str) or size not in SIZES:
            raise StudyError(f"size is one of {', '.join(SIZES)}, got {size!r}; or give layers, hidden, heads and ffn")
        if not seeds or not all(type(s) is int for s in seeds) or len(set(seeds)) != len(seeds):
            raise StudyError(f"seeds are different whole numbers, at least one, got {list(seeds)}")
        if not all(type(lr) in (int, float) for lr in lrs) or len(set(lrs)) != len(lrs):
            raise StudyError(f"learning rates are numbers that differ, got {list(lrs)}")
        base = TrainSpec.sized(size, design=str(chosen[0][0]), seed=seeds[0], **settings)
        if settings.get("measure_every") is None and settings.get("eval_every") is None:
            # At the start, at each quarter and at the end: looking on stays a small part of a run.
            quarter = -(-base.total_steps // 4)
            base = base.with_(eval_every=quarter, measure_every=quarter)
        plan = cls(_with_ids(chosen), base, tuple(lrs) or (base.lr,), tuple(seeds))
        names = [run.id for run in plan.runs()]  # which also checks every setting before anything starts
        if len(set(names)) < len(names):
            raise StudyError(f"learning rates must differ in their first six digits, got {list(lrs)}: give others")
        for planned in plan.designs:
            # Parts that cannot be built, sizes that do not fit and ranges that do not tile are refused here.
            price(planned.of(base))
        return plan

    def runs(self) -> tuple[PlannedRun, ...]:
        """Every run, seeds outermost, so that an interrupted study has compared all designs on its first seeds."""
        found: list[PlannedRun] = []
        each = [(planned, planned.of(self.base)) for planned in self.designs]
        for seed in self.seeds:
            for lr in self.lrs:
                for planned, base in each:
                    spec = base.with_(seed=seed, lr=lr)
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
            "designs": [
                {"id": p.id, **p.design.to_dict()} | ({"settings": dict(p.settings)} if p.settings else {})
                for p in self.designs
            ],
            "lrs": list(self.lrs),
            "seeds": list(self.seeds),
            "setup": {k: v for k, v in self.base.to_dict().items() if k not in _OWN},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Plan":
        """The inverse of `to_dict`."""
        try:
            designs = tuple(
                PlannedDesign(str(d["id"]), Design.from_dict(d), tuple(sorted(dict(d.get("settings", {})).items())))
                for d in data["designs"]
            )
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
            return cls.from_dict(signed.read(path))
        except signed.Damaged as error:
            raise StudyError(f"{error}; restore it, or remove {signed.KEY} if you changed it yourself") from None
        except OSError as error:
            raise StudyError(f"cannot read the plan {path}: {error}") from None

    def differences(self, other: "Plan") -> list[str]:
        """What another plan changes, in words; empty when all runs of this one may be kept."""
        found = self.base.differences(other.base.with_(design=self.base.design, seed=self.base.seed, lr=self.base.lr))
        mine, theirs = {p.id: p for p in self.designs}, {p.id: p for p in other.designs}
        for i in mine.keys() & theirs.keys():
            if mine[i].design != theirs[i].design:
                found.append(f"design {i}: {mine[i].design} -> {theirs[i].design}")
            elif mine[i].settings != theirs[i].settings:
                found.append(f"settings of {i}: {dict(mine[i].settings)} -> {dict(theirs[i].settings)}")
        return found

    def sha256(self) -> str:
        """Hash of everything that decides a result."""
        designs = [(p.id, str(p.design), *([dict(p.settings)] if p.settings else [])) for p in self.designs]
        text = json.dumps([self.base.sha256(), designs, self.lrs, self.seeds])
        return hashlib.sha256(text.encode()).hexdigest()


def price(spec: TrainSpec, vocab_size: int | None = None) -> Cost:
    """The cost of one run's model by formulas, for the run's batch; ``vocab_size`` where the tokenizer's is known."""
    sizes = {field.name for field in fields(Sizes)}
    settings = {name: value for name, value in spec.model_settings().items() if name in sizes or name == "design"}
    settings["vocab_size"] = vocab_size or spec.vocab_size
    return cost(settings, batch=spec.batch, seq=spec.seq, dtype=spec.dtype, packed=True, accumulation=spec.accumulation)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML or JSON file of settings, plain values only."""
    try:
        data = plain_files.read_yaml(path)
    except OSError as error:
        raise StudyError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise StudyError(f"{path} is neither YAML nor JSON: {error}") from None
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise StudyError(f"{path} must hold settings such as `designs: [post-norm, paf]`, got {type(data).__name__}")
    return data


def read_config(path: Path) -> dict[str, Any]:
    """Settings of a study from a YAML or JSON file: ``designs``, ``seeds``, ``lrs``, ``size`` and any setting of a
    run."""
    data = read_yaml(path)
    if "format" in data and "setup" in data:
        return _of_plan(Plan.load(path) if signed.KEY in data else Plan.from_dict(data))
    for key in ("designs", "seeds", "lrs"):
        if key in data and not isinstance(data[key], list):
            raise StudyError(f"{key} in {path} must be a list, got {data[key]!r}")
    if not all(isinstance(d, str | dict) for d in data.get("designs", ())):
        raise StudyError(f"designs in {path} must be names or equations in quotes, got {data['designs']!r}")
    settings = {key.replace("-", "_"): value for key, value in data.items()}
    for key in _COMMAND_LINE:
        if key in settings:
            raise StudyError(f"{key} belongs on the command line, not in {path}: remove it there and give --{key}")
    return settings


def _of_plan(plan: Plan) -> dict[str, Any]:
    """The plan that a study wrote, as settings for a new study."""
    designs = [
        {"id": p.id, "design": str(p.design), **dict(p.settings)} if p.settings else p.design.name or str(p.design)
        for p in plan.designs
    ]
    settings = {k: v for k, v in plan.base.to_dict().items() if k not in _OWN}
    return {**settings, "designs": designs, "seeds": list(plan.seeds), "lrs": list(plan.lrs)}


def _read_design(given: "str | Design | Mapping[str, Any]") -> tuple[Design, str, dict[str, Any]]:
    """A design, the name it is to have ("" for its own), and its own settings."""
    if not isinstance(given, Mapping):
        return parse(given), "", {}
    settings = dict(given)
    text, name = settings.pop("design", None), settings.pop("id", "")
    if not isinstance(text, str | Design) or not isinstance(name, str):
        raise StudyError(
            f"a design with settings is a mapping with the key design, a name or an equation: got {given!r}"
        )
    for key in ("seed", "lr"):
        if key in settings:
            raise StudyError(f"{key} is the study's and not one design's: remove it from {given!r}")
    return parse(text), name, settings


def _with_ids(designs: Sequence[tuple[Design, str, dict[str, Any]]]) -> tuple[PlannedDesign, ...]:
    found: list[PlannedDesign] = []
    for number, (design, given, settings) in enumerate(designs, 1):
        own = tuple(sorted(settings.items()))
        same = next((p.id for p in found if p.design == design and p.settings == own), None)
        if same is not None:
            raise StudyError(f"designs must differ, but number {number} has the wiring of {same}: {design}")
        name = given or design.name or (design.names[0] if design.names else "")
        slug = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")[:40] or f"design-{number}"
        slug = f"{slug}-{number}" if slug in {p.id for p in found} else slug
        found.append(PlannedDesign(slug, design, own))
    return tuple(found)


__all__ = ["DEFAULT_DESIGNS", "Plan", "PlannedDesign", "PlannedRun", "price", "read_config", "read_yaml"]
