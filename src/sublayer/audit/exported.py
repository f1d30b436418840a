"""The graph that ``torch.export`` makes of a model, put on a tape like a recorded run.

``torch.export`` traces on fake tensors, keeps composite operators whole (a linear map, a LayerNorm, attention) and says
by itself in which module each call was made: a second witness of the same wiring.
"""

import contextlib
import inspect
import logging
import operator
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._guards import TracingContext, tracing
from torch._ops import HigherOrderOperator, OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from sublayer.audit import vocabulary as words
from sublayer.audit.inputs import Inputs
from sublayer.audit.tape import ALIAS, MOST_ELEMENTS, WRITTEN, Frame, Tape, Value
from sublayer.audit.target import Target, undisturbed
from sublayer.audit.trace import _plain

INLINED = ("wrap_with_set_grad_enabled", "wrap_with_autocast")  # operators that only run a part of the graph
COMPOSITE = "CompositeImplicitAutograd"
LIKE = frozenset({"type_as", "expand_as", "view_as", "reshape_as"})  # of a second tensor only size or type is read
PLAIN = (Tensor, nn.Parameter, nn.Buffer)


class NotComparable(Exception):
    """The graph holds something that a tape cannot."""


UNKNOWN = object()  # a number of the graph that only data decide


# --- from torch.export to a tape ----------------------------------------------------------------------------------


def export_tape(target: Target, inputs: Inputs) -> Tape:
    """The run of a model as ``torch.export`` sees it. No weight is read and nothing in a live module changes.

    Raises whatever ``torch.export`` raises, and NotComparable where its graph cannot be put on a tape.
    """
    module = target.module
    mode = FakeTensorMode(shape_env=ShapeEnv(tracked_fakes=[]), allow_non_fake_inputs=True, export=True)
    args, kwargs = pytree.tree_map_only(Tensor, _on_cpu, (inputs.args, inputs.kwargs))
    with (
        _silent(),
        undisturbed(module),
        _plain(module),
        _faked(module, mode),
        tracing(TracingContext(mode)),
        _noted() as given,
    ):
        program = torch.export.export(module, args, kwargs, strict=False)
    return _Reader(module, inputs, program, given).read()


