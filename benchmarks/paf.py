"""Attention and FFN in parallel (PAF) beside in series (SAF), and beside the bare matrix products of the block.

    python benchmarks/paf.py [--layers 4] [--rows 2] [--length 512] [--rounds 5] [--out benchmarks/paf.json]

Both are ours, at RoBERTa-base's width and of equal parameters but for one norm a layer; ``forward`` has no gradients,
``step`` is forward, backward and one fused AdamW pass. `products` are what no wiring can leave out: one product to
queries, keys, values and FFN, the two of attention (torch's kernel), and one to the output, forward and backward.
"""

import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from pairs import CLOCKS, Row, arguments, ratios, turns, write
from torch import Tensor

import sublayer as sl


def blocks(design: str, layers: int, width: int, heads: int) -> Any:
    """A stack of layers; its embedding is small."""
    config = sl.SublayerConfig(
        design=design, vocab_size=64, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=4 * width, causal=False, position_embedding="none", init_seed=0,
    )  # fmt: skip
    return sl.SublayerModel(config).train()


def products(layers: int, width: int, heads: int, x: Tensor, learn: bool) -> Callable[[], None]:
    """The products of a parallel block alone, with a gradient for the weights and for what they read."""
    generator = torch.Generator().manual_seed(0)
    into = [torch.randn(7 * width, width, generator=generator).mul_(0.02).requires_grad_(learn) for _ in range(layers)]
    out = [torch.randn(width, 5 * width, generator=generator).mul_(0.02).requires_grad_(learn) for _ in range(layers)]
    batch, length, _ = x.shape

    def run() -> None:
        value = x.detach().requires_grad_(learn)
        with torch.set_grad_enabled(learn):
            for first, last in zip(into, out, strict=True):
                wide = F.linear(value, first)  # [batch, length, 7 d]
                q, k, v = (
                    each.view(batch, length, heads, -1).transpose(1, 2) for each in wide[..., : 3 * width].chunk(3, -1)
                )
                mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
                value = F.linear(torch.cat([mixed, wide[..., 3 * width :]], -1), last)
        if learn:
            value.sum().backward()  # type: ignore[no-untyped-call]
            for weight in (*into, *out):
                weight.grad = None

    return run


def main() -> None:
    """Measure and write the record."""
    parser = arguments(__doc__, __file__)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--length", type=int, default=512)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    width, heads = (64, 4) if given.quick else (768, 12)
    x = torch.randn(given.rows, given.length, width, generator=torch.Generator().manual_seed(1))
    models = {name: blocks(name, given.layers, width, heads) for name in ("post-norm", "paf")}
    optimizers = {name: torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True) for name, model in models.items()}

    def forward(name: str) -> Callable[[], None]:
        def run() -> None:
            with torch.no_grad():
                models[name](inputs_embeds=x)

        return run

    def learn(name: str, step: bool) -> Callable[[], None]:
        def run() -> None:
            models[name](inputs_embeds=x).last_hidden_state.sum().backward()
            if step:
                optimizers[name].step()
            optimizers[name].zero_grad()

        return run

    rows = []
    for what, forms, reach in (
        ("forward", {name: forward(name) for name in models}, None),
        ("step", {name: learn(name, True) for name in models}, 1.1),
    ):
        spent = turns(forms, given.rounds, CLOCKS[given.clock])
        rows.append(
            Row(
                f"PAF, {what}", "SAF", ratios(spent["paf"], spent["post-norm"]), "at least", reach,
                statistics.median(spent["paf"]), statistics.median(spent["post-norm"]),
            )
        )  # fmt: skip
    for what, form, grad in (
        ("forward", forward("paf"), False),
        ("forward and backward", learn("paf", False), True),
    ):
        forms = {"block": form, "products": products(given.layers, width, heads, x, grad)}
        spent = turns(forms, given.rounds, CLOCKS[given.clock])
        rows.append(
            Row(
                f"PAF, {what}: share of the time that its matrix products alone take", "the whole block",
                ratios(spent["block"], spent["products"]), "at least", 0.9,
                statistics.median(spent["block"]), statistics.median(spent["products"]),
            )
        )  # fmt: skip
    parameters = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    write("paf", rows, given, parameters=parameters, tokens=given.rows * given.length, seed=0)


if __name__ == "__main__":
    main()
