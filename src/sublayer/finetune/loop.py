"""Training with scores: evaluation by the task's metrics, early stopping, and the weights of the best evaluation."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from sublayer.train.callbacks import Guard, MetricsFile
from sublayer.train.not_finite import first_bad
from sublayer.train.progress import Progress
from sublayer.train.stopping import StopOnSignal
from sublayer.train.trainer import Diverged, GuardedTrainer

from .metrics import Scores, score
from .rows import Encoded, Padded, TrainingRows
from .spec import SettledSpec
from .tasks import Task

BEST = "best.safetensors"


class TaskTrainer(GuardedTrainer):
    """A `GuardedTrainer` whose evaluation gives the task's scores.

    Args:
        model: takes input_ids, attention_mask, labels and perhaps token_type_ids; gives logits [batch, classes].
        spec: the settings.
        task: which.
        folder: where checkpoints go.
        train_rows: of the whole training.
        dev: name of a dev set -> its rows.
        guard: what happens around the steps.
        pad: the id that fills rows up.
    """

    def __init__(
        self,
        model: Any,
        spec: SettledSpec,
        task: Task,
        folder: str,
        train_rows: TrainingRows,
        dev: Mapping[str, Encoded],
        guard: TaskGuard,
        pad: int,
    ) -> None:
        super().__init__(model, spec, folder, train_rows, None, [guard], collator=Padded(pad))
        self._task, self._dev, self._batch = task, dev, spec.eval_batch
        self.predictions: dict[str, NDArray[Any]] = {}  # of the last evaluation
        self.scores: Scores | None = None
        self.scored_step: int | None = None

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss and scores on every dev set."""
        total, count = 0.0, 0
        was_training = self.model.training
        self.model.eval()
        try:
            for name, rows in self._dev.items():
                loss, self.predictions[name] = self._predict(rows)
                total, count = total + loss, count + len(rows)
        finally:
            self.model.train(was_training)
        self.scores = score(self._task, self.predictions, {name: rows.labels for name, rows in self._dev.items()})
        self.scored_step = self.state.global_step
        found: dict[str, Any] = {f"{metric_key_prefix}_loss": total / count, "scores": self.scores}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return {f"{metric_key_prefix}_loss": total / count}

    def _predict(self, rows: Encoded) -> tuple[float, NDArray[Any]]:
        """Sum of the rows' losses, and their predictions: classes, or numbers. Rows of like length share a batch."""
        regression = self._task.labels is None
        order = np.argsort(rows.lengths, kind="stable")
        predictions = np.zeros(len(rows), dtype=np.float64 if regression else np.int64)
        total = 0.0
        for begin in range(0, len(rows), self._batch):
            chosen = order[begin : begin + self._batch]
            batch = self.data_collator([rows.row(int(i)) for i in chosen])
            batch = {name: value.to(self.args.device) for name, value in batch.items()}
            with torch.no_grad():
                output = self.model(**batch)
            loss, logits = float(output.loss), output.logits.float()  # [batch, classes]
            if not math.isfinite(loss) or not bool(torch.isfinite(logits).all()):
                step, look = self.state.global_step, partial(self._only_look, batch)
                where = first_bad(self.model, look)
                raise Diverged(step, f"the loss on the dev set is {loss} after step {step}; {where}")
            total += loss * len(chosen)
            values = logits[:, 0] if regression else logits.argmax(dim=-1)
            predictions[chosen] = values.cpu().numpy()
        return total, predictions


class TaskGuard(Guard):
    """A `Guard` that knows scores.

    Args:
        spec: the settings.
        folder: of the run; the best weights lie there and, for a resume, in each checkpoint.
        metrics, progress, stop, facts, wall: as of `Guard`.
    """

    def __init__(
        self,
        spec: SettledSpec,
        folder: Path,
        metrics: MetricsFile,
        progress: Progress,
        stop: StopOnSignal,
        facts: dict[str, Any],
        wall: Callable[[], float],
    ) -> None:
        def extent(step: int) -> dict[str, float]:
            return {"examples": step * spec.batch}

        super().__init__(spec, folder, metrics, progress, stop, facts, extent, None, wall)
        self._patience, self._keep_best = spec.patience, spec.weights == "best"
        self.best_score: float | None = None
        self.best_step: int | None = None
        self.without_gain = 0  # evaluations since the best one
        self.stopped_early = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Nothing is evaluated before the first step: the head is random."""
        self._announce(state.global_step)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **kwargs: Any
    ) -> None:
        """Record the scores, keep the weights if they are the best so far, and stop if patience is over."""
        step, scores = state.global_step, metrics["scores"]
        self._record("eval", step, loss=metrics["eval_loss"], **scores.to_dict())
        told = "  ".join(f"{name} {_percent(value)}" for name, value in scores.values.items())
        self.progress.say(f"step {step}  {told}")
        # a score that is not defined is no gain, but the first weights are better than none
        gain = scores.score is not None and (self.best_score is None or scores.score > self.best_score)
        if gain or self.best_step is None:
            self.best_score, self.best_step, self.without_gain = scores.score, step, 0
            if self._keep_best:
                save_best(self._of_trainer().model, self.folder)
        else:
            self.without_gain += 1
        if self._patience is not None and self.without_gain >= self._patience and step < self.spec.total_steps:
            self.stopped_early = control.should_training_stop = True
            # a run that is killed from here on resumes before this step and comes to the same end
            control.should_save = False
        else:
            self._heed(control)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Put the best weights into the checkpoint, so that its manifest covers them, and commit it."""
        if self._keep_best and self.best_step is not None:
            os.link(self.folder / BEST, self.folder / f"checkpoint-{state.global_step}" / BEST)
        super().on_save(args, state, control, **kwargs)

    def kept(self) -> dict[str, Any]:
        """The counts, and how the best evaluation stands."""
        best = {"best_score": self.best_score, "best_step": self.best_step, "without_gain": self.without_gain}
        return {**super().kept(), **best}

    def take_up(self, own: dict[str, Any], folder: Path) -> None:
        """The inverse of `kept`; what was the best when the checkpoint was made is the best again."""
        super().take_up(own, folder)
        self.best_score, self.best_step = own["best_score"], own["best_step"]
        self.without_gain = own["without_gain"]
        (self.folder / BEST).unlink(missing_ok=True)
        if (folder / BEST).exists():
            os.link(folder / BEST, self.folder / BEST)


def save_best(model: nn.Module, folder: Path) -> None:
    """Write the model's tensors beside the checkpoints, whole or not at all."""
    temporary = folder / f".{BEST}.{os.getpid()}"
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, temporary)
    os.replace(temporary, folder / BEST)


def load_best(model: nn.Module, folder: Path) -> None:
    """Put the tensors of the best evaluation back into the model."""
    model.load_state_dict(load_file(folder / BEST))


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
