"""One run over two machines: two `torchrun` on this one, each of a node with one process."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "--objective": "mlm", "--layers": 2, "--hidden": 16, "--heads": 2, "--ffn": 32, "--seq": 16, "--batch": 2,
    "--accumulation": 2, "--steps": 4, "--vocab-size": 300, "--threads": 1, "--device": "cpu", "--lr": 0.01,
}  # fmt: skip


@pytest.mark.slow
def test_two_nodes_give_the_weights_of_one_process_that_accumulates(tmp_path: Path) -> None:
    text = "\n\n".join(f"Document {i} says that {i} and {i * i} are numbers of it." for i in range(400))
    (tmp_path / "text.txt").write_text(text)
    words = ["train", "paf", "--data", "text.txt", "--cache", "cache", "--no-measure"]
    words += [str(part) for pair in SETTINGS.items() for part in pair]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    several = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    several += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}", "--rdzv-id", "two"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}

    def start(*line: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, *line], cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    nodes = [start(*several, "--node-rank", str(i), "-m", "sublayer", *words, "--out", "two") for i in range(2)]
    said = [node.communicate(timeout=240)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(said)[-4000:]
    row = json.loads((tmp_path / "two" / "run.json").read_text())
    assert (row["parallel"], row["world_size"]) == ("ddp", 2)
    assert sum("held-out loss" in text for text in said) == 1  # one process speaks for all

    from sublayer.train import TrainSpec, run

    spec = TrainSpec.load(tmp_path / "two" / "spec.json")
    alone = run(
        spec.with_(data=str(tmp_path / "text.txt"), cache=str(tmp_path / "cache")), tmp_path / "one", measure=False
    )
    assert (alone["parallel"], alone["world_size"]) == ("none", 1)
    assert alone["weights_sha256"] == row["weights_sha256"]
    assert alone["eval_loss"] == row["eval_loss"]
