"""What a recipe would take at full scale, by formulas: memory a GPU, FLOPs, days. Imports no torch.

Memory a GPU, for N of them, from the replay of a step (`sublayer.cost`) with the kernels of GPUs:

    standing    weights 4 P, gradients 4 P, Adam's moments 8 P: float32, as under autocast
    passing     the most that activations, logits and gradients under way take above that
    DDP         standing + 4 P for the buckets in which gradients travel + passing
    sharded     (FSDP or ZeRO-3) standing / N + passing + the parts that are gathered: the tables and two layers, in the
                numbers of the products

Time is model FLOPs over N * peak * utilisation, where model FLOPs leave out what is computed twice, as the model FLOPs
utilisation does (Chowdhery et al. 2022, PaLM, 2204.02311, section 4.1). Gradient checkpointing is taken to cost time in
proportion to the FLOPs that it adds. Nothing here was measured on a GPU.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from sublayer.cost import Cost, cost
from sublayer.recipes import Phase, Recipe
from sublayer.sizes import Sizes

from .errors import TrainError
from .spec import TrainSpec

#: Dense bfloat16 FLOP/s of an H100 SXM: NVIDIA's data sheet, 1979 teraFLOPS with sparsity, half of it without.
H100 = 989e12
#: Bytes left to the CUDA context, libraries and the allocator's gaps. Our choice.
RESERVED = 2e9
_PRICED = {"design", *(field.name for field in fields(Sizes))}


@dataclass(frozen=True)
class Machine:
    """GPUs: how many, bytes of memory and FLOP/s of each, and the share of these that training reaches."""

    gpus: int = 1
    memory: float = 80e9
    flops: float = H100
    mfu: float = 0.4

    def __post_init__(self) -> None:
        for name in ("gpus", "memory", "flops", "mfu"):
            if not getattr(self, name) > 0:
                raise TrainError(f"{name} must be above 0, got {getattr(self, name)}; give a positive number")
        if self.mfu > 1:
            raise TrainError(f"mfu is a share of the peak, at most 1, got {self.mfu}; 0.4 is common")


@dataclass(frozen=True)
class Placement:
    """Memory of one GPU, in bytes, under one way of splitting the model.

    Attributes:
        sharding: "one GPU", "DDP" or "sharded".
        checkpointing: whether layers are run again in the backward pass.
        standing, passing, gathered: as at the top of the module; `gathered` holds DDP's buckets too.
        total: their sum.
        fits: whether the total and `RESERVED` fit the GPU.
        days: of the whole training.
    """

    sharding: str
    checkpointing: bool
    standing: int
    passing: int
    gathered: int
    total: int
    fits: bool
    days: float


@dataclass(frozen=True)
class DryRun:
    """A recipe at full scale on some GPUs.

    Attributes:
        recipe, design: what is trained.
        machine: on what.
        parameters: of the model.
        batch, passes: rows of one pass on a GPU, and passes of an optimiser step.
        global_batch: rows of an optimiser step; the recipe's, or the next number that the GPUs can share out.
        phases: steps and tokens a row, in order.
        steps, tokens: of the whole training.
        flops_per_token, flops_per_step: model FLOPs of training, in the last phase.
        flops: of the whole training.
        kept: activations and logits of a pass, without and with checkpointing.
        placements: memory and days under each way of splitting.
    """

    recipe: str
    design: str
    machine: Machine
    parameters: int
    batch: int
    passes: int
    global_batch: int
    phases: tuple[Phase, ...]
    steps: int
    tokens: int
    flops_per_token: float
    flops_per_step: float
    flops: float
    kept: dict[str, int]
    placements: tuple[Placement, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        m = self.machine
        phases = ", then ".join(f"{p.steps:,} steps of {self.global_batch} x {p.seq}" for p in self.phases)
        heads = ("standing", "passing", "gathered")
        kept = {name: f"{size / 1e9:.1f} GB" for name, size in self.kept.items()}
        lines = [
            f"{self.recipe}: {self.design}",
            f"parameters    {self.parameters:,}",
            f"training      {phases}: {self.tokens:.4g} tokens",
            f"a step        {self.passes} passes of {self.batch} rows on each GPU: {self.global_batch} rows",
            f"FLOPs a token {self.flops_per_token:.4g}; a step {self.flops_per_step:.4g}; in all {self.flops:.4g}",
            (
                f"kept          for {self.batch} rows: activations {kept['activations']}, with checkpointing "
                f"{kept['activations_checkpointed']}; for the loss {kept['logits']}"
            ),
            "",
            f"{f'GB on each of {m.gpus}':<26}"
            + "".join(f"{h:>10}" for h in heads)
            + f"{'total':>8}{'fits':>6}{'days':>9}",
        ]
        for p in self.placements:
            name = p.sharding + (", checkpointing" if p.checkpointing else "")
            row = "".join(f"{getattr(p, head) / 1e9:>10.1f}" for head in heads)
            lines.append(f"{name:<26}{row}{p.total / 1e9:>8.1f}{'yes' if p.fits else 'no':>6}{p.days:>9.3g}")
        assumed = (
            f"assumed: {m.memory / 1e9:g} GB and {m.flops:.4g} FLOP/s a GPU (default: H100 SXM, bf16 dense), "
            f"{m.mfu:.0%} of them reached, {RESERVED / 1e9:g} GB left to CUDA; float32 weights, gradients and moments"
        )
        lines += ["", assumed]
        return "\n".join(lines)


def priced_settings(spec: TrainSpec) -> dict[str, Any]:
    """The settings of a run's model that `sublayer.cost` takes."""
    return {name: value for name, value in spec.model_settings().items() if name in _PRICED}


