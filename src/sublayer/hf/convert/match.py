"""Which module of the old wiring serves which place of the new one.

Sub-layers go by what they are in their layer, in order: the first attention to the first, the second FFN to the second.
Norms go by what they read and who reads them:

- one that only sub-layers read belongs to them. It takes the affine part of the norm that they read from before,
  wherever that stood; where they read from different ones, it takes none and each sub-layer gets its own folded into
  its input products.
- one on the stream, at a sub-layer's output or at the end takes that of the norm that read the same content before:
  the embedding and the same sub-layers' outputs.
- where no norm serves, or the value has passed that very norm already, weight 1 and bias 0.

Scales and gates go by the content they multiply. A factor that the new wiring lacks or has too much is folded into the
product before it.
"""

from collections.abc import Collection

from sublayer.hf.convert.factor import Factor
from sublayer.hf.convert.network import FactorOf, Key, Network, Step, Visit, Way, is_norm
from sublayer.hf.convert.plan import ZERO, BranchPlan, NormPlan, Plan
from sublayer.notation.graph import BRANCHES, NORMS

# Sub-layers whose input and output are products, into which factors and affine parts can be folded.
PRODUCTS = frozenset({"attn", "ffn"})


def match(
    before: Network, after: Network, params: Collection[str], homes: Collection[str], biased: Collection[str]
) -> Plan:
    """The plan that keeps the function closest by structure alone.

    Args:
        before, after: the unrolled wirings.
        params, homes: names of the parameters of the old and of the new model's places.
        biased: places of the old model whose input products all have a bias.
    """
    return _Matcher(before, after, Plan(params, homes), biased).plan


