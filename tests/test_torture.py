"""The short form of the trials of what is promised about runs; the long ones are `make torture`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kill", "crash", "damage", "settings"])
def test_what_is_promised_holds(name: str, tmp_path: Path) -> None:
    record = tried(name, tmp_path)
    assert record["lines"]
    for line in record["lines"]:
        assert line["holds"], line


def test_the_notation_reads_or_refuses_any_text(tmp_path: Path) -> None:
    (line,) = tried("notation", tmp_path, "--count", "300")["lines"]
    assert line["holds"], line


@pytest.mark.slow
def test_any_file_is_read_or_refused(tmp_path: Path) -> None:
    for line in tried("files", tmp_path, "--count", "12", "--commands", "10")["lines"]:
        assert line["holds"], line


def test_a_trial_that_there_is_not_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/torture"), "no-such-trial"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "no trial is called no-such-trial" in done.stderr


def tried(name: str, folder: Path, *more: str) -> dict[str, object]:
    """The record of one trial."""
    out = folder / "record.json"
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/torture"), name, "--quick", "--out", str(out), *more],
        capture_output=True, text=True, check=False, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert out.exists(), done.stdout + done.stderr
    return json.loads(out.read_text(encoding="utf-8"))
