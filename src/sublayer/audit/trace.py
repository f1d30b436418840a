"""Run a model once on the meta device and record every ATen call, with the module call that it is in.

No weight is read and none is changed: parameters, buffers and inputs are replaced by meta tensors as they are met, and
a write goes to the replacement. What follows from the inputs alone (masks, positions) is also known as numbers, so that
Python code that looks at them takes its real path.
"""

import contextlib
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module
from torch.utils._python_dispatch import TorchDispatchMode

from sublayer.audit import standins
from sublayer.audit.inputs import Inputs
from sublayer.audit.recurrent import whole_recurrence
from sublayer.audit.shortcuts import result_of, whole_attention
from sublayer.audit.tape import ALIAS, WRITTEN, Frame, Replay, Tape, Value
from sublayer.audit.target import undisturbed

META = torch.device("meta")
CHOICES = "the places that weights choose (top-k, the largest) were taken one after the other"


def _references(items: list[Any]) -> list[int]:
    """How many references there are to each item, those that counting takes included."""
    return [sys.getrefcount(item) for item in items]


_KEPT = [object()]
OUR_REFERENCES = _references([*_KEPT])[0]  # to what is in two lists, as `kept` and `storages` are


class _Operator(NamedTuple):
    """What there is to know of an ATen operator: its name without the overload, how it is stood in for, which arguments
    it writes to, and whether it makes a tensor out of nothing."""

    func: Any
    name: str
    standin: Callable[..., Any] | None
    writes: tuple[int, ...]
    on_cpu: bool


@cache
def _operator(func: Any) -> _Operator:
    schema = func._schema
    name = schema.name.rpartition("::")[2]
    writes = [i for i, a in enumerate(schema.arguments) if a.alias_info is not None and a.alias_info.is_write]
    return _Operator(func, name, standins.STANDINS.get(name), tuple(writes), func in standins.FACTORIES_ON_CPU)


