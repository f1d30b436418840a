"""Rogue dimensions: a few channels that decide what similarity between tokens looks like.

Timkey & van Schijndel 2021 (EMNLP, "All Bark and No Bite: Rogue Dimensions in Transformer Language Models Obscure
Representational Quality"): the mean cosine of pairs of tokens is a sum over channels, and often one to three channels
make nearly all of it.
"""

from typing import Any

import torch
from torch import Tensor

MOST = 3  # dimensions that are named
FAR = 3.0  # standard deviations above the mean magnitude


def rogue_dimensions(x: Tensor) -> dict[str, Any]:
    """The channels of a cloud X [n tokens, d] that stand out.

    Returns:
        ``cosine``: the ``MOST`` channels that contribute most to the mean cosine of pairs, each ``{"dimension",
        "share"}``; a share is the channel's part of the whole (they may be above 1, since others may be negative).
        ``magnitude``: the channels whose mean magnitude lies more than ``FAR`` standard deviations above the mean over
        channels, largest first, each ``{"dimension", "magnitude"}``, at most ``MOST``; ``magnitude_count`` says how
        many there are. Empty where fewer than two tokens have a direction, or a value is not finite.
    """
    nothing: dict[str, Any] = {"cosine": [], "magnitude": [], "magnitude_count": 0}
    points = x.detach().to(torch.float64)
    if x.ndim != 2 or not bool(torch.isfinite(points).all()):
        return nothing
    length = points.norm(dim=1)  # [n]
    units = points[length > 0] / length[length > 0, None]  # [n, d]
    n = len(units)
    if n < 2:
        return nothing
    parts = (units.sum(dim=0).square() - units.square().sum(dim=0)) / (n * (n - 1))  # [d], sums to the mean cosine
    total = float(parts.sum())
    order = parts.argsort(descending=True)[:MOST].tolist()
    size = points.abs().mean(dim=0)  # [d]
    spread = float(size.std(correction=0)) if len(size) > 1 else 0.0
    far = (size > size.mean() + FAR * spread).nonzero().flatten() if spread > 0 else torch.zeros(0, dtype=torch.long)
    far = far[size[far].argsort(descending=True)]
    return {
        "cosine": [{"dimension": i, "share": float(parts[i]) / total} for i in order] if total > 0 else [],
        "magnitude": [{"dimension": int(i), "magnitude": float(size[i])} for i in far[:MOST].tolist()],
        "magnitude_count": len(far),
    }
