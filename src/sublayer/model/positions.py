"""Where each token stands: position ids, and rotary, sinusoidal and alibi positions."""

import math

import torch
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from sublayer.model.config import SublayerConfig
from sublayer.model.config_rules import LAYER_TYPES


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
    return row_positions(embeddings, seen)


def row_positions(embeddings: Tensor, seen: int | Tensor) -> Tensor:
    """Positions that count from the start of the row, padding included: ``[1, seq]``."""
    return (torch.arange(embeddings.shape[1], device=embeddings.device) + seen).unsqueeze(0)


def unpadded_positions(input_ids: Tensor, pad_token_id: int, seen: int | Tensor) -> Tensor:
    """Positions that count the tokens ``input_ids [batch, seq]`` that are not padding; padding has position -1."""
    real = (input_ids != pad_token_id).long()
    return (real.cumsum(dim=-1) + seen) * real - 1


class RotaryAngles:
    """The angles of one kind of layer, from ``rope_parameters`` by transformers' own rules for each rope_type.

    Where a rule looks at no input, its frequencies are numbers kept here, not a buffer: neither the meta device nor a
    checkpoint can lose them.

    Args:
        config: reads rope_parameters, rope_theta, head_dim and max_position_embeddings.
        kind: which of layer_types, where rope_parameters has an entry for each.
    """

    def __init__(self, config: SublayerConfig, kind: str | None) -> None:
        self.config, self.kind = config, kind
        parameters = config.rope_parameters or {}
        self.parameters = (parameters[kind] if kind else parameters) or {}
        self.type = self.parameters.get("rope_type", "default")
        self.width = int(config.sizes.head_dim * self.parameters.get("partial_rotary_factor", 1.0))
        self.scale = 1.0
        self.short: list[float] = []
        self.long: list[float] = []  # beyond the original length, for longrope
        if self.type not in ("default", "dynamic"):
            with torch.device("cpu"):  # models are built on the meta device, where numbers are lost
                self.short, self.scale = self._computed()
                if self.type == "longrope":
                    self.long, _ = self._computed(self.original_length + 1)

    @property
    def original_length(self) -> int:
        """The length beyond which longrope takes its second set of frequencies."""
        return int(self.parameters["original_max_position_embeddings"])

    def table(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines for ``position_ids [batch or 1, seq]``, each ``[batch or 1, seq, width]`` in ``dtype``.

        Pair i, channels i and i + width/2, turns by ``position * theta**(-2i/width)`` (2104.09864) unless rope_type
        says otherwise. Computed at each call, in float32, so that a cast to bfloat16 blurs nothing.
        """
        device = position_ids.device
        if self.type == "default":
            theta = self.parameters.get("rope_theta", self.config.rope_theta)
            frequencies = _plain_frequencies(self.width, theta, device)
        elif self.type == "dynamic":
            rule, length = ROPE_INIT_FUNCTIONS[self.type], position_ids.max() + 1
            frequencies, _ = rule(self.config, device, seq_len=length, layer_type=self.kind)
        else:
            frequencies = torch.tensor(self.short, dtype=torch.float32, device=device)
            if self.long:
                beyond = position_ids.max() + 1 > self.original_length
                frequencies = torch.where(
                    beyond, torch.tensor(self.long, dtype=torch.float32, device=device), frequencies
                )
        return _turns(position_ids, frequencies, self.scale, dtype)

    def _computed(self, length: int | None = None) -> tuple[list[float], float]:
        rule = ROPE_INIT_FUNCTIONS[self.type]
        frequencies, scale = rule(self.config, torch.device("cpu"), seq_len=length, layer_type=self.kind)
        return frequencies.tolist(), float(scale)


def rotary_kinds(config: SublayerConfig) -> dict[str, RotaryAngles]:
    """The angles of each kind of layer that turns its queries and keys, by layer type."""
    if config.position_embedding != "rotary":
        return {}
    depth = config.num_hidden_layers
    kinds = dict.fromkeys(config.layer_type(layer) for layer in range(depth + 1) if config.turns(layer))
    parameters = config.rope_parameters or {}
    if not any(kind in parameters for kind in LAYER_TYPES):
        angles = RotaryAngles(config, None)
        return dict.fromkeys(kinds, angles)
    return {kind: RotaryAngles(config, kind) for kind in kinds if parameters.get(kind)}


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of the first channels of ``heads [batch, heads, seq, head_dim]`` by its angle.

    As many channels turn as ``cos`` and ``sin [batch or 1, seq, width]`` have.
    """
    width = cos.shape[-1]
    turning = heads[..., :width]
    first, second = turning.chunk(2, dim=-1)
    turned = turning * cos.unsqueeze(1) + torch.cat((-second, first), dim=-1) * sin.unsqueeze(1)
    return turned if width == heads.shape[-1] else torch.cat((turned, heads[..., width:]), dim=-1)


def sinusoids(position_ids: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Sines, then cosines, of each position (Vaswani et al., 1706.03762, as tensor2tensor computes them).

    Args:
        position_ids: ``[batch or 1, seq]``.

    Returns:
        ``[batch or 1, seq, width]``.
    """
    half = width // 2
    exponents = torch.arange(half, device=position_ids.device, dtype=torch.float32)
    rates = torch.exp(exponents * -(math.log(10000) / max(half - 1, 1)))
    angles = position_ids[..., None].float() * rates
    table = torch.cat((angles.sin(), angles.cos()), dim=-1)
    return torch.nn.functional.pad(table, (0, width - 2 * half)).to(dtype)


def alibi_slopes(heads: int) -> list[float]:
    """How steeply each head's bias falls (Press et al. 2022, 2108.12409, section 3): a geometric series.

    Where the number of heads is no power of two, every other slope of the next one follows those of the last one.
    """
    below = 2 ** math.floor(math.log2(heads))
    slopes: list[float] = [2.0 ** (-8 * (i + 1) / below) for i in range(below)]
    return slopes + [2.0 ** (-4 * (2 * i + 1) / below) for i in range(heads - below)]


def alibi_bias(key_positions: Tensor, config: SublayerConfig) -> Tensor:
    """What alibi adds to the scores: slope times the key's position, which differs from slope times distance by the
    same number for all keys of a query, so softmax gives the same.

    Args:
        key_positions: ``[batch or 1, seen]``.

    Returns:
        ``[batch or 1, heads, 1, seen]`` in float32.
    """
    slopes = torch.tensor(alibi_slopes(config.num_attention_heads), dtype=torch.float32, device=key_positions.device)
    rounding = torch.bfloat16 if config.alibi_dtype == "bfloat16" else torch.float32
    bias = slopes.to(rounding)[:, None, None] * key_positions[:, None, None, :].to(rounding)
    return bias.float() * config.alibi_scale


def _plain_frequencies(width: int, theta: float, device: torch.device) -> Tensor:
    exponents = torch.arange(0, width, 2, device=device, dtype=torch.float32) / width
    return 1.0 / theta**exponents


def _turns(position_ids: Tensor, frequencies: Tensor, scale: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    angles = position_ids[..., None].float() * frequencies  # [batch, seq, width / 2]
    angles = torch.cat((angles, angles), dim=-1)  # [batch, seq, width]
    return (angles.cos() * scale).to(dtype), (angles.sin() * scale).to(dtype)
