"""Whether two wirings compute the same: both are evaluated with symbols, and equal values have equal numbers.

A value is a weighted sum of atoms; an atom is the embedding, the output of a sub-layer or of a norm without its affine
part, or a bias, and what it is computed from is part of it. Weights, biases and learned factors are symbols named after
the parameters of the old model, so a fold into a product and the norm that it came from come to the same value.
"""

from typing import Literal

from sublayer.hf.convert.network import BLIND, Network, Visit
from sublayer.hf.convert.plan import Plan, same
from sublayer.notation.graph import NORMS, WEIGHTLESS

Term = tuple[tuple[str, ...], int]  # learned vectors that multiply, sorted, and the atom
Value = dict[Term, float]

Proof = Literal["exact", "up to eps", "none"]
TINY = 1e-12  # what is left where two terms cancel


def prove(before: Network, after: Network, plan: Plan) -> Proof:
    """Compare the outputs of both wirings, with the parameters of the old model as symbols.

    Returns:
        "exact" if they are equal in real numbers; "up to eps" if they would be with norms whose eps is 0, so that a
        norm does not see the size of what it reads and a norm of a normed value changes nothing; else "none", which
        says that no proof was found.
    """
    steps: tuple[tuple[Proof, bool], ...] = (("exact", False), ("up to eps", True))
    for verdict, blind in steps:
        table = _Table(plan, blind)
        if table.output(before, same(before, plan.params)) == table.output(after, plan):
            return verdict
    return "none"


class _Table:
    """Atoms by what they are; the two wirings share one table."""

    def __init__(self, plan: Plan, blind: bool) -> None:
        self.params, self.blind = plan.params, blind
        self.numbers: dict[object, int] = {}
        self.atoms: list[object] = []

    def atom(self, what: object) -> int:
        if what not in self.numbers:
            self.numbers[what] = len(self.atoms)
            self.atoms.append(what)
        return self.numbers[what]

    def output(self, network: Network, plan: Plan) -> object:
        values: dict[str, Value] = {"e": {((), self.atom("e")): 1.0}}
        for step in network.steps:
            if isinstance(step, Visit):
                values[step.value] = self.visit(step, values[step.args[0]], plan)
            else:
                total: Value = {}
                for c, term in step.terms:
                    _add(total, values[term], c)
                values[step.value] = total
        return _frozen(values[network.output])

    def visit(self, visit: Visit, read: Value, plan: Plan) -> Value:
        if visit.op in NORMS:
            return self.norm(visit, read, plan)
        if visit.place in plan.branches:
            return self.branch(visit, read, plan)
        if visit.place in plan.factors:
            factor = plan.factors[visit.place]
            return _times(read, factor.number, factor.names)
        return read  # stop

    def norm(self, visit: Visit, read: Value, plan: Plan) -> Value:
        source, out = plan.norms[visit.place].source, plan.norms[visit.place].out
        weight, bias, alpha = (f"{source}.{leaf}" for leaf in ("weight", "bias", "alpha"))
        owner = (alpha if alpha in self.params else "new") if visit.op == "dyt" else ""
        there = {leaf for leaf in ("weight", "bias") if f"{visit.place}.{leaf}" in plan.homes}
        affine = out.names + ((weight,) if weight in self.params and "weight" in there else ())
        # 0 stays 0: there is an eps below the root, and tanh(0) is 0.
        result = _times(self.core(visit.op, owner, read), out.number, affine) if read else {}
        if bias in self.params and "bias" in there:
            _add(result, {(out.names, self.atom(("bias", bias))): 1.0}, out.number)
        return result

    def core(self, op: str, owner: str, read: Value) -> Value:
        """A norm without its affine part."""
        if self.blind and op in BLIND:
            first = min(read, key=lambda term: (term[0], term[1]))
            read = _times(read, 1 / abs(read[first]))
            if len(read) == 1:
                ((names, number),) = read
                inner = self.atoms[number]
                # Its mean is 0 and its mean square 1 already.
                settled = isinstance(inner, tuple) and inner[0] in BLIND and inner[0] in (op, "layernorm")
                if settled and not names and read[names, number] > 0:
                    return read
        return {((), self.atom((op, owner, _frozen(read)))): 1.0}

    def branch(self, visit: Visit, read: Value, plan: Plan) -> Value:
        made = plan.branches[visit.place]
        if not made.out.number:
            return {}
        inner = made.inside
        names = inner.names
        read = dict(read)
        if made.fold is not None:
            weight, bias = f"{made.fold}.weight", f"{made.fold}.bias"
            names += (weight,) if weight in self.params else ()
        read = _times(read, inner.number, names)
        if made.fold is not None and bias in self.params and made.shift.number:
            _add(read, {(made.shift.names, self.atom(("bias", bias))): 1.0}, made.shift.number)
        # A weightless operator has no owner: two calls on one value are one value.
        owner = "" if visit.op in WEIGHTLESS else made.source if made.source is not None else f"new {visit.place}"
        atom = self.atom((visit.op, owner, _frozen(read)))
        return _times({((), atom): 1.0}, made.out.number, made.out.names)


def _add(total: Value, value: Value, c: float) -> None:
    for term, number in value.items():
        total[term] = total.get(term, 0.0) + c * number
        if abs(total[term]) < TINY:
            del total[term]


def _times(value: Value, number: float, names: tuple[str, ...] = ()) -> Value:
    return {(tuple(sorted(old + names)), atom): c * number for (old, atom), c in value.items() if number}


def _frozen(value: Value) -> tuple[tuple[Term, str], ...]:
    """The value as a key; numbers count to 10 digits, since factors were divided and multiplied on the way."""
    return tuple(sorted((term, f"{c:.9e}") for term, c in value.items()))
