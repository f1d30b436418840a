"""Recurrent layers recorded as one call each, not as a step for every position, and with weights wherever they are."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

if TYPE_CHECKING:
    from sublayer.audit.trace import Recorder

META = torch.device("meta")
_CALLS = {
    "lstm": torch.ops.aten.lstm.input,
    "gru": torch.ops.aten.gru.input,
    "rnn_tanh": torch.ops.aten.rnn_tanh.input,
    "rnn_relu": torch.ops.aten.rnn_relu.input,
}


@contextlib.contextmanager
def whole_recurrence(recorder: "Recorder") -> Iterator[None]:
    """Record ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` as one call of theirs; packed sequences go their usual way."""

    def runs(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def run(data: Tensor, state: Any, *args: Any) -> Any:
            if not isinstance(args[0], list | tuple) or data.dim() != 3:
                return original(data, state, *args)
            both, states = args[5], state if isinstance(state, list | tuple) else [state]
            with _disable_current_modes(), torch.no_grad():
                width = states[0].shape[-1] * (2 if both else 1)
                out = torch.empty((*data.shape[:2], width), dtype=data.dtype, device=META)
                last = [torch.empty(s.shape, dtype=s.dtype, device=META) for s in states]
                recorder.enter(_CALLS[name], (data, state, *args), {}, (out, *last))
            return (out, *last)

        return run

    with contextlib.ExitStack() as stack:
        for name in _CALLS:
            stack.enter_context(mock.patch.object(torch._VF, name, runs(name, getattr(torch._VF, name))))
        yield
