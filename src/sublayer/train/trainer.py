"""transformers' `Trainer` with the guards that make a run repeatable and its failures visible.

What is added: weight decay by the shape of a tensor, a loss or gradient that is not finite ends the run, a running
hash of what the model was fed, gradient norms per layer as the step itself made them, and an evaluation that weighs
each predicted token alike.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import math
import signal
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from . import distributed
from .dataset import IGNORED, Row
from .distributed import ALONE, Share, Team, share
from .errors import TrainError
from .not_finite import LAYER, first_bad
from .settings import Loop

Batch = dict[str, Tensor]


class Diverged(Exception):
    """The loss or a gradient is not a finite number: the run is lost, which is a result."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(reason)
        self.step, self.reason = step, reason


def collate(rows: list[Row]) -> Batch:
    """Rows of shape [seq] to tensors of shape [batch, seq]."""
    return {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}


def _deaf(worker: int) -> None:
    """In a worker: pass over what tells the run to stop. It ends when the run has no more work for it, or is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def layer_of(name: str) -> int | None:
    """Index of the layer that a parameter belongs to, by its name; None outside the layers."""
    found = LAYER.search(name)
    return int(found[1]) if found else None


class GuardedTrainer(Trainer):
    """A `Trainer` for rows that are a function of their index; see the module's text.

    Args:
        model: takes what a batch holds, labels among it, and returns a loss (the mean over labels that are not -100).
        spec: the settings.
        folder: where checkpoints go.
        train_rows, eval_rows: the data, map-style.
        callbacks: run after the Trainer's own.
        shifted: whether the model predicts the label one place further on (causal language models).
        collator: makes a batch of rows; default: rows of one length, stacked.
        team: the processes that the run is spread over.
    """

    control: TrainerControl

    def __init__(
        self,
        model: PreTrainedModel,
        spec: Loop,
        folder: str,
        train_rows: Any,
        eval_rows: Any,
        callbacks: list[TrainerCallback],
        shifted: bool = False,
        collator: Callable[[list[Row]], Batch] = collate,
        team: Team = ALONE,
    ) -> None:
        super().__init__(
            model=model,
            args=arguments(spec, folder, share(spec, team.size)),
            data_collator=collator,
            train_dataset=train_rows,
            eval_dataset=eval_rows,
            callbacks=callbacks,
        )
        distributed.check_launched(team, self.accelerator)
        self.team = team
        self.remove_callback(PrinterCallback)  # it prints every log record; metrics.jsonl has them
        self.shifted = shifted
        self._order = 0  # over the rows that this process fed to the model, see `order_sha256`
        self.want_gradients = False  # set by a callback for the steps that are measured
        self.layer_gradients: dict[int, float] = {}  # of the last such step, before clipping
        self._spec = spec
        self._losses: list[Tensor] = []
        self._fed: list[tuple[dict[str, Any], Any]] = []  # the batches of the step, to run it again if it is lost
        takes = inspect.signature(model.forward).parameters
        self._only_loss = {"loss_only": True} if "loss_only" in takes else {}

    # -- training -----------------------------------------------------------------------------------------------

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Matrices and embedding tables. Norms, biases, scales and gates are vectors or single numbers, whatever their
        names, and pulling those towards zero is not what weight decay is for."""
        return [name for name, parameter in model.named_parameters() if parameter.ndim >= 2]

    def get_train_dataloader(self) -> Any:
        """The Trainer's own, whose workers leave stopping to the run: a terminal's Ctrl-C and a cluster's SIGTERM reach
        every process of a group, and a run whose workers are gone could not finish its step and save."""
        loader = super().get_train_dataloader()
        getattr(loader, "base_dataloader", loader).worker_init_fn = _deaf  # accelerate wraps the one that iterates
        return loader

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor | Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One forward and backward pass; after the last one of a step the gradients are looked at, before clipping."""
        self._note_order(inputs)
        self._fed.append((dict(inputs), num_items_in_batch))
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._losses.append(loss)
        if self.accelerator.sync_gradients:
            self._inspect(model)
            self._fed.clear()
        return loss

    def _note_order(self, inputs: Mapping[str, Tensor]) -> None:
        ids, labels = (inputs[name].detach().cpu().numpy() for name in ("input_ids", "labels"))
        first = (len(self._fed) * self.team.size + self.team.rank) * self.args.per_device_train_batch_size
        for place, row in enumerate(zip(ids, labels, strict=True), first):
            digest = hashlib.sha256(f"{self.state.global_step} {place}\n".encode())
            for part in row:
                digest.update(part.tobytes())
            self._order += int.from_bytes(digest.digest())

    def order_sha256(self) -> str:
        """What the model was fed so far, by all processes: the sum, modulo 2**256, of the sha256 of each row with its
        step and its place among the step's rows. It depends neither on the number of processes nor on how a step is
        cut into passes. Source: Clarke et al. 2003, MSet-Add-Hash, without a secret."""
        return f"{sum(self.team.gather(self._order)) % (1 << 256):064x}"

    def take_up_order(self, sha256: str) -> None:
        """Go on from what `order_sha256` gave."""
        self._order = int(sha256, 16) if self.team.leads else 0

    @contextlib.contextmanager
    def whole(self) -> Iterator[PreTrainedModel]:
        """The model with all of its weights, to look at or to save, in the first process."""
        yield self.model

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._prepare_for_training(*args, **kwargs)
        distributed.check_wrapped(self.team, self.model_wrapped)
        return prepared

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Without logits where the model can: nobody reads them."""
        return super().compute_loss(model, inputs | self._only_loss, *args, **kwargs)

    def _inspect(self, model: nn.Module) -> None:
        named = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
        loss = torch.stack(self._losses).sum()
        self._losses.clear()
        total = gathered(torch.nn.utils.get_total_norm([gradient for _, gradient in named]))
        # one wait for the device, not two; what one process finds, all act upon
        if self.team.most(not torch.isfinite(loss + total)):
            what, value = ("gradient", float(total)) if torch.isfinite(loss) else ("loss", float(loss))
            raise Diverged(self.state.global_step + 1, self._told(what, value))
        if self.want_gradients:
            squares: dict[int, list[Tensor]] = {}
            for name, gradient in named:
                layer = layer_of(name)
                if layer is not None:
                    squares.setdefault(layer, []).append(gathered(torch.linalg.vector_norm(gradient.float())))
            self.layer_gradients = {
                layer: float(torch.linalg.vector_norm(torch.stack(norms))) for layer, norms in squares.items()
            }

    def _told(self, what: str, value: float) -> str:
        """What is lost and where it began. The first process does the passes of each of them again, with the plain
        model, while the others wait."""
        step, team = self.state.global_step + 1, self.team
        found = team.gather((what, value, self._fed))
        lost = [rank for rank, (what, _, _) in enumerate(found) if what == "loss"]
        ranks = [*lost, *(rank for rank in range(team.size) if rank not in lost)]

        def search(model: PreTrainedModel) -> tuple[int, str]:
            wheres = []
            for rank in ranks:
                wheres.append((rank, first_bad(model, partial(self._step_again, model, rank, found[rank][2]))))
                if wheres[-1][1].startswith("it began"):
                    return wheres[-1]
            return wheres[0]

        with self.whole() as model:
            rank, where = team.tell(lambda: search(model))
        what, value, _ = found[ranks[0]]
        whose = f" (process {rank} of {team.size})" if team.size > 1 else ""
        return f"the {what} is {value} at step {step}; {where}{whose}"

    def _step_again(self, model: PreTrainedModel, rank: int, fed: list[tuple[dict[str, Any], Any]]) -> None:
        """The passes of a lost step as they were, dropout and all."""
        from .callbacks import reseed

        model.zero_grad()
        reseed(self._spec.seed, self.state.global_step, rank)
        for inputs, count in fed:
            super().training_step(model, inputs, count)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """The Trainer warns of missing weights and trains on; only a tied weight, stored once, may be missing."""
        named = dict(self.model.named_parameters(remove_duplicate=False))
        loaded = {id(parameter) for name, parameter in named.items() if name not in load_result.missing_keys}
        missing = [name for name in load_result.missing_keys if name not in named or id(named[name]) not in loaded]
        if missing or load_result.unexpected_keys:
            odd = ", ".join([*missing, *load_result.unexpected_keys])
            raise TrainError(f"the checkpoint does not have the weights of this model (differing: {odd}); use another")

    def _only_look(self, batch: Batch, model: PreTrainedModel | None = None) -> None:
        with torch.no_grad():
            (model or self.model)(**batch)

    # -- evaluation ---------------------------------------------------------------------------------------------

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Mean loss over all predicted tokens of the held-out rows (the Trainer's own is a mean over batches, which
        weighs a masked token by how few others its batch has)."""
        rows: Any = eval_dataset if eval_dataset is not None else self.eval_dataset
        size, team, found = self.args.eval_batch_size, self.team, {}
        chunks = [range(begin, min(begin + size, len(rows))) for begin in range(0, len(rows), size)]
        was_training = self.model.training
        self.model.eval()
        try:
            # every process makes as many passes as the others, so that the pieces of a sharded model meet
            for number in range(team.rank, -(-len(chunks) // team.size) * team.size, team.size):
                batch = self._batch_of(rows, chunks[min(number, len(chunks) - 1)])
                targets = batch["labels"][:, 1:] if self.shifted else batch["labels"]
                predicted = int((targets != IGNORED).sum())
                with torch.no_grad():
                    loss = float(self.model(**batch, **self._only_loss)["loss"])
                if number < len(chunks):
                    found[number] = (loss if predicted else 0.0, predicted)
            # summed in the order of the rows, whoever read them
            together = dict(sorted(item for part in team.gather(found) for item in part.items()))
            bad = next((number for number, (loss, _) in together.items() if not math.isfinite(loss)), None)
            if bad is not None:
                step, loss, batch = self.state.global_step, together[bad][0], self._batch_of(rows, chunks[bad])
                with self.whole() as model:
                    where = team.tell(lambda: first_bad(model, partial(self._only_look, batch, model)))
                raise Diverged(step, f"the loss on held-out text is {loss} after step {step}; {where}")
        finally:
            self.model.train(was_training)
        total = math.fsum(loss * predicted for loss, predicted in together.values())
        count = sum(predicted for _, predicted in together.values())
        metrics = {f"{metric_key_prefix}_loss": total / max(count, 1)}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _batch_of(self, rows: Any, chunk: range) -> Batch:
        batch = self.data_collator([rows[index] for index in chunk])
        return {name: value.to(self.args.device) for name, value in batch.items()}


def gathered(tensor: Tensor) -> Tensor:
    """A tensor whose parts are spread over the processes, as a whole; all of them ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def arguments(spec: Loop, folder: str, own: Share) -> TrainingArguments:
    """The Trainer's arguments, for a process that does `own` of each step. When to log, evaluate and save is decided by
    this package's callbacks, in one place."""
    schedule = "constant_with_warmup" if spec.schedule == "constant" else spec.schedule
    cuda = spec.device == "auto" and torch.cuda.is_available()
    found = TrainingArguments(
        output_dir=folder,
        run_name=Path(folder).name,
        max_steps=spec.total_steps,
        per_device_train_batch_size=own.rows,
        per_device_eval_batch_size=spec.batch,
        gradient_accumulation_steps=own.passes,
        learning_rate=spec.lr,
        lr_scheduler_type=schedule,
        warmup_steps=spec.warmup_steps,
        weight_decay=spec.weight_decay,
        adam_beta1=spec.betas[0],
        adam_beta2=spec.betas[1],
        adam_epsilon=spec.eps,
        max_grad_norm=spec.clip,
        optim="adamw_torch_fused",
        seed=spec.seed,
        data_seed=spec.data_seed,
        use_cpu=not cuda,
        bf16=spec.dtype == "bf16",
        torch_compile=spec.compile,
        report_to=list(spec.report_to) or "none",
        # rows are a function of their index, so their order is the Trainer's plainest
        train_sampling_strategy="sequential",
        dataloader_num_workers=spec.workers,
        dataloader_pin_memory=cuda,
        remove_unused_columns=False,
        label_names=["labels"],
        logging_strategy="no",
        eval_strategy="no",
        save_strategy="no",
        save_total_limit=None,
        logging_nan_inf_filter=False,
        enable_jit_checkpoint=False,
        disable_tqdm=True,
        log_level="warning",
    )
    # with several GPUs in sight the Trainer would silently use DataParallel and multiply the batch by their number
    found._n_gpu = min(found.n_gpu, 1)
    return found
