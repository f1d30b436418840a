"""An array job of SLURM: task I is run I of the plan. Writes two scripts, and submits them if asked. Imports no torch.

A task is told by SIGUSR1 that its time limit is near; its run then saves and stops as for SIGTERM, and the task is
queued again. SIGTERM, which is what `scancel` and preemption send, lets the run save too, but queues nothing: SLURM
does that itself for a preempted job (`--requeue`), and whoever cancels a job does not want it again.
"""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from sublayer.streams import STDERR
from sublayer.study.errors import StudyError
from sublayer.study.execute import finished, write_spec
from sublayer.study.files import ranges
from sublayer.study.plan import Plan
from sublayer.whole_files import write_atomically

FOLDER, RUNS, GATHER = "slurm", "runs.sh", "gather.sh"
NOTICE = 120  # seconds before the time limit at which a run is told to save

_HEAD = """#!/bin/bash
# {about}
#SBATCH --job-name={name}
#SBATCH --chdir={here}
#SBATCH --output={log}
#SBATCH --open-mode=append
"""

_ARRAY = """#SBATCH --array={array}
#SBATCH --cpus-per-task={threads}
#SBATCH --requeue
#SBATCH --signal=B:USR1@{notice}
"""

_WAIT = """
export SUBLAYER_WAIT="${SUBLAYER_WAIT:-180}"  # seconds to wait for a process that has not let go of a folder yet
"""

_TASK = """
run= again= caught=
save() {{ caught=yes; [ -z "$run" ] || kill -TERM "$run" 2> /dev/null; }}
trap 'again=yes; save' USR1  # the time limit is near
trap save TERM               # cancelled or preempted

{command} --index "$SLURM_ARRAY_TASK_ID" &
run=$!
wait "$run"
status=$?
while [ "$status" -gt 128 ] && [ -n "$caught" ]; do  # it was the signal that ended the wait, not the run
    caught=
    wait "$run"
    code=$?
    [ "$code" = 127 ] || status=$code
done
if [ -n "$again" ] && [ "$status" = 143 ]; then
    scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
fi
exit "$status"
"""


def check(submit: bool, options: Sequence[str]) -> None:
    """Refuse what cannot be done before anything is written.

    Raises:
        StudyError: an option that is none, or nothing to submit with.
    """
    for option in options:
        if not re.fullmatch(r"--?[A-Za-z][^\n\r]*", option):
            raise StudyError(
                f"an option of sbatch begins with '-' and is one line, such as --time=2:00:00; got {option!r}"
            )
    if submit and shutil.which("sbatch") is None:
        raise StudyError(
            "--submit needs SLURM's sbatch, which is not on this machine's PATH; leave --submit out and submit the "
            "scripts where it is"
        )


def execute(
    plan: Plan,
    study: Path,
    *,
    jobs: int | None = None,
    measure: bool = True,
    flops: Mapping[str, float] | None = None,
    output: IO[str] | None = STDERR,
    submit: bool = False,
    options: Sequence[str] = (),
) -> None:
    """Write the scripts of an array job for every run that is not finished, and say or do what submits them.

    Args:
        plan: what to run.
        study: the study's folder, which all machines see.
        jobs: tasks at once; None: as many as SLURM allows.
        measure: whether the runs look at every ``+``.
        flops: not used: each run finds them for itself.
        output: where is said what was done, or None.
        submit: also call `sbatch`.
        options: lines for the head of both scripts, such as ``--partition=gpu``.
    """
    waiting = [run for run in plan.runs() if finished(study, run) is None]
    if not waiting:
        _say(output, "every run is finished: nothing to submit")
        return
    for run in waiting:
        write_spec(study, run)
    array = ranges(run.index for run in waiting) + (f"%{jobs}" if jobs else "")
    runs, gather = write(plan, study, array, measure, options)
    if not submit:
        _say(output, f"{len(waiting)} runs, to be submitted where SLURM is; JOB is what the first line prints:")
        _say(output, f"  sbatch --parsable {shlex.quote(str(runs))}")
        _say(output, f"  sbatch --dependency=afterany:JOB {shlex.quote(str(gather))}")
        return
    job = _sbatch("--parsable", str(runs)).split(";")[0].strip()
    _sbatch("--parsable", f"--dependency=afterany:{job}", str(gather))
    _say(output, f"submitted: {len(waiting)} runs as array job {job}, results are gathered when it has ended")


def write(plan: Plan, study: Path, array: str, measure: bool, options: Sequence[str]) -> tuple[Path, Path]:
    """Write the script of the array job and that of the job which gathers its results; their paths."""
    folder = (study / FOLDER).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    name = "sublayer-" + (re.sub(r"[^A-Za-z0-9._-]+", "-", study.absolute().name) or "study")
    words = [sys.executable, "-m", "sublayer", "compare", "--out", str(study.absolute())]
    extra = "".join(f"#SBATCH {option}\n" for option in options)

    def head(about: str, suffix: str, log: str) -> str:
        return _HEAD.format(about=about, name=name + suffix, here=_path(Path.cwd()), log=_path(folder, log))

    task = [*words, *([] if measure else ["--no-measure"])]
    runs = head(
        "Task I of the array is run I of the study's plan; each goes on from its last checkpoint.", "", "%a.txt"
    )
    runs += _ARRAY.format(array=array, threads=plan.base.threads, notice=NOTICE) + extra + _WAIT
    runs += _TASK.format(command=shlex.join(task))
    gather = head("Gathers the results of the study from what its runs have left.", "-gather", "gather.txt")
    gather += extra + _WAIT + f"\nexec {shlex.join([*words, '--gather'])}\n"
    for path, text in ((folder / RUNS, runs), (folder / GATHER, gather)):
        write_atomically(path, text)
        path.chmod(0o755)
    return folder / RUNS, folder / GATHER


def _path(folder: Path, pattern: str = "") -> str:
    """A folder, or a file in it, as a line of #SBATCH has it: in a folder's name, % begins no pattern."""
    if "\n" in str(folder):
        raise StudyError(f"a script of SLURM names no folder with a line break in it, got {str(folder)!r}: rename it")
    return shlex.quote(str(folder).replace("%", "%%") + (f"/{pattern}" if pattern else ""))


def _sbatch(*arguments: str) -> str:
    done = subprocess.run(["sbatch", *arguments], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip() or f"exit status {done.returncode}"
        raise StudyError(
            f"sbatch refused {arguments[-1]}: {said}; give what it needs with --sbatch, or edit the script"
        )
    return done.stdout


def _say(output: IO[str] | None, text: str) -> None:
    if output is not None:
        print(text, file=output, flush=True)