def _on_cpu(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="cpu") if tensor.device.type == "meta" else tensor.detach().cpu()


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """No warnings and no log of what ``torch.export`` could not do: its error says it."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _faked(module: nn.Module, mode: FakeTensorMode) -> Iterator[None]:
    """Every tensor of a module replaced by a fake one on the CPU, wherever it was, so that all are on one device."""
    fakes: dict[int, Tensor] = {}
    kept = [(m, m._parameters.copy(), m._buffers.copy(), m.__dict__.copy()) for m in module.modules()]

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in fakes:
            with mode:
                made = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="cpu")
            fakes[id(tensor)] = nn.Parameter(made, requires_grad=False) if isinstance(tensor, nn.Parameter) else made
        return fakes[id(tensor)]

    try:
        for m, *_ in kept:
            held: tuple[dict[str, Any], ...] = (m._parameters, m._buffers, m.__dict__)
            for tensors in held:
                for name, tensor in [*tensors.items()]:
                    if type(tensor) in PLAIN:
                        tensors[name] = fake(tensor)
        yield
    finally:
        for m, parameters, buffers, attributes in kept:
            m._parameters.update(parameters)
            m._buffers.update(buffers)
            m.__dict__.update(attributes)


@contextlib.contextmanager
def _noted() -> Iterator[dict[int, list[list[Any]]]]:
    """For each module, what each of its calls is given by position: the graph does not say it.

    A tensor is told by the content that its node holds, which is one object from the first graph to the last.
    """
    given: dict[int, list[list[Any]]] = {}

    def enter(called: nn.Module, args: Any) -> None:
        mode = get_proxy_mode()
        found = []
        for arg in args:
            held = get_proxy_slot(arg, mode.tracer, None) if mode is not None and isinstance(arg, Tensor) else None
            if held is not None:
                found.append(held.proxy.node.meta.get("val"))
        given.setdefault(id(called), []).append(found)

    hook = nn.modules.module.register_module_forward_pre_hook(enter)
    try:
        yield given
    finally:
        hook.remove()


class _Reader:
    """Puts the graph of an exported program on a tape."""

    def __init__(
        self, module: nn.Module, inputs: Inputs, program: ExportedProgram, given: dict[int, list[list[Any]]]
    ) -> None:
        self.module, self.inputs, self.program, self.positions = module, inputs, program, given
        self.names = [*inspect.signature(module.forward).parameters][: len(inputs.args)]
        self.names += [f"argument {i}" for i in range(len(self.names), len(inputs.args))]
        self.tape = Tape(main=inputs.main, witness="export")
        self.tape.parameters = dict.fromkeys((name for name, _ in module.named_parameters()), False)
        named = dict(module.named_modules(remove_duplicate=False))
        self.tape.containers = frozenset(
            name for name, m in module.named_modules() if isinstance(m, nn.ModuleList | nn.Sequential | nn.ModuleDict)
        )
        first = {id(m): name for name, m in module.named_modules()}
        self.paths = {name: (first[id(m)], id(m)) for name, m in named.items()}
        tensors = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
        self.tensors: dict[str, Tensor] = dict(tensors)
        self.first: dict[int, str] = {}
        for name, tensor in tensors:
            self.first.setdefault(id(tensor), name)
        self.calls: dict[tuple[str, ...], int] = {}
        self.leaves: dict[tuple[str, str], Value] = {}
        self.now: dict[fx.Node, Any] = {}  # what each node holds now: a value, a tuple of such, a number
        self.storages: dict[int, list[fx.Node]] = {}
        self.contents: dict[int, fx.Node] = {}

    def read(self) -> Tape:
        signature = self.program.graph_signature
        graph = self.program.graph_module
        holders = [n for n in graph.graph.nodes if n.op == "placeholder"]
        given = self._given()
        for node, spec in zip(holders, signature.input_specs, strict=True):
            value = node.meta.get("val")
            if spec.kind == InputKind.USER_INPUT:
                name, real = given.pop(0)
                self.now[node] = self._input(name, real, node) if isinstance(value, Tensor) else real
            elif spec.kind == InputKind.PARAMETER:
                self.now[node] = ("parameter", str(spec.target))
            elif isinstance(value, Tensor):
                self.now[node] = ("buffer" if spec.kind == InputKind.BUFFER else "constant", str(spec.target))
            else:
                self.now[node] = UNKNOWN
            self._hold(node)
        results = self._run(graph)
        for k, (found, spec) in enumerate(zip(results, signature.output_specs, strict=True)):
            if isinstance(found, Value) and spec.kind == OutputKind.USER_OUTPUT:
                self.tape.outputs.append((f"output {k}", found))
        return self.tape

    def _given(self) -> list[tuple[str, Any]]:
        """Name and content of every argument, in the order of the graph's inputs."""
        inputs = self.inputs
        names = [*self.program.call_spec.in_spec.child(1).context] if self.program.call_spec.in_spec else []
        ordered = [*zip(self.names, inputs.args, strict=True), *((n, inputs.kwargs[n]) for n in names)]
        found: list[tuple[str, Any]] = []
        for name, content in ordered:
            for path, leaf in pytree.tree_flatten_with_path(content)[0]:
                found.append((name + pytree.keystr(path), leaf))
        return found

    def _input(self, name: str, real: Any, node: fx.Node) -> Value:
        """A tensor that was fed in; one inside a list is a constant, as in the recorded run."""
        known = isinstance(real, Tensor) and real.device.type != "meta" and real.numel() <= MOST_ELEMENTS
        numbers = real.detach().cpu() if known else None
        given = name in self.inputs.kwargs or name in self.names
        value = self._enter("input" if given else "constant", name, node.meta["val"], 0, real=numbers)
        if given:
            self.tape.inputs[name] = value
        return value

    # --- values ---------------------------------------------------------------------------------------------------

    def _enter(self, kind: str, name: str, tensor: Tensor, frame: int, **more: Any) -> Value:
        if not all(isinstance(n, int) for n in tensor.shape):
            raise NotComparable(f"the size of what {name} gives depends on data")
        value = Value(len(self.tape.values), kind, name, tensor, frame, **more)
        self.tape.values.append(value)
        return value

    def _leaf(self, node: fx.Node, kind: str, name: str, frame: int) -> Value:
        """A parameter, buffer or constant, entered where it is first read."""
        tensor = self.tensors.get(name, self.program.constants.get(name))
        if isinstance(tensor, FakeTensor):
            with contextlib.suppress(AttributeError):
                tensor = operator.attrgetter(name)(self.module)  # a plain attribute, which was a fake one meanwhile
        name = self.first.get(id(tensor), name)
        if (kind, name) not in self.leaves:
            known = kind != "parameter" and type(tensor) in PLAIN and not isinstance(tensor, FakeTensor)
            known = known and tensor.device.type != "meta" and tensor.numel() <= MOST_ELEMENTS
            real = tensor.detach().cpu() if known else None
            self.leaves[kind, name] = self._enter(kind, name, node.meta["val"], frame, real=real)
            if kind == "parameter":
                self.tape.parameters[name] = True
        return self.leaves[kind, name]

    def _hold(self, node: fx.Node) -> None:
        if isinstance(node.meta.get("val"), Tensor):
            self.storages.setdefault(node.meta["val"].untyped_storage()._cdata, []).append(node)
            self.contents[id(node.meta["val"])] = node

    def _read(self, tree: Any, frame: int) -> Any:
        """Arguments with values in place of nodes."""
        if isinstance(tree, fx.Node):
            found = self.now[tree]
            if isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], str):
                found = self.now[tree] = self._leaf(tree, *found, frame)
            if found is UNKNOWN:
                raise NotComparable(f"{tree.name} is a number that depends on data")
            return found
        if isinstance(tree, list | tuple):
            return (tuple if isinstance(tree, tuple) else list)(self._read(item, frame) for item in tree)
        if isinstance(tree, dict):
            return {key: self._read(item, frame) for key, item in tree.items()}
        return tree

    # --- calls ----------------------------------------------------------------------------------------------------

    def _run(self, part: fx.GraphModule) -> list[Any]:
        """Enter every call of a graph; what it returns."""
        for node in part.graph.nodes:
            if node.op == "output":
                return [self._read(n, 0) for n in pytree.tree_leaves(node.args[0], is_leaf=_is_node)]
            if node.op == "get_attr":
                self.now[node] = operator.attrgetter(node.target)(part)
            elif node.op == "call_function":
                self._node(node)
                self._hold(node)
        return []

    def _node(self, node: fx.Node) -> None:
        target, made = node.target, node.meta.get("val")
        if target is operator.getitem:
            self.now[node] = self.now[node.args[0]][node.args[1]]  # type: ignore[index]
        elif isinstance(target, HigherOrderOperator):
            self._inline(node, target)
        elif isinstance(target, OpOverload) and any(isinstance(v, Tensor) for v in pytree.tree_leaves(made)):
            self._call(node, target)
        else:
            self.now[node] = made if made is None or type(made) in (bool, int, float) else UNKNOWN

    def _inline(self, node: fx.Node, target: HigherOrderOperator) -> None:
        part = next((self.now.get(a) for a in node.args if isinstance(a, fx.Node)), None)
        if target.name() not in INLINED or not isinstance(part, fx.GraphModule):
            raise NotComparable(f"its graph holds {target.name()}")
        place = next(i for i, a in enumerate(node.args) if isinstance(a, fx.Node))
        holders = [n for n in part.graph.nodes if n.op == "placeholder"]
        for holder, given in zip(holders, node.args[place + 1 :], strict=True):
            self.now[holder] = self._read(given, self._frame(node))
            self._hold(holder)
        self.now[node] = tuple(self._run(part))

    def _call(self, node: fx.Node, func: OpOverload) -> None:
        name = func._schema.name.rpartition("::")[2]
        frame = self._frame(node)
        args, kwargs = self._read(tuple(node.args), frame), self._read(dict(node.kwargs), frame)
        made = node.meta["val"]
        composite = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), COMPOSITE)
        if composite and (name not in words.KIND or name in LIKE):
            self.now[node] = _Parts(self, frame).of(func, args, kwargs)
            return
        written = [
            node.args[i]
            for i, a in enumerate(func._schema.arguments)
            if a.alias_info is not None and a.alias_info.is_write and i < len(node.args)
        ]
        outputs = made if isinstance(made, tuple | list) else (made,)
        values = [
            self._enter("call", name, out, frame, func=func, args=args, kwargs=kwargs, output=i)
            if isinstance(out, Tensor)
            else None
            for i, out in enumerate(outputs)
        ]
        self.now[node] = tuple(values) if isinstance(made, tuple | list) else values[0]
        for other in (n for n in written if isinstance(n, fx.Node)):
            if isinstance(values[0], Value):
                self._rewrite(other, values[0])

    def _rewrite(self, node: fx.Node, new: Value) -> None:
        """A write: every node on the same memory has a new value from now on."""
        old, tensor = self.now[node], node.meta["val"]
        self.now[node] = new
        for other in self.storages.get(tensor.untyped_storage()._cdata, ()):
            before = self.now[other]
            if before is old:
                self.now[other] = new
            elif before is not new and isinstance(before, Value):
                held = other.meta["val"]
                name = ALIAS if held.numel() == tensor.numel() else WRITTEN
                self.now[other] = self._enter("call", name, held, new.frame, args=(before, new))

    # --- module calls ---------------------------------------------------------------------------------------------

    def _frame(self, node: fx.Node) -> int:
        """The module call that a node was made in. Each call has a key of its own (``layer``, ``layer@1``)."""
        stack = node.meta.get("nn_module_stack") or {}
        keys: tuple[str, ...] = ()
        frame = 0
        for key, (path, kind) in stack.items():
            keys = (*keys, key)
            if keys not in self.calls:
                known, module = self.paths.get(path, (path, -1 - len(self.calls)))
                self.calls[keys] = len(self.tape.frames)
                kind = kind if isinstance(kind, str) else kind.__qualname__
                kind, given = kind.rpartition(".")[2], self._positions(key, module)
                self.tape.frames.append(Frame(len(self.tape.frames), frame, known, kind, module, given))
            frame = self.calls[keys]
        return frame

    def _positions(self, key: str, module: int) -> tuple[int, ...]:
        """Indices of what a call is given by position, as that is when the first call inside it is made."""
        calls = self.positions.get(module, [])
        number = int(key.rpartition("@")[2]) if "@" in key else 0
        nodes = [self.contents.get(id(held)) for held in calls[number]] if number < len(calls) else []
        values = [self.now.get(node) for node in nodes if node is not None]
        return tuple(v.index for v in values if isinstance(v, Value))


