"""`sublayer convert`: what it prints, what it writes, and that mistakes damage nothing."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, BertConfig, BertForMaskedLM

from sublayer.cli import main
from sublayer.hf.convert import measure_change, sample, tokenizer_of
from sublayer.hf.convert.folder import write_folder
from sublayer.model import SublayerForMaskedLM
from sublayer.notation import parse
from tests.hf.test_convert_measure import make_tokenizer
from tests.model.support import randomise, same, tiny, tokens


def run(*arguments: Any) -> int:
    """The exit code of `sublayer convert`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["sublayer", "convert", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
    return int(stop.value.code or 0)


def files(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    tiny("post-norm", vocab_size=300, num_hidden_layers=4).save_pretrained(folder)
    make_tokenizer(folder)
    return folder


def test_a_checkpoint_is_converted_and_says_how(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(checkpoint)
    target = tmp_path / "new" / "paf"
    assert run(checkpoint, target, "--to", "paf") == 0
    shown = capsys.readouterr()
    assert "change   approximate" in shown.out
    assert "model.layers.0-3.stream_norm.weight  (from model.layers.l.stream_norm_2.weight)" in shown.out
    assert "dropped      8 parameters            128 numbers" in shown.out
    assert "note:" not in shown.err
    assert files(checkpoint) == before
    assert [p.name for p in target.parent.iterdir()] == ["paf"]
    old = AutoModelForCausalLM.from_pretrained(checkpoint)
    new = AutoModelForCausalLM.from_pretrained(target)
    assert new.config.design == "x = norm(x + attn(x) + ffn(x))"
    assert torch.equal(new.model.layers[1].ffn.up_proj.weight, old.model.layers[1].ffn.up_proj.weight)
    record = json.loads((target / "conversion.json").read_text())
    assert record["command"][:2] == ["sublayer", "convert"]
    assert record["after"]["block"][0]["equation"] == new.config.design
    assert {p["name"] for p in record["old_parameters"] if p["how"] == "dropped"} == {
        f"model.layers.{i}.stream_norm.{leaf}" for i in range(4) for leaf in ("weight", "bias")
    }
    assert {p["name"] for p in record["new_parameters"]} == {name for name, _ in new.named_parameters()}
    tokenizer = tokenizer_of(target)
    assert tokenizer is not None
    rows = sample(old, tokenizer)
    assert record["sample"]["sha256"] == rows.sha256
    again = measure_change(old, new, rows.batches)
    assert record["change"]["loss_before"] == pytest.approx(again.loss_before, rel=1e-5)
    assert record["change"]["loss_after"] == pytest.approx(again.loss_after, rel=1e-5)
    assert record["change"]["layers"] == pytest.approx(again.layers, rel=1e-4)
    assert f"loss     {again.loss_before:.4f} -> {again.loss_after:.4f}" in shown.out


def test_a_checkpoint_of_transformers_is_converted_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = BertConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=40,
    )  # fmt: skip
    bert = BertForMaskedLM(config).eval()
    randomise(bert)
    bert.save_pretrained(tmp_path / "bert")
    make_tokenizer(tmp_path / "bert")
    assert run(tmp_path / "bert", tmp_path / "moved", "--to", MOVED, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["proof"] == "exact"
    moved = AutoModelForMaskedLM.from_pretrained(tmp_path / "moved")
    assert type(moved) is SublayerForMaskedLM
    ids = tokens(vocab=300)
    with torch.no_grad():
        assert same(moved(ids).logits, bert(ids).logits)
    assert run(tmp_path / "bert", tmp_path / "paf", "--to", "paf") == 0
    paf = AutoModelForMaskedLM.from_pretrained(tmp_path / "paf")
    assert paf.config.wiring.embed == "x = norm(e)"
    with torch.no_grad():
        assert not same(paf(ids).logits, bert(ids).logits, 1e-3)


MOVED = "embed: x = e\nblock: h = norm(x); x = h + attn(h); h = norm(x); x = h + ffn(h)\nfinal: x = norm(x)"


def test_layers_and_text(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The first paragraph.\n\nAnd the second.\n")
    assert run(checkpoint, tmp_path / "some", "--to", "paf", "--layers", "1:3", "--text", text) == 0
    assert "block[1:3]: x = norm(x + attn(x) + ffn(x))" in capsys.readouterr().out
    record = json.loads((tmp_path / "some" / "conversion.json").read_text())
    assert record["layers"] == [1, 2]
    assert record["sample"]["source"] == "the text that was given"


def test_the_defect_map_is_printed_and_nothing_is_written(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(tmp_path)
    assert run(checkpoint, "--defects") == 0
    shown = capsys.readouterr().out
    assert shown.count("x = norm(x + attn(x) + ffn(x))") == 4
    assert files(tmp_path) == before
    assert run(checkpoint, "--defects", "--json") == 0
    found = json.loads(capsys.readouterr().out)["defects"]
    ranked = sorted(found["layers"], key=lambda each: each["loss"])
    assert run(checkpoint, tmp_path / "two", "--to-parallel", "2", "--rank", "loss") == 0
    shown = capsys.readouterr().out
    chosen = sorted(each["layer"] for each in ranked[:2])
    assert f"made parallel, by the loss: layers {chosen[0]}, {chosen[1]}" in shown
    record = json.loads((tmp_path / "two" / "conversion.json").read_text())
    assert record["layers"] == chosen
    assert record["ranked_by"] == "loss"
    assert [each["defect"] for each in record["defects"]["layers"]] == [each["defect"] for each in found["layers"]]


def test_without_a_tokenizer_the_ids_are_random_and_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny("granite").save_pretrained(tmp_path / "bare")
    assert run(tmp_path / "bare", tmp_path / "out", "--to", "input-norm", "--seed", "3") == 0
    shown = capsys.readouterr()
    assert "note: there is no tokenizer" in shown.err
    assert "change   exact (another equation" in shown.out
    record = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert record["seed"] == 3
    assert record["sample"]["source"] == "random ids, seed 3"


def test_a_target_that_holds_files_is_refused_or_replaced_whole(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "precious.txt").write_text("do not touch")
    assert run(checkpoint, target, "--to", "paf") == 2
    assert "holds files: give another folder, or --overwrite" in capsys.readouterr().err

    def broken(model: Any, path: Any) -> None:
        Path(path, "half").write_text("half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("sublayer.hf.export", broken)
        assert run(checkpoint, target, "--to", "paf", "--overwrite") == 2
    assert "No space left" in capsys.readouterr().err
    assert [p.name for p in target.iterdir()] == ["precious.txt"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source", "target"]
    assert run(checkpoint, target, "--to", "paf", "--overwrite") == 0
    assert "precious.txt" not in files(target)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source", "target"]
    assert run(target, target, "--to", "sandwich", "--overwrite") == 0
    assert AutoModelForCausalLM.from_pretrained(target).config.wiring == parse("sandwich")
    (tmp_path / "file").write_text("")
    assert run(checkpoint, tmp_path / "file", "--to", "paf", "--overwrite") == 2
    assert "is a file: give another name" in capsys.readouterr().err


@pytest.mark.parametrize("at", [1, 2])
def test_what_was_there_comes_back_if_a_move_fails(at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where two folders cannot change places at once: with the old one still there, and with it moved aside."""
    target = tmp_path / "target"
    target.mkdir()
    (target / "precious.txt").write_text("do not touch")
    rename, tries = os.rename, 0

    def failing(source: Any, destination: Any) -> None:
        nonlocal tries
        if Path(destination) == target and not str(source).endswith(".old"):
            tries += 1
            if tries > at:
                raise OSError(5, "Input/output error")
        rename(source, destination)

    def no_library(_: object) -> None:
        raise OSError("no renameat2")

    monkeypatch.setattr("sublayer.hf.convert.folder.ctypes.CDLL", no_library)
    monkeypatch.setattr("os.rename", failing)
    with pytest.raises(OSError, match="Input/output error"):
        write_folder(target, lambda folder: (folder / "new.txt").write_text("new"), overwrite=True)
    assert tries == at + 1
    assert (target / "precious.txt").read_text() == "do not touch"
    assert [p.name for p in tmp_path.iterdir()] == ["target"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "paf"], "needs a folder"),
        (["OUT"], "say what to do"),
        ([], "say what to do"),
        (["OUT", "--defects"], "leave DST out"),
        (["OUT", "--to", "paf", "--to-parallel", "1"], "give one of them"),
        (["OUT", "--to-parallel", "1", "--layers", "0"], "--layers goes with --to"),
        (["OUT", "--to", "pre-norm"], "output-norm"),
        (["OUT", "--to", "x = x + atn(x)"], "unknown operator"),
        (["OUT", "--to", "residual", "--layers", "0"], "same streams"),
        (["OUT", "--to", "paf", "--layers", "9"], "within 0..3"),
        (["OUT", "--to-parallel", "5"], "4 of 4 layers can be made parallel, got 5"),
        (["OUT", "--to", "paf", "--text", "BINARY"], "a text is UTF-8"),
        (["OUT", "--to", "paf", "--text", "EMPTY"], "the text has none"),
    ],
)
def test_mistakes_are_one_message_and_write_nothing(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "BINARY").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "EMPTY").write_text("\n\n")
    before = files(tmp_path)
    given = [str(tmp_path / a) if a.isupper() else a for a in arguments]
    capsys.readouterr()
    assert run(checkpoint, *given) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert "Traceback" not in said.err
    assert not said.out.strip() or "defect map" in said.out
    assert files(tmp_path) == before


def test_what_is_no_checkpoint_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty", tmp_path / "out", "--to", "paf") == 2
    assert "config.json" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
