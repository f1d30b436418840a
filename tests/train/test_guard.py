"""What is promised of a run that is starved, told to stop, or looked at in another way; the long forms of these are the
trials of `tools/torture`."""

import logging
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from sublayer.train import checkpoint, finished, run
from sublayer.train.build import build as build_model
from sublayer.train.stopping import Interrupted


@pytest.fixture(scope="module")
def plain(spec, tmp_path_factory):
    out = tmp_path_factory.mktemp("plain") / "run"
    return out, run(spec(), out, measure=False)


def meet(monkeypatch, home, name, action, at=1):
    """Let the `at`-th call of a function begin with `action`."""
    real, count = getattr(home, name), 0

    def met(*args, **kwargs):
        nonlocal count
        count += 1
        if count == at:
            action()
        return real(*args, **kwargs)

    monkeypatch.setattr(home, name, met)


def tell(number):
    return lambda: os.kill(os.getpid(), number)


# -- workers -----------------------------------------------------------------------------------------------------------


def test_workers_change_no_weight_and_may_change_when_a_run_goes_on(spec, tmp_path, monkeypatch):
    from sublayer.train.trainer import GuardedTrainer

    # longer than what workers make ahead, or the run would not miss them
    plain = run(spec(steps=24), tmp_path / "plain", measure=False)
    mine = tmp_path / "run"
    for step in (3, 6):  # the second time its loader is another one, which passes over rows
        with monkeypatch.context() as patch:
            # to the whole group, as a terminal and a cluster do it: the workers must not die of it
            meet(patch, GuardedTrainer, "_inspect", lambda: _tell_group(int(signal.SIGTERM)), at=3)
            stopped = run(spec(steps=24, workers=2), mine, resume=True, measure=False)
        assert (stopped["status"], stopped["signal"]) == ("killed", signal.SIGTERM)
        assert checkpoint.steps(mine)[0][0] == step
    again = run(spec(steps=24, workers=1), mine, resume=True, measure=False)
    assert again["weights_sha256"] == plain["weights_sha256"]


def _tell_group(number):
    import multiprocessing

    children = [str(child.pid) for child in multiprocessing.active_children()]
    assert children
    subprocess.run(["kill", f"-{number}", *children], check=True)  # from another process: that of a parent is special
    time.sleep(0.5)  # to die in
    os.kill(os.getpid(), number)


# -- told to stop ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_before_the_first_step_there_is_nothing_to_save(plain, spec, tmp_path, monkeypatch, number):
    from sublayer.train import cache

    with monkeypatch.context() as patch:
        meet(patch, cache, "open_source", tell(number))
        row = run(spec(), tmp_path / "run", measure=False)
    assert (row["status"], row["signal"]) == ("killed", number)
    assert "before a step was finished; --resume begins again" in row["reason"]
    assert run(spec(), tmp_path / "run", resume=True, measure=False)["weights_sha256"] == plain[1]["weights_sha256"]


def test_during_an_evaluation_no_other_step_is_begun(plain, spec, tmp_path, monkeypatch):
    from sublayer.train.trainer import GuardedTrainer

    with monkeypatch.context() as patch:
        meet(patch, GuardedTrainer, "evaluate", tell(signal.SIGTERM), at=2)
        row = run(spec(eval_every=4), tmp_path / "run", measure=False)
    assert row["status"] == "killed"
    assert [step for step, _ in checkpoint.steps(tmp_path / "run")] == [4]


def test_while_the_final_weights_are_written_the_run_ends_and_the_signal_is_raised_again(
    plain, spec, tmp_path, monkeypatch
):
    from sublayer.train import runner

    with monkeypatch.context() as patch:
        meet(patch, runner, "_save", tell(signal.SIGTERM))
        with pytest.raises(Interrupted) as raised:
            run(spec(), tmp_path / "run", measure=False)
    assert raised.value.number == signal.SIGTERM
    assert finished(tmp_path / "run")["weights_sha256"] == plain[1]["weights_sha256"]


def test_the_command_line_ends_with_143_while_it_prepares(spec, tmp_path):
    """The signal comes while torch is imported, or while the text is read: there is no run yet."""
    command = [sys.executable, "-m", "sublayer", "train", "post-norm", "--out", str(tmp_path / "run")]
    command += ["--data", spec().data, "--cache", str(tmp_path / "cache"), "--steps", "50", "--device", "cpu"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    time.sleep(1.5)
    process.terminate()
    _, told = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "Traceback" not in told
    assert "SIGTERM" in told


# -- a machine that is too small ---------------------------------------------------------------------------------------

LIMITED = """
import resource, signal, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)), resource.RLIM_INFINITY))
from sublayer.train.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_file_that_cannot_be_written_whole(spec, tmp_path):
    """A limit on the size of files stands for a full disk: the optimiser's state is the first that does not fit."""
    one = spec(steps=4, save_steps=2)
    whole = run(one, tmp_path / "whole", measure=False)
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "whole" / "checkpoint-2").iterdir()}
    assert sizes["optimizer.pt"] > 1.5 * sizes["model.safetensors"]
    settings, mine = tmp_path / "spec.json", tmp_path / "run"
    settings.write_text(one.to_json())
    limit = str(sizes["model.safetensors"] + 4096)
    command = [sys.executable, "-c", LIMITED, limit, str(settings), str(mine), "--no-measure", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert "free some space on the disk of" in done.stderr
    assert "--resume then begins again" in done.stderr
    assert "Traceback" not in done.stderr
    assert not checkpoint.steps(mine), "half a checkpoint holds space and is of no use"
    again = run(one, mine, resume=True, measure=False)
    assert again["weights_sha256"] == whole["weights_sha256"]


@pytest.mark.parametrize("error", [
    MemoryError("Unable to allocate 3 TiB"),
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
])  # fmt: skip
def test_a_step_that_is_too_large_is_told_with_smaller_ones(spec, tmp_path, error):
    def build(given, words):
        model = build_model(given, words)

        def fail(*_):
            raise error

        model.register_forward_pre_hook(fail)
        return model

    row = run(spec(), tmp_path / "run", measure=False, build=build)
    assert row["status"] == "killed"
    assert row["reason"].startswith("out of memory: ")
    assert "a step of 4 x 32 tokens takes " in row["reason"]
    assert "--batch 2 --accumulation 2 takes " in row["reason"]
    assert "for the same 4 rows a step; or --seq 16 takes " in row["reason"]


# -- damage that a hash of the content alone would pass ----------------------------------------------------------------


@pytest.mark.parametrize("change", ["white space", "link"])
def test_no_harmless_change_passes(tmp_path, caplog, change):
    for step in (1, 2):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"weights")
        checkpoint.commit(folder, {"step": step})
    if change == "white space":
        text = (folder / checkpoint.MANIFEST).read_text()
        (folder / checkpoint.MANIFEST).write_text(text.replace("\n  ", "\n\t ", 1))
    else:
        (folder / "more").symlink_to(tmp_path / "nowhere")
    with caplog.at_level(logging.WARNING):
        found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found[0].name == "checkpoint-1"
    (tmp_path / "checkpoint-1" / "model.safetensors").write_bytes(b"w")
    with caplog.at_level(logging.WARNING):
        assert checkpoint.latest(tmp_path) is None
    assert "no checkpoint is whole (1 damaged): the run begins again" in caplog.text
