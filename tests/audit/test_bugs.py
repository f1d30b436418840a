"""Bugs that shipped, as modules: each is found by an audit, and nothing is found in its healthy twin."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from sublayer.audit import audit
from sublayer.audit.findings import broken_shape
from tests.audit.bugs import BUGS, Attention, Builder, PreBlock, Transformer, WrongFFNBlock, healthy, stack


@pytest.mark.parametrize(
    ("bug", "twin", "rule", "severity"), BUGS, ids=[f"{b.__name__}-{t.__name__}" for b, t, _, _ in BUGS]
)
def test_bug_is_found_and_its_twin_is_clean(
    bug: Builder, twin: Builder, rule: str | None, severity: str | None
) -> None:
    buggy, clean = audit(bug()), audit(twin())
    assert not clean.findings
    if rule is None:
        assert buggy.design != clean.design
        assert not [f for f in buggy.findings if f.severity == "error"]
    else:
        assert (rule, severity) in {(f.rule, f.severity) for f in buggy.findings}, buggy.findings


@pytest.mark.parametrize(
    ("change", "place", "words"),
    [
        (
            lambda b: setattr(b.mlp, "down", nn.Linear(96, 32)),
            "blocks.2.mlp.down",
            "takes 96 channels and is given 128 by",
        ),
        (
            lambda b: setattr(b.attn, "proj", nn.Linear(32, 16)),
            "blocks.2.attn.proj",
            "32 meets one of size 16, which blocks",
        ),
        (lambda b: setattr(b, "ln2", nn.LayerNorm(64)), "blocks.2.ln2", "normalises 64 channels and is given 32"),
        (lambda b: setattr(b.attn, "heads", 5), "blocks.2.attn", "is invalid for input of size"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_broken_shape_is_named(change: Callable[[nn.Module], None], place: str, words: str, device: str) -> None:
    model = Transformer(*(PreBlock() for _ in range(4)), norm=nn.LayerNorm(32))
    change(model.blocks[2])
    model.to(device)
    ids = torch.zeros(2, 7, dtype=torch.long, device=device)
    with pytest.raises(RuntimeError) as caught:
        model(ids)
    found = broken_shape(caught.value, model)
    assert found is not None
    assert (found.severity, found.rule, found.layers, found.place) == ("error", "broken-shape", "layer 2", place)
    assert words in found.message
    # Without the traceback it is run again.
    again = broken_shape(RuntimeError(str(caught.value)), model, ids)
    assert again == found


def test_a_wrong_input_is_no_broken_shape() -> None:
    projected = nn.Sequential(nn.Linear(16, 32), PreBlock())
    with pytest.raises(RuntimeError) as caught:
        projected(torch.zeros(2, 7, 20))
    assert broken_shape(caught.value, projected) is None
    model = healthy()
    with pytest.raises(IndexError) as beyond:
        model(torch.full((1, 3), 1000))
    assert broken_shape(beyond.value, model) is None
    with pytest.raises(RuntimeError) as kind:
        model(torch.zeros(1, 3))
    assert broken_shape(kind.value, model) is None


def test_an_audit_of_a_broken_model_says_so() -> None:
    found = audit(stack(WrongFFNBlock)())
    assert [f.rule for f in found.findings] == ["broken-shape"]
    assert "does not run" in found.unknown


def test_attention_of_one_head_needs_no_output_matrix() -> None:
    class OneHead(Attention):
        def __init__(self) -> None:
            super().__init__(heads=1)
            del self.proj

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.mix(x)

    assert not audit(stack(lambda: PreBlock(OneHead))()).findings
