"""From a checkpoint to a model with a fresh head."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import sublayer as sl
from sublayer.finetune import FinetuneError, FinetuneSpec, read, task_of
from sublayer.finetune.classifier import Classifier, build, checkpoint_sha256, longest_row, weights_sha256
from sublayer.finetune.rows import encode
from sublayer.hf import CheckpointError
from sublayer.hf.convert import tokenizer_of

Make = Callable[..., FinetuneSpec]


def made(spec: FinetuneSpec) -> Classifier:
    return build(spec, task_of(spec.task))


def head(found: Classifier) -> dict[str, torch.Tensor]:
    return {name: p for name, p in found.model.named_parameters() if not name.startswith("model.")}


def test_the_body_is_the_checkpoint_s_and_so_is_bert_s_pooler(spec: Make, bert: Path) -> None:
    found = made(spec())
    base = sl.load(bert, head="none")
    for name, parameter in base.named_parameters():
        assert torch.equal(found.model.base_model.get_parameter(name), parameter), name
    stored = load_file(bert / "model.safetensors")
    assert torch.equal(found.model.classifier_transform.dense.weight, stored["pooler.dense.weight"])
    assert found.head["from_checkpoint"] == ["classifier_transform.dense.bias", "classifier_transform.dense.weight"]
    assert found.head["fresh"] == ["score.weight", "score.bias"]
    assert found.head["pooling"] == "first"
    assert found.frame == "the tokenizer's own"
    assert found.model.config.id2label == {0: "0", 1: "1"}


def test_a_fresh_pooler_and_a_checkpoint_without_one_start_from_the_same_head(spec: Make, masked_bert: Path) -> None:
    fresh, without = made(spec(fresh_pooler=True)), made(spec(checkpoint=str(masked_bert)))
    assert set(fresh.head["fresh"]) == set(without.head["fresh"]) == set(head(fresh))
    assert all(torch.equal(a, b) for a, b in zip(head(fresh).values(), head(without).values(), strict=True))
    kept = made(spec())
    assert torch.equal(kept.model.score.weight, fresh.model.score.weight)
    assert not torch.equal(kept.model.classifier_transform.dense.weight, fresh.model.classifier_transform.dense.weight)


def test_the_seed_draws_the_head_and_nothing_else(spec: Make) -> None:
    first, again, other = made(spec()), made(spec()), made(spec(seed=1))
    assert weights_sha256(first.model) == weights_sha256(again.model)
    assert not torch.equal(first.model.score.weight, other.model.score.weight)
    assert torch.equal(first.model.base_model.embed_tokens.weight, other.model.base_model.embed_tokens.weight)


def test_a_regression_and_three_classes(spec: Make) -> None:
    assert made(spec(task="stsb")).model.config.problem_type == "regression"
    assert made(spec(task="stsb")).model.score.out_features == 1
    mnli = made(spec(task="mnli")).model
    assert mnli.score.out_features == 3
    assert mnli.config.label2id == {"entailment": 0, "neutral": 1, "contradiction": 2}


def test_the_wiring_is_changed_first(spec: Make) -> None:
    found = made(spec(to="paf"))
    assert "x = norm(x + attn(x) + ffn(x))" in found.checkpoint["design_trained"]
    assert "x = norm(x + attn(x) + ffn(x))" not in found.checkpoint["design"]
    assert found.head["from_checkpoint"], "the pooler comes along"
    assert any("the wiring was changed" in remark for remark in found.remarks)
    same = made(spec(to="post-norm"))
    assert same.checkpoint["design"] == same.checkpoint["design_trained"]


def test_dropout_and_pooling_go_over_the_checkpoint_s(spec: Make) -> None:
    config = made(spec(dropout=0.3, pooling="mean")).model.config
    assert config.hidden_dropout_prob == config.attention_probs_dropout_prob == 0.3
    assert config.classifier_reads == "mean"
    assert made(spec()).model.config.hidden_dropout_prob == 0.1


def test_a_linear_head_is_the_layer_of_labels_alone(spec: Make) -> None:
    found = made(spec(pooling="mean", head="linear"))
    assert found.model.classifier_transform is None
    assert found.head == {"pooling": "mean", "fresh": ["score.weight", "score.bias"], "from_checkpoint": []}


def test_gpt2_gets_a_frame_and_something_to_pad_with(spec: Make, gpt2: Path, glue: Path) -> None:
    found = made(spec(checkpoint=str(gpt2), task="rte"))
    assert found.frame == "A <|end|> B <|end|>"
    assert found.head["pooling"] == "last"
    assert found.tokenizer.pad_token_id is not None
    split = read(task_of("rte"), str(glue)).dev["dev"]
    row = encode(found.tokenizer, split, 128, 0, regression=False).row(0)["input_ids"]
    a, b = split.texts[0]
    assert (
        found.tokenizer.convert_tokens_to_string(found.tokenizer.convert_ids_to_tokens(row)) == f"{a}<|end|>{b}<|end|>"
    )
    assert longest_row(found) == 64


@torch.no_grad()
def test_padding_changes_no_score(spec: Make, gpt2: Path, bert: Path, glue: Path) -> None:
    from sublayer.finetune.rows import Padded

    for checkpoint in (gpt2, bert):
        found = made(spec(checkpoint=str(checkpoint), task="rte"))
        types = found.model.config.type_vocab_size
        rows = encode(found.tokenizer, read(task_of("rte"), str(glue)).dev["dev"], 64, types, regression=False)
        collate = Padded(found.tokenizer.pad_token_id)
        model = found.model.eval()
        together = model(**collate([rows.row(i) for i in range(6)])).logits
        alone = torch.cat([model(**collate([rows.row(i)])).logits for i in range(6)])
        assert (together - alone).abs().max() < 1e-5
        assert alone.std(dim=0).min() > 1e-4, "rows differ"


def test_a_model_of_sublayer_train(spec: Make, tmp_path: Path) -> None:
    from sublayer.train import TrainSpec, run

    text = tmp_path / "text"
    text.mkdir()
    for i in range(12):
        (text / f"{i}.txt").write_text(f"Document {i} says that the stream is good and that a norm reads it. " * 9)
    settings: dict[str, Any] = {
        "design": "paf", "objective": "mlm", "layers": 2, "hidden": 32, "heads": 2, "ffn": 64, "vocab_size": 320,
        "seq": 32, "batch": 4, "steps": 2, "eval_rows": 8, "data": str(text), "threads": 1, "device": "cpu",
    }  # fmt: skip
    row = run(TrainSpec(**settings), tmp_path / "run", measure=False, model_dir=tmp_path / "run")
    assert row["status"] == "ok", row["reason"]
    found = made(spec(checkpoint=str(tmp_path / "run")))
    assert found.frame == "A <eos> B <eos>"
    assert found.head["from_checkpoint"] == []
    assert not found.model.config.left_to_right
    assert longest_row(found) == 32
    found.tokenizer.save_pretrained(tmp_path / "saved")
    saved = tokenizer_of(tmp_path / "saved")
    assert saved("good", "stream")["input_ids"] == found.tokenizer("good", "stream")["input_ids"], "the frame is saved"


def test_what_is_no_checkpoint_is_one_message(spec: Make, bert: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no folder"):
        made(spec(checkpoint=str(tmp_path / "nowhere")))
    bare = tmp_path / "bare"
    shutil.copytree(bert, bare)
    (bare / "tokenizer.json").unlink()
    with pytest.raises(FinetuneError, match=r"the checkpoint's own tokenizer, and .* has none"):
        made(spec(checkpoint=str(bare)))
    with pytest.raises(sl.DesignError):
        spec(to="x = pre_norm(x)")


def test_a_tokenizer_of_another_model_is_refused(spec: Make, gpt2: Path, bert: Path, tmp_path: Path) -> None:
    from sublayer.finetune import run

    mixed = tmp_path / "mixed"
    shutil.copytree(bert, mixed)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(gpt2 / name, mixed / name)
    with pytest.raises(FinetuneError, match=r"ids lie below the model's vocab_size \(64\), got \d+"):
        run(spec(checkpoint=str(mixed)), tmp_path / "run")


def test_the_hash_of_a_checkpoint_sees_weights_settings_and_words(bert: Path, tmp_path: Path) -> None:
    before = checkpoint_sha256(bert)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        other = tmp_path / name
        shutil.copytree(bert, other)
        assert checkpoint_sha256(other) == before
        content = bytearray((other / name).read_bytes())
        content[-1] ^= 1
        (other / name).write_bytes(bytes(content))
        assert checkpoint_sha256(other) != before
