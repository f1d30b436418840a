"""What moved between two layers, in words: from where sub-layers stand, never from names of designs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sublayer.audit import changes, phrases
from sublayer.audit.phrases import SPOKEN
from sublayer.audit.sides import Layer
from sublayer.notation.explain import Placement
from sublayer.notation.graph import NORMS
from sublayer.notation.program import Call, Section

MIXES_PLACES = frozenset({"attn", "dot", "mixer"})
MIXES_CHANNELS = frozenset({"ffn", "moe"})


def between(a: Layer, b: Layer, width_a: int = 0, width_b: int = 0) -> list[str]:
    """Phrases that say how layer ``b`` differs from layer ``a``; empty if nothing that is known differs.

    Raises nothing; both equations must be known.
    """
    found: list[str] = []
    if a.equation != b.equation:
        found += _wiring(a, b)
    if a.facts is not None and b.facts is not None:
        found += changes.between(a.facts, b.facts, width_a, width_b, rewired=a.equation != b.equation)
    if a.equation != b.equation and not found:
        found.append("the sums are wired otherwise")
    return list(dict.fromkeys(found))


# --- wiring -------------------------------------------------------------------------------------------------------


def _wiring(a: Layer, b: Layer) -> list[str]:
    pairs, gone, new = _pairs(a.placements, b.placements)
    spoken = _names([*a.placements, *b.placements])
    found = []
    for was, now in pairs:
        if was.op != now.op:
            found.append(f"{SPOKEN[was.op]} became {_article(SPOKEN[now.op])}")
    found += [f"{spoken[p.site]} is gone" for p in gone]
    found += [f"{spoken[p.site]} is new ({p})" for p in new]
    for was, now in pairs:
        found += _norm_moves(spoken[now.site], was, now)
    found += _together(pairs, spoken)
    if not gone and not new:
        found += _order(pairs, a.placements, spoken)
    for was, now in pairs:
        found += _residual(spoken[now.site], was, now)
        found += _scaling(spoken[now.site], was.scaling, now.scaling)
    found = _merged(found)
    if a.section is not None and b.section is not None:
        found += _sections(a.section, b.section, quiet=bool(found))
    return found


def _pairs(
    a: Sequence[Placement], b: Sequence[Placement]
) -> tuple[list[tuple[Placement, Placement]], list[Placement], list[Placement]]:
    """Sub-layers that belong together: the k-th of an operator with the k-th, then those left over of one task."""
    left, right = list(a), list(b)
    pairs: list[tuple[Placement, Placement]] = []

    def take(alike: Any) -> None:
        for was in list(left):
            now = next((p for p in right if alike(was, p)), None)
            if now is not None:
                pairs.append((was, now))
                left.remove(was)
                right.remove(now)

    take(lambda was, now: was.op == now.op)
    for task in (MIXES_PLACES, MIXES_CHANNELS):
        take(lambda was, now, task=task: was.op in task and now.op in task)
    pairs.sort(key=lambda pair: list(b).index(pair[1]))
    return pairs, left, right


def _names(places: Sequence[Placement]) -> dict[str, str]:
    """``attention``; ``FFN 2`` where a layer has several."""
    found = {}
    for p in places:
        tail = p.site.removeprefix(p.op).strip("_[]")
        found[p.site] = SPOKEN[p.op] + (f" {tail}" if tail else "")
    return found


def _article(noun: str) -> str:
    if noun.endswith("attention"):
        return noun
    return f"an {noun}" if noun[0].lower() in "aeiou" or noun.startswith("FFN") else f"a {noun}"


def _norm_moves(name: str, was: Placement, now: Placement) -> list[str]:
    places = {"input": "its input", "output": "the branch", "sum": "the sum"}
    before = {k for k in places if getattr(was, f"{k}_norm")}
    after = {k for k in places if getattr(now, f"{k}_norm")}
    lost, gained = sorted(before - after), sorted(after - before)
    if len(lost) == len(gained) == 1:
        if "input" in (*lost, *gained):
            return [f"the norm of {name} moved from {places[lost[0]]} to {_to(gained[0])}"]
        return [f"the norm after {name} moved from {places[lost[0]]} to {places[gained[0]]}"]
    said = {
        "input": f"the norm before {name}",
        "output": f"the norm on the branch after {name}",
        "sum": f"the norm on the sum after {name}",
    }
    return [f"{said[k]} is gone" for k in lost] + [f"{said[k]} is new" for k in gained]


def _to(place: str) -> str:
    return {"input": "its input", "output": "its output, on the branch", "sum": "the sum after it"}[place]


def _together(pairs: Sequence[tuple[Placement, Placement]], spoken: Mapping[str, str]) -> list[str]:
    """Sub-layers that moved from series to parallel, or back."""
    found = []
    for i, (was, now) in enumerate(pairs):
        for was_other, now_other in pairs[i + 1 :]:
            before, after = was_other.site in was.parallel, now_other.site in now.parallel
            if before != after:
                how = "from series to parallel" if after else "from parallel to series"
                found.append(f"{spoken[now.site]} and {spoken[now_other.site]} moved {how}")
    return found


def _order(
    pairs: Sequence[tuple[Placement, Placement]], before: Sequence[Placement], spoken: Mapping[str, str]
) -> list[str]:
    """Sub-layers in series that changed places. ``pairs`` stand in the order of the second layer."""
    if any(p.parallel for pair in pairs for p in pair):
        return []
    places = [list(before).index(was) for was, _ in pairs]
    return [] if places == sorted(places) else [f"the order is now {', '.join(spoken[now.site] for _, now in pairs)}"]


def _residual(name: str, was: Placement, now: Placement) -> list[str]:
    found = []
    if was.residual != now.residual:
        found.append(
            {
                "none": f"{name} has no residual any more",
                "normed": f"the residual beside {name} is now taken after the norm",
                "stream": f"the residual beside {name} is now the stream itself",
            }[now.residual]
        )
    if was.sums != now.sums and was.sums and now.sums:
        found.append(f"what {name} writes is added to {now.sums} sums instead of {was.sums}")
    return found


def _scaling(name: str, was: Sequence[str], now: Sequence[str]) -> list[str]:
    gone = [p for p in was if p not in now]
    new = [p for p in now if p not in was]
    found = []
    for phrase in list(gone):
        head, sign, factor = phrase.rpartition(" multiplied by ")
        other = next((p for p in new if sign and p.startswith(f"{head}{sign}")), None)
        if other is not None:
            found.append(f"{name}: {head} multiplied by {factor} -> {other.removeprefix(f'{head}{sign}')}")
            gone.remove(phrase)
            new.remove(other)
    found += [f"{name}: {_turned(p, 'no longer', 'no longer so: ')}" for p in gone]
    return found + [f"{name}: {_turned(p, 'now', 'now ')}" for p in new]


def _turned(phrase: str, word: str, head: str) -> str:
    """``what it adds is now scaled`` of ``what it adds is scaled``."""
    return phrase.replace(" is ", f" is {word} ", 1) if " is " in phrase else f"{head}{phrase}"


def _merged(found: list[str]) -> list[str]:
    """Two sub-layers of which the same is said, in one phrase."""
    merged: list[str] = []
    for phrase in found:
        for k, other in enumerate(merged):
            joined = _joined(other, phrase)
            if joined:
                merged[k] = joined
                break
        else:
            merged.append(phrase)
    return merged


def _joined(one: str, other: str) -> str:
    """One phrase for two that differ in the name of the sub-layer only; empty if they differ otherwise."""
    for a in SPOKEN.values():
        for b in SPOKEN.values():
            if a == b:
                continue
            for form in ("after {}", "of {}", "before {}", "beside {}"):
                first, second = form.format(a), form.format(b)
                if one.count(first) == 1 and one.replace(first, second) == other:
                    return _plural(one.replace(first, f"{first} and {b}"))
            if one.startswith(f"{a}: ") and other == f"{b}: {one.removeprefix(f'{a}: ')}":
                return (
                    one.replace(a, f"{a} and {b}", 1)
                    .replace("what it adds", "what they add")
                    .replace("it reads", "they read")
                )
    return ""


def _plural(phrase: str) -> str:
    """``the norms ... are gone`` of ``the norm ... is gone``."""
    for one, more in (
        ("the norm ", "the norms "),
        ("the residual ", "the residuals "),
        (" is gone", " are gone"),
        (" is new", " are new"),
        (" is now ", " are now "),
        ("the branch", "the branches"),
        ("the sum", "the sums"),
        ("its input", "their inputs"),
        ("its output", "their outputs"),
        ("after it", "after them"),
    ):
        phrase = phrase.replace(one, more)
    return phrase


def _sections(a: Section, b: Section, quiet: bool) -> list[str]:
    """Shared norms, streams, and norms that no sub-layer accounts for."""
    found = []
    for what, one, other in (("new", b, a), ("gone", a, b)):
        for stream in one.streams:
            if stream not in other.streams:
                found.append(f"the carried stream {stream} is {what}")
    shared_a, shared_b = _shared(a), _shared(b)
    for names in sorted(shared_b - shared_a):
        found.append(f"{' and '.join(names)} read one norm now")
    for names in sorted(shared_a - shared_b):
        found.append(f"{' and '.join(names)} no longer read one norm")
    for what, one, other in (("now", b, a), ("no longer", a, b)):
        found += [
            f"{label} {what} used more than once, with one set of parameters" for label in _reused(one) - _reused(other)
        ]
    before, after = _norms(a), _norms(b)
    if sum(before.values()) != sum(after.values()) and not quiet and not found:
        found.append(f"the block has {phrases.plural(sum(after.values()), 'norm')} instead of {sum(before.values())}")
    elif before != after and sum(before.values()) == sum(after.values()):
        gone, new = before - after, after - before
        found.append(f"{_counted(gone)} became {_counted(new)} in the equation")
    return found


def _shared(section: Section) -> set[tuple[str, ...]]:
    """Groups of sub-layers that read one normed value."""
    found = set()
    for step in section.steps:
        if isinstance(step, Call) and step.site.op in NORMS:
            users = [
                SPOKEN[u.site.op] for u in section.users[step.value] if isinstance(u, Call) and u.site.op in SPOKEN
            ]
            if len(users) > 1:
                found.add(tuple(users))
    return found


def _reused(section: Section) -> set[str]:
    calls = Counter(s.site for s in section.steps if isinstance(s, Call))
    return {f"one {SPOKEN.get(site.op, site.op)} is" for site, count in calls.items() if count > 1}


def _norms(section: Section) -> Counter[str]:
    return Counter(s.site.op for s in section.steps if isinstance(s, Call) and s.site.op in NORMS)


def _counted(norms: Counter[str]) -> str:
    return " and ".join(op if count == 1 else f"{count} {op}" for op, count in norms.items())
