"""Studies on many machines: an array job of SLURM, a Ray cluster, one run by its index, gathering."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sublayer.study import Plan, Study, StudyError, executors, gather_study, run_one, run_study
from sublayer.study.execute import account, read_row, run_folder
from sublayer.study.executors import slurm
from sublayer.study.files import ranges
from sublayer.whole_files import write_atomically
from tests.study.test_execute import GOOD, plan
from tools.torture import slurm_double

ROOT = Path(__file__).resolve().parents[2]
TINY = {
    "objective": "mlm", "layers": 2, "hidden": 16, "heads": 2, "ffn": 32, "seq": 16, "batch": 2, "vocab_size": 300,
    "threads": 1, "device": "cpu", "steps": 40, "save_steps": 2, "dropout": 0.1, "data": "text.txt", "cache": "cache",
}  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a text, in which commands are run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'src'}{os.pathsep}{ROOT}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    text = "\n\n".join(f"Document {i} says that {i} and {i * i} are numbers of it." for i in range(400))
    (tmp_path / "text.txt").write_text(text)
    return tmp_path


def alone(plan: Plan, folder: Path) -> dict[str, tuple[float, str]]:
    """Held-out loss and hash of the weights of each run, of this process and undisturbed."""
    from sublayer.train import run

    rows = {one.id: run(one.spec, folder / one.id, measure=False) for one in plan.runs()}
    return {name: (row["eval_loss"], row["weights_sha256"]) for name, row in rows.items()}


def found(study: Path) -> dict[str, tuple[float, str]]:
    """The same from a study's results."""
    runs = json.loads((study / "results.json").read_text())["runs"]
    return {r["id"]: (r["eval_loss"], r.get("weights_sha256")) for r in runs}


