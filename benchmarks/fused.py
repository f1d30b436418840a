"""What running parallel branches together saves: the same weights fused and unfused, side by side.

    python benchmarks/fused.py [--out benchmarks/fused.json] [--threads 2] [--clock wall] [--seconds 2]

Two tables. `models`: two layers of a parallel design, forward, forward and backward, and decoding one token after a
prompt. `products`: the products alone in the forms that could be taken: `apart` (one by one), `copied` (weights joined
anew each time), and what the model does below its limit of tokens, `placed` (input weights that lie together) and
`added` (each output block onto the last). Ratios are to the unfused form, below 1 is faster. The forms take turns and
the median of each is compared, so that a busy machine slows all alike; on a very busy one,
`--threads 1 --clock cpu` counts only the time in which this program ran.
"""

import argparse
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pairs import CLOCKS
from torch import Tensor, nn

from sublayer.model import SublayerConfig, SublayerForCausalLM
from sublayer.model.fused_memory import SideBySide, place
from sublayer.whole_files import write_atomically

DESIGNS = {"one norm": "parallel-one-norm", "two norms": "parallel-two-norms"}
SIZES = [(256, 1, 128), (256, 8, 512), (512, 1, 128), (512, 4, 256), (1024, 1, 128), (1024, 1, 512)]
TOKENS = (1, 8, 128, 512, 1024, 2048)
VOCABULARY = 64  # small: what is measured is the blocks


def medians(forms: dict[str, Callable[[], Any]], seconds: float, clock: Callable[[], float]) -> dict[str, float]:
    """Seconds of each form, taken in turns until ``seconds`` are over, three times at least."""
    for form in forms.values():
        form()
    spent: dict[str, list[float]] = {name: [] for name in forms}
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds or len(spent[next(iter(forms))]) < 3:
        for name in random.sample(list(forms), len(forms)):  # whoever comes next finds the cache as it was left
            start = clock()
            forms[name]()
            spent[name].append(clock() - start)
    return {name: statistics.median(times) for name, times in spent.items()}


def model(design: str, width: int, act: str, fuse: bool) -> SublayerForCausalLM:
    """A model of two layers with weights that depend on the seed alone."""
    config = SublayerConfig(
        design=design,
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=width // 64,
        hidden_act=act,
        init_seed=0,
        fuse_parallel=fuse,
    )
    return SublayerForCausalLM(config)


def measure_models(
    seconds: float, clock: Callable[[], float], sizes: list[tuple[int, int, int]]
) -> list[dict[str, Any]]:
    """The table of models."""
    rows = []
    for name, design in DESIGNS.items():
        for act in ("gelu", "swiglu"):
            for width, batch, length in sizes:
                pair = {fuse: model(design, width, act, fuse) for fuse in (True, False)}
                ids = torch.randint(VOCABULARY, (batch, length))
                works = {"forward": forward, "forward and backward": learn, "one token": decode}
                row: dict[str, Any] = {"design": name, "act": act, "d": width, "batch": batch, "seq": length}
                for work, run in works.items():
                    forms = {str(fuse): run(each, ids) for fuse, each in pair.items()}
                    found = medians(forms, seconds, clock)
                    row[work] = {
                        "unfused_ms": round(1000 * found["False"], 3),
                        "ratio": round(found["True"] / found["False"], 3),
                    }
                rows.append(row)
                print(row, flush=True)
    return rows


def forward(model: SublayerForCausalLM, ids: Tensor) -> Callable[[], Any]:
    """The forward pass without gradients."""

    @torch.no_grad()
    def run() -> Any:
        return model(ids, use_cache=False)

    return run


def learn(model: SublayerForCausalLM, ids: Tensor) -> Callable[[], Any]:
    """Forward and backward."""

    def run() -> None:
        model.zero_grad()
        model(ids, labels=ids, use_cache=False).loss.backward()

    return run


def decode(model: SublayerForCausalLM, ids: Tensor) -> Callable[[], Any]:
    """One token after a prompt, which is taken back from the cache afterwards."""
    with torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values

    @torch.no_grad()
    def run() -> None:
        model(ids[:, :1], past_key_values=cache, use_cache=True)
        cache.crop(-1)

    return run


def measure_products(seconds: float, clock: Callable[[], float], counts: tuple[int, ...]) -> list[dict[str, Any]]:
    """The table of products alone."""
    rows = []
    for width in (256, 512, 1024):
        for tokens in counts:
            row: dict[str, Any] = {"d": width, "tokens": tokens}
            for kind, forms in (("input", input_forms(width, tokens)), ("output", output_forms(width, tokens))):
                for backward in (False, True):
                    found = medians({name: timed(form, backward) for name, form in forms.items()}, seconds, clock)
                    work = f"{kind}, forward and backward" if backward else f"{kind}, forward"
                    row[work] = {
                        "apart_ms": round(1000 * found["apart"], 3),
                        **{name: round(t / found["apart"], 3) for name, t in found.items() if name != "apart"},
                    }
            rows.append(row)
            print(row, flush=True)
    return rows


def timed(form: Callable[[], list[Tensor]], backward: bool) -> Callable[[], Any]:
    """The form alone, or with the gradients of a loss that costs nothing."""

    def run() -> None:
        with torch.set_grad_enabled(backward):
            outputs = form()
        if backward:
            torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])

    return run


def input_forms(width: int, tokens: int) -> dict[str, Callable[[], list[Tensor]]]:
    """Queries, keys and values, and the way up; each form ends in their parts, as the model needs them."""
    rows = [width, width, width, 4 * width]
    weights = [nn.Parameter(0.02 * torch.randn(n, width)) for n in rows]
    hidden = torch.randn(1, tokens, width, requires_grad=True)
    whole = place(weights)
    assert whole is not None

    def placed() -> list[Tensor]:
        weight = SideBySide.apply(whole, *weights) if torch.is_grad_enabled() else whole
        return list(F.linear(hidden, weight).split(rows, -1))

    return {
        "apart": lambda: [F.linear(hidden, weight) for weight in weights],
        "copied": lambda: list(F.linear(hidden, torch.cat(weights)).split(rows, -1)),
        "placed": placed,
    }


def output_forms(width: int, tokens: int) -> dict[str, Callable[[], list[Tensor]]]:
    """The way out of attention and FFN."""
    out, down = (nn.Parameter(0.02 * torch.randn(width, n)) for n in (width, 4 * width))
    context, inner = (torch.randn(1, tokens, n, requires_grad=True) for n in (width, 4 * width))
    return {
        "apart": lambda: [F.linear(context, out) + F.linear(inner, down)],
        "copied": lambda: [F.linear(torch.cat([context, inner], -1), torch.cat([out, down], 1))],
        "added": lambda: [(context[0] @ out.t()).addmm_(inner[0], down.t())],
    }


def main() -> None:
    """Measure both tables, print the rows and write them with the versions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="benchmarks/fused.json")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--seconds", type=float, default=2.0, help="time for one comparison")
    parser.add_argument("--quick", action="store_true", help="the smallest sizes: does it run?")
    args = parser.parse_args()
    sizes, counts = (SIZES[:1], TOKENS[:1]) if args.quick else (SIZES, TOKENS)
    seconds = 0.0 if args.quick else args.seconds
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    random.seed(0)
    result = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": args.threads,
        "clock": args.clock,
        "device": "cpu",
        "dtype": "float32",
        "products": measure_products(seconds, CLOCKS[args.clock], counts),
        "models": measure_models(seconds, CLOCKS[args.clock], sizes),
    }
    write_atomically(Path(args.out), json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
