"""Assertions for tests of models: what the wiring is, and that two are alike.

from sublayer.testing import assert_wiring

def test_blocks_are_post_norm():
    assert_wiring(MyModel(), "x = norm(x + attn(x)); x = norm(x + ffn(x))")
"""

import re
from typing import Any

from sublayer.audit.diff import between, diff
from sublayer.audit.result import Audit
from sublayer.audit.sides import Side, one_line
from sublayer.notation import Design, parse

__all__ = ["assert_same_wiring", "assert_wiring"]

# A label of a section that says more than the block.
_WHOLE = re.compile(r"(?:^|[\n;])\s*(?:embed|final)\s*:")


def assert_wiring(model: Any, design: "str | Design", *, inputs: Any = None) -> None:
    """Assert that a model is wired as a design says.

    Args:
        model: anything that `sublayer.audit.audit` takes, or an Audit. Of a model with several stacks the one that
            makes the output is looked at: of an encoder-decoder, the decoder.
        design: an equation without sections is that of the block: every layer must have it, whatever comes before the
            first and after the last. An equation with ``embed:`` or ``final:``, a name of the catalogue, and a Design
            are whole designs: embed, every layer and final must be theirs.
        inputs: what to run the model with, where the auditor's own inputs do not fit.

    Raises:
        AssertionError: with the difference in words; also where the wiring is unknown.
        DesignError, AuditError: the design cannot be read, or the model cannot be audited at all.
    """
    __tracebackhide__ = True
    wanted = parse(design)
    audit = _audit(model, inputs)
    side = Side(audit.target, audit=audit)
    block_only = isinstance(design, str) and "=" in design and not _WHOLE.search(design)
    # From what is expected to what is there: the words say what the model does otherwise.
    found = between(Side(_name(design, block_only), design=wanted), side, ends=not block_only)
    if found:
        raise AssertionError(f"the wiring is not the one that is expected\n{found}")


def assert_same_wiring(a: Any, b: Any) -> None:
    """Assert that two models have the same equations and the same facts: heads, widths, norms.

    Args:
        a, b: anything that `sublayer.diff` takes.

    Raises:
        AssertionError: with the difference in words; also where a wiring is unknown.
    """
    __tracebackhide__ = True
    found = diff(a, b)
    if found:
        raise AssertionError(f"the wirings differ\n{found}")


def _audit(model: Any, inputs: Any) -> Audit:
    if isinstance(model, Audit):
        return model
    from sublayer.audit.read import audit

    return audit(model, inputs=inputs)


def _name(design: "str | Design", block_only: bool) -> str:
    text = one_line(parse(design))
    if isinstance(design, str) and parse(design).name:
        return design
    return f"every layer {text}" if block_only else text
