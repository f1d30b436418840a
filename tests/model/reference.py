"""Blocks written out by hand, as one would from the papers, without any code of sublayer."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Operators:
    """The operators of one layer over a plain dictionary of tensors.

    ``skip``, ``swap`` and ``twice`` make mutants: a norm left out, two norms exchanged, two norms where one is shared.
    """

    parameters: dict[str, Tensor]
    prefix: str
    layer: int
    depth: int
    heads: int = 4
    causal: bool = True
    skip: frozenset[str] = frozenset()
    swap: dict[str, str] = field(default_factory=dict)
    twice: bool = False
    calls: dict[str, int] = field(default_factory=dict)

    def get(self, site: str, name: str) -> Tensor:
        return self.parameters[f"{self.prefix}.{self.swap.get(site, site)}.{name}"]

    def linear(self, x: Tensor, site: str, name: str) -> Tensor:
        return x @ self.get(site, f"{name}.weight").T + self.get(site, f"{name}.bias")

    def attn(self, x: Tensor, site: str = "attn") -> Tensor:
        length, width = x.shape[1], x.shape[2] // self.heads
        q, k, v = (self.linear(x, site, f"{p}_proj") for p in "qkv")
        context = []
        for head in range(self.heads):
            part = slice(head * width, (head + 1) * width)
            scores = torch.einsum("bid,bjd->bij", q[..., part], k[..., part]) / math.sqrt(width)
            if self.causal:
                later = torch.arange(length)[None, :] > torch.arange(length)[:, None]
                scores = scores.masked_fill(later, -math.inf)
            context.append(torch.einsum("bij,bjd->bid", scores.softmax(-1), v[..., part]))
        return self.linear(torch.cat(context, -1), site, "o_proj")

    def ffn(self, x: Tensor, site: str = "ffn") -> Tensor:
        h = self.linear(x, site, "up_proj")
        return self.linear(h * 0.5 * (1 + torch.erf(h / math.sqrt(2))), site, "down_proj")

    def dot(self, x: Tensor) -> Tensor:
        rows = []
        for i in range(x.shape[1]):
            weights = torch.einsum("bd,bjd->bj", x[:, i], x[:, : i + 1]).exp()
            rows.append(torch.einsum("bj,bjd->bd", weights / weights.sum(-1, keepdim=True), x[:, : i + 1]))
        return torch.stack(rows, 1)

    def norm(self, x: Tensor, site: str) -> Tensor:
        self.calls[site] = self.calls.get(site, 0) + 1
        if site in self.skip:
            return x
        centred = x - x.mean(-1, keepdim=True)
        unit = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-5)
        result = unit * self.get(site, "weight") + self.get(site, "bias")
        # A second call of one norm, as if it had parameters of its own.
        return result * 1.3 + 0.1 if self.twice and self.calls[site] == 2 else result

    def rms(self, x: Tensor, site: str) -> Tensor:
        return x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-5) * self.get(site, "weight")

    def dyt(self, x: Tensor, site: str) -> Tensor:
        return torch.tanh(self.get(site, "alpha") * x) * self.get(site, "weight") + self.get(site, "bias")

    def times(self, x: Tensor, site: str) -> Tensor:
        return x * self.get(site, "weight")


Streams = tuple[Tensor, ...]
Block = Callable[[Operators, Streams], Streams]


def post_norm(o: Operators, s: Streams) -> Streams:
    (x,) = s
    x = o.norm(x + o.attn(x), "stream_norm")
    return (o.norm(x + o.ffn(x), "stream_norm_2"),)


def input_norm(o: Operators, s: Streams) -> Streams:
    (x,) = s
    x = x + o.attn(o.norm(x, "attn_in_norm"))
    return (x + o.ffn(o.norm(x, "ffn_in_norm")),)


def output_norm(o: Operators, s: Streams) -> Streams:
    (x,) = s
    x = x + o.norm(o.attn(x), "attn_out_norm")
    return (x + o.norm(o.ffn(x), "ffn_out_norm"),)


def sandwich(o: Operators, s: Streams) -> Streams:
    (x,) = s
    x = x + o.norm(o.attn(o.norm(x, "attn_in_norm")), "attn_out_norm")
    return (x + o.norm(o.ffn(o.norm(x, "ffn_in_norm")), "ffn_out_norm"),)


def paf(o: Operators, s: Streams) -> Streams:
    (x,) = s
    return (o.norm(x + o.attn(x) + o.ffn(x), "stream_norm"),)


def parallel_one_norm(o: Operators, s: Streams) -> Streams:
    (x,) = s
    a = o.attn(o.norm(x, "attn_ffn_in_norm"))
    return (x + a + o.ffn(o.norm(x, "attn_ffn_in_norm")),)


def parallel_two_norms(o: Operators, s: Streams) -> Streams:
    (x,) = s
    return (x + o.attn(o.norm(x, "attn_in_norm")) + o.ffn(o.norm(x, "ffn_in_norm")),)


def deepnorm(o: Operators, s: Streams) -> Streams:
    (x,) = s
    alpha = (2 * o.depth) ** 0.25
    x = o.norm(alpha * x + o.attn(x), "stream_norm")
    return (o.norm(alpha * x + o.ffn(x), "stream_norm_2"),)


def residual(o: Operators, s: Streams) -> Streams:
    x, r = s
    a = o.attn(x)
    x, r = o.norm(x + a, "stream_norm"), r + a
    f = o.ffn(x)
    return o.norm(x + f, "stream_norm_2"), r + f


def b2t(o: Operators, s: Streams) -> Streams:
    (x,) = s
    h = o.norm(x + o.attn(x), "stream_norm")
    return (o.norm(h + o.ffn(h) + x, "stream_norm_2"),)


def rezero(o: Operators, s: Streams) -> Streams:
    (x,) = s
    x = x + o.times(o.attn(x), "attn_out_gate")
    return (x + o.times(o.ffn(x), "attn_out_gate"),)


def layerscale(o: Operators, s: Streams) -> Streams:
    (x,) = s
    x = x + o.times(o.attn(o.norm(x, "attn_in_norm")), "attn_out_scale")
    return (x + o.times(o.ffn(o.norm(x, "ffn_in_norm")), "ffn_out_scale"),)


def mix_ln(o: Operators, s: Streams) -> Streams:
    return post_norm(o, s) if o.layer <= 1 else input_norm(o, s)  # 25% of 4 layers


def layernorm_scaling(o: Operators, s: Streams) -> Streams:
    (x,) = s
    x = x + o.attn(o.norm(x, "attn_in_norm") / math.sqrt(o.layer))
    return (x + o.ffn(o.norm(x, "ffn_in_norm") / math.sqrt(o.layer)),)


def macaron(o: Operators, s: Streams) -> Streams:
    (x,) = s
    x = o.norm(x + o.ffn(x) / 2, "stream_norm")
    x = o.norm(x + o.attn(x), "stream_norm_2")
    return (o.norm(x + o.ffn(x, "ffn_2") / 2, "stream_norm_3"),)


def keel(o: Operators, s: Streams) -> Streams:
    (x,) = s
    x = o.norm(2 * o.depth * x + o.attn(o.norm(x, "attn_in_norm")), "stream_norm")
    return (o.norm(2 * o.depth * x + o.ffn(o.norm(x, "ffn_in_norm")), "stream_norm_2"),)


def normed_residual(o: Operators, s: Streams) -> Streams:
    (x,) = s
    x = o.norm(x, "stream_norm")
    x = o.norm(x + o.attn(x), "stream_norm_2")
    return (x + o.ffn(x),)


def dot_block(o: Operators, s: Streams) -> Streams:
    (x,) = s
    x = x + o.dot(o.norm(x, "dot_in_norm"))
    return (x + o.ffn(o.norm(x, "ffn_in_norm")),)


def three_norms(o: Operators, s: Streams) -> Streams:
    (x,) = s
    x = x + o.rms(o.attn(o.dyt(x, "attn_in_norm")), "attn_out_norm")
    return (x - o.norm(o.ffn(x.detach()), "ffn_out_norm"),)


def shared_attention(o: Operators, s: Streams) -> Streams:
    (x,) = s
    x = x + o.attn(x)
    return (o.norm(x + 0.3 * o.attn(x) - o.ffn(x), "stream_norm"),)


@dataclass(frozen=True)
class Wiring:
    """A design and the hand-written block that it must equal."""

    design: str
    block: Block
    final_norm: bool = True
    second_stream: bool = False
    depth: int = 3


NO_FINAL = "\nfinal: x = x"

WIRINGS = {
    "post-norm": Wiring("x = norm(x + attn(x)); x = norm(x + ffn(x))", post_norm, False),
    "input-norm": Wiring("x = x + attn(norm(x)); x = x + ffn(norm(x))", input_norm),
    "output-norm": Wiring("x = x + norm(attn(x)); x = x + norm(ffn(x))", output_norm),
    "sandwich": Wiring("x = x + norm(attn(norm(x))); x = x + norm(ffn(norm(x)))", sandwich),
    "paf": Wiring("x = norm(x + attn(x) + ffn(x))", paf, False),
    "parallel-one-norm": Wiring("h = norm(x); x = x + attn(h) + ffn(h)", parallel_one_norm),
    "parallel-two-norms": Wiring("x = x + attn(norm(x)) + ffn(norm(x))", parallel_two_norms),
    "deepnorm": Wiring(
        "x = norm((2*depth)**0.25 * x + attn(x)); x = norm((2*depth)**0.25 * x + ffn(x))", deepnorm, False
    ),
    "residual": Wiring(
        "embed: x = e; r = e\n"
        "block: a = attn(x); r = r + a; x = norm(x + a); f = ffn(x); r = r + f; x = norm(x + f)\n"
        "final: x = x + norm(r)",
        residual,
        second_stream=True,
    ),
    "b2t": Wiring("h = norm(x + attn(x)); x = norm(h + ffn(h) + x)", b2t, False),
    "rezero": Wiring("block: x = x + gate_a(attn(x)); x = x + gate_a(ffn(x))" + NO_FINAL, rezero, False),
    "layerscale": Wiring("x = x + scale(attn(norm(x))); x = x + scale(ffn(norm(x)))", layerscale),
    "mix-ln": Wiring(
        "block[:25%]: x = norm(x + attn(x)); x = norm(x + ffn(x))\n"
        "block[25%:]: x = x + attn(norm(x)); x = x + ffn(norm(x))",
        mix_ln,
        depth=4,
    ),
    "layernorm-scaling": Wiring(
        "x = x + attn(norm(x)/sqrt(layer)); x = x + ffn(norm(x)/sqrt(layer))", layernorm_scaling
    ),
    "macaron": Wiring("x = norm(x + ffn(x)/2); x = norm(x + attn(x)); x = norm(x + ffn(x)/2)", macaron, False),
    "keel": Wiring("x = norm(2*depth*x + attn(norm(x))); x = norm(2*depth*x + ffn(norm(x)))", keel, False),
    "normed-residual": Wiring("x = norm(x); x = norm(x + attn(x)); x = x + ffn(x)", normed_residual),
    "dot": Wiring("x = x + dot(norm(x)); x = x + ffn(norm(x))", dot_block),
    "three-norms": Wiring("x = x + rmsnorm(attn(dyt(x))); x = x - layernorm(ffn(stop(x)))", three_norms),
    "shared-attention": Wiring("x = x + attn_a(x); x = norm(x + 0.3*attn_a(x) - ffn(x))", shared_attention, False),
}


def run(
    wiring: Wiring,
    parameters: dict[str, Tensor],
    embedded: Tensor,
    block: Block | None = None,
    causal: bool = True,
    skip: frozenset[str] = frozenset(),
    swap: dict[str, str] | None = None,
    twice: bool = False,
) -> Tensor:
    """The hidden states ``[batch, seq, d]`` that the hand-written blocks give for the embeddings of the tokens."""
    streams: Streams = (embedded, embedded) if wiring.second_stream else (embedded,)
    for layer in range(wiring.depth):
        operators = Operators(
            parameters,
            f"layers.{layer}",
            layer + 1,
            wiring.depth,
            causal=causal,
            skip=skip,
            swap=swap or {},
            twice=twice,
        )
        streams = (block or wiring.block)(operators, streams)
    final = Operators(parameters, "final_section", 0, wiring.depth)
    if wiring.second_stream:
        return streams[0] + final.norm(streams[1], "stream_norm")
    return final.norm(streams[0], "stream_norm") if wiring.final_norm else streams[0]
