"""How time and memory of a training step grow with length, depth and width, and a plan with its designs.

    python benchmarks/growth.py --threads 1 --clock cpu [--rounds 3] [--out benchmarks/growth.json]

Causal models of one row with a vocabulary of 64, so that the blocks are what is measured. Each size is a process of its
own: seconds of a step (median), and how far the resident memory rises during one. Beside each stand the FLOPs and the
peak of `sublayer.cost.cost`. To seconds against length ``c + a T + b T^2`` is fitted by least squares of the relative
distance; ``exponent`` is the slope between the two largest sizes on logarithmic scales. The rows compare growth from
the smallest to the largest size: measured over formula.

Where they part. Time with length: the formula, as torch's counter, counts every score of a causal row; the CPU's kernel
leaves out the half that the mask hides, so the square term of the fit is about half of the formula's. Time with width:
narrow products run at a fraction of the speed of wide ones.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from pairs import CLOCKS, Row, arguments, in_a_process, peak_kib, status, write

BASE = {"tokens": 1024, "num_hidden_layers": 2, "hidden_size": 256}
AXES: dict[str, tuple[str, list[int]]] = {
    "length": ("tokens", [512, 1024, 2048, 4096, 8192, 16384]),
    "depth": ("num_hidden_layers", [2, 4, 8, 16, 32]),
    "width": ("hidden_size", [64, 128, 256, 512, 1024]),
}
DESIGNS = [4, 8, 16, 32]  # of a study's plan


def sizes_of(setting: dict[str, int]) -> tuple[int, dict[str, Any]]:
    """Tokens and the model's sizes."""
    rest = {name: value for name, value in setting.items() if name != "tokens"}
    return setting["tokens"], {
        "design": "input-norm", "vocab_size": 64, "num_attention_heads": rest["hidden_size"] // 64,
        "position_embedding": "rotary", "max_position_embeddings": 16384, **rest,
    }  # fmt: skip


def measure(setting: dict[str, int], clock: str, rounds: int) -> dict[str, float]:
    """One size, in this process."""
    import torch

    from sublayer.model import SublayerConfig, SublayerForCausalLM

    tokens, sizes = sizes_of(setting)
    model: Any = SublayerForCausalLM(SublayerConfig(**sizes, init_seed=0, use_cache=False)).train()
    ids = torch.randint(64, (1, tokens), generator=torch.Generator().manual_seed(0))

    def step() -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        model.zero_grad()

    step()
    resident = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    seconds = []
    for _ in range(rounds):
        began = CLOCKS[clock]()
        step()
        seconds.append(CLOCKS[clock]() - began)
    return {"seconds": statistics.median(seconds), "risen_mib": (peak_kib() - resident) / 1024}


def priced(setting: dict[str, int]) -> dict[str, float]:
    """What the formulas say; of memory, what a step adds to weights and moments."""
    from sublayer.cost import cost

    tokens, sizes = sizes_of(setting)
    found = cost(sizes, batch=1, seq=tokens)
    return {"flops": found.training_flops, "mib": (found.memory.total - 12 * found.parameters) / 2**20}


def planning(count: int) -> float:
    """Seconds to plan a study of so many designs, one seed and rate each."""
    from sublayer.study.plan import Plan

    designs = [f"x = x + {1 + i / 100} * attn(norm(x)); x = x + ffn(norm(x))" for i in range(count)]
    began = time.process_time()
    plan = Plan.make(designs, steps=10)
    assert len(plan.designs) == count
    return time.process_time() - began


def fitted(lengths: list[int], seconds: list[float]) -> dict[str, float]:
    """c, a and b of ``c + a T + b T^2``, and the worst relative distance."""
    t, y = np.array(lengths, float), np.array(seconds)
    terms = np.stack([np.ones_like(t), t, t**2], 1) / y[:, None]
    c, a, b = np.linalg.lstsq(terms, np.ones_like(y), rcond=None)[0]
    return {"c": c, "a": a, "b": b, "worst": float(np.abs((c + a * t + b * t**2) / y - 1).max())}


def main() -> None:
    """Measure and write the record."""
    parser = arguments(__doc__, __file__, rounds=3)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        import torch

        torch.set_num_threads(given.threads)
        print(json.dumps(measure(json.loads(given.measure), given.clock, given.rounds)))
        return
    rows, found = [], dict[str, Any]()
    for axis, (name, values) in AXES.items():
        chosen = values[:2] if given.quick else values
        points = []
        for value in chosen:
            setting = {**BASE, name: value}
            words = ["--measure", json.dumps(setting), "--threads", str(given.threads), "--clock", given.clock]
            measured = json.loads(in_a_process(__file__, *words, "--rounds", str(given.rounds)))
            points.append({name: value, **measured, **priced(setting)})
            print(axis, points[-1], flush=True)
        first, last, before = points[0], points[-1], points[-2]
        found[axis] = {"points": points, "exponent": _slope(before, last, name, "seconds")}
        found[axis]["exponent_of_flops"] = _slope(before, last, name, "flops")
        if axis == "length" and len(points) > 3:
            found[axis]["fit"] = fitted(chosen, [p["seconds"] for p in points])
            found[axis]["fit_of_flops"] = fitted(chosen, [p["flops"] for p in points])
        for what, formula in (("seconds", "flops"), ("risen_mib", "mib")):
            rows.append(
                Row(
                    f"growth of {'time' if what == 'seconds' else 'memory'} with {axis}, {chosen[0]} to {chosen[-1]}",
                    f"growth of {'FLOPs' if formula == 'flops' else 'the formula'}",
                    [last[what] / first[what] / (last[formula] / first[formula])],
                    ours=last[what] / first[what], theirs=last[formula] / first[formula], unit="times",
                )
            )  # fmt: skip
    counts = DESIGNS[:2] if given.quick else DESIGNS
    seconds = [planning(count) for count in [counts[0], *counts]][1:]
    found["designs"] = {"designs": counts, "seconds": seconds}
    rows.append(
        Row(
            f"growth of planning with designs, {counts[0]} to {counts[-1]}", "growth of their number",
            [seconds[-1] / seconds[0] / (counts[-1] / counts[0])], ours=seconds[-1], theirs=seconds[0],
        )
    )  # fmt: skip
    write("growth", rows, given, base=BASE, axes=found, seed=0)


def _slope(one: dict[str, float], other: dict[str, float], x: str, y: str) -> float:
    return math.log(other[y] / one[y]) / math.log(other[x] / one[x])


if __name__ == "__main__":
    main()
