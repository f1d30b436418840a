"""From the operator names of the notation to modules."""

from collections.abc import Callable

from torch import nn

from sublayer.model.attention import DotAttention, SelfAttention
from sublayer.model.config import SublayerConfig
from sublayer.model.factors import ChannelScale, ScalarGate, StopGradient
from sublayer.model.ffn import FeedForward
from sublayer.model.norms import configured_norm
from sublayer.notation import DesignError
from sublayer.notation.program import Section, Site

_BUILDERS: dict[str, Callable[[SublayerConfig, int], nn.Module]] = {
    "attn": SelfAttention,
    "dot": lambda config, layer: DotAttention(config),
    "ffn": lambda config, layer: FeedForward(config),
    "norm": lambda config, layer: configured_norm(config),
    "layernorm": lambda config, layer: configured_norm(config, "layernorm"),
    "rmsnorm": lambda config, layer: configured_norm(config, "rmsnorm"),
    "dyt": lambda config, layer: configured_norm(config, "dyt"),
    "scale": lambda config, layer: ChannelScale(config.hidden_size),
    "gate": lambda config, layer: ScalarGate(),
    "stop": lambda config, layer: StopGradient(),
}


def build_operator(site: Site, config: SublayerConfig, section: Section, layer: int) -> nn.Module:
    """The module of one site, in layer 1..depth, or 0 for the embed and final sections.

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
    return builder(config, layer)
