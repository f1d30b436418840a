"""How a cost grows with the length of the text.

All products but those between positions cost each token the same, whatever the length. Those between positions,
``Q K^T`` and the weights times ``V``, cost each token ``4 seq heads head_dim`` FLOPs a layer forward, so that their
share grows, and at some length they cost as much as the FFN. With one ``attn`` and one ``ffn`` a layer that is

    4 seq* q = 2 d d_ff (2 or, with a gate, 3)      seq* = d d_ff / q, which is d_ff where q = heads head_dim is d

All pairs of positions are counted, as torch counts them: a kernel that skips what a causal mask hides does half of
that work, and meets the FFN's cost at about twice the length.
"""

from dataclasses import dataclass

from sublayer.cost.products import Products

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)


@dataclass(frozen=True)
class Length:
    """FLOPs at one length.

    Attributes:
        seq: tokens a row.
        forward_flops_per_token, training_flops_per_token: of all products.
        attention_share: the part of the forward products that is between positions.
    """

    seq: int
    forward_flops_per_token: float
    training_flops_per_token: float
    attention_share: float


def growth(found: Products, tokens: int, seq: int) -> tuple[Length, ...]:
    """The products of a step, counted at ``seq``, at other lengths."""
    rows = []
    forward, training = found.forward.total(), found.forward.total() + found.backward
    for length in LENGTHS:
        between = [part * length / seq for part in found.between]
        at = (forward - found.between[0] + between[0]) / tokens
        whole = (training - found.between[1] + between[1]) / tokens
        rows.append(Length(length, at, whole, between[0] / tokens / at if at else 0.0))
    return tuple(rows)


def crossover(found: Products, seq: int) -> float | None:
    """The length at which the products between positions cost as much as the FFN's, forward; None without both."""
    if not found.between[0] or not found.ffn:
        return None
    return found.ffn / (found.between[0] / seq)
