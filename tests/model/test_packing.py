"""Packed documents do not see each other, whatever the objective, the backend and the positions."""

import pytest
import torch
from torch import Tensor

from sublayer.model import (
    SublayerForCausalLM,
    SublayerForMaskedLM,
    SublayerForSequenceClassification,
    SublayerModel,
    documents,
)
from sublayer.model.documents import blocks_of
from sublayer.model.positions import document_positions, documents_from_positions
from tests.model.support import VARIED, same, tiny, tokens

DOCUMENTS = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 2, 2, 2], [4, 4, 9, 9, 9, 9, 9, 9, 9, 7]])
BACKENDS = ["sdpa", "eager"]


def packed() -> Tensor:
    return tokens(2, 10)


@pytest.mark.parametrize("kind", [SublayerForCausalLM, SublayerForMaskedLM])
@pytest.mark.parametrize("design", VARIED.values(), ids=VARIED)
def test_changing_a_neighbour_changes_nothing(design: str, kind: type) -> None:
    """Bit for bit, in both directions: neither earlier nor later documents are seen."""
    model = tiny(design, kind)
    before = model(packed(), sequence_ids=DOCUMENTS).logits
    for document in (0, 1, 2):
        changed = packed()
        mine = DOCUMENTS[0] == document
        changed[0, mine] = (changed[0, mine] + 1) % 29
        after = model(changed, sequence_ids=DOCUMENTS).logits
        assert torch.equal(after[0, ~mine], before[0, ~mine])
        assert torch.equal(after[1], before[1])
        assert not torch.equal(after[0, mine], before[0, mine])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("position_embedding", ["learned", "rotary", "none"])
@pytest.mark.parametrize("kind", [SublayerForCausalLM, SublayerForMaskedLM])
@pytest.mark.parametrize("design", ["residual", "x = x + dot(norm(x)) + attn(x)"])
def test_a_packed_document_gives_what_it_gives_alone(
    design: str, kind: type, position_embedding: str, backend: str
) -> None:
    model = tiny(design, kind, position_embedding=position_embedding)
    model.set_attn_implementation(backend)
    together = model(packed(), sequence_ids=DOCUMENTS).logits
    for row in (0, 1):
        for document in DOCUMENTS[row].unique():
            mine = DOCUMENTS[row] == document
            assert same(together[row, mine], model(packed()[row, mine][None]).logits[0])


def test_positions_start_again_in_each_document() -> None:
    expected = [[0, 1, 2, 3, 0, 1, 2, 0, 1, 2], [0, 1, 0, 1, 2, 3, 4, 5, 6, 0]]
    assert document_positions(DOCUMENTS).tolist() == expected
    model = tiny("input-norm", SublayerModel)
    by_hand = model(packed(), sequence_ids=DOCUMENTS, position_ids=torch.tensor(expected)).last_hidden_state
    assert torch.equal(model(packed(), sequence_ids=DOCUMENTS).last_hidden_state, by_hand)
    running = model(packed(), sequence_ids=DOCUMENTS, position_ids=torch.arange(10)[None]).last_hidden_state
    assert not same(running, by_hand, 1e-3)


@pytest.mark.parametrize("kind", [SublayerForCausalLM, SublayerForMaskedLM])
def test_positions_that_start_again_are_enough(kind: type) -> None:
    """transformers reads documents off position_ids for causal models only; here both objectives keep them apart."""
    model = tiny("input-norm", kind)
    by_positions = model(packed(), position_ids=document_positions(DOCUMENTS)).logits
    assert torch.equal(by_positions, model(packed(), sequence_ids=DOCUMENTS).logits)


def test_positions_with_a_gap_are_one_document() -> None:
    assert documents_from_positions(torch.tensor([[3, 4, 9, 20]])) is None
    assert documents_from_positions(torch.tensor([[7]])) is None
    assert documents_from_positions(document_positions(DOCUMENTS)).tolist()[0] == DOCUMENTS[0].tolist()


