"""One run: one checkpoint, one task, one seed, from a spec to a folder."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from sublayer.train.frame import (
    DATA,
    LOG,
    METRICS,
    PROGRESS,
    alone,
    begin,
    conclude,
    cores,
    cut_short,
    examine,
    explain,
    go_through,
    interrupted,
    logging_to,
    machine,
    peak_memory_mb,
    versions,
)  # fmt: skip
from sublayer.train.stopping import Interrupted, StopOnSignal
from sublayer.whole_files import write_atomically

from .data import TaskData, read
from .errors import FinetuneError
from .metrics import Scores, majority, require
from .spec import LENGTH, FinetuneSpec, SettledSpec
from .tasks import Task, task_of

SCHEMA = "sublayer.finetune.run/1"
_log = logging.getLogger("sublayer")


@alone
def run(
    spec: FinetuneSpec,
    out: Path | str,
    resume: bool = False,
    progress: IO[str] | None = None,
    command: Sequence[str] = (),
) -> dict[str, Any]:
    """Fine-tune and score one model in this process.

    Writes into `out`: spec.json, data.json, metrics.jsonl, log.txt, progress.json, checkpoints while it runs, the final
    weights in `model/`, predictions.tsv (or one for each dev set), and last of all run.json.

    Args:
        spec: the settings.
        out: folder of the run.
        resume: go on from the newest whole checkpoint of `out`, or from the beginning when there is none; a run that is
            done is not run again, but its data and its checkpoint are compared with what is there now.
        progress: stream that shows a bar (terminal) or lines (file); None shows nothing.
        command: the command line to record.

    Returns:
        The run's row: id, task, seed, status (`ok`, `diverged`, `killed`, `failed`), reason, score (the mean of the
        metrics; None unless ok), metrics, notes, majority, and how it came about; `results.schema.json` has all of it.

    Raises:
        FinetuneError, TrainError: the data is not the task's, a package is missing, or `out` holds another run, or an
            unfinished one and `resume` is False.
        CheckpointError, DesignError, ConvertError: the checkpoint cannot be read or not be wired so. Nothing has been
            written then; every later failure is a row with its status and reason.
    """
    began = time.monotonic()
    out = Path(out)
    require()
    task = task_of(spec.task)
    spec = spec.with_(threads=spec.threads or cores())
    with StopOnSignal() as stop:
        row = _run(spec, task, out, resume, stop, began, progress, command)
        if stop.received is not None and row["status"] == "ok":
            raise Interrupted(stop.received)  # it came when the work was done: whoever sent it is told all the same
    return row


def _run(
    spec: FinetuneSpec,
    task: Task,
    out: Path,
    resume: bool,
    stop: StopOnSignal,
    began: float,
    progress: IO[str] | None,
    command: Sequence[str],
) -> dict[str, Any]:
    """The row of a run, done now or before."""
    done = examine(spec, out, resume)
    data = read(task, spec.data)
    if done is not None:
        _compare(done, data, spec, out)
        _clean(done, out)
        return done
    ready = _prepare(spec, task, data)
    begin(spec, out)
    row = {**_row(ready, out), "command": list(command), "versions": {**versions(), **_metric_versions()}}

    def wall() -> float:
        return float(row["seconds"]) + time.monotonic() - began

    with logging_to(out / LOG):
        for remark in ready.classifier.remarks:
            _log.info("%s", remark)
        _log.info("%s: %s, %d steps of %d rows", out.name, task.title, ready.spec.total_steps, spec.batch)
        try:
            with machine(ready.spec):
                _train(ready, out, row, progress, wall, stop)
        except KeyboardInterrupt as error:
            interrupted(row, error, out)
        except Exception as error:
            explain(row, error, spec, out)
        row["seconds"] = round(wall(), 3)
        row["peak_memory_mb"] = peak_memory_mb()
        _log.info("%s: %s%s", out.name, row["status"], f" ({row['reason']})" if row["reason"] else "")
    conclude(row, out, row["predictions"].values())
    _clean(row, out)
    return row


@dataclass(frozen=True)
class _Ready:
    """Everything that a run needs before its first step; `train` and `dev` are `Encoded`."""

    spec: SettledSpec
    task: Task
    data: TaskData
    classifier: Any
    train: Any
    dev: dict[str, Any]
    max_length: int

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must have been made from."""
        return {
            "spec_sha256": self.spec.sha256(),
            "data_sha256": self.data.facts["sha256"],
            "checkpoint_sha256": self.classifier.checkpoint["sha256"],
        }


