"""What a run of a model computed, as a tape of values: each made by one ATen call inside one call of a module."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

MOST_ELEMENTS = 1 << 22  # of a value that is computed for real

ALIAS = "view_of_written"  # another view of memory that was written to
WRITTEN = "partly_written"  # memory of which a view was written to


class Value:
    """One tensor of the run.

    Attributes:
        index: place on the tape.
        kind: ``parameter``, ``buffer``, ``input``, ``constant`` or ``call``.
        name: the ATen operator without its overload (``add``), or the leaf's name.
        func: the operator that made it; None for a leaf.
        args, kwargs: its arguments with tensors replaced by values.
        output: which of the call's outputs it is.
        shape, dtype: of the tensor.
        frame: index of the module call in which it was made.
        real: the tensor itself, of a leaf whose numbers are known.
    """

    __slots__ = (
        "_sources",
        "args",
        "dtype",
        "frame",
        "func",
        "index",
        "kind",
        "kwargs",
        "name",
        "output",
        "real",
        "shape",
    )

    def __init__(
        self,
        index: int,
        kind: str,
        name: str,
        tensor: Tensor,
        frame: int = 0,
        func: Callable[..., Any] | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        output: int = 0,
        real: Tensor | None = None,
    ) -> None:
        self.index, self.kind, self.name, self.frame, self.func = index, kind, name, frame, func
        self.args, self.kwargs, self.output, self.real = args, kwargs or {}, output, real
        self.shape: tuple[int, ...] = tuple(tensor.shape)
        self.dtype = tensor.dtype
        self._sources: tuple[Value, ...] | None = None

    @property
    def sources(self) -> tuple["Value", ...]:
        """The values among its arguments, in their order."""
        if self._sources is None:
            found: list[Value] = []
            _gather(self.args, found)
            if self.kwargs:
                _gather(self.kwargs.values(), found)
            self._sources = tuple(found)
        return self._sources

    def __repr__(self) -> str:
        return f"%{self.index} {self.name}{list(self.shape)}({', '.join(f'%{s.index}' for s in self.sources)})"


def values_in(tree: Any) -> Iterator[Value]:
    """The values in a structure of arguments."""
    if isinstance(tree, Value):
        yield tree
    elif isinstance(tree, tuple | list):
        for item in tree:
            yield from values_in(item)
    elif isinstance(tree, dict):
        for item in tree.values():
            yield from values_in(item)


def _gather(items: Iterable[Any], found: list[Value]) -> None:
    """`values_in` for the arguments of a call, without a generator for each: a tape has tens of thousands."""
    for item in items:
        if type(item) is Value:
            found.append(item)
        elif isinstance(item, tuple | list):
            _gather(item, found)
        elif isinstance(item, dict):
            _gather(item.values(), found)


def replace(tree: Any, new: Callable[[Value], Any]) -> Any:
    """The same structure with every value replaced."""
    if isinstance(tree, Value):
        return new(tree)
    if isinstance(tree, tuple | list):
        return type(tree)([replace(item, new) for item in tree])
    if isinstance(tree, dict):
        return {key: replace(item, new) for key, item in tree.items()}
    return tree


@dataclass(frozen=True)
class Frame:
    """One call of a module: its parent call, its dotted path, its class, which module it is, and the values that it was
    given by position."""

    index: int
    parent: int
    path: str
    kind: str
    module: int
    given: tuple[int, ...] = ()


@dataclass
class Tape:
    """A whole run.

    Attributes:
        values: in the order in which they were made; leaves where they were first read.
        frames: module calls; 0 is the run itself.
        inputs: name of each input tensor and its value.
        outputs: name and value of each tensor that the model returned.
        parameters: names of all parameters of the model, and whether each was read.
        assumptions: where a number was needed that only real weights or data have.
        main: names of the inputs that carry data, in order of the stacks they feed.
        witness: ``dispatch`` or ``export``.
    """

    values: list[Value] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=lambda: [Frame(0, -1, "", "", 0)])
    inputs: dict[str, Value] = field(default_factory=dict)
    outputs: list[tuple[str, Value]] = field(default_factory=list)
    parameters: dict[str, bool] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    containers: frozenset[str] = frozenset()
    assumptions: list[str] = field(default_factory=list)
    main: tuple[str, ...] = ()
    witness: str = "dispatch"

    def ancestry(self, frame: int) -> list[int]:
        """Indices of the calls around ``frame``, itself first, the run last."""
        chain = [frame]
        while chain[-1] > 0:
            chain.append(self.frames[chain[-1]].parent)
        return chain


class Replay:
    """Computes values of a tape for real, on the CPU, from given ones."""

    def __init__(self, given: dict[int, Tensor], leaf: Callable[[Value], Tensor | None]) -> None:
        self.known: dict[int, Tensor | None] = dict(given)
        self.leaf = leaf

    def __call__(self, value: Value) -> Tensor | None:
        """The tensor, or None if it needs something that is not known."""
        stack = [value]
        while stack:
            top = stack[-1]
            if top.index in self.known:
                stack.pop()
                continue
            if top.func is None:
                self.known[top.index] = self.leaf(top)
                stack.pop()
                continue
            missing = [s for s in top.sources if s.index not in self.known]
            if missing and not any(self.known.get(s.index, 0) is None for s in top.sources):
                stack += missing[:1]
                continue
            stack.pop()
            self.known[top.index] = self._run(top)
        return self.known[value.index]

    def _run(self, value: Value) -> Tensor | None:
        elements = 1
        for size in value.shape:
            elements *= size
        if elements > MOST_ELEMENTS or value.name in RANDOM:
            return None
        if any(self.known.get(s.index) is None for s in value.sources):
            return None
        assert value.func is not None
        written = [i for i, a in enumerate(value.func._schema.arguments) if a.alias_info and a.alias_info.is_write]  # type: ignore[attr-defined]

        def tensor(v: Value) -> Tensor:
            found = self.known[v.index]
            assert found is not None
            return found

        args = list(replace(value.args, tensor))
        for i in written:
            if i < len(args) and isinstance(args[i], Tensor):
                args[i] = args[i].clone()
        kwargs = replace(value.kwargs, tensor)
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        try:
            with torch.no_grad():
                result = value.func(*args, **kwargs)
        except Exception:  # whatever an operator does on made-up numbers: the value is not known
            return None
        if isinstance(result, tuple | list):
            result = result[value.output] if value.output < len(result) else None
        return result if isinstance(result, Tensor) else None


RANDOM = frozenset(
    "rand randn randint randperm rand_like randn_like randint_like bernoulli bernoulli_ uniform_ normal_ normal "
    "exponential_ multinomial empty empty_like new_empty empty_strided native_dropout random_ log_normal_ geometric_ "
    "cauchy_".split()
)
