"""What depth does to a wiring with fresh weights: growth of the stream, and the gradient from layer to layer.

A mean-field estimate from the equation alone (`sublayer.audit.meanfield`), without weights. It rests on this: norms
divide by the RMS; a sub-layer's output is unrelated to the stream; attention with fresh scores is close to an average
over the positions, which makes them alike (Noci et al. 2022, 2206.03126).

Held by the tests to real backward passes of ten designs (width 64, 12 and 48 layers, matrices with the gain that they
have in a base-size model): the growth within a factor of 1.5, both gradient ratios within a factor of 3. Where matrices
have gain 1 (Xavier) deep post-norm stacks are off by more. It says nothing of trained weights.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sublayer.audit.meanfield import Fresh, Maps, State, Tape
from sublayer.audit.result import Stack
from sublayer.notation import Design, DesignError
from sublayer.notation.graph import BRANCHES, NORMS
from sublayer.notation.numbers import ScalarError
from sublayer.notation.program import Call, Section


@dataclass(frozen=True)
class DepthForecast:
    """The forecast at one depth.

    Attributes:
        depth: number of layers.
        growth: RMS of the stream ``x`` as it leaves the last layer over that as it leaves the first.
        gradient: RMS of the loss's gradient with respect to the matrices of the first layer's sub-layers, over that of
            the last layer's: what training logs show as gradient norm per layer. None where the last layer gets none.
        stream_gradient: the same of the gradient with respect to the streams as they leave the first and last layer.
        untouched: paths from the streams that leave the last layer to those that enter the first which pass no norm and
            no sub-layer; exact.
        paths: all such paths, one choice at each term of each sum; exact.
        verdict: what follows, in words.
    """

    depth: int
    growth: float
    gradient: float | None
    stream_gradient: float | None
    untouched: int
    paths: int
    verdict: str


@dataclass(frozen=True)
class Forecast:
    """Forecasts of one design at several depths; ``skipped`` are depths that its ranges or factors do not fit."""

    design: Design
    fresh: Fresh
    depths: tuple[DepthForecast, ...]
    skipped: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form: path counts as text, since they pass what a double holds; infinities as null."""
        rows = [
            {k: str(v) if k in ("untouched", "paths") else _finite(v) for k, v in asdict(row).items()}
            for row in self.depths
        ]
        return {"design": str(self.design), "fresh": asdict(self.fresh), "depths": rows, "skipped": list(self.skipped)}

    def __str__(self) -> str:
        head = ("layers", "stream grows", "gradient first/last", "of the stream", "untouched paths", "of")
        rows = [
            (
                str(d.depth),
                _short(d.growth),
                _short(d.gradient),
                _short(d.stream_gradient),
                _count(d.untouched),
                _count(d.paths),
            )
            for d in self.depths
        ]
        widths = [max(len(r[i]) for r in (head, *rows)) for i in range(len(head))]
        lines = ["  ".join(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True)) for row in (head, *rows)]
        lines += [f"{d.depth} layers: {d.verdict}" for d in self.depths]
        lines += [f"{n} layers: the design's ranges or factors do not fit this depth" for n in self.skipped]
        return "\n".join(lines)


def fresh_of(stack: Stack) -> Fresh:
    """What a reading knows of a model's fresh weights: its widths, its FFN's activation, its eps.

    How the weights are drawn, the length and the mask are not read; they stay as in a base-size GPT-2.
    """
    known: dict[str, Any] = {"width": stack.width} if stack.width else {}
    ffn = next((b.details for layer in stack.layers for b in layer.branches if b.op == "ffn"), {})
    known |= {name: ffn[name] for name in ("ratio", "gated", "activation") if ffn.get(name)}
    eps = {norm.eps for layer in stack.layers for norm in layer.norms if norm.eps}
    if len(eps) == 1:
        known["eps"] = eps.pop()
    return Fresh(**known)


def forecast(
    design: Design,
    depths: Sequence[int] = (12, 48, 96),
    *,
    fresh: Fresh | None = None,
    branch_gains: Mapping[str, float] | None = None,
) -> Forecast:
    """Growth, gradient ratios and path counts of a design at several depths.

    Args:
        design: the wiring.
        depths: numbers of layers.
        fresh: statistics of the fresh weights; default: a base-size GPT-2.
        branch_gains: for an operator (``attn``, ``ffn``, ...) the RMS of what it writes where it reads values of RMS 1
            that are the same at all positions; measured on a model, in place of what ``fresh`` says.

    Raises:
        DesignError: the design fits none of the depths.
    """
    fresh = fresh or Fresh()
    rows: list[DepthForecast] = []
    skipped: list[int] = []
    for depth in depths:
        try:
            if not _fits(design, depth):
                raise ScalarError("the ranges do not tile the depth")
            with np.errstate(all="ignore"):
                rows.append(_at_depth(design, depth, fresh, branch_gains or {}))
        except ScalarError:
            skipped.append(depth)
    if not rows:
        raise DesignError(f"the design's ranges and factors fit none of the depths {', '.join(map(str, depths))}")
    return Forecast(design, fresh, tuple(rows), tuple(skipped))


