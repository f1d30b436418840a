"""What to feed a model so that it runs once: read from forward's signature, the config's sizes and the modules.

No list of model names decides anything here. Inputs are small real tensors on the CPU: the tracer knows their numbers,
so that a model which looks at its ids or its mask takes its real path.
"""

import inspect
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sublayer.audit.result import AuditError
from sublayer.audit.sizes import BATCH, MOST_LENGTH, Sizes, channels, extents
from sublayer.audit.structure import guesses

FIELD_OF_BLOCKS = re.compile(r"window|block_size|chunk|stride|segment|pool|patch|local_attn|lcm")


@dataclass(frozen=True)
class Inputs:
    """Arguments of one forward call.

    Attributes:
        args, kwargs: what is passed.
        main: names of the tensors through which data comes in, in order of the stacks they feed. Positional ones have
            the names that forward gives them.
        assumption: what the user is told when these were used; empty where there is nothing to tell.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    main: tuple[str, ...]
    assumption: str = ""


def given(module: nn.Module, inputs: Any) -> Inputs:
    """The user's own inputs: a tensor, a tuple or list of positional arguments, or a dict of named ones."""
    if isinstance(inputs, Inputs):
        return inputs
    if isinstance(inputs, Tensor):
        inputs = (inputs,)
    if isinstance(inputs, dict) or (hasattr(inputs, "keys") and hasattr(inputs, "__getitem__")):
        kwargs = {str(k): inputs[k] for k in inputs}
        args: tuple[Any, ...] = ()
    elif isinstance(inputs, tuple | list):
        kwargs, args = {}, tuple(inputs)
    else:
        raise AuditError(
            f"inputs must be a tensor, a tuple of positional arguments or a dict of named ones; got "
            f"{type(inputs).__name__}; pass inputs={{'input_ids': torch.tensor([[5, 6, 7]])}}"
        )
    names = [*_parameters(module)]
    names += [f"argument {i}" for i in range(len(names), len(args))]
    tensors = [(n, v) for n, v in (*zip(names, args, strict=False), *kwargs.items()) if isinstance(v, Tensor)]
    if not tensors:
        raise AuditError(
            f"inputs must hold at least one tensor; got {type(inputs).__name__} without any; pass what forward takes, "
            "such as inputs={'input_ids': torch.tensor([[5, 6, 7]])}"
        )
    main = tuple(n for n, _ in tensors if "mask" not in n and not n.endswith(("position_ids", "token_type_ids")))
    return Inputs(args, kwargs, main or (tensors[0][0],))


def _parameters(module: nn.Module) -> dict[str, inspect.Parameter]:
    """The named parameters of forward; of a wrapper that passes everything on, those of what it wraps."""
    for _ in range(8):
        try:
            signature = inspect.signature(module.forward)
        except (TypeError, ValueError):
            return {}
        named = {
            n: p
            for n, p in signature.parameters.items()
            if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and n != "self"
        }
        children = [*module.children()]
        if named or not children:
            return named
        module = children[0]
    return {}


def attempts(module: nn.Module, config: Any = None) -> tuple[Inputs, ...]:
    """Inputs to try, in order, until the model runs."""
    sizes = Sizes(module, config)
    parameters = _parameters(module)
    if "input_ids" in parameters:
        return tuple(_of_text(sizes, parameters))
    main = getattr(module, "main_input_name", None)
    if isinstance(main, str) and main in parameters and main != "input_ids":
        return tuple(_of_signals(sizes, parameters, main))
    return tuple(Inputs(*guess) for guess in guesses(sizes, parameters))


# --- models that name their inputs as Hugging Face does --------------------------------------------------------------


