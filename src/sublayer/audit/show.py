"""An audit as text, for a person: equations first, then what the equations do not say."""

import html
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache

from sublayer.audit import phrases
from sublayer.audit.result import Audit, AuditError, Finding, LayerAudit, Stack
from sublayer.notation import Design
from sublayer.notation.explain import placements

MOST_VARIANTS = 3  # forms of one fact within a group that are written out
MOST_NAMES = 4  # places or groups of names in one line
MOST_GROUPS = 24  # groups of layers that are written out
Fact = tuple[str, str]  # label and text


def show(audit: Audit) -> str:
    """The text of an audit."""
    lines = [*_headline(audit)]
    for stack in audit.stacks:
        lines += ["", *_stack(audit, stack)]
    tail = [*_whole(audit), *_findings(audit)]
    return "\n".join([*lines, *(["", *tail] if tail else [])])


def as_html(audit: Audit) -> str:
    """The text of an audit with the diagram of its main design, for notebooks."""
    picture = audit.design.svg() if audit.design else ""
    return f'<div>{picture}<pre style="white-space: pre-wrap">{html.escape(show(audit))}</pre></div>'


def svg(audit: Audit) -> str:
    """The diagram of the main design. Raises AuditError where that is unknown."""
    if audit.design is None:
        reason = audit.unknown or (audit.main.unknown if audit.main else "") or "no layers were found"
        raise AuditError(f"a diagram needs a design that is known; of {audit.target} it is unknown, because {reason}")
    return audit.design.svg()


# --- the whole ----------------------------------------------------------------------------------------------------


def _headline(audit: Audit) -> list[str]:
    if not audit.stacks:
        return [f"{audit.target}: unknown, because {audit.unknown or 'no layers were found'}"]
    if len(audit.stacks) == 1:
        return [f"{audit.target}: {_stands(audit.stacks[0])}; {_size(audit.stacks[0])}"]
    return [f"{audit.target}: {phrases.plural(len(audit.stacks), 'stack')} of layers"]


def _stands(stack: Stack) -> str:
    """Where the stack stands among the named designs."""
    if stack.design is None:
        return "not wholly known"
    names, apart = phrases.standing(stack.design)
    if not names:
        return "no named design"
    return phrases.in_words(names) + (f", {apart}" if apart else "")


def _size(stack: Stack) -> str:
    return phrases.plural(len(stack.layers), "layer") + (f", d = {stack.width}" if stack.width else "")


def _whole(audit: Audit) -> list[str]:
    lines = []
    if audit.unknown and audit.stacks:
        lines.append(f"unknown: {audit.unknown}")
    if audit.dead_inputs:
        lines.append(f"inputs that change nothing: {phrases.listed(audit.dead_inputs)}")
    if audit.dead_parameters:
        groups = phrases.listed(phrases.grouped(audit.dead_parameters), MOST_NAMES)
        lines.append(f"parameters that nothing reads ({len(audit.dead_parameters)}): {groups}")
    return lines + [f"assumed: {text}" for text in dict.fromkeys(audit.assumptions)]


def _findings(audit: Audit) -> list[str]:
    """The findings; those that say one thing of several places, in one line."""
    if not audit.findings:
        return ["findings: none"] if audit.stacks else []
    places: dict[Finding, list[str]] = {}
    for finding in audit.findings:
        places.setdefault(replace(finding, place=""), []).append(finding.place)
    return [str(replace(alike, place=phrases.listed(found, MOST_NAMES))) for alike, found in places.items()]


# --- one stack ----------------------------------------------------------------------------------------------------


def _stack(audit: Audit, stack: Stack) -> list[str]:
    lines = []
    if len(audit.stacks) > 1:
        lines.append(f"{stack.name}: {_stands(stack)}; {_size(stack)}")
    body = [f"embed: {stack.embed}" if stack.embed else "embed: unknown"]
    groups = _by_equation(stack)
    for members in groups[:MOST_GROUPS]:
        body += _group(stack, members)
    if len(groups) > MOST_GROUPS:
        rest = [layer.index for members in groups[MOST_GROUPS:] for layer in members]
        body.append(f"{phrases.layers(rest)}: {len(groups) - MOST_GROUPS} more equations (--json has them all)")
    body.append(f"final: {stack.final}" if stack.final else "final: unknown")
    body += _norms(stack)
    body += _sharing(stack)
    if stack.unknown:
        body.append(f"as one design: unknown, because {stack.unknown}")
    body += [f"note: {text}" for text in dict.fromkeys(stack.notes)]
    return lines + ([f"  {line}" for line in body] if lines else body)


def _by_equation(stack: Stack) -> list[list[LayerAudit]]:
    found: dict[tuple[str, str], list[LayerAudit]] = {}
    for layer in stack.layers:
        found.setdefault((layer.equation, layer.unknown), []).append(layer)
    return list(found.values())


