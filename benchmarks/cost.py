"""`sublayer cost` against measurements: parameters, FLOPs and peak memory of a training step, shape by shape.

    python benchmarks/cost.py [--out benchmarks/cost.json] [--threads 1] [--only NAME,...]

Each shape runs in a fresh process: a model, AdamW, one step to make the moments, then the step that is measured:
forward, backward, clipping, update. Two measurements of its memory:

    allocated   what torch's allocator hands out, event by event, from `torch.profiler` with profile_memory; the peak of
                the running sum, with weights and moments added, which stand before and after. This is what the formula
                describes: tensors, to the byte, whatever the allocator below does with pages.
    resident    the rise of the process' resident memory (VmHWM, set back by /proc/self/clear_refs, against VmRSS
                before the step), with weights and moments added. It has the kernels' work space and the pages that
                malloc keeps; MALLOC_MMAP_THRESHOLD_ lets large tensors go back to the system as they are freed. Linux.

Parameters are counted in the model. FLOPs are those of torch's `FlopCounterMode`, whose formulas for the attention
kernels of GPUs are lent to the CPU's, which it counts as nothing.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from pairs import status

from sublayer.cost import cost
from sublayer.whole_files import write_atomically

# name -> (head, batch, seq, how the step is run, sizes)
Shape = tuple[str, int, int, dict[str, Any], dict[str, Any]]
ROBERTA_HEAD = {"lm_head_dense": True, "lm_head_act": "gelu", "lm_head_norm": True, "lm_head_bias": True}
SHAPES: dict[str, Shape] = {
    "deep-narrow": (
        "mlm", 4, 128, {},
        {"design": "post-norm", "num_hidden_layers": 48, "hidden_size": 128, "num_attention_heads": 4,
         "vocab_size": 2000},
    ),
    "shallow-wide": (
        "clm", 4, 128, {},
        {"design": "input-norm", "num_hidden_layers": 2, "hidden_size": 1024, "num_attention_heads": 16,
         "hidden_act": "swiglu", "norm": "rmsnorm", "num_key_value_heads": 4, "vocab_size": 2000},
    ),
    "long-sequence": (
        "clm", 1, 4096, {},
        {"design": "parallel-one-norm", "num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 4,
         "vocab_size": 1000, "max_position_embeddings": 4096},
    ),
    "big-vocabulary-mlm": (
        "mlm", 4, 128, {},
        {"design": "paf", "num_hidden_layers": 2, "hidden_size": 256, "num_attention_heads": 4, "vocab_size": 50265,
         "position_embedding": "learned", "type_vocab_size": 1, "hidden_dropout_prob": 0.1, **ROBERTA_HEAD},
    ),
    "gpt2-small": (
        "clm", 2, 256, {},
        {"design": "input-norm", "num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12,
         "vocab_size": 50257, "position_embedding": "learned", "max_position_embeddings": 1024,
         "hidden_act": "gelu_pytorch_tanh"},
    ),
    "eager": (
        "clm", 2, 512, {"attention": "eager"},
        {"design": "sandwich", "num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 8,
         "vocab_size": 1000, "attention_probs_dropout_prob": 0.1, "hidden_dropout_prob": 0.1},
    ),
    "checkpointing": (
        "clm", 4, 512, {"checkpointing": True},
        {"design": "output-norm", "num_hidden_layers": 12, "hidden_size": 256, "num_attention_heads": 4,
         "vocab_size": 1000},
    ),
    "mixed-precision": (
        "mlm", 2, 128, {"dtype": "bf16"},
        {"design": "post-norm", "num_hidden_layers": 4, "hidden_size": 128, "num_attention_heads": 4,
         "vocab_size": 1000},
    ),
}  # fmt: skip


def build(name: str) -> tuple[Any, Any, Any]:
    """The shape's model, its optimiser, and a function that runs one step."""
    import torch

    from sublayer.model import SublayerConfig, SublayerForCausalLM, SublayerForMaskedLM

    head, batch, seq, how, sizes = SHAPES[name]
    config = SublayerConfig(
        **sizes, init_seed=0, use_cache=False, causal=head == "clm", attn_implementation=how.get("attention", "sdpa")
    )
    model = (SublayerForCausalLM if head == "clm" else SublayerForMaskedLM)(config).train()
    if how.get("checkpointing"):
        model.activation_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.randint(config.vocab_size, (batch, seq), generator=torch.Generator().manual_seed(0))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=how.get("dtype") == "bf16"):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return model, ids, step


