"""Language models as people write them in one file: every part by hand, each in several styles."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEADS, LAYERS, VOCABULARY, CONTEXT = 32, 4, 3, 65, 64
Make = Callable[[], nn.Module]

# --- norms ------------------------------------------------------------------------------------------------------------


class Gained(nn.Module):
    """A norm with a gain: what is computed is ``unit``."""

    def __init__(self, d: int = WIDTH) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(d))

    def forward(self, x: Tensor) -> Tensor:
        return self.unit(x) * self.g

    def unit(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class RMSByRsqrt(Gained):
    def unit(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class RMSInFloat(Gained):
    """Llama's: in float32, and back before the gain."""

    def unit(self, x: Tensor) -> Tensor:
        y = x.float()
        return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-5)).type_as(x)


class RMSByNormalize(Gained):
    """lucidrains'."""

    def unit(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) * x.shape[-1] ** 0.5


class RMSByLength(Gained):
    def unit(self, x: Tensor) -> Tensor:
        return x / (x.norm(dim=-1, keepdim=True) * x.shape[-1] ** -0.5 + 1e-8)


class RMSBySquares(Gained):
    def unit(self, x: Tensor) -> Tensor:
        return x / torch.sqrt((x * x).sum(-1, keepdim=True) / x.shape[-1] + 1e-6)


class RMSByVar(Gained):
    """The mean square as the variance and the mean's square."""

    def unit(self, x: Tensor) -> Tensor:
        square = torch.var(x, dim=-1, keepdim=True, unbiased=False) + x.mean(-1, keepdim=True) ** 2
        return x / (square + 1e-6).sqrt()


class RMSOnePlus(Gained):
    """Gemma's: the gain is what is learned and one."""

    def forward(self, x: Tensor) -> Tensor:
        return self.unit(x) * (1 + self.g)

    def unit(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class Shifted(nn.Module):
    """A norm with a gain and an offset."""

    def __init__(self, d: int = WIDTH) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.ones(d)), nn.Parameter(torch.zeros(d))


class LayerByStd(Shifted):
    """The Annotated Transformer's: the unbiased deviation, eps outside the root."""

    def forward(self, x: Tensor) -> Tensor:
        mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        return self.a * (x - mean) / (std + 1e-6) + self.b


class LayerByVar(Shifted):
    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=-1, keepdim=True)
        var = x.var(dim=-1, keepdim=True, unbiased=False)
        return (x - mean) / torch.sqrt(var + 1e-5) * self.a + self.b


class LayerBySquares(Shifted):
    def forward(self, x: Tensor) -> Tensor:
        u = x.mean(-1, keepdim=True)
        s = (x - u).pow(2).mean(-1, keepdim=True)
        return self.a * ((x - u) * torch.rsqrt(s + 1e-12)) + self.b


class DyT(Shifted):
    def __init__(self, d: int = WIDTH) -> None:
        super().__init__(d)
        self.alpha = nn.Parameter(torch.ones(1) * 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.alpha * x) * self.a + self.b


# --- attention --------------------------------------------------------------------------------------------------------


