"""Run a few calls of a traced model again on other numbers: its own norm on a sum that lacks a term."""

import torch
from torch import Tensor, nn

from sublayer.audit.flow import Flow
from sublayer.audit.located import values_of
from sublayer.audit.tape import Replay, Value


class Rerun:
    """The calls of a flow between two nodes, with the model's own parameters.

    Args:
        flow: the traced data.
        module: the live model whose parameters and buffers take part.
    """

    def __init__(self, flow: Flow, module: nn.Module) -> None:
        self.flow = flow
        self.weights = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers())
        self._leaves: dict[int, Tensor | None] = {}

    def _leaf(self, value: Value) -> Tensor | None:
        if value.index not in self._leaves:
            found = value.real if value.kind == "constant" else self.weights.get(value.name)
            if value.kind == "buffer" and found is None:
                found = value.real
            self._leaves[value.index] = None if found is None else found.detach().cpu()
        return self._leaves[value.index]

    def __call__(self, begin: int, end: int, tokens: Tensor) -> Tensor | None:
        """What node ``end`` is when node ``begin`` is ``tokens`` [n, channels]; None if it takes more than these.

        The calls run on pieces of the traced shape, the last one filled up: what a call asks of its sizes holds then.
        """
        first = values_of(self.flow, begin)
        last = self.flow.nodes[end].value
        width = tokens.shape[-1]
        shapes = [v for v in first if v.shape and v.shape[-1] == width]
        if not shapes or not last.shape or last.shape[-1] != width:
            return None
        size = shapes[0].shape
        count = 1
        for n in size[:-1]:
            count *= n
        done = []
        for piece in tokens.detach().cpu().split(count):
            full = piece if len(piece) == count else torch.cat([piece, piece[-1:].expand(count - len(piece), width)])
            given = {v.index: full.reshape(v.shape).to(v.dtype) for v in shapes}
            result = Replay(given, self._leaf)(last)
            if result is None:
                return None
            done.append(result.reshape(-1, width)[: len(piece)].to(tokens.dtype))
        return torch.cat(done)
