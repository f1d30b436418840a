"""Running a plan: every run is a process of its own, and what happens to one leaves the others."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sublayer import folders, signed
from sublayer.study import Plan, StudyError
from sublayer.study.execute import execute, finished, run_folder
from sublayer.study.results import gather
from sublayer.study.study import Study, run_study, table

FACTS = {
    "spec": "docs", "sha256": "0" * 64, "documents": 2, "train_tokens": 10, "eval_tokens": 5, "eval_documents": 1,
    "vocab_size": 300, "tokenizer": "test", "tokenizer_sha256": None,
}  # fmt: skip

# Stands in for a training process: its design decides what becomes of it.
CHILD = """
import json, os, signal, sys, time
spec = json.load(open(sys.argv[1])); out = sys.argv[2]
design, seed = spec["design"], spec["seed"]
open(os.path.join(out, "started"), "a").write("x")
if "rmsnorm" in design: os.kill(os.getpid(), signal.SIGKILL)
if "dyt" in design: print("bad thing: no such file"); sys.exit(1)
if "gate" in design: time.sleep(60)
status = "diverged" if "scale" in design else "ok"
row = {"status": status, "reason": "the loss is nan at step 3" if status == "diverged" else None,
       "eval_loss": None if status == "diverged" else 5.0 + seed / 10 + (0.5 if "ffn" in design else 0), "seconds": 1.0,
       "train_loss": 5.0, "steps_done": 4, "threads": 1, "device": "cpu", "data_order_sha256": "d",
       "init_sha256": {"attn": f"a{seed}", "embed": f"e{seed}"}, "model": "model"}
