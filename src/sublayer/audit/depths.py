"""What depends on the number of layers: told by building the same config with other numbers of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sublayer.audit.stack import StackReading

Factors = dict[str, dict[tuple[int, int], tuple[float, ...]]]  # template -> (layer, depth) -> factors

MOST_RUNS = 4  # ranges of a design whose bounds are worth a look at other depths
SHALLOW = 16
DEEP = 100  # a depth at which a whole percentage is a whole number of layers


@dataclass
class Elsewhere:
    """The same stack at other depths.

    Attributes:
        factors: of its layers, by the template they stand in.
        bounds: depth -> the layers at which its runs of equal templates begin.
    """

    factors: Factors = field(default_factory=dict)
    bounds: dict[int, list[int]] = field(default_factory=dict)

    def add(self, stack: StackReading) -> None:
        depth = len(stack.layers)
        self.bounds[depth] = starts([layer.pattern for layer in stack.layers])
        for i, layer in enumerate(stack.layers):
            if layer.factors:
                self.factors.setdefault(layer.template, {})[i + 1, depth] = layer.factors


def starts(texts: Sequence[str]) -> list[int]:
    """The places at which a run of equal texts begins."""
    return [i for i, text in enumerate(texts) if i == 0 or text != texts[i - 1]]


def other_depths(stacks: Sequence[StackReading]) -> Callable[[Mapping[int, list[int]]], list[int]] | None:
    """Which depths to look at: none if nothing could depend on the depth."""
    depth = max(len(s.layers) for s in stacks)
    factors = any(f != 1.0 for s in stacks for layer in s.layers for f in layer.factors)
    counts = [len(starts([layer.pattern for layer in s.layers])) for s in stacks]
    ranges = any(1 < n <= MOST_RUNS for n in counts)
    if not factors and not ranges:
        return None

    def following(seen: Mapping[int, list[int]]) -> list[int]:
        """The next depths, given the bounds of the main stack at those seen so far."""
        if len(seen) == 1:
            # A shallower model is cheaper, unless there is little room for ranges in it.
            if factors and not ranges:
                return [depth // 2, depth // 2 + 1] if depth > SHALLOW else [depth + 1, depth + 3]
            return [depth // 2 if depth > SHALLOW else 2 * depth, *([depth + 1] if factors else [])]
        bounds = [seen[d] for d in sorted(seen)]
        same = len({len(b) for b in bounds}) == 1
        moved = same and ranges and not all(_fixed(seen, j) for j in range(1, len(bounds[0])))
        return [DEEP] if moved and DEEP not in seen and depth < DEEP else []

    return following


def _fixed(seen: Mapping[int, list[int]], j: int) -> bool:
    return len({b[j] for b in seen.values()}) == 1 or len({d - b[j] for d, b in seen.items()}) == 1


def bound(seen: Mapping[int, int], depth: int) -> str:
    """One end of a layer range as the notation writes it: an index, one from the end, or a percentage.

    Args:
        seen: depth -> the layer at which the range begins there.
        depth: the depth of the model that is audited.
    """
    here = seen[depth]
    if len(set(seen.values())) == 1:
        return str(here)
    if len({d - b for d, b in seen.items()}) == 1:
        return str(here - depth)
    for step in (25, 20, 10, 5, 1):
        for percent in range(step, 100, step):
            if all(percent * d // 100 == b for d, b in seen.items()):
                return f"{percent}%"
    return str(here)
