"""`sublayer audit` and `sublayer diff`: what they print, and exit codes: 0, 1 for a difference, 2 for a mistake."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sublayer.audit import Audit
from sublayer.cli import main
from tests.audit.made_up import BROKEN, audit, with_layers

INPUT_NORM = "x = x + attn(norm(x)); x = x + ffn(norm(x))"
TINY = {
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 64,
    "intermediate_size": 160,
    "vocab_size": 99,
}


@pytest.fixture
def llama(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **TINY}))
    return str(tmp_path / "config.json")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> dict[str, Audit]:
    """Audits by name, in place of models."""
    import sublayer.audit.read

    made = {"old": audit("bert", "old"), "new": audit("gpt-2", "new")}
    monkeypatch.setattr(sublayer.audit.read, "audit", lambda target, **_: made[target])
    return made


def run(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["sublayer", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


# --- a real model -------------------------------------------------------------------------------------------------


def test_audit_prints_the_equations(
    llama: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(["audit", llama], monkeypatch, capsys)
    assert code == 0
    for part in (
        "input-norm",
        f"layers 0-2: {INPUT_NORM}",
        "4 heads of 16, 2 key-value heads",
        "160 wide (2.5d), gated, silu",
        "rmsnorm, eps 1e-06",
    ):
        assert part in out


def test_audit_as_json_reads_back(
    llama: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(["audit", llama, "--json"], monkeypatch, capsys)
    assert code == 0
    found = Audit.from_dict(json.loads(out))
    assert str(found.design) == INPUT_NORM
    assert len(found.layers) == 3


def test_lock_then_check(
    llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = tmp_path / "wiring.lock"
    assert run(["audit", llama, "--lock", str(lock)], monkeypatch, capsys)[0] == 0
    code, out, _ = run(["audit", llama, "--check", str(lock)], monkeypatch, capsys)
    assert (code, out.count("\n")) == (0, 1)
    assert "holds: 3 layers of" in out
    config = Path(llama)
    config.write_text(config.read_text().replace('"num_key_value_heads": 2', '"num_key_value_heads": 1'))
    code, out, _ = run(["audit", llama, "--check", str(lock)], monkeypatch, capsys)
    assert code == 1
    assert "attention, key-value heads: 2 -> 1" in out
    assert f"sublayer audit {llama} --lock {lock}" in out


def test_diff_of_a_model_and_a_design(
    llama: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["diff", llama, "input-norm"], monkeypatch, capsys)[0] == 0
    code, out, _ = run(["diff", llama, "post-norm"], monkeypatch, capsys)
    assert code == 1
    assert "moved from their inputs to the sums" in out


# --- what the commands make of an audit ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("design", "code", "said"),
    [
        ("bert", 0, "as expected: 12 layers of"),
        ("roberta", 0, "as expected"),
        ("post-norm", 1, "the norm on the embedding is new"),
        ("x = norm(x + attn(x)); x = norm(x + ffn(x))", 1, "the norm on the embedding is new"),
        ("embed: x = norm(e)\nblock: x = norm(x + attn(x)); x = norm(x + ffn(x))", 0, "as expected"),
    ],
)
def test_expect(
    design: str,
    code: int,
    said: str,
    fake: dict[str, Audit],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    got, out, _ = run(["audit", "old", "--expect", design], monkeypatch, capsys)
    assert got == code
    assert said in out


def test_expect_fails_where_the_wiring_is_unknown(
    fake: dict[str, Audit], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake["old"] = with_layers(fake["old"], range(2), equation="", design=None, unknown="it scans")
    code, out, _ = run(["audit", "old", "--expect", "bert"], monkeypatch, capsys)
    assert code == 1
    assert "it scans" in out


def test_strict_fails_on_errors_only_when_asked(
    fake: dict[str, Audit], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["audit", "old", "--strict"], monkeypatch, capsys)[0] == 0
    fake["old"] = replace(fake["old"], findings=(replace(BROKEN, severity="warning"),))
    assert run(["audit", "old", "--strict"], monkeypatch, capsys)[0] == 0
    fake["old"] = replace(fake["old"], findings=(BROKEN,))
    assert run(["audit", "old"], monkeypatch, capsys)[0] == 0
    for more in ([], ["--expect", "bert"]):
        code, out, _ = run(["audit", "old", "--strict", *more], monkeypatch, capsys)
        assert code == 1
        assert "[residual-from-norm]" in out


def test_json_holds_the_comparisons(
    fake: dict[str, Audit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = str(tmp_path / "lock")
    run(["audit", "old", "--lock", lock], monkeypatch, capsys)
    code, out, _ = run(["audit", "new", "--check", lock, "--expect", "gpt-2", "--json"], monkeypatch, capsys)
    record = json.loads(out)
    assert code == 1
    assert record["expect"]["same"] is True
    assert record["check"]["held"] is False
    assert Audit.from_dict(record) == fake["new"]


def test_svg(
    fake: dict[str, Audit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(["audit", "old", "--svg", str(tmp_path / "a.svg")], monkeypatch, capsys)
    assert code == 0
    assert "wrote" in err
    assert (tmp_path / "a.svg").read_text().startswith("<svg")
    fake["old"] = Audit("old", (), unknown="it does not run")
    code, _, err = run(["audit", "old", "--svg", str(tmp_path / "b.svg")], monkeypatch, capsys)
    assert code == 2
    assert "it does not run" in err
    assert not (tmp_path / "b.svg").exists()


def test_forecast_takes_the_model_s_own_sizes(
    llama: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(["audit", llama, "--forecast", "--json"], monkeypatch, capsys)
    assert code == 0
    told = json.loads(out)["forecast"]
    fresh = {name: told["fresh"][name] for name in ("width", "ratio", "gated", "activation", "eps")}
    assert fresh == {"width": 64, "ratio": 2.5, "gated": True, "activation": "silu", "eps": 1e-6}
    assert [row["depth"] for row in told["depths"]] == [12, 48, 96]
    code, out, _ = run(["audit", llama, "--forecast"], monkeypatch, capsys)
    assert "untouched paths" in out


def test_diff(fake: dict[str, Audit], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["diff", "old", "old"], monkeypatch, capsys)[0] == 0
    code, out, _ = run(["diff", "old", "new", "--json"], monkeypatch, capsys)
    assert code == 1
    assert [move["place"] for move in json.loads(out)["moved"]] == ["embed", "layers 0-11", "final"]


# --- mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["audit"], "Missing argument"),
        (["audit", "old", "--lock", "a", "--check", "b"], "give one of them"),
        (["audit", "old", "--expect", "x = atn(x)"], "unknown operator"),
        (["audit", "old", "--expect", "pre-norm"], "two designs"),
        (["audit", "old", "--check", "missing.lock"], "missing.lock"),
        (["audit", "old", "--check", "bad.lock"], "a lock is JSON"),
        (["audit", "old", "--check", "."], "directory"),
        (["audit", "old", "--lock", "bad.lock/no"], "bad.lock"),
        (["diff", "old"], "Missing argument"),
        (["diff", "old", "x = atn(x)"], "unknown operator"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    arguments: list[str],
    said: str,
    fake: dict[str, Audit],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.lock").write_text("not a lock")
    code, _, err = run(arguments, monkeypatch, capsys)
    assert code == 2
    assert said in err
    assert "Traceback" not in err


@pytest.mark.parametrize("target", ["nowhere/config.json", "no_such_module:make", "./missing", "json:dumps"])
def test_a_target_that_is_none(
    target: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(["audit", target], monkeypatch, capsys)
    assert (code, out) == (2, "")
    assert target.partition("/")[0] in err
    assert "Traceback" not in err


def test_two_designs_are_compared_without_torch() -> None:
    program = (
        "import sys; sys.argv = ['sublayer', 'diff', 'post-norm', 'paf']\n"
        "import sublayer.cli\n"
        "try:\n    sublayer.cli.main()\n"
        "except SystemExit as end:\n    assert end.code == 1\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "attention and FFN moved from series to parallel" in done.stdout


def test_verbs_can_be_called() -> None:
    import sublayer as sl

    assert callable(sl.audit)
    assert sl.audit.Audit is sl.Audit
    assert sl.diff("paf", "paf").same
    assert sl.testing.assert_wiring
    assert callable(sl.audit.diff), "the module answers as the function does"
