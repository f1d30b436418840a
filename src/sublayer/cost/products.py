"""FLOPs of the matrix products, forward and backward, as torch's `FlopCounterMode` counts them.

The backward pass of ``C = A B`` has a product for the gradient of A and one for that of B, each as large as the
forward's, if they are asked for: a weight's always is, an input's where something trained lies before it and no
``stop`` between. An attention kernel that keeps no probabilities computes the scores once more: five products for the
forward's two.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from sublayer.cost.flow import ends_unsaved, gradient_flow
from sublayer.cost.operators import Attention, Device, has_kernel
from sublayer.notation.program import Call, Section
from sublayer.sizes import Sizes


@dataclass
class Products:
    """FLOPs of one step on a batch.

    Attributes:
        forward: by owner.
        backward: of the backward pass.
        recomputed: within `backward`, what repeats the forward pass: scores in a kernel, blocks under checkpointing.
        between: within forward, and within forward and backward, the products between positions, which grow with the
            square of the length.
        ffn: within forward, the FFN's.
    """

    forward: Counter[str] = field(default_factory=Counter)
    backward: int = 0
    recomputed: int = 0
    between: tuple[int, int] = (0, 0)
    ffn: int = 0

    def add(self, owner: str, flops: int, gradients: int) -> None:
        """A product that the backward pass has ``gradients`` of."""
        self.forward[owner] += flops
        self.backward += flops * gradients


def count(
    sections: Sequence[tuple[str, Section]],
    shape: Sizes,
    head: str | int,
    batch: int,
    seq: int,
    attention: Attention,
    device: Device,
    checkpointing: bool,
) -> Products:
    """All products of a step; arguments as in `sublayer.cost.cost`."""
    found, tokens, d = Products(), batch * seq, shape.d
    flow = gradient_flow(sections, shape)
    if shape.embed_projected:
        found.add("embed_projection", tokens * 2 * shape.width * d, 2 * flow[0].gets["e"])
    for (place, section), known in zip(sections, flow, strict=True):
        for call in (step for step in section.steps if isinstance(step, Call)):
            gets, needs = known.gets[call.value], known.needs[call.args[0]]
            owner = f"{place}.{call.site.name}"
            into, core, out = (tokens * part for part in shape.products_of(call.site, seq))
            found.add(owner, into, gets * (1 + needs))
            found.add(owner, out, gets * 2)
            found.ffn += (into + out) * (call.site.op == "ffn")
            twice = gets and known.needs[call.value]
            found.add(owner, core, 2 * twice)
            again = core // 2 if twice and has_kernel(call.site.op, shape, attention, device) else 0
            found.recomputed += again
            repeated = core if checkpointing and place == "layers" else 0
            forward, whole = found.between
            found.between = forward + core, whole + core * (1 + 2 * twice) + again + repeated
        if checkpointing and place == "layers":
            found.recomputed += _again(section, shape, tokens, seq)
    _head(found, shape, head, batch, tokens, known.needs[dict(section.outputs)["x"]])
    found.backward += found.recomputed
    return found


def _again(section: Section, shape: Sizes, tokens: int, seq: int) -> int:
    """What gradient checkpointing runs again of a block."""
    calls = [step for step in section.steps if isinstance(step, Call)]
    total = sum(sum(shape.products_of(call.site, seq)) for call in calls)
    last = ends_unsaved(section, shape)
    return tokens * (total - (shape.products_of(last.site, seq)[2] if last is not None else 0))


def _head(found: Products, shape: Sizes, head: str | int, batch: int, tokens: int, needs: bool) -> None:
    if head == "lm":
        reads = needs
        if shape.lm_head_dense:
            found.add("lm_head_transform", tokens * 2 * shape.d * shape.width, 1 + needs)
            reads = True
        reads = reads or (shape.lm_head_norm and (shape.norm_affine or shape.norm == "dyt"))
        found.add("lm_head", tokens * 2 * shape.width * shape.vocab_size, 1 + reads)
    elif isinstance(head, int):
        if shape.classifier_dense:
            found.add("classifier_transform", batch * 2 * shape.d * shape.d, 1 + needs)
        reads = needs or shape.classifier_dense or (shape.classifier_norm and bool(shape.norm_affine))
        found.add("score", batch * 2 * shape.d * head, 1 + reads)
