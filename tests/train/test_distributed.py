"""One run over several processes, as `torchrun` starts them."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sublayer.train import distributed

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "--layers": 2, "--hidden": 16, "--heads": 2, "--ffn": 32, "--seq": 16, "--batch": 2, "--accumulation": 2,
    "--steps": 4, "--vocab-size": 300, "--threads": 1, "--device": "cpu", "--lr": 0.01, "--save-steps": 2,
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
@pytest.mark.parametrize(("trial", "promises"), [("ranks", 8), ("ddp", 1)])
def test_what_is_promised_of_several_processes_holds(trial: str, promises: int, tmp_path: Path) -> None:
    """The short forms of the trials, which fork their processes from one that has imported everything: DDP and FSDP2
    against one process, resumed and resharded, exported, refused; and one of two processes killed."""
    out = tmp_path / "record.json"
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/torture"), trial, "--quick", "--out", str(out)],
        capture_output=True, text=True, check=False, timeout=400,
    )  # fmt: skip
    assert out.exists(), done.stdout + done.stderr
    lines = json.loads(out.read_text(encoding="utf-8"))["lines"]
    assert len(lines) == promises
    assert [line for line in lines if not line["holds"]] == []


@pytest.mark.parametrize(
    ("parallel", "world", "message"),
    [
        ("ddp", None, "needs several processes"),
        ("fsdp2", "1", "needs several processes"),
        ("none", "2", "2 processes were started"),
        ("zero3", None, "parallel is one of none, ddp, fsdp2"),
        (None, "two", "WORLD_SIZE must be a whole number, got 'two'"),
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


def test_a_number_of_processes_that_is_none_can_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "two")
    assert distributed.speaks()
    assert not distributed.several()


def test_the_command_line_refuses_with_status_two(given: list[str], tmp_path: Path) -> None:
    process = started(1, [*given, "--parallel", "ddp"], tmp_path / "out")
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 2
    assert "torchrun --nproc-per-node" in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()
