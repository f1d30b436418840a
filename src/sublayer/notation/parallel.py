"""Sub-layers that can run together: those that read one value, and those whose outputs meet in one sum.

In ``h = norm(x); x = x + attn(h) + ffn(h)`` the two branches read one value, so their input products (queries, keys,
values and the FFN's way up) are one product; and their outputs are only ever added, so their output products are one
too: ``W_o c + W_2 a = [W_o | W_2] [c; a]``. Which calls run together is decided by the graph alone.
"""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

from sublayer.notation.assemble import plan
from sublayer.notation.program import Add, Call, Section, Site, Step
from sublayer.notation.scalar import ONE, Scalar

PRODUCTS = frozenset({"attn", "ffn"})  # operators that begin and end with a matrix product of their own
TOGETHER, PICK = "together", "pick"  # the ops of the two kinds of step that stand in for the calls


@dataclass(frozen=True)
class Term:
    """One branch in a sum: ``factor`` times the output of the group's call number ``call``."""

    call: int
    factor: Scalar


@dataclass(frozen=True)
class Group:
    """Calls that run together.

    Attributes:
        name: the sites' names joined, unlike any site's.
        calls: the calls in the order of the equation.
        args: the distinct values that they read.
        results: what comes out, in order: sums of two or more terms, and calls whose output is needed by itself.
    """

    name: str
    calls: tuple[Call, ...]
    args: tuple[str, ...]
    results: tuple[tuple[Term, ...], ...]

    @property
    def reads(self) -> tuple[int, ...]:
        """For each call, which of ``args`` it reads."""
        return tuple(self.args.index(call.args[0]) for call in self.calls)

    @property
    def factors(self) -> tuple[Scalar, ...]:
        """The factors of all terms in order; empty where all are 1."""
        factors = tuple(term.factor for result in self.results for term in result)
        return () if all(f.is_one for f in factors) else factors

    @property
    def products(self) -> str:
        """What is one product here, in words."""
        counts = Counter(self.reads).values()
        found = {"input": sum(n > 1 for n in counts), "output": sum(len(result) > 1 for result in self.results)}
        words = [f"{'one' if n == 1 else n} {kind} product{'s' * (n > 1)}" for kind, n in found.items() if n]
        return " and ".join(words)


@dataclass(frozen=True)
class Parallel:
    """A section with its groups: in ``section`` a step of op ``together`` stands for the calls of a group.

    Where a group has several results, steps of op ``pick`` take them apart; their site's name is the number.
    """

    section: Section
    groups: tuple[Group, ...]


@lru_cache(maxsize=1024)
def parallel(section: Section) -> Parallel:
    """Find the calls that run together, in as few groups as possible.

    Two groups become one if their calls read one value, or are terms of one sum and used nowhere else, provided that no
    call then waits for another of its own group, and that the attention calls still run in the order of the plain
    equation: the cache counts them.
    """
    calls = [s for s in section.steps if isinstance(s, Call) and s.site.op in PRODUCTS]
    home = {call.value: frozenset({call.value}) for call in calls}
    order = _attention_order(section, ())
    found = Parallel(section, ())
    for left, right in _pairs(section, calls):
        if home[left] == home[right]:
            continue
        joined = home[left] | home[right]
        trial = {**home, **dict.fromkeys(joined, joined)}
        candidate = _rewritten(section, [members for members in dict.fromkeys(trial.values()) if len(members) > 1])
        if candidate is not None and _attention_order(candidate.section, candidate.groups) == order:
            home, found = trial, candidate
    return found


def _pairs(section: Section, calls: list[Call]) -> list[tuple[str, str]]:
    """Calls with a reason to run together: in one sum first, then with one input."""
    sums: dict[str, list[str]] = {}
    inputs: dict[str, list[str]] = {}
    for call in calls:
        total = _only_sum(section, call.value)
        if total is not None:
            sums.setdefault(total.value, []).append(call.value)
        inputs.setdefault(call.args[0], []).append(call.value)
    return [(some[0], other) for some in (*sums.values(), *inputs.values()) for other in some[1:]]


def _only_sum(section: Section, value: str) -> Add | None:
    """The sum that alone reads a value, if that is so."""
    users = section.users[value]
    if len(users) != 1 or value in dict(section.outputs).values():
        return None
    return users[0] if isinstance(users[0], Add) and len(users[0].terms) > 1 else None


