"""Checkpoints on disk: what is written is what was read, and what cannot be read is refused with the reason."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel

import sublayer as sl
from sublayer.hf import CheckpointError, export, load
from sublayer.hf.files import WeightFiles, size_in_bytes, write_weights
from sublayer.model import SublayerConfig, SublayerForCausalLM, SublayerForMaskedLM, SublayerModel
from tests.hf.support import CASES, padding, randomise, relative_error, tiny, tokens


def saved(name: str, folder: Path, **options: Any) -> PreTrainedModel:
    model = tiny(CASES[name])
    model.save_pretrained(folder, **options)
    return model


def edit(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def same_state(left: nn.Module, right: nn.Module) -> bool:
    a, b = left.state_dict(), right.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) and a[n].dtype == b[n].dtype for n in a)


@torch.no_grad()
def logits(model: Any, **more: Any) -> Tensor:
    result: Tensor = model(tokens(), **more).logits
    return result


# --- there and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_round_trip_is_bit_identical(name: str, tmp_path: Path) -> None:
    theirs = saved(name, tmp_path / "theirs")
    written = export(load(tmp_path / "theirs", verify=False), tmp_path / "ours")
    assert (written.format, written.model_type, written.reason) == ("family", CASES[name].model_type, "")
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == (CASES[name].model_type, [type(theirs).__name__])
    before, after = (load_file(tmp_path / which / "model.safetensors") for which in ("theirs", "ours"))
    assert before.keys() == after.keys()
    back = type(theirs).from_pretrained(tmp_path / "ours", attn_implementation=CASES[name].attention)
    assert same_state(back, theirs)
    assert torch.equal(logits(back), logits(theirs))


def test_a_changed_weight_is_written(tmp_path: Path) -> None:
    theirs = saved("gpt2", tmp_path / "theirs")
    ours = load(tmp_path / "theirs")
    randomise(ours, seed=5)
    export(ours, tmp_path / "ours")
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert relative_error(logits(back), logits(theirs)) > 1e-2
    assert relative_error(logits(back), logits(ours)) < 1e-5


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_shards_in_and_out(name: str, tmp_path: Path) -> None:
    theirs = saved(name, tmp_path / "theirs", max_shard_size="20KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 2
    ours = load(tmp_path / "theirs")
    export(ours, tmp_path / "ours", max_shard_size="20KB")
    files = sorted((tmp_path / "ours").glob("*.safetensors"))
    assert len(files) > 2
    assert all(f.stat().st_size < 30_000 for f in files)
    assert same_state(type(theirs).from_pretrained(tmp_path / "ours"), theirs)
    assert torch.equal(logits(load(tmp_path / "ours")), logits(ours))


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "roberta"])
def test_bfloat16_is_kept(name: str, tmp_path: Path) -> None:
    theirs = tiny(CASES[name]).to(torch.bfloat16)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load(tmp_path / "theirs", attn_implementation="eager")
    assert {p.dtype for p in ours.parameters()} == {torch.bfloat16}
    assert ours.config.dtype == torch.bfloat16
    assert relative_error(logits(ours).float(), logits(theirs).float()) < 0.1
    export(ours, tmp_path / "ours")
    assert same_state(type(theirs).from_pretrained(tmp_path / "ours", dtype="auto"), theirs)
    assert {p.dtype for p in load(tmp_path / "theirs", dtype=torch.float32).parameters()} == {torch.float32}


def test_tied_weights_are_one_tensor(tmp_path: Path) -> None:
    saved("gpt2", tmp_path / "theirs")
    ours = load(tmp_path / "theirs")
    assert ours.lm_head.weight is ours.model.embed_tokens.weight  # type: ignore[union-attr]
    # A file that has the tied tensor under the other name only says as much.
    weights = load_file(tmp_path / "theirs" / "model.safetensors")
    weights["lm_head.weight"] = weights.pop("transformer.wte.weight")
    save_file(weights, tmp_path / "theirs" / "model.safetensors", {"format": "pt"})
    assert torch.equal(logits(load(tmp_path / "theirs")), logits(ours))


def test_another_wiring_is_written_in_our_format(tmp_path: Path) -> None:
    saved("llama", tmp_path / "theirs")
    ours = load(tmp_path / "theirs", design="x = x + attn(norm(x)) + ffn(norm(x))")
    assert ours.config.wiring == sl.parse("x = x + attn(norm(x)) + ffn(norm(x))")
    written = export(ours, tmp_path / "ours")
    assert written.format == "sublayer"
    assert written.reason.startswith("its design is")
    with pytest.raises(CheckpointError, match="cannot be written in a family's format: its design is"):
        export(ours, tmp_path / "not", format="family")
    assert not (tmp_path / "not").exists()
    again = load(tmp_path / "ours")
    assert isinstance(again, SublayerForCausalLM)
    assert torch.equal(logits(again), logits(ours))
    script = (
        "import torch; from transformers import AutoModelForCausalLM as A; "
        f"m = A.from_pretrained({str(tmp_path / 'ours')!r}, trust_remote_code=True); "
        "print(type(m).__name__, float(m(torch.arange(3, 9)[None]).logits.sum()))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    kind, total = run.stdout.split()[-2:]
    assert kind == "SublayerForCausalLM"
    with torch.no_grad():
        assert float(total) == pytest.approx(float(ours(torch.arange(3, 9)[None]).logits.sum()), rel=1e-4)


def test_our_format_on_request_and_for_our_own_models(tmp_path: Path) -> None:
    saved("gpt2", tmp_path / "theirs")
    ours = load(tmp_path / "theirs")
    assert export(ours, tmp_path / "a", format="sublayer").format == "sublayer"
    # A saved Sublayer model remembers where it came from: the family's format is still open to it.
    again = load(tmp_path / "a")
    assert torch.equal(logits(again), logits(ours))
    assert export(again, tmp_path / "b").format == "family"
    assert same_state(
        AutoModelForCausalLM.from_pretrained(tmp_path / "b"), AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")
    )
    new = SublayerForCausalLM(SublayerConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=1, vocab_size=9))
    assert export(new, tmp_path / "c").reason == "it was not loaded from a checkpoint of transformers"


def test_what_is_a_copy_in_the_config_is_written_back(tmp_path: Path) -> None:
    saved("gpt2", tmp_path / "theirs")
    ours = load(tmp_path / "theirs")
    ours.resize_token_embeddings(70)
    ours.config.hidden_dropout_prob = 0.3
    assert export(ours, tmp_path / "ours").format == "family"
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert (back.config.vocab_size, back.config.resid_pdrop) == (70, 0.3)
    assert relative_error(logits(back), logits(ours)) < 1e-5
    ours.config.clip_qkv = 3.0  # GPT-2 has no such thing
    assert export(ours, tmp_path / "more").reason == "its clip_qkv is 3.0, and as gpt2 it would be None"


def test_a_negative_padding_token_is_none(tmp_path: Path) -> None:
    theirs = saved("llama", tmp_path / "theirs")
    edit(tmp_path / "theirs", pad_token_id=-1)
    ours = load(tmp_path / "theirs")
    assert ours.config.pad_token_id is None
    assert relative_error(logits(ours), logits(theirs)) < 1e-5
    assert export(ours, tmp_path / "ours").format == "family"


# --- what stands beside the weights -----------------------------------------------------------------------------------


def test_tokenizer_and_generation_config_come_along(tmp_path: Path) -> None:
    theirs = saved("gpt2", tmp_path / "theirs")
    theirs.generation_config.top_k = 7
    theirs.generation_config.do_sample = True
    theirs.generation_config.save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "tokenizer.json").write_text('{"own": 1}')
    (tmp_path / "theirs" / "README.md").write_text("about the other one")
    ours = load(tmp_path / "theirs")
    assert ours.generation_config.top_k == 7  # type: ignore[union-attr]
    export(ours, tmp_path / "ours")
    assert (tmp_path / "ours" / "tokenizer.json").read_text() == '{"own": 1}'
    assert not (tmp_path / "ours" / "README.md").exists()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "ours").generation_config.top_k == 7


def test_a_base_model_and_a_pooler(tmp_path: Path) -> None:
    config = CASES["bert"].config()
    theirs = AutoModel.from_config(config)
    randomise(theirs)
    theirs.eval().save_pretrained(tmp_path / "theirs")
    ours = load(tmp_path / "theirs")
    assert isinstance(ours, SublayerModel)
    assert set(ours.kept_aside) == {"pooler.dense.weight", "pooler.dense.bias"}
    assert "pooler" in ours.kept_aside["pooler.dense.bias"].reason
    with torch.no_grad():
        want, got = theirs(tokens()).last_hidden_state, ours(tokens()).last_hidden_state
    assert relative_error(got, want) < 1e-5
    export(ours, tmp_path / "ours")
    assert same_state(AutoModel.from_pretrained(tmp_path / "ours"), theirs)
    with pytest.raises(CheckpointError, match=r"BertForMaskedLM must hold 5 more tensors: cls\.predictions"):
        load(tmp_path / "theirs", head="masked-lm")


def test_old_names_and_a_head_that_is_not_wanted(tmp_path: Path) -> None:
    theirs = saved("bert", tmp_path / "theirs")
    weights = load_file(tmp_path / "theirs" / "model.safetensors")
    old = {n.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): t for n, t in weights.items()}
    old["bert.embeddings.position_ids"] = torch.arange(64)[None]
    old["cls.seq_relationship.weight"] = torch.randn(2, 32)
    save_file(old, tmp_path / "theirs" / "model.safetensors", {"format": "pt"})
    ours = load(tmp_path / "theirs")
    assert relative_error(logits(ours), logits(theirs)) < 1e-5
    assert set(ours.kept_aside) == {"cls.seq_relationship.weight"}
    base = load(tmp_path / "theirs", head="none")
    assert isinstance(base, SublayerModel)
    with torch.no_grad():
        want = theirs.bert(tokens()).last_hidden_state  # type: ignore[operator, union-attr]
        assert relative_error(base(tokens()).last_hidden_state, want) < 1e-5


@pytest.mark.parametrize("kind", ["BertForQuestionAnswering", "BertForPreTraining", "ElectraForPreTraining"])
def test_the_model_below_another_head(kind: str, tmp_path: Path) -> None:
    import transformers

    theirs = getattr(transformers, kind)(CASES["bert" if kind.startswith("Bert") else "electra"].config())
    randomise(theirs)
    theirs.eval().save_pretrained(tmp_path)
    ours = load(tmp_path, head="none")
    with torch.no_grad():
        want = getattr(theirs, theirs.base_model_prefix)(tokens()).last_hidden_state
        assert relative_error(ours(tokens()).last_hidden_state, want) < 1e-5
    assert all("head" in kept.reason or "pooler" in kept.reason for kept in ours.kept_aside.values())
    if kind == "BertForPreTraining":
        with torch.no_grad():
            want = theirs(tokens()).prediction_logits
        assert relative_error(logits(load(tmp_path)), want) < 1e-5
    else:
        with pytest.raises(CheckpointError, match="head="):
            load(tmp_path)


def test_one_tensor_under_two_names(tmp_path: Path) -> None:
    saved("bert", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["bert.embeddings.LayerNorm.gamma"] = torch.ones(32)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 are not: bert\.embeddings\.LayerNorm\."):
        load(tmp_path)


def test_a_model_on_its_feet_is_copied(tmp_path: Path) -> None:
    theirs = tiny(CASES["llama"])
    before = copy.deepcopy(theirs.config.to_dict())
    ours = load(theirs)
    assert theirs.config.to_dict() == before
    want = logits(theirs)
    randomise(theirs, seed=9)
    assert relative_error(logits(ours), want) < 1e-5
    with pytest.raises(CheckpointError, match="is a Sublayer model already"):
        load(ours)


# --- PAF as its author stored it --------------------------------------------------------------------------------------


@torch.no_grad()
def paf(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Masked-LM logits of the parallel RoBERTa: each layer's one norm reads ``x + A(x) + F(x)``."""
    base = getattr(model, model.base_model_prefix)
    x = base.embeddings(ids)
    added = (1.0 - mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
    for layer in base.encoder.layer:
        mixed = layer.attention.self(x, attention_mask=added)[0]
        a = layer.attention.output.dense(mixed)
        f = layer.output.dense(layer.intermediate(x))
        x = layer.output.LayerNorm(x + a + f)
    head = model.lm_head if hasattr(model, "lm_head") else model.cls
    result: Tensor = head(x)
    return result


@pytest.mark.parametrize("name", ["roberta", "bert"])
def test_the_layout_of_paf(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs = saved(name, tmp_path / "theirs")
    ours = load(tmp_path / "theirs", layout="paf")
    assert ours.config.wiring == sl.parse("embed: x = norm(e)\nblock: x = norm(x + attn(x) + ffn(x))\nfinal: x = x")
    ids = tokens()
    mask = padding(CASES[name], ids)
    ids = ids.masked_fill(mask == 0, theirs.config.pad_token_id)
    with torch.no_grad():
        got = ours(ids, attention_mask=mask).logits
    real = mask.bool()
    assert relative_error(got[real], paf(theirs, ids, mask)[real]) < 1e-5
    # The same tensors wired as transformers wires them compute something else.
    with torch.no_grad():
        assert relative_error(got[real], theirs(ids, attention_mask=mask).logits[real]) > 1e-2
    dead = {n for n in ours.kept_aside if "attention.output.LayerNorm" in n}
    assert dead == set(ours.kept_aside)
    assert len(dead) == 2 * 3  # a weight and a bias a layer
    assert "leaves it unused" in next(iter(ours.kept_aside.values())).reason
    # transformers would read these tensors as the serial model: they are written back only where that is asked for.
    assert export(ours, tmp_path / "own").format == "sublayer"
    assert torch.equal(logits(load(tmp_path / "own")), logits(ours))
    assert export(ours, tmp_path / "back", layout="paf").format == "family"
    before, after = (load_file(tmp_path / which / "model.safetensors") for which in ("theirs", "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in before)
    with pytest.raises(CheckpointError, match=r"layout \('pfa'\) must be one that \w+ has: paf"):
        load(tmp_path / "theirs", layout="pfa")


def test_the_other_wiring_is_a_conversion(tmp_path: Path) -> None:
    saved("roberta", tmp_path / "theirs")
    ours = load(tmp_path / "theirs", design="paf")
    assert isinstance(ours, SublayerForMaskedLM)
    assert ours.config.wiring == load(tmp_path / "theirs", layout="paf").config.wiring
    assert load(tmp_path / "theirs", design="post-norm").config.wiring == load(tmp_path / "theirs").config.wiring
    assert relative_error(logits(ours), logits(load(tmp_path / "theirs", layout="paf"))) < 1e-5


# --- whole or not at all ---------------------------------------------------------------------------------------------


def test_a_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved("llama", tmp_path / "a")
    ours = load(tmp_path / "a")
    kept = (tmp_path / "a" / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="holds files: give another folder, or overwrite=True"):
        export(ours, tmp_path / "a")
    monkeypatch.setattr("sublayer.hf.exporting.write_weights", broken)
    with pytest.raises(OSError, match="disk full"):
        export(ours, tmp_path / "a", overwrite=True)
    with pytest.raises(OSError, match="disk full"):
        export(ours, tmp_path / "b")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == kept
    monkeypatch.undo()
    randomise(ours, seed=3)
    export(ours, tmp_path / "a", overwrite=True)
    assert relative_error(logits(load(tmp_path / "a")), logits(ours)) < 1e-5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


def broken(*_: Any) -> None:
    raise OSError("disk full")


def test_arguments_are_checked(tmp_path: Path) -> None:
    ours = load(tiny(CASES["llama"]))
    with pytest.raises(CheckpointError, match=r"format \('gguf'\) must be family or sublayer"):
        export(ours, tmp_path / "a", format="gguf")
    with pytest.raises(CheckpointError, match="max_shard_size"):
        export(ours, tmp_path / "a", max_shard_size="five")
    with pytest.raises(CheckpointError, match="takes a Sublayer model and got Linear"):
        export(nn.Linear(2, 2), tmp_path / "a")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"head \('qa'\) must be one of"):
        load(tiny(CASES["llama"]), head="qa")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file"):
        export(ours, tmp_path / "file")
    assert not (tmp_path / "a").exists()
    assert size_in_bytes("1.5KB") == 1500


def test_weights_are_written_as_safetensors_reads_them(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 5).to(torch.bfloat16),
        "b": torch.randn(7, 2).T,
        "c": torch.arange(4),
        "empty": torch.zeros(0, 3),
        "one": torch.tensor(2.5, dtype=torch.float16),
    }
    shapes = {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}
    write_weights(tmp_path, reversed(tensors.items()), shapes)
    back = load_file(tmp_path / "model.safetensors")
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[n], tensors[n]) and back[n].dtype == tensors[n].dtype for n in tensors)
    files = WeightFiles(tmp_path)
    assert torch.equal(files.read("a"), tensors["a"])
    with pytest.raises(CheckpointError, match=r"^a, b got no numbers"):
        write_weights(tmp_path, [], {n: shapes[n] for n in ("a", "b")})


@pytest.mark.slow
def test_memory_stays_near_the_size_of_the_checkpoint() -> None:
    from tools.families import memory

    found = memory()
    assert found["megabytes"] > 250
    assert 0.9 < found["loading"] < 1.3
    assert 0.9 < found["writing"] < 1.3
