"""The command line: what it prints, and that a user's mistake is one message and exit code 2."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sublayer.cli import main
from sublayer.notation import designs, parse

TINY = "--layers 2 --hidden 32 --heads 2 --ffn 64 --seq 32 --batch 4 --vocab-size 320 --threads 1".split()


def run(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["sublayer", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


@pytest.fixture
def text_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    words = "the stream carries what every branch adds to it and a norm keeps its scale".split()
    for i in range(30):
        body = " ".join(words[(i * 7 + j * (i % 5 + 1)) % len(words)] for j in range(120))
        (folder / f"{i}.txt").write_text(f"Document {i}. {body}.\n")
    return folder


def test_show_prints_sections_placement_and_shapes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(["show", "post-norm"], monkeypatch, capsys)
    assert code == 0
    for part in (
        "x = norm(x + attn(x)); x = norm(x + ffn(x))",
        "embed",
        "final",
        "post-norm: the sum is normed",
        "d x d_ff",
        "1706.03762",
    ):
        assert part in out


@pytest.mark.parametrize("form", ["--latex", "--code", "--json", "--text"])
def test_every_design_shows_in_every_form(
    form: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for entry in designs():
        code, out, err = run(["show", entry.name, form], monkeypatch, capsys)
        assert (code, err) == (0, ""), entry.name
        assert out.strip()
        if form == "--text":
            assert parse(out) == parse(entry.name)
        if form == "--json":
            assert json.loads(out)["final"] == parse(entry.name).final


def test_svg_is_written_to_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "block.svg"
    code, out, err = run(["show", "paf", "--svg", str(path)], monkeypatch, capsys)
    assert (code, out) == (0, "")
    assert "wrote" in err
    assert path.read_text().startswith("<svg")
    code, _, err = run(["show", "paf", "--svg", str(tmp_path / "no" / "block.svg")], monkeypatch, capsys)
    assert code == 2
    assert "cannot write" in err


def test_the_catalogue_is_listed_and_searched(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(["designs"], monkeypatch, capsys)
    assert code == 0
    assert len(designs()) >= 40
    assert all(entry.name in out for entry in designs())
    assert "hyper-connections" in out
    _, out, _ = run(["designs", "gemma"], monkeypatch, capsys)
    assert "gemma-2" in out
    assert "hyper-connections" not in out
    _, out, _ = run(["designs", "--json"], monkeypatch, capsys)
    assert {d["name"] for d in json.loads(out)["designs"]} == {e.name for e in designs()}


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["show", "pre-norm"], "input-norm"),
        (["show", "x = x + atn(x)"], "nearest valid spelling: attn"),
        (["show", "hyper-connections"], "cannot be written"),
        (["show"], "Missing argument"),
        (["nothing"], "No such command"),
        (["compare", "paf", "--data", "no/such/folder"], "no/such/folder"),
        (["compare", "paf", "paf"], "designs must differ"),
        (["compare", "paf", "--hidden", "130"], "divisible"),
        (["compare", "paf", "--lr", "fast"], "separated by commas"),
        (["compare", "paf", "--seeds", "0,0"], "different"),
        (["compare", "paf", "--steps", "5", "--tokens", "5"], "either steps or tokens"),
        (["compare", "paf", "--hidden-act", "foo"], "hidden_act"),
        (["compare", "x = x + moe(x)"], "moe"),
        (["compare", "paf", "--hidden", "20", "--heads", "4", "--positions", "rotary"], "must be even"),
        (["compare", "paf", "--batch", "0", "--tokens", "100"], "batch must be at least 1"),
        (["compare", "paf", "--steps", "0"], "got 0"),
        (["compare", "paf", "--seeds", ","], "separated by commas"),
        (["cost", "paf", "--kv-heads", "5"], "divisible"),
        (["train", "paf", "--data", "no/such/folder", "--out", "never"], "no/such/folder"),
        (["train", "x = x + moe(x)", "--out", "never"], "moe"),
        (["train", "paf", "--layers", "0", "--out", "never"], "layers must be at least 1"),
        (["train", "block[:3]: x = norm(x)\nblock[3:]: x = x", "--layers", "2", "--out", "never"], "tile the 2 layers"),
    ],
)
def test_mistakes_are_one_message_and_exit_code_2(
    arguments: list[str], part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run(arguments, monkeypatch, capsys)
    assert code == 2
    assert part in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_compare_from_text_to_report(text_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    command = [
        sys.executable,
        "-m",
        "sublayer",
        "compare",
        "paf",
        "x = x + attn(norm(x)); x = x + ffn(norm(x))",
        "x = x + scale(attn(x)) + ffn(1e30*x)",
    ]
    command += ["--data", str(text_folder), "--steps", "6", "--seeds", "0,1", "--out", str(out), *TINY]
    done = subprocess.run([*command, "--jobs", "2"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads((out / "results.json").read_text())
    status = {(r["design"], r["status"]) for r in results["runs"]}
    assert ("paf", "ok") in status
    assert ("input-norm", "ok") in status
    assert {s for d, s in status if d == "design-3"} <= {"diverged", "ok"}
    assert results["fairness"]["same_data_order"] is True
    counted = {r["design"]: r["parameters"] for r in results["runs"] if r["status"] == "ok"}
    assert {d["id"]: d["parameters"] for d in results["designs"] if d["id"] in counted} == counted
    page = (out / "report.html").read_text()
    for row in results["comparison"]["rows"]:
        assert row["mean"] is None or f"{row['mean']:.3f}" in page
    # Nothing is left to do, and the folder is not written over by accident.
    again = subprocess.run([*command, "--resume"], capture_output=True, text=True)
    assert again.returncode == 0
    assert "finished already" in again.stderr
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "--resume" in refused.stderr
    from transformers import AutoModelForCausalLM

    import sublayer.model  # noqa: F401  # registers the Auto classes

    best = next(r for r in results["runs"] if r["status"] == "ok")
    assert AutoModelForCausalLM.from_pretrained(out / best["model"]).config.design == str(parse("paf"))


@pytest.mark.slow
def test_train_is_one_run_of_a_study(text_folder: Path, tmp_path: Path) -> None:
    settings = ["--data", str(text_folder), "--steps", "6", *TINY]
    base = [sys.executable, "-m", "sublayer"]
    one = subprocess.run(
        [*base, "train", "paf", "--out", str(tmp_path / "one"), *settings], capture_output=True, text=True
    )
    assert one.returncode == 0, one.stderr
    assert (tmp_path / "one" / "model.safetensors").is_file()
    many = subprocess.run(
        [*base, "compare", "paf", "--out", str(tmp_path / "many"), *settings], capture_output=True, text=True
    )
    assert many.returncode == 0, many.stderr
    (row,) = json.loads((tmp_path / "many" / "results.json").read_text())["runs"]
    weights = (tmp_path / "many" / row["model"] / "model.safetensors").read_bytes()
    assert weights == (tmp_path / "one" / "model.safetensors").read_bytes()


def test_cost_is_printed_and_given_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--hidden", "64", "--layers", "2", "--heads", "4", "--vocab", "100"]
    code, out, _ = run(["cost", "paf", *small], monkeypatch, capsys)
    assert code == 0
    assert "layers.attn" in out
    code, out, _ = run(["cost", "paf", *small, "--json"], monkeypatch, capsys)
    assert json.loads(out)["parameters"] > 64 * 100
    code, _, err = run(["cost", "paf", "--heads", "7"], monkeypatch, capsys)
    assert code == 2
    assert "divisible" in err


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("out: here\n", "command line"),
        ("steps: many\n", "steps"),
        ("size: [a]\n", "size is one of"),
        ("seeds: [[1]]\n", "whole numbers"),
        ("lrs: [[1]]\n", "numbers"),
        ("report_to: 3\n", "report_to"),
        ("betas: 5\n", "betas"),
    ],
)
def test_bad_config_files_are_one_message_too(
    text: str, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    monkeypatch.chdir(tmp_path)
    code, _, err = run(["compare", "paf", "--config", str(path)], monkeypatch, capsys)
    assert code == 2
    assert part in err
