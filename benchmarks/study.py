"""A whole `sublayer compare` beside the same runs as a bare PyTorch loop, which measures and saves nothing.

    python benchmarks/study.py [--steps 300] [--rounds 3] [--out benchmarks/study.json]

Two designs and two seeds of size `tiny`, one run at a time, one thread, the data prepared beforehand. The study looks
at every `+` and evaluates at each quarter, saves models, hashes, and writes its report; the loop draws the same rows,
takes the same steps, computes the held-out loss once, at the end, and does nothing else. Both are processes of their
own, start included. `--clock cpu` counts the time of the process and its children. `loss` is the largest relative
difference of the four held-out losses at the end.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pairs import Row, apart, arguments, children_seconds, ratios, write

DESIGNS, SEEDS = ("post-norm", "paf"), (0, 1)


def options(given: argparse.Namespace) -> list[str]:
    """What both are told."""
    return ["--size", "tiny", "--steps", str(given.steps), "--threads", "1", "--cache", str(given.cache)]


def spent(command: list[str]) -> tuple[float, float, str]:
    """Wall seconds, processor seconds and output of a process and its children."""
    before = children_seconds()
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wall = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-800:]}")
    return wall, children_seconds() - before, done.stdout


def bare(given: argparse.Namespace) -> None:
    """The loop: prints the held-out losses."""
    import torch

    from sublayer.train import TrainSpec
    from sublayer.train.build import build
    from sublayer.train.cache import prepare
    from sublayer.train.dataset import IGNORED, PackedRows
    from sublayer.train.spec import SIZES
    from sublayer.train.trainer import collate

    torch.set_num_threads(1)
    settings = {**SIZES["tiny"], "steps": given.steps, "threads": 1, "cache": str(given.cache)}
    found = []
    for design in DESIGNS:
        for seed in SEEDS:
            spec = TrainSpec(design=design, seed=seed, **settings)
            corpus = prepare(spec)
            words = corpus.vocabulary
            rows = PackedRows(
                corpus.train, words, spec.objective, spec.seq, length=spec.total_steps * spec.batch,
                data_seed=spec.data_seed, mask_rate=spec.mask_rate,
            )  # fmt: skip
            model: Any = build(spec, words).train()
            wide = [p for p in model.parameters() if p.ndim >= 2]
            thin = [p for p in model.parameters() if p.ndim < 2]
            optimizer = torch.optim.AdamW(
                [{"params": wide, "weight_decay": spec.weight_decay}, {"params": thin, "weight_decay": 0.0}],
                lr=spec.lr, betas=spec.betas, eps=spec.eps, fused=True,
            )  # fmt: skip
            for step in range(spec.total_steps):
                factor = rate(step, spec.warmup_steps, spec.total_steps, spec.schedule)
                for group in optimizer.param_groups:
                    group["lr"] = spec.lr * factor
                batch = collate([rows[i] for i in range(step * spec.batch, (step + 1) * spec.batch)])
                model(**batch, loss_only=True).loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), spec.clip)
                optimizer.step()
                optimizer.zero_grad()
            # what a run is for: its held-out loss at the end
            held_out = PackedRows(
                corpus.eval, words, spec.objective, spec.seq, mask_rate=spec.mask_rate, limit=spec.eval_rows
            )
            total, count = 0.0, 0
            model.eval()
            for begin in range(0, len(held_out), spec.batch):
                batch = collate([held_out[i] for i in range(begin, min(begin + spec.batch, len(held_out)))])
                predicted = int((batch["labels"] != IGNORED).sum())
                with torch.no_grad():
                    total += float(model(**batch, loss_only=True).loss) * predicted
                count += predicted
            found.append(total / count)
    print(json.dumps(found))


def rate(step: int, warmup: int, steps: int, schedule: str) -> float:
    """The learning rate's factor, as transformers has it."""
    if step < warmup:
        return step / max(1, warmup)
    share = (step - warmup) / max(1, steps - warmup)
    return {"linear": 1 - share, "cosine": 0.5 * (1 + math.cos(math.pi * share)), "constant": 1.0}[schedule]


def main() -> None:
    """Measure and write the record."""
    parser = arguments(__doc__, __file__, rounds=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.bare:
        bare(given)
        return
    if given.quick:
        given.steps = 10
    ours, theirs, checks = [], [], {}
    with tempfile.TemporaryDirectory() as name:
        given.cache = Path(name) / "cache"
        plain = [sys.executable, __file__, "--bare", "--steps", str(given.steps), "--cache", str(given.cache)]
        spent(plain)  # makes the cache
        for turn in range(given.rounds):
            out = Path(name) / f"study-{turn}"
            study = [sys.executable, "-m", "sublayer", "compare", *DESIGNS, *options(given), "--jobs", "1"]
            study += ["--seeds", ",".join(map(str, SEEDS)), "--lr", "2e-3", "--out", str(out)]
            took = {}
            for what in ("study", "bare") if turn % 2 == 0 else ("bare", "study"):
                wall, processor, said = spent(study if what == "study" else plain)
                took[what] = processor if given.clock == "cpu" else wall
                if what == "bare":
                    found = json.loads(said.splitlines()[-1])
            ours.append(took["study"])
            theirs.append(took["bare"])
            runs = json.loads((out / "results.json").read_text())["runs"]
            losses = {(run["design"], run["seed"]): run["eval_loss"] for run in runs}
            checks = {"loss": apart([losses[d, s] for d in DESIGNS for s in SEEDS], found)}
    row = Row(
        "a whole study, two designs and two seeds", "the same runs as a bare loop", ratios(theirs, ours), "at most",
        1.1, statistics.median(ours), statistics.median(theirs), checks=checks, note=f"{given.steps} steps a run",
    )  # fmt: skip
    write("study", [row], given, steps=given.steps, seeds=list(SEEDS))


if __name__ == "__main__":
    main()
