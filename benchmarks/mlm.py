"""Masked language modelling at RoBERTa-base's width: ours beside transformers' Trainer and x-transformers.

    python benchmarks/mlm.py [--data docs] [--layers 12 4] [--rounds 3] [--levers] [--out benchmarks/mlm.json]

Ragged text: documents as they come, all models with 768 channels, 12 heads, FFN 3072 and a vocabulary of 50,265. The
peer is transformers' RobertaForMaskedLM with its Trainer and masking collator as its documentation shows them, 8
documents a step, padded to 512 or to the longest of the batch (and cut at 512); ours is what `sublayer train` runs, on
the same documents packed into as many rows of 512 as they fill, so that both take in as many tokens a step. What
counts is useful tokens a second: those that are no padding. A turn is several steps, since how much of a padded batch
is useful differs from batch to batch. Full rows: every row has 512 tokens of one text, the same batch for all.

`loss` is the largest relative difference of two loss curves of 50 AdamW steps on the same documents with the same
masks and weights, the peer's padded and ours packed. `--levers` measures what each means to save time is worth: ours
with it over ours without it.
"""

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peers
import torch
from pairs import CLOCKS, Row, apart, arguments, ratios, turns, write
from torch import Tensor, nn

from sublayer.model import documents, loss
from sublayer.train.dataset import IGNORED, PackedRows
from sublayer.train.tokenizer import Vocabulary

DOCUMENTS = 8  # of a step of the peer


def rates(seconds: Sequence[float], tokens: float) -> list[float]:
    """Seconds for 1,000 useful tokens."""
    return [1000 * each / tokens for each in seconds]


def ragged(
    given: argparse.Namespace, layers: int, ids: list[list[int]], tokenizer: Any, words: Vocabulary
) -> list[Row]:
    """Documents as they come, against both ways to pad."""
    steps = given.steps
    base = peers.roberta(layers, given.quick)
    mine = peers.ours(base)
    used = [row[: peers.LENGTH] for row in ids[: DOCUMENTS * steps]]
    useful = sum(map(len, used))
    longest = sum(max(map(len, used[i : i + DOCUMENTS])) for i in range(0, len(used), DOCUMENTS)) * DOCUMENTS
    a_step = max(1, round(useful / steps / peers.LENGTH))
    rows = PackedRows(peers.packed(ids), words, "mlm", peers.LENGTH, length=a_step * steps)
    with tempfile.TemporaryDirectory() as name:
        trainer = peers.our_trainer(mine, rows, a_step, steps, name, "mlm", given.threads)
        to_512, to_longest = (
            peers.documented_trainer(base, ids, tokenizer, DOCUMENTS, steps, name, to)
            for to in ("max_length", "longest")
        )
        forms = {"ours": trainer.train, "512": to_512.train, "longest": to_longest.train}
        spent = turns(forms, given.rounds, CLOCKS[given.clock])
    ours = rates(spent["ours"], a_step * peers.LENGTH * steps)
    check = {"loss": agreement(layers, given.quick, ids, words)}
    found = []
    for to, reach in (("512", 4.0), ("longest", 3.0)):
        theirs = rates(spent[to], useful)
        reach_here = reach if to == "512" or layers == 12 else 3.0
        found.append(
            Row(
                f"MLM, ragged text, {layers} layers", f"transformers' Trainer, padded to {to}", ratios(ours, theirs),
                "at least", reach_here, statistics.median(ours), statistics.median(theirs), "s for 1,000 useful tokens",
                check, f"{useful} useful tokens in {steps} steps of {DOCUMENTS} documents, cut at 512: "
                f"{useful / (len(used) * peers.LENGTH if to == '512' else longest):.0%} of the padded batches; "
                f"ours in {steps} steps of {a_step} rows",
            )
        )  # fmt: skip
    return found


