"""Small models of pictures, each with one thing that models of text do not have. Channels come first or last, as in the
models they are after; all is plain torch."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEADS, SIDE = 24, 3, 6  # channels, heads, patches a side


class ChannelNorm(nn.Module):
    """A LayerNorm over the channels of ``[rows, channels, height, width]``, written out."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.gain, self.offset = nn.Parameter(torch.ones(width, 1, 1)), nn.Parameter(torch.zeros(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        return centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt() * self.gain + self.offset


class MovedNorm(nn.LayerNorm):
    """The same by ``permute``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvAttention(nn.Module):
    """Attention over the places of ``[rows, channels, height, width]``; projections are convolutions one place wide."""

    def __init__(self, width: int = WIDTH, over: str = "places") -> None:
        super().__init__()
        self.qkv, self.out, self.over = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1), over

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).flatten(2).unflatten(1, (3, HEADS, -1)).unbind(1)  # [rows, heads, channels, places]
        if self.over == "places":
            mixed = v @ (q.transpose(-1, -2) @ k).softmax(-1).transpose(-1, -2)
        else:  # a cross-covariance: the shares are those of channels
            mixed = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        return self.out(mixed.flatten(1, 2).unflatten(-1, x.shape[-2:]))


class TokenAttention(nn.Module):
    """Attention over ``[rows, places, channels]``; ``first`` queries with the first position alone."""

    def __init__(self, width: int = WIDTH, *, first: bool = False, pooled: bool = False) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.first, self.pooled = first, pooled

    def forward(self, x: Tensor) -> Tensor:
        heads = (part(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        q, k, v = heads
        q = q[:, :, :1] if self.first else q
        if self.pooled:
            q = q.unflatten(2, (-1, 2)).amax(3)
        mixed = F.scaled_dot_product_attention(q, k, v)
        mixed = mixed + q if self.pooled else mixed
        return self.out(mixed.transpose(1, 2).flatten(2))


def conv_mlp(width: int = WIDTH, *, deep: bool = False) -> nn.Module:
    """A feed-forward network of convolutions one place wide; ``deep`` with one over 3 x 3 places between them."""
    between = [nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)] if deep else []
    return nn.Sequential(nn.Conv2d(width, 2 * width, 1), *between, nn.GELU(), nn.Conv2d(2 * width, width, 1))


def mlp(width: int = WIDTH) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))


class Block(nn.Module):
    """``x = x + mix(norm(x)); x = x + ffn(norm(x))`` of given parts."""

    def __init__(self, one: nn.Module, mix: nn.Module, other: nn.Module, ffn: nn.Module) -> None:
        super().__init__()
        self.one, self.mix, self.other, self.ffn = one, mix, other, ffn

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(self.one(x))
        return x + self.ffn(self.other(x))


class Grid(nn.Module):
    """Patches as ``[rows, channels, height, width]``, blocks, a mean over places, a head."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.patches, self.blocks = nn.Conv2d(3, WIDTH, 4, 4), nn.ModuleList(blocks)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


class Tokens(nn.Module):
    """Patches as ``[rows, places, channels]``, blocks, ``after``, a head."""

    def __init__(self, *blocks: nn.Module, norm: bool = True, cls: bool = False) -> None:
        super().__init__()
        self.patches, self.blocks = nn.Conv2d(3, WIDTH, 4, 4), nn.ModuleList(blocks)
        self.place = nn.Parameter(torch.zeros(SIDE * SIDE + cls, WIDTH))
        self.cls = nn.Parameter(torch.zeros(1, 1, WIDTH)) if cls else None
        self.norm, self.head = nn.LayerNorm(WIDTH) if norm else nn.Identity(), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        if self.cls is not None:
            x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1)
        x = x + self.place
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x.mean(1)))


class Shifted(nn.Module):
    """Attention in windows of 3 x 3 places that are laid out one place further."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = TokenAttention()

    def forward(self, x: Tensor) -> Tensor:
        rows, n = x.shape[0], SIDE // 3
        x = x.unflatten(1, (SIDE, SIDE)).roll((-1, -1), (1, 2))
        x = x.reshape(rows, n, 3, n, 3, WIDTH).transpose(2, 3).reshape(-1, 9, WIDTH)
        x = self.attn(x).reshape(rows, n, n, 3, 3, WIDTH).transpose(2, 3).reshape(rows, SIDE, SIDE, WIDTH)
        return x.roll((1, 1), (1, 2)).flatten(1, 2)


class Units(nn.Module):
    """Attention within units of four places, the units an axis behind that of the heads."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(1, (-1, 4)).unflatten(-1, (3, HEADS, -1))  # [rows, units, 4, 3, heads, channels]
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).unbind(0)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(2, 3).flatten(3).flatten(1, 2))


