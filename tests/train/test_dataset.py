import numpy as np
import pytest
import torch

from sublayer.model import SublayerConfig, SublayerForCausalLM, SublayerForMaskedLM
from sublayer.train.cache import Tokens
from sublayer.train.dataset import IGNORED, PackedRows
from sublayer.train.tokenizer import Vocabulary
from sublayer.train.trainer import collate

WORDS = Vocabulary(size=50, special=(0, 1, 2, 3), end=3, mask=2, pad=0, bos=3)
SEQ = 16


def tokens_of(lengths):
    draw = np.random.default_rng(0)
    documents = [np.append(draw.integers(4, WORDS.size, n - 1), WORDS.end) for n in lengths]
    return Tokens(np.concatenate(documents).astype(np.uint16), np.cumsum([0, *lengths]))


TOKENS = tokens_of([5, 40, 3, 1, 7, 100, 2, 2, 60, 30, 11])


def rows(objective="mlm", length=200, **settings):
    return PackedRows(TOKENS, WORDS, objective, SEQ, length=length, **settings)


def same(a, b):
    return all(np.array_equal(a[key], b[key]) for key in ("input_ids", "labels", "sequence_ids"))


@pytest.mark.parametrize("objective", ["mlm", "clm"])
def test_a_row_depends_only_on_its_index_and_the_data_seed(objective):
    first = [rows(objective)[v] for v in range(200)]
    np.random.seed(5)  # noqa: NPY002 - the global stream must not matter
    backwards = rows(objective, length=1000)
    assert all(same(backwards[v], first[v]) for v in reversed(range(200)))
    other = rows(objective, data_seed=1)
    assert sum(same(other[v], first[v]) for v in range(200)) < 60


def test_each_epoch_reads_every_row_once_in_an_order_of_its_own():
    data = rows()
    count = data.rows
    orders = [[data.text_row(epoch * count + place) for place in range(count)] for epoch in range(3)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    assert orders[0] != orders[1] != orders[2]


def test_rows_of_text_and_documents():
    data = PackedRows(TOKENS, WORDS, "clm", SEQ)
    document = np.repeat(np.arange(len(TOKENS.starts) - 1), np.diff(TOKENS.starts))
    assert len(data) == data.rows == len(TOKENS.ids) // SEQ
    for v in range(len(data)):
        row, span = data[v], slice(v * SEQ, (v + 1) * SEQ)
        assert np.array_equal(row["input_ids"], TOKENS.ids[span])
        mine, found = document[span], row["sequence_ids"]
        assert found[0] == 0
        assert np.array_equal(found[1:] == found[:-1], mine[1:] == mine[:-1])
        predicted = row["labels"] != IGNORED
        assert np.array_equal(predicted[1:], mine[1:] == mine[:-1]), "the first token of a document has no target"
        assert not predicted[0]
        assert np.array_equal(row["labels"][predicted], row["input_ids"][predicted])
    with pytest.raises(IndexError):
        data[len(data)]


def test_masks_are_bert_s():
    data, plain = rows(length=5000), rows("clm", length=5000)
    chosen = masked = kept = total = 0
    for v in range(5000):
        row, original = data[v], plain[v]["input_ids"]
        predicted = row["labels"] != IGNORED
        assert predicted.any()
        assert np.array_equal(row["labels"][predicted], original[predicted])
        assert np.array_equal(row["input_ids"][~predicted], original[~predicted])
        assert not np.isin(row["labels"][predicted], WORDS.special).any(), "special tokens are never predicted"
        became = row["input_ids"][predicted]
        assert not np.isin(became[became != WORDS.mask], WORDS.special).any(), "nor drawn"
        chosen += predicted.sum()
        total += (~np.isin(original, WORDS.special)).sum()
        masked += (became == WORDS.mask).sum()
        kept += (became == original[predicted]).sum()
    assert chosen / total == pytest.approx(0.15, abs=0.02), "a little above: no row is left without a target"
    assert masked / chosen == pytest.approx(0.8, abs=0.02)
    assert kept / chosen == pytest.approx(0.1 + 0.1 / 46, abs=0.02)


def test_held_out_rows_never_change():
    one = PackedRows(TOKENS, WORDS, "mlm", SEQ, limit=5)
    two = PackedRows(TOKENS, WORDS, "mlm", SEQ, limit=5, data_seed=3)
    assert len(one) == 5
    assert all(same(one[v], two[v]) for v in range(5))
    assert [one.text_row(v) for v in range(5)] == [v * one.rows // 5 for v in range(5)], "spread over the text"


@pytest.mark.parametrize("head", [SublayerForMaskedLM, SublayerForCausalLM])
@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_no_document_sees_another(head, positions):
    """Change every token of one document in a packed row: no output of the others moves, and neither does their part
    of the loss."""
    objective = "clm" if head is SublayerForCausalLM else "mlm"
    held_out = PackedRows(TOKENS, WORDS, objective, SEQ)
    batch = collate([held_out[v] for v in range(len(held_out))])
    model = head(SublayerConfig(
        design="input-norm", vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=SEQ, position_embedding=positions, initializer_range=0.5, init_seed=0,
        causal=objective == "clm",
    )).eval()  # fmt: skip
    several = [row for row, ids in enumerate(batch["sequence_ids"]) if ids[-1] > 0]
    assert len(several) >= 3
    with torch.no_grad():
        before = model(input_ids=batch["input_ids"], sequence_ids=batch["sequence_ids"]).logits
        for row in several:
            for victim in batch["sequence_ids"][row].unique():
                mine = batch["sequence_ids"][row] == victim
                ids = batch["input_ids"].clone()
                ids[row, mine] = (ids[row, mine] + 7) % 50
                after = model(input_ids=ids, sequence_ids=batch["sequence_ids"]).logits
                torch.testing.assert_close(after[row, ~mine], before[row, ~mine], rtol=0, atol=1e-5)
                assert (after[row, mine] - before[row, mine]).abs().max() > 1e-2
                if objective == "clm":
                    # what each position predicts is a token of its own document
                    labels = batch["labels"][row]
                    predicts = torch.nonzero(labels[1:] != IGNORED).squeeze(1)
                    assert bool(
                        (batch["sequence_ids"][row][predicts] == batch["sequence_ids"][row][predicts + 1]).all()
                    )
