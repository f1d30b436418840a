"""Rows of tokens with a label, as a function of their index.

Row `v` of the training depends only on (seed, v): which row of the task it is, in which order the epochs go through the
task, and which rows share a batch. So a run that resumes at step k goes on with the rows it would have read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sublayer.train.dataset import Row, stream

from .data import Split
from .errors import FinetuneError

# Independent streams of random numbers under one seed; 1 to 3 are those of packed text.
_ORDER, _BATCHES, _SUBSET = 11, 12, 13
_CHUNK = 1000  # texts encoded at once


@dataclass(frozen=True)
class Encoded:
    """The rows of a split as tokens.

    Attributes:
        ids: of all rows, one after another, shape [tokens].
        types: of each token the text that it belongs to, shape [tokens]; None where the model reads none.
        starts: where each row begins, and where the last one ends, shape [rows + 1].
        labels: classes (int64) or numbers (float64), shape [rows].
        truncated: rows that were cut to the longest length allowed.
    """

    ids: NDArray[np.int32]
    types: NDArray[np.int8] | None
    starts: NDArray[np.int64]
    labels: NDArray[Any]
    truncated: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row."""
        return np.diff(self.starts)

    def row(self, index: int) -> Row:
        """input_ids and token_type_ids, shape [tokens of the row], and the label."""
        part = slice(self.starts[index], self.starts[index + 1])
        found: Row = {"input_ids": self.ids[part].astype(np.int64), "labels": self.labels[index]}
        if self.types is not None:
            found["token_type_ids"] = self.types[part].astype(np.int64)
        return found


def encode(tokenizer: Any, split: Split, max_length: int, types: int, regression: bool) -> Encoded:
    """Tokens of a split.

    Args:
        tokenizer: a fast one.
        split: texts and labels.
        max_length: tokens of a row, special ones included; of two texts the longer one is cut first.
        types: rows of the model's table of token types; the tokenizer's types are kept where they fit into it.
        regression: whether labels are numbers.

    Raises:
        FinetuneError: the special tokens leave no room for text.
    """
    pairs = len(split.texts[0]) == 2
    special = tokenizer.num_special_tokens_to_add(pair=pairs)
    if max_length <= special + pairs:
        raise FinetuneError(
            f"max_length ({max_length}) must leave room for text beside {special} special tokens: give at least "
            f"{special + 1 + pairs}"
        )
    ids: list[list[int]] = []
    kinds: list[list[int]] = []
    truncated = 0
    for begin in range(0, len(split), _CHUNK):
        columns = [list(column) for column in zip(*split.texts[begin : begin + _CHUNK], strict=True)]
        found = tokenizer(
            *columns,
            truncation="longest_first",
            max_length=max_length,
            padding=False,
            return_token_type_ids=types > 0,
            return_attention_mask=False,
            split_special_tokens=True,  # a text that spells a special token out does not contain it
        )
        ids += found["input_ids"]
        kinds += found["token_type_ids"] if types > 0 else []
        truncated += sum(bool(one.overflowing) for one in found.encodings)
    starts = np.concatenate([[0], np.cumsum([len(row) for row in ids])]).astype(np.int64)
    flat = np.fromiter((token for row in ids for token in row), dtype=np.int32, count=int(starts[-1]))
    kind = np.fromiter((k for row in kinds for k in row), dtype=np.int8) if types > 0 else None
    if kind is not None and kind.max(initial=0) >= types:
        kind = None  # the model knows fewer types than the tokenizer
    return Encoded(flat, kind, starts, np.array(split.labels, np.float64 if regression else np.int64), truncated)


def subset(rows: int, wanted: int | None) -> list[int] | None:
    """Which rows a run learns from that learns from `wanted` only, in order; None for all. The same for every seed."""
    if wanted is None or wanted >= rows:
        return None
    return sorted(int(i) for i in stream(0, _SUBSET, 0).permutation(rows)[:wanted])


@final
class TrainingRows:
    """A map-style data set over all epochs.

    Args:
        encoded: the rows of the task.
        seed: of the order.
        batch: rows a step.
        steps: of the whole training.
        group: batches whose rows are sorted by length before they are cut into batches; 1 sorts nothing.
    """

    def __init__(self, encoded: Encoded, seed: int, batch: int, steps: int, group: int = 1) -> None:
        self._encoded, self._seed, self._batch, self._group = encoded, seed, batch, group
        self._length = batch * steps
        self._lengths = encoded.lengths
        self._orders: dict[int, NDArray[np.int64]] = {}
        self._chunk, self._rows = -1, np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Row:
        return self._encoded.row(self.task_row(index))

    def task_row(self, index: int) -> int:
        """Which row of the task row `index` of the training is."""
        if not 0 <= index < self._length:
            raise IndexError(f"row {index} of {self._length}")
        if self._group == 1:
            return self._shuffled(index)
        size = self._batch * self._group
        chunk, place = divmod(index, size)
        if chunk != self._chunk:
            begin = chunk * size
            rows = np.array([self._shuffled(i) for i in range(begin, min(begin + size, self._length))])
            rows = rows[np.argsort(self._lengths[rows], kind="stable")].reshape(-1, self._batch)
            order = stream(self._seed, _BATCHES, chunk).permutation(len(rows))
            self._chunk, self._rows = chunk, rows[order].reshape(-1)
        return int(self._rows[place])

    def _shuffled(self, index: int) -> int:
        """Each epoch has an order of its own, and the next one begins where it ends, also within a batch."""
        epoch, place = divmod(index, len(self._encoded))
        if epoch not in self._orders:
            self._orders = {e: order for e, order in self._orders.items() if e >= epoch - 1}
            self._orders[epoch] = stream(self._seed, _ORDER, epoch).permutation(len(self._encoded))
        return int(self._orders[epoch][place])


@final
class Padded:
    """Makes a batch of rows: padded on the right to the longest, with an attention mask.

    Args:
        pad: the id that fills; it is masked.
    """

    def __init__(self, pad: int) -> None:
        self._pad = pad

    def __call__(self, rows: list[Row]) -> dict[str, Tensor]:
        """input_ids, attention_mask and token_type_ids `[batch, seq]`, labels `[batch]`."""
        longest = max(len(row["input_ids"]) for row in rows)
        batch: dict[str, Any] = {}
        for name, fill in (("input_ids", self._pad), ("token_type_ids", 0)):
            if name in rows[0]:
                batch[name] = np.full((len(rows), longest), fill, dtype=np.int64)
                for i, row in enumerate(rows):
                    batch[name][i, : len(row[name])] = row[name]
        lengths = np.array([len(row["input_ids"]) for row in rows])
        batch["attention_mask"] = (np.arange(longest) < lengths[:, None]).astype(np.int64)
        labels = np.array([row["labels"] for row in rows])
        batch["labels"] = labels.astype(np.float32) if labels.dtype.kind == "f" else labels
        return {name: torch.from_numpy(value) for name, value in batch.items()}
