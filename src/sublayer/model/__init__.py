"""Hugging Face models built from the equation of any design. Importing this package registers their Auto classes."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
)

from sublayer.model.block import SublayerBlock, SublayerSection
from sublayer.model.config import SublayerConfig
from sublayer.model.heads import SublayerForCausalLM, SublayerForMaskedLM, SublayerForSequenceClassification
from sublayer.model.modeling import SublayerModel, SublayerPreTrainedModel

AutoConfig.register(SublayerConfig.model_type, SublayerConfig, exist_ok=True)
AutoModel.register(SublayerConfig, SublayerModel, exist_ok=True)
AutoModelForCausalLM.register(SublayerConfig, SublayerForCausalLM, exist_ok=True)
AutoModelForMaskedLM.register(SublayerConfig, SublayerForMaskedLM, exist_ok=True)
AutoModelForSequenceClassification.register(SublayerConfig, SublayerForSequenceClassification, exist_ok=True)

__all__ = [
    "SublayerBlock",
    "SublayerConfig",
    "SublayerForCausalLM",
    "SublayerForMaskedLM",
    "SublayerForSequenceClassification",
    "SublayerModel",
    "SublayerPreTrainedModel",
    "SublayerSection",
]
