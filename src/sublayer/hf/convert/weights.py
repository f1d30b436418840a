"""From the plan to weights: the new model, and where each of its parameters came from."""

import copy
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sublayer.hf.convert.errors import ConvertError
from sublayer.hf.convert.factor import Factor
from sublayer.hf.convert.plan import Plan
from sublayer.model import SublayerPreTrainedModel
from sublayer.model.block import Wiring
from sublayer.model.branch import Branch
from sublayer.model.initialization import initialise

Memory = Literal["copy", "share", "move"]

# What `sublayer.hf.load` writes down beside a model, for `export`: where it was, and tensors without a place in it.
CARRIED = ("name_or_path", "loaded_from", "kept_aside")


@dataclass(frozen=True)
class Origin:
    """Where one parameter of the new model came from.

    Attributes:
        name: the parameter.
        count: numbers in it.
        how: "kept" bit for bit, "changed" (computed from old ones), or "new".
        sources: the old parameters it was made of; names as in the old model.
        note: what was done to it, in words; empty where it was kept.
    """

    name: str
    count: int
    how: Literal["kept", "changed", "new"]
    sources: tuple[str, ...] = ()
    note: str = ""


@dataclass
class Recipe:
    """How one parameter is made; with neither source nor constant it is initialised as in a fresh model."""

    keep: str | None = None
    rows: Factor | None = None  # multiplies the output channels
    columns: Factor | None = None  # multiplies the input channels
    fold: tuple[str, str] | None = None  # the weight [out, d] whose product with ``shift`` is added, and the bias [d]
    shift: Factor | None = None
    constant: float | None = None
    note: str = ""


def places(model: SublayerPreTrainedModel) -> dict[str, nn.Module]:
    """The modules of the equation by their names in the base model."""
    found: dict[str, nn.Module] = {}
    for name, module in model.base_model.named_modules():
        if isinstance(module, Wiring):
            found |= {f"{name}.{site.name}": module.get_submodule(site.name) for site in module.section.sites}
    return found


def parameters(model: SublayerPreTrainedModel) -> dict[str, nn.Parameter]:
    """The parameters of the equation's modules by their names in the base model."""
    return {f"{p}.{leaf}": value for p, module in places(model).items() for leaf, value in module.named_parameters()}


def biased(model: SublayerPreTrainedModel) -> set[str]:
    """The sub-layers whose input products all have a bias."""
    return {
        place
        for place, module in places(model).items()
        if isinstance(module, Branch) and all(getattr(linear, "bias", None) is not None for linear in module.inputs)
    }


def shell(model: SublayerPreTrainedModel, design: str) -> SublayerPreTrainedModel:
    """The same kind of model with another design, on the meta device."""
    config = copy.deepcopy(model.config)
    config.design = design
    with torch.device("meta"):
        return type(model)(config)


def assemble(
    model: SublayerPreTrainedModel, new: SublayerPreTrainedModel, plan: Plan, memory: Memory
) -> tuple[Origin, ...]:
    """Give ``new``, made by :func:`shell`, the weights that ``plan`` describes; where each came from.

    Args:
        memory: "copy" leaves the old model alone; "share" lets both use the same memory for what is kept; "move"
            takes the parameters out of the old model, which is empty afterwards, so that never more than the weights
            and one parameter are held.
    """
    if memory == "move":
        for part in model.modules():
            if isinstance(part, Wiring):
                for together in part._together.values():
                    together.wholes = {}  # or it would hold on to the memory of what is moved
    made = _Assembly(model, new, plan, memory)
    names = [name for name, _ in new.named_parameters()]
    for name in sorted(names, key=made.reads_others, reverse=True):
        made.parameter(name)
    for name, buffer in model.named_buffers():
        made.set(name, buffer if memory == "share" else buffer.clone(), buffer=True)
    new.tie_weights()
    for part in new.modules():
        if isinstance(part, Wiring):
            part.place()
    left = [name for name, value in (*new.named_parameters(), *new.named_buffers()) if value.is_meta]
    if left:
        raise ConvertError(
            f"a conversion changes the design alone, but the new model has {', '.join(left[:3])} that the old has not: "
            "give a model made by sublayer"
        )
    new.train(model.training)
    for name in CARRIED:
        if hasattr(model, name):
            setattr(new, name, getattr(model, name))
    if getattr(model, "generation_config", None) is not None:
        new.generation_config = copy.deepcopy(model.generation_config)
    return tuple(made.origins[name] for name in names)


