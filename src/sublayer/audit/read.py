"""`audit`: from a model to the wiring of its layers."""

import contextlib
import gc
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from sublayer.audit import facts as fact
from sublayer.audit.acts import Unread
from sublayer.audit.depths import Elsewhere, other_depths
from sublayer.audit.designs import Written, write
from sublayer.audit.findings import broken_shape, findings
from sublayer.audit.flow import Flow
from sublayer.audit.inputs import Inputs
from sublayer.audit.layers import Layer, Run, runs
from sublayer.audit.result import Audit, AuditError, LayerAudit, Stack
from sublayer.audit.section import Reading
from sublayer.audit.stack import StackReader, StackReading
from sublayer.audit.tape import Tape, Value
from sublayer.audit.target import Target, open_target
from sublayer.audit.trace import trace

NORMS = ("layernorm", "rmsnorm", "dyt")  # what `norm` may stand for
MOST_STACKS = 12  # runs of layers: more are parts of layers that do not follow one another


@dataclass
class Found:
    """One stack on a tape: what was read of it, or why nothing was."""

    name: str
    run: Run
    reading: StackReading | None
    unknown: str = ""


def audit(target: Any, *, inputs: Any = None, verify: bool = False) -> Audit:
    """Read the wiring of a model from what it computes.

    Args:
        target: an ``nn.Module``, a config, a folder or ``config.json``, a Hub id, or ``package.module:callable`` that
            returns a module. No weights are read and nothing in a live module changes.
        inputs: what to feed it, where that cannot be guessed: a tensor, a tuple of arguments, or a dictionary.
        verify: read it a second time through ``torch.export`` and say where the two differ.

    Raises:
        AuditError: the target cannot be built or run; the message says what was tried.
    """
    with _garbage_kept():
        return _audit(target, inputs, verify)


