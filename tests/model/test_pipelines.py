"""transformers' pipelines run on saved models, with a tokenizer made here."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast, pipeline

from sublayer.model import SublayerForCausalLM, SublayerForMaskedLM, SublayerForSequenceClassification
from tests.model.support import tiny

WORDS = ["[PAD]", "[UNK]", "[MASK]", "[EOS]", *"the cat sat on a mat and dog ran far to see red hat".split()]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(dict.fromkeys(WORDS))}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        unk_token="[UNK]",
        mask_token="[MASK]",
        eos_token="[EOS]",
        padding_side="left",
    )


def saved(kind: type, design: str, tokenizer: PreTrainedTokenizerFast, folder: Path) -> str:
    model = tiny(design, kind, vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("design", ["paf-bert", "residual"])
def test_fill_mask(design: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    fill = pipeline("fill-mask", model=saved(SublayerForMaskedLM, design, tokenizer, tmp_path), device="cpu")
    guesses = fill("the cat [MASK] on a mat", top_k=3)
    assert len(guesses) == 3
    assert {g["token_str"] for g in guesses} <= set(WORDS)
    assert all(g["sequence"].startswith("the cat") and g["sequence"].endswith("on a mat") for g in guesses)


@pytest.mark.parametrize("design", ["input-norm", "residual", "ffn-only"])
def test_text_generation(design: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    write = pipeline("text-generation", model=saved(SublayerForCausalLM, design, tokenizer, tmp_path), device="cpu")
    texts = ["the cat sat", "a dog ran far to see the"]
    together = write(texts, max_new_tokens=5, do_sample=False, batch_size=2)
    alone = [write(text, max_new_tokens=5, do_sample=False) for text in texts]
    assert [t[0]["generated_text"] for t in together] == [t[0]["generated_text"] for t in alone]
    assert together[0][0]["generated_text"].startswith("the cat sat")


def test_text_classification(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    classify = pipeline(
        "text-classification", model=saved(SublayerForSequenceClassification, "paf", tokenizer, tmp_path), device="cpu"
    )
    assert {label["label"] for label in classify("the cat sat", top_k=2)} == {"LABEL_0", "LABEL_1"}
