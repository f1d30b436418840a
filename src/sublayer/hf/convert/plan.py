"""What each module of the new wiring is made of, in terms of the modules of the old one."""

from collections.abc import Collection
from dataclasses import dataclass, field

from sublayer.hf.convert.factor import Factor
from sublayer.hf.convert.network import Network
from sublayer.notation.graph import BRANCHES, NORMS, PLAIN, WEIGHTLESS

ZERO = Factor(0.0)


@dataclass(frozen=True)
class NormPlan:
    """A norm: the norm of the old wiring whose affine part it takes (None: weight 1, bias 0), times ``out``."""

    source: str | None = None
    out: Factor = field(default_factory=Factor)


@dataclass(frozen=True)
class BranchPlan:
    """A sub-layer: the old one whose weights it takes (None: newly initialised), and what is folded into them.

    With ``fold`` its input products read ``inside * weight * z + shift * bias`` in place of z, where weight and bias
    are those of the old norm ``fold``; without, ``inside * z``. Its output is multiplied by ``out``, 0 where a new
    sub-layer is to add nothing yet.
    """

    source: str | None = None
    inside: Factor = field(default_factory=Factor)
    fold: str | None = None
    shift: Factor = field(default_factory=Factor)
    out: Factor = field(default_factory=Factor)


@dataclass
class Plan:
    """The plan of every place of the new wiring.

    ``params`` names the parameters of the old model's places, ``homes`` those of the new one's.
    """

    params: Collection[str]
    homes: Collection[str]
    norms: dict[str, NormPlan] = field(default_factory=dict)
    branches: dict[str, BranchPlan] = field(default_factory=dict)
    factors: dict[str, Factor] = field(default_factory=dict)

    def factor_of(self, place: str) -> Factor:
        """What a scale or gate of the new wiring multiplies by."""
        return self.factors[place]


def same(network: Network, params: Collection[str]) -> Plan:
    """The plan of a model that stays as it is: every place is made of itself."""
    plan = Plan(params, params)
    for visit in network.visits((*BRANCHES, *NORMS, *PLAIN)):
        if visit.op in NORMS:
            plan.norms[visit.place] = NormPlan(visit.place)
        elif visit.op in BRANCHES:
            plan.branches[visit.place] = BranchPlan(visit.place)
        elif visit.op not in WEIGHTLESS:
            plan.factors[visit.place] = Factor(1.0, (f"{visit.place}.weight",))
    return plan
