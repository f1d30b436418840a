"""What a design costs: parameters, FLOPs and memory, by formulas from the wiring graph. Imports no torch.

Parameters are exact. FLOPs are those of the matrix products, 2 for each multiply-add, as torch's `FlopCounterMode`
counts them: projections, both products of attention over the full [seq, seq] matrix (a causal mask saves nothing in
it), the FFN, the output layer. Norms, activations, softmax, positions, sums and the embedding look-up are left out: a
few per cent at most. A training step is three forward passes: the backward pass has two products for each of the
forward's (less where `stop` cuts the gradient).

Memory is an estimate of a training step without gradient checkpointing, without dropout, in bytes:

    weights      4 P        (bf16 is autocast: the weights stay in float32)
    gradients    4 P
    optimizer    8 P        (Adam's two moments)
    activations  b T A      b = 4, or 2 in bf16; T = batch * seq tokens; A = numbers kept for the backward pass
    logits       (b + 8) T V   the logits, their logarithms of probabilities and their gradient, the last two in float32

    A: one vector of d for each distinct value that an operator reads, and inside the operators
       attn   (2 heads + 2 kv_heads) head_dim + heads: queries, the mix, keys, values, one sum a query; eager keeps
              heads * seq probabilities in place of the sums; QK-norm adds 2 (heads + kv_heads) head_dim
       ffn    relu: d_ff; gelu, silu: 2 d_ff; reglu: 3 d_ff; geglu, swiglu: 4 d_ff
       norm   layernorm: 2; rmsnorm: d + 1 (1 in the kernels of GPUs); dyt: d
"""

import difflib
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from types import ModuleType
from typing import Any, Literal

from sublayer.notation import Design, DesignError, parse
from sublayer.notation.graph import NORMS
from sublayer.notation.program import Call, Section, Site

Head = Literal["lm", "none"] | int

_PLAIN_ACTS = ("relu", "gelu", "gelu_pytorch_tanh", "silu")
_GATED = ("reglu", "geglu", "swiglu")
_BUILT = ("attn", "dot", "ffn", *NORMS, "scale", "gate", "stop")


class CostError(ValueError):
    """A size that breaks a rule, or that no cost depends on: the rule, the value received and the remedy."""


