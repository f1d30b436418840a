"""`loss_only`: the loss and the gradients of the whole logits, without the logits."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sublayer.model import SublayerForCausalLM, SublayerForMaskedLM, loss
from tests.model.support import tiny

HEADS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"lm_head_bias": True},
    "transform": {"lm_head_dense": True, "lm_head_act": "gelu", "lm_head_norm": True, "lm_head_bias": True},
    "scale": {"logits_scale": 0.3, "lm_head_bias": True},
    "cap": {"final_logit_softcapping": 5.0},
    "untied": {"tie_word_embeddings": False},
}


def model(kind: type[Any], **options: Any) -> Any:
    return tiny("post-norm", kind, vocab_size=211, **options)


def batch(masked: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 211, (3, 24), generator=generator)
    drawn = torch.rand(3, 24, generator=generator)
    return {"input_ids": ids, "labels": ids.masked_fill(drawn > (0.2 if masked else 0.9), -100)}


def gradients(made: nn.Module, inputs: dict[str, Any]) -> tuple[float, dict[str, Tensor]]:
    made.zero_grad()
    found: Tensor = made(**inputs).loss
    found.backward()  # type: ignore[no-untyped-call]
    return float(found.detach()), {n: p.grad.clone() for n, p in made.named_parameters() if p.grad is not None}


def same(made: nn.Module, inputs: dict[str, Any]) -> None:
    whole, expected = gradients(made, inputs)
    alone, found = gradients(made, inputs | {"loss_only": True})
    assert alone == pytest.approx(whole, rel=1e-6)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("kind", [SublayerForMaskedLM, SublayerForCausalLM])
@pytest.mark.parametrize("options", HEADS.values(), ids=HEADS.keys())
def test_loss_and_gradients_are_those_of_the_logits(
    kind: type[Any], options: dict[str, Any], chunked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "AT_ONCE", 211 * 16 if chunked else 1 << 26)  # chunks of 8 rows
    same(model(kind, **options), batch(kind is SublayerForMaskedLM))


def test_packed_documents_and_a_count_for_accumulation() -> None:
    inputs = batch(masked=False) | {"sequence_ids": torch.arange(24).expand(3, -1) // 7}
    made = model(SublayerForCausalLM)
    same(made, inputs)
    same(made, inputs | {"num_items_in_batch": torch.tensor(100)})
    same(made, inputs | {"num_items_in_batch": 100})


def test_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "AT_ONCE", 0)
    made, inputs = model(SublayerForMaskedLM), batch(masked=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        whole, _ = gradients(made, inputs)
        alone, found = gradients(made, inputs | {"loss_only": True})
    assert alone == pytest.approx(whole, rel=1e-5), "a sum in half precision would be off by a hundredth"
    assert all(torch.isfinite(g).all() for g in found.values())


def test_torch_that_has_no_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "AT_ONCE", 0)
    monkeypatch.setattr(loss, "_CHUNKED", None)
    same(model(SublayerForCausalLM), batch(masked=False))


def test_no_logits_are_given_and_without_labels_all_are() -> None:
    made, inputs = model(SublayerForMaskedLM), batch(masked=True)
    assert made(**inputs, loss_only=True).logits is None
    assert made(input_ids=inputs["input_ids"], loss_only=True).logits.shape == (3, 24, 211)
    assert made(**inputs).logits.shape == (3, 24, 211)


def test_nothing_to_predict() -> None:
    made = model(SublayerForMaskedLM)
    inputs = batch(masked=True)
    inputs["labels"] = torch.full_like(inputs["labels"], -100)
    assert torch.isnan(made(**inputs, loss_only=True).loss), "as a mean over nothing is, with all logits too"
    counted = made(**inputs, loss_only=True, num_items_in_batch=10).loss
    assert float(counted.detach()) == 0.0


def test_a_layer_that_is_more_than_its_weights_is_called() -> None:
    made, inputs = model(SublayerForCausalLM), batch(masked=False)
    heard = []
    made.lm_head.register_forward_hook(lambda *_: heard.append(1))
    same(made, inputs)
    assert len(heard) == 2
