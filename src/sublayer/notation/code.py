"""The forward of a section as Python source: the text that `sublayer show --code` prints is the code that runs."""

import re

from sublayer.notation.program import Add, Call, Section

# Tensors take no integers beyond 64 bits, and floats hold none of these digits anyway.
_LONG_INTEGER = re.compile(r"(?<![\w.])\d{16,}(?![\w.])")
CONTEXTUAL = frozenset({"attn", "dot"})  # operators that also read the context: masks, positions, cache


def forward_source(section: Section, tap: bool = False) -> str:
    """Source of ``forward(self, <inputs>, context)`` for a module whose attributes are the section's sites.

    ``layer`` (1..depth, 0 outside the blocks) and ``depth`` are read from the module where a scalar needs them. With
    ``tap``
    every value, inputs included, passes through ``self.tap(name, value)``, which may replace it.
    """
    lines = _tapped_lines(section) if tap else section.render(_call)
    body = [f"{target} = {_LONG_INTEGER.sub(_as_float, text)}" for target, text in lines if target != text]
    scalars = [c for s in section.steps if isinstance(s, Add) for c, _ in s.terms]
    free = {name for name in ("layer", "depth") for c in scalars if name in str(c)}
    head = [f"{name} = self.{name}" for name in ("layer", "depth") if name in free]
    # The variables that hold the outputs at the end are named after the streams.
    outputs = ", ".join(value if tap else stream for stream, value in section.outputs)
    source = [f"def forward(self, {', '.join(section.inputs)}, context):"]
    source += [f"    {line}" for line in (*head, *body, f"return {outputs}")]
    return "\n".join(source) + "\n"


def _as_float(integer: re.Match[str]) -> str:
    return repr(float(integer.group()))


def _call(call: Call, args: list[str]) -> str:
    context = ["context"] if call.site.op in CONTEXTUAL else []
    return f"self.{call.site.name}({', '.join([*args, *context])})"


def _tapped_lines(section: Section) -> list[tuple[str, str]]:
    """One line a value, each handed to the tap as soon as it exists."""
    lines = [(v, f'self.tap("{v}", {v})') for v in section.inputs]
    for step in section.steps:
        text = _call(step, list(step.args)) if isinstance(step, Call) else section.sum_text(step)
        lines.append((step.value, f'self.tap("{step.value}", {text})'))
    return lines
