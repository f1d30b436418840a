"""Studies made of parts: read, run, interrupted, resumed, recorded."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from sublayer.study import Program, StudyError, is_program, run_program
from sublayer.study.parts import part as parts
from sublayer.study.parts.part import Part, Result, Setting
from sublayer.study.program import read_record, summary

RAN: list[str] = []


class Counting(Part):
    """Counts how often it runs; fails where it is told to."""

    def check(self) -> None:
        self.only("number", "fails")
        self.number = self.take("number", int, need=True)

    def run(self, at: Setting) -> Result:
        RAN.append(self.name)
        if self.settings.get("fails") and not (at.folder / "tried").exists():
            (at.folder / "tried").write_text("x")
            raise KeyboardInterrupt
        before = sum(result.details["number"] for result in at.earlier.values())
        return Result(
            tables=[{"title": "Numbers", "note": "", "head": ["n"], "rows": [[self.number], [None]]}],
            verdicts=[f"{before} came before {self.number}."],
            details={"number": self.number},
        )


@pytest.fixture(autouse=True)
def _counting(monkeypatch: pytest.MonkeyPatch) -> None:
    RAN.clear()
    monkeypatch.setitem(parts.KINDS, "counting", f"{__name__}:Counting")
    monkeypatch.setattr(parts.importlib, "import_module", lambda name: __import__("sys").modules[name])


def write(folder: Path, text: str) -> Path:
    path = folder / "study.yaml"
    path.write_text(text)
    return path


GOOD = """
title: Counting
question: How
  many?
parts:
  - {kind: counting, name: one, number: 1}
  - {kind: counting, name: two, number: 2, fails: true}
  - {kind: counting, number: 3}
"""


def test_an_interrupted_study_goes_on_where_it_was(tmp_path: Path) -> None:
    path, out = write(tmp_path, GOOD), tmp_path / "out"
    assert is_program(path)
    program = Program.load(path)
    assert program.question == "How many?"
    with pytest.raises(KeyboardInterrupt):
        run_program(program, out, output=None)
    assert [p["name"] for p in read_record(out)["parts"]] == ["one"], "what was found is written at once"
    with pytest.raises(StudyError, match="--resume"):
        run_program(program, out, output=None)
    record = run_program(Program.load(path), out, resume=True, output=None, command=["sublayer", "compare"])
    assert RAN == ["one", "two", "two", "counting"]
    assert record["verdict"] == "0 came before 1. 1 came before 2. 3 came before 3."
    assert record == read_record(out)
    assert "two: 1 came before 2." in summary(record)
    run_program(Program.load(path), out, resume=True, output=None)
    assert len(RAN) == 4, "nothing is run twice"


def test_the_record_is_as_its_schema_says(tmp_path: Path) -> None:
    run_program(Program.load(write(tmp_path, GOOD.replace(", fails: true", ""))), tmp_path / "out", output=None)
    schema = json.loads((resources.files("sublayer.study") / "record.schema.json").read_text())
    jsonschema.validate(read_record(tmp_path / "out"), schema)


def test_another_file_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_program(Program.load(write(tmp_path, GOOD.replace(", fails: true", ""))), out, output=None)
    other = write(tmp_path, GOOD.replace("number: 3", "number: 4"))
    with pytest.raises(StudyError, match="another file"):
        run_program(Program.load(other), out, resume=True, output=None)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("title: a\nquestion: b\nparts: []\n", "a list of parts"),
        ("title: a\nparts: [{kind: counting, number: 1}]\n", "title and question"),
        ("title: a\nquestion: b\nseed: 1\nparts: [{kind: counting, number: 1}]\n", "move it into a part"),
        ("title: a\nquestion: b\nparts: [{kind: cuonting}]\n", "kind of part 1 is one of"),
        ("title: a\nquestion: b\nparts: [{kind: counting, number: one}]\n", "must be a int, got 'one'"),
        ("title: a\nquestion: b\nparts: [{kind: counting, numbr: 1}]\n", "nearest: number"),
        ("title: a\nquestion: b\nparts: [{kind: counting, name: ../x, number: 1}]\n", "letters, digits"),
        ("title: a\nquestion: b\nparts: [{kind: counting, number: 1}, {kind: counting, number: 1}]\n", "used once"),
        ("title: a\nquestion: b\nparts: [3]\n", "part 1 must be settings"),
    ],
)
def test_a_file_that_does_not_fit_is_one_message(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(StudyError, match=told):
        Program.load(write(tmp_path, text))


def test_a_damaged_result_is_made_again(tmp_path: Path) -> None:
    path, out = write(tmp_path, GOOD.replace(", fails: true", "")), tmp_path / "out"
    run_program(Program.load(path), out, output=None)
    (out / "parts" / "two" / "result.json").write_text('{"tables": [')
    RAN.clear()
    run_program(Program.load(path), out, resume=True, output=None)
    assert RAN == ["two"]


def test_ready_made_studies_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("GLUE", str(Path(__file__).parent))
    found: list[Any] = [Program.load(p) for p in sorted(Path("studies").glob("*/study.yaml"))]
    assert len(found) >= 4
    assert all(program.title and program.parts for program in found)
