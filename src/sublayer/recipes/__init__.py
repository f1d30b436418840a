"""Recipes: what a published model is and how it was trained, each value with the place it was taken from.

A recipe is a YAML file: those of this package lie in ``published`` (the folder ``recipes`` of the repository), and a
user's own is given by its path. Its sections `model`, `data` and `training` are lists of groups, ``{source: text,
values: {name: value}}``: no value without a source, which is a place in the literature or "our choice" and why.
`extends` names a recipe whose values hold where this one has none; `differs` lists what our run does otherwise.
Reading one imports no torch.
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sublayer import plain_files
from sublayer.sizes import Sizes

FOLDER = Path(__file__).parent / "published"

#: Settings of `SublayerConfig` that no cost depends on.
UNPRICED = frozenset(
    """design norm_eps norm_zero_centred position_counting rope_theta rope_parameters rotary_layers alibi_scale
    alibi_dtype sliding_window layer_types attention_scale final_logit_softcapping clip_qkv qk_norm_after_rotary
    embedding_multiplier logits_scale classifier_act classifier_reads causal init initializer_range init_seed
    scale_init gate_init dyt_alpha_init use_cache pad_token_id bos_token_id eos_token_id source_checkpoint""".split()
)
_MODEL = {field.name for field in fields(Sizes)} | UNPRICED
_NEEDED = ("design", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_DATA = {"corpora", "size", "rows", "masking", "tokenizer"}
_COUNT, _NUMBER = "a whole number of at least 1", "a number of at least 0"
# What a training's value has to be; a tuple lists the words that may stand there.
_TRAINING: dict[str, Any] = {
    "objective": ("mlm", "clm"), "schedule": ("cosine", "linear", "constant"), "dtype": ("float32", "bf16"),
    "seq": _COUNT, "batch": _COUNT, "global_batch": _COUNT, "steps": _COUNT, "tokens": _COUNT, "warmup_steps": _COUNT,
    "warmup_tokens": _COUNT, "lr": _NUMBER, "eps": _NUMBER, "weight_decay": _NUMBER, "clip": _NUMBER,
    "mask_rate": _NUMBER, "betas": "two numbers", "phases": "a list of {share, seq}",
}  # fmt: skip
_ALWAYS = ("objective", "seq", "batch", "global_batch", "lr", "schedule", "betas", "eps", "weight_decay", "clip")
_SECTIONS: dict[str, set[str]] = {"model": _MODEL, "data": _DATA, "training": set(_TRAINING)}


class RecipeError(ValueError):
    """A recipe that is not there or breaks a rule: the rule, the value received and the remedy."""


@dataclass(frozen=True)
class Phase:
    """A stretch of the training with one length of rows."""

    steps: int
    seq: int


@dataclass(frozen=True)
class Recipe:
    """One recipe, with what it extends filled in.

    Attributes:
        name: of the file.
        about: what it is, in a sentence.
        model: fields of `SublayerConfig`.
        data: what the corpus is, in words; `tokenizer` is a name on the Hub.
        training: as in the file; batches are rows, `global_batch` of an optimiser step, `batch` of one pass on a GPU.
        sources: of each value, by "section.name".
        differs: what a run of ours does otherwise.
    """

    name: str
    about: str
    model: dict[str, Any]
    data: dict[str, Any]
    training: dict[str, Any]
    sources: dict[str, str]
    differs: tuple[str, ...]

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole training."""
        if "steps" in self.training:
            return int(self.training["steps"])
        return math.ceil(self.training["tokens"] / (self.training["global_batch"] * self.training["seq"]))

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The stretches of the training, in order."""
        total, given = self.steps, self.training.get("phases") or [{"share": 1.0, "seq": self.training["seq"]}]
        return tuple(Phase(round(total * one["share"]), one["seq"]) for one in given)

    @property
    def tokens(self) -> int:
        """Tokens of the whole training."""
        return sum(phase.steps * phase.seq for phase in self.phases) * int(self.training["global_batch"])

    @property
    def warmup(self) -> float:
        """The share of the steps over which the rate rises."""
        if "warmup_steps" in self.training:
            return float(self.training["warmup_steps"] / self.steps)
        return float(self.training.get("warmup_tokens", 0) / self.tokens)

    def source(self, section: str, name: str) -> str:
        """Where a value was taken from."""
        return self.sources[f"{section}.{name}"]


def names() -> tuple[str, ...]:
    """The recipes of this package."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def load(name: str | Path) -> Recipe:
    """A recipe of this package by its name, or any by the path of its YAML file.

    Raises:
        RecipeError: there is none, or it breaks a rule.
    """
    return _load(str(name), ())


