"""Where numbers stop being finite: the first operation whose result is not, in the order in which a pass runs.

The pass that failed is run again under a mode that sees every operation of torch, forward and backward, together with
the module that it belongs to. The place is the first operation that makes a number that is not finite out of such that
are, or the first that reads a parameter which is not.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks)\.(\d+)(?:\.|$)")
# They write without reading, or give memory that nobody has written to.
_WRITERS = frozenset({"copy_", "fill_", "zero_", "normal_", "uniform_", "bernoulli_", "random_", "full", "full_like"})
_EMPTY = frozenset({"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "_to_copy"})
# -inf is what a mask holds, and these put it there.
_MASKS = frozenset({"masked_fill", "masked_fill_", "where", "full", "full_like", "scalar_tensor", "fill_", "new_full"})


def first_bad(model: nn.Module, again: Callable[[], object]) -> str:
    """Do a pass again and say where it went wrong, in words.

    Args:
        model: whose pass.
        again: runs it: forward, or forward and backward.
    """
    watch = _Watch(model)
    try:
        with watch.modules(), torch.compiler.set_stance("force_eager"), watch:
            again()
    except Exception as error:  # the search must not hide what it searched for
        if watch.place is None:
            return f"the place could not be found ({type(error).__name__} while looking for it)"
    if watch.place is not None:
        return watch.place
    sizes = {n: float(p.grad.abs().max()) for n, p in model.named_parameters() if p.grad is not None and p.numel()}
    if sizes:
        name = max(sizes, key=lambda n: sizes[n])
        return (
            f"no single number is infinite, their norm is; the largest gradient, {sizes[name]:.3g}, is that of {name}"
        )
    return "the place could not be found: the same pass gave finite numbers"


class _Watch(TorchDispatchMode):
    """Looks at every operation until one gives what is not finite; `place` then says which."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.place: str | None = None
        self._model = model
        self._forward: list[str] = []  # modules that run, outermost first
        self._backward: list[str] = []  # modules whose gradients are being computed
        self._value: dict[str, str] = {}  # module -> the last value of its equation that was computed
        self._parameters = {id(p): name for name, p in model.named_parameters()}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name.split("::")[-1]
        given = [] if self.place or name in _WRITERS else _floats((args, kwargs))
        read = [t for t in given if _bad(t, masked=True)]
        masked = any(bool(torch.isneginf(t).any()) for t in given)
        result = function(*args, **(kwargs or {}))
        if self.place is None and name not in _EMPTY:
            made = _floats(result)
            if "attention" in name:
                made = made[:1]  # the others are sums over rows that may be masked as a whole
            if read:
                named = [self._parameters[id(t)] for t in read if id(t) in self._parameters]
                if named:
                    self.place = f"it began in a parameter, before the pass, of {self._where(named[0])}"
                else:
                    self.place = f"it began before {self._told(name)}"
            elif any(_bad(t, masked or name in _MASKS) for t in made):
                self.place = f"it began in {self._told(name)}"
        return result

    @contextlib.contextmanager
    def modules(self) -> Iterator[None]:
        """While entered, know which module is at work; and let the branches of a block run one by one."""
        handles = []
        with contextlib.ExitStack() as stack:
            for name, module in self._model.named_modules():
                handles.append(module.register_forward_pre_hook(self._enter(name)))
                handles.append(module.register_forward_hook(self._leave(name)))
                if hasattr(module, "tapped"):
                    stack.enter_context(module.tapped(self._tap(name)))
            try:
                yield
            finally:
                for handle in handles:
                    handle.remove()

    def _enter(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: Any) -> None:
            self._forward.append(name)
            tensors = [t for t in _floats(given) if t.requires_grad]
            if tensors:
                register_multi_grad_hook(tensors, lambda _: self._drop(name))

        return hook

    def _leave(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: Any, result: Any) -> None:
            while self._forward and self._forward.pop() != name:
                pass  # one that an exception left
            passed_on = {id(t) for t in _floats(given)}  # through these no gradient is computed here
            tensors = [t for t in _floats(result) if t.requires_grad and id(t) not in passed_on]
            if tensors:
                register_multi_grad_hook(tensors, lambda _: self._take_up(name), mode="any")

        return hook

    def _take_up(self, name: str) -> None:
        """A module's way back begins. Where what it gives is what a part of it gave, that part is the inner one."""
        inside, at = f"{name}." if name else "", len(self._backward)
        while at and self._backward[at - 1].startswith(inside):
            at -= 1
        self._backward.insert(at, name)

    def _drop(self, name: str) -> None:
        if name in self._backward:
            self._backward.remove(name)

    def _tap(self, name: str) -> Callable[[str, Tensor], Tensor]:
        def tap(value: str, tensor: Tensor) -> Tensor:
            self._value[name] = value
            return tensor

        return tap

    def _told(self, operation: str) -> str:
        back = torch._C._current_graph_task_id() != -1
        path = next(reversed(self._backward if back else self._forward), "")
        return f"the {'backward' if back else 'forward'} pass of {self._where(path, back)} ({operation})"

    def _where(self, path: str, back: bool = False) -> str:
        found = LAYER.search(path)
        if found is None:
            return path or "the loss"
        layer, rest = found[1], path[found.end() :]
        if rest:
            return f"layer {layer}, term {rest.split('.')[0]}: {path}"
        return f"layer {layer}, the sum {self._sum(path)}: {path}" if not back else f"layer {layer}, its sums: {path}"

    def _sum(self, path: str) -> str:
        """The sum of a block's equation that comes after the value it computed last, with the names of its terms."""
        section = getattr(self._model.get_submodule(path), "section", None)
        if section is None:
            return "of its branches"
        from sublayer.notation.code import forward_source

        lines = re.findall(r'self\.tap\("(\w+)", (.+)\)$', forward_source(section, tap=True), re.MULTILINE)
        terms = {value: re.sub(r"^self\.(\w+)\(.*", r"\1", text) for value, text in lines}
        values = [value for value, _ in lines]
        after = values.index(self._value[path]) + 1 if path in self._value else 0
        if after >= len(values):
            return "of its branches"
        return re.sub(r"\bv\d+\b", lambda match: terms.get(match[0], match[0]), terms[values[after]])


def _floats(tree: Any) -> list[Tensor]:
    return [t for t in tree_leaves(tree) if isinstance(t, Tensor) and t.is_floating_point() and t.numel()]


def _bad(tensor: Tensor, masked: bool) -> bool:
    """Whether numbers of a tensor are not finite; `masked`: -inf is none of them."""
    fine = torch.isfinite(tensor)
    if masked:
        fine = fine | torch.isneginf(tensor)
    return not bool(fine.all())