def _is_node(tree: Any) -> bool:
    return isinstance(tree, fx.Node)


class _Parts(TorchDispatchMode):
    """Enters a composite operator that the vocabulary does not know as the calls that it is made of."""

    def __init__(self, reader: _Reader, frame: int) -> None:
        super().__init__()
        self.reader, self.frame = reader, frame
        self.values: dict[int, Value] = {}
        self.kept: list[Tensor] = []

    def of(self, func: OpOverload, args: Any, kwargs: Any) -> Any:
        made: dict[int, Tensor] = {}

        def twin(value: Any) -> Any:
            if not isinstance(value, Value):
                return torch.device("meta") if isinstance(value, torch.device) else value
            if value.index not in made:
                made[value.index] = torch.empty(value.shape, dtype=value.dtype, device="meta")
                self._hold(made[value.index], value)
            return made[value.index]

        args, kwargs = pytree.tree_map(twin, (args, kwargs))
        with torch.no_grad(), self:
            result = func(*args, **kwargs)
        return pytree.tree_map_only(Tensor, lambda t: self.values[id(t)], result)

    def _hold(self, tensor: Tensor, value: Value) -> None:
        self.kept.append(tensor)
        self.values[id(tensor)] = value

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        held, named = pytree.tree_map_only(Tensor, lambda t: self.values[id(t)], (args, kwargs or {}))
        name = func._schema.name.rpartition("::")[2]
        for i, out in enumerate(result if isinstance(result, tuple | list) else (result,)):
            if isinstance(out, Tensor):
                made = self.reader._enter("call", name, out, self.frame, func=func, args=held, kwargs=named, output=i)
                self._hold(out, made)
        return result
