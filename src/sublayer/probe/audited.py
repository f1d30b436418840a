"""Measure any model that the audit reads, at every + that it finds.

The audit says which values the equations are about; `places` says where a real run has them; `listen` takes rows of
them there. Nothing is believed: at every + the terms that were taken must add up to the sum that was taken.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sublayer.audit.located import Located, LocatedSection, locate
from sublayer.audit.result import AuditError
from sublayer.audit.target import undisturbed, unwrap
from sublayer.notation.program import Call, Section
from sublayer.probe.capture import Captured
from sublayer.probe.checks import wrong, wrong_norms
from sublayer.probe.errors import ProbeError
from sublayer.probe.feeding import Fed, Feeder, device_of
from sublayer.probe.heads import HeadWatch
from sublayer.probe.listen import Listener, rows_of
from sublayer.probe.measuring import Bootstrap, IsotropyCache, Record, SectionMeasure, reduced
from sublayer.probe.places import Key, Plan, Sight, plan
from sublayer.probe.rerun import Rerun
from sublayer.probe.sample import Kept, Spread, stride_of
from sublayer.probe.sums import equation


@dataclass
class _Group:
    """Values with the same positions, sampled alike."""

    spread: Spread
    texts: Kept
    parts: dict[Key, Kept] = field(default_factory=dict)
    rows: Tensor | None = None  # of the batch that is running
    thin: int = 1
    begun: set[Key] = field(default_factory=set)


@dataclass
class Reader:
    """A model whose values can be taken from a real run.

    Attributes:
        module: the live model.
        found: how it was traced.
        measures: for each stack the measures of its sections.
        plan: where to look; ``of`` says which node holds the value of (stack, place of the section, name).
    """

    module: nn.Module
    found: Located
    measures: list[list[SectionMeasure | None]]
    plan: Plan
    of: dict[tuple[int, int, str], Key]

    @classmethod
    def of_module(cls, model: nn.Module, batch: Any = None) -> "Reader":
        """Audit a model. Raises ProbeError with the audit's reason."""
        module = unwrap(model)
        try:
            found = locate(module)
        except AuditError as error:
            try:
                found = locate(module, _as_inputs(Feeder(module)(batch))) if batch is not None else _raise(error)
            except AuditError:
                raise ProbeError(f"the probe measures where the audit finds a +, and it found none: {error}") from error
        made: list[list[SectionMeasure | None]] = []
        wanted: dict[int, dict[int, set[str]]] = {}
        for s, stack in enumerate(found.stacks):
            cache = IsotropyCache()
            rerun = Rerun(stack.flow, module)
            made.append([_measure(one, cache, rerun) for one in stack.sections])
            wanted[s] = {k: m.wanted() for k, m in enumerate(made[-1]) if m is not None}
        places, of = plan(found, wanted)
        if not any(m is not None and m.section.sums for stack in made for m in stack):
            raise ProbeError(f"the probe measures where the audit finds a +, and it found none: {_reason(found)}")
        return cls(module, found, made, places, of)

    def names_at(self, key: Key) -> list[tuple[int, str]]:
        """(place of the section, value) of everything that a node is."""
        return [(place, name) for (s, place, name), k in self.of.items() if k == key and s == key[0]]


def _raise(error: Exception) -> Any:
    raise error


def _as_inputs(fed: Fed) -> Any:
    """A batch as inputs of an audit: two rows of it."""
    kwargs = {k: v[:2].cpu() if isinstance(v, Tensor) else v for k, v in fed.kwargs.items()}
    args = tuple(a[:2].cpu() if isinstance(a, Tensor) else a for a in fed.args)
    return args or kwargs


def _reason(found: Located) -> str:
    for stack in reversed(found.stacks):
        said = [stack.unknown, stack.stack.unknown, *(s.unknown for s in stack.sections)]
        reason = next((r for r in said if r), "")
        if reason:
            return reason
    return "no sum on a stream was recognised"


