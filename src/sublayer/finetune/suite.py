"""Several tasks and seeds: run what is missing, gather the rows, write `finetune.json`. Imports no torch by itself."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from sublayer import folders, signed
from sublayer.streams import STDERR
from sublayer.train import kept
from sublayer.train.frame import cores, finished

from .data import read, tasks_in
from .errors import FinetuneError
from .result import RESULTS, Finetuning, gather
from .spec import FinetuneSpec
from .tasks import TASKS, task_of

RUNS = "runs"


def finetune(
    checkpoint: str | os.PathLike[str],
    task: str | Sequence[str] | None = None,
    *,
    suite: str | None = None,
    data: str | os.PathLike[str] = "hub",
    seeds: Sequence[int] = (0,),
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    output: IO[str] | None = STDERR,
    command: Sequence[str] = (),
    **settings: Any,
) -> Finetuning:
    """Fine-tune a checkpoint on tasks of GLUE, from several seeds, and score it on their dev sets.

    The runs are made one after another in this process, each in a folder of its own under ``out/runs``, and
    ``out/finetune.json`` has the results.

    Args:
        checkpoint: what `sublayer.load` reads from: a folder of transformers or Sublayer, or a Hub id.
        task: one task or several: cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli.
        suite: "glue" for every task that ``data`` has, instead of ``task``.
        data: the folder of the task's official files, or one that holds the folders of several tasks; or "hub".
        seeds: of the new head, dropout and the order of the rows; two or more give an interval.
        out: folder of the results; default ``sublayer-finetune``, numbered if that exists.
        resume: go on with what is in ``out``: run only what is missing.
        output: where progress is shown, or None.
        command: the command line to record; default this call.
        settings: any other field of `FinetuneSpec`: to, epochs, steps, lr, batch, patience and so on.

    Raises:
        FinetuneError, TrainError, CheckpointError, DesignError, ConvertError: for anything a user can mend.
    """
    from .metrics import require

    require()
    source = os.fspath(data)
    keys = _tasks(task, suite, source)
    specs = [
        FinetuneSpec.from_dict({
            "checkpoint": os.fspath(checkpoint), "data": source, **settings, "task": key, "seed": seed,
            "threads": settings.get("threads") or cores(),
        })
        for key in keys
        for seed in _seeds(seeds)
    ]  # fmt: skip
    for key in keys:
        read(task_of(key), source)  # what is wrong with a file is said before the first run
    folder = _claim(specs, out, resume)
    line = list(command) or _call(specs[0], keys, seeds)
    from .one import run

    with folders.held(folder, FinetuneError, "in"):
        for spec in specs:
            place = folder / RUNS / run_id(spec)
            if output is not None:
                print(f"{place.name}: {'done' if finished(place) else 'begins'}", file=output, flush=True)
            row = run(spec, place, resume=resume, progress=output, command=line)
            results = _write(specs, folder, line)
            if row["status"] == "killed" and row["signal"]:
                break  # whoever stopped this run does not want the next one
    return Finetuning(folder, results)


def run_id(spec: FinetuneSpec) -> str:
    """The name of a run's folder."""
    return f"{spec.task}-s{spec.seed}"


def exit_status(rows: Sequence[Mapping[str, Any]]) -> int:
    """What a process ends with: 128 + n if a signal n stopped it, 1 if a run failed, 3 if all diverged, else 0."""
    killed = [row for row in rows if row["status"] == "killed"]
    if killed:
        return 128 + int(killed[0].get("signal") or 9)
    if any(row["status"] in ("failed", "missing") for row in rows):
        return 1
    return 3 if rows and all(row["status"] == "diverged" for row in rows) else 0


def prepare_process() -> None:
    """What a process of fine-tuning sets before it imports torch; no number changes by it."""
    from sublayer.train.frame import keep_freed_memory

    # read once, when torch loads its OpenMP runtime: threads that spin while waiting take the cores from each other
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed_memory()


