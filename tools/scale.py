"""Many runs on many machines: what planning and gathering take (measured), what failures cost (simulated), and what a
training on 64 GPUs would take (estimated).

    python tools/scale.py [--out benchmarks/scale.json] [--quick]

**Measured**: a plan of 1,000 runs is made, written, its array job for SLURM written, one run found by its index, and
its results gathered and shown from synthetic rows, each step in a fresh process.

**Simulated**: 1,000 runs over 64 machines, one run a machine, in the order of the plan. A machine fails after an
exponentially distributed time; its run goes back to the head of the queue with its last checkpoint, and the machine
comes back after a repair. A checkpoint stops training for as long as it takes to write, flush and hash its bytes, whose
rate is measured here with the files that `sublayer.train.checkpoint` commits. The interval between checkpoints is
Daly's estimate (J. T. Daly, Future Generation Computer Systems 22, 2006), a higher-order form of Young's
sqrt(2 C M) (J. W. Young, Communications of the ACM 17, 1974), or a given one. The simulation is held against Daly's
expected time of one run: M exp(R/M) (exp((t + C)/M) - 1) W/t.

**Estimated**: RoBERTa-large wired as PAF, from `sublayer.train.dry_run` and the bytes of an all-reduce.
"""

import argparse
import heapq
import json
import math
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sublayer.whole_files import write_atomically

SCHEMA = "sublayer.scale/1"
PEAK, MFU = 989e12, 0.4  # dense bf16 FLOP/s of an H100 SXM by its data sheet; the share reached is an assumption
# -- the study ---------------------------------------------------------------------------------------------------------
RUNS, MACHINES = 1000, 64
SIZE, TOKENS = "large", 7e9  # 24 layers, width 1024: about twenty tokens a parameter
DESIGNS = ("post-norm", "input-norm", "output-norm", "sandwich", "paf", "parallel", "deepnorm", "mix-ln", "rezero",
           "layerscale")  # fmt: skip
SEEDS, LRS = range(10), [1e-4 * 1.5**i for i in range(10)]
# -- assumptions of the simulation, in seconds ---------------------------------------------------------------------
START = 120.0  # queueing, imports, and reading a checkpoint back
REPAIR = 3600.0  # until a machine that failed takes a run again
# Mean time between failures of one machine. Llama 3's report (2407.21783, section 3.3.4): 419 unexpected interruptions
# in 54 days on 16,384 GPUs, one in 50,676 hours of a GPU. The others are poor machines, and such as are lent.
FAILURES = {"as Llama 3's GPUs": 54 * 24 * 16384 / 419, "every 30 days": 720.0, "every day": 24.0, "every 4 hours": 4.0}


# -- simulation --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """One study on failing machines; times in seconds.

    Attributes:
        runs, machines: how many.
        work: training of one run without checkpoints.
        save: one checkpoint.
        every: training between two checkpoints.
        mean: mean time between failures of a machine.
        start: from a run's beginning on a machine, first or again, to its first step.
        repair: until a failed machine takes a run again.
    """

    runs: int
    machines: int
    work: float
    save: float
    every: float
    mean: float
    start: float
    repair: float


@dataclass
class Outcome:
    """What a simulation gave: hours of the study, machine hours by use, and events."""

    wall: float = 0.0
    training: float = 0.0
    lost: float = 0.0
    saving: float = 0.0
    starting: float = 0.0
    repairing: float = 0.0
    failures: int = 0


def daly(save: float, mean: float) -> float:
    """Daly's interval of training between two checkpoints, for the cost of one and the mean time between failures."""
    if save >= 2 * mean:
        return mean
    x = save / (2 * mean)
    return math.sqrt(2 * save * mean) * (1 + math.sqrt(x) / 3 + x / 9) - save


def expected(one: Work) -> float:
    """Daly's expected time of one run on one machine that is replaced at once, its first start included."""
    rate = 1 / one.mean
    again = one.mean * math.exp(one.start * rate) * (math.exp((one.every + one.save) * rate) - 1) * one.work / one.every
    return again + one.start


