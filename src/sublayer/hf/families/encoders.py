"""BERT and its kin: encoders that predict masked tokens."""

from collections.abc import Mapping

from sublayer.hf.changes import Fused
from sublayer.hf.families.derived import after_padding, half, if_differs, less_padding
from sublayer.hf.families.parts import INPUT_NORM, POST_NORM, ROTARY, SIZES, TOKENS, wiring
from sublayer.hf.family import Aside, Equals, Family, Fixed, Layout, Made, Maybe, Pick, Row, Setting, Wiring

_PAF = Layout(
    design="embed: x = norm(e)\nblock: x = norm(x + attn(x) + ffn(x))\nfinal: x = x",
    aside=(
        Aside("encoder.layer.{i}.attention.output.LayerNorm", "the parallel block has one norm and leaves it unused"),
    ),
    citation="Sonkar & Baraniuk 2023, 2305.13297",
)
_HEAD: dict[str, Setting] = {
    "lm_head_dense": Fixed(True),
    "lm_head_norm": Fixed(True),
    "lm_head_bias": Fixed(True),
    "lm_head_act": "hidden_act",
    "classifier_dense": Fixed(True),
    "classifier_act": Fixed("tanh"),
    "classifier_bias": Fixed(True),
}
_BERT: dict[str, Setting] = {
    **TOKENS,
    **SIZES,
    **_HEAD,
    "intermediate_size": "intermediate_size",
    "hidden_act": "hidden_act",
    "hidden_dropout_prob": "hidden_dropout_prob",
    "attention_probs_dropout_prob": "attention_probs_dropout_prob",
    "max_position_embeddings": "max_position_embeddings",
    "type_vocab_size": "type_vocab_size",
    "norm_eps": "layer_norm_eps",
    "position_embedding": Fixed("learned"),
    "causal": Fixed(False),
}
_ROBERTA: dict[str, Setting] = {
    **_BERT,
    "lm_head_act": Fixed("gelu"),
    "position_counting": Fixed("pad"),
    "position_offset": Made(after_padding, ("pad_token_id",)),
    "max_position_embeddings": Made(less_padding, ("max_position_embeddings", "pad_token_id")),
}

_EMBEDDINGS = (
    Row("embeddings.word_embeddings", "embed_tokens"),
    Row("embeddings.position_embeddings", "embed_positions"),
    Row("embeddings.token_type_embeddings", "embed_types"),
    Row("embeddings.LayerNorm", "embed_section.stream_norm"),
)
_LAYER = (
    Row("encoder.layer.{i}.attention.self.query", "layers.{i}.attn.q_proj"),
    Row("encoder.layer.{i}.attention.self.key", "layers.{i}.attn.k_proj"),
    Row("encoder.layer.{i}.attention.self.value", "layers.{i}.attn.v_proj"),
    Row("encoder.layer.{i}.attention.output.dense", "layers.{i}.attn.o_proj"),
    Row("encoder.layer.{i}.intermediate.dense", "layers.{i}.ffn.up_proj"),
    Row("encoder.layer.{i}.output.dense", "layers.{i}.ffn.down_proj"),
)
_POST_NORMS = (
    Row("encoder.layer.{i}.attention.output.LayerNorm", "layers.{i}.stream_norm"),
    Row("encoder.layer.{i}.output.LayerNorm", "layers.{i}.stream_norm_2|stream_norm"),
)
_CLASSIFIER = (
    Row("^classifier.dense", "^classifier_transform.dense"),
    Row("^classifier.out_proj", "^score"),
)
_BERT_HEAD = (
    Row("^cls.predictions.transform.dense", "^lm_head_transform.dense"),
    Row("^cls.predictions.transform.LayerNorm", "^lm_head_transform.norm"),
    Row("^cls.predictions.decoder", "^lm_head"),
    Row("pooler.dense", "^classifier_transform.dense"),
    Row("^classifier", "^score"),
)
_ROBERTA_HEAD = (
    Row("^lm_head.dense", "^lm_head_transform.dense"),
    Row("^lm_head.layer_norm", "^lm_head_transform.norm"),
    Row("^lm_head.decoder", "^lm_head"),
    *_CLASSIFIER,
)
_ASIDE = (
    Aside("pooler.dense", "the pooler feeds classifiers, no hidden state"),
    Aside("^cls.seq_relationship", "the next-sentence head is not loaded"),
    Aside("^cls.predictions.bias", "with untied weights the output layer has its own bias"),
    Aside("^lm_head.bias", "with untied weights the output layer has its own bias"),
)
_POST = (wiring(POST_NORM, embed="x = norm(e)", final="x = x"),)


