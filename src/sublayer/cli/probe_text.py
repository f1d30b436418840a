"""Text for a probe: documents as rows of tokens by the checkpoint's own tokenizer, or random ids where it has none."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sublayer.probe.errors import ProbeError

FILES = ("tokenizer*.json", "vocab*", "*.model", "spiece*", "merges.txt")
MASKED = 0.15  # of the tokens, where a masked language model is to have a target


@dataclass(frozen=True)
class Text:
    """Batches and where they come from."""

    batches: list[dict[str, Tensor]]
    said: dict[str, Any]
    notes: tuple[str, ...]


def text_for(
    folder: str | None,
    module: nn.Module,
    spec: str | None,
    tokens: int,
    seq: int,
    batch: int,
    seed: int,
    targets: bool,
) -> Text:
    """Rows of at most ``seq`` tokens, about ``tokens`` in all, ``batch`` rows in a batch.

    A row is the beginning of one document; documents come in the order of their digests. Where ``targets`` are wanted,
    labels are the ids themselves, or, for a tokenizer with a mask token, 15% of them behind it.
    """
    tokenizer = _tokenizer(folder)
    if tokenizer is None:
        return _random(module, tokens, seq, batch, seed, targets)
    from sublayer.train.documents import open_source

    source = open_source(spec or "docs")
    ordered = sorted(source.documents(), key=lambda d: d.digest())
    rows: list[list[int]] = []
    count = 0
    for document in ordered:
        ids = tokenizer(document.text[: 16 * seq], truncation=True, max_length=seq)["input_ids"]
        if len(ids) < 2:
            continue
        rows.append(ids)
        count += len(ids)
        if count >= tokens:
            break
    if not rows:
        raise ProbeError(f"data {spec or 'docs'!r} gave no row of two tokens or more; give longer text")
    pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    masked = targets and tokenizer.mask_token_id is not None
    generator = torch.Generator().manual_seed(seed)
    special = torch.tensor(sorted(tokenizer.all_special_ids), dtype=torch.int64)
    batches = []
    for k in range(0, len(rows), batch):
        batches.append(_padded(rows[k : k + batch], pad))
        if targets:
            _with_labels(batches[-1], tokenizer.mask_token_id if masked else None, special, generator)
    said = {
        "spec": spec or "docs",
        "sha256": source.fingerprint(),
        "tokenizer": folder,
        "documents": len(rows),
        "masked": MASKED if masked else 0.0,
    }
    return Text(batches, said | _hashed(batches, seq), ())


def _tokenizer(folder: str | None) -> Any:
    if folder is None:
        return None
    if Path(folder).is_dir() and not any(any(Path(folder).glob(files)) for files in FILES):
        return None  # from nothing, transformers makes a tokenizer that knows no word
    from transformers import AutoTokenizer
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (
        Exception
    ):  # a folder without a tokenizer raises whatever its files lead to; the caller says that ids are random
        return None
    finally:
        logging.set_verbosity(level)


def _padded(rows: list[list[int]], pad: int) -> dict[str, Tensor]:
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for k, row in enumerate(rows):
        ids[k, : len(row)] = torch.tensor(row)
        mask[k, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def _with_labels(batch: dict[str, Tensor], mask: int | None, special: Tensor, generator: torch.Generator) -> None:
    ids, real = batch["input_ids"], batch["attention_mask"].bool()
    chosen = real
    if mask is not None:
        drawn = torch.rand(ids.shape, generator=generator) < MASKED
        chosen = real & ~torch.isin(ids, special) & drawn
        if not bool(chosen.any()):
            chosen = real & ~torch.isin(ids, special)
    batch["labels"] = ids.masked_fill(~chosen, -100)
    if mask is not None:
        batch["input_ids"] = ids.masked_fill(chosen, mask)


def _random(module: nn.Module, tokens: int, seq: int, batch: int, seed: int, targets: bool) -> Text:
    table = next((m for m in module.modules() if isinstance(m, nn.Embedding)), None)
    sizes = [getattr(getattr(module, "config", None), "vocab_size", None), getattr(table, "num_embeddings", None)]
    known = next((n for n in sizes if isinstance(n, int) and n > 1), None)
    if known is None:
        raise ProbeError("random ids need a vocabulary: the model has no embedding table that says how large it is; "
                         "probe it from Python, with batches")  # fmt: skip
    generator = torch.Generator().manual_seed(seed)

    def made() -> Iterator[dict[str, Tensor]]:
        left = max(1, -(-tokens // seq))
        while left > 0:
            rows = min(batch, left)
            ids = torch.randint(min(3, known - 1), known, (rows, seq), generator=generator)
            yield {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | ({"labels": ids} if targets else {})
            left -= rows

    batches = list(made())
    said = {
        "spec": "random ids",
        "sha256": None,
        "tokenizer": None,
        "documents": sum(len(b["input_ids"]) for b in batches),
    }
    note = "the ids are random, since no tokenizer was found: no text was read"
    return Text(batches, said | {"masked": 0.0} | _hashed(batches, seq), (note,))


def _hashed(batches: list[dict[str, Tensor]], seq: int) -> dict[str, Any]:
    total = hashlib.sha256()
    for one in batches:
        for name in sorted(one):
            total.update(name.encode() + b"\0" + one[name].numpy().tobytes())
    return {"seq": seq, "ids_sha256": total.hexdigest()}
