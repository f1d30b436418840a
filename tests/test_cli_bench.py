"""`sublayer bench`: what is run, what is shown, what is told."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sublayer.cli import cli
from sublayer.cli.bench import NOT_ONE

WORKS = '''"""Adds.

More.
"""
import json, sys
out = sys.argv[sys.argv.index("--out") + 1]
row = {"work": "adding", "against": "a peer", "ratio": 2.0, "low": 1.5, "high": 2.5, "bound": "at least", "reach": 3.0,
       "reached": False}
open(out, "w").write(json.dumps({"schema": "sublayer.pairs/1", "words": sys.argv[1:], "rows": [row]}))
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "benchmarks"
    made.mkdir()
    (made / "adds.py").write_text(WORKS)
    (made / "breaks.py").write_text('"""Breaks."""\nraise SystemExit(1)\n')
    (made / "needs.py").write_text('"""Needs a GPU."""\nraise SystemExit(2)\n')
    (made / f"{NOT_ONE[0]}.py").write_text('"""Shared."""\n')
    return made


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, ["bench", *words])


def test_runs_one_and_hands_it_its_options(folder: Path, tmp_path: Path) -> None:
    done = run("adds", "--folder", str(folder), "--out", str(tmp_path / "out"), "--quick", "--set", "--threads 1")
    assert done.exit_code == 0, done.output
    assert "== adds: Adds." in done.output
    record = json.loads((tmp_path / "out" / "adds.json").read_text())
    assert record["words"][2:] == ["--quick", "--threads", "1"]


def test_one_that_breaks_is_named_after_the_others_ran(folder: Path) -> None:
    done = run("--folder", str(folder))
    assert done.exit_code == 1
    assert "did not run to their end: breaks;" in done.output
    assert "needs cannot run here, and is left out" in done.output
    assert (folder / "adds.json").exists()
    assert "did not run to their end: needs;" in run("needs", "--folder", str(folder)).output, "it was asked for"


def test_list_shows_what_was_found_beside_the_goal(folder: Path) -> None:
    run("adds", "--folder", str(folder))
    (folder / "breaks.json").write_text('{"schema": "of another kind"}')
    said = run("--list", "--folder", str(folder)).output
    assert "2.00 (1.50 to 2.50)  adding / a peer  at least 3: missed" in said
    assert "Breaks." in said
    assert "Shared." not in said


@pytest.mark.parametrize(
    ("words", "told"), [(["addz"], "a benchmark is one of adds, breaks, needs; got addz"), ([], "holds none")]
)
def test_what_is_not_there(folder: Path, words: list[str], told: str) -> None:
    done = run(*words, "--folder", str(folder if words else folder.parent))
    assert done.exit_code == 2
    assert told in done.output.replace("\n", " ")