class Recorder(TorchDispatchMode):
    """The dispatch mode that writes the tape."""

    def __init__(self, tape: Tape, module: nn.Module) -> None:
        super().__init__()
        self.tape = tape
        self.frame = 0
        self.twins: dict[int, Tensor] = {}  # id of a tensor from outside -> its twin on the meta device
        self.values: dict[int, Value] = {}  # id of a meta tensor -> what it holds now
        self.kept: list[Tensor] = []  # so that no id is given twice
        self.storages: dict[int, list[Tensor]] = {}
        self.names: dict[int, tuple[str, str]] = {}
        for name, buffer in module.named_buffers():
            self.names.setdefault(id(buffer), ("buffer", name))
        for name, parameter in module.named_parameters(remove_duplicate=False):
            self.names.setdefault(id(parameter), ("parameter", name))
        self.concrete = Replay({}, lambda v: v.real)
        self.strict = Replay({}, lambda v: v.real)  # the same without what stand-ins make up
        self.made_up = False
        self.promised: dict[int, Tensor] = {}  # id of a stand-in's tensor -> the numbers that it is taken to hold

    # --- values ---------------------------------------------------------------------------------------------------

    def leaf(self, tensor: Tensor, kind: str, name: str) -> Value:
        """Enter a tensor that no recorded call made."""
        known = kind != "parameter" and tensor.device.type != "meta" and tensor.numel() <= 1 << 22
        real = tensor.detach().cpu() if known and type(tensor) in (Tensor, nn.Parameter, nn.Buffer) else None
        value = Value(len(self.tape.values), kind, name, tensor, self.frame, real=real)
        self.tape.values.append(value)
        if kind == "parameter":
            self.tape.parameters[name] = True
        twin = tensor
        self.kept.append(tensor)
        if tensor.device.type != "meta":
            twin = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=META)
            self.twins[id(tensor)] = twin
        self._hold(twin, value)
        return value

    def _hold(self, twin: Tensor, value: Value) -> None:
        self.kept.append(twin)
        self.values[id(twin)] = value
        self.storages.setdefault(twin.untyped_storage()._cdata, []).append(twin)

    def twin(self, tensor: Tensor) -> Tensor:
        """The meta tensor that stands for ``tensor``."""
        found = self.twins.get(id(tensor), tensor)
        if id(found) not in self.values:
            kind, name = self.names.get(id(tensor), ("constant", f"constant{len(self.tape.values)}"))
            self.leaf(tensor, kind, name)
            found = self.twins.get(id(tensor), tensor)
        return found

    def value_of(self, tensor: Tensor) -> Value:
        """What a tensor holds now."""
        return self.values[id(self.twin(tensor))]

    def numbers(self, tensor: Tensor) -> Tensor | None:
        """The real numbers of a tensor, where they follow from inputs, constants and what stand-ins made up."""
        value = self.value_of(tensor)
        found = self.concrete(value)
        if found is not None and self.made_up and self.strict(value) is None and CHOICES not in self.tape.assumptions:
            self.tape.assumptions.append(CHOICES)
        return found

    # --- the mode -------------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operator = _operator(func)
        values: list[Any] = []
        twins: list[Any] = []
        for arg in args:
            value, twin = self._enter(arg)
            values.append(value)
            twins.append(twin)
        value_kwargs: dict[str, Any] = {}
        twin_kwargs: dict[str, Any] = {}
        if kwargs:
            for key, arg in kwargs.items():
                value_kwargs[key], twin_kwargs[key] = self._enter(arg)
        if operator.on_cpu or "device" in twin_kwargs:
            twin_kwargs["device"] = META
        if operator.standin is not None:
            result = operator.standin(self, func, args, twins, twin_kwargs)
        else:
            result = result_of(func, twins, twin_kwargs)
        self._record(operator, tuple(values), value_kwargs, twins, result)
        return result

    def enter(self, func: Any, args: Any, kwargs: dict[str, Any], result: Tensor | tuple[Tensor, ...]) -> None:
        """Record a call whose result is already there."""
        pairs = [self._enter(arg) for arg in args]
        values = {key: self._enter(arg)[0] for key, arg in kwargs.items()}
        self._record(_operator(func), tuple(v for v, _ in pairs), values, [t for _, t in pairs], result)

    def _enter(self, arg: Any) -> tuple[Any, Any]:
        if isinstance(arg, Tensor):
            twin = self.twin(arg)
            return self.values[id(twin)], twin
        if isinstance(arg, list | tuple):
            pairs = [self._enter(item) for item in arg]
            return type(arg)([v for v, _ in pairs]), type(arg)([t for _, t in pairs])
        return arg, arg

    def _record(
        self,
        operator: "_Operator",
        values: tuple[Any, ...],
        kwargs: dict[str, Any],
        twins: list[Any],
        result: Any,
    ) -> None:
        func, name = operator.func, operator.name
        written: list[Tensor] = []
        for i in operator.writes:
            if i < len(twins):
                twin = twins[i]
                written += [twin] if isinstance(twin, Tensor) else [t for t in twin or () if isinstance(t, Tensor)]
        outputs = result if isinstance(result, tuple | list) else (result,)
        for i, out in enumerate(outputs):
            if not isinstance(out, Tensor):
                continue
            if any(out is w for w in written):
                continue
            value = self._call(name, out, func, values, kwargs, i)
            self._hold(out, value)
            if id(out) in self.promised:
                self.concrete.known[value.index] = self.promised.pop(id(out))
                self.made_up = True
        for twin in written:
            old = self.values[id(twin)]
            new = self._call(name, twin, func, values, kwargs, 0)
            self._rewrite(twin, old, new)

    def _call(
        self, name: str, tensor: Tensor, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], i: int
    ) -> Value:
        value = Value(len(self.tape.values), "call", name, tensor, self.frame, func, args, kwargs, i)
        self.tape.values.append(value)
        return value

    def _rewrite(self, twin: Tensor, old: Value, new: Value) -> None:
        """A write to ``twin``: every tensor on the same memory has a new value from now on."""
        self.values[id(twin)] = new
        memory = twin.untyped_storage()._cdata
        # A tensor that nobody holds but this recorder is never read again: loops make thousands of such views.
        sharing = self.storages.get(memory, [])
        self.storages[memory] = [t for t, n in zip(sharing, _references(sharing), strict=True) if n > OUR_REFERENCES]
        for other in self.storages[memory]:
            before = self.values[id(other)]
            if before is old:
                self.values[id(other)] = new
            elif before is not new:
                name = ALIAS if other.numel() == twin.numel() else WRITTEN
                self.values[id(other)] = self._call(name, other, None, (before, new), {}, 0)

    # --- module calls ---------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def frames(self, module: nn.Module) -> Iterator[None]:
        """Note every module call while the context lasts."""
        paths = {id(m): name for name, m in module.named_modules()}

        def enter(called: nn.Module, args: Any) -> None:
            frames = self.tape.frames
            path = paths.get(id(called), "")
            given = tuple(self.values[id(a)].index for a in args if isinstance(a, Tensor) and id(a) in self.values)
            frames.append(Frame(len(frames), self.frame, path, type(called).__name__, id(called), given))
            self.frame = len(frames) - 1

        def leave(called: nn.Module, args: Any, output: Any) -> None:
            for index in self.tape.ancestry(self.frame):
                if self.tape.frames[index].module == id(called):
                    self.frame = self.tape.frames[index].parent
                    break

        before = nn_module.register_module_forward_pre_hook(enter)
        after = nn_module.register_module_forward_hook(leave)
        try:
            yield
        finally:
            before.remove()
            after.remove()


