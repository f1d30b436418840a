"""Wirings, settings and rows that several families have in common."""

from sublayer.hf.families.derived import rope
from sublayer.hf.family import Fixed, Made, Maybe, Row, Setting, Wiring

INPUT_NORM = "x = x + attn(norm(x)); x = x + ffn(norm(x))"
POST_NORM = "x = norm(x + attn(x)); x = norm(x + ffn(x))"
OUTPUT_NORM = "x = x + norm(attn(x)); x = x + norm(ffn(x))"
SANDWICH = "x = x + norm(attn(norm(x))); x = x + norm(ffn(norm(x)))"
PARALLEL_ONE_NORM = "h = norm(x); x = x + attn(h) + ffn(h)"
PARALLEL_TWO_NORMS = "x = x + attn(norm(x)) + ffn(norm(x))"


def wiring(block: str, embed: str = "x = e", final: str = "x = norm(x)", **when: object) -> Wiring:
    """A wiring of one equation for all layers."""
    return Wiring(f"embed: {embed}\nblock: {block}\nfinal: {final}", when)


TOKENS: dict[str, Setting] = {
    "vocab_size": "vocab_size",
    "pad_token_id": Maybe("pad_token_id"),
    "bos_token_id": Maybe("bos_token_id"),
    "eos_token_id": Maybe("eos_token_id"),
    "tie_word_embeddings": "tie_word_embeddings",
    "position_counting": Fixed("row"),
    "classifier_bias": Fixed(False),
}
SIZES: dict[str, Setting] = {
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
}
ROTARY: dict[str, Setting] = {
    "position_embedding": Fixed("rotary"),
    "rope_parameters": Made(rope, ("rope_parameters",)),
    "max_position_embeddings": "max_position_embeddings",
}
LLAMA: dict[str, Setting] = {
    **TOKENS,
    **SIZES,
    **ROTARY,
    "num_key_value_heads": "num_key_value_heads",
    "head_dim": Maybe("head_dim"),
    "intermediate_size": "intermediate_size",
    "hidden_act": "hidden_act",
    "gated_mlp": Fixed(True),
    "norm": Fixed("rmsnorm"),
    "norm_eps": "rms_norm_eps",
    "attention_bias": Maybe("attention_bias", False),
    "mlp_bias": Maybe("mlp_bias", False),
    "attention_probs_dropout_prob": "attention_dropout",
    "causal": Fixed(True),
}
WINDOWS: dict[str, Setting] = {"sliding_window": "sliding_window", "layer_types": "layer_types"}

# --- rows ------------------------------------------------------------------------------------------------------------

LM_HEAD = Row("^lm_head", "^lm_head")
SCORE = Row("^score", "^score")
LLAMA_ENDS = (Row("embed_tokens", "embed_tokens"), Row("norm", "final_section.stream_norm"), LM_HEAD, SCORE)
LLAMA_ATTENTION = (
    Row("layers.{i}.self_attn.q_proj", "layers.{i}.attn.q_proj"),
    Row("layers.{i}.self_attn.k_proj", "layers.{i}.attn.k_proj"),
    Row("layers.{i}.self_attn.v_proj", "layers.{i}.attn.v_proj"),
    Row("layers.{i}.self_attn.o_proj", "layers.{i}.attn.o_proj"),
)
QUERY_KEY_NORMS = (
    Row("layers.{i}.self_attn.q_norm", "layers.{i}.attn.q_norm"),
    Row("layers.{i}.self_attn.k_norm", "layers.{i}.attn.k_norm"),
)
GATED = (
    Row("layers.{i}.mlp.gate_proj", "layers.{i}.ffn.gate_proj"),
    Row("layers.{i}.mlp.up_proj", "layers.{i}.ffn.up_proj"),
    Row("layers.{i}.mlp.down_proj", "layers.{i}.ffn.down_proj"),
)
INPUT_NORMS = (
    Row("layers.{i}.input_layernorm", "layers.{i}.attn_in_norm|attn_ffn_in_norm"),
    Row("layers.{i}.post_attention_layernorm", "layers.{i}.ffn_in_norm"),
)
LLAMA_ROWS = (*LLAMA_ENDS, *LLAMA_ATTENTION, *QUERY_KEY_NORMS, *GATED, *INPUT_NORMS)
