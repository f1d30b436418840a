"""``attn``, multi-head and grouped-query attention, and ``dot``, the first form of self-attention without weights."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sublayer.model.branch import Branch
from sublayer.model.config import SublayerConfig
from sublayer.model.context import Context
from sublayer.model.documents import Blocks
from sublayer.model.masks import backend_for, mask_key
from sublayer.model.norms import query_key_norm
from sublayer.model.positions import rotate


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Attention written out: the backend that also returns its weights.

    Args:
        module: owner; its ``num_key_value_groups`` query heads share each key and value head.
        query: ``[batch, heads, new, head_dim]``.
        key: ``[batch, kv_heads, seen, head_dim]``, and ``value`` likewise.
        attention_mask: added to the scores, ``[batch or 1, heads or 1, new, seen]``.
        softcap: c in ``c * tanh(scores / c)``.

    Returns:
        the mixed values ``[batch, new, heads, head_dim]`` and the weights ``[batch, heads, new, seen]``.
    """
    groups: int = module.num_key_value_groups  # type: ignore[assignment]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(2, 3) * scaling  # [batch, heads, new, seen]
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    kept = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (kept @ value).transpose(1, 2).contiguous(), weights


class AttentionCore(nn.Module):
    """Scores, softmax and mixing, without projections: what a transformers attention backend replaces.

    Returns ``(mixed, weights)``, so that ``output_attentions`` and probes have one place to read the weights.
    """

    def __init__(
        self,
        config: SublayerConfig,
        op: str,
        is_causal: bool,
        groups: int,
        scaling: float,
        window: int | None = None,
        softcap: float | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.op = op
        self.mask_key = mask_key(op, window)
        # Told to the backend only where they say something: kernels that need not know them do not see them.
        self.limits: dict[str, float] = {"sliding_window": window} if window is not None else {}
        self.limits |= {"softcap": softcap} if softcap is not None else {}
        # The next two names are what the backends look for.
        self.is_causal = is_causal
        self.num_key_value_groups = groups
        self.scaling = scaling
        self.dropout = config.attention_probs_dropout_prob

    def forward(self, query: Tensor, key: Tensor, value: Tensor, context: Context) -> tuple[Tensor, Tensor | None]:
        """Mix ``value`` by the similarity of ``query`` and ``key``; shapes as in :func:`eager_attention`."""
        backend = backend_for(self.op, self.config)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(backend, eager_attention)
        mask = context.masks[self.mask_key]

        def under(mask: Any, *given: Tensor) -> tuple[Tensor, Tensor | None]:
            found: tuple[Tensor, Tensor | None] = attend(
                self,
                *given,
                mask,
                dropout=self.dropout if self.training else 0.0,
                scaling=self.scaling,
                **self.limits,
                **context.options,
            )
            return found

        if isinstance(mask, Blocks):
            return mask.attend(partial(under, None), query, key, value), None
        return under(mask, query, key, value)

    def extra_repr(self) -> str:
        """Direction and scale, for ``print(model)``."""
        limits = "".join(f", {name}={value:.4g}" for name, value in self.limits.items())
        return f"{'causal' if self.is_causal else 'bidirectional'}, scaling={self.scaling:.4g}{limits}"


class SelfAttention(Branch):
    """``attn``: heads ``softmax(Q K^T / sqrt(head_dim)) V`` side by side, then ``W_o`` (Vaswani et al., 1706.03762).

    Args:
        config: reads hidden_size, the head counts, head_dim, the biases, qk_norm, dropouts, causal, and by layer the
            scale, the window and whether positions turn queries and keys.
        layer: 1..depth; 0 in the embed and final sections.
    """

    def __init__(self, config: SublayerConfig, layer: int = 0) -> None:
        super().__init__()
        hidden, heads, kv_heads, self.head_dim, _ = config.sizes
        bias = config.attention_bias
        self.q_proj = nn.Linear(hidden, heads * self.head_dim, bias=bias)
        self.k_proj = nn.Linear(hidden, kv_heads * self.head_dim, bias=bias)
        self.v_proj = nn.Linear(hidden, kv_heads * self.head_dim, bias=bias)
        bias_out = bias if config.attention_out_bias is None else config.attention_out_bias
        self.o_proj = nn.Linear(heads * self.head_dim, hidden, bias=bias_out)
        self.q_norm = query_key_norm(config, heads)
        self.k_norm = query_key_norm(config, kv_heads)
        self.norms_all_heads = config.qk_norm == "full"
        self.turns_first = config.qk_norm_after_rotary
        self.rotary_kind = config.layer_type(layer) if config.turns(layer) else None
        self.clip = config.clip_qkv
        self.core = AttentionCore(
            config,
            "attn",
            config.left_to_right,
            heads // kv_heads,
            config.score_scale(layer),
            config.window(layer),
            config.attn_logit_softcapping,
        )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor, context: Context) -> Tensor:
        """Mix information between the positions of ``hidden [batch, seq, d]``."""
        return self.output(self.inside(self.project(hidden), context))

    @property
    def inputs(self) -> tuple[nn.Module, ...]:
        """Queries, keys and values."""
        return self.q_proj, self.k_proj, self.v_proj

    @property
    def last(self) -> nn.Module:
        """``W_o``."""
        return self.o_proj

    def inside(self, projected: Sequence[Tensor], context: Context | None) -> Tensor:
        """From queries, keys and values to the mixed values, ``[batch, seq, heads * head_dim]``."""
        assert context is not None
        split = (*projected[0].shape[:-1], -1, self.head_dim)
        query, key, value = projected  # [batch, seq, heads * head_dim]
        if self.clip is not None:
            query, key, value = (each.clamp(-self.clip, self.clip) for each in (query, key, value))
        if self.q_norm is not None and self.norms_all_heads:
            query, key = self.q_norm(query), self.k_norm(key)
        # [batch, heads or kv_heads, seq, head_dim]
        query, key, value = (each.view(split).transpose(1, 2) for each in (query, key, value))
        if self.q_norm is not None and not self.norms_all_heads and not self.turns_first:
            query, key = self.q_norm(query), self.k_norm(key)
        if self.rotary_kind in context.rotary:
            cos, sin = context.rotary[self.rotary_kind]
            query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        if self.q_norm is not None and not self.norms_all_heads and self.turns_first:
            query, key = self.q_norm(query), self.k_norm(key)
        key, value = context.remember(key, value)  # [batch, kv_heads, seen, head_dim]
        mixed, _ = self.core(query, key, value, context)  # [batch, seq, heads, head_dim]
        return mixed.flatten(-2)


class DotAttention(nn.Module):
    """``dot``: ``y_i = sum over j <= i of softmax_j(x_i . x_j) x_j``.

    The first form of self-attention in Xiao & Zhu, Foundations of Large Language Models: no projections, no 1/sqrt(d).
    An orthogonal predecessor still counts, with weight exp(0) before normalisation. Causal whatever the objective.
    """

    def __init__(self, config: SublayerConfig) -> None:
        super().__init__()
        self.core = AttentionCore(config, "dot", is_causal=True, groups=1, scaling=1.0)
        self.core.dropout = 0.0  # no parameters and no noise: the plain formula, always

    def forward(self, hidden: Tensor, context: Context) -> Tensor:
        """Average the vectors of ``hidden [batch, seq, d]`` by their products."""
        query = hidden.unsqueeze(1)  # [batch, 1, seq, d]
        key, value = context.remember(query, query)  # [batch, 1, seen, d]
        mixed, _ = self.core(query, key, value, context)  # [batch, seq, 1, d]
        output: Tensor = mixed.squeeze(2)
        return output