@pytest.mark.slow
def test_an_array_job_that_loses_a_machine_and_meets_its_limit_ends_as_undisturbed(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan.make(["paf"], lrs=(1e-2,), **TINY)
    (one,) = plan.runs()
    expected = alone(plan, here / "alone")
    run = here / "array" / "runs" / one.id
    trouble = [["node", str(run / "checkpoint-*" / "manifest.json")], ["limit", str(run / "checkpoint-[23]?")]]
    (here / "trouble.json").write_text(json.dumps({"0": trouble}))
    slurm_double.install(here / "bin")
    monkeypatch.setenv("PATH", f"{here / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_DOUBLE", str(here))
    where = executors.named("slurm", submit=True, options=["--time=0:10:00"])
    run_study(plan, "array", measure=False, output=None, executor=where)
    log = (here / "array" / "slurm" / "0.txt").read_text()
    until = time.monotonic() + 100
    while len(happened := (here / "happened.txt").read_text().splitlines()) < 6 and time.monotonic() < until:
        time.sleep(0.1)
    assert happened == ["node 0", "ended 0 -9", "limit 0", "ended 0 143", "ended 0 0", "ended gather.sh 0"], log
    assert found(here / "array") == expected
    assert Study.load(here / "array").results["command"][-1] == "--gather"
    assert (run / "log.txt").read_text().count("resuming from step") == 2
    assert f"--dependency=afterany:{slurm_double.JOB}" in (here / "submitted.txt").read_text()


def test_the_scripts_name_what_is_missing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = plan(GOOD, seeds=(0, 1, 2, 3))
    ended(here, study, 1)
    slurm.execute(study, here, jobs=2, measure=False, output=sys.stderr, options=["--gres=gpu:1"])
    told = capsys.readouterr().err
    assert "7 runs" in told
    assert "afterany" in told
    head = slurm_double.options(here / "slurm" / "runs.sh")
    assert head["--array"] == "0,2-7%2"
    assert slurm_double.indexes(head["--array"]) == ([0, 2, 3, 4, 5, 6, 7], 2)
    assert head["--gres"] == "gpu:1"
    assert head["--cpus-per-task"] == "1"
    assert "--no-measure --index" in (here / "slurm" / "runs.sh").read_text()
    for script in ("runs.sh", "gather.sh"):
        subprocess.run(["bash", "-n", str(here / "slurm" / script)], check=True)
    for i in range(8):
        ended(here, study, i)
    slurm.execute(study, here, output=sys.stderr)
    assert "nothing to submit" in capsys.readouterr().err


def ended(study: Path, plan: Plan, index: int, **more: object) -> None:
    """A run that has been finished, as its row says."""
    row = {"status": "ok", "reason": None, "eval_loss": 5.0, "seconds": 1.0, **more}
    write_atomically(run_folder(study, plan.runs()[index]) / "run.json", json.dumps(row))


def test_a_strange_folder_is_quoted(tmp_path: Path) -> None:
    study = tmp_path / "a b%j'c; touch x"
    slurm.write(plan(GOOD), study, "0-3", True, [])
    head = slurm_double.options(study / "slurm" / "runs.sh")
    assert head["--output"].replace("%%", "%") == f"{study}/slurm/%a.txt"
    subprocess.run(["bash", "-n", str(study / "slurm" / "runs.sh")], check=True)
    with pytest.raises(StudyError, match="line break"):
        slurm.write(plan(GOOD), tmp_path / "a\nb", "0-3", True, [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cloud",), "executor is one of local, slurm, ray, got 'cloud'"),
        (("local", True), "--submit are for SLURM"),
        (("ray", False, ["--mem=1G"]), "--sbatch are for SLURM"),
        (("slurm", False, ["mem=1G"]), "begins with '-'"),
        (("slurm", False, ["--mem=1G\nrm -r x"]), "one line"),
        (("slurm", True), "--submit needs SLURM's sbatch"),
    ],
)
def test_an_executor_that_cannot_be_had_is_refused(
    arguments: tuple[object, ...], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StudyError, match=message):
        executors.named(*arguments)  # type: ignore[arg-type]


def test_without_ray_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    with pytest.raises(StudyError, match=r"pip install 'sublayer\[ray\]'"):
        executors.named("ray")


def test_threads_are_not_left_to_the_machines(tmp_path: Path) -> None:
    any_number = Plan.make(GOOD, size="small", steps=4)
    with pytest.raises(StudyError, match="give --threads"):
        run_study(any_number, tmp_path, output=None, executor=executors.named("slurm"))
    assert list(tmp_path.iterdir()) == []


def test_one_run_by_its_index(here: Path) -> None:
    two = Plan.make(["post-norm", "paf"], lrs=(1e-2,), **{**TINY, "steps": 4})
    with pytest.raises(StudyError, match="holds no study"):
        run_one("by-index", 0)
    with pytest.raises(StudyError, match="--out FOLDER"):
        run_one(None, 0)
    run_study(two, "by-index", output=None, executor=lambda *_, **__: None)
    with pytest.raises(StudyError, match="runs 0 to 1, got index 2"):
        run_one("by-index", 2)
    study = gather_study("by-index")
    assert study.missing() == [0, 1]
    assert run_one("by-index", 1, measure=False) == 0
    study = gather_study("by-index")
    assert study.missing() == [0]
    assert [r["status"] for r in study.results["runs"]] == ["missing", "ok"]
    assert "Of 2 runs 1 is not there yet" in study.verdict
    assert "were lost" not in study.verdict
    before = (run_folder(here / "by-index", two.runs()[1]) / "run.json").stat()
    assert run_one("by-index", 1, measure=False) == 0
    assert (run_folder(here / "by-index", two.runs()[1]) / "run.json").stat() == before


def test_a_row_of_another_process_is_left_alone(tmp_path: Path) -> None:
    """A run that was refused because another process works on it writes nothing there."""
    from sublayer import folders

    one = plan(GOOD).runs()[0]
    folder = run_folder(tmp_path, one)
    folder.mkdir(parents=True)
    with folders.held(folder, StudyError, "on the run in"):
        assert account(tmp_path, one, 2, 1.0, None)["status"] == "failed"
    assert read_row(tmp_path, one) is None
    row = account(tmp_path, one, -9, 1.0, None)
    assert row["status"] == "killed"
    assert read_row(tmp_path, one) == row
    assert account(tmp_path, one, 1, 1.0, row)["status"] == "failed"  # the next attempt wrote nothing either


@pytest.mark.parametrize(
    ("numbers", "text"), [([], ""), ([3], "3"), ([0, 1, 2], "0-2"), ([5, 1, 2, 9, 8], "1-2,5,8-9")]
)
def test_ranges(numbers: list[int], text: str) -> None:
    assert ranges(numbers) == text
    if text:
        assert slurm_double.indexes(text) == (sorted(numbers), len(numbers))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'sublayer[ray]'")
def test_a_ray_cluster_that_loses_a_machine_ends_as_one_machine_does(tmp_path: Path) -> None:
    out = tmp_path / "record.json"
    words = ["cluster", "--quick", "--only", "machine", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/torture"), *words], capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"},
    )  # fmt: skip
    assert out.exists(), done.stdout + done.stderr
    (line,) = json.loads(out.read_text())["lines"]
    assert line["holds"], line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--index 0 --gather --out x", "give one of them"),
        ("--index 0", "give --out FOLDER"),
        ("--gather --out x", "holds no study"),
        ("--gather --out x --steps 3", "leave out steps"),
        ("paf --index 0 --out x --executor ray", "leave out paf, executor"),
        ("--executor slurm --submit --out x", "not on this machine's PATH"),
        ("--executor ray --sbatch=--mem=1G --out x", "give --executor slurm too"),
        ("--executor slurm --sbatch mem=1G --out x", "begins with '-'"),
        ("--executor slurm --size small --data text.txt --cache cache --vocab-size 300 --out x", "give --threads N"),
        ("--executor cloud", "is not one of"),
        ("--config parts.yaml --executor slurm --out x", "runs on one machine"),
    ],
)
def test_the_command_line_refuses_with_one_message(
    words: str, message: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sublayer.cli import main

    (here / "parts.yaml").write_text("title: t\nquestion: q\nparts: [{kind: train, designs: [paf], steps: 4}]\n")
    monkeypatch.setenv("PATH", str(here))
    monkeypatch.setattr(sys, "argv", ["sublayer", "compare", *words.split()])
    with pytest.raises(SystemExit) as stop:
        main()
    said = capsys.readouterr().err
    assert stop.value.code == 2, said
    assert message in said
    assert "Traceback" not in said
    assert not (here / "x" / "plan.json").exists()
