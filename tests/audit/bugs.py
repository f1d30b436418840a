"""Wiring bugs that shipped (field notes, section 3) and a few more, each a small model beside its healthy twin.

They are written as people write them: no base class that knows about wiring, attention by hand or fused, norms by hand
or torch's own.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEADS, LAYERS, VOCABULARY = 32, 4, 4, 50


class Attention(nn.Module):
    """Written out, with a causal mask."""

    def __init__(self, d: int = WIDTH, heads: int = HEADS) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(d, 3 * d)
        self.proj = nn.Linear(d, d)

    def mix(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = (y.view(b, t, self.heads, d // self.heads).transpose(1, 2) for y in self.qkv(x).chunk(3, dim=-1))
        scores = q @ k.transpose(-2, -1) / math.sqrt(d // self.heads)
        mask = torch.ones(t, t, dtype=torch.bool, device=x.device).tril()
        weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
        return (weights @ v).transpose(1, 2).reshape(b, t, d)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.mix(x))


class AttentionWithoutOutput(Attention):
    """The heads are concatenated, and that is all."""

    def __init__(self) -> None:
        super().__init__()
        del self.proj

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x)


class FusedAttention(nn.Module):
    """By ``scaled_dot_product_attention``, three matrices."""

    def __init__(self, d: int = WIDTH, heads: int = HEADS) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(d, d, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(
        self, d: int = WIDTH, ratio: int = 4, act: Callable[[Tensor], Tensor] = F.gelu, bias: bool = True
    ) -> None:
        super().__init__()
        self.up, self.down, self.act = nn.Linear(d, ratio * d, bias=bias), nn.Linear(ratio * d, d, bias=bias), act

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x)))


class RMSNorm(nn.Module):
    """As Llama writes it."""

    def __init__(self, d: int = WIDTH, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(d)), eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class PreBlock(nn.Module):
    """Healthy: the input norm of GPT-2 and Llama."""

    def __init__(
        self, attention: type[nn.Module] = Attention, norm: type[nn.Module] = nn.LayerNorm, ratio: int = 4
    ) -> None:
        super().__init__()
        self.ln1, self.ln2 = norm(WIDTH), norm(WIDTH)
        self.attn, self.mlp = attention(), MLP(ratio=ratio)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class PostBlock(PreBlock):
    """Healthy: the norm of the sum, as in BERT."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.ln1(x + self.attn(x))
        return self.ln2(x + self.mlp(x))


class SandwichBlock(PreBlock):
    """Healthy: Gemma 2."""

    def __init__(self) -> None:
        super().__init__(FusedAttention, RMSNorm)
        self.post_attention_norm, self.post_mlp_norm = RMSNorm(), RMSNorm()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.post_attention_norm(self.attn(self.ln1(x)))
        return x + self.post_mlp_norm(self.mlp(self.ln2(x)))


class NormedResidualBlock(PreBlock):
    """Bug: n = LN(x); n + A(n)."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.ln1(x)
        x = x + self.attn(x)
        x = self.ln2(x)
        return x + self.mlp(x)


class NormedResidualInFFNBlock(PreBlock):
    """Bug: the same in the second half only."""

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        n = self.ln2(x)
        return n + self.mlp(n)


class NormAfterAddBlock(SandwichBlock):
    """Bug: Gemma 2's post-attention norm after the residual add."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.post_attention_norm(x + self.attn(self.ln1(x)))
        return x + self.post_mlp_norm(self.mlp(self.ln2(x)))


class OutputNormForgottenBlock(SandwichBlock):
    """Bug: resid_mid = resid_pre + attn_out, in a model with an output norm."""

    def forward(self, x: Tensor) -> Tensor:
        mid = x + self.attn(self.ln1(x))
        return mid + self.post_mlp_norm(self.mlp(self.ln2(mid)))


class MultiplierBlock(PreBlock):
    """Healthy: Granite's residual multiplier."""

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.22 * self.attn(self.ln1(x))
        return x + 0.22 * self.mlp(self.ln2(x))