json.dump(row, open(os.path.join(out, "run.json"), "w"))
"""

GOOD = ["x = norm(x + attn(x))", "x = norm(x + attn(x) + ffn(x))"]
LOST = ["x = x + scale(attn(x))", "x = rmsnorm(x + attn(x))", "x = dyt(x + attn(x))"]


def child(settings: Path, folder: Path) -> list[str]:
    return [sys.executable, "-c", CHILD, str(settings), str(folder)]


def plan(designs: list[str], seeds: tuple[int, ...] = (0, 1)) -> Plan:
    return Plan.make(designs, seeds=seeds, steps=4)


def test_lost_runs_leave_the_others_whole_and_are_shown(tmp_path: Path) -> None:
    study = plan(GOOD + LOST)
    execute(study, tmp_path, jobs=3, output=None, command=child)
    results = gather(study, tmp_path, FACTS, ["sublayer", "compare"])
    status = {d["id"]: {r["status"] for r in results["runs"] if r["design"] == d["id"]} for d in results["designs"]}
    assert list(status.values()) == [{"ok"}, {"ok"}, {"diverged"}, {"killed"}, {"failed"}]
    reasons = {r["status"]: r["reason"] for r in results["runs"]}
    assert "nan at step 3" in reasons["diverged"]
    assert "SIGKILL" in reasons["killed"]
    assert "no such file" in reasons["failed"]
    rows = results["comparison"]["rows"]
    assert [r["lost"] for r in rows] == [0, 0, 2, 2, 2]
    assert rows[1]["difference"] == pytest.approx(0.5)
    assert "were lost" in results["verdict"]
    json.dumps(results, allow_nan=False)
    assert "lost" in table(results)


def test_resume_runs_only_what_is_missing(tmp_path: Path) -> None:
    study = plan(GOOD + LOST[:2], seeds=(0,))
    execute(study, tmp_path, output=None, command=child)
    runs = study.runs()
    (run_folder(tmp_path, runs[1]) / "run.json").unlink()
    execute(study, tmp_path, output=None, command=child)
    started = [len((run_folder(tmp_path, r) / "started").read_text()) for r in runs]
    # Finished and diverged runs stay; the missing one and the killed one ran again.
    assert started == [1, 2, 1, 2]


def test_a_damaged_run_is_not_taken_for_finished(tmp_path: Path) -> None:
    study = plan(GOOD, seeds=(0,))
    execute(study, tmp_path, output=None, command=child)
    first, second = (run_folder(tmp_path, run) / "run.json" for run in study.runs())
    signed.write(first, json.loads(first.read_text()))
    signed.write(second, json.loads(second.read_text()))
    first.write_text(first.read_text().replace("5.0", "4.0", 1))  # a better loss
    assert finished(tmp_path, study.runs()[0]) is None
    row, other = gather(study, tmp_path, FACTS, [])["runs"]
    assert (row["status"], other["status"]) == ("missing", "ok")
    assert "was changed or damaged" in row["reason"]
    assert "--resume" in row["reason"]


def test_an_unfinished_study_says_what_is_missing(tmp_path: Path) -> None:
    study = plan(GOOD)
    results = gather(study, tmp_path, FACTS, [])
    assert {r["status"] for r in results["runs"]} == {"missing"}
    assert results["verdict"] == "No run finished, so nothing can be said. Of 4 runs 4 are not there yet."
    assert any("Not run yet" in c for c in results["caveats"])


def test_a_signal_stops_the_children_and_the_study_goes_on_later(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom tests.study.test_execute import *\n"
        f"execute(plan(['x = norm(x + attn(x))', 'x = x + gate(attn(x))'], (0,)), Path({str(tmp_path)!r}), jobs=1, "
        f"command=child)\n"
    )
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"}
    study = plan(["x = norm(x + attn(x))", "x = x + gate(attn(x))"], (0,))
    with (tmp_path / "parent.txt").open("w") as log:
        parent = subprocess.Popen([sys.executable, str(script)], env=env, stderr=log)
        deadline = time.monotonic() + 60
        while not (run_folder(tmp_path, study.runs()[1]) / "started").exists():
            assert time.monotonic() < deadline
            assert parent.poll() is None, (tmp_path / "parent.txt").read_text()
            time.sleep(0.1)
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(30) == 143
    assert finished(tmp_path, study.runs()[0]) is not None
    assert finished(tmp_path, study.runs()[1]) is None


def test_fairness_is_read_off_the_runs(tmp_path: Path) -> None:
    study = plan(GOOD, seeds=(0,))
    execute(study, tmp_path, output=None, command=child)
    fair = gather(study, tmp_path, FACTS, [])["fairness"]
    assert fair["same_data_order"] is True
    assert fair["same_init"] is True
    assert fair["parameter_gap"] > 0.1
    path = run_folder(tmp_path, study.runs()[0]) / "run.json"
    row = json.loads(path.read_text())
    path.write_text(json.dumps({**row, "data_order_sha256": "other", "init_sha256": {"attn": "other"}}))
    fair = gather(study, tmp_path, FACTS, [])["fairness"]
    assert fair["same_data_order"] is False
    assert fair["same_init"] is False
    assert fair["notes"]


def test_each_design_is_shown_at_its_best_rate(tmp_path: Path) -> None:
    study = Plan.make(GOOD, seeds=(0,), lrs=(1e-3, 2e-3), steps=4)
    execute(study, tmp_path, output=None, command=child)
    path = run_folder(tmp_path, study.runs()[0]) / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "status": "diverged", "eval_loss": None}))
    rows = gather(study, tmp_path, FACTS, [])["comparison"]["rows"]
    assert [r["lr"] for r in rows] == [2e-3, 1e-3]


def test_folders_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sublayer.study.study as module

    monkeypatch.setattr(module, "_prepare", lambda plan, output: FACTS)
    monkeypatch.setattr(module, "execute", lambda plan, folder, **_: execute(plan, folder, output=None, command=child))
    one = run_study(plan(GOOD), tmp_path / "a", output=None)
    assert Study.load(tmp_path / "a").results == json.loads(json.dumps(one.results))
    assert list(one.to_frame()["status"]) == ["ok"] * 4
    with pytest.raises(StudyError, match="--resume"):
        run_study(plan(GOOD), tmp_path / "a", output=None)
    with pytest.raises(StudyError, match="other settings"):
        run_study(Plan.make(GOOD, seeds=(0, 1), steps=5), tmp_path / "a", resume=True, output=None)
    more = run_study(plan(GOOD, seeds=(0, 1, 2)), tmp_path / "a", resume=True, output=None)
    assert [r["n"] for r in more.results["comparison"]["rows"]] == [3, 3]
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("x")
    with pytest.raises(StudyError, match="not empty"):
        run_study(plan(GOOD), tmp_path / "b", output=None)
    with pytest.raises(StudyError, match="is a file"):
        run_study(plan(GOOD), tmp_path / "b" / "mine.txt", output=None)
    with pytest.raises(StudyError, match="no finished run"):
        one.model("nothing")


def test_two_processes_do_not_share_a_study(tmp_path: Path) -> None:
    from sublayer.study.files import locked

    code = (
        f"from pathlib import Path; from sublayer.study.files import locked\nwith locked(Path({str(tmp_path)!r})): pass"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    with locked(tmp_path):
        other = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert "another process works on the study" in other.stderr
    assert subprocess.run([sys.executable, "-c", code], env=env).returncode == 0


def test_a_study_that_was_killed_before_its_plan_was_written_may_begin_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its marks are all that it left; and another process that has begun meanwhile is not overwritten."""
    import sublayer.study.study as module

    folder = tmp_path / "killed"
    folder.mkdir()
    (folder / ".lock").touch()
    (folder / ".owner").write_text(json.dumps({"pid": 2**30, "place": folders.place()}))
    monkeypatch.setattr(module, "_prepare", lambda plan, output: FACTS)
    monkeypatch.setattr(module, "execute", lambda plan, folder, **_: None)
    run_study(plan(GOOD), folder, output=None)

    def other(plan_: Plan, output: object) -> dict[str, object]:  # while we look at the data
        (tmp_path / "taken").mkdir()
        (tmp_path / "taken" / "plan.json").write_text(json.dumps(plan(LOST).to_dict()))
        return FACTS

    monkeypatch.setattr(module, "_prepare", other)
    with pytest.raises(StudyError, match="holds a study already"):
        run_study(plan(GOOD), tmp_path / "taken", output=None)
    assert json.loads((tmp_path / "taken" / "plan.json").read_text()) == plan(LOST).to_dict()