def _measure(located: LocatedSection, cache: IsotropyCache, rerun: Rerun) -> SectionMeasure | None:
    section = located.section
    if section is None:
        return None

    def apply(norm: Call, value: Tensor) -> Tensor | None:
        # Where two streams are still one value, several nodes hold a sum: the norm reads one of them.
        for begin, factor in located.nodes.get(norm.args[0], ()):
            for end, scale in located.nodes.get(norm.value, ())[:1]:
                found = rerun(begin, end, value / factor)
                if found is not None:
                    return scale * found
        return None

    return SectionMeasure(located.layer, located.name, section, located.number, located.depth, cache, apply, full=True)


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, no fast path that hides modules, no compilation; and everything as it was afterwards: training
    flags, random number generators, buffers, what a forward pass writes into attributes."""
    device = device_of(module)
    devices = [device] if device.type not in ("cpu", "meta") else []
    training = [m for m in module.modules() if m.training]
    buffers = [(b, b.detach().clone()) for b in module.buffers() if b.device.type != "meta"]
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        with (
            torch.random.fork_rng(devices=devices, device_type=device.type if devices else "cuda"),
            undisturbed(module),
            torch.compiler.set_stance("force_eager"),
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", message=".*global hooks on modules.*")
            torch.backends.mha.set_fastpath_enabled(False)
            for m in training:
                m.training = False
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for m in training:
            m.training = True
        with torch.no_grad():
            for b, before in buffers:
                if not torch.equal(b, before):
                    b.copy_(before)


def ran(module: nn.Module, fed: Fed) -> Any:
    """What a model returns for a batch. Raises ProbeError where it does not take it."""
    try:
        return module(*fed.args, **fed.kwargs)
    except Exception as error:  # a model may raise anything when it is given what it does not expect
        lines = str(error).strip().splitlines() or ["no message"]
        shapes = ", ".join(f"{n} {tuple(t.shape)}" for n, t in fed.named.items())
        raise ProbeError(
            f"a batch holds what the model's forward takes; with {shapes or 'what was given'} it raised "
            f"{type(error).__name__}: {lines[0][:200]}"
        ) from error


class _Run:
    """One pass over the batches."""

    def __init__(self, reader: Reader, limit: int, cheap: bool, heads: HeadWatch) -> None:
        self.reader, self.limit, self.cheap, self.heads = reader, limit, cheap, heads
        self.groups: dict[tuple[int, int], _Group] = {}
        self.of_key: dict[Key, set[tuple[int, int]]] = {}
        self.fed: Fed | None = None
        self.texts = 0
        self.types: dict[Key, torch.dtype] = {}

    def take(self, sight: Sight, tensor: Tensor) -> None:
        """Keep the chosen rows of a value."""
        assert self.fed is not None
        width = tensor.shape[sight.channels]
        positions = tensor.numel() // max(1, width)
        group = self._group(sight.key[0], positions)
        if sight.key in group.begun or group.rows is None:
            return
        group.begun.add(sight.key)
        self.types[sight.key] = tensor.dtype
        rows = rows_of(sight, tensor, group.rows).cpu()
        group.parts.setdefault(sight.key, Kept(self.limit)).add(group.thin, rows)

    def _real(self, stack: int, queries: int) -> Tensor | None:
        """Which queries of an attention are tokens, bool [rows, queries]."""
        assert self.fed is not None
        return self.fed.real(self.reader.found.stacks[stack].flow.main[0], self.fed.rows * queries)

    def _group(self, stack: int, positions: int) -> _Group:
        fed = self.fed
        assert fed is not None
        main = self.reader.found.stacks[stack].flow.main[0]
        tensor = fed.named.get(main, next(iter(fed.named.values()), None))
        length = tensor.shape[1] if tensor is not None and tensor.ndim > 1 else 1
        per_row = positions // fed.rows if positions % fed.rows == 0 else positions
        beside = per_row - length  # the same for batches of several lengths
        key = (stack, beside)
        group = self.groups.get(key)
        if group is None:
            width = self.reader.found.stacks[stack].stack.width if self.cheap else None
            group = self.groups[key] = _Group(Spread(self.limit, width), Kept(self.limit))
        if group.rows is None:
            real = fed.real(main, positions)
            if real is not None and tuple(real.shape) == (per_row, fed.rows) != (fed.rows, per_row):
                real = real.T  # the data has its positions before its rows, the mask has not
            flat = torch.ones(positions, dtype=torch.bool) if real is None else real.flatten()
            group.thin, group.rows = group.spread.add(flat)
            group.begun = set()
            texts = group.rows.cpu() // max(1, per_row) + self.texts
            group.texts.add(group.thin, texts)
        return group

    def batch(self, fed: Fed, listener: Listener) -> Any:
        """Run one batch."""
        self.fed = fed
        for group in self.groups.values():
            group.rows = None
        self.heads.batch = fed.rows
        self.heads.real = self._real
        with listener.following(self.reader.module):
            result = ran(self.reader.module, fed)
        self.heads.on = False
        for group in self.groups.values():
            for key in group.parts:
                if group.rows is not None and key not in group.begun:
                    group.parts[key].clear()  # it was not there this time: what is kept would not be of the same tokens
        self.texts += fed.rows
        return result


def audited(
    reader: Reader,
    batches: Iterable[Any],
    *,
    max_tokens: int | None,
    limit: int,
    attention_rows: int,
    bootstrap: Callable[[Tensor], Bootstrap] | None = None,
) -> tuple[list[Captured], HeadWatch]:
    """Run a model on batches that may be a stream of any length, and measure each of its stacks.

    Args:
        max_tokens: measured at most; None: as many, up to ``limit``, as keep the measuring cheap.
        attention_rows: rows of the first batch whose attention is looked at.
        bootstrap: given the row of each measured token, makes what resamples them.
    """
    heads = HeadWatch(attention_rows)
    cheap = max_tokens is None
    run = _Run(reader, limit if max_tokens is None else max_tokens, cheap, heads)
    listener = Listener(reader.plan, run.take, heads.look)
    feed = Feeder(reader.module)
    with untouched(reader.module), torch.no_grad():
        for batch in batches:
            run.batch(feed(batch), listener)
    if not run.texts:
        raise ProbeError("nothing to measure: batches is empty; give at least one batch")
    captured = [_stack(reader, s, run, bootstrap) for s in range(len(reader.found.stacks))]
    if not any(c.found and any(f.sums for f in c.found) for c in captured):
        reason = next((u["reason"] for c in captured for u in c.unmeasured), "no + has values that were found")
        raise ProbeError(f"no + of this model could be measured: {reason}")
    return captured, heads


def _stack(
    reader: Reader,
    s: int,
    run: _Run,
    bootstrap: Callable[[Tensor], Bootstrap] | None,
) -> Captured:
    located = reader.found.stacks[s]
    depth = len(located.spans)
    made = Captured(located.name, depth, [], 0, 0, 0, lambda layer: run.heads.of_layer(s, layer))
    if not located.sections:
        made.unmeasured.append(_lost(-1, "", "", located.unknown or "the audit read no layers"))
        return made
    by = dict.fromkeys(run.groups, 1)
    resample: dict[Any, Bootstrap | None] = {}
    for key, group in run.groups.items():
        if run.cheap and group.spread.kept:
            by[key] = stride_of(group.spread.kept, group.spread.seen, located.stack.width)
        texts = group.texts.rows(by[key])
        resample[key] = None if bootstrap is None else bootstrap(texts)
        if key[0] == s and group.spread.kept and len(texts) > made.tokens:
            made.seen, made.tokens, made.rows = group.spread.seen, len(texts), len(texts.unique())
            made.stride = group.spread.stride * by[key]
    for place, measure in enumerate(reader.measures[s]):
        section = located.sections[place]
        if measure is None:
            made.unmeasured.append(_lost(section.layer, section.name, "", section.unknown))
            continue
        values, types, group_key = _values(reader, s, place, measure.section, run, by)
        measure.barred.clear()
        lost = _not_there(reader, s, place, measure.section)
        bad = [(step, wrong(measure, step, values, types, lost)) for step in measure.section.sums]
        good = [step.value for step, reason in bad if not reason]
        bad += [(step, reason) for step, reason in wrong_norms(measure, values, types) if step.value in good]
        for step, reason in bad:
            if reason:
                measure.barred.add(step.value)
                made.unmeasured.append(_lost(section.layer, section.name, equation(measure.section, step), reason))
        made.found.append(reduced(measure, values, resample.get(group_key)))
        for name in list(values):
            del values[name]
    return made


def _has(group: _Group, key: Key) -> bool:
    return key in group.parts and group.parts[key].count > 0


def _not_there(reader: Reader, s: int, place: int, section: Section) -> dict[str, str]:
    """The values of a section that could not even be looked for, with the reason."""
    found = {}
    for name in (*section.inputs, *section.step):
        held = reader.of.get((s, place, name))
        if held is None:
            found[name] = "is no value of its own in the model"
        elif held in reader.plan.lost:
            found[name] = f"was not found in the run: {reader.plan.lost[held]}"
    return found


def _values(
    reader: Reader, s: int, place: int, section: Section, run: _Run, by: Mapping[Any, int]
) -> tuple[dict[str, Tensor], dict[str, torch.dtype], Any]:
    """The measured rows of a section's values, all of one group."""
    located = reader.found.stacks[s].sections[place]
    most: Any = None
    for key, group in run.groups.items():
        mine = [k for (a, b, _), k in reader.of.items() if (a, b) == (s, place) and _has(group, k)]
        if key[0] == s and (most is None or len(mine) > most[1]) and mine:
            most = (key, len(mine))
    if most is None:
        return {}, {}, None
    group = run.groups[most[0]]
    values, types = {}, {}
    for name in (*section.inputs, *section.step):
        held = reader.of.get((s, place, name))
        if held is None or not _has(group, held):
            continue
        factor = next(f for node, f in located.nodes[name] if node == held[1])
        found = group.parts[held].rows(by[most[0]])
        values[name] = found if factor == 1.0 else factor * found
        types[name] = run.types[held]
    counts = [len(v) for v in values.values()]
    usual = max(set(counts), key=counts.count) if counts else 0
    kept = {n: v for n, v in values.items() if len(v) == usual}
    return kept, types, most[0]


def _lost(layer: int, section: str, of: str, reason: str) -> Record:
    return {"layer": layer, "section": section or "block", "equation": of, "reason": reason}
