"""The forward of a section as Python source: the text that `sublayer show --code` prints is the code that runs."""

import re

from sublayer.notation.parallel import PICK, TOGETHER, Group, parallel
from sublayer.notation.program import Add, Call, Section
from sublayer.notation.scalar import render

# Tensors take no integers beyond 64 bits, and floats hold none of these digits anyway.
_LONG_INTEGER = re.compile(r"(?<![\w.])\d{16,}(?![\w.])")
CONTEXTUAL = frozenset({"attn", "dot"})  # operators that also read the context: masks, positions, cache


def forward_source(section: Section, tap: bool = False, fuse: bool = True) -> str:
    """Source of ``forward(self, <inputs>, context)`` for a module whose attributes are the section's sites.

    ``layer`` (1..depth, 0 outside the blocks) and ``depth`` are read from the module where a scalar needs them. With
    ``tap`` every value, inputs included, passes through ``self.tap(name, value)``, which may replace it. With ``fuse``
    branches that can run together do (`sublayer.notation.parallel`): ``self.attn_ffn(x, context)`` in place of
    ``self.attn(x, context) + self.ffn(x)``, with a comment that says so.
    """
    groups = () if tap or not fuse else parallel(section).groups
    if groups:
        section = parallel(section).section
    named = {group.name: group for group in groups}

    def call(step: Call, args: list[str]) -> str:
        if step.site.op == PICK:
            return f"{args[0]}[{step.site.name}]"
        group = named.get(step.site.name) if step.site.op == TOGETHER else None
        return _call(step, args) if group is None else _call_group(group, args)

    lines = _tapped_lines(section) if tap else section.render(call)
    body = [f"{target} = {_LONG_INTEGER.sub(_as_float, text)}" for target, text in lines if target != text]
    scalars = [c for s in section.steps if isinstance(s, Add) for c, _ in s.terms]
    scalars += [factor for group in groups for factor in group.factors]
    free = {name for name in ("layer", "depth") for c in scalars if name in str(c)}
    head = [f"# {_explained(group)}" for group in groups]
    head += [f"{name} = self.{name}" for name in ("layer", "depth") if name in free]
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


def _call_group(group: Group, args: list[str]) -> str:
    factors = [f"[{', '.join(render(factor, '') for factor in group.factors)}]"] if group.factors else []
    return f"self.{group.name}({', '.join([*args, 'context', *factors])})"


def _explained(group: Group) -> str:
    """``attn_ffn(h) = attn(h) + ffn(h): one input product and one output product``."""
    args = ["h"] if len(group.args) == 1 else [f"h{i + 1}" for i in range(len(group.args))]
    calls = [f"{call.site.name}({args[i]})" for call, i in zip(group.calls, group.reads, strict=True)]
    numbers = [f"c{i + 1}*" for i in range(len(group.factors))]
    results, used = [], 0
    for result in group.results:
        factors = numbers[used : used + len(result)] if numbers else [""] * len(result)
        results.append(" + ".join(f + calls[term.call] for f, term in zip(factors, result, strict=True)))
        used += len(result)
    given = [*args, f"[{', '.join(n[:-1] for n in numbers)}]"] if numbers else args
    return f"{group.name}({', '.join(given)}) = {', '.join(results)}: {group.products}"


def _tapped_lines(section: Section) -> list[tuple[str, str]]:
    """One line a value, each handed to the tap as soon as it exists."""
    lines = [(v, f'self.tap("{v}", {v})') for v in section.inputs]
    for step in section.steps:
        text = _call(step, list(step.args)) if isinstance(step, Call) else section.sum_text(step)
        lines.append((step.value, f'self.tap("{step.value}", {text})'))
    return lines
