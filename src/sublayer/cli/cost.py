"""`sublayer cost`."""

import json
from typing import Any

import click


@click.command()
@click.argument("design")
@click.option("--vocab", "vocab_size", type=int, help="Number of token ids.  [default: 32000]")
@click.option("--hidden", "hidden_size", type=int, help="Width d of the residual stream.  [default: 768]")
@click.option("--layers", "num_hidden_layers", type=int, help="Number of blocks.  [default: 12]")
@click.option("--heads", "num_attention_heads", type=int, help="Attention heads.  [default: 12]")
@click.option("--kv-heads", "num_key_value_heads", type=int, help="Heads of keys and values.  [default: heads]")
@click.option("--head-dim", type=int, help="Width of a head.  [default: hidden / heads]")
@click.option("--ffn", "intermediate_size", type=int, help="Inner width of the FFN.  [default: 4 * hidden]")
@click.option("--hidden-act", type=str, help="relu, gelu, silu, swiglu or geglu.  [default: gelu]")
@click.option("--norm", type=click.Choice(["layernorm", "rmsnorm", "dyt"]), help="What `norm` in an equation is.")
@click.option("--positions", "position_embedding", type=click.Choice(["learned", "rotary", "none"]), help="Positions.")
@click.option("--seq", type=int, help="Tokens a row.  [default: 512]")
@click.option("--batch", type=int, default=1, show_default=True, help="Rows.")
@click.option("--dropout", "hidden_dropout_prob", type=float, help="Dropout where BERT has it.  [default: 0]")
@click.option("--head", default="lm", show_default=True, help="lm, none, or the number of labels of a classifier.")
@click.option("--attention", type=click.Choice(["sdpa", "eager"]), default="sdpa", show_default=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Whose kernels.")
@click.option("--checkpointing", is_flag=True, help="Layers are run again in the backward pass.")
@click.option("--accumulation", type=int, default=1, show_default=True, help="Forward passes an optimiser step.")
@click.option("--dtype", type=click.Choice(["float32", "bf16"]), default="float32", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def cost(design: str, head: str, as_json: bool, **options: Any) -> None:
    """Print parameters, FLOPs and training memory of a design, and how they grow with length, from formulas.

    `sublayer train --recipe NAME --dry-run` prices a whole training on GPUs.
    """
    from sublayer.cost import CostError
    from sublayer.cost import cost as price

    if head not in ("lm", "none") and not head.isdecimal():
        raise CostError(f"head ({head!r}) must be lm, none, or a number of labels: give one of them")
    given = {name: value for name, value in options.items() if value is not None}
    result = price(design, head=int(head) if head.isdecimal() else head, **given)  # type: ignore[arg-type]
    click.echo(json.dumps(result.to_dict(), indent=2) if as_json else str(result))
