"""Run a Sublayer model and measure it at every `+` of its equation.

The forward pass is the model's own, in eval mode and without gradients; each section hands its values to a tap, which
copies the rows it needs and gives the value back as it is. Random number generators, training flags and gradients are
left as they were, so that a run with measuring and one without give the same weights.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sublayer.model.block import Wiring
from sublayer.notation.program import Call
from sublayer.probe.attention import AttentionWatch, document_ids, real_tokens
from sublayer.probe.errors import ProbeError
from sublayer.probe.measuring import Bootstrap, IsotropyCache, Record, Reduced, SectionMeasure, reduced
from sublayer.probe.sample import Kept, Spread, stride_of

Batch = Mapping[str, Any] | Tensor

# What the forward of the model takes from a batch; labels and the rest are not needed to look at the stream.
_INPUTS = ("input_ids", "attention_mask", "sequence_ids", "position_ids")


def measure(
    model: nn.Module,
    batches: Iterable[Batch] | Batch,
    *,
    step: int = 0,
    gradient_norms: Sequence[float | None] | None = None,
    max_tokens: int = 2048,
    attention_rows: int = 4,
) -> Record:
    """The measure record of `model` on `batches`.

    Args:
        model: SublayerModel or one of its heads, in any mode, on any device.
        batches: one batch or several: `input_ids` [batch, seq] as a tensor, or a mapping with `input_ids` and, where it
            has them, `attention_mask` (2-d), `sequence_ids`, `position_ids`. Other keys are ignored.
        step: written into the record.
        gradient_norms: one number a layer, from `gradient_norms(model)` after a backward pass.
        max_tokens: isotropy is taken on at most this many tokens, evenly spaced over the batches. Padding never counts;
            [MASK] positions of masked language modelling do. More tokens than hidden channels are advisable.
        attention_rows: rows of the first batch whose attention probabilities are looked at; 0 leaves them out.

    Returns:
        `{"step", "tokens", "sums", "layers"}`. `layer` is 0-based, -1 is the embed section and depth the final one.
        Each of `sums` has the isotropy of the stream `before` the +, of the sum `after` it, and for each term its
        `ratio` and `cosine` to the stream (coefficients included) and the isotropy `without` it. Where nothing but a
        norm reads the sum, `after` and `without` are taken behind that norm, so that like is compared with like. Every
        number is finite; one that is not defined is None.

    Raises:
        TypeError: not a Sublayer model.
        ValueError: no batch, no token, or a mask that is not 2-d.
    """
    base = _base(model)
    prepared = [_prepare(batch, base) for batch in ([batches] if isinstance(batches, Tensor | Mapping) else batches)]
    if not prepared:
        raise ProbeError("nothing to measure: batches is empty; give at least one batch of input_ids")
    chosen = _spread([real_tokens(batch) for batch in prepared], max_tokens)
    watchers = _watchers(base, False, sum(map(len, chosen)))
    attention = AttentionWatch(attention_rows)
    with _undisturbed(base), ExitStack() as stack:
        for watcher in watchers:
            stack.enter_context(watcher.attached())
        for number, batch in enumerate(prepared):
            for watcher in watchers:
                watcher.rows = chosen[number]
                watcher.last = number == len(prepared) - 1
            with attention.attached(base.layers, batch) if number == 0 else ExitStack():
                base(**batch, use_cache=False)

    found = [watcher.found for watcher in watchers]
    layers = []
    for of_layer in found[1:-1]:
        layer = of_layer.measure.layer
        gradient = None if gradient_norms is None else gradient_norms[layer]
        layers.append(
            {
                "layer": layer,
                "stream_norm": of_layer.stream["stream_norm"],
                "gradient_norm": gradient if gradient is not None and math.isfinite(gradient) else None,
                "attention": attention.of_layer(layer),
            }
        )
    return {
        "step": step,
        "tokens": sum(len(rows) for rows in chosen),
        "sums": [of_sum for each in found for of_sum in each.sums],
        "layers": layers,
    }


@dataclass
class Captured:
    """One stack after a run: what was measured in each section, and on how many tokens."""

    name: str
    depth: int
    found: list[Reduced]
    seen: int
    tokens: int
    rows: int
    attention: Callable[[int], list[dict[str, Any]]]
    unmeasured: list[Record] = field(default_factory=list)
    stride: int = 1


def is_ours(model: nn.Module) -> bool:
    """Whether a model is built from a design, so that its sections hand out their values themselves."""
    try:
        _base(model)
    except TypeError:
        return False
    return True


def tapped(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    max_tokens: int | None,
    limit: int,
    attention_rows: int,
    bootstrap: Callable[[Tensor], Bootstrap] | None = None,
) -> Captured:
    """Run one of our own models on batches that may be a stream of any length, and measure it in full.

    Args:
        max_tokens: measured at most; None: as many, up to ``limit``, as keep the measuring cheap.
        bootstrap: given the row of each measured token, makes what resamples them.
    """
    base = _base(model)
    attention = AttentionWatch(attention_rows)
    width = base.config.hidden_size
    spread = Spread(limit, width) if max_tokens is None else Spread(max_tokens)
    watchers = _watchers(base, True, spread.limit)
    rows = Kept(spread.limit)
    count = 0
    with _undisturbed(base), ExitStack() as stack:
        for watcher in watchers:
            stack.enter_context(watcher.attached())
        for number, given in enumerate(batches):
            batch = _prepare(given, base)
            real = real_tokens(batch)
            thin, chosen = spread.add(real)
            for watcher in watchers:
                watcher.rows, watcher.thin = chosen, thin
            rows.add(thin, (text_of(real, document_ids(batch), chosen) + count).cpu())
            count = int(count + real.numel())
            with attention.attached(base.layers, batch) if number == 0 else ExitStack():
                base(**batch, use_cache=False)
    if not spread.kept:
        raise ProbeError(f"nothing to measure: {spread.seen} tokens that are no padding in the batches; give some")
    by = stride_of(spread.kept, spread.seen, width) if max_tokens is None else 1
    texts = rows.rows(by)
    resample = None if bootstrap is None else bootstrap(texts)
    for watcher in watchers:
        watcher.finish(by, resample)
    return Captured(
        "model",
        len(base.layers),
        [watcher.found for watcher in watchers],
        spread.seen,
        len(texts),
        len(texts.unique()),
        attention.of_layer,
        stride=spread.stride * by,
    )


def text_of(real: Tensor, documents: Tensor | None, chosen: Tensor) -> Tensor:
    """A number for the text that each chosen position [k] of a batch belongs to: its document where these are known,
    else its row. ``real`` and ``documents`` are [batch, seq]; the numbers are the place where the text begins."""
    length = real.shape[1]
    row = chosen // length * length
    if documents is None:
        return row
    flat = documents.flatten()
    first = torch.zeros_like(flat, dtype=torch.bool)
    first[1:] = flat[1:] != flat[:-1]
    first[::length] = True
    starts = torch.where(first, torch.arange(len(flat), device=flat.device), torch.zeros_like(flat)).cummax(0).values
    return starts[chosen]


def _watchers(base: Any, full: bool, limit: int) -> list["_Watcher"]:
    """One for each section, in the order in which they run."""
    depth = len(base.layers)
    wirings = [(-1, "embed", base.embed_section)]
    wirings += [(i, "block", layer) for i, layer in enumerate(base.layers)]
    wirings += [(depth, "final", base.final_section)]
    cache = IsotropyCache()
    return [_Watcher.of(layer, name, wiring, depth, cache, full, limit) for layer, name, wiring in wirings]


def gradient_norms(model: nn.Module) -> list[float | None]:
    """The L2 norm of the gradient of each layer's parameters, from what `p.grad` holds now (so call it before the
    gradients are clipped or set to zero). None for a layer without gradients or with one that is not finite."""
    norms: list[float | None] = []
    for layer in _base(model).layers:
        gradients = [p.grad for p in layer.parameters() if p.grad is not None]
        total = float(nn.utils.get_total_norm(gradients)) if gradients else math.nan
        norms.append(total if math.isfinite(total) else None)
    return norms


def _base(model: nn.Module) -> Any:
    """The SublayerModel within `model`, out of its head and of what compilers and data parallelism wrap around it."""
    while isinstance(inner := getattr(model, "_orig_mod", getattr(model, "module", None)), nn.Module):
        model = inner
    base = getattr(model, "base_model", model)
    if not isinstance(getattr(base, "embed_section", None), Wiring):
        raise TypeError(
            f"the probe measures models built from a design, such as SublayerModel or SublayerForCausalLM: got "
            f"{type(model).__name__}"
        )
    return base


def _prepare(batch: Batch, base: nn.Module) -> dict[str, Tensor]:
    batch = batch[0] if isinstance(batch, tuple) else batch
    given = {"input_ids": batch} if isinstance(batch, Tensor) else dict(batch)
    if given.get("input_ids") is None:
        raise ProbeError(
            f"a batch has input_ids of shape [batch, seq]: got the keys {', '.join(map(str, given)) or 'none'}"
        )
    device = next(base.parameters()).device
    inputs = {k: torch.as_tensor(given[k]).to(device) for k in _INPUTS if given.get(k) is not None}
    for name, value in inputs.items():
        if value.ndim != 2:
            raise ProbeError(f"{name} has shape [batch, seq]: got {tuple(value.shape)}; put a batch axis in front")
    return inputs


def _spread(real: Sequence[Tensor], limit: int) -> list[Tensor]:
    """For each batch, the places in its flattened tokens that are measured: at most `limit` in all, evenly spaced."""
    places = [mask.flatten().nonzero().squeeze(1) for mask in real]
    total = sum(len(p) for p in places)
    if total == 0 or limit < 1:
        raise ProbeError(f"nothing to measure: {total} tokens that are no padding, max_tokens={limit}")
    count = min(total, limit)
    wanted = torch.arange(count, dtype=torch.int64) * total // count  # of all real tokens, in order
    chosen, begin = [], 0
    for p in places:
        mine = wanted[(wanted >= begin) & (wanted < begin + len(p))] - begin
        chosen.append(p[mine.to(p.device)])
        begin += len(p)
    return chosen


@contextmanager
def _undisturbed(base: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside; every training flag and random number generator as before, outside."""
    flags = [(module, module.training) for module in base.modules()]
    device = next(base.parameters()).device
    devices = [device] if device.type != "cpu" else []
    try:
        with torch.random.fork_rng(devices=devices, device_type=device.type if devices else "cuda"), torch.no_grad():
            base.eval()
            yield
    finally:
        for module, training in flags:
            module.training = training


