"""One run, end to end: what it leaves behind, and that stopping and going on changes nothing."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sublayer import signed
from sublayer.finetune import FinetuneError, FinetuneSpec, read, rescore, run, task_of
from sublayer.finetune.loop import BEST, TaskGuard
from sublayer.train import TrainError, checkpoint, finished
from sublayer.train.callbacks import read_metrics

Make = Callable[..., FinetuneSpec]
SAME = ("score", "metrics", "weights_sha256", "data_order_sha256", "best_step", "steps_done", "eval_loss", "train_loss")


def records(out: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k != "seconds"} for record in read_metrics(out / "metrics.jsonl")]


def equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert {name: one[name] for name in SAME} == {name: other[name] for name in SAME}


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Send this process a SIGTERM at the end of one step."""

    def arrange(wanted: int) -> None:
        ended = TaskGuard.on_step_end

        def on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            if state.global_step == wanted:
                os.kill(os.getpid(), signal.SIGTERM)
            return ended(self, args, state, control, **kwargs)

        monkeypatch.setattr(TaskGuard, "on_step_end", on_step_end)

    return arrange


@pytest.fixture(scope="module")
def plain(spec: Make, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("plain") / "cola-s0"
    return out, run(spec(save_model=True), out, command=["a", "command"])


# -- what a run leaves behind ------------------------------------------------------------------------------------------


def test_the_row_and_the_files(plain: tuple[Path, dict[str, Any]], glue: Path) -> None:
    out, row = plain
    assert row["status"] == "ok", row["reason"]
    assert signed.read(out / "run.json") == row == finished(out)
    assert row["steps_done"] == row["total_steps"] == 12
    assert (row["weights"], row["threads"], row["device"]) == ("last", 1, "cpu")
    assert row["command"] == ["a", "command"]
    assert {"torch", "scikit-learn", "scipy"} < set(row["versions"])
    assert row["data"]["sha256"] == read(task_of("cola"), str(glue)).facts["sha256"]
    assert row["data"]["truncated"] == {"train": 0, "dev": 0}
    assert json.loads((out / "data.json").read_text())["sha256"] == row["data"]["sha256"]
    assert not list(out.glob("checkpoint-*"))
    assert "CoLA, 12 steps of 8 rows" in (out / "log.txt").read_text()
    found = records(out)
    assert [r["step"] for r in found if r["kind"] == "eval"] == [4, 8, 12]
    assert found[-1]["score"] == row["score"]
    assert found[-1]["examples"] == 96
    rates = [r["lr"] for r in found if r["kind"] == "train"]
    assert rates[2] == max(rates) == pytest.approx(1e-2), "after two steps of warm-up"
    assert rates[-1] < rates[-2], "linear"


def test_it_learns_and_the_majority_does_not(spec: Make, tmp_path: Path) -> None:
    row = run(spec(dropout=0.0, steps=20), tmp_path / "run")
    assert row["score"] > 0.5
    assert row["majority"]["score"] == 0.0
    assert row["majority"]["label"] == "1"


def test_anyone_can_score_it_again(plain: tuple[Path, dict[str, Any]]) -> None:
    out, row = plain
    assert row["predictions"] == {"dev": "predictions.tsv"}
    found = rescore(task_of("cola"), out / "predictions.tsv")
    assert found.values == row["metrics"]
    assert found.score == row["score"]
    lines = (out / "predictions.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines[1:]] == [str(i) for i in range(24)]


@torch.no_grad()
def test_the_weights_are_an_ordinary_model_that_gives_the_predictions(
    plain: tuple[Path, dict[str, Any]], glue: Path
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    out, _ = plain
    model = AutoModelForSequenceClassification.from_pretrained(out / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    assert model.config.use_cache, "as before training"
    said = [line.split("\t")[1] for line in (out / "predictions.tsv").read_text().splitlines()[1:]]
    for (text,), want in zip(read(task_of("cola"), str(glue)).dev["dev"].texts, said, strict=True):
        logits = model(**tokenizer(text, return_tensors="pt")).logits
        assert model.config.id2label[int(logits.argmax())] == want


@pytest.mark.parametrize("key", ["mnli", "qqp", "stsb"])
def test_tasks_of_other_kinds(spec: Make, tmp_path: Path, key: str) -> None:
    out = tmp_path / key
    row = run(spec(task=key, steps=3), out)
    assert row["status"] == "ok", row["reason"]
    task = task_of(key)
    assert set(row["metrics"]) == set(task.score_names)
    files = {split: out / name for split, name in row["predictions"].items()}
    assert rescore(task, files).values == row["metrics"]
    assert set(files) == set(task.dev)
    if key == "qqp":
        assert row["data"]["skipped"]["train.tsv"]["count"] == 1


@pytest.mark.parametrize("changes", [{"to": "paf"}, {"group": 3}, {"train_examples": 20, "epochs": 2.0, "steps": None}])
def test_other_settings_train_too(spec: Make, tmp_path: Path, changes: dict[str, Any]) -> None:
    row = run(spec(**{"steps": 2, **changes}), tmp_path / "run")
    assert row["status"] == "ok", row["reason"]
    if "train_examples" in changes:
        assert row["data"]["train_rows_used"] == 20
        assert row["total_steps"] == 5, "two epochs of twenty rows, eight a step"


def test_a_decoder_is_fine_tuned(spec: Make, gpt2: Path, tmp_path: Path) -> None:
    row = run(spec(checkpoint=str(gpt2), task="rte", steps=2, max_length=40), tmp_path / "run")
    assert row["status"] == "ok", row["reason"]
    assert row["data"]["frame"] == "A <|end|> B <|end|>"
    assert row["data"]["truncated"]["dev"] > 0


def test_seeds_differ_and_a_seed_repeats(plain: tuple[Path, dict[str, Any]], spec: Make, tmp_path: Path) -> None:
    _, row = plain
    again, other = run(spec(), tmp_path / "a"), run(spec(seed=1), tmp_path / "b")
    equal(row, again)
    assert other["weights_sha256"] != row["weights_sha256"]
    assert other["data_order_sha256"] != row["data_order_sha256"]


def test_evaluating_and_saving_change_no_weight(plain: tuple[Path, dict[str, Any]], spec: Make, tmp_path: Path) -> None:
    _, row = plain
    other = run(spec(eval_every=5, save_steps=2), tmp_path / "run")
    assert other["weights_sha256"] == row["weights_sha256"]


# -- stopping and going on ---------------------------------------------------------------------------------------------


def test_a_signal_saves_and_stops_and_resuming_is_identical(
    plain: tuple[Path, dict[str, Any]], spec: Make, tmp_path: Path, stop_after: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, row = plain
    mine = tmp_path / "run"
    with monkeypatch.context():
        stop_after(5)
        stopped = run(spec(), mine)
    assert (stopped["status"], stopped["signal"], stopped["score"]) == ("killed", signal.SIGTERM, None)
    assert "stopped by SIGTERM after step 5" in stopped["reason"]
    assert [step for step, _ in checkpoint.steps(mine)] == [5]
    monkeypatch.undo()
    again = run(spec(), mine, resume=True)
    equal(row, again)
    assert records(mine) == records(out)
    assert (mine / "predictions.tsv").read_bytes() == (out / "predictions.tsv").read_bytes()
    assert not checkpoint.steps(mine)


def test_a_run_that_is_lost_after_its_last_step_is_only_scored_again(
    plain: tuple[Path, dict[str, Any]], spec: Make, tmp_path: Path, stop_after: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*args: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context():
        stop_after(12)  # a checkpoint of the last step
        monkeypatch.setattr("sublayer.finetune.one._write_predictions", lost)
        row = run(spec(), tmp_path / "run")
    monkeypatch.undo()
    assert (row["status"], row["steps_done"]) == ("failed", 12)
    again = run(spec(), tmp_path / "run", resume=True)
    equal(plain[1], again)


@pytest.mark.slow
def test_kill_9_with_the_best_weights_kept(spec: Make, tmp_path: Path) -> None:
    """Killed in a process of its own, again and again; the end is that of a run that nobody killed."""
    one = spec(steps=60, eval_every=3, save_steps=4, patience=40, group=2, lr=3e-3)
    whole = run(one, tmp_path / "whole")
    mine, settings = tmp_path / "run", tmp_path / "spec.json"
    settings.write_text(one.to_json())
    command = [sys.executable, "-m", "sublayer.finetune", str(settings), str(mine), "--quiet", "--resume"]
    reached = 0
    for _ in range(2):
        process = subprocess.Popen(command)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            steps = checkpoint.steps(mine)
            if steps and steps[0][0] > reached and (steps[0][1] / checkpoint.MANIFEST).exists():
                reached = steps[0][0]
                break
            time.sleep(0.002)
        process.kill()
        process.wait()
        assert finished(mine) is None
    assert 0 < reached < 60
    assert subprocess.run(command, check=False).returncode == 0
    row = finished(mine)
    assert row is not None
    equal(whole, row)
    assert records(mine) == records(tmp_path / "whole")
    assert (mine / "predictions.tsv").read_bytes() == (tmp_path / "whole" / "predictions.tsv").read_bytes()


def test_a_finished_run_is_not_run_again(plain: tuple[Path, dict[str, Any]], spec: Make) -> None:
    out, row = plain
    before = (out / "run.json").stat().st_mtime_ns
    assert run(spec(save_model=True), out, resume=True) == row
    assert (out / "run.json").stat().st_mtime_ns == before
    with pytest.raises(TrainError, match="holds a finished run; pass --resume"):
        run(spec(), out)
    with pytest.raises(TrainError, match=r"other settings \(lr: 0.01 -> 0.5\)"):
        run(spec(lr=0.5), out, resume=True)


def test_other_data_or_another_checkpoint_is_refused(
    spec: Make, bert: Path, glue: Path, tmp_path: Path, stop_after: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, model = tmp_path / "CoLA", tmp_path / "bert"
    shutil.copytree(glue / "CoLA", data)
    shutil.copytree(bert, model)
    one = spec(data=str(data), checkpoint=str(model), steps=4)
    with monkeypatch.context():
        stop_after(2)
        run(one, tmp_path / "half")
    monkeypatch.undo()
    run(one, tmp_path / "done")
    moved = one.with_(data=str(glue), checkpoint=str(bert))
    assert run(moved, tmp_path / "done", resume=True)["status"] == "ok", "the same bytes in another place"

    def change(path: Path) -> bytes:
        before = path.read_bytes()
        path.write_bytes(before.replace(b"stream", b"system", 1) if path.suffix == ".tsv" else before[:-1] + b"\x01")
        return before

    kept = change(data / "dev.tsv")
    with pytest.raises(FinetuneError, match="holds a finished run on other files of cola"):
        run(one, tmp_path / "done", resume=True)
    half = run(one, tmp_path / "half", resume=True)
    assert half["status"] == "failed"
    assert "was made from another checkpoint, other data or other settings" in half["reason"]
    (data / "dev.tsv").write_bytes(kept)
    change(model / "model.safetensors")
    with pytest.raises(FinetuneError, match="holds a finished run of another checkpoint"):
        run(one, tmp_path / "done", resume=True)


# -- early stopping ----------------------------------------------------------------------------------------------------


def test_patience_stops_and_the_best_weights_are_scored(spec: Make, tmp_path: Path) -> None:
    one = spec(steps=80, eval_every=2, patience=6, dropout=0.0)
    row = run(one, tmp_path / "run")
    assert row["status"] == "ok", row["reason"]
    assert row["stopped_early"]
    assert row["weights"] == "best"
    found = [r for r in records(tmp_path / "run") if r["kind"] == "eval"]
    scores = {r["step"]: r["score"] for r in found}
    first_best = next(step for step, score in scores.items() if score == max(scores.values()))
    assert row["best_step"] == first_best
    assert row["steps_done"] == first_best + 6 * 2 == max(scores)
    assert row["score"] == max(scores.values()) > 0.5
    assert row["eval_loss"] == next(r["loss"] for r in found if r["step"] == first_best)
    assert not (tmp_path / "run" / BEST).exists()
    last = run(one.with_(weights="last"), tmp_path / "last")
    assert last["score"] == scores[max(scores)]
    assert last["weights_sha256"] != row["weights_sha256"]


def test_a_run_that_waits_for_better_scores_resumes_with_the_same_patience(
    spec: Make, tmp_path: Path, stop_after: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = spec(steps=80, eval_every=2, patience=6, dropout=0.0)
    whole = run(one, tmp_path / "whole")
    stop = whole["best_step"] + 3  # one evaluation after the best
    with monkeypatch.context():
        stop_after(stop)
        assert run(one, tmp_path / "run")["status"] == "killed"
    monkeypatch.undo()
    assert (tmp_path / "run" / f"checkpoint-{stop}" / BEST).is_file()
    (tmp_path / "run" / BEST).unlink()  # what lies in the checkpoint is what counts
    equal(whole, run(one, tmp_path / "run", resume=True))


# -- runs that are lost ------------------------------------------------------------------------------------------------


def test_a_run_that_diverges_has_no_score_and_says_why(spec: Make, tmp_path: Path) -> None:
    row = run(spec(lr=1e25, warmup=0.0, clip=0.0, weight_decay=0.0), tmp_path / "run")
    assert row["status"] == "diverged"
    assert row["score"] is None
    assert row["metrics"] == {"matthews": None}
    assert re.search(r"at step \d+; it began in the forward pass of \S+ \(", row["reason"])
    assert row["majority"]["score"] == 0.0
    assert run(spec(lr=1e25, warmup=0.0, clip=0.0, weight_decay=0.0), tmp_path / "run", resume=True) == row


def test_a_failure_is_a_row_with_a_reason(spec: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no such kernel")

    with monkeypatch.context() as patched:
        patched.setattr("sublayer.finetune.loop.score", broken)
        row = run(spec(), tmp_path / "run")
    assert (row["status"], row["reason"]) == ("failed", "RuntimeError: no such kernel")
    assert "Traceback" in (tmp_path / "run" / "log.txt").read_text()
    assert run(spec(), tmp_path / "run", resume=True)["status"] == "ok"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_length": 60}, r"max_length \(60\) must not exceed the 48 tokens"),
        ({"warmup": 50.0}, r"warmup \(50 steps\) must not exceed the run \(12 steps\)"),
        ({"data": "/nowhere"}, "'/nowhere' is no folder"),
    ],
)
def test_a_mistake_leaves_no_folder(spec: Make, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FinetuneError, match=message):
        run(spec(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "squad"}, "a task is one of"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"lr": "fast"}, "lr must be a finite number, got 'fast'"),
        ({"patience": 2, "eval_every": 0}, "patience counts evaluations"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
    ],
)
def test_settings_are_checked(spec: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainError, match=message):
        spec(**changes)


def test_settings_as_a_file(spec: Make) -> None:
    one = spec(patience=3)
    assert FinetuneSpec.from_json(one.to_json()) == one
    assert one.sha256() != spec(patience=4).sha256()
    assert one.sha256() == one.with_(data="elsewhere").sha256()
    with pytest.raises(TrainError, match="did you mean 'patience'"):
        FinetuneSpec.from_dict({**one.to_dict(), "patient": 3})
    settled = spec(steps=None, epochs=2.0, eval_every=None, save_steps=None).settled(30)
    assert (settled.total_steps, settled.eval_every, settled.save_steps, settled.weights) == (8, 4, 4, "last")
