"""Causal language modelling at GPT-2 small's shapes, full rows: ours beside transformers and a plain loop, and memory.

    python benchmarks/clm.py [--rows 4] [--rounds 3] [--out benchmarks/clm.json]

12 layers, 768 channels, 12 heads, vocabulary 50,257, rows of 512 tokens, float32, no dropout. A step is forward,
backward and one fused AdamW pass. The plain loop is GPT-2 as one would write it from scratch (`peers.PlainGPT`). Each
is timed in processes of its own, which take turns: a step before, then the median of some. Ours has the allocator as
`sublayer train` sets it (it keeps what a step frees), the others as they come.
`memory` is the peak resident size of a process of its own during steps, less what it held before the model was made
and less 16 bytes a parameter for weights, gradients and the optimizer's two moments. `loss` is the largest relative
difference of two curves of 50 steps from the same weights on the same batches.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import peers
import torch
from pairs import CLOCKS, Row, apart, arguments, in_a_process, peak_kib, ratios, write
from torch import Tensor, nn

from sublayer.train.frame import keep_freed_memory

Loss = Callable[[Any, dict[str, Tensor]], Tensor]
LOSSES: dict[str, Loss] = {
    "ours": lambda model, batch: model(**batch, loss_only=True).loss,
    "transformers": lambda model, batch: model(**batch).loss,
    "plain loop": lambda model, batch: model(**batch),
}


def made(name: str, small: bool) -> Any:
    """One of the three models, from the same weights."""
    peer = peers.gpt2(small)
    return {"ours": peers.ours, "transformers": lambda model: model, "plain loop": peers.PlainGPT}[name](peer).train()


def batches(vocab: int, rows: int, length: int, count: int) -> list[dict[str, Tensor]]:
    """Random ids: what they say takes no time."""
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(0, vocab, (rows, length), generator=generator) for _ in range(count)]
    return [{"input_ids": each, "labels": each.clone()} for each in ids]


def vocabulary(small: bool) -> int:
    """Ids that all models have."""
    return 2000 if small else 50257


def stepping(model: nn.Module, loss: Loss, batch: dict[str, Tensor]) -> Callable[[], None]:
    """A training step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        loss(model, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    return step


def memory(given: argparse.Namespace) -> int:
    """KiB that two steps take beyond weights, gradients and optimizer state."""
    (batch,) = batches(vocabulary(given.quick), given.rows, peers.LENGTH, 1)
    torch.ones(256, 256).mm(torch.ones(256, 256))  # the library's own buffers
    before = peak_kib()
    model = made(given.memory, given.quick)
    step = stepping(model, LOSSES[given.memory], batch)
    step()
    step()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return peak_kib() - before - 16 * parameters // 1024


def timed(given: argparse.Namespace) -> float:
    """Seconds of a step, in this process."""
    if given.time == "ours":
        keep_freed_memory()
    (batch,) = batches(vocabulary(given.quick), given.rows, peers.LENGTH, 1)
    step, clock = stepping(made(given.time, given.quick), LOSSES[given.time], batch), CLOCKS[given.clock]
    step()
    spent = []
    for _ in range(given.steps):
        begin = clock()
        step()
        spent.append(clock() - begin)
    return statistics.median(spent)


def main() -> None:
    """Measure and write the record."""
    parser = arguments(__doc__, __file__, rounds=3)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3, help="steps of a turn")
    parser.add_argument("--time", choices=LOSSES, help=argparse.SUPPRESS)
    parser.add_argument("--memory", choices=LOSSES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.memory or given.time:
        print(memory(given) if given.memory else timed(given))
        return
    words = ["--threads", str(given.threads), "--rows", str(given.rows), *(["--quick"] if given.quick else [])]
    spent: dict[str, list[float]] = {name: [] for name in LOSSES}
    for turn in range(given.rounds):
        for name in LOSSES if turn % 2 == 0 else reversed(LOSSES):
            told = in_a_process(
                __file__, *words, "--clock", given.clock, "--steps", str(given.steps), "--time", name
            )  # fmt: skip
            spent[name].append(float(told))
    short = batches(vocabulary(given.quick), 1, 64, 5 if given.quick else 50)
    curves = {name: peers.curve(made(name, given.quick), short, LOSSES[name]) for name in LOSSES}
    beyond = {name: int(in_a_process(__file__, *words, "--memory", name)) / 1024 for name in LOSSES}
    rows = []
    for peer in ("transformers", "plain loop"):
        check = {"loss": apart(curves["ours"], curves[peer])}
        rows.append(
            Row(
                "CLM step, GPT-2 small, full rows", peer, ratios(spent["ours"], spent[peer]), "at least", 1.1,
                statistics.median(spent["ours"]), statistics.median(spent[peer]), "s", check,
            )
        )  # fmt: skip
    for peer in ("transformers", "plain loop"):
        rows.append(
            Row(
                "CLM memory beyond weights, gradients and optimizer", peer, [beyond["ours"] / beyond[peer]], "at most",
                0.6 if peer == "transformers" else None, beyond["ours"], beyond[peer], "MiB",
            )
        )  # fmt: skip
    write("clm", rows, given, tokens_a_step=given.rows * peers.LENGTH, seed=1)


if __name__ == "__main__":
    main()
