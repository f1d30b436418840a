"""Tiny models for tests, and one way to randomise every parameter."""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sublayer.model import SublayerConfig, SublayerForCausalLM, SublayerPreTrainedModel

Model = TypeVar("Model", bound=SublayerPreTrainedModel)

# Wirings that differ in streams, ranges, sites, scalars and sections: what a mechanism that holds for all must pass.
VARIED = {
    "post-norm": "post-norm",
    "residual": "residual",
    "dot": "x = x + dot(norm(x)); x = x + ffn(norm(x))",
    "macaron": "macaron",
    "two-attentions": "x = x + attn(norm(x)); x = x + attn(norm(x)) + ffn(x)",
    "ranges": "block[:1]: x = x + ffn(norm(x))\nblock[1:]: x = x + attn_a(norm(x)) + attn_a(x); x = x + dot(norm(x))",
    "sections": "embed: x = norm(attn(e))\nblock: x = x + ffn(norm(x))\nfinal: x = norm(x + attn(x))",
    "ffn-only": "ffn-only",
    "deepnorm": "deepnorm",
    "layernorm-scaling": "layernorm-scaling",
}


def tiny_config(design: str, **changes: Any) -> SublayerConfig:
    sizes: dict[str, Any] = {
        "vocab_size": 29,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 24,
        "max_position_embeddings": 64,
        "position_embedding": "learned",
    }
    return SublayerConfig(design=design, **{**sizes, **changes})


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Give every parameter its own random values: fresh ones and zeros hide where a norm or a bias stands."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            factor = parameter.dim() == 1 and name.endswith(("norm.weight", "alpha", "scale.weight", "gate.weight"))
            if factor or ("norm" in name and name.endswith("weight")):
                parameter.copy_(1 + 0.4 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.4 * noise)
            else:
                parameter.copy_(noise * (1.0 if "embed" in name else 0.2))


def tiny(design: str, kind: type[Model] = SublayerForCausalLM, seed: int = 0, **changes: Any) -> Model:
    model = kind(tiny_config(design, **changes))
    randomise(model, seed)
    return model.eval()


def tokens(batch: int = 2, length: int = 7, seed: int = 0, vocab: int = 29) -> Tensor:
    return torch.randint(1, vocab, (batch, length), generator=torch.Generator().manual_seed(seed))


def same(left: Tensor, right: Tensor, tolerance: float = 1e-5) -> bool:
    """Equal within float32 rounding, relative to the largest number."""
    scale = max(1.0, right.abs().max().item())
    return left.shape == right.shape and (left - right).abs().max().item() <= tolerance * scale
