"""Listen to a real run: take rows of the values at known places, and look at what attention does.

Nothing is changed: every operator runs as it is, and module hooks only follow which call is in progress.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as nn_module
from torch.utils._python_dispatch import TorchDispatchMode

from sublayer.audit import vocabulary as words
from sublayer.probe.places import MIXES, Call, Mix, Plan, Sight, likeness

Take = Callable[[Sight, Tensor], None]
Look = Callable[[Mix, Any, tuple[Any, ...], dict[str, Any], Tensor], None]
Swap = Callable[[Sight, Tensor], Tensor | None]


class _Wanted:
    """What is looked for in one module call."""

    def __init__(self) -> None:
        self.ops: dict[str, dict[tuple[int, int], dict[int, list[Sight]]]] = {}
        self.given: list[Sight] = []
        self.returned: list[Sight] = []
        self.mixes: dict[int, Mix] = {}

    def add(self, sight: Sight) -> None:
        if sight.what == "given":
            self.given.append(sight)
        elif sight.what == "returned":
            self.returned.append(sight)
        else:
            by_shape = self.ops.setdefault(sight.op, {})
            by_shape.setdefault(sight.likeness, {}).setdefault(sight.ordinal, []).append(sight)


class _Running:
    """One module call in progress."""

    __slots__ = ("count", "mixed", "module", "wanted")

    def __init__(self, wanted: _Wanted | None, module: int) -> None:
        self.wanted = wanted
        self.module = module
        self.count: dict[tuple[str, tuple[int, int]], int] = defaultdict(int)
        self.mixed = 0


class Listener(TorchDispatchMode):
    """The mode that a real run is listened to in.

    Args:
        plan: where to look.
        take: is given each sight and the whole tensor there.
        look: is given each attention with the operator, its arguments and its result; None to look at none.
        swap: may give another tensor to go on with in place of the one at a sight; None leaves every value as it is.
    """

    def __init__(self, plan: Plan, take: Take, look: Look | None = None, swap: Swap | None = None) -> None:
        super().__init__()
        self.take, self.look, self.swap = take, look, swap
        self.wanted: dict[Call, _Wanted] = {}
        for sight in plan.sights:
            self.wanted.setdefault(sight.call, _Wanted()).add(sight)
        for mix in plan.mixes if look is not None else ():
            self.wanted.setdefault(mix.call, _Wanted()).mixes[mix.ordinal] = mix
        self.running: list[_Running] = []
        self.now: _Running | None = None
        self.calls: dict[str, int] = defaultdict(int)
        self.names: dict[Any, str] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        now, kwargs = self.now, kwargs or {}
        if now is None or now.wanted is None:
            return func(*args, **kwargs)
        name = self.names.get(func)
        if name is None:
            name = self.names[func] = func._schema.name.rpartition("::")[2]
        wanted = now.wanted.ops.get(name)
        if wanted is not None:
            return self._watched(func, name, wanted, now, args, kwargs)
        result = func(*args, **kwargs)
        if self.look is not None and now.wanted.mixes and words.KIND.get(name) in MIXES:
            found = result[0] if isinstance(result, tuple | list) else result
            if isinstance(found, Tensor) and found.ndim > 2:
                mix = now.wanted.mixes.get(now.mixed)
                now.mixed += 1
                if mix is not None:
                    self.look(mix, func, args, kwargs, found)
        return result

    def _watched(
        self,
        func: Any,
        name: str,
        wanted: dict[tuple[int, int], dict[int, list[Sight]]],
        now: _Running,
        args: Any,
        kwargs: dict[str, Any],
    ) -> Any:
        writes = name.endswith("_") and bool(args) and isinstance(args[0], Tensor)
        like = likeness(tuple(args[0].shape)) if writes else None
        sights: list[Sight] = []
        if like is not None:
            sights = self._turn(name, wanted, like, now)
            self._arguments(sights, args)  # before they are written over
        result = func(*args, **kwargs)
        found = result[0] if isinstance(result, tuple | list) and result else result
        if not isinstance(found, Tensor):
            return result
        if like is None:
            sights = self._turn(name, wanted, likeness(tuple(found.shape)), now)
            self._arguments(sights, args)
        for sight in sights:
            if sight.what == "result":
                self.take(sight, found)
                other = self.swap(sight, found) if self.swap is not None else None
                if other is not None:
                    if writes:
                        found.copy_(other)
                    elif isinstance(result, tuple):
                        result = (other, *result[1:])
                    else:
                        result = other
        return result

    def _turn(
        self, name: str, wanted: dict[tuple[int, int], dict[int, list[Sight]]], like: tuple[int, int], now: _Running
    ) -> list[Sight]:
        """What is looked for at this call of an operator, which is counted."""
        if like not in wanted:
            return []
        turn = now.count[name, like]
        now.count[name, like] = turn + 1
        return wanted[like].get(turn, [])

    def _arguments(self, sights: Iterable[Sight], args: Any) -> None:
        for sight in sights:
            if sight.what == "argument" and sight.position < len(args) and isinstance(args[sight.position], Tensor):
                self.take(sight, args[sight.position])

    @contextmanager
    def following(self, module: nn.Module) -> Iterator[None]:
        """Follow the module calls of one forward pass, and listen, while the context lasts."""
        paths = {id(m): name for name, m in module.named_modules()}
        self.running.clear()
        self.calls.clear()
        self.now = None

        def enter(called: nn.Module, args: Any) -> None:
            path = paths.get(id(called), "")
            wanted = self.wanted.get((path, self.calls[path]))
            self.calls[path] += 1
            self.now = _Running(wanted, id(called))
            self.running.append(self.now)
            if wanted is not None and wanted.given:
                tensors = [a for a in args if isinstance(a, Tensor)]
                for sight in wanted.given:
                    if sight.position < len(tensors):
                        self.take(sight, tensors[sight.position])

        def leave(called: nn.Module, args: Any, output: Any) -> Any:
            while self.running and self.running[-1].module != id(called):
                self.running.pop()
            ended = self.running.pop() if self.running else None
            self.now = self.running[-1] if self.running else None
            for sight in ended.wanted.returned if ended is not None and ended.wanted is not None else ():
                found = output if isinstance(output, Tensor) else _first(output)
                if found is not None:
                    self.take(sight, found)
                    other = self.swap(sight, found) if self.swap is not None else None
                    if other is not None:
                        output = other if isinstance(output, Tensor) else _with_first(output, other)
            return output

        before = nn_module.register_module_forward_pre_hook(enter)
        after = nn_module.register_module_forward_hook(leave)
        try:
            with self:
                yield
        finally:
            before.remove()
            after.remove()


def _first(output: Any) -> Tensor | None:
    if isinstance(output, tuple | list):
        return next((o for o in output if isinstance(o, Tensor)), None)
    if isinstance(output, dict):
        return next((o for o in output.values() if isinstance(o, Tensor)), None)
    return None


def _with_first(output: Any, other: Tensor) -> Any:
    """A tuple or list with its first tensor replaced."""
    if isinstance(output, tuple | list):
        k = next(k for k, o in enumerate(output) if isinstance(o, Tensor))
        return type(output)([*output[:k], other, *output[k + 1 :]])
    return output


def rows_of(sight: Sight, tensor: Tensor, rows: Tensor) -> Tensor:
    """Some rows of a value as tokens, [rows, channels]: rows of the batch first, then positions."""
    return tokens_of(sight, tensor)[rows]


def tokens_of(sight: Sight, tensor: Tensor) -> Tensor:
    """A value as tokens [positions of the whole batch, channels]."""
    found = tensor.detach()
    if sight.channels not in (-1, found.ndim - 1):
        found = found.movedim(sight.channels, -1)
    if sight.swapped:
        found = found.transpose(0, 1)
    return found.reshape(-1, found.shape[-1])
