"""A second witness: what ``torch.export`` makes of a model, read like the recorded run, and compared with it.

Where the two agree, the reading does not hang on how the run was recorded. A layer that they read differently is
unknown.
"""

from dataclasses import replace

from sublayer.audit.configs import first_line
from sublayer.audit.exported import NotComparable, export_tape
from sublayer.audit.inputs import Inputs
from sublayer.audit.result import Audit, LayerAudit, Stack
from sublayer.audit.target import Target

__all__ = ["compared", "export_tape"]


def compared(result: Audit, target: Target, inputs: Inputs | None) -> Audit:
    """The audit with what ``torch.export`` says to it: that they agree, or in which layers they do not.

    What the two read differently is unknown in the result. Where there is no second reading, the assumptions say why.
    """
    from sublayer.audit.read import read_tape

    if inputs is None or not result.stacks:
        return result
    try:
        tape = export_tape(target, inputs)
        other = read_tape(tape, target)
    except NotComparable as found:
        return _alone(result, f"what torch.export made of this model could not be compared: {found}")
    except Exception as error:  # torch.export raises whatever a model's own code raises on fake tensors
        return _alone(result, f"torch.export could not trace this model: {type(error).__name__}: {first_line(error)}")
    if not other.stacks:
        return _alone(result, f"nothing could be read of what torch.export made of this model: {other.unknown}")
    shape, again = ([(s.name, len(s.layers)) for s in a.stacks] for a in (result, other))
    if shape != again:
        reason = _differ(_shape(result), _shape(other))
        stacks = tuple(_unknown(s, reason) for s in result.stacks)
    else:
        stacks = tuple(_stack(a, b) for a, b in zip(result.stacks, other.stacks, strict=True))
    return replace(result, stacks=stacks, witness="dispatch and export")


def _alone(result: Audit, why: str) -> Audit:
    return replace(result, assumptions=(*result.assumptions, why))


def _differ(here: str, there: str) -> str:
    return f"the two witnesses differ: dispatch reads {here}, export reads {there}"


def _shape(audit: Audit) -> str:
    return " and ".join(f"{len(s.layers)} layers ({s.name})" for s in audit.stacks)


def _unknown(stack: Stack, reason: str) -> Stack:
    layers = tuple(_doubted(layer, reason) for layer in stack.layers)
    return replace(stack, layers=layers, embed="", final="", design=None, unknown=reason, norm="", norms=())


def _doubted(layer: LayerAudit, reason: str) -> LayerAudit:
    return replace(layer, equation="", design=None, unknown=reason, branches=(), norms=())


def _stack(here: Stack, there: Stack) -> Stack:
    """One stack; what is read differently becomes unknown."""
    if any(a and b and a != b for a, b in ((here.norm, there.norm), (here.width, there.width))):
        # The same equation would then mean something else.
        said = (f"{s.norm or 'no norm'} over {s.width} channels" for s in (here, there))
        return _unknown(here, _differ(*said))
    layers, reasons, alone = [], [], []
    for a, b in zip(here.layers, there.layers, strict=True):
        if a.equation and b.equation and a.equation != b.equation:
            reason = _differ(f"'{a.equation}'", f"'{b.equation}'")
            layers.append(_doubted(a, reason))
            reasons.append(f"layer {a.index}: {reason}")
            continue
        if a.equation and not b.equation:
            alone.append(f"layer {a.index}: torch.export's graph could not be read ({b.unknown})")
        layers.append(a)
    ends = [(n, getattr(here, n), getattr(there, n)) for n in ("embed", "final")]
    doubted = {n: _differ(f"'{a}'", f"'{b}'") for n, a, b in ends if a and b and a != b}
    reasons = [f"{n}: {reason}" for n, reason in doubted.items()] + reasons
    alone += [f"{n}: torch.export's graph could not be read" for n, a, b in ends if a and not b]
    result = replace(here, layers=tuple(layers))
    if doubted:
        # A layer's own equation stands; the design around it does not.
        result = replace(
            result,
            layers=tuple(replace(a, design=None) for a in layers),
            embed="" if "embed" in doubted else here.embed,
            final="" if "final" in doubted else here.final,
        )
    if reasons:
        more = f" (and {len(reasons) - 1} more like it)" if len(reasons) > 1 else ""
        return replace(result, design=None, unknown=reasons[0] + more)
    notes = alone[:1] if alone else _agreement(here)
    return replace(result, notes=(*here.notes, *notes))


def _agreement(stack: Stack) -> list[str]:
    known = sum(bool(layer.equation) for layer in stack.layers)
    if not known:
        return []
    count = len(stack.layers)
    return [
        f"torch.export agrees on all {count} layers" if known == count else f"torch.export agrees on {known} layers"
    ]
