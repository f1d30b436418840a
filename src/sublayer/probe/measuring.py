"""What is measured in one section, from the values of its equation: one code for every way of getting the values."""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sublayer.notation.graph import NORMS
from sublayer.notation.program import Add, Call, Section
from sublayer.probe import measures
from sublayer.probe.measures import Isotropy
from sublayer.probe.rogue import rogue_dimensions
from sublayer.probe.sums import equation, following_norm, kind, stream_name

Record = dict[str, Any]
Apply = Callable[[Call, Tensor], Tensor | None]  # the norm of a call, on another value; None where that cannot be done

NOTHING: Isotropy = dict.fromkeys(measures.ISOTROPY_MEASURES)


class IsotropyCache:
    """Isotropy of clouds seen a moment ago: the sum of one + is often the stream before the next."""

    def __init__(self) -> None:
        self._seen: deque[tuple[Tensor, Isotropy]] = deque(maxlen=8)

    def __call__(self, x: Tensor) -> Isotropy:
        for other, found in self._seen:
            if other.shape == x.shape and other.dtype == x.dtype and torch.equal(other, x):
                return found
        # Apple's GPUs have no float64
        found = measures.isotropy(x.cpu() if x.device.type == "mps" else x)
        self._seen.append((x, found))
        return found


@dataclass
class SectionMeasure:
    """Measures of one section.

    Args:
        layer: as the record has it: 0-based, -1 for embed, the depth for final.
        name: ``embed``, ``block`` or ``final``.
        section: the program.
        number, depth: what ``layer`` and ``depth`` are in its factors.
        isotropy: the measures of a cloud, kept for a while.
        apply: runs the norm of a call.
        full: also what `sl.probe` has beside the record of a study: the raw sum, each term by itself, the norms.
    """

    layer: int
    name: str
    section: Section
    number: int
    depth: int
    isotropy: IsotropyCache
    apply: Apply
    full: bool = False
    barred: set[str] = field(default_factory=set)  # sums that must not be measured, although their values are there

    def wanted(self) -> set[str]:
        """The values that `sums` and `norms` read."""
        section = self.section
        found = {value for step in section.sums for value in (step.value, *step.args)}
        found |= {norm.value for step in section.sums if (norm := following_norm(section, step.value))}
        found.add(dict(section.outputs)["x"])
        if self.full:
            for call in self._norms():
                found |= {call.value, *call.args}
        return found

    def sums(self, values: Mapping[str, Tensor]) -> list[Record]:
        """A record of each + whose values are there, each [n, d]."""
        return [self._sum(step, values) for step in self.section.sums if self.there(step, values)]

    def there(self, step: Add, values: Mapping[str, Tensor]) -> bool:
        """Whether a sum can be measured."""
        return step.value not in self.barred and all(v in values for v in (step.value, *step.args))

    def weighted(self, step: Add, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The terms of a sum with their factors."""
        return {v: scalar.value(self.number, self.depth) * values[v] for scalar, v in step.terms}

    def norm_behind(self, step: Add, values: Mapping[str, Tensor]) -> Call | None:
        """The norm that a sum is looked at through: the only reader of it, where there is one."""
        norm = following_norm(self.section, step.value)
        return norm if norm is not None and norm.value in values else None

    def clouds(self, step: Add, values: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor | None]]:
        """A sum, and for each term the sum without it, all through the norm that follows, where one does."""
        norm = self.norm_behind(step, values)
        weighted = self.weighted(step, values)
        after = values[step.value if norm is None else norm.value]
        return after, {v: self._without(weighted, v, norm) for v in step.args if v != step.stream}

    def _without(self, weighted: Mapping[str, Tensor], value: str, norm: Call | None) -> Tensor | None:
        rest = [v for other, v in weighted.items() if other != value]
        without = rest[0]
        for more in rest[1:]:
            without = without + more
        return without if norm is None else self.apply(norm, without)

    def _sum(self, step: Add, values: Mapping[str, Tensor]) -> Record:
        section = self.section
        norm = self.norm_behind(step, values)
        assert step.stream is not None
        weighted = self.weighted(step, values)
        stream = weighted[step.stream]
        terms = []
        for _, value in step.terms:
            if value == step.stream:
                continue
            without = self._without(weighted, value, norm)
            terms.append(
                {
                    "term": section.label(value),
                    "kind": kind(section, value),
                    "ratio": measures.term_ratio(weighted[value], stream),
                    "cosine": measures.cosine(weighted[value], stream),
                    "without": NOTHING if without is None else self.isotropy(without),
                }
            )
            if self.full:
                terms[-1] |= {
                    "norm": measures.stream_norm(weighted[value]),
                    "own": self.isotropy(weighted[value]),
                    "branch": branch.site.name if (branch := section.branch(value)) else None,
                }
        record = {
            "layer": self.layer,
            "section": self.name,
            "value": step.value,
            "stream": stream_name(section, step.stream),
            "equation": equation(section, step),
            "before": self.isotropy(values[step.stream]),
            "after": self.isotropy(values[step.value if norm is None else norm.value]),
            "terms": terms,
        }
        if self.full:
            record |= {
                "before_norm": measures.stream_norm(values[step.stream]),
                "sum": self.isotropy(values[step.value]),
                "sum_norm": measures.stream_norm(values[step.value]),
                "normed": norm.site.name if norm is not None else None,
                "from_input": step.stream in section.inputs,
            }
        return record

    def _norms(self) -> list[Call]:
        return [s for s in self.section.steps if isinstance(s, Call) and s.site.op in NORMS]

    def norms(self, values: Mapping[str, Tensor]) -> list[Record]:
        """Isotropy before and after each norm of the section whose values are there."""
        found = []
        for call in self._norms():
            if call.value in values and call.args[0] in values:
                found.append(
                    {
                        "layer": self.layer,
                        "section": self.name,
                        "norm": call.site.name,
                        "value": self.section.expression(call.value),
                        "before": self.isotropy(values[call.args[0]]),
                        "after": self.isotropy(values[call.value]),
                    }
                )
        return found


@dataclass
class Reduced:
    """What is left of one section when its values have been measured.

    Attributes:
        measure: which section it is.
        sums, norms: records.
        stream: of the stream that leaves the section: ``stream_norm``, and in full ``rogue`` and ``isotropy``.
        intervals: what a bootstrap made of it, if one was asked for.
    """

    measure: SectionMeasure
    sums: list[Record] = field(default_factory=list)
    norms: list[Record] = field(default_factory=list)
    stream: Record = field(default_factory=dict)
    intervals: Any = None


Bootstrap = Callable[[SectionMeasure, Mapping[str, Tensor]], Any]


def reduced(measure: SectionMeasure, values: Mapping[str, Tensor], bootstrap: Bootstrap | None = None) -> Reduced:
    """Measure one section: ``values`` by their names, each [n, d], those that are missing left out."""
    found = Reduced(measure, measure.sums(values))
    out = values.get(dict(measure.section.outputs)["x"])
    found.stream["stream_norm"] = measures.quartiles(torch.zeros(0)) if out is None else measures.stream_norm(out)
    if measure.full:
        found.norms = measure.norms(values)
        found.stream["rogue"] = rogue_dimensions(torch.zeros(0, 1) if out is None else out)
        found.stream["isotropy"] = NOTHING if out is None else measure.isotropy(out)
    if bootstrap is not None:
        found.intervals = bootstrap(measure, values)
    return found
