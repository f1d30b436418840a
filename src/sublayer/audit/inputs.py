"""What to feed a model so that it runs once: read from the signature of its forward, its config's sizes and its modules.

No list of model names decides anything here. Inputs are small real tensors on the CPU: the tracer knows their numbers, so
that a model which looks at its ids or its mask takes its real path.
"""

import inspect
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sublayer.audit.result import AuditError

BATCH = 2
PRIMES = (13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97)
SMALL_PRIMES = (11, 7, 5, 3, 2)
MOST_LENGTH = 1 << 14
IMAGE_SIZES = (224, 256, 384, 448, 32, 512, 64, 28, 518, 196)

IDS = frozenset(
    "input_ids decoder_input_ids ids idx idxs input_idx tokens token_ids input_tokens src_tokens prev_output_tokens "
    "tokens_ids decoder_ids".split()
)
IMAGES = frozenset("pixel_values image images img imgs pixels".split())
MEMORIES = frozenset({"context", "memory", "encoder_hidden_states"})  # what cross-attention reads
FIELD_OF_IDS = re.compile(r"(_token_ids?|_token_index|_ids?|_idx)$")
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


@dataclass
class Sizes:
    """Numbers that inputs are made from."""

    module: nn.Module
    config: Any = None
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(20))

    def __post_init__(self) -> None:
        self.fields = dict(fields_of(self.config))
        self.vocabulary = self._vocabulary()
        taken = {abs(v) for v in self.fields.values() if isinstance(v, int)}
        if not self.fields:
            taken = {n for p in self.module.parameters() for n in p.shape}
        most = min([v for k, v in self.fields.items() if self._bounds_length(k, v)], default=MOST_LENGTH)
        free = [p for p in PRIMES if p not in taken and 2 * p not in taken and p + 2 <= most]
        free += [p for p in SMALL_PRIMES if p + 2 <= most]
        self.length, self.second = (free + [2, 2])[:2]
        special = {
            n
            for k, v in self.fields.items()
            if FIELD_OF_IDS.search(k)
            for n in (v if isinstance(v, list | tuple) else (v,))
            if isinstance(n, int)
        }
        first = min(self.vocabulary, 1 << 16)
        self.allowed = [i for i in range(3, first) if i not in special] or list(range(max(first, 1)))

    @staticmethod
    def _bounds_length(name: str, value: Any) -> bool:
        return isinstance(value, int) and value > 2 and bool(re.search(r"max_position|max_seq|n_positions|n_ctx", name))

    def _vocabulary(self) -> int:
        found = [v for k, v in self.fields.items() if k.endswith("vocab_size") and isinstance(v, int) and v > 0]
        with_method = getattr(self.module, "get_input_embeddings", None)
        if callable(with_method):
            try:
                table = with_method()
            except Exception:  # the method is optional; models without a table raise what they like
                table = None
            if isinstance(getattr(table, "num_embeddings", None), int):
                found.append(table.num_embeddings)
        if not found:
            tables = [m.num_embeddings for m in self.module.modules() if isinstance(m, nn.Embedding)]
            found = tables[:1]
        return min(found, default=64)

    def number(self, *names: str, default: int = 0) -> int:
        """The first positive whole number among the config's fields of these names, outermost first."""
        for name in names:
            for key, value in self.fields.items():
                if key.rpartition(".")[2] == name:
                    value = value[0] if isinstance(value, list | tuple) and value else value
                    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                        return value
        return default

    # --- tensors --------------------------------------------------------------------------------------------------

    def ids(self, length: int) -> Tensor:
        """``[2, length]`` ids that mean nothing special."""
        pick = torch.randint(len(self.allowed), (BATCH, length), generator=self.generator)
        return torch.tensor(self.allowed)[pick]

    def floats(self, *shape: int) -> Tensor:
        """Random numbers; of big tensors, zeros: memory that is never touched costs nothing."""
        if torch.Size(shape).numel() > 1 << 16:
            return torch.zeros(*shape)
        return torch.randn(*shape, generator=self.generator)

    def mask(self, length: int) -> Tensor:
        """``[2, length]`` ones, and a zero at the end of the second row."""
        mask = torch.ones(BATCH, length, dtype=torch.long)
        mask[1, -1] = 0
        return mask


