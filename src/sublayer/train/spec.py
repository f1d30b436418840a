"""What one training run is: a plain record, the same on the command line, in a file and in a checkpoint.

Nothing here imports torch, so that plans can be made and checked quickly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from .errors import TrainError
from .settings import Settings

Objective = Literal["mlm", "clm"]

#: Shapes and budgets by name. `tiny` is sized for two CPU cores and about a minute a run; `small` for a
#: workstation's CPU over lunch or any GPU; `base` and `large` have the shape of BERT-base and BERT-large. Narrower
#: models start from wider initial weights: with 0.02 the tiny ones need most of their budget to leave the plateau of
#: word frequencies. A tiny run has one thread: two runs at once are then faster than one after the other, and the
#: weights are the same whatever the number of cores.
_SHAPE = "layers hidden heads ffn seq batch vocab_size steps lr eval_rows initializer_range threads".split()
SIZES: dict[str, dict[str, Any]] = {
    "tiny": dict(zip(_SHAPE, (4, 128, 4, 512, 128, 8, 4096, 300, 2e-3, 64, 0.05, 1), strict=True)),
    "small": dict(zip(_SHAPE, (6, 256, 8, 1024, 256, 32, 8192, 2000, 1e-3, 256, 0.03, None), strict=True)),
    "base": dict(zip(_SHAPE, (12, 768, 12, 3072, 512, 32, 32768, 10000, 6e-4, 512, 0.02, None), strict=True)),
    "large": dict(zip(_SHAPE, (24, 1024, 16, 4096, 512, 32, 32768, 20000, 3e-4, 512, 0.02, None), strict=True)),
}

#: Settings that may differ between a checkpoint and the run that resumes from it: none of them changes a weight.
FREE_ON_RESUME = frozenset(
    {"eval_every", "measure_every", "measure_rows", "log_every", "save_steps", "keep", "report_to", "cache", "workers"}
)


@dataclass(frozen=True, kw_only=True)
class TrainSpec(Settings):
    """One run: a design, a model size, data, a budget and a seed.

    Every field has a default except `design`. Exactly one of `steps` and `tokens` is given. A spec is checked
    when it is made; a bad one raises `TrainError`.
    """

    free_on_resume: ClassVar[frozenset[str]] = FREE_ON_RESUME
    needed: ClassVar[Mapping[str, str]] = {"design": "a run needs a design: a catalogue name or an equation"}

    design: str
    # -- model ----------------------------------------------------------------------------------------------------
    layers: int = 4
    hidden: int = 128
    heads: int = 4
    kv_heads: int | None = None  # None: as many as `heads`
    ffn: int = 512
    hidden_act: str = "gelu"
    norm: str = "layernorm"
    positions: str = "rotary"
    qk_norm: bool = False
    dropout: float = 0.0
    attention_dropout: float | None = None  # None: the same as `dropout`
    tie_embeddings: bool = True
    init: str = "normal"
    initializer_range: float = 0.02  # standard deviation of the initial weights
    attn_implementation: str = "sdpa"
    model_options: dict[str, Any] = field(default_factory=dict)  # any other field of SublayerConfig
    # -- data -----------------------------------------------------------------------------------------------------
    objective: Objective = "clm"
    data: str = "docs"  # docs | PATH | hub:NAME[:CONFIG]
    tokenizer: str | None = None  # None: a byte-level BPE trained on the training split; else a name or a path
    vocab_size: int = 4096  # of the trained tokenizer
    seq: int = 128
    mask_rate: float = 0.15
    data_seed: int = 0
    eval_rows: int = 256  # rows of held-out text that every evaluation reads
    cache: str | None = None  # folder of tokenised data; None: $SUBLAYER_CACHE or ~/.cache/sublayer
    # -- budget and optimiser -------------------------------------------------------------------------------------
    batch: int = 16  # rows of one forward pass
    accumulation: int = 1  # forward passes of one optimiser step
    steps: int | None = None
    tokens: int | None = None
    lr: float = 1e-3
    warmup: float = 0.1  # below 1: a share of the steps; from 1: steps
    schedule: Literal["cosine", "constant", "linear"] = "cosine"
    weight_decay: float = 0.01  # on tensors with two or more axes only
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    clip: float = 1.0  # 0: no clipping
    seed: int = 0
    # -- machine --------------------------------------------------------------------------------------------------
    threads: int | None = None  # None: the cores this process may use
    workers: int = 0  # processes that make batches ahead; 0: the run makes them itself
    device: Literal["auto", "cpu"] = "auto"
    dtype: Literal["float32", "bf16"] = "float32"
    compile: bool = False
    # -- looking and keeping --------------------------------------------------------------------------------------
    log_every: int = 5
    eval_every: int = 0  # 0: at the end only
    measure_every: int = 0  # 0: at the start and the end only
    measure_rows: int = 16
    save_steps: int = 0  # 0: only when told to stop
    keep: int = 2  # checkpoints
    report_to: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.report_to, str):
            object.__setattr__(self, "report_to", (self.report_to,))
        self.check_types()
        _check_values(self)

    # -- what follows from the fields ---------------------------------------------------------------------------

    @property
    def rows_per_step(self) -> int:
        """Rows of text that one optimiser step reads."""
        return self.batch * self.accumulation

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimiser step reads."""
        return self.rows_per_step * self.seq

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        if self.steps is not None:
            return self.steps
        assert self.tokens is not None
        return math.ceil(self.tokens / self.tokens_per_step)

    @property
    def warmup_steps(self) -> int:
        """Optimiser steps over which the learning rate rises from zero."""
        return int(self.warmup) if self.warmup >= 1 else math.ceil(self.total_steps * self.warmup)

    def model_settings(self) -> dict[str, Any]:
        """Fields of `SublayerConfig`, all but those that follow from the tokenizer's special tokens."""
        return {
            "design": self.design,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.ffn,
            "hidden_act": self.hidden_act,
            "norm": self.norm,
            "position_embedding": self.positions,
            "max_position_embeddings": self.seq,
            "qk_norm": self.qk_norm,
            "hidden_dropout_prob": self.dropout,
            "attention_probs_dropout_prob": self.dropout if self.attention_dropout is None else self.attention_dropout,
            "tie_word_embeddings": self.tie_embeddings,
            "causal": self.objective == "clm",
            "init": self.init,
            "initializer_range": self.initializer_range,
            "init_seed": self.seed,
            "attn_implementation": self.attn_implementation,
            **self.model_options,
        }

    def less_memory(self) -> str:
        """What to change where a step took more memory than there is, with the memory of each way."""
        from .remedies import less_memory

        return less_memory(self)

    # -- making, reading, writing -------------------------------------------------------------------------------

    @classmethod
    def sized(cls, size: str, **settings: Any) -> TrainSpec:
        """A spec of a named size; `settings` go over the size's own (`tokens` replaces its `steps`)."""
        if size not in SIZES:
            raise TrainError(f"size is one of {', '.join(SIZES)}, got {size!r}; or give layers, hidden, heads and ffn")
        values = dict(SIZES[size])
        if settings.get("tokens") is not None:
            values.pop("steps")
        return cls.from_dict({**values, **{k: v for k, v in settings.items() if v is not None}})