def _bert(model_type: str, prefix: str, settings: Mapping[str, Setting] = _BERT, harmless: frozenset[str] = frozenset(),
          head: tuple[Row, ...] = _BERT_HEAD) -> Family:  # fmt: skip
    rows = (*_EMBEDDINGS, *_LAYER, *_POST_NORMS, *head)
    return Family(model_type, prefix, _POST, settings, rows, _ASIDE, harmless, {"paf": _PAF})


_ELECTRA: dict[str, Setting] = {
    **_BERT,
    "embedding_size": "embedding_size",
    "lm_head_act": Fixed("gelu"),
    "classifier_act": Fixed("gelu"),
}

FAMILIES: tuple[Family, ...] = (
    _bert("bert", "bert"),
    _bert("ernie", "ernie", harmless=frozenset({"task_type_vocab_size"})),
    _bert("roberta", "roberta", _ROBERTA, head=_ROBERTA_HEAD),
    _bert("xlm-roberta", "roberta", _ROBERTA, head=_ROBERTA_HEAD),
    _bert("camembert", "roberta", _ROBERTA, head=_ROBERTA_HEAD),
    _bert("data2vec-text", "data2vec_text", _ROBERTA, head=_ROBERTA_HEAD),
    Family(
        "roberta-prelayernorm",
        "roberta_prelayernorm",
        (wiring(INPUT_NORM, embed="x = norm(e)"),),
        _ROBERTA,
        (
            *_EMBEDDINGS,
            *_LAYER,
            Row("encoder.layer.{i}.attention.LayerNorm", "layers.{i}.attn_in_norm"),
            Row("encoder.layer.{i}.intermediate.LayerNorm", "layers.{i}.ffn_in_norm"),
            Row("LayerNorm", "final_section.stream_norm"),
            *_ROBERTA_HEAD,
        ),
        _ASIDE,
    ),
    Family(
        "xlm-roberta-xl",
        "roberta",
        (wiring(INPUT_NORM),),
        _ROBERTA,
        (
            *_EMBEDDINGS,
            *_LAYER,
            Row("encoder.layer.{i}.attention.self_attn_layer_norm", "layers.{i}.attn_in_norm"),
            Row("encoder.layer.{i}.LayerNorm", "layers.{i}.ffn_in_norm"),
            Row("encoder.LayerNorm", "final_section.stream_norm"),
            *_ROBERTA_HEAD,
        ),
        _ASIDE,
    ),
    Family(
        "megatron-bert",
        "bert",
        (wiring(INPUT_NORM),),
        _BERT,
        (
            *_EMBEDDINGS,
            *_LAYER,
            Row("encoder.layer.{i}.attention.ln", "layers.{i}.attn_in_norm"),
            Row("encoder.layer.{i}.ln", "layers.{i}.ffn_in_norm"),
            Row("encoder.ln", "final_section.stream_norm"),
            *_BERT_HEAD,
        ),
        _ASIDE,
    ),
    Family(
        "electra",
        "electra",
        # The embedding's norm stands before the projection to the width of the stream, where there is one.
        (
            wiring(POST_NORM, embed="x = norm(e)", final="x = x", embedding_size=Equals("hidden_size")),
            wiring(POST_NORM, final="x = x"),
        ),
        {**_ELECTRA, "embedding_norm": Made(if_differs, ("embedding_size", "hidden_size"))},
        (
            *_EMBEDDINGS,
            Row("embeddings.LayerNorm", "embed_norm"),
            Row("embeddings_project", "embed_projection"),
            *_LAYER,
            *_POST_NORMS,
            Row("^generator_predictions.dense", "^lm_head_transform.dense"),
            Row("^generator_predictions.LayerNorm", "^lm_head_transform.norm"),
            Row("^generator_lm_head", "^lm_head"),
            *_CLASSIFIER,
        ),
    ),
    Family(
        "distilbert",
        "distilbert",
        _POST,
        {
            **TOKENS,
            **SIZES,
            **_HEAD,
            "intermediate_size": "hidden_dim",
            "hidden_act": "activation",
            "lm_head_act": "activation",
            "classifier_act": Fixed("relu"),
            "hidden_dropout_prob": "dropout",
            "attention_probs_dropout_prob": "attention_dropout",
            "max_position_embeddings": "max_position_embeddings",
            "norm_eps": Fixed(1e-12),
            "position_embedding": Fixed("learned"),
            "causal": Fixed(False),
        },
        (
            *_EMBEDDINGS[:2],
            _EMBEDDINGS[3],
            Row("transformer.layer.{i}.attention.q_lin", "layers.{i}.attn.q_proj"),
            Row("transformer.layer.{i}.attention.k_lin", "layers.{i}.attn.k_proj"),
            Row("transformer.layer.{i}.attention.v_lin", "layers.{i}.attn.v_proj"),
            Row("transformer.layer.{i}.attention.out_lin", "layers.{i}.attn.o_proj"),
            Row("transformer.layer.{i}.ffn.lin1", "layers.{i}.ffn.up_proj"),
            Row("transformer.layer.{i}.ffn.lin2", "layers.{i}.ffn.down_proj"),
            Row("transformer.layer.{i}.sa_layer_norm", "layers.{i}.stream_norm"),
            Row("transformer.layer.{i}.output_layer_norm", "layers.{i}.stream_norm_2"),
            Row("^vocab_transform", "^lm_head_transform.dense"),
            Row("^vocab_layer_norm", "^lm_head_transform.norm"),
            Row("^vocab_projector", "^lm_head"),
            Row("^pre_classifier", "^classifier_transform.dense"),
            Row("^classifier", "^score"),
        ),
        harmless=frozenset({"sinusoidal_pos_embds"}),  # how the table starts; it is stored and read as it is
    ),
)

