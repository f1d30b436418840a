"""GPT-2 and the decoders of its time: learned positions, alibi or rotary ones, a plain FFN."""

from sublayer.hf.changes import Fused, Halved, Transposed
from sublayer.hf.families.derived import (
    four_times,
    if_differs,
    local_layers,
    partial_rope,
    root,
    score_factor,
    shared_keys,
)
from sublayer.hf.families.parts import (
    INPUT_NORM,
    LM_HEAD,
    PARALLEL_ONE_NORM,
    POST_NORM,
    SCORE,
    SIZES,
    TOKENS,
    wiring,
)
from sublayer.hf.family import Family, Fixed, Made, Pick, Row, Setting

_QKV = ("layers.{i}.attn.q_proj", "layers.{i}.attn.k_proj", "layers.{i}.attn.v_proj")
_TURNED = (Transposed(),)  # Conv1D

_GPT: dict[str, Setting] = {
    **TOKENS,
    **SIZES,
    "intermediate_size": Made(four_times, ("hidden_size", "n_inner")),
    "hidden_act": "activation_function",
    "max_position_embeddings": "max_position_embeddings",
    "hidden_dropout_prob": "resid_pdrop",
    "embedding_dropout_prob": "embd_pdrop",
    "attention_probs_dropout_prob": "attn_pdrop",
    "norm_eps": "layer_norm_epsilon",
    "causal": Fixed(True),
}
_GPT2: dict[str, Setting] = {**_GPT, "position_embedding": Fixed("learned")}
_GPTJ: dict[str, Setting] = {
    **_GPT,
    "position_embedding": Fixed("rotary"),
    "rope_parameters": Made(partial_rope, ("rotary_dim", "hidden_size", "num_attention_heads")),
    "attention_bias": Fixed(False),
    "lm_head_bias": Fixed(True),
}
_ENDS = (
    Row("wte", "embed_tokens"),
    Row("wpe", "embed_positions"),
    Row("h.{i}.ln_1", "layers.{i}.attn_in_norm|attn_ffn_in_norm"),
    Row("h.{i}.ln_2", "layers.{i}.ffn_in_norm"),
    Row("ln_f", "final_section.stream_norm"),
    LM_HEAD,
    SCORE,
)
_GPTJ_FFN = (
    Row("h.{i}.attn.out_proj", "layers.{i}.attn.o_proj"),
    Row("h.{i}.mlp.fc_in", "layers.{i}.ffn.up_proj"),
    Row("h.{i}.mlp.fc_out", "layers.{i}.ffn.down_proj"),
)


def _fairseq_rows(base: str, ends: tuple[Row, ...], first: str, second: str) -> tuple[Row, ...]:
    """OPT, BioGPT and XGLM name their layers alike; the norms stand where the wiring says."""
    layer = f"{base}layers.{{i}}"
    return (
        *(Row(f"{layer}.self_attn.{n}_proj", f"layers.{{i}}.attn.{n}_proj") for n in "qkv"),
        Row(f"{layer}.self_attn.out_proj", "layers.{i}.attn.o_proj"),
        Row(f"{layer}.fc1", "layers.{i}.ffn.up_proj"),
        Row(f"{layer}.fc2", "layers.{i}.ffn.down_proj"),
        Row(f"{layer}.self_attn_layer_norm", f"layers.{{i}}.{first}"),
        Row(f"{layer}.final_layer_norm", f"layers.{{i}}.{second}"),
        Row(f"{base}embed_tokens", "embed_tokens"),
        Row(f"{base}embed_positions", "embed_positions"),
        *ends,
    )


