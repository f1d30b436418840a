"""Read the wiring of any PyTorch Transformer back into the notation; compare two; keep one from changing.

Only the reading itself needs torch: results, differences and lock files do not wait for it.
"""

from typing import TYPE_CHECKING, Any

from sublayer._verb import callable_module
from sublayer.audit.result import Audit, AuditError, BranchFacts, Finding, LayerAudit, NormFacts, Stack

if TYPE_CHECKING:
    from sublayer.audit.read import audit

__all__ = ["Audit", "AuditError", "BranchFacts", "Finding", "LayerAudit", "NormFacts", "Stack", "audit"]


def __getattr__(name: str) -> Any:
    if name == "audit":
        from sublayer.audit.read import audit

        return audit
    raise AttributeError(f"module 'sublayer.audit' has no attribute {name!r}; it has {', '.join(__all__)}")


callable_module(__name__)
