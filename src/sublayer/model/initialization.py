"""Initial weights, each drawn from (seed, name): what two designs have in common starts equal."""

import hashlib
import math

import torch
from torch import Tensor, nn
from transformers import initialization as guarded  # leaves weights that came from a checkpoint alone

from sublayer.model.config import SublayerConfig
from sublayer.model.factors import ChannelScale, ScalarGate
from sublayer.model.norms import SublayerDyT, SublayerHeadsNorm

# Projections whose Xavier gain DeepNorm lowers: the FFN's, the values' and the attention's output.
_DEEPNORM_SCALED = frozenset({"up_proj", "gate_proj", "down_proj", "v_proj", "o_proj"})
_DEEPNORM_PLAIN = frozenset({"q_proj", "k_proj"})


def name_seed(seed: int, name: str) -> int:
    """A 63-bit seed for one parameter, from the base seed and the parameter's name."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big") >> 1


def initialise(module: nn.Module, name: str, config: SublayerConfig) -> None:
    """Fill the parameters that ``module`` itself owns.

    Args:
        module: any module of a Sublayer model.
        name: its name in the base model (``layers.0.attn.q_proj``); for a head's own layers, in the head (``lm_head``).
        config: reads init, initializer_range, init_seed, num_hidden_layers and the initial factors.
    """
    if isinstance(module, nn.Linear | nn.Embedding):
        _draw(module.weight, f"{name}.weight", _standard_deviation(module, name, config), config)
        if getattr(module, "bias", None) is not None:
            guarded.zeros_(module.bias)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            if not getattr(module.weight, "_is_hf_initialized", False):  # a slice would lose the mark
                guarded.zeros_(module.weight[module.padding_idx])
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm | SublayerDyT | SublayerHeadsNorm):
        if module.weight is not None:  # a weight that 1 is added to starts at 0
            guarded.constant_(module.weight, 0.0 if getattr(module, "zero_centred", False) else 1.0)
        if getattr(module, "bias", None) is not None:
            guarded.zeros_(module.bias)
        if isinstance(module, SublayerDyT):
            guarded.constant_(module.alpha, config.dyt_alpha_init)
    elif isinstance(module, ChannelScale):
        guarded.constant_(module.weight, initial_scale(config))
    elif isinstance(module, ScalarGate):
        guarded.constant_(module.weight, config.gate_init)


def initial_scale(config: SublayerConfig) -> float:
    """LayerScale's start: ``scale_init``, or by depth as in Touvron et al. 2021, section 2."""
    if config.scale_init is not None:
        return config.scale_init
    depth = config.num_hidden_layers
    return 0.1 if depth <= 18 else 1e-5 if depth <= 24 else 1e-6


def _standard_deviation(module: nn.Linear | nn.Embedding, name: str, config: SublayerConfig) -> float:
    """``initializer_range``; under DeepNorm (Wang et al. 2022, figure 2) Xavier's, times beta where it says so."""
    role = name.rpartition(".")[2]
    if config.init == "normal" or role not in _DEEPNORM_SCALED | _DEEPNORM_PLAIN:
        return config.initializer_range
    fan_out, fan_in = module.weight.shape
    beta = (8 * config.num_hidden_layers) ** -0.25 if role in _DEEPNORM_SCALED else 1.0
    return beta * math.sqrt(2 / (fan_in + fan_out))


def _draw(parameter: Tensor, name: str, deviation: float, config: SublayerConfig) -> None:
    """Normal numbers from the parameter's own generator, on the CPU in float32: device and dtype change nothing."""
    if parameter.is_meta or getattr(parameter, "_is_hf_initialized", False):
        return
    seed = torch.initial_seed() if config.init_seed is None else config.init_seed
    generator = torch.Generator("cpu").manual_seed(name_seed(seed, name))
    drawn = torch.empty(parameter.shape, dtype=torch.float32, device="cpu").normal_(0.0, deviation, generator=generator)
    guarded.copy_(parameter, drawn)