def simulate(one: Work, draw: random.Random) -> Outcome:
    """Play a study through, event by event."""
    done, found = [0.0] * one.runs, Outcome()
    queue: deque[int] = deque(range(one.runs))
    # (time, machine): when a machine is free to take a run
    free = [(0.0, machine) for machine in range(one.machines)]
    heapq.heapify(free)
    back: list[tuple[float, int]] = []  # (time, run): runs of failed machines, known to the queue from then on
    unfinished = one.runs
    while unfinished:
        now, machine = heapq.heappop(free)
        while back and back[0][0] <= now:
            queue.appendleft(heapq.heappop(back)[1])
        if not queue:
            if back:  # nothing to do until a run comes back
                heapq.heappush(free, (back[0][0], machine))
            continue
        run = queue.popleft()
        left = one.work - done[run]
        saves = max(0, math.ceil(left / one.every) - 1)  # none at the end, where the weights are written
        whole = one.start + left + saves * one.save
        failure = draw.expovariate(1 / one.mean)
        if failure >= whole:
            found.training += left
            found.saving += saves * one.save
            found.starting += one.start
            found.wall = max(found.wall, now + whole)
            heapq.heappush(free, (now + whole, machine))
            unfinished -= 1
            continue
        found.failures += 1
        trained = max(0.0, failure - one.start)
        cycles = min(saves, int(trained // (one.every + one.save)))
        done[run] += cycles * one.every
        found.training += cycles * one.every
        found.saving += cycles * one.save
        found.lost += trained - cycles * (one.every + one.save)
        found.starting += min(failure, one.start)
        found.repairing += one.repair
        heapq.heappush(back, (now + failure, run))
        heapq.heappush(free, (now + failure + one.repair, machine))
    return found


def simulated(work: float, save: float, quick: bool) -> dict[str, Any]:
    """Every rate of failures, at Daly's interval and at others."""
    runs, machines = (50, 8) if quick else (RUNS, MACHINES)
    ideal = math.ceil(runs / machines) * work  # equal runs in turns, on machines that never fail, nothing saved
    rows = []
    for name, hours in FAILURES.items():
        best = daly(save, hours * 3600)
        for label, every in (("Daly", best), ("a tenth", best / 10), ("ten times", best * 10), ("none", work)):
            one = Work(runs, machines, work, save, min(every, work), hours * 3600, START, REPAIR)
            if label == "none" and work > 5 * one.mean:
                continue  # a run would hardly ever end
            found = simulate(one, random.Random(0))
            busy = found.training + found.lost + found.saving + found.starting
            rows.append({
                "failures": name, "mean_hours": hours, "interval": label, "every_minutes": one.every / 60,
                "wall_hours": found.wall / 3600, "over_ideal": found.wall / ideal - 1, "failures_met": found.failures,
                "lost_share": found.lost / busy, "saving_share": found.saving / busy,
                "starting_share": found.starting / busy, "repair_hours": found.repairing / 3600,
            })  # fmt: skip
    # against the formula: one run at a time, machines replaced at once, many of them
    check = Work(2000, 1, work, save, daly(save, 24 * 3600), 24 * 3600.0, START, 0.0)
    played = simulate(check, random.Random(1)).wall / check.runs
    return {
        "runs": runs, "machines": machines, "hours_of_a_run": work / 3600, "seconds_of_a_checkpoint": save,
        "start_seconds": START, "repair_seconds": REPAIR, "ideal_hours": ideal / 3600, "rows": rows,
        "of_expected": {"simulated": played, "formula": expected(check), "ratio": played / expected(check)},
    }  # fmt: skip


# -- measured ----------------------------------------------------------------------------------------------------------


def save_rate(megabytes: int) -> float:
    """Bytes a second at which a checkpoint is written, flushed, hashed and committed here: the median of five."""
    from sublayer.train import checkpoint

    rates = []
    with tempfile.TemporaryDirectory() as temporary:
        content = os.urandom(megabytes << 20)
        for step in range(1, 6):
            folder = Path(temporary) / f"checkpoint-{step}"
            folder.mkdir()
            began = time.perf_counter()
            (folder / "model.safetensors").write_bytes(content)
            checkpoint.commit(folder, {"step": step})
            rates.append(len(content) / (time.perf_counter() - began))
            checkpoint.rotate(Path(temporary), 1)
    return sorted(rates)[2]


def make_plan(count: int) -> Any:
    """A plan of ten designs, ten rates and as many seeds as make so many runs."""
    from sublayer.study import Plan

    seeds = range(count // (len(DESIGNS) * len(LRS)))
    return Plan.make(DESIGNS, size=SIZE, seeds=list(seeds), lrs=LRS, tokens=int(TOKENS), threads=1)


def stage(name: str, folder: Path, count: int) -> None:
    """One step of a large study, in a process of its own."""
    from sublayer import report
    from sublayer.study.execute import run_folder
    from sublayer.study.executors import slurm
    from sublayer.study.files import PLAN, planned
    from sublayer.study.results import gather

    facts = {"spec": "synthetic", "sha256": "0" * 64, "documents": 2, "train_tokens": 10, "eval_tokens": 5,
             "eval_documents": 1, "vocab_size": 32768, "tokenizer": "none", "tokenizer_sha256": None}  # fmt: skip
    if name == "plan":
        write_atomically(folder / PLAN, json.dumps(make_plan(count).to_dict(), indent=2) + "\n")
    elif name == "array job":
        slurm.execute(planned(folder)[1], folder, output=None)
    elif name == "one index":
        assert planned(folder)[1].runs()[count - 1].index == count - 1
    elif name == "rows":
        draw = random.Random(0)
        plan = planned(folder)[1]
        names = [one.id for one in plan.designs]
        for run in plan.runs():
            loss = 3 + 0.05 * names.index(run.design) + draw.gauss(0, 0.02) + abs(math.log(run.spec.lr / 5e-4)) / 10
            lost = draw.random() < 0.01
            row = {"status": "diverged" if lost else "ok", "reason": "the loss is nan at step 9" if lost else None,
                   "eval_loss": None if lost else loss, "train_loss": loss, "steps_done": 100, "seconds": 3e4,
                   "threads": 1, "device": "cuda:0", "data_order_sha256": "d", "model": "model",
                   "init_sha256": {"attn": f"a{run.spec.seed}", "embed": "e"}}  # fmt: skip
            write_atomically(run_folder(folder, run) / "run.json", json.dumps(row))
            losses = {step: loss + 8 / (step + 1) for step in range(0, 100, 5)}
            lines = [
                json.dumps({"kind": "train", "step": step, "loss": value, "lr": 1e-4, "seconds": step,
                            "tokens": step * 16384, "flops": step * 1e13})
                for step, value in losses.items()
            ]  # fmt: skip
            write_atomically(run_folder(folder, run) / "metrics.jsonl", "\n".join(lines) + "\n")
    elif name == "gather":
        results = gather(planned(folder)[1], folder, facts, ["sublayer", "compare"])
        assert len(results["runs"]) == count
        write_atomically(folder / "results.json", json.dumps(results) + "\n")
    else:
        assert name == "page"
        report.write(json.loads((folder / "results.json").read_text(encoding="utf-8")), folder, folder / "report.html")


STAGES = ("plan", "array job", "one index", "rows", "gather", "page")


def measured(quick: bool) -> dict[str, Any]:
    """Seconds and peak memory of each step of planning and gathering, for a tenth of the runs too."""
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        for count in (100,) if quick else (100, RUNS):
            folder = Path(temporary) / str(count)
            folder.mkdir()
            for name in STAGES:
                line = [sys.executable, __file__, "--stage", name, "--folder", str(folder), "--count", str(count)]
                done = subprocess.run(line, capture_output=True, text=True, check=False)
                if done.returncode != 0:
                    raise RuntimeError(f"{name} of {count} runs failed: {done.stderr[-2000:]}")
                found.append({"runs": count, "step": name, **json.loads(done.stdout)})
                print(found[-1], flush=True)
            found[-1]["page_mb"] = (folder / "report.html").stat().st_size / 1e6
    return {"steps": found}


# -- estimated ---------------------------------------------------------------------------------------------------------


def cost_of_a_run() -> dict[str, float]:
    """FLOPs of one run of the study and the bytes of its checkpoint, by formulas."""
    from sublayer.study.plan import price

    base = make_plan(len(DESIGNS) * len(LRS)).base
    found = price(base)
    flops = found.training_flops_per_token * base.total_steps * base.tokens_per_step
    return {"parameters": found.parameters, "flops": flops, "hours": flops / (PEAK * MFU) / 3600,
            "checkpoint_bytes": 12.0 * found.parameters}  # fmt: skip


def roberta(gpus: int = 64) -> dict[str, Any]:
    """RoBERTa-large wired as PAF on so many GPUs: days over a range of utilisations, memory, and bytes on the wires.

    An all-reduce in rings sends and receives 2 (N - 1)/N of the gradients a GPU (Patarasuk & Yuan 2009).
    """
    from sublayer.recipes import load
    from sublayer.train import TrainSpec
    from sublayer.train.dry_run import Machine, dry_run
    from sublayer.train.from_recipe import settings

    recipe = load("paf-roberta-large")
    spec = TrainSpec.from_dict({key: value for key, value in settings(recipe).items() if value is not None})
    days, last = {}, None
    for mfu in (0.3, 0.4, 0.5):
        last = dry_run(recipe, spec, Machine(gpus=gpus, mfu=mfu))
        days[f"{mfu:.0%}"] = {p.sharding: p.days for p in last.placements if not p.checkpointing}
    assert last is not None
    gradients = 4 * last.parameters
    wire = 2 * (gpus - 1) / gpus * gradients
    step = {f"{mfu:.0%}": last.flops_per_step / (gpus * PEAK * mfu) for mfu in (0.3, 0.4, 0.5)}
    return {
        "gpus": gpus, "parameters": last.parameters, "flops": last.flops, "flops_per_step": last.flops_per_step,
        "steps": last.steps, "passes": last.passes, "days": days, "seconds_of_a_step": step,
        "memory_gb": {p.sharding: p.total / 1e9 for p in last.placements if not p.checkpointing},
        "gradient_bytes": gradients, "all_reduce_bytes_a_gpu": wire,
        "all_reduce_seconds": {"400 Gbit/s a GPU": wire / 50e9, "100 Gbit/s a GPU": wire / 12.5e9},
        "checkpoint_bytes": 12 * last.parameters,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON record")
    parser.add_argument("--quick", action="store_true", help="fewer runs: does it run?")
    for name in ("--stage", "--folder", "--count"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.stage:
        import psutil

        began = time.process_time()
        stage(given.stage, Path(given.folder), int(given.count))
        seconds = round(time.process_time() - began, 2)
        status = Path("/proc/self/status").read_text(encoding="ascii") if psutil.LINUX else ""
        peak = next((int(line.split()[1]) >> 10 for line in status.splitlines() if line.startswith("VmHWM:")), None)
        print(json.dumps({"cpu_seconds": seconds, "peak_mb": peak}))
        return 0
    began = time.monotonic()
    steps, run, rate = measured(given.quick), cost_of_a_run(), save_rate(16 if given.quick else 256)
    save = run["checkpoint_bytes"] / rate
    record = {
        "schema": SCHEMA, "command": "python tools/scale.py" + (" --quick" if given.quick else ""), "seed": 0,
        "date": datetime.now(UTC).date().isoformat(), "python": platform.python_version(),
        "system": platform.platform(), "measured": {**steps, "checkpoint_bytes_a_second": rate},
        "a_run": {"size": SIZE, "tokens": TOKENS, "peak_flops": PEAK, "mfu": MFU, **run},
        "simulated": simulated(run["hours"] * 3600, save, given.quick), "estimated": roberta(),
    }  # fmt: skip
    record["seconds"] = round(time.monotonic() - began, 1)
    show(record)
    if given.out is not None:
        write_atomically(given.out, json.dumps(record, indent=1) + "\n")
    return 0


def show(record: dict[str, Any]) -> None:
    """The record as text."""
    sim, run = record["simulated"], record["a_run"]
    print(f"\na run: {run['parameters']:,} parameters, {run['flops']:.3g} FLOPs, {run['hours']:.2f} h at {MFU:.0%}; a "
          f"checkpoint {run['checkpoint_bytes'] / 1e9:.2f} GB, {sim['seconds_of_a_checkpoint']:.1f} s at "
          f"{record['measured']['checkpoint_bytes_a_second'] / 1e6:.0f} MB/s (measured here)")  # fmt: skip
    print(f"simulated: {sim['runs']} runs on {sim['machines']} machines, ideal {sim['ideal_hours']:.1f} h; a run by "
          f"itself takes {sim['of_expected']['ratio']:.4f} of Daly's formula")  # fmt: skip
    for row in sim["rows"]:
        shares = ", ".join(f"{key} {row[f'{key}_share']:.2%}" for key in ("lost", "saving", "starting"))
        print(
            f"  {row['failures']:18} {row['interval']:10} every {row['every_minutes']:8.1f} min: "
            f"{row['wall_hours']:8.1f} h ({row['over_ideal']:+.1%}), {row['failures_met']:5} failures",
            shares,
        )
    print("estimated:", json.dumps(rounded(record["estimated"]), indent=1))


def rounded(value: dict[str, Any]) -> dict[str, Any]:
    """Figures to four places."""
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in value.items()}


if __name__ == "__main__":
    sys.exit(main())