class ParallelBlock(PreBlock):
    """Bug where the checkpoint was trained in series."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attn(self.ln1(x)) + self.mlp(self.ln2(x))


class DroppedAttentionBlock(PreBlock):
    """Bug: where the MLP has no bias, the fused way out adds the MLP only."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.mlp = MLP(bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        attended = self.attn(self.ln1(x))
        if self.mlp.down.bias is None:
            return x + self.mlp(self.ln2(x))
        return x + attended + self.mlp(self.ln2(x))


class KeptAttentionBlock(DroppedAttentionBlock):
    """Healthy: the same with a bias."""

    def __init__(self) -> None:
        super().__init__(bias=True)


class DroppedFFNBlock(PreBlock):
    """Bug: the FFN's result is computed and forgotten."""

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        self.mlp(self.ln2(x))
        return x


class FlagBlock(PreBlock):
    """Bug: ``norm_first`` is documented and read nowhere."""

    def __init__(self, norm_first: bool = True) -> None:
        super().__init__()
        self.norm_first = norm_first

    def forward(self, x: Tensor) -> Tensor:
        x = self.ln1(x + self.attn(x))
        return self.ln2(x + self.mlp(x))


class BlockEndNormBlock(PreBlock):
    """Bug: an extra LN at the block's end to keep things stable, and the FFN narrowed from 4d to d."""

    def __init__(self) -> None:
        super().__init__(ratio=1)
        self.ln3 = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        x = x + self.mlp(self.ln2(x))
        return self.ln3(x)


class NoOutputMatrixBlock(PreBlock):
    """Bug: no W_o."""

    def __init__(self) -> None:
        super().__init__(AttentionWithoutOutput)


class SwappedNormBlock(PreBlock):
    """Bug: one LayerNorm became an RMSNorm beside a new activation, whose mean stays."""

    def __init__(self) -> None:
        super().__init__()
        self.ln2 = RMSNorm()
        self.mlp = MLP(act=F.silu)


class RMSBlock(PreBlock):
    """Healthy: RMSNorm at both places."""

    def __init__(self) -> None:
        super().__init__(FusedAttention, RMSNorm)


class NormTwiceBlock(PreBlock):
    """Bug: the attention module was given its own norm, and the block kept the old one."""

    def __init__(self) -> None:
        super().__init__()
        self.old = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(self.old(x)))
        return x + self.mlp(self.ln2(x))


class OneNormTwiceBlock(PreBlock):
    """Bug: a copied line: ln1 stands at both places."""

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln1(x))


class NormOnSkipBlock(PreBlock):
    """Bug: the norm stands on the skip, and the attention reads the stream as it is."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.ln1(x) + self.attn(x)
        return x + self.mlp(self.ln2(x))


class NoResidualBlock(PreBlock):
    """Bug: the attention replaces the stream."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class DeadNormBlock(PostBlock):
    """Bug: a third norm is stored and never called."""

    def __init__(self) -> None:
        super().__init__()
        self.ln3 = nn.LayerNorm(WIDTH)


class WrongFFNBlock(PreBlock):
    """Bug: the second matrix takes 3d, the first gives 4d."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp.down = nn.Linear(3 * WIDTH, WIDTH)


class WrongHeadsBlock(PreBlock):
    """Bug: 5 heads of 32 // 5 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.attn.heads = 5


class WrongNormBlock(PreBlock):
    """Bug: the second norm is made for 2d."""

    def __init__(self) -> None:
        super().__init__()
        self.ln2 = nn.LayerNorm(2 * WIDTH)


