"""Run a Sublayer model and measure it at every `+` of its equation.

The forward pass is the model's own, in eval mode and without gradients; each section hands its values to a tap, which
copies the rows it needs and gives the value back as it is. Random number generators, training flags and gradients are
left as they were, so that a run with measuring and one without give the same weights.
"""

import math
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sublayer.model.block import Wiring
from sublayer.notation.program import Add, Section
from sublayer.probe import measures
from sublayer.probe.attention import AttentionWatch, real_tokens
from sublayer.probe.measures import Isotropy
from sublayer.probe.sums import equation, following_norm, kind, stream_name

Batch = Mapping[str, Any] | Tensor
Record = dict[str, Any]

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
        raise ValueError("nothing to measure: batches is empty; give at least one batch of input_ids")
    chosen = _spread([real_tokens(batch) for batch in prepared], max_tokens)
    depth = len(base.layers)
    wirings = [(-1, "embed", base.embed_section)]
    wirings += [(i, "block", layer) for i, layer in enumerate(base.layers)]
    wirings += [(depth, "final", base.final_section)]

    cache = _IsotropyCache()
    watchers = [_Watcher(layer, section, wiring, depth, cache) for layer, section, wiring in wirings]
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

    layers = []
    for watcher in watchers[1:-1]:
        gradient = None if gradient_norms is None else gradient_norms[watcher.layer]
        layers.append(
            {
                "layer": watcher.layer,
                "stream_norm": watcher.stream_norm,
                "gradient_norm": gradient if gradient is not None and math.isfinite(gradient) else None,
                "attention": attention.of_layer(watcher.layer),
            }
        )
    return {
        "step": step,
        "tokens": sum(len(rows) for rows in chosen),
        "sums": [found for watcher in watchers for found in watcher.sums],
        "layers": layers,
    }


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
    given = {"input_ids": batch} if isinstance(batch, Tensor) else dict(batch)
    if given.get("input_ids") is None:
        raise ValueError(
            f"a batch has input_ids of shape [batch, seq]: got the keys {', '.join(map(str, given)) or 'none'}"
        )
    device = next(base.parameters()).device
    inputs = {k: torch.as_tensor(given[k]).to(device) for k in _INPUTS if given.get(k) is not None}
    for name, value in inputs.items():
        if value.ndim != 2:
            raise ValueError(f"{name} has shape [batch, seq]: got {tuple(value.shape)}; put a batch axis in front")
    return inputs


def _spread(real: Sequence[Tensor], limit: int) -> list[Tensor]:
    """For each batch, the places in its flattened tokens that are measured: at most `limit` in all, evenly spaced."""
    places = [mask.flatten().nonzero().squeeze(1) for mask in real]
    total = sum(len(p) for p in places)
    if total == 0 or limit < 1:
        raise ValueError(f"nothing to measure: {total} tokens that are no padding, max_tokens={limit}")
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


class _IsotropyCache:
    """Isotropy of clouds seen a moment ago: the sum of one + is often the stream before the next."""

    def __init__(self) -> None:
        self._seen: deque[tuple[Tensor, Isotropy]] = deque(maxlen=8)

    def __call__(self, x: Tensor) -> Isotropy:
        for other, found in self._seen:
            if other.shape == x.shape and other.dtype == x.dtype and torch.equal(other, x):
                return found
        # Apple's GPUs have no float64
        found = measures.isotropy(x.cpu() if x.device.type == "mps" else x)
        self._seen.append((x, found))
        return found


@dataclass
class _Watcher:
    """One section of the running model: takes the rows it needs from the tap, and measures after the last batch."""

    layer: int
    name: str
    wiring: Wiring
    depth: int
    isotropy: _IsotropyCache
    rows: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    last: bool = False
    sums: list[Record] = field(default_factory=list)
    stream_norm: measures.Quartiles = field(default_factory=dict)
    _taken: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))

    @property
    def section(self) -> Section:
        return self.wiring.section

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Listen to the section's values, and reduce them to measures as soon as the last batch has passed."""
        wanted = {value for step in self.section.sums for value in (step.value, *step.args)}
        wanted |= {norm.value for step in self.section.sums if (norm := following_norm(self.section, step.value))}
        wanted.add(dict(self.section.outputs)["x"])

        def tap(name: str, value: Tensor) -> Tensor:
            if name in wanted:
                self._taken[name].append(value.detach().flatten(0, -2)[self.rows])  # [measured tokens, d]
            return value

        def done(*_: Any) -> None:
            if self.last:
                values = {name: torch.cat(parts) for name, parts in self._taken.items()}
                self._taken.clear()
                self.sums = [self._measured(step, values) for step in self.section.sums]
                self.stream_norm = measures.stream_norm(values[dict(self.section.outputs)["x"]])

        handle = self.wiring.register_forward_hook(done)
        try:
            with self.wiring.tapped(tap):
                yield
        finally:
            handle.remove()

    def _measured(self, step: Add, values: Mapping[str, Tensor]) -> Record:
        section, number = self.section, self.wiring.layer
        norm = following_norm(section, step.value)
        assert step.stream is not None
        weighted = {v: scalar.value(number, self.depth) * values[v] for scalar, v in step.terms}  # each [tokens, d]
        stream = weighted[step.stream]
        terms = []
        for _, value in step.terms:
            if value == step.stream:
                continue
            rest = [v for other, v in weighted.items() if other != value]
            without = rest[0]
            for more in rest[1:]:
                without = without + more
            if norm is not None:
                without = getattr(self.wiring, norm.site.name)(without)
            terms.append(
                {
                    "term": section.label(value),
                    "kind": kind(section, value),
                    "ratio": measures.term_ratio(weighted[value], stream),
                    "cosine": measures.cosine(weighted[value], stream),
                    "without": self.isotropy(without),
                }
            )
        return {
            "layer": self.layer,
            "section": self.name,
            "value": step.value,
            "stream": stream_name(section, step.stream),
            "equation": equation(section, step),
            "before": self.isotropy(values[step.stream]),
            "after": self.isotropy(values[step.value if norm is None else norm.value]),
            "terms": terms,
        }