FAMILIES: tuple[Family, ...] = (
    Family(
        "gpt2",
        "transformer",
        (wiring(INPUT_NORM),),
        {
            **_GPT2,
            "attention_scale": Made(
                score_factor,
                ("n_layer", "n_embd", "n_head", "scale_attn_weights", "scale_attn_by_inverse_layer_idx"),
            ),
        },
        (
            *_ENDS,
            Row("h.{i}.attn.c_attn", _QKV, (*_TURNED, Fused())),
            Row("h.{i}.attn.c_proj", "layers.{i}.attn.o_proj", _TURNED),
            Row("h.{i}.mlp.c_fc", "layers.{i}.ffn.up_proj", _TURNED),
            Row("h.{i}.mlp.c_proj", "layers.{i}.ffn.down_proj", _TURNED),
        ),
        harmless=frozenset({"reorder_and_upcast_attn"}),  # the order of rounding
    ),
    Family(
        "openai-gpt",
        "transformer",
        (wiring(POST_NORM, final="x = x"),),
        {
            **_GPT2,
            "intermediate_size": Made(four_times, ("n_embd",)),
            "hidden_act": Pick("afn", {"gelu": "gelu_new", "relu": "relu", "silu": "silu", "swish": "silu"}),
        },
        (
            Row("tokens_embed", "embed_tokens"),
            Row("positions_embed", "embed_positions"),
            Row("h.{i}.attn.c_attn", _QKV, (*_TURNED, Fused())),
            Row("h.{i}.attn.c_proj", "layers.{i}.attn.o_proj", _TURNED),
            Row("h.{i}.mlp.c_fc", "layers.{i}.ffn.up_proj", _TURNED),
            Row("h.{i}.mlp.c_proj", "layers.{i}.ffn.down_proj", _TURNED),
            Row("h.{i}.ln_1", "layers.{i}.stream_norm"),
            Row("h.{i}.ln_2", "layers.{i}.stream_norm_2"),
            LM_HEAD,
            SCORE,
        ),
    ),
    Family(
        "gpt_neo",
        "transformer",
        (wiring(INPUT_NORM),),
        {
            **TOKENS,
            **SIZES,
            "intermediate_size": Made(four_times, ("hidden_size", "intermediate_size")),
            "hidden_act": "activation_function",
            "max_position_embeddings": "max_position_embeddings",
            "hidden_dropout_prob": "resid_dropout",
            "embedding_dropout_prob": "embed_dropout",
            "attention_probs_dropout_prob": "attention_dropout",
            "norm_eps": "layer_norm_epsilon",
            "position_embedding": Fixed("learned"),
            "attention_scale": Fixed(1.0),
            "attention_bias": Fixed(False),
            "attention_out_bias": Fixed(True),
            "sliding_window": "window_size",
            "layer_types": Made(local_layers, ("attention_layers",)),
            "causal": Fixed(True),
        },
        (
            *_ENDS,
            *(Row(f"h.{{i}}.attn.attention.{n}_proj", f"layers.{{i}}.attn.{n}_proj") for n in "qkv"),
            Row("h.{i}.attn.attention.out_proj", "layers.{i}.attn.o_proj"),
            Row("h.{i}.mlp.c_fc", "layers.{i}.ffn.up_proj"),
            Row("h.{i}.mlp.c_proj", "layers.{i}.ffn.down_proj"),
        ),
        harmless=frozenset({"attention_types"}),  # attention_layers is made from it
    ),
    Family(
        "gpt_bigcode",
        "transformer",
        (wiring(INPUT_NORM),),
        {
            **_GPT2,
            "num_key_value_heads": Made(shared_keys, ("multi_query", "num_attention_heads")),
            "attention_scale": Made(score_factor, ("n_layer", "n_embd", "n_head", "scale_attn_weights")),
        },
        (
            *_ENDS,
            # With one key-value head both orders are the same: all queries, then the keys, then the values.
            Row("h.{i}.attn.c_attn", _QKV, (Fused("num_key_value_heads"),)),
            Row("h.{i}.attn.c_proj", "layers.{i}.attn.o_proj"),
            Row("h.{i}.mlp.c_fc", "layers.{i}.ffn.up_proj"),
            Row("h.{i}.mlp.c_proj", "layers.{i}.ffn.down_proj"),
        ),
        harmless=frozenset({"attention_softmax_in_fp32", "scale_attention_softmax_in_fp32"}),
    ),
    Family(
        "gptj",
        "transformer",
        (wiring(PARALLEL_ONE_NORM),),
        _GPTJ,
        (
            *_ENDS,
            *_GPTJ_FFN,
            Row("h.{i}.attn.q_proj", "layers.{i}.attn.q_proj", (Halved(),)),
            Row("h.{i}.attn.k_proj", "layers.{i}.attn.k_proj", (Halved(),)),
            Row("h.{i}.attn.v_proj", "layers.{i}.attn.v_proj"),
        ),
    ),
    Family(
        "codegen",
        "transformer",
        (wiring(PARALLEL_ONE_NORM),),
        _GPTJ,
        # Four shares, as the model was cut for four devices, each with its queries, values and keys.
        (*_ENDS, *_GPTJ_FFN, Row("h.{i}.attn.qkv_proj", (_QKV[0], _QKV[2], _QKV[1]), (Fused(4), Halved((0, 2))))),
    ),
    Family(
        "opt",
        "model",
        (
            wiring(INPUT_NORM, do_layer_norm_before=True, _remove_final_layer_norm=False),
            wiring(INPUT_NORM, final="x = x", do_layer_norm_before=True, _remove_final_layer_norm=True),
            wiring(POST_NORM, final="x = x", do_layer_norm_before=False),
        ),
        {
            **TOKENS,
            **SIZES,
            "intermediate_size": "ffn_dim",
            "hidden_act": "activation_function",
            "max_position_embeddings": "max_position_embeddings",
            "position_embedding": Fixed("learned"),
            "position_offset": Fixed(2),
            "position_counting": Fixed("mask"),
            "hidden_dropout_prob": "dropout",
            "attention_probs_dropout_prob": "attention_dropout",
            "norm_eps": Fixed(1e-5),
            "norm_affine": "layer_norm_elementwise_affine",
            "attention_bias": "enable_bias",
            "mlp_bias": "enable_bias",
            "embedding_size": "word_embed_proj_dim",
            "embedding_projection": Fixed("tokens"),
            "embedding_projection_bias": Fixed(False),
            "lm_head_dense": Made(if_differs, ("word_embed_proj_dim", "hidden_size")),
            "lm_head_dense_bias": Fixed(False),
            "causal": Fixed(True),
        },
        _fairseq_rows(
            "decoder.",
            (
                Row("decoder.project_in", "embed_projection"),
                Row("decoder.project_out", "^lm_head_transform.dense"),
                Row("decoder.final_layer_norm", "final_section.stream_norm"),
                LM_HEAD,
                SCORE,
            ),
            "attn_in_norm|stream_norm",
            "ffn_in_norm|stream_norm_2",
        ),
    ),
    Family(
        "biogpt",
        "biogpt",
        (wiring(INPUT_NORM),),
        {
            **TOKENS,
            **SIZES,
            "intermediate_size": "intermediate_size",
            "hidden_act": "hidden_act",
            "max_position_embeddings": "max_position_embeddings",
            "position_embedding": Fixed("learned"),
            "position_offset": Fixed(2),
            "hidden_dropout_prob": "hidden_dropout_prob",
            "attention_probs_dropout_prob": "attention_probs_dropout_prob",
            "norm_eps": Fixed(1e-5),
            "embedding_multiplier": Made(root, ("hidden_size", "scale_embedding")),
            "causal": Fixed(True),
        },
        _fairseq_rows(
            "",
            (Row("layer_norm", "final_section.stream_norm"), Row("^output_projection", "^lm_head"), SCORE),
            "attn_in_norm",
            "ffn_in_norm",
        ),
        harmless=frozenset({"layer_norm_eps"}),  # transformers' own layers do not read it
    ),
    Family(
        "xglm",
        "model",
        (wiring(INPUT_NORM),),
        {
            **TOKENS,
            **SIZES,
            "intermediate_size": "ffn_dim",
            "hidden_act": "activation_function",
            "max_position_embeddings": "max_position_embeddings",
            "position_embedding": Fixed("sinusoidal"),
            "position_offset": Fixed(2),
            "hidden_dropout_prob": "dropout",
            "attention_probs_dropout_prob": "attention_dropout",
            "norm_eps": Fixed(1e-5),
            "embedding_multiplier": Made(root, ("d_model", "scale_embedding")),
            "causal": Fixed(True),
        },
        _fairseq_rows("", (Row("layer_norm", "final_section.stream_norm"), LM_HEAD), "attn_in_norm", "ffn_in_norm"),
    ),
)
