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
       ffn    relu: d_ff; gelu, silu and others: 2 d_ff; reglu: 3 d_ff; geglu, swiglu and others with a gate: 4 d_ff
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
from sublayer.notation.parallel import parallel
from sublayer.notation.program import Call, Section
from sublayer.sizes import CostError as CostError
from sublayer.sizes import Sizes as Sizes

Head = Literal["lm", "none"] | int

_BUILT = ("attn", "dot", "ffn", *NORMS, "scale", "gate", "stop")


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
        embedding_parameters: tables of tokens, learned positions and token types, within `parameters`.
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

    owned: Counter[str] = Counter(shape.embedding_tables)
    embedding = owned.total()
    owned.update(shape.embedding_parts)
    flops: Counter[str] = Counter()
    tokens = batch * seq
    if shape.embed_projected:
        flops["embed_projection"] = tokens * 2 * shape.width * shape.d
    for place, section in sections:
        _check_built(section)
        for site in section.sites:
            owned[f"{place}.{site.name}"] += shape.parameters_of(site)
        for call in _calls(section):
            flops[f"{place}.{call.site.name}"] += tokens * shape.flops_of(call.site, seq)
    if head == "lm":
        owned.update(shape.language_head)
        flops["lm_head_transform"] = tokens * 2 * shape.d * shape.width if shape.lm_head_dense else 0
        flops["lm_head"] = tokens * 2 * shape.width * shape.vocab_size
    elif isinstance(head, int):
        owned.update(shape.classifier(head))
        flops["classifier_transform"] = batch * 2 * shape.d * shape.d if shape.classifier_dense else 0
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
        if shape.fuse_parallel:
            total += _joined(section) * shape.kept_joined(eager)
        held = {stream for stream, value in section.outputs if value in read}
    return total


def _joined(section: Section) -> int:
    """How many calls of ``attn`` share their input product with another call."""
    found = 0
    for group in parallel(section).groups:
        shared = {i for i, n in Counter(group.reads).items() if n > 1}
        found += sum(c.site.op == "attn" and i in shared for c, i in zip(group.calls, group.reads, strict=True))
    return found


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
