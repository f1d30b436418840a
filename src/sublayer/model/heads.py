"""The heads: next token, masked token, and one label a text."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast, MaskedLMOutput, SequenceClassifierOutputWithPast
from transformers.utils.generic import can_return_tuple

from sublayer.model.columns import by_columns, growth
from sublayer.model.config import SublayerConfig
from sublayer.model.ffn import activation
from sublayer.model.fused import is_plain_linear
from sublayer.model.loss import IGNORED, cross_entropy, linear_cross_entropy, predicted
from sublayer.model.modeling import SublayerModel, SublayerPreTrainedModel
from sublayer.model.norms import configured_norm
from sublayer.model.positions import document_starts


class HeadTransform(nn.Module):
    """What some models do before the output layer: a projection, an activation, a norm, each if it is asked for.

    Args:
        config: reads hidden_size, and the kind and eps of the norm.
        dense: channels that the projection writes; None for no projection.
        bias: whether it has a bias.
        act: name of the activation, or None.
        norm: whether a norm follows.
    """

    def __init__(self, config: SublayerConfig, dense: int | None, bias: bool, act: str | None, norm: bool) -> None:
        super().__init__()
        self.dense = None if dense is None else nn.Linear(config.hidden_size, dense, bias=bias)
        self.activation = None if act is None else activation(act)
        self.norm = configured_norm(config, hidden_size=dense) if norm else None

    def forward(self, hidden: Tensor) -> Tensor:
        """Map ``hidden [..., d]`` to what the output layer reads."""
        for part in (self.dense, self.activation, self.norm):
            hidden = hidden if part is None else part(hidden)
        return hidden


def language_transform(config: SublayerConfig) -> HeadTransform | None:
    """The transform before the output layer of a language model, or None where the config has none."""
    if config.embedding_width != config.hidden_size and not config.lm_head_dense:
        raise ValueError(
            f"embedding_size ({config.embedding_width}) differs from hidden_size ({config.hidden_size}), so the output "
            "layer cannot read the stream: set lm_head_dense=True"
        )
    if not (config.lm_head_dense or config.lm_head_act is not None or config.lm_head_norm):
        return None
    width = config.embedding_width if config.lm_head_dense else None
    return HeadTransform(config, width, config.lm_head_dense_bias, config.lm_head_act, config.lm_head_norm)


def classifier_transform(config: SublayerConfig) -> HeadTransform | None:
    """The transform before the layer that scores labels, or None where the config has none."""
    if not (config.classifier_dense or config.classifier_act is not None or config.classifier_norm):
        return None
    width = config.hidden_size if config.classifier_dense else None
    return HeadTransform(config, width, config.classifier_dense_bias, config.classifier_act, config.classifier_norm)


class LanguageModel(SublayerPreTrainedModel):
    """What the models with a language head share; ``model``, ``lm_head_transform`` and ``lm_head`` are theirs."""

    lm_head_transform: HeadTransform | None
    lm_head: nn.Linear

    def _logits(self, hidden: Tensor) -> Tensor:
        """Logits ``[batch, seq, vocab]`` of ``hidden [batch, seq, d]``."""
        config = self.config
        if self.lm_head_transform is not None:
            hidden = self.lm_head_transform(hidden)
        logits: Tensor = self.lm_head(hidden)
        if config.logits_scale != 1:
            logits = logits * config.logits_scale
        cap = config.final_logit_softcapping
        return logits if cap is None else cap * (logits / cap).tanh()

    def _predict(
        self,
        hidden: Tensor,
        labels: Tensor | None,
        shift: bool,
        loss_only: bool,
        options: dict[str, Any],
        keep: slice | Tensor = slice(None),
    ) -> tuple[Tensor | None, Tensor | None]:
        """The mean loss and the logits ``[batch, kept, vocab]`` of ``hidden [batch, seq, d]``; None what is not asked
        for."""
        if labels is not None and loss_only:
            return self._loss_alone(hidden, labels, shift, options.get("num_items_in_batch")), None
        logits = self._logits(hidden[:, keep, :])
        if labels is None:
            return None, logits
        return self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **options), logits

    def _loss_alone(self, hidden: Tensor, labels: Tensor, shift: bool, count: Tensor | int | None) -> Tensor:
        """The same loss, with logits only where ``labels [batch, seq]`` ask for a prediction, and not all at once."""
        config, head = self.config, self.lm_head
        rows, targets = predicted(hidden, labels, shift)  # [n, d], [n]
        if config.final_logit_softcapping is not None or not is_plain_linear(head):
            return cross_entropy(self._logits(rows), targets, count)
        if self.lm_head_transform is not None:
            rows = self.lm_head_transform(rows)
        return linear_cross_entropy(rows, head, targets, count, config.logits_scale)


class SublayerForCausalLM(LanguageModel, GenerationMixin):
    """Next-token prediction; ``generate`` works with and without cache, for every design."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: SublayerConfig) -> None:
        super().__init__(_settle_causal(config, True, "SublayerForCausalLM", "SublayerForMaskedLM"))
        self.model = SublayerModel(self.config)
        self.lm_head_transform = language_transform(self.config)
        self.lm_head = nn.Linear(config.embedding_width, config.vocab_size, bias=config.lm_head_bias)
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
        token_type_ids: Tensor | None = None,
        loss_only: bool = False,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits ``[batch, seq, vocab]``, and the mean loss of predicting ``labels[:, t + 1]`` from position t.

        Args:
            labels: ``[batch, seq]``, -100 where nothing is to be predicted; shifted here. The first token of a packed
                document is no target.
            logits_to_keep: how many last positions to give logits for; 0 means all.
            loss_only: with labels, give no logits and never make more than a part of them: less time and memory.
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
            token_type_ids=token_type_ids,
            **kwargs,
        )
        if labels is not None and sequence_ids is not None:
            labels = labels.masked_fill(document_starts(sequence_ids), IGNORED)
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        loss, logits = self._predict(outputs.last_hidden_state, labels, True, loss_only, kwargs, keep)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def generate(self, inputs: Tensor | None = None, generation_config: Any = None, *args: Any, **kwargs: Any) -> Any:
        """transformers' `generate`, with the weights laid out for it where tokens are made one at a time on a CPU."""
        settings = self.generation_config if generation_config is None else generation_config
        with by_columns(self, *growth(inputs, settings, kwargs)):
            return super().generate(inputs, generation_config, *args, **kwargs)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,  # named, since `generate` looks here whether it is taken
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As in transformers; a text that outgrows the original length of longrope is read anew, since all its angles
        change and the kept keys were turned by the old ones."""
        lengths = [angles.original_length for angles in self.model.rotary.values() if angles.long]
        seen = 0 if past_key_values is None else int(past_key_values.get_seq_length())
        if any(0 < seen <= length < input_ids.shape[1] for length in lengths):
            past_key_values, kwargs["next_sequence_length"] = None, None
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids, past_key_values=past_key_values, inputs_embeds=inputs_embeds, **kwargs
        )
        return inputs


class SublayerForMaskedLM(LanguageModel):
    """Masked-token prediction with bidirectional ``attn``."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: SublayerConfig) -> None:
        super().__init__(_settle_causal(config, False, "SublayerForMaskedLM", "SublayerForCausalLM"))
        self.model = SublayerModel(self.config)
        self.lm_head_transform = language_transform(self.config)
        self.lm_head = nn.Linear(config.embedding_width, config.vocab_size, bias=config.lm_head_bias)
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
        token_type_ids: Tensor | None = None,
        loss_only: bool = False,
        **kwargs: Any,
    ) -> MaskedLMOutput:
        """Logits ``[batch, seq, vocab]``, and the mean loss of predicting ``labels[:, t]`` at position t.

        Args:
            labels: ``[batch, seq]``, -100 where nothing is to be predicted.
            loss_only: with labels, give no logits, and make them only where a label is: less time and memory.
            kwargs: num_items_in_batch goes to the loss; the rest as in :meth:`SublayerModel.forward`.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            sequence_ids=sequence_ids,
            token_type_ids=token_type_ids,
            **kwargs,
        )
        loss, logits = self._predict(outputs.last_hidden_state, labels, False, loss_only, kwargs)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class SublayerForSequenceClassification(SublayerPreTrainedModel):
    """A label or a number for each text, read as classifier_reads says: from one token, or the mean of all."""

    def __init__(self, config: SublayerConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = SublayerModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier_transform = classifier_transform(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=config.classifier_bias)
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
        pooled = self._pooled(hidden, attention_mask)  # [batch, d]
        if self.classifier_transform is not None:
            pooled = self.classifier_transform(pooled)
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

    def _pooled(self, hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
        """The vector of each row that is scored, ``[batch, d]``."""
        batch, length = hidden.shape[:2]
        real = hidden.new_ones(batch, length)
        if attention_mask is not None:
            real = (attention_mask[:, -length:] != 0).to(hidden.device, hidden.dtype)
        reads = self.config.classifier_reads or ("last" if self.config.left_to_right else "first")
        if reads == "mean":
            return (hidden * real.unsqueeze(-1)).sum(dim=1) / real.sum(dim=1, keepdim=True).clamp(min=1)
        rank = torch.arange(1, length + 1, device=hidden.device)
        token = (real * (rank if reads == "last" else rank.flip(0))).argmax(dim=-1)
        return hidden[torch.arange(batch, device=hidden.device), token]


def _settle_causal(config: SublayerConfig, causal: bool, head: str, other: str) -> SublayerConfig:
    """The config with its open direction decided, in a copy: one config may serve models of both kinds."""
    if config.causal is None:
        config = copy.deepcopy(config)
        config.causal = causal
    elif config.causal is not causal:
        raise ValueError(f"causal ({config.causal}) must be {causal} for {head}: leave it unset, or use {other}")
    return config
