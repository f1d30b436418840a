"""What `load` refuses, each with the reason and the remedy."""

import json
from pathlib import Path
from typing import Any

import pytest

from sublayer.hf import CheckpointError, load
from tests.hf.support import CASES, tiny


def saved(name: str, folder: Path, **options: Any) -> None:
    tiny(CASES[name]).save_pretrained(folder, **options)


def edit(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("llama", {"model_type": "mixtral"}, r"model_type \('mixtral'\) must be one of apertus|bert"),
        ("llama", {"model_type": None}, "model_type"),
        ("llama", {"hidden_act": "xielu"}, r"hidden_act \('xielu'\) must be one of relu"),
        ("bert", {"is_decoder": True}, r"is_decoder \(True\) of bert has no counterpart .* always False"),
        ("bert", {"add_cross_attention": True}, r"add_cross_attention \(True\) of bert has no counterpart"),
        ("ernie", {"use_task_id": True}, r"use_task_id \(True\) of ernie has no counterpart"),
        ("gemma", {"use_bidirectional_attention": True}, r"use_bidirectional_attention \(True\) of gemma"),
        ("bert", {"position_embedding_type": "relative_key"}, r"position_embedding_type \('relative_key'\)"),
        ("llama", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised by gptq: load them with"),
        ("llama", {"architectures": ["LlamaForTokenClassification"]}, r"give head=, one of causal-lm, masked-lm"),
        ("llama", {"intermediate_size": 40}, r"has shape \[40, 32\] by the config"),
        ("llama", {"num_hidden_layers": 2}, r"every tensor of the checkpoint must be one that .* 9 are not"),
        ("llama", {"num_hidden_layers": 4}, "must hold 9 more tensors"),
        ("llama", {"num_key_value_heads": 3}, r"num_attention_heads \(4\) must be divisible by num_key_value_heads"),
        ("mpt", {"attn_config": {"alibi": False}}, r"attn_config.alibi \(False\) has no counterpart"),
    ],
)
def test_what_cannot_be_represented_is_refused(
    name: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    saved(name, tmp_path / "theirs")
    edit(tmp_path / "theirs", **changes)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "theirs", verify=False)


def test_pickles_and_broken_files_are_refused(tmp_path: Path) -> None:
    saved("llama", tmp_path / "a")
    weights = tmp_path / "a" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:5000])
    with pytest.raises(CheckpointError, match="download"):
        load(tmp_path / "a")
    weights.rename(tmp_path / "a" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"safetensors only, and .* has pytorch_model.bin, which can run code"):
        load(tmp_path / "a")
    (tmp_path / "a" / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"has no model.safetensors and no model.safetensors.index.json"):
        load(tmp_path / "a")
    (tmp_path / "a" / "config.json").write_text("{not json")
    with pytest.raises(CheckpointError, match="must hold one JSON object"):
        load(tmp_path / "a")
    (tmp_path / "a" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        load(tmp_path / "a")
    with pytest.raises(CheckpointError, match="is no folder"):
        load(tmp_path / "nowhere" / "at" / "all")
    with pytest.raises(CheckpointError, match="cannot be had from the Hub"):
        load("sublayer-tests/there-is-no-such-model")


def test_an_index_that_names_missing_files(tmp_path: Path) -> None:
    saved("llama", tmp_path / "a", max_shard_size="20KB")
    next(iter((tmp_path / "a").glob("*-00002-*"))).unlink()
    with pytest.raises(CheckpointError, match=r"names files that are not there: model-00002"):
        load(tmp_path / "a")
    (tmp_path / "a" / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(CheckpointError, match="must hold a weight_map"):
        load(tmp_path / "a")
