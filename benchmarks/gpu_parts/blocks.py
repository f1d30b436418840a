"""Parts of a block, packed documents and a probe.

B = batch, T = tokens a row, H = heads, D = channels a head.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from pairs import Row, ratios
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import sublayer as sl
from gpu_parts.measuring import Bench
from gpu_parts.training import FIRST, SHAPES
from sublayer.model.documents import Blocks
from sublayer.model.masks import attention_operators, build_masks

# -- parts of a block ------------------------------------------------------------------------------------------------


def one_layer(bench: Bench, design: str, fuse: bool = True) -> Any:
    """A model of one layer at the shapes' width, in bfloat16, that reads vectors."""
    width, heads = bench.count(1024, 64), bench.count(16, 2)
    config = sl.SublayerConfig(
        design=design, vocab_size=8, hidden_size=width, num_hidden_layers=1, num_attention_heads=heads, causal=False,
        position_embedding="none", init_seed=0, fuse_parallel=fuse, use_cache=False,
    )  # fmt: skip
    return sl.SublayerModel(config).to(bench.device, torch.bfloat16).train()


def backward(outputs: Tensor) -> None:
    """The gradients of a loss that costs nothing."""
    outputs.backward(torch.ones_like(outputs))


def parallel_block(bench: Bench) -> None:
    """The fused parallel block, forward and backward, beside its two products alone and beside itself unfused."""
    design = "embed: x = e\nblock: h = norm(x); x = x + attn(h) + ffn(h)\nfinal: x = x"
    batch, seq, times = bench.count(32, 2), bench.count(512, 32), bench.count(10, 1)
    width = bench.count(1024, 64)
    made = {"device": bench.device, "dtype": torch.bfloat16, "requires_grad": True}
    hidden = torch.randn(batch, seq, width, **made)
    inner = torch.randn(batch, seq, 5 * width, **made)  # the context of attention, and the FFN's activations
    into, out = torch.randn(7 * width, width, **made), torch.randn(width, 5 * width, **made)

    def products() -> None:
        backward(F.linear(hidden, into))
        backward(F.linear(inner, out))

    forms: dict[str, Callable[[], None]] = {"products": bench.repeated(products, times)}
    for fuse in (True, False):
        for compiled in (False, True):
            form = ("fused" if fuse else "unfused") + ", compiled" * compiled
            with bench.guarded(f"parallel block, {form}", 60):
                model = one_layer(bench, design, fuse)
                if compiled:
                    model.layers[0].compile(backend=bench.compiler, dynamic=False)

                def block(model: Any = model) -> None:
                    backward(model(inputs_embeds=hidden).last_hidden_state)

                run = bench.repeated(block, times)
                run()
                forms[form] = run
    spent = bench.turns(forms)
    pairs = [("fused", "products"), ("fused, compiled", "products"), ("fused", "unfused"),
             ("fused, compiled", "unfused, compiled")]  # fmt: skip
    for ours, theirs in pairs:
        if ours in spent and theirs in spent:
            name = "its two products alone" if theirs == "products" else theirs
            bench.rows.append(
                timed_row(f"parallel block, forward and backward: {ours}", name, spent, ours, theirs, times)
            )


