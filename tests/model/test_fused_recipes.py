"""The recipes have the sizes of the published models: counted against transformers' own, and run."""

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, RobertaConfig, RobertaForMaskedLM

from sublayer.model import SublayerForMaskedLM
from sublayer.model.recipes import recipe, recipes
from sublayer.notation import parse
from tests.model.support import randomise

LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
THEIRS = {
    "bert-large-uncased": (BertForMaskedLM, BertConfig(**LARGE, vocab_size=30522)),
    "roberta-large": (
        RobertaForMaskedLM,
        RobertaConfig(**LARGE, vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5),
    ),
}
MASKED = [name for name in recipes() if name.startswith(("saf-", "paf-"))]
DEAD = 24 * 2 * 1024  # the weight and the bias of a second norm a layer


@pytest.mark.parametrize("name", MASKED)
def test_as_large_as_the_published_model(name: str) -> None:
    wiring, _, published = name.partition("-")
    kind, config = THEIRS[published]
    with torch.device("meta"):
        ours, theirs = SublayerForMaskedLM(recipe(name)), kind(config)
    fewer = DEAD if wiring == "paf" else 0
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) - fewer
    assert (ours.config.norm_eps, ours.config.pad_token_id) == (config.layer_norm_eps, config.pad_token_id)


def test_the_wirings() -> None:
    for published in THEIRS:
        serial, together = (parse(recipe(f"{wiring}-{published}").design) for wiring in ("saf", "paf"))
        assert serial == parse("embed: x = norm(e)\nblock: x = norm(x + attn(x)); x = norm(x + ffn(x))")
        assert together == parse("embed: x = norm(e)\nblock: x = norm(x + attn(x) + ffn(x))")


@pytest.mark.parametrize("name", MASKED)
def test_a_recipe_runs_and_can_be_changed(name: str) -> None:
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = recipe(name, **small, vocab_size=29)
    model = SublayerForMaskedLM(config).eval()
    randomise(model)
    ids = torch.randint(3, 29, (2, 9))
    logits = model(ids, token_type_ids=torch.zeros_like(ids)).logits
    assert logits.shape == (2, 9, 29)
    padded = torch.cat([ids, torch.full((2, 3), config.pad_token_id)], 1)
    mask = (torch.arange(12) < 9).long().expand(2, -1)
    again = model(padded, attention_mask=mask, token_type_ids=torch.zeros_like(padded)).logits[:, :9]
    assert torch.allclose(again, logits, atol=1e-5)


def test_an_unknown_recipe_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"got 'paf-roberta-larg' \(nearest: paf-roberta-large\): choose one"):
        recipe("paf-roberta-larg")
