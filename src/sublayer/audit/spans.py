"""Sets of layers as text."""

from collections.abc import Sequence


def layers_text(where: Sequence[int]) -> str:
    """``layer 3``, ``layers 0-11``, ``layers 0-3, 6``: indices counted from 0."""
    runs: list[list[int]] = []
    for index in sorted(set(where)):
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    parts = [str(a) if a == b else f"{a}-{b}" for a, b in runs]
    many = len(runs) > 1 or any(a != b for a, b in runs)
    return f"layer{'s' if many else ''} {', '.join(parts)}"
