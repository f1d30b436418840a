"""Which token may see which: causal or not, padding, and documents packed into one row."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    and_masks,
    bidirectional_mask_function,
    causal_mask_function,
    create_bidirectional_mask,
    create_causal_mask,
    packed_sequence_mask_function,
)

from sublayer.model.config import SublayerConfig


@dataclass
class _Backend:
    """What transformers' mask functions read of a config: ``dot`` may run on another backend than the config names."""

    _attn_implementation: str


def backend_for(op: str, configured: str) -> str:
    """The attention backend that an operator runs on.

    ``dot`` has one head as wide as the stream, more than flex and flash kernels take: it runs on eager where attention
    weights are wanted, else on sdpa.
    """
    if op == "dot" and configured != "eager":
        return "sdpa"
    return configured


def attention_operators(config: SublayerConfig) -> frozenset[str]:
    """Which of ``attn`` and ``dot`` the design uses, in any section."""
    design = config.wiring
    sections = [design.section("embed"), *(section for _, section in design.blocks), design.section("final")]
    return frozenset(site.op for section in sections for site in section.sites) & {"attn", "dot"}


def build_masks(
    config: SublayerConfig,
    ops: frozenset[str],
    embeddings: Tensor,
    attention_mask: Tensor | None,
    sequence_ids: Tensor | None,
    cache: Cache | None,
) -> dict[str, Any]:
    """One mask for each attention operator of the design, in the form its backend wants.

    Args:
        config: reads causal and the attention backend.
        ops: attention operators in use, see :func:`attention_operators`. ``dot`` is causal whatever the config says.
        embeddings: ``[batch, seq, d]``; read for sizes, dtype and device only.
        attention_mask: 1 for real tokens, 0 for padding, ``[batch, seen + seq]``; or a ready mask with four dimensions.
        sequence_ids: document of each token, ``[batch, seq]``. A token sees only its own document.
        cache: keys and values of earlier tokens.
    """
    masks = {}
    for op in sorted(ops):
        backend = backend_for(op, config._attn_implementation)
        is_causal = config.left_to_right or op == "dot"
        if sequence_ids is not None:
            masks[op] = _packed_mask(backend, is_causal, embeddings, attention_mask, sequence_ids)
        else:
            create = create_causal_mask if is_causal else create_bidirectional_mask
            masks[op] = create(
                config=_Backend(backend),
                inputs_embeds=embeddings,
                attention_mask=attention_mask,
                past_key_values=cache,
            )
    return masks


def _packed_mask(
    backend: str, causal: bool, embeddings: Tensor, attention_mask: Tensor | None, sequence_ids: Tensor
) -> Any:
    """The base rule AND "same document" AND "not padding"."""
    rule = causal_mask_function if causal else bidirectional_mask_function
    batch, length = sequence_ids.shape
    return ALL_MASK_ATTENTION_FUNCTIONS[backend](
        batch_size=batch,
        q_length=length,
        kv_length=length,
        mask_function=and_masks(rule, packed_sequence_mask_function(sequence_ids)),
        attention_mask=None if attention_mask is None else attention_mask.to(embeddings.device, torch.bool),
        allow_is_causal_skip=False,
        allow_is_bidirectional_skip=False,
        dtype=embeddings.dtype,
        device=embeddings.device,
    )


def check_packing(
    config: SublayerConfig,
    embeddings: Tensor,
    attention_mask: Any,
    sequence_ids: Tensor,
    cache: Cache | None,
) -> None:
    """Raise ValueError where packed documents could not be kept apart."""
    configured = config._attn_implementation
    if sequence_ids.shape != embeddings.shape[:2]:
        raise ValueError(
            f"sequence_ids has shape {tuple(sequence_ids.shape)} but the tokens {tuple(embeddings.shape[:2])}: "
            "give the document index of each token"
        )
    if cache is not None:
        raise ValueError(
            "sequence_ids packs whole documents and takes no past_key_values: generate from one document a row"
        )
    if attention_mask is not None and not (isinstance(attention_mask, Tensor) and attention_mask.dim() == 2):
        raise ValueError(
            "sequence_ids makes the mask, and takes an attention_mask of shape [batch, seq] only: leave it out"
        )
    if configured not in ("sdpa", "eager", "flex_attention"):
        raise ValueError(
            f"attn_implementation ({configured!r}) cannot keep packed documents apart: "
            "use 'sdpa', 'eager' or 'flex_attention'"
        )
