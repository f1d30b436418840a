"""Nothing is believed: the terms that were taken at a + must add up to the sum that was taken, and the norm behind it,
applied again, must give what the model has there."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from sublayer.notation.program import Add
from sublayer.probe.measuring import SectionMeasure
from sublayer.probe.sums import following_norm

LEAST = 1e-5  # relative error of a sum that is rounding in any type of number
NORMED = 1e-3  # of a norm that other kernels compute


def _tolerance(types: Iterable[torch.dtype], least: float) -> float:
    eps = max((torch.finfo(t).eps for t in types if t.is_floating_point), default=0.0)
    return max(4 * eps, least)


def wrong(
    measure: SectionMeasure,
    step: Add,
    values: Mapping[str, Tensor],
    types: Mapping[str, torch.dtype],
    lost: Mapping[str, str],
) -> str:
    """Why a + cannot be measured; empty if its terms were found and add up to it."""
    section = measure.section
    for value in (*step.args, step.value):
        if value in values:
            continue
        what = "the sum" if value == step.value else section.label(value)
        return f"{what} {lost.get(value, 'was not found in the run: it took another way')}"
    weighted = measure.weighted(step, values)
    shapes = {tuple(v.shape) for v in (*weighted.values(), values[step.value])}
    if len(shapes) > 1:
        return f"its terms have several shapes ({', '.join(map(str, sorted(shapes)))})"
    total = values[step.value].double()
    parts = [v.double() for v in weighted.values()]
    error = float((sum(parts[1:], parts[0]) - total).norm())
    size = sum(float(p.norm()) for p in parts)
    tolerance = _tolerance([types[v] for v in (*step.args, step.value)], LEAST)
    if not error <= tolerance * size:
        return (
            f"the terms that were found do not add up to the sum that was found (relative error "
            f"{error / size if size else float('nan'):.2g}, allowed {tolerance:.2g})"
        )
    return ""


def wrong_norms(
    measure: SectionMeasure, values: Mapping[str, Tensor], types: Mapping[str, torch.dtype]
) -> list[tuple[Add, str]]:
    """The sums behind which a norm stands that cannot be applied again, with the reason: a sum without a term could not
    be seen through it."""
    found = []
    for step in measure.section.sums:
        norm = following_norm(measure.section, step.value)
        if norm is None or step.value in measure.barred or norm.value not in values:
            continue
        again = measure.apply(norm, values[step.value])
        expected = values[norm.value].double()
        tolerance = _tolerance([types[norm.value], types[step.value]], NORMED)
        if again is not None and float((again.double() - expected).norm()) <= tolerance * float(expected.norm()):
            continue
        found.append(
            (
                step,
                "the norm behind it could not be applied to the sum without a term"
                if again is None
                else "the norm behind it, applied again, does not give what the model has there",
            )
        )
    return found
