"""The model of a run, and what is recorded of it before its first step."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch
from torch import nn

from .spec import TrainSpec
from .tokenizer import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NORMS = frozenset({"norm", "layernorm", "rmsnorm", "dyt"})


def build(spec: TrainSpec, vocabulary: Vocabulary) -> PreTrainedModel:
    """The untrained model. Each parameter is drawn from (`spec.seed`, its name): designs share what both have.

    Raises:
        DesignError: the design cannot be read or does not fit the depth.
        ValueError: a setting that the model does not have.
    """
    from sublayer.model import SublayerConfig, SublayerForCausalLM, SublayerForMaskedLM

    settings = {
        **spec.model_settings(),
        "vocab_size": max(vocabulary.size, spec.model_options.get("vocab_size", 0)),  # rows to spare harm nothing
        "pad_token_id": vocabulary.pad,
        "bos_token_id": vocabulary.bos,
        "eos_token_id": vocabulary.end,
    }
    head = SublayerForCausalLM if spec.objective == "clm" else SublayerForMaskedLM
    return head(SublayerConfig(**settings))


def kinds(model: PreTrainedModel) -> dict[str, str]:
    """What each parameter is for, by name: `attn`, `ffn`, `norm`, another operator, `embed` or `head`."""
    inner = model.base_model
    prefix = f"{model.base_model_prefix}." if inner is not model else ""
    owners: dict[str, str] = {}
    sections = {f"{prefix}{name}.": getattr(inner, name, None) for name in ("embed_section", "final_section")}
    sections |= {f"{prefix}layers.{i}.": layer for i, layer in enumerate(getattr(inner, "layers", ()))}
    for path, module in sections.items():
        for site in getattr(getattr(module, "section", None), "sites", ()):
            owners[f"{path}{site.name}."] = "norm" if site.op in _NORMS else site.op
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    found = {}
    for name, parameter in model.named_parameters():
        owner = next((kind for path, kind in owners.items() if name.startswith(path)), None)
        outside = "embed" if id(parameter) in tables else "head" if "head" in name else "other"
        found[name] = owner or outside
    return found


def weights_sha256(model: PreTrainedModel) -> dict[str, str]:
    """Hash of the parameters of each kind: names, shapes and bytes. Equal hashes before the first step mean that two
    designs start from the same weights there."""
    totals: dict[str, hashlib._Hash] = {}
    parameters = dict(model.named_parameters())
    for name, kind in sorted(kinds(model).items()):
        value = parameters[name].detach().cpu()
        total = totals.setdefault(kind, hashlib.sha256())
        total.update(f"{name} {list(value.shape)} {value.dtype}\n".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return {kind: total.hexdigest() for kind, total in sorted(totals.items())}


def flops_per_token(model: PreTrainedModel, spec: TrainSpec) -> float:
    """FLOPs of training on one token: 6 for each weight that multiplies, and 12 * layers * hidden * seq for attention.

    Source: Chowdhery et al. 2022 (PaLM, 2204.02311), appendix B. Looking a token up in a table multiplies nothing.
    """
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    weights = sum(p.numel() for p in model.parameters() if p.ndim >= 2 and id(p) not in tables)
    head = model.get_output_embeddings()
    if head is not None and id(head.weight) in tables:  # a tied table does multiply, as the head
        weights += head.weight.numel()
    return 6.0 * weights + 12.0 * spec.layers * spec.hidden * spec.seq