def _fits(design: Design, depth: int) -> bool:
    if depth < 1:
        return False
    covered = 0  # as Design.check_depth, without looking at every scalar
    for start, stop in sorted(layers.resolve(depth) for layers in design.ranges):
        if start != covered or stop < start:
            return False
        covered = stop
    return covered == depth


def _at_depth(design: Design, depth: int, fresh: Fresh, gains: Mapping[str, float]) -> DepthForecast:
    embed, final = design.section("embed"), design.section("final")
    layers: list[Section] = []  # Design.layer checks the whole depth at each call
    for where, section in sorted(design.blocks, key=lambda item: item[0].resolve(depth)):
        start, stop = where.resolve(depth)
        layers += [section] * (stop - start)
    maps = Maps(fresh, gains, depth)
    size = (fresh.std if fresh.embedding is None else fresh.embedding) ** 2
    state = State(("e",), np.array([[[size, 0.0]]]))
    tapes: list[Tape] = []
    sizes: list[float] = []
    for k, section in enumerate((embed, *layers, final)):
        tape = Tape(section, maps, k if 0 < k <= depth else 0, depth)
        state = tape.forward(state)
        tapes.append(tape)
        sizes.append(math.sqrt(max(state.same("x"), 0.0)))
    # A loss at every position that knows nothing of the others: a gradient of one size, unrelated between positions.
    back = State(("x",), np.array([[[1.0, 0.0]]]))
    on_streams = [0.0] * (depth + 2)
    on_weights = [0.0] * (depth + 2)
    for k in range(depth + 1, -1, -1):
        on_streams[k] = sum(back.same(n) for n in back.names if n != "e")
        back = tapes[k].backward(back)
        on_weights[k] = tapes[k].weight_gradient
    growth = sizes[depth] / sizes[1] if sizes[1] else math.nan
    gradient, on_stream = _ratio(on_weights, depth), _ratio(on_streams, depth)
    untouched, paths = _paths(layers, final)
    verdict = _verdict(growth, gradient, untouched)
    return DepthForecast(depth, growth, gradient, on_stream, untouched, paths, verdict)


def _ratio(squares: Sequence[float], depth: int) -> float | None:
    first, last = squares[1], squares[depth]
    return math.sqrt(first / last) if last > 0 and first >= 0 else None


# --- paths and words ----------------------------------------------------------------------------------------------


def _paths(layers: Sequence[Section], final: Section) -> tuple[int, int]:
    """Paths from the streams that the final section reads to those that enter the first layer: (untouched, all)."""
    totals = []
    for touching in (False, True):
        counts = {name: 1 for name in final.inputs if name != "e"}
        for section in reversed(layers):
            here = dict.fromkeys((*section.inputs, *section.step), 0)
            for stream, value in section.outputs:
                here[value] += counts.get(stream, 0)
            here["e"] = here.get("e", 0) + counts.get("e", 0)
            for step in reversed(section.steps):
                touches = isinstance(step, Call) and (step.site.op in BRANCHES or step.site.op in NORMS)
                for term in step.args if touching or not touches else ():
                    here[term] += here[step.value]
            counts = {name: here[name] for name in (*section.inputs, "e")}
        totals.append(sum(counts.values()))
    return totals[0], totals[1]


def _verdict(growth: float, gradient: float | None, untouched: int) -> str:
    """The numbers of one depth in words."""
    if gradient is None:
        first = "no gradient reaches the weights of the last layer's sub-layers at first (a gate or a stop is shut)"
    elif not math.isfinite(gradient) or gradient > 100:
        first = f"the first layer's gradient explodes: {_short(gradient)} times the last layer's"
    elif gradient < 0.01:
        first = f"the gradient vanishes on its way: the first layer gets {_short(gradient)} of what the last one gets"
    elif gradient > 4 or gradient < 0.25:
        first = f"gradients are uneven: the first layer gets {_short(gradient)} times what the last one gets"
    else:
        first = "gradients are of like size in all layers"
    if not math.isfinite(growth) or growth > 100:
        second = "the stream explodes"
    elif growth > 1.5:
        second = f"the stream grows {_short(growth)} times, so that later layers change it less"
    elif growth < 2 / 3:
        second = f"the stream shrinks to {_short(growth)} of its size"
    else:
        second = "the stream keeps its size"
    third = (
        "no path passes all layers untouched" if not untouched else "the input has an untouched path through all layers"
    )
    return f"{first}; {second}; {third}"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}" if value < 10 or value >= 1000 else f"{value:.0f}"


def _count(value: int) -> str:
    """A path count of at most eight characters: 531441, 7.9e+28."""
    if value < 10**7:
        return str(value)
    low = max(value.bit_length() - 60, 0)
    power = math.log10(value >> low) + low * math.log10(2)
    digits = f"{10 ** (power % 1):.1f}"
    return f"1.0e+{int(power) + 1}" if digits == "10.0" else f"{digits}e+{int(power)}"
