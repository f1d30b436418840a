"""The whole record of a probe: one or two passes over the batches, put together."""

import itertools
import math
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import sublayer
from sublayer.audit.target import unwrap
from sublayer.probe.audited import Reader, audited
from sublayer.probe.capture import Captured, is_ours, tapped
from sublayer.probe.errors import LossError, ProbeError
from sublayer.probe.feeding import Feeder, single, stream_of
from sublayer.probe.gradients import gradients
from sublayer.probe.heads import HeadWatch
from sublayer.probe.intervals import RESAMPLES, TermSamples, TextBootstrap
from sublayer.probe.intervals import intervals as summarised
from sublayer.probe.lens import lens as by_lens
from sublayer.probe.losses import Loss
from sublayer.probe.measuring import Record

SCHEMA = "sublayer.probe/1"
LIMIT = 2048  # tokens that are measured at most where nobody says how many
LIMIT_ALL = 4096


def record(
    model: nn.Module,
    batches: Any,
    *,
    max_tokens: int | None,
    attention_rows: int,
    everything: str,
    loss: Loss | None,
    lens: bool,
    intervals: bool | int,
    seed: int,
    via: str | None,
    extra_tokens: int,
    step: int,
    gradient_norms: Sequence[float | None] | None,
) -> Record:
    """See `sublayer.probe.result.probe`."""
    if not isinstance(model, nn.Module):
        raise ProbeError(f"the probe measures an nn.Module: got {type(model).__name__}; give the live model")
    if everything not in ("default", "all"):
        raise ProbeError(f"measures is 'default' or 'all': got {everything!r}")
    if max_tokens is not None and max_tokens < 2:
        raise ProbeError(f"max_tokens is at least 2: got {max_tokens}")
    ours = is_ours(model)
    via = via or ("taps" if ours else "audit")
    if via not in ("taps", "audit") or (via == "taps" and not ours):
        raise ProbeError(f"via is 'audit', or 'taps' for a model built from a design: got {via!r} for "
                         f"{type(unwrap(model)).__name__}")  # fmt: skip
    full = everything == "all"
    limit = LIMIT_ALL if full else LIMIT
    most = limit if full and max_tokens is None else max_tokens
    resamples = RESAMPLES if intervals is True else int(intervals)
    resample = (lambda texts: TextBootstrap(texts, resamples, seed)) if resamples else None

    first, rest = _peeked(batches)
    passing: Iterable[Any] = itertools.chain(first, rest)
    more = bool(loss) or lens or full
    kept: list[Any] = []
    if more:
        passing = _kept(passing, kept, extra_tokens)
    reader: Reader | None = None
    heads: HeadWatch | None = None
    if via == "audit" or more:
        reader = Reader.of_module(model, first[0] if first else None)
    if via == "taps":
        captured = [
            tapped(model, passing, max_tokens=most, limit=limit, attention_rows=attention_rows, bootstrap=resample)
        ]
    else:
        assert reader is not None
        captured, heads = audited(
            reader, passing, max_tokens=most, limit=limit, attention_rows=attention_rows, bootstrap=resample
        )
    made = [_stack_record(c, resamples, seed) for c in captured]
    main = made[-1]
    if gradient_norms is not None:
        for layer, norm in zip(main["layers"], gradient_norms, strict=False):
            layer["gradient_norm"] = norm if norm is not None and math.isfinite(norm) else None
    if more:
        assert reader is not None
        causal = heads.causal(len(captured) - 1) if heads is not None else _causal(model)
        _add_more(reader, kept, made, loss or True, causal, wants=(bool(loss) or full, lens or full))
    return {
        "schema": SCHEMA,
        "step": step,
        **main,
        "others": made[:-1],
        "source": via,
        "model": {
            "class": type(unwrap(model)).__name__,
            "parameters": sum(p.numel() for p in model.parameters()),
            "dtype": str(next((p.dtype for p in model.parameters()), None)).removeprefix("torch."),
        },
        "versions": {
            "sublayer": sublayer.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
    }


def _peeked(batches: Any) -> tuple[list[Any], Iterator[Any]]:
    """The first batch and the others."""
    if isinstance(batches, str | bytes):
        raise ProbeError("batches are tensors or mappings of them: got text; tokenize it first")
    following = iter(single(batches) or stream_of(batches))
    return list(itertools.islice(following, 1)), following


def _kept(batches: Iterable[Any], kept: list[Any], most: int) -> Iterator[Any]:
    """The batches, of which the first ones, up to so many tokens, are kept."""
    held = 0
    for batch in batches:
        values = batch.values() if hasattr(batch, "values") and not isinstance(batch, Tensor) else batch
        tensors = [batch] if isinstance(batch, Tensor) else [v for v in values if isinstance(v, Tensor)]
        size = next((math.prod(t.shape[:2]) for t in tensors), 1)
        if not kept or held + size <= most:
            kept.append(batch)
            held += size
        yield batch


def _causal(model: Any) -> bool | None:
    """Whether a model of ours attends to the past alone."""
    found = [m.is_causal for m in model.modules() if hasattr(m, "is_causal")]
    return all(found) if found else None


def _stack_record(captured: Captured, resamples: int, seed: int) -> Record:
    samples: list[TermSamples] = [t for f in captured.found for t in f.intervals or ()]
    by_layer = {f.measure.layer: f for f in captured.found if f.measure.name == "block"}
    layers = []
    for k in range(captured.depth):
        found = by_layer.get(k)
        layer: Record = {"layer": k, "stream_norm": dict.fromkeys(("q25", "median", "q75"))}
        layer["gradient_norm"] = None
        layer["attention"] = captured.attention(k)
        layer["equation"] = found.measure.section.text if found is not None else None
        layer["rogue"] = {"cosine": [], "magnitude": [], "magnitude_count": 0}
        layer["isotropy"] = dict.fromkeys(_MEASURES)
        layer |= found.stream if found is not None else {}
        layers.append(layer)
    return {
        "stack": captured.name,
        "tokens": captured.tokens,
        "tokens_seen": captured.seen,
        "every": captured.stride,
        "texts": captured.rows,
        "sums": [s for f in captured.found for s in f.sums],
        "layers": layers,
        "norms": [n for f in captured.found for n in f.norms],
        "not_measured": captured.unmeasured,
        "intervals": summarised(samples, resamples, seed, captured.rows) if resamples else None,
        "lens": None,
        "gradients": None,
    }


_MEASURES = ("mean_cosine", "iso_score", "partition_ratio", "rank_one_residual", "effective_rank")


def _add_more(
    reader: Reader,
    kept: Sequence[Any],
    made: Sequence[Record],
    loss: Loss,
    causal: bool | None,
    wants: tuple[bool, bool],
) -> None:
    """Gradients and lens, or why there are none."""
    feed = Feeder(reader.module)
    fed = [feed(batch) for batch in kept]

    def tried(measure: Callable[..., Record]) -> Record:
        try:
            return measure(reader, fed, loss, causal)
        except LossError:
            raise
        except ProbeError as error:
            return {"not_measured": str(error)}

    if wants[0]:
        found = tried(gradients)
        by_stack = found.pop("stacks", None)
        for k, stack in enumerate(made):
            stack["gradients"] = found
            for layer, norms in zip(stack["layers"], by_stack[k] if by_stack else (), strict=False):
                layer["gradient_norm"] = norms["gradient_norm"]
                layer["gradient_norms"] = norms["branches"]
    if wants[1]:
        made[-1]["lens"] = tried(by_lens)