def _prepare(spec: FinetuneSpec, task: Task, data: TaskData) -> _Ready:
    from .classifier import build, longest_row
    from .rows import encode, subset

    chosen = subset(len(data.train), spec.train_examples)
    train = data.train if chosen is None else data.train.take(chosen)
    settled = spec.settled(len(train))
    classifier = build(settled, task)
    limit = longest_row(classifier)
    if spec.max_length is not None and limit is not None and spec.max_length > limit:
        raise FinetuneError(
            f"max_length ({spec.max_length}) must not exceed the {limit} tokens that the model and its tokenizer take: "
            "give less"
        )
    length = spec.max_length or min(LENGTH, limit or LENGTH)

    config = classifier.model.config

    def encoded(split: Any) -> Any:
        rows = encode(classifier.tokenizer, split, length, config.type_vocab_size, task.labels is None)
        largest = int(rows.ids.max(initial=0))
        if largest >= config.vocab_size:
            raise FinetuneError(
                f"a tokenizer's ids lie below the model's vocab_size ({config.vocab_size}), got {largest}: put the "
                "model's own tokenizer beside its weights"
            )
        return rows

    data = TaskData(task, train, data.dev, data.facts)
    dev = {name: encoded(split) for name, split in data.dev.items()}
    return _Ready(settled, task, data, classifier, encoded(train), dev, length)


def _row(ready: _Ready, out: Path) -> dict[str, Any]:
    spec, task, data, classifier = ready.spec, ready.task, ready.data, ready.classifier
    splits = {"train": ready.train, **ready.dev}
    return {
        "schema": SCHEMA,
        "id": out.name, "task": task.key, "seed": spec.seed, "status": "failed", "reason": None,
        "score": None, "metrics": dict.fromkeys(task.score_names), "notes": {},
        "majority": majority(task, data.train, data.dev),
        "weights": spec.weights, "best_step": None, "stopped_early": False,
        "steps_done": 0, "total_steps": spec.total_steps, "train_loss": None, "eval_loss": None,
        "seconds": 0.0, "seconds_per_step": None, "peak_memory_mb": None, "signal": None,
        "checkpoint": classifier.checkpoint, "head": classifier.head,
        "data": {
            **data.facts,
            "train_rows_used": len(data.train),
            "frame": classifier.frame,
            "max_length": ready.max_length,
            "truncated": {name: split.truncated for name, split in splits.items()},
        },
        "settings": spec.to_dict(),
        "threads": spec.threads, "device": None,
        "data_order_sha256": None, "weights_sha256": None,
        "metrics_file": METRICS, "log": LOG, "model": None, "predictions": {},
    }  # fmt: skip


def _train(
    ready: _Ready, out: Path, row: dict[str, Any], stream: IO[str] | None, wall: Any, stop: StopOnSignal
) -> None:
    """The run itself; fills in `row`."""
    from sublayer.train.progress import Progress

    progress = Progress(ready.spec.total_steps, out / PROGRESS, stream, out.name)
    try:
        _train_on(ready, out, row, progress, wall, stop)
    finally:
        progress.phase(row["status"])
        progress.close()


