"""Two numbers a sub-layer, so that it goes on reading values as large, and counting as much, as before.

Where a norm leaves the stream, what sub-layers read and add to changes its size, and no equation says by how much: the
weights and the text decide. On a sample, the input products of each sub-layer are divided by how much larger what it
reads has become, and its output (or the norm on it) is multiplied so that at its + it is the same share of the stream
as before. One sub-layer after another, since each changes what the later ones see.
"""

from collections import defaultdict
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sublayer.hf.convert.measure import evaluated
from sublayer.hf.convert.network import Key, Network, Total, Visit, is_norm
from sublayer.hf.convert.plan import Plan
from sublayer.hf.convert.weights import places
from sublayer.model import SublayerPreTrainedModel
from sublayer.model.block import Wiring
from sublayer.model.branch import Branch

LEAST = 1e-3  # a factor this near to 1 is left alone


@dataclass(frozen=True)
class Entry:
    """Where a sub-layer's output meets the stream: the sum's terms, and the norm on the way, if there is one."""

    term: tuple[float, str]
    stream: tuple[float, str]
    norm: str | None


@dataclass(frozen=True)
class Size:
    """Root mean square of what a sub-layer reads, and its output's at the + relative to the stream's (None: no +)."""

    read: float
    share: float | None


def sizes(
    model: SublayerPreTrainedModel, network: Network, batches: list[dict[str, Tensor]], keys: Collection[Key]
) -> dict[Key, Size]:
    """Measure some sub-layers on a sample."""
    branches = network.branches
    entries = {key: entry(network, branches[key]) for key in keys}
    wanted = {branches[key].args[0] for key in keys}
    wanted |= {value for e in entries.values() if e is not None for value in (e.term[1], e.stream[1])}
    square = _squares(model, network, batches, wanted)
    found = {}
    for key, where in entries.items():
        share = None
        if where is not None and square[where.stream[1]]:
            (c, term), (unit, stream) = where.term, where.stream
            share = abs(c / unit) * (square[term] / square[stream]) ** 0.5
        found[key] = Size(square[branches[key].args[0]] ** 0.5, share)
    return found


def calibrate(
    model: SublayerPreTrainedModel,
    network: Network,
    plan: Plan,
    before: dict[Key, Size],
    batches: list[dict[str, Tensor]],
) -> dict[str, float]:
    """Bring the sub-layers of a converted model to the sizes that they had.

    Args:
        network: the new wiring, with sub-layers numbered as in the old one.
        before: sizes in the old model.
        batches: the sample; there are two passes over it for each sub-layer.

    Returns:
        the parameters that were multiplied, by their names in the base model, each with its factor.
    """
    modules = places(model)
    factors: dict[str, float] = {}
    done: set[str] = set()
    for key, visit in network.branches.items():
        module = modules[visit.place]
        if key not in before or plan.branches[visit.place].source is None or visit.place in done:
            continue
        if not isinstance(module, Branch):
            continue
        done.add(visit.place)
        now = sizes(model, network, batches, [key])[key]
        names = {id(m): f"{visit.place}.{name}" for name, m in module.named_modules()}
        if now.read and _matters(before[key].read / now.read):
            for linear in module.inputs:
                factors |= _multiply(linear, names[id(linear)], before[key].read / now.read, weight_only=True)
        where = entry(network, visit)
        now = sizes(model, network, batches, [key])[key]
        wanted = before[key].share
        if where is None or wanted is None or not now.share or not _matters(wanted / now.share):
            continue
        if where.norm is None:
            factors |= _multiply(module.last, names[id(module.last)], wanted / now.share)
        elif where.norm not in done:
            done.add(where.norm)
            factors |= _multiply(modules[where.norm], where.norm, wanted / now.share)
    return factors


def entry(network: Network, visit: Visit) -> Entry | None:
    """The first + that the output of a sub-layer reaches; None where it meets no stream."""
    value, norm = visit.value, None
    while True:
        users = network.users[value]
        sums = [u for u in users if isinstance(u, Total) and u.stream not in (None, value)]
        if sums:
            c = {t: c for c, t in sums[0].terms}
            stream = sums[0].stream
            assert stream is not None
            return Entry((c[value], value), (c[stream], stream), norm)
        on = next((u for u in users if len(u.args) == 1 and u.value not in network.key), None)
        if on is None:
            return None
        if isinstance(on, Visit) and is_norm(on):
            norm = on.place
        value = on.value


def _matters(factor: float) -> bool:
    return factor > 0 and abs(factor - 1) > LEAST


def _multiply(module: nn.Module, name: str, factor: float, weight_only: bool = False) -> dict[str, float]:
    done = {}
    with torch.no_grad():
        for leaf, value in module.named_parameters(recurse=False):
            if leaf == "weight" or (leaf == "bias" and not weight_only):
                offset = 1 if leaf == "weight" and getattr(module, "zero_centred", False) else 0
                value.copy_((value.float() + offset) * factor - offset)
                done[f"{name}.{leaf}"] = factor
    return done


def _squares(
    model: SublayerPreTrainedModel, network: Network, batches: list[dict[str, Tensor]], wanted: set[str]
) -> dict[str, float]:
    """Mean square of some values of the unrolled network."""
    base: Any = model.base_model
    total: dict[str, float] = defaultdict(float)
    count: dict[str, int] = defaultdict(int)
    with ExitStack() as stack:
        stack.enter_context(evaluated(model))
        stack.enter_context(torch.no_grad())
        for name, part in base.named_modules():
            if isinstance(part, Wiring) and (names := network.names[name].items()):
                wanted_here = {own: value for own, value in names if value in wanted}
                if not wanted_here:
                    continue

                def tap(own: str, tensor: Tensor, wanted_here: dict[str, str] = wanted_here) -> Tensor:
                    if own in wanted_here:
                        total[wanted_here[own]] += float(tensor.double().square().sum())
                        count[wanted_here[own]] += tensor.numel()
                    return tensor

                stack.enter_context(part.tapped(tap))
        for batch in batches:
            given = {n: v.to(model.device) for n, v in batch.items() if n != "labels"}
            base(**given, use_cache=False)
    return {value: total[value] / max(1, count[value]) for value in wanted}
