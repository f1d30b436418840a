"""What to do about a machine that was too small for a run: memory, or the disk. Imports no torch at module level."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from . import checkpoint

if TYPE_CHECKING:
    from .spec import TrainSpec

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# What libraries that are not Python say of such an error: Rust's standard library gives its number.
_SAID = ("No space left", "Disk quota exceeded", "File too large", *(f"(os error {n})" for n in sorted(_NO_SPACE)))
# torch says only that its file came out wrong.
_WRITER = ("PytorchStreamWriter", "inline_container", "basic_ios", "iostream error")
_NO_MEMORY = ("out of memory", "can't allocate memory", "Cannot allocate memory", "not enough memory", "bad_alloc")


def less_memory(spec: TrainSpec) -> str:
    """What makes a step smaller, with the memory that each takes by the formulas of `sublayer cost`."""
    from sublayer.cost import CostError, cost
    from sublayer.notation import DesignError

    from .dry_run import priced_settings

    def needs(batch: int, seq: int, accumulation: int) -> str:
        try:
            found = cost(
                priced_settings(spec), batch=batch, seq=seq, dtype=spec.dtype, accumulation=accumulation, packed=True,
                attention="eager" if spec.attn_implementation == "eager" else "sdpa",
            )  # fmt: skip
        except (CostError, DesignError):
            return ""
        return f" takes {found.memory.total / 1e6:,.1f} MB"

    rows = spec.rows_per_step
    ways = []
    if spec.batch > 1:
        batch = next(n for n in range(spec.batch // 2, 0, -1) if rows % n == 0)
        given = f"--batch {batch} --accumulation {rows // batch}"
        ways.append(f"{given}{needs(batch, spec.seq, rows // batch)}, for the same {rows} rows a step")
    if spec.seq >= 16:
        ways.append(f"--seq {spec.seq // 2}{needs(spec.batch, spec.seq // 2, spec.accumulation)}")
    ways.append("a smaller model: `sublayer cost` tells what each takes")
    now = f"a step of {spec.batch} x {spec.seq} tokens{needs(spec.batch, spec.seq, spec.accumulation)}"
    return f"{now}; give, in another folder, " + "; or ".join(ways)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def no_memory(error: BaseException) -> bool:
    """Whether an error means that memory could not be had."""
    import torch

    return any(
        isinstance(one, (MemoryError, torch.OutOfMemoryError))
        or (isinstance(one, OSError) and one.errno == errno.ENOMEM)
        or (isinstance(one, RuntimeError) and any(words in str(one) for words in _NO_MEMORY))
        for one in _chain(error)
    )


def no_space(error: BaseException) -> bool:
    """Whether an error means that the disk is full, or that a quota or a limit on files is reached."""
    for one in _chain(error):
        if isinstance(one, OSError) and one.errno in _NO_SPACE:
            return True
        if not isinstance(one, OSError) and any(words in str(one) for words in _SAID):
            return True
        if isinstance(one, RuntimeError) and any(words in str(one) for words in _WRITER):
            return True
    return False


def more_space(out: Path) -> str:
    """What to do about a full disk, with what is kept and what a checkpoint takes."""
    kept = next((path for _, path in checkpoint.steps(out) if (path / checkpoint.MANIFEST).exists()), None)
    if kept is None:
        return f"free some space on the disk of {out}; --resume then begins again, since no checkpoint was made yet"
    size = sum(path.stat().st_size for path in kept.rglob("*") if path.is_file())
    return (
        f"free some space on the disk of {out} (a checkpoint takes {size / 1e6:,.1f} MB, and two are there while one "
        f"replaces the other); {kept.name} is kept, and --resume goes on from it"
    )
