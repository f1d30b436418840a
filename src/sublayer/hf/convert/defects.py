"""Which layers mind least if their sub-layers run in parallel.

A serial sub-layer reads f(x + a): the stream x with the outputs a of the earlier sub-layers of its layer, through the
norms before it. In parallel it reads the stream without a. The defect of the layer is ||f(x + a) - f(x)|| / ||f(x)||,
taken over all serial sub-layers and all tokens; the loss with only that layer made parallel is measured beside it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from sublayer.hf.convert.errors import ConvertError
from sublayer.hf.convert.measure import Batches, evaluated, listed, observe
from sublayer.hf.convert.mixing import layerwise
from sublayer.hf.convert.parallel import Serial, parallel_design, serial_branches
from sublayer.hf.convert.rewire import Conversion, convert
from sublayer.hf.convert.weights import Memory
from sublayer.model import SublayerPreTrainedModel
from sublayer.model.block import Wiring
from sublayer.notation import DesignError
from sublayer.notation.code import CONTEXTUAL
from sublayer.notation.program import Add

Rank = Literal["defect", "loss"]


@dataclass(frozen=True)
class LayerDefect:
    """How much one layer minds.

    Attributes:
        layer: 0-based.
        defect: ||f(x + a) - f(x)|| / ||f(x)||; None where nothing in the layer is serial.
        loss: mean loss a token with only this layer in parallel; None also where the sample has no labels.
        equation: the layer's parallel form; empty where it has none.
        reason: why it has none.
    """

    layer: int
    defect: float | None
    loss: float | None
    equation: str
    reason: str = ""


@dataclass(frozen=True)
class DefectMap:
    """All layers, and the loss of the model as it is."""

    layers: tuple[LayerDefect, ...]
    loss: float | None
    tokens: int

    def ranking(self, by: Rank = "defect") -> tuple[int, ...]:
        """The serial layers, those that mind least first.

        Raises:
            ConvertError: ``by`` is no measure, or is the loss and the sample has no labels.
        """
        if by not in get_args(Rank):
            raise ConvertError(f"layers are ranked by defect or loss, got {by!r}: choose one of them")
        serial = [each for each in self.layers if each.defect is not None]
        if by == "loss" and any(each.loss is None for each in serial):
            raise ConvertError("layers are ranked by loss only on a sample with labels: rank by defect")
        return tuple(each.layer for each in sorted(serial, key=lambda each: (getattr(each, by), each.layer)))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return {"loss": self.loss, "tokens": self.tokens, "layers": [vars(each) for each in self.layers]}

    def __str__(self) -> str:
        place = {layer: i + 1 for i, layer in enumerate(self.ranking())}
        base = f"   loss as it is {self.loss:.4f}" if self.loss is not None else ""
        lines = [f"defect map on {self.tokens} tokens; rank 1 minds least, by the defect{base}"]
        lines.append("layer  rank    defect      loss  if only this layer is parallel")
        for each in self.layers:
            if each.defect is None:
                lines.append(f"{each.layer:5}     -         -         -  {each.reason}")
                continue
            loss = "-" if each.loss is None else f"{each.loss:.4f}"
            lines.append(f"{each.layer:5}  {place[each.layer]:4}  {each.defect:8.4f}  {loss:>8}  {each.equation}")
        return "\n".join(lines)


def defect_map(model: SublayerPreTrainedModel, batches: Batches) -> DefectMap:
    """Rank the layers by how little they mind becoming parallel.

    Defined for every layer in which a sub-layer reads, through norms, a stream to which an earlier one of the layer was
    added; the others are listed with the reason. f takes the norms of the stream on the way with it, so for post-norm
    it is ``ffn(norm(.))`` with the norm after the attention.

    Args:
        model: a Sublayer model; it is left as it was.
        batches: the sample, as in `measure_change`. Padding counts in the defect.

    Raises:
        ConvertError: no layer of the model is serial; the message says why.
    """
    kept = listed(batches)
    base: Any = model.base_model
    design, depth = model.config.wiring, model.config.num_hidden_layers
    equations: dict[int, str] = {}
    reasons: dict[int, str] = {}
    for i, layer in enumerate(base.layers):
        try:
            parallel = layerwise(design, {i: parallel_design(layer.section)}, depth)
            parallel.check_depth(depth)
            equations[i] = parallel.layer(i, depth).text
        except (ConvertError, DesignError) as error:
            reasons[i] = str(error)
    if not equations:
        raise ConvertError(f"no layer can be made parallel: {reasons[0]}")
    sums = _defects(model, kept, list(equations))
    seen = observe(model, kept)
    found = []
    for i in range(depth):
        if i in reasons:
            found.append(LayerDefect(i, None, None, "", reasons[i]))
            continue
        loss = None
        if seen.loss is not None:
            alone = convert(model, layerwise(design, {i: equations[i]}, depth), (i,), memory="share").model
            loss = observe(alone, kept).loss
        moved, size = sums[i]
        found.append(LayerDefect(i, math.sqrt(moved / size) if size else 0.0, loss, equations[i]))
    return DefectMap(tuple(found), seen.loss, seen.tokens)


def to_parallel(
    model: SublayerPreTrainedModel,
    k: int,
    batches: Batches,
    *,
    by: Rank = "defect",
    found: DefectMap | None = None,
    calibrate: Batches | None = None,
    consume: bool = False,
) -> Conversion:
    """Convert the ``k`` layers that mind least to their parallel form.

    Args:
        k: how many layers.
        batches: the sample for the map and the change.
        by: what ranks the layers: the ``defect``, or the ``loss`` with only that layer in parallel. Each layer is
            ranked by itself in the model as it is.
        found: the map, if it has been made already.
        calibrate, consume: as in `rewire`.

    Raises:
        ConvertError: fewer than ``k`` layers are serial.
    """
    kept = listed(batches)
    found = found or defect_map(model, kept)
    order = found.ranking(by)
    if not 1 <= k <= len(order):
        raise ConvertError(
            f"{len(order)} of {len(found.layers)} layers can be made parallel, got {k}: ask for 1 to {len(order)}"
        )
    chosen = tuple(sorted(order[:k]))
    equations = {each.layer: each.equation for each in found.layers}
    depth = model.config.num_hidden_layers
    after = layerwise(model.config.wiring, {i: equations[i] for i in chosen}, depth)
    memory: Memory = "move" if consume else "copy"
    return convert(model, after, chosen, batches=kept, calibrate=calibrate, memory=memory)


def _defects(
    model: SublayerPreTrainedModel, batches: list[dict[str, Tensor]], layers: list[int]
) -> dict[int, tuple[float, float]]:
    """For each layer the sums over tokens of ||f(x + a) - f(x)||^2 and ||f(x)||^2."""
    base: Any = model.base_model
    sums = dict.fromkeys(layers, (0.0, 0.0))

    def watch(i: int) -> Callable[..., None]:
        def before(block: Wiring, given: tuple[Any, ...]) -> None:
            moved, size = sums[i]
            for serial in serial_branches(block.section):
                with_, without = _with_and_without(block, serial, given)
                moved += float((with_ - without).double().square().sum())
                size += float(without.double().square().sum())
            sums[i] = moved, size

        return before

    hooks = [base.layers[i].register_forward_pre_hook(watch(i)) for i in layers]
    try:
        with evaluated(model), torch.no_grad():
            for batch in batches:
                given = {n: v.to(model.device) for n, v in batch.items() if n != "labels"}
                base(**given, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return sums


def _with_and_without(block: Wiring, serial: Serial, given: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    """The sub-layer's output ``[batch, seq, d]`` as it is, and if what it reads had no earlier sub-layer in it."""
    *streams, context = given
    inputs = dict(zip(block.section.inputs, streams, strict=True))
    usual = _Values(block, inputs, context, frozenset())
    absent = _Values(block, inputs, context, frozenset(call.value for call in serial.earlier))
    return usual.of(serial.branch.value), absent.of(serial.branch.value)


class _Values:
    """The values of one section on one input, computed as they are asked for; sub-layers in ``absent`` give 0."""

    def __init__(self, block: Wiring, inputs: dict[str, Tensor], context: Any, absent: frozenset[str]) -> None:
        self.block, self.context, self.absent = block, context, absent
        self.known = dict(inputs)

    def of(self, value: str) -> Tensor:
        if value not in self.known:
            self.known[value] = self._computed(value)
        return self.known[value]

    def _computed(self, value: str) -> Tensor:
        step = self.block.section.step[value]
        if value in self.absent:
            return torch.zeros_like(next(iter(self.known.values())))
        if isinstance(step, Add):
            terms = [c.value(self.block.layer, self.block.depth) * self.of(term) for c, term in step.terms]
            return torch.stack(terms).sum(0)
        module: nn.Module = self.block.get_submodule(step.site.name)
        context = (self.context,) if step.site.op in CONTEXTUAL else ()
        output: Tensor = module(*(self.of(a) for a in step.args), *context)
        return output
