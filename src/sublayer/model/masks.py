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
    create_bidirectional_sliding_window_mask,
    create_causal_mask,
    create_sliding_window_causal_mask,
    packed_sequence_mask_function,
    sliding_window_bidirectional_overlay,
    sliding_window_overlay,
)

from sublayer.model.config import SublayerConfig
from sublayer.model.documents import blocks_of
from sublayer.model.positions import alibi_bias, token_positions
from sublayer.notation.program import Section

_NEAR = ":window"  # ends the key of the mask of ``attn`` in layers with a sliding window


@dataclass
class _Backend:
    """What transformers' mask functions read of a config: ``dot`` may run on another backend than the config names."""

    _attn_implementation: str
    sliding_window: int | None = None


def backend_for(op: str, config: SublayerConfig) -> str:
    """The attention backend that an operator runs on.

    ``dot`` has one head as wide as the stream, more than flex and flash kernels take: it runs on eager where attention
    weights are wanted, else on sdpa. sdpa cannot cap scores, so with attn_logit_softcapping eager stands in for it.
    """
    configured = config._attn_implementation
    if op == "dot" and configured != "eager":
        return "sdpa"
    if op == "attn" and configured == "sdpa" and config.attn_logit_softcapping is not None:
        return "eager"
    return configured


def mask_key(op: str, window: int | None) -> str:
    """Which of the masks an attention operator reads."""
    return op if window is None else op + _NEAR


def attention_operators(config: SublayerConfig) -> frozenset[str]:
    """The keys of the masks that the design needs: ``attn``, ``attn:window`` and ``dot``, as they are in use."""
    design, depth = config.wiring, config.num_hidden_layers
    layers: dict[int, tuple[Section, ...]] = {0: (design.section("embed"), design.section("final"))}
    layers |= {layer: (design.layer(layer - 1, depth),) for layer in range(1, depth + 1)}
    keys = set()
    for layer, sections in layers.items():
        ops = {site.op for section in sections for site in section.sites} & {"attn", "dot"}
        keys |= {mask_key(op, config.window(layer) if op == "attn" else None) for op in ops}
    return frozenset(keys)


def build_masks(
    config: SublayerConfig,
    keys: frozenset[str],
    embeddings: Tensor,
    attention_mask: Tensor | None,
    sequence_ids: Tensor | None,
    cache: Cache | None,
) -> dict[str, Any]:
    """One mask for each attention operator of the design, in the form its backend wants.

    Args:
        config: reads causal and the attention backend.
        keys: masks in use, see :func:`attention_operators`. ``dot`` is causal whatever the config says.
        embeddings: ``[batch, seq, d]``; read for sizes, dtype and device only.
        attention_mask: 1 for real tokens, 0 for padding, ``[batch, seen + seq]``; or a ready mask with four dimensions.
        sequence_ids: document of each token, ``[batch, seq]``. A token sees only its own document.
        cache: keys and values of earlier tokens.

    Raises:
        ValueError: the attention backend cannot add the bias of alibi.
    """
    masks: dict[str, Any] = {}
    for key in sorted(keys):
        op = key.removesuffix(_NEAR)
        window = config.sliding_window if key.endswith(_NEAR) else None
        backend = backend_for(op, config)
        biased = config.position_embedding == "alibi" and op == "attn"
        if biased:
            backend = _float_masks(backend)
        is_causal = config.left_to_right or op == "dot"
        blocks = None
        if sequence_ids is not None and backend == "sdpa" and attention_mask is None and not biased:
            blocks = blocks_of(sequence_ids, config.hidden_size)
        if blocks is not None and (window is None or max(blocks.lengths) <= (window if is_causal else window // 2)):
            masks[key] = blocks
        elif sequence_ids is not None:
            masks[key] = _packed_mask(backend, is_causal, window, embeddings, attention_mask, sequence_ids)
        else:
            masks[key] = _CREATE[is_causal, window is not None](
                config=_Backend(backend, window),
                inputs_embeds=embeddings,
                attention_mask=attention_mask,
                past_key_values=cache,
            )
        if biased:
            masks[key] = _add_alibi(masks[key], embeddings, attention_mask, config)
    return masks


# (causal, with a window) -> what makes the mask
_CREATE: dict[tuple[bool, bool], Any] = {
    (True, False): create_causal_mask,
    (True, True): create_sliding_window_causal_mask,
    (False, False): create_bidirectional_mask,
    (False, True): create_bidirectional_sliding_window_mask,
}


def _float_masks(backend: str) -> str:
    """The backend whose masks are numbers to be added, for one that takes such masks."""
    if backend not in ("eager", "sdpa"):
        raise ValueError(f"attn_implementation ({backend!r}) cannot add the bias of alibi: use 'sdpa' or 'eager'")
    return "eager"


def _add_alibi(mask: Any, embeddings: Tensor, attention_mask: Any, config: SublayerConfig) -> Tensor:
    """``mask [batch, 1, seq, seen]`` plus the bias of each head: ``[batch, heads, seq, seen]``."""
    padded = isinstance(attention_mask, Tensor) and attention_mask.dim() == 2
    seen = embeddings.shape[1] if mask is None else mask.shape[-1]
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=embeddings.dtype).masked_fill(~mask, torch.finfo(embeddings.dtype).min)
    if padded:
        places = token_positions(attention_mask.unsqueeze(-1), attention_mask, 0)
        places = torch.nn.functional.pad(places, (0, seen - places.shape[-1]))  # a static cache has room to spare
    else:
        places = torch.arange(seen, device=embeddings.device).unsqueeze(0)
    bias = alibi_bias(places, config).to(embeddings.dtype)
    return bias if mask is None else mask + bias


def _packed_mask(
    backend: str,
    causal: bool,
    window: int | None,
    embeddings: Tensor,
    attention_mask: Tensor | None,
    sequence_ids: Tensor,
) -> Any:
    """The base rule AND "same document" AND "not padding" AND, with a window, "near"."""
    rules = [causal_mask_function if causal else bidirectional_mask_function]
    if window is not None:
        rules.append(sliding_window_overlay(window) if causal else sliding_window_bidirectional_overlay(window))
    batch, length = sequence_ids.shape
    return ALL_MASK_ATTENTION_FUNCTIONS[backend](
        batch_size=batch,
        q_length=length,
        kv_length=length,
        mask_function=and_masks(*rules, packed_sequence_mask_function(sequence_ids)),
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
