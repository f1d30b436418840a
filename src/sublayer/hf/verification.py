"""Whether a family's design is what transformers' model computes: the auditor reads it from the config."""

import math

from transformers import PreTrainedConfig
from transformers.utils import logging

from sublayer.audit import AuditError, audit
from sublayer.hf.errors import CheckpointError
from sublayer.hf.family import Family
from sublayer.model import SublayerConfig
from sublayer.notation import Design, parse
from sublayer.notation.program import Add

logger = logging.get_logger(__name__)


def check_design(config: PreTrainedConfig, ours: SublayerConfig, family: Family, layout: str | None) -> bool:
    """Compare the auditor's reading of the family's config with the design of the Sublayer model.

    A layout has a wiring of its own, which the config does not know: it is not compared.

    Returns:
        whether there was anything to compare.

    Raises:
        CheckpointError: the two differ.
    """
    if layout is not None:
        return False
    try:
        found = audit(config)
    except AuditError as error:
        logger.warning(f"the design of this {family.model_type} is not verified: the auditor says {error}")
        return False
    stack = found.main
    if stack is None or stack.design is None:
        why = stack.unknown if stack is not None else found.unknown
        logger.warning(f"the design of this {family.model_type} is not verified: the auditor says {why}")
        return False
    if not _agree(stack.design, parse(ours.design), ours):
        raise CheckpointError(
            f"the design of a {family.model_type} checkpoint must be what its config computes; expected\n"
            f"{ours.design}\n"
            f"but the auditor reads\n{stack.design}\nload with verify=False to go on, and report the config"
        )
    return True


def _agree(found: Design, expected: Design, config: SublayerConfig) -> bool:
    """Whether two designs are equal, the embed section seen as what the model does to the token embedding.

    What the config says of the embedding itself (a factor, a norm before a projection) is no part of the design, but
    the auditor sees it.
    """
    if found.blocks != expected.blocks or found.section("final") != expected.section("final"):
        return False
    if config.embedding_norm or config.embedding_width != config.hidden_size:
        return True
    embed = found.section("embed")
    first = embed.steps[0] if len(embed.steps) == 1 else None
    if isinstance(first, Add) and first.args == ("e",) and expected.embed == "x = e":
        factor = first.terms[0][0].value(0, 1)
        return math.isclose(factor, config.embedding_multiplier, rel_tol=1e-6)
    return config.embedding_multiplier == 1 and embed == expected.section("embed")
