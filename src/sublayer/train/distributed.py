"""One run over several processes: who takes part, which rows each of them reads, what they tell each other.

The processes are started by `torchrun`, which says in the environment who each of them is. Everything that a run
decides (data, checkpoint, stopping, failing) is decided once and told to all, so that no process waits for one that
went another way. A run of one process is a team of one, and the same code.

Importing this module imports no torch.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, NamedTuple, NoReturn, TypeVar, get_args

from .errors import TrainError
from .settings import Loop

T = TypeVar("T")
Parallel = Literal["none", "ddp", "fsdp2"]
#: How long the processes look for each other, how long a step may keep one waiting, and how long the making of the
#: tokenised data, the saving and the measuring may, which one process does while the others wait.
MEETING, STEP, ALONE_AT_WORK = timedelta(minutes=10), timedelta(minutes=30), timedelta(hours=24)
_NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
#: What `accelerate launch` sets for its own ways of splitting a model, some of which it then does not do.
_OTHERS = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM")
_START = "torchrun --nproc-per-node N -m sublayer train ..."


class NotGivenError(TrainError):
    """The run was asked to be spread over processes in a way that this machine or start does not give."""


class Share(NamedTuple):
    """What one process does of an optimiser step: `passes` forward passes of `rows` rows."""

    rows: int
    passes: int


def share(spec: Loop, size: int) -> Share:
    """Share out the rows of an optimiser step, `batch` x `accumulation`, which do not depend on how many processes
    there are: whole passes as far as they go, and then each pass in equal parts.

    Raises:
        TrainError: there is no equal share.
    """
    each = math.gcd(spec.accumulation, size)
    parts = size // each
    if spec.batch % parts:
        raise TrainError(
            f"a step's {spec.accumulation} x {spec.batch} rows (accumulation x batch) cannot be shared out equally by "
            f"{size} processes: each pass would be cut into {parts}; give a batch that is a multiple of {parts}, or "
            f"an accumulation that is a multiple of {size}"
        )
    return Share(spec.batch // parts, spec.accumulation // each)


def speaks() -> bool:
    """Whether this process says aloud what all of them know: the first one, or the only one."""
    try:
        return _whole("WORLD_SIZE", 1) <= 1 or _whole("RANK", 0) == 0
    except NotGivenError:  # it cannot be known, and that has to be said
        return True


def refuse(message: str) -> None:
    """Put a message on standard error, once for all processes."""
    if speaks():
        print(message, file=sys.stderr, flush=True)
    else:
        time.sleep(3)  # torchrun ends the others as soon as one has ended, and the first one has to be heard


def leave(code: int) -> NoReturn:
    """End this process. One of several ends at once after its work and the `atexit` functions: the threads of the
    communication libraries have been seen to abort while an interpreter is taken down, after all was done."""
    if several():
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def several() -> bool:
    """Whether this process was started as one of several. `chosen` refuses a number that is none."""
    try:
        return _whole("WORLD_SIZE", 1) > 1
    except NotGivenError:
        return False


def chosen(parallel: str | None) -> Parallel:
    """How the run is spread: what was asked for, or for None what `torchrun` without an option means, which is `ddp`.

    Raises:
        TrainError: there is no such way.
        NotGivenError: what was asked for is not what the processes were started for.
    """
    size = _whole("WORLD_SIZE", 1)
    if parallel is None:
        parallel = "ddp" if size > 1 else "none"
    if parallel not in get_args(Parallel):
        raise TrainError(f"parallel is one of {', '.join(get_args(Parallel))}, got {parallel!r}")
    for name in _OTHERS:
        if os.environ.get(name, "").lower() in ("1", "true", "yes", "on"):
            raise NotGivenError(
                f"{name} is set, and that way of splitting a model is accelerate's own, which this package does not "
                f"use and cannot check; start with {_START}, with --parallel fsdp2 to split the model"
            )
    if parallel == "none" and size > 1:
        raise NotGivenError(
            f"parallel is none, and {size} processes were started (WORLD_SIZE); start one, or give ddp or fsdp2"
        )
    if parallel != "none" and size == 1:
        raise NotGivenError(
            f"parallel {parallel} needs several processes, and this is the only one (WORLD_SIZE is "
            f"{os.environ.get('WORLD_SIZE', 'not set')}); start them with {_START}"
        )
    missing = [name for name in _NEEDED if not os.environ.get(name)] if size > 1 else []
    if missing:
        raise NotGivenError(f"WORLD_SIZE is {size}, but {', '.join(missing)} is not set; start with {_START}")
    return parallel  # type: ignore[return-value]  # checked against the values of the type


@dataclass
class Team:
    """The processes of one run. Each method is called by all of them, in the same order.

    Attributes:
        parallel: how the run is spread over them.
        rank: which of them this is, from 0; the first one writes everything but its own part of a sharded model.
        size: how many there are.
        nodes: on how many machines, as far as the start said so.
    """

    parallel: Parallel = "none"
    rank: int = 0
    size: int = 1
    nodes: int = 1
    _group: Any = field(default=None, repr=False)  # for what happens around every step
    _patient: Any = field(default=None, repr=False)  # for what one process does while the others wait
    _board: Any = field(default=None, repr=False)  # where a process that fails says why, and others look

    @property
    def leads(self) -> bool:
        """Whether this is the first process."""
        return self.rank == 0

    def tell(self, make: Callable[[], T]) -> T:
        """What the first process makes, in all of them; the others wait. What it raises is raised in all of them.

        Raises:
            TrainError: in the others, whatever `make` raised in the first.
        """
        if self.size == 1:
            return make()
        from torch import distributed

        told: list[Any] = [None, None]
        failure: Exception | None = None
        if self.leads:
            try:
                told[0] = make()
            except Exception as error:
                failure, told[1] = error, f"{error}"
        distributed.broadcast_object_list(told, src=0, group=self._patient)
        if failure is not None:
            raise failure
        if told[1] is not None:
            raise TrainError(told[1])
        return told[0]

    def most(self, value: int) -> int:
        """The largest of the processes' numbers."""
        if self.size == 1:
            return value
        import torch
        from torch import distributed

        found = torch.tensor(value, dtype=torch.int64)
        distributed.all_reduce(found, distributed.ReduceOp.MAX, group=self._group)
        return int(found)

    def gather(self, value: T) -> list[T]:
        """The processes' values, in their order."""
        if self.size == 1:
            return [value]
        from torch import distributed

        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, value, group=self._group)
        return found

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            from torch import distributed

            distributed.barrier(group=self._group)

    def agree(self, value: T, what: str, remedy: str) -> T:
        """The value, which must be the same in all processes.

        Raises:
            TrainError: in all of them, when it is not.
        """
        found = self.gather(value)
        odd = next((rank for rank, one in enumerate(found) if one != found[0]), None)
        if odd is not None:
            raise TrainError(
                f"{what} must be the same in all processes, got {found[0]} in process 0 and {found[odd]} in process "
                f"{odd}; {remedy}"
            )
        return value

    def report(self, reason: str) -> None:
        """Say why this process fails, for the first one's records."""
        if self._board is not None:
            with contextlib.suppress(Exception):  # whoever keeps the board may be gone
                self._board.set("failed", f"process {self.rank} of {self.size}: {reason}")

    def reason(self) -> str | None:
        """Why another process failed, if one said so."""
        if self._board is None:
            return None
        with contextlib.suppress(Exception):  # nobody did, or whoever keeps the board is gone
            self._board.wait(["failed"], timedelta(seconds=2))
            return str(self._board.get("failed").decode())
        return None


