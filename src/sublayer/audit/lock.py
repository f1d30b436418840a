"""`wiring.lock`: the wiring of a model in a file that people can read, diff and keep under version control.

It holds equations and facts, layers of one kind once, and no names of modules or parameters: a refactor that moves
code and keeps the wiring leaves it valid. The hash covers every byte of the file.
"""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sublayer import __version__, plain_files
from sublayer.audit import phrases
from sublayer.audit.diff import Diff, between
from sublayer.audit.record import plain, read
from sublayer.audit.result import Audit, AuditError, LayerAudit, Stack
from sublayer.audit.sides import Side
from sublayer.notation import Design, DesignError, parse
from sublayer.whole_files import write_atomically

SCHEMA = "sublayer.wiring/1"
MOST_BYTES = 8_000_000
MOST_LAYERS = 20_000
REMEDY = "write it again with `sublayer audit MODEL --lock FILE` once you have seen that the wiring is right"
# What names the code and not the wiring.
_LABELS = frozenset({"module", "parameters", "design", "index"})
_HASH = re.compile(rb'"sha256": "([^"\n]*)"')
_BLANK = "0" * 64


@dataclass(frozen=True)
class Check:
    """How a model stands to its lock.

    Attributes:
        diff: from the lock to the model.
        held: whether the model still has the wiring of the lock, as far as that was known when it was written: a part
            that was unknown then and is unknown now, for the same reason, holds nothing up and is named.
    """

    diff: Diff
    held: bool

    def __bool__(self) -> bool:
        return self.held

    def __str__(self) -> str:
        if not self.held:
            return str(self.diff)
        if not self.diff.unknown:
            return f"{self.diff.a} holds: {self.diff.compared}"
        dark = [f"not covered, unknown as before: {text}" for text in self.diff.unknown]
        return "\n".join([f"{self.diff.a} holds, in what is known", *dark])

    def to_dict(self) -> dict[str, Any]:
        """The check as JSON values."""
        return {"held": self.held, **self.diff.to_dict()}


# --- writing ------------------------------------------------------------------------------------------------------


def lock_text(audit: Audit) -> str:
    """The content of a lock file."""
    if not audit.stacks:
        raise AuditError(
            f"a lock holds a wiring; of {audit.target} nothing is known, because "
            f"{audit.unknown or 'no layers were found'}; pass inputs=... or another target"
        )
    body = {
        "schema": SCHEMA,
        "sha256": _BLANK,
        "sublayer": __version__,
        "target": audit.target,
        "stacks": [_stack(stack) for stack in audit.stacks],
        "dead_inputs": list(audit.dead_inputs),
        "dead_parameters": len(audit.dead_parameters),
        "unknown": audit.unknown,
    }
    text = _json(body) + "\n"
    return text.replace(f'"sha256": "{_BLANK}"', f'"sha256": "{_digest(text.encode())}"', 1)


def write_lock(audit: Audit, path: str | os.PathLike[str]) -> None:
    """Write the lock of an audit, whole or not at all. Raises AuditError if nothing of the model is known."""
    write_atomically(Path(path), lock_text(audit))


def _stack(stack: Stack) -> dict[str, Any]:
    return {
        "name": stack.name,
        "design": str(stack.design) if stack.design else None,
        "unknown": stack.unknown,
        "norm": stack.norm,
        "width": stack.width,
        "embed": stack.embed,
        "layers": _groups(stack.layers),
        "final": stack.final,
        "norms": plain(stack.norms, _LABELS),
        "notes": list(stack.notes),
    }


def _groups(layers: Sequence[LayerAudit]) -> list[dict[str, Any]]:
    """Layers of which all is alike, once."""
    found: dict[str, tuple[dict[str, Any], list[int]]] = {}
    for place, layer in enumerate(layers):
        record = plain(layer, _LABELS)
        found.setdefault(json.dumps(record, sort_keys=True), (record, []))[1].append(place)
    return [{"at": _spans(places), **record} for record, places in found.values()]


def _spans(places: Sequence[int]) -> str:
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in phrases.runs(places))


