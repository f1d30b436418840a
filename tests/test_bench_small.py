"""Benchmarks of starting and of generating, with small shapes: they run and write whole records."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


def record(name: str, folder: Path, *words: str) -> dict[str, Any]:
    """What a benchmark wrote with ``--quick``."""
    out = folder / f"{name}.json"
    program = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--quick", "--rounds", "1", "--out", str(out)]
    done = subprocess.run([*program, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    assert found["benchmark"] == name
    assert found["quick"]
    return found


def test_starting_is_measured_as_a_difference_in_seconds(tmp_path: Path) -> None:
    rows = record("start", tmp_path)["rows"]
    assert [row["work"] for row in rows] == ["sublayer --help", "sublayer show post-norm"]
    for row in rows:
        assert (row["bound"], row["reach"]) == ("at most", 0.5)
        assert row["ratio"] == pytest.approx(row["ours"] - row["theirs"])


def test_generating_gives_the_same_tokens_as_transformers(tmp_path: Path) -> None:
    rows = record("generate", tmp_path, "--threads", "1")["rows"]
    goals = {row["against"]: row["reach"] for row in rows}
    assert goals["transformers' generate"] == 1.0
    assert goals["reading the weights"] == 0.8
    assert rows[0]["checks"]["ids that differ"] == 0
    assert rows[0]["checks"]["kinds of ids"] > 1
