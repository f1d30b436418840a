"""On a GPU: bfloat16 training steps beside transformers and x-transformers, MFU, memory, and the parts of a block.

    python benchmarks/gpu.py [--out benchmarks/gpu.json] [--rounds 5] [--batch 32] [--weights float32] [--only PART ...]

One command of under ten minutes. Each part has a limit of time, and what fails or does not fit is named under
`left_out` with its reason while the others go on; the record is written after each part. Parts:

    roberta-large  a step (forward, backward, fused AdamW) with 15% of random tokens predicted: post-norm and PAF
    gpt2-medium    a step of next-token prediction: input-norm and its parallel form with one norm
    parallel-block the fused parallel block beside its two matrix products alone, forward and backward
    norm           norm(x + f) beside the bandwidth of a copy
    packed         attention within packed documents: as the model runs it, flex_attention, varlen_attn
    probe          a probe beside a plain forward pass

MFU is the FLOPs that a step needs (`sublayer.cost`: logits only where something is predicted, nothing done twice,
causal attention as whole squares) over its time and the peak of the card: the datasheet's, or that of a large product
measured here where the card is not known; the record has both. Ours has its blocks compiled, transformers' the whole
model, both in the default mode of `torch.compile`; x-transformers runs as it is. There is no dropout.

`--quick` runs everything on the CPU in tiny shapes, without code generation: its figures mean nothing.
"""

import contextlib
import io
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from typing import Any

import torch
from pairs import CLOCKS, arguments, write

TOTAL = 540  # seconds for everything, start and record included

# Dense bfloat16 products with float32 sums, TFLOP/s, from NVIDIA's datasheets; where those give the rate with sparsity,
# half of it. A name that holds another one comes first.
DATASHEET = {
    "H100 PCIe": 756.0,  # H100 datasheet: 1,513 with sparsity
    "H100 NVL": 835.5,  # H100 NVL: 1,671
    "H100": 989.4,  # H100 SXM: 1,979
    "H200 NVL": 835.5,  # H200 datasheet: 1,671
    "H200": 989.4,  # H200 SXM: 1,979
    "A100": 312.0,  # A100 datasheet, dense
    "A10G": None,  # no datasheet gives it
    "A10": 125.0,  # A10 datasheet, dense
    "A30": 165.0,  # A30 datasheet, dense
    "L40S": 362.05,  # L40S datasheet, dense
    "L4": 121.0,  # L4 datasheet: 242 with sparsity
}


def datasheet(name: str) -> float | None:
    """Peak in FLOP/s of the card of this name, as `torch.cuda.get_device_name` gives it; None if it is not known."""
    words = name.replace("-", " ").split()
    for known, rate in DATASHEET.items():
        parts = known.split()
        if parts[0] in words and all(part in words for part in parts[1:]):
            return None if rate is None else rate * 1e12
    return None


def card() -> dict[str, Any]:
    """The GPU, its driver and the libraries that decide a figure beside those of `pairs.versions`."""
    found: dict[str, Any] = {"cuda": torch.version.cuda, "hip": torch.version.hip}
    try:
        found["triton"] = metadata.version("triton")
    except metadata.PackageNotFoundError:
        found["triton"] = None
    if not torch.cuda.is_available():
        return {"name": None, **found}
    props = torch.cuda.get_device_properties(0)
    found |= {"cudnn": torch.backends.cudnn.version(), "memory_bytes": props.total_memory}
    found["capability"] = f"{props.major}.{props.minor}"
    query = "driver_version,clocks.max.sm,power.limit"
    with contextlib.suppress(OSError):
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"], capture_output=True, text=True, check=False
        )
        lines = done.stdout.splitlines()
        if done.returncode == 0 and lines:
            values = [part.strip() for part in lines[0].split(",")]
            found |= dict(zip(("driver", "clock_max", "power_limit"), values, strict=False))
    return {"name": props.name, **found}


def main() -> int:
    """Measure part by part, and write the record after each."""
    begin = time.monotonic()
    parser = arguments(__doc__, __file__)
    parser.add_argument("--batch", type=int, help="rows of 512 tokens in a step  [default: by the card's memory]")
    parser.add_argument("--weights", choices=("float32", "bfloat16"), default="float32", help="float32: autocast")
    parser.add_argument("--only", nargs="+", metavar="PART", help="some of the parts")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="[default: cuda; with --quick cpu]")
    parser.add_argument("--compiler", help="backend of torch.compile  [default: inductor; on a CPU eager]")
    given = parser.parse_args()
    device = given.device or ("cpu" if given.quick else "cuda")
    if device == "cuda" and not torch.cuda.is_available():
        print(
            "this benchmark needs a GPU, and torch sees none: run it where there is one, or rehearse it on the CPU "
            "with --quick",
            file=sys.stderr,
        )
        return 2
    if device == "cpu" and not given.quick:
        parser.error("full shapes are for a GPU: give --quick with --device cpu")

    from gpu_parts import blocks, measuring, training  # takes seconds: first it must be known that there is work

    parts: dict[str, tuple[Callable[[Any], None], int]] = {  # with seconds that each may take
        "roberta-large": (partial(training.training, name="roberta-large"), 210),
        "gpt2-medium": (partial(training.training, name="gpt2-medium"), 190),
        "parallel-block": (blocks.parallel_block, 60),
        "norm": (blocks.norm_and_sum, 45),
        "probe": (blocks.probe, 60),
        "packed": (blocks.packed, 60),  # last: the newest kernels, and a fault on a GPU ends all that follows
    }
    unknown = [name for name in given.only or () if name not in parts]
    if unknown:
        parser.error(f"a part is one of {', '.join(parts)}; got {', '.join(unknown)}")
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    gpu = card()
    memory = (gpu.get("memory_bytes") or 0) / 2**30
    bench = measuring.Bench(
        device=torch.device(device),
        quick=given.quick,
        rounds=1 if given.quick else given.rounds,
        clock=CLOCKS[given.clock],
        batch=given.batch or (32 if memory > 70 else 16 if memory > 38 else 4),
        weights=getattr(torch, given.weights),
        compiler=given.compiler or ("inductor" if device == "cuda" else "eager"),
    )
    ends = begin + TOTAL
    bench.ends = min(ends, time.monotonic() + 30)
    peak: dict[str, Any] = {"datasheet": datasheet(gpu["name"] or "") if device == "cuda" else None, "measured": None}
    with bench.guarded("a large product"):
        peak["measured"] = measuring.matmul_rate(bench)
    bench.peak_source = "datasheet" if peak["datasheet"] else "a large product, measured"
    bench.peak = peak["datasheet"] or peak["measured"] or 0.0
    if not bench.peak:
        print("no peak: neither a datasheet's nor a measured one", file=sys.stderr)
        return 1
    seconds: dict[str, float] = {}

    def record() -> None:
        more = {
            "device": device, "gpu": gpu, "weights": given.weights, "compute": "bfloat16", "compiler": bench.compiler,
            "peak_flops": {**peak, "used": bench.peak}, "seconds": seconds, **bench.found, "left_out": bench.left_out,
        }  # fmt: skip
        write("gpu", bench.rows, given, **more)

    for name, (part, limit) in parts.items():
        if given.only and name not in given.only:
            continue
        started = time.monotonic()
        bench.ends = min(ends, started + limit)
        with bench.guarded(name):
            part(bench)
        seconds[name] = round(time.monotonic() - started, 1)
        with contextlib.redirect_stdout(io.StringIO()):  # all rows are shown once, at the end
            record()
        print(f"== {name}: {seconds[name]} s", flush=True)
    record()
    return 0


if __name__ == "__main__":
    sys.exit(main())
