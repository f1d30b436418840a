"""What happens around the steps of a run: reseeding, records, measuring, checkpoints."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sublayer.whole_files import write_atomically

from . import checkpoint
from .progress import Progress
from .settings import Loop
from .stopping import StopOnSignal
from .trainer import GuardedTrainer

STATE = "sublayer_state.json"  # of a checkpoint: what this package keeps beside the Trainer's own state

#: Looks at a model after some step and returns a measure record; it must leave the model and the random numbers alone.
Measure = Callable[[PreTrainedModel, int], dict[str, Any]]


def reseed(seed: int, step: int, rank: int = 0) -> None:
    """Set every global stream of random numbers from (seed, step, rank)."""
    words = np.random.SeedSequence([seed, step, rank]).generate_state(2, np.uint64)
    torch.manual_seed(int(words[0]))
    random.seed(int(words[0]))
    np.random.seed(int(words[1] & np.uint64(0xFFFFFFFF)))  # noqa: NPY002 - the global stream is what is meant


class MetricsFile:
    """`metrics.jsonl`: one JSON object a line, flushed at once, never a NaN.

    Args:
        path: the file; None keeps only the last record of each kind, as the processes do that write none.
        upto: of what is there, records up to this step stay and later ones go; None: the file starts empty.
        checkpoint: folder that keeps a copy as of its step, whole as the checkpoint is; None, or one of an earlier
            version without a copy: what is at ``path`` is taken up.
    """

    def __init__(self, path: Path | None, upto: int | None, checkpoint: Path | None = None) -> None:
        kept = []
        if path is not None:
            copy = checkpoint / path.name if checkpoint is not None else path
            before = read_metrics(copy if copy.exists() else path)
            kept = [] if upto is None else [record for record in before if record["step"] <= upto]
            write_atomically(path, "".join(_line(record) for record in kept))
        self.path, self.last = path, {record["kind"]: record for record in kept}

    def write(self, record: dict[str, Any]) -> None:
        """Append one record."""
        if self.path is not None:
            with open(self.path, "a", encoding="utf-8") as stream:
                stream.write(_line(record))
        self.last[record["kind"]] = record

    def sync(self) -> None:
        """Put what was written on the disk, so that no checkpoint is newer than its records."""
        if self.path is not None:
            with open(self.path, "rb") as stream:
                os.fsync(stream.fileno())


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Records of a metrics file; a last line that a kill cut short is left out, a missing file is empty."""
    records = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                break
    return records


