"""What an audit found: the wiring of every layer, what stands at each place, and what could not be told."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sublayer.notation import Design

FORMAT = 1  # version of Audit.to_dict
SEVERITIES = ("error", "warning", "note")


class AuditError(ValueError):
    """A target cannot be audited at all; the message gives the rule, what was received and the remedy."""


@dataclass(frozen=True)
class NormFacts:
    """One normalisation as it is computed.

    Attributes:
        kind: ``layernorm`` (mean subtracted), ``rmsnorm`` (not), ``dyt``, or ``l2norm`` (no division by the width).
        eps: the constant beside the statistic; ``None`` if it could not be read off.
        affine: what is learned after it: ``none``, ``gain``, ``offset`` or ``gain+offset``.
        where: ``input of attn``, ``output of ffn``, ``stream``, ``query or key``, ``latent``, ``inside attn``,
            ``embed`` or ``final``.
        module: dotted path of the module that computes it, a label only.
        parameters: names of its parameters; two places with equal parameters are one norm used twice.
    """

    kind: str
    eps: float | None
    affine: str
    where: str
    module: str = ""
    parameters: tuple[str, ...] = ()


@dataclass(frozen=True)
class BranchFacts:
    """One sub-layer.

    Attributes:
        op: ``attn``, ``cross``, ``dot``, ``ffn``, ``moe``, ``mixer`` or ``op``.
        module: dotted path of the innermost module that computes all of it, a label only.
        details: what is known of it. Attention: ``heads``, ``kv_heads``, ``head_dim``, ``output_projection`` (bool),
            ``qk_norm`` (``none``, ``head``, ``full``, ``latent``), ``gated`` (its output is gated), ``inner_norm``.
            Feed-forward: ``width``, ``ratio`` (width / d), ``gated``, ``activation``, ``inner_norm``. Mixture:
            ``experts``, ``shared_expert``. Mixer: ``mixes`` (conv, scan, fourier, ...). What is absent is unknown.
        parameters: names of its parameters.
        reads, writes: widths of what it reads and writes, in channels.
    """

    op: str
    module: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    parameters: tuple[str, ...] = ()
    reads: int = 0
    writes: int = 0


@dataclass(frozen=True)
class LayerAudit:
    """One layer.

    Attributes:
        index: 0-based place in its stack.
        module: dotted path of its module, a label only.
        equation: the block in the notation; empty if it is unknown.
        design: the whole model if all its layers were like this one; ``None`` if the equation is unknown.
        unknown: why the equation is unknown, with what is known; empty if it is not.
        branches, norms: what stands in it, in the order of execution.
        dropped: sub-layers that are computed and reach no output.
        shares: index of the earlier layer whose parameters it uses, or ``None``.
        notes: what the equation does not say: a constant added, a mask multiplied in, an assumption made.
    """

    index: int
    module: str
    equation: str
    design: Design | None
    unknown: str = ""
    branches: tuple[BranchFacts, ...] = ()
    norms: tuple[NormFacts, ...] = ()
    dropped: tuple[BranchFacts, ...] = ()
    shares: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stack:
    """A run of layers over one stream: a whole decoder-only model has one, an encoder-decoder two.

    Attributes:
        name: ``model``, ``encoder``, ``decoder``, or ``stack N``.
        embed, final: what happens to the stream before the first layer and after the last, in the notation.
        design: all of it as one design, layer ranges where layers differ; ``None`` if any part is unknown.
        unknown: why the design is unknown; empty if it is not.
        norm: the kind that ``norm`` stands for in the equations: ``layernorm``, ``rmsnorm`` or ``dyt``.
        width: channels of the stream.
        norms: those of embed and final.
    """

    name: str
    layers: tuple[LayerAudit, ...]
    embed: str
    final: str
    design: Design | None
    unknown: str = ""
    norm: str = ""
    width: int = 0
    norms: tuple[NormFacts, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """Something worth a look.

    Attributes:
        severity: ``error`` (broken), ``warning`` (unusual and often a mistake) or ``note``.
        rule: short stable name, such as ``residual-from-norm``.
        layers: ``layers 0-11``, ``layer 3``, ``embed``, ``final`` or ``model``.
        place: what stands there: ``attn``, ``ffn_in_norm``, a parameter's name.
        message: one sentence: what is there, what is usual, what follows.
    """

    severity: str
    rule: str
    layers: str
    place: str
    message: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.layers}, {self.place}: {self.message} [{self.rule}]"


@dataclass(frozen=True)
class Audit:
    """The wiring of a model, read from what it computes.

    Attributes:
        target: what was audited, as text.
        stacks: the runs of layers in the order of execution; the last one makes the output.
        findings: what is worth a look, most severe first.
        dead_parameters: names of parameters that reach no output.
        dead_inputs: names of inputs that change no output.
        assumptions: where the trace needed a number that only real weights or data have, and what was assumed.
        unknown: why nothing could be told of the whole; empty if something could.
        witness: how it was traced: ``dispatch`` or ``export``.
        seconds: time the trace and the reading took.
    """

    target: str
    stacks: tuple[Stack, ...]
    findings: tuple[Finding, ...] = ()
    dead_parameters: tuple[str, ...] = ()
    dead_inputs: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()
    unknown: str = ""
    witness: str = "dispatch"
    seconds: float = 0.0

    @property
    def main(self) -> Stack | None:
        """The stack that makes the output: of an encoder-decoder, the decoder."""
        return self.stacks[-1] if self.stacks else None

    @property
    def design(self) -> Design | None:
        """The main stack as one design; ``None`` where it is unknown (`unknown` and the layers say why)."""
        return self.main.design if self.main else None

    @property
    def layers(self) -> list[Design | None]:
        """One design a layer of the main stack."""
        return [layer.design for layer in self.main.layers] if self.main else []

    def __str__(self) -> str:
        from sublayer.audit.show import show

        return show(self)

    def _repr_html_(self) -> str:
        from sublayer.audit.show import as_html

        return as_html(self)

    def svg(self) -> str:
        """The diagram of the main stack's design. Raises AuditError where that is unknown."""
        from sublayer.audit.show import svg

        return svg(self)

    def to_dict(self) -> dict[str, Any]:
        """The whole audit as JSON values; `from_dict` reads it back."""
        from sublayer.audit.record import to_dict

        return to_dict(self)

    @classmethod
    def from_dict(cls, data: Any) -> "Audit":
        """Read what `to_dict` wrote. Raises AuditError for anything else."""
        from sublayer.audit.record import from_dict

        return from_dict(data)

    def to_frame(self) -> Any:
        """A pandas DataFrame with one row a layer; needs pandas (the extra `frames`)."""
        from sublayer.audit.record import to_frame

        return to_frame(self)
