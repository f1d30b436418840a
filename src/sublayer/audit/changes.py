"""What changed between two layers in what the equations do not say: heads, widths, gates, norms and their eps."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sublayer.audit import phrases
from sublayer.audit.phrases import SPOKEN
from sublayer.audit.result import BranchFacts, LayerAudit, NormFacts

IN_EQUATION = ("input of", "output of", "stream")


def between(a: LayerAudit, b: LayerAudit, width_a: int, width_b: int, rewired: bool = False) -> list[str]:
    """Phrases that say how what is known of two layers differs, beside their equations.

    Args:
        a, b: the layers.
        width_a, width_b: channels of their streams.
        rewired: whether their equations differ, which says already what moved.
    """
    found: list[str] = []
    rest = list(b.branches)
    for was in a.branches:
        now = next((x for x in rest if x.op == was.op), None)
        if now is None:
            if not rewired:
                found.append(f"{SPOKEN.get(was.op, was.op)} is gone")
            continue
        rest.remove(now)
        found += _branch(was, now, width_a, width_b)
    if not rewired:
        found += [f"{SPOKEN.get(x.op, x.op)} is new" for x in rest]
    found += _norm_facts(a.norms, b.norms, rewired)
    before, after = Counter(x.op for x in a.dropped), Counter(x.op for x in b.dropped)
    found += [f"{SPOKEN.get(op, op)} is computed and reaches no output now" for op in after - before]
    found += [f"{SPOKEN.get(op, op)} that reached no output is gone" for op in before - after]
    if a.shares != b.shares:
        found.append(
            "it has parameters of its own now"
            if b.shares is None
            else f"it uses the parameters of layer {b.shares} now"
        )
    found += [f"no longer so: {text}" for text in a.notes if text not in b.notes]
    return found + [f"now: {text}" for text in b.notes if text not in a.notes]


def _branch(was: BranchFacts, now: BranchFacts, width_a: int, width_b: int) -> list[str]:
    name = SPOKEN.get(was.op, was.op)
    one, other = dict(was.details), dict(now.details)
    found = []
    if was.op in phrases.ATTENTION:
        found += _projection(name, one, other)
    # A width is told as a multiple of d where both are known: it is the ratio that is chosen.
    ratio_a, ratio_b = one.pop("ratio", None), other.pop("ratio", None)
    if ratio_a and ratio_b:
        one.pop("width", None), other.pop("width", None)
        if ratio_a != ratio_b:
            found.append(f"{name} {phrases.times_d(ratio_a)} -> {phrases.times_d(ratio_b)}")
    for key in dict.fromkeys([*one, *other]):
        if one.get(key) != other.get(key):
            found.append(_detail(name, key, one.get(key), other.get(key)))
    for verb, x, y in (("reads", was.reads, now.reads), ("writes", was.writes, now.writes)):
        if x and y and (x, y) != (width_a, width_b) and x != y:
            found.append(f"{name} {verb} {y} channels instead of {x}")
    return found


def _projection(name: str, one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    before, after = one.pop("output_projection", None), other.pop("output_projection", None)
    if before == after:
        return []
    whose = "W_o" if name == "attention" else f"W_o of {name}"
    return [f"{whose} is " + ("new" if after else "gone" if after is False else "unknown now")]


def _detail(name: str, key: str, was: Any, now: Any) -> str:
    if key == "gated" and isinstance(was, bool) and isinstance(now, bool):
        return f"{name} is {'gated now' if now else 'no longer gated'}"
    if key == "inner_norm" and isinstance(was, bool) and isinstance(now, bool):
        return f"a norm inside {name} is {'new' if now else 'gone'}"
    if key == "shared_expert" and isinstance(was, bool) and isinstance(now, bool):
        return f"a shared expert is {'new' if now else 'gone'}"
    if key == "qk_norm":
        return f"{name}: {_qk(was)} -> {_qk(now)}"
    said = {"kv_heads": "key-value heads", "head_dim": "width of a head"}.get(key, key.replace("_", " "))
    return f"{name}, {said}: {_value(was)} -> {_value(now)}"


def _qk(kind: Any) -> str:
    return phrases.QK_NORMS.get(str(kind), f"QK-norm {_value(kind)}")


def _value(value: Any) -> str:
    return "unknown" if value is None else phrases.number(value)


def _norm_facts(a: Sequence[NormFacts], b: Sequence[NormFacts], rewired: bool) -> list[str]:
    """Kind, eps and affine part of norms at one place; places that only one side has, unless the equation says so."""
    before, after = _by_place(a), _by_place(b)
    if rewired:
        # Places moved with the wiring: what is left to say is of all norms together.
        before, after = _pooled(before), _pooled(after)
    changed: dict[str, list[str]] = {}
    found = []
    for where in dict.fromkeys([*before, *after]):
        was, now = before.get(where, []), after.get(where, [])
        for one, other in zip(was, now, strict=False):
            for text in norm_change(one, other):
                changed.setdefault(text, []).append(where)
        if (
            where in phrases.QK_PLACES
            or where == "latent"
            or (rewired and where.startswith(IN_EQUATION))
            or where == "every norm"
        ):
            continue
        if len(was) != len(now):
            found.append(f"norms {where if where.startswith('inside') else f'at {where}'}: {len(was)} -> {len(now)}")
    shared = [w for w in before if w in after]
    for text, wheres in changed.items():
        every = len(set(wheres)) == len(shared)
        found.append(f"{'norms' if every else f'norm, {phrases.listed(list(dict.fromkeys(wheres)))}'}: {text}")
    return found


def _by_place(norms: Sequence[NormFacts]) -> dict[str, list[NormFacts]]:
    found: dict[str, list[NormFacts]] = {}
    for n in norms:
        found.setdefault(n.where, []).append(n)
    return found


def _pooled(places: Mapping[str, list[NormFacts]]) -> dict[str, list[NormFacts]]:
    """Places of the equation as one, if all norms at them are alike."""
    outer = [n for where, norms in places.items() if where.startswith(IN_EQUATION) for n in norms]
    kept = {where: norms for where, norms in places.items() if not where.startswith(IN_EQUATION)}
    if len({(n.kind, n.eps, n.affine) for n in outer}) == 1:
        return {"every norm": outer[:1], **kept}
    return dict(places)


def norm_change(was: NormFacts, now: NormFacts) -> list[str]:
    """What differs between two norms at one place."""
    found = []
    if was.kind != now.kind:
        found.append(f"{was.kind} -> {now.kind}")
    if was.eps != now.eps:
        found.append(f"eps {_value(was.eps)} -> {_value(now.eps)}")
    if was.affine != now.affine:
        found.append(f"learns {was.affine.replace('+', ' and ')} -> {now.affine.replace('+', ' and ')}")
    return found
