"""What the rest of the ecosystem does with a model: torch.export, ONNX, and lm-evaluation-harness in process."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sublayer.model import SublayerForCausalLM, SublayerForMaskedLM
from tests.model.support import tiny
from tests.model.test_pipelines import tokenizer  # noqa: F401  a fixture

BATCH, SEQ = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("seq", min=2, max=64)
SHAPES = {"input_ids": {0: BATCH, 1: SEQ}, "attention_mask": {0: BATCH, 1: SEQ}}
DESIGNS = ["input-norm", "paf", "residual"]


def inputs(batch: int, length: int, padding: int, seed: int) -> dict[str, Tensor]:
    """Ids and a mask whose last row has padding on the left."""
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[-1, :padding] = 0
    ids = torch.randint(0, 29, (batch, length), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": mask}


def model_of(design: str, kind: type, **changes: Any) -> Any:
    return tiny(design, kind, use_cache=False, **changes)


@pytest.mark.parametrize("kind", [SublayerForCausalLM, SublayerForMaskedLM])
@pytest.mark.parametrize("design", DESIGNS)
def test_torch_export(design: str, kind: type) -> None:
    model = model_of(design, kind)
    exported = torch.export.export(model, (), inputs(2, 11, 3, 0), dynamic_shapes=SHAPES, strict=False)
    other = inputs(3, 17, 5, 1)  # sizes that it was not exported with
    real = other["attention_mask"].bool()
    torch.testing.assert_close(
        exported.module()(**other).logits[real], model(**other).logits[real], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("design", DESIGNS)
def test_onnx(design: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = model_of(design, SublayerForCausalLM, position_embedding="rotary")
    file = tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own: names of axes, deprecations inside torch
        torch.onnx.export(
            model, (), str(file), kwargs=inputs(2, 11, 3, 0), dynamic_shapes=SHAPES, dynamo=True, verbose=False
        )
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    other = inputs(3, 17, 5, 1)
    logits = torch.from_numpy(session.run(None, {name: value.numpy() for name, value in other.items()})[0])
    real = other["attention_mask"].bool()
    torch.testing.assert_close(logits[real], model(**other).logits[real], rtol=1e-4, atol=1e-4)
    model.model.layers[0].attn.v_proj.weight.data.mul_(1.5)
    assert (logits - model(**other).logits)[real].abs().max() > 1e-2  # another model is told apart


def test_lm_eval_in_process(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Two tasks made here, a choice and a perplexity, agree with what the model itself says."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the harness and what it imports
        harness = pytest.importorskip("lm_eval")
        from lm_eval.models.huggingface import HFLM

        model = model_of("paf", SublayerForCausalLM, vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=3)
        rows = [
            {"text": "the cat sat on", "choices": ["a mat", "red hat"], "answer": 0},
            {"text": "dog ran far", "choices": ["to see", "and the"], "answer": 1},
            {"text": "see the red", "choices": ["hat", "dog"], "answer": 0},
        ]
        data = tmp_path / "rows.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        task = {
            "task": "made_here",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(tmp_path / "cache")},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{text}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "answer",
            "metric_list": [{"metric": "acc"}],
        }
        found = harness.simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2, device="cpu"),
            tasks=[task],
            bootstrap_iters=0,
            log_samples=True,
        )
    mine = []
    for row in rows:
        scores = []
        for choice in row["choices"]:
            start = tokenizer(row["text"], return_tensors="pt").input_ids
            ids = tokenizer(f"{row['text']} {choice}", return_tensors="pt").input_ids
            with torch.no_grad():
                logs = model(ids).logits.log_softmax(-1)
            places = range(start.shape[1], ids.shape[1])
            scores.append(sum(float(logs[0, t - 1, ids[0, t]]) for t in places))
        mine.append(scores)
    theirs = [[float(r[0]) for r in sample["filtered_resps"]] for sample in found["samples"]["made_here"]]
    torch.testing.assert_close(torch.tensor(theirs), torch.tensor(mine), rtol=1e-4, atol=1e-4)
    right = sum(max(range(2), key=scores.__getitem__) == row["answer"] for scores, row in zip(mine, rows, strict=True))
    assert found["results"]["made_here"]["acc,none"] == pytest.approx(right / 3)