def fields_of(config: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Every field of a config and of the configs inside it, by dotted name; outer fields first."""
    if config is None or depth > 3:
        return
    inner: list[tuple[str, Any]] = []
    items = config.items() if isinstance(config, dict) else getattr(config, "__dict__", {}).items()
    for name, value in list(items):
        name = f"{prefix}{name}"
        if isinstance(value, int | float | str | list | tuple) or value is None:
            yield name, value
        elif isinstance(value, dict) or hasattr(value, "to_dict"):
            inner.append((name, value))
    for name, value in inner:
        if not name.rpartition(".")[2].startswith(("id2label", "label2id", "_")):
            yield from fields_of(value, f"{name}.", depth + 1)


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
            f"inputs must be a tensor, a tuple of positional arguments or a dict of named ones; got {type(inputs).__name__}; "
            "pass inputs={'input_ids': torch.tensor([[5, 6, 7]])}"
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
            n: p for n, p in signature.parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and n != "self"
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
    return tuple(_of_structure(sizes, parameters))


# --- models that name their inputs as Hugging Face does --------------------------------------------------------------


def _of_text(sizes: Sizes, parameters: dict[str, inspect.Parameter]) -> Iterator[Inputs]:
    """Token ids, with a mask and without, with everything else that forward takes, longer."""
    plain = sizes.length
    masks = (True, False) if "attention_mask" in parameters else (False,)
    for masked in masks:
        yield _text(sizes, parameters, plain, masked)
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
    yield from _of_structure(sizes, parameters)


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
    return sizes.number("cross_attention_hidden_size", "encoder_hidden_size", "hidden_size", "d_model", "n_embd", default=64)


def _images(sizes: Sizes) -> Iterator[Tensor]:
    channels = sizes.number("num_channels", "in_channels", "in_chans", "num_input_channels", default=_channels(sizes.module))
    frames = sizes.number("num_frames", "frames_per_clip")
    for height, width in _extents(sizes):
        if frames:
            yield sizes.floats(BATCH, frames, channels, height, width)
        yield sizes.floats(BATCH, channels, height, width)


def _videos(sizes: Sizes) -> Iterator[Tensor]:
    height, width = next(iter(_extents(sizes)))
    yield sizes.floats(BATCH, sizes.number("num_frames", default=4), sizes.number("num_channels", default=3), height, width)


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


def _channels(module: nn.Module) -> int:
    """What the first convolution reads, if that can be an image; behind a fold it reads more."""
    for m in module.modules():
        if isinstance(m, nn.Conv2d | nn.Conv3d):
            return m.in_channels if m.in_channels <= 4 else 3
    return 3


def _extents(sizes: Sizes) -> list[tuple[int, int]]:
    """Heights and widths that an image may have: what the config or a module says, then usual ones."""
    found: list[tuple[int, int]] = []

    def add(value: Any) -> None:
        if isinstance(value, dict):
            value = (value.get("height"), value.get("width"))
        if isinstance(value, torch.Size | list | tuple) and len(value) >= 2:
            value = tuple(value[-2:])
        else:
            value = (value, value)
        if all(isinstance(n, int) and not isinstance(n, bool) and 0 < n <= 4096 for n in value):
            found.append(value)

    for name, value in sizes.fields.items():
        if name.rpartition(".")[2] in ("image_size", "img_size", "input_size"):
            add(value)
    for m in sizes.module.modules():
        for name in ("img_size", "image_size", "default_cfg", "pretrained_cfg"):
            value = m.__dict__.get(name)
            add(value.get("input_size") if isinstance(value, dict) else value)
    return [*dict.fromkeys([*found, *((n, n) for n in IMAGE_SIZES)])]


# --- modules that follow no convention ------------------------------------------------------------------------------


def _of_structure(sizes: Sizes, parameters: dict[str, inspect.Parameter]) -> Iterator[Inputs]:
    """Guess from the names and annotations of forward's parameters and from what the first layers are."""
    required = [n for n, p in parameters.items() if p.default is p.empty and p.kind is not p.KEYWORD_ONLY]
    required = required or [*parameters][:1] or ["input"]
    for kind in _kinds(sizes, required[0]):
        for first, second in _pairs(sizes, kind):
            for bare in (True, False):
                args: list[Any] = []
                main = []
                for i, name in enumerate(required):
                    value = _argument(sizes, name, parameters.get(name), first if i == 0 else second, bare)
                    args.append(value)
                    if isinstance(value, Tensor) and "mask" not in name:
                        main.append(name)
                told = f"forward was given {', '.join(_say(n, a) for n, a in zip(required, args, strict=True))}"
                yield Inputs(tuple(args), {}, tuple(main), told)
                for name in MEMORIES & parameters.keys() - set(required):
                    memory = sizes.floats(BATCH, sizes.second, next(_widths(sizes.module), 64))
                    yield Inputs(tuple(args), {name: memory}, tuple(main), f"{told}, {_say(name, memory)}")
                if not any("mask" in n for n in required):
                    break


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
        longest = [v for m in sizes.module.modules() for k, v in m.__dict__.items() if isinstance(v, int) and "len" in k]
        for length in sorted({n for n in longest if 1 < n <= MOST_LENGTH} | {64}):
            yield sizes.ids(length), sizes.ids(length)
    elif kind == "image":
        for height, width in _extents(sizes):
            image = sizes.floats(BATCH, _channels(sizes.module), height, width)
            yield image, image
    elif kind == "video":
        frames = [v for m in sizes.module.modules() for k, v in m.__dict__.items() if k in ("temporal_size", "num_frames")]
        for (height, width), count in itertools.product(_extents(sizes)[:3], dict.fromkeys([*frames, 16, 8])):
            clip = sizes.floats(BATCH, _channels(sizes.module), count, height, width)
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
        elif getattr(m, "normalized_shape", None):
            width = m.normalized_shape[-1]
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
