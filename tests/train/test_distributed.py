"""One run over several processes, as `torchrun` starts them."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from sublayer.train import distributed

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "--layers": 2, "--hidden": 16, "--heads": 2, "--ffn": 32, "--seq": 16, "--batch": 2, "--accumulation": 2,
    "--steps": 6, "--vocab-size": 300, "--threads": 1, "--device": "cpu", "--lr": 0.01, "--save-steps": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command line of a tiny run on a text of its own."""
    folder = tmp_path_factory.mktemp("several")
    text = folder / "text.txt"
    text.write_text("\n\n".join(f"Document {i} says that {i} and {i * i} are numbers of it." for i in range(400)))
    words = ["train", "post-norm", "--data", str(text), "--cache", str(folder / "cache"), "--objective", "mlm"]
    return words + [str(part) for pair in SETTINGS.items() for part in pair]


def started(processes: int, arguments: list[str], out: Path) -> "subprocess.Popen[str]":
    """`sublayer` in one process, or in several."""
    several = []
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        several = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", str(port)]
    return subprocess.Popen(
        [sys.executable, *several, "-m", "sublayer", *arguments, "--out", str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def row(processes: int, arguments: list[str], out: Path) -> dict[str, object]:
    """The row of a run that ends well."""
    process = started(processes, arguments, out)
    said = process.communicate(timeout=240)
    assert process.returncode == 0, said[1][-3000:]
    return json.loads((out / "run.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_two_processes_give_the_weights_of_one(given: list[str], tmp_path: Path) -> None:
    one, two = row(1, given, tmp_path / "one"), row(2, given, tmp_path / "two")
    assert one["weights_sha256"] == two["weights_sha256"]
    assert one["eval_loss"] == two["eval_loss"]


@pytest.mark.slow
def test_sharded_processes_reach_the_loss_of_one(given: list[str], tmp_path: Path) -> None:
    one, two = row(1, given, tmp_path / "one"), row(2, [*given, "--parallel", "fsdp2"], tmp_path / "two")
    assert two["eval_loss"] == pytest.approx(one["eval_loss"], rel=1e-5)
    assert (tmp_path / "two" / "model.safetensors").exists()


@pytest.mark.slow
def test_a_run_whose_second_process_is_killed_ends_as_undisturbed(given: list[str], tmp_path: Path) -> None:
    given = [*given, "--steps", "60"]
    whole = row(2, given, tmp_path / "whole")
    out = tmp_path / "killed"
    process = started(2, given, out)
    deadline = time.monotonic() + 120
    while not list(out.glob("checkpoint-*/manifest.json")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    workers = [child for child in psutil.Process(process.pid).children() if "sublayer" in child.cmdline()]
    assert len(workers) == 2
    workers[1].kill()
    process.communicate(timeout=120)
    assert process.returncode != 0
    again = row(2, [*given, "--resume"], out)
    assert again["weights_sha256"] == whole["weights_sha256"]


@pytest.mark.parametrize(
    ("parallel", "world", "message"),
    [
        ("ddp", None, "needs several processes"),
        ("fsdp2", "1", "needs several processes"),
        ("none", "2", "2 processes were started"),
        ("zero3", None, "parallel is one of none, ddp, fsdp2"),
        (None, "2", "RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set"),
    ],
)
def test_what_is_asked_for_and_not_given_is_refused(
    parallel: str | None, world: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    if world is not None:
        monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(distributed.TrainError, match=message):
        distributed.chosen(parallel)


def test_the_command_line_refuses_with_status_two(given: list[str], tmp_path: Path) -> None:
    process = started(1, [*given, "--parallel", "ddp"], tmp_path / "out")
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 2
    assert "torchrun --nproc-per-node" in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()
