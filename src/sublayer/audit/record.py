"""An audit as plain JSON values, back again, and as a table."""

import dataclasses
import math
import types
from collections.abc import Mapping
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from sublayer.audit.result import FORMAT, SEVERITIES, Audit, AuditError, Finding
from sublayer.notation import Design, DesignError, parse

T = TypeVar("T")


def plain(value: Any, leave_out: frozenset[str] = frozenset()) -> Any:
    """A record as JSON values: designs by their text, tuples as lists; fields named in ``leave_out`` are left out."""
    if isinstance(value, Design):
        return str(value)
    if dataclasses.is_dataclass(value):
        return {
            f.name: plain(getattr(value, f.name), leave_out)
            for f in dataclasses.fields(value)
            if f.name not in leave_out
        }
    if isinstance(value, Mapping):
        return {str(k): plain(v, leave_out) for k, v in value.items()}
    if isinstance(value, tuple | list | set | frozenset):
        return [plain(v, leave_out) for v in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return str(value)


def to_dict(audit: Audit) -> dict[str, Any]:
    """The whole audit as JSON values; `from_dict` reads it back."""
    return {"format": FORMAT, **plain(audit)}


def from_dict(data: Any) -> Audit:
    """Read what `to_dict` wrote; keys that it does not know at the top are left aside. Raises AuditError."""
    if not isinstance(data, Mapping) or data.get("format") != FORMAT:
        got = data.get("format") if isinstance(data, Mapping) else type(data).__name__
        raise AuditError(f"a record of an audit has format {FORMAT}; got {got!r}; audit the model again")
    known = {f.name for f in dataclasses.fields(Audit)}
    audit = read(Audit, {k: v for k, v in data.items() if k in known}, "audit")
    for finding in audit.findings:
        _check_severity(finding)
    return audit


def _check_severity(finding: Finding) -> None:
    if finding.severity not in SEVERITIES:
        raise AuditError(f"a finding's severity is one of {', '.join(SEVERITIES)}; got {finding.severity!r}")


def read(kind: type[T], data: Any, where: str) -> T:
    """A dataclass from JSON values, every field checked. Raises AuditError that names the place."""
    if not isinstance(data, Mapping):
        raise AuditError(f"{where} must be an object; got {type(data).__name__}; the record is damaged")
    hints = get_type_hints(kind)
    strange = sorted(set(map(str, data)) - set(hints))
    if strange:
        raise AuditError(f"{where} has no field {strange[0]!r}; the record is damaged, or of another version")
    fields: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(kind)  # type: ignore[arg-type]
    needed = {
        f.name for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    } - set(data)
    if needed:
        raise AuditError(f"{where} needs the field {min(needed)!r}; the record is damaged")
    return kind(**{name: _value(hints[name], value, f"{where}.{name}") for name, value in data.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    """One value checked against its type hint."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        inner = [h for h in get_args(hint) if h is not type(None)]
        return None if value is None else _value(inner[0], value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_value(get_args(hint)[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if hint is Design and isinstance(value, str):
        try:
            return parse(value)
        except DesignError as error:
            raise AuditError(f"{where} must be a design: {error}") from None
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return read(hint, value, where)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint is str and isinstance(value, str):
        return value
    if origin is not None and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return {str(k): _frozen(v) for k, v in value.items()}
    raise AuditError(f"{where} must be {getattr(hint, '__name__', hint)}; got {value!r:.80}; the record is damaged")


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value


def rows(audit: Audit) -> list[dict[str, Any]]:
    """One row a layer; of several sub-layers of a kind, the first."""
    found = []
    for stack in audit.stacks:
        for layer in stack.layers:
            row: dict[str, Any] = {
                "stack": stack.name,
                "layer": layer.index,
                "equation": layer.equation or None,
                "unknown": layer.unknown or None,
                "shares": layer.shares,
                "norms": ", ".join(dict.fromkeys(n.kind for n in layer.norms)),
            }
            for op, names in _COLUMNS.items():
                branch = next((b for b in layer.branches if b.op == op), None)
                details = branch.details if branch else {}
                row |= {f"{op}_{name}": details.get(name) for name in names}
            row["notes"] = "; ".join(layer.notes) or None
            found.append(row)
    return found


_COLUMNS = {
    "attn": ("heads", "kv_heads", "head_dim", "qk_norm"),
    "ffn": ("width", "ratio", "gated", "activation"),
    "moe": ("experts",),
}


def to_frame(audit: Audit) -> Any:
    """A pandas DataFrame with one row a layer; needs pandas (the extra `frames`)."""
    try:
        import pandas
    except ImportError as error:
        raise ImportError("to_frame needs pandas, which is not installed: pip install 'sublayer[frames]'") from error
    return pandas.DataFrame(rows(audit))
