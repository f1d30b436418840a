"""Heads that score texts: the same labels from a family's classifier and from a Sublayer model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from sublayer.hf import CheckpointError, export, load
from sublayer.model import SublayerConfig, SublayerForSequenceClassification
from tests.hf.support import CASES, padding, randomise, relative_error, tiny, tokens

NAMES = [
    "bert", "roberta", "distilbert", "electra", "modernbert", "modernbert-biases", "roberta-prelayernorm",
    "megatron-bert", "gpt2", "gpt_neo", "gpt_neox", "gptj", "opt", "falcon", "bloom", "mpt", "biogpt", "phi", "phi3",
    "stablelm", "llama", "mistral", "qwen2", "gemma2", "olmo2", "starcoder2", "glm4", "nemotron", "modernbert-decoder",
]  # fmt: skip


def classifier(name: str, **changes: Any) -> Any:
    case = CASES[name]
    config = case.config()
    config.num_labels = 5
    config.label2id = {"one": 0, "two": 1, "three": 2, "four": 3, "five": 4}
    config.id2label = {i: label for label, i in config.label2id.items()}
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = 0
    for key, value in changes.items():
        setattr(config, key, value)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation=case.attention)
    randomise(model)
    return model.float().eval()


def batch(name: str, pad: int) -> tuple[Tensor, Tensor]:
    """Texts with padding on the right."""
    ids = tokens()
    mask = padding(CASES["bert"], ids)
    return ids.masked_fill(mask == 0, pad), mask


@torch.no_grad()
def scores(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    result: Tensor = model(ids, attention_mask=mask).logits
    return result


@pytest.mark.parametrize("name", NAMES)
def test_scores_and_round_trip(name: str, tmp_path: Path) -> None:
    theirs = classifier(name)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load(tmp_path / "theirs", verify=False, attn_implementation=CASES[name].attention)
    assert isinstance(ours, SublayerForSequenceClassification)
    assert ours.config.id2label[3] == "four"
    ids, mask = batch(name, theirs.config.pad_token_id)
    want = scores(theirs, ids, mask)
    assert relative_error(scores(ours, ids, mask), want) < 1e-5
    # Which token is read matters.
    assert relative_error(scores(ours, ids, torch.ones_like(mask)), want) > 1e-3
    assert export(ours, tmp_path / "ours").format == "family"
    before, after = (load_file(tmp_path / which / "model.safetensors") for which in ("theirs", "ours"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    back = type(theirs).from_pretrained(tmp_path / "ours")
    assert back.config.id2label == theirs.config.id2label


def test_a_new_classifier_on_a_base_model(tmp_path: Path) -> None:
    theirs = tiny(CASES["bert"])
    base = load(theirs, head="none")
    export(base, tmp_path, format="sublayer")
    model = SublayerForSequenceClassification.from_pretrained(tmp_path, num_labels=4).eval()
    assert torch.equal(model.model.embed_tokens.weight, base.embed_tokens.weight)
    ids, mask = batch("bert", 0)
    with torch.no_grad():
        left = model.model(ids, attention_mask=mask).last_hidden_state
        right = base(ids, attention_mask=mask).last_hidden_state
    assert relative_error(left, right) < 1e-5
    assert scores(model, ids, mask).shape == (3, 4)


def test_the_mean_of_all_tokens() -> None:
    theirs = classifier("modernbert", classifier_pooling="mean")
    ours = load(theirs)
    ids, mask = batch("modernbert", theirs.config.pad_token_id)
    assert relative_error(scores(ours, ids, mask), scores(theirs, ids, mask)) < 1e-5
    first = load(classifier("modernbert"))
    assert relative_error(scores(first, ids, mask), scores(ours, ids, mask)) > 1e-3


def test_a_head_without_its_tensors_is_refused(tmp_path: Path) -> None:
    tiny(CASES["bert"]).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"BertForSequenceClassification must hold 4 more tensors"):
        load(tmp_path, head="sequence-classification")


def test_settings_of_a_classifier_are_checked() -> None:
    with pytest.raises(ValueError, match=r"classifier_reads \('cls'\) must be one of None, first, last, mean"):
        SublayerConfig(classifier_reads="cls")
    with pytest.raises(ValueError, match=r"classifier_act \('swiglu'\) has no second product"):
        SublayerConfig(classifier_act="swiglu")
