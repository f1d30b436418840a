"""Llama and the decoders that vary it: RMSNorm, rotary positions, a gated FFN, until they say otherwise."""

from collections.abc import Mapping

from sublayer.hf.changes import Fused, Halved, Stacked
from sublayer.hf.families.derived import inverse, inverse_root, root, rope_near, rope_windows, truths
from sublayer.hf.families.parts import (
    GATED,
    INPUT_NORM,
    INPUT_NORMS,
    LLAMA,
    LLAMA_ATTENTION,
    LLAMA_ENDS,
    LLAMA_ROWS,
    LM_HEAD,
    OUTPUT_NORM,
    PARALLEL_ONE_NORM,
    QUERY_KEY_NORMS,
    SANDWICH,
    SCORE,
    WINDOWS,
    wiring,
)
from sublayer.hf.family import Family, Fixed, Made, Row, Setting

_QKV = ("layers.{i}.attn.q_proj", "layers.{i}.attn.k_proj", "layers.{i}.attn.v_proj")
_GATE_UP = Row("layers.{i}.mlp.gate_up_proj", ("layers.{i}.ffn.gate_proj", "layers.{i}.ffn.up_proj"), (Fused(),))
_DOWN = GATED[2]
_HALVED = (
    Row("layers.{i}.self_attn.q_proj", "layers.{i}.attn.q_proj", (Halved(),)),
    Row("layers.{i}.self_attn.k_proj", "layers.{i}.attn.k_proj", (Halved(),)),
    *LLAMA_ATTENTION[2:],
)
_INPUT = (wiring(INPUT_NORM),)
_PARALLEL = (wiring(PARALLEL_ONE_NORM),)
_OUTPUT = (wiring(OUTPUT_NORM),)
_SANDWICH = (wiring(SANDWICH),)
_OUTPUT_ROWS = (
    *LLAMA_ENDS,
    *LLAMA_ATTENTION,
    *QUERY_KEY_NORMS,
    *GATED,
    Row("layers.{i}.post_attention_layernorm", "layers.{i}.attn_out_norm"),
    Row("layers.{i}.post_feedforward_layernorm", "layers.{i}.ffn_out_norm"),
)
_GEMMA2_ROWS = (
    *_OUTPUT_ROWS,
    Row("layers.{i}.input_layernorm", "layers.{i}.attn_in_norm"),
    Row("layers.{i}.pre_feedforward_layernorm", "layers.{i}.ffn_in_norm"),
)
_NO_BIAS: dict[str, Setting] = {"attention_bias": Fixed(False), "mlp_bias": Fixed(False)}
_LAYERNORM: dict[str, Setting] = {"norm": Fixed("layernorm"), "norm_eps": "layer_norm_eps"}
_PLAIN: dict[str, Setting] = {"gated_mlp": Fixed(False)}
_GEMMA: dict[str, Setting] = {
    "norm_zero_centred": Fixed(True),
    "embedding_multiplier": Made(root, ("hidden_size",)),
    "mlp_bias": Fixed(False),
}
_GEMMA2: dict[str, Setting] = {
    **_GEMMA,
    **WINDOWS,
    "hidden_act": "hidden_activation",
    "attention_scale": Made(inverse_root, ("query_pre_attn_scalar",)),
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_GRANITE: dict[str, Setting] = {
    "embedding_multiplier": "embedding_multiplier",
    "logits_scale": Made(inverse, ("logits_scaling",)),
    "attention_scale": "attention_multiplier",
}
_SCALED_SANDWICH = "x = x + {residual_multiplier}*norm(attn(norm(x))); x = x + {residual_multiplier}*norm(ffn(norm(x)))"
_GRANITE_BLOCK = "x = x + {residual_multiplier}*attn(norm(x)); x = x + {residual_multiplier}*ffn(norm(x))"
_QK = {"qk_norm": Fixed("head")}
_QWEN_WINDOWS = frozenset({"use_sliding_window", "max_window_layers"})  # layer_types is made from them


def _llama(
    model_type: str,
    settings: Mapping[str, Setting] | None = None,
    wirings: tuple = _INPUT,  # type: ignore[type-arg]
    rows: tuple[Row, ...] = LLAMA_ROWS,
    harmless: frozenset[str] = frozenset(),
) -> Family:
    return Family(model_type, "model", wirings, {**LLAMA, **(settings or {})}, rows, harmless=harmless)


FAMILIES: tuple[Family, ...] = (
    _llama("llama"),
    _llama("internlm3"),
    _llama("iquestcoder"),
    _llama("mistral", {**_NO_BIAS, "sliding_window": "sliding_window"}),
    _llama("ministral", {**_NO_BIAS, **WINDOWS}),
    _llama(
        "qwen2",
        {**WINDOWS, "attention_bias": Fixed(True), "attention_out_bias": Fixed(False), "mlp_bias": Fixed(False)},
        harmless=_QWEN_WINDOWS,
    ),
    _llama("qwen3", {**WINDOWS, **_QK, "mlp_bias": Fixed(False)}, harmless=_QWEN_WINDOWS),
    _llama("gemma", _GEMMA),
    _llama("gemma2", _GEMMA2, _SANDWICH, _GEMMA2_ROWS),
    _llama(
        "vaultgemma",
        _GEMMA2,
        rows=(*LLAMA_ROWS, Row("layers.{i}.pre_feedforward_layernorm", "layers.{i}.ffn_in_norm")),
    ),
    _llama("gemma3_text", {**_GEMMA2, **_QK}, _SANDWICH, _GEMMA2_ROWS),
    _llama("olmo", {"norm": Fixed("layernorm"), "norm_eps": Fixed(1e-5), "norm_affine": Fixed(False),
                    "clip_qkv": "clip_qkv", "mlp_bias": Fixed(False)}),
    _llama("olmo2", {"qk_norm": Fixed("full"), "mlp_bias": Fixed(False)}, _OUTPUT, _OUTPUT_ROWS),
    _llama("olmo3", {**WINDOWS, "qk_norm": Fixed("full"), "mlp_bias": Fixed(False)}, _OUTPUT, _OUTPUT_ROWS),
    _llama(
        "exaone4",
        {**_NO_BIAS, **WINDOWS, **_QK,
         "rope_parameters": Made(rope_near, ("rope_parameters", "layer_types", "sliding_window"))},
        _OUTPUT,
        _OUTPUT_ROWS,
        frozenset({"sliding_window_pattern"}),
    ),
    _llama(
        "smollm3",
        {**WINDOWS, "rotary_layers": Made(truths, ("no_rope_layers",))},
        harmless=frozenset({"use_sliding_window", "no_rope_layer_interval"}),
    ),
    _llama("granite", _GRANITE, (wiring(_GRANITE_BLOCK),)),
    _llama(
        "hyperclovax",
        _GRANITE,
        (
            wiring(_SCALED_SANDWICH, use_post_norm=True),
            wiring(_GRANITE_BLOCK, use_post_norm=False),
        ),
        (
            *LLAMA_ROWS,
            Row("layers.{i}.post_norm1", "layers.{i}.attn_out_norm"),
            Row("layers.{i}.post_norm2", "layers.{i}.ffn_out_norm"),
        ),
    ),
    _llama("helium", {"attention_out_bias": Fixed(False)},
           rows=(*LLAMA_ENDS, *_HALVED, *GATED, *INPUT_NORMS)),
    _llama("ernie4_5", {"attention_bias": "use_bias", "mlp_bias": "use_bias",
                        "attention_probs_dropout_prob": Fixed(0.0)},
           rows=(*LLAMA_ENDS, *_HALVED, *GATED, *INPUT_NORMS)),
    _llama("arcee", _PLAIN),
    _llama("seed_oss", {"attention_out_bias": "attention_out_bias", "hidden_dropout_prob": "residual_dropout"}),
    _llama("jais2", {**_PLAIN, **_LAYERNORM}),
    _llama(
        "hunyuan_v1_dense",
        {**_QK, "qk_norm_after_rotary": Fixed(True), "mlp_bias": Fixed(False)},
        rows=(
            *LLAMA_ROWS,
            Row("layers.{i}.self_attn.query_layernorm", "layers.{i}.attn.q_norm"),
            Row("layers.{i}.self_attn.key_layernorm", "layers.{i}.attn.k_norm"),
        ),
        harmless=frozenset({"eod_token_id"}),
    ),
    _llama("eurobert", {"causal": Fixed(False)}, harmless=frozenset({"classifier_pooling"})),
    # Nemotron adds 1 to the weights of its LayerNorms.
    _llama("nemotron", {**_PLAIN, "norm": Fixed("layernorm"), "norm_eps": "norm_eps",
                        "norm_zero_centred": Fixed(True)}),
    _llama(
        "starcoder2",
        {**_PLAIN, "norm": Fixed("layernorm"), "norm_eps": "norm_epsilon", "attention_bias": "use_bias",
         "mlp_bias": "use_bias", "sliding_window": "sliding_window", "hidden_dropout_prob": "residual_dropout",
         "embedding_dropout_prob": "embedding_dropout"},
        rows=(
            *LLAMA_ENDS,
            *LLAMA_ATTENTION,
            *INPUT_NORMS,
            Row("layers.{i}.mlp.c_fc", "layers.{i}.ffn.up_proj"),
            Row("layers.{i}.mlp.c_proj", "layers.{i}.ffn.down_proj"),
        ),
    ),
    _llama(
        "phi",
        {**_PLAIN, **_LAYERNORM, "attention_bias": Fixed(True), "mlp_bias": Fixed(True), "lm_head_bias": Fixed(True),
         "qk_norm": "qk_layernorm", "qk_norm_kind": Fixed("layernorm"), "qk_norm_bias": Fixed(True),
         "hidden_dropout_prob": "resid_pdrop", "embedding_dropout_prob": "embd_pdrop"},
        _PARALLEL,
        (
            LLAMA_ENDS[0],
            Row("final_layernorm", "final_section.stream_norm"),
            LM_HEAD,
            SCORE,
            *LLAMA_ATTENTION[:3],
            Row("layers.{i}.self_attn.dense", "layers.{i}.attn.o_proj"),
            Row("layers.{i}.self_attn.q_layernorm", "layers.{i}.attn.q_norm"),
            Row("layers.{i}.self_attn.k_layernorm", "layers.{i}.attn.k_norm"),
            Row("layers.{i}.mlp.fc1", "layers.{i}.ffn.up_proj"),
            Row("layers.{i}.mlp.fc2", "layers.{i}.ffn.down_proj"),
            *INPUT_NORMS,
        ),
    ),
    _llama(
        "phi3",
        {**_NO_BIAS, "sliding_window": "sliding_window", "hidden_dropout_prob": "resid_pdrop"},
        rows=(
            *LLAMA_ENDS,
            Row("layers.{i}.self_attn.qkv_proj", _QKV, (Fused(),)),
            LLAMA_ATTENTION[3],
            _GATE_UP,
            _DOWN,
            *INPUT_NORMS,
        ),
        # rope_parameters holds the length; transformers applies no dropout to the embedding.
        harmless=frozenset({"original_max_position_embeddings", "embd_pdrop"}),
    ),
    _llama(
        "stablelm",
        {**_LAYERNORM, "attention_bias": "use_qkv_bias", "attention_out_bias": Fixed(False), "mlp_bias": Fixed(False),
         "qk_norm": Made(lambda on: "heads" if on else False, ("qk_layernorm",)), "qk_norm_kind": Fixed("layernorm"),
         "hidden_dropout_prob": "hidden_dropout"},
        (wiring(PARALLEL_ONE_NORM, use_parallel_residual=True), wiring(INPUT_NORM, use_parallel_residual=False)),
        (
            *LLAMA_ENDS,
            *LLAMA_ATTENTION,
            Row("layers.{i}.self_attn.q_layernorm.norms.{h}", "layers.{i}.attn.q_norm", (Stacked(),)),
            Row("layers.{i}.self_attn.k_layernorm.norms.{h}", "layers.{i}.attn.k_norm", (Stacked(),)),
            *GATED,
            *INPUT_NORMS,
        ),
    ),
    _llama(
        "cohere",
        {**_LAYERNORM, "norm_bias": Fixed(False), "mlp_bias": Fixed(False), "logits_scale": "logit_scale",
         "qk_norm": Made(lambda on: "heads" if on else False, ("use_qk_norm",)), "qk_norm_kind": Fixed("layernorm")},
        _PARALLEL,
        (
            *LLAMA_ENDS,
            *_HALVED,
            Row("layers.{i}.self_attn.q_norm", "layers.{i}.attn.q_norm", (Halved(),)),
            Row("layers.{i}.self_attn.k_norm", "layers.{i}.attn.k_norm", (Halved(),)),
            *GATED,
            *INPUT_NORMS,
        ),
    ),
    _llama(
        "cohere2",
        {**_LAYERNORM, **WINDOWS, "norm_bias": Fixed(False), "mlp_bias": Fixed(False), "logits_scale": "logit_scale",
         "rope_parameters": Made(rope_windows, ("rope_parameters", "layer_types", "sliding_window"))},
        _PARALLEL,
        (*LLAMA_ENDS, *_HALVED, *GATED, *INPUT_NORMS),
    ),
    _llama(
        "glm",
        {"attention_out_bias": Fixed(False), "mlp_bias": Fixed(False)},
        rows=(*LLAMA_ENDS, *_HALVED, _GATE_UP, _DOWN, *INPUT_NORMS),
    ),
    _llama(
        "glm4",
        {"attention_out_bias": Fixed(False), "mlp_bias": Fixed(False)},
        _SANDWICH,
        (
            *LLAMA_ENDS,
            *_HALVED,
            _GATE_UP,
            _DOWN,
            *INPUT_NORMS,
            Row("layers.{i}.post_self_attn_layernorm", "layers.{i}.attn_out_norm"),
            Row("layers.{i}.post_mlp_layernorm", "layers.{i}.ffn_out_norm"),
        ),
    ),
)  # fmt: skip
