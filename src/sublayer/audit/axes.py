"""What runs along each axis of a value that comes of an image: rows of the batch, places, or channels.

Where the data is a picture its places are two axes, cut into windows, folded into the batch and put before or behind
the channels as each author likes. So the axes are followed from the input through every call. An axis is a product of
factors, outermost first: after ``view``, ``[2 * 49, 64, 96]`` is rows times windows, places in a window, channels. What
cannot be followed is marked as such, and nothing is concluded from it.
"""

from collections.abc import Iterable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from sublayer.audit.tape import ALIAS, Value

if TYPE_CHECKING:
    from sublayer.audit.flow import Flow

Axis = tuple[tuple[int, str], ...]
Axes = tuple[Axis, ...]

ROWS, PLACES, CHANNELS, UNKNOWN = "rows", "places", "channels", "unknown"
MOST_CHANNELS = 16  # of a picture itself: more is rows or columns of it

_WINDOWED = frozenset(
    "avg_pool2d max_pool2d_with_indices max_pool2d _adaptive_avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d "
    "avg_pool1d avg_pool3d max_pool1d max_pool3d_with_indices _adaptive_avg_pool3d upsample_bilinear2d "
    "upsample_bicubic2d upsample_nearest2d _upsample_bicubic2d_aa _upsample_bilinear2d_aa upsample_nearest1d "
    "upsample_linear1d _upsample_nearest_exact2d".split()
)
_PRODUCTS = frozenset("mm bmm addmm baddbmm linear matmul mv addmv addmm_ addbmm".split())
_CONVOLUTIONS = frozenset("convolution conv1d conv2d conv3d".split())
_ATTENTION = frozenset(
    "scaled_dot_product_attention _scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention "
    "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_attention_math "
    "_scaled_dot_product_fused_attention_overrideable".split()
)
_REDUCTIONS = frozenset(
    "sum mean var var_mean std std_mean amax amin max min norm linalg_vector_norm logsumexp prod argmax argmin any "
    "all".split()
)
_RECURRENT = frozenset("lstm gru rnn_tanh rnn_relu".split())
_SOFTMAX = frozenset("softmax _softmax _safe_softmax log_softmax _log_softmax".split())
_MOVES = frozenset(
    "slice select narrow split split_with_sizes unbind chunk tensor_split unsafe_split unsafe_chunk roll flip "
    "constant_pad_nd pad reflection_pad1d reflection_pad2d replication_pad2d index index_select gather "
    "take_along_dim _unsafe_index".split()
)


def of_input(shape: Sequence[int]) -> Axes | None:
    """The axes of a picture ``[rows, channels, height, width]``, or with its channels last; None for anything else."""
    if len(shape) != 4:
        return None
    last = shape[3] < shape[1] and shape[3] <= MOST_CHANNELS
    roles = (ROWS, PLACES, PLACES, CHANNELS) if last else (ROWS, CHANNELS, PLACES, PLACES)
    return tuple(_axis(n, role) for n, role in zip(shape, roles, strict=True))


def _axis(size: int, role: str) -> Axis:
    return ((size, role),) if size != 1 else ()


def _unknown(shape: Sequence[int]) -> Axes:
    return tuple(_axis(n, UNKNOWN) for n in shape)


def roles(axes: Iterable[Axis]) -> frozenset[str]:
    """What runs along some axes."""
    return frozenset(role for axis in axes for _, role in axis)


def _role(axis: Axis, empty: str = UNKNOWN) -> str:
    """What runs along an axis that was made of another: channels, if some of it did."""
    found = roles([axis])
    if len(found) == 1:
        return next(iter(found))
    if not found:
        return empty
    return CHANNELS if found == {CHANNELS, PLACES} else UNKNOWN


def _made_of(taken: Axis, others: Iterable[Axis]) -> str:
    """What runs along the axis that a matrix makes of another. Positions become positions, as in an MLP over them; but
    where nothing else is channels, what is made of a patch's positions is its channels."""
    role = _role(taken, CHANNELS)
    return CHANNELS if role == PLACES and CHANNELS not in roles(others) else role


def size(axes: Axes, role: str) -> int:
    """How many there are of something: channels, places."""
    return prod(n for axis in axes for n, what in axis if what == role)