class WrongOutputBlock(PreBlock):
    """Bug: W_o writes d / 2."""

    def __init__(self) -> None:
        super().__init__()
        self.attn.proj = nn.Linear(WIDTH, WIDTH // 2)


class Transformer(nn.Module):
    """Embedding, blocks, a last norm, a head."""

    def __init__(self, *blocks: nn.Module, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(64, WIDTH)
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return self.head(x if self.norm is None else self.norm(x))


Builder = Callable[[], nn.Module]


def stack(block: Callable[[], nn.Module], norm: type[nn.Module] | None = nn.LayerNorm) -> Builder:
    """A builder of four equal layers."""

    def build() -> nn.Module:
        return Transformer(*(block() for _ in range(LAYERS)), norm=None if norm is None else norm(WIDTH))

    build.__name__ = block.__name__ + ("" if norm else "_no_final_norm")
    return build


def one_odd_layer() -> nn.Module:
    """Bug: one layer of a stack was left behind in a refactor."""
    return Transformer(PreBlock(), PreBlock(), PostBlock(), PreBlock(), PreBlock(), norm=nn.LayerNorm(WIDTH))


def one_narrow_layer() -> nn.Module:
    """Bug: one layer's FFN has another width."""
    return Transformer(PreBlock(), PreBlock(ratio=2), PreBlock(), PreBlock(), norm=nn.LayerNorm(WIDTH))


def one_layer_without_output() -> nn.Module:
    """Bug: one layer's attention lost its W_o; the others have it."""
    return Transformer(PreBlock(), NoOutputMatrixBlock(), PreBlock(), PreBlock(), norm=nn.LayerNorm(WIDTH))


healthy = stack(PreBlock)

# (builder, healthy twin, expected rule, expected severity). Without a rule the wiring is a sound one, only not the one
# that was meant: then the two equations differ, which is what ``--expect`` and ``diff`` show.
BUGS: list[tuple[Builder, Builder, str | None, str | None]] = [
    (stack(NormedResidualBlock), healthy, "residual-from-norm", "warning"),
    (stack(NormedResidualInFFNBlock), healthy, "residual-from-norm", "warning"),
    (stack(NormAfterAddBlock, RMSNorm), stack(SandwichBlock, RMSNorm), "stream-norm", "warning"),
    (stack(ParallelBlock), healthy, None, None),
    (stack(OutputNormForgottenBlock, RMSNorm), stack(SandwichBlock, RMSNorm), None, None),
    (healthy, stack(MultiplierBlock), None, None),
    (stack(DroppedAttentionBlock), stack(KeptAttentionBlock), "branch-dropped", "error"),
    (stack(DroppedFFNBlock), healthy, "branch-dropped", "error"),
    (stack(FlagBlock, None), healthy, None, None),
    (stack(PreBlock, None), healthy, "no-final-norm", "warning"),
    (stack(SandwichBlock, None), stack(SandwichBlock, RMSNorm), "no-final-norm", "warning"),
    (stack(BlockEndNormBlock), healthy, "block-end-norm", "warning"),
    (stack(NoOutputMatrixBlock), healthy, "no-output-projection", "warning"),
    (one_layer_without_output, healthy, "no-output-projection", "error"),
    (stack(SwappedNormBlock), stack(RMSBlock, RMSNorm), "mixed-norms", "warning"),
    (stack(NormTwiceBlock), healthy, "norm-twice", "warning"),
    (stack(OneNormTwiceBlock), healthy, "norm-shared", "warning"),
    (stack(NormOnSkipBlock), healthy, "norm-on-skip", "warning"),
    (stack(NoResidualBlock), healthy, "no-residual", "error"),
    (one_odd_layer, healthy, "odd-layer", "warning"),
    (one_narrow_layer, healthy, "odd-layer", "warning"),
    (stack(DeadNormBlock, None), stack(PostBlock, None), "dead-parameter", "warning"),
    (stack(WrongFFNBlock), healthy, "broken-shape", "error"),
    (stack(WrongOutputBlock), healthy, "broken-shape", "error"),
    (stack(WrongHeadsBlock), healthy, "broken-shape", "error"),
    (stack(WrongNormBlock), healthy, "broken-shape", "error"),
]
