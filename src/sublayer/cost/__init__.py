"""What a design costs: parameters, FLOPs and memory, by formulas from the wiring graph. Imports no torch.

Parameters are exact. FLOPs are those of the matrix products, 2 for each multiply-add, and equal to what torch's
`FlopCounterMode` counts: projections, both products of attention over the full [seq, seq] matrix (a causal mask saves
nothing in it), the FFN, the output layer, and in the backward pass a product for each gradient that is asked for
(`sublayer.cost.products`). Norms, activations, softmax, positions, sums and the embedding look-up are left out: a few
per cent at most.

Memory is that of a training step with AdamW: forward, backward, clipping, update. The step is replayed on a tape of
allocations (`sublayer.cost.tape`, `operators`, `memory`), and its peak is the most that lives at one moment. What the
libraries take for themselves (kernels' work space, the allocator's slack) is not in it.
"""

import difflib
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from sublayer._verb import callable_module
from sublayer.cost import products
from sublayer.cost.lengths import Length, crossover, growth
from sublayer.cost.memory import Head, Memory, Setting, replay
from sublayer.cost.operators import Attention, Device
from sublayer.notation import Design, DesignError, parse
from sublayer.notation.graph import NORMS
from sublayer.notation.program import Section
from sublayer.sizes import CostError as CostError
from sublayer.sizes import Sizes as Sizes

_BUILT = ("attn", "dot", "ffn", *NORMS, "scale", "gate", "stop")


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
        training_flops: of forward and backward pass.
        recomputed_flops: within `training_flops`, what the backward pass repeats of the forward pass: scores in an
            attention kernel that keeps no probabilities, blocks under gradient checkpointing.
        flops_by_site: within `forward_flops`, by owner.
        memory: of a training step of the batch.
        lengths: FLOPs a token, and attention's share in them, from 512 to 16384 tokens a row.
        crossover: tokens a row at which attention's products between positions cost as much as the FFN's, forward;
            None where one of them is missing (`sublayer.cost.lengths`).
    """

    design: str
    batch: int
    seq: int
    parameters: int
    embedding_parameters: int
    parameters_by_site: dict[str, int]
    forward_flops: int
    training_flops: int
    recomputed_flops: int
    flops_by_site: dict[str, int]
    memory: Memory
    lengths: tuple[Length, ...]
    crossover: float | None

    @property
    def model_flops(self) -> int:
        """`training_flops` without what is done twice: what a utilisation is reckoned from (PaLM, 2204.02311)."""
        return self.training_flops - self.recomputed_flops

    @property
    def forward_flops_per_token(self) -> float:
        """`forward_flops` over the tokens of the batch."""
        return self.forward_flops / (self.batch * self.seq)

    @property
    def training_flops_per_token(self) -> float:
        """`training_flops` over the tokens of the batch."""
        return self.training_flops / (self.batch * self.seq)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, derived numbers included."""
        values = asdict(self)
        for name in ("model_flops", "forward_flops_per_token", "training_flops_per_token"):
            values[name] = getattr(self, name)
        return values

    def __str__(self) -> str:
        m = self.memory
        parts = ("weights", "gradients", "optimizer", "activations", "logits")
        memory = ", ".join(f"{name} {_short(getattr(m, name))}B" for name in parts)
        owners = [f"  {name:<30} {count:>14,}" for name, count in self.parameters_by_site.items()]
        shares = [f"  {name:<30} {count / self.forward_flops:>13.1%}" for name, count in self.flops_by_site.items()]
        total, embedding = f"{self.parameters:,}", f"{self.embedding_parameters:,}"
        lengths = [
            f"  {row.seq:<30} {_short(row.forward_flops_per_token):>8}{_short(row.training_flops_per_token):>10}"
            f"{row.attention_share:>10.1%}"
            for row in self.lengths
        ]
        lines = [
            self.design,
            f"parameters        {_short(self.parameters)} ({total}; embedding {embedding})",
            *owners,
            f"forward           {_short(self.forward_flops_per_token)}FLOP a token at seq {self.seq}",
            *shares,
            f"training          {_short(self.training_flops_per_token)}FLOP a token",
            "by length                         forward  training  between positions",
            *lengths,
            f"training memory   {_short(m.total)}B at most, in {m.moment}, for {self.batch} x {self.seq} tokens",
            f"  over the step   {memory}",
        ]
        if self.crossover is not None:
            meets = f"  attention between positions costs as much as the FFN at {self.crossover:,.0f} tokens"
            lines.insert(-2, meets)
        return "\n".join(lines)