def timed_row(
    work: str, against: str, spent: Mapping[str, list[float]], ours: str, theirs: str, times: int, **more: Any
) -> Row:
    """A row of speeds, from the seconds of turns with so many times the work."""
    our, their = (sorted(spent[name])[len(spent[name]) // 2] / times for name in (ours, theirs))
    return Row(work, against, ratios(spent[ours], spent[theirs]), ours=our, theirs=their, **more)


def norm_and_sum(bench: Bench) -> None:
    """``norm(x + f)`` beside a copy: share of the copy's bandwidth, with the bytes that must move at least."""
    norm = one_layer(bench, "post-norm").layers[0].stream_norm
    shape = bench.count(65536, 256), bench.count(1024, 64)
    times = bench.count(20, 2)
    x, f, gradient = (torch.randn(shape, device=bench.device, dtype=torch.bfloat16) for _ in range(3))
    leaves = [each.clone().requires_grad_() for each in (x, f)]
    target = torch.empty_like(x)

    def plain(x: Tensor, f: Tensor) -> Tensor:
        result: Tensor = norm(x + f)
        return result

    forms: dict[str, Callable[[], None]] = {"copy": bench.repeated(lambda: target.copy_(x), times)}
    for name, call in (("eager", plain), ("compiled", torch.compile(plain, backend=bench.compiler, dynamic=False))):

        def forward(call: Any = call) -> None:
            with torch.no_grad():
                call(x, f)

        def learn(call: Any = call) -> None:
            torch.autograd.grad(call(*leaves), [*leaves, *norm.parameters()], gradient)

        for work, run in (("forward", forward), ("forward and backward", learn)):
            with bench.guarded(f"norm(x + f), {work}, {name}", 40):
                form = bench.repeated(run, times)
                form()
                forms[f"{work}, {name}"] = form
    spent = bench.turns(forms)
    # In tensors: forward reads x and f and writes the result; with a backward pass it writes the sum as well, which is
    # read again with the gradient, and one gradient is written for both x and f.
    moved = {"forward": 3, "forward and backward": 7, "copy": 2}
    size = x.nbytes * times
    rates = {form: [moved[form.split(",")[0]] * size / s for s in seconds] for form, seconds in spent.items()}
    for form, values in rates.items():
        if form != "copy":
            shares = [our / copied for our, copied in zip(values, rates["copy"], strict=True)]
            ours, theirs = (sorted(each)[len(each) // 2] for each in (values, rates["copy"]))
            bench.rows.append(
                Row(f"norm(x + f), {form}", "bandwidth of a copy", shares, ours=ours, theirs=theirs, unit="B/s")
            )


# -- packed documents ------------------------------------------------------------------------------------------------


def packed(bench: Bench) -> None:
    """Attention within packed documents, forward and backward, as the model runs it beside kernels made for it."""
    batch, seq, heads, width, times = (bench.count(*n) for n in ((8, 2), (2048, 64), (16, 2), (64, 32), (10, 1)))
    generator = torch.Generator().manual_seed(0)
    starts = torch.rand(batch, seq, generator=generator) < 1 / bench.count(256, 16)  # documents of such a mean length
    starts[:, 0] = True
    documents = starts.long().cumsum(1).to(bench.device)  # [B, T]
    borders = [*starts.flatten().nonzero().squeeze(1).tolist(), batch * seq]
    longest = max(end - start for start, end in pairwise(borders))
    made = {"device": bench.device, "dtype": torch.bfloat16}
    given = [torch.randn(batch, heads, seq, width, requires_grad=True, **made) for _ in range(3)]  # [B, H, T, D]
    gradient = torch.randn(batch, heads, seq, width, **made)
    config = sl.SublayerConfig(
        design="post-norm", vocab_size=8, hidden_size=heads * width, num_hidden_layers=1, num_attention_heads=heads,
        causal=False, attn_implementation="sdpa",
    )  # fmt: skip
    embeddings = torch.empty(batch, seq, heads * width, **made)
    mask = build_masks(config, attention_operators(config), embeddings, None, documents, None)["attn"]
    blocks = isinstance(mask, Blocks)
    bench.found["packed"] = {
        "documents": len(borders) - 1, "tokens": batch * seq,
        "model_runs": "sdpa, document by document" if blocks else "sdpa with a mask [batch, 1, seq, seq]",
    }  # fmt: skip

    def model_form() -> Tensor:
        if blocks:
            mixed: Tensor = mask.attend(lambda *a: (F.scaled_dot_product_attention(*a).transpose(1, 2), None), *given)
            return mixed.transpose(1, 2)
        return F.scaled_dot_product_attention(*given, attn_mask=mask)

    on_gpu = bench.device.type == "cuda"
    flex = torch.compile(flex_attention, dynamic=False) if on_gpu else flex_attention
    block_mask = create_block_mask(
        lambda b, _, q, k: documents[b, q] == documents[b, k], batch, None, seq, seq, device=str(bench.device)
    )
    ends = torch.tensor(borders, device=bench.device, dtype=torch.int32)

    def varlen_form() -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        flat = (each.transpose(1, 2).flatten(0, 1) for each in given)  # [B * T, H, D]
        mixed = varlen_attn(*flat, ends, ends, longest, longest)
        return mixed.view(batch, seq, heads, width).transpose(1, 2)

    works: dict[str, Callable[[], Tensor]] = {
        "the model": model_form,
        "flex_attention": lambda: flex(*given, block_mask=block_mask),
        "varlen_attn": varlen_form,
        "whole rows, no documents": lambda: F.scaled_dot_product_attention(*given),
    }
    forms: dict[str, Callable[[], None]] = {}
    outputs: dict[str, Tensor] = {}
    for name, work in works.items():
        with bench.guarded(f"packed documents, {name}", 60):

            def run(work: Callable[[], Tensor] = work) -> None:
                torch.autograd.grad(work(), given, gradient)

            form = bench.repeated(run, times)
            form()
            outputs[name] = work().detach().float()
            forms[name] = form
    spent = bench.turns(forms)
    for name in spent:
        if name != "the model" and "the model" in spent:
            checks = {}
            if name != "whole rows, no documents":
                worst = (outputs["the model"] - outputs[name]).abs().max() / outputs["the model"].abs().max()
                checks = {"output": float(worst)}
            work = f"attention in packed documents: {bench.found['packed']['model_runs']}"
            bench.rows.append(timed_row(work, name, spent, "the model", name, times, checks=checks))


# -- probe -----------------------------------------------------------------------------------------------------------


def probe(bench: Bench) -> None:
    """A probe beside a plain forward pass over the same batches: GPT-2 medium's shape without its head."""
    shape = SHAPES["gpt2-medium"].small() if bench.quick else SHAPES["gpt2-medium"]
    rows, length = bench.count(8, 2), bench.count(512, 32)
    config = sl.SublayerConfig(
        design=shape.saf, vocab_size=shape.vocab, hidden_size=shape.hidden, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, intermediate_size=shape.inner, init_seed=0, use_cache=False,
    )  # fmt: skip
    model = sl.SublayerModel(config).to(bench.device, torch.bfloat16).eval()
    generator = torch.Generator().manual_seed(1)
    batches = [
        {"input_ids": torch.randint(FIRST, shape.vocab, (rows, length), generator=generator).to(bench.device)}
        for _ in range(bench.count(4, 1))
    ]

    def plain() -> None:
        with torch.no_grad():
            for batch in batches:
                model(**batch)
        bench.sync()

    def probed() -> None:
        sl.probe(model, batches)
        bench.sync()

    spent = bench.turns({"probe": probed, "forward": plain})
    values = [p / f for p, f in zip(spent["probe"], spent["forward"], strict=True)]
    ours, theirs = (sorted(spent[name])[len(values) // 2] for name in ("probe", "forward"))
    bench.rows.append(
        Row(f"probe, {shape.name} shapes: seconds", "plain forward pass", values, "at most", ours=ours, theirs=theirs)
    )
