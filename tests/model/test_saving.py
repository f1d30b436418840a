"""Weights and configs leave and come back, here and in another process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
)

from sublayer.model import (
    SublayerConfig,
    SublayerForCausalLM,
    SublayerForMaskedLM,
    SublayerForSequenceClassification,
    SublayerModel,
)
from tests.model.support import VARIED, tiny, tokens

AUTO = {
    SublayerModel: AutoModel,
    SublayerForCausalLM: AutoModelForCausalLM,
    SublayerForMaskedLM: AutoModelForMaskedLM,
    SublayerForSequenceClassification: AutoModelForSequenceClassification,
}


@pytest.mark.parametrize("design", VARIED.values(), ids=VARIED)
def test_saved_and_loaded_models_are_equal(design: str, tmp_path: Path) -> None:
    model = tiny(design, position_embedding="rotary", norm="rmsnorm", hidden_act="swiglu", qk_norm=True)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    again, info = SublayerForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert again.config.design == model.config.design
    assert torch.equal(again(tokens()).logits, model(tokens()).logits)


@pytest.mark.parametrize("kind", AUTO)
def test_auto_classes_find_every_model(kind: type, tmp_path: Path) -> None:
    model = tiny("residual", kind)
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is SublayerConfig
    again = AUTO[kind].from_pretrained(tmp_path)
    assert type(again) is kind
    assert torch.equal(again(tokens())[0], model(tokens())[0])
    assert type(AUTO[kind].from_config(model.config)) is kind


@pytest.mark.parametrize("imported", [True, False], ids=["after import", "without import, by the shim"])
def test_auto_classes_in_a_fresh_process(imported: bool, tmp_path: Path) -> None:
    model = tiny("mix-ln", SublayerForMaskedLM, num_hidden_layers=4)
    model.save_pretrained(tmp_path / "model")
    torch.save(model(tokens()).logits, tmp_path / "logits.pt")
    lines = [
        "import sys, torch",
        "import sublayer.model" if imported else "",
        "from transformers import AutoModelForMaskedLM",
        f"model = AutoModelForMaskedLM.from_pretrained(sys.argv[1] + '/model', trust_remote_code={not imported})",
        "assert model.config.causal is False",
        f"ids = torch.tensor({tokens().tolist()})",
        "assert torch.equal(model(ids).logits, torch.load(sys.argv[1] + '/logits.pt'))",
        "model.save_pretrained(sys.argv[1] + '/again')",
        "print(type(model).__module__, type(model).__name__)",
    ]
    code = "\n".join(lines)
    # The shim is copied into the modules cache: a folder of the test's own.
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment(HF_MODULES_CACHE=str(tmp_path / "modules")),
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["sublayer.model.heads", "SublayerForMaskedLM"]
    first, again = ({file.name for file in (tmp_path / name).iterdir()} for name in ("model", "again"))
    assert first == again == {"config.json", "model.safetensors", "modeling_sublayer.py"}


def environment(**changes: str) -> dict[str, str]:
    import os

    return {**os.environ, **changes}


def test_a_head_loads_into_a_base_model_and_back(tmp_path: Path) -> None:
    head = tiny("sandwich")
    head.save_pretrained(tmp_path / "head")
    base, info = SublayerModel.from_pretrained(tmp_path / "head", output_loading_info=True)
    assert not info["missing_keys"]
    assert torch.equal(base(tokens()).last_hidden_state, head.model(tokens()).last_hidden_state)
    base.save_pretrained(tmp_path / "base")
    classifier, info = SublayerForSequenceClassification.from_pretrained(
        tmp_path / "base", output_loading_info=True, num_labels=3
    )
    assert set(info["missing_keys"]) == {"score.weight", "score.bias"}
    for name, value in base.state_dict().items():
        assert torch.equal(classifier.model.state_dict()[name], value), name


def test_missing_weights_are_initialised_as_in_a_fresh_model_and_loaded_ones_left_alone(tmp_path: Path) -> None:
    """Loading a checkpoint into a wiring with more norms: the new ones are fresh, the rest is the checkpoint's."""
    tiny("paf", init_seed=0).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    config = SublayerConfig.from_pretrained(tmp_path)
    config.design = "x = norm(x + attn(norm(x)) + ffn(scale(dyt(x))))"
    model, info = SublayerForCausalLM.from_pretrained(tmp_path, config=config, output_loading_info=True)
    fresh = SublayerForCausalLM(config).state_dict()
    assert len(info["missing_keys"]) == 3 * (2 + 1 + 3)
    for name, value in model.state_dict().items():
        if name in info["missing_keys"]:
            assert torch.equal(value, fresh[name]), name
        elif name != "lm_head.weight":
            assert torch.equal(value, stored[name]), name


def test_tied_embeddings_are_stored_once_and_tied_again(tmp_path: Path) -> None:
    tied, untied = tiny("input-norm"), tiny("input-norm", tie_word_embeddings=False)
    for model, count in ((tied, 1), (untied, 2)):
        folder = tmp_path / str(count)
        model.save_pretrained(folder)
        names = load_file(folder / "model.safetensors").keys()
        assert sum(n in ("lm_head.weight", "model.embed_tokens.weight") for n in names) == count
        again = SublayerForCausalLM.from_pretrained(folder)
        assert (again.lm_head.weight is again.model.embed_tokens.weight) is (count == 1)
        assert torch.equal(again(tokens()).logits, model(tokens()).logits)


@pytest.mark.parametrize("position_embedding", ["learned", "rotary"])
@pytest.mark.parametrize("design", ["deepnorm", "residual", "x = x + dot(norm(x)) + scale(ffn(norm(x)))"])
def test_bfloat16_load_runs_and_stays_close(design: str, position_embedding: str, tmp_path: Path) -> None:
    model = tiny(design, position_embedding=position_embedding, qk_norm=True)
    model.save_pretrained(tmp_path)
    half = SublayerForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    output = half(tokens(), output_hidden_states=True)
    assert {h.dtype for h in output.hidden_states} == {torch.bfloat16}
    exact = model(tokens()).logits
    assert (output.logits.float() - exact).abs().mean() < 0.05 * exact.abs().mean() + 0.05
    half.generate(tokens(), max_new_tokens=2, do_sample=False, pad_token_id=0)


def test_the_saved_folder_names_its_classes(tmp_path: Path) -> None:
    tiny("input-norm").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "sublayer"
    assert config["architectures"] == ["SublayerForCausalLM"]
    assert config["auto_map"]["AutoModelForCausalLM"] == "modeling_sublayer.SublayerForCausalLM"
    shim = (tmp_path / "modeling_sublayer.py").read_text()
    assert shim.startswith("from sublayer.model import ")
    assert len(shim.splitlines()) == 1