def measure(name: str, what: str) -> dict[str, float]:
    """One measurement in this process."""
    import torch

    model, ids, step = build(name)
    parameters = sum(p.numel() for p in model.parameters())
    if what == "flops":
        return {"parameters": parameters, **count_flops(model, ids)}
    step()
    standing = 12 * parameters
    if what == "resident":
        resident = status("VmRSS") * 1024
        Path("/proc/self/clear_refs").write_text("5")
        step()
        return {"resident": status("VmHWM") * 1024 - resident + standing}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    return {"allocated": standing + peak(profile)}


def peak(profile: Any) -> int:
    """The largest running sum of the allocations, in bytes."""
    from torch._C._profiler import _EventType

    waiting, events = list(profile.profiler.kineto_results.experimental_event_tree()), []
    while waiting:
        event = waiting.pop()
        waiting += event.children
        if event.tag == _EventType.Allocation:
            events.append((event.start_time_ns, event.extra_fields.alloc_size))
    now = most = 0
    for _, size in sorted(events, key=lambda event: event[0]):
        now += size
        most = max(most, now)
    return most


def count_flops(model: Any, ids: Any) -> dict[str, int]:
    """FLOPs of a forward pass, and of forward and backward."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

    def wide(shape: Any, like: Any) -> tuple[int, ...]:
        return (shape[0], like[1], *shape[2:])

    aten = torch.ops.aten
    kernels = {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(
            q, wide(k, q), wide(v, q)
        ),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: (
            sdpa_backward_flop_count(g, q, wide(k, q), wide(v, q))
        ),
    }
    with FlopCounterMode(display=False, custom_mapping=kernels) as counter:
        loss = model(input_ids=ids, labels=ids).loss
        forward = counter.get_total_flops()
        loss.backward()
    return {"forward_flops": forward, "training_flops": counter.get_total_flops()}


def row(name: str, threads: int) -> dict[str, Any]:
    """Formula and measurements of one shape."""
    _, batch, seq, how, sizes = SHAPES[name]
    priced = cost(sizes, batch=batch, seq=seq, **how)
    measured: dict[str, float] = {}
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MALLOC_MMAP_THRESHOLD_": "65536"}
    for what in ("flops", "allocated", "resident"):
        program = [sys.executable, __file__, "--measure", name, what]
        done = subprocess.run(program, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            raise SystemExit(f"{name}, {what}: {done.stderr.strip().splitlines()[-1]}")
        measured |= json.loads(done.stdout.splitlines()[-1])
    formula = {
        "parameters": priced.parameters,
        "forward_flops": priced.forward_flops,
        "training_flops": priced.training_flops,
        "memory": priced.memory.total,
    }
    found = {"shape": name, "batch": batch, "seq": seq, **how, "sizes": sizes, "formula": formula, "measured": measured}
    found["moment"] = priced.memory.moment
    found["ratio"] = {
        "parameters": formula["parameters"] / measured["parameters"],
        "forward_flops": formula["forward_flops"] / measured["forward_flops"],
        "training_flops": formula["training_flops"] / measured["training_flops"],
        "allocated": round(formula["memory"] / measured["allocated"], 4),
        "resident": round(formula["memory"] / measured["resident"], 4),
    }
    return found


def main() -> None:
    """Measure the shapes, print a row each, write them with the versions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="benchmarks/cost.json")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", help="names of shapes, separated by commas")
    parser.add_argument("--quick", action="store_true", help="one small shape: does it run?")
    parser.add_argument("--measure", nargs=2, metavar=("SHAPE", "WHAT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(*args.measure)))
        return
    rows = []
    print(
        f"{'shape':<20}{'parameters':>12}{'training':>11}{'formula':>10}{'allocated':>10}{'ratio':>8}{'resident':>10}"
    )
    for name in args.only.split(",") if args.only else ["mixed-precision"] if args.quick else SHAPES:
        found = row(name, args.threads)
        rows.append(found)
        exact = {key: "exact" if found["ratio"][key] == 1 else f"{found['ratio'][key]:.4f}" for key in found["ratio"]}
        megabytes = [found["formula"]["memory"] / 1e6, found["measured"]["allocated"] / 1e6]
        print(
            f"{name:<20}{exact['parameters']:>12}{exact['training_flops']:>11}{megabytes[0]:>10.1f}{megabytes[1]:>10.1f}"
            f"{found['ratio']['allocated']:>8.3f}{found['ratio']['resident']:>10.3f}",
            flush=True,
        )
    import torch

    result = {
        "command": ["python", "benchmarks/cost.py", *sys.argv[1:]],
        "seed": 0,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": args.threads,
        "device": "cpu",
        "rows": rows,
    }
    write_atomically(Path(args.out), json.dumps(result, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
