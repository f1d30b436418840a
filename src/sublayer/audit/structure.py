"""Inputs for modules that follow no convention: guessed from forward's signature and from what the first layers are."""

import inspect
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sublayer.audit.sizes import BATCH, MOST_LENGTH, Sizes, channels, extents

Guess = tuple[tuple[Any, ...], dict[str, Any], tuple[str, ...], str]  # args, kwargs, names of the data, what is told

IDS = frozenset(
    "input_ids decoder_input_ids ids idx idxs input_idx tokens token_ids input_tokens src_tokens prev_output_tokens "
    "tokens_ids decoder_ids".split()
)
IMAGES = frozenset("pixel_values image images img imgs pixels".split())
MEMORIES = frozenset({"context", "memory", "encoder_hidden_states"})  # what cross-attention reads


def guesses(sizes: Sizes, parameters: dict[str, inspect.Parameter]) -> Iterator[Guess]:
    """Guess from the names and annotations of forward's parameters and from what the first layers are."""
    required = [n for n, p in parameters.items() if p.default is p.empty]
    required = required or [*parameters][:1] or ["input"]
    memories = _memories(sizes.module, parameters, required)
    for kind in _kinds(sizes, required[0]):
        for first, second in _pairs(sizes, kind):
            for bare in (True, False):
                values: list[Any] = []
                main = []
                for i, name in enumerate(required):
                    value = _argument(sizes, name, parameters.get(name), first if i == 0 else second, bare)
                    values.append(value)
                    if isinstance(value, Tensor) and "mask" not in name:
                        main.append(name)
                told = f"forward was given {', '.join(_say(n, a) for n, a in zip(required, values, strict=True))}"
                args, named = _by_position(parameters, dict(zip(required, values, strict=True)))
                yield args, named, tuple(main), told
                for name in memories:
                    memory = sizes.floats(BATCH, sizes.second, next(_widths(sizes.module), 64))
                    yield args, {**named, name: memory}, tuple(main), f"{told}, {_say(name, memory)}"
                if not any("mask" in n for n in required):
                    break


def _by_position(
    parameters: dict[str, inspect.Parameter], values: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments that go by position, and those that forward takes by name only."""
    named = {
        n: v for n, v in values.items() if n in parameters and parameters[n].kind is inspect.Parameter.KEYWORD_ONLY
    }
    return tuple(v for n, v in values.items() if n not in named), named


def _memories(module: nn.Module, parameters: dict[str, inspect.Parameter], required: list[str]) -> list[str]:
    """Optional arguments that cross-attention may need, forward's own or passed on by it to a module inside."""
    names = set(parameters)
    if any(p.kind is p.VAR_KEYWORD for p in inspect.signature(module.forward).parameters.values()):
        for kind in {type(m) for m in module.modules()}:
            names |= set(inspect.signature(kind.forward).parameters)
    return sorted(MEMORIES & names - set(required))


def _kinds(sizes: Sizes, name: str) -> list[str]:
    """Kinds of data, the likeliest first."""
    kinds = []
    if name in IDS:
        kinds.append("ids")
    if name in IMAGES:
        kinds.append("image")
    for m in sizes.module.modules():
        if next(m.children(), None) is None or isinstance(m, nn.MultiheadAttention):
            if isinstance(m, nn.Embedding):
                kinds.append("ids")
            elif isinstance(m, nn.Conv2d):
                kinds.append("image")
            elif isinstance(m, nn.Conv3d):
                kinds.append("video")
            elif isinstance(m, nn.Conv1d):
                kinds.append("signal")
            elif next(m.parameters(), None) is None:
                continue
            else:
                kinds.append("floats")
            break
    has_image = any(m.__dict__.get(n) for m in sizes.module.modules() for n in ("image_size", "img_size"))
    rest = ["ids", "floats", "image"] if not has_image else ["image", "ids", "floats"]
    if not any(isinstance(m, nn.Embedding) for m in sizes.module.modules()):
        rest.remove("ids")
    return [*dict.fromkeys([*kinds, *rest, "ids"])]


def _pairs(sizes: Sizes, kind: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Tensors for the first argument and for the others."""
    one, two = sizes.length, sizes.second
    if kind == "ids":
        yield sizes.ids(one), sizes.ids(two)
        yield sizes.ids(one), sizes.ids(one)
        longest = [
            v for m in sizes.module.modules() for k, v in m.__dict__.items() if isinstance(v, int) and "len" in k
        ]
        for length in sorted({n for n in longest if 1 < n <= MOST_LENGTH} | {64}):
            yield sizes.ids(length), sizes.ids(length)
    elif kind == "image":
        for height, width in extents(sizes):
            image = sizes.floats(BATCH, channels(sizes.module), height, width)
            yield image, image
    elif kind == "video":
        frames = [
            v for m in sizes.module.modules() for k, v in m.__dict__.items() if k in ("temporal_size", "num_frames")
        ]
        for (height, width), count in itertools.product(extents(sizes)[:3], dict.fromkeys([*frames, 16, 8])):
            clip = sizes.floats(BATCH, channels(sizes.module), count, height, width)
            yield clip, clip
    elif kind == "signal":
        for m in sizes.module.modules():
            if isinstance(m, nn.Conv1d):
                yield sizes.floats(BATCH, m.in_channels, 64 + one), sizes.floats(BATCH, m.in_channels, 64 + one)
                break
    else:
        late = any(getattr(m, "batch_first", True) is False for m in sizes.module.modules())
        for width in itertools.islice(_widths(sizes.module), 4):
            shapes = [(BATCH, one, width), (one, BATCH, width)]
            for a in reversed(shapes) if late else shapes:
                b = (BATCH, two, width) if a[0] == BATCH else (two, BATCH, width)
                yield sizes.floats(*a), sizes.floats(*b)
            yield sizes.floats(BATCH, one, width), sizes.floats(BATCH, one, width)


def _widths(module: nn.Module) -> Iterator[int]:
    seen = set()
    for m in module.modules():
        width: Any = None
        if isinstance(m, nn.MultiheadAttention):
            width = m.embed_dim
        elif isinstance(m, nn.Linear):
            width = m.in_features
        elif m.__dict__.get("normalized_shape"):
            width = m.__dict__["normalized_shape"][-1]
        elif isinstance(m.__dict__.get("dim"), int):
            width = m.__dict__["dim"]
        else:
            own = [p for p in m.parameters(recurse=False) if p.dim() == 1]
            width = own[0].shape[0] if own else None
        if isinstance(width, int) and width > 0 and width not in seen:
            seen.add(width)
            yield width


def _argument(sizes: Sizes, name: str, parameter: inspect.Parameter | None, tensor: Tensor, bare: bool) -> Any:
    annotation = getattr(parameter, "annotation", None)
    for kind, value in ((bool, False), (int, 0), (float, 0.0)):
        if annotation is kind or annotation == kind.__name__:
            return value
    if "mask" in name:
        return None if bare else torch.ones(BATCH, tensor.shape[1], dtype=torch.bool)
    return tensor.clone()


def _say(name: str, value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{name}: {'floats' if value.is_floating_point() else 'ids'} {list(value.shape)}"
    return f"{name}: {value}"
