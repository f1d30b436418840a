"""Models of other libraries, tiny and with every weight random, for the tests of the probe."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)

WORDS = 40
_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_SIZES: dict[str, Any] = {
    "vocab_size": WORDS, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 32, **_IDS,
}  # fmt: skip
_GPT: dict[str, Any] = {"vocab_size": WORDS, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_inner": 24, "n_positions": 32}


class Functional(nn.Module):
    """A decoder with everything in one forward: no module of its own but lists of weights."""

    def __init__(self, layers: int = 3, width: int = 16) -> None:
        super().__init__()
        self.words = nn.Parameter(torch.zeros(WORDS, width))
        shapes = ((width,), (width,), (3 * width, width), (width, width), (width,), (width,), (24, width), (width, 24))
        self.weights = nn.ParameterList([nn.Parameter(torch.zeros(s)) for _ in range(layers) for s in shapes])
        self.last = nn.Parameter(torch.zeros(width))

    def forward(self, ids: Tensor) -> Tensor:
        x = F.embedding(ids, self.words)
        rows, length, width = x.shape
        for i in range(0, len(self.weights), 8):
            gain, offset, qkv, out, gain2, offset2, up, down = list(self.weights)[i : i + 8]
            h = F.layer_norm(x, (width,), gain, offset)
            q, k, v = (t.view(rows, length, 2, -1).transpose(1, 2) for t in F.linear(h, qkv).chunk(3, -1))
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + F.linear(mixed.transpose(1, 2).reshape(rows, length, width), out)
            h = F.layer_norm(x, (width,), gain2, offset2)
            x = x + F.linear(F.gelu(F.linear(h, up)), down)
        return F.linear(F.layer_norm(x, (width,), self.last), self.words)


def randomised(model: nn.Module, seed: int = 4) -> Any:
    """Every weight random: at a fresh model's ones and zeros, norms look alike."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(drawn * 0.3 + (parameter.ndim == 1) * 0.5)
    return model.eval()


def build(name: str) -> Any:
    """A model by its short name."""
    torch.manual_seed(0)
    if name == "encoder":
        layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
        return randomised(nn.TransformerEncoder(layer, 3, enable_nested_tensor=False))
    if name == "functional":
        return randomised(Functional())
    if name == "vit":
        return randomised(ViTModel(ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                                             intermediate_size=24, image_size=16, patch_size=4)))  # fmt: skip
    makers: dict[str, Any] = {
        "bert": lambda: BertForMaskedLM(BertConfig(**_SIZES)),
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**_SIZES, num_key_value_heads=1)),
        "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**_SIZES, num_key_value_heads=1, head_dim=8)),
        "olmo2": lambda: Olmo2ForCausalLM(Olmo2Config(**_SIZES)),
        "neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**_SIZES)),
        "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**_SIZES, num_key_value_heads=1, num_local_experts=4)),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**_GPT, **_IDS)),
        "gptj": lambda: GPTJForCausalLM(GPTJConfig(**_GPT, **_IDS, rotary_dim=4)),
        "t5": lambda: T5ForConditionalGeneration(
            T5Config(vocab_size=WORDS, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2,
                     decoder_start_token_id=0, pad_token_id=0, eos_token_id=2)
        ),
    }  # fmt: skip
    return randomised(makers[name]())


def ids(rows: int = 4, length: int = 9, seed: int = 3) -> Tensor:
    return torch.randint(3, WORDS, (rows, length), generator=torch.Generator().manual_seed(seed))


def padded(rows: int = 4, length: int = 9, seed: int = 3) -> dict[str, Tensor]:
    """Ids of which the second row's last three are padding."""
    mask = torch.ones(rows, length, dtype=torch.int64)
    mask[1, -3:] = 0
    return {"input_ids": ids(rows, length, seed), "attention_mask": mask}
