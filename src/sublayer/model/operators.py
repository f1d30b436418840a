"""From the operator names of the notation to modules."""

from collections.abc import Callable

from torch import nn

from sublayer.model.attention import DotAttention, SelfAttention
from sublayer.model.config import SublayerConfig
from sublayer.model.factors import ChannelScale, ScalarGate, StopGradient
from sublayer.model.ffn import FeedForward
from sublayer.model.norms import build_norm
from sublayer.notation import DesignError
from sublayer.notation.program import Section, Site

_BUILDERS: dict[str, Callable[[SublayerConfig], nn.Module]] = {
    "attn": SelfAttention,
    "dot": DotAttention,
    "ffn": FeedForward,
    "norm": lambda config: build_norm(config.norm, config.hidden_size, config.norm_eps),
    "layernorm": lambda config: build_norm("layernorm", config.hidden_size, config.norm_eps),
    "rmsnorm": lambda config: build_norm("rmsnorm", config.hidden_size, config.norm_eps),
    "dyt": lambda config: build_norm("dyt", config.hidden_size, config.norm_eps),
    "scale": lambda config: ChannelScale(config.hidden_size),
    "gate": lambda config: ScalarGate(),
    "stop": lambda config: StopGradient(),
}


def build_operator(site: Site, config: SublayerConfig, section: Section) -> nn.Module:
    """The module of one site.

    Raises:
        DesignError: the operator can be written (the auditor prints it) but has no implementation here.
    """
    builder = _BUILDERS.get(site.op)
    if builder is None:
        start = section.text.find(site.call)
        raise DesignError(
            f"a model can be built from {', '.join(_BUILDERS)}; {site.op!r} stands for something that an audited model "
            "does but has no implementation here",
            section.text,
            start if start >= 0 else None,
            len(site.call),
            expected="attn or dot to mix positions, ffn to work on each, in place of it",
        )
    return builder(config)