def _tasks(task: str | Sequence[str] | None, suite: str | None, source: str) -> list[str]:
    if (task is None) == (suite is None):
        raise FinetuneError("give either a task or a suite: --task cola, or --suite glue for every task of the folder")
    if suite is None:
        chosen = [task] if isinstance(task, str) else list(task or ())
        for key in chosen:
            task_of(key)
        if not chosen:
            raise FinetuneError(f"at least one task is needed, of {', '.join(TASKS)}: give one")
        return [key for key in TASKS if key in chosen]
    if suite != "glue":
        raise FinetuneError(f"a suite is glue, got {suite!r}: give --suite glue")
    if source == "hub":
        return list(TASKS)
    found = tasks_in(source)
    if len(set(found.values())) < len(found):
        raise FinetuneError(f"{source} holds the files of one task, of which its name says nothing: give --task")
    if not found:
        raise FinetuneError(
            f"{source} has no folder that is named like a task ({', '.join(t.title for t in TASKS.values())}): give "
            "the folder of the suite"
        )
    return list(found)


def _seeds(seeds: Sequence[int]) -> list[int]:
    found = list(seeds)
    if not found or len(set(found)) < len(found):
        raise FinetuneError(f"seeds are whole numbers, each once and at least one, got {found}: give --seeds 0,1,2")
    return found


def _claim(specs: Sequence[FinetuneSpec], out: str | os.PathLike[str] | None, resume: bool) -> Path:
    """The folder of the results, made if it is new."""
    folder = Path(out) if out is not None else Path("sublayer-finetune")
    number = 1
    while out is None and folder.exists() and not resume:
        number += 1
        folder = Path(f"sublayer-finetune-{number}")
    if folder.exists() and not folder.is_dir():
        raise FinetuneError(f"{folder} is a file; give a folder for the results")
    begun = (folder / RESULTS).exists() or any((folder / RUNS).glob("*"))
    if begun and not resume:
        raise FinetuneError(f"{folder} holds results already; pass --resume to go on with them, or give another folder")
    if not begun and not folders.is_new(folder):
        raise FinetuneError(f"{folder} is not empty and holds no results of fine-tuning; give a new folder")
    # the runs hold all that it says, and which runs were asked for is all that is looked up in it
    if signed.read_or_set_aside(folder / RESULTS, "and written again from the runs") is not None:
        there = {row["id"] for row in Finetuning.load(folder).results["runs"]}
        lost = sorted(there - {run_id(spec) for spec in specs})
        if lost:
            raise FinetuneError(
                f"the results in {folder} have runs that are not asked for now ({', '.join(lost)}), and none is dropped"
                ": give their tasks and seeds too, or another folder"
            )
    return folders.make(folder, FinetuneError)


def _write(specs: Sequence[FinetuneSpec], folder: Path, command: Sequence[str]) -> dict[str, Any]:
    rows = []
    for spec in specs:
        place = folder / RUNS / run_id(spec)
        row, problem = kept.read_row(place)
        if row is None or problem is not None:
            why = f"{problem}; --resume runs it again" if problem else "not run yet; --resume runs what is missing"
            row = {
                "id": run_id(spec), "task": spec.task, "seed": spec.seed, "status": "missing", "score": None,
                "reason": why,
            }  # fmt: skip
        rows.append({**row, "folder": place.relative_to(folder).as_posix()})
    results = gather(rows, command)
    signed.write(folder / RESULTS, results)
    return results


def _call(spec: FinetuneSpec, tasks: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """A command line that makes the same runs."""
    defaults = FinetuneSpec(checkpoint=spec.checkpoint, task=spec.task, data=spec.data).to_dict()
    changed = {k: v for k, v in spec.to_dict().items() if v != defaults[k] and k != "seed"}
    return [
        "sublayer", "finetune", spec.checkpoint, *(word for key in tasks for word in ("--task", key)),
        "--data", spec.data, "--seeds", ",".join(map(str, seeds)),
        *(word for key, value in changed.items() for word in (f"--{key.replace('_', '-')}", str(value))),
    ]  # fmt: skip