class Head(nn.Module):
    """One head, as in Karpathy's lecture."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.key, self.query, self.value = (nn.Linear(WIDTH, size, bias=False) for _ in range(3))
        self.register_buffer("tril", torch.tril(torch.ones(CONTEXT, CONTEXT)))
        self.dropout = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        t = x.shape[1]
        k, q = self.key(x), self.query(x)
        wei = q @ k.transpose(-2, -1) * k.shape[-1] ** -0.5
        wei = wei.masked_fill(self.tril[:t, :t] == 0, float("-inf"))
        return self.dropout(F.softmax(wei, dim=-1)) @ self.value(x)


class LectureAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList([Head(WIDTH // HEADS) for _ in range(HEADS)])
        self.proj, self.dropout = nn.Linear(WIDTH, WIDTH), nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.proj(torch.cat([h(x) for h in self.heads], dim=-1)))


class MinGPTAttention(nn.Module):
    """One matrix for queries, keys and values; softmax written out; a mask in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.attn_dropout, self.resid_dropout = nn.Dropout(0.1), nn.Dropout(0.1)
        self.register_buffer("bias", torch.tril(torch.ones(CONTEXT, CONTEXT)).view(1, 1, CONTEXT, CONTEXT))

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.size()
        q, k, v = self.c_attn(x).split(c, dim=2)
        k = k.view(b, t, HEADS, c // HEADS).transpose(1, 2)
        q = q.view(b, t, HEADS, c // HEADS).transpose(1, 2)
        v = v.view(b, t, HEADS, c // HEADS).transpose(1, 2)
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = att.masked_fill(self.bias[:, :, :t, :t] == 0, float("-inf"))
        att = self.attn_dropout(F.softmax(att, dim=-1))
        y = (att @ v).transpose(1, 2).contiguous().view(b, t, c)
        return self.resid_dropout(self.c_proj(y))


class NanoGPTAttention(MinGPTAttention):
    """The same by the fused kernel."""

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.size()
        q, k, v = (y.view(b, t, HEADS, c // HEADS).transpose(1, 2) for y in self.c_attn(x).split(c, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=True)
        return self.resid_dropout(self.c_proj(y.transpose(1, 2).contiguous().view(b, t, c)))


class EinsumAttention(nn.Module):
    """One matrix whose result is unbound into three, products by einsum, grouped keys."""

    def __init__(self) -> None:
        super().__init__()
        self.to_qkv, self.to_out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.to_qkv(x).reshape(b, t, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        sim = torch.einsum("bhid,bhjd->bhij", q, k) * (c // HEADS) ** -0.5
        mask = torch.ones(t, t, dtype=torch.bool, device=x.device).triu(1)
        attn = sim.masked_fill(mask, -torch.finfo(sim.dtype).max).softmax(dim=-1)
        return self.to_out(torch.einsum("bhij,bhjd->bhid", attn, v).transpose(1, 2).reshape(b, t, c))


class UnboundAttention(EinsumAttention):
    """timm's: the same cut, and the fused kernel."""

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.to_qkv(x).reshape(b, t, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        return self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, c))


class CosineAttention(EinsumAttention):
    """Swin v2's: queries and keys of length one, a learned scale, a mask that is added."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.full((HEADS, 1, 1), 2.3))

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.to_qkv(x).reshape(b, t, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4)
        mask = torch.full((t, t), -100.0, device=x.device).triu(1)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.logit_scale.exp() + mask
        return self.to_out((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, c))


class RotaryAttention(nn.Module):
    """Llama's: rotary positions, two heads of keys for four of queries."""

    def __init__(self) -> None:
        super().__init__()
        self.size = WIDTH // HEADS
        self.wq, self.wo = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.wk, self.wv = (nn.Linear(WIDTH, WIDTH // 2, bias=False) for _ in range(2))

    def rotate(self, x: Tensor) -> Tensor:
        t = x.shape[-2]
        angle = torch.arange(t, device=x.device)[:, None] * 10000 ** (
            -torch.arange(0, self.size, 2, device=x.device) / self.size
        )
        one, two = x[..., ::2], x[..., 1::2]
        return torch.stack(
            (one * angle.cos() - two * angle.sin(), one * angle.sin() + two * angle.cos()), dim=-1
        ).flatten(-2)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q = self.rotate(self.wq(x).view(b, t, HEADS, self.size).transpose(1, 2))
        k = self.rotate(self.wk(x).view(b, t, HEADS // 2, self.size).transpose(1, 2)).repeat_interleave(2, dim=1)
        v = self.wv(x).view(b, t, HEADS // 2, self.size).transpose(1, 2).repeat_interleave(2, dim=1)
        return self.wo(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, -1))


# --- feed-forward -----------------------------------------------------------------------------------------------------


class MLP(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(WIDTH, 4 * WIDTH), nn.ReLU(), nn.Linear(4 * WIDTH, WIDTH), nn.Dropout(0.2))


class TanhGELU(nn.Module):
    """minGPT's own GELU, written out."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


class MinGPTMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c_fc, self.c_proj, self.act = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH), TanhGELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.act(self.c_fc(x)))


class SwiGLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w3 = (nn.Linear(WIDTH, 3 * WIDTH, bias=False) for _ in range(2))
        self.w2 = nn.Linear(3 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class ChunkedGLU(nn.Module):
    """lucidrains': one matrix, cut in two."""

    def __init__(self) -> None:
        super().__init__()
        self.proj, self.out = nn.Linear(WIDTH, 6 * WIDTH), nn.Linear(3 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return self.out(F.gelu(gate) * x)


class SquaredReLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x)).square())


# --- whole models -----------------------------------------------------------------------------------------------------


class GPT(nn.Module):
    """Embeddings, blocks in a list, a last norm and a head."""

    def __init__(self, block: Callable[[int], nn.Module], norm: Make | None = None, layers: int = LAYERS) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.drop = nn.Dropout(0.1)
        self.h = nn.ModuleList([block(i) for i in range(layers)])
        self.ln_f = norm() if norm else nn.Identity()
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def embed(self, idx: Tensor) -> Tensor:
        return self.drop(self.wte(idx) + self.wpe(torch.arange(idx.shape[1], device=idx.device)))

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Any:
        x = self.embed(idx)
        for block in self.h:
            x = block(x)
        logits = self.lm_head(self.ln_f(x))
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))


class Block(nn.Module):
    """Four parts, wired by ``wire``."""

    def __init__(
        self,
        wire: Callable[[Any, Tensor], Tensor],
        attn: Make = NanoGPTAttention,
        mlp: Make = MLP,
        norm: Make = lambda: nn.LayerNorm(WIDTH),
        **parts: Any,
    ) -> None:
        super().__init__()
        self.wire = wire
        self.attn, self.mlp, self.ln1, self.ln2 = attn(), mlp(), norm(), norm()
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.wire(self, x)


def before(b: Any, x: Tensor) -> Tensor:
    x = x + b.attn(b.ln1(x))
    return x + b.mlp(b.ln2(x))


def after(b: Any, x: Tensor) -> Tensor:
    x = b.ln1(x + b.attn(x))
    return b.ln2(x + b.mlp(x))
