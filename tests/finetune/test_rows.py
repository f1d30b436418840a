"""Rows: which, in which order, how framed, cut and padded."""

from pathlib import Path

import numpy as np
import pytest

from sublayer.finetune import FinetuneError, read, task_of
from sublayer.finetune.data import Split
from sublayer.finetune.rows import Encoded, Padded, TrainingRows, encode, subset
from sublayer.hf.convert import tokenizer_of


def encoded(lengths: list[int]) -> Encoded:
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return Encoded(np.arange(starts[-1], dtype=np.int32), None, starts, np.zeros(len(lengths), np.int64), 0)


LENGTHS = np.random.default_rng(0).integers(3, 40, size=29).tolist()


def order(rows: TrainingRows) -> list[int]:
    return [rows.task_row(i) for i in range(len(rows))]


@pytest.mark.parametrize("group", [1, 3])
def test_the_order_is_a_function_of_seed_and_index(group: int) -> None:
    def make(seed: int = 0) -> TrainingRows:
        return TrainingRows(encoded(LENGTHS), seed, batch=4, steps=21, group=group)

    whole = order(make())
    assert len(whole) == 84
    other = make()
    assert [other.task_row(i) for i in (83, 7, 60, 0, 7)] == [whole[i] for i in (83, 7, 60, 0, 7)]
    assert order(make(1)) != whole
    shorter = TrainingRows(encoded(LENGTHS), 0, batch=4, steps=18, group=group)
    assert order(shorter)[:72] == whole[:72]


def test_an_epoch_reads_every_row_once() -> None:
    whole = order(TrainingRows(encoded(LENGTHS), 0, batch=4, steps=21))
    assert sorted(whole[:29]) == sorted(whole[29:58]) == list(range(29))
    assert whole[:29] != whole[29:58]


def test_grouping_saves_padding_and_changes_no_row() -> None:
    plain, grouped = (TrainingRows(encoded(LENGTHS), 0, 4, 21, group) for group in (1, 7))
    assert sorted(order(plain)[:28]) == sorted(order(grouped)[:28]), "the same rows in each chunk"

    def padded(rows: TrainingRows) -> int:
        lengths = np.array(LENGTHS)[order(rows)].reshape(-1, 4)
        return int((lengths.max(axis=1) * 4).sum())

    assert padded(grouped) < 0.9 * padded(plain)


def test_a_row_out_of_range() -> None:
    rows = TrainingRows(encoded(LENGTHS), 0, 4, 2)
    with pytest.raises(IndexError, match="row 8 of 8"):
        rows[8]


def test_a_pair_is_framed_typed_and_padded(bert: Path, glue: Path) -> None:
    tokenizer = tokenizer_of(bert)
    data = read(task_of("rte"), str(glue))
    found = encode(tokenizer, data.train, 48, types=2, regression=False)
    row = found.row(3)
    words = tokenizer.convert_ids_to_tokens(row["input_ids"])
    a, b = data.train.texts[3]
    assert words == ["[CLS]", *a.split(), "[SEP]", *b.split(), "[SEP]"]
    assert row["token_type_ids"].tolist() == [0] * (2 + len(a.split())) + [1] * (1 + len(b.split()))
    assert row["labels"] == data.train.labels[3]
    batch = Padded(7)([found.row(i) for i in range(4)])
    longest = int(found.lengths[:4].max())
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "input_ids": (4, longest), "token_type_ids": (4, longest), "attention_mask": (4, longest), "labels": (4,),
    }  # fmt: skip
    assert batch["attention_mask"].sum(dim=1).tolist() == found.lengths[:4].tolist()
    assert (batch["input_ids"][batch["attention_mask"] == 0] == 7).all()


def test_token_types_only_where_the_model_has_them(bert: Path, glue: Path) -> None:
    split = read(task_of("rte"), str(glue)).train
    tokenizer = tokenizer_of(bert)
    assert encode(tokenizer, split, 48, types=0, regression=False).types is None
    assert encode(tokenizer, split, 48, types=1, regression=False).types is None, "the table has no second row"
    assert encode(tokenizer, split, 48, types=2, regression=False).types is not None


def test_what_is_cut_is_counted(bert: Path) -> None:
    split = Split([0, 1, 2], [("good " * 9, "bad"), ("good", "bad"), ("good " * 4, "bad " * 9)], [0, 1, 0])
    found = encode(tokenizer_of(bert), split, 9, types=2, regression=False)
    assert found.truncated == 2
    assert found.lengths.tolist() == [9, 5, 9]
    assert found.row(0)["input_ids"].tolist()[-2] == found.row(1)["input_ids"].tolist()[-2], "the short text is whole"
    with pytest.raises(FinetuneError, match=r"max_length \(4\) must leave room for text beside 3 special tokens"):
        encode(tokenizer_of(bert), split, 4, types=2, regression=False)


def test_a_special_token_that_a_text_spells_out_is_text(bert: Path) -> None:
    tokenizer = tokenizer_of(bert)
    found = encode(tokenizer, Split([0], [("good [SEP] bad",)], [0]), 20, types=0, regression=False)
    assert found.row(0)["input_ids"].tolist().count(tokenizer.sep_token_id) == 1


def test_numbers_reach_the_model_as_float32(bert: Path) -> None:
    found = encode(tokenizer_of(bert), Split([0], [("good", "bad")], [3.8]), 20, types=0, regression=True)
    assert found.labels[0] == 3.8, "scored as the file has it"
    assert str(Padded(0)([found.row(0)])["labels"].dtype) == "torch.float32"


def test_some_rows_are_drawn_once_for_all_seeds() -> None:
    chosen = subset(100, 10)
    assert chosen == subset(100, 10)
    assert chosen is not None
    assert len(set(chosen)) == 10
    assert chosen == sorted(chosen)
    assert set(chosen) < set(subset(100, 20) or [])
    assert subset(100, 100) is subset(100, None) is None
