"""What one fine-tuning run is. Nothing here imports torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from sublayer.train.settings import Settings

from .errors import FinetuneError
from .tasks import task_of

#: Tokens of a row at most, where neither the run nor the model says less: as in BERT's own fine-tuning code.
LENGTH = 128


@dataclass(frozen=True, kw_only=True)
class FinetuneSpec(Settings):
    """One run: a checkpoint, a task, a seed and a budget.

    The defaults are of BERT's kind (Devlin et al. 2019, 1810.04805, appendix A.3: batch 32, 3 epochs and a rate of 2e-5
    are among those tried); a tenth of warm-up and linear decay are our choice. A spec is checked when it is made; a bad
    one raises `TrainError`.

    Attributes:
        checkpoint: what `sublayer.load` reads: a folder or a Hub id.
        task: a key of `sublayer.finetune.tasks.TASKS`.
        data: a folder, or hub.
        to: a design to change the checkpoint's wiring to before training; None leaves it.
        seed: of the new head, dropout, and the order of the rows.
        epochs, steps: passes over the training rows, or optimiser steps; steps go before epochs.
        batch: rows a step.
        group: the rows of so many batches are sorted by length before they are cut into batches, which saves padding;
            1 sorts nothing.
        max_length: tokens of a row, special ones included. None: 128, or fewer if the model or the tokenizer has to.
        warmup: below 1 a share of the steps; from 1 steps.
        weight_decay: on tensors with two or more axes only.
        dropout: of stream and attention weights. None: as the checkpoint has it.
        pooling: which token the head reads: first, last or mean. None: as the checkpoint's config says.
        head: own for what the checkpoint's config puts before the layer of labels (BERT: a projection and tanh), linear
            for the layer of labels alone.
        fresh_pooler: draw the projection before the labels anew, even where the checkpoint has a trained one.
        train_examples: learn from so many rows only, drawn at random, the same for every seed.
        eval_every: steps between evaluations on the dev set. None: an epoch; 0: at the end only.
        patience: stop after so many evaluations in a row without a better score. None: never.
        weights: which are kept and scored: those of the last step, or of the best evaluation. None: the best with
            patience, else the last.
        save_steps: steps between checkpoints. None: as `eval_every`; 0: only when told to stop.
        save_model: keep the final weights as a checkpoint.
        threads: of this process. None: the cores it may use.
        workers: processes that make batches ahead; 0: the run makes them itself. No weight depends on it.
    """

    free_on_resume: ClassVar[frozenset[str]] = frozenset(
        # the checkpoint and the data are compared by their hashes, wherever they lie now
        {"checkpoint", "data", "log_every", "save_steps", "keep", "save_model", "workers"}
    )
    needed: ClassVar[Mapping[str, str]] = {
        "checkpoint": "fine-tuning needs a checkpoint: a folder or a Hub id",
        "task": "fine-tuning needs a task: one of those of GLUE",
    }

    checkpoint: str
    task: str
    data: str = "hub"
    to: str | None = None
    seed: int = 0
    # -- budget and optimiser -------------------------------------------------------------------------------------
    epochs: float = 3.0
    steps: int | None = None
    batch: int = 32
    group: int = 1
    lr: float = 2e-5
    warmup: float = 0.1
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-6
    clip: float = 1.0
    # -- rows and head --------------------------------------------------------------------------------------------
    max_length: int | None = None
    train_examples: int | None = None
    dropout: float | None = None
    pooling: Literal["first", "last", "mean"] | None = None
    head: Literal["own", "linear"] = "own"
    fresh_pooler: bool = False
    # -- evaluation -----------------------------------------------------------------------------------------------
    eval_every: int | None = None
    eval_batch: int = 64
    patience: int | None = None
    weights: Literal["last", "best"] | None = None
    # -- machine and keeping --------------------------------------------------------------------------------------
    attn_implementation: str = "sdpa"
    threads: int | None = None
    workers: int = 0
    device: Literal["auto", "cpu"] = "auto"
    dtype: Literal["float32", "bf16"] = "float32"
    log_every: int = 10
    save_steps: int | None = None
    save_model: bool = True
    keep: int = 1

    def __post_init__(self) -> None:
        self.check_types()
        _check_values(self)

    def less_memory(self) -> str:
        """What to change where a step took more memory than there is."""
        length = f"--max-length {(self.max_length or LENGTH) // 2}"
        fewer = f"--batch {self.batch // 2} or " if self.batch > 1 else ""
        return f"a step has {self.batch} rows; give, in another folder, {fewer}{length}"

    def settled(self, rows: int) -> SettledSpec:
        """The same run with every number of steps filled in.

        Args:
            rows: that are learnt from.

        Raises:
            FinetuneError: the warm-up is longer than the run.
        """
        epoch = math.ceil(rows / self.batch)
        steps = self.steps if self.steps is not None else max(1, math.ceil(self.epochs * rows / self.batch))
        every = epoch if self.eval_every is None else self.eval_every
        if self.warmup > steps:
            raise FinetuneError(f"warmup ({self.warmup:g} steps) must not exceed the run ({steps} steps); give a share")
        return SettledSpec(
            **{item.name: getattr(self, item.name) for item in fields(self)}
            | {
                "steps": steps,
                "eval_every": every,
                "save_steps": every if self.save_steps is None else self.save_steps,
                "weights": self.weights or ("last" if self.patience is None else "best"),
            }
        )


@dataclass(frozen=True, kw_only=True)
class SettledSpec(FinetuneSpec):
    """A run whose rows are known: what the training loop reads (`sublayer.train.settings.Loop`)."""

    steps: int = 1
    eval_every: int = 0
    save_steps: int = 0

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.steps

    @property
    def warmup_steps(self) -> int:
        """Optimiser steps over which the learning rate rises from zero."""
        return int(self.warmup) if self.warmup >= 1 else math.ceil(self.steps * self.warmup)

    @property
    def data_seed(self) -> int:
        """Of the order of the rows: the run's own."""
        return self.seed

    @property
    def accumulation(self) -> int:
        """A step is one forward pass."""
        return 1

    @property
    def measure_every(self) -> int:
        """Nothing is measured at the `+` of the equation."""
        return 0

    @property
    def compile(self) -> bool:
        """Rows have many lengths, and each would be compiled anew."""
        return False

    @property
    def report_to(self) -> tuple[str, ...]:
        """No tracker is told."""
        return ()