def cost(
    design: str | Design | Mapping[str, Any] | Any,
    *,
    batch: int = 1,
    seq: int | None = None,
    head: Head = "lm",
    dtype: Literal["float32", "bf16"] = "float32",
    attention: Attention = "sdpa",
    device: Device = "cpu",
    checkpointing: bool = False,
    accumulation: int = 1,
    packed: bool = False,
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
        dtype: of activations; "bf16" is mixed precision: weights, gradients and moments stay in float32.
        attention: "sdpa" for a kernel that keeps no probabilities, "eager" for products written out.
        device: whose kernels, for the memory: "cpu" or "cuda".
        checkpointing: each layer is run again in the backward pass, and only its input is kept.
        accumulation: forward passes of an optimiser step; from 2 on, all gradients are there all the time.
        packed: for the memory: rows hold several documents, which a mask keeps apart, as `sublayer train` packs them.

    Raises:
        DesignError: the design cannot be read, has operators that cannot be built, or does not fit the depth.
        CostError: a size that breaks a rule, or an unknown one.
    """
    wiring, shape = _read(design, sizes)
    if seq is None:
        seq = min(512, shape.max_position_embeddings)
    labels = head if isinstance(head, int) else 1
    for name, value in (("batch", batch), ("seq", seq), ("accumulation", accumulation), ("head", labels)):
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
    for place, section in sections:
        _check_built(section)
        for site in section.sites:
            owned[f"{place}.{site.name}"] += shape.parameters_of(site)
    if head == "lm":
        owned.update(shape.language_head)
    elif isinstance(head, int):
        owned.update(shape.classifier(head))
    total = owned.total()
    flops = products.count(sections, shape, head, batch, seq, attention, device, checkpointing)
    width = 4 if dtype == "float32" else 2
    how = Setting(batch, seq, width, attention, device, checkpointing, accumulation, packed)
    return Cost(
        design=str(wiring),
        batch=batch,
        seq=seq,
        parameters=total,
        embedding_parameters=embedding,
        parameters_by_site={name: count for name, count in owned.items() if count},
        forward_flops=flops.forward.total(),
        training_flops=flops.forward.total() + flops.backward,
        recomputed_flops=flops.recomputed,
        flops_by_site={name: count for name, count in flops.forward.items() if count},
        memory=replay(sections, shape, head, total, how),
        lengths=growth(flops, batch * seq, seq),
        crossover=crossover(flops, seq),
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


def attention_crossover(design: str | Design | Mapping[str, Any] | Any, **sizes: Any) -> float | None:
    """Tokens a row at which attention's products between positions cost as much as the FFN's, forward.

    Args:
        design, sizes: as in :func:`cost`.

    Returns:
        tokens, or None where the design has no attention or no FFN. The formula is in `sublayer.cost.lengths`:
        ``d d_ff / (heads head_dim)`` for one of each a layer, half as much again with a gate.
    """
    return cost(design, **{"seq": 1, **sizes}).crossover


def _check_built(section: Section) -> None:
    for site in section.sites:
        if site.op not in _BUILT:
            raise DesignError(
                f"{site.op!r} stands for something without an implementation here, so it has no known cost",
                section.text,
            )


def _short(value: float) -> str:
    for unit in ("", "k", "M", "G", "T"):
        if abs(value) < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} P"


callable_module(__name__)
