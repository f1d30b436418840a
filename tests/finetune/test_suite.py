"""Several tasks and seeds: the table, the results file, resume, and the command line."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from scipy import stats

import sublayer as sl
from sublayer.cli import main
from sublayer.finetune import FinetuneError, FinetuneSpec, Finetuning
from sublayer.finetune.loop import TaskGuard
from sublayer.finetune.result import gather, table
from sublayer.finetune.suite import _claim, exit_status
from sublayer.finetune.tasks import TASKS

QUICK: dict[str, Any] = {
    "steps": 2, "batch": 8, "lr": 1e-2, "threads": 1, "device": "cpu", "save_model": False, "save_steps": 0,
}  # fmt: skip


def valid(results: Any) -> None:
    schema = json.loads(resources.files("sublayer.finetune").joinpath("results.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(json.loads(json.dumps(results, allow_nan=False)))


@pytest.fixture(scope="module")
def some(glue: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of three tasks."""
    folder = tmp_path_factory.mktemp("some")
    for name in ("RTE", "CoLA", "STS-B"):
        shutil.copytree(glue / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def suite(bert: Path, some: Path, tmp_path_factory: pytest.TempPathFactory) -> Finetuning:
    out = tmp_path_factory.mktemp("suite") / "out"
    return sl.finetune(bert, suite="glue", data=some, seeds=(0, 1), out=out, output=None, **QUICK)


def made_up(task: str, scores: Sequence[float | None], statuses: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Rows of runs that nobody ran."""
    names = TASKS[task].score_names
    found = []
    for seed, score in enumerate(scores):
        status = statuses[seed] if statuses else "ok"
        found.append({
            "id": f"{task}-s{seed}", "task": task, "seed": seed, "status": status, "reason": None if score else "why",
            "score": score, "metrics": dict.fromkeys(names, score), "notes": {}, "folder": "x", "weights": "last",
            "majority": {"label": "1", "score": 0.5, "metrics": dict.fromkeys(names, 0.5), "notes": {}},
            "settings": FinetuneSpec(checkpoint="c", task=task, to="paf").to_dict(), "versions": {}, "threads": 1,
            "device": "cpu", "data": {"skipped": {}},
            "checkpoint": {"source": "some/model", "design_trained": "x = norm(x + attn(x) + ffn(x))"},
        })  # fmt: skip
    return found


# -- the table ---------------------------------------------------------------------------------------------------------


def test_the_table_has_the_columns_of_glue_in_their_order() -> None:
    rows = [*made_up("rte", [0.71, 0.73, 0.72]), *made_up("cola", [0.2, None, None], ["ok", "diverged", "diverged"])]
    text = table(gather(rows, []))
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert lines[0] == ["", "MNLI", "QQP", "QNLI", "SST-2", "CoLA", "STS-B", "MRPC", "RTE"]
    half = stats.t.ppf(0.975, 2) * 0.01 / 3**0.5
    assert lines[2] == ["some/model -> paf", "-", "-", "-", "-", "20.0 (1 of 3)", "-", "-", f"72.0 ±{100 * half:.1f}"]
    assert lines[3] == ["majority", "-", "-", "-", "-", "50.0", "-", "-", "50.0"]
    assert len({len(line) for line in text.splitlines()}) == 1
    wnli = table(gather([*rows, *made_up("wnli", [0.5])], []))
    assert wnli.splitlines()[0].endswith("| RTE       | WNLI |")


@pytest.mark.parametrize(
    ("scores", "statuses", "word"),
    [
        ([None, None], ["diverged", "diverged"], "diverged"),
        ([None, None], ["ok", "ok"], "undefined"),
        ([None, None], ["failed", "failed"], "failed"),
    ],
)
def test_a_task_without_any_score_is_shown_as_what_it_is(scores: Any, statuses: Any, word: str) -> None:
    results = gather(made_up("stsb", scores, statuses), [])
    assert word in table(results).splitlines()[2]
    assert results["tasks"][0]["score"] == {"mean": None, "sd": None, "half": None, "n": 0, "lost": 2}
    assert any("Without a score" in caveat and "stsb-s1" in caveat for caveat in results["caveats"])
    text = str(Finetuning(Path(), results))
    assert text.count(word) >= 2, "each seed says so"


def test_scores_of_the_best_step_are_called_flattering() -> None:
    rows = made_up("rte", [0.7])
    assert not any("flatters" in caveat for caveat in gather(rows, [])["caveats"])
    assert any("flatters" in caveat for caveat in gather([{**rows[0], "weights": "best"}], [])["caveats"])


# -- a suite, end to end -----------------------------------------------------------------------------------------------


def test_the_suite_runs_what_the_folder_has(suite: Finetuning) -> None:
    results = suite.to_dict()
    valid(results)
    assert [task["task"] for task in results["tasks"]] == ["cola", "stsb", "rte"]
    assert [row["id"] for row in results["runs"]] == ["cola-s0", "cola-s1", "stsb-s0", "stsb-s1", "rte-s0", "rte-s1"]
    assert {row["status"] for row in results["runs"]} == {"ok"}
    written = json.loads((suite.folder / "finetune.json").read_text())
    assert len(written.pop("file_sha256")) == 64
    assert written == results
    assert Finetuning.load(suite.folder).results == results
    text = str(suite)
    assert text.startswith("|")
    assert "pearson" in text
    assert "majority: pearson: every prediction is 3: a correlation is not defined" in text
    assert results["command"][:2] == ["sublayer", "finetune"]
    assert results["command"][results["command"].index("--seeds") + 1] == "0,1"


def test_as_a_frame(suite: Finetuning) -> None:
    frame = suite.to_frame()
    assert list(frame["task"]) == ["cola", "cola", "stsb", "stsb", "rte", "rte"]
    assert frame.loc[frame.task == "rte", "accuracy"].notna().all()
    assert frame.loc[frame.task == "rte", "majority"].nunique() == 1
    assert "<pre>" in suite._repr_html_()
    with pytest.raises(FinetuneError, match="no finished run of 'rte' with kept weights"):
        suite.model("rte")


def test_resuming_runs_only_what_is_missing(suite: Finetuning, bert: Path, some: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(suite.folder, out)
    shutil.rmtree(out / "runs" / "stsb-s1")
    times = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/run.json")}
    again = sl.finetune(bert, suite="glue", data=some, seeds=(0, 1), out=out, output=None, resume=True, **QUICK)
    assert len(list(out.glob("runs/*/run.json"))) == 6
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    one, other = (next(row for row in found.results["runs"] if row["id"] == "stsb-s1") for found in (suite, again))
    assert one["weights_sha256"] == other["weights_sha256"]
    with pytest.raises(FinetuneError, match="holds results already; pass --resume"):
        sl.finetune(bert, suite="glue", data=some, seeds=(0, 1), out=out, output=None, **QUICK)
    with pytest.raises(FinetuneError, match=r"runs that are not asked for now \(cola-s1, rte-s1, stsb-s1\)"):
        sl.finetune(bert, suite="glue", data=some, seeds=(0,), out=out, output=None, resume=True, **QUICK)


def test_a_signal_stops_the_suite_and_says_what_is_missing(
    suite: Finetuning, bert: Path, some: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = TaskGuard.on_step_end

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if args.run_name == "cola-s1" and state.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return ended(self, args, state, control, **kwargs)

    everything: dict[str, Any] = {
        "task": ("rte", "cola"), "data": some, "seeds": (0, 1), "out": tmp_path / "out", "output": None, **QUICK,
    }  # fmt: skip
    with monkeypatch.context() as patched:
        patched.setattr(TaskGuard, "on_step_end", on_step_end)
        stopped = sl.finetune(bert, **everything)
    valid(stopped.results)
    assert [row["status"] for row in stopped.results["runs"]] == ["ok", "killed", "missing", "missing"]
    assert exit_status(stopped.results["runs"]) == 143
    assert str(stopped).count("missing") >= 3
    again = sl.finetune(bert, resume=True, **everything)
    want = {row["id"]: row["weights_sha256"] for row in suite.results["runs"] if row["task"] != "stsb"}
    assert {row["id"]: row["weights_sha256"] for row in again.results["runs"]} == want


def test_mistakes_are_told_before_anything_is_run(bert: Path, some: Path, glue: Path, tmp_path: Path) -> None:
    def fine(**changes: Any) -> Any:
        settings = {"task": "rte", "data": some, "out": tmp_path / "out", "output": None, **QUICK}
        return sl.finetune(bert, **{**settings, **changes})

    for changes, message in (
        ({"task": None}, "either a task or a suite"),
        ({"suite": "glue"}, "either a task or a suite"),
        ({"task": None, "suite": "superglue"}, "a suite is glue"),
        ({"task": "squad"}, "a task is one of"),
        ({"task": "qqp"}, "must hold the files of QQP"),
        ({"seeds": ()}, "seeds are whole numbers"),
        ({"seeds": (1, 1)}, "each once"),
        ({"task": None, "suite": "glue", "data": tmp_path}, "has no folder that is named like a task"),
        ({"learning_rate": 1e-3}, "'learning_rate' is not a setting"),
    ):
        with pytest.raises(ValueError, match=message):
            fine(**changes)
    assert not (tmp_path / "out").exists()
    shutil.copytree(glue / "RTE", tmp_path / "files")
    with pytest.raises(FinetuneError, match="of which its name says nothing: give --task"):
        fine(task=None, suite="glue", data=tmp_path / "files")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("")
    with pytest.raises(FinetuneError, match="is not empty and holds no results"):
        fine()


def test_exit_statuses() -> None:
    rows = {status: {"status": status, "signal": 15 if status == "killed" else None} for status in
            ("ok", "diverged", "killed", "failed")}  # fmt: skip
    assert exit_status([rows["ok"], rows["diverged"]]) == 0
    assert exit_status([rows["diverged"]]) == 3
    assert exit_status([rows["ok"], rows["failed"]]) == 1
    assert exit_status([rows["failed"], rows["killed"]]) == 143


# -- the command line --------------------------------------------------------------------------------------------------


def command(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["sublayer", "finetune", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


def test_a_command_that_fine_tunes(
    bert: Path, some: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = f"--task cola --data {some} --steps 4 --batch 8 --threads 1 --device cpu --out {out}".split()
    code, said, told = command([str(bert), *words, "--to", "paf"], monkeypatch, capsys)
    assert code == 0, told
    assert "tiny-bert -> paf" in said
    assert "matthews" in said
    assert f"results: {out / 'finetune.json'}" in said
    assert "cola-s0  step 4  matthews" in told
    assert "Traceback" not in told
    results = json.loads((out / "finetune.json").read_text())
    valid(results)
    assert results["command"] == ["sublayer", "finetune", str(bert), *words, "--to", "paf"]
    assert (out / "runs" / "cola-s0" / "model" / "model.safetensors").is_file()
    assert Finetuning.load(out).model("cola") == out / "runs" / "cola-s0" / "model"
    code, said, _ = command([str(bert), *words, "--to", "paf", "--resume", "--json"], monkeypatch, capsys)
    assert code == 0
    assert json.loads(said)["runs"] == results["runs"], "not run again"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere/at/all", "--task", "cola", "--data", "DATA"], "is no folder"),
        (["BERT", "--task", "cola", "--data", "/nowhere"], "'/nowhere' is no folder"),
        (["BERT", "--data", "DATA"], "give either a task or a suite"),
        (["BERT", "--task", "cola", "--data", "DATA", "--to", "x = pre_norm(x)"], "pre_norm"),
        (["BERT", "--task", "cola", "--data", "DATA", "--lr", "-1"], "lr must not be negative, got -1.0"),
        (["BERT", "--task", "cola", "--data", "DATA", "--seeds", "one"], "seeds are numbers"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    arguments: list[str], message: str, bert: Path, some: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = [{"BERT": str(bert), "DATA": str(some)}.get(word, word) for word in arguments]
    code, said, told = command([*words, "--out", str(tmp_path / "out")], monkeypatch, capsys)
    assert code == 2
    assert message in told
    assert "Traceback" not in told
    assert not said
    assert not (tmp_path / "out" / "finetune.json").exists()


def test_results_that_were_killed_before_they_began_may_begin_again(tmp_path: Path) -> None:
    for name in (".lock", ".owner"):
        (tmp_path / name).write_text("{}")
    assert _claim([], tmp_path, resume=False) == tmp_path
    (tmp_path / "mine.txt").touch()
    with pytest.raises(FinetuneError, match="not empty"):
        _claim([], tmp_path, resume=False)
