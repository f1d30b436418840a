"""From token ids to the embedding output ``e``: tokens, positions, token types, and what stands around them."""

from typing import Any

import torch
from torch import Tensor, nn

from sublayer.model.config import SublayerConfig
from sublayer.model.norms import configured_norm
from sublayer.model.positions import sinusoids


def add_tables(model: Any, config: SublayerConfig) -> None:
    """Give ``model`` the parts of the embedding that the config asks for; the others are None."""
    width = config.embedding_width
    model.embed_tokens = nn.Embedding(config.vocab_size, width, padding_idx=config.pad_token_id)
    # The projection comes before or after the other tables, so these are as wide as the stream or as the tokens.
    projected = width != config.hidden_size
    beside = config.hidden_size if projected and config.embedding_projection == "tokens" else width
    model.embed_positions = None
    if config.position_embedding == "learned":
        model.embed_positions = nn.Embedding(config.max_position_embeddings + config.position_offset, beside)
    model.embed_types = nn.Embedding(config.type_vocab_size, beside) if config.type_vocab_size else None
    model.embed_norm = configured_norm(config, hidden_size=beside) if config.embedding_norm else None
    model.embed_projection = None
    if projected:
        model.embed_projection = nn.Linear(width, config.hidden_size, bias=config.embedding_projection_bias)


def embed(model: Any, tokens: Tensor, position_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
    """The embedding output ``[batch, seq, d]``.

    Args:
        model: has the parts that :func:`add_tables` makes.
        tokens: rows of the token table, ``[batch, seq, embedding_size]``.
        position_ids: ``[batch or 1, seq]``, before the offset.
        token_type_ids: ``[batch, seq]``. Default: all of type 0. A model without types takes no notice of them, since
            tokenizers give them to every model.
    """
    config: SublayerConfig = model.config
    total = tokens
    if config.embedding_multiplier != 1:  # a number rounded as the weights are
        total = total * torch.full((), config.embedding_multiplier, dtype=tokens.dtype, device=tokens.device)
    project_first = config.embedding_projection == "tokens"
    if model.embed_projection is not None and project_first:
        total = model.embed_projection(total)
    if model.embed_types is not None:
        if token_type_ids is None:
            token_type_ids = torch.zeros(tokens.shape[:2], dtype=torch.long, device=tokens.device)
        total = total + model.embed_types(token_type_ids)
    places = position_ids + config.position_offset
    if model.embed_positions is not None:
        total = total + model.embed_positions(places)
    elif config.position_embedding == "sinusoidal":
        total = total + sinusoids(places, total.shape[-1], total.dtype)
    if model.embed_norm is not None:
        total = model.embed_norm(total)
    if model.embed_projection is not None and not project_first:
        total = model.embed_projection(total)
    return total
