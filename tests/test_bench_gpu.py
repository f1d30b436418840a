"""`benchmarks/gpu.py` where there is no GPU: a rehearsal of every part on the CPU, limits of time, and its refusal."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
PARTS = ["roberta-large", "gpt2-medium", "parallel-block", "norm", "probe", "packed"]
ON_A_GPU_ONLY = {"packed documents, flex_attention", "packed documents, varlen_attn"}


def run(*words: str, seconds: int = 240) -> subprocess.CompletedProcess[str]:
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(FOLDER / "gpu.py"), "--threads", "1", *words]
    return subprocess.run(command, capture_output=True, text=True, env=hidden, timeout=seconds, check=False)


def test_without_a_gpu_it_refuses_in_one_message(tmp_path: Path) -> None:
    done = run("--out", str(tmp_path / "gpu.json"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "needs a GPU" in done.stderr
    assert "--quick" in done.stderr
    assert not list(tmp_path.iterdir())


def test_full_shapes_are_not_for_a_cpu() -> None:
    done = run("--device", "cpu")
    assert done.returncode == 2
    assert "--quick" in done.stderr


@pytest.mark.slow
def test_quick_runs_every_part(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    done = run("--quick", "--out", str(out))
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(out.read_text())
    assert found["schema"] == "sublayer.pairs/1"
    assert found["quick"] is True
    assert list(found["seconds"]) == PARTS
    assert {"python", "torch", "transformers", "sublayer"} <= set(found["versions"])
    assert {"name", "cuda", "triton"} <= set(found["gpu"])
    assert found["peak_flops"]["datasheet"] is None
    assert found["peak_flops"]["used"] == found["peak_flops"]["measured"] > 0
    # What is left out is said, with the reason, and is what a CPU cannot do, or a peer that is not installed.
    left_out = {each["work"] for each in found["left_out"]}
    assert all(each["reason"] for each in found["left_out"])
    assert {work for work in left_out if "memory" not in work and "x-transformers" not in work} == ON_A_GPU_ONLY

    rows = {(row["work"], row["against"]): row for row in found["rows"]}
    assert len(rows) == len(found["rows"])
    assert all(row["ratio"] > 0 and row["rounds"] == 1 for row in found["rows"])
    for shape, saf, paf in (("RoBERTa-large", "post-norm", "paf"), ("GPT-2 medium", "input-norm", "parallel-one-norm")):
        step = f"training step, {shape} shapes"
        peer = rows[f"{step}: {saf}, compiled", "transformers, compiled"]
        assert (peer["bound"], peer["reach"]) == ("at least", 1.3)
        assert peer["checks"]["first loss"] < 1e-5  # the peer's weights: the same function
        assert rows[f"{step}: {paf}, compiled", f"{saf}, compiled"]["reach"] == 1.15
        for form in ("transformers", "transformers, compiled", saf, paf, f"{saf}, compiled", f"{paf}, compiled"):
            mfu = rows[f"{step}: {form}", "peak of the card (a large product, measured)"]
            goal = 0.5 if shape == "RoBERTa-large" and form in (f"{saf}, compiled", f"{paf}, compiled") else None
            assert mfu["reach"] == goal
            assert "tokens/s" in mfu["note"]
        assert found["training"][shape]["flops_a_step"] > 0
    assert ("parallel block, forward and backward: fused", "its two products alone") in rows
    assert ("norm(x + f), forward, compiled", "bandwidth of a copy") in rows
    assert any(work.startswith("probe") for work, _ in rows)
    assert found["packed"]["documents"] > 2


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("gpu", "pairs"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import gpu

    return gpu


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA A10", 125.0),
        ("NVIDIA A10G", None),
        ("NVIDIA GeForce GTX 1080", None),
        ("", None),
    ],
)
def test_datasheet(gpu: ModuleType, name: str, teraflops: float | None) -> None:
    assert gpu.datasheet(name) == (None if teraflops is None else teraflops * 1e12)


def test_limits_of_time_lie_in_one_another(gpu: ModuleType) -> None:
    from gpu_parts.measuring import OutOfTime, limited

    with limited(60), pytest.raises(OutOfTime), limited(0.02):
        time.sleep(5)
    begin = time.monotonic()
    with pytest.raises(OutOfTime), limited(0.1), limited(60):
        time.sleep(5)  # the outer limit rings within the inner one
    assert time.monotonic() - begin < 4
    with limited(0.05):
        pass
    time.sleep(0.1)  # a limit that is over rings no more
    with pytest.raises(OutOfTime, match="no time was left"), limited(0):
        pass
