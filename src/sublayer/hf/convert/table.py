"""What became of every parameter, and the report for people."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sublayer.hf.convert.weights import Origin

if TYPE_CHECKING:
    from sublayer.hf.convert.rewire import Conversion

_LAYER = re.compile(r"(?<=layers\.)\d+")


@dataclass(frozen=True)
class Fate:
    """What became of one parameter of the old model.

    Attributes:
        name: the parameter.
        count: numbers in it.
        how: "kept" bit for bit at least once, "folded" into parameters computed from it, or "dropped".
        targets: the new parameters that have it or were computed from it.
    """

    name: str
    count: int
    how: Literal["kept", "folded", "dropped"]
    targets: tuple[str, ...] = ()


def fates(counts: Mapping[str, int], targets: Iterable[Origin]) -> tuple[Fate, ...]:
    """The other side of the account: for each old parameter, with its size, what became of it."""
    used: dict[str, list[Origin]] = {name: [] for name in counts}
    for target in targets:
        for source in target.sources:
            used[source].append(target)
    return tuple(
        Fate(
            name,
            count,
            "kept" if any(t.how == "kept" for t in used[name]) else "folded" if used[name] else "dropped",
            tuple(t.name for t in used[name]),
        )
        for name, count in counts.items()
    )


def table(conversion: "Conversion") -> str:
    """The report of one conversion."""
    lines = [f"before   {_one_line(str(conversion.before))}", f"after    {_one_line(str(conversion.after))}"]
    lines.append(f"change   {conversion.verdict}")
    targets, sources = conversion.targets, conversion.sources
    groups = {
        "kept": [(t.name, t.count, _renamed(t)) for t in targets if t.how == "kept"],
        "changed": [(t.name, t.count, _made(t)) for t in targets if t.how == "changed"],
        "new": [(t.name, t.count, t.note) for t in targets if t.how == "new"],
        "folded": [(s.name, s.count, "") for s in sources if s.how == "folded"],
        "dropped": [(s.name, s.count, "") for s in sources if s.how == "dropped"],
    }
    lines.append("")
    for how, rows in groups.items():
        lines.append(f"{how:8} {len(rows):5} parameters {sum(n for _, n, _ in rows):14,} numbers")
        if how != "kept":
            lines += [f"         {row}" for row in _gathered(rows)]
        else:
            lines += [f"         {row}" for row in _gathered([row for row in rows if row[2]])]
    change = conversion.change
    if change is not None:
        lines.append("")
        if change.loss_before is not None and change.loss_after is not None:
            lines.append(f"loss     {change.loss_before:.4f} -> {change.loss_after:.4f} nats a token")
        kl = "" if change.kl is None else f", KL {change.kl:.2g} nats a token"
        lines.append(f"output   largest difference {change.output:.1e} of the largest{kl}; {change.tokens} tokens")
        lines.append("layers   ||h' - h|| / ||h|| after each layer:")
        lines.append("         " + "  ".join(f"{i}: {d:.2g}" for i, d in enumerate(change.layers)))
    return "\n".join(lines)


def _one_line(text: str) -> str:
    return text.replace("\n", "  |  ")


def _made(target: Origin) -> str:
    source = _renamed(target)
    return "; ".join(part for part in (source, target.note) if part)


def _renamed(target: Origin) -> str:
    first = target.sources[0] if target.sources else ""
    return "" if first in ("", target.name) else f"from {first}"


def _gathered(rows: list[tuple[str, int, str]]) -> list[str]:
    """Rows that differ only in their layer as one."""
    groups: dict[tuple[str, str], list[tuple[int | None, int]]] = {}
    for name, count, note in rows:
        place, _, leaf = name.rpartition(".")
        found = _LAYER.search(place)
        number = int(found.group()) if found else None
        groups.setdefault((_LAYER.sub("*", f"{place}.{leaf}"), _shifted(note, number)), []).append((number, count))
    lines = []
    for (name, note), members in groups.items():
        layers = ranges([number for number, _ in members if number is not None])
        text = name.replace("*", layers, 1) if layers else name
        lines.append(f"{text}{f'  ({note})' if note else ''}")
    return lines


def _shifted(note: str, layer: int | None) -> str:
    """A note with layer numbers written relative to the row's own: the layer before it is l-1."""
    if layer is None:
        return note

    def relative(found: re.Match[str]) -> str:
        offset = int(found.group()) - layer
        return "l" if not offset else f"l{offset:+d}"

    return _LAYER.sub(relative, note)


def ranges(numbers: Iterable[int]) -> str:
    """``0-2,5`` for 0, 1, 2, 5."""
    parts: list[list[int]] = []
    for n in sorted(set(numbers)):
        if parts and n == parts[-1][1] + 1:
            parts[-1][1] = n
        else:
            parts.append([n, n])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