def _check_values(spec: TrainSpec) -> None:
    def need(holds: bool, rule: str, remedy: str = "") -> None:
        if not holds:
            raise TrainError(rule + (f"; {remedy}" if remedy else ""))

    for name in ("layers", "hidden", "heads", "ffn", "batch", "accumulation", "log_every", "eval_rows", "measure_rows"):
        need(getattr(spec, name) >= 1, f"{name} must be at least 1, got {getattr(spec, name)}")
    for name in ("kv_heads", "threads"):
        value = getattr(spec, name)
        need(value is None or value >= 1, f"{name} must be at least 1, got {value}")
    for name in ("eval_every", "measure_every", "save_steps", "data_seed", "seed"):
        need(0 <= getattr(spec, name) < 1 << 63, f"{name} must lie in [0, 2**63), got {getattr(spec, name)}")
    for name in ("weight_decay", "clip", "warmup", "lr"):
        need(getattr(spec, name) >= 0, f"{name} must not be negative, got {getattr(spec, name)}")
    need(0 <= spec.workers <= 256, f"workers must lie between 0 and 256, got {spec.workers}")
    near = max(1, round(spec.hidden / spec.heads)) * spec.heads
    need(
        spec.hidden % spec.heads == 0 or "head_dim" in spec.model_options,
        f"hidden ({spec.hidden}) must be divisible by heads ({spec.heads})",
        f"try hidden {near}",
    )
    kv_heads = spec.kv_heads or spec.heads
    need(spec.heads % kv_heads == 0, f"heads ({spec.heads}) must be divisible by kv_heads ({kv_heads})")
    need(spec.design.strip() != "", "design must not be empty", "give a catalogue name or an equation")
    need(spec.data.strip() != "", "data must not be empty", "give docs, a path, or hub:NAME")
    need(spec.seq >= 8, f"seq must be at least 8 tokens, got {spec.seq}")
    need(spec.vocab_size >= 300, f"vocab_size must be at least 300 (256 bytes and some merges), got {spec.vocab_size}")
    need(
        (spec.steps is None) != (spec.tokens is None),
        f"give either steps or tokens, got steps={spec.steps} and tokens={spec.tokens}",
        "the other follows from seq, batch and accumulation",
    )
    need(
        (spec.steps or spec.tokens or 0) >= 1,
        f"the budget must be at least 1, got {spec.steps if spec.steps is not None else spec.tokens}",
    )
    need(0 < spec.mask_rate < 1, f"mask_rate must lie between 0 and 1, got {spec.mask_rate}", "BERT's is 0.15")
    for name in ("dropout", "attention_dropout"):
        value = getattr(spec, name)
        need(value is None or 0 <= value < 1, f"{name} must lie in [0, 1), got {value}")
    need(all(0 <= beta < 1 for beta in spec.betas), f"betas must lie in [0, 1), got {spec.betas}")
    need(spec.eps > 0, f"eps must be positive, got {spec.eps}")
    need(spec.keep >= 1, f"keep must be at least 1 checkpoint, got {spec.keep}")
    need(
        spec.warmup_steps <= spec.total_steps,
        f"warmup ({spec.warmup_steps} steps) must not exceed the run ({spec.total_steps} steps)",
        "give fewer steps, or a share such as 0.1",
    )
