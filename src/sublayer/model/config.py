"""The configuration: sizes, kinds of operators, and the whole equation of the wiring."""

from typing import Any, ClassVar, NamedTuple

from huggingface_hub.dataclasses import strict
from transformers import GenerationConfig, PreTrainedConfig
from transformers.utils import logging

from sublayer.model.config_rules import GATED_ACTS, HIDDEN_ACTS, NORMS, check, suggest
from sublayer.notation import Design, parse

logger = logging.get_logger(__name__)

__all__ = ["HIDDEN_ACTS", "NORMS", "Sizes", "SublayerConfig", "unknown_keys"]

# Keys that transformers itself passes to, or stores in, any config beside the declared fields.
_CARRIED_KEYS = frozenset({
    "attn_implementation", "auto_map", "experts_implementation", "gradient_checkpointing", "is_causal", "model_type",
    "name_or_path", "num_labels", "output_attentions", "per_layer_config", "quantization_config",
    "tie_last_hidden_states", "torch_dtype", "transformers_weights",
})  # fmt: skip


class Sizes(NamedTuple):
    """Channels of the stream, query heads, key-value heads, channels a head, channels inside the FFN."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int


@strict
class SublayerConfig(PreTrainedConfig):
    """Everything that decides what a Sublayer model computes.

    Args:
        design: a catalogue name, an equation or a Design; stored as the text of its normal form, all sections.
        vocab_size: number of token ids.
        hidden_size: d, channels of the residual stream.
        num_hidden_layers: depth.
        num_attention_heads: query heads of ``attn``.
        num_key_value_heads: key and value heads; fewer than query heads is grouped-query attention. Default: as many.
        head_dim: channels a head. Default: hidden_size / num_attention_heads.
        intermediate_size: d_ff, channels inside ``ffn``. Default: 4 * hidden_size.
        hidden_act: relu, gelu, gelu_pytorch_tanh, silu, or any other activation of transformers without parameters;
            gated: reglu, geglu, swiglu.
        gated_mlp: ``act(h W_gate) * (h W_up)`` inside ``ffn``. Default: where hidden_act is one of the gated names.
        norm: what ``norm`` means: layernorm, rmsnorm or dyt.
        norm_eps: eps of layernorm and rmsnorm (also accepted as layer_norm_eps or rms_norm_eps).
        norm_affine, norm_bias: whether norms have a weight, and whether layernorm has a bias beside it.
        norm_zero_centred: norms multiply by 1 + weight.
        position_embedding: learned (a table, added to the token embedding), sinusoidal (added; 1706.03762), rotary
            (2104.09864), alibi (a bias on the scores, 2108.12409) or none.
        position_offset: learned and sinusoidal positions start here; the learned table has as many rows more.
        position_counting: how tokens are counted where no position_ids are given: "mask" from the first token that
            attention_mask shows, "row" from the start of the row, "pad" over tokens that are not pad_token_id.
        rope_theta: base of the rotary angles.
        rope_parameters: rotary angles as transformers describes them: rope_type, rope_theta, partial_rotary_factor,
            scaling; or such a mapping for each of layer_types. Default: rope_theta alone.
        rotary_layers: for each layer whether its queries and keys are turned. Default: all.
        alibi_scale, alibi_dtype: factor on the alibi bias, and the precision that it is rounded to.
        max_position_embeddings: number of learned positions.
        sliding_window: a token sees this many tokens, itself included (causal), or this far to each side.
        layer_types: full_attention or sliding_attention for each layer. Default: sliding_attention everywhere if
            sliding_window is set.
        attention_scale: factor on the scores, or one for each layer. Default: head_dim**-0.5.
        attn_logit_softcapping: c in ``c * tanh(scores / c)`` (2408.00118); final_logit_softcapping: on the logits.
        clip_qkv: queries, keys and values are cut off at +- this.
        qk_norm: norm of queries and keys before the product (2010.04245): True or "head" over head_dim with one weight
            for all heads, "heads" with a weight for each head, "full" over all heads together.
        qk_norm_kind, qk_norm_bias: rmsnorm or layernorm; whether layernorm has a bias.
        qk_norm_after_rotary: norm the queries and keys after they are turned.
        attention_bias, mlp_bias: biases of the projections; attention_out_bias: of the output projection, by default
            as attention_bias.
        hidden_dropout_prob: after the embed section and on the outputs of ``attn`` and ``ffn``, as in BERT;
            embedding_dropout_prob: after the embed section, by default the same.
        attention_probs_dropout_prob: on the attention weights.
        embedding_size: width of the token table. Default: hidden_size. If it differs, a projection follows:
        embedding_projection: of the "sum" of token, position and type embeddings, or of the "tokens" alone.
        embedding_projection_bias: whether it has a bias.
        embedding_norm: a norm of the sum, before the projection.
        embedding_multiplier: factor on the token embeddings.
        type_vocab_size: rows of the table of token types (segments); 0 for none.
        lm_head_dense, lm_head_dense_bias, lm_head_act, lm_head_norm: what stands before the output layer of a language
            model: a projection to embedding_size, an activation, a norm; lm_head_bias: bias of the output layer.
        logits_scale: factor on the logits.
        classifier_dense, classifier_dense_bias, classifier_act, classifier_norm: the same before the layer that scores
            labels; classifier_bias: bias of that layer.
        classifier_reads: which token it reads: "first" or "last" of the real ones, or their "mean". Default: the last
            if the model is causal, else the first.
        tie_word_embeddings: one table for input and output.
        causal: whether a token sees only itself and earlier ones. None leaves it to the model class: ForMaskedLM False,
            others True.
        init: normal (standard deviation initializer_range) or deepnorm (2203.00555: Xavier, with gain (8*depth)**-0.25
            on ``ffn``, the value and the output projection).
        initializer_range: standard deviation of the normal initialisation.
        init_seed: base seed of the weights. Default: ``torch.initial_seed()``. Each parameter is drawn from the seed
            and its own name.
        scale_init: initial factor of ``scale``. Default: LayerScale's 0.1 up to 18 layers, 1e-5 up to 24, 1e-6 beyond
            (2103.17239).
        gate_init: initial factor of ``gate``; 0 is ReZero (2003.04887).
        dyt_alpha_init: initial alpha of ``dyt`` (2503.10622).
        fuse_parallel: parallel branches share an input and an output product (`sublayer.model.fused`); the function
            is the same either way.
        use_cache: keep keys and values of earlier tokens when generating.
        pad_token_id, bos_token_id, eos_token_id: special tokens.
        source_checkpoint: what `sublayer.load` read this from; `sublayer.export` writes the same format by it.

    Raises:
        DesignError: the design cannot be read, or its layer ranges do not tile the depth.
        ValueError: a value breaks a rule, or a key is unknown; the message gives the rule, the value and the remedy.
        StrictDataclassFieldValidationError: a value has the wrong type.
    """

    model_type = "sublayer"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {"layer_norm_eps": "norm_eps", "rms_norm_eps": "norm_eps"}
    base_model_fsdp_plan: ClassVar[dict[Any, str]] = {
        "embed_tokens": "free_full_weight",
        "layers.*": "free_full_weight",
    }

    design: str | Design = "input-norm"
    vocab_size: int = 32000
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int | None = None
    hidden_act: str = "gelu"
    gated_mlp: bool | None = None
    norm: str = "layernorm"
    norm_eps: float = 1e-5
    norm_affine: bool = True
    norm_bias: bool = True
    norm_zero_centred: bool = False
    position_embedding: str = "rotary"
    position_offset: int = 0
    position_counting: str = "mask"
    rope_theta: float | int = 10000.0
    rope_parameters: dict[str, Any] | None = None
    rotary_layers: list[bool] | None = None
    alibi_scale: float | int = 1.0
    alibi_dtype: str = "float32"
    max_position_embeddings: int = 2048
    sliding_window: int | None = None
    layer_types: list[str] | None = None
    attention_scale: float | int | list[float] | None = None
    attn_logit_softcapping: float | int | None = None
    final_logit_softcapping: float | int | None = None
    clip_qkv: float | int | None = None
    qk_norm: bool | str = False
    qk_norm_kind: str = "rmsnorm"
    qk_norm_bias: bool = False
    qk_norm_after_rotary: bool = False
    attention_bias: bool = True
    attention_out_bias: bool | None = None
    mlp_bias: bool = True
    embedding_size: int | None = None
    embedding_projection: str = "sum"
    embedding_projection_bias: bool = True
    embedding_norm: bool = False
    embedding_multiplier: float | int = 1.0
    type_vocab_size: int = 0
    lm_head_dense: bool = False
    lm_head_dense_bias: bool = True
    lm_head_act: str | None = None
    lm_head_norm: bool = False
    lm_head_bias: bool = False
    logits_scale: float | int = 1.0
    classifier_dense: bool = False
    classifier_dense_bias: bool = True
    classifier_act: str | None = None
    classifier_norm: bool = False
    classifier_bias: bool = True
    classifier_reads: str | None = None
    hidden_dropout_prob: float | int = 0.0
    embedding_dropout_prob: float | int | None = None
    attention_probs_dropout_prob: float | int = 0.0
    tie_word_embeddings: bool = True
    causal: bool | None = None
    init: str = "normal"
    initializer_range: float = 0.02
    init_seed: int | None = None
    scale_init: float | int | None = None
    gate_init: float | int = 0.0
    dyt_alpha_init: float | int = 0.5
    fuse_parallel: bool = True
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    source_checkpoint: dict[str, Any] | None = None

    def __setattr__(self, key: str, value: Any) -> None:
        if key == "design" and isinstance(value, str | Design):
            value = str(parse(value))  # a name would mean whatever a later catalogue says; an equation means itself
        super().__setattr__(key, value)

    def __post_init__(self, **kwargs: Any) -> None:
        for alias, name in self.attribute_map.items():
            if alias in kwargs:
                setattr(self, name, kwargs.pop(alias))
        for key in unknown_keys(kwargs):
            raise ValueError(
                f"{key} is not a setting of SublayerConfig{suggest(key, _settings())}: remove it or correct its name"
            )
        check(self)
        _, _, self.num_key_value_heads, self.head_dim, self.intermediate_size = self.sizes
        super().__post_init__(**kwargs)

    @property
    def sizes(self) -> Sizes:
        """The sizes of ``attn`` and ``ffn`` with their defaults filled in."""
        hidden, heads = self.hidden_size, self.num_attention_heads
        return Sizes(
            hidden,
            heads,
            self.num_key_value_heads or heads,
            self.head_dim or hidden // heads,
            self.intermediate_size or 4 * hidden,
        )

    @property
    def gated(self) -> bool:
        """Whether ``ffn`` has a gate."""
        return self.hidden_act in GATED_ACTS if self.gated_mlp is None else self.gated_mlp

    @property
    def embedding_width(self) -> int:
        """Channels of the token table, and of what the output layer reads."""
        return self.embedding_size or self.hidden_size

    def layer_type(self, layer: int) -> str:
        """full_attention or sliding_attention, for layer 1..depth; 0 stands for the embed and final sections."""
        if layer and self.layer_types is not None:
            return self.layer_types[layer - 1]
        return "sliding_attention" if self.sliding_window is not None else "full_attention"

    def window(self, layer: int) -> int | None:
        """How many tokens ``attn`` of layer 1..depth sees; None for all of them."""
        return self.sliding_window if self.layer_type(layer) == "sliding_attention" else None

    def score_scale(self, layer: int) -> float:
        """The factor on the scores of ``attn`` in layer 1..depth."""
        scale = self.attention_scale
        if isinstance(scale, list):
            scale = scale[layer - 1] if layer else None
        return float(self.sizes.head_dim**-0.5 if scale is None else scale)

    def turns(self, layer: int) -> bool:
        """Whether ``attn`` of layer 1..depth turns its queries and keys by their positions."""
        return self.position_embedding == "rotary" and (
            self.rotary_layers is None or not layer or self.rotary_layers[layer - 1]
        )

    def convert_rope_params_to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Fill in what rope_parameters leaves open. Left unset they stay so: rope_theta says it all."""
        return kwargs if self.rope_parameters is None else super().convert_rope_params_to_dict(**kwargs)

    @property
    def left_to_right(self) -> bool:
        """Whether ``attn`` is causal: unless ``causal`` says otherwise."""
        return self.causal is not False

    @property
    def base_model_tp_plan(self) -> dict[str, str]:
        """Tensor parallelism: which projections of this design's sites are split by columns and which by rows."""
        design = self.wiring
        owners = [("layers.*", section) for _, section in design.blocks]
        owners += [("embed_section", design.section("embed")), ("final_section", design.section("final"))]
        columns = {"attn": ["q_proj", "k_proj", "v_proj"], "ffn": ["up_proj"]}
        if self.gated:
            columns["ffn"].append("gate_proj")
        rows = {"attn": "o_proj", "ffn": "down_proj"}
        plan: dict[str, str] = {}
        for owner, section in owners:
            for site in section.sites:
                name = f"{owner}.{site.name}"
                plan |= {f"{name}.{column}": "colwise" for column in columns.get(site.op, [])}
                if site.op in rows:
                    plan[f"{name}.{rows[site.op]}"] = "rowwise"
        return plan

    @property
    def wiring(self) -> Design:
        """The parsed design."""
        return parse(self.design)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Read a stored config. Keys that this version does not know are reported and left out, not refused."""
        config_dict = dict(config_dict)
        for key in unknown_keys(config_dict):
            logger.warning(
                f"SublayerConfig: the stored key {key!r} is unknown{suggest(key, _settings())}; it is ignored"
            )
            del config_dict[key]
        return super().from_dict(config_dict, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Nothing to do: a model's `save_pretrained` names this class itself."""

    def validate_architecture(self) -> None:
        """Check again before saving: attributes may have been changed since the config was made."""
        check(self)


def unknown_keys(keys: Any) -> list[str]:
    """The keys that neither SublayerConfig nor transformers' own machinery knows."""
    known = {*_settings(), *_CARRIED_KEYS, *GenerationConfig._get_default_generation_params()}
    return [key for key in keys if key not in known and not key.startswith("_")]


def _settings() -> list[str]:
    return [*SublayerConfig.__dataclass_fields__, *SublayerConfig.attribute_map]