class _Assembly:
    def __init__(self, old: SublayerPreTrainedModel, new: SublayerPreTrainedModel, plan: Plan, memory: Memory) -> None:
        self.old, self.new, self.plan, self.memory = old, new, plan, memory
        self.prefix = "" if old.base_model is old else f"{old.base_model_prefix}."
        self.given = dict(old.named_parameters())
        self.owner = places(old)
        self.place = places(new)
        self.recipes = {
            f"{place}.{leaf}": recipe
            for place, module in self.place.items()
            for leaf, recipe in self._recipes(place, module).items()
        }
        self.uses: dict[str, int] = defaultdict(int)
        for name in dict(new.named_parameters()):
            for source in self._sources(name):
                self.uses[source] += 1
        self.moved: set[str] = set()
        self.fresh: set[str] = set()
        self.origins: dict[str, Origin] = {}

    # --- what is made of what ---------------------------------------------------------------------------------------

    def _recipes(self, place: str, module: nn.Module) -> dict[str, Recipe]:
        leaves = [leaf for leaf, _ in module.named_parameters()]
        if place in self.plan.norms:
            return {leaf: self._norm(place, leaf) for leaf in leaves}
        if place in self.plan.branches:
            return self._branch(place, module, leaves)
        factor = self.plan.factors[place]
        if factor.names:
            same_shape = self._raw(factor.names[0]).shape == module.weight.shape
            note = "" if same_shape else "one number for every channel"
            return {"weight": Recipe(keep=factor.names[0], note=note)}
        text = "0, so that the new sub-layer adds nothing yet" if not factor.number else "1, which changes nothing"
        return {"weight": Recipe(constant=factor.number, note=text)}

    def _norm(self, place: str, leaf: str) -> Recipe:
        made = self.plan.norms[place]
        source = f"{made.source}.{leaf}"
        if made.source is not None and source in self.plan.params:
            scaled = None if made.out.is_one or leaf == "alpha" else made.out
            return Recipe(keep=source, rows=scaled, note=_times(scaled))
        return Recipe(note={"weight": "1", "bias": "0"}.get(leaf, "as in a fresh model"))

    def _branch(self, place: str, module: nn.Module, leaves: list[str]) -> dict[str, Recipe]:
        made = self.plan.branches[place]
        assert isinstance(module, Branch) or not leaves
        if not isinstance(module, Branch):
            return {}
        names = {id(m): name for name, m in module.named_modules()}
        inputs, last = {names[id(m)] for m in module.inputs}, names[id(module.last)]
        recipes = {}
        for leaf in leaves:
            part, _, kind = leaf.rpartition(".")
            recipe = Recipe(keep=f"{made.source}.{leaf}" if made.source else None)
            if made.source is None:
                recipe.note = "as in a fresh model"
                if part == last and not made.out.number:
                    recipe = Recipe(constant=0.0, note="0, so that the new sub-layer adds nothing yet")
            elif part in inputs and kind == "weight":
                columns = made.inside
                if made.fold is not None and f"{made.fold}.weight" in self.plan.params:
                    columns = columns * Factor(1.0, (f"{made.fold}.weight",))
                    recipe.note = f"{made.fold} folded in"
                if not columns.is_one:
                    recipe.columns = columns
                    recipe.note = recipe.note or _times(columns)
            elif part in inputs and kind == "bias":
                if made.fold is not None and f"{made.fold}.bias" in self.plan.params and made.shift.number:
                    recipe.fold, recipe.shift = (f"{made.source}.{part}.weight", f"{made.fold}.bias"), made.shift
                    recipe.note = f"{made.fold} folded in"
            elif part == last and not made.out.is_one:
                recipe.rows, recipe.note = made.out, _times(made.out)
            recipes[leaf] = recipe
        return recipes

    def _sources(self, name: str) -> tuple[str, ...]:
        """The old parameters that one new parameter is made of, by their names in the base model or the head."""
        recipe = self.recipes.get(self._inner(name))
        if recipe is None:
            return (name,)
        factors = [f for f in (recipe.rows, recipe.columns, recipe.shift) if f is not None]
        inner = [recipe.keep, *(recipe.fold or ()), *(n for f in factors for n in f.names)]
        return tuple(dict.fromkeys(f"{self.prefix}{n}" for n in inner if n is not None))

    def _inner(self, name: str) -> str:
        return name.removeprefix(self.prefix) if name.startswith(self.prefix) else ""

    # --- making it --------------------------------------------------------------------------------------------------

    def reads_others(self, name: str) -> bool:
        """Whether a parameter is made from other products' weights: those come first, and the weights after them can
        then be changed where they lie."""
        recipe = self.recipes.get(self._inner(name))
        return recipe is not None and recipe.fold is not None

    def parameter(self, name: str) -> None:
        """Make one parameter of the new model and write down where it came from."""
        recipe = self.recipes.get(self._inner(name), Recipe(keep=self._inner(name)))
        sources = self._sources(name)
        if any(source not in self.given for source in sources):
            return  # reported with all others that are missing
        target = self.new.get_parameter(name)
        changed = recipe.rows is not None or recipe.columns is not None or recipe.fold is not None
        if changed or (recipe.keep is not None and sources and self.given[sources[0]].shape != target.shape):
            old = self.given[sources[0]]
            value = self._computed(recipe, old, target.shape)
            self.set(name, value, grad=old.requires_grad)
            self._note(name, "changed", sources, recipe.note)
        elif recipe.keep is not None:
            old = self.given[sources[0]]
            again = sources[0] in self.moved
            self.set(name, old.data.clone() if self.memory == "copy" or again else old.data, grad=old.requires_grad)
            self.moved.add(sources[0])
            self._note(name, "kept", sources)
        else:
            self._initialise(name, recipe)
            self._note(name, "new", (), recipe.note)
        if self.memory == "move":
            self._release(sources)

    def _computed(self, recipe: Recipe, old: Tensor, shape: torch.Size) -> Tensor:
        assert recipe.keep is not None
        place = recipe.keep
        centred = self._centred(place)
        value = self._raw(place).float()
        # Memory that nobody needs any more can be written to.
        full = f"{self.prefix}{place}"
        last = self.memory == "move" and self.uses[full] == 1 and full not in self.moved
        if not last and value.data_ptr() == old.data_ptr():
            value = value.clone()
        value += 1 if centred else 0
        if recipe.fold is not None and recipe.shift is not None:
            weight, bias = (self._raw(n).float() for n in recipe.fold)
            value += weight @ (self._vector(recipe.shift, bias) * bias)
        if recipe.columns is not None:
            value *= self._vector(recipe.columns, value)
        if recipe.rows is not None:
            vector = self._vector(recipe.rows, value)
            value *= vector.unsqueeze(-1) if vector.dim() and value.dim() > 1 else vector
        value -= 1 if centred else 0
        return value.to(old.dtype).expand(shape).contiguous()

    def _vector(self, factor: Factor, like: Tensor) -> Tensor:
        """The numbers of a factor, ``[d]`` or one number."""
        total = torch.tensor(factor.number, dtype=torch.float32, device=like.device)
        for name in factor.names:
            vector = self._raw(name).float() + (1 if self._centred(name) else 0)
            total = total * (vector if vector.numel() > 1 else vector.reshape(()))
        return total

    def _raw(self, inner: str) -> Tensor:
        return self.given[f"{self.prefix}{inner}"].detach()

    def _centred(self, inner: str) -> bool:
        """Whether the parameter is the weight of a norm that multiplies by 1 + weight."""
        place, _, leaf = inner.rpartition(".")
        return leaf == "weight" and bool(getattr(self.owner.get(place), "zero_centred", False))

    def _initialise(self, name: str, recipe: Recipe) -> None:
        owner, _, leaf = name.rpartition(".")
        module = self.new.get_submodule(owner)
        old = next(self.old.parameters())
        for each, value in list(module.named_parameters(recurse=False)):
            if value.is_meta and f"{owner}.{each}" not in self.fresh:
                self.set(f"{owner}.{each}", torch.empty(value.shape, dtype=old.dtype, device=old.device))
                self.fresh.add(f"{owner}.{each}")
        with torch.no_grad():
            before = {
                n: v.clone() for n, v in module.named_parameters(recurse=False) if f"{owner}.{n}" not in self.fresh
            }
            initialise(module, getattr(module, "seed_name", self._inner(owner)), self.new.config)
            for each, value in before.items():  # what came from the old model stays
                module.get_parameter(each).copy_(value)
            self.fresh -= {f"{owner}.{n}" for n, _ in module.named_parameters(recurse=False)}
            if recipe.constant is not None:
                module.get_parameter(leaf).fill_(recipe.constant)

    def set(self, name: str, value: Tensor, grad: bool = True, buffer: bool = False) -> None:
        """Put a tensor in the place of one on the meta device."""
        owner, _, leaf = name.rpartition(".")
        module: Any = self.new.get_submodule(owner)
        if buffer:
            module._buffers[leaf] = value
        else:
            module._parameters[leaf] = nn.Parameter(value, requires_grad=grad)

    def _release(self, sources: tuple[str, ...]) -> None:
        for source in sources:
            self.uses[source] -= 1
            if not self.uses[source]:
                self.given[source].data = self.given[source].data.new_empty(0)

    def _note(self, name: str, how: Any, sources: tuple[str, ...], note: str = "") -> None:
        self.origins[name] = Origin(name, self.new.get_parameter(name).numel(), how, sources, note)


def _times(factor: Factor | None) -> str:
    if factor is None:
        return ""
    parts = [n.removesuffix(".weight") for n in factor.names]
    number = [f"{factor.number:.4g}"] if factor.number != 1 or not parts else []
    return f"times {' * '.join([*number, *parts])}"