@dataclass
class _Watcher:
    """One section of the running model: takes the rows it needs from the tap, and measures after the last batch."""

    wiring: Wiring
    measure: SectionMeasure
    limit: int
    rows: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    thin: int = 1
    last: bool = False
    found: Reduced = field(init=False)
    _taken: dict[str, Kept] = field(default_factory=dict)

    @classmethod
    def of(
        cls, layer: int, name: str, wiring: Wiring, depth: int, cache: IsotropyCache, full: bool, limit: int
    ) -> "_Watcher":
        def apply(norm: Call, value: Tensor) -> Tensor:
            found: Tensor = getattr(wiring, norm.site.name)(value)
            return found

        return cls(wiring, SectionMeasure(layer, name, wiring.section, wiring.layer, depth, cache, apply, full), limit)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Listen to the section's values; where it is known which batch is the last, reduce them as soon as it has
        passed."""
        wanted = self.measure.wanted()

        def tap(name: str, value: Tensor) -> Tensor:
            if name in wanted:
                new = value.detach().flatten(0, -2)[self.rows]  # [measured tokens, d]
                self._taken.setdefault(name, Kept(self.limit)).add(self.thin, new)
            return value

        def done(*_: Any) -> None:
            if self.last:
                self.finish()

        handle = self.wiring.register_forward_hook(done)
        try:
            with self.wiring.tapped(tap):
                yield
        finally:
            handle.remove()

    def finish(self, by: int = 1, bootstrap: Bootstrap | None = None) -> None:
        """Reduce what was taken to measures; ``by`` thins it out once more."""
        with torch.no_grad():
            values = {name: kept.rows(by) for name, kept in self._taken.items()}
            self._taken.clear()
            self.found = reduced(self.measure, values, bootstrap)