class _Matcher:
    def __init__(self, before: Network, after: Network, plan: Plan, biased: Collection[str]) -> None:
        self.before, self.after, self.biased = before, after, biased
        self.plan = plan
        after.align(before)
        self.old, self.new = before.branches, after.branches
        self.common = set(self.old) & set(self.new)
        self.taken: dict[str, str | None] = {}  # norm visit of the new wiring -> norm visit of the old one
        self.norms_before = list(before.visits(NORMS))
        self._branches()
        self._factors()
        for visit in after.visits(NORMS):
            self._norm(visit)
        self._folds()

    # --- sub-layers -------------------------------------------------------------------------------------------------

    def _branches(self) -> None:
        for key, visit in self.new.items():
            old = self.old.get(key)
            source = old.place if old is not None and old.op == visit.op else None
            self.plan.branches.setdefault(visit.place, BranchPlan(source))

    def _matched(self, visit: Visit) -> Visit | None:
        """The visit of the old wiring that does the same job, if this place took its weights."""
        old = self.old.get(self.after.key[visit.value])
        if old is None or self.plan.branches[visit.place].source != old.place or old.op != visit.op:
            return None
        return old

    def _content(self, network: Network, value: str) -> frozenset[Key | str]:
        """The content of a value, of which only what both wirings have can be compared."""
        return network.content[value] & (self.common | {"e"})

    # --- scales and gates -------------------------------------------------------------------------------------------

    def _old_factor(self, place: str) -> Factor:
        return Factor(1.0, (f"{place}.weight",))

    def _factors(self) -> None:
        used: set[str] = set()
        for visit in self.after.visits(("scale", "gate")):
            if visit.place in self.plan.factors:
                continue
            (arg,) = visit.args
            fitting = [
                old
                for old in self.before.visits(("scale", "gate"))
                if old.place not in used
                and visit.op in (old.op, "scale")  # a number can serve as a vector, not the other way round
                and self._content(self.before, old.args[0]) == self._content(self.after, arg)
                and self._content(self.after, arg)
                and self.before.private(old.value) == self.after.private(visit.value)
            ]
            if fitting:
                height = self.after.height[arg]
                best = min(fitting, key=lambda o: (o.op != visit.op, abs(self.before.height[o.args[0]] - height)))
                used.add(best.place)
                self.plan.factors[visit.place] = self._old_factor(best.place)
            else:
                self.plan.factors[visit.place] = ZERO if self._only_new(arg) else Factor()

    def _only_new(self, value: str) -> bool:
        """Whether a value is the output of newly initialised sub-layers alone."""
        keys = [k for k in self.after.content[value] if not isinstance(k, str)]
        places = [self.new[k].place for k in keys]
        return "e" not in self.after.content[value] and all(
            self.plan.branches[p].source is None and self.new[k].op in PRODUCTS
            for p, k in zip(places, keys, strict=True)
        )

    # --- norms ------------------------------------------------------------------------------------------------------

    def _norm(self, visit: Visit) -> None:
        private = self.after.private(visit.value)
        chosen = self._for_readers(visit) if private else self._for_content(visit)
        if chosen is None and not private:
            wanted = {v.value: v for v in self._wanted(visit) if v is not None}
            if len(wanted) == 1 and not any(self.before.private(value) for value in wanted):
                chosen = next(iter(wanted.values()))
        passed = {self.taken.get(above) for above in self.after.above[visit.args[0]]}
        if chosen is not None and (chosen.value in passed or self._left_to_next(visit, chosen)):
            chosen = None  # that affine part has been applied on the way, or will be
        self.taken[visit.value] = chosen.value if chosen is not None else None
        if chosen is not None and self.plan.norms.get(visit.place, NormPlan()).source is None:
            self.plan.norms[visit.place] = NormPlan(chosen.place)
        self.plan.norms.setdefault(visit.place, NormPlan())

    def _left_to_next(self, visit: Visit, chosen: Visit) -> bool:
        """Whether nothing but norms that want the same old one reads a norm: then the last of them takes it, because
        a norm of a normed value without affine part changes nothing."""
        ends = [way.end for way in self.after.ways(visit.value, self.plan.factor_of)]
        next_norms = [end for end in ends if isinstance(end, Visit) and is_norm(end)]
        return bool(ends) and len(next_norms) == len(ends) and all(self._for_content(n) == chosen for n in next_norms)

    def _wanted(self, visit: Visit) -> list[Visit | None]:
        """For each sub-layer that reads the norm, the norm that it read from before."""
        found = []
        for reader in self.after.readers(visit.value):
            old = self._matched(reader)
            if old is not None:
                found.append(self._read_norm(old))
        return found

    def _read_norm(self, old: Visit) -> Visit | None:
        step = self.before.step.get(self.before.chain(old.args[0], self._old_factor)[1])
        return step if isinstance(step, Visit) and is_norm(step) else None

    def _for_readers(self, visit: Visit) -> Visit | None:
        wanted = self._wanted(visit)
        if len({w.place if w else None for w in wanted}) <= 1:
            return wanted[0] if wanted else None
        if all(self._foldable(r) for r in self.after.readers(visit.value)):
            return None
        return next(w for w in wanted if w is not None)

    def _foldable(self, reader: Visit) -> bool:
        old = self._matched(reader)
        norm = self._read_norm(old) if old is not None else None
        if old is None or norm is None:
            return True
        return old.op in PRODUCTS and (f"{norm.place}.bias" not in self.plan.params or old.place in self.biased)

    def _for_content(self, visit: Visit) -> Visit | None:
        """The old norm of the same content. One that belonged to sub-layers stays theirs: it is folded into them."""
        content = self._content(self.after, visit.args[0])
        fitting = [o for o in self.norms_before if content and self._content(self.before, o.args[0]) == content]
        if not fitting:
            return None
        height = self.after.height[visit.args[0]]
        best = min(
            fitting,
            key=lambda o: (
                self.before.private(o.value),
                abs(self.before.height[o.args[0]] - height),
                o.op != visit.op,
                abs(self.before.layer(o.place) - self.after.layer(visit.place)),
                o.value in self.taken.values(),  # of twins, the second goes to the second
            ),
        )
        return None if self.before.private(best.value) else best

    # --- what is folded into products -------------------------------------------------------------------------------

    def _folds(self) -> None:
        visits: dict[str, list[Visit]] = {}
        for visit in self.after.visits(BRANCHES):
            visits.setdefault(visit.place, []).append(visit)
        for place, calls in visits.items():
            made = {self._fold(visit) for visit in calls}
            if len(made) == 1:  # calls that share parameters must agree
                self.plan.branches[place] = made.pop()
        for visit in self.after.visits(NORMS):
            made_of = self.plan.norms[visit.place]
            taken = self.taken[visit.value]
            if f"{made_of.source}.weight" not in self.plan.params or f"{visit.place}.weight" not in self.plan.homes:
                continue  # nothing there to multiply
            if taken is not None and not self.after.private(visit.value):
                ratio = self._out_ratio(taken, visit.value)
                self.plan.norms[visit.place] = NormPlan(made_of.source, ratio)

    def _fold(self, visit: Visit) -> BranchPlan:
        source = self.plan.branches[visit.place].source
        if source is None:
            return BranchPlan(None, out=ZERO if self._adds_nothing(visit) else Factor())
        old = self._matched(visit)
        if old is None or visit.op not in PRODUCTS:
            return BranchPlan(source)
        old_factor, _ = self.before.chain(old.args[0], self._old_factor)
        new_factor, new_base = self.after.chain(visit.args[0], self.plan.factor_of)
        inside = old_factor.over(new_factor) or Factor()
        out = self._out_ratio(old.value, visit.value)
        norm, here = self._read_norm(old), self.after.step.get(new_base)
        has_norm = here is not None and is_norm(here)
        lost = norm is not None and self.before.private(norm.value) and (not has_norm or self._blank(here))
        if norm is None or not lost:
            return BranchPlan(source, inside, out=out)
        biased = source in self.biased
        return BranchPlan(source, inside, norm.place, old_factor if biased else ZERO, out)

    def _blank(self, norm: Step | None) -> bool:
        return isinstance(norm, Visit) and self.plan.norms[norm.place].source is None

    def _adds_nothing(self, visit: Visit) -> bool:
        """Whether a new sub-layer should start with output 0: where all it does is to be added to something else,
        unless a new scale or gate of 0 sees to that."""
        ways = self._through_norms(self.after.ways(visit.value, self.plan.factor_of))
        sums = all(way.end is not None and len(way.end.args) > 1 for way in ways)
        return bool(ways) and sums and all(way.factor.number for way in ways) and visit.op in PRODUCTS

    def _through_norms(self, ways: list[Way]) -> list[Way]:
        found: list[Way] = []
        for way in ways:
            if way.end is not None and is_norm(way.end):
                found += self._through_norms(self.after.ways(way.end.value, self.plan.factor_of))
            else:
                found.append(way)
        return found

    def _out_ratio(self, old: str, new: str) -> Factor:
        """What the output must be multiplied by so that it counts as much as before, where that is one number."""
        before = _factors(self.before, old, self._old_factor)
        after = _factors(self.after, new, self.plan.factor_of)
        if before == after or len(before) != 1 or len(after) != 1:
            return Factor()
        return before.pop().over(after.pop()) or Factor()


def _factors(network: Network, value: str, factor_of: FactorOf) -> set[Factor]:
    return {Factor(float(f"{w.factor.number:.12e}"), w.factor.names) for w in network.ways(value, factor_of)}