def _of_text(sizes: Sizes, parameters: dict[str, inspect.Parameter]) -> Iterator[Inputs]:
    """Token ids, with a mask and without, with everything else that forward takes, longer."""
    plain = sizes.length
    masks = (True, False) if "attention_mask" in parameters else (False,)
    for masked in masks:
        yield _text(sizes, parameters, plain, masked)
    if "position_ids" in parameters:
        # Some count positions from a padding id that their config may leave open.
        for masked in masks:
            base = _text(sizes, parameters, plain, masked)
            places = torch.arange(plain).expand(BATCH, plain).contiguous()
            yield Inputs((), base.kwargs | {"position_ids": places}, base.main, "position_ids had to be given too")
    labels = _labels(sizes, parameters, plain)
    if labels:
        for masked in masks:
            base = _text(sizes, parameters, plain, masked)
            told = f"{', '.join(labels)} had to be given too"
            yield Inputs((), base.kwargs | labels, base.main, told)
    books = sizes.number("num_codebooks", "n_codebooks")
    if books > 1:
        # one row of ids for each book of codes, folded into the batch by some and a third axis for others
        for masked in masks:
            base = _text(sizes, parameters, plain, masked)
            rows = sizes.ids(plain).repeat(books, 1)
            for ids in (rows, rows.view(books, BATCH, plain).permute(1, 2, 0).contiguous()):
                yield Inputs((), base.kwargs | {"input_ids": ids}, base.main, f"ids of {books} codebooks were given")
    for length in _longer(sizes):
        for masked in masks:
            yield _text(sizes, parameters, length, masked)
    signals = {n: [*SIGNALS[n](sizes)] for n in parameters if n in SIGNALS}
    for made in itertools.zip_longest(*signals.values()) if signals else ():
        extra = {n: t if t is not None else signals[n][0] for n, t in zip(signals, made, strict=True)}
        base = _text(sizes, parameters, plain, False)
        told = f"{', '.join(extra)} had to be given too, and it ran only without an attention mask"
        yield Inputs((), base.kwargs | extra, (*extra, *base.main), told)


def _text(sizes: Sizes, parameters: dict[str, inspect.Parameter], length: int, masked: bool) -> Inputs:
    kwargs: dict[str, Any] = {"input_ids": sizes.ids(length)}
    main = ["input_ids"]
    if masked:
        kwargs["attention_mask"] = sizes.mask(length)
    if "decoder_input_ids" in parameters:
        other = sizes.second if length == sizes.length else length
        kwargs["decoder_input_ids"] = sizes.ids(other)
        main.append("decoder_input_ids")
        if masked and "decoder_attention_mask" in parameters:
            kwargs["decoder_attention_mask"] = sizes.mask(other)
    if "encoder_hidden_states" in parameters and sizes.fields.get("add_cross_attention") is True:
        kwargs["encoder_hidden_states"] = sizes.floats(BATCH, sizes.second, _memory_width(sizes))
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in kwargs:
            kwargs |= _extras(sizes, {name: parameter}, length)
    if "use_cache" in parameters:
        kwargs["use_cache"] = False
    told = []
    if not masked and "attention_mask" in parameters:
        told.append("it ran only without an attention mask")
    if length != sizes.length:
        told.append(f"it was given {length} tokens")
    return Inputs((), kwargs, tuple(main), "; ".join(told))


def _longer(sizes: Sizes) -> list[int]:
    """Lengths that models which work in blocks accept: multiples of every number that looks like a block."""
    blocks = set()
    for name, value in sizes.fields.items():
        if FIELD_OF_BLOCKS.search(name.rpartition(".")[2]):
            for n in value if isinstance(value, list | tuple) else (value,):
                if isinstance(n, int) and not isinstance(n, bool) and 1 < n <= MOST_LENGTH:
                    blocks.add(n)
    lengths = []
    for block in sorted(blocks):
        lengths += [n for n in (block, 3 * block) if 8 <= n <= MOST_LENGTH]
    return [*dict.fromkeys([*lengths, 64, 97, 128, 509])][:10]