def _load(name: str, before: tuple[str, ...]) -> Recipe:
    path = Path(name) if name.endswith((".yaml", ".yml")) or "/" in name else FOLDER / f"{name}.yaml"
    if not path.is_file():
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f" (nearest: {near[0]})" if near else ""
        raise RecipeError(
            f"a recipe is one of {', '.join(names())}, or the path of a YAML file; got {name!r}{hint}: choose one of "
            "them"
        )
    if name in before:
        raise RecipeError(f"the recipe {name} extends itself, by way of {' -> '.join((*before, name))}: cut the circle")
    data = _read(path)
    _known(path, "a recipe", data, {"about", "extends", "differs", *_SECTIONS})
    parent = data.get("extends")
    if parent is not None and not isinstance(parent, str):
        raise RecipeError(f"{path}: extends must be the name of a recipe, got {parent!r}")
    start = _load(parent, (*before, name)) if parent else Recipe(path.stem, "", {}, {}, {}, {}, ())
    merged: dict[str, dict[str, Any]] = {}
    sources = dict(start.sources)
    for section, known in _SECTIONS.items():
        merged[section] = dict(getattr(start, section))
        for source, values in _groups(path, section, data.get(section, [])):
            _known(path, section, values, known)
            merged[section] |= values
            sources |= {f"{section}.{key}": source for key in values}
    differs = data.get("differs", list(start.differs))
    if not isinstance(differs, list) or not all(isinstance(line, str) for line in differs):
        raise RecipeError(f"{path}: differs must be a list of sentences, got {differs!r}")
    found = Recipe(path.stem, str(data.get("about", start.about)), **merged, sources=sources, differs=tuple(differs))
    _check(path, found)
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        data = plain_files.read_yaml(path)
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}: mend the file") from None
    if not isinstance(data, dict):
        raise RecipeError(f"{path} must hold the sections {', '.join(_SECTIONS)}, got {type(data).__name__}")
    return data


def _known(path: Path, where: str, values: Mapping[str, Any], known: set[str]) -> None:
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f" (nearest: {near[0]})" if near else f": one of {', '.join(sorted(known))}"
            raise RecipeError(f"{path}: {key!r} is nothing that {where} says{hint}; correct or remove it")


def _groups(path: Path, section: str, groups: Any) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for group in groups if isinstance(groups, list) else [groups]:
        source, values = (group.get("source"), group.get("values")) if isinstance(group, dict) else (None, None)
        if not isinstance(values, dict) or not isinstance(source, str) or not source.strip():
            raise RecipeError(
                f"{path}: {section} is a list of groups, each with a source (a place in the literature, or our choice: "
                f"why) and values; got {group!r}"
            )
        if set(group) > {"source", "values"}:
            raise RecipeError(f"{path}: a group has source and values only, got {', '.join(map(str, group))}")
        found.append((source, values))
    return found


def _check(path: Path, recipe: Recipe) -> None:
    lacking = [key for key in _NEEDED if key not in recipe.model] + [k for k in _ALWAYS if k not in recipe.training]
    if lacking:
        raise RecipeError(f"{path} says nothing of {', '.join(lacking)}: add them, or extend a recipe that does")
    for key, value in recipe.training.items():
        rule = _TRAINING[key]
        if not _fits(value, rule):
            told = f"one of {', '.join(rule)}" if isinstance(rule, tuple) else rule
            raise RecipeError(f"{path}: {key} must be {told}, got {value!r}")
    if ("steps" in recipe.training) == ("tokens" in recipe.training):
        raise RecipeError(f"{path}: a training has either steps or tokens, got both or none: keep one")
    shares = [one["share"] for one in recipe.training.get("phases", [])]
    if shares and not math.isclose(sum(shares), 1):
        raise RecipeError(f"{path}: the shares of the phases must sum to 1, got {shares}")


def _fits(value: Any, rule: Any) -> bool:
    if isinstance(rule, tuple):
        return value in rule
    if rule == _COUNT:
        return type(value) is int and value >= 1
    if rule == _NUMBER:
        return _is_number(value) and value >= 0
    if not isinstance(value, list):
        return False
    if rule == "two numbers":
        return len(value) == 2 and all(_is_number(one) and 0 <= one < 1 for one in value)
    return bool(value) and all(
        isinstance(one, dict)
        and set(one) == {"share", "seq"}
        and _fits(one["seq"], _COUNT)
        and _is_number(one["share"])
        and 0 < one["share"] <= 1
        for one in value
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
