"""Where each token stands: position ids, and rotary position embedding."""

import torch
from torch import Tensor


def document_starts(sequence_ids: Tensor) -> Tensor:
    """True where a document begins: in column 0, and where ``sequence_ids [batch, seq]`` change."""
    starts = torch.ones_like(sequence_ids, dtype=torch.bool)
    starts[:, 1:] = sequence_ids[:, 1:] != sequence_ids[:, :-1]
    return starts


def document_positions(sequence_ids: Tensor) -> Tensor:
    """Positions that start again at 0 in each document.

    Args:
        sequence_ids: document of each token, ``[batch, seq]``; a document is a run of equal numbers.

    Returns:
        ``[batch, seq]`` integers: the distance to the start of the run.
    """
    index = torch.arange(sequence_ids.shape[1], device=sequence_ids.device).expand_as(sequence_ids)
    return index - torch.where(document_starts(sequence_ids), index, 0).cummax(dim=-1).values


def documents_from_positions(position_ids: Tensor) -> Tensor | None:
    """Documents as ``sequence_ids`` where ``position_ids [batch, seq]`` start again, or None where they only rise.

    Collators that flatten a batch mark documents so. transformers heeds it in causal models only.
    """
    restarts = position_ids.diff(dim=-1) <= 0
    if not torch.compiler.is_compiling() and not restarts.any():
        return None  # in a compiled graph the answer may not depend on the numbers
    return torch.nn.functional.pad(restarts.cumsum(dim=-1), (1, 0))


def token_positions(embeddings: Tensor, attention_mask: Tensor | None, seen: int | Tensor) -> Tensor:
    """Positions of the tokens ``embeddings [batch, seq, d]`` that follow ``seen`` earlier ones.

    With a padding mask ``[batch, seen + seq]`` the count starts at the first real token, so padding on the left moves
    nothing. Returns ``[batch or 1, seq]``.
    """
    length = embeddings.shape[1]
    if attention_mask is not None and attention_mask.dim() == 2:
        counted = (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)
        return counted[:, -length:]
    return (torch.arange(length, device=embeddings.device) + seen).unsqueeze(0)


def rotary_table(position_ids: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles: pair i turns by ``position * theta**(-2i/head_dim)`` (2104.09864).

    Computed at each call, in float32: there is no table that a checkpoint could lose or a cast to bfloat16 could blur.

    Args:
        position_ids: ``[batch or 1, seq]``.

    Returns:
        cos and sin, each ``[batch or 1, seq, head_dim]`` in ``dtype``; channel i and i + head_dim/2 form a pair.
    """
    exponents = torch.arange(0, head_dim, 2, device=position_ids.device, dtype=torch.float32) / head_dim
    angles = position_ids[..., None].float() * theta**-exponents  # [batch, seq, head_dim / 2]
    angles = torch.cat((angles, angles), dim=-1)  # [batch, seq, head_dim]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of channels of ``heads [batch, heads, seq, head_dim]`` by its angle."""
    first, second = heads.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return heads * cos.unsqueeze(1) + turned * sin.unsqueeze(1)