def _of_signals(sizes: Sizes, parameters: dict[str, inspect.Parameter], main: str) -> Iterator[Inputs]:
    """Images, sound: what forward calls its main input, then with everything else."""
    fixed: dict[str, Any] = {"use_cache": False} if "use_cache" in parameters else {}
    if "decoder_input_ids" in parameters:
        fixed["decoder_input_ids"] = sizes.ids(sizes.second)
    names = (main, *(n for n in ("decoder_input_ids",) if n in fixed))
    required = {n: p for n, p in parameters.items() if p.default is p.empty and n != main}
    fixed |= _extras(sizes, required, sizes.length)
    made = [*SIGNALS[main](sizes)] if main in SIGNALS else []
    for tensor in made:
        yield Inputs((), {main: tensor, **fixed}, names)
    extra = {n: t for n, t in _extras(sizes, parameters, sizes.length).items() if n != main and n not in fixed}
    for tensor in made:
        yield Inputs((), {main: tensor, **fixed, **extra}, names, f"{', '.join(extra)} had to be given too")
    yield from (Inputs(*guess) for guess in guesses(sizes, parameters))


def _labels(sizes: Sizes, parameters: dict[str, inspect.Parameter], length: int) -> dict[str, Any]:
    """What forward takes for each token beside its id, where we know how to make it."""
    made: dict[str, Any] = {}
    for name in parameters:
        if name == "bbox":
            # left, top, right, bottom, in thousandths of the page
            corner = torch.randint(0, 100, (BATCH, length, 2), generator=sizes.generator)
            made[name] = torch.cat([corner, corner + 100], -1)
        elif name == "lang_ids":
            made[name] = torch.zeros(BATCH, dtype=torch.long)
        elif name in ("token_type_ids", "langs", "mm_token_type_ids"):
            made[name] = torch.zeros(BATCH, length, dtype=torch.long)
    return made


def _extras(sizes: Sizes, parameters: dict[str, inspect.Parameter], length: int) -> dict[str, Any]:
    """The first choice of everything that forward takes beside ids and masks."""
    made = _labels(sizes, parameters, length)
    for name in parameters:
        if name in SIGNALS:
            made[name] = next(SIGNALS[name](sizes))
        elif name == "encoder_hidden_states":
            made[name] = sizes.floats(BATCH, sizes.second, _memory_width(sizes))
    return made


def _memory_width(sizes: Sizes) -> int:
    return sizes.number(
        "cross_attention_hidden_size", "encoder_hidden_size", "hidden_size", "d_model", "n_embd", default=64
    )


def _images(sizes: Sizes) -> Iterator[Tensor]:
    colours = sizes.number(
        "num_channels", "in_channels", "in_chans", "num_input_channels", default=channels(sizes.module)
    )
    frames = sizes.number("num_frames", "frames_per_clip")
    for height, width in extents(sizes):
        if frames:
            yield sizes.floats(BATCH, frames, colours, height, width)
        yield sizes.floats(BATCH, colours, height, width)


def _videos(sizes: Sizes) -> Iterator[Tensor]:
    height, width = next(iter(extents(sizes)))
    yield sizes.floats(
        BATCH, sizes.number("num_frames", default=4), sizes.number("num_channels", default=3), height, width
    )


def _spectra(sizes: Sizes) -> Iterator[Tensor]:
    bins = sizes.number("num_mel_bins", "feature_size", "input_feat_per_channel", "n_mels", "input_dim", default=80)
    frames = 2 * sizes.number("max_source_positions", default=100)
    # some add their frames to the tokens, after a convolution that leaves one in a few
    for n in dict.fromkeys((frames, 200, 1024, *(k * sizes.length for k in (8, 4, 2, 1)))):
        yield sizes.floats(BATCH, bins, n)
        yield sizes.floats(BATCH, n, bins)


def _waves(sizes: Sizes) -> Iterator[Tensor]:
    yield sizes.floats(BATCH, 16_000)
    yield sizes.floats(BATCH, sizes.number("max_length", default=1024), sizes.number("num_mel_bins", default=128))
    yield sizes.floats(BATCH, 1, 24_000)


SIGNALS = {
    "pixel_values": _images,
    "pixel_values_videos": _videos,
    "input_features": _spectra,
    "input_values": _waves,
}
