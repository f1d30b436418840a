"""A Ray cluster: each run is a task of Ray that starts the run's process and waits for it. Imports no torch.

Ray starts a task again when its worker or its machine is lost, and the run then goes on from its last checkpoint. The
run's process is told to save and stop when its worker dies, so that none is left behind that nobody knows of; the
process that takes over waits until the former one has let go of the run's folder.
"""

import importlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from sublayer.streams import STDERR
from sublayer.study.errors import StudyError
from sublayer.study.execute import (
    GRACE,
    POLL,
    Display,
    account,
    finished,
    progress,
    read_row,
    run_folder,
    write_spec,
)  # fmt: skip
from sublayer.study.plan import Plan, PlannedRun
from sublayer.train.stopping import Interrupted, StopOnSignal

RETRIES = 8  # how often Ray begins a run's task again after the loss of its worker or machine
WAIT = 180  # seconds that a run waits for its former process to let go of its folder
SHOWN = 4  # runs whose progress is shown
_HANDED_ON = ("PYTHONPATH", "OMP_NUM_THREADS", "HF_HOME", "HF_HUB_OFFLINE", "XDG_CACHE_HOME", "CUBLAS_WORKSPACE_CONFIG")


def library() -> Any:
    """The module `ray`.

    Raises:
        StudyError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what Ray will do, and warns of otherwise
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise StudyError("--executor ray needs Ray, which is not installed; pip install 'sublayer[ray]'") from None


def execute(
    plan: Plan,
    study: Path,
    *,
    jobs: int | None = None,
    measure: bool = True,
    flops: Mapping[str, float] | None = None,
    output: IO[str] | None = STDERR,
) -> None:
    """Run every run of ``plan`` that is not finished on the cluster of `$RAY_ADDRESS`, on the one that runs on this
    machine, or on this machine alone.

    A run takes as many CPUs as it has threads, and a GPU if the cluster has any and its `device` is `auto`. On Ctrl-C
    or SIGTERM the runs are told to save and stop, and `Interrupted` is raised, a KeyboardInterrupt.

    Args:
        plan: what to run.
        study: the study's folder, which all machines see under the same name.
        jobs: runs at once; None: as many as the cluster has room for.
        measure: whether the runs look at every ``+``.
        flops: not used: each run finds them for itself.
        output: where progress is shown, or None.
    """
    ray = library()
    waiting = [run for run in plan.runs() if finished(study, run) is None]
    own = bool(waiting) and not ray.is_initialized()
    if own:
        ray.init(log_to_driver=False, logging_level="ERROR")
    try:
        if waiting:
            _carry_out(ray, plan, study, waiting, jobs or len(waiting), measure, output)
    finally:
        if own:
            ray.shutdown()


def _carry_out(
    ray: Any, plan: Plan, study: Path, waiting: list[PlannedRun], jobs: int, measure: bool, output: IO[str] | None
) -> None:
    gpus = 1 if plan.base.device == "auto" and ray.cluster_resources().get("GPU") else 0
    start = ray.remote(num_cpus=plan.base.threads, num_gpus=gpus, max_retries=RETRIES, retry_exceptions=False)(work)
    handed = {k: v for k, v in os.environ.items() if k in _HANDED_ON or k.startswith("SUBLAYER_")}
    total = len(plan.runs())
    display = Display(total, total - len(waiting), output)
    running: dict[Any, tuple[PlannedRun, dict[str, Any] | None, float]] = {}
    try:
        # a signal is noted and not raised: from within Ray, SystemExit comes out with another status
        with StopOnSignal() as stop, stop.patiently():
            try:
                while waiting or running:
                    if stop.received is not None:
                        raise Interrupted(stop.received)
                    while waiting and len(running) < jobs:
                        run = waiting.pop(0)
                        folder = run_folder(study, run)
                        folder.mkdir(parents=True, exist_ok=True)
                        write_spec(study, run)
                        words = ["compare", "--out", str(study.absolute()), "--index", str(run.index)]
                        words += [] if measure else ["--no-measure"]
                        reference = start.remote(words, str(folder.absolute() / "output.txt"), str(Path.cwd()), handed)
                        running[reference] = (run, read_row(study, run), time.monotonic())
                    for reference in ray.wait(list(running), num_returns=1, timeout=POLL)[0]:
                        run, before, began = running.pop(reference)
                        code = _result(ray, reference, run_folder(study, run) / "output.txt")
                        display.finished(run, account(study, run, code, time.monotonic() - began, before))
                    if display.due():
                        told = ((run.id, progress(study, run)) for run, _, _ in running.values())
                        display.show(dict([(name, facts) for name, facts in told if facts][:SHOWN]))
            except BaseException:
                for reference in running:
                    ray.cancel(reference)
                if running:
                    ray.wait(list(running), num_returns=len(running), timeout=GRACE)
                raise
    finally:
        display.close()


def _result(ray: Any, reference: Any, log: Path) -> int:
    """The exit status of a run's process; what Ray says if there is none goes into the run's output."""
    try:
        return int(ray.get(reference))
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        told = next((line.strip() for line in str(cause).splitlines() if line.strip()), "")
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{type(cause).__name__} of Ray's task: {told}\n")
        return 1


# --- on a worker of the cluster -----------------------------------------------------------------------------------


def work(words: Sequence[str], log: str, here: str, environment: Mapping[str, str]) -> int:
    """A task: ``sublayer WORDS`` in a process of its own, with its output appended to ``log``; its exit status."""
    line = [sys.executable, "-m", "sublayer.study.executors.tied", str(os.getpid()), *words]
    with open(log, "ab") as file:
        process = subprocess.Popen(
            line, cwd=here, env={**os.environ, "SUBLAYER_WAIT": str(WAIT), **environment},
            stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip
    try:
        while process.poll() is None:  # Ray cancels a task between two instructions of Python, so no long wait
            time.sleep(POLL)
    except BaseException:
        process.terminate()
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise
    return process.returncode
