"""The recorder: what it remembers of torch's kernels, and of memory that is written to."""

import gc

import pytest
import torch
from torch import Tensor, nn

from sublayer.audit import shortcuts
from sublayer.audit.inputs import Inputs
from sublayer.audit.trace import trace


def tape_of(forward, *args):
    class Model(nn.Module):
        def forward(self, *given: Tensor) -> Tensor:
            return forward(*given)

    return trace(Model(), Inputs(args, {}, ("argument 0",)))


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.mean(-1),
        lambda x: x.mean(-1, keepdim=True),
        lambda x: x.transpose(1, 2).mean(-1),
        lambda x: x.to(torch.float64).pow(2),
        lambda x: nn.functional.layer_norm(x, (7,)),
        lambda x: torch.cat([x, x], 1),
        lambda x: torch.cat([x, x], 2),
        lambda x: x.transpose(0, 1) + 1,
        lambda x: x @ x.transpose(1, 2),
        lambda x: torch.var_mean(x, -1)[1],
        lambda x: x.contiguous(),
        lambda x: x.to(x.dtype),
        lambda x: x.sum(-1, dtype=torch.float64),
    ],
)
def test_a_remembered_kernel_answers_as_the_kernel_does(call):
    shortcuts._ANSWERS.clear()
    x = torch.randn(2, 5, 7)
    real = call(x)
    for _ in range(2):  # asked, then remembered
        outputs = [v for _, v in tape_of(lambda given: call(given) * 1, x).outputs]
        assert [(v.shape, v.dtype) for v in outputs] == [(tuple(real.shape), real.dtype)]
    assert shortcuts._ANSWERS


def test_strides_are_remembered_too():
    x = torch.randn(2, 5, 7, device="meta")
    add = torch.ops.aten.add.Tensor
    for given in (x, x.transpose(0, 2), x.transpose(0, 2), x):
        assert shortcuts.result_of(add, [given, given], {}).stride() == add(given, given).stride()


def test_a_call_that_answers_with_its_own_input_is_not_remembered():
    x = torch.randn(2, 5, device="meta")
    for _ in range(2):
        assert shortcuts.result_of(torch.ops.aten.detach.default, [x], {}).untyped_storage()._cdata == (
            x.untyped_storage()._cdata
        )
    assert shortcuts.result_of(torch.ops.aten.clone.default, [x], {}) is not x


def test_a_view_that_is_still_held_sees_a_write_through_another():
    def forward(x):
        x = x * 1
        held = x.view(-1)
        x.add_(1)
        return held * 2

    tape = tape_of(forward, torch.randn(3, 4))
    value = tape.outputs[0][1]
    seen = set()
    stack = [value]
    while stack:
        top = stack.pop()
        seen.add(top.name)
        stack += top.sources
    assert "add_" in seen


def test_views_that_nobody_holds_cost_nothing():
    def forward(x):
        x = x * 1
        for i in range(40):
            x[i : i + 1] = x[i : i + 1] * 2
        return x

    assert len(tape_of(forward, torch.randn(40, 4)).values) < 500  # with an alias for every view: thousands


def test_garbage_is_collected_again_after_an_audit():
    from sublayer.audit import audit

    assert gc.isenabled()
    with pytest.raises(Exception, match="target"):
        audit(3)
    assert gc.isenabled()