@pytest.mark.parametrize("kind", [SublayerForCausalLM, SublayerForMaskedLM])
def test_packing_and_padding_combine(kind: type) -> None:
    model = tiny("input-norm", kind)
    mask = torch.ones(2, 10, dtype=torch.long)
    mask[:, 8:] = 0
    full = model(packed(), sequence_ids=DOCUMENTS, attention_mask=mask).logits
    changed = packed()
    changed[:, 8:] = 3
    assert torch.equal(model(changed, sequence_ids=DOCUMENTS, attention_mask=mask).logits[:, :8], full[:, :8])
    cut = model(packed()[:, :8], sequence_ids=DOCUMENTS[:, :8]).logits
    assert same(full[:, :8], cut)


def test_one_document_is_no_packing() -> None:
    model = tiny("input-norm")
    assert same(model(packed(), sequence_ids=torch.zeros_like(packed())).logits, model(packed()).logits)


def test_gradients_do_not_cross_documents() -> None:
    for kind in (SublayerForCausalLM, SublayerForMaskedLM):
        model = tiny("input-norm", kind, tie_word_embeddings=False)
        embeds = model.get_input_embeddings()(packed()).detach().requires_grad_()
        model(inputs_embeds=embeds, sequence_ids=DOCUMENTS).logits[0, 4:7].sum().backward()
        touched = embeds.grad.abs().sum(-1) > 0
        assert touched[0].tolist() == (DOCUMENTS[0] == 1).tolist()
        assert not touched[1].any()


def test_the_first_token_of_a_document_is_no_target_of_the_one_before() -> None:
    model = tiny("input-norm")
    loss = model(packed(), labels=packed(), sequence_ids=DOCUMENTS).loss
    total, count = 0.0, 0
    for row in (0, 1):
        for document in DOCUMENTS[row].unique():
            ids = packed()[row, DOCUMENTS[row] == document][None]
            if ids.shape[1] > 1:
                total += model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
                count += ids.shape[1] - 1
    assert abs(loss.item() - total / count) < 1e-5


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"sequence_ids": DOCUMENTS[:, :4]}, r"shape \(2, 4\) but the tokens \(2, 10\)"),
        (
            {"sequence_ids": DOCUMENTS, "attention_mask": torch.ones(2, 1, 10, 10)},
            "attention_mask of shape .batch, seq. only",
        ),
    ],
)
def test_contradictions_are_refused(inputs: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny("input-norm")(packed(), **inputs)


def test_what_cannot_be_packed_is_refused() -> None:
    model = tiny("input-norm")
    cache = model(packed(), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="takes no past_key_values"):
        model(packed(), sequence_ids=DOCUMENTS, past_key_values=cache)
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ValueError, match=r"'flash_attention_2'.*'sdpa', 'eager' or 'flex_attention'"):
        model(packed(), sequence_ids=DOCUMENTS)
    with pytest.raises(ValueError, match="one text a row"):
        tiny("input-norm", SublayerForSequenceClassification)(packed(), sequence_ids=DOCUMENTS)


@pytest.mark.parametrize("window", [None, 2, 40])
@pytest.mark.parametrize("kind", [SublayerForCausalLM, SublayerForMaskedLM])
@pytest.mark.parametrize(
    "ids", [DOCUMENTS, torch.zeros(2, 10), torch.arange(10).expand(2, -1) // 5], ids=["ragged", "rows", "halves"]
)
def test_blocks_and_a_mask_say_the_same(
    ids: Tensor, kind: type, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("x = x + dot(norm(x)) + attn(norm(x))", kind, sliding_window=window, num_key_value_heads=2).double()
    found = {}
    for way, start in (("blocks", -(10**12)), ("mask", 10**12)):
        monkeypatch.setattr(documents, "START", start)
        whole = blocks_of(ids, 16)
        assert (whole is None) is (way == "mask" and len(ids.unique()) > 1)
        model.zero_grad()
        logits = model(packed(), sequence_ids=ids).logits
        logits.square().sum().backward()
        found[way] = [logits.detach()] + [p.grad.clone() for p in model.parameters()]
    for one, other in zip(found["blocks"], found["mask"], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_blocks_are_taken_where_they_save_more_than_they_cost() -> None:
    long = torch.arange(512).expand(4, -1) // 100
    assert blocks_of(long, 768) is not None
    assert blocks_of(long[:, :16], 32) is not None, "every row is one document"
    assert blocks_of(torch.arange(64).expand(16, -1) // 8, 64) is None, "many short ones"
