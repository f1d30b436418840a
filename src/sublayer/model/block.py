"""The block. Its forward is Python written from the equation: ``print(block.source)`` shows it.

For the design ``x = norm(x + attn(x)); x = norm(x + ffn(x))`` the source reads

    def forward(self, x, context):
        x = self.stream_norm(x + self.attn(x, context))
        x = self.stream_norm_2(x + self.ffn(x))
        return x

and each name after ``self.`` is a submodule (`sublayer.model.operators`), one for each parameter set of the equation.
Branches that can run together do (`sublayer.model.fused`): ``x = x + self.attn_ffn(x, context)``.
"""

import hashlib
import linecache
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial, wraps
from types import MethodType
from typing import Any

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from sublayer.model.config import SublayerConfig
from sublayer.model.context import Context
from sublayer.model.fused import Together
from sublayer.model.operators import build_operator
from sublayer.notation.code import forward_source
from sublayer.notation.parallel import parallel
from sublayer.notation.program import Section

Forward = Callable[..., Tensor | tuple[Tensor, ...]]
Tap = Callable[[str, Tensor], Tensor]


@lru_cache(maxsize=1024)
def compile_forward(source: str) -> Forward:
    """The function that ``source`` defines, made once for each distinct source.

    The source is entered in ``linecache``, so that tracebacks, debuggers and ``inspect.getsource`` show its lines.
    """
    filename = f"<sublayer {hashlib.sha256(source.encode()).hexdigest()[:12]}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    namespace: dict[str, Any] = {"sqrt": math.sqrt}
    exec(compile(source, filename, "exec"), namespace)
    forward: Forward = namespace["forward"]
    return forward


@lru_cache(maxsize=1024)
def checkpointed(forward: Forward) -> Forward:
    """``forward``, recomputed in the backward pass when gradient checkpointing is on."""

    @wraps(forward)
    def run(self: Any, *streams: Any) -> Any:
        if self.gradient_checkpointing and self.training:
            *tensors, context = streams  # the tensors by position: reentrant checkpointing tracks only those
            return self._gradient_checkpointing_func(partial(_context_last, forward, self, context), *tensors)
        return forward(self, *streams)

    return run


def _context_last(
    forward: Forward, block: nn.Module, context: Context, *tensors: Tensor
) -> Tensor | tuple[Tensor, ...]:
    return forward(block, *tensors, context)


def _place(wiring: "Wiring", incompatible: Any) -> None:
    wiring.place()


class Wiring(nn.Module):
    """A module that runs one section of a design: a submodule for each site, and a forward compiled from the equation.

    Args:
        section: the program to run.
        config: sizes and kinds of the operators.
        layer: 1-based index of the layer; 0 in the embed and final sections.
        depth: number of layers. ``layer`` and ``depth`` give the scalars of the equation their values.
    """

    forward: Forward  # an attribute of each instance: layers of one model may run different equations

    def __init__(self, section: Section, config: SublayerConfig, layer: int, depth: int) -> None:
        super().__init__()
        self.section = section
        self.layer = layer
        self.depth = depth
        for site in section.sites:
            self.add_module(site.name, build_operator(site, config, section, layer))
        self.fused = config.fuse_parallel
        self._bind()
        self.place()
        self.register_load_state_dict_post_hook(_place)  # loading may put other tensors in place of the parameters

    @property
    def source(self) -> str:
        """The Python of the forward pass."""
        return forward_source(self.section, fuse=self.fused)

    def place(self) -> None:
        """Let the weights of parallel branches lie together in memory, where they read one value.

        For whoever gave the parameters other memory than they had; building, moving and copying a model do it.
        """
        for together in self._together.values():
            together.place()

    def _bind(self) -> None:
        self.__dict__["forward"] = self._run(compile_forward(self.source))
        groups = parallel(self.section).groups if self.fused else ()
        self._together = {group.name: Together(self, group) for group in groups}
        self.__dict__.update(self._together)  # the names that the source calls

    def _run(self, forward: Forward) -> Forward:
        return MethodType(forward, self)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Wiring":
        for together in self._together.values():
            together.wholes = {}  # or both the old and the new memory would be kept for a while
        super()._apply(fn, recurse)
        self.place()
        return self

    def __getstate__(self) -> dict[str, Any]:
        # What is bound to this module must not reach a copy, and a compiled function cannot be pickled: made again
        # there.
        bound = {"forward", "_together", *self._together}
        return {name: value for name, value in self.__dict__.items() if name not in bound}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._bind()
        self.place()

    @contextmanager
    def tapped(self, tap: Tap) -> Iterator[None]:
        """Call ``tap(name, value)`` for every value of the section while the context lasts, and use what it returns.

        Names are those of ``section``; values have shape ``[batch, seq, d]``. Parallel branches run one by one, so that
        each output can be seen. The plain forward is back afterwards, also after an exception. Gradient checkpointing
        is off within.
        """
        plain = self.__dict__["forward"]
        tapped = compile_forward(forward_source(self.section, tap=True))
        self.__dict__["tap"] = tap
        self.__dict__["forward"] = MethodType(tapped, self)
        try:
            yield
        finally:
            self.__dict__["forward"] = plain
            del self.__dict__["tap"]

    def extra_repr(self) -> str:
        """The equation, for ``print(model)``."""
        return self.section.text


class SublayerSection(Wiring):
    """The embed or the final section."""


class SublayerBlock(Wiring, GradientCheckpointingLayer):
    """One layer."""

    def _run(self, forward: Forward) -> Forward:
        return MethodType(checkpointed(forward), self)