@dataclass(frozen=True)
class Sizes:
    """The numbers a design is built with, by the names of `SublayerConfig` and with its defaults."""

    vocab_size: int = 32000
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int | None = None
    hidden_act: str = "gelu"
    norm: str = "layernorm"
    position_embedding: str = "rotary"
    max_position_embeddings: int = 2048
    qk_norm: bool = False
    attention_bias: bool = True
    mlp_bias: bool = True
    tie_word_embeddings: bool = True

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is int and value < 1:
                raise CostError(f"{field.name} ({value}) must be at least 1: give a positive number")
        if self.hidden_act not in (*_PLAIN_ACTS, *_GATED):
            known = ", ".join((*_PLAIN_ACTS, *_GATED))
            raise CostError(f"hidden_act ({self.hidden_act!r}) must be one of {known}: choose one of them")
        if self.num_attention_heads % (self.num_key_value_heads or 1):
            raise CostError(
                f"num_attention_heads ({self.num_attention_heads}) must be divisible by num_key_value_heads "
                f"({self.num_key_value_heads}): change one of them"
            )
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise CostError(
                f"hidden_size ({self.hidden_size}) must be divisible by num_attention_heads "
                f"({self.num_attention_heads}): change one of them, or give head_dim"
            )
        if self.position_embedding == "rotary" and self._head % 2:
            raise CostError(
                f"head_dim ({self._head}) must be even for rotary positions: change it, or use learned ones"
            )

    @property
    def d(self) -> int:
        """Channels of the stream."""
        return self.hidden_size

    @property
    def query_width(self) -> int:
        """Channels of all query heads together."""
        return self.num_attention_heads * self._head

    @property
    def key_width(self) -> int:
        """Channels of all key heads together; values have as many."""
        return (self.num_key_value_heads or self.num_attention_heads) * self._head

    @property
    def d_ff(self) -> int:
        """Channels inside the FFN."""
        return self.intermediate_size or 4 * self.hidden_size

    @property
    def _head(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    def parameters_of(self, site: Site) -> int:
        """Parameters of one site."""
        d, q, kv, ff = self.d, self.query_width, self.key_width, self.d_ff
        if site.op == "attn":
            bias = q + 2 * kv + d if self.attention_bias else 0
            return d * (q + 2 * kv) + q * d + bias + (2 * self._head if self.qk_norm else 0)
        if site.op == "ffn":
            inner = 2 if self.hidden_act in _GATED else 1
            return (inner + 1) * d * ff + (inner * ff + d if self.mlp_bias else 0)
        kind = self.norm if site.op == "norm" else site.op
        return {"layernorm": 2 * d, "rmsnorm": d, "dyt": 2 * d + 1, "scale": d, "gate": 1}.get(kind, 0)

    def flops_of(self, site: Site, seq: int) -> int:
        """FLOPs of one call for each token of a sequence of `seq`."""
        d, q, kv = self.d, self.query_width, self.key_width
        if site.op == "attn":
            return 2 * d * (q + 2 * kv) + 4 * seq * q + 2 * q * d
        if site.op == "dot":
            return 4 * seq * d
        if site.op == "ffn":
            return 2 * d * self.d_ff * (3 if self.hidden_act in _GATED else 2)
        return 0

    def kept_by(self, site: Site, seq: int, eager: bool) -> int:
        """Numbers that one call keeps for the backward pass for each token, beside what it reads."""
        d, q, kv = self.d, self.query_width, self.key_width
        if site.op == "attn":
            normed = 2 * (q + kv) if self.qk_norm else 0
            weights = self.num_attention_heads * (seq if eager else 1)  # probabilities, or the logarithm of their sum
            return q + 2 * kv + normed + weights + q
        if site.op == "dot":
            return seq if eager else d + 1
        if site.op == "ffn":
            return self.d_ff * {"relu": 1, "reglu": 3, "geglu": 4, "swiglu": 4}.get(self.hidden_act, 2)
        kind = self.norm if site.op == "norm" else site.op
        return {"layernorm": 2, "rmsnorm": d + 1, "dyt": d}.get(kind, 0)


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step; the formulas stand at the top of the module."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


@dataclass(frozen=True)
class Cost:
    """What a model of one design costs.

    Attributes:
        design: the equation.
        batch, seq: shape of the batch that FLOPs and memory are for; tokens are batch * seq.
        parameters: all of them, tied tables once.
        embedding_parameters: token and learned position tables, within `parameters`.
        parameters_by_site: within `parameters`, by owner: "embed_tokens", "layers.attn" (all layers together),
            "final_section.stream_norm", "lm_head", "score"; owners without parameters are left out.
        forward_flops: matrix products of one forward pass of the batch.
        flops_by_site: within `forward_flops`, by owner.
        memory: of a training step of the batch, estimated.
    """

    design: str
    batch: int
    seq: int
    parameters: int
    embedding_parameters: int
    parameters_by_site: dict[str, int]
    forward_flops: int
    flops_by_site: dict[str, int]
    memory: Memory

    @property
    def training_flops(self) -> int:
        """Forward and backward pass of the batch: three times the forward."""
        return 3 * self.forward_flops

    @property
    def forward_flops_per_token(self) -> float:
        """`forward_flops` over the tokens of the batch."""
        return self.forward_flops / (self.batch * self.seq)

    @property
    def training_flops_per_token(self) -> float:
        """`training_flops` over the tokens of the batch."""
        return 3 * self.forward_flops_per_token

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, derived numbers included."""
        values = asdict(self)
        values["memory"]["total"] = self.memory.total
        for name in ("training_flops", "forward_flops_per_token", "training_flops_per_token"):
            values[name] = getattr(self, name)
        return values

    def __str__(self) -> str:
        m = self.memory
        parts = ("weights", "gradients", "optimizer", "activations", "logits")
        memory = ", ".join(f"{name} {_short(getattr(m, name))}B" for name in parts)
        owners = [f"  {name:<30} {count:>14,}" for name, count in self.parameters_by_site.items()]
        shares = [f"  {name:<30} {count / self.forward_flops:>13.1%}" for name, count in self.flops_by_site.items()]
        total, embedding = f"{self.parameters:,}", f"{self.embedding_parameters:,}"
        lines = [
            self.design,
            f"parameters        {_short(self.parameters)} ({total}; embedding {embedding})",
            *owners,
            f"forward           {_short(self.forward_flops_per_token)}FLOP a token at seq {self.seq}",
            *shares,
            f"training          {_short(self.training_flops_per_token)}FLOP a token",
            f"training memory   about {_short(m.total)}B for {self.batch} x {self.seq} tokens: {memory}",
        ]
        return "\n".join(lines)


def cost(
    design: str | Design | Mapping[str, Any] | Any,
    *,
    batch: int = 1,
    seq: int | None = None,
    head: Head = "lm",
    dtype: Literal["float32", "bf16"] = "float32",
    attention: Literal["sdpa", "eager"] = "sdpa",
    **sizes: Any,
) -> Cost:
    """Parameters, FLOPs and training memory of a design or a config.

    Args:
        design: a catalogue name, an equation or a Design, with sizes by keyword (names and defaults of SublayerConfig:
            hidden_size, num_hidden_layers, ...); or a SublayerConfig, or a mapping of its fields, where keywords
            replace what it says.
        batch, seq: shape of the batch. seq defaults to 512, or max_position_embeddings where that is less.
        head: "lm" for SublayerForCausalLM and SublayerForMaskedLM, "none" for SublayerModel, or the number of labels
            of SublayerForSequenceClassification.
        dtype: of activations; "bf16" is mixed precision.
        attention: memory only: "sdpa" for one kernel that keeps no probabilities, "eager" for one that does.

    Raises:
        DesignError: the design cannot be read, has operators that cannot be built, or does not fit the depth.
        CostError: a size that breaks a rule, or an unknown one.
    """
    wiring, shape = _read(design, sizes)
    if seq is None:
        seq = min(512, shape.max_position_embeddings)
    for name, value in (("batch", batch), ("seq", seq)):
        if value < 1:
            raise CostError(f"{name} ({value}) must be at least 1: give a positive number")
    if shape.position_embedding == "learned" and seq > shape.max_position_embeddings:
        raise CostError(
            f"seq ({seq}) must be at most max_position_embeddings ({shape.max_position_embeddings}) for learned "
            "positions: shorten it, or use rotary positions"
        )
    depth = shape.num_hidden_layers
    wiring.check_depth(depth)
    sections = [("embed_section", wiring.section("embed"))]
    sections += [("layers", wiring.layer(i, depth)) for i in range(depth)]
    sections += [("final_section", wiring.section("final"))]

    owned: Counter[str] = Counter({"embed_tokens": shape.vocab_size * shape.d})
    if shape.position_embedding == "learned":
        owned["embed_positions"] = shape.max_position_embeddings * shape.d
    embedding = owned.total()
    flops: Counter[str] = Counter()
    tokens = batch * seq
    for place, section in sections:
        _check_built(section)
        for site in section.sites:
            owned[f"{place}.{site.name}"] += shape.parameters_of(site)
        for call in _calls(section):
            flops[f"{place}.{call.site.name}"] += tokens * shape.flops_of(call.site, seq)
    if head == "lm":
        owned["lm_head"] = 0 if shape.tie_word_embeddings else shape.vocab_size * shape.d
        flops["lm_head"] = tokens * 2 * shape.d * shape.vocab_size
    elif isinstance(head, int):
        owned["score"] = shape.d * head + head
        flops["score"] = batch * 2 * shape.d * head

    total = owned.total()
    width = 4 if dtype == "float32" else 2
    kept = _kept(sections, shape, seq, attention == "eager") + (shape.d if head == "lm" else 0)
    memory = Memory(
        weights=4 * total,
        gradients=4 * total,
        optimizer=8 * total,
        activations=width * tokens * kept,
        logits=(width + 8) * tokens * shape.vocab_size if head == "lm" else 0,
    )
    return Cost(
        design=str(wiring),
        batch=batch,
        seq=seq,
        parameters=total,
        embedding_parameters=embedding,
        parameters_by_site={name: count for name, count in owned.items() if count},
        forward_flops=flops.total(),
        flops_by_site={name: count for name, count in flops.items() if count},
        memory=memory,
    )


def _read(given: Any, sizes: dict[str, Any]) -> tuple[Design, Sizes]:
    names = {field.name for field in fields(Sizes)}
    for name in sizes:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            raise CostError(
                f"{name} is no size that a cost depends on{f' (nearest: {near[0]})' if near else ''}: use "
                f"{', '.join(sorted(names))}"
            )
    if isinstance(given, str | Design):
        return parse(given), Sizes(**sizes)
    values = dict(given) if isinstance(given, Mapping) else {n: getattr(given, n) for n in names if hasattr(given, n)}
    text = values.get("design") if isinstance(given, Mapping) else getattr(given, "design", None)
    if text is None:
        raise CostError(f"a cost is of a design or of a config with a design: got {type(given).__name__} without one")
    return parse(text), Sizes(**({n: v for n, v in values.items() if n in names} | sizes))


def _check_built(section: Section) -> None:
    for site in section.sites:
        if site.op not in _BUILT:
            raise DesignError(
                f"{site.op!r} stands for something without an implementation here, so it has no known cost",
                section.text,
            )


def _calls(section: Section) -> list[Call]:
    return [step for step in section.steps if isinstance(step, Call)]


def _kept(sections: list[tuple[str, Section]], shape: Sizes, seq: int, eager: bool) -> int:
    """Numbers kept for the backward pass for each token: each distinct value that an operator reads, and what the
    operators keep inside. A stream that one section leaves and the next reads is kept once."""
    total = 0
    held: set[str] = set()  # streams whose value was counted where it was made
    for _, section in sections:
        calls = _calls(section)
        read = {arg for call in calls if call.site.op != "stop" for arg in call.args}
        total += shape.d * len(read - held)
        total += sum(shape.kept_by(call.site, seq, eager) for call in calls)
        held = {stream for stream, value in section.outputs if value in read}
    return total


def _short(value: float) -> str:
    for unit in ("", "k", "M", "G", "T"):
        if abs(value) < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} P"


class _CallableModule(ModuleType):
    # Importing this module binds `sublayer.cost` to it, and the public function has that name too: so that
    # `sl.cost(design)` works whatever was imported first, the module can be called.
    def __call__(self, *args: Any, **kwargs: Any) -> Cost:
        return cost(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