def _resized(axes: Axes, shape: Sequence[int]) -> Axes:
    """The same axes, longer or shorter."""
    found = []
    for axis, n in zip(axes, shape, strict=True):
        found.append(axis if prod(m for m, _ in axis) == n else _axis(n, _role(axis)))
    return tuple(found)


def _regrouped(axes: Axes, shape: Sequence[int]) -> Axes:
    """The axes after a ``view``: factors are cut and joined, in their order."""
    factors: list[tuple[int, str]] = []
    for n, role in (f for axis in axes for f in axis):
        if factors and factors[-1][1] == role:
            factors[-1] = (factors[-1][0] * n, role)
        else:
            factors.append((n, role))
    factors.reverse()
    found: list[Axis] = []
    for wanted in shape:
        axis: list[tuple[int, str]] = []
        while wanted > 1:
            if not factors:
                return _unknown(shape)
            n, role = factors.pop()
            if wanted % n == 0:
                axis.append((n, role))
                wanted //= n
            elif n % wanted == 0:
                axis.append((wanted, role))
                factors.append((n // wanted, role))
                wanted = 1
            else:
                return _unknown(shape)
        found.append(tuple(axis))
    return tuple(found)


def _broadcast(parts: Sequence[Axes], shape: Sequence[int]) -> Axes:
    """The axes of what is computed element by element; places win over what the others call channels."""
    found: list[Axis] = []
    for d, n in enumerate(shape):
        place = len(shape) - d
        held = [axes[-place] for axes in parts if len(axes) >= place and axes[-place] and n != 1]
        order = sorted(held, key=lambda a: (UNKNOWN in roles([a]), CHANNELS in roles([a])))
        found.append(order[0] if order else _axis(n, UNKNOWN))
    return tuple(found)


def follow(flow: "Flow", value: Value) -> Axes:
    """The axes of a value from those of what it is computed from."""
    given = [(s, flow.axes[s.index]) for s in value.sources if s.index in flow.axes]
    if value.name == "copy_":
        given = [g for g in given if g[0] is not value.args[0]] or given
    if not given:
        return _unknown(value.shape)
    found = _follow(flow, value, given[0][0], given[0][1], [axes for _, axes in given])
    fits = len(found) == len(value.shape) and all(
        prod(m for m, _ in axis) == n for axis, n in zip(found, value.shape, strict=True)
    )
    return found if fits else _unknown(value.shape)


def _follow(flow: "Flow", value: Value, first: Value, axes: Axes, parts: list[Axes]) -> Axes:
    name, args, shape = value.name, value.args, value.shape
    if name in ("view", "_unsafe_view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "_reshape_alias"):
        return _regrouped(axes, shape)
    if name in ("squeeze_", "unsqueeze_", ALIAS):
        return axes if shape == first.shape else _regrouped(axes, shape)
    if name == "permute":
        return tuple(axes[d] for d in args[1])
    if name in ("transpose", "swapaxes", "transpose_", "t", "t_", "mT"):
        one, other = (args[1], args[2]) if len(args) > 2 else (-2, -1)
        order = [*range(len(axes))]
        if len(axes) > 1:
            order[one], order[other] = order[other], order[one]
        return tuple(axes[d] for d in order)
    if name in _PRODUCTS:
        return _product(flow, value)
    if name in _CONVOLUTIONS:
        return _convolved(value, axes)
    if name in _ATTENTION:
        query, mixed = flow.axes.get(args[0].index), flow.axes.get(args[2].index)
        if query is None and mixed is not None:  # learned queries
            query = (*mixed[:-2], _axis(shape[-2], PLACES), ())
        return (*query[:-1], mixed[-1]) if query and mixed else _unknown(shape)
    if name in ("native_layer_norm", "layer_norm", "rms_norm") and len(args[1]) == 1 and value.output == 0:
        # Positions side by side on the axis of the channels are one token from here on.
        return (*axes[:-1], _axis(shape[-1], _role(axes[-1])))
    if name in ("native_batch_norm", "native_layer_norm", "native_group_norm", "layer_norm", "rms_norm"):
        return axes if value.output == 0 else _unknown(shape)
    if name in _REDUCTIONS:
        axes_left = tuple(axis for d, axis in enumerate(axes) if d not in _over(value, len(axes)))
        return axes_left if len(axes_left) == len(shape) else _regrouped(axes_left, shape)
    if name in ("select", "unbind"):
        gone = (args[1] if len(args) > 1 else 0) % len(axes)
        return tuple(axis for d, axis in enumerate(axes) if d != gone)
    if name == "stack":
        place = (args[1] if len(args) > 1 else 0) % len(shape)
        inner = _broadcast(parts, [n for d, n in enumerate(shape) if d != place])
        return (*inner[:place], _axis(shape[place], CHANNELS), *inner[place:])
    if name == "cat":
        return _concatenated(value, parts)
    if name in ("as_strided", "as_strided_"):
        return axes if shape == first.shape else _unknown(shape)
    if name == "embedding":
        return (*axes, _axis(shape[-1], CHANNELS))
    if name in _RECURRENT:
        return (*axes[:-1], _axis(shape[-1], CHANNELS)) if value.output == 0 else _unknown(shape)
    if name == "index":
        return _indexed(value, axes)
    if name == "im2col":
        kernel = prod(args[1])
        return (axes[0], (*axes[1], (kernel, PLACES)) if kernel > 1 else axes[1], _axis(shape[-1], PLACES))
    if name == "col2im":
        return (axes[0], _axis(shape[1], CHANNELS), *(_axis(n, PLACES) for n in shape[2:]))
    if name == "unfold":
        d = args[1] % len(axes)
        return (*_resized(axes, shape[:-1]), _axis(shape[-1], _role(axes[d])))
    if name in ("pixel_unshuffle", "pixel_shuffle", "channel_shuffle"):
        return (axes[0], _axis(shape[1], CHANNELS), *(_axis(n, PLACES) for n in shape[2:]))
    if name in ("expand", "expand_as", "broadcast_to", "repeat", "tile"):
        return _broadcast([axes], shape) if shape != first.shape else axes
    if name in _WINDOWED or name in _MOVES or name == "repeat_interleave":
        return _resized(axes, shape) if len(axes) == len(shape) else _unknown(shape)
    same = [a for a in parts if len(a) <= len(shape)]
    return _broadcast(same, shape) if same else _unknown(shape)


def _product(flow: "Flow", value: Value) -> Axes:
    left, right = _factors(value)
    one, other = flow.axes.get(left.index), flow.axes.get(right.index)
    shape = value.shape
    if one is not None and other is not None:
        if value.name == "linear":
            return _unknown(shape)
        rows = _broadcast([one[:-2], other[:-2]], shape[:-2]) if len(shape) > 2 else ()
        return (*rows, one[-2], other[-1]) if len(shape) > 1 else _unknown(shape)
    if one is not None:
        if len(shape) < len(one):
            return one[:-1]
        return (*one[:-1], _axis(shape[-1], _made_of(one[-1], one[:-1])))
    if other is not None and len(other) > 1:
        rows = _broadcast([other[:-2]], shape[:-2]) if len(shape) > 2 else ()
        return (*rows, _axis(shape[-2], _made_of(other[-2], (*rows, other[-1]))), other[-1])
    return _unknown(shape)


def _factors(value: Value) -> tuple[Value, Value]:
    held = [a for a in value.args if isinstance(a, Value)]
    if value.name.startswith(("addmm", "baddbmm", "addmv", "addbmm")):
        held = held[1:]
    return held[0], held[1]


def _convolved(value: Value, axes: Axes) -> Axes:
    weight, shape = value.args[1], value.shape
    spatial = len(weight.shape) - 2
    before = axes[: len(axes) - spatial - 1]
    channels = axes[-spatial - 1]
    kept = weight.shape[1] == 1 and prod(n for n, _ in channels) == shape[-spatial - 1]
    channel = channels if kept else _axis(shape[-spatial - 1], _made_of(channels, axes[-spatial:]))
    rest = []
    for axis, n, wide in zip(axes[-spatial:], shape[-spatial:], weight.shape[2:], strict=True):
        same = wide == 1 and prod(m for m, _ in axis) == n
        rest.append(axis if same else _axis(n, _role(axis, PLACES)))
    return (*before, channel, *rest)


def _concatenated(value: Value, parts: list[Axes]) -> Axes:
    place = (value.args[1] if len(value.args) > 1 else 0) % len(value.shape)
    rest = _broadcast([p[:place] + p[place + 1 :] for p in parts], [*value.shape[:place], *value.shape[place + 1 :]])
    found = {role for p in parts for role in roles([p[place]])}
    role = next(iter(found)) if len(found) == 1 else CHANNELS if found == {CHANNELS, PLACES} else UNKNOWN
    if not found:
        # Pieces of one: values side by side, channel by channel or place by place as the others are not.
        role = PLACES if CHANNELS in roles(rest) else CHANNELS
    return (*rest[:place], _axis(value.shape[place], role), *rest[place:])


def _indexed(value: Value, axes: Axes) -> Axes:
    indices = list(value.args[1])
    used = [d for d, i in enumerate(indices) if isinstance(i, Value)]
    if len(used) != 1:
        return _unknown(value.shape)
    d = used[0]
    new = tuple(_axis(n, _role(axes[d])) for n in indices[d].shape)
    return (*axes[:d], *new, *axes[d + 1 :])


def _over(value: Value, rank: int) -> set[int]:
    """The axes that a reduction takes together."""
    place = 2 if value.name in ("norm", "linalg_vector_norm") else 1
    given: Any = value.args[place] if len(value.args) > place else value.kwargs.get("dim")
    if given is None or (isinstance(given, list | tuple) and not given):
        return set(range(rank))
    return {d % rank for d in ([given] if isinstance(given, int) else given)}


def along(flow: "Flow", value: Value) -> frozenset[str]:
    """What runs along the axes whose entries a call takes together, or moves from one place to another."""
    sources = [s for s in value.sources if s.index in flow.axes]
    if not sources:
        return frozenset()
    first, axes, name = sources[0], flow.axes[sources[0].index], value.name
    if name in _PRODUCTS:
        left, right = _factors(value)
        one, other = flow.axes.get(left.index), flow.axes.get(right.index)
        found = [one[-1]] if one else []
        if other and value.name != "linear":
            found.append(other[-2] if len(other) > 1 else other[-1])
        return roles(found)
    if name in _CONVOLUTIONS:
        weight = value.args[1]
        spatial = len(weight.shape) - 2
        taken = [axes[-spatial - 1]] if weight.shape[1] > 1 else []
        for axis, n, wide in zip(axes[-spatial:], value.shape[-spatial:], weight.shape[2:], strict=True):
            if wide > 1 or prod(m for m, _ in axis) != n:
                taken.append(axis)
        return roles(taken)
    if name in _ATTENTION:
        key = flow.axes.get(value.args[1].index)
        return roles([key[-2], key[-1]]) if key else frozenset({UNKNOWN})
    if name in _REDUCTIONS:
        return roles(axes[d] for d in _over(value, len(axes)))
    if name in _SOFTMAX:
        return roles([axes[value.args[1]]])
    if name in ("native_layer_norm", "layer_norm", "rms_norm", "_fused_rms_norm"):
        return roles(axes[-len(value.args[1]) :])
    if name in ("native_group_norm", "group_norm"):
        groups = value.args[6] if name == "native_group_norm" else value.args[1]
        return roles(axes[2:] if groups == first.shape[1] else axes[1:])
    if name in _RECURRENT:
        arguments = value.args  # data, state, weights, biases, layers, dropout, training, both ways, rows first
        return roles([axes[1 if arguments[-1] else 0], axes[-1]])
    if name == "roll":
        moved = value.args[2] if len(value.args) > 2 and value.args[2] else range(len(axes))
        return roles(axes[d] for d in ([moved] if isinstance(moved, int) else moved))
    if name == "flip":
        return roles(axes[d] for d in value.args[1])
    if name in ("select", "unbind"):
        return roles([axes[value.args[1] if len(value.args) > 1 else 0]])
    if name == "cat":
        parts = [flow.axes[s.index] for s in sources]
        place = (value.args[1] if len(value.args) > 1 else 0) % len(value.shape)
        return roles([_concatenated(value, parts)[place]])
    if name in ("im2col", "col2im"):
        return frozenset({PLACES})
    if name == "unfold":
        return roles([axes[value.args[1]]])
    if name == "index":
        return roles(axes[d] for d, i in enumerate(value.args[1]) if isinstance(i, Value))
    if name in ("index_select", "gather", "take_along_dim"):
        return roles([axes[value.args[1]]]) if isinstance(value.args[1], int) else roles(axes)
    if name in _WINDOWED:
        return roles(axes[2:])
    if name in _MOVES:
        pairs = zip(axes, value.shape, strict=False)
        return roles(axis for axis, n in pairs if prod(m for m, _ in axis) != n)
    return frozenset()
