"""Rows of packed text as a function of their index.

Row `v` of a training set depends only on (`data_seed`, `v`): which text it holds, in which order epochs go through the
text, and which of its tokens are masked. So every design sees the same masked batch at step k, whatever it drew from
the global random numbers, and a run that resumes at step k goes on with the rows it would have read.

Documents are laid end to end, each closed by the end token, and cut into rows of `seq` tokens; the last, incomplete row
is left out. `sequence_ids` says which document of its row a token belongs to, and the model lets no token see another
document. Random numbers come from Philox (Salmon et al. 2011), a counter-based generator: its state is computed from
the key and the counter, not from the numbers drawn before.
"""

from __future__ import annotations

from typing import final

import numpy as np
from numpy.typing import NDArray

from .cache import Tokens
from .spec import Objective
from .tokenizer import Vocabulary

Row = dict[str, NDArray[np.int64]]
IGNORED = -100  # label of a token that is not predicted, as in torch's cross entropy

# Independent streams of random numbers under one data seed.
_ORDER, _MASK, _HELD_OUT_MASK = 1, 2, 3


def stream(seed: int, kind: int, index: int) -> np.random.Generator:
    """The random numbers of (seed, kind, index), independent of every other such triple."""
    return np.random.Generator(np.random.Philox(key=[seed, kind], counter=[0, 0, 0, index]))


@final
class PackedRows:
    """A map-style data set of packed rows.

    Args:
        tokens: the documents of one split.
        vocabulary: special ids.
        objective: `clm` (the model shifts the labels) or `mlm`.
        seq: tokens a row.
        length: rows of the whole training, over all epochs; None for held-out text: one pass, in the order of the
            text, with masks that do not depend on `data_seed`.
        data_seed: of order and masks.
        mask_rate: share of the tokens that `mlm` predicts.
        limit: of held-out text, at most this many rows, evenly spread over it.

    `self[v]` is a dict of int64 arrays of shape [seq]: `input_ids`, `labels`, `sequence_ids`.
    """

    def __init__(
        self,
        tokens: Tokens,
        vocabulary: Vocabulary,
        objective: Objective,
        seq: int,
        length: int | None = None,
        data_seed: int = 0,
        mask_rate: float = 0.15,
        limit: int | None = None,
    ) -> None:
        self.rows = len(tokens.ids) // seq  # of text; one epoch
        self._tokens, self._vocabulary, self._objective, self._seq = tokens, vocabulary, objective, seq
        self._shuffled, self._seed, self._rate = length is not None, data_seed, mask_rate
        self._length = length if length is not None else min(self.rows, limit or self.rows)
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)
        special = np.zeros(vocabulary.size, dtype=bool)
        special[[i for i in vocabulary.special if i < vocabulary.size]] = True
        self._special = special
        self._ordinary = np.flatnonzero(~special)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < self._length:
            raise IndexError(f"row {index} of {self._length}")
        begin = self.text_row(index) * self._seq
        ids = self._tokens.ids[begin : begin + self._seq].astype(np.int64)  # [seq]
        # starts are sorted: the number of documents that begin at or before a token names its document
        documents = np.searchsorted(self._tokens.starts, np.arange(begin, begin + self._seq), side="right")
        sequence = documents - documents[0]  # [seq], 0 for the first document of the row
        if self._objective == "clm":
            labels = ids.copy()
            labels[0] = IGNORED
            labels[1:][sequence[1:] != sequence[:-1]] = IGNORED  # else it is predicted from another document
        else:
            ids, labels = self._masked(index, ids)
        return {"input_ids": ids, "labels": labels, "sequence_ids": sequence.astype(np.int64)}

    def text_row(self, index: int) -> int:
        """Which row of the text row `index` of the training reads; each epoch has an order of its own."""
        if not self._shuffled:
            return index * self.rows // self._length
        epoch, place = divmod(index, self.rows)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, stream(self._seed, _ORDER, epoch).permutation(self.rows)
        return int(self._order[place])

    def _masked(self, index: int, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Inputs and labels of masked language modelling (Devlin et al. 2019): of the tokens to be predicted 80% become
        the mask, 10% another token and 10% stay. Special tokens are never among them."""
        draws = stream(self._seed, _MASK, index) if self._shuffled else stream(0, _HELD_OUT_MASK, index)
        which, how = draws.random((2, self._seq))  # [seq] each
        other = self._ordinary[draws.integers(len(self._ordinary), size=self._seq)]
        which[self._special[ids]] = 2.0
        # a row without any target would have no loss, so the nearest candidate is always taken
        chosen = (which < self._rate) | ((which == which.min()) & (which < 1.0))
        labels = np.where(chosen, ids, IGNORED)
        mask = self._vocabulary.mask
        assert mask is not None
        hidden = np.where(how < 0.8, mask, np.where(how < 0.9, other, ids))
        return np.where(chosen, hidden, ids), labels