#: A run of one process.
ALONE = Team()


@contextlib.contextmanager
def join(parallel: str | None, device: str) -> Iterator[Team]:
    """Meet the other processes of the run, and part from them in the end.

    Args:
        parallel: see `chosen`.
        device: `auto` takes one GPU a process where there are GPUs; `cpu` takes none.

    Raises:
        NotGivenError: see `chosen`; also when the processes do not find each other, or outnumber the GPUs.
    """
    kind = chosen(parallel)
    if kind == "none":
        with _unseen("RANK", "LOCAL_RANK", "WORLD_SIZE"):
            yield ALONE
        return
    import torch
    from torch import distributed

    rank, size, local = _whole("RANK", 0), _whole("WORLD_SIZE", 1), _whole("LOCAL_RANK", 0)
    on_gpu = device == "auto" and torch.cuda.is_available()
    if on_gpu and local >= torch.cuda.device_count():
        raise NotGivenError(
            f"each process takes a GPU of its own, and process {local} of this machine finds "
            f"{torch.cuda.device_count()}; start fewer with --nproc-per-node, or give --device cpu"
        )
    if on_gpu:
        torch.cuda.set_device(local)
    board = _meet("cpu:gloo,cuda:nccl" if on_gpu else "gloo", rank, size)
    try:
        yield Team(
            kind, rank, size, max(1, size // _whole("LOCAL_WORLD_SIZE", size)),
            distributed.new_group(backend="gloo", timeout=STEP),
            distributed.new_group(backend="gloo", timeout=ALONE_AT_WORK),
            board,
        )  # fmt: skip
    finally:
        with contextlib.suppress(Exception):  # another process may be gone already
            distributed.destroy_process_group()


@contextlib.contextmanager
def _unseen(*names: str) -> Iterator[None]:
    """Take away what `torchrun` says to a single process: accelerate would wrap its model all the same."""
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _meet(backend: str, rank: int, size: int) -> Any:
    """Set up the process group; the board on which processes leave notes."""
    from torch import distributed
    from torch._C._distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    if distributed.is_initialized():
        raise NotGivenError("torch.distributed is set up already in this process; let the run do it")
    try:
        store, _, _ = next(rendezvous("env://", rank, size, timeout=MEETING))
        store.set_timeout(MEETING)
        distributed.init_process_group(
            backend, store=PrefixStore("run", store), rank=rank, world_size=size, timeout=STEP
        )
    except (RuntimeError, ValueError, OSError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise NotGivenError(f"the {size} processes did not find each other at {where}: {error}") from None
    found = distributed.get_world_size()
    if found != size:
        raise NotGivenError(f"{size} processes were started, and {found} found each other; start them again")
    return PrefixStore("board", store)


def check_launched(team: Team, accelerator: Any) -> None:
    """Accelerate, by which the Trainer spreads a run, must have understood the start as this package did.

    Raises:
        NotGivenError: it did not.
    """
    found = (int(accelerator.num_processes), int(accelerator.process_index))
    if found != (team.size, team.rank):
        raise NotGivenError(
            f"this is process {team.rank} of {team.size}, and accelerate takes it for process {found[1]} of {found[0]} "
            f"({accelerator.distributed_type}); start with {_START}"
        )
    kind = str(getattr(accelerator.distributed_type, "value", accelerator.distributed_type))
    if team.size > 1 and not kind.startswith("MULTI_"):
        raise NotGivenError(
            f"parallel {team.parallel} was asked for, and accelerate is set to {kind}; start with {_START}, without "
            "a configuration of accelerate"
        )


def check_wrapped(team: Team, model: Any) -> None:
    """What is trained must be spread as it was asked to be.

    Raises:
        NotGivenError: it is not.
    """
    from torch.distributed.tensor import DTensor
    from torch.nn.parallel import DistributedDataParallel

    model = getattr(model, "_orig_mod", model)  # of a compiled model
    whole = [name for name, parameter in model.named_parameters() if not isinstance(parameter, DTensor)]
    parts = sum(1 for _ in model.parameters()) - len(whole)
    given = "fsdp2" if not whole else "ddp" if isinstance(model, DistributedDataParallel) else "none"
    if given != team.parallel:
        some = f", with {parts} of its tensors in parts" if parts and whole else ""
        raise NotGivenError(f"parallel {team.parallel} was asked for, and the model is set up for {given}{some}")


def _whole(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    try:
        return int(text) if text.strip() else default
    except ValueError:
        raise NotGivenError(f"{name} must be a whole number, got {text!r}; start with {_START}") from None