def _check_values(spec: FinetuneSpec) -> None:
    def need(holds: bool, rule: str, remedy: str = "") -> None:
        if not holds:
            raise FinetuneError(rule + (f"; {remedy}" if remedy else ""))

    task_of(spec.task)
    for name in ("checkpoint", "data"):
        need(getattr(spec, name).strip() != "", f"{name} must not be empty", "give a folder, or a name of the Hub")
    if spec.to is not None:
        from sublayer.notation import parse

        parse(spec.to)  # a DesignError of its own
    for name in ("steps", "batch", "group", "eval_batch", "patience", "log_every", "keep", "threads", "train_examples"):
        value = getattr(spec, name)
        need(value is None or value >= 1, f"{name} must be at least 1, got {value}")
    for name in ("seed", "eval_every", "save_steps"):
        value = getattr(spec, name)
        need(value is None or 0 <= value < 1 << 63, f"{name} must lie in [0, 2**63), got {value}")
    for name in ("lr", "warmup", "weight_decay", "clip"):
        need(getattr(spec, name) >= 0, f"{name} must not be negative, got {getattr(spec, name)}")
    need(0 <= spec.workers <= 256, f"workers must lie between 0 and 256, got {spec.workers}")
    need(spec.epochs > 0, f"epochs must be positive, got {spec.epochs}")
    need(spec.eps > 0, f"eps must be positive, got {spec.eps}")
    need(
        spec.max_length is None or spec.max_length >= 4, f"max_length must be at least 4 tokens, got {spec.max_length}"
    )
    need(spec.dropout is None or 0 <= spec.dropout < 1, f"dropout must lie in [0, 1), got {spec.dropout}")
    need(all(0 <= beta < 1 for beta in spec.betas), f"betas must lie in [0, 1), got {spec.betas}")
    need(
        not (spec.patience is not None and spec.eval_every == 0),
        "patience counts evaluations, and eval_every 0 makes one only, at the end",
        "give eval_every, or no patience",
    )
