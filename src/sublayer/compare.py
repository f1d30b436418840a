"""`compare`, the main job: train designs side by side, fairly; measure; report. Imports no torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from sublayer import report
from sublayer._verb import callable_module
from sublayer.notation import Design
from sublayer.streams import STDERR
from sublayer.study import Plan, Study, executors, run_study


def compare(
    designs: Sequence[str | Design] = (),
    *,
    out: str | Path | None = None,
    size: str = "tiny",
    seeds: Sequence[int] = (0,),
    lrs: Sequence[float] = (),
    jobs: int | None = None,
    measure: bool = True,
    resume: bool = False,
    output: IO[str] | None = STDERR,
    command: Sequence[str] = (),
    executor: str = "local",
    submit: bool = False,
    sbatch: Sequence[str] = (),
    **settings: Any,
) -> Study:
    """Train designs side by side on the same batches from the same initial weights; measure; compare; write the report.

    Args:
        designs: catalogue names or equations; default post-norm, PAF, input-norm, output-norm. The first is the
        baseline.
        out: folder of the study; default ``sublayer-study``, numbered if that exists.
        size: tiny, small, base or large; any setting of `sublayer.train.TrainSpec` overrides it (``layers=6,
        steps=500``).
        seeds: of the initial weights; three or more give intervals.
        lrs: learning rates; each design is compared at its best.
        jobs: runs at once; default as many as the cores allow with the threads of a run, at most four.
        measure: look at every ``+`` during training. Changes no result.
        resume: go on with the study in ``out``: run what is missing.
        output: where progress is shown, or ``None``.
        command: the command line to record; default this call.
        executor: where the runs are carried out: ``local``, this machine; ``ray``, a Ray cluster; ``slurm``, which
        writes the scripts of an array job and runs nothing, so that all runs of the results are missing.
        submit: slurm: also submit the scripts.
        sbatch: slurm: options of sbatch for the scripts, such as ``--partition=gpu``.

    Raises:
        DesignError, TrainError, StudyError: for anything a user can mend; nothing has been run then.
    """
    where = executors.named(executor, submit, sbatch)
    plan = Plan.make(designs, size=size, seeds=seeds, lrs=lrs, **settings)
    return run_study(
        plan, out, jobs=jobs, measure=measure, resume=resume, output=output, command=command, report=report.write,
        executor=where,
    )  # fmt: skip


callable_module(__name__)
