"""The numbers that a cost depends on, with the parameters and products of each part. Imports no torch."""

from dataclasses import dataclass, fields

from sublayer.notation.program import Site

_PLAIN_ACTS = ("relu", "gelu", "gelu_pytorch_tanh", "silu")
_GATED = ("reglu", "geglu", "swiglu")
# What transformers knows beside them, by names that need no import of it.
_OTHER_ACTS = tuple(
    "gelu_10 gelu_fast gelu_new gelu_python gelu_python_tanh gelu_accurate hardswish leaky_relu linear mish quick_gelu "
    "relu2 relu6 sigmoid sqrtsoftplus swish tanh".split()
)
_DROPOUTS = ("hidden_dropout_prob", "embedding_dropout_prob", "attention_probs_dropout_prob")
_MAY_BE_ZERO = ("position_offset", "type_vocab_size", *_DROPOUTS)


class CostError(ValueError):
    """A size that breaks a rule, or that no cost depends on: the rule, the value received and the remedy."""


@dataclass(frozen=True)
class Sizes:
    """The numbers a design is built with, by the names of `SublayerConfig` and with its defaults."""

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
    norm_affine: bool = True
    norm_bias: bool = True
    position_embedding: str = "rotary"
    position_offset: int = 0
    max_position_embeddings: int = 2048
    qk_norm: bool | str = False
    qk_norm_kind: str = "rmsnorm"
    qk_norm_bias: bool = False
    attention_bias: bool = True
    attention_out_bias: bool | None = None
    mlp_bias: bool = True
    embedding_size: int | None = None
    embedding_projection: str = "sum"
    embedding_projection_bias: bool = True
    embedding_norm: bool = False
    type_vocab_size: int = 0
    lm_head_dense: bool = False
    lm_head_dense_bias: bool = True
    lm_head_act: str | None = None
    lm_head_norm: bool = False
    lm_head_bias: bool = False
    classifier_dense: bool = False
    classifier_dense_bias: bool = True
    classifier_norm: bool = False
    classifier_bias: bool = True
    tie_word_embeddings: bool = True
    fuse_parallel: bool = True
    hidden_dropout_prob: float = 0.0
    embedding_dropout_prob: float | None = None
    attention_probs_dropout_prob: float = 0.0
    attn_logit_softcapping: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in _MAY_BE_ZERO else 1
            if type(value) is int and value < least:
                raise CostError(f"{field.name} ({value}) must be at least {least}: give a larger number")
            if field.name in _DROPOUTS and value is not None and not 0 <= value < 1:
                raise CostError(f"{field.name} ({value}) must lie in [0, 1): give a share")
        if self.hidden_act not in (known_acts := (*_PLAIN_ACTS, *_GATED, *_OTHER_ACTS)):
            known = ", ".join(known_acts)
            raise CostError(f"hidden_act ({self.hidden_act!r}) must be one of {known}: choose one of them")
        if self.num_attention_heads % (self.num_key_value_heads or 1):
            raise CostError(
                f"num_attention_heads ({self.num_attention_heads}) must be divisible by num_key_value_heads "
                f"({self.num_key_value_heads}): change one of them"
            )
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise CostError(
                f"hidden_size ({self.hidden_size}) must be divisible by num_attention_heads "
                f"({self.num_attention_heads}): change one of them, or give head_dim"
            )
        if self.position_embedding == "rotary" and self._head % 2:
            raise CostError(
                f"head_dim ({self._head}) must be even for rotary positions: change it, or use learned ones"
            )

    @property
    def d(self) -> int:
        """Channels of the stream."""
        return self.hidden_size

    @property
    def query_width(self) -> int:
        """Channels of all query heads together."""
        return self.num_attention_heads * self._head

    @property
    def key_width(self) -> int:
        """Channels of all key heads together; values have as many."""
        return (self.num_key_value_heads or self.num_attention_heads) * self._head

    @property
    def d_ff(self) -> int:
        """Channels inside the FFN."""
        return self.intermediate_size or 4 * self.hidden_size

    @property
    def _head(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def width(self) -> int:
        """Channels of the token table."""
        return self.embedding_size or self.hidden_size

    @property
    def embed_projected(self) -> bool:
        """Whether the embedding is projected to the width of the stream."""
        return self.width != self.d

    @property
    def gated(self) -> bool:
        """Whether ``ffn`` has a gate."""
        return self.hidden_act in _GATED if self.gated_mlp is None else self.gated_mlp

    @property
    def embedding_tables(self) -> dict[str, int]:
        """Parameters of the tables of tokens, positions and token types."""
        beside = self.beside
        rows = self.max_position_embeddings + self.position_offset if self.position_embedding == "learned" else 0
        return {
            "embed_tokens": self.vocab_size * self.width,
            "embed_positions": rows * beside,
            "embed_types": self.type_vocab_size * beside,
        }

    @property
    def embedding_parts(self) -> dict[str, int]:
        """Parameters of the norm and the projection of the embedding."""
        projection = self.width * self.d + (self.d if self.embedding_projection_bias else 0)
        return {
            "embed_norm": self.norm_parameters(self.norm, self.beside) if self.embedding_norm else 0,
            "embed_projection": projection if self.embed_projected else 0,
        }

    @property
    def language_head(self) -> dict[str, int]:
        """Parameters of what makes logits, the table of tokens aside where it is tied."""
        bias = self.vocab_size if self.lm_head_bias else 0
        width = self.width if self.lm_head_dense else self.d
        dense = self.d * width + (width if self.lm_head_dense_bias else 0) if self.lm_head_dense else 0
        return {
            "lm_head_transform": dense + (self.norm_parameters(self.norm, width) if self.lm_head_norm else 0),
            "lm_head": bias + (0 if self.tie_word_embeddings else self.vocab_size * self.width),
        }

    def classifier(self, labels: int) -> dict[str, int]:
        """Parameters of what scores labels."""
        d = self.d
        dense = d * d + (d if self.classifier_dense_bias else 0) if self.classifier_dense else 0
        return {
            "classifier_transform": dense + (self.norm_parameters(self.norm, d) if self.classifier_norm else 0),
            "score": d * labels + (labels if self.classifier_bias else 0),
        }

    @property
    def beside(self) -> int:
        """Channels of the tables beside the tokens': those of the stream where the tokens are projected first."""
        return self.d if self.embed_projected and self.embedding_projection == "tokens" else self.width

    def norm_parameters(self, kind: str, width: int) -> int:
        """Parameters of one norm."""
        if kind == "dyt":
            return 2 * width + 1
        return width * (self.norm_affine * (1 + (self.norm_bias and kind == "layernorm")))

    @property
    def _query_key_norms(self) -> int:
        """Parameters of the norms of queries and keys."""
        if not self.qk_norm:
            return 0
        each = self.qk_norm in ("heads", "full")
        width = self.query_width + self.key_width if each else 2 * self._head
        biased = self.qk_norm_bias and self.qk_norm_kind == "layernorm"
        affine = self.norm_affine or self.qk_norm == "heads"
        return width * (1 + biased) if affine else 0

    def parameters_of(self, site: Site) -> int:
        """Parameters of one site."""
        d, q, kv, ff = self.d, self.query_width, self.key_width, self.d_ff
        if site.op == "attn":
            out = self.attention_bias if self.attention_out_bias is None else self.attention_out_bias
            bias = (q + 2 * kv if self.attention_bias else 0) + (d if out else 0)
            return d * (q + 2 * kv) + q * d + bias + self._query_key_norms
        if site.op == "ffn":
            inner = 2 if self.gated else 1
            return (inner + 1) * d * ff + (inner * ff + d if self.mlp_bias else 0)
        kind = self.norm if site.op == "norm" else site.op
        if kind in ("layernorm", "rmsnorm", "dyt"):
            return self.norm_parameters(kind, d)
        return {"scale": d, "gate": 1}.get(kind, 0)

    def products_of(self, site: Site, seq: int) -> tuple[int, int, int]:
        """FLOPs of one call for each token of a sequence of `seq`: products of the input, between positions, output."""
        d, q, kv = self.d, self.query_width, self.key_width
        if site.op == "attn":
            return 2 * d * (q + 2 * kv), 4 * seq * q, 2 * q * d
        if site.op == "dot":
            return 0, 4 * seq * d, 0
        if site.op == "ffn":
            return 2 * d * self.d_ff * (2 if self.gated else 1), 0, 2 * d * self.d_ff
        return 0, 0, 0
