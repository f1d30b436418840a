"""Settings that must not matter: the weights are the same whatever is evaluated, measured, logged, saved or told.

Each setting is changed alone in an undisturbed run, and the sha256 of the final weights compared. Then a run is stopped
half way and resumed with every one of them changed at once. Two settings that must matter show that the weights could
have differed.
"""

import os
import random
import signal
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers.integrations.integration_utils as integrations
from transformers import TrainerCallback

from sublayer.study import Plan, run_study
from sublayer.train import TrainSpec, finished
from torture import runs, table

# name -> (settings of the run, options of `run`)
CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "evaluation at every step": ({"eval_every": 1}, {}),
    "evaluation at every third step": ({"eval_every": 3}, {}),
    "evaluation of more rows at every step": ({"eval_every": 1, "eval_rows": 9}, {}),
    "evaluation of one row at every second step": ({"eval_every": 2, "eval_rows": 1}, {}),
    "measuring at the start and the end": ({}, {"measure": True}),
    "measuring at every step": ({"measure_every": 1}, {"measure": True}),
    "measuring more rows at every second step": ({"measure_every": 2, "measure_rows": 4}, {"measure": True}),
    "a tracker": ({"report_to": ("dice",)}, {}),
    "progress shown": ({}, {"progress": sys.stderr}),
    "logging at every second step": ({"log_every": 2}, {}),
    "logging at every seventh step": ({"log_every": 7}, {}),
    "one worker": ({"workers": 1}, {}),
    "two workers": ({"workers": 2}, {}),
    "three workers": ({"workers": 3}, {}),
    "three workers, evaluation and measuring at every step": (
        {"workers": 3, "eval_every": 1, "measure_every": 1},
        {"measure": True},
    ),
    "saving at every step": ({"save_steps": 1}, {}),
    "saving at every third step": ({"save_steps": 3}, {}),
    "saving never": ({"save_steps": 0}, {}),
    "one checkpoint kept": ({"keep": 1}, {}),
    "five checkpoints kept": ({"keep": 5}, {}),
    "another cache": ({"cache": None}, {}),
}
QUICK = ("evaluation at every third step", "measuring at every step", "a tracker", "three workers", "saving never")
MATTERS: dict[str, dict[str, Any]] = {"another seed": {"seed": 1}, "another dropout": {"dropout": 0.11}}


class Dice(TrainerCallback):
    """A tracker that draws random numbers whenever it is told something."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        """Draw."""
        torch.rand(3), random.random(), np.random.rand(3)  # noqa: NPY002 - the global stream is what is meant

    on_step_end = on_evaluate = on_save = on_train_begin = on_log


def run(spec: TrainSpec, out: Path, **options: Any) -> int:
    """A run in a forked process, where the tracker is known."""
    integrations.INTEGRATION_TO_CALLBACK["dice"] = Dice
    os.environ["XDG_CACHE_HOME"] = str(out.parent / "other-cache")
    return runs.train(spec, out, **options)


def stopped(spec: TrainSpec, out: Path) -> int:
    """A run that stops itself after its fifth step."""

    def measure(model: Any, step: int) -> dict[str, Any]:
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"step": step, "tokens": 0, "sums": [], "layers": []}

    return runs.train(spec.with_(measure_every=1), out, measure=measure)


def with_jobs(top: Path, spec: TrainSpec) -> dict[str, bool]:
    """A study with one, two and three runs at once, measured or not: whether its runs have the same weights."""
    base = {key: value for key, value in spec.to_dict().items() if key not in ("design", "seed", "lr")}
    plan = Plan.make(["post-norm", "paf"], seeds=(0, 1), lrs=(1e-2,), size="tiny", **base)
    found: dict[str, str] = {}
    for jobs, measure in ((1, False), (2, False), (3, False), (2, True)):
        out = top / f"jobs-{jobs}-{measure}"

        def act(jobs: int = jobs, measure: bool = measure, out: Path = out) -> int:
            run_study(plan, out, jobs=jobs, measure=measure, output=None)
            return 0

        code = runs.wait(runs.start(act, top / f"{out.name}.txt"), 600)
        rows = [finished(out / "runs" / one.id) for one in plan.runs()]
        found[f"a study with {jobs} jobs{', measured' if measure else ''}"] = str(
            (code, [row and row["weights_sha256"] for row in rows])
        )
    first = next(iter(found.values()))
    return {name: told == first and "None" not in told for name, told in found.items()}


def main(arguments: list[str] | None = None) -> int:
    given = table.parser("settings", __doc__).parse_args(arguments)
    began = time.monotonic()
    same: dict[str, bool] = {}
    with tempfile.TemporaryDirectory() as temporary:
        top = Path(temporary)
        for accumulation in (1,) if given.quick else (1, 3):
            spec = runs.tiny(top, steps=10, accumulation=accumulation)
            folder = top / str(accumulation)
            folder.mkdir()
            expected = runs.whole(spec, folder / "whole")
            chosen = {name: CHANGES[name] for name in (QUICK if given.quick else CHANGES)}
            for number, (name, (changes, options)) in enumerate(chosen.items()):
                out = folder / f"run-{number}"
                code = runs.wait(runs.start(partial(run, spec.with_(**changes), out, **options), folder / "log.txt"))
                same[f"{name}, accumulation {accumulation}"] = code == 0 and runs.weights(out) == expected
            changes = {key: value for one, _ in CHANGES.values() for key, value in one.items()} | {"save_steps": 3}
            out = folder / "resumed"
            runs.wait(runs.start(partial(stopped, spec, out), folder / "log.txt"))
            again = partial(run, spec.with_(**{**changes, "eval_rows": spec.eval_rows}), out, measure=True)
            code = runs.wait(runs.start(again, folder / "log.txt"))
            same[f"all at once in resuming, accumulation {accumulation}"] = code == 0 and runs.weights(out) == expected
            if accumulation == 1:
                same |= {} if given.quick else with_jobs(folder, spec)
                differ = {name: runs.whole(spec.with_(**one), folder / name.replace(" ", "-")) != expected
                          for name, one in MATTERS.items()}  # fmt: skip
    good = sum(same.values())
    lines = [
        table.Line(
            "evaluation, measuring, tracker, progress, log, worker, saving and job settings changed, each alone",
            "weights unchanged",
            f"unchanged in {good} of {len(same)}",
            good == len(same) > 0,
        ),
        table.Line("settings that matter", "weights changed", f"{sum(differ.values())} of {len(differ)}",
                   all(differ.values())),
    ]  # fmt: skip
    return table.finish("settings", given, began, lines, {"unchanged": same, "changed": differ})