def _json(value: Any, indent: str = "") -> str:
    """JSON with one line for every thing that may change: values without inner objects stand on one line."""
    inner = indent + "  "
    if (
        isinstance(value, dict)
        and value
        and (indent == "" or any(isinstance(v, dict | list) and v for v in value.values()))
    ):
        lines = [f"{inner}{json.dumps(k, ensure_ascii=False)}: {_json(v, inner)}" for k, v in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    if isinstance(value, list) and value and any(isinstance(v, dict | list) for v in value):
        return "[\n" + ",\n".join(f"{inner}{_json(v, inner)}" for v in value) + f"\n{indent}]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _digest(raw: bytes) -> str:
    """Hash of a lock's bytes with the place of the hash itself blanked."""
    return hashlib.sha256(_HASH.sub(f'"sha256": "{_BLANK}"'.encode(), raw, count=1)).hexdigest()


# --- reading ------------------------------------------------------------------------------------------------------


def read_lock(path: str | os.PathLike[str]) -> tuple[Audit, str]:
    """The audit that a lock holds, without names of modules, and the version of Sublayer that wrote it.

    Raises:
        AuditError: it is no lock, of another version, changed, cut short or too large. OSError: it cannot be read.
    """
    shown = os.fspath(path)
    try:
        raw = plain_files.read_bytes(Path(path), MOST_BYTES)
    except plain_files.TooLargeError:
        raise AuditError(f"a lock has at most {MOST_BYTES:,} bytes; {shown} has more; is it a lock? {REMEDY}") from None
    data = _parsed(raw, shown)
    if data.get("schema") != SCHEMA:
        raise AuditError(f"a lock is of schema {SCHEMA!r}; {shown} says {str(data.get('schema'))[:80]!r}; {REMEDY}")
    said = _HASH.search(raw)
    if said is None or said[1].decode("ascii", "replace") != _digest(raw):
        raise AuditError(
            f"a lock must be as it was written; {shown} was changed by hand or damaged: its hash does not fit its "
            f"content; restore it, or {REMEDY}"
        )
    try:
        return _audit(data), str(data.get("sublayer"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        # The hash fits, so somebody wrote it so.
        why = error if isinstance(error, AuditError) else f"{type(error).__name__}: {error}"
        raise AuditError(f"a lock must hold an audit; {shown} does not ({why}); {REMEDY}") from None


def _parsed(raw: bytes, shown: str) -> dict[str, Any]:
    try:
        data = json.loads(raw.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        where = f"line {error.lineno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise AuditError(f"a lock is JSON; {shown} is not, or was cut short ({where}); {REMEDY}") from None
    if not isinstance(data, dict):
        raise AuditError(f"a lock is a JSON object; {shown} holds a {type(data).__name__}; {REMEDY}")
    return data


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _audit(data: dict[str, Any]) -> Audit:
    dead = data["dead_parameters"]
    if not isinstance(dead, int) or isinstance(dead, bool) or not 0 <= dead <= 10_000_000:
        raise AuditError(f"dead_parameters must be a number of parameters; got {dead!r:.80}")
    record = {
        "target": data["target"],
        "stacks": [],
        "dead_inputs": data["dead_inputs"],
        "unknown": data["unknown"],
    }
    audit = read(Audit, record, "lock")
    stacks = tuple(_read_stack(one, f"stacks[{k}]") for k, one in enumerate(data["stacks"]))
    return replace(audit, stacks=stacks, dead_parameters=tuple(f"parameter {i}" for i in range(dead)))


def _read_stack(data: dict[str, Any], where: str) -> Stack:
    groups = data["layers"]
    layers: dict[int, LayerAudit] = {}
    for k, group in enumerate(groups):
        facts = {name: value for name, value in group.items() if name != "at"}
        equation = facts.get("equation")
        design = _design(data["embed"], equation, data["final"]) if equation else None
        one = read(LayerAudit, {"index": 0, "module": "", "design": None, **facts}, f"{where}.layers[{k}]")
        for place in _places(group["at"]):
            if place in layers:
                raise AuditError(f"{where}: layer {place} is there twice")
            layers[place] = replace(one, index=place, design=design)
    if sorted(layers) != list(range(len(layers))):
        raise AuditError(f"{where}: layers must be 0 to {len(layers) - 1}, each once")
    rest = {name: value for name, value in data.items() if name != "layers"}
    stack = read(Stack, {**rest, "layers": []}, where)
    return replace(stack, layers=tuple(layers[i] for i in range(len(layers))))


def _places(text: Any) -> list[int]:
    if not isinstance(text, str) or not re.fullmatch(r"\d{1,6}(-\d{1,6})?(, \d{1,6}(-\d{1,6})?)*", text):
        raise AuditError(f"places of layers are written 0-11; got {text!r:.80}")
    found: list[int] = []
    for part in text.split(", "):
        first, _, last = part.partition("-")
        if int(last or first) > MOST_LAYERS:
            raise AuditError(f"a lock has at most {MOST_LAYERS} layers; got layer {last or first}")
        found += range(int(first), int(last or first) + 1)
    return found


def _design(embed: str, equation: str, final: str) -> Design:
    """The design of a model whose layers are all like one; a section that is unknown is taken as its default."""
    lines = [f"embed: {embed}" if embed else "", f"block: {equation}", f"final: {final}" if final else "final: x = x"]
    try:
        return parse("\n".join(line for line in lines if line))
    except DesignError as error:
        raise AuditError(f"{equation!r:.200} must be an equation: {error}") from None


# --- checking -----------------------------------------------------------------------------------------------------


def check_lock(audit: Audit, path: str | os.PathLike[str]) -> Check:
    """Compare a model with its lock.

    Raises:
        AuditError: the file is no whole lock. OSError: it cannot be read.
    """
    locked, version = read_lock(path)
    found = between(Side(os.fspath(path), audit=locked), Side(audit.target, audit=audit))
    held = not found.moved and _dark(locked) == _dark(audit)
    if not held and version != __version__:
        found = replace(
            found,
            remarks=(
                *found.remarks,
                f"the lock is of Sublayer {version}, this is {__version__}: the reader may have learned more since",
            ),
        )
    return Check(found, held)


def _dark(audit: Audit) -> list[Any]:
    """All that is unknown, and where."""
    found: list[Any] = [audit.unknown]
    for stack in audit.stacks:
        found += [
            (stack.name, not stack.embed, not stack.final),
            *((x.index, x.unknown) for x in stack.layers if x.unknown),
        ]
    return found
