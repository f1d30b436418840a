"""Models and trainings to compare with: transformers as its documentation shows, x-transformers, and a plain GPT."""

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    DataCollatorForLanguageModeling,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaConfig,
    RobertaForMaskedLM,
    Trainer,
    TrainingArguments,
)

import sublayer as sl
from sublayer.train import TrainSpec
from sublayer.train.cache import Tokens
from sublayer.train.dataset import PackedRows
from sublayer.train.documents import Document, open_source
from sublayer.train.tokenizer import Vocabulary, load, train, vocabulary
from sublayer.train.trainer import GuardedTrainer

Batch = dict[str, Tensor]
LENGTH = 512  # the longest row of the peers, in tokens


# -- text ------------------------------------------------------------------------------------------------------------


def texts(data: str) -> Iterator[str]:
    """The documents of a `sublayer train --data`; of a WikiText file its paragraphs, as its data set has them."""
    path = Path(data)
    if path.suffix == ".txt":
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.strip() and not line.startswith(" ="):
                yield line.strip()
    else:
        for document in open_source(data).documents():
            yield document.text


def tokenized(data: str, vocab_size: int, most: int) -> tuple[list[list[int]], Any, Vocabulary]:
    """Documents as tokens, their tokenizer (byte-level BPE, trained on them) and its special ids."""
    found = list(texts(data))[:most]
    with tempfile.TemporaryDirectory() as name:
        train((Document(str(i), text) for i, text in enumerate(found)), vocab_size, Path(name))
        tokenizer = load(name)
    words = vocabulary(tokenizer, "mlm")
    tokenizer.model_max_length = LENGTH
    ids = [[*tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], words.end] for text in found]
    return ids, tokenizer, words


def packed(ids: Sequence[list[int]]) -> Tokens:
    """Documents laid end to end."""
    starts = np.cumsum([0, *(len(row) for row in ids)])[:-1]
    return Tokens(np.fromiter((i for row in ids for i in row), dtype=np.int32), starts.astype(np.int64))


# -- models ----------------------------------------------------------------------------------------------------------


def roberta(layers: int, small: bool) -> RobertaForMaskedLM:
    """RoBERTa-base's shapes (Liu et al. 2019) with so many layers and no dropout."""
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 256} if small else {}
    torch.manual_seed(0)
    # The padding id is the tokenizer's: RoBERTa counts its positions by it, and WikiText spells <unk>, which has id 1.
    return RobertaForMaskedLM(
        RobertaConfig(
            vocab_size=2000 if small else 50265, num_hidden_layers=layers, max_position_embeddings=LENGTH + 2,
            type_vocab_size=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=0, **sizes,
        )
    )  # fmt: skip


def gpt2(small: bool) -> GPT2LMHeadModel:
    """GPT-2 small's shapes (Radford et al. 2019) without dropout."""
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 2000} if small else {}
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **sizes))


def ours(peer: Any) -> Any:
    """The same model, with the same weights, as one of this package."""
    with tempfile.TemporaryDirectory() as name:
        peer.save_pretrained(name)
        return sl.load(name).train()


class XTransformer(nn.Module):
    """x-transformers' encoder or decoder of the same shapes; its own defaults leave out the biases of attention."""

    def __init__(self, vocab: int, depth: int, dim: int, heads: int, causal: bool) -> None:
        super().__init__()
        from x_transformers import Decoder, Encoder, TransformerWrapper

        layers = (Decoder if causal else Encoder)(
            dim=dim, depth=depth, heads=heads, attn_dim_head=dim // heads, attn_flash=True, pre_norm=causal
        )
        self.inner = TransformerWrapper(num_tokens=vocab, max_seq_len=LENGTH, attn_layers=layers, tie_embedding=True)
        self.causal = causal

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """The loss."""
        logits = self.inner(input_ids)  # [batch, seq, vocab]
        if self.causal:
            logits, labels = logits[:, :-1], labels[:, 1:]
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)


class PlainGPT(nn.Module):
    """GPT-2 as one would write it from scratch: queries, keys and values in one product, torch's attention, all logits.

    Args:
        peer: whose weights it takes.
    """

    def __init__(self, peer: GPT2LMHeadModel) -> None:
        super().__init__()
        self.peer = peer
        self.heads = peer.config.n_head

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """The loss of ``[batch, seq]`` ids."""
        body = self.peer.transformer
        batch, seq = input_ids.shape
        x = body.wte(input_ids) + body.wpe.weight[:seq]
        for block in body.h:
            split = block.attn.c_attn(block.ln_1(x)).view(batch, seq, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(split[0], split[1], split[2], is_causal=True)
            x = x + block.attn.c_proj(mixed.transpose(1, 2).flatten(2))
            x = x + block.mlp.c_proj(F.gelu(block.mlp.c_fc(block.ln_2(x)), approximate="tanh"))
        logits = body.ln_f(x) @ body.wte.weight.T
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


# -- trainings -------------------------------------------------------------------------------------------------------


def documented_trainer(
    model: Any, ids: Sequence[list[int]], tokenizer: Any, rows: int, steps: int, folder: str, to: str
) -> Trainer:
    """Masked language modelling as transformers' documentation shows it: truncated documents, the collator that masks
    and pads, the Trainer with its defaults.

    Args:
        rows: documents a step.
        to: ``max_length`` pads each to `LENGTH`, ``longest`` to the longest of the batch.
    """
    data = [{"input_ids": row[:LENGTH]} for row in ids[: rows * steps]]
    if to == "max_length":
        data = [
            dict(tokenizer.pad(row, padding="max_length", max_length=LENGTH, return_attention_mask=True))
            for row in data
        ]
    return Trainer(
        model=model,
        args=plain_arguments(folder, rows, steps),
        train_dataset=data,
        data_collator=DataCollatorForLanguageModeling(tokenizer=tokenizer, mlm=True, mlm_probability=0.15, seed=0),
    )


def plain_arguments(folder: str, rows: int, steps: int) -> TrainingArguments:
    """The Trainer's defaults, without logs, saving and reports."""
    return TrainingArguments(
        output_dir=folder, max_steps=steps, per_device_train_batch_size=rows, learning_rate=1e-4, report_to="none",
        save_strategy="no", logging_strategy="no", eval_strategy="no", disable_tqdm=True, use_cpu=True, seed=0,
    )  # fmt: skip


def our_trainer(
    model: Any, rows: PackedRows, batch: int, steps: int, folder: str, objective: str, threads: int
) -> GuardedTrainer:
    """What `sublayer train` trains with."""
    spec = TrainSpec(
        design="post-norm", objective=objective, seq=LENGTH, batch=batch, steps=steps, lr=1e-4, weight_decay=0.0,
        schedule="linear", warmup=0.0, threads=threads, device="cpu",
    )  # fmt: skip
    return GuardedTrainer(model, spec, folder, rows, None, [], objective == "clm")


def curve(model: nn.Module, batches: Sequence[dict[str, Any]], loss: Callable[..., Tensor]) -> list[float]:
    """Losses of one AdamW step on each batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
    found = []
    for batch in batches:
        value = loss(model, batch)
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        found.append(value.item())
        assert math.isfinite(found[-1])
    return found