def full(given: argparse.Namespace, layers: int, ids: list[list[int]], words: Vocabulary) -> list[Row]:
    """Rows without padding, the same for all."""
    base = peers.roberta(layers, given.quick)
    mine = peers.ours(base)
    batch = full_batch(ids, words, given.rows)
    config = base.config
    other = peers.XTransformer(
        config.vocab_size, layers, config.hidden_size, config.num_attention_heads, causal=False
    ).train()

    def ours() -> Tensor:
        found: Tensor = mine(**batch, loss_only=True).loss
        return found

    def theirs() -> Tensor:
        found: Tensor = base(**batch).loss
        return found

    steps = {
        "ours": stepping(mine, ours),
        "transformers": stepping(base, theirs),
        "x-transformers": stepping(other, lambda: other(batch["input_ids"], batch["labels"])),
    }
    spent = turns(steps, given.rounds, CLOCKS[given.clock])
    return [
        Row(
            f"MLM, full rows, {layers} layers", peer, ratios(spent["ours"], spent[peer]), "at least",
            1.45 if layers == 12 else 2.0, statistics.median(spent["ours"]), statistics.median(spent[peer]), "s a step",
            note="" if peer == "transformers" else "equal shapes; no biases in its attention; every position's logits",
        )
        for peer in ("transformers", "x-transformers")
    ]  # fmt: skip


def full_batch(ids: Sequence[list[int]], words: Vocabulary, rows: int) -> dict[str, Tensor]:
    """A batch ``[rows, 512]`` of running text, masked."""
    text = np.fromiter((i for row in ids for i in row), dtype=np.int32)[: rows * peers.LENGTH]
    one = PackedRows(peers.Tokens(text, np.zeros(1, dtype=np.int64)), words, "mlm", peers.LENGTH, length=rows)
    found = [one[i] for i in range(rows)]
    return {name: torch.from_numpy(np.stack([row[name] for row in found])) for name in ("input_ids", "labels")}


