"""Tiny checkpoints with their tokenizers, and small folders of GLUE with the oddities of the official ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertForMaskedLM, BertModel, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from sublayer.finetune import FinetuneSpec
from tests.finetune.files import WORDS, write_glue


@pytest.fixture(scope="session")
def glue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All nine tasks."""
    folder = tmp_path_factory.mktemp("glue")
    write_glue(folder)
    return folder


def word_tokenizer(folder: Path, framed: bool = True) -> None:
    """One token a word, with BERT's frame or none."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = {token: i for i, token in enumerate([*special, *WORDS, ".", "?", '"', "'", "a", "b", "[", "]"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if framed:
        tokenizer.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=48,
    ).save_pretrained(folder)  # fmt: skip


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT with a pooler."""
    folder = tmp_path_factory.mktemp("bert") / "tiny-bert"
    torch.manual_seed(0)
    BertModel(bert_config()).save_pretrained(folder)
    word_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def masked_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT without a pooler."""
    folder = tmp_path_factory.mktemp("masked-bert")
    torch.manual_seed(0)
    BertForMaskedLM(bert_config()).save_pretrained(folder)
    word_tokenizer(folder)
    return folder


def bert_config() -> BertConfig:
    return BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GPT-2 whose tokenizer adds no special tokens and has none to pad with."""
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=300, n_positions=64, n_embd=32, n_layer=2, n_head=2, bos_token_id=299, eos_token_id=299
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", bos_token="<|end|>").save_pretrained(
        folder
    )
    return folder


@pytest.fixture(scope="session")
def spec(bert: Path, glue: Path) -> Callable[..., FinetuneSpec]:
    """A run of twelve steps on CoLA, with some settings changed."""

    def make(**changes: Any) -> FinetuneSpec:
        settings: dict[str, Any] = {
            "checkpoint": str(bert), "task": "cola", "data": str(glue), "steps": 12, "batch": 8, "lr": 1e-2,
            "threads": 1, "device": "cpu", "log_every": 1, "eval_every": 4, "save_model": False, "save_steps": 0,
        }  # fmt: skip
        return FinetuneSpec(**{**settings, **changes})

    return make