class OverPlaces(nn.Module):
    """An MLP over the positions."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(SIDE * SIDE, 50), nn.GELU(), nn.Linear(50, SIDE * SIDE))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x.transpose(1, 2)).transpose(1, 2)


class Recurrent(nn.Module):
    """An LSTM along the positions."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


class AmongRows(nn.Module):
    """A slip: scores of the rows of a batch with one another, where those of positions were meant."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(WIDTH, 1), nn.Linear(WIDTH, 1), nn.Linear(WIDTH, 1)
        self.out = nn.Linear(1, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x).squeeze(-1), self.k(x).squeeze(-1), self.v(x).squeeze(-1)
        return self.out(((q @ k.T).softmax(-1) @ v).unsqueeze(-1))


class Squeezed(nn.Module):
    """Squeeze and excite: channels times a gate made of their mean over all places."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Conv2d(WIDTH, 4, 1), nn.ReLU(), nn.Conv2d(4, WIDTH, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean((2, 3), keepdim=True))


class ClassBlock(nn.Module):
    """The class token alone attends to all; the other positions pass on."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn, self.ffn = TokenAttention(first=True), mlp()

    def forward(self, x: Tensor) -> Tensor:
        cls, rest = x[:, :1], x[:, 1:]
        cls = cls + self.attn(self.one(x))
        cls = cls + self.ffn(self.other(cls))
        return torch.cat([cls, rest], 1)


class LateBlock(Block):
    """The class token, which is no part of the stream of the patches, attends to itself and to them."""

    def forward(self, x: Tensor, cls: Tensor) -> Tensor:  # type: ignore[override]
        cls = cls + self.mix(self.one(torch.cat([cls, x], 1)))
        return cls + self.ffn(self.other(cls))


class LateClass(nn.Module):
    """Blocks over patches; then a class token that joins late and reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.cls = nn.Conv2d(3, WIDTH, 4, 4), nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.blocks = nn.ModuleList([Block(ln(), TokenAttention(), ln(), mlp()) for _ in range(2)])
        self.late = nn.ModuleList([LateBlock(ln(), TokenAttention(first=True), ln(), mlp()) for _ in range(3)])
        self.norm, self.head = ln(), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        cls = self.cls.expand(len(x), -1, -1)
        for late in self.late:
            cls = late(x, cls)
        return self.head(self.norm(cls[:, 0]))


class PooledBlock(nn.Module):
    """Half as many positions: queries are pooled, and so is the skip."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = ln(), ln()
        self.attn, self.ffn = TokenAttention(pooled=True), mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(1, (-1, 2)).amax(2) + self.attn(self.one(x))
        return x + self.ffn(self.other(x))


class Merge(nn.Module):
    """Four patches become one of twice the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.reduce = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        side = int(x.shape[1] ** 0.5)
        x = x.reshape(len(x), side // 2, 2, side // 2, 2, -1).permute(0, 1, 3, 2, 4, 5).flatten(3).flatten(1, 2)
        return self.reduce(self.norm(x))


class Stage(nn.Module):
    """What begins a stage, and its blocks."""

    def __init__(self, begin: nn.Module, width: int, depth: int) -> None:
        super().__init__()
        self.begin = begin
        self.blocks = nn.Sequential(
            *[Block(nn.LayerNorm(width), TokenAttention(width), nn.LayerNorm(width), mlp(width)) for _ in range(depth)]
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.begin(x))


class Stages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)
        self.stages = nn.ModuleList([Stage(nn.Identity(), WIDTH, 2), Stage(Merge(WIDTH), 2 * WIDTH, 3)])
        self.norm, self.head = nn.LayerNorm(2 * WIDTH), nn.Linear(2 * WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        for stage in self.stages:
            x = stage(x)
        return self.head(self.norm(x).mean(1))


def ln() -> nn.Module:
    return nn.LayerNorm(WIDTH)


def grid(mix: nn.Module, ffn: nn.Module | None = None, norm: type[nn.Module] = ChannelNorm) -> nn.Module:
    """Two blocks over a grid, with their norms of one kind."""
    return Block(norm(WIDTH), mix, norm(WIDTH), ffn or conv_mlp())