def stepping(model: nn.Module, forward: Any) -> Any:
    """A training step of a model: forward, backward, one fused AdamW pass."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        value: Tensor = forward()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def agreement(layers: int, small: bool, ids: list[list[int]], words: Vocabulary) -> float:
    """How far two curves of 50 steps part, on 4 documents of at most 32 tokens a step: packed here, padded there."""
    steps, each, most = (5, 2, 16) if small else (50, 4, 32)
    generator = np.random.Generator(np.random.Philox(3))
    padded, flat = [], []
    for step in range(steps):
        rows = [row[:most] for row in ids[step * each : (step + 1) * each]]
        chosen = [generator.random(len(row)) < 0.2 for row in rows]
        for mask in chosen:
            mask[0] = True
        shown = [np.where(mask, words.mask, row) for row, mask in zip(rows, chosen, strict=True)]
        wanted = [np.where(mask, row, IGNORED) for row, mask in zip(rows, chosen, strict=True)]
        pad = nn.utils.rnn.pad_sequence
        padded.append(
            {
                "input_ids": pad([torch.from_numpy(r).long() for r in shown], True, 0),
                "labels": pad([torch.from_numpy(r).long() for r in wanted], True, IGNORED),
                "attention_mask": pad([torch.ones(len(r), dtype=torch.long) for r in rows], True, 0),
            }
        )
        flat.append(
            {
                "input_ids": torch.from_numpy(np.concatenate(shown)).long()[None],
                "labels": torch.from_numpy(np.concatenate(wanted)).long()[None],
                "sequence_ids": torch.repeat_interleave(torch.tensor([len(r) for r in rows]))[None],
            }
        )
    base = peers.roberta(layers, small)
    mine = peers.ours(base)
    theirs = peers.curve(base, padded, lambda model, batch: model(**batch).loss)
    return apart(peers.curve(mine, flat, lambda model, batch: model(**batch, loss_only=True).loss), theirs)


@contextlib.contextmanager
def without(lever: str) -> Iterator[None]:
    """One means switched off."""
    before = documents.START, loss._CHUNKED
    if lever == "attention by blocks":
        documents.START = 10**15
    elif lever == "chunked cross entropy":
        loss._CHUNKED = None
    try:
        yield
    finally:
        documents.START, loss._CHUNKED = before


def levers(given: argparse.Namespace, layers: int, ids: list[list[int]], words: Vocabulary) -> list[Row]:
    """What each means is worth, on packed ragged text."""
    mine = peers.ours(peers.roberta(layers, given.quick))
    rows = PackedRows(peers.packed(ids), words, "mlm", peers.LENGTH, length=given.rows)
    whole = [rows[i] for i in range(given.rows)]
    batch = {name: torch.from_numpy(np.stack([row[name] for row in whole])) for name in whole[0]}
    optimizer = torch.optim.AdamW(mine.parameters(), lr=1e-5, fused=True)
    slow = torch.optim.AdamW(mine.parameters(), lr=1e-5, foreach=False)

    def step(lever: str = "") -> None:
        with without(lever):
            only = lever != "head at masked positions only"
            mine(**batch, loss_only=only).loss.backward()
        (slow if lever == "fused optimizer" else optimizer).step()
        mine.zero_grad()

    compiled = torch.compile(mine)

    def step_compiled() -> None:
        compiled(**batch, loss_only=True).loss.backward()
        optimizer.step()
        mine.zero_grad()

    names = ["head at masked positions only", "chunked cross entropy", "attention by blocks", "fused optimizer"]
    found = []
    for name in names:
        spent = turns({"with": step, "without": lambda name=name: step(name)}, given.rounds, CLOCKS[given.clock])
        found.append(
            Row(
                f"lever, {layers} layers: {name}", "without it", ratios(spent["with"], spent["without"]), "at least",
                None, statistics.median(spent["with"]), statistics.median(spent["without"]), "s a step",
            )
        )  # fmt: skip
    if given.compile:
        began = time.monotonic()
        step_compiled()
        first = time.monotonic() - began
        spent = turns({"with": step_compiled, "without": step}, given.rounds, CLOCKS[given.clock])
        found.append(
            Row(
                f"not used, {layers} layers: torch.compile", "without it", ratios(spent["with"], spent["without"]),
                "at least", None, statistics.median(spent["with"]), statistics.median(spent["without"]), "s a step",
                note=f"the first step, which compiles, took {first:.0f} s",
            )
        )  # fmt: skip
    return found


def main() -> None:
    """Measure and write the record."""
    parser = arguments(__doc__, __file__, rounds=3)
    parser.add_argument("--data", default="docs", help="as of sublayer train; of a WikiText file its paragraphs")
    parser.add_argument("--layers", type=int, nargs="+", default=[12, 4])
    parser.add_argument("--rows", type=int, default=4, help="rows of 512 tokens a step, where all rows are full")
    parser.add_argument("--steps", type=int, default=6, help="steps of a turn on ragged text")
    parser.add_argument("--levers", action="store_true", help="also what each means is worth, at the fewest layers")
    parser.add_argument("--compile", action="store_true", help="with --levers: torch.compile too; wants a C++ compiler")
    parser.add_argument("--only", choices=["ragged", "full", "levers"], help="one part")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.quick:
        given.layers, given.rows, given.steps = [2], 2, 2
    began = time.monotonic()
    ids, tokenizer, words = peers.tokenized(given.data, 1000 if given.quick else 8192, 200 if given.quick else 4000)
    # In an order that has nothing to do with the files'.
    ids = [ids[i] for i in np.random.Generator(np.random.Philox(1)).permutation(len(ids))]
    rows: list[Row] = []
    for layers in given.layers:
        if given.only in (None, "ragged"):
            rows += ragged(given, layers, ids, tokenizer, words)
        if given.only in (None, "full"):
            rows += full(given, layers, ids, words)
        if given.levers and layers == min(given.layers):
            rows += levers(given, layers, ids, words)
    write(
        "mlm", rows, given, data=Path(given.data).name, documents=len(ids),
        tokens_a_document=round(statistics.mean(map(len, ids)), 1), seed=0, seconds=round(time.monotonic() - began),
    )  # fmt: skip


if __name__ == "__main__":
    main()