@contextlib.contextmanager
def _garbage_kept() -> Iterator[None]:
    """No collection of garbage meanwhile: an audit makes a million small objects, drops them together at its end, and
    each look at them costs as much as a layer."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _audit(target: Any, inputs: Any, verify: bool) -> Audit:
    begin = time.perf_counter()
    opened = open_target(target, inputs)
    tape, used, failures = _run(opened)
    if tape is None:
        broken = broken_shape(failures[0][1], opened.module, failures[0][0])
        if broken is not None:
            return Audit(opened.name, (), (broken,), unknown="the model does not run: " + broken.message)
        raise AuditError(_why(opened, [e for _, e in failures]))
    result = read_tape(tape, opened)
    if used is not None and used.assumption:
        result = replace(result, assumptions=(used.assumption, *result.assumptions))
    if verify:
        from sublayer.audit.witness import compared

        result = compared(result, opened, used)
    result = replace(result, findings=findings(result))
    return replace(result, seconds=round(time.perf_counter() - begin, 3))


def _run(target: Target) -> tuple[Tape | None, Inputs | None, list[tuple[Inputs, Exception]]]:
    """A tape from the first inputs that the model takes."""
    failures: list[tuple[Inputs, Exception]] = []
    for attempt in target.attempts:
        try:
            return trace(target.module, attempt), attempt, failures
        except Exception as error:  # a model may raise anything when it is given what it does not expect
            failures.append((attempt, error))
    return None, None, failures


def _why(target: Target, errors: list[Exception]) -> str:
    last = str(errors[-1]).strip().splitlines() if errors else []
    said = (
        f"{type(errors[-1]).__name__}: {last[0][:200]}"
        if last
        else type(errors[-1]).__name__
        if errors
        else "no inputs"
    )
    return (
        f"an audit runs the model once on the meta device, and {target.name} ran with none of the {len(errors)} inputs "
        f"that were tried ({said}): give inputs=, the arguments of one forward call"
    )


def read_tape(tape: Tape, target: Target) -> Audit:
    """The audit of one recorded run, without findings."""
    flows = [Flow(tape, (name,)) for name in tape.main if name in tape.inputs]
    output = next((v for _, v in tape.outputs if any(f.is_live(v) for f in flows)), None)
    alive = fact.living(tape)
    common: dict[str, Any] = {
        "target": target.name,
        "dead_parameters": fact.dead_parameters(tape, alive),
        "dead_inputs": fact.dead_inputs(tape, alive),
        "assumptions": tuple(tape.assumptions),
        "witness": tape.witness,
    }
    if output is None:
        return Audit(stacks=(), unknown="no output depends on the data that was fed in", **common)
    found = _stacks(tape, flows, output, _configured(target.config))
    other = _elsewhere(target, found)
    stacks = []
    for k, one in enumerate(found):
        stacks.append(_stack(one, other[k] if k < len(other) else None, alive, tape))
    return Audit(stacks=tuple(stacks), **common)


def _found(tape: Tape, target: Target) -> list[Found]:
    flows = [Flow(tape, (name,)) for name in tape.main if name in tape.inputs]
    output = next((v for _, v in tape.outputs if any(f.is_live(v) for f in flows)), None)
    return _stacks(tape, flows, output, _configured(target.config)) if output is not None else []


def _stacks(tape: Tape, flows: list[Flow], output: Value, plain: str) -> list[Found]:
    everything = runs(tape, flows) or [Run("", [Layer(len(tape.inputs), len(tape.values), "")], framed=False)]
    if len(everything) > MOST_STACKS:
        whole = Run("", [layer for run in everything for layer in run.layers], framed=False)
        return [
            Found("model", whole, None, f"its calls fall into {len(everything)} runs: what a layer is cannot be told")
        ]
    found: list[Found] = []
    last = _flow_of(everything[-1], flows)
    if not last.is_live(output):
        last = _last(flows, output)
    for k, run in enumerate(everything):
        flow = _flow_of(run, flows)
        name = _name(k, len(everything), flow, flows)
        end = output if flow is last else _handed_on(flow, last, tape)
        if end is None:
            found.append(Found(name, run, None, "nothing that it computes reaches the output"))
            continue
        try:
            kind = plain or plain_norm(flow, run)
            final = run is everything[-1] or flow is not last
            before = [r.layers[-1].stop for r in everything[:k] if _flow_of(r, flows) is flow]
            reader = StackReader(flow, run, end, kind, _length(tape, flow), final, max(before, default=0))
            found.append(Found(name, run, reader.read()))
        except Unread as reason:
            found.append(Found(name, run, None, str(reason)))
    return found


def _name(k: int, count: int, flow: Flow, flows: list[Flow]) -> str:
    if count == 1:
        return "model"
    if count == 2 and len(flows) == 2:
        return "encoder" if flow is flows[0] else "decoder"
    return f"stack {k + 1}"


def plain_norm(flow: Flow, run: Run) -> str:
    """The kind that most norms of the layers have: what ``norm`` stands for in the equations."""
    start, stop = run.layers[0].start, run.layers[-1].stop
    kinds: Counter[str] = Counter()
    for n in flow.nodes:
        if n.kind == "norm" and n.detail.get("norm") in ("layernorm", "rmsnorm") and n.detail.get("over") == n.width:
            kinds[n.detail["norm"]] += 100 if start <= n.value.index < stop else 1
    return max(kinds, key=lambda k: (kinds[k], k == "layernorm")) if kinds else "layernorm"


def _configured(config: Any) -> str:
    """The kind of norm that a config names outright, if it names one."""
    if config is None:
        return ""
    try:
        fields = config.to_dict()
    except Exception:  # a config of somebody else's that cannot be written out has nothing to say
        return ""
    known = {"layernorm": "layernorm", "rmsnorm": "rmsnorm", "dyt": "dyt"}
    # (The norm of queries and keys is a kind of its own.)
    said = [v for name, v in fields.items() if isinstance(v, str) and "qk" not in name]
    kinds = {known.get(v.lower().replace("_", "")) for v in said} - {None}
    return str(kinds.pop()) if len(kinds) == 1 else ""


def _flow_of(run: Run, flows: list[Flow]) -> Flow:
    """The flow that is the stream of a run: of several, the one that most of its sums add to."""
    start, stop = run.layers[0].start, run.layers[0].stop

    def sums(flow: Flow) -> int:
        return sum(n.kind == "sum" and len(n.inputs) > 1 and start <= n.value.index < stop for n in flow.nodes)

    return max(reversed(flows), key=sums)


def _last(flows: list[Flow], output: Value) -> Flow:
    """The flow that makes the output: of several, the one that comes in last."""
    return next(flow for flow in reversed(flows) if flow.is_live(output))


def _handed_on(flow: Flow, to: Flow, tape: Tape) -> Value | None:
    """The last value of a flow that another flow reads: what an encoder hands on to a decoder."""
    read = {s.index for v in tape.values if to.is_live(v) for s in v.sources if flow.is_live(s) and not to.is_live(s)}
    if not read:
        return next((v for _, v in reversed(tape.outputs) if flow.is_live(v)), None)
    # Keys and values that the decoder makes of it have it as their one source.
    node = -1
    for k, index in enumerate(read):
        node = flow.of[index] if k == 0 else flow.meet(node, flow.of[index])
    return flow.nodes[node].value if node >= 0 else None


def _length(tape: Tape, flow: Flow) -> int:
    """Positions in the run: the second axis of ids, or of what a patch embedding makes of an image."""
    shape = tape.inputs[flow.main[0]].shape
    if len(shape) in (2, 3):
        return shape[1]
    counts = Counter(n.value.shape[1] for n in flow.nodes if n.kind == "norm" and len(n.value.shape) == 3)
    return counts.most_common(1)[0][0] if counts else 1


def _elsewhere(target: Target, found: list[Found]) -> list[Elsewhere]:
    """The same model with other numbers of layers, where something in it may depend on that."""
    stacks = [f.reading for f in found if f.reading]
    following = other_depths(stacks) if target.rebuild and stacks and len(stacks) == len(found) else None
    if following is None or target.rebuild is None:
        return []
    merged = [Elsewhere() for _ in found]
    seen = Elsewhere()
    seen.add(stacks[-1])
    while depths := following(seen.bounds):
        for depth in depths:
            try:
                module = target.rebuild(depth)
            except Exception:  # a config that cannot be made deeper says nothing of depth
                return merged
            tape, _, _ = _run(replace(target, module=module, rebuild=None))
            again = _found(tape, target) if tape else []
            if len(again) != len(found) or not all(one.reading for one in again):
                return merged
            for into, one in zip(merged, again, strict=True):
                if one.reading:
                    into.add(one.reading)
            seen.bounds.update(merged[-1].bounds)
            if depth not in seen.bounds:
                return merged
    return merged


def _stack(one: Found, other: Elsewhere | None, alive: set[int], tape: Tape) -> Stack:
    if one.reading is None:
        unread = [LayerAudit(i, layer.path, "", None, unknown=one.unknown) for i, layer in enumerate(one.run.layers)]
        return Stack(one.name, tuple(unread), "", "", None, unknown=one.unknown)
    reading = one.reading
    written = write(reading, other)
    facts = fact.Facts(reading, _length(tape, reading.flow))
    needed = fact.useful(reading.flow, alive)
    ends = [n for r, w in ((reading.embed, "embed"), (reading.final, "final")) if r for n in facts.norms(r, w)]
    layers = []
    owners: dict[tuple[str, ...], int] = {}
    for i, layer in enumerate(reading.layers):
        layers.append(_layer(i, layer.reading, layer.unknown, layer.layer, written, facts, needed, owners))
    kinds = Counter(
        n.kind
        for layer in layers
        for n in layer.norms
        if n.where.startswith(("input", "output", "stream")) and n.kind in NORMS
    )
    notes = list(reading.remarks) + (_remarks(reading.final) if reading.final else [])
    return Stack(
        one.name,
        tuple(layers),
        written.embed,
        written.final,
        written.design,
        written.unknown,
        kinds.most_common(1)[0][0] if kinds else "",
        reading.width,
        tuple(ends),
        tuple(notes),
    )


def _remarks(reading: Reading) -> list[str]:
    return list(dict.fromkeys(reading.remarks))


def _layer(
    index: int,
    reading: Reading | None,
    unknown: str,
    layer: Layer,
    written: Written,
    facts: fact.Facts,
    needed: set[int],
    owners: dict[tuple[str, ...], int],
) -> LayerAudit:
    dropped = facts.dropped(layer.start, layer.stop, needed)
    if reading is None:
        return LayerAudit(index, layer.path, "", None, unknown=unknown, dropped=dropped)
    branches = tuple(facts.branch(b, b.output in reading.shared) for b in reading.branches)
    names = tuple(n for b in branches for n in b.parameters)
    shares = owners.setdefault(names, index) if names else index
    design = written.singles[index]
    return LayerAudit(
        index,
        layer.path,
        written.equations[index],
        design,
        "" if design else "its equation is not one that the notation takes",
        branches,
        facts.norms(reading),
        dropped,
        shares if shares != index else None,
        tuple(_remarks(reading)),
    )