class Guard(TrainerCallback):
    """Everything this package does around a step, in a fixed order: log, evaluate, measure, save.

    Args:
        spec: the settings.
        folder: of the checkpoints.
        metrics: where records go.
        progress: told of every step.
        stop: asked after every step.
        facts: kept in each checkpoint's manifest.
        extent: how much training a step comes to, for the records: `tokens` and `flops`, or what the run counts.
        measure: None measures nothing.
        wall: seconds of the whole run so far, over all resumes.
    """

    def __init__(
        self,
        spec: Loop,
        folder: Path,
        metrics: MetricsFile,
        progress: Progress,
        stop: StopOnSignal,
        facts: dict[str, Any],
        extent: Callable[[int], dict[str, float]],
        measure: Measure | None,
        wall: Callable[[], float],
    ) -> None:
        self.spec, self.folder, self.metrics, self.progress, self.stop = spec, folder, metrics, progress, stop
        self.facts, self.extent, self.measure, self.wall = facts, extent, measure, wall
        self.seconds = 0.0  # in training steps only, over all resumes
        self.trainer: GuardedTrainer | None = None  # set once it exists; the two know each other
        self._begun = 0.0

    # -- steps --------------------------------------------------------------------------------------------------

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Evaluate and measure the untrained model."""
        if state.global_step == 0:
            self._of_trainer().evaluate()
            self._measure_now(0)
        self._announce(0)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Reseed: the step draws the same random numbers whatever was drawn before it."""
        self._begun = time.perf_counter()
        # evaluating, measuring and saving draw random numbers; a step must not depend on whether they happened
        reseed(self.spec.seed, state.global_step, args.process_index)
        first = self.measure is not None and state.global_step == 0
        self._of_trainer().want_gradients = first or self._measures_at(state.global_step + 1)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Decide what happens after this step; the Trainer then logs, evaluates and saves, in that order."""
        self.seconds += time.perf_counter() - self._begun
        step, spec = state.global_step, self.spec
        if self._measures_at(step):
            self._measure_now(step)
        elif step == 1 and self.measure is not None:
            # of the weights as they were drawn: how the gradient begins, layer by layer
            self.metrics.write({"kind": "gradients", "step": 1, "layers": self._of_trainer().layer_gradients})
        last, stopping = step >= spec.total_steps, self._stopping()
        control.should_log = step == 1 or step % spec.log_every == 0 or last or stopping
        control.should_evaluate = last or (spec.eval_every > 0 and step % spec.eval_every == 0)
        control.should_save = stopping or (spec.save_steps > 0 and step % spec.save_steps == 0 and not last)
        control.should_training_stop = last or stopping
        if not last:
            self._announce(step)
        return control

    # -- records ------------------------------------------------------------------------------------------------

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Write a training record."""
        if "loss" in (logs or {}):
            record = {"loss": logs["loss"], "lr": logs["learning_rate"], "grad_norm": float(logs["grad_norm"])}
            self._record("train", state.global_step, **record, seconds=round(self.seconds, 4))
            if state.global_step >= self.spec.total_steps:
                self._announce(state.global_step)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **kwargs: Any
    ) -> None:
        """Write an evaluation record."""
        self._record("eval", state.global_step, loss=metrics["eval_loss"])
        self._heed(control)

    def _heed(self, control: TrainerControl) -> None:
        """A signal came while the run looked at its model: what the last step made is saved, and no other begins."""
        if self._stopping():
            control.should_save = control.should_training_stop = True

    def _stopping(self) -> bool:
        """A signal may reach the processes at different steps, or only some of them: they stop together."""
        self.stop.received = self._of_trainer().team.most(self.stop.received or 0) or None
        return self.stop.received is not None

    def _record(self, kind: str, step: int, **values: Any) -> None:
        self.metrics.write({"kind": kind, "step": step, **values, **self.extent(step)})

    def _measures_at(self, step: int) -> bool:
        every = self.spec.measure_every
        return self.measure is not None and (step == self.spec.total_steps or (every > 0 and step % every == 0))

    def _measure_now(self, step: int) -> None:
        if self.measure is None:
            return
        trainer, look = self._of_trainer(), self.measure
        with trainer.whole() as model:  # the first process looks, while the others wait
            record = trainer.team.tell(lambda: look(model, step))
        for layer in record.get("layers", []):
            layer["gradient_norm"] = trainer.layer_gradients.get(layer["layer"])
        self.metrics.write({"kind": "measure", **record, "step": step})

    def _announce(self, step: int) -> None:
        known = self.metrics.last.get("train") or self.metrics.last.get("eval") or {}
        self.progress.update(step, known.get("loss"))

    def _of_trainer(self) -> GuardedTrainer:
        assert self.trainer is not None
        return self.trainer

    # -- checkpoints --------------------------------------------------------------------------------------------

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Commit the checkpoint that the Trainer has written, then rotate."""
        folder, team = self.folder / f"checkpoint-{state.global_step}", self._of_trainer().team
        kept = self.kept()

        def commit() -> None:
            (folder / STATE).write_text(json.dumps(kept), encoding="utf-8")
            self.metrics.sync()
            if self.metrics.path is not None:
                shutil.copyfile(self.metrics.path, folder / self.metrics.path.name)
            checkpoint.commit(folder, {"step": state.global_step, "seconds": round(self.wall(), 3), **self.facts})
            checkpoint.rotate(self.folder, self.spec.keep)

        team.wait()  # until each process has written its part
        team.tell(commit)

    def kept(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the Trainer's own state."""
        return {"seconds": self.seconds, "order": self._of_trainer().order_sha256(), "seed": self.spec.seed}

    def restore(self, folder: Path) -> None:
        """Take up what a checkpoint kept."""
        self.take_up(json.loads((folder / STATE).read_text(encoding="utf-8")), folder)

    def take_up(self, own: dict[str, Any], folder: Path) -> None:
        """The counts that `kept` gave, and whatever else lies in the checkpoint's folder."""
        self.seconds = own["seconds"]
        self._of_trainer().take_up_order(own["order"])