@contextlib.contextmanager
def _plain(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, no fused fast paths, no compilation; all as before afterwards."""
    training = [m for m in module.modules() if m.training]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    for m in training:
        m.training = False
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
            # Compiled parts do not run our hooks when they compile; here they do not compile.
            warnings.filterwarnings("ignore", message=".*global hooks on modules.*")
            yield
    finally:
        for m in training:
            m.training = True
        torch.backends.mha.set_fastpath_enabled(fast)


def trace(module: nn.Module, inputs: Inputs) -> Tape:
    """Record one forward pass.

    Raises whatever the forward raises: the caller tries other inputs then.
    """
    tape = Tape(main=inputs.main)
    tape.parameters = dict.fromkeys((name for name, _ in module.named_parameters()), False)
    tape.containers = frozenset(
        name for name, m in module.named_modules() if isinstance(m, nn.ModuleList | nn.Sequential | nn.ModuleDict)
    )
    recorder = Recorder(tape, module)
    names = [*inspect.signature(module.forward).parameters][: len(inputs.args)]
    names += [f"argument {i}" for i in range(len(names), len(inputs.args))]
    for name, given in (*zip(names, inputs.args, strict=True), *inputs.kwargs.items()):
        if isinstance(given, Tensor):
            tape.inputs[name] = recorder.leaf(given, "input", name)
    meta = [recorder.twin(a) if isinstance(a, Tensor) else a for a in inputs.args]
    meta_kwargs = {k: recorder.twin(a) if isinstance(a, Tensor) else a for k, a in inputs.kwargs.items()}
    with (
        undisturbed(module),
        _plain(module),
        standins.patched(recorder),
        whole_attention(recorder),
        whole_recurrence(recorder),
        recorder.frames(module),
        recorder,
    ):
        result = module(*meta, **meta_kwargs)
    _collect(tape, recorder, "", result, set())
    return tape


def _collect(tape: Tape, recorder: Recorder, name: str, result: Any, seen: set[int]) -> None:
    if isinstance(result, Tensor):
        value = recorder.values.get(id(recorder.twins.get(id(result), result)))
        if value is not None:
            tape.outputs.append((name or "output", value))
    elif isinstance(result, dict):
        for key, item in result.items():
            _collect(tape, recorder, f"{name}.{key}".lstrip("."), item, seen)
    elif isinstance(result, tuple | list):
        for i, item in enumerate(result):
            _collect(tape, recorder, f"{name}.{i}".lstrip("."), item, seen)
    elif hasattr(result, "__dict__") and id(result) not in seen:
        seen.add(id(result))
        for key, item in vars(result).items():
            if isinstance(item, Tensor):
                _collect(tape, recorder, f"{name}.{key}".lstrip("."), item, seen)
