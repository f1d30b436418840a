"""The heads: next token, masked token, and one label a text."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast, MaskedLMOutput, SequenceClassifierOutputWithPast
from transformers.utils.generic import can_return_tuple

from sublayer.model.config import SublayerConfig
from sublayer.model.modeling import SublayerModel, SublayerPreTrainedModel
from sublayer.model.positions import document_starts


class SublayerForCausalLM(SublayerPreTrainedModel, GenerationMixin):
    """Next-token prediction; ``generate`` works with and without cache, for every design."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: SublayerConfig) -> None:
        super().__init__(_settle_causal(config, True, "SublayerForCausalLM", "SublayerForMaskedLM"))
        self.model = SublayerModel(self.config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | dict[str, Any] | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        sequence_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits ``[batch, seq, vocab]``, and the mean loss of predicting ``labels[:, t + 1]`` from position t.

        Args:
            labels: ``[batch, seq]``, -100 where nothing is to be predicted; shifted here. The first token of a packed
                document is no target.
            logits_to_keep: how many last positions to give logits for; 0 means all.
            kwargs: num_items_in_batch goes to the loss; the rest as in :meth:`SublayerModel.forward`.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            sequence_ids=sequence_ids,
            **kwargs,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, keep, :])  # [batch, kept, vocab]
        loss = None
        if labels is not None:
            if sequence_ids is not None:
                labels = labels.masked_fill(document_starts(sequence_ids), -100)
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class SublayerForMaskedLM(SublayerPreTrainedModel):
    """Masked-token prediction with bidirectional ``attn``."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: SublayerConfig) -> None:
        super().__init__(_settle_causal(config, False, "SublayerForMaskedLM", "SublayerForCausalLM"))
        self.model = SublayerModel(self.config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        sequence_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> MaskedLMOutput:
        """Logits ``[batch, seq, vocab]``, and the mean loss of predicting ``labels[:, t]`` at position t.

        Args:
            labels: ``[batch, seq]``, -100 where nothing is to be predicted.
            kwargs: num_items_in_batch goes to the loss; the rest as in :meth:`SublayerModel.forward`.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            sequence_ids=sequence_ids,
            **kwargs,
        )
        logits = self.lm_head(outputs.last_hidden_state)  # [batch, seq, vocab]
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class SublayerForSequenceClassification(SublayerPreTrainedModel):
    """A label or a number for each text, read from the last real token if the model is causal, else from the first."""

    def __init__(self, config: SublayerConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = SublayerModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutputWithPast:
        """Logits ``[batch, num_labels]`` and the loss that ``config.problem_type`` names.

        Args:
            attention_mask: 1 for real tokens, ``[batch, seq]``. Default: those that are not ``config.pad_token_id``.
            labels: ``[batch]`` classes or numbers, or ``[batch, num_labels]``.
            kwargs: as in :meth:`SublayerModel.forward`; sequence_ids is refused.
        """
        if kwargs.get("sequence_ids") is not None:
            raise ValueError(
                "sequence_ids packs several texts into a row, but a row gets one label: give one text a row"
            )
        if attention_mask is None and input_ids is not None and self.config.pad_token_id is not None:
            attention_mask = (input_ids != self.config.pad_token_id).long()
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden = outputs.last_hidden_state  # [batch, seq, d]
        row = torch.arange(hidden.shape[0], device=hidden.device)
        pooled = hidden[row, self._token_to_read(hidden, attention_mask)]  # [batch, d]
        logits = self.score(self.dropout(pooled))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config, **kwargs)
        return SequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _token_to_read(self, hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Index of the last (causal) or first real token of each row, ``[batch]``."""
        batch, length = hidden.shape[:2]
        real = (
            hidden.new_ones(batch, length) if attention_mask is None else attention_mask[:, -length:].to(hidden.device)
        )
        rank = torch.arange(1, length + 1, device=hidden.device)
        if not self.config.left_to_right:
            rank = rank.flip(0)
        return ((real != 0) * rank).argmax(dim=-1)


def _settle_causal(config: SublayerConfig, causal: bool, head: str, other: str) -> SublayerConfig:
    """The config with its open direction decided, in a copy: one config may serve models of both kinds."""
    if config.causal is None:
        config = copy.deepcopy(config)
        config.causal = causal
    elif config.causal is not causal:
        raise ValueError(f"causal ({config.causal}) must be {causal} for {head}: leave it unset, or use {other}")
    return config