def _rewritten(section: Section, members: list[frozenset[str]]) -> Parallel | None:
    """The section with each set of calls as one step; None if some order of the steps is impossible."""
    groups: dict[frozenset[str], Group] = {}
    names: Counter[str] = Counter()
    new: dict[str, Step] = {}  # a sum's value -> the sum with its branches gathered
    standins: dict[str, list[Step]] = {}  # a call's value -> the steps that take its place
    for calls in members:
        group, totals = _group(section, calls, names)
        groups[calls] = group
        step = Call(f"{group.name}()", Site(group.name, TOGETHER), group.args)
        single = len(group.results) == 1
        picks: list[Step] = []
        for i, result in enumerate(group.results):
            value = group.calls[result[0].call].value if len(result) == 1 else f"{group.name}()[{i}]"
            if not single:
                picks.append(Call(value, Site(str(i), PICK), (step.value,)))
            if len(result) > 1:
                total, common = totals[i]
                inside = {group.calls[term.call].value for term in result}
                before = new.get(total.value, total)
                assert isinstance(before, Add)
                rest = [(c, t) for c, t in before.terms if t not in inside]
                at = next(n for n, (_, t) in enumerate(before.terms) if t in inside)
                rest.insert(at, (common, step.value if single else value))
                new[total.value] = Add(total.value, tuple(rest), total.stream)
        standins[group.calls[0].value] = [step, *picks]
    gone = frozenset().union(*members) if members else frozenset()
    steps: list[Step] = []
    for old in section.steps:
        if old.value in standins:
            steps += standins[old.value]
        elif old.value not in gone:
            steps.append(new.get(old.value, old))
    ordered = _in_order(section.inputs, steps)
    if ordered is None:
        return None
    draft = Section(section.inputs, tuple(ordered), section.outputs, ())
    return Parallel(
        Section(draft.inputs, draft.steps, draft.outputs, plan(draft)),
        tuple(groups.values()),
    )


def _group(
    section: Section, members: frozenset[str], names: Counter[str]
) -> tuple[Group, dict[int, tuple[Add, Scalar]]]:
    """The group of some calls, and for each of its sums the step it belongs to and the factor that all terms share."""
    calls = tuple(s for s in section.steps if isinstance(s, Call) and s.value in members)
    number = {call.value: i for i, call in enumerate(calls)}
    results: list[tuple[Term, ...]] = []
    totals: dict[int, tuple[Add, Scalar]] = {}
    done: set[str] = set()
    for call in calls:
        if call.value in done:
            continue
        total = _only_sum(section, call.value)
        terms = [] if total is None else [(c, t) for c, t in total.terms if t in members]
        if total is None or len(terms) < 2:
            results.append((Term(number[call.value], ONE),))
            continue
        # A factor that all terms share stays outside, where the equation has it.
        common = terms[0][0] if all(c == terms[0][0] for c, _ in terms) else ONE
        totals[len(results)] = total, common
        results.append(tuple(Term(number[t], ONE if common == c else c) for c, t in terms))
        done.update(t for _, t in terms)
    name = "_".join(call.site.name for call in calls)
    names[name] += 1
    name = name if names[name] == 1 else f"{name}__{names[name]}"
    return Group(name, calls, tuple(dict.fromkeys(call.args[0] for call in calls)), tuple(results)), totals


def _in_order(inputs: tuple[str, ...], steps: list[Step]) -> list[Step] | None:
    """The steps with each after what it reads, otherwise as they stand; None if they wait for each other."""
    ready, waiting, ordered = set(inputs), list(steps), []
    while waiting:
        step = next((s for s in waiting if all(a in ready for a in s.args)), None)
        if step is None:
            return None
        waiting.remove(step)
        ordered.append(step)
        ready.add(step.value)
    return ordered


def _attention_order(section: Section, groups: tuple[Group, ...]) -> list[str]:
    """The calls that keep something in the cache, in the order in which the printed code runs them."""
    inside = {group.name: group.calls for group in groups}
    order: list[str] = []

    def note(call: Call, args: list[str]) -> str:
        members = inside.get(call.site.name, (call,)) if call.site.op == TOGETHER else (call,)
        order.extend(each.value for each in members if each.site.op in ("attn", "dot"))
        return ""

    section.render(note)
    return order