def dry_run(recipe: Recipe, spec: TrainSpec, machine: Machine, phases: tuple[Phase, ...] | None = None) -> DryRun:
    """What a training takes.

    Args:
        recipe: where the global batch comes from.
        spec: the run's settings, the recipe's with what the user changed; `batch` is of one pass on one GPU.
        machine: the GPUs.
        phases: default the recipe's.

    Raises:
        TrainError: the global batch cannot be shared out, or a number breaks a rule.
        CostError, DesignError: sizes that do not fit, a design that has no cost.
    """
    wanted = recipe.training["global_batch"]
    if machine.gpus > wanted:
        raise TrainError(
            f"gpus ({machine.gpus}) must be at most the rows of an optimiser step ({wanted}): give fewer GPUs"
        )
    rows = min(spec.batch, wanted // machine.gpus)
    passes = -(-wanted // (rows * machine.gpus))
    together = rows * passes * machine.gpus
    stretches = phases or recipe.phases
    longest = max(phase.seq for phase in stretches)

    def priced(seq: int, checkpointing: bool = False) -> Cost:
        return cost(
            priced_settings(spec), batch=rows, seq=seq, dtype=spec.dtype, device="cuda", packed=True,
            checkpointing=checkpointing, accumulation=max(2, passes),
            attention="eager" if spec.attn_implementation == "eager" else "sdpa",
        )  # fmt: skip

    prices = {phase.seq: priced(phase.seq) for phase in stretches}
    steps_of = [(phase, prices[phase.seq].model_flops * together / rows) for phase in stretches]
    flops = sum(phase.steps * each for phase, each in steps_of)
    last = stretches[-1]
    placements, kept = [], {}
    for checkpointing in (False, True):
        at = priced(longest, checkpointing)
        m = at.memory
        standing = m.weights + m.gradients + m.optimizer
        passing = m.total - standing
        again = at.training_flops / prices[longest].training_flops
        days = flops * again / (machine.gpus * machine.flops * machine.mfu) / 86_400
        kept["activations_checkpointed" if checkpointing else "activations"] = m.activations
        kept["logits"] = m.logits
        buckets = m.gradients if machine.gpus > 1 else 0
        whole = "DDP" if machine.gpus > 1 else "one GPU"
        placements.append(_placed(whole, checkpointing, standing, passing, buckets, machine, days))
        if machine.gpus > 1:
            width = 2 if spec.dtype == "bf16" else 4
            block = sum(n for name, n in at.parameters_by_site.items() if name.startswith("layers.")) / spec.layers
            tables = sum(n for name, n in at.parameters_by_site.items() if not name.startswith("layers."))
            gathered = round(width * (tables + 2 * block))
            shard = standing // machine.gpus
            placements.append(_placed("sharded", checkpointing, shard, passing, gathered, machine, days))
    return DryRun(
        recipe=recipe.name,
        design=prices[longest].design,
        machine=machine,
        parameters=prices[longest].parameters,
        batch=rows,
        passes=passes,
        global_batch=together,
        phases=stretches,
        steps=sum(phase.steps for phase in stretches),
        tokens=sum(phase.steps * phase.seq for phase in stretches) * together,
        flops_per_token=prices[last.seq].model_flops / (rows * last.seq),
        flops_per_step=steps_of[-1][1],
        flops=flops,
        kept=kept,
        placements=tuple(sorted(placements, key=lambda p: (p.sharding, p.checkpointing))),
    )


def _placed(
    sharding: str, checkpointing: bool, standing: int, passing: int, gathered: int, machine: Machine, days: float
) -> Placement:
    total = standing + passing + gathered
    fits = total + RESERVED <= machine.memory
    return Placement(sharding, checkpointing, standing, passing, gathered, total, fits, days)
