"""Greedy generation with a cache: ours beside transformers', and beside the time that reading the weights takes.

    python benchmarks/generate.py [--out benchmarks/generate.json] [--rounds 5] [--threads 2] [--clock wall]

GPT-2 small's shape with random weights, a batch of one, 256 new tokens after a prompt of 16. transformers' model is
saved and read with `sublayer.load`, so that both have the same weights; that they give the same tokens is checked in
every round. For one token each weight is multiplied once, so that a pass over memory as large as the weights, which
torch's `sum` makes, is about as fast as a token can come.

Three rows without a goal say where the rest goes: `products alone` are the matrix products of a token and nothing else,
with the weights as they lie in each of the two models. Ours are `[out, in]` in memory, as `nn.Linear` has them;
transformers' GPT-2 keeps `[in, out]`. `by columns` is ours as `generate` lays it out for many tokens.
"""

import argparse
import copy
import statistics
from collections.abc import Callable
from typing import Any

import peers
import torch
from pairs import CLOCKS, Row, arguments, ratios, turns, write
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from sublayer.model.columns import TOKENS, by_columns

PROMPT, NEW = 16, 256  # tokens
SMALL = {"n_layer": 2, "n_embd": 64, "n_head": 2, "vocab_size": 512, "n_positions": 64}
# Wider than GPT-2's 0.02, with which an untrained model says one token again and again: the tokens must tell.
SPREAD = 0.1


def pair(sizes: dict[str, int]) -> tuple[Any, Any]:
    """Our model and transformers' with the same weights."""
    torch.manual_seed(0)
    config = GPT2Config(**sizes, initializer_range=SPREAD, bos_token_id=None, eos_token_id=None, pad_token_id=0)
    theirs = GPT2LMHeadModel(config).eval()
    return peers.ours(theirs).eval(), theirs


def bytes_read(model: Any) -> int:
    """Bytes of the weights that one token needs: all but the table of positions, of which it takes one row."""
    positions = model.transformer.wpe.weight
    return sum(p.numel() * p.element_size() for p in model.parameters() if p is not positions)


def generation(model: Any, prompt: Tensor, new: int, said: list[list[int]]) -> Callable[[], None]:
    """What generates once and keeps the ids."""
    every = torch.ones_like(prompt)

    def run() -> None:
        ids = model.generate(prompt, attention_mask=every, max_new_tokens=new, do_sample=False, use_cache=True)
        said.append(ids[0, prompt.shape[1] :].tolist())

    return run


def products(model: Any) -> Callable[[], None]:
    """What makes each matrix product of one token, biases added, in the order of the modules."""
    calls: list[tuple[Any, ...]] = []
    for module in model.modules():
        if isinstance(module, nn.Linear):
            calls.append((F.linear, torch.ones(1, 1, module.in_features), module.weight, module.bias))
        elif isinstance(module, Conv1D):
            calls.append((torch.addmm, module.bias, torch.ones(1, module.nx), module.weight))

    @torch.no_grad()
    def run() -> None:
        for product, *operands in calls:
            product(*operands)

    return run


def often(form: Callable[[], Any], times: int) -> Callable[[], None]:
    """``form``, so many times."""

    def run() -> None:
        for _ in range(times):
            form()

    return run


def rows(given: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    """The rows, and what they are about."""
    sizes, prompt_length, new = (SMALL, 8, 24) if given.quick else ({}, PROMPT, NEW)
    ours, theirs = pair(sizes)
    size = bytes_read(theirs)
    memory = torch.rand(size // 4)
    prompt = torch.randint(theirs.config.vocab_size, (1, prompt_length), generator=torch.Generator().manual_seed(1))
    said: dict[str, list[list[int]]] = {"ours": [], "theirs": []}

    part = max(1, new // 8)  # of the tokens: for what is the same each time
    columns = copy.deepcopy(ours)
    forms: dict[str, Callable[[], Any]] = {
        "ours": generation(ours, prompt, new, said["ours"]),
        "theirs": generation(theirs, prompt, new, said["theirs"]),
        "read": often(memory.sum, part),
        "our products": often(products(ours), part),
        "their products": often(products(theirs), part),
        "by columns": often(products(columns), part),
    }
    with by_columns(columns, 1, TOKENS):
        spent = turns(forms, given.rounds, CLOCKS[given.clock])
    for name in ("read", "our products", "their products", "by columns"):
        spent[name] = [seconds * new / part for seconds in spent[name]]
    apart = sum(a != b for one, two in zip(*said.values(), strict=True) for a, b in zip(one, two, strict=True))
    checks = {"ids that differ": float(apart), "kinds of ids": float(len(set(said["ours"][0])))}
    work = f"{new} tokens, {'a small shape' if given.quick else 'GPT-2 small'}, batch 1"
    against = {
        "transformers' generate": ("ours", "theirs", 1.0, checks),
        "reading the weights": ("ours", "read", 0.8, checks),
        "our products alone": ("ours", "our products", None, {}),
        "transformers' products": ("our products", "their products", None, {}),
        "our products by rows": ("by columns", "our products", None, {}),
    }
    found = [
        Row(
            work=work
            if one == "ours"
            else f"{work}: products alone{', tall weights by columns' if one == 'by columns' else ''}",
            against=name,
            values=ratios(spent[one], spent[other]),
            reach=reach,
            ours=statistics.median(spent[one]),
            theirs=statistics.median(spent[other]),
            checks=same,
        )
        for name, (one, other, reach, same) in against.items()
    ]
    facts = {
        "prompt": prompt_length,
        "new": new,
        "weights_mb": round(size / 1e6, 1),
        "read_gb_per_s": round(size * new / statistics.median(spent["read"]) / 1e9, 2),
    }
    return found, facts


def main() -> None:
    """Generate in turns, print a row each, write them."""
    given = arguments(__doc__, __file__).parse_args()
    torch.set_num_threads(given.threads)
    found, facts = rows(given)
    write("generate", found, given, **facts)
    if any(row.checks.get("ids that differ") for row in found):
        raise SystemExit("the two did not give the same tokens")


if __name__ == "__main__":
    main()