def _train_on(ready: _Ready, out: Path, row: dict[str, Any], progress: Any, wall: Any, stop: StopOnSignal) -> None:
    from sublayer.train import checkpoint
    from sublayer.train.callbacks import MetricsFile, reseed

    from .classifier import weights_sha256
    from .loop import TaskGuard, TaskTrainer, load_best
    from .rows import TrainingRows

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise FinetuneError("a run is one process, and WORLD_SIZE is set; start it without torchrun")
    spec, model = ready.spec, ready.classifier.model
    newest = checkpoint.latest(out)
    if newest is not None and {key: newest[1].get(key) for key in ready.identity} != ready.identity:
        raise FinetuneError(
            f"{newest[0]} was made from another checkpoint, other data or other settings; restore those, or give "
            "another folder"
        )
    write_atomically(out / DATA, json.dumps(ready.data.facts, indent=2) + "\n")
    reseed(spec.seed, 0)
    rows = TrainingRows(ready.train, spec.seed, spec.batch, spec.total_steps, spec.group)
    metrics = MetricsFile(out / METRICS, newest[1]["step"] if newest else None, newest[0] if newest else None)
    use_cache = model.config.use_cache
    with stop.patiently():
        guard = TaskGuard(spec, out, metrics, progress, stop, ready.identity, wall)
        pad = ready.classifier.tokenizer.pad_token_id
        trainer = guard.trainer = TaskTrainer(model, spec, ready.task, str(out), rows, ready.dev, guard, pad)
        step = go_through(trainer, guard, newest, row)
        last = metrics.last.get("train")
        row.update(
            steps_done=step,
            train_loss=last["loss"] if last else None,
            seconds_per_step=round(guard.seconds / step, 5) if step else None,
            data_order_sha256=trainer.order_sha256(),
            best_step=guard.best_step,
            stopped_early=guard.stopped_early,
        )
        if step < spec.total_steps and not guard.stopped_early:
            cut_short(row, step, stop.received)
            return
        row["eval_loss"] = metrics.last["eval"]["loss"]
        if spec.weights == "best" and guard.best_step != step:
            load_best(model, out)
            row["eval_loss"] = next(r["loss"] for r in read_evaluations(out) if r["step"] == guard.best_step)
            _score_again(trainer)
        elif trainer.scored_step != step:  # resumed after the last evaluation
            _score_again(trainer)
        scores: Scores | None = trainer.scores
        assert scores is not None
        row.update(status="ok", weights_sha256=weights_sha256(model), **scores.to_dict())
        row["predictions"] = _write_predictions(ready, trainer.predictions, out)
        if spec.save_model:
            model.config.use_cache = use_cache  # the Trainer turns it off, and it would be saved so
            model.save_pretrained(out / "model")
            ready.classifier.tokenizer.save_pretrained(out / "model")
            row["model"] = "model"


def read_evaluations(out: Path) -> list[dict[str, Any]]:
    """The evaluation records of a run: step, loss, score, metrics and notes."""
    from sublayer.train.callbacks import read_metrics

    return [record for record in read_metrics(out / METRICS) if record["kind"] == "eval"]


def _score_again(trainer: Any) -> None:
    """Score the weights that are kept, outside of training: nothing is recorded a second time."""
    callbacks, trainer.callback_handler.callbacks = trainer.callback_handler.callbacks, []
    try:
        trainer.evaluate()
    finally:
        trainer.callback_handler.callbacks = callbacks


def _write_predictions(ready: _Ready, predictions: dict[str, NDArray[Any]], out: Path) -> dict[str, str]:
    """A file for each dev set: index of the row in its file, prediction, label, as the task's files write them."""
    labels, names = ready.task.labels, {}
    for split, values in predictions.items():
        names[split] = "predictions.tsv" if len(predictions) == 1 else f"predictions_{split}.tsv"
        rows = ready.data.dev[split]
        lines = ["index\tprediction\tlabel"]
        for index, value, truth in zip(rows.index, np.asarray(values), rows.labels, strict=True):
            said = (repr(float(value)), repr(truth)) if labels is None else (labels[int(value)], labels[int(truth)])
            lines.append(f"{index}\t{said[0]}\t{said[1]}")
        write_atomically(out / names[split], "\n".join(lines) + "\n")
    return names


def _clean(row: dict[str, Any], out: Path) -> None:
    """Once a run is done its checkpoints have served."""
    from sublayer.train import checkpoint

    from .loop import BEST

    if row["status"] in ("ok", "diverged"):
        checkpoint.rotate(out, 0)
        (out / BEST).unlink(missing_ok=True)


def _compare(row: dict[str, Any], data: TaskData, spec: FinetuneSpec, out: Path) -> None:
    """Refuse to pass a finished run off as one of other data or of another checkpoint."""
    if row["data"]["sha256"] != data.facts["sha256"]:
        raise FinetuneError(f"{out} holds a finished run on other files of {spec.task}; restore those, or give another")
    folder = Path(spec.checkpoint).expanduser()
    if folder.is_dir():
        from .classifier import checkpoint_sha256

        if row["checkpoint"]["sha256"] != checkpoint_sha256(folder):
            raise FinetuneError(f"{out} holds a finished run of another checkpoint than {folder}; give another folder")


def _metric_versions() -> dict[str, str]:
    from importlib import metadata

    return {name: metadata.version(name) for name in ("scikit-learn", "scipy")}
