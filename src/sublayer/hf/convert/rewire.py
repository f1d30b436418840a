"""`rewire`: the same model under another design."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from sublayer.hf.convert.calibrate import calibrate as fit
from sublayer.hf.convert.calibrate import sizes
from sublayer.hf.convert.errors import ConvertError
from sublayer.hf.convert.match import match
from sublayer.hf.convert.measure import Batches, FunctionChange, between, listed, observe
from sublayer.hf.convert.mixing import mixed, read_layers, wanted
from sublayer.hf.convert.network import Network
from sublayer.hf.convert.proof import Proof, prove
from sublayer.hf.convert.table import Fate, fates, table
from sublayer.hf.convert.weights import Memory, Origin, assemble, biased, parameters, shell
from sublayer.model import SublayerPreTrainedModel
from sublayer.notation import Design, DesignError


@dataclass(frozen=True)
class Conversion:
    """A model under another design, and what became of its parameters.

    Attributes:
        model: the new model, of the same class and mode.
        before, after: the designs.
        layers: the layers that were to be converted, 0-based.
        targets: for each parameter of the new model where it came from.
        sources: for each parameter of the old model what became of it.
        proof: "exact", "up to eps" or "none", as in `sublayer.hf.convert.proof.prove`.
        change: what was measured; None where no sample was given.
    """

    model: SublayerPreTrainedModel
    before: Design
    after: Design
    layers: tuple[int, ...]
    targets: tuple[Origin, ...]
    sources: tuple[Fate, ...]
    proof: Proof
    change: FunctionChange | None = None

    @property
    def exact(self) -> bool:
        """Whether the new model computes the same function, by proof."""
        return self.proof == "exact"

    @property
    def verdict(self) -> str:
        """Exact or approximate, and how that is known."""
        if self.exact and self.before == self.after:
            return "exact (same equation)"
        if self.exact:
            return "exact (another equation for the same function; proved from both equations)"
        if self.proof == "up to eps":
            return "exact but for the norms' eps (proved from both equations with eps = 0)"
        if self.change is not None and self.change.equal:
            return f"equal on the sample within {self.change.output:.0e} (not proved)"
        return "approximate" if self.change is not None else "approximate, as far as the equations tell (not measured)"

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return {
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "layers": list(self.layers),
            "proof": self.proof,
            "verdict": self.verdict,
            "change": self.change.to_dict() if self.change else None,
            "new_parameters": [
                {"name": t.name, "count": t.count, "how": t.how, "sources": list(t.sources), "note": t.note}
                for t in self.targets
            ],
            "old_parameters": [
                {"name": s.name, "count": s.count, "how": s.how, "targets": list(s.targets)} for s in self.sources
            ],
        }

    def __str__(self) -> str:
        return table(self)


def rewire(
    model: SublayerPreTrainedModel,
    design: str | Design,
    layers: str | Iterable[int] | None = None,
    *,
    batches: Batches | None = None,
    calibrate: Batches | None = None,
    consume: bool = False,
) -> Conversion:
    """Give a model another design, keeping its function as close as the two equations allow.

    Attention goes to attention and FFN to FFN, in order; norms to what they read or write; scales and gates to what
    they multiply (`sublayer.hf.convert.match`). What the new design lacks is folded into the products beside it where
    that keeps the function, and dropped otherwise; what it has too much of starts so that it changes least: norms with
    weight 1 and bias 0, factors with 1, and new sub-layers with an output of 0 where all they do is add.

    Args:
        model: a Sublayer model, on any device and in any dtype.
        design: a catalogue name, an equation or a Design. Text that says nothing of ``embed`` keeps the model's embed
            section (`sublayer.hf.convert.mixing.wanted`).
        layers: the layers to convert, as numbers or as text (``"0,3,5-7"``, ``"2:6"``). Default: all.
        batches: a sample to measure the change on, as in `measure_change`.
        calibrate: a sample on which, where the change is not exact, each sub-layer is rescaled so that it reads values
            as large, and counts as much, as before (`sublayer.hf.convert.calibrate`). To see what it is worth,
            measure on other ``batches``.
        consume: move the parameters out of ``model``, which is empty afterwards, instead of copying them.

    Raises:
        ConvertError: the layers do not exist, or the designs cannot stand in one model.
        DesignError: the design cannot be read, or cannot be built with this depth.
    """
    if not isinstance(model, SublayerPreTrainedModel):
        raise ConvertError(
            f"a conversion takes a Sublayer model, got {type(model).__name__}: read it with sublayer.load first"
        )
    depth = model.config.num_hidden_layers
    before = model.config.wiring
    chosen = _chosen(layers, depth)
    if chosen == tuple(range(depth)):
        after = wanted(design, before)
    else:
        after = mixed(before, wanted(design, before), chosen, depth)
    memory: Memory = "move" if consume else "copy"
    return convert(model, after, chosen, batches=batches, calibrate=calibrate, memory=memory)


def convert(
    model: SublayerPreTrainedModel,
    after: Design,
    layers: tuple[int, ...],
    *,
    batches: Batches | None = None,
    calibrate: Batches | None = None,
    memory: Memory = "copy",
) -> Conversion:
    """Give a model exactly the design ``after``; see `rewire`. ``memory`` is that of `assemble`."""
    config = model.config
    before, depth = config.wiring, config.num_hidden_layers
    try:
        after.check_depth(depth)
    except DesignError as error:
        raise ConvertError(f"the new design does not fit the model's depth: {error}") from None
    made = shell(model, str(after))
    old, new = Network(before, depth, config.norm), Network(after, depth, config.norm)
    plan = match(old, new, parameters(model).keys(), parameters(made).keys(), biased(model))
    proof = prove(old, new, plan)
    sample = listed(batches) if batches is not None else []
    counts = {name: value.numel() for name, value in model.named_parameters()}
    seen = observe(model, sample) if sample else None
    shared = set(old.branches) & set(new.branches)
    rows = listed(calibrate) if calibrate is not None and proof == "none" else []
    size = sizes(model, old, rows, shared) if rows else None
    targets = assemble(model, made, plan, memory)
    if size is not None:
        targets = _calibrated(made, targets, fit(made, new, plan, size, rows))
    change = between(seen, observe(made, sample)) if seen is not None else None
    return Conversion(made, before, after, layers, targets, fates(counts, targets), proof, change)


def _calibrated(
    model: SublayerPreTrainedModel, targets: tuple[Origin, ...], factors: dict[str, float]
) -> tuple[Origin, ...]:
    """The account with what calibration did to it."""
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    found = []
    for target in targets:
        factor = factors.get(target.name.removeprefix(prefix))
        if factor is not None:
            note = f"{target.note}, calibrated" if target.note else "calibrated"
            target = replace(target, how="new" if target.how == "new" else "changed", note=note)
        found.append(target)
    return tuple(found)


def _chosen(layers: str | Iterable[int] | None, depth: int) -> tuple[int, ...]:
    if layers is None:
        return tuple(range(depth))
    if isinstance(layers, str):
        return read_layers(layers, depth)
    chosen = tuple(sorted(set(layers)))
    if not chosen or not 0 <= chosen[0] <= chosen[-1] < depth:
        raise ConvertError(
            f"layers lie within 0..{depth - 1} in this model, got {list(chosen)}: name layers of the model"
        )
    return chosen
