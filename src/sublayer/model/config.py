"""The configuration: sizes, kinds of operators, and the whole equation of the wiring."""

import difflib
import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from huggingface_hub.dataclasses import strict
from transformers import GenerationConfig, PreTrainedConfig
from transformers.utils import logging

from sublayer.notation import Design, parse

logger = logging.get_logger(__name__)

PLAIN_ACTS = ("relu", "gelu", "gelu_pytorch_tanh", "silu")
GATED_ACTS = ("reglu", "geglu", "swiglu")
HIDDEN_ACTS = (*PLAIN_ACTS, *GATED_ACTS)
NORMS = ("layernorm", "rmsnorm", "dyt")
POSITIONS = ("learned", "rotary", "none")
INITS = ("normal", "deepnorm")

_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "max_position_embeddings",
)

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
        hidden_act: relu, gelu, gelu_pytorch_tanh, silu; gated: reglu, geglu, swiglu.
        norm: what ``norm`` means: layernorm, rmsnorm or dyt.
        norm_eps: eps of layernorm and rmsnorm (also accepted as layer_norm_eps or rms_norm_eps).
        position_embedding: learned (added to the token embedding), rotary (2104.09864) or none.
        rope_theta: base of the rotary angles.
        max_position_embeddings: rows of the learned table.
        qk_norm: RMSNorm over each query's and key's head_dim before the product (after 2010.04245).
        attention_bias, mlp_bias: biases of the projections.
        hidden_dropout_prob: after the embed section and on the outputs of ``attn`` and ``ffn``, as in BERT.
        attention_probs_dropout_prob: on the attention weights.
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
        use_cache: keep keys and values of earlier tokens when generating.
        pad_token_id, bos_token_id, eos_token_id: special tokens.

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
    norm: str = "layernorm"
    norm_eps: float = 1e-5
    position_embedding: str = "rotary"
    rope_theta: float | int = 10000.0
    max_position_embeddings: int = 2048
    qk_norm: bool = False
    attention_bias: bool = True
    mlp_bias: bool = True
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    tie_word_embeddings: bool = True
    causal: bool | None = None
    init: str = "normal"
    initializer_range: float = 0.02
    init_seed: int | None = None
    scale_init: float | int | None = None
    gate_init: float | int = 0.0
    dyt_alpha_init: float | int = 0.5
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

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
                f"{key} is not a setting of SublayerConfig{_suggest(key, _settings())}: remove it or correct its name"
            )
        self._check()
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
        if self.hidden_act in GATED_ACTS:
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
                f"SublayerConfig: the stored key {key!r} is unknown{_suggest(key, _settings())}; it is ignored"
            )
            del config_dict[key]
        return super().from_dict(config_dict, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Nothing to do: a model's `save_pretrained` names this class itself."""

    def validate_architecture(self) -> None:
        """Check again before saving: attributes may have been changed since the config was made."""
        self._check()

    def _check(self) -> None:
        for name in _SIZES:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} ({value}) must be at least 1: give a positive number")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 0 and below 1: 0 turns dropout off")
        for name in ("norm_eps", "rope_theta", "initializer_range"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} ({getattr(self, name)}) must be positive: give a number above 0")
        for name, choices in (
            ("hidden_act", HIDDEN_ACTS),
            ("norm", NORMS),
            ("position_embedding", POSITIONS),
            ("init", INITS),
        ):
            value = getattr(self, name)
            if value not in choices:
                known = f"{', '.join(choices)}{_suggest(value, choices)}"
                raise ValueError(f"{name} ({value!r}) must be one of {known}: choose one of them")
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(
                f"pad_token_id ({self.pad_token_id}) must lie within 0..{self.vocab_size - 1}: give an id of the "
                "vocabulary, or None"
            )
        for name in ("scale_init", "gate_init", "dyt_alpha_init"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name} ({value}) must be finite: give a number")
        self._check_heads()
        # Ranges such as block[:25%] must tile the depth: this raises a DesignError that says how they do not.
        self.wiring.check_depth(self.num_hidden_layers)

    def _check_heads(self) -> None:
        hidden, heads = self.hidden_size, self.num_attention_heads
        if self.head_dim is None and hidden % heads:
            near = max((n for n in range(1, heads + 1) if hidden % n == 0), default=1)
            raise ValueError(
                f"hidden_size ({hidden}) must be divisible by num_attention_heads ({heads}): use hidden_size "
                f"{hidden + heads - hidden % heads} or {near} heads, or give head_dim"
            )
        groups = self.num_key_value_heads
        if groups is not None and heads % groups:
            near = max(n for n in range(1, groups + 1) if heads % n == 0)
            raise ValueError(
                f"num_attention_heads ({heads}) must be divisible by num_key_value_heads ({groups}): "
                f"use {near} key-value heads"
            )
        width = self.head_dim if self.head_dim is not None else hidden // heads
        if self.position_embedding == "rotary" and width % 2:
            raise ValueError(
                f"head_dim ({width}) must be even for rotary positions: "
                "use an even head_dim, or position_embedding='learned' or 'none'"
            )


def unknown_keys(keys: Any) -> list[str]:
    """The keys that neither SublayerConfig nor transformers' own machinery knows."""
    known = {*_settings(), *_CARRIED_KEYS, *GenerationConfig._get_default_generation_params()}
    return [key for key in keys if key not in known and not key.startswith("_")]


def _settings() -> list[str]:
    return [*SublayerConfig.__dataclass_fields__, *SublayerConfig.attribute_map]


def _suggest(word: str, choices: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, choices, n=1)
    return f" (nearest: {near[0]})" if near else ""
