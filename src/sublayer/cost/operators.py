"""What each operator does with memory in a training step: what it allocates, keeps for its gradient, and gives up.

Sizes follow `sublayer.model` line by line, in float32 or, for ``width`` 2, in mixed precision: weights, norms, sums and
softmax in float32, products in bf16 on copies of what they read. ``T`` is the number of tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from sublayer.cost.tape import Input, Parameter, Piece, Tape, Value
from sublayer.notation.graph import NORMS
from sublayer.notation.program import Call
from sublayer.sizes import Sizes

Device = Literal["cpu", "cuda"]
Attention = Literal["sdpa", "eager"]

# Activations that keep what they made; the others keep what they read.
_KEEPS_OUTPUT = ("relu", "sigmoid", "tanh")


def has_kernel(op: str, shape: Sizes, attention: Attention, device: Device) -> bool:
    """Whether ``attn`` or ``dot`` runs in a kernel that keeps no probabilities and computes them again backwards.

    Under "sdpa" too the products are written out where scores are capped, and on a CPU where probabilities are dropped.
    """
    capped = shape.attn_logit_softcapping is not None
    dropped = bool(shape.attention_probs_dropout_prob) and device == "cpu"
    return attention == "sdpa" and not (op == "attn" and (capped or dropped))


@dataclass
class Operators:
    """The operators of one model on one tape.

    Args:
        tape: what they allocate on.
        shape: the model's sizes.
        batch, seq: of the batch.
        width: bytes a number in matrix products: 4, or 2 under autocast.
        attention: "sdpa" for a kernel that keeps no probabilities, "eager" for products written out.
        device: kernels differ: on a CPU dropout keeps a number and not a byte for each channel, RMSNorm keeps the
            normed values, and the sdpa kernel cannot drop probabilities, so that it falls back to written-out products.
        packed: rows hold several documents, which a mask keeps apart.
    """

    tape: Tape
    shape: Sizes
    batch: int
    seq: int
    width: int
    attention: Attention
    device: Device
    packed: bool
    forward_is_over: bool = False
    _casts: dict[str, Piece] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        return self.batch * self.seq

    # -- parts ----------------------------------------------------------------------------------------------------

    def cast(self, value: Value, channels: int, width: int) -> Value:
        """The value with numbers of ``width`` bytes, held once more by the program: itself, or a copy."""
        if value.width == width:
            self.tape.hold(value.piece)
            return value
        return self.tape.run([(value, self.tokens * channels * value.width)], self.tokens * channels * width, width)

    def weight(self, name: str, count: int) -> list[Piece]:
        """What a product keeps of its weight: nothing of its own, or under autocast a copy, made once a step."""
        if self.width == 4:
            return []
        if name not in self._casts:
            self._casts[name] = self.tape.allocate(2 * count)
        return [self._casts[name]]

    def leave_autocast(self) -> None:
        """The forward pass is over: the copies of the weights stay only where they are saved."""
        self.forward_is_over = True
        self.tape.free(*self._casts.values())
        self._casts.clear()

    def linear(self, value: Value, name: str, inner: int, outer: int, bias: bool, rows: int | None = None) -> Value:
        """``value [T, inner]`` to ``[T, outer]``; its gradient takes the weight's and the input's."""
        rows = self.tokens if rows is None else rows
        read = self.cast(value, inner, self.width)
        parameters: list[Parameter] = [(f"{name}.weight", 4 * inner * outer)]
        if bias:
            parameters.append((f"{name}.bias", 4 * outer))
        output = self.tape.run(
            [(read, rows * inner * self.width)],
            rows * outer * self.width,
            self.width,
            saved=[read, *self.weight(name, inner * outer)],
            parameters=parameters,
            scratch=0 if self.width == 4 else 2 * inner * outer,
        )
        self.tape.drop(read)
        return output

    def dropout(self, value: Value, numbers: int, probability: float) -> Value:
        """Takes the program's hold of the value."""
        if not probability:
            return value
        size = numbers * value.width
        mask = size if self.device == "cpu" else numbers
        output = self.tape.run([(value, size)], size, value.width, kept=mask)
        self.tape.drop(value)
        return output

    def elementwise(self, value: Value, numbers: int, act: str) -> Value:
        """An activation function of ``numbers`` numbers."""
        size = numbers * value.width
        inside = act in _KEEPS_OUTPUT
        return self.tape.run([(value, size)], size, value.width, saved=[] if inside else [value], saves_output=inside)

    def norm(self, value: Value, name: str, kind: str, channels: int, rows: int | None = None) -> Value:
        """A norm over the last ``channels`` of ``[rows, channels]``, in float32."""
        rows = self.tokens if rows is None else rows
        size = 4 * rows * channels
        read = self.tape.run([(value, rows * channels * 2)], size, 4) if value.width != 4 else value
        count = self.shape.norm_parameters(kind, channels)
        weights: list[Parameter] = [(name, 4.0 * count)] if count else []
        if kind == "dyt":
            inside = self.tape.run([(read, size)], size, 4, saved=[read], scratch=size, before=size, saves_output=True)
            output = self.tape.run([(inside, size)], size, 4, saved=[], parameters=weights, before=size, scratch=size)
            self.tape.drop(inside)
        elif kind == "rmsnorm" and self.device == "cpu":
            kept = 4 * rows + (size if self.shape.norm_affine else 0)
            output = self.tape.run(
                [(read, size)], size, 4, saved=[read], kept=kept, parameters=weights, scratch=2 * size
            )
        else:
            kept = 4 * rows * (2 if kind == "layernorm" else 1)
            output = self.tape.run([(read, size)], size, 4, saved=[read], kept=kept, parameters=weights)
        if read is not value:
            self.tape.drop(read)
        return output

    # -- attention ------------------------------------------------------------------------------------------------

    def attention_inside(self, projected: Sequence[Value], name: str) -> Value:
        """Queries, keys and values ``[T, ...]`` to the mix ``[T, heads * head_dim]``."""
        shape, tape = self.shape, self.tape
        widths = (shape.query_width, shape.key_width)
        heads = (shape.num_attention_heads, shape.num_key_value_heads or shape.num_attention_heads)
        read = list(projected)
        for value in read:
            tape.hold(value.piece)
        for i, part in enumerate(("q_norm", "k_norm")):
            if shape.qk_norm:
                rows = self.tokens * (1 if shape.qk_norm == "full" else heads[i])
                read[i] = self._instead(
                    read[i],
                    self.norm(read[i], f"{name}.{part}", shape.qk_norm_kind, self.tokens * widths[i] // rows, rows),
                )
            if shape.position_embedding == "rotary":
                size = self.tokens * widths[i] * 4
                turned = tape.run([(read[i], size)], size, 4, before=2 * size, scratch=1.5 * size)
                read[i] = self._instead(read[i], turned)
        cast = [self.cast(v, w, self.width) for v, w in zip(read, (*widths, widths[1]), strict=True)]
        tape.drop(*read)
        drops = shape.attention_probs_dropout_prob
        kernel = has_kernel("attn", shape, self.attention, self.device)
        mixed = self.mix(cast, *widths, shape.num_attention_heads, drops, kernel)
        tape.drop(*cast)
        return mixed

    def _instead(self, old: Value, new: Value) -> Value:
        self.tape.drop(old)
        return new

    def mix(self, read: Sequence[Value], query: int, key: int, heads: int, drops: float, kernel: bool) -> Value:
        """Scores, softmax and mixing of queries, keys and values."""
        tape, tokens, width = self.tape, self.tokens, self.width
        q, kv = tokens * query * width, tokens * key * width
        if not kernel:
            return self._mix_written_out(read, q, kv, tokens * heads * self.seq, drops)
        inputs: list[Input] = [(read[0], q), (read[1], kv), (read[2], kv)]
        # the sum of each query's softmax; and the mask of packed rows, as numbers to be added
        kept = 4 * tokens * heads + (tokens * self.seq * width if self.packed else 0)
        mixed = tape.run(inputs, q, width, saved=read, saves_output=True, kept=kept)
        if not self.shape.qk_norm:
            return mixed
        # after a norm the kernel hands the mix back in another order of its axes, and it is copied once more
        return self._instead(mixed, tape.run([(mixed, q)], q, width))

    def _mix_written_out(self, read: Sequence[Value], q: int, kv: int, scores: int, drops: float) -> Value:
        """The same with ``scores`` numbers between; ``q`` and ``kv``: bytes of the queries, and of keys or values."""
        tape, width = self.tape, self.width
        # keys and values once for each query head, and queries in another order: copies
        full = [tape.run([(read[1], kv)], q, width), tape.run([(read[2], kv)], q, width)]
        copy = tape.run([(read[0], q)], q, width)
        raw = tape.run([(copy, q), (full[0], q)], scores * width, width, saved=[copy, full[0]])
        scaled = tape.run([(raw, scores * width)], scores * width, width)
        tape.drop(raw)
        weights = tape.run([(scaled, scores * 4)], scores * 4, 4, saves_output=True)
        tape.drop(scaled)
        tape.hold(weights.piece)
        kept = self.dropout(weights, scores, drops)
        mixed = tape.run([(kept, scores * width), (full[1], q)], q, width, saved=[kept, full[1]])
        turned = tape.run([(mixed, q)], q, width)
        tape.drop(*full, copy, weights, kept, mixed)
        return turned

    # -- the feed-forward network ---------------------------------------------------------------------------------

    def ffn_inside(self, projected: Sequence[Value]) -> Value:
        """What the way up made, ``[T, d_ff]`` once or twice, to what the way down reads."""
        shape, tape = self.shape, self.tape
        numbers = self.tokens * shape.d_ff
        act = {"reglu": "relu", "geglu": "gelu", "swiglu": "silu"}.get(shape.hidden_act, shape.hidden_act)
        *gate, up = projected
        if not gate:
            return self.elementwise(up, numbers, act)
        size = numbers * up.width
        opened = self.elementwise(gate[0], numbers, act)
        inner = tape.run([(opened, size), (up, size)], size, up.width, saved=[opened, up])
        tape.drop(opened)
        return inner

    # -- calls ----------------------------------------------------------------------------------------------------

    def inputs_of(self, call: Call, name: str) -> list[tuple[str, int, bool]]:
        """Name, width and bias of each input product of ``attn`` or ``ffn``."""
        shape = self.shape
        if call.site.op == "attn":
            widths = {"q_proj": shape.query_width, "k_proj": shape.key_width, "v_proj": shape.key_width}
            return [(f"{name}.{part}", width, shape.attention_bias) for part, width in widths.items()]
        parts = ("gate_proj", "up_proj") if shape.gated else ("up_proj",)
        return [(f"{name}.{part}", shape.d_ff, shape.mlp_bias) for part in parts]

    def inside(self, call: Call, name: str, projected: Sequence[Value]) -> Value:
        """Between the input and the output products."""
        return self.attention_inside(projected, name) if call.site.op == "attn" else self.ffn_inside(projected)

    def last_of(self, call: Call) -> tuple[int, bool]:
        """Inner width and bias of the output product."""
        shape = self.shape
        if call.site.op == "ffn":
            return shape.d_ff, shape.mlp_bias
        out = shape.attention_bias if shape.attention_out_bias is None else shape.attention_out_bias
        return shape.query_width, out

    def output(self, call: Call, name: str, inner: Value) -> Value:
        """The output product and its dropout."""
        width, bias = self.last_of(call)
        made = self.linear(inner, f"{name}.out", width, self.shape.d, bias)
        return self.dropout(made, self.tokens * self.shape.d, self.shape.hidden_dropout_prob)

    def call(self, call: Call, place: str, value: Value) -> Value:
        """One call by itself: ``site(value)``."""
        op, name, d, tape = call.site.op, f"{place}.{call.site.name}", self.shape.d, self.tape
        size = self.tokens * d * value.width
        if op in ("attn", "ffn"):
            projected = [self.linear(value, part, d, width, bias) for part, width, bias in self.inputs_of(call, name)]
            inner = self.inside(call, name, projected)
            tape.drop(*projected)
            output = self.output(call, name, inner)
            tape.drop(inner)
            return output
        if op == "dot":
            read = self.cast(value, d, self.width)
            output = self.mix([read] * 3, d, d, 1, 0.0, has_kernel(op, self.shape, self.attention, self.device))
            tape.drop(read)
            return output
        if op == "stop":
            tape.hold(value.piece)
            return Value(value.piece, value.width, False)
        if op in NORMS:
            return self.norm(value, name, self.shape.norm if op == "norm" else op, d)
        weight = 4 * (d if op == "scale" else 1)
        full = self.tokens * d * 4
        return tape.run([(value, size)], full, 4, saved=[value], parameters=[(f"{name}.weight", weight)], scratch=full)
