"""Tiny models of transformers, one for each family and wiring, with every parameter random."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel

VOCAB = 61
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA = {**SIZES, "num_key_value_heads": 2}
BERT = {**SIZES, "type_vocab_size": 3}
ROBERTA = {**BERT, "pad_token_id": 1, "bos_token_id": 0}
GPT = {
    "vocab_size": VOCAB,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 3.0}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 2.5, 3.0, 3.5],
    "original_max_position_embeddings": 8,
}
MIXED = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]


@dataclass(frozen=True)
class Case:
    """One architecture: a model type and the settings of a tiny config."""

    model_type: str
    settings: dict[str, Any] = field(default_factory=dict)
    masked: bool = False
    attention: str = "eager"

    def config(self) -> Any:
        return CONFIG_MAPPING[self.model_type](**self.settings)


def causal(model_type: str, base: dict[str, Any] = LLAMA, **changes: Any) -> Case:
    return Case(model_type, {**base, **changes})


def masked(model_type: str, base: dict[str, Any] = BERT, **changes: Any) -> Case:
    return Case(model_type, {**base, **changes}, masked=True)


CASES: dict[str, Case] = {
    "bert": masked("bert"),
    "bert-untied": masked("bert", tie_word_embeddings=False, hidden_act="gelu_new"),
    "roberta": masked("roberta", ROBERTA),
    "roberta-untied": masked("roberta", ROBERTA, tie_word_embeddings=False),
    "distilbert-untied": masked(
        "distilbert", {"vocab_size": VOCAB, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
        max_position_embeddings=64, tie_word_embeddings=False,
    ),
    "xlm-roberta": masked("xlm-roberta", ROBERTA),
    "camembert": masked("camembert", ROBERTA),
    "distilbert": masked(
        "distilbert",
        {"vocab_size": VOCAB, "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 64},
    ),
    "electra": masked("electra", embedding_size=24),
    "electra-same-width": masked("electra", embedding_size=32),
    "modernbert": masked(
        "modernbert",
        SIZES,
        num_hidden_layers=4,
        local_attention=6,
        global_attn_every_n_layers=3,
        cls_token_id=1,
        sep_token_id=2,
    ),
    "modernbert-biases": masked(
        "modernbert", SIZES, norm_bias=True, attention_bias=True, mlp_bias=True, classifier_bias=True,
        decoder_bias=False, local_attention=6, cls_token_id=1, sep_token_id=2,
    ),
    "roberta-prelayernorm": masked("roberta-prelayernorm", ROBERTA),
    "xlm-roberta-xl": masked("xlm-roberta-xl", ROBERTA),
    "openai-gpt": causal("openai-gpt", GPT),
    "vaultgemma": causal(
        "vaultgemma", num_hidden_layers=4, head_dim=12, sliding_window=6, query_pre_attn_scalar=10, layer_types=MIXED
    ),
    "internlm3": causal("internlm3", head_dim=8),
    "iquestcoder": causal("iquestcoder", head_dim=8),
    "gpt2": causal("gpt2", GPT),
    "gpt2-untied": causal("gpt2", GPT, tie_word_embeddings=False, scale_attn_weights=False),
    "gpt2-inverse-scale": causal("gpt2", GPT, scale_attn_by_inverse_layer_idx=True, n_inner=40),
    "gpt_neo": causal(
        "gpt_neo", SIZES, num_layers=4, attention_types=[[["global", "local"], 2]], num_heads=4, window_size=5,
        num_hidden_layers=4,
    ),
    "gpt_neox": causal("gpt_neox", SIZES),
    "gpt_neox-serial": causal("gpt_neox", SIZES, use_parallel_residual=False, attention_bias=False),
    "gptj": causal("gptj", GPT, rotary_dim=4),
    "codegen": causal("codegen", GPT, rotary_dim=4),
    "gpt_bigcode": causal("gpt_bigcode", GPT),
    "gpt_bigcode-heads": causal("gpt_bigcode", GPT, multi_query=False),
    "opt": causal("opt", SIZES, ffn_dim=48, word_embed_proj_dim=32),
    "opt-post-norm": causal("opt", SIZES, ffn_dim=48, word_embed_proj_dim=24, do_layer_norm_before=False),
    "opt-no-final-norm": causal("opt", SIZES, ffn_dim=48, word_embed_proj_dim=32, _remove_final_layer_norm=True),
    "opt-no-weights": causal(
        "opt", SIZES, ffn_dim=48, word_embed_proj_dim=24, layer_norm_elementwise_affine=False, enable_bias=False
    ),
    "falcon": causal("falcon", SIZES, num_kv_heads=4),
    "falcon-new": causal("falcon", SIZES, new_decoder_architecture=True, num_kv_heads=2),
    "falcon-new-one-norm": causal(
        "falcon", SIZES, new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1
    ),
    "falcon-serial": causal("falcon", SIZES, parallel_attn=False, multi_query=False, bias=True),
    # transformers' eager path of Falcon adds the bias of alibi twice.
    "falcon-alibi": Case(
        "falcon", {**SIZES, "parallel_attn": False, "multi_query": False, "alibi": True}, attention="sdpa"
    ),
    "phi": causal("phi"),
    "phi-qk-norm": causal("phi", qk_layernorm=True),
    "phi3": causal("phi3", sliding_window=6),
    "phi3-longrope": causal("phi3", rope_parameters=LONGROPE, original_max_position_embeddings=8),
    "stablelm": causal("stablelm", hidden_size=64, use_qkv_bias=True),
    "stablelm-parallel": causal("stablelm", hidden_size=64, use_parallel_residual=True, qk_layernorm=True),
    "llama": causal("llama"),
    "llama-biases": causal("llama", attention_bias=True, mlp_bias=True, tie_word_embeddings=True, head_dim=12),
    "llama-linear": causal("llama", rope_parameters=LINEAR),
    "llama-llama3": causal("llama", rope_parameters=LLAMA3),
    "llama-yarn": causal("llama", rope_parameters=YARN),
    "llama-dynamic": causal("llama", rope_parameters=DYNAMIC, max_position_embeddings=16),
    "mistral-no-window": causal("mistral", sliding_window=None, tie_word_embeddings=True),
    "mistral": causal("mistral", sliding_window=6),
    "qwen2": causal("qwen2"),
    "qwen2-window": causal("qwen2", use_sliding_window=True, sliding_window=6, max_window_layers=1),
    "qwen3": causal("qwen3", head_dim=12),
    "gemma": causal("gemma", head_dim=12),
    "gemma2": causal(
        "gemma2", num_hidden_layers=4, head_dim=12, sliding_window=6, query_pre_attn_scalar=10
    ),
    "gemma3_text-linear": causal(
        "gemma3_text", num_hidden_layers=4, head_dim=12, sliding_window=6, layer_types=MIXED, query_pre_attn_scalar=10,
        rope_parameters={"sliding_attention": {"rope_type": "default", "rope_theta": 100.0}, "full_attention": LINEAR},
        final_logit_softcapping=20.0,
    ),
    "gemma3_text": causal(
        "gemma3_text", num_hidden_layers=4, head_dim=12, sliding_window=6, query_pre_attn_scalar=10, layer_types=MIXED
    ),
    "olmo": causal("olmo", clip_qkv=0.5),
    "olmo2": causal("olmo2"),
    "olmo3": causal("olmo3", num_hidden_layers=4, sliding_window=6, layer_types=MIXED),
    "cohere": causal("cohere"),
    "cohere-qk-norm": causal("cohere", use_qk_norm=True),
    "cohere2-no-window": causal("cohere2", num_hidden_layers=2, layer_types=MIXED[1:2] * 2),
    "cohere2": causal("cohere2", num_hidden_layers=4, sliding_window=6, layer_types=MIXED),
    "starcoder2": causal("starcoder2", sliding_window=6),
    "granite": causal(
        "granite",
        residual_multiplier=0.22,
        embedding_multiplier=12.0,
        logits_scaling=8.0,
        attention_multiplier=0.3,
    ),
    "glm": causal("glm", head_dim=8),
    "glm4": causal("glm4", head_dim=8),
    "nemotron": causal("nemotron", head_dim=8),
    "exaone4": causal("exaone4", num_hidden_layers=4, sliding_window=6, layer_types=MIXED),
    "exaone4-no-window": causal("exaone4", num_hidden_layers=2, sliding_window=None, layer_types=MIXED[1:2] * 2),
    "smollm3-window": causal(
        "smollm3", num_hidden_layers=4, no_rope_layers=[1, 0, 1, 1], layer_types=MIXED, sliding_window=5,
        use_sliding_window=True,
    ),
    "smollm3": causal("smollm3", no_rope_layers=[1, 0, 1]),
    "bloom": causal("bloom", {"vocab_size": VOCAB, "hidden_size": 32, "n_layer": 3, "n_head": 4, "pad_token_id": 0}),
    "bloom-normed-residual": causal(
        "bloom",
        {"vocab_size": VOCAB, "hidden_size": 36, "n_layer": 3, "n_head": 6},
        apply_residual_connection_post_layernorm=True,
    ),
    "mpt-six-heads": causal(
        "mpt",
        {"vocab_size": VOCAB, "d_model": 36, "n_layers": 3, "n_heads": 6, "max_seq_len": 64},
        attn_config={"clip_qkv": 0.6, "softmax_scale": 0.3},
    ),
    "mpt": causal("mpt", {"vocab_size": VOCAB, "d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 64}),
    "biogpt": causal("biogpt", SIZES),
    "xglm": causal(
        "xglm",
        {"vocab_size": VOCAB, "d_model": 32, "num_layers": 3, "attention_heads": 4, "ffn_dim": 48,
         "max_position_embeddings": 64},
    ),
    "helium": causal("helium", head_dim=8),
    "ernie4_5": causal("ernie4_5", head_dim=8),
    "arcee": causal("arcee", head_dim=8),
    "seed_oss": causal("seed_oss", head_dim=8, residual_dropout=0.0, attention_dropout=0.0),
    "ministral": causal("ministral", num_hidden_layers=4, sliding_window=6, layer_types=MIXED, head_dim=8),
    "hyperclovax": causal("hyperclovax", head_dim=8, residual_multiplier=0.5),
    "hyperclovax-input-norm": causal("hyperclovax", head_dim=8, use_post_norm=False),
    "jais2": causal("jais2", head_dim=8),
    "hunyuan_v1_dense": causal("hunyuan_v1_dense", head_dim=8),
    "persimmon": causal("persimmon", SIZES),
    "data2vec-text": masked("data2vec-text", ROBERTA),
    "ernie": masked("ernie"),
    "megatron-bert": masked("megatron-bert"),
    "eurobert": masked("eurobert", LLAMA, head_dim=8, mask_token_id=4),
    "modernbert-decoder": causal(
        "modernbert-decoder", SIZES, num_hidden_layers=4, local_attention=6, cls_token_id=1, sep_token_id=2
    ),
}  # fmt: skip


def tiny(case: Case, seed: int = 0) -> PreTrainedModel:
    """The model of a case in float32, ready to be compared, with every parameter random."""
    auto = AutoModelForMaskedLM if case.masked else AutoModelForCausalLM
    model = auto.from_config(case.config(), attn_implementation=case.attention)
    randomise(model, seed)
    return model.float().eval()


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Give every parameter its own random values: fresh ones and zeros hide where a norm or a bias stands."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if (parameter.dim() == 1 and not name.endswith("bias")) or ("norm" in name.lower() and "weight" in name):
                parameter.copy_(1 + 0.4 * noise)  # norms, whatever they are called
            elif parameter.dim() == 1:
                parameter.copy_(0.4 * noise)
            else:
                parameter.copy_(noise * (1.0 if "emb" in name or "wte" in name else 0.3))


def padding(case: Case, ids: Tensor) -> Tensor:
    """A mask with zeros where padding stands: on the left for causal models, on the right for masked ones."""
    mask = torch.ones_like(ids)
    for row, count in ((0, 5), (1, 2)):
        if case.masked:
            mask[row, -count:] = 0
        else:
            mask[row, :count] = 0
    return mask


def tokens(batch: int = 3, length: int = 17, seed: int = 0, low: int = 3) -> Tensor:
    """Ids above the special ones, ``[batch, length]``."""
    return torch.randint(low, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def relative_error(left: Tensor, right: Tensor) -> float:
    """The largest difference over the largest number."""
    return float((left - right).abs().max() / right.abs().max().clamp(min=1e-30))
