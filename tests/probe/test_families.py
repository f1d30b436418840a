"""Families that nothing was written for: each + of each is found, and the terms add up."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

import sublayer as sl
from tests.probe.foreign import ids, randomised

SIZES = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 32, "num_key_value_heads": 1, "head_dim": 8, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "n_layers": 2, "n_heads": 2,
    "ffn_dim": 24, "word_embed_proj_dim": 16, "embedding_size": 16, "dim": 16, "hidden_dim": 24,
    "decoder_start_token_id": 2, "cls_token_id": 1, "sep_token_id": 2,
}  # fmt: skip
MASKED, CAUSAL, BOTH = AutoModelForMaskedLM, AutoModelForCausalLM, AutoModelForSeq2SeqLM
FAMILIES = {
    "albert": (MASKED, 4, "x + attn(x)"),
    "distilbert": (MASKED, 4, "x + attn(x)"),
    "deberta-v2": (MASKED, 4, "x + attn(x)"),
    "modernbert": (MASKED, 4, "x + attn(x)"),
    "opt": (CAUSAL, 4, "x + attn(norm(x))"),
    "bloom": (CAUSAL, 4, "x + attn(norm(x))"),
    "cohere": (CAUSAL, 2, "x + attn(norm(x)) + ffn(norm(x))"),
    "qwen3": (CAUSAL, 4, "x + attn(norm(x))"),
    "gemma3_text": (CAUSAL, 4, "x + norm(attn(norm(x)))"),
    "mpt": (CAUSAL, 4, "x + attn(norm(x))"),
    "mamba": (CAUSAL, 2, "x + mixer(norm(x))"),
    "bart": (BOTH, 6, "x + attn(x)"),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family(name: str) -> None:
    head, count, first = FAMILIES[name]
    plain: Any = AutoConfig.for_model(name)
    config = AutoConfig.for_model(name, **{k: v for k, v in SIZES.items() if hasattr(plain, k)})
    torch.manual_seed(0)
    model = randomised(head.from_config(config))
    batch = {"input_ids": ids(), "attention_mask": torch.ones(4, 9, dtype=torch.int64), "labels": ids(seed=6)}
    record = sl.probe(model, batch, lens=True, loss=True).record
    assert record["not_measured"] == []
    assert [s["equation"] for s in record["sums"]][:1] == [first]
    assert len(record["sums"]) == count
    with torch.no_grad():
        loss = float(model(**batch).loss)
    assert record["lens"]["losses"][-1] == pytest.approx(loss, rel=1e-4)
    assert record["gradients"]["loss"] == pytest.approx(loss, rel=1e-4)
    assert all(layer["gradient_norm"] > 0 for layer in record["layers"])
    assert all(layer["attention"] or name == "mamba" for layer in record["layers"])
