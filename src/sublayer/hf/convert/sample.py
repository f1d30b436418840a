"""The tokens on which a conversion is measured."""

import hashlib
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sublayer.hf.convert.errors import ConvertError
from sublayer.hf.errors import CheckpointError
from sublayer.model import SublayerPreTrainedModel

TOKENS, ROW = 1024, 128  # tokens of a sample, at most, and of a row of it
PREDICTED = 7  # a masked language model predicts one token in seven


@dataclass(frozen=True)
class Sample:
    """Token ids with labels.

    Attributes:
        batches: one row each, so that nothing is padded: ``input_ids [1, seq]`` and ``labels``.
        source: where they come from, for people.
        sha256: hash of ids and labels.
        notice: what to keep in mind when reading the figures; empty if nothing.
    """

    batches: tuple[dict[str, Tensor], ...]
    source: str
    notice: str = ""
    sha256: str = field(default="")

    def __post_init__(self) -> None:
        total = hashlib.sha256()
        for batch in self.batches:
            for name in sorted(batch):
                total.update(name.encode() + batch[name].numpy().tobytes())
        object.__setattr__(self, "sha256", total.hexdigest())


def own_text() -> str:
    """A short English text that comes with the package."""
    return resources.files("sublayer.hf.convert").joinpath("sample.txt").read_text(encoding="utf-8")


def sample(model: SublayerPreTrainedModel, tokenizer: Any = None, text: str | None = None, seed: int = 0) -> Sample:
    """Up to :data:`TOKENS` tokens for a model, with labels if it is a language model.

    Args:
        tokenizer: a Hugging Face tokenizer that belongs to the model; without one the ids are drawn at random.
        text: paragraphs, separated by blank lines. Default: :func:`own_text`.
        seed: of the random ids.

    Raises:
        ConvertError: the text holds no token, or the tokenizer knows ids that the model does not.
    """
    config = model.config
    row = ROW
    if config.position_embedding == "learned":
        row = min(row, config.max_position_embeddings)
    if tokenizer is None:
        if text is not None:
            raise ConvertError(
                "text is turned into tokens by the checkpoint's own tokenizer, and it has none: leave the text out, or "
                "put tokenizer.json beside the weights"
            )
        generator = torch.Generator().manual_seed(seed)
        low = min(4, config.vocab_size - 1)
        rows = [torch.randint(low, config.vocab_size, (row,), generator=generator).tolist() for _ in range(4)]
        notice = "there is no tokenizer beside the weights: the ids are random, and the loss says nothing about text"
        return Sample(tuple(_batch(model, ids, None) for ids in rows), f"random ids, seed {seed}", notice)
    source = "the text that comes with sublayer" if text is None else "the text that was given"
    rows = []
    for paragraph in (p for p in (text or own_text()).split("\n\n") if p.strip()):
        ids = tokenizer(" ".join(paragraph.split()), truncation=True, max_length=row)["input_ids"]
        if len(ids) > 1 and sum(map(len, rows)) + len(ids) <= TOKENS:
            rows.append(list(ids))
    if not rows:
        raise ConvertError("a sample needs at least two tokens in a paragraph, and the text has none: give a text")
    largest = max(map(max, rows))
    if largest >= config.vocab_size:
        raise ConvertError(
            f"a tokenizer's ids lie below the model's vocab_size ({config.vocab_size}), got {largest}: the tokenizer "
            "beside the weights is not this model's"
        )
    return Sample(tuple(_batch(model, ids, tokenizer) for ids in rows), source)


def _batch(model: SublayerPreTrainedModel, row: list[int], tokenizer: Any) -> dict[str, Tensor]:
    ids = torch.tensor([row])
    if not type(model).__name__.endswith("LM"):
        return {"input_ids": ids}
    if model.config.left_to_right:
        return {"input_ids": ids, "labels": ids.clone()}
    special = set(tokenizer.all_special_ids) if tokenizer is not None else set()
    chosen = torch.zeros_like(ids, dtype=torch.bool)
    ordinary = [i for i, token in enumerate(row) if token not in special]
    chosen[0, ordinary[PREDICTED // 2 :: PREDICTED] or ordinary[:1]] = True
    mask = getattr(tokenizer, "mask_token_id", None)
    read = ids.masked_fill(chosen, mask) if mask is not None else ids
    return {"input_ids": read, "labels": ids.masked_fill(~chosen, -100)}


def tokenizer_of(folder: str | Path) -> Any:
    """The fast tokenizer in a checkpoint folder, or None where there is none. No code of the folder is run.

    Raises:
        CheckpointError: its file cannot be read.
    """
    path = Path(folder)
    if not (path / "tokenizer.json").is_file():
        return None
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        return AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    except Exception:  # the library raises many kinds for a class that it does not know; the file itself says enough
        pass
    try:
        return PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"))
    except Exception as error:  # the reader of the file raises plain exceptions
        raise CheckpointError(
            f"{path / 'tokenizer.json'} cannot be read ({' '.join(str(error).split())[:200]}): get the file again"
        ) from error
