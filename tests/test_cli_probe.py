"""`sublayer probe`: what it prints and writes, its page, and what it says when it cannot."""

import json
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sublayer.cli import main
from sublayer.probe.opening import open_model
from sublayer.probe.result import schema
from sublayer.report.errors import ProbePageError
from sublayer.report.probe_page import write_probe
from tests.probe.foreign import build

WORDS = [f"w{i}" for i in range(36)]


def run(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["sublayer", "probe", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


def save(name: str, folder: Path) -> Path:
    """A checkpoint with a tokenizer of words."""
    build(name).save_pretrained(folder)
    vocabulary = {w: i for i, w in enumerate(["<pad>", "<s>", "</s>", "<mask>", *WORDS])}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="<s>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<s>"}
    if name == "bert":
        special["mask_token"] = "<mask>"
    PreTrainedTokenizerFast(tokenizer_object=plain, **special).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints and a text."""
    top = tmp_path_factory.mktemp("checkpoints")
    save("bert", top / "bert")
    save("gpt2", top / "gpt2")
    lines = [{"text": " ".join(WORDS[(3 * k + i * (k + 1)) % 36] for i in range(40 + k))} for k in range(14)]
    (top / "text.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return top


class Tags(HTMLParser):
    """What is on a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.outside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.outside += [v for k, v in attrs if k in ("src", "href") and v and not v.startswith("#")]


def test_a_checkpoint_on_its_own_text(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = [
        str(folder / "gpt2"), "--data", str(folder / "text.jsonl"), "--seq", "16", "--batch", "4", "--lens",
        "--gradients", "--intervals", "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    code, out, err = run(arguments, monkeypatch, capsys)
    assert code == 0, err
    assert "x + attn(norm(x))" in out
    assert "lens loss" in out
    assert "gradient norm" in out
    assert "Is what attention adds small" in out
    record = json.loads((tmp_path / "out" / "probe.json").read_text())
    Draft202012Validator(schema()).validate(record)
    assert record["tokens_seen"] == 14 * 16
    assert record["texts"] == 14
    assert len(record["data"]["sha256"]) == len(record["data"]["ids_sha256"]) == 64
    assert record["command"][:2] == ["sublayer", "probe"]
    assert record["intervals"]["median_layer"]["ffn_change"]["low"] is not None
    assert [c["claim"] for c in record["claims"]] == ["ffn-isotropy", "attention-small"]
    page = (tmp_path / "out" / "probe.html").read_text()
    found = Tags(page)
    assert "script" not in found.tags
    assert found.outside == []
    assert found.tags.count("svg") > 10
    assert "default-src 'none'" in page
    again = run([*arguments[:-2], "--json"], monkeypatch, capsys)[1]
    assert json.loads(again)["sums"] == record["sums"]


def test_a_masked_model_has_masks_for_targets(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(folder / "bert"), "--data", str(folder / "text.jsonl"), "--seq", "16", "--json"]
    record = json.loads(run([*arguments, "--lens"], monkeypatch, capsys)[1])
    assert record["data"]["masked"] == 0.15
    assert 0 < record["lens"]["targets"] < 0.4 * record["tokens_seen"]
    plain = json.loads(run(arguments, monkeypatch, capsys)[1])
    assert plain["data"]["masked"] == 0.0
    assert plain["lens"] is None


def test_a_config_has_random_weights_and_no_text(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text((folder / "gpt2" / "config.json").read_text())
    arguments = [str(tmp_path / "config.json"), "--tokens", "100", "--seq", "10"]
    code, out, _ = run(arguments, monkeypatch, capsys)
    assert code == 0
    assert "note: the weights are random: a config.json has none" in out
    assert "note: the ids are random, since no tokenizer was found: no text was read" in out
    one, other = (open_model(str(tmp_path / "config.json"), seed=1).module.state_dict() for _ in range(2))
    assert all(torch.equal(v, other[k]) for k, v in one.items())


def test_a_callable(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["tests.probe.foreign:Functional", "--tokens", "60", "--seq", "12", "--json"]
    code, out, err = run(arguments, monkeypatch, capsys)
    assert code == 2
    assert "random ids need a vocabulary" in err
    assert not out


def test_two_side_by_side(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = [
        str(folder / "gpt2"), "--compare", str(folder / "bert"), "--data", str(folder / "text.jsonl"), "--seq", "16",
        "--out", str(tmp_path),
    ]  # fmt: skip
    code, out, err = run(arguments, monkeypatch, capsys)
    assert code == 0, err
    assert out.startswith(f"A: {folder / 'gpt2'}\nB: {folder / 'bert'}")
    record = json.loads((tmp_path / "probe.json").read_text())
    assert record["schema"] == "sublayer.probe-comparison/1"
    assert record["a"]["data"]["sha256"] == record["b"]["data"]["sha256"]
    assert len(record["claims"]) == 2
    page = (tmp_path / "probe.html").read_text()
    assert "Side by side" in page
    assert "script" not in Tags(page).tags


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere/at-all/model"], "nowhere/at-all/model"),
        (["tests.probe.foreign:nothing"], "must be importable"),
        (["tests.probe.foreign:WORDS"], "callable that returns a module is needed"),
        (["{gpt2}", "--data", "/nowhere.txt"], "/nowhere.txt"),
        (["{gpt2}", "--device", "toaster"], "device is auto, cpu or one that torch has: got 'toaster'"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str],
    said: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, err = run([a.format(gpt2=folder / "gpt2") for a in arguments], monkeypatch, capsys)
    assert code == 2
    assert said in err
    assert not out
    assert len(err.strip().splitlines()) == 1


def test_pickled_weights_are_never_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text((folder / "gpt2" / "config.json").read_text())
    torch.save({}, tmp_path / "pytorch_model.bin")
    code, _, err = run([str(tmp_path)], monkeypatch, capsys)
    assert code == 2
    assert "loaded from safetensors" in err


def test_a_page_escapes_and_refuses(folder: Path, tmp_path: Path) -> None:
    record: dict[str, Any] = {"schema": "other"}
    with pytest.raises(ProbePageError, match="got 'other'"):
        write_probe(record, tmp_path / "page.html")
    import sublayer as sl

    record = sl.probe(
        build("t5"), {"input_ids": torch.arange(3, 30).reshape(3, 9), "labels": torch.arange(3, 24).reshape(3, 7)}
    ).record
    record["sums"][0]["equation"] = "<b>bold</b>"
    write_probe(record, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "&lt;b&gt;bold&lt;/b&gt;" in page
    assert "<b>" not in page
    assert "encoder" in page
