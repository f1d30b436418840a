"""The base model: embedding, the embed section, one block a layer, the final section."""

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import logging
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from sublayer.model.attention import AttentionCore
from sublayer.model.block import SublayerBlock, SublayerSection, Wiring
from sublayer.model.cache import cache_windows, count_tokens, fit_cache
from sublayer.model.config import SublayerConfig
from sublayer.model.context import Context
from sublayer.model.embedding import add_tables, embed
from sublayer.model.initialization import initialise
from sublayer.model.masks import attention_operators, build_masks, check_packing
from sublayer.model.positions import (
    document_positions,
    documents_from_positions,
    rotary_kinds,
    row_positions,
    token_positions,
    unpadded_positions,
)

logger = logging.get_logger(__name__)

_SHIM = "modeling_sublayer"  # name of the file beside saved weights
_AUTO_MAP = {
    "AutoConfig": "SublayerConfig",
    "AutoModel": "SublayerModel",
    "AutoModelForCausalLM": "SublayerForCausalLM",
    "AutoModelForMaskedLM": "SublayerForMaskedLM",
    "AutoModelForSequenceClassification": "SublayerForSequenceClassification",
}


class SublayerPreTrainedModel(PreTrainedModel):
    """What every Sublayer model shares: initialisation, loading, saving, and what it can do."""

    config: SublayerConfig
    kept_aside: Mapping[str, Any] = MappingProxyType({})  # by `sublayer.load`: tensors without a place here
    loaded_from: Path | None = None
    config_class = SublayerConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["SublayerBlock", "SublayerSection"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": SublayerBlock, "attentions": AttentionCore}
    _can_set_attn_implementation_cached_value = (
        True  # the attention interface is called in another file than transformers looks
    )

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write weights and config, and beside them a line of Python that imports the classes.

        By it ``AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`` works in a process that has not
        imported sublayer, wherever it is installed.
        """
        self.config.auto_map = {auto: f"{_SHIM}.{name}" for auto, name in _AUTO_MAP.items()}
        super().save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            Path(save_directory, f"{_SHIM}.py").write_text(
                f"from sublayer.model import {', '.join(_AUTO_MAP.values())}\n"
            )

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Nothing to do: `save_pretrained` names the classes itself, and no source file needs to be copied."""

    def post_init(self) -> None:
        """Let each module know its name before its weights are drawn from it."""
        for name, module in self.named_modules():
            if not hasattr(module, "seed_name"):  # the base model came first: heads see its names without their prefix
                module.seed_name = name
        super().post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        initialise(module, getattr(module, "seed_name", "added"), self.config)

    @staticmethod
    def _finalize_model_loading(model: Any, load_config: Any, loading_info: Any) -> Any:
        info = PreTrainedModel._finalize_model_loading(model, load_config, loading_info)
        for module in model.modules():
            if isinstance(module, Wiring):
                module.place()  # the weights that were read lie where they were read
        return info

    def create_masks_for_generate(
        self,
        config: SublayerConfig,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None,
        past_key_values: Cache | None,
        **_: Any,
    ) -> dict[str, Any]:
        """Masks made outside the compiled step of a static cache; ``forward`` takes them as its ``attention_mask``."""
        return build_masks(config, attention_operators(config), inputs_embeds, attention_mask, None, past_key_values)


class SublayerModel(SublayerPreTrainedModel):
    """Token ids to hidden states, wired by ``config.design``.

    Attributes:
        embed_tokens, embed_positions, embed_types, embed_norm, embed_projection: the embedding; None what the config
            does not ask for.
        embed_section, layers, final_section: the three sections of the design, each with ``section`` and ``source``.
    """

    def __init__(self, config: SublayerConfig) -> None:
        super().__init__(config)
        design, depth = config.wiring, config.num_hidden_layers
        design.check_depth(depth)
        add_tables(self, config)
        self.rotary = rotary_kinds(config)
        dropout = config.embedding_dropout_prob
        self.dropout = nn.Dropout(config.hidden_dropout_prob if dropout is None else dropout)
        self.embed_section = SublayerSection(design.section("embed"), config, 0, depth)
        self.layers = nn.ModuleList()
        for layers, section in design.blocks:
            start, stop = layers.resolve(depth)
            self.layers.extend(SublayerBlock(section, config, i + 1, depth) for i in range(start, stop))
        self.final_section = SublayerSection(design.section("final"), config, 0, depth)
        parts = [self.embed_section, *self.layers, self.final_section]
        self.attention_ops = attention_operators(config)
        self.cache_windows = cache_windows([(part.layer, part.section) for part in parts], config)
        self.cache_slots = len(self.cache_windows)
        self.reads_embedding = any("e" in part.section.inputs for part in parts[1:])
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | dict[str, Any] | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        sequence_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the model.

        Args:
            input_ids: token ids ``[batch, seq]``; or give ``inputs_embeds [batch, seq, d]``, rows of the token table.
            attention_mask: 1 for real tokens, 0 for padding, ``[batch, seen + seq]``; or a ready mask
                ``[batch, 1, seq, seen + seq]``; or a ready mask for each attention operator.
            position_ids: ``[batch or 1, seq]``, from 0. Default: counted as position_counting says, or anew in each
                document.
            past_key_values: the cache of earlier tokens.
            use_cache: return a cache. Ignored unless the model is causal.
            sequence_ids: document of each token, ``[batch, seq]`` integers: a token sees only its own document, whose
                tokens stand together. Works for causal and bidirectional models.
            token_type_ids: segment of each token, ``[batch, seq]``, read where there is type_vocab_size. Default: 0.
            kwargs: handed on to the attention backend.

        Raises:
            ValueError: inputs contradict each other; the message gives the rule, the value and the remedy.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds: exactly one of them says what the tokens are")
        if kwargs.get("output_attentions") and self.config._attn_implementation != "eager":
            raise ValueError(
                f"attn_implementation ({self.config._attn_implementation!r}) keeps no attention weights to output: "
                "load with attn_implementation='eager' or call model.set_attn_implementation('eager')"
            )
        embeddings = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds  # [batch, seq, d]
        if sequence_ids is None and position_ids is not None and attention_mask is None and past_key_values is None:
            sequence_ids = documents_from_positions(position_ids.expand(embeddings.shape[0], -1))
        if sequence_ids is not None:
            check_packing(self.config, embeddings, attention_mask, sequence_ids, past_key_values)
        cache = self._cache(past_key_values, use_cache, sequence_ids)
        if position_ids is None:
            position_ids = self._positions(embeddings, input_ids, attention_mask, sequence_ids, cache)
        if self.embed_positions is not None:
            self._check_positions(position_ids)
        embeddings = embed(self, embeddings, position_ids, token_type_ids)
        context = self._context(embeddings, attention_mask, position_ids, sequence_ids, cache, kwargs)
        if cache is not None and self.cache_slots == 0:
            count_tokens(cache, embeddings)

        streams = self._embed(embeddings, context)
        for block in self.layers:
            streams.update(self._run(block, streams, context))  # type: ignore[arg-type]  # ModuleList forgets its type
        hidden = self._run(self.final_section, streams, context)["x"]
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=cache)

    def _run(
        self, part: SublayerSection | SublayerBlock, streams: dict[str, Tensor], context: Context
    ) -> dict[str, Tensor]:
        """One section from the streams it reads to the streams it writes, each ``[batch, seq, d]``."""
        section = part.section
        result = part(*(streams[name] for name in section.inputs), context)
        values = result if isinstance(result, tuple) else (result,)
        return {stream: value for (stream, _), value in zip(section.outputs, values, strict=True)}

    def _embed(self, embeddings: Tensor, context: Context) -> dict[str, Tensor]:
        """The embed section, then dropout: once for each distinct value, so streams that start equal stay equal."""
        streams = self._run(self.embed_section, {"e": embeddings}, context)
        value_of = dict(self.embed_section.section.outputs)  # stream -> value of the section
        if self.reads_embedding:
            streams["e"], value_of["e"] = embeddings, "e"
        dropped: dict[str, Tensor] = {}
        for stream, value in streams.items():
            if value_of[stream] not in dropped:
                dropped[value_of[stream]] = self.dropout(value)
        return {stream: dropped[value_of[stream]] for stream in streams}

    def _cache(self, past: Cache | None, use_cache: bool | None, sequence_ids: Tensor | None) -> Cache | None:
        if self.gradient_checkpointing and self.training and past is not None:
            logger.warning_once(
                "gradient checkpointing runs each block twice and takes no cache: past_key_values is ignored"
            )
            past = None
        elif past is None and use_cache and self.config.left_to_right and sequence_ids is None:
            if not (self.gradient_checkpointing and self.training):
                past = DynamicCache(config=self.config)
        if past is not None:
            fit_cache(past, self.cache_windows)
        return past

    def _positions(
        self,
        embeddings: Tensor,
        input_ids: Tensor | None,
        attention_mask: Any,
        sequence_ids: Tensor | None,
        cache: Cache | None,
    ) -> Tensor:
        if sequence_ids is not None:
            return document_positions(sequence_ids)
        seen = 0 if cache is None else cache.get_seq_length()
        pad, counting = self.config.pad_token_id, self.config.position_counting
        if counting == "pad" and input_ids is not None and pad is not None:
            return unpadded_positions(input_ids, pad, seen)
        if counting != "mask":
            return row_positions(embeddings, seen)
        return token_positions(embeddings, attention_mask if isinstance(attention_mask, Tensor) else None, seen)

    def _check_positions(self, position_ids: Tensor) -> None:
        """Refuse positions beyond the learned table. Where looking at a number would stop a GPU or a trace, torch
        does."""
        rows = self.config.max_position_embeddings
        plain = type(position_ids) is Tensor and position_ids.device.type == "cpu" and position_ids.numel() > 0
        if plain and not torch.compiler.is_compiling() and int(position_ids.max()) >= rows:
            raise ValueError(
                f"{int(position_ids.max()) + 1} tokens exceed max_position_embeddings ({rows}): "
                "shorten the input, or use position_embedding='rotary' or 'none'"
            )

    def _context(
        self,
        embeddings: Tensor,
        attention_mask: Any,
        position_ids: Tensor,
        sequence_ids: Tensor | None,
        cache: Cache | None,
        options: dict[str, Any],
    ) -> Context:
        config = self.config
        tables = {angles: angles.table(position_ids, embeddings.dtype) for angles in set(self.rotary.values())}
        rotary = {kind: tables[angles] for kind, angles in self.rotary.items()}
        if isinstance(attention_mask, dict):
            masks = attention_mask
        else:
            masks = build_masks(config, self.attention_ops, embeddings, attention_mask, sequence_ids, cache)
        return Context(masks=masks, rotary=rotary, cache=cache, options=options)
