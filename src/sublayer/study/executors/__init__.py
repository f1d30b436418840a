"""Where the runs of a plan are carried out: processes of this machine, an array job of SLURM, or a Ray cluster.

An executor is a function ``(plan, study, *, jobs, measure, flops, output)``. Whichever it is, a run is a process of its
own that goes on from its last checkpoint, in a folder that all machines share, so the results do not depend on it.
Imports no torch.
"""

from collections.abc import Callable, Sequence
from functools import partial

from sublayer.study.errors import StudyError
from sublayer.study.executors import cluster, slurm

NAMES = ("local", "slurm", "ray")


def named(name: str, submit: bool = False, options: Sequence[str] = ()) -> Callable[..., None] | None:
    """The executor of that name; None for `local`, which `run_study` takes by itself.

    Args:
        name: one of `NAMES`.
        submit: slurm: also submit the scripts.
        options: slurm: options of sbatch, for the scripts' heads.

    Raises:
        StudyError: there is none of that name, or what it needs is not installed.
    """
    if name not in NAMES:
        raise StudyError(f"executor is one of {', '.join(NAMES)}, got {name!r}")
    if name != "slurm" and (submit or options):
        given = " and ".join(["--submit"] * submit + ["--sbatch"] * bool(options))
        raise StudyError(f"{given} are for SLURM, and the executor is {name}: give --executor slurm too")
    if name == "local":
        return None
    if name == "ray":
        cluster.library()
        return cluster.execute
    slurm.check(submit, options)
    return partial(slurm.execute, submit=submit, options=tuple(options))