def _group(stack: Stack, members: list[LayerAudit]) -> list[str]:
    """Layers of one equation: that, and what is known of their sub-layers."""
    first = members[0]
    where = phrases.layers(layer.index for layer in members)
    told = first.equation or f"unknown, because {first.unknown or 'it could not be read'}"
    return [
        f"{where}: {told}",
        *_facts(members, lambda layer: [*_branches(stack, layer), *_factors(layer.design), *_remarks(layer)]),
    ]


def _facts(members: Sequence[LayerAudit], facts: Callable[[LayerAudit], list[Fact]]) -> list[str]:
    """Every fact of a group of layers once, with the layers it holds for where that is not all of them."""
    by_label: dict[str, dict[str, list[int]]] = {}
    for layer in members:
        for label, text in facts(layer):
            by_label.setdefault(label, {}).setdefault(text, []).append(layer.index)
    width = max((len(label) for label in by_label), default=0)
    lines = []
    for label, variants in by_label.items():
        for k, (text, held) in enumerate(variants.items()):
            if k == MOST_VARIANTS and len(variants) > MOST_VARIANTS + 1:
                rest = [i for indices in list(variants.values())[k:] for i in indices]
                lines.append(
                    f"  {label:<{width}}  {len(variants) - k} more forms in {phrases.layers(rest)} (--json has all)"
                )
                break
            some = "" if len(set(held)) == len(members) else f"  ({phrases.layers(held)})"
            lines.append(f"  {label:<{width}}  {text}{some}")
    return lines


def _branches(stack: Stack, layer: LayerAudit) -> list[Fact]:
    names = phrases.sites(layer.branches)
    return [
        (name, phrases.branch(branch, stack.width, layer.norms))
        for name, branch in zip(names, layer.branches, strict=True)
    ]


def _remarks(layer: LayerAudit) -> list[Fact]:
    found = [("note", text) for text in layer.notes]
    for branch in layer.dropped:
        module = f" ({branch.module.rpartition('.')[2]})" if branch.module else ""
        found.append(("dropped", f"{branch.op}{module} is computed and reaches no output"))
    return found


@lru_cache(maxsize=256)
def _factors(design: Design | None) -> list[Fact]:
    """What multiplies the residual or what is added to it, fixed or learned."""
    by_phrase: dict[str, list[str]] = {}
    for place in placements(design) if design is not None else ():
        for phrase in place.scaling:
            by_phrase.setdefault(phrase, []).append(place.site)
    found = []
    for phrase, sites in by_phrase.items():
        said = phrase if len(sites) == 1 else phrase.replace("it adds", "they add").replace("it reads", "they read")
        found.append(("factor", f"{' and '.join(sites)}: {said} ({_nature(phrase)})"))
    return found


def _nature(phrase: str) -> str:
    return "learned" if "per channel" in phrase or "learned" in phrase else "fixed"


def _norms(stack: Stack) -> list[str]:
    """Kinds of norms in the equations: one line where all are alike, else each with its places."""
    placed: dict[str, dict[str, list[int]]] = {}
    for layer in stack.layers:
        for facts in phrases.outside(layer.norms):
            placed.setdefault(phrases.norm(facts), {}).setdefault(facts.where, []).append(layer.index)
    for facts in stack.norms:
        placed.setdefault(phrases.norm(facts), {}).setdefault(facts.where, [])
    if not placed:
        none = not stack.unknown and all(layer.equation for layer in stack.layers)
        return ["norm: none"] if none else []
    if len(placed) == 1:
        return [f"norm: {next(iter(placed))}"]
    depth = len(stack.layers)
    # The kind that `norm` means comes first.
    ordered = sorted(placed.items(), key=lambda item: not item[0].startswith(stack.norm or "norm"))
    return [f"norm: {text}  ({'; '.join(_places(places, depth))})" for text, places in ordered]


def _places(places: dict[str, list[int]], depth: int) -> Iterable[str]:
    by_layers: dict[str, list[str]] = {}
    for where, held in places.items():
        said = "" if not held or len(set(held)) == depth else f" in {phrases.layers(held)}"
        by_layers.setdefault(said, []).append(where)
    return [", ".join(wheres) + said for said, wheres in by_layers.items()]


def _sharing(stack: Stack) -> list[str]:
    """Layers that use the parameters of an earlier one."""
    owners: dict[int, list[int]] = {}
    for layer in stack.layers:
        if layer.shares is not None:
            owners.setdefault(layer.shares, []).append(layer.index)
    pairs = list(owners.items())
    if len(pairs) > MOST_VARIANTS:
        users = [i for _, indices in pairs for i in indices]
        verb = "uses" if len(users) == 1 else "use"
        return [f"shared: {phrases.layers(users)} {verb} the parameters of {phrases.layers(o for o, _ in pairs)}"]
    return [
        f"shared: {phrases.layers(users)} use{'s' if len(users) == 1 else ''} the parameters of layer {owner}"
        for owner, users in pairs
    ]
