"""A run whose model, gradients and optimiser are split over the processes, by PyTorch's `fully_shard` (FSDP2).

Each block is a unit, and what lies outside the blocks is one more. Accelerate is not asked to shard: on a CPU it then
trains whole copies and says nothing. A checkpoint holds each process's parts (`torch.distributed.checkpoint`), which any
number of processes can read; the final weights are those of an ordinary model.

`fully_shard`: Zhao et al. 2023 (2304.11277), in the form of PyTorch 2. `.metadata` of a sharded checkpoint is a pickle: it
is opened only after the checkpoint's manifest has been checked, which proves that nothing changed since it was written.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import checkpoint as sharded_checkpoint
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel
from transformers.trainer import SCHEDULER_NAME

from .distributed import Team
from .errors import TrainError
from .settings import Loop
from .trainer import GuardedTrainer, gathered

#: Folder of a checkpoint that holds the parts of the model and of the optimiser.
PARTS = "parts"


def blocks(model: nn.Module) -> list[nn.Module]:
    """The members of the outermost lists of modules that hold parameters of their own: the layers of a stack.

    A member that shares a parameter with anything outside it is left out, since one unit must own each parameter.
    """
    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    found: list[nn.Module] = []

    def look(module: nn.Module) -> None:
        for child in module.children():
            if isinstance(child, nn.ModuleList):
                found.extend(child)
            else:
                look(child)

    look(model)

    def alone(block: nn.Module) -> bool:
        inside = Counter(id(p) for module in block.modules() for p in module.parameters(recurse=False))
        return bool(inside) and all(owners[key] == count for key, count in inside.items())

    return [block for block in found if alone(block)]


def shard(model: nn.Module, team: Team, device: torch.device) -> None:
    """Split a model over the processes, in place.

    Raises:
        TrainError: it has no blocks, so that it would be one unit and nothing would be saved.
    """
    mesh = init_device_mesh(device.type, (team.size,))
    units = blocks(model)
    if not units:
        raise TrainError(
            f"parallel fsdp2 splits a model block by block, and {type(model).__name__} has no list of blocks; use ddp"
        )
    for unit in [*units, model]:
        fully_shard(unit, mesh=mesh)


class ShardedTrainer(GuardedTrainer):
    """A `GuardedTrainer` whose model is split over the processes.

    Args:
        make: makes the model once more, whole, to be looked at or saved.
        model: whole; it is split in place.
        spec: the settings.
        rest: as of `GuardedTrainer`.
    """

    def __init__(
        self, make: Callable[[], PreTrainedModel], model: PreTrainedModel, spec: Loop, *rest: Any, team: Team
    ) -> None:
        on_gpu = spec.device == "auto" and torch.cuda.is_available()
        shard(model, team, torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu"))
        # as of a model that transformers has split while loading it: the Trainer leaves it where it is
        model._is_distributed_loading_by_transformers = True
        self._make = make
        super().__init__(model, spec, *rest, team=team)

    @contextlib.contextmanager
    def whole(self) -> Iterator[PreTrainedModel]:
        """The model with all of its weights, in the first process; there must be memory for it there."""
        together = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights = get_model_state_dict(self.model, options=together)
        model = self.model
        if self.team.leads:
            model = self._make()
            model.load_state_dict(weights)
            model.to(self.args.device)
        yield model

    def _defer_fsdp_gradient_reduction(self) -> contextlib.AbstractContextManager[None]:
        """Gradients are reduced after each pass: kept whole until the last one, they would take what sharding saves."""
        return contextlib.nullcontext()

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm = super()._clip_grad_norm(model)
        return gathered(norm) if isinstance(norm, Tensor) else norm

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        return gathered(norm) if isinstance(norm, Tensor) else norm

    # -- checkpoints --------------------------------------------------------------------------------------------

    def _parts(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, _inner(self.optimizer))
        return {"model": model, "optimizer": optimizer}

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Each process writes its parts."""
        assert output_dir is not None
        sharded_checkpoint.save(self._parts(), checkpoint_id=str(Path(output_dir) / PARTS))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.team.leads:  # the optimiser is among the parts
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Later, together with the optimiser."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        parts = self._parts()
        try:
            sharded_checkpoint.load(parts, checkpoint_id=str(Path(checkpoint) / PARTS))
        except Exception as error:
            raise TrainError(f"the parts in {checkpoint} do not fit this model ({error}); use another") from error
        set_state_dict(
            self.model, _inner(self.optimizer), model_state_dict=parts["model"], optim_state_dict=parts["optimizer"]
        )
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))


def _inner(optimizer: Any) -> torch.optim.Optimizer:
    """The optimiser itself, without what accelerate puts around it."""
    return getattr(optimizer, "optimizer", optimizer)  # type: ignore[no-any-return]
