"""What the project is built from is looked at, and what is wrong with it is said."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import supply


def test_every_package_of_the_locks_has_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert supply.unhashed() == []
    lock = tmp_path / "lock"
    good = f"good==1.0 \\\n    --hash=sha256:{'a' * 64}\n"
    lock.write_text(
        f"# text\n\nbare==1.0\n{good}loose>=1 \\\n    --hash=sha256:{'a' * 64}\nshort==2 \\\n    --hash=md5:1\n"
    )
    monkeypatch.setattr(supply, "LOCK", lock)
    assert supply.unhashed() == ["bare==1.0", "loose>=1", "short==2"]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("MIT", {"MIT"}),
        ("Apache-2.0 AND MIT", {"Apache-2.0", "MIT"}),
        ("DFSG approved; MIT License", {"MIT License"}),
        ("MIT AND (Apache-2.0 OR BSD-2-Clause)", {"MIT", "Apache-2.0", "BSD-2-Clause"}),
        ("The MIT License (MIT)\n\nPermission is hereby granted", {"The MIT License (MIT)"}),
        ("", {"UNKNOWN"}),
    ],
)
def test_the_licences_that_a_package_names(text: str, named: set[str]) -> None:
    assert supply.licences(text) == named


def test_a_licence_that_is_not_on_the_list_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    packages = [{"Name": name, "Version": "1", "License": licence} for name, licence in
                [("one", "MIT"), ("two", "GPL-3.0-only"), ("three", "UNKNOWN"), ("four", "DFSG approved")]]  # fmt: skip
    answer = subprocess.CompletedProcess([], 0, json.dumps(packages), "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: answer)
    assert supply.not_allowed() == (4, ["two 1: GPL-3.0-only", "three 1: UNKNOWN", "four 1: -"])


@pytest.mark.parametrize(("there", "status"), [(True, 1), (False, 0)])
def test_weaknesses(
    there: bool, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    weak = {"name": "one", "version": "1.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1"]}]}
    told = {"dependencies": [weak, {"name": "two", "version": "2", "vulns": []}, {"name": "three", "skip_reason": "-"}]}

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert "pip_audit" in command
        return subprocess.CompletedProcess(command, 1, json.dumps(told), "")

    monkeypatch.setattr(supply, "not_allowed", lambda: (3, []))
    monkeypatch.setattr(supply, "reachable", lambda: there)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["supply.py", "--out", str(tmp_path / "supply.json")])
    assert supply.main() == status
    said = capsys.readouterr().out
    if there:
        assert "2 packages looked up, 1 that the database does not have" in said
        assert "one 1.0: PYSEC-1 (mended in 1.1)" in said
    else:
        assert "not looked for: PyPI's database cannot be reached" in said
    record = json.loads((tmp_path / "supply.json").read_text())
    assert [package["name"] for package in record["weak"]] == (["one"] if there else [])