# --- ModernBERT ------------------------------------------------------------------------------------------------------

_MODERN: dict[str, Setting] = {
    **TOKENS,
    **SIZES,
    **ROTARY,
    "intermediate_size": "intermediate_size",
    "hidden_act": "hidden_activation",
    "gated_mlp": Fixed(True),
    "norm_eps": "norm_eps",
    "norm_bias": "norm_bias",
    "attention_bias": "attention_bias",
    "mlp_bias": "mlp_bias",
    "attention_probs_dropout_prob": "attention_dropout",
    "hidden_dropout_prob": "mlp_dropout",
    "embedding_dropout_prob": "embedding_dropout",
    "layer_types": "layer_types",
    "sliding_window": Made(half, ("local_attention",)),
    "lm_head_dense": Fixed(True),
    "lm_head_dense_bias": "classifier_bias",
    "lm_head_act": "classifier_activation",
    "lm_head_norm": Fixed(True),
    "lm_head_bias": "decoder_bias",
    "classifier_dense": Fixed(True),
    "classifier_dense_bias": "classifier_bias",
    "classifier_act": "classifier_activation",
    "classifier_norm": Fixed(True),
    "classifier_bias": Fixed(True),
}
# The norm of the embedding serves the first layer's attention too.
_MODERN_WIRING = (
    Wiring(
        "embed: x = norm(e)\nblock[:1]: x = x + attn(x); x = x + ffn(norm(x))\n"
        f"block[1:]: {INPUT_NORM}\nfinal: x = norm(x)"
    ),
)
_MODERN_ENDS = (
    Row("embeddings.tok_embeddings", "embed_tokens"),
    Row("embeddings.norm", "embed_section.stream_norm"),
    Row("layers.{i}.attn_norm", "layers.{i}.attn_in_norm"),
    Row("layers.{i}.attn.Wo", "layers.{i}.attn.o_proj"),
    Row("layers.{i}.mlp_norm", "layers.{i}.ffn_in_norm"),
    Row("layers.{i}.mlp.Wi", ("layers.{i}.ffn.gate_proj", "layers.{i}.ffn.up_proj"), (Fused(),)),
    Row("layers.{i}.mlp.Wo", "layers.{i}.ffn.down_proj"),
    Row("final_norm", "final_section.stream_norm"),
    Row("^decoder", "^lm_head"),
)
_MODERN_CLASSIFIER = (
    Row("^head.dense", "^classifier_transform.dense"),
    Row("^head.norm", "^classifier_transform.norm"),
    Row("^classifier", "^score"),
)
_QKV = ("layers.{i}.attn.q_proj", "layers.{i}.attn.k_proj", "layers.{i}.attn.v_proj")

FAMILIES += (
    Family(
        "modernbert",
        "model",
        _MODERN_WIRING,
        {
            **_MODERN,
            "causal": Fixed(False),
            "classifier_reads": Pick("classifier_pooling", {"cls": "first", "mean": "mean"}),
        },
        (
            *_MODERN_ENDS,
            Row("layers.{i}.attn.Wqkv", _QKV, (Fused(),)),
            Row("^head.dense", "^lm_head_transform.dense"),
            Row("^head.norm", "^lm_head_transform.norm"),
            *_MODERN_CLASSIFIER,
        ),
    ),
    Family(
        "modernbert-decoder",
        "model",
        _MODERN_WIRING,
        {
            **_MODERN,
            "causal": Fixed(True),
            "sliding_window": Maybe("sliding_window"),
            "classifier_bias": "classifier_bias",
        },
        (
            *_MODERN_ENDS,
            *(Row(name, name) for name in _QKV),
            Row("^lm_head.dense", "^lm_head_transform.dense"),
            Row("^lm_head.norm", "^lm_head_transform.norm"),
            *_MODERN_CLASSIFIER,
        ),
        harmless=frozenset({"local_attention"}),  # sliding_window is made from it
    ),
)
